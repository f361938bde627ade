# SPDX-License-Identifier: AGPL-3.0-or-later
"""A few requests of one association at a time; the others wait, in their order."""

from __future__ import annotations

import functools
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.server.turnstile import AT_ONCE, SLOW, Turnstile


class TurnstileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.turnstile = Turnstile(self.clock)
        self.begun: list[int] = []
        self.works: list[Deferred[int]] = []
        self.cancelled: list[int] = []

    def ask(self, count: int) -> list[Deferred[int]]:
        """So many requests that end when their Deferred in `works` does."""
        return [self.turnstile.run(self.work) for _ in range(count)]

    def work(self) -> Deferred[int]:
        number = len(self.works)
        work: Deferred[int] = Deferred(lambda _: self.cancelled.append(number))
        self.works.append(work)
        return work

    def assert_nothing_stays(self) -> None:
        self.assertEqual((self.turnstile.waiting, self.clock.getDelayedCalls()), (0, []))

    def test_a_few_begin_at_once_and_others_when_one_has_ended(self) -> None:
        asked = self.ask(AT_ONCE + 2)
        self.assertEqual((len(self.works), self.turnstile.waiting), (AT_ONCE, 2))
        self.works[3].callback(33)
        self.assertEqual(self.successResultOf(asked[3]), 33)
        self.assertEqual((len(self.works), self.turnstile.waiting), (AT_ONCE + 1, 1))
        self.works[4].errback(ValueError())
        self.failureResultOf(asked[4], ValueError)
        self.assert_nothing_stays()
        for work in self.works[AT_ONCE:]:
            work.callback(1)
        self.assertEqual(self.successResultOf(asked[AT_ONCE + 1]), 1)

    def test_in_order(self) -> None:
        def begin(number: int) -> Any:
            self.begun.append(number)
            return self.work() if number < AT_ONCE else succeed(number)

        for number in range(AT_ONCE + 20):
            self.turnstile.run(functools.partial(begin, number))
        self.works[0].callback(0)
        self.assertEqual(self.begun, list(range(AT_ONCE + 20)))
        self.assert_nothing_stays()

    def test_many_that_end_at_once_take_no_depth(self) -> None:
        asked = self.ask(AT_ONCE)
        asked += [self.turnstile.run(lambda: succeed(7)) for _ in range(5000)]
        self.works[0].callback(7)
        self.assertEqual(self.successResultOf(asked[-1]), 7)

    def test_work_that_cannot_begin(self) -> None:
        def fail() -> Deferred[int]:
            raise ValueError

        self.failureResultOf(self.turnstile.run(fail), ValueError)
        self.ask(AT_ONCE)
        self.assertEqual(len(self.works), AT_ONCE)

    def test_cancelled_while_it_waits(self) -> None:
        asked = self.ask(AT_ONCE + 2)
        asked[AT_ONCE].cancel()
        self.failureResultOf(asked[AT_ONCE], CancelledError)
        self.assertEqual(self.turnstile.waiting, 1)
        asked[AT_ONCE + 1].cancel()
        self.failureResultOf(asked[AT_ONCE + 1], CancelledError)
        self.assert_nothing_stays()
        self.works[0].callback(0)
        self.assertEqual(len(self.works), AT_ONCE)

    def test_cancelled_while_it_runs(self) -> None:
        asked = self.ask(AT_ONCE + 1)
        self.works[0].callback(0)
        asked[AT_ONCE].cancel()
        self.failureResultOf(asked[AT_ONCE], CancelledError)
        self.assertEqual(self.cancelled, [AT_ONCE])
        self.ask(1)
        self.assertEqual(len(self.works), AT_ONCE + 2)

    def test_slow_ones_do_not_keep_others_waiting(self) -> None:
        asked = self.ask(AT_ONCE)
        self.clock.advance(SLOW / 2)
        asked += self.ask(AT_ONCE + 1)
        self.clock.advance(SLOW / 2)
        self.assertEqual((len(self.works), self.turnstile.waiting), (2 * AT_ONCE, 1))
        self.clock.advance(SLOW)
        self.assertEqual(len(self.works), 2 * AT_ONCE + 1)
        self.assert_nothing_stays()
        self.works[0].callback(5)
        self.assertEqual(self.successResultOf(asked[0]), 5)
        # What was not counted any more lets nobody in when it ends.
        self.ask(AT_ONCE)
        self.assertEqual(self.turnstile.waiting, 1)
        for work in self.works[1:AT_ONCE]:
            work.callback(5)
        self.assertEqual(self.turnstile.waiting, 1)
