# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb bench soak`: arguments, lines, figure, and a verdict that can fail; a run of it is in tests/e2e."""

from __future__ import annotations

import argparse
from typing import Any
from xml.etree import ElementTree

import attrs
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.cli import bench_soak
from synapse_lb.cli.bench_soak import plan_of, seconds_of, table
from synapse_lb.cli.bench_soak_plot import figure
from synapse_lb.cli.bench_soak_verdict import (
    FEWEST_SAMPLES,
    KEPT,
    ZERO_WHEN_GONE,
    Inside,
    Sample,
    Stop,
    Story,
    judged,
    line_through,
    verdict,
)
from synapse_lb.cli.errors import CommandError
from synapse_lb.cli.main import start
from synapse_lb.cli.terminal import Terminal

EMPTY = Sample(
    at=0.0,
    process=0,
    rss=200 * 2**20,
    blocks=800_000,
    descriptors=22,
    delayed_calls=120,
    processor=1.0,
    associations=0,
    handshakes=0,
    peers=0,
    exchanges=0,
    observations=0,
    reassembly_bytes=0,
    snapshot_bytes=0,
    running=0,
    requests=100,
)
INSIDE = Inside({"socket": 5}, {"synapse_lb.txdtls.x": 1}, {"synapse_lb.server.gateway.Gateway": 1})


def samples(count: int = 40, growth: float = 0.0) -> list[Sample]:
    """Some that waver, every ten seconds, and grow by so many % in each."""
    return [
        attrs.evolve(
            EMPTY,
            at=10.0 * number,
            rss=round(200 * 2**20 * (1 + growth / 100 * number)) + (number % 3) * 2**18,
            associations=50,
            observations=40,
        )
        for number in range(count)
    ]


def story(**changes: Any) -> Story:
    """A run in which all is well, but for the changes."""
    well = Story(samples=samples(), warm_up=100.0, before=INSIDE, after=INSIDE, last=EMPTY)
    return attrs.evolve(well, **changes)


def failed(one: Story) -> list[str]:
    """What is not as it should be."""
    return [finding.name for finding in verdict(one) if not finding.good]


