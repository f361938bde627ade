# SPDX-License-Identifier: AGPL-3.0-or-later
"""The server that the measurement of junk uses: it is a real one, and its counts are exact."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.testing.flood import CLIENTS, FloodRig, interleaved
from synapse_lb.txdtls.options import ServerOptions


class FloodRigTests(SynchronousTestCase):
    """Streams of datagrams and what the server makes of them."""

    def setUp(self) -> None:
        self.rig = FloodRig()
        self.addCleanup(self.rig.close)

    def test_associations(self) -> None:
        seen: list[int] = []
        self.rig.grow(CLIENTS + 5, seen.append)
        self.assertEqual(seen, list(range(1, CLIENTS + 6)))
        self.assertEqual(self.rig.associations, CLIENTS + 5)
        self.assertEqual(self.rig.counters.handshakes_resumed, CLIENTS + 4)
        self.rig.close()
        self.assertEqual(self.rig.associations, 0)

    def test_genuine_requests_are_answered(self) -> None:
        self.rig.grow(3)
        for _ in range(2):
            cost = self.rig.measure(self.rig.requests(30), 100)
            self.assertEqual((cost.datagrams, cost.messages, cost.answers, cost.trials), (30, 30, 30, 0))

    def test_junk_is_not(self) -> None:
        self.rig.grow(10)
        for junk, trials in ((self.rig.garbage(100), 0), (self.rig.junk_records(20), 200)):
            cost = self.rig.measure(junk, 100)
            self.assertEqual((cost.messages, cost.answers, cost.trials), (0, 0, trials))
        self.assertEqual(self.rig.associations, 10)

    def test_a_flood_of_records_gets_the_trials_of_the_budget(self) -> None:
        self.rig = FloodRig(ServerOptions(move_trials_per_second=100, move_trials_per_datagram=5))
        self.addCleanup(self.rig.close)
        self.rig.grow(20)
        self.rig.measure(self.rig.junk_records(1000), 1000)
        cost = self.rig.measure(self.rig.junk_records(5000), 1000)
        self.assertAlmostEqual(cost.trials, 500, delta=5)

    def test_both(self) -> None:
        self.rig.grow(3)
        cost = self.rig.measure(interleaved(self.rig.requests(10), self.rig.junk_records(95)), 1000)
        self.assertEqual((cost.datagrams, cost.messages, cost.answers), (105, 10, 10))

    def test_interleaved(self) -> None:
        few = [(b"few", ("h", n)) for n in range(3)]
        many = [(b"many", ("h", n)) for n in range(9)]
        both = interleaved(few, many)
        self.assertEqual([datagram for datagram, _ in both].index(b"few"), 1)
        self.assertEqual(sorted(both), sorted(few + many))
        self.assertEqual([a for a in both if a[0] == b"few"], few)
        self.assertEqual(interleaved(few, []), few)
