# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb bench bulk` and `bench observe`: plans, tables, figures and files; what they measure is in tests/e2e."""

from __future__ import annotations

import argparse
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import attrs
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.cli import bench_observe, bench_world
from synapse_lb.cli.bench_bulk import Plan
from synapse_lb.cli.bench_plot import figure
from synapse_lb.cli.bench_results import Fetch, Link, Results, ResultsError, Run, comparison, tables
from synapse_lb.cli.bench_transports import chosen_transports
from synapse_lb.cli.main import build_parser, start
from synapse_lb.cli.terminal import Terminal
from synapse_lb.testing.netns import LinkUnavailable
from synapse_lb.testing.simlink import LinkShape
from synapse_lb.testing.tunlink import Flow


def arguments(*argv: str) -> argparse.Namespace:
    return build_parser().parse_args(["bench", "bulk", *argv])


def run(seconds: float, *, share: float = 1.0, warm: float | None = None, error: str | None = None) -> Run:
    """A run with a handshake of 1 s and 1,000 bytes."""
    first = None if error else Fetch(seconds - 1, 900, 99_000, 100, share)
    second = None if warm is None else Fetch(warm, 800, 98_000, 90)
    return Run(1, 1.0, 1000, first, second, error)


def results() -> Results:
    found = Results(
        {"size": 3}, {"block2": "Block2, CBOR", "q-block2": "Q-Block2, CBOR", "https-x": "HTTPS, x"}
    )
    goal, far, base = Link(200, 1), Link(600, 5), Link(0, 0, False)
    found.cell(goal, "block2").runs = [run(31.0, share=0.25)]
    found.cell(goal, "q-block2").runs = [run(9.0), run(3.0, warm=1.5), run(4.0)]
    found.cell(goal, "https-x").runs = [run(6.0)]
    found.cell(far, "q-block2").runs = [run(8.0), run(0, error="RequestTimeout: x")]
    found.cell(far, "https-x").runs = [run(0, error="OSError: x")]
    found.cell(far, "block2").runs = [run(31.0, share=0.0)]
    found.cell(base, "q-block2").runs = [run(1.25)]
    return found


class PlanTests(SynchronousTestCase):
    def test_defaults(self) -> None:
        """50, 200 and 600 ms with 0, 1 and 5 % at 10 Mbit/s, and a base line without any limit."""
        plan = Plan.of(arguments())
        self.assertEqual([each.name for each in plan.transports], ["block2", "q-block2", "https-cubic"])
        self.assertEqual(len(plan.links), 10)
        self.assertEqual(plan.shape(plan.links[0]), LinkShape())
        self.assertEqual(
            plan.shape(Link(200, 1)), LinkShape(rate=1_250_000, delay=0.1, loss=0.01, queue=250_000)
        )
        runs = list(plan.runs())
        self.assertEqual(len(runs), 10 * (1 + 3 + 3))
        self.assertEqual([seed for _, _, seed in runs[:7]], [1, 1, 2, 3, 1, 2, 3])

    def test_choices(self) -> None:
        plan = Plan.of(
            arguments(
                "--rtt", "80", "--loss", "2,0", "--seed", "7", "--repeat", "2", "--rate", "0.5", "--warm"
            )
        )
        self.assertEqual(plan.links[1:], [Link(80, 0), Link(80, 2)])
        self.assertEqual((plan.rate, plan.warm), (62_500, True))
        self.assertEqual([seed for _, each, seed in plan.runs() if each.name == "q-block2"], [7, 8] * 3)
        quick = Plan.of(arguments("--quick"))
        self.assertEqual((quick.links[1:], quick.repeat), ([Link(200, 1)], 1))

    def test_congestion_controls(self) -> None:
        """HTTPS once for each, whatever the order in which the transports are named."""
        chosen = chosen_transports(["https", "q-block2"], ["cubic", "bbr"])
        self.assertEqual([each.name for each in chosen], ["q-block2", "https-cubic", "https-bbr"])
        self.assertEqual([each.congestion_control for each in chosen], ["", "cubic", "bbr"])

    def test_wrong_arguments(self) -> None:
        for argv, text in (
            (["--rtt", "far"], "--rtt: 'far' is no list of numbers"),
            (["--rtt", "-1"], "--rtt"),
            (["--loss", ","], "--loss"),
            (["--rtt", "inf"], "--rtt"),
            (["--loss", "101"], "--loss: there are 100 percent"),
            (["--transports", "pigeon"], "--transports: "),
            (["--transports", ""], "--transports: "),
            (["--rate", "0"], "--rate must be more than 0"),
            (["--patience", "nan"], "--patience must be more than 0"),
            (["--repeat", "0"], "--repeat must be more than 0"),
        ):
            terminal = Terminal.in_memory()
            self.assertEqual(start(["bench", "bulk", *argv], terminal), 2, argv)
            self.assertIn(text, terminal.errors())

    def test_no_link(self) -> None:
        """Where no link can be made: one line, and 2."""

        def refuse() -> None:
            raise LinkUnavailable("no network namespace (Operation not permitted): this needs root")

        self.patch(bench_world, "TunLink", refuse)
        self.patch(bench_world, "heed_sigterm", lambda: None)
        for bench in ("bulk", "observe"):
            terminal = Terminal.in_memory()
            self.assertEqual(start(["bench", bench], terminal), 2)
            self.assertEqual(
                terminal.errors(),
                "synapse-lb bench: the simulated link cannot be made: no network namespace (Operation not "
                "permitted): this needs root\n",
            )


