# SPDX-License-Identifier: AGPL-3.0-or-later
"""As much of PromQL as the dashboard and the alerts use: which metrics and labels a query names."""

from __future__ import annotations

import re
from typing import Final

from attrs import frozen

_WORDS: Final = frozenset({"by", "sum", "min", "max", "rate", "time", "label_values"})
_TOKEN: Final = re.compile(
    r"""\s+|(?P<range>\[[^\]]*\])|(?P<selector>\{[^}]*\})|(?P<name>[A-Za-z_:][A-Za-z0-9_:]*)|"""
    r"""(?P<number>[0-9][0-9.]*)|(?P<sign>[()<>=*/+,-])"""
)
_MATCHER: Final = re.compile(r'([a-z_]+)(=~|!~|!=|=)"([^"]*)"')


@frozen
class Query:
    """What a query names.

    Attributes:
        metrics: The metrics.
        labels: Labels that it selects by or sums by.
    """

    metrics: frozenset[str]
    labels: frozenset[str]


def parse(text: str) -> Query:
    """Read a query.

    Raises:
        ValueError: It is none, or more than this reads.
    """
    metrics, labels = set(), set()
    place, depth, grouping = 0, 0, False
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            raise ValueError(f"{text!r} cannot be read from {text[place:]!r} on")
        place = found.end()
        name = found["name"]
        if found["selector"]:
            labels |= _selected(found["selector"])
        elif name == "by":
            grouping = True
        elif name and grouping:
            labels.add(name)
        elif name and name not in _WORDS:
            metrics.add(name)
        elif found["sign"]:
            depth += {"(": 1, ")": -1}.get(found["sign"], 0)
            grouping = grouping and found["sign"] != ")"
            if depth < 0:
                break
    if depth:
        raise ValueError(f"{text!r} has unbalanced parentheses")
    return Query(frozenset(metrics), frozenset(labels))


def _selected(selector: str) -> set[str]:
    inner = selector[1:-1]
    matchers = _MATCHER.findall(inner)
    if ",".join(f'{label}{sign}"{value}"' for label, sign, value in matchers) != inner:
        raise ValueError(f"{selector} is no selector")
    return {label for label, _, _ in matchers}
