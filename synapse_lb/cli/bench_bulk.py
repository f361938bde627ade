# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb bench bulk`: an initial /sync by Block2, by Q-Block2 and by HTTPS over TCP, over the same link.

A real Synapse and its clients are at the two ends of a simulated link (`testing/tunlink.py`) that carries whole IP
packets: UDP and the kernel's own TCP alike. What the runs are is in `bench_transports.py`, what is shown of them in
`bench_results.py` and `bench_plot.py`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs

from synapse_lb.cli.bench_plot import figure
from synapse_lb.cli.bench_results import Link, Results, ResultsError, Run, tables
from synapse_lb.cli.bench_transports import (
    STANDARD,
    TRANSPORTS,
    HttpsFetcher,
    Task,
    Transport,
    body_sizes,
    chosen_transports,
    measure_coap,
    measure_https,
)
from synapse_lb.cli.bench_world import World, run_in_world
from synapse_lb.cli.errors import EXIT_OK, EXIT_READ, EXIT_USAGE, EXIT_WRITE, CommandError
from synapse_lb.cli.terminal import Terminal
from synapse_lb.testing.simlink import LinkShape

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from synapse_lb.cli.main import Subparsers

T = TypeVar("T")

RTTS: Final = "50,200,600"
LOSSES: Final = "0,1,5"
QUICK_RTTS: Final = "200"
QUICK_LOSSES: Final = "1"
_MBIT: Final = 125_000.0

