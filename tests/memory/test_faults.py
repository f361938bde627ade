# SPDX-License-Identifier: AGPL-3.0-or-later
"""The fault harness, over many seeds; see `tests.memory.scenario`.

$ SYNAPSE_LB_SEEDS=200 python -m twisted.trial tests.memory.test_faults      more seeds
$ SYNAPSE_LB_SEED=17 python -m twisted.trial tests.memory.test_faults        one seed, the same in each run
"""

from __future__ import annotations

import os
from typing import Any

import attrs
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.txdtls.context import ServerContext, make_server_context
from tests.client.harness import Certificate
from tests.memory.scenario import Scale, Scenario

SEEDS = int(os.environ.get("SYNAPSE_LB_SEEDS", "16"))
ONLY = os.environ.get("SYNAPSE_LB_SEED")
LARGE = Scale(events=2000, to_device=500, faults=300, patience=400_000.0)


class FaultTests(SynchronousTestCase):
    """Each event exactly once and in order, no to-device message lost, whatever happens."""

    timeout = 1200

    def setUp(self) -> None:
        """Make a certificate, which all servers have."""
        self.certificate = Certificate()
        self.addCleanup(self.certificate.remove)

    def test_many_seeds(self) -> None:
        """Many short runs."""
        seeds = range(SEEDS) if ONLY is None else [int(ONLY)]
        for seed in seeds:
            self.run_one(seed, Scale())

    def test_two_thousand_messages(self) -> None:
        """One long run: 2,000 messages and 500 to-device messages."""
        self.run_one(1, LARGE)

    def run_one(self, seed: int, scale: Scale) -> Scenario:
        """Run a scenario, and say what there was of everything."""
        scenario = Scenario(seed, scale, self.context)
        scenario.run()
        self.assertEqual(self.flushLoggedErrors(), [], f"logged in seed {seed}")
        figures: dict[str, Any] = attrs.asdict(scenario.totals)
        said = ", ".join(f"{name} {number}" for name, number in figures.items())
        print(
            f"seed {seed}: {scenario.network.seconds():.0f} s, {scenario.faults} faults, "
            f"{scenario.network.carried} datagrams, {scenario.network.lost} lost; {said}"
        )
        return scenario

    def context(self) -> ServerContext:
        """The settings of a new process."""
        return make_server_context(self.certificate.path, self.certificate.key_path)
