# SPDX-License-Identifier: AGPL-3.0-or-later
"""`bench wire --explain`: what the bytes of each operation are for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from textwrap import fill
from typing import Any, Final

from synapse_lb.cli.wire.dissect import Datagram, Part
from synapse_lb.cli.wire.operations import OPERATIONS, Sizes

FEW: Final = 8
"""Datagrams of an operation that are shown one by one; of more, only the sums."""

_WIDTH: Final = 110


def explained(title: str, figures: Mapping[str, Sequence[Datagram]], sizes: Sizes) -> str:
    """The operations of one mode, for a screen.

    Args:
        title: of the mode.
        figures: key of the operation and its datagrams.
        sizes: how much there was to fetch.
    """
    lines = [title, ""]
    for operation in OPERATIONS:
        datagrams = figures.get(operation.key, ())
        if not datagrams:
            continue
        lines.append(operation.title_with(sizes))
        if len(datagrams) <= FEW:
            lines += [_line("→" if each.out else "←", each.size, each.parts) for each in datagrams]
        else:
            for out, arrow in ((True, "→"), (False, "←")):
                chosen = [each for each in datagrams if each.out is out]
                sums = summed(chosen)
                count = f"{len(chosen)} packets,"
                lines.append(_line(f"{arrow} {count}", sum(each.size for each in chosen), sums))
        lines.append("")
    return "\n".join(lines) + "\n"


def summed(datagrams: Iterable[Datagram]) -> list[Part]:
    """The parts of datagrams, those of one name together, in the order in which they come."""
    sums: dict[str, int] = {}
    for datagram in datagrams:
        for part in datagram.parts:
            sums[part.name] = sums.get(part.name, 0) + part.size
    return [Part(name, size) for name, size in sums.items()]


def as_json(figures: Mapping[str, Sequence[Datagram]]) -> dict[str, Any]:
    """The same for `--json`: of each operation the sums of both directions."""
    return {
        key: {
            way: {part.name: part.size for part in summed(each for each in datagrams if each.out is out)}
            for way, out in (("sent", True), ("received", False))
        }
        for key, datagrams in figures.items()
    }


def _line(arrow: str, size: int, parts: Iterable[Part]) -> str:
    """One datagram, or a sum; equal neighbours are written as a sum."""
    texts = []
    for name, group in groupby(parts, key=lambda part: part.name):
        values = [f"{part.size:,}" for part in group]
        texts.append(f"{name} {' + '.join(values)}")
    head = f"  {arrow} {size:,}: "
    return fill("; ".join(texts), _WIDTH, initial_indent=head, subsequent_indent="      ")
