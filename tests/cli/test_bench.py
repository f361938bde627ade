# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb bench`: what it prints, not how fast this machine is."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.cli import bench_junk
from synapse_lb.cli.main import start
from synapse_lb.cli.terminal import Terminal


class JunkTests(SynchronousTestCase):
    """`bench junk`."""

    def run_bench(self, *argv: str) -> Terminal:
        terminal = Terminal.in_memory()
        self.assertEqual(start(["bench", "junk", *argv], terminal), 0, terminal.errors())
        return terminal

    def test_json(self) -> None:
        terminal = self.run_bench("--associations", "5,0", "--seconds", "0.02", "--json")
        report: dict[str, Any] = json.loads(terminal.output())
        self.assertEqual(report["flood_per_second"], bench_junk.FLOOD)
        self.assertEqual(report["budget"]["move_trials_per_datagram"], 64)
        nobody, few = report["rows"]
        self.assertEqual((nobody["associations"], few["associations"]), (0, 5))
        self.assertEqual(
            (nobody["trial_us"], nobody["request_us"], nobody["trials_per_second"]), (None, None, 0)
        )
        for name in ("garbage_us", "record_us", "request_us"):
            self.assertGreater(few[name], 0, name)
        self.assertGreater(few["trials_per_second"], 0)
        self.assertIn("measuring with 5 associations", terminal.errors())

    def test_table(self) -> None:
        lines = self.run_bench("--associations", "0,5", "--seconds", "0.02").output().decode().split("\n")
        self.assertEqual([line.split()[0] for line in lines[3:5]], ["0", "5"])
        self.assertEqual(len(lines[1]), len(lines[4]))
        self.assertIn("A junk record costs", lines[6])

    def test_table_without_associations(self) -> None:
        text = self.run_bench("--associations", "0", "--seconds", "0.02").output().decode()
        self.assertNotIn("A junk record costs", text)

    def test_wrong_arguments(self) -> None:
        for argv in (["--associations", "many"], ["--associations", "-1"], ["--seconds", "0"]):
            terminal = Terminal.in_memory()
            self.assertEqual(start(["bench", "junk", *argv], terminal), 1)
            self.assertIn("synapse-lb bench: --", terminal.errors())
            self.assertEqual(terminal.output(), b"")
