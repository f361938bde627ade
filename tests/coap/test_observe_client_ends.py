# SPDX-License-Identifier: AGPL-3.0-or-later
"""The client role of RFC 7641 and RFC 7959 section 2.6: notifications in blocks, and every end."""

from __future__ import annotations

from attrs import evolve

from synapse_lb.coap.errors import (
    BlockwiseError,
    PeerGone,
    RequestTimedOut,
    UnexpectedResponse,
    UnrecognizedOption,
)
from synapse_lb.coap.events import (
    CoapRequest,
    NotificationReceived,
    ResponseReceived,
)
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.tuning import Limits
from tests.coap.lockstep import body
from tests.coap.observing import OBSERVE, ObserverCase


class Blocks(ObserverCase):
    """RFC 7959 section 2.6: blocks of 16 bytes."""

    def setUp(self) -> None:
        self.begin(limits=Limits(block_szx=0))
        self.body = body(40, 1)
        self.exchange = self.requests()
        self.script.endpoint_sends("CON [$m] GET /r Observe=0 2:0/0/16 Token=$t")
        self.script.peer_sends("ACK [$m]")

    def pushes(self, message_id: int, number: int, payload: bytes, etag: str = "0x01") -> None:
        line = f"CON [{message_id}] 2.05 Token=$t Observe={number} 2:0/1/16 ETag={etag}"
        self.script.peer_sends(line, payload[:16])

    def asks(self, name: str, number: int) -> None:
        self.script.endpoint_sends(f"CON [${name}] GET /r 2:{number}/0/16 Token=${name}-token")

    def gets(self, name: str, number: int, payload: bytes, etag: str = "0x01") -> None:
        more = int(16 * (number + 1) < len(payload))
        line = f"ACK [${name}] 2.05 Token=${name}-token 2:{number}/{more}/16 ETag={etag}"
        self.script.peer_sends(line, payload[16 * number : 16 * number + 16])

    def whole(self, payload: bytes, sequence: int) -> None:
        event = self.script.event(NotificationReceived)
        self.assertEqual((event.exchange, event.sequence), (self.exchange, sequence))
        self.assertEqual(event.response.payload, payload)
        self.assertNotIn(OptionNumber.BLOCK2, event.response.options)
        self.assertNotIn(OptionNumber.OBSERVE, event.response.options)

    def fetches(self, name: str, payload: bytes, etag: str = "0x01") -> None:
        for number in (1, 2):
            self.script.no_event()
            self.asks(f"{name}{number}", number)
            self.gets(f"{name}{number}", number, payload, etag)

    def test_whole_before_it_is_told(self) -> None:
        """And acknowledged when it is confirmed, not before."""
        self.pushes(1, 2, self.body)
        self.fetches("a", self.body)
        self.whole(self.body, 2)
        self.pushes(1, 2, self.body)
        self.script.endpoint_is_quiet()
        self.confirms(self.exchange)
        self.script.endpoint_sends("ACK [1]")
        self.cancels(self.exchange)
        self.assertEqual(self.script.endpoint.counters.blocks_received, 3)

    def test_copies_meanwhile(self) -> None:
        """They begin nothing anew."""
        self.pushes(1, 2, self.body)
        self.pushes(1, 2, self.body)
        self.fetches("a", self.body)
        self.whole(self.body, 2)
        self.script.endpoint_is_quiet()
        self.cancels(self.exchange)
        self.script.endpoint_sends("RST [1]")

    def test_the_next_one_waits(self) -> None:
        """Unacknowledged, until the first one is whole."""
        other = body(40, 2)
        self.pushes(1, 2, self.body)
        self.asks("a1", 1)
        self.pushes(2, 3, other, "0x02")
        self.script.endpoint_is_quiet()
        self.gets("a1", 1, self.body)
        self.asks("a2", 2)
        self.gets("a2", 2, self.body)
        self.whole(self.body, 2)
        self.fetches("b", other, "0x02")
        self.whole(other, 3)
        for number in (1, 2):
            self.confirms(self.exchange)
            self.script.endpoint_sends(f"ACK [{number}]")
        self.cancels(self.exchange)

    def test_a_third_one_takes_its_place(self) -> None:
        """The second is out of date; its copies are acknowledged, and it is not told."""
        self.pushes(1, 2, self.body)
        self.asks("a1", 1)
        self.script.peer_sends('CON [2] 2.05 Token=$t Observe=3 "two"')
        self.script.peer_sends('CON [3] 2.05 Token=$t Observe=4 "three"')
        self.script.endpoint_sends("ACK [2]")
        self.gets("a1", 1, self.body)
        self.asks("a2", 2)
        self.gets("a2", 2, self.body)
        self.whole(self.body, 2)
        self.notified("three", 4)
        self.assertEqual(self.script.endpoint.counters.notifications_stale, 1)
        for number in (1, 3):
            self.confirms(self.exchange)
            self.script.endpoint_sends(f"ACK [{number}]")
        self.cancels(self.exchange)

    def test_changed_meanwhile(self) -> None:
        """A block with another ETag: the observation fails, for anything else would be a new request."""
        self.pushes(1, 2, self.body)
        self.asks("a1", 1)
        self.gets("a1", 1, self.body, "0x02")
        self.failed(self.exchange, BlockwiseError)
        self.script.endpoint_sends("RST [1]")

    def test_changed_and_the_next_one_is_here(self) -> None:
        """Then the first one is out of date, and the next one is fetched."""
        other = body(40, 2)
        self.pushes(1, 2, self.body)
        self.asks("a1", 1)
        self.pushes(2, 3, other, "0x02")
        self.gets("a1", 1, other, "0x02")
        self.script.endpoint_sends("ACK [1]")
        self.assertEqual(self.script.endpoint.counters.notifications_stale, 1)
        self.fetches("b", other, "0x02")
        self.whole(other, 3)
        self.confirms(self.exchange)
        self.script.endpoint_sends("ACK [2]")
        self.cancels(self.exchange)

    def test_the_body_is_gone(self) -> None:
        for code, error in (
            ("4.08", BlockwiseError),
            ("5.03", UnexpectedResponse),
            ("2.05", UnexpectedResponse),
        ):
            self.setUp()
            self.pushes(1, 2, self.body)
            self.asks("a1", 1)
            self.script.peer_sends(f"ACK [$a1] {code} Token=$a1-token")
            self.failed(self.exchange, error)
            self.script.endpoint_sends("RST [1]")

    def test_the_peer_is_gone(self) -> None:
        """The next one that waits is no help then."""
        self.pushes(1, 2, self.body)
        self.asks("a1", 1)
        self.pushes(2, 3, self.body)
        self.script.passes(200)
        self.failed(self.exchange, RequestTimedOut)
        resets = [message.message_id for message in self.script.datagrams() if message.code == Code.EMPTY]
        self.assertEqual(resets, [1, 2])

    def test_no_first_block(self) -> None:
        """A notification that begins with another block makes no sense."""
        self.script.peer_sends("CON [1] 2.05 Token=$t Observe=2 2:1/1/16", self.body[16:32])
        self.failed(self.exchange, BlockwiseError)
        self.script.endpoint_sends("RST [1]")

    def test_one_block(self) -> None:
        """With a Block2 that says so."""
        self.script.peer_sends("CON [1] 2.05 Token=$t Observe=2 2:0/0/16", self.body[:5])
        self.whole(self.body[:5], 2)
        self.confirms(self.exchange)
        self.script.endpoint_sends("ACK [1]")
        self.cancels(self.exchange)

    def test_cancelled_meanwhile(self) -> None:
        """Nothing more is asked for."""
        self.pushes(1, 2, self.body)
        self.asks("a1", 1)
        self.cancels(self.exchange)
        self.script.endpoint_sends("RST [1]")
        self.assertEqual(self.script.endpoint.open_exchanges, 0)
        self.gets("a1", 1, self.body)

    def test_the_last_response_meanwhile(self) -> None:
        self.pushes(1, 2, self.body)
        self.asks("a1", 1)
        self.script.peer_sends("CON [2] 5.03 Token=$t")
        self.script.endpoint_sends("ACK [2]")
        self.assertEqual(self.script.event(ResponseReceived).response.code, Code.SERVICE_UNAVAILABLE)
        self.assertEqual(self.script.endpoint.open_exchanges, 0)

    def test_the_association_ends_meanwhile(self) -> None:
        self.pushes(1, 2, self.body)
        self.script.datagrams()
        self.script.endpoint.drop_peer("peer", self.script.now)
        self.failed(self.exchange, PeerGone)
        self.script.endpoint_is_quiet()
        self.assertTrue(self.script.endpoint.idle)

    def test_a_last_response_in_blocks(self) -> None:
        """It is fetched as ever, without Observe."""
        self.script.peer_sends("CON [1] 2.05 Token=$t Observe=2", b"one")
        self.script.event(NotificationReceived)
        self.script.peer_sends("CON [2] 2.05 Token=$t 2:0/1/16 ETag=0x01", self.body[:16])
        self.script.endpoint_sends("ACK [2]")
        self.fetches("a", self.body)
        event = self.script.event(ResponseReceived)
        self.assertEqual((event.exchange, event.response.payload), (self.exchange, self.body))
        self.assertEqual(self.script.endpoint.open_exchanges, 0)

    def test_a_last_response_in_blocks_changes(self) -> None:
        """It is asked for anew, but nothing is registered anew."""
        self.script.peer_sends("CON [2] 2.05 Token=$t 2:0/1/16 ETag=0x01", self.body[:16])
        self.script.endpoint_sends("ACK [2]")
        self.asks("a1", 1)
        self.gets("a1", 1, self.body, "0x02")
        self.script.endpoint_sends("CON [$b] GET /r 2:0/0/16 Token=$b-token")
        self.script.peer_sends("ACK [$b] 2.05 Token=$b-token", b"short")
        self.assertEqual(self.script.event(ResponseReceived).response.payload, b"short")

    def test_two_observations_in_the_same_words(self) -> None:
        """A Request-Tag keeps their blocks apart (RFC 9175), in the notifications too."""
        second = self.requests()
        self.script.endpoint_sends("CON [$m2] GET /r Observe=0 2:0/0/16 Request-Tag=$tag Token=$t2")
        self.script.peer_sends("ACK [$m2]")
        self.script.peer_sends("CON [1] 2.05 Token=$t2 Observe=2 2:0/1/16 ETag=0x01", self.body[:16])
        self.script.endpoint_sends("CON [$a] GET /r 2:1/0/16 Request-Tag=$tag Token=$a-token")
        self.cancels(second)
        self.script.endpoint_sends("RST [1]")
        self.cancels(self.exchange)


