# SPDX-License-Identifier: AGPL-3.0-or-later
"""The figure of `synapse-lb bench bulk`: seconds over loss, one panel for each round trip, as SVG 1.1.

Written by hand, since a plotting library would be the heaviest dependency of all. The time is logarithmic: the
transports are up to a hundred times apart.
"""

from __future__ import annotations

import math
from typing import Final
from xml.sax.saxutils import escape

import attrs

from synapse_lb.cli.bench_results import Cell, Results

COLOURS: Final = ("#d55e00", "#0072b2", "#56b4e9", "#009e73", "#e69f00", "#cc79a7", "#000000", "#8c6d31")
"""Of Okabe and Ito: apart for those who see colours otherwise, too."""

_PANEL: Final = 250
_HEIGHT: Final = 260
_LEFT: Final = 58
_TOP: Final = 42
_GAP: Final = 22
_LINE: Final = 18


@attrs.frozen
class _Scale:
    """Logarithmic: seconds to pixels from the top."""

    low: float
    high: float

    @classmethod
    def around(cls, values: list[float]) -> _Scale:
        low = math.floor(math.log10(min(values)) * 2) / 2
        return cls(low, max(math.ceil(math.log10(max(values)) * 2) / 2, low + 0.5))

    def y(self, seconds: float) -> float:
        return _TOP + _HEIGHT * (1 - (math.log10(seconds) - self.low) / (self.high - self.low))

    def ticks(self) -> list[float]:
        found = []
        for exponent in range(math.floor(self.low), math.ceil(self.high) + 1):
            for factor in (1, 2, 5):
                value = factor * 10.0**exponent
                if self.low - 1e-9 <= math.log10(value) <= self.high + 1e-9:
                    found.append(value)
        return found


def figure(results: Results) -> str:
    """Draw it.

    Returns:
        The SVG; an empty string if there is nothing to draw.
    """
    points = {
        (cell.link.rtt_ms, cell.link.loss_percent, cell.transport): seconds
        for cell in results.cells
        if cell.link.limited and (seconds := _seconds(cell)) is not None
    }
    if not points:
        return ""
    scale = _Scale.around(list(points.values()))
    rtts = sorted({rtt for rtt, _, _ in points})
    losses = sorted({loss for _, loss, _ in points})
    drawn = [name for name in results.titles if any(transport == name for _, _, transport in points)]
    width = _LEFT + len(rtts) * (_PANEL + _GAP)
    height = _TOP + _HEIGHT + 52 + _LINE * ((len(drawn) + 1) // 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        label(14, _TOP + _HEIGHT / 2, "seconds, handshake included", "middle", turned=True),
    ]
    for number, rtt in enumerate(rtts):
        parts += _axes(number, rtt, losses, scale)
        for name in drawn:
            line = [(loss, points[rtt, loss, name]) for loss in losses if (rtt, loss, name) in points]
            parts += _line(number, line, losses, scale, _colour(results, name))
    parts += _legend(results, drawn)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _seconds(cell: Cell) -> float | None:
    return cell.median(lambda run: run.fresh_seconds)


def _colour(results: Results, name: str) -> str:
    return COLOURS[list(results.titles).index(name) % len(COLOURS)]


def _x(number: int, loss: float, losses: list[float]) -> float:
    left = _LEFT + number * (_PANEL + _GAP)
    return left + _PANEL * (losses.index(loss) + 0.5) / len(losses)


def _axes(number: int, rtt: float, losses: list[float], scale: _Scale) -> list[str]:
    left = _LEFT + number * (_PANEL + _GAP)
    parts = [
        f'<rect x="{left}" y="{_TOP}" width="{_PANEL}" height="{_HEIGHT}" fill="none" stroke="#888888"/>',
        label(left + _PANEL / 2, _TOP - 12, f"RTT {rtt:g} ms", "middle"),
    ]
    for tick in scale.ticks():
        y = scale.y(tick)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + _PANEL}" y2="{y:.1f}" stroke="#dddddd"/>')
        if number == 0:
            parts.append(label(left - 6, y + 4, f"{tick:g}", "end"))
    for loss in losses:
        parts.append(label(_x(number, loss, losses), _TOP + _HEIGHT + 18, f"{loss:g} % loss", "middle"))
    return parts


def _line(
    number: int, points: list[tuple[float, float]], losses: list[float], scale: _Scale, colour: str
) -> list[str]:
    places = [(_x(number, loss, losses), scale.y(seconds)) for loss, seconds in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in places]
    return parts


def _legend(results: Results, names: list[str]) -> list[str]:
    parts = []
    for number, name in enumerate(names):
        x = _LEFT + (number % 2) * (_PANEL + _GAP)
        y = _TOP + _HEIGHT + 48 + (number // 2) * _LINE
        colour = _colour(results, name)
        parts.append(
            f'<line x1="{x}" y1="{y - 4}" x2="{x + 24}" y2="{y - 4}" stroke="{colour}" stroke-width="3"/>'
        )
        parts.append(label(x + 32, y, results.titles[name], "start"))
    return parts


def label(x: float, y: float, text: str, anchor: str, turned: bool = False) -> str:
    """Some text of a figure; turned, it is read from below."""
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#222222"{turn}>{escape(text)}</text>'
