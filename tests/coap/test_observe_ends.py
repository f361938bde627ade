# SPDX-License-Identifier: AGPL-3.0-or-later
"""The server role of RFC 7641: every end of an observation, and how many there may be."""

from __future__ import annotations

from collections.abc import Callable

from synapse_lb.coap.errors import (
    ExchangeUnknown,
    NotObserved,
)
from synapse_lb.coap.events import (
    CancelReason,
    CoapResponse,
    NotificationDelivered,
    NotificationFailure,
    RequestCancelled,
    RequestReceived,
    ResponseUndelivered,
)
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits
from tests.coap.lockstep import Script
from tests.coap.observing import MAX_AGE, ObserveCase, content


class Ends(ObserveCase):
    """Each end of an observation: sections 3.6, 4.1, 4.2 and 4.5."""

    def tearDown(self) -> None:
        self.script.nothing_leaks()

    def in_flight(self) -> int:
        exchange = self.observes()
        self.notifies(exchange, content("two"))
        self.script.endpoint_sends('CON [$flight] 2.05 Token=4a Observe=3 "two"')
        return exchange

    def _idle_and_in_flight(self) -> list[Callable[[], int]]:
        return [self.observes, self.in_flight]

    def test_rejected(self) -> None:
        exchange = self.in_flight()
        self.script.peer_sends("RST [$flight]")
        self.failed(exchange, NotificationFailure.RESET)

    def test_a_late_reset(self) -> None:
        """One for a notification that was acknowledged belongs to nothing."""
        exchange = self.observes()
        self.script.peer_sends("RST [$first]")
        self.script.no_event()
        self.assertEqual(self.script.endpoint.counters.unmatched, 1)
        self.script.endpoint.drop_peer("peer", self.script.now)
        self.cancelled(exchange, CancelReason.PEER_GONE)

    def test_deregistered(self) -> None:
        """With the same token and Observe 1: the observation ends, and then there is a plain request."""
        for begin in self._idle_and_in_flight():
            self.script = Script(self)
            exchange = begin()
            self.script.peer_sends("CON [2] GET /r Token=4a Observe=1")
            self.cancelled(exchange, CancelReason.DEREGISTERED)
            event = self.script.event(RequestReceived)
            self.assertEqual(event.request.options.get_uint(OptionNumber.OBSERVE), 1)
            self.refused(NotObserved, event.exchange)
            self.responds(event.exchange, content("plain"))
            self.script.endpoint_sends('ACK [2] 2.05 Token=4a "plain"')
            self.assertEqual(self.waits(1000), 0)
            self.assertEqual(self.script.endpoint.open_exchanges, 0)

    def test_deregistration_with_another_token(self) -> None:
        """It ends nothing: the token is what names an observation."""
        exchange = self.observes()
        self.script.peer_sends("CON [2] GET /r Token=4b Observe=1")
        self.responds(self.script.event(RequestReceived).exchange, content("plain"))
        self.script.endpoint_sends('ACK [2] 2.05 Token=4b "plain"')
        self.notifies(exchange)
        (message,) = self.script.datagrams()
        self.script.peer_sends(f"RST [{message.message_id}]")
        self.failed(exchange, NotificationFailure.RESET)

    def test_registered_anew(self) -> None:
        """With the same token: the new one replaces the old, and its numbers go on."""
        for begin, number in zip(self._idle_and_in_flight(), (3, 4), strict=True):
            self.script = Script(self)
            exchange = begin()
            self.script.peer_sends("CON [2] GET /r ?since=2 Token=4a Observe=0")
            self.cancelled(exchange, CancelReason.SUPERSEDED)
            following = self.script.event(RequestReceived).exchange
            self.assertNotEqual(following, exchange)
            self.notifies(following, content("new"))
            self.script.endpoint_sends("ACK [2]")
            self.script.endpoint_sends(f'CON [$n] 2.05 Token=4a Observe={number} "new"')
            if begin == self.in_flight:
                self.script.peer_sends("ACK [$flight]")
                self.script.no_event()
            self.script.peer_sends("ACK [$n]")
            self.assertEqual(self.script.event(NotificationDelivered).exchange, following)
            self.assertEqual(self.script.endpoint.open_exchanges, 1)
            self.script.endpoint.drop_peer("peer", self.script.now)
            self.script.events()

    def test_superseded_by_something_else(self) -> None:
        """A plain request with its token."""
        exchange = self.observes()
        self.script.peer_sends("CON [2] GET /other Token=4a")
        self.cancelled(exchange, CancelReason.SUPERSEDED)
        self.responds(self.script.event(RequestReceived).exchange, content("plain"))
        self.script.endpoint_sends('ACK [2] 2.05 Token=4a "plain"')

    def test_superseded_by_its_first_block(self) -> None:
        """Only further blocks may be asked for with its token."""
        exchange = self.observes()
        self.script.peer_sends("CON [2] GET /r Token=4a 2:0/0/64")
        self.cancelled(exchange, CancelReason.SUPERSEDED)
        self.responds(self.script.event(RequestReceived).exchange, content("plain"))
        self.script.endpoint_sends('ACK [2] 2.05 Token=4a "plain"')

    def test_a_plain_request_is_not_deregistered(self) -> None:
        """But superseded, as ever."""
        exchange = self.registers("CON [1] GET /r Token=4a")
        self.script.peer_sends("CON [2] GET /r Token=4a Observe=1")
        self.cancelled(exchange, CancelReason.SUPERSEDED)
        self.responds(self.script.event(RequestReceived).exchange, content("plain"))
        self.script.endpoint_sends('ACK [2] 2.05 Token=4a "plain"')

    def test_before_the_first_notification(self) -> None:
        """The observation that has not begun ends likewise."""
        exchange = self.registers()
        self.script.peer_sends("CON [2] GET /r Token=4a Observe=1")
        self.cancelled(exchange, CancelReason.DEREGISTERED)
        self.responds(self.script.event(RequestReceived).exchange, content("plain"))
        self.script.endpoint_sends('ACK [2] 2.05 Token=4a "plain"')

    def test_the_association_has_gone(self) -> None:
        for begin in self._idle_and_in_flight():
            self.script = Script(self)
            exchange = begin()
            self.script.endpoint.drop_peer("peer", self.script.now)
            self.cancelled(exchange, CancelReason.PEER_GONE)
            self.script.no_event()
            self.assertTrue(self.script.endpoint.idle)

    def test_the_server_ends_it(self) -> None:
        """A last response without Observe, Confirmable, and delivered like any other."""
        for begin in self._idle_and_in_flight():
            self.script = Script(self)
            exchange = begin()
            self.responds(exchange, CoapResponse(Code.UNAUTHORIZED, MAX_AGE, b"revoked"))
            self.refused(ExchangeUnknown, exchange)
            self.script.endpoint_sends('CON [$a] 4.01 Token=4a Max-Age=15 "revoked"')
            self.script.until_timer()
            self.script.endpoint_sends('CON [$a] 4.01 Token=4a Max-Age=15 "revoked"')
            self.script.peer_sends("ACK [$a]")
            self.script.no_event()
            self.assertEqual(self.script.endpoint.open_exchanges, 0)
            self.assertEqual(self.waits(1000), 0)

    def test_the_last_response_gets_lost(self) -> None:
        exchange = self.observes()
        self.responds(exchange, content("bye", Code.SERVICE_UNAVAILABLE))
        self.waits(200)
        self.assertEqual(self.script.event(ResponseUndelivered).exchange, exchange)

    def test_the_last_response_to_a_non_confirmable_registration(self) -> None:
        """It is Confirmable too, for the observer would wait for ever."""
        exchange = self.registers("NON [1] GET /r Token=4a Observe=0")
        self.notifies(exchange)
        self.script.endpoint_sends('CON [$a] 2.05 Token=4a Observe=2 "one"')
        self.responds(exchange, content("bye", Code.SERVICE_UNAVAILABLE))
        self.script.endpoint_sends('CON [$b] 5.03 Token=4a "bye"')
        self.script.peer_sends("ACK [$b]")

    def test_no_response_does_not_silence_the_end(self) -> None:
        exchange = self.registers("CON [1] GET /r Token=4a Observe=0 No-Response=26")
        self.notifies(exchange)
        (_, message) = self.script.datagrams()
        self.script.peer_sends(f"ACK [{message.message_id}]")
        self.script.event(NotificationDelivered)
        self.responds(exchange, content("bye", Code.SERVICE_UNAVAILABLE))
        self.script.endpoint_sends('CON [$b] 5.03 Token=4a "bye"')
        self.script.peer_sends("ACK [$b]")

    def test_the_last_response_in_blocks(self) -> None:
        exchange = self.observes()
        self.responds(exchange, content("x" * 1500))
        self.script.endpoint_sends("CON [$a] 2.05 Token=4a 2:0/1/1024 ETag=$e", b"x" * 1024)
        self.script.peer_sends("ACK [$a]")
        self.script.peer_sends("CON [2] GET /r Token=4b 2:1/0/1024")
        self.script.endpoint_sends("ACK [2] 2.05 Token=4b 2:1/0/1024 ETag=$e", b"x" * 476)


