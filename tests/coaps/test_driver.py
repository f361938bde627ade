# SPDX-License-Identifier: AGPL-3.0-or-later
"""The driver: order, re-entrancy, failing sends, and its one timer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, cast

from twisted.internet.base import DelayedCall, ReactorBase
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.endpoint import Endpoint
from synapse_lb.coap.events import CancelReason, Event, Peer, RequestCancelled
from synapse_lb.coaps.driver import EndpointDriver


class TurningReactor(ReactorBase):
    """Twisted's reactor, of which only the timers are used, with a clock that is set by hand."""

    now = 0.0

    def seconds(self) -> float:
        return self.now

    def installWaker(self) -> None:
        """There is nobody to wake."""


class ScriptedEndpoint:
    """Says to the driver what a test put into it, and writes down what the driver calls."""

    def __init__(self) -> None:
        self.outgoing: deque[tuple[Peer, bytes]] = deque()
        self.events: deque[Event] = deque()
        self.deadline: float | None = None
        self.received: list[tuple[Peer, bytes, float]] = []
        self.fired: list[float] = []
        self.on_timer: Callable[[], None] = lambda: None

    def receive(self, peer: Peer, data: bytes, now: float) -> None:
        self.received.append((peer, data, now))

    def datagrams_to_send(self, now: float) -> list[tuple[Peer, bytes]]:
        datagrams = list(self.outgoing)
        self.outgoing.clear()
        return datagrams

    def next_event(self) -> Event | None:
        return self.events.popleft() if self.events else None

    def next_timer(self) -> float | None:
        return self.deadline

    def handle_timer(self, now: float) -> None:
        self.fired.append(now)
        self.deadline = None
        self.on_timer()


def event(number: int) -> Event:
    """Some event that can be told from others."""
    return RequestCancelled("peer", number, CancelReason.RESET)


