# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb bench slow`: a conversation over links of some hundred bits per second, and over 2G.

One user of a real Synapse is at the far end of the simulated link (`testing/tunlink.py`): connects, logs in, syncs,
sends, reads answers and observes. Another one answers beside the link. What each step took is in `bench_talk.py`.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Final

import attrs

from synapse_lb.cli.bench_results import markdown
from synapse_lb.cli.bench_talk import SlowLink, Taken, Talk, TalkFailed
from synapse_lb.cli.bench_world import World, run_in_world
from synapse_lb.cli.errors import EXIT_USAGE, CommandError
from synapse_lb.cli.terminal import Terminal

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from synapse_lb.cli.main import Subparsers

LINKS: Final = "100,300,1200,9600,2g"
SECOND_GENERATION: Final = SlowLink("2G", rate=40_000, rtt_ms=700, loss_percent=2)
"""GPRS with four slots down."""

UNLIMITED: Final = SlowLink("no limit", rate=0, rtt_ms=0, loss_percent=0)
"""What a conversation takes without any haste: the measure of the others' bytes."""

_DESCRIPTION = """\
Holds a conversation with a real, throw-away Synapse over simulated slow links: seconds and bytes of each step, what was
sent more than once, and how much of that for nothing. Needs root on Linux (network namespaces, TUN devices), and
Synapse: pip install 'synapse-lb[server]'. All links take a quarter of an hour; that with 100 bit/s most of it.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add `slow` to `bench`."""
    parser = subparsers.add_parser(
        "slow",
        help="a conversation at 100 to 9600 bit/s, and over 2G",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--links",
        default=LINKS,
        metavar="BIT/S,...",
        help=f"rates in bit/s, and 2g: 40 kbit/s, 700 ms, 2 %% ({LINKS})",
    )
    parser.add_argument(
        "--messages", type=int, default=3, metavar="N", help="that are sent, and that come (3)"
    )
    parser.add_argument(
        "--dialect",
        choices=("1", "x1"),
        default="x1",
        help="version 1 of MSC3079 alone, or the extension x1, and sending without the answer's body (x1)",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the losses (1)")
    parser.add_argument(
        "--patience", type=float, default=900.0, metavar="S", help="longest that one step may take (900)"
    )
    parser.add_argument("--json", action="store_true", help="write one JSON object instead of the tables")
    parser.set_defaults(run=run)


def links_of(text: str) -> list[SlowLink]:
    """Read the links.

    Raises:
        CommandError: they are none.
    """
    found = []
    for part in text.split(","):
        if part.lower() == "2g":
            found.append(SECOND_GENERATION)
        elif part.isascii() and part.isdecimal() and int(part):
            found.append(SlowLink(f"{int(part):,} bit/s", rate=int(part), rtt_ms=0, loss_percent=0))
        else:
            raise CommandError(f"--links: {part!r} is neither a rate in bit/s nor 2g", EXIT_USAGE)
    return found


def run(arguments: argparse.Namespace, terminal: Terminal) -> Deferred[int]:
    """Measure.

    Returns:
        A Deferred of the exit status.

    Raises:
        CommandError: The arguments make no sense, or it cannot be measured here.
    """
    links = [UNLIMITED, *links_of(arguments.links)]
    for name in ("messages", "patience"):
        if not 0 < getattr(arguments, name) < float("inf"):
            raise CommandError(f"--{name} must be more than 0", EXIT_USAGE)

    def prepare(world: World) -> Bench:
        return Bench(terminal, world, links, arguments)

    def show(bench: Bench) -> None:
        report = bench.report
        terminal.write(json.dumps(report.as_json(), indent=1) + "\n" if arguments.json else tables(report))

    # The defaults leave a handshake no time below 300 bit/s.
    patience = f"{round(arguments.patience)}s"
    options = {"limits": {"handshake_timeout": patience, "unproven_timeout": patience}}
    return run_in_world(terminal, prepare, Bench.measure, show, lowbandwidth_options=options, metrics=True)


@attrs.define
class Report:
    """What was measured.

    Attributes:
        conditions: with what.
        talks: the steps of each conversation, by the title of its link, that without a limit first.
        errors: why a conversation ended early, likewise.
    """

    conditions: dict[str, object] = attrs.field(factory=dict)
    talks: dict[str, list[Taken]] = attrs.field(factory=dict)
    errors: dict[str, str] = attrs.field(factory=dict)

    def as_json(self) -> dict[str, object]:
        """As one JSON object."""
        return {
            "bench": "slow",
            "conditions": self.conditions,
            "links": [
                {
                    "link": title,
                    "error": self.errors.get(title),
                    "steps": [{**attrs.asdict(taken), "spurious": taken.spurious} for taken in talk],
                }
                for title, talk in self.talks.items()
            ],
        }


@attrs.define
class Bench:
    """One measurement.

    Args:
        terminal: where progress is told.
        world: link and homeserver.
        links: over which conversations are held, one after another.
        arguments: of the command.
    """

    terminal: Terminal
    world: World
    links: list[SlowLink]
    arguments: argparse.Namespace
    report: Report = attrs.field(init=False, factory=Report)

    async def measure(self) -> None:
        """Hold all conversations."""
        self.report.conditions = {
            **self.world.conditions(),
            **{name: getattr(self.arguments, name) for name in ("dialect", "messages", "seed")},
        }
        for number, link in enumerate(self.links):
            self.terminal.error(f"{link.title}")
            talk = Talk(self.terminal, self.world, link, self.arguments, f"{number}")
            # Filled while it goes on, so that what was measured before a failure is shown.
            self.report.talks[link.title] = talk.steps
            try:
                await talk.hold()
            except TalkFailed as error:
                self.report.errors[link.title] = str(error)
                self.terminal.error(f"  {error}")


def tables(report: Report) -> str:
    """Seconds, bytes and retransmissions of each step on each link."""
    titles = list(report.talks)
    slow = titles[1:]
    names = [taken.name for taken in report.talks[titles[0]]]
    found = {(title, taken.name): taken for title, talk in report.talks.items() for taken in talk}

    def rows(show: object, columns: list[str]) -> list[list[str]]:
        assert callable(show)
        return [
            [name, *(show(found[title, name]) if (title, name) in found else "-" for title in columns)]
            for name in names
        ]

    parts = [
        markdown("Seconds", ["", *slow], rows(lambda taken: _seconds(taken.seconds), slow)),
        markdown(
            "Bytes of IP packets, both ways", ["", *titles], rows(lambda taken: f"{taken.bytes:,}", titles)
        ),
        markdown("Sent again (of that for nothing)", ["", *slow], rows(_again, slow)),
    ]
    parts += [f"{title}: {error}\n" for title, error in report.errors.items()]
    return "\n".join(parts) + f"\n{_EXPLANATION}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds < 9.95 else f"{seconds:.1f}" if seconds < 99.5 else f"{seconds:.0f}"


def _again(taken: Taken) -> str:
    if not taken.repeated:
        return "0"
    return f"{taken.repeated} ({taken.spurious})"


_EXPLANATION = """\
Seconds are until the answer, or what was pushed, is there. Bytes are IP packets with all headers, lost ones included.
Sent again: Confirmable messages of both sides, and datagrams of the handshake beyond those without a limit. For
nothing: more than packets were lost on the link meanwhile.
"""
