# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb bench fairness`: arguments, percentiles, table; what it measures is in tests/e2e."""

from __future__ import annotations

import itertools

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.cli.bench_fairness import Row, joined, table
from synapse_lb.cli.bench_fairness_flood import CHEAP, EXPENSIVE, targets
from synapse_lb.cli.main import start
from synapse_lb.cli.terminal import Terminal


def row(flood: str, *latencies: float, transport: str = "coap", failed: int = 0) -> Row:
    return Row(transport, flood, list(latencies), 10.0 if flood else 0.0, failed)


class RowTests(SynchronousTestCase):
    def test_percentiles(self) -> None:
        one = row("", *(number / 1000 for number in range(100, 0, -1)))
        self.assertEqual([one.percentile(share) for share in (0.5, 0.95, 1.0)], [0.05, 0.095, 0.1])
        self.assertEqual(row("", 0.7).percentile(0.5), 0.7)
        self.assertEqual(row(CHEAP).percentile(0.5), float("inf"))

    def test_rounds_are_counted_together(self) -> None:
        both = joined(row(CHEAP, 0.1, failed=1), row(CHEAP, 0.3, 0.2))
        self.assertEqual((both.latencies, both.failed, both.answers), ([0.1, 0.3, 0.2], 1, 10.0))

    def test_json_of_one_that_starved(self) -> None:
        value = row(CHEAP, failed=3).as_json()
        self.assertEqual((value["failed"], value["p50_ms"]), (3, None))

    def test_table(self) -> None:
        """Each beside its own transport alone."""
        rows = [row("", 0.01), row("", 0.02, transport="https"), row(CHEAP, 0.05)]
        rows += [row(CHEAP, 0.06, transport="https"), row(EXPENSIVE, failed=2)]
        text = table(rows)
        self.assertIn("| 50.0 (5.0 x) |", text)
        self.assertIn("| 60.0 (3.0 x) |", text)
        self.assertIn(
            "| CoAP, expensive requests |            - |            - |            - |         2 |", text
        )


class ArgumentsTests(SynchronousTestCase):
    def test_wrong_arguments(self) -> None:
        for argv, text in (
            (["--seconds", "0"], "--seconds must be more than 0"),
            (["--pause", "inf"], "--pause must be more than 0"),
            (["--in-flight", "65"], "--in-flight must be from 1 to 64"),
            (["--rooms", "0"], "--rooms must be from 1 to 10000"),
            (["--floods", "cheap,loud"], "--floods: 'cheap,loud' names others than cheap,expensive,reckless"),
        ):
            terminal = Terminal.in_memory()
            self.assertEqual(start(["bench", "fairness", *argv], terminal), 2)
            self.assertIn(text, terminal.errors())

    def test_no_expensive_request_is_that_before(self) -> None:
        """Synapse would give the answer that it keeps."""
        asked = [str(target) for target in itertools.islice(targets(EXPENSIVE), 50)]
        self.assertEqual(len(set(asked)), 50)
