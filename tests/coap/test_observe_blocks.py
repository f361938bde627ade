# SPDX-License-Identifier: AGPL-3.0-or-later
"""The server role of RFC 7959 section 2.6: notifications in blocks, each fetched from the body that was notified."""

from __future__ import annotations

from synapse_lb.coap.events import (
    CancelReason,
    NotificationFailure,
    RequestCancelled,
    RequestReceived,
)
from synapse_lb.coap.exchange import ServerExchange
from synapse_lb.coap.numbers import Code
from synapse_lb.coap.tuning import Limits, Tuning
from tests.coap.observing import content
from tests.coap.observing_blocks import ONE, S16, TWO, BlocksCase


class Delivery(BlocksCase):
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
        self.assertEqual(self.script.endpoint.counters.blocks_sent, 3)

    def test_idle(self) -> None:
        """An observation with which nothing happens holds no body, but for a short while."""
        self.serves("a", ONE, 1)
        self.serves("a", ONE, 2)
        self.script.peer_sends("ACK [$a]")
        self.delivered(self.exchange)
        self.assertEqual(len(self.script.endpoint._responder.snapshots), 1)
        self.script.passes(6)
        self.assertEqual(len(self.script.endpoint._responder.snapshots), 0)
        idle = self.script.endpoint._core.exchanges[self.exchange]
        assert isinstance(idle, ServerExchange)
        self.assertIsNone(idle.notification)

    def test_a_block_once_more(self) -> None:
        """After the last one: the body has been fetched all the same."""
        self.serves("a", ONE, 1)
        self.serves("a", ONE, 2)
        self.serves("a", ONE, 1)
        self.script.peer_sends("ACK [$a]")
        self.delivered(self.exchange)

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
        self.script.nothing_leaks()
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

    def test_how_long_the_blocks_take_tells_nothing_of_the_way(self) -> None:
        """It is rejected, or acknowledged, while they are still being fetched."""
        rto = self.script.endpoint._core.peers["peer"].settings.rto
        for answer in ("RST", "ACK"):
            before = rto.timeout, rto.smoothed_rtt
            self.serves("a", ONE, 1)
            self.script.passes(100)
            self.script.peer_sends(f"{answer} [$a]")
            self.assertEqual((rto.timeout, rto.smoothed_rtt), before)
            if answer == "RST":
                self.failed(self.exchange, NotificationFailure.RESET)
                self.setUp()
                rto = self.script.endpoint._core.peers["peer"].settings.rto

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


class Waiting(BlocksCase):
    """What the requests for blocks mean for the copies of the first one, and for other messages (NSTART is 1)."""

    def setUp(self) -> None:
        self.begin(S16, Tuning(nstart=1))
        self.exchange = self.registers()

    def separately(self, token: str) -> None:
        """A response leaves, or waits to, in a message of its own."""
        message_id = self._id()
        self.script.peer_sends(f"CON [{message_id}] GET /other Token={token}")
        exchange = self.script.event(RequestReceived).exchange
        self.script.endpoint.acknowledge(exchange, self.script.now)
        self.script.endpoint_sends(f"ACK [{message_id}]")
        self.script.endpoint.respond(exchange, content("other"), self.script.now)

    def test_a_block_lets_others_go(self) -> None:
        """Whether or not it is the last one."""
        for payload in (ONE, ONE[:32]):
            self.setUp()
            self.notifies(self.exchange, payload)
            self.pushes("a", payload)
            self.separately("66")
            self.script.endpoint_is_quiet()
            message_id = self._id()
            self.script.peer_sends(f"CON [{message_id}] GET /r Token=77 2:1/0/16")
            sent = self.script.datagrams()
            self.assertEqual([message.token for message in sent], [b"\x77", b"\x66"])
            self.script.peer_sends(f"ACK [{sent[1].message_id}]")
            self.script.peer_sends("ACK [$a]")

    def test_after_the_last_block_the_time_begins_anew(self) -> None:
        """The copy that was due is not sent, and many may follow, soon at first."""
        self.notifies(self.exchange, ONE[:32])
        self.pushes("a", ONE)
        self.script.passes(1.9)
        self.serves("a", ONE[:32], 1)
        self.assertEqual(self.copies(1.9), 0)
        self.assertEqual(self.copies(1.2), 1)
        self.script.passes(110)
        self.assertGreaterEqual(len(self.script.datagrams()), 3)
        self.serves("a", ONE[:32], 1)
        self.assertEqual(self.copies(3.1), 1)
        self.assertGreaterEqual(self.copies(110), 3)
        self.script.peer_sends("ACK [$a]")
        self.delivered(self.exchange)

    def test_that_tells_nothing_of_the_way(self) -> None:
        """Neither the time of the ACK, before or after a copy, nor the copies."""
        for seconds, copies in ((1.9, 0), (5, 1)):
            self.setUp()
            self.notifies(self.exchange, ONE[:32])
            self.pushes("a", ONE)
            self.serves("a", ONE[:32], 1)
            self.assertEqual(self.copies(seconds), copies)
            rto = self.script.endpoint._core.peers["peer"].settings.rto
            self.script.peer_sends("ACK [$a]")
            self.delivered(self.exchange)
            self.assertIsNone(rto.smoothed_rtt)
            self.assertEqual(rto.timeout, 2.0)
            self.script.endpoint.drop_peer("peer", self.script.now)

    def test_fixed_timeouts(self) -> None:
        """As RFC 7252 has them: after the last block all of MAX_RETRANSMIT are left."""
        self.begin(S16, Tuning(adaptive_rto=False))
        self.exchange = self.registers()
        self.notifies(self.exchange, ONE[:32])
        self.pushes("a", ONE)
        self.assertEqual(self.copies(100), 4)
        self.serves("a", ONE[:32], 1)
        self.assertEqual(self.copies(100), 4)
        self.script.passes(20)
        self.failed(self.exchange, NotificationFailure.STALLED)

    def test_blocks_of_what_has_not_left(self) -> None:
        """A peer may guess; the notification leaves in its turn, and must be acknowledged."""
        self.separately("66")
        self.script.endpoint_sends('CON [$o] 2.05 Token=66 "other"')
        self.notifies(self.exchange, ONE)
        self.script.endpoint_is_quiet()
        for number in (1, 2):
            self.script.peer_sends(f"CON [{number}] GET /r Token=77 2:{number}/0/16")
        self.assertEqual(len(self.script.datagrams()), 2)
        self.script.peer_sends("ACK [$o]")
        self.pushes("a", ONE)
        self.script.no_event()
        self.script.peer_sends("ACK [$a]")
        self.delivered(self.exchange)

    def test_what_has_not_left_may_be_dropped(self) -> None:
        """And does not leave then."""
        self.separately("66")
        self.script.endpoint_sends('CON [$o] 2.05 Token=66 "other"')
        self.notifies(self.exchange, ONE)
        self.script.peer_sends("CON [1] GET /r Token=4a")
        self.assertEqual(self.script.event(RequestCancelled).reason, CancelReason.SUPERSEDED)
        self.script.event(RequestReceived)
        self.script.peer_sends("ACK [$o]")
        self.script.endpoint_is_quiet()
