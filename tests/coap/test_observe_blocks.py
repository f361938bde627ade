# SPDX-License-Identifier: AGPL-3.0-or-later
"""The server role of RFC 7959 section 2.6: notifications in blocks, each fetched from the body that was notified."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.errors import NotificationInFlight
from synapse_lb.coap.events import (
    CancelReason,
    CoapResponse,
    NotificationDelivered,
    NotificationFailed,
    NotificationFailure,
    RequestCancelled,
    RequestReceived,
)
from synapse_lb.coap.numbers import Code
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits, Tuning
from tests.coap.lockstep import Script, body
from tests.coap.observing import content

ONE, TWO, OTHER = body(40, 1), body(40, 2), body(60, 3)
S16 = Limits(block_szx=0)


class _Blocks(SynchronousTestCase):
    """An observer whose notifications take blocks of 16 bytes."""

    def setUp(self) -> None:
        self.begin()

    def tearDown(self) -> None:
        self.script.endpoint.drop_peer("peer", self.script.now)
        self.script.events()
        self.script.nothing_leaks()

    def begin(self, limits: Limits = S16, tuning: Tuning | None = None) -> None:
        self.script = Script(self, limits=limits, tuning=tuning)
        self.next_id = 100

    def registers(self, token: str = "4a", path: str = "/r") -> int:
        """A registration comes, and gets its empty ACK; return its exchange."""
        message_id = self._id()
        self.script.peer_sends(f"CON [{message_id}] GET {path} Token={token} Observe=0")
        exchange = self.script.event(RequestReceived).exchange
        self.script.endpoint.acknowledge(exchange, self.script.now)
        self.script.endpoint_sends(f"ACK [{message_id}]")
        return exchange

    def _id(self) -> int:
        self.next_id += 1
        return self.next_id

    def notifies(self, exchange: int, payload: bytes) -> None:
        response = CoapResponse(Code.CONTENT, Options(), payload)
        self.script.endpoint.notify(exchange, response, self.script.now)

    def pushes(self, name: str, payload: bytes, *, token: str = "4a", number: int = 2) -> None:
        """The first block of a notification leaves; its message id is `$name`, its ETag `$name-etag`."""
        line = f"CON [${name}] 2.05 Token={token} Observe={number} 2:0/1/16 ETag=${name}-etag"
        self.script.endpoint_sends(line, payload[:16])

    def serves(self, name: str, payload: bytes, number: int, path: str = "/r", token: str = "77") -> None:
        """The observer asks for a further block of the notification, and gets it."""
        message_id = self._id()
        more = int(16 * (number + 1) < len(payload))
        self.script.peer_sends(f"CON [{message_id}] GET {path} Token={token} 2:{number}/0/16")
        line = f"ACK [{message_id}] 2.05 Token={token} 2:{number}/{more}/16 ETag=${name}-etag"
        self.script.endpoint_sends(line, payload[16 * number : 16 * number + 16])

    def is_gone(self, number: int, path: str = "/r") -> None:
        """The observer asks for a further block, and is told that there is none."""
        message_id = self._id()
        self.script.peer_sends(f"CON [{message_id}] GET {path} Token=77 2:{number}/0/16")
        self.script.endpoint_sends(f"ACK [{message_id}] 4.08 Token=77")

    def delivered(self, exchange: int) -> None:
        self.assertEqual(self.script.event(NotificationDelivered).exchange, exchange)

    def failed(self, exchange: int, reason: NotificationFailure) -> None:
        self.assertEqual(self.script.event(NotificationFailed), NotificationFailed("peer", exchange, reason))

    def copies(self, seconds: float) -> int:
        """Time passes; return how many datagrams left in it."""
        self.script.passes(seconds)
        return len(self.script.datagrams())


class Delivery(_Blocks):
    """When a notification in blocks is delivered: acknowledged, and fetched to its last block."""

    def setUp(self) -> None:
        super().setUp()
        self.exchange = self.registers()
        self.notifies(self.exchange, ONE)
        self.pushes("a", ONE)

    def test_acknowledged_last(self) -> None:
        """The request for a block stops the retransmission; the ACK of an observer that has processed it ends it."""
        self.serves("a", ONE, 1)
        self.assertEqual(self.copies(100), 0)
        self.serves("a", ONE, 2)
        self.script.no_event()
        self.script.passes(0.5)
        self.script.peer_sends("ACK [$a]")
        self.delivered(self.exchange)
        self.assertEqual(self.copies(1000), 0)

    def test_acknowledged_first(self) -> None:
        self.script.peer_sends("ACK [$a]")
        self.serves("a", ONE, 1)
        self.script.no_event()
        self.serves("a", ONE, 2)
        self.delivered(self.exchange)

    def test_acknowledged_in_between(self) -> None:
        self.serves("a", ONE, 1)
        self.script.peer_sends("ACK [$a]")
        self.script.no_event()
        self.serves("a", ONE, 2)
        self.delivered(self.exchange)

    def test_blocks_of_another_size(self) -> None:
        """The last block is the last, whatever its size."""
        self.begin(Limits(block_szx=1))
        exchange = self.registers()
        self.notifies(exchange, ONE)
        self.script.endpoint_sends("CON [$a] 2.05 Token=4a Observe=2 2:0/1/32 ETag=$a-etag", ONE[:32])
        self.script.peer_sends("ACK [$a]")
        self.serves("a", ONE, 2)
        self.delivered(exchange)

    def test_the_acknowledgement_gets_lost(self) -> None:
        """After the last block the first one is sent again, until the ACK comes."""
        self.serves("a", ONE, 1)
        self.serves("a", ONE, 2)
        self.script.until_timer()
        self.pushes("a", ONE)
        self.script.peer_sends("ACK [$a]")
        self.delivered(self.exchange)
        self.assertEqual(self.copies(1000), 0)

    def test_the_last_block_gets_lost(self) -> None:
        """It is sent again, also when it is asked for anew and the notification was delivered before."""
        self.script.peer_sends("ACK [$a]")
        self.serves("a", ONE, 1)
        self.serves("a", ONE, 2)
        self.delivered(self.exchange)
        self.script.passes(5)
        self.serves("a", ONE, 2)
        self.script.no_event()

    def test_never_acknowledged(self) -> None:
        """`notification_processing` seconds after the last block it has failed."""
        self.serves("a", ONE, 1)
        self.script.passes(100)
        self.serves("a", ONE, 2)
        self.assertIn(self.copies(119.9), range(4, 8))
        self.script.no_event()
        self.script.passes(0.1)
        self.failed(self.exchange, NotificationFailure.STALLED)
        self.is_gone(2)

    def test_never_fetched(self) -> None:
        self.script.peer_sends("ACK [$a]")
        self.assertEqual(self.copies(119.9), 0)
        self.script.no_event()
        self.script.passes(0.1)
        self.failed(self.exchange, NotificationFailure.STALLED)
        self.is_gone(1)

    def test_never_seen(self) -> None:
        self.script.passes(120)
        self.script.datagrams()
        self.failed(self.exchange, NotificationFailure.TIMED_OUT)

    def test_each_block_is_a_sign_of_life(self) -> None:
        """The time begins anew with each, before and after the ACK."""
        self.script.passes(100)
        self.script.datagrams()
        self.serves("a", ONE, 1)
        self.assertEqual(self.copies(119), 0)
        self.script.peer_sends("ACK [$a]")
        self.script.passes(119)
        self.serves("a", ONE, 1)
        self.script.passes(119)
        self.serves("a", ONE, 2)
        self.delivered(self.exchange)

    def test_rejected_between_blocks(self) -> None:
        self.serves("a", ONE, 1)
        self.script.peer_sends("RST [$a]")
        self.failed(self.exchange, NotificationFailure.RESET)
        self.is_gone(2)

    def test_rejected_after_the_blocks(self) -> None:
        self.serves("a", ONE, 1)
        self.serves("a", ONE, 2)
        self.script.peer_sends("RST [$a]")
        self.failed(self.exchange, NotificationFailure.RESET)

    def test_with_the_token_of_the_observation(self) -> None:
        """It should not be used (RFC 7959 section 3.4), but ends nothing."""
        self.serves("a", ONE, 1, token="4a")
        self.serves("a", ONE, 2, token="4a")
        self.script.peer_sends("ACK [$a]")
        self.delivered(self.exchange)

    def test_the_next_one(self) -> None:
        """It replaces the body of the last one."""
        self.script.peer_sends("ACK [$a]")
        self.serves("a", ONE, 1)
        self.serves("a", ONE, 2)
        self.delivered(self.exchange)
        self.notifies(self.exchange, TWO)
        self.pushes("b", TWO, number=3)
        self.serves("b", TWO, 1)
        self.serves("b", TWO, 2)
        self.script.peer_sends("ACK [$b]")
        self.delivered(self.exchange)

    def test_the_server_ends_it(self) -> None:
        """The notification is dropped, and its body with it."""
        self.serves("a", ONE, 1)
        self.script.endpoint.respond(self.exchange, content("bye", Code.SERVICE_UNAVAILABLE), self.script.now)
        self.script.endpoint_sends('CON [$b] 5.03 Token=4a "bye"')
        self.is_gone(2)
        self.script.peer_sends("ACK [$b]")
        self.script.peer_sends("ACK [$a]")
        self.script.no_event()
        self.assertEqual(self.copies(1000), 0)

    def test_the_observer_ends_it(self) -> None:
        self.script.peer_sends("CON [1] GET /r Token=4a Observe=1")
        self.assertEqual(self.script.event(RequestCancelled).reason, CancelReason.DEREGISTERED)
        self.script.endpoint.respond(self.script.event(RequestReceived).exchange, content(), self.script.now)
        self.script.endpoint_sends('ACK [1] 2.05 Token=4a "one"')
        self.is_gone(1)
        self.assertEqual(self.copies(1000), 0)

    def test_registered_anew(self) -> None:
        """What was in flight is dropped; the blocks are those of the new notification."""
        self.serves("a", ONE, 1)
        self.script.peer_sends("CON [1] GET /r Token=4a Observe=0")
        self.assertEqual(self.script.event(RequestCancelled).reason, CancelReason.SUPERSEDED)
        exchange = self.script.event(RequestReceived).exchange
        self.is_gone(2)
        self.notifies(exchange, TWO)
        self.script.endpoint_sends("ACK [1]")
        self.pushes("b", TWO, number=3)
        self.serves("b", TWO, 1)
        self.serves("b", TWO, 2)
        self.script.peer_sends("ACK [$b]")
        self.delivered(exchange)

    def test_how_long(self) -> None:
        """Size2 in the registration asks for the size of each."""
        self.script.peer_sends("CON [1] GET /sized Token=4b Observe=0 Size2=0")
        exchange = self.script.event(RequestReceived).exchange
        self.notifies(exchange, TWO)
        self.script.endpoint_sends("ACK [1]")
        self.script.endpoint_sends(
            "CON [$b] 2.05 Token=4b Observe=3 2:0/1/16 ETag=$b-etag Size2=40", TWO[:16]
        )


class SameWords(_Blocks):
    """Bodies whose further blocks would be asked for in the same words."""

    def setUp(self) -> None:
        super().setUp()
        self.one, self.two = self.registers("4a"), self.registers("4b")
        self.notifies(self.one, ONE)
        self.pushes("a", ONE)

    def _second_leaves(self) -> None:
        self.pushes("b", TWO, token="4b", number=3)
        self.serves("b", TWO, 1)
        self.serves("b", TWO, 2)
        self.script.peer_sends("ACK [$b]")
        self.delivered(self.two)

    def test_it_waits(self) -> None:
        """The notification of the other observation leaves when the first is delivered."""
        self.notifies(self.two, TWO)
        self.assertRaises(NotificationInFlight, self.notifies, self.two, TWO)
        self.script.endpoint_is_quiet()
        self.serves("a", ONE, 1)
        self.serves("a", ONE, 2)
        self.script.peer_sends("ACK [$a]")
        self.delivered(self.one)
        self._second_leaves()

    def test_until_the_first_has_failed(self) -> None:
        self.notifies(self.two, TWO)
        self.script.peer_sends("RST [$a]")
        self.failed(self.one, NotificationFailure.RESET)
        self._second_leaves()

    def test_until_the_first_has_ended(self) -> None:
        self.notifies(self.two, TWO)
        self.script.endpoint.respond(self.one, content("bye", Code.SERVICE_UNAVAILABLE), self.script.now)
        self.pushes("b", TWO, token="4b", number=3)
        self.script.endpoint_sends('CON [$bye] 5.03 Token=4a "bye"')

    def test_three(self) -> None:
        """They leave one after the other."""
        three = self.registers("4c")
        self.notifies(self.two, TWO)
        self.notifies(three, OTHER)
        self.script.peer_sends("RST [$a]")
        self.failed(self.one, NotificationFailure.RESET)
        self._second_leaves()
        self.pushes("c", OTHER, token="4c", number=4)

    def test_one_that_waits_may_end(self) -> None:
        """And does not leave then."""
        self.notifies(self.two, TWO)
        self.script.peer_sends("CON [1] GET /r Token=4b Observe=1")
        self.assertEqual(self.script.event(RequestCancelled).exchange, self.two)
        self.script.endpoint.respond(self.script.event(RequestReceived).exchange, content(), self.script.now)
        self.script.endpoint_sends('ACK [1] 2.05 Token=4b "one"')
        self.serves("a", ONE, 1)
        self.serves("a", ONE, 2)
        self.script.peer_sends("ACK [$a]")
        self.delivered(self.one)
        self.script.endpoint_is_quiet()

    def test_in_one_message_it_need_not_wait(self) -> None:
        self.notifies(self.two, b"short")
        self.script.endpoint_sends('CON [$b] 2.05 Token=4b Observe=3 "short"')
        self.script.peer_sends("ACK [$b]")
        self.delivered(self.two)
        self.serves("a", ONE, 1)

    def test_other_words(self) -> None:
        """Another query: neither waits for the other."""
        three = self.registers("4c", "/other")
        self.notifies(three, OTHER)
        self.pushes("c", OTHER, token="4c", number=3)
        self.serves("a", ONE, 1)
        self.serves("c", OTHER, 1, path="/other")

    def test_a_plain_response_in_one_message(self) -> None:
        """It leaves the body alone."""
        self.script.peer_sends("CON [1] GET /r Token=01")
        self.script.endpoint.respond(self.script.event(RequestReceived).exchange, content(), self.script.now)
        self.script.endpoint_sends('ACK [1] 2.05 Token=01 "one"')
        self.serves("a", ONE, 1)

    def test_a_plain_response_in_blocks(self) -> None:
        """Its client asks for the blocks at once: it takes the place, and the observer has to register again."""
        self.serves("a", ONE, 1)
        self.script.peer_sends("CON [1] GET /r Token=01")
        response = CoapResponse(Code.CONTENT, Options(), OTHER)
        self.script.endpoint.respond(self.script.event(RequestReceived).exchange, response, self.script.now)
        self.script.endpoint_sends("ACK [1] 2.05 Token=01 2:0/1/16 ETag=$o-etag", OTHER[:16])
        self.script.until_timer()
        self.failed(self.one, NotificationFailure.DISPLACED)
        self.serves("o", OTHER, 1)
        self.assertNotEqual(self.script.bound["$a-etag"], self.script.bound["$o-etag"])

    def test_a_plain_response_after_the_last_block(self) -> None:
        """Then it takes nothing away: the ACK is all that is missing."""
        self.serves("a", ONE, 1)
        self.serves("a", ONE, 2)
        self.script.peer_sends("CON [1] GET /r Token=01")
        response = CoapResponse(Code.CONTENT, Options(), OTHER)
        self.script.endpoint.respond(self.script.event(RequestReceived).exchange, response, self.script.now)
        self.script.endpoint_sends("ACK [1] 2.05 Token=01 2:0/1/16 ETag=$o-etag", OTHER[:16])
        self.script.peer_sends("ACK [$a]")
        self.delivered(self.one)
        self.serves("o", OTHER, 1)

    def test_acknowledged_just_when_it_is_displaced(self) -> None:
        self.script.peer_sends("CON [1] GET /r Token=01")
        response = CoapResponse(Code.CONTENT, Options(), OTHER)
        self.script.endpoint.respond(self.script.event(RequestReceived).exchange, response, self.script.now)
        self.script.datagrams()
        self.script.peer_sends("ACK [$a]")
        self.failed(self.one, NotificationFailure.DISPLACED)


class Kept(_Blocks):
    """The body of a notification is kept until it is fetched: longer than others, but not at all costs."""

    def _other(self, number: int) -> None:
        """A response in blocks, to somebody who does not fetch it."""
        self.script.peer_sends(f"CON [{number}] GET /other ?n={number} Token=55")
        response = CoapResponse(Code.CONTENT, Options(), OTHER)
        self.script.endpoint.respond(self.script.event(RequestReceived).exchange, response, self.script.now)
        self.script.datagrams()

    def test_beyond_the_lifetime_of_others(self) -> None:
        self.begin(Limits(block_szx=0, snapshot_lifetime=5.0), Tuning(notification_processing=300.0))
        exchange = self.registers()
        self.notifies(exchange, ONE)
        self.pushes("a", ONE)
        self.script.peer_sends("ACK [$a]")
        self.script.passes(299)
        self.serves("a", ONE, 1)
        self.script.passes(299)
        self.serves("a", ONE, 2)
        self.delivered(exchange)
        self.assertEqual(self.script.endpoint.counters.snapshot_expirations, 0)

    def test_others_make_room_first(self) -> None:
        """Though they are younger."""
        self.begin(Limits(block_szx=0, max_snapshots_per_peer=2))
        exchange = self.registers()
        self.notifies(exchange, ONE)
        self.pushes("a", ONE)
        for number in range(1, 6):
            self._other(number)
        self.assertEqual(self.script.endpoint.counters.snapshot_evictions, 4)
        self.serves("a", ONE, 1)
        self.is_gone(1, "/other ?n=4")
        self.script.no_event()

    def test_nothing_else_can_make_room(self) -> None:
        self.begin(Limits(block_szx=0, max_snapshots_per_peer=1))
        exchange = self.registers()
        self.notifies(exchange, ONE)
        self.pushes("a", ONE)
        self._other(1)
        self.is_gone(1)
        self.script.until_timer()
        self.failed(exchange, NotificationFailure.DISPLACED)
        self.assertEqual(self.script.endpoint.counters.snapshot_evictions, 1)

    def test_bytes_of_a_peer(self) -> None:
        """At the bound both are kept; one byte over it the notification that came first goes."""
        for spare, evictions in ((0, 0), (-1, 1)):
            self.begin(Limits(block_szx=0, snapshot_bytes_per_peer=80 + spare))
            one, two = self.registers("4a"), self.registers("4b", "/s")
            self.notifies(one, ONE)
            self.notifies(two, TWO)
            self.assertEqual(self.script.endpoint.counters.snapshot_evictions, evictions)
            self.script.passes(0)
            self.assertEqual(len(self.script.events()), evictions)
            self.script.endpoint.drop_peer("peer", self.script.now)

    def test_a_delivered_one_makes_room(self) -> None:
        """It is kept for a short while, for its last block may have been lost; others need not wait for that."""
        self.begin(Limits(block_szx=0, max_snapshots_per_peer=1))
        exchange = self.registers()
        self.notifies(exchange, ONE)
        self.pushes("a", ONE)
        self.script.peer_sends("ACK [$a]")
        self.serves("a", ONE, 1)
        self.serves("a", ONE, 2)
        self.delivered(exchange)
        self._other(1)
        self.script.passes(0)
        self.script.no_event()
        self.is_gone(2)
