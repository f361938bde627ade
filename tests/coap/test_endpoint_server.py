# SPDX-License-Identifier: AGPL-3.0-or-later
"""The endpoint as a server: duplicates, separate responses, cancellation, refusals, No-Response."""

from __future__ import annotations

import random

import attrs
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.endpoint import Endpoint
from synapse_lb.coap.errors import ExchangeUnknown, MessageError, OptionError
from synapse_lb.coap.events import (
    CancelReason,
    CoapResponse,
    RequestCancelled,
    RequestReceived,
    ResponseDelivered,
    ResponseUndelivered,
)
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Tuning
from tests.coap.lockstep import Script, body

OK = CoapResponse(Code.CONTENT, Options(), b"fine")


class ServerTestCase(SynchronousTestCase):
    """A script that plays the client; nothing must be left of it."""

    def setUp(self) -> None:
        self.script = Script(self)

    def tearDown(self) -> None:
        self.script.nothing_leaks()

    def received(self) -> int:
        """The application gets a request; return its exchange."""
        return self.script.event(RequestReceived).exchange

    def respond(self, exchange: int, response: CoapResponse = OK) -> None:
        self.script.endpoint.respond(exchange, response, self.script.now)


class Duplicates(ServerTestCase):
    """RFC 7252 section 4.5."""

    def test_while_the_request_is_processed_there_is_no_answer(self) -> None:
        script = self.script
        script.peer_sends("CON [1] POST /a Token=01")
        exchange = self.received()
        script.peer_sends("CON [1] POST /a Token=01")
        script.endpoint_is_quiet()
        script.no_event()
        self.respond(exchange)
        script.endpoint_sends('ACK [1] 2.05 Token=01 "fine"')

    def test_after_the_empty_ack_it_is_sent_again(self) -> None:
        script = self.script
        script.peer_sends("CON [1] POST /a Token=01")
        exchange = self.received()
        script.endpoint.acknowledge(exchange, script.now)
        script.endpoint_sends("ACK [1]")
        script.peer_sends("CON [1] POST /a Token=01")
        script.endpoint_sends("ACK [1]")
        self.respond(exchange)
        script.endpoint_sends('CON [$m] 2.05 Token=01 "fine"')
        script.peer_sends("CON [1] POST /a Token=01")
        script.endpoint_sends("ACK [1]")
        script.peer_sends("ACK [$m]")
        script.peer_sends("CON [1] POST /a Token=01")
        script.endpoint_sends("ACK [1]")

    def test_the_reply_is_replayed_until_exchange_lifetime(self) -> None:
        script = self.script
        script.peer_sends("CON [1] POST /a Token=01")
        self.respond(self.received())
        script.endpoint_sends('ACK [1] 2.05 Token=01 "fine"')
        for _ in range(3):  # each copy begins its time anew
            script.passes(246.9)
            script.peer_sends("CON [1] POST /a Token=01")
            script.endpoint_sends('ACK [1] 2.05 Token=01 "fine"')
        script.passes(247)
        script.peer_sends("CON [1] POST /a Token=01")
        self.respond(self.received())
        script.endpoint_sends('ACK [1] 2.05 Token=01 "fine"')

    def test_same_message_id_and_other_bytes_is_a_new_message(self) -> None:
        script = self.script
        script.peer_sends("CON [1] POST /a Token=01")
        self.respond(self.received())
        script.endpoint_sends('ACK [1] 2.05 Token=01 "fine"')
        script.peer_sends("CON [1] POST /b Token=01")
        self.respond(self.received())
        script.endpoint_sends('ACK [1] 2.05 Token=01 "fine"')

    def test_same_bytes_of_another_peer_are_a_new_message(self) -> None:
        script = self.script
        datagram = script.peer_sends("CON [1] POST /a Token=01")
        self.respond(self.received())
        script.endpoint_sends('ACK [1] 2.05 Token=01 "fine"')
        script.endpoint.receive("another", datagram, script.now)
        self.respond(self.received())
        self.assertEqual([name for name, _ in script.endpoint.datagrams_to_send(script.now)], ["another"])

    def test_non_confirmable_runs_once_and_is_not_answered_again(self) -> None:
        script = self.script
        script.peer_sends("NON [1] POST /a Token=01")
        self.respond(self.received())
        script.endpoint_sends('NON [$m] 2.05 Token=01 "fine"')
        script.peer_sends("NON [1] POST /a Token=01")
        script.endpoint_is_quiet()
        script.passes(144.9)
        script.peer_sends("NON [1] POST /a Token=01")
        script.endpoint_is_quiet()
        script.passes(0.1)  # NON_LIFETIME is over
        script.peer_sends("NON [1] POST /a Token=01")
        self.respond(self.received())
        script.endpoint_sends('NON [$n] 2.05 Token=01 "fine"')

    def test_a_request_that_is_still_processed_is_never_forgotten(self) -> None:
        script = self.script
        script.peer_sends("CON [1] POST /a Token=01")
        exchange = self.received()
        script.passes(1000)
        script.endpoint_sends("ACK [1]")
        script.peer_sends("CON [2] GET /b Token=02")
        self.respond(self.received())
        script.datagrams()
        script.peer_sends("CON [1] POST /a Token=01")
        script.endpoint_sends("ACK [1]")
        script.no_event()
        self.respond(exchange)
        script.endpoint_sends('CON [$m] 2.05 Token=01 "fine"')
        script.peer_sends("ACK [$m]")

    def test_a_refusal_is_replayed(self) -> None:
        script = self.script
        script.peer_sends("CON [1] GET /a 9=0x00")
        script.endpoint_sends("ACK [1] 4.02")
        script.peer_sends("CON [1] GET /a 9=0x00")
        script.endpoint_sends("ACK [1] 4.02")
        self.assertEqual(script.endpoint.counters.requests_refused, 1)


