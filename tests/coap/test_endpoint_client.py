# SPDX-License-Identifier: AGPL-3.0-or-later
"""The endpoint as a client: matching responses, giving up, cancelling, pings."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.errors import (
    MessageError,
    MessageTooLarge,
    OptionError,
    PeerGone,
    PingGaveWay,
    RequestReset,
    RequestTimedOut,
    TooManyExchanges,
    UnrecognizedOption,
)
from synapse_lb.coap.events import (
    CoapRequest,
    CoapResponse,
    PongReceived,
    RequestFailed,
    ResponseReceived,
)
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.coap.peers import PeerState
from synapse_lb.coap.tuning import Limits, Tuning
from tests.coap.lockstep import Script

GET = CoapRequest(Code.GET, Options.of((OptionNumber.URI_PATH, b"a")))
NON_GET = CoapRequest(Code.GET, Options.of((OptionNumber.URI_PATH, b"a")), confirmable=False)
FINE = CoapResponse(Code.CONTENT, Options(), b"fine")


class ClientTestCase(SynchronousTestCase):
    """A script that plays the server; nothing must be left of it."""

    def setUp(self) -> None:
        self.script = Script(self)

    def tearDown(self) -> None:
        self.script.nothing_leaks()

    def request(self, request: CoapRequest = GET) -> int:
        return self.script.endpoint.request("peer", request, self.script.now)

    def has_response(self, exchange: int, response: CoapResponse = FINE) -> None:
        event = self.script.event(ResponseReceived)
        self.assertEqual(event, ResponseReceived("peer", exchange, response))

    def has_failed(self, exchange: int, error: type[Exception]) -> None:
        event = self.script.event(RequestFailed)
        self.assertEqual((event.peer, event.exchange), ("peer", exchange))
        self.assertIsInstance(event.error, error)


class Matching(ClientTestCase):
    """RFC 7252 section 5.3.2."""

    def test_response_before_the_acknowledgement(self) -> None:
        """The response acknowledges the request; its ACK, which comes late, means nothing."""
        script = self.script
        exchange = self.request()
        script.endpoint_sends("CON [$m] GET /a Token=$t")
        script.peer_sends('CON [5] 2.05 Token=$t "fine"')
        script.endpoint_sends("ACK [5]")
        self.has_response(exchange)
        script.peer_sends("ACK [$m]")
        script.passes(100)
        self.assertEqual(script.endpoint.counters.retransmissions, 0)

    def test_response_in_a_non_confirmable_message(self) -> None:
        script = self.script
        exchange = self.request()
        script.endpoint_sends("CON [$m] GET /a Token=$t")
        script.peer_sends("ACK [$m]")
        script.peer_sends('NON [5] 2.05 Token=$t "fine"')
        script.endpoint_is_quiet()
        self.has_response(exchange)
        script.peer_sends('NON [5] 2.05 Token=$t "fine"')

    def test_confirmable_response_to_a_non_confirmable_request(self) -> None:
        script = self.script
        exchange = self.request(NON_GET)
        script.endpoint_sends("NON [$m] GET /a Token=$t")
        script.peer_sends('CON [5] 2.05 Token=$t "fine"')
        script.endpoint_sends("ACK [5]")
        self.has_response(exchange)

    def test_unknown_token_is_rejected(self) -> None:
        script = self.script
        exchange = self.request()
        script.endpoint_sends("CON [$m] GET /a Token=$t")
        script.peer_sends('CON [5] 2.05 Token=beef "stray"')
        script.endpoint_sends("RST [5]")
        script.peer_sends('NON [6] 2.05 Token=beef "stray"')
        script.peer_sends('ACK [$m] 2.05 Token=beef "stray"')
        script.endpoint_is_quiet()
        script.peer_sends('ACK [$m] 2.05 Token=$t "fine"')
        self.has_response(exchange)

    def test_a_response_of_another_peer_is_none(self) -> None:
        script = self.script
        exchange = self.request()
        script.endpoint_sends("CON [$m] GET /a Token=$t")
        answer = script.build('ACK [$m] 2.05 Token=$t "fine"').encode()
        script.endpoint.receive("another", answer, script.now)
        script.no_event()
        script.peer_sends_bytes(answer)
        self.has_response(exchange)

    def test_concurrent_requests_have_tokens_and_ids_of_their_own(self) -> None:
        script = self.script = Script(self, tuning=Tuning(nstart=3))
        exchanges = [self.request() for _ in range(3)]
        for index in range(3):
            # Alike and at the same time: the further ones are told apart (RFC 9175 section 3.3).
            tag = f"Request-Tag=0x0{index}" if index else ""
            script.endpoint_sends(f"CON [$m{index}] GET /a Token=$t{index} {tag}")
        self.assertEqual(len({script.bound[f"$t{index}"] for index in range(3)}), 3)
        self.assertEqual(len({script.bound[f"$m{index}"] for index in range(3)}), 3)
        for index in (2, 0, 1):
            script.peer_sends(f'ACK [$m{index}] 2.05 Token=$t{index} "fine"')
            self.has_response(exchanges[index])

    def tokens_of(self, count: int) -> list[bytes]:
        """The tokens of so many requests, each answered before the next."""
        script, seen = self.script, []
        for _ in range(count):
            self.request()
            sent = script.endpoint_sends("CON [$m] GET /a Token=$t")
            script.peer_sends("ACK [$m] 2.05 Token=$t")
            seen.append(sent.token)
            script.event(ResponseReceived)
            script.bound.clear()
        return seen

    def test_tokens_are_short_and_not_used_again_soon(self) -> None:
        seen = self.tokens_of(300)
        self.assertEqual(len(set(seen)), 300)
        self.assertEqual({len(token) for token in seen[:255]}, {1})
        self.assertEqual({len(token) for token in seen[255:]}, {2})

    def test_tokens_are_short_again_after_a_while(self) -> None:
        lifetime = self.script.endpoint._core.tuning.exchange_lifetime
        self.tokens_of(260)
        self.script.passes(lifetime / 2)
        self.assertEqual({len(token) for token in self.tokens_of(10)}, {2})
        self.script.passes(lifetime / 2 + 1)
        self.assertEqual({len(token) for token in self.tokens_of(255)}, {1})

    def test_a_token_that_was_in_use_for_long_rests_as_well(self) -> None:
        script = self.script
        self.request(CoapRequest(Code.GET, Options.of((OptionNumber.URI_PATH, b"b")), confirmable=False))
        first = script.datagrams()[0].token
        state = script.endpoint._core.peers["peer"]
        exchange = state.requesting[first]
        seen = self.tokens_of(254)
        script.passes(script.endpoint._core.tuning.exchange_lifetime + 1)
        self.assertNotIn(first, seen)
        script.endpoint.cancel(exchange.id, script.now)
        self.assertEqual(self.tokens_of(2), seen[:2])

    def test_a_token_that_is_in_use_is_skipped(self) -> None:
        anything: Any = object()
        state = PeerState("peer", anything, 0, anything)
        tokens = [state.take_token(0.0, 10.0) for _ in range(255)]
        state.requesting[tokens[0]] = state.requesting[b"\x01\x00"] = anything
        self.assertEqual(state.take_token(5.0, 10.0), b"\x01\x01")
        self.assertEqual(state.take_token(11.0, 10.0), tokens[1])
        state.long_token = 0xFFFF  # all have been used once
        state.short_tokens = dict.fromkeys(tokens, 11.0)
        self.assertEqual(state.take_token(11.0, 10.0), b"\x01\x01")

    def test_unknown_critical_option_piggybacked(self) -> None:
        """RFC 7252 section 5.4.1: the response is rejected."""
        script = self.script
        exchange = self.request()
        script.endpoint_sends("CON [$m] GET /a Token=$t")
        script.peer_sends("ACK [$m] 2.05 Token=$t 9=0x00")
        self.has_failed(exchange, UnrecognizedOption)

    def test_unknown_critical_option_separate(self) -> None:
        script = self.script
        exchange = self.request()
        script.endpoint_sends("CON [$m] GET /a Token=$t")
        script.peer_sends("ACK [$m]")
        script.peer_sends("CON [5] 2.05 Token=$t 9=0x00")
        script.endpoint_sends("RST [5]")
        self.has_failed(exchange, UnrecognizedOption)

    def test_elective_options_of_wrong_length_are_ignored(self) -> None:
        script = self.script
        exchange = self.request()
        script.endpoint_sends("CON [$m] GET /a Token=$t")
        script.peer_sends('ACK [$m] 2.05 Token=$t Content-Format=0x010203 "fine"')
        self.has_response(exchange)


class Failure(ClientTestCase):
    """Requests that get no response."""

    def test_reset(self) -> None:
        exchange = self.request()
        self.script.endpoint_sends("CON [$m] GET /a Token=$t")
        self.script.peer_sends("RST [$m]")
        self.has_failed(exchange, RequestReset)
        self.assertEqual(self.script.endpoint.counters.requests_failed, 1)

    def test_acknowledged_and_then_nothing(self) -> None:
        """The wait for a separate response is bounded (Tuning.response_timeout)."""
        script = self.script = Script(self, tuning=Tuning(response_timeout=120))
        exchange = self.request()
        script.endpoint_sends("CON [$m] GET /a Token=$t")
        script.peer_sends("ACK [$m]")
        script.passes(119.9)
        script.no_event()
        script.passes(0.1)
        self.has_failed(exchange, RequestTimedOut)
        script.peer_sends("CON [5] 2.05 Token=$t")
        script.endpoint_sends("RST [5]")

    def test_non_confirmable_and_then_nothing(self) -> None:
        exchange = self.request(NON_GET)
        self.script.endpoint_sends("NON [$m] GET /a Token=$t")
        self.script.passes(300)
        self.script.endpoint_is_quiet()
        self.has_failed(exchange, RequestTimedOut)

    def test_cancelled(self) -> None:
        script = self.script
        exchange = self.request()
        script.endpoint_sends("CON [$m] GET /a Token=$t")
        script.endpoint.cancel(exchange, script.now)
        script.passes(100)
        script.endpoint_is_quiet()
        script.peer_sends("ACK [$m] 2.05 Token=$t")
        script.no_event()
        script.endpoint.cancel(exchange, script.now)
        script.endpoint.cancel(12345, script.now)

    def test_cancelled_while_the_separate_response_is_awaited(self) -> None:
        script = self.script
        exchange = self.request()
        script.endpoint_sends("CON [$m] GET /a Token=$t")
        script.peer_sends("ACK [$m]")
        script.endpoint.cancel(exchange, script.now)
        script.peer_sends("CON [5] 2.05 Token=$t")
        script.endpoint_sends("RST [5]")
        script.no_event()

    def test_cancelled_when_the_response_waits_to_be_fetched(self) -> None:
        script = self.script
        exchange = self.request()
        script.endpoint_sends("CON [$m] GET /a Token=$t")
        script.peer_sends('ACK [$m] 2.05 Token=$t "fine"')
        script.endpoint.cancel(exchange, script.now)
        script.no_event()

    def test_dropped_peer(self) -> None:
        script = self.script = Script(self, tuning=Tuning(nstart=1))
        exchanges = [self.request() for _ in range(3)]
        self.assertEqual(script.endpoint.counters.datagrams_sent, 1)
        script.endpoint.drop_peer("peer", script.now)
        for exchange in exchanges:
            self.has_failed(exchange, PeerGone)
        self.assertEqual(script.endpoint.counters.datagrams_sent, 1)
        script.endpoint_is_quiet()
        self.assertTrue(script.endpoint.idle)

    def test_what_cannot_be_sent(self) -> None:
        endpoint, now = self.script.endpoint, self.script.now
        self.assertRaises(MessageError, endpoint.request, "peer", CoapRequest(Code.CONTENT), now)
        self.assertRaises(MessageError, endpoint.request, "peer", CoapRequest(0), now)
        unwritable = CoapRequest(Code.GET, Options.of((70000, b"")))
        self.assertRaises(OptionError, endpoint.request, "peer", unwritable, now)
        crowded = CoapRequest(Code.GET, Options.of(*[(OptionNumber.URI_QUERY, bytes(250))] * 5))
        self.assertRaises(MessageTooLarge, endpoint.request, "peer", crowded, now)
        self.assertEqual(list(endpoint.peers), [])


class Pings(ClientTestCase):
    """RFC 7252 section 4.3."""

    def test_pong(self) -> None:
        exchange = self.script.endpoint.ping("peer", self.script.now)
        self.script.endpoint_sends("CON [$m]")
        self.script.peer_sends("RST [$m]")
        self.assertEqual(self.script.event(PongReceived), PongReceived("peer", exchange))

    def test_pong_of_a_peer_that_acknowledges(self) -> None:
        exchange = self.script.endpoint.ping("peer", self.script.now)
        self.script.endpoint_sends("CON [$m]")
        self.script.peer_sends("ACK [$m]")
        self.assertEqual(self.script.event(PongReceived), PongReceived("peer", exchange))

    def test_no_pong(self) -> None:
        exchange = self.script.endpoint.ping("peer", self.script.now)
        self.script.passes(100)
        self.assertEqual(len(self.script.datagrams()), 5)
        self.has_failed(exchange, RequestTimedOut)

    def test_cancelled(self) -> None:
        exchange = self.script.endpoint.ping("peer", self.script.now)
        self.script.endpoint_sends("CON [$m]")
        self.script.endpoint.cancel(exchange, self.script.now)
        self.script.peer_sends("RST [$m]")
        self.script.no_event()


class PingsAmongOthers(ClientTestCase):
    """A ping is an outstanding interaction (RFC 7252 section 4.7), which neither waits nor keeps waiting."""

    def test_counts(self) -> None:
        """NSTART is never exceeded: a ping takes the last place, and a further one gets none."""
        script = self.script = Script(self, tuning=Tuning(nstart=2))
        exchanges = [self.request(), script.endpoint.ping("peer", script.now)]
        self.assertEqual(len(script.datagrams()), 2)
        self.assertRaises(TooManyExchanges, script.endpoint.ping, "peer", script.now)
        script.endpoint_is_quiet()
        self.cancel(*exchanges)

    def test_is_not_sent_where_others_tell_as_much(self) -> None:
        script = self.script = Script(self, tuning=Tuning(nstart=1))
        exchange = self.request()
        script.endpoint_sends("CON [$m] GET /a Token=$t")
        self.assertRaises(TooManyExchanges, script.endpoint.ping, "peer", script.now)
        script.peer_sends("ACK [$m]")  # a response that is long in coming is no outstanding message
        ping = script.endpoint.ping("peer", script.now)
        script.endpoint_sends("CON [$p]")
        self.cancel(exchange, ping)

    def test_gives_way(self) -> None:
        """A request does not wait for the answer to a ping; it asks the same."""
        script = self.script = Script(self, tuning=Tuning(nstart=2))
        pings = [script.endpoint.ping("peer", script.now) for _ in range(2)]
        script.endpoint_sends("CON [$p0]")
        script.endpoint_sends("CON [$p1]")
        exchange = self.request()
        script.endpoint_sends("CON [$m] GET /a Token=$t")
        self.has_failed(pings[0], PingGaveWay)
        script.peer_sends("RST [$p0]")  # too late, and nobody waits for it
        script.no_event()
        script.peer_sends("RST [$p1]")
        self.assertEqual(script.event(PongReceived), PongReceived("peer", pings[1]))
        script.peer_sends('ACK [$m] 2.05 Token=$t "fine"')
        self.has_response(exchange)
        script.passes(300)
        script.nothing_leaks()

    def test_goes_on_where_there_is_room(self) -> None:
        script = self.script = Script(self, tuning=Tuning(nstart=2))
        ping = script.endpoint.ping("peer", script.now)
        script.endpoint_sends("CON [$p]")
        exchange = self.request()
        script.endpoint_sends("CON [$m] GET /a Token=$t")
        script.no_event()
        script.peer_sends("RST [$p]")
        self.assertEqual(script.event(PongReceived), PongReceived("peer", ping))
        self.cancel(exchange)

    def cancel(self, *exchanges: int) -> None:
        for exchange in exchanges:
            self.script.endpoint.cancel(exchange, self.script.now)


class Queueing(ClientTestCase):
    """NSTART (RFC 7252 section 4.7)."""

    def test_no_more_than_nstart_are_outstanding(self) -> None:
        script = self.script = Script(self, tuning=Tuning(nstart=2), limits=Limits(max_exchanges_per_peer=4))
        requests = [
            CoapRequest(Code.GET, Options.of((OptionNumber.URI_PATH, str(number).encode())))
            for number in range(5)
        ]
        exchanges = [self.request(request) for request in requests[:4]]
        self.assertRaises(TooManyExchanges, self.request, requests[4])
        self.assertRaises(TooManyExchanges, script.endpoint.ping, "peer", script.now)
        script.endpoint_sends("CON [$m0] GET /0 Token=$t0")
        script.endpoint_sends("CON [$m1] GET /1 Token=$t1")
        script.endpoint_is_quiet()
        script.endpoint.cancel(exchanges[2], script.now)  # still in the queue
        script.peer_sends("ACK [$m1]")  # an empty ACK makes room as well
        script.endpoint_sends("CON [$m3] GET /3 Token=$t3")
        script.endpoint_is_quiet()
        for number in (0, 1, 3):
            type_ = "NON" if number == 1 else "ACK"
            script.peer_sends(f'{type_} [$m{number}] 2.05 Token=$t{number} "fine"')
            self.has_response(exchanges[number])

    def test_each_peer_has_its_own(self) -> None:
        script = self.script = Script(self, tuning=Tuning(nstart=1))
        exchanges = [script.endpoint.request(name, GET, script.now) for name in ("a", "b")]
        self.assertEqual([name for name, _ in script.endpoint.datagrams_to_send(script.now)], ["a", "b"])
        for exchange in exchanges:
            script.endpoint.cancel(exchange, script.now)

    def test_a_timeout_makes_room(self) -> None:
        script = self.script = Script(self, tuning=Tuning(nstart=1, max_retransmit=0, adaptive_rto=False))
        first, second = self.request(), self.request(CoapRequest(Code.POST))
        script.endpoint_sends("CON [$a] GET /a Token=$t")
        script.until_timer()
        self.has_failed(first, RequestTimedOut)
        script.endpoint_sends("CON [$b] POST Token=$u")
        script.peer_sends('ACK [$b] 2.05 Token=$u "fine"')
        self.has_response(second)