class DriverTests(SynchronousTestCase):
    """`EndpointDriver` around a scripted endpoint."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.endpoint = ScriptedEndpoint()
        self.sent: list[tuple[Peer, bytes]] = []
        self.happened: list[Any] = []
        self.driver = self.make(lambda peer, data: self.sent.append((peer, data)), self.happened.append)

    def make(self, send: Callable[[Peer, bytes], None], on_event: Callable[[Event], None]) -> EndpointDriver:
        return EndpointDriver(cast(Endpoint, self.endpoint), self.clock, send, on_event)

    def test_receive_hands_over_and_flushes(self) -> None:
        self.clock.advance(5)
        self.endpoint.outgoing.append(("a", b"ack"))
        self.endpoint.events.append(event(1))
        self.driver.receive("a", b"request")
        self.assertEqual(self.endpoint.received, [("a", b"request", 5.0)])
        self.assertEqual(self.sent, [("a", b"ack")])
        self.assertEqual(self.happened, [event(1)])

    def test_what_an_event_causes_is_sent_by_the_same_flush(self) -> None:
        def on_event(_event: Event) -> None:
            self.endpoint.outgoing.append(("a", b"answer"))
            driver.flush()
            self.happened.append(list(self.sent))

        driver = self.make(lambda peer, data: self.sent.append((peer, data)), on_event)
        self.endpoint.events.append(event(1))
        driver.flush()
        self.assertEqual(self.happened, [[]])  # The nested flush left it to the outer one.
        self.assertEqual(self.sent, [("a", b"answer")])

    def test_a_failing_send_loses_no_other_datagram(self) -> None:
        def send(peer: Peer, data: bytes) -> None:
            if peer == "bad":
                raise RuntimeError("gone")
            self.sent.append((peer, data))

        driver = self.make(send, self.happened.append)
        self.endpoint.outgoing.extend([("a", b"1"), ("bad", b"2"), ("b", b"3")])
        driver.flush()
        self.assertEqual(self.sent, [("a", b"1"), ("b", b"3")])
        self.assertEqual(driver.send_failures, 1)

    def test_a_failing_event_handler_is_logged_and_the_next_event_delivered(self) -> None:
        def on_event(each: Event) -> None:
            if each == event(1):
                raise RuntimeError("handler")
            self.happened.append(each)

        driver = self.make(lambda peer, data: None, on_event)
        self.endpoint.events.extend([event(1), event(2)])
        driver.flush()
        self.assertEqual(self.happened, [event(2)])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_one_delayed_call_which_follows_the_deadline(self) -> None:
        for deadline in (10.0, 3.0):
            self.endpoint.deadline = deadline
            self.driver.flush()
            self.assertEqual(self.calls(), [deadline])
        self.endpoint.deadline = 7.0
        self.driver.flush()
        self.assertEqual(self.calls(), [3.0])  # It is not put off, but comes early and is set anew.
        self.clock.advance(3.0)
        self.assertEqual(self.calls(), [7.0])
        self.endpoint.deadline = None
        self.driver.flush()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def calls(self) -> list[float]:
        """When the reactor makes its calls."""
        return [cast(DelayedCall, call).getTime() for call in self.clock.getDelayedCalls()]

    def test_the_call_follows_a_clock_that_is_set_back(self) -> None:
        self.clock.advance(5000)
        self.endpoint.deadline = 5002.0
        self.driver.flush()
        self.clock.rightNow = 1000.0
        self.driver.receive("a", b"in")
        self.assertEqual(self.calls(), [1002.0])

    def test_a_sooner_deadline_is_not_looked_for_among_all_timers(self) -> None:
        """A reactor has thousands, and would go through them one by one."""
        reactor = ReactorBase.__new__(TurningReactor)
        ReactorBase.__init__(reactor)
        driver = EndpointDriver(cast(Endpoint, self.endpoint), reactor, lambda *sent: None, lambda each: None)
        self.patch(reactor, "_moveCallLaterSooner", lambda call: self.fail("searched"))
        for deadline, comes in ((10.0, 10.0), (3.0, 3.0), (7.0, 3.0), (2.0, 2.0)):
            self.endpoint.deadline = deadline
            driver.flush()
            self.assertEqual(
                [cast(DelayedCall, call).getTime() for call in reactor.getDelayedCalls()], [comes]
            )
        driver.stop()

    def test_the_timer_fires_and_flushes(self) -> None:
        self.endpoint.deadline = 2.0
        self.endpoint.on_timer = lambda: self.endpoint.outgoing.append(("a", b"again"))
        self.driver.flush()
        self.clock.advance(1.5)
        self.assertEqual(self.endpoint.fired, [])
        self.clock.advance(0.5)
        self.assertEqual(self.endpoint.fired, [2.0])
        self.assertEqual(self.sent, [("a", b"again")])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_deadline_in_the_past_fires_at_once_and_not_in_the_flush(self) -> None:
        self.clock.advance(10)
        self.endpoint.deadline = 4.0
        self.driver.flush()
        self.assertEqual(self.endpoint.fired, [])
        self.clock.advance(0)
        self.assertEqual(self.endpoint.fired, [10.0])

    def test_a_call_that_is_due_is_not_put_off(self) -> None:
        """Not even by a flush in each turn before it: Twisted makes a call that was reset in the turn after."""
        self.endpoint.deadline = 2.0
        self.driver.flush()
        (call,) = self.clock.getDelayedCalls()
        for moment in (2.0, 2.5, 3.0):
            self.clock.rightNow = moment
            for deadline in (2.0, 4.0, 2.25):
                self.endpoint.deadline = deadline
                self.driver.flush()
                self.assertEqual(cast(DelayedCall, call).getTime(), 2.0)
        self.clock.advance(0)
        self.assertEqual(self.endpoint.fired, [3.0])

    def test_a_busy_reactor_makes_it(self) -> None:
        """With Twisted's own reactor, and a call in each of its turns that flushes."""
        reactor = ReactorBase.__new__(TurningReactor)
        ReactorBase.__init__(reactor)
        driver = EndpointDriver(cast(Endpoint, self.endpoint), reactor, lambda *sent: None, lambda each: None)

        def busy() -> None:
            reactor.now += 0.5
            driver.flush()
            reactor.callLater(0, busy)

        busy()
        self.endpoint.deadline = 2.0
        for _ in range(20):
            reactor.runUntilCurrent()
            reactor.now += 0.25  # now it reads its sockets
            driver.flush()
        self.assertEqual(len(self.endpoint.fired), 1)

    def test_the_time_never_runs_backwards_and_goes_on(self) -> None:
        self.clock.advance(100)
        self.assertEqual(self.driver.now(), 100.0)
        self.clock.rightNow = 40.0
        self.assertEqual(self.driver.now(), 100.0)
        self.clock.advance(5)
        self.assertEqual(self.driver.now(), 105.0)

    def test_after_stop_nothing_happens(self) -> None:
        self.endpoint.deadline = 2.0
        self.driver.flush()
        self.driver.stop()
        self.driver.stop()
        self.assertTrue(self.driver.stopped)
        self.endpoint.outgoing.append(("a", b"late"))
        self.endpoint.events.append(event(1))
        self.driver.receive("a", b"late")
        self.driver.flush()
        self.assertEqual(
            (self.endpoint.received, self.sent, self.happened, self.clock.getDelayedCalls()), ([], [], [], [])
        )

    def test_stop_within_an_event_ends_the_flush(self) -> None:
        def on_event(each: Event) -> None:
            self.happened.append(each)
            self.endpoint.outgoing.append(("a", b"late"))
            self.endpoint.deadline = 5.0
            driver.stop()

        driver = self.make(lambda peer, data: self.sent.append((peer, data)), on_event)
        self.endpoint.events.extend([event(1), event(2)])
        driver.flush()
        self.assertEqual((self.happened, self.sent, self.clock.getDelayedCalls()), ([event(1)], [], []))