_DESCRIPTION = """\
Fetches an initial /sync of a real, throw-away Synapse over a simulated link, by Block2, Q-Block2 and HTTPS over TCP,
at several round trips and losses. Needs root on Linux (network namespaces, TUN devices), and Synapse:
pip install 'synapse-lb[server]'. Everything takes a quarter of an hour; --quick takes two minutes.
"""
_EXPLANATION = """\
Medians. Seconds are from the first packet of the handshake to the last byte of the body; decoding is not in them.
Bytes are IP packets with all headers, both ways, lost ones included. Loss is random, in each direction.
~ given up when --patience was over, and extrapolated in proportion from the share of the body that was there.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add `bulk` to `bench`."""
    parser = subparsers.add_parser(
        "bulk",
        help="an initial sync by Block2, Q-Block2 and HTTPS over a simulated link",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rtt", metavar="MS,MS,...", help=f"round trips, in milliseconds ({RTTS})")
    parser.add_argument("--loss", metavar="%,%,...", help=f"losses in each direction, in percent ({LOSSES})")
    parser.add_argument(
        "--rate", type=float, default=10.0, metavar="MBIT", help="of the link, in Mbit/s (10)"
    )
    parser.add_argument(
        "--queue", type=int, default=250_000, metavar="BYTES", help="that may wait before the link (250000)"
    )
    parser.add_argument("--size", type=int, default=1_000_000, metavar="BYTES", help="of the JSON (1000000)")
    parser.add_argument(
        "--repeat", type=int, default=3, metavar="N", help="runs of each kind (3; Block2 varies little: 1)"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the losses of the first run (1)")
    parser.add_argument(
        "--transports", default=STANDARD, metavar="NAME,...", help=f"of {', '.join(TRANSPORTS)} ({STANDARD})"
    )
    parser.add_argument(
        "--tcp-cc", default="cubic", metavar="NAME,...", help="congestion controls of TCP (cubic)"
    )
    parser.add_argument(
        "--patience", type=float, default=60.0, metavar="S", help="longest that one fetch may take (60)"
    )
    parser.add_argument("--warm", action="store_true", help="fetch once more on the same connection")
    parser.add_argument("--quick", action="store_true", help="200 ms and 1 %% only, each once")
    parser.add_argument("--json", action="store_true", help="write one JSON object instead of the tables")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the JSON object here, too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a figure here, as SVG")
    parser.add_argument(
        "--from",
        dest="sources",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="measure nothing: show what was saved",
    )
    parser.set_defaults(run=run)


@attrs.frozen
class Plan:
    """What is to be measured.

    Attributes:
        links: the kinds of link, the base line first.
        transports: the ways.
        repeat: runs of each, but one only of those that are slow and steady.
        seed: of the first of them.
        warm: whether to fetch twice on each connection.
        rate: bytes per second.
        queue: bytes.
        size: bytes of JSON.
        patience: seconds for a fetch.
    """

    links: list[Link]
    transports: list[Transport]
    repeat: int
    seed: int
    warm: bool
    rate: float
    queue: int
    size: int
    patience: float

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Plan:
        """Read the arguments.

        Raises:
            CommandError: they make no sense.
        """
        quick = arguments.quick
        rtts = numbers("--rtt", arguments.rtt or (QUICK_RTTS if quick else RTTS))
        losses = numbers("--loss", arguments.loss or (QUICK_LOSSES if quick else LOSSES))
        if max(losses) > 100:
            raise CommandError("--loss: there are 100 percent", EXIT_USAGE)
        names = [name for name in arguments.transports.split(",") if name]
        unknown = [name for name in names if name not in TRANSPORTS]
        if unknown or not names:
            raise CommandError(f"--transports: {', '.join(TRANSPORTS)}, not {unknown or 'none'}", EXIT_USAGE)
        for name in ("rate", "queue", "size", "repeat", "patience"):
            if not 0 < getattr(arguments, name) < float("inf"):
                raise CommandError(f"--{name} must be more than 0", EXIT_USAGE)
        return cls(
            links=[Link(0, 0, False), *(Link(rtt, loss) for rtt in rtts for loss in losses)],
            transports=chosen_transports(names, [name for name in arguments.tcp_cc.split(",") if name]),
            repeat=1 if quick else arguments.repeat,
            seed=arguments.seed,
            warm=arguments.warm,
            rate=arguments.rate * _MBIT,
            queue=arguments.queue,
            size=arguments.size,
            patience=arguments.patience,
        )

    def shape(self, link: Link) -> LinkShape:
        """One direction of the link."""
        if not link.limited:
            return LinkShape()
        return LinkShape(
            rate=self.rate, delay=link.rtt_ms / 2000, loss=link.loss_percent / 100, queue=self.queue
        )

    def runs(self) -> Iterator[tuple[Link, Transport, int]]:
        """Everything in its order: kind of link, way, seed."""
        for link in self.links:
            for transport in self.transports:
                repeat = 1 if transport.is_steady else self.repeat
                for seed in range(self.seed, self.seed + repeat):
                    yield link, transport, seed

    def conditions(self) -> dict[str, Any]:
        """What the figures were measured with."""
        return {
            "rate_bytes_per_second": self.rate,
            "queue_bytes": self.queue,
            "repeat": self.repeat,
            "seed": self.seed,
            "patience_seconds": self.patience,
        }


def check_congestion_controls(plan: Plan, world: World) -> None:
    """See that the kernel has what TCP is to use.

    Raises:
        CommandError: it has not.
    """
    known = world.link.server.congestion_controls()
    asked = {each.congestion_control for each in plan.transports if each.kind == "https"}
    if unknown := sorted(asked - set(known)):
        raise CommandError(
            f"--tcp-cc: this kernel has {', '.join(known)}, not {', '.join(unknown)}", EXIT_USAGE
        )


def numbers(argument: str, text: str) -> list[float]:
    """Read a list of numbers that are not negative.

    Raises:
        CommandError: it is none.
    """
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or not all(0 <= number < float("inf") for number in found):
        raise CommandError(f"{argument}: {text!r} is no list of numbers", EXIT_USAGE)
    return found


def run(arguments: argparse.Namespace, terminal: Terminal) -> int | Deferred[int]:
    """Measure, or show what was measured.

    Returns:
        The exit status, or a Deferred of it.

    Raises:
        CommandError: The arguments make no sense, or it cannot be measured here.
    """
    if arguments.sources:
        results = Results()
        for source in arguments.sources:
            results.add(load(source))
        show(results, arguments, terminal)
        return EXIT_OK
    plan = Plan.of(arguments)

    def prepare(world: World) -> Bulk:
        check_congestion_controls(plan, world)
        reader, target = world.fill(plan.size)
        task = Task(reader, target, plan.patience)
        bulk = Bulk(terminal, world, plan, attrs.evolve(task, sizes=body_sizes(world, task)))
        bulk.weigh()
        return bulk

    return run_in_world(terminal, prepare, Bulk.measure, lambda bulk: show(bulk.results, arguments, terminal))


@attrs.define
class Bulk:
    """One measurement.

    Args:
        terminal: where progress is told.
        world: link and homeserver.
        plan: what is to be measured.
        task: what is fetched.
    """

    terminal: Terminal
    world: World
    plan: Plan
    task: Task
    results: Results = attrs.field(factory=Results)

    def weigh(self) -> None:
        """Note the conditions and what the bodies weigh."""
        sizes = self.task.sizes
        self.results.conditions = {
            **self.world.conditions(),
            **self.plan.conditions(),
            "body_bytes": sizes,
        }
        self.results.titles = {each.name: each.title for each in self.plan.transports}
        self.terminal.error("bodies: " + ", ".join(f"{name} {size:,} bytes" for name, size in sizes.items()))

    async def measure(self) -> None:
        """Make all runs."""
        runs = list(self.plan.runs())
        for number, (link, transport, seed) in enumerate(runs, 1):
            run = await self._run(link, transport, seed)
            self.results.cell(link, transport.name).runs.append(run)
            self.terminal.error(f"[{number}/{len(runs)}] {link}: {transport.title}: {_told(run)}")

    async def _run(self, link: Link, transport: Transport, seed: int) -> Run:
        shape = self.plan.shape(link)
        if transport.kind == "coap":
            return await measure_coap(
                self.terminal.reactor,
                self.world,
                transport,
                self.task,
                shape,
                seed,
                twice=self.plan.warm,
            )
        return await self._run_https(transport, shape, seed)

    async def _run_https(self, transport: Transport, shape: LinkShape, seed: int) -> Run:
        """In a thread, so that an interruption is heard; it ends the thread's connection."""
        from twisted.internet.defer import CancelledError
        from twisted.internet.threads import deferToThreadPool

        reactor = self.terminal.reactor
        fetcher = HttpsFetcher(self.world, compressed=transport.compressed, patience=self.plan.patience)

        def work() -> Run:
            return measure_https(
                self.world, transport, self.task, shape, seed, twice=self.plan.warm, fetcher=fetcher
            )

        working = deferToThreadPool(reactor, reactor.getThreadPool(), work)
        try:
            return await working
        except CancelledError:
            fetcher.give_up()
            raise


def _told(run: Run) -> str:
    if run.error is not None or run.first is None:
        return f"failed: {run.error}"
    if not run.first.complete:
        return f"{run.first.share:.1%} after {run.first.seconds:.0f} s"
    warm = "" if run.warm is None else f", then {run.warm.seconds:.2f} s"
    return f"{run.fresh_seconds:.2f} s{warm}; {run.fresh_bytes:,.0f} bytes"


def load(source: Path) -> Results:
    """Read what `--save` wrote.

    Raises:
        CommandError: it cannot be read, or is something else.
    """
    try:
        return Results.from_json(json.loads(source.read_text()))
    except OSError as error:
        raise CommandError(f"{source}: {error.strerror}", EXIT_READ) from error
    except ValueError as error:
        kind = "no results of `bench bulk`" if isinstance(error, ResultsError) else "no JSON"
        raise CommandError(f"{source}: {kind}: {error}", EXIT_READ) from error


def show(results: Results, arguments: argparse.Namespace, terminal: Terminal) -> None:
    """Write what was measured wherever it was asked for.

    Raises:
        CommandError: a file cannot be written.
    """
    text = json.dumps(results.as_json(), indent=1) + "\n"
    for path, content in ((arguments.save, text), (arguments.plot, figure(results))):
        if path is not None:
            try:
                path.write_text(content)
            except OSError as error:
                raise CommandError(f"{path}: {error.strerror}", EXIT_WRITE) from error
    terminal.write(text if arguments.json else f"{tables(results)}\n{_EXPLANATION}")
