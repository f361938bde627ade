# SPDX-License-Identifier: AGPL-3.0-or-later
"""Request-Tag (RFC 9175 section 3): blocks of an upload that was given up never become part of another."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.endpoint import Endpoint
from synapse_lb.coap.events import CoapRequest, CoapResponse, RequestReceived
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits, Tuning

LIMITS = Limits(block_szx=0)
LIFETIME = Tuning().exchange_lifetime


def upload(fill: bytes) -> CoapRequest:
    """A body of three blocks."""
    return CoapRequest(Code.POST, Options.of((OptionNumber.URI_PATH, b"a")), fill * 40, confirmable=False)


class GivenUpTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.client = Endpoint(random=random.Random(1), limits=LIMITS)
        self.server = Endpoint(random=random.Random(2), limits=LIMITS)

    def sent(self, now: float) -> list[bytes]:
        """What the client has to send."""
        return [data for _, data in self.client.datagrams_to_send(now)]

    def tag_of(self, datagram: bytes) -> bytes | None:
        """The Request-Tag of a message."""
        return Message.decode(datagram).options.get(OptionNumber.REQUEST_TAG)

    def exchange_one(self, datagram: bytes, now: float) -> None:
        """Carry one datagram to the server, and its answer back."""
        self.server.receive("client", datagram, now)
        for _, data in self.server.datagrams_to_send(now):
            self.client.receive("server", data, now)

    def begin_and_give_up(self, now: float) -> bytes:
        """An upload whose second block is still on its way."""
        exchange = self.client.request("server", upload(b"x"), now)
        (first,) = self.sent(now)
        self.exchange_one(first, now)
        (second,) = self.sent(now)
        self.client.cancel(exchange, now)
        return second

    def test_a_late_block_of_an_upload_that_was_given_up(self) -> None:
        late = self.begin_and_give_up(0.0)
        self.client.request("server", upload(b"y"), 1.0)
        (first,) = self.sent(1.0)
        self.exchange_one(first, 1.0)
        self.server.receive("client", late, 1.5)
        self.server.datagrams_to_send(1.5)
        bodies = []
        for _ in range(3):
            for datagram in self.sent(2.0):
                self.exchange_one(datagram, 2.0)
            while (event := self.server.next_event()) is not None:
                assert isinstance(event, RequestReceived)
                bodies.append(event.request.payload)
                self.server.respond(event.exchange, CoapResponse(Code.CHANGED), 2.0)
        self.assertEqual(bodies, [b"y" * 40])

    def test_each_upload_after_it_has_a_tag_of_its_own(self) -> None:
        tags = {self.tag_of(self.begin_and_give_up(float(now))) for now in range(5)}
        self.assertEqual(tags, {None, b"\1", b"\2", b"\3", b"\4"})

    def test_the_tags_end_with_the_last_block_that_can_arrive(self) -> None:
        self.begin_and_give_up(0.0)
        self.assertEqual(self.tag_of(self.begin_and_give_up(LIFETIME - 1)), b"\1")
        self.client.request("server", upload(b"z"), 2 * LIFETIME)
        self.assertIsNone(self.tag_of(self.sent(2 * LIFETIME)[-1]))

    def test_what_has_no_body_needs_none(self) -> None:
        self.begin_and_give_up(0.0)
        self.client.request("server", CoapRequest(Code.GET, Options()), 1.0)
        self.assertIsNone(self.tag_of(self.sent(1.0)[-1]))

    def test_it_is_remembered_as_long_as_it_is_needed(self) -> None:
        self.begin_and_give_up(0.0)
        self.sent(0.0)
        self.client.handle_timer(LIFETIME - 1)
        self.assertIn("server", self.client.peers)
        self.client.handle_timer(LIFETIME + 1)
        self.assertTrue(self.client.idle)
