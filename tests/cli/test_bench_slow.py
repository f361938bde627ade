# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb bench slow`: links, counts and tables; what it measures is in tests/e2e."""

from __future__ import annotations

import attrs
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.cli.bench_slow import SECOND_GENERATION, Report, links_of, tables
from synapse_lb.cli.bench_talk import Taken
from synapse_lb.cli.errors import CommandError
from synapse_lb.cli.main import start
from synapse_lb.cli.terminal import Terminal
from synapse_lb.testing.simlink import LinkShape

TAKEN = Taken("send 1", seconds=23.6, bytes=1295, packets=3, lost=1, repeated=3)


class LinksTests(SynchronousTestCase):
    def test_links(self) -> None:
        slow, fast = links_of("100,2G")
        self.assertEqual(slow.title, "100 bit/s")
        self.assertEqual(slow.shape(), LinkShape(rate=12.5))
        self.assertEqual(fast, SECOND_GENERATION)
        self.assertEqual(fast.shape(), LinkShape(rate=5000, delay=0.35, loss=0.02))

    def test_wrong_links(self) -> None:
        for text in ("", "0", "-5", "3g", "100,,2g", "1e3", "²"):
            self.assertRaises(CommandError, links_of, text)

    def test_wrong_arguments(self) -> None:
        for argv, text in (
            (["--links", "3g"], "--links: '3g' is neither a rate in bit/s nor 2g"),
            (["--messages", "0"], "--messages must be more than 0"),
            (["--patience", "inf"], "--patience must be more than 0"),
        ):
            terminal = Terminal.in_memory()
            self.assertEqual(start(["bench", "slow", *argv], terminal), 2)
            self.assertIn(text, terminal.errors())


class TakenTests(SynchronousTestCase):
    def test_spurious(self) -> None:
        """Each loss is the reason of one repetition at most."""
        for repeated, lost, spurious in ((0, 0, 0), (3, 1, 2), (1, 1, 0), (1, 4, 0)):
            self.assertEqual(attrs.evolve(TAKEN, repeated=repeated, lost=lost).spurious, spurious)


class TablesTests(SynchronousTestCase):
    def report(self) -> Report:
        calm = [attrs.evolve(TAKEN, seconds=0.01, repeated=0, lost=0), attrs.evolve(TAKEN, name="sync 1")]
        return Report(
            {"seed": 1},
            {"no limit": calm, "100 bit/s": [TAKEN], "2G": [attrs.evolve(TAKEN, seconds=0.787, repeated=0)]},
            {"100 bit/s": "sync 1: RequestTimeout after 900 s"},
        )

    def test_tables(self) -> None:
        """What was reached before a failure is shown, and the failure; the first conversation only for its bytes."""
        seconds, taken, again = tables(self.report()).split("\n\n|")[1:4]
        self.assertIn("| send 1 |      23.6 | 0.79 |", seconds)
        self.assertIn("| sync 1 |         - |    - |", seconds)
        self.assertIn("| send 1 |    1,295 |     1,295 | 1,295 |", taken)
        self.assertIn("| send 1 |     3 (2) |  0 |", again)
        self.assertIn("100 bit/s: sync 1: RequestTimeout after 900 s", again)

    def test_json(self) -> None:
        links = self.report().as_json()["links"]
        assert isinstance(links, list)
        self.assertEqual([link["link"] for link in links], ["no limit", "100 bit/s", "2G"])
        self.assertEqual(links[1]["error"], "sync 1: RequestTimeout after 900 s")
        self.assertEqual(links[1]["steps"][0]["spurious"], 2)
