# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb bench wire` on a real Synapse, and that nothing takes more bytes than it did (`wire_ceilings`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unittest
from functools import cache
from pathlib import Path
from typing import Any

import attrs
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.cli.bench_wire import MODES
from synapse_lb.cli.https_meter import wire_is_measurable
from synapse_lb.cli.wire.operations import OPERATIONS
from synapse_lb.testing.throwaway import synapse_is_installed
from tests.e2e.wire_ceilings import CEILINGS, ROOMS, Ceiling

ROOT = Path(__file__).resolve().parents[2]


@cache
def measured(run: int = 0) -> dict[str, Any]:
    """What the command writes with `--json`; each run is made once."""
    finished = subprocess.run(
        [sys.executable, "-m", "synapse_lb.cli.main", "bench", "wire", "--rooms", str(ROOMS), "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
        check=False,
    )
    if finished.returncode != 0:
        raise AssertionError(finished.stderr)
    report: dict[str, Any] = json.loads(finished.stdout)
    return report


def figure(operation: str, column: str, run: int = 0) -> dict[str, int] | None:
    """One cell."""
    found: dict[str, int] | None = next(
        each[column] for each in measured(run)["operations"] if each["operation"] == operation
    )
    return found


def above(run: int) -> dict[tuple[str, str], str]:
    """What is above its ceiling: mode and operation, and by how much."""
    found = {}
    for mode, ceilings in CEILINGS.items():
        for operation, ceiling in ceilings.items():
            cell = figure(operation, mode, run)
            assert cell is not None
            taken = Ceiling(cell["packets"], cell["bytes_sent"], cell["bytes_received"])
            pairs = zip(attrs.astuple(taken), attrs.astuple(ceiling), strict=True)
            if any(value > most for value, most in pairs):
                found[mode, operation] = f"{mode} {operation}: {taken} is above {ceiling}"
    return found


class CeilingsTests(SynchronousTestCase):
    """The record, without measuring anything."""

    def test_all_is_held(self) -> None:
        """Each mode has a ceiling for each operation."""
        self.assertEqual(set(CEILINGS), set(MODES))
        for mode, ceilings in CEILINGS.items():
            self.assertEqual(list(ceilings), [operation.key for operation in OPERATIONS], mode)


@unittest.skipUnless(synapse_is_installed(), "matrix-synapse is not installed")
class WireTests(SynchronousTestCase):
    """What is measured."""

    def test_no_figure_is_above_its_ceiling(self) -> None:
        """Packets, and bytes each way."""
        found = above(0)
        if found:
            # A machine that stands still makes a client repeat what is not answered, and never takes bytes away: what
            # needs more than it did does so every time.
            found = {key: text for key, text in above(1).items() if key in found}
        self.assertEqual(list(found.values()), [])

    def test_the_parts_add_up(self) -> None:
        """Bytes and packets each way are those together, and each datagram has its headers."""
        for mode in MODES:
            for operation in OPERATIONS:
                cell = figure(operation.key, mode)
                assert cell is not None
                self.assertEqual(cell["bytes"], cell["bytes_sent"] + cell["bytes_received"])
                self.assertEqual(cell["packets"], cell["packets_sent"] + cell["packets_received"])
                # 28 bytes of IPv4 and UDP, 4 of CoAP, and at least 13 of DTLS (18 of a compact record).
                self.assertGreaterEqual(cell["bytes_sent"], cell["packets_sent"] * (28 + 13 + 4))
                self.assertGreaterEqual(cell["bytes_received"], cell["packets_received"] * (28 + 13 + 4))

    def test_https_takes_more(self) -> None:
        """Every operation takes more over HTTPS with plain JSON."""
        if not wire_is_measurable():
            raise unittest.SkipTest("this system does not tell what TCP sends")
        for operation in OPERATIONS:
            https, coap = figure(operation.key, "https"), figure(operation.key, "v1")
            assert coap is not None
            if operation.key in ("keepalive", "send_brief"):
                self.assertIsNone(https)
            else:
                assert https is not None
                self.assertGreater(https["bytes"], coap["bytes"], operation.title)

    def test_goals_are_named(self) -> None:
        """The report says of each goal whether it holds."""
        goals = [goal["goal"] for goal in measured()["goals"]]
        self.assertIn("v1: first connection, bytes", goals)
        self.assertEqual(len(goals), len(set(goals)))