class SeparateResponses(ServerTestCase):
    """RFC 7252 sections 4.2 and 5.2.2."""

    def _separate(self) -> int:
        script = self.script
        script.peer_sends("CON [1] GET /a Token=01")
        exchange = self.received()
        script.passes(1.5)
        script.endpoint_sends("ACK [1]")
        return exchange

    def test_just_before_separate_after_it_is_piggybacked(self) -> None:
        script = self.script
        script.peer_sends("CON [1] GET /a Token=01")
        exchange = self.received()
        script.passes(1.499)
        self.respond(exchange)
        script.endpoint_sends('ACK [1] 2.05 Token=01 "fine"')

    def test_is_retransmitted_until_acknowledged(self) -> None:
        script = self.script
        self.respond(self._separate())
        script.endpoint_sends('CON [$m] 2.05 Token=01 "fine"')
        for _ in range(3):
            script.until_timer()
            script.endpoint_sends('CON [$m] 2.05 Token=01 "fine"')
        script.peer_sends("ACK [$m]")
        self.assertEqual(script.endpoint.counters.retransmissions, 3)
        script.passes(200)

    def test_delivery_is_reported_if_wanted(self) -> None:
        script = self.script
        exchange = self._separate()
        self.assertFalse(script.endpoint.is_delivering(exchange))
        script.endpoint.respond(exchange, attrs.evolve(OK, report=True), script.now)
        self.assertTrue(script.endpoint.is_delivering(exchange))
        script.endpoint_sends('CON [$m] 2.05 Token=01 "fine"')
        script.no_event()
        script.peer_sends("ACK [$m]")
        self.assertEqual(script.event(ResponseDelivered), ResponseDelivered("peer", exchange))
        self.assertFalse(script.endpoint.is_delivering(exchange))

    def test_delivery_that_cannot_be_known_is_not_reported(self) -> None:
        """In an ACK; in blocks, of which the last may never be fetched."""
        script = self.script
        script.peer_sends("CON [7] GET /a Token=02")
        exchange = self.received()
        script.endpoint.respond(exchange, attrs.evolve(OK, report=True), script.now)
        self.assertFalse(script.endpoint.is_delivering(exchange))
        script.endpoint_sends('ACK [7] 2.05 Token=02 "fine"')
        exchange = self._separate()
        script.endpoint.respond(
            exchange, CoapResponse(Code.CONTENT, payload=bytes(3000), report=True), script.now
        )
        self.assertFalse(script.endpoint.is_delivering(exchange))
        (message,) = script.datagrams()
        script.peer_sends_bytes(Message(Type.ACK, 0, message.message_id).encode())
        script.no_event()
        script.passes(200)

    def test_never_acknowledged(self) -> None:
        script = self.script
        exchange = self._separate()
        self.respond(exchange)
        script.passes(100)
        self.assertEqual(len(script.datagrams()), 5)
        self.assertEqual(script.event(ResponseUndelivered), ResponseUndelivered("peer", exchange))
        script.no_event()
        self.assertEqual(script.endpoint.counters.timeouts, 1)

    def test_acknowledge_is_idempotent(self) -> None:
        script = self.script
        exchange = self._separate()
        script.endpoint.acknowledge(exchange, script.now)
        script.endpoint.acknowledge(999, script.now)
        script.endpoint_is_quiet()
        self.respond(exchange)
        script.endpoint.acknowledge(exchange, script.now)
        script.endpoint_sends('CON [$m] 2.05 Token=01 "fine"')
        script.peer_sends("ACK [$m]")
        script.endpoint.acknowledge(exchange, script.now)

    def test_non_confirmable_gets_no_acknowledgement(self) -> None:
        script = self.script
        script.peer_sends("NON [1] GET /a Token=01")
        exchange = self.received()
        script.endpoint.acknowledge(exchange, script.now)
        script.passes(60)
        script.endpoint_is_quiet()
        self.respond(exchange)
        script.endpoint_sends('NON [$m] 2.05 Token=01 "fine"')

    def test_separate_after_zero(self) -> None:
        script = self.script = Script(self, tuning=Tuning(separate_after=0))
        script.peer_sends("CON [1] GET /a Token=01")
        script.passes(0)
        script.endpoint_sends("ACK [1]")
        self.respond(self.received())
        script.endpoint_sends('CON [$m] 2.05 Token=01 "fine"')
        script.peer_sends("ACK [$m]")


