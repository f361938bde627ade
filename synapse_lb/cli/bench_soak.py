# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb bench soak`: a real Synapse under real traffic for minutes or hours, and what stays behind.

The clients (`bench_soak_people.py`) go through a relay that loses, doubles and reorders (`testing/lossy.py`); junk and
vandals (`bench_soak_junk.py`) come beside it. `bench_soak_run.py` is the course of it, `bench_soak_server.py` looks at
Synapse's process, and `bench_soak_verdict.py` says whether all is well.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from synapse_lb.cli.bench_soak_verdict import Finding, Sample, Story, judged, verdict
from synapse_lb.cli.errors import EXIT_FAILURE, EXIT_OK, EXIT_USAGE, CommandError
from synapse_lb.cli.interruptible import heed_sigterm, until_interrupted
from synapse_lb.cli.terminal import Terminal

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from synapse_lb.cli.bench_soak_run import Soak
    from synapse_lb.cli.main import Subparsers

_RATE: Final = 6.0
"""Deeds per second: each is told to some eight observers, so that they keep Synapse busy for a third of a core."""

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}
_DESCRIPTION = """\
Lets clients send, read, sync, observe, move, vanish and come back, over a bad network and beside junk, on a real,
throw-away Synapse, and looks at its process: whether memory stays flat, whether an error is logged, and whether
anything is left when all clients have gone. Needs Linux, and Synapse: pip install 'synapse-lb[server]'.
The exit status is 0 if all is well, and 1 if not.
"""


@attrs.frozen
class Plan:
    """What is to be done.

    Attributes:
        clients: how many.
        duration: seconds from the first client on.
        warm_up: seconds that do not count, of each process.
        interval: seconds from one look at the server to the next.
        rate: deeds per second, of all clients together.
        loss: of datagrams, in each direction, from 0 to 1; a duplicate is as likely, and reordering twice.
        junk: datagrams of junk per second; 0 for none, and no vandals.
        idle_timeout: seconds of silence after which the server closes an association.
        restart: whether Synapse is stopped and started in the middle.
        tracemalloc: frames that the server records of each allocation, or 0.
        seed: of everything.
    """

    clients: int
    duration: float
    warm_up: float
    interval: float
    rate: float
    loss: float
    junk: float
    idle_timeout: float
    restart: bool
    tracemalloc: int
    seed: int