class Ends(ObserverCase):
    """Section 3.6, and what the peer does."""

    def test_forgotten(self) -> None:
        """The next notification is rejected."""
        exchange = self.observes()
        self.cancels(exchange)
        self.script.endpoint_is_quiet()
        self.script.peer_sends('CON [1] 2.05 Token=$t Observe=2 "one"')
        self.script.endpoint_sends("RST [1]")
        self.script.peer_sends('NON [2] 2.05 Token=$t Observe=3 "two"')

    def test_forgotten_with_notifications_at_hand(self) -> None:
        """They are rejected at once, copies of them too, and events not fetched yet are taken back."""
        exchange = self.observes()
        self.script.peer_sends('CON [1] 2.05 Token=$t Observe=2 "one"')
        self.notified("one", 2)
        self.script.peer_sends('CON [2] 2.05 Token=$t Observe=3 "two"')
        self.cancels(exchange)
        self.script.endpoint_sends("RST [1]")
        self.script.endpoint_sends("RST [2]")
        self.script.peer_sends('CON [1] 2.05 Token=$t Observe=2 "one"')
        self.script.endpoint_sends("RST [1]")

    def test_a_copy_of_what_was_confirmed(self) -> None:
        """Its ACK was lost: it gets the same, though the observation has ended."""
        exchange = self.observes()
        self.script.peer_sends('CON [1] 2.05 Token=$t Observe=2 "one"')
        self.notified("one", 2)
        self.confirms(exchange)
        self.script.lost("ACK [1]")
        self.cancels(exchange)
        self.script.peer_sends('CON [1] 2.05 Token=$t Observe=2 "one"')
        self.script.endpoint_sends("ACK [1]")

    def test_deregistered(self) -> None:
        """A request with the same token and words, and Observe 1; its answer is the end."""
        exchange = self.observes()
        self.script.peer_sends('CON [1] 2.05 Token=$t Observe=2 "one"')
        self.notified("one", 2)
        self.deregisters(exchange)
        self.script.endpoint_sends("CON [$d] GET /r Observe=1 Token=$t")
        self.confirms(exchange)
        self.script.endpoint_is_quiet()
        self.script.peer_sends('ACK [$d] 2.05 Token=$t "plain"')
        event = self.script.event(ResponseReceived)
        self.assertEqual((event.exchange, event.response.payload), (exchange, b"plain"))
        self.assertEqual(self.script.endpoint.open_exchanges, 0)

    def test_a_notification_crosses_the_deregistration(self) -> None:
        """It is rejected, and is not taken for the answer."""
        exchange = self.observes()
        self.deregisters(exchange)
        self.script.endpoint_sends("CON [$d] GET /r Observe=1 Token=$t")
        self.script.peer_sends('CON [1] 2.05 Token=$t Observe=2 "one"')
        self.script.endpoint_sends("RST [1]")
        self.script.peer_sends('NON [2] 2.05 Token=$t Observe=3 "two"')
        self.script.no_event()
        self.script.until_timer()
        self.script.endpoint_sends("CON [$d] GET /r Observe=1 Token=$t")
        self.script.peer_sends("ACK [$d]")
        self.script.peer_sends('CON [3] 2.05 Token=$t "plain"')
        self.script.endpoint_sends("ACK [3]")
        self.assertEqual(self.script.event(ResponseReceived).response.payload, b"plain")

    def test_the_deregistration_gets_lost(self) -> None:
        exchange = self.observes()
        self.deregisters(exchange)
        self.script.passes(200)
        self.script.datagrams()
        self.failed(exchange, RequestTimedOut)

    def test_a_deregistration_that_is_never_answered(self) -> None:
        """It is a request like any other."""
        exchange = self.observes()
        self.deregisters(exchange)
        self.script.endpoint_sends("CON [$d] GET /r Observe=1 Token=$t")
        self.script.peer_sends("ACK [$d]")
        self.script.passes(300)
        self.failed(exchange, RequestTimedOut)

    def test_deregistered_before_the_peer_knows_of_it(self) -> None:
        exchange = self.requests()
        self.script.endpoint_sends("CON [$m] GET /r Observe=0 Token=$t")
        self.deregisters(exchange)
        self.script.endpoint_sends("CON [$d] GET /r Observe=1 Token=$t")
        self.script.peer_sends("ACK [$d] 2.05 Token=$t")
        self.script.event(ResponseReceived)
        self.script.passes(200)
        self.script.endpoint_is_quiet()

    def test_fetch_deregistered(self) -> None:
        """RFC 8132: with its payload, whose last block has the token."""
        self.begin(limits=Limits(block_szx=0))
        exchange = self.requests(evolve(OBSERVE, code=Code.FETCH, payload=b"a" * 16 + b"b"))
        self.script.endpoint_sends("CON [$m] FETCH /r Observe=0 1:0/1/16 Size1=17 Token=$t1", b"a" * 16)
        self.script.peer_sends("ACK [$m] 2.31 1:0/1/16 Token=$t1")
        self.script.endpoint_sends("CON [$n] FETCH /r Observe=0 1:1/0/16 2:0/0/16 Token=$t", b"b")
        self.script.peer_sends("ACK [$n]")
        self.deregisters(exchange)
        self.script.endpoint_sends("CON [$o] FETCH /r Observe=1 1:0/1/16 Size1=17 Token=$t2", b"a" * 16)
        self.script.peer_sends("ACK [$o] 2.31 1:0/1/16 Token=$t2")
        self.assertNotEqual(self.script.bound["$t2"], self.script.bound["$t"])
        self.script.endpoint_sends("CON [$p] FETCH /r Observe=1 1:1/0/16 2:0/0/16 Token=$t", b"b")
        self.script.peer_sends("ACK [$p] 2.05 1:1/0/16 Token=$t")
        self.assertEqual(self.script.event(ResponseReceived).exchange, exchange)

    def test_what_cannot_be_deregistered(self) -> None:
        """Nothing happens."""
        self.deregisters(99)
        plain = self.requests(CoapRequest(Code.GET))
        self.script.datagrams()
        self.deregisters(plain)
        self.script.endpoint_is_quiet()
        self.cancels(plain)

    def test_the_peer_ends_it(self) -> None:
        """With a response without Observe; a notification that is not confirmed never will be."""
        exchange = self.observes()
        self.script.peer_sends('CON [1] 2.05 Token=$t Observe=2 "one"')
        self.notified("one", 2)
        self.script.peer_sends('CON [2] 4.01 Token=$t "revoked"')
        self.script.endpoint_sends("ACK [2]")
        event = self.script.event(ResponseReceived)
        self.assertEqual((event.exchange, event.response.code), (exchange, Code.UNAUTHORIZED))
        self.confirms(exchange)
        self.script.endpoint_is_quiet()
        self.assertEqual(self.script.endpoint.open_exchanges, 0)

    def test_the_association_ends(self) -> None:
        exchange = self.observes()
        self.script.peer_sends('CON [1] 2.05 Token=$t Observe=2 "one"')
        self.notified("one", 2)
        self.script.endpoint.drop_peer("peer", self.script.now)
        self.failed(exchange, PeerGone)
        self.assertTrue(self.script.endpoint.idle)

    def test_a_critical_option_that_is_unknown(self) -> None:
        """Such a notification cannot be understood, and is rejected (RFC 7252 section 5.4.1)."""
        exchange = self.observes()
        self.script.peer_sends("CON [1] 2.05 Token=$t Observe=2 9=0x01")
        self.script.endpoint_sends("RST [1]")
        self.failed(exchange, UnrecognizedOption)
