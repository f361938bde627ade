# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `synapse-lb bench bulk` measured: runs, medians, JSON that can be read again, and the tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import attrs


class ResultsError(ValueError):
    """A file holds no results of this measurement; the text says what is wrong with it."""


@attrs.frozen
class Fetch:
    """One /sync over the link.

    Attributes:
        seconds: from the request to the last byte of the answer, or until it was given up; decoding is not in it.
        packets: IP packets both ways, lost ones included.
        bytes: bytes of IP packets both ways.
        packets_up: IP packets of the client alone.
        share: of the body that was there at the end: 1, or less if it was given up.
    """

    seconds: float
    packets: int
    bytes: int
    packets_up: int
    share: float = 1.0

    @property
    def complete(self) -> bool:
        """Whether all of it came."""
        return self.share >= 1

    @property
    def whole_seconds(self) -> float | None:
        """What the whole takes: measured, or else in proportion to what was there; None if nothing was."""
        return self.seconds / self.share if self.share else None

    @property
    def whole_bytes(self) -> float | None:
        """The same of `bytes`."""
        return self.bytes / self.share if self.share else None


@attrs.frozen
class Run:
    """One connection over one link: a handshake, a first fetch, and perhaps a second one.

    Attributes:
        seed: of the link's losses.
        connect_seconds: the handshakes of DTLS, or of TCP and TLS.
        connect_bytes: bytes of IP packets that they took, both ways.
        first: the first /sync on it; None if it failed.
        warm: a second one, on the same connection; None if there was none.
        error: why something failed, or None.
        latest: seconds by which the link delivered a packet after its time, at worst.
    """

    seed: int
    connect_seconds: float = 0.0
    connect_bytes: int = 0
    first: Fetch | None = None
    warm: Fetch | None = None
    error: str | None = None
    latest: float = 0.0

    @property
    def fresh_seconds(self) -> float | None:
        """Seconds with connection and first fetch, extrapolated if need be; None if it failed."""
        whole = None if self.first is None else self.first.whole_seconds
        return None if whole is None else self.connect_seconds + whole

    @property
    def fresh_bytes(self) -> float | None:
        """Bytes of both, likewise."""
        whole = None if self.first is None else self.first.whole_bytes
        return None if whole is None else self.connect_bytes + whole

    @property
    def warm_seconds(self) -> float | None:
        """Seconds of the second fetch, likewise."""
        return None if self.warm is None else self.warm.whole_seconds


@attrs.frozen
class Link:
    """One column of weather.

    Attributes:
        rtt_ms: round trip without load, in milliseconds.
        loss_percent: of the packets, in each direction.
        limited: whether the rate is limited; only the base line is not.
    """

    rtt_ms: float
    loss_percent: float
    limited: bool = True

    def __str__(self) -> str:
        """As a person reads it."""
        if not self.limited:
            return "no delay, no limit"
        return f"{self.rtt_ms:g} ms, {self.loss_percent:g} %"


@attrs.define
class Cell:
    """All runs of one transport on one kind of link."""

    link: Link
    transport: str
    runs: list[Run] = attrs.field(factory=list)

    def median(self, read: Callable[[Run], float | None]) -> float | None:
        """Return the median of what `read` gives of the runs; None if that is not known."""
        values = [value for run in self.runs if (value := read(run)) is not None]
        # What was given up before anything had come takes longer than all others.
        values += [math.inf] * sum(run.first is not None and not run.first.share for run in self.runs)
        median = statistics.median(values) if values else math.inf
        return None if math.isinf(median) else median

    @property
    def complete(self) -> bool:
        """Whether every fetch was waited for."""
        fetches = [fetch for run in self.runs for fetch in (run.first, run.warm) if fetch is not None]
        return all(fetch.complete for fetch in fetches)