def add_parser(subparsers: Subparsers) -> None:
    """Add `soak` to `bench`."""
    parser = subparsers.add_parser(
        "soak",
        help="minutes or hours of traffic: is memory flat, does anything stay",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--clients", type=int, default=1000, metavar="N", help="how many (1000)")
    add("--duration", default="15m", metavar="TIME", help="how long: 90s, 15m, 8h (15m)")
    add("--warm-up", metavar="TIME", help="what does not count for memory (40 %% of the duration)")
    add("--interval", metavar="TIME", help="from one look at the server to the next (1/120 of the duration)")
    add(
        "--rate",
        type=float,
        metavar="N",
        help="deeds per second of all clients together (6, or 1/8 of --clients)",
    )
    add("--loss", type=float, default=3.0, metavar="%", help="of datagrams, in each direction (3)")
    add("--junk", type=float, default=200.0, metavar="N", help="datagrams of junk per second; 0: none (200)")
    add("--idle-timeout", default="2m", metavar="TIME", help="of the listener (2m)")
    add("--restart", action="store_true", help="stop and start Synapse in the middle")
    add("--tracemalloc", type=int, default=0, metavar="FRAMES", help="record allocations, which is slow")
    add("--seed", type=int, default=1, metavar="N", help="of everything that is random (1)")
    add("--json", action="store_true", help="write one JSON object instead of the table")
    add("--save", metavar="FILE", help="write the JSON object to a file, too")
    add("--plot", metavar="FILE", help="write a figure, as SVG")
    parser.set_defaults(run=run)


def seconds_of(text: str, name: str) -> float:
    """Read a time such as ``90s``, ``15m`` or ``8h``.

    Raises:
        CommandError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text, re.ASCII)
    if match is None or not float(match[1]):
        raise CommandError(f"{name}: {text!r} is no time such as 90s, 15m or 8h", EXIT_USAGE)
    return float(match[1]) * _UNITS[match[2]]


def plan_of(arguments: argparse.Namespace) -> Plan:
    """Read the arguments.

    Raises:
        CommandError: they make no sense.
    """
    duration = seconds_of(arguments.duration, "--duration")
    warm_up = seconds_of(arguments.warm_up, "--warm-up") if arguments.warm_up else None
    interval = seconds_of(arguments.interval, "--interval") if arguments.interval else None
    rate = min(arguments.clients / 8, _RATE) if arguments.rate is None else arguments.rate
    for name, value, least in (("clients", arguments.clients, 1), ("tracemalloc", arguments.tracemalloc, 0)):
        if value < least:
            raise CommandError(f"--{name} must be at least {least}", EXIT_USAGE)
    if not 0 < rate < float("inf"):
        raise CommandError("--rate must be more than 0", EXIT_USAGE)
    if not 0 <= arguments.loss <= 50:
        raise CommandError("--loss must be from 0 to 50", EXIT_USAGE)
    if not 0 <= arguments.junk < float("inf"):
        raise CommandError("--junk must not be negative", EXIT_USAGE)
    return Plan(
        clients=arguments.clients,
        duration=duration,
        warm_up=(0.2 if arguments.restart else 0.4) * duration if warm_up is None else warm_up,
        interval=max(1.0, duration / 120) if interval is None else interval,
        rate=rate,
        loss=arguments.loss / 100,
        junk=arguments.junk,
        idle_timeout=seconds_of(arguments.idle_timeout, "--idle-timeout"),
        restart=arguments.restart,
        tracemalloc=arguments.tracemalloc,
        seed=arguments.seed,
    )


def run(arguments: argparse.Namespace, terminal: Terminal) -> Deferred[int]:
    """Measure.

    Returns:
        A Deferred of the exit status.

    Raises:
        CommandError: The arguments make no sense, or it cannot be measured here.
    """
    from synapse_lb.cli.bench_soak_run import Soak

    plan = plan_of(arguments)
    heed_sigterm()
    soak = Soak(plan, terminal)
    try:
        soak.prepare()
    except BaseException:
        soak.close()
        raise

    async def measured() -> int:
        try:
            story = await soak.measure()
        finally:
            soak.close()
        findings = verdict(story)
        _show(arguments, terminal, report(plan, soak, story, findings), story, findings)
        return EXIT_OK if all(finding.good for finding in findings) else EXIT_FAILURE

    return until_interrupted(measured(), terminal, "synapse-lb bench: interrupted; Synapse has been removed")


def _show(
    arguments: argparse.Namespace,
    terminal: Terminal,
    value: dict[str, Any],
    story: Story,
    findings: list[Finding],
) -> None:
    text = json.dumps(value, indent=1) + "\n"
    terminal.write(text if arguments.json else table(story, findings) + tallies(value))
    if arguments.save:
        Path(arguments.save).write_text(text)
    if arguments.plot:
        from synapse_lb.cli.bench_soak_plot import figure

        Path(arguments.plot).write_text(figure(story))


def report(plan: Plan, soak: Soak, story: Story, findings: list[Finding]) -> dict[str, Any]:
    """All of it, as JSON has it."""
    return {
        "bench": "soak",
        "plan": attrs.asdict(plan),
        "good": all(finding.good for finding in findings),
        "findings": [attrs.asdict(finding) for finding in findings],
        **soak.tallies(),
        "log_errors": story.log_errors[:100],
        "before": attrs.asdict(story.before),
        "after": attrs.asdict(story.after),
        "last": attrs.asdict(story.last),
        "stops": [attrs.asdict(stop) for stop in story.stops],
        "samples": [attrs.asdict(sample) for sample in story.samples],
    }


_ROWS: Final[tuple[tuple[str, Callable[[Sample], str]], ...]] = (
    ("resident memory, MiB", lambda sample: f"{sample.rss / 2**20:,.1f}"),
    ("Python heap, blocks", lambda sample: f"{sample.blocks:,}"),
    ("file descriptors", lambda sample: f"{sample.descriptors:,}"),
    ("delayed calls", lambda sample: f"{sample.delayed_calls:,}"),
    ("associations", lambda sample: f"{sample.associations:,}"),
    ("handshakes under way", lambda sample: f"{sample.handshakes:,}"),
    ("peers of CoAP", lambda sample: f"{sample.peers:,}"),
    ("exchanges", lambda sample: f"{sample.exchanges:,}"),
    ("observations", lambda sample: f"{sample.observations:,}"),
    ("request bodies half received, bytes", lambda sample: f"{sample.reassembly_bytes:,}"),
    ("answers being fetched, bytes", lambda sample: f"{sample.snapshot_bytes:,}"),
    ("requests so far", lambda sample: f"{sample.requests:,}"),
)


def table(story: Story, findings: list[Finding]) -> str:
    """The figures and the verdict, for people."""
    counted = judged(story)
    columns: list[tuple[str, Sample]] = []
    if counted:
        middle = counted[len(counted) // 2]
        columns = [("warm", counted[0]), ("middle", middle), ("end", counted[-1])]
    columns.append(("all gone", story.last))
    lines = [f"| {'':35} | " + " | ".join(f"{title:>11}" for title, _ in columns) + " |"]
    lines.append("| " + "-" * 35 + " | " + " | ".join("-" * 10 + ":" for _ in columns) + " |")
    for name, text in _ROWS:
        lines.append(f"| {name:35} | " + " | ".join(f"{text(sample):>11}" for _, sample in columns) + " |")
    lines.append("")
    lines += [f"{'ok' if each.good else 'FAILED':8} {each.name:18} {each.text}" for each in findings]
    good = all(finding.good for finding in findings)
    return "\n".join([*lines, "", f"verdict: {'all is well' if good else 'something is wrong'}"]) + "\n"


def tallies(value: dict[str, Any]) -> str:
    """What was done, for people."""
    lines = [""]
    for title in ("deeds", "client_errors", "junk", "relay", "server"):
        counts = ", ".join(f"{name} {count:,}" for name, count in value[title].items())
        lines.append(f"{title.replace('_', ' ')}: {counts or 'none'}")
    return "\n".join(lines) + "\n"