class Cancellation(ServerTestCase):
    """What ends an exchange before its time; nothing is reported of it afterwards."""

    def test_a_new_request_with_the_token(self) -> None:
        script = self.script
        script.peer_sends("CON [1] GET /a Token=01")
        first = self.received()
        script.peer_sends("CON [2] GET /b Token=01")
        cancelled = script.event(RequestCancelled)
        self.assertEqual(cancelled, RequestCancelled("peer", first, CancelReason.SUPERSEDED))
        second = self.received()
        self.assertRaises(ExchangeUnknown, self.respond, first)
        self.respond(second)
        script.endpoint_sends('ACK [2] 2.05 Token=01 "fine"')

    def test_a_new_request_with_the_token_of_a_response_under_way(self) -> None:
        """The client would not use the token again if it had not got the response: only its ACK was lost."""
        script = self.script
        script.peer_sends("CON [1] GET /a Token=01")
        exchange = self.received()
        script.endpoint.acknowledge(exchange, script.now)
        self.respond(exchange)
        script.datagrams()
        script.peer_sends("CON [2] GET /b Token=01")
        self.respond(self.received())
        script.endpoint_sends('ACK [2] 2.05 Token=01 "fine"')
        self.assertEqual(script.endpoint.counters.responses_undelivered, 0)

    def test_the_same_token_of_another_peer_is_another(self) -> None:
        script = self.script
        datagram = script.peer_sends("CON [1] GET /a Token=01")
        first = self.received()
        script.endpoint.receive("another", datagram, script.now)
        second = self.received()
        self.respond(first)
        self.respond(second)
        self.assertEqual(len(script.endpoint.datagrams_to_send(script.now)), 2)

    def test_reset_of_a_separate_response(self) -> None:
        script = self.script
        script.peer_sends("CON [1] GET /a Token=01")
        exchange = self.received()
        script.endpoint.acknowledge(exchange, script.now)
        script.endpoint_sends("ACK [1]")
        self.respond(exchange)
        script.endpoint_sends('CON [$m] 2.05 Token=01 "fine"')
        script.peer_sends("RST [$m]")
        self.assertEqual(script.event(ResponseUndelivered).exchange, exchange)
        self.assertRaises(ExchangeUnknown, self.respond, exchange)

    def test_dropped_peer(self) -> None:
        script = self.script
        script.endpoint.set_peer("peer", max_message_size=1000, rtt=0.5, now=script.now)
        script.peer_sends("CON [1] GET /a Token=01")
        processing = self.received()
        script.peer_sends("CON [2] GET /a Token=02")
        delivering = self.received()
        script.endpoint.acknowledge(delivering, script.now)
        self.respond(delivering)
        script.peer_sends("CON [3] POST /b 1:0/1/64 Token=03", body(64))
        script.endpoint.drop_peer("peer", script.now)
        self.assertEqual(
            set(script.events()),
            {
                RequestCancelled("peer", processing, CancelReason.PEER_GONE),
                ResponseUndelivered("peer", delivering),
            },
        )
        script.endpoint_is_quiet()
        self.assertTrue(script.endpoint.idle)
        self.assertRaises(ExchangeUnknown, self.respond, processing)
        script.endpoint.drop_peer("peer", script.now)
        script.endpoint.drop_peer("stranger", script.now)

    def test_a_dropped_peer_leaves_the_others_alone(self) -> None:
        script = self.script
        datagram = script.peer_sends("CON [1] GET /a Token=01")
        exchange = self.received()
        script.endpoint.receive("another", datagram, script.now)
        other = self.received()
        self.respond(other)
        script.endpoint.drop_peer("another", script.now)
        script.endpoint_is_quiet()
        self.respond(exchange)
        script.endpoint_sends('ACK [1] 2.05 Token=01 "fine"')

    def test_respond_twice(self) -> None:
        script = self.script
        script.peer_sends("CON [1] GET /a Token=01")
        exchange = self.received()
        self.respond(exchange)
        self.assertRaises(ExchangeUnknown, self.respond, exchange)
        script.datagrams()
        script.peer_sends("CON [2] GET /a Token=02")
        exchange = self.received()
        script.endpoint.acknowledge(exchange, script.now)
        self.respond(exchange)
        self.assertRaises(ExchangeUnknown, self.respond, exchange)
        script.endpoint_sends("ACK [2]")
        script.endpoint_sends('CON [$m] 2.05 Token=02 "fine"')
        script.peer_sends("ACK [$m]")

    def test_a_response_without_wire_form_leaves_the_exchange_open(self) -> None:
        script = self.script
        script.peer_sends("CON [1] GET /a Token=01")
        exchange = self.received()
        self.assertRaises(MessageError, self.respond, exchange, CoapResponse(Code.GET))
        unwritable = CoapResponse(Code.CONTENT, Options.of((70000, b"")))
        self.assertRaises(OptionError, self.respond, exchange, unwritable)
        self.respond(exchange)
        script.endpoint_sends('ACK [1] 2.05 Token=01 "fine"')


