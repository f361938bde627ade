# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb bench`: figures that the documents state, measured anew; one module `bench_*.py` for each.

A measurement is a module of this package, named in `BENCHES`, with the same function `add_parser` as a subcommand has
(see `cli/main.py`). It shows its progress on standard error and its figures as a table, or as one JSON object with
`--json`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from synapse_lb.cli.main import Subparsers

BENCHES: Final[tuple[str, ...]] = ("wire", "bulk", "observe", "slow", "junk", "scale", "soak", "fairness")
"""What can be measured, in the order in which `--help` shows it; each in its module `bench_NAME`."""


def add_parser(subparsers: Subparsers) -> None:
    """Add `bench` to the command."""
    parser = subparsers.add_parser(
        "bench",
        help="measure what the documents state",
        description="Measures what the documents state, on this machine.",
    )
    benches = parser.add_subparsers(dest="bench", metavar="BENCH", required=True)
    for name in BENCHES:
        importlib.import_module(f"synapse_lb.cli.bench_{name}").add_parser(benches)
