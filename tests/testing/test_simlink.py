# SPDX-License-Identifier: AGPL-3.0-or-later
"""The simulated link."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.testing.simlink import LinkShape, SimulatedLink


class SimulatedLinkTests(SynchronousTestCase):
    def test_without_limits(self) -> None:
        link = SimulatedLink(LinkShape(delay=0.1))
        self.assertEqual([link.send(1000, 5.0) for _ in range(3)], [[5.1]] * 3)

    def test_rate(self) -> None:
        """Datagrams follow one another at the rate, overhead included."""
        link = SimulatedLink(LinkShape(rate=1000, delay=0.1, overhead=50))
        arrivals = [link.send(450, 0.0)[0] for _ in range(3)]
        for arrival, expected in zip(arrivals, (0.6, 1.1, 1.6), strict=True):
            self.assertAlmostEqual(arrival, expected)
        self.assertAlmostEqual(link.backlog(0.5), 1000)
        self.assertEqual(link.backlog(9.0), 0.0)
        self.assertAlmostEqual(link.send(450, 9.0)[0], 9.6)
        self.assertEqual(link.counters.longest_queue, 1500)
        self.assertAlmostEqual(link.counters.longest_wait, 1.0)
        self.assertEqual(link.counters.sent_bytes, 2000)

    def test_queue(self) -> None:
        """What does not fit is lost; one datagram always fits."""
        link = SimulatedLink(LinkShape(rate=1000, queue=1000))
        self.assertEqual([len(link.send(400, 0.0)) for _ in range(4)], [1, 1, 0, 0])
        self.assertEqual(link.counters.overflowed, 2)
        self.assertEqual(len(link.send(400, 0.5)), 1)
        self.assertEqual(len(SimulatedLink(LinkShape(rate=1000, queue=10)).send(400, 0.0)), 1)

    def test_loss_and_duplication(self) -> None:
        """The shares are as said, and what is lost has taken its time on the link."""
        link = SimulatedLink(LinkShape(rate=1000, loss=0.2, duplication=0.1), seed=3)
        arrivals = [len(link.send(100, index * 1.0)) for index in range(10_000)]
        self.assertApproximates(arrivals.count(0) / 10_000, 0.2, 0.02)
        self.assertApproximates(arrivals.count(2) / 8_000, 0.1, 0.02)
        self.assertEqual(link.counters.lost, arrivals.count(0))
        self.assertEqual(link.counters.duplicated, arrivals.count(2))

    def test_jitter(self) -> None:
        link = SimulatedLink(LinkShape(delay=1.0, jitter=0.5))
        arrivals = [link.send(100, 0.0)[0] for _ in range(1000)]
        self.assertTrue(1.0 <= min(arrivals) < 1.05 and 1.45 < max(arrivals) <= 1.5)

    def test_seeds(self) -> None:
        """The same seed is the same link."""
        shape = LinkShape(rate=1000, jitter=1.0, loss=0.5, duplication=0.5)
        links = [SimulatedLink(shape, seed) for seed in (1, 1, 2)]
        runs = [[link.send(100, float(index)) for index in range(100)] for link in links]
        self.assertEqual(runs[0], runs[1])
        self.assertNotEqual(runs[0], runs[2])

    def test_bad_shapes(self) -> None:
        self.assertRaises(ValueError, LinkShape, rate=-1)
        self.assertRaises(ValueError, LinkShape, loss=1.1)
        self.assertRaises(ValueError, LinkShape, duplication=-0.1)
        self.assertRaises(ValueError, LinkShape, queue=-1)