class RunTests(SynchronousTestCase):
    def test_what_was_given_up(self) -> None:
        """In proportion to the share that was there, the handshake apart; nothing without a share."""
        cut = run(31.0, share=0.25)
        self.assertEqual((cut.fresh_seconds, cut.fresh_bytes), (1 + 120.0, 1000 + 396_000))
        self.assertIsNone(run(31.0, share=0.0).fresh_seconds)
        self.assertIsNone(run(0, error="x").fresh_bytes)


class TablesTests(SynchronousTestCase):
    def test_tables(self) -> None:
        text = tables(results())
        self.assertIn("| 200 ms, 1 % |       ~121 s |                 4.00 s |   6.00 s |", text)
        self.assertIn("| 600 ms, 5 % |       > 30 s | 8.00 s (1 of 2 failed) |   failed |", text)
        self.assertIn("~397 kB", text)
        warm = text.split("on the same connection")[1].split("Bytes")[0]
        self.assertIn("| 200 ms, 1 % |            - |         1.50 s |        - |", warm)
        self.assertIn("| no delay, no limit |", text)

    def test_order(self) -> None:
        found = results().links()
        self.assertEqual(found, [Link(0, 0, False), Link(200, 1), Link(600, 5)])

    def test_comparison(self) -> None:
        lines = comparison(results()).strip().split("\n")
        self.assertEqual(
            lines[1:], ["  30.2 times the speed of Block2, CBOR", "  1.5 times the speed of HTTPS, x"]
        )
        self.assertEqual(comparison(Results()), "")

    def test_nothing(self) -> None:
        self.assertEqual(tables(Results()), "")