class VerdictTests(SynchronousTestCase):
    def test_all_is_well(self) -> None:
        self.assertEqual(failed(story(stops=[Stop(0, {}, True), Stop(0, {}, False)])), [])

    def test_a_leak(self) -> None:
        """Half a percent in ten seconds is 15 % in the five minutes that count."""
        self.assertEqual(failed(story(samples=samples(growth=0.5))), ["memory"])

    def test_what_grows_only_while_it_warms_up(self) -> None:
        warm = [attrs.evolve(each, rss=each.rss // 2) for each in samples()[:10]] + samples()[10:]
        self.assertEqual(failed(story(samples=warm)), [])
        self.assertEqual(failed(story(samples=warm, warm_up=0.0)), [])
        slow = samples(growth=0.5)[:30]
        slow += [attrs.evolve(slow[-1], at=10.0 * number) for number in range(30, 40)]
        self.assertEqual(failed(story(samples=slow, warm_up=0.0)), ["memory"])
        self.assertEqual(failed(story(samples=slow, warm_up=300.0)), [])

    def test_a_leak_on_the_python_heap(self) -> None:
        leaking = [attrs.evolve(each, blocks=each.blocks + 5000 * n) for n, each in enumerate(samples())]
        self.assertEqual(failed(story(samples=leaking)), ["Python heap"])

    def test_one_peak_is_no_leak(self) -> None:
        peaks = samples()
        peaks[-1] = attrs.evolve(peaks[-1], rss=2 * peaks[-1].rss)
        self.assertEqual(failed(story(samples=peaks)), [])

    def test_too_short_to_say(self) -> None:
        self.assertEqual(failed(story(samples=samples(10 + FEWEST_SAMPLES - 1))), ["memory", "Python heap"])
        self.assertEqual(failed(story(samples=samples(10 + FEWEST_SAMPLES))), [])
        self.assertEqual(failed(story(samples=[])), ["memory", "Python heap"])

    def test_only_the_last_process_counts(self) -> None:
        second = [attrs.evolve(each, process=1, at=each.at + 400) for each in samples()]
        both = [*samples(growth=2.0), *second]
        self.assertEqual(judged(story(samples=both))[0].at, 500.0)
        self.assertEqual(failed(story(samples=both)), [])

    def test_an_error_in_the_log(self) -> None:
        self.assertEqual(failed(story(log_errors=["- ERROR - it broke"])), ["log"])

    def test_an_answer_that_says_that_the_server_failed(self) -> None:
        self.assertEqual(failed(story(answers_5xx={"500 to GET sync": 1})), ["answers"])

    def test_an_observer_that_was_forgotten(self) -> None:
        self.assertEqual(failed(story(behind=1)), ["observers"])

    def test_what_stays_when_all_have_gone(self) -> None:
        for name in ZERO_WHEN_GONE:
            self.assertEqual(failed(story(last=attrs.evolve(EMPTY, **{name: 1}))), ["when all had gone"])

    def test_what_is_left_in_the_process(self) -> None:
        for field, name in (
            ("descriptors", "file descriptors"),
            ("own_calls", "delayed calls"),
            ("objects", "objects"),
        ):
            more = {**getattr(INSIDE, field), "something": 1}
            self.assertEqual(failed(story(after=attrs.evolve(INSIDE, **{field: more}))), [name])
            fewer: dict[str, int] = {}
            self.assertEqual(failed(story(after=attrs.evolve(INSIDE, **{field: fewer}))), [])

    def test_bounded_tables_may_fill(self) -> None:
        for name, most in KEPT.items():
            self.assertEqual(failed(story(after=attrs.evolve(INSIDE, objects={name: most}))), [])
            self.assertEqual(failed(story(after=attrs.evolve(INSIDE, objects={name: most + 1}))), ["objects"])

    def test_a_stop_that_is_none(self) -> None:
        for stop in (Stop(-9, {}, True), Stop(1, {}, True), Stop(0, None, True), Stop(0, {"call": 1}, True)):
            self.assertEqual(failed(story(stops=[stop])), ["stop under load"])


class LineTests(SynchronousTestCase):
    def test_a_line(self) -> None:
        line = line_through([(10.0 * n, 100.0 + n) for n in range(11)])
        assert line is not None
        self.assertAlmostEqual(line.begin, 100.0)
        self.assertAlmostEqual(line.growth, 10.0)
        self.assertAlmostEqual(line.per_hour, 360.0)

    def test_two_at_the_same_time(self) -> None:
        line = line_through([(1.0, 5.0)] * 5 + [(2.0, 5.0)] * 5)
        assert line is not None
        self.assertEqual(line.slope, 0.0)


class ShowTests(SynchronousTestCase):
    def test_table(self) -> None:
        good = story()
        text = table(good, verdict(good))
        self.assertIn(
            "| associations                        |          50 |          50 |          50 |", text
        )
        self.assertTrue(text.endswith("verdict: all is well\n"))
        bad = story(behind=3)
        text = table(bad, verdict(bad))
        self.assertIn("FAILED   observers          3 never saw the last message", text)
        self.assertTrue(text.endswith("verdict: something is wrong\n"))

    def test_figure(self) -> None:
        """One line for each that is sampled, and one through what is judged, in a document that can be read."""
        tree = ElementTree.fromstring(figure(story()))
        lines = [each for each in tree.iter() if each.tag.endswith("polyline")]
        self.assertEqual(len(lines), 1 + 1 + 3 + 3 + 2 + 2)
        points = [point.split(",") for point in lines[0].attrib["points"].split()]
        self.assertEqual(len(points), 40)
        across = [float(x) for x, _ in points]
        self.assertEqual(across, sorted(across))

    def test_no_figure(self) -> None:
        self.assertEqual(figure(story(samples=samples(1))), "")


class ArgumentsTests(SynchronousTestCase):
    def plan(self, *argv: str) -> bench_soak.Plan:
        parser = argparse.ArgumentParser()
        bench_soak.add_parser(parser.add_subparsers())
        return plan_of(parser.parse_args(["soak", *argv]))

    def test_times(self) -> None:
        self.assertEqual([seconds_of(text, "x") for text in ("90s", "1.5m", "8h")], [90.0, 90.0, 28800.0])
        for text in ("", "90", "1d", "-1m", "0s", "m", "²s"):
            self.assertRaises(CommandError, seconds_of, text, "x")

    def test_defaults(self) -> None:
        plan = self.plan()
        self.assertEqual((plan.clients, plan.duration, plan.rate), (1000, 900.0, 6.0))
        self.assertEqual((plan.warm_up, plan.interval, plan.loss), (360.0, 7.5, 0.03))
        self.assertEqual(self.plan("--restart").warm_up, 180.0)

    def test_wrong_arguments(self) -> None:
        for argv, text in (
            (["--clients", "0"], "--clients must be at least 1"),
            (["--duration", "long"], "--duration: 'long' is no time such as 90s, 15m or 8h"),
            (["--rate", "0"], "--rate must be more than 0"),
            (["--loss", "80"], "--loss must be from 0 to 50"),
            (["--junk", "-1"], "--junk must not be negative"),
            (["--tracemalloc", "-1"], "--tracemalloc must be at least 0"),
        ):
            terminal = Terminal.in_memory()
            self.assertEqual(start(["bench", "soak", *argv], terminal), 2)
            self.assertIn(text, terminal.errors())
