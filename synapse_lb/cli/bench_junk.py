# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb bench junk`: what datagrams cost the server that belong to nobody.

A port with its gateway gets garbage, records with random content, and genuine requests, with more and more
associations (`testing/flood.py`). Everything is measured in one run, so that the figures can be compared; those of
another machine are others, their ratios are much the same.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any, Final

import attrs

from synapse_lb.cli.errors import EXIT_OK, CommandError
from synapse_lb.cli.terminal import Terminal

if TYPE_CHECKING:
    from synapse_lb.cli.main import Subparsers
    from synapse_lb.testing.flood import Cost, FloodRig

ASSOCIATIONS: Final = "0,1000,10000"
FLOOD: Final = 10_000
"""Junk datagrams per second."""

REQUESTS: Final = 500
"""Genuine requests per second."""

_TRIED: Final = 200
_DESCRIPTION = """\
Measures what junk costs the server: a DTLS port with its gateway in this process, without sockets. Time is virtual: the
budgets for finding clients that moved see 10,000 datagrams of junk and 500 genuine requests per second, and what is
shown is processor time. With 10,000 associations it takes about 1 GB of memory.
"""
_EXPLANATION = """\
garbage   random bytes from made-up addresses
records   well-formed records with random content, numbered like those of clients that moved
trial     one association that such a record is tried against (bounded by move_trials_*); first: with its keys made
request   GET /versions of a genuine client, answered at once: decrypt, CoAP, CBOR, encrypt
of a core share of one processor core that 10,000 of them per second take
"""


@attrs.frozen
class Row:
    """The figures with one number of associations; times are microseconds of processor time.

    Attributes:
        associations: How many there are.
        garbage: For a datagram of garbage.
        record: For a junk record, in a flood of them: most are beyond the budget.
        trials_per_second: Trials that the flood got, per second.
        first_trial: For one trial of an association that was never tried before; None without associations.
        trial: For one of an association that was.
        request: For a genuine request.
        request_beside: For a genuine request beside the flood, without what the flood itself takes.
    """

    associations: int
    garbage: float
    record: float
    trials_per_second: float
    first_trial: float | None = None
    trial: float | None = None
    request: float | None = None
    request_beside: float | None = None