@attrs.define
class Results:
    """A whole measurement.

    Attributes:
        conditions: what was measured with: versions, link, sizes of the bodies.
        titles: of the transports, by name, in the order of the table.
        cells: what was measured.
    """

    conditions: dict[str, Any] = attrs.field(factory=dict)
    titles: dict[str, str] = attrs.field(factory=dict)
    cells: list[Cell] = attrs.field(factory=list)

    def cell(self, link: Link, transport: str) -> Cell:
        """Return the cell, a new one if there is none yet."""
        for cell in self.cells:
            if cell.link == link and cell.transport == transport:
                return cell
        self.cells.append(Cell(link, transport))
        return self.cells[-1]

    def links(self) -> list[Link]:
        """All kinds of link, in the order of the table: the base line first."""
        found = {cell.link for cell in self.cells}
        return sorted(found, key=lambda link: (link.limited, link.rtt_ms, link.loss_percent))

    def add(self, others: Results) -> None:
        """Take in what another measurement found: of a cell that both have, the other's."""
        for name, title in others.titles.items():
            self.titles.setdefault(name, title)
        for name, value in others.conditions.items():
            self.conditions.setdefault(name, value)
        for cell in others.cells:
            self.cell(cell.link, cell.transport).runs = cell.runs

    def as_json(self) -> dict[str, Any]:
        """As one JSON object, with the medians."""
        return {
            "bench": "bulk",
            "conditions": self.conditions,
            "transports": self.titles,
            "cells": [
                {
                    **attrs.asdict(cell.link),
                    "transport": cell.transport,
                    "median": {
                        "fresh_seconds": cell.median(lambda run: run.fresh_seconds),
                        "warm_seconds": cell.median(lambda run: run.warm_seconds),
                        "fresh_bytes": cell.median(lambda run: run.fresh_bytes),
                    },
                    "runs": [attrs.asdict(run) for run in cell.runs],
                }
                for cell in self.cells
            ],
        }

    @classmethod
    def from_json(cls, value: Any) -> Results:
        """Read what `as_json` made.

        Raises:
            ResultsError: it is something else.
        """
        if not isinstance(value, dict) or value.get("bench") != "bulk":
            raise ResultsError('it has no "bench": "bulk"')
        try:
            results = cls(dict(value["conditions"]), dict(value["transports"]))
            for cell in value["cells"]:
                link = Link(cell["rtt_ms"], cell["loss_percent"], cell["limited"])
                results.cells.append(Cell(link, cell["transport"], [_run(run) for run in cell["runs"]]))
        except (KeyError, TypeError, ValueError) as error:
            raise ResultsError(f"{type(error).__name__}: {error}") from error
        return results


def _run(value: dict[str, Any]) -> Run:
    fetches = {name: Fetch(**value[name]) if value[name] else None for name in ("first", "warm")}
    return Run(**{**value, **fetches})


# Tables

FAILED: Final = "failed"
MISSING: Final = "-"


def tables(results: Results) -> str:
    """All tables, with the goals of the project at the end."""
    limited = [link for link in results.links() if link.limited]
    base = [link for link in results.links() if not link.limited]
    parts = [
        _table(
            results, "Seconds until an initial sync is there, handshake included", limited, _fresh_seconds
        ),
        _table(results, "Seconds for one more on the same connection", limited, _warm_seconds),
        _table(results, "Bytes on the wire, both ways, with the handshake", limited, _fresh_kilobytes),
    ]
    if base:
        parts.append(
            _table(results, "Seconds that the two programs take by themselves", base, _fresh_seconds)
        )
    return "\n".join(part for part in parts if part) + comparison(results)


def _fresh_seconds(cell: Cell) -> str | None:
    return _seconds(cell.median(lambda run: run.fresh_seconds))


def _warm_seconds(cell: Cell) -> str | None:
    return _seconds(cell.median(lambda run: run.warm_seconds))


def _fresh_kilobytes(cell: Cell) -> str | None:
    value = cell.median(lambda run: run.fresh_bytes)
    return None if value is None else f"{value / 1000:,.0f} kB"


def _seconds(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:.2f} s" if value < 99.95 else f"{value:.0f} s"


def _table(results: Results, title: str, links: Sequence[Link], read: Callable[[Cell], str | None]) -> str:
    """One table; empty if it would have no figure."""
    cells = {(cell.link, cell.transport): cell for cell in results.cells}
    rows = []
    for link in links:
        row = [str(link)]
        for name in results.titles:
            cell = cells.get((link, name))
            row.append(MISSING if cell is None else _figure(cell, read))
        rows.append(row)
    if not any(text not in (MISSING, FAILED) for row in rows for text in row[1:]):
        return ""
    return markdown(title, ["RTT, loss", *results.titles.values()], rows)


def _figure(cell: Cell, read: Callable[[Cell], str | None]) -> str:
    text = read(cell)
    failures = sum(run.error is not None for run in cell.runs)
    if text is None:
        waited = [run.first.seconds for run in cell.runs if run.first is not None and not run.first.share]
        if waited:
            return f"> {min(waited):.0f} s"
        return FAILED if failures else MISSING
    if not cell.complete:
        text = f"~{text}"
    return f"{text} ({failures} of {len(cell.runs)} failed)" if failures else text


def markdown(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown that is a table on a screen too: first column left, others right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    texts = []
    for line in lines:
        first, *others = zip(line, widths, strict=True)
        texts.append(" | ".join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]))
    rule = " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join([f"{title}\n", *(f"| {text} |" for text in (texts[0], rule, *texts[1:]))]) + "\n"


GOAL: Final = Link(200, 1)
"""Where the goals of the project are measured."""


def comparison(results: Results) -> str:
    """What the goals ask, in words: Q-Block2 against HTTPS and against Block2; empty if that was not measured."""
    fresh: dict[str, float] = {}
    for cell in results.cells:
        value = cell.median(lambda run: run.fresh_seconds)
        if cell.link == GOAL and value is not None:
            fresh[cell.transport] = value
    ours = fresh.get("q-block2")
    if ours is None:
        return ""
    lines = [
        f"  {other / ours:.1f} times the speed of {results.titles[name]}"
        for name, other in fresh.items()
        if name in results.titles and not name.startswith("q-block2")
    ]
    return f"\nQ-Block2 at {GOAL}, handshake included:\n" + "\n".join(lines) + "\n" if lines else ""
