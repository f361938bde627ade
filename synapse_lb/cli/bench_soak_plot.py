# SPDX-License-Identifier: AGPL-3.0-or-later
"""The figure of `synapse-lb bench soak`: what was sampled over time, one panel below the other, as SVG 1.1."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import attrs

from synapse_lb.cli.bench_plot import COLOURS, label
from synapse_lb.cli.bench_soak_verdict import Sample, Story, judged, line_through

_WIDTH: Final = 760
_HEIGHT: Final = 130
_LEFT: Final = 64
_TOP: Final = 34
_GAP: Final = 34

_Value = Callable[[Sample], float]


@attrs.frozen
class _Panel:
    """One panel with its lines; a fitted line is drawn through the first if it is judged."""

    title: str
    lines: tuple[tuple[str, _Value], ...]
    fitted: bool = False


_PANELS: Final = (
    _Panel("resident memory, MiB", (("", lambda each: each.rss / 2**20),), fitted=True),
    _Panel("Python heap, thousand blocks", (("", lambda each: each.blocks / 1000),), fitted=True),
    _Panel(
        "clients",
        (
            ("associations", lambda each: each.associations),
            ("observations", lambda each: each.observations),
            ("peers of CoAP", lambda each: each.peers),
        ),
    ),
    _Panel(
        "open",
        (
            ("file descriptors", lambda each: each.descriptors),
            ("delayed calls", lambda each: each.delayed_calls),
            ("exchanges without observations", lambda each: max(0, each.exchanges - each.observations)),
        ),
    ),
    _Panel(
        "bodies, KiB",
        (
            ("half received", lambda each: each.reassembly_bytes / 1024),
            ("being fetched", lambda each: each.snapshot_bytes / 1024),
        ),
    ),
)


def figure(story: Story) -> str:
    """Draw it.

    Returns:
        The SVG; an empty string if there is nothing to draw.
    """
    if len(story.samples) < 2:
        return ""
    width, height = _LEFT + _WIDTH + 20, _TOP + len(_PANELS) * (_HEIGHT + _GAP) + 20
    last = story.samples[-1].at
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for number, panel in enumerate(_PANELS):
        parts += _draw(panel, _TOP + number * (_HEIGHT + _GAP), story, last)
    parts.append(label(_LEFT + _WIDTH / 2, height - 6, "minutes since the first client", "middle"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _draw(panel: _Panel, top: float, story: Story, last: float) -> list[str]:
    values = [value(sample) for _, value in panel.lines for sample in story.samples]
    low = min(values) * 0.9 if panel.fitted else 0.0
    step = _step((max(values) * 1.05 - low) or 1.0)
    low = math.floor(low / step) * step
    high = max(low + step, math.ceil(max(values) * 1.02 / step) * step)

    def place(at: float, value: float) -> str:
        x = _LEFT + _WIDTH * at / last
        return f"{x:.1f},{top + _HEIGHT * (1 - (value - low) / (high - low)):.1f}"

    parts = [
        f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#888888"/>',
        label(_LEFT, top - 8, panel.title, "start"),
    ]
    parts += _grid(top, low, high, step, last)
    for number, (name, value) in enumerate(panel.lines):
        points = " ".join(place(sample.at, value(sample)) for sample in story.samples)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{COLOURS[number]}" stroke-width="1.5"/>'
        )
        if name:
            parts += _legend(number, name, top)
    if panel.fitted:
        parts += _fit(panel.lines[0][1], story, place)
    return parts


def _fit(value: _Value, story: Story, place: Callable[[float, float], str]) -> list[str]:
    samples = judged(story)
    line = line_through([(sample.at, value(sample)) for sample in samples])
    if line is None:
        return []
    begin, end = samples[0].at, samples[-1].at
    points = f"{place(begin, line.begin)} {place(end, line.begin + line.slope * line.span)}"
    return [f'<polyline points="{points}" fill="none" stroke="{COLOURS[1]}" stroke-width="3" opacity="0.6"/>']


def _grid(top: float, low: float, high: float, step: float, last: float) -> list[str]:
    parts = []
    for number in range(round((high - low) / step) + 1):
        value = low + number * step
        y = top + _HEIGHT * (1 - (value - low) / (high - low))
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_LEFT + _WIDTH}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(label(_LEFT - 6, y + 4, f"{value:,g}", "end"))
    step = _step(last / 60)
    for number in range(math.floor(last / 60 / step) + 1):
        x = _LEFT + _WIDTH * number * step * 60 / last
        parts.append(label(x, top + _HEIGHT + 15, f"{number * step:g}", "middle"))
    return parts


def _legend(number: int, name: str, top: float) -> list[str]:
    x, y = _LEFT + _WIDTH - 600 + number * 200, top - 12
    return [
        f'<line x1="{x}" y1="{y}" x2="{x + 18}" y2="{y}" stroke="{COLOURS[number]}" stroke-width="3"/>',
        label(x + 24, y + 4, name, "start"),
    ]


def _step(span: float) -> float:
    """A round number of which about four make the span."""
    raw = span / 4
    power: float = 10.0 ** math.floor(math.log10(raw))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= raw), 10 * power)


def samples_as_json(samples: Sequence[Sample]) -> list[dict[str, float]]:
    """The samples as JSON has them."""
    return [attrs.asdict(sample) for sample in samples]