def add_parser(subparsers: Subparsers) -> None:
    """Add `junk` to `bench`."""
    parser = subparsers.add_parser(
        "junk",
        help="what datagrams cost that belong to nobody",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--associations", default=ASSOCIATIONS, metavar="N,N,...", help=f"how many there are ({ASSOCIATIONS})"
    )
    parser.add_argument(
        "--seconds", type=float, default=2.0, metavar="S", help="virtual length of each measurement (2)"
    )
    parser.add_argument("--json", action="store_true", help="write one JSON object instead of the table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Measure.

    Returns:
        The exit status.

    Raises:
        CommandError: The arguments make no sense.
    """
    from synapse_lb.testing.flood import FloodRig

    try:
        counts = sorted({int(part) for part in arguments.associations.split(",")})
    except ValueError:
        raise CommandError(f"--associations: {arguments.associations!r} is no list of numbers") from None
    if counts[0] < 0 or not arguments.seconds > 0:
        raise CommandError("--associations and --seconds must not be negative")
    rows = []
    for count in counts:
        rig = FloodRig()
        try:
            _grow(rig, count, terminal)
            rows.append(measure(rig, arguments.seconds, terminal))
        finally:
            rig.close()
    if arguments.json:
        budget = attrs.asdict(rig.options)
        report = {
            "flood_per_second": FLOOD,
            "requests_per_second": REQUESTS,
            "budget": {name: value for name, value in budget.items() if name.startswith("move_")},
            "rows": [_as_json(row) for row in rows],
        }
        terminal.write(json.dumps(report, indent=2) + "\n")
    else:
        terminal.write(table(rows) + "\n" + _EXPLANATION)
    return EXIT_OK


def _grow(rig: FloodRig, count: int, terminal: Terminal) -> None:
    def progress(done: int) -> None:
        if done % 2000 == 0:
            terminal.error(f"  {done:,} of {count:,} handshakes")

    terminal.error(f"making associations: {count:,}")
    rig.grow(count, progress)


def measure(rig: FloodRig, seconds: float, terminal: Terminal) -> Row:
    """Take all measurements with the associations that there are.

    Args:
        rig: The server.
        seconds: Virtual length of each.
        terminal: Where to say what is done.
    """
    from synapse_lb.testing.flood import interleaved

    count, requests = round(FLOOD * seconds), round(REQUESTS * seconds)
    terminal.error(f"measuring with {rig.associations:,} associations")
    garbage = rig.measure(rig.garbage(count), FLOOD)
    if not rig.associations:
        records = rig.measure(rig.junk_records(count), FLOOD)
        return Row(0, garbage.microseconds, records.microseconds, 0.0)
    # So slowly that the budget never ends: every record is tried as often as one may be.
    slowly = rig.options.move_trials_per_second / rig.options.move_trials_per_datagram / 2
    passes = max(_TRIED, 3 * rig.associations // rig.options.move_trials_per_datagram)
    first = rig.measure(rig.junk_records(_TRIED // 10), slowly)
    rig.measure(rig.junk_records(passes), slowly)
    again = rig.measure(rig.junk_records(_TRIED), slowly)
    alone = rig.measure(rig.requests(requests), REQUESTS)
    rig.measure(rig.junk_records(FLOOD), FLOOD)  # what the budgets had in store is used up
    records = rig.measure(rig.junk_records(count), FLOOD)
    both = rig.measure(interleaved(rig.requests(requests), rig.junk_records(count)), FLOOD + REQUESTS)
    if alone.messages != requests or both.messages != requests:
        raise CommandError("the server did not get all genuine requests")
    return Row(
        associations=rig.associations,
        garbage=garbage.microseconds,
        record=records.microseconds,
        trials_per_second=records.trials / seconds,
        first_trial=_per_trial(first, garbage),
        trial=_per_trial(again, garbage),
        request=alone.microseconds,
        request_beside=(both.seconds - records.seconds) * 1e6 / requests,
    )


def _per_trial(cost: Cost, base: Cost) -> float | None:
    """Microseconds of one trial, without what any datagram takes."""
    if not cost.trials:
        return None
    return (cost.microseconds - base.microseconds) * cost.datagrams / cost.trials


def share(microseconds: float) -> float:
    """Share of a processor core that the flood takes."""
    return microseconds * FLOOD / 1e6


def table(rows: list[Row]) -> str:
    """The figures, with the ratios that matter."""
    lines = [
        f"{'':>12} {'garbage':>19} {'records':>29} {'trial, µs':>13} {'request, µs':>19}",
        f"{'associations':>12} {'µs':>8} {'of a core':>10} {'µs':>8} {'of a core':>10} {'trials/s':>9} "
        f"{'first':>6} {'then':>6} {'alone':>9} {'beside':>9}",
        "─" * 97,
    ]
    lines += [
        f"{row.associations:>12,} {row.garbage:>8.2f} {share(row.garbage):>10.1%} {row.record:>8.2f} "
        f"{share(row.record):>10.1%} {row.trials_per_second:>9,.0f} {_number(row.first_trial):>6} "
        f"{_number(row.trial):>6} {_number(row.request):>9} {_number(row.request_beside):>9}"
        for row in rows
    ]
    last = rows[-1]
    if last.request is not None:
        lines.append(
            f"\nA junk record costs {last.record / last.request:.1%} of a genuine request with "
            f"{last.associations:,} associations ({1e6 / last.record:,.0f} of them per second fill a core)."
        )
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _as_json(row: Row) -> dict[str, Any]:
    figures = {
        f"{name}_us" if name not in ("associations", "trials_per_second") else name: value
        for name, value in attrs.asdict(row).items()
    }
    return figures | {"garbage_share": share(row.garbage), "record_share": share(row.record)}
