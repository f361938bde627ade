# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a client learns of the NAT on its way: the search for the longest silence, and which silences are evidence."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.client.pace import Pace, Silences

HOUR = 3600.0


class PaceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.pace = Pace(25.0, 300.0)
        self.now = 0.0

    def beats(self, count: int, forgets: float) -> list[float]:
        """So many intervals behind a NAT that forgets after so many seconds."""
        intervals = []
        for _ in range(count):
            interval = self.pace.interval(self.now)
            intervals.append(interval)
            self.now += interval
            if interval < forgets:
                self.pace.survived(interval)
            else:
                self.pace.lost(interval, self.now)
        return intervals

    def test_a_way_that_stays_open(self) -> None:
        self.assertEqual(self.beats(7, 1e9), [25, 50, 100, 200, 300, 300, 300])
        self.assertEqual(self.pace.known, 300)

    def test_halves_its_way_to_the_bound(self) -> None:
        intervals = self.beats(40, 120.0)
        self.assertEqual(intervals[:8], [25, 50, 100, 200, 150, 125, 112.5, 118.75])
        self.assertEqual(set(intervals[8:]), {0.95 * 118.75})

    def test_every_bound(self) -> None:
        """However long it is: few are lost, and then none, and the interval is not much shorter than it may be."""
        for forgets in range(30, 301, 3):
            self.pace, self.now = Pace(25.0, 300.0), 0.0
            intervals = self.beats(40, forgets)
            self.assertLessEqual(sum(each >= forgets for each in intervals), 5, forgets)
            self.assertLess(max(intervals[15:]), forgets)
            self.assertGreater(min(intervals[15:]), min(0.85 * forgets, 300) - 5, forgets)

    def test_less_than_the_shortest(self) -> None:
        self.assertEqual(self.beats(10, 20.0), [25.0] * 10)
        self.assertIsNone(self.pace.known)

    def test_a_shortest_above_the_longest(self) -> None:
        self.assertEqual(Pace(60.0, 30.0).interval(0.0), 30.0)

    def test_a_single_loss_of_what_was_known_is_an_accident(self) -> None:
        self.beats(10, 1e9)
        self.pace.lost(300.0, self.now)
        self.assertEqual(self.pace.interval(self.now), 300.0)
        self.pace.survived(300.0)
        self.pace.lost(300.0, self.now)
        self.assertEqual(self.pace.interval(self.now), 300.0)

    def test_two_in_a_row_are_none(self) -> None:
        self.beats(10, 1e9)
        intervals = self.beats(40, 60.0)
        self.assertEqual(intervals[:2], [300.0, 300.0])
        self.assertLess(max(intervals[20:]), 60.0)
        self.assertGreater(min(intervals[20:]), 45.0)

    def test_tried_again_after_hours(self) -> None:
        self.beats(40, 120.0)
        self.now = 0.0 + 200 * HOUR
        self.assertEqual(self.pace.interval(self.now), 125.0)
        self.pace.lost(125.0, self.now)
        self.assertEqual(self.pace.interval(self.now), 0.95 * 118.75)
        self.now += 7 * HOUR
        self.assertEqual(self.beats(4, 1e9), [125, 250, 300, 300])

    def test_survival_that_was_said_too_soon(self) -> None:
        self.pace.survived(25.0)
        self.pace.survived(50.0)
        self.pace.lost(50.0, 0.0)
        self.assertEqual((self.pace.known, self.pace.interval(0.0)), (25.0, 37.5))

    def test_what_is_known(self) -> None:
        pace = Pace(25.0, 300.0, 240.0)
        self.assertEqual(pace.interval(0.0), 240.0)
        pace.survived(240.0)
        self.assertEqual(pace.interval(0.0), 300.0)

    def test_what_is_known_no_more(self) -> None:
        pace = Pace(25.0, 300.0, 240.0)
        pace.lost(240.0, 0.0)
        self.assertEqual(pace.interval(0.0), 120.0)

    def test_another_network(self) -> None:
        self.beats(40, 120.0)
        self.pace.forget()
        self.assertEqual((self.pace.known, self.pace.interval(self.now)), (None, 25.0))

    def test_what_is_known_is_bounded_too(self) -> None:
        for known, interval in ((1.0, 25.0), (1e6, 300.0)):
            self.assertEqual(Pace(25.0, 300.0, known).interval(0.0), interval)


class SilencesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.now = 0.0
        self.pace = Pace(20.0, 300.0)
        self.told = 0
        self.silences = Silences(self.pace, lambda: self.now, self.tell)

    def tell(self) -> None:
        self.told += 1

    def after(self, seconds: float) -> Silences:
        """Let time pass."""
        self.now += seconds
        return self.silences

    def exchange(self) -> None:
        """Something is sent and answered."""
        self.silences.sent()
        self.after(0.1).heard(ping=False)

    def test_answered(self) -> None:
        self.exchange()
        self.after(30)
        self.exchange()
        self.assertAlmostEqual(self.pace.known or 0, 30.1)

    def test_repeated_and_answered(self) -> None:
        """The copies belong to the silence before the first."""
        self.exchange()
        self.after(30).sent()
        for _ in range(3):
            self.after(15).sent()
        self.after(0.1).heard(ping=False)
        self.assertAlmostEqual(self.pace.known or 0, 30.1)

    def test_short_ones_tell_nothing(self) -> None:
        self.exchange()
        self.after(9)
        self.exchange()
        self.assertIsNone(self.pace.known)

    def test_moved(self) -> None:
        """The server asks at the new address, before it answers or after."""
        for before in (True, False):
            self.setUp()
            self.exchange()
            self.after(30).sent()
            for ping in (before, not before):
                self.after(0.1).heard(ping=ping)
            self.assertEqual((self.pace.known, self.told), (None, 1))
            self.assertEqual(self.pace.interval(self.now), 20.0)

    def test_a_ping_for_another_reason(self) -> None:
        self.exchange()
        self.after(30)
        self.exchange()
        self.after(11).heard(ping=True)
        self.assertEqual((self.told, round(self.pace.known or 0, 1)), (0, 30.1))

    def test_not_answered(self) -> None:
        self.exchange()
        self.after(100).sent()
        self.after(90).unanswered()
        self.assertEqual(self.pace.interval(self.now), 50.05)
        self.silences.unanswered()

    def test_answered_and_then_a_request_that_is_not(self) -> None:
        """The silence before has survived; the server has gone since."""
        self.exchange()
        self.after(30)
        self.exchange()
        self.after(1).sent()
        self.after(90).unanswered()
        self.assertAlmostEqual(self.pace.known or 0, 30.1)
        self.assertAlmostEqual(self.pace.interval(self.now), 60.2)

    def test_a_push(self) -> None:
        """What comes unasked has found the way open."""
        self.exchange()
        self.after(70).heard(ping=False)
        self.assertAlmostEqual(self.pace.known or 0, 70.1)
        self.assertEqual(self.silences.since, 0.0, "a way may need to be kept open from this side")
        self.silences.sent()
        self.assertEqual(self.silences.since, self.now)

    def test_a_new_socket(self) -> None:
        """The server asks there, and that tells nothing of the silence before."""
        self.exchange()
        self.after(100).restart()
        self.after(0.1).sent()
        self.after(0.1).heard(ping=True)
        self.assertEqual(self.told, 0)
