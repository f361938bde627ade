# SPDX-License-Identifier: AGPL-3.0-or-later
"""The waits between attempts and the heartbeat, on a clock of their own."""

from __future__ import annotations

import random

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.client.errors import ClientError, RequestTimeout, TooManyRequests
from synapse_lb.client.persistence import Backoff, Heartbeat, Persistence


class PersistenceTests(SynchronousTestCase):
    def test_times_are_positive(self) -> None:
        for value in (0.0, -1.0, float("inf"), float("nan")):
            with self.assertRaisesRegex(ValueError, "heartbeat"):
                Persistence(heartbeat=value)


class BackoffTests(SynchronousTestCase):
    def make(self, seed: int) -> Backoff:
        return Backoff(Persistence(retry_initial=1.0, retry_max=60.0, spread=5.0), random.Random(seed))

    def test_doubles_up_to_its_bound(self) -> None:
        for seed in range(50):
            backoff = self.make(seed)
            delays = [backoff.after_failure() for _ in range(9)]
            for delay, longest in zip(delays, (1, 2, 4, 8, 16, 32, 60, 60, 60), strict=True):
                self.assertTrue(longest / 2 <= delay <= longest, (seed, delays))

    def test_jitter(self) -> None:
        self.assertEqual(len({self.make(seed).after_failure() for seed in range(100)}), 100)

    def test_reset(self) -> None:
        backoff = self.make(1)
        for _ in range(5):
            backoff.after_failure()
        backoff.reset()
        self.assertLessEqual(backoff.after_failure(), 1.0)

    def test_never_overflows(self) -> None:
        backoff = self.make(1)
        self.assertLessEqual(max(backoff.after_failure() for _ in range(3000)), 60.0)

    def test_planned_stop_spreads_the_clients(self) -> None:
        delays = sorted(self.make(seed).after_planned_stop(0.0) for seed in range(1000))
        self.assertTrue(0.0 <= delays[0] < 0.1 and 4.9 < delays[-1] <= 5.0)
        self.assertTrue(2.0 < delays[500] < 3.0)

    def test_planned_stop_with_max_age(self) -> None:
        delays = sorted(self.make(seed).after_planned_stop(30.0) for seed in range(1000))
        self.assertTrue(30.0 <= delays[0] < 31.0 and 59.0 < delays[-1] <= 60.0)

    def test_planned_stops_that_repeat_count_as_failures(self) -> None:
        backoff = self.make(1)
        for _ in range(10):
            backoff.after_planned_stop(0.0)
        self.assertGreaterEqual(backoff.after_planned_stop(0.0), 30.0)


class HeartbeatTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.heard_at = 0.0
        self.interval = 10.0
        self.pings: list[tuple[float, Deferred[None]]] = []
        self.refusal: ClientError | None = None
        self.heartbeat = Heartbeat(
            self.clock,
            interval=lambda: self.interval,
            silent_since=lambda: self.heard_at,
            now=self.clock.seconds,
            ping=self.ping,
        )

    def ping(self) -> Deferred[None]:
        if self.refusal is not None:
            raise self.refusal
        pinging: Deferred[None] = Deferred()
        self.pings.append((self.clock.seconds(), pinging))
        return pinging

    def run_for(self, seconds: int, *, answering: bool = True) -> None:
        for _ in range(seconds):
            self.clock.advance(1)
            if answering and self.pings and not self.pings[-1][1].called:
                self.heard_at = self.clock.seconds()
                self.pings[-1][1].callback(None)

    def test_as_often_as_it_is_told(self) -> None:
        self.heartbeat.start()
        self.run_for(9)
        self.interval = 20.0
        self.run_for(100)
        self.assertEqual([at for at, _ in self.pings], [20, 40, 60, 80, 100])

    def test_told_while_it_waits(self) -> None:
        self.interval = 60.0
        self.heartbeat.start()
        self.run_for(30)
        self.interval = 40.0
        self.heartbeat.renew()
        self.run_for(30)
        self.assertEqual([at for at, _ in self.pings], [40])
        self.heartbeat.stop()
        self.heartbeat.renew()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_only_when_nothing_else_is_heard(self) -> None:
        self.heartbeat.start()
        for _ in range(100):
            self.heard_at = self.clock.seconds()
            self.clock.advance(9)
        self.assertEqual(self.pings, [])
        self.assertEqual((self.heard_at, self.clock.seconds()), (891.0, 900.0))
        self.run_for(2)
        self.assertEqual([at for at, _ in self.pings], [901.0])

    def test_too_little_time_left_for_the_clock_to_move(self) -> None:
        """Where 16 + (10 - quiet) is 16 in floating point, it must not listen in circles."""
        looks: list[float] = []

        def heard_at() -> float:
            looks.append(self.clock.seconds())
            if len(looks) > 100:
                raise AssertionError(f"circles at {looks[-1]}")
            return 6.0 + 2.0**-49

        self.heartbeat = Heartbeat(
            self.clock,
            interval=lambda: 10.0,
            silent_since=heard_at,
            now=self.clock.seconds,
            ping=self.ping,
        )
        self.clock.advance(6)
        self.heartbeat.start()
        self.clock.advance(10)
        self.assertEqual((looks, self.pings), ([16.0], []))
        self.clock.advance(1)
        self.assertEqual(len(self.pings), 1)

    def test_goes_on_when_something_else_was_heard(self) -> None:
        """Only the ping went unanswered; whether that ends the association is not for the heartbeat to say."""
        self.heartbeat.start()
        self.run_for(20, answering=False)
        self.pings[0][1].errback(RequestTimeout("no answer"))
        self.run_for(11, answering=False)
        self.assertEqual([at for at, _ in self.pings], [10, 30])

    def test_too_much_under_way(self) -> None:
        self.refusal = TooManyRequests("many")
        self.heartbeat.start()
        self.run_for(15)
        self.refusal = None
        self.run_for(10)
        self.assertEqual([at for at, _ in self.pings], [20])

    def test_stop(self) -> None:
        self.heartbeat.start()
        self.heartbeat.start()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.heartbeat.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.heartbeat.start()
        self.run_for(11, answering=False)
        self.heartbeat.stop()
        self.assertTrue(self.pings[0][1].called, "the ping is given up")
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.heartbeat.stop()