class Bounds(ObserveCase):
    """`max_observations_per_peer`, and what it does not touch."""

    def setUp(self) -> None:
        limits = Limits(max_observations_per_peer=2, max_exchanges_per_peer=2)
        self.script = Script(self, limits=limits)

    def tearDown(self) -> None:
        self.script.endpoint.drop_peer("peer", self.script.now)
        self.script.events()
        self.script.nothing_leaks()

    def _register(self, number: int) -> RequestReceived:
        self.script.peer_sends(f"CON [{number}] GET /r Token=0{number} Observe=0")
        return self.script.event(RequestReceived)

    def test_one_too_many_is_a_plain_request(self) -> None:
        """Section 4.1: a server that cannot add an entry serves the request as usual, without Observe."""
        for number in (1, 2):
            self.assertIn(OptionNumber.OBSERVE, self._register(number).request.options)
        event = self._register(3)
        self.assertNotIn(OptionNumber.OBSERVE, event.request.options)
        self.refused(NotObserved, event.exchange)
        self.responds(event.exchange, content("plain"))
        self.script.endpoint_sends('ACK [3] 2.05 Token=03 "plain"')
        self.assertEqual(self.script.endpoint.counters.observations_refused, 1)

    def test_one_that_ended_leaves_room(self) -> None:
        for number in (1, 2):
            event = self._register(number)
        self.responds(event.exchange, content())
        self.script.datagrams()
        self.assertIn(OptionNumber.OBSERVE, self._register(3).request.options)
        self.assertEqual(self.script.endpoint.counters.observations_refused, 0)

    def test_replacing_one_needs_no_room(self) -> None:
        for number in (1, 2):
            self._register(number)
        self.script.peer_sends("CON [3] GET /r Token=02 Observe=0")
        self.script.event(RequestCancelled)
        self.assertIn(OptionNumber.OBSERVE, self.script.event(RequestReceived).request.options)

    def test_they_take_no_room_of_requests(self) -> None:
        """Nor do requests take theirs."""
        for number in (1, 2):
            self.script.peer_sends(f"CON [{number}] GET /a Token=0{number}")
            self.script.event(RequestReceived)
        for number in (3, 4):
            self.assertIn(OptionNumber.OBSERVE, self._register(number).request.options)
        for line in ("CON [5] GET /a Token=05", "CON [6] GET /r Token=06 Observe=0"):
            self.script.peer_sends(line)
            self.script.no_event()
        codes = [message.code for message in self.script.datagrams()]
        self.assertEqual(codes, [Code.SERVICE_UNAVAILABLE] * 2)

    def test_another_peer_has_its_own(self) -> None:
        for number in (1, 2):
            self._register(number)
        datagram = Message(Type.CON, Code.GET, 1, b"\x01", Options.of((OptionNumber.OBSERVE, b""))).encode()
        self.script.endpoint.receive("other", datagram, self.script.now)
        self.assertIn(OptionNumber.OBSERVE, self.script.event(RequestReceived).request.options)
        self.script.endpoint.drop_peer("other", self.script.now)