class Refusals(ServerTestCase):
    """What the application does not get to see."""

    def test_unknown_critical_option(self) -> None:
        """RFC 7252 section 5.4.1: 4.02 to a Confirmable, a Reset to a Non-confirmable request."""
        self.script.peer_sends("CON [1] GET /a Token=01 257=1")
        self.script.endpoint_sends("ACK [1] 4.02 Token=01")
        self.script.peer_sends("NON [2] GET /a Token=01 257=1")
        self.script.endpoint_sends("RST [2]")

    def test_critical_option_that_the_application_understands(self) -> None:
        endpoint = Endpoint(random=random.Random(1), understood=(257,))
        script = self.script = Script(self, endpoint=endpoint)
        script.peer_sends("CON [1] GET /a Token=01 257=1")
        event = script.event(RequestReceived)
        self.assertEqual(event.request.options.get_uint(257), 1)
        self.respond(event.exchange)
        script.endpoint_sends('ACK [1] 2.05 Token=01 "fine"')

    def test_elective_options(self) -> None:
        """Unknown ones are passed on, those of a wrong length ignored (section 5.4.3)."""
        self.script.peer_sends("CON [1] GET /a 256=0x6162 Content-Format=0x010203")
        event = self.script.event(RequestReceived)
        self.assertEqual(event.request.options, Options.of((OptionNumber.URI_PATH, b"a"), (256, b"ab")))
        self.respond(event.exchange)
        self.script.endpoint_sends('ACK [1] 2.05 "fine"')

    def test_proxying(self) -> None:
        """RFC 7252 section 5.10.2."""
        self.script.peer_sends("CON [1] GET Proxy-Uri=0x636f61703a2f2f61 Token=01")
        self.script.endpoint_sends("ACK [1] 5.05 Token=01")
        self.script.peer_sends("NON [2] GET Proxy-Scheme=0x636f6170 /a Token=01")
        self.script.endpoint_sends("NON [$m] 5.05 Token=01")

    def test_unknown_method(self) -> None:
        """RFC 7252 section 5.8."""
        for code in (0x08, 0x1F):
            self.script.peer_sends_bytes(Message(Type.CON, code, code, b"t").encode())
            self.script.endpoint_sends(f"ACK [{code}] 4.05 Token=74")

    def test_q_block(self) -> None:
        """RFC 9177's options are critical, and not offered yet."""
        self.script.peer_sends("CON [1] GET /a Q-Block2=0")
        self.script.endpoint_sends("ACK [1] 4.02")

    def test_reserved_block_size(self) -> None:
        """RFC 7959 section 2.2: SZX 7 is a 4.00."""
        self.script.peer_sends("CON [1] GET /a Block2=7")
        self.script.endpoint_sends("ACK [1] 4.00")
        self.script.peer_sends("CON [2] POST /a Block1=7")
        self.script.endpoint_sends("ACK [2] 4.00")

    def test_malformed(self) -> None:
        """RFC 7252 sections 3, 4.2 and 4.3: a Reset to a Confirmable, silence to the rest."""
        for datagram in (b"", b"\x40", b"\x80\x01\x00\x01", b"\x50\x01\x00\x01\xff", b"\x60\x45\x00\x01\xff"):
            self.script.peer_sends_bytes(datagram)
            self.script.endpoint_is_quiet()
        self.script.peer_sends_bytes(b"\x40\x01\x12\x34\xff")
        self.script.endpoint_sends("RST [0x1234]")
        self.script.peer_sends_bytes(b"\x40\x20\x12\x35")
        self.script.endpoint_sends("RST [0x1235]")
        self.assertEqual(self.script.endpoint.counters.malformed, 7)
        self.assertEqual(list(self.script.endpoint.peers), [])

    def test_ping(self) -> None:
        """RFC 7252 section 4.3; nothing is kept of it."""
        self.script.peer_sends("CON [77]")
        self.script.endpoint_sends("RST [77]")
        self.assertEqual(list(self.script.endpoint.peers), [])

    def test_stray_answers(self) -> None:
        for line in ("ACK [1]", "RST [1]", "ACK [1] 2.05 Token=01", "NON [1] 2.05 Token=01"):
            self.script.peer_sends(line)
            self.script.endpoint_is_quiet()
        self.script.peer_sends("CON [1] 2.05 Token=01")
        self.script.endpoint_sends("RST [1]")
        self.assertEqual(self.script.endpoint.counters.unmatched, 5)
        self.assertEqual(list(self.script.endpoint.peers), [])


