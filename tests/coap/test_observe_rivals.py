# SPDX-License-Identifier: AGPL-3.0-or-later
"""The server role of RFC 7959 section 2.6: what bodies that are being fetched do to one another."""

from __future__ import annotations

from synapse_lb.coap.errors import NotificationInFlight
from synapse_lb.coap.events import (
    CoapResponse,
    NotificationFailure,
    RequestCancelled,
    RequestReceived,
)
from synapse_lb.coap.numbers import Code
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits, Tuning
from tests.coap.observing import content
from tests.coap.observing_blocks import ONE, OTHER, TWO, BlocksCase


class SameWords(BlocksCase):
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

    def test_what_has_left_does_not_leave_again(self) -> None:
        """Only one that waits is let go by the end of another."""
        self.notifies(self.two, b"short")
        self.script.endpoint_sends('CON [$b] 2.05 Token=4b Observe=3 "short"')
        self.script.peer_sends("RST [$a]")
        self.failed(self.one, NotificationFailure.RESET)
        self.script.endpoint_is_quiet()

    def test_it_waits_for_no_other(self) -> None:
        """The end of one whose blocks have other words is not what it waits for."""
        self.notifies(self.two, TWO)
        three = self.registers("4c", "/other")
        self.notifies(three, OTHER)
        self.pushes("c", OTHER, token="4c", number=3)
        self.script.peer_sends("RST [$c]")
        self.failed(three, NotificationFailure.RESET)
        self.script.endpoint_is_quiet()
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
        self.script.passes(100)
        self.serves("o", OTHER, 1)

    def test_acknowledged_just_when_it_is_displaced(self) -> None:
        self.script.peer_sends("CON [1] GET /r Token=01")
        response = CoapResponse(Code.CONTENT, Options(), OTHER)
        self.script.endpoint.respond(self.script.event(RequestReceived).exchange, response, self.script.now)
        self.script.datagrams()
        self.script.peer_sends("ACK [$a]")
        self.failed(self.one, NotificationFailure.DISPLACED)


class Kept(BlocksCase):
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