class FilesTests(SynchronousTestCase):
    def write(self, name: str, content: str) -> Path:
        path = Path(self.mktemp())
        path.mkdir()
        (path / name).write_text(content)
        return path / name

    def test_read_again(self) -> None:
        """What was saved gives the same tables, and the figure; several files become one measurement."""
        found = results()
        others = Results(titles={"https-y": "HTTPS, y"})
        others.cell(Link(200, 1), "https-y").runs = [run(2.0)]
        first = self.write("first.json", json.dumps(found.as_json()))
        second = self.write("second.json", json.dumps(others.as_json()))
        terminal, plot = Terminal.in_memory(), first.parent / "figure.svg"
        argv = ["bench", "bulk", "--from", str(first), str(second), "--plot", str(plot)]
        self.assertEqual(start(argv, terminal), 0, terminal.errors())
        found.add(others)
        self.assertTrue(terminal.output().decode().startswith(tables(found)))
        self.assertIn("HTTPS, y", terminal.output().decode())
        self.assertEqual(plot.read_text(), figure(found))

    def test_json(self) -> None:
        found = results()
        path = self.write("saved.json", json.dumps(found.as_json()))
        terminal = Terminal.in_memory()
        self.assertEqual(start(["bench", "bulk", "--json", "--from", str(path)], terminal), 0)
        value = json.loads(terminal.output())
        self.assertEqual(Results.from_json(value), found)
        medians = {(cell["transport"], cell["rtt_ms"]): cell["median"] for cell in value["cells"]}
        self.assertEqual(medians["q-block2", 200]["fresh_seconds"], 4.0)
        self.assertEqual(medians["q-block2", 200]["warm_seconds"], 1.5)

    def test_files_that_are_none(self) -> None:
        for content, text in (
            ("{", "no JSON"),
            ("[]", "no results of `bench bulk`"),
            ('{"bench": "bulk"}', "no results of `bench bulk`"),
        ):
            path = self.write("bad.json", content)
            terminal = Terminal.in_memory()
            self.assertEqual(start(["bench", "bulk", "--from", str(path)], terminal), 26)
            self.assertIn(text, terminal.errors())
        terminal = Terminal.in_memory()
        self.assertEqual(start(["bench", "bulk", "--from", str(path.parent / "none")], terminal), 26)
        self.assertRaises(ResultsError, Results.from_json, {"bench": "bulk", "conditions": 3})

    def test_file_that_cannot_be_written(self) -> None:
        path = self.write("saved.json", json.dumps(results().as_json()))
        terminal = Terminal.in_memory()
        argv = ["bench", "bulk", "--from", str(path), "--plot", str(path.parent / "none" / "figure.svg")]
        self.assertEqual(start(argv, terminal), 23)


class FigureTests(SynchronousTestCase):
    def test_figure(self) -> None:
        """Well-formed SVG: a panel for each round trip, a point for each figure, a line of the legend for each way."""
        root = ElementTree.fromstring(figure(results()))
        name = "{http://www.w3.org/2000/svg}"
        self.assertEqual(len(root.findall(f"{name}circle")), 4)
        texts = [element.text for element in root.iter(f"{name}text")]
        for text in ("RTT 200 ms", "RTT 600 ms", "1 % loss", "5 % loss", "Block2, CBOR", "HTTPS, x"):
            self.assertIn(text, texts)
        width, height = float(root.attrib["width"]), float(root.attrib["height"])
        for circle in root.findall(f"{name}circle"):
            self.assertTrue(0 < float(circle.attrib["cx"]) < width)
            self.assertTrue(0 < float(circle.attrib["cy"]) < height)

    def test_slower_is_higher(self) -> None:
        root = ElementTree.fromstring(figure(results()))
        circles = root.findall("{http://www.w3.org/2000/svg}circle")
        heights = [float(circle.attrib["cy"]) for circle in circles[:3]]  # ~121 s, 4 s, 6 s at 200 ms
        self.assertTrue(heights[0] < heights[2] < heights[1], heights)

    def test_nothing(self) -> None:
        self.assertEqual(figure(Results()), "")


class ObserveTests(SynchronousTestCase):
    def test_table(self) -> None:
        """An hour is the span, multiplied, and what comes once an hour; a message is its share of all."""
        row = bench_observe.Row(
            "OBSERVE", Flow(2, 200, 2, 300), 2, Flow(4, 3000, 4, 1000), Flow(1, 70, 1, 30)
        )
        found = bench_observe.Results({}, 120.0, 4, [row, attrs.evolve(row, name="polls", hourly=Flow())])
        self.assertEqual((found.idle_hour(row), found.idle_packets(row)), (15_100, 122))
        text = bench_observe.table(found)
        self.assertIn("| OBSERVE |           15,100 |     122 |                 1,000 |     2.0 |", text)
        self.assertIn("| polls   |           15,000 |     120 |", text)
        self.assertIn("measured over 120 s and multiplied by 30.", text)
        value = found.as_json()["rows"][0]
        self.assertEqual((value["idle_hour_bytes"], value["pushed_message_packets"]), (15_100, 2))

    def test_wrong_arguments(self) -> None:
        for argv in (["--span", "0"], ["--messages", "0"], ["--poll", "nan"], ["--rtt", "-1"]):
            terminal = Terminal.in_memory()
            self.assertEqual(start(["bench", "observe", *argv], terminal), 2)
            self.assertIn(f"{argv[0]} must", terminal.errors())
