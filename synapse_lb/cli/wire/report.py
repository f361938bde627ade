# SPDX-License-Identifier: AGPL-3.0-or-later
"""The figures as a table, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import attrs

from synapse_lb.cli.https_meter import Wire
from synapse_lb.cli.wire import explain
from synapse_lb.cli.wire.dissect import Datagram
from synapse_lb.cli.wire.goals import Verdict
from synapse_lb.cli.wire.operations import CIPHERTEXT_LENGTH, OPERATIONS, Operation, Sizes
from synapse_lb.cli.wire.scene import CERTIFICATE_LENGTH, ROOM_ID_LENGTH, TOKEN_LENGTH
from synapse_lb.client.counters import Traffic

HTTPS_TITLES: Final = {"https": "HTTPS, JSON", "gzip": "HTTPS, gzip"}

CONDITIONS: Final = (
    f"Room ids of {ROOM_ID_LENGTH} characters (room version 12), access tokens of {TOKEN_LENGTH}, a self-signed P-256 "
    f"certificate of {CERTIFICATE_LENGTH} bytes, transaction ids of one character, ciphertexts of {CIPHERTEXT_LENGTH}; "
    "presence is off. Bytes are those of IP packets, with all headers and acknowledgements; packets are both ways "
    "together. CoAP: 28 bytes of IPv4 and UDP in each datagram; handshakes with their cookie are counted. HTTPS: "
    "HTTP/1.1 and TLS 1.3 on one connection kept alive, segments as on an Ethernet, counted by the kernel. Closing is "
    "not counted."
)


@attrs.frozen
class Column:
    """One way to travel.

    Attributes:
        name: in `--json`.
        title: above the column.
        figures: key of each operation that it has, and what it took.
    """

    name: str
    title: str
    figures: Mapping[str, Traffic | Wire]


@attrs.frozen
class Report:
    """All that was measured.

    Attributes:
        synapse: its version.
        sizes: how much there was to fetch.
        columns: CoAP's modes first.
        verdicts: which goals are reached.
        datagrams: of each mode and operation, if they are to be explained.
    """

    synapse: str
    sizes: Sizes
    columns: Sequence[Column]
    verdicts: Sequence[Verdict]
    datagrams: Mapping[str, Mapping[str, Sequence[Datagram]]] = attrs.field(factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        parts = {mode: explain.as_json(figures) for mode, figures in self.datagrams.items()}
        return {
            "synapse": self.synapse,
            "conditions": CONDITIONS,
            "operations": [
                {"operation": operation.key, "title": operation.title_with(self.sizes)}
                | {column.name: _as_json(column.figures.get(operation.key)) for column in self.columns}
                for operation in OPERATIONS
            ],
            "goals": [attrs.asdict(verdict) for verdict in self.verdicts],
        } | ({"parts": parts} if parts else {})

    def table(self) -> str:
        """For a screen."""
        title = max(len(operation.title_with(self.sizes)) for operation in OPERATIONS)
        upper, lower = " " * title, " " * title
        for column in self.columns:
            coap = any(isinstance(each, Traffic) for each in column.figures.values())
            upper += f"  {column.title:>{_WIDE if coap else _NARROW}}"
            lower += (
                f"  {'packets':>7}" + f"{'out':>8} + {'back':>7} = " * coap + f"{'bytes':>{7 if coap else 9}}"
            )
        lines = [upper.rstrip(), lower, "─" * len(lower)]
        for operation in OPERATIONS:
            lines.append(f"{operation.title_with(self.sizes):<{title}}" + "".join(self._cells(operation)))
        return "\n".join(lines) + "\n\n" + self.goals()

    def _cells(self, operation: Operation) -> Iterator[str]:
        for column in self.columns:
            figure = column.figures.get(operation.key)
            if isinstance(figure, Traffic):
                ways = f"{figure.ip_bytes_sent:>8,} + {figure.ip_bytes_received:>7,} = {_bytes(figure):>7,}"
                yield f"  {_packets(figure):>7}{ways}"
            elif figure is not None:
                yield f"  {figure.packets:>7}{figure.bytes:>9,}"
            else:
                yield f"  {'-':>7}{'-':>9}"

    def markdown(self) -> str:
        """For a document."""
        head = "| operation |" + "".join(f" {column.title} |" for column in self.columns)
        rule = "|---|" + "---:|" * len(self.columns)
        lines = [head, rule]
        for operation in OPERATIONS:
            cells = [_cell(column.figures.get(operation.key)) for column in self.columns]
            lines.append(f"| {operation.title_with(self.sizes)} | " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"

    def explanation(self) -> str:
        """What the bytes are for, if that was asked for."""
        titles = {column.name: column.title for column in self.columns}
        return "\n".join(
            explain.explained(titles[mode], figures, self.sizes) for mode, figures in self.datagrams.items()
        )

    def goals(self) -> str:
        """Which goals are reached."""
        return "".join(verdict.line() + "\n" for verdict in self.verdicts)


_NARROW: Final = 16
_WIDE: Final = 35


def _packets(figure: Traffic) -> int:
    return figure.datagrams_sent + figure.datagrams_received


def _bytes(figure: Traffic) -> int:
    return figure.ip_bytes_sent + figure.ip_bytes_received


def _cell(figure: Traffic | Wire | None) -> str:
    if figure is None:
        return "-"
    if isinstance(figure, Wire):
        return f"{figure.packets} / {figure.bytes:,}"
    return (
        f"{_packets(figure)} / {figure.ip_bytes_sent:,} + {figure.ip_bytes_received:,} = {_bytes(figure):,}"
    )


def _as_json(figure: Traffic | Wire | None) -> dict[str, Any] | None:
    if figure is None:
        return None
    if isinstance(figure, Wire):
        return attrs.asdict(figure)
    return {
        "packets": _packets(figure),
        "packets_sent": figure.datagrams_sent,
        "packets_received": figure.datagrams_received,
        "bytes": _bytes(figure),
        "bytes_sent": figure.ip_bytes_sent,
        "bytes_received": figure.ip_bytes_received,
    }