class NoResponse(ServerTestCase):
    """RFC 7967 section 2: bits 2, 8 and 16 stand for classes 2, 4 and 5."""

    def _ask(self, value: int, code: int, *, type_: str = "CON") -> None:
        self.script.peer_sends(f"{type_} [1] POST /a Token=01 No-Response={value}")
        event = self.script.event(RequestReceived)
        self.respond(event.exchange, CoapResponse(code))

    def test_confirmable_gets_its_empty_ack(self) -> None:
        self._ask(2, Code.CHANGED)
        self.script.endpoint_sends("ACK [1]")
        self.script.peer_sends("CON [1] POST /a Token=01 No-Response=2")
        self.script.endpoint_sends("ACK [1]")
        self.assertEqual(self.script.endpoint.counters.responses_suppressed, 1)

    def test_confirmable_that_has_its_ack_already(self) -> None:
        self.script.peer_sends("CON [1] POST /a Token=01 No-Response=2")
        exchange = self.received()
        self.script.endpoint.acknowledge(exchange, self.script.now)
        self.script.endpoint_sends("ACK [1]")
        self.respond(exchange)
        self.script.endpoint_is_quiet()

    def test_non_confirmable_gets_nothing(self) -> None:
        self._ask(26, Code.INTERNAL_SERVER_ERROR, type_="NON")
        self.script.endpoint_is_quiet()

    def test_classes(self) -> None:
        for value, code, wanted in (
            (0, Code.CHANGED, True),
            (2, Code.NOT_FOUND, True),
            (8, Code.NOT_FOUND, False),
            (8, Code.CHANGED, True),
            (16, Code.INTERNAL_SERVER_ERROR, False),
            (24, Code.CHANGED, True),
        ):
            self.script = Script(self)
            self._ask(value, code)
            (sent,) = self.script.datagrams()
            self.assertEqual(sent.code, code if wanted else Code.EMPTY, (value, code))

    def test_refusals_of_the_endpoint(self) -> None:
        self.script.peer_sends("CON [1] GET Proxy-Scheme=0x61 No-Response=16")
        self.script.endpoint_sends("ACK [1]")
        self.script.peer_sends("NON [2] GET Proxy-Scheme=0x61 No-Response=16")
        self.script.endpoint_is_quiet()

    def test_the_blocks_of_an_upload_are_acknowledged_all_the_same(self) -> None:
        """Without the 2.31 the client could not go on."""
        self.script.peer_sends("CON [1] POST /a 1:0/1/16 No-Response=2", body(16))
        self.script.endpoint_sends("ACK [1] 2.31 1:0/1/16")
        self.script.peer_sends("CON [2] POST /a 1:1/0/16 No-Response=2", b"end")
        self.respond(self.received(), CoapResponse(Code.CHANGED))
        self.script.endpoint_sends("ACK [2]")
