# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb bench soak` and `bench fairness` with a real Synapse, small; how a verdict fails is in tests/cli."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.project.sources import ROOT

_LONGEST = 400
"""Seconds after which a run has hung."""


class SoakTests(SynchronousTestCase):
    def bench(self, *argv: str) -> tuple[int, dict[str, Any]]:
        """Run it in a process of its own, with `--json`."""
        done = subprocess.run(
            [sys.executable, "-m", "synapse_lb.cli.main", "bench", *argv, "--json"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=_LONGEST,
            check=False,
        )
        self.assertNotIn("Traceback", done.stderr)
        self.assertTrue(done.stdout, done.stderr)
        return done.returncode, json.loads(done.stdout)

    def test_soak(self) -> None:
        """Nothing stays behind; memory is no matter in so short a time."""
        plot = Path(self.mktemp()).resolve()
        status, value = self.bench(
            *("soak", "--clients", "6", "--duration", "8s", "--rate", "4", "--idle-timeout", "6s"),
            *("--interval", "1s", "--warm-up", "1s", "--junk", "40", "--plot", str(plot)),
        )
        findings = {finding["name"]: finding for finding in value["findings"]}
        wrong = {
            name: finding["text"]
            for name, finding in findings.items()
            if not finding["good"] and name not in ("memory", "Python heap")
        }
        self.assertEqual(wrong, {})
        self.assertEqual(status, 0 if value["good"] else 1)
        self.assertIn("stop", findings)
        self.assertGreater(value["last"]["requests"], 6)
        self.assertGreater(max(sample["associations"] for sample in value["samples"]), 1)
        self.assertGreater(value["deeds"]["bodies pushed"], 0)
        self.assertGreater(value["relay"]["delivered"], value["relay"]["lost"])
        self.assertGreater(value["junk"]["vandals"], 0)
        self.assertIn("</svg>", plot.read_text())

    def test_fairness(self) -> None:
        """Every case is measured, and the quiet client gets its answers also beside the flood."""
        status, value = self.bench(
            *("fairness", "--seconds", "0.5", "--pause", "20", "--in-flight", "8", "--rooms", "2"),
            *("--floods", "cheap,reckless"),
        )
        self.assertEqual(status, 0)
        cases = [(row["transport"], row["flood"]) for row in value["rows"]]
        beside = [("coap", "cheap"), ("https", "cheap"), ("coap", "reckless")]
        self.assertEqual(cases, [("coap", None), ("https", None), *beside])
        for row in value["rows"]:
            self.assertGreater(row["requests"], 0, row)
        answers = {
            case: row["flood_answers_per_second"] for case, row in zip(cases, value["rows"], strict=True)
        }
        self.assertEqual((answers["coap", None], answers["https", None]), (0, 0))
        self.assertGreater(answers["coap", "cheap"] + answers["coap", "reckless"], 0)
        self.assertGreater(answers["https", "cheap"], 0)
