# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb bench scale` with a handful of clients: every figure is there, and of what was asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.cli.errors import EXIT_USAGE
from tests.project.sources import ROOT

_LONGEST = 240.0
"""Seconds after which a run has hung."""


class BenchScaleTests(SynchronousTestCase):
    def run_bench(self, *argv: str) -> subprocess.CompletedProcess[str]:
        folder = Path(self.mktemp()).resolve()
        folder.mkdir()
        finished = subprocess.run(
            [sys.executable, "-m", "synapse_lb.cli.main", "bench", "scale", *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=_LONGEST,
            env={**os.environ, "TMPDIR": str(folder)},
            check=False,
        )
        self.assertEqual([path.name for path in folder.iterdir()], [])
        return finished

    def test_all_parts(self) -> None:
        """Observers by stages, polls beside the last, requests in turns, handshakes, junk, large bodies."""
        finished = self.run_bench(
            *("--clients", "3,6", "--told", "4", "--span", "1", "--messages", "1"),
            *("--requests", "20", "--blocks", "1", "--json"),
        )
        self.assertEqual(finished.returncode, 0, finished.stderr)
        value = json.loads(finished.stdout)
        stages = [(stage["kind"], stage["clients"]) for stage in value["stages"]]
        self.assertEqual(stages, [("OBSERVE", 3), ("OBSERVE", 6), ("HTTPS", 4)])
        for stage, told in zip(value["stages"], (3, 4, 4), strict=True):
            self.assertEqual([push["observers"] for push in stage["pushes"]], [told])
            for push in stage["pushes"]:
                self.assertTrue(0 < push["median"] <= push["seconds"], push)
                self.assertGreater(push["cpu"], 0)
            self.assertGreater(stage["memory"], 0)
            self.assertEqual(stage["lost"], 0)
        names = [cost["name"] for cost in value["costs"]]
        self.assertEqual(names, ["GET /versions", "send", "sync, nothing new", "sync, one message"])
        for cost in value["costs"]:
            self.assertEqual((len(cost["coap"]), len(cost["https"])), (1, 1))
            self.assertGreater(cost["ratio"], 0)
        self.assertGreater(value["handshakes"]["full"], 0)
        self.assertEqual(value["junk"]["lost"], 0)
        self.assertEqual(len(value["writing"]), 2)
        for body in value["writing"]:
            self.assertTrue(0.4 < body["cbor_bytes"] / body["json_bytes"] < 0.8, body)
            self.assertAlmostEqual(body["ratio"], body["cbor"] / body["json"])

    def test_bodies_as_tables(self) -> None:
        """Without Synapse: a row for each body."""
        finished = self.run_bench("--parts", "bodies")
        self.assertEqual(finished.returncode, 0, finished.stderr)
        rows = [line.split("|")[1:-1] for line in finished.stdout.splitlines() if line.startswith("| ")]
        self.assertEqual([len(row) for row in rows], [6] * 4)
        self.assertEqual(
            [row[0].strip() for row in rows[2:]], ["messages, 50 rooms", "all that rooms have, 30 rooms"]
        )
        self.assertNotIn("starting Synapse", finished.stderr)

    def test_arguments(self) -> None:
        """What makes no sense, or cannot be, is said before anything is started."""
        for argv, told in (
            (("--parts", "crowd,everything"), "--parts: one or more of crowd,requests,bodies"),
            (("--clients", "many"), "--clients: 'many' is no list of numbers"),
            (("--clients", "0"), "--clients must be more than 0"),
            (("--span", "0"), "--span must be more than 0"),
            (("--clients", "2000000000"), "files have to be open at a time"),
        ):
            finished = self.run_bench(*argv)
            self.assertEqual(finished.returncode, EXIT_USAGE, argv)
            self.assertIn(told, finished.stderr)
            self.assertNotIn("starting Synapse", finished.stderr)
