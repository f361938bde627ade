# SPDX-License-Identifier: AGPL-3.0-or-later
"""The congestion window of Q-Block transfers, and the pace of a server's sets."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.congestion import GREATEST_START, LEAST_WINDOW, CongestionWindow, Mark
from synapse_lb.coap.pacing import GAIN, Pacer


def window(first: float = 0.2, limit: int = 256, *, adaptive: bool = True) -> CongestionWindow:
    return CongestionWindow(first=first, limit=limit, timeout=2.0, max_timeout=60.0, adaptive=adaptive)


class Fluid:
    """A way of one rate: whole windows go round, and come back one block after the other."""

    def __init__(self, subject: CongestionWindow, rtt: float, rate: float) -> None:
        self.subject = subject
        self.rtt = rtt
        self.rate = rate
        self.now = 0.0
        self._free_at = 0.0
        self._flying: list[tuple[float, Mark]] = []

    def run(self, blocks: int) -> None:
        for _ in range(blocks):
            while len(self._flying) < self.subject.window:
                self._free_at = max(self._free_at, self.now + self.rtt) + 1 / self.rate
                self._flying.append((self._free_at, self.subject.mark(self.now)))
            self.now, mark = self._flying.pop(0)
            self.subject.arrived(mark, self.now, first=True)

    @property
    def queue(self) -> float:
        """Seconds that a block waits."""
        return self._free_at - self.now - self.rtt


class WindowTests(SynchronousTestCase):
    def test_start(self) -> None:
        """The slower the first block, the fewer follow."""
        for first, blocks in ((0.0, 10), (0.01, 10), (0.2, 10), (0.5, 4), (1.3, 2), (9.0, 2)):
            self.assertEqual(window(first).window, blocks)
        self.assertEqual(window(0.01).window, GREATEST_START)
        self.assertEqual(window(0.01, limit=3).window, 3)

    def test_doubles(self) -> None:
        """Each round trip as long as nothing waits, once the first has told the rate."""
        subject = window()
        fluid = Fluid(subject, 0.2, 1e6)
        fluid.run(subject.window)
        for _ in range(3):
            before = subject.window
            fluid.run(before)
            self.assertTrue(1.7 * before <= subject.window <= 2 * before + 1, (before, subject.window))

    def test_limit(self) -> None:
        subject = window(limit=50)
        Fluid(subject, 0.2, 1e6).run(1000)
        self.assertEqual(subject.window, 50)

    def test_fills_the_way_and_little_more(self) -> None:
        """From 1 block per second to 1000: the rate is used, and the queue stays small."""
        for rate in (1, 10, 100, 1000):
            subject = window(first=0.2 + 1 / rate, limit=1000)
            fluid = Fluid(subject, 0.2, rate)
            fluid.run(100 + 2 * rate)
            began, worst = fluid.now, 0.0
            for _ in range(1000):
                fluid.run(1)
                worst = max(worst, fluid.queue)
            self.assertGreater(1000 / (fluid.now - began), 0.9 * rate, rate)
            self.assertLess(worst, 0.35 + 3 / rate, rate)

    def test_way_that_becomes_slower(self) -> None:
        """From 200 to 20 blocks per second in the midst of it: the window shrinks until little waits."""
        subject = window()
        fluid = Fluid(subject, 0.2, 200)
        fluid.run(400)
        self.assertGreater(subject.window, 40)
        fluid.rate = 20
        fluid.run(400)
        self.assertLess(fluid.queue, 0.5)
        self.assertLess(subject.window, 14)

    def test_few_losses_are_tolerated(self) -> None:
        """Two in a round trip, and an eighth of the window; it goes on doubling."""
        subject = window()
        fluid = Fluid(subject, 0.2, 1e6)
        fluid.run(30)
        before, mark = subject.window, subject.mark(fluid.now)
        for _ in range(2 + before // 8):
            subject.lost(mark, fluid.now + 0.2)
        self.assertEqual(subject.window, before)
        fluid.run(before)
        self.assertGreater(subject.window, 1.7 * before)

    def test_many_losses_are_not(self) -> None:
        """More than that in one round trip; and a round trip shrinks it once only. Then it grows by an eighth."""
        subject = window()
        fluid = Fluid(subject, 0.2, 1e6)
        fluid.run(100)
        before, mark = subject.window, subject.mark(fluid.now)
        for _ in range(before // 8 + 3):
            subject.lost(mark, fluid.now + 0.2)
        after = subject.window
        self.assertLess(after, before)
        self.assertGreaterEqual(after, before // 2)
        for _ in range(before):
            subject.lost(mark, fluid.now + 0.3)
        self.assertEqual(subject.window, after)
        fluid.run(2 * after)
        self.assertLess(subject.window, 1.3 * after + 2)

    def test_silence(self) -> None:
        """The least window, and a timeout that doubles until something arrives."""
        subject = window()
        fluid = Fluid(subject, 0.2, 1e6)
        fluid.run(100)
        timeout = subject.timeout
        self.assertTrue(0.2 < timeout < 0.6, timeout)
        for doubling in (2, 4, 8, 16):
            subject.expired(fluid.now)
            self.assertAlmostEqual(subject.timeout, timeout * doubling)
            self.assertEqual(subject.window, LEAST_WINDOW)
        self.assertEqual(subject.expiries, 4)
        for _ in range(20):
            subject.expired(fluid.now)
        self.assertEqual(subject.timeout, 60.0)
        subject.arrived(subject.mark(fluid.now), fluid.now + 0.2, first=True)
        self.assertEqual(subject.expiries, 0)
        self.assertLess(subject.timeout, 0.7)

    def test_silence_in_a_small_window(self) -> None:
        """A few losses are silence there: it doubles again to what it was. A large one doubles half the way only."""
        for blocks, again in ((1, True), (100, False)):
            subject = window()
            fluid = Fluid(subject, 0.2, 1e6)
            fluid.run(blocks)
            before = subject.window
            subject.expired(fluid.now)
            fluid._flying.clear()
            fluid.run(2 * before + 10)
            self.assertEqual(subject.window >= before, again, (blocks, before, subject.window))

    def test_fixed_timeout(self) -> None:
        """RFC 9177 section 7.2: NON_RECEIVE_TIMEOUT, doubled with each request."""
        subject = window(adaptive=False)
        Fluid(subject, 0.2, 1e6).run(10)
        self.assertEqual(subject.timeout, 2.0)
        subject.expired(10.0)
        subject.expired(14.0)
        self.assertEqual(subject.timeout, 8.0)

    def test_slow_way_is_not_silence(self) -> None:
        """The timeout leaves room for the time between two blocks."""
        subject = window(first=9.0)
        fluid = Fluid(subject, 0.2, 1 / 9)
        for _ in range(20):
            fluid.run(1)
            self.assertGreater(subject.timeout, 9.0)


class PacerTests(SynchronousTestCase):
    def test_unknown_way(self) -> None:
        self.assertEqual(Pacer().interval(1024, 10, None), 0.0)

    def test_half_a_round_trip(self) -> None:
        """A set leaves within half a round trip, whatever the rate."""
        pacer = Pacer()
        self.assertAlmostEqual(pacer.interval(1024, 10, 0.2) * 10, 0.1)
        for step in range(10):
            pacer.asked(10, 0.2, step * 1.0)
        self.assertAlmostEqual(pacer.interval(1024, 10, 0.2) * 10, 0.1)

    def test_follows_the_rate(self) -> None:
        """A client that asks for 500 kB/s gets its blocks at 2.5 times that."""
        pacer = Pacer()
        for step in range(100):
            pacer.asked(5000, 0.2, step * 0.01)
        self.assertApproximates(pacer.rate, 500_000, 30_000)
        self.assertAlmostEqual(pacer.interval(1000, 10, 0.2), 1000 / (GAIN * pacer.rate))

    def test_slows_down_gradually(self) -> None:
        """A pause of the client is no slow way: each round trip takes a quarter off the rate at most."""
        pacer = Pacer()
        for step in range(100):
            pacer.asked(5000, 0.2, step * 0.01)
        before = pacer.rate
        pacer.asked(10, 0.2, 10.0)
        self.assertAlmostEqual(pacer.rate, 0.75 * before)

    def test_due(self) -> None:
        pacer = Pacer()
        self.assertTrue(pacer.due(5.0))
        pacer.sent(0.5, 5.0)
        self.assertFalse(pacer.due(5.4))
        self.assertEqual(pacer.next_at, 5.5)
        self.assertTrue(pacer.due(5.5))
