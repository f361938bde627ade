# SPDX-License-Identifier: AGPL-3.0-or-later
"""Typed errors with their wire answers, and the values that pass between endpoint and application."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap import errors
from synapse_lb.coap.events import CoapRequest, CoapResponse, RequestReceived
from synapse_lb.coap.numbers import Code, Type
from synapse_lb.coap.options import Options


class ErrorTests(SynchronousTestCase):
    def test_wire_answers(self) -> None:
        for error, code in (
            (errors.OptionError("x"), Code.INTERNAL_SERVER_ERROR),
            (errors.MessageError("x"), Code.INTERNAL_SERVER_ERROR),
            (errors.MessageTooLarge(2000, 1152), Code.INTERNAL_SERVER_ERROR),
            (errors.ExchangeUnknown(1), None),
            (errors.TooManyExchanges("x"), Code.SERVICE_UNAVAILABLE),
            (errors.MessageFormatError("x"), None),
            (errors.UnrecognizedOption(257), Code.BAD_OPTION),
            (errors.BlockOptionError("x"), Code.BAD_REQUEST),
            (errors.BlockwiseError("x"), Code.REQUEST_ENTITY_INCOMPLETE),
            (errors.BlockwiseError("x", Code.BAD_REQUEST), Code.BAD_REQUEST),
            (errors.BodyTooLarge(10), Code.REQUEST_ENTITY_TOO_LARGE),
            (errors.ProxyingNotSupported("x"), Code.PROXYING_NOT_SUPPORTED),
            (errors.UnexpectedResponse(0x5F, "x"), None),
            (errors.RequestTimedOut("x"), None),
            (errors.RequestReset("x"), None),
            (errors.PingGaveWay("x"), None),
            (errors.PeerGone("x"), None),
        ):
            self.assertEqual(error.wire_code, code, repr(error))

    def test_every_error_is_of_one_family(self) -> None:
        families = (errors.LocalError, errors.RemoteError, errors.DeliveryError)
        for name, value in vars(errors).items():
            if (
                isinstance(value, type)
                and issubclass(value, errors.CoapError)
                and value is not errors.CoapError
            ):
                self.assertEqual(sum(issubclass(value, family) for family in families), 1, name)

    def test_texts_and_fields(self) -> None:
        self.assertEqual(str(errors.UnrecognizedOption(257)), "critical option 257 is not recognized")
        self.assertEqual(str(errors.UnexpectedResponse(0x5F, "why")), "2.31: why")
        too_large = errors.MessageTooLarge(2000, 1152)
        self.assertEqual((too_large.size, too_large.limit), (2000, 1152))
        malformed = errors.MessageFormatError("why", type=Type.CON, message_id=7)
        self.assertEqual((malformed.reason, malformed.type, malformed.message_id), ("why", Type.CON, 7))


class EventTests(SynchronousTestCase):
    def test_representations_show_no_body_and_no_credentials(self) -> None:
        request = CoapRequest(Code.POST, Options.of((256, b"secret")), b"secret")
        shown = repr(RequestReceived("peer", 1, request))
        self.assertNotIn("secret", shown)
        self.assertIn("code=0.02", shown)
        self.assertIn("<6 bytes>", shown)
        self.assertNotIn("secret", repr(CoapResponse(Code.CONTENT, payload=b"secret")))

    def test_defaults(self) -> None:
        self.assertEqual(CoapRequest(Code.GET), CoapRequest(Code.GET, Options(), b"", True))
        self.assertEqual(CoapResponse(Code.CONTENT), CoapResponse(Code.CONTENT, Options(), b""))
