# SPDX-License-Identifier: AGPL-3.0-or-later
"""How `synapse-lb demo` shows what it measured: a table of at most 100 columns, or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import attrs

from synapse_lb.cli.https_meter import Wire

WIDTH: Final = 98
"""Columns that the table takes."""

_BOLD: Final = "1"
_DIM: Final = "2"
_GREEN: Final = "32"


@attrs.frozen
class Row:
    """One line of the table.

    Attributes:
        who: the user.
        request: method and path, short.
        does: what it is for.
        status: HTTP status; None for a handshake.
        coap: what it took over CoAP and DTLS.
        https: what it took over HTTPS; None if this system cannot tell.
    """

    who: str
    request: str
    does: str
    status: int | None
    coap: Wire
    https: Wire | None

    @property
    def saved(self) -> float | None:
        """The part of HTTPS's bytes that CoAP did not need (0.6: it took 40 %)."""
        if self.https is None or not self.https.bytes:
            return None
        return 1 - self.coap.bytes / self.https.bytes

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "user": self.who,
            "request": self.request,
            "description": self.does,
            "status": self.status,
            "coap": attrs.asdict(self.coap),
            "https": None if self.https is None else attrs.asdict(self.https),
            "saved": None if self.saved is None else round(self.saved, 4),
        }


def total(rows: Sequence[Row], request: str = "total") -> Row:
    """The sum of rows."""
    coap = sum((row.coap for row in rows), Wire())
    https: Wire | None = Wire()
    for row in rows:
        https = None if https is None or row.https is None else https + row.https
    return Row("", request, "", None, coap, https)


class Painter:
    """Lines of text, coloured if somebody looks at them.

    Args:
        colour: whether to use ANSI colours.
    """

    def __init__(self, colour: bool) -> None:
        self._colour = colour

    def header(self) -> str:
        """The two lines above the table."""
        upper = f"{'':<58}{'CoAP over DTLS':>14}  {'JSON over HTTPS':>15}"
        names = f"{'who':<6} {'request':<30} {'':<12} {'status':>6} "
        columns = f"{'bytes':>8}{'packets':>8} {'bytes':>8}{'packets':>8} {'saved':>6}"
        rule = "─" * WIDTH
        return f"{self._paint(_BOLD, upper)}\n{self._paint(_BOLD, names + columns)}\n{rule}\n"

    def line(self, row: Row) -> str:
        """One line of the table."""
        status = "" if row.status is None else str(row.status)
        return f"{row.who:<6} {row.request:<43} {status:>6} {self._numbers(row)}\n"

    def footer(self, rows: Sequence[Row]) -> str:
        """The totals."""
        handshakes = [row for row in rows if row.status is None]
        requests = [row for row in rows if row.status is not None]
        lines = [
            total(requests, f"{len(requests)} requests"),
            total(handshakes, f"{len(handshakes)} handshakes"),
            total(rows),
        ]
        text = "".join(f"{'':<6} {row.request:<43} {'':>6} {self._numbers(row)}\n" for row in lines)
        return "─" * WIDTH + "\n" + self._paint(_BOLD, text.rstrip("\n")) + "\n"

    def note(self, text: str) -> str:
        """A line that explains."""
        return self._paint(_DIM, text) + "\n"

    def _numbers(self, row: Row) -> str:
        coap = f"{row.coap.bytes:>8,}{row.coap.packets:>8}"
        if row.https is None or row.saved is None:
            return f"{coap} {'-':>8}{'-':>8} {'-':>6}"
        saved = self._paint(_GREEN if row.saved > 0 else _DIM, f"{row.saved:>6.0%}")
        return f"{coap} {row.https.bytes:>8,}{row.https.packets:>8} {saved}"

    def _paint(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colour else text
