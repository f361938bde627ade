# SPDX-License-Identifier: AGPL-3.0-or-later
"""Many values at once: those of one key of many maps are a column, which is written by few steps of C.

In the loop of `cbor_encoder` each value costs some steps of Python's interpreter. Where there are many values side
by side - the events of all rooms of a sync - they are sorted by type and, maps, by their keys; then the values of
each key are taken together, whatever map they are from, and written in the same way: texts by one `join`, one
`encode` and a look at their lengths, maps by the columns of their values, arrays as one array of all their items,
which is divided afterwards. At last the pieces of each row are joined.

Each value is in at most `DEEPEST` columns, one in another, and then written by the loop. So what is written is copied
so often at most, and recursion ends. Columns of few values are left to the loop, so that no column costs much more
than its values do there, whatever a peer chooses.
"""

from __future__ import annotations

import re
import struct
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice, repeat
from operator import add, itemgetter
from typing import Any, Final, cast

from synapse_lb.msc3079.cbor_scalars import (
    CONSTANTS,
    EMPTY_ARRAY,
    MAX_INTEGER,
    SMALL,
    TEXT_HEADS,
    WIDE,
    Scalars,
    array_head,
    plain_value,
    text_head,
    text_key,
)
from synapse_lb.msc3079.cbor_shapes import (
    SHORT,
    Plan,
    Shape,
    Shapes,
    map_head,
    names_something,
    written,
)

FEW: Final = 6
"""Values below which a column is written by the loop."""

DEEPEST: Final = 12
"""Columns, one in another; the events of a sync are in the fifth, and have four more."""

ALIKE: Final = 12
"""Maps with the same keys below which, among others, they are written by the loop: each of their columns is short."""

WIDEST: Final = 4096
"""Items of several arrays or maps that become one column; more become several."""

Parts = list["str | Iterable[str]"]
"""What each row consists of: pieces that all have, and columns of pieces."""

_pairs: Final = zip
_NAMED: Final = Plan((), (), dict.values)
"""Stands for the plans of maps whose keys are identifiers."""

_OTHERS: Final = Plan((), (), dict.values)
"""Stands for the plans of maps that are written by the loop."""

_EIGHT: Final = re.compile("(?s).{8}").findall
_LONG: Final = written(WIDE[64][0].to_bytes(1, "big"))


class Columns(Scalars, ABC):
    """Writes columns.

    Args:
        lossy: As in `cbor.encode`.
        shapes: Plans of maps.
    """

    def __init__(self, lossy: bool, shapes: Shapes) -> None:
        self._lossy = lossy
        self._shapes = shapes

    @abstractmethod
    def _each(self, values: list[Any], depth: int) -> list[str]:
        """Write one value after another.

        Args:
            values: The values.
            depth: Columns that these values are in already; from `DEEPEST` on they get into no other.

        Returns:
            What is written of each.
        """

    def _column(self, values: list[Any], depth: int) -> list[str]:
        """Write values of any kind.

        Args:
            values: The values.
            depth: As in `_each`, this column included.

        Returns:
            What is written of each.
        """
        if len(values) < FEW:
            return self._each(values, depth)
        return _rows(self._parts(values, depth), len(values))

    def _parts(self, values: list[Any], depth: int) -> Parts:
        kinds = set(map(type, values))
        if len(kinds) > 1:
            return [self._assorted(values, depth)]
        (kind,) = kinds
        if kind is str:
            return self._texts(values, depth)
        if kind is int:
            return self._integers(values, depth)
        if kind is bool:
            return [map(CONSTANTS.__getitem__, values)]
        if values[0] is None:
            return [CONSTANTS[None]]
        if depth > DEEPEST or kind is float:
            return [self._each(values, depth)]
        if kind is dict:
            return self._maps(values, depth)
        if kind is list:
            return [self._arrays(values, depth)]
        return self._parts(list(map(plain_value, values)), depth)

    def _assorted(self, values: list[Any], depth: int) -> Iterator[str]:
        """Values of several types."""
        groups: dict[type, list[Any]] = {}
        for value in values:
            groups.setdefault(type(value), []).append(value)
        sources = {kind: iter(self._column(group, depth)) for kind, group in groups.items()}
        return map(next, map(sources.__getitem__, map(type, values)))

    def _texts(self, texts: list[str], depth: int) -> Parts:
        first = texts[0]
        if texts[-1] == first and texts.count(first) == len(texts):
            return [self._long_text(first)]
        joined = "\0".join(texts)
        if not joined.isascii():
            try:
                utf8 = written(joined.encode()).split("\0")
            except UnicodeEncodeError:
                return [self._each(texts, depth)]
            if len(utf8) != len(texts):  # some have a NUL
                return [self._each(texts, depth)]
            texts = utf8
        lengths = list(map(len, texts))
        longest = max(lengths)
        if longest >= SHORT:
            return [map(text_head, lengths), texts]
        return [
            TEXT_HEADS[longest] if min(lengths) == longest else map(TEXT_HEADS.__getitem__, lengths),
            texts,
        ]

    def _integers(self, integers: list[int], depth: int) -> Parts:
        least, most = min(integers), max(integers)
        if least < 0 or most > MAX_INTEGER:
            return [self._each(integers, depth)]
        if most < SHORT:
            return [SMALL[least] if least == most else map(SMALL.__getitem__, integers)]
        if least >= 1 << 32:
            return [_LONG, _EIGHT(written(struct.pack(f">{len(integers)}Q", *integers)))]
        if least >= SHORT:
            wide = map(WIDE.__getitem__, map(int.bit_length, integers))
            return [
                [form(initial, value).decode("latin-1") for value, (initial, form) in _pairs(integers, wide)]
            ]
        large = self._large
        return [[SMALL[value] if value < SHORT else large(value) for value in integers]]

    # Containers

    def _arrays(self, arrays: list[list[Any]], depth: int) -> list[str]:
        lengths = list(map(len, arrays))
        if sum(lengths) > WIDEST and len(arrays) > 1:
            return list(chain.from_iterable(self._arrays(some, depth) for some in _portions(arrays, lengths)))
        items = iter(self._column(list(chain.from_iterable(arrays)), depth + 1))
        return [
            array_head(length) + "".join(islice(items, length)) if length else EMPTY_ARRAY
            for length in lengths
        ]

    def _maps(self, maps: list[dict[Any, Any]], depth: int) -> Parts:
        shapes = list(map(tuple, maps))
        if shapes.count(shapes[0]) == len(shapes):
            return self._alike(self._some_plan(shapes[0], len(shapes)), maps, depth)
        found = list(map(self._shapes.plans.get, shapes))
        if None in found:
            others = {shape: self._some_plan(shape, count) for shape, count in Counter(shapes).items()}
            plans = [others[shape] for shape in shapes]
        else:
            plans = cast("list[Plan]", found)
        groups: dict[Plan, list[dict[Any, Any]]] = {}
        for plan, items in _pairs(plans, maps):
            if plan in groups:
                groups[plan].append(items)
            else:
                groups[plan] = [items]
        rare = {plan for plan, group in groups.items() if plan is not _NAMED and len(group) < ALIKE}
        if rare:
            plans = [_OTHERS if plan in rare else plan for plan in plans]
            for plan in rare:
                del groups[plan]
            groups[_OTHERS] = [items for plan, items in _pairs(plans, maps) if plan is _OTHERS]
        sources = {
            plan: iter(_rows(self._alike(plan, group, depth), len(group))) for plan, group in groups.items()
        }
        return [map(next, map(sources.__getitem__, plans))]

    def _some_plan(self, shape: Shape, count: int) -> Plan:
        """The plan of so many maps; a new one is made for many."""
        plan = self._shapes.plans.get(shape)
        if plan is not None:
            return plan
        if names_something(shape):
            return _NAMED
        if not shape or count < ALIKE or any(type(key) is not str for key in shape):
            return _OTHERS
        return self._shapes.plan(shape, self._utf8)

    def _alike(self, plan: Plan, maps: list[dict[Any, Any]], depth: int) -> Parts:
        """Maps with one plan."""
        if plan is _NAMED:
            return [self._named(maps, depth)]
        if plan is _OTHERS:
            return [self._each(maps, depth)]
        parts: Parts = []
        for prefix, name in _pairs(plan.keys, plan.names):
            parts.append(prefix)
            parts += self._parts(list(map(itemgetter(name), maps)), depth + 1)
        return parts

    def _named(self, maps: list[dict[Any, Any]], depth: int) -> list[str]:
        """Maps whose keys are identifiers, hardly ever the same: all keys are a column, and all values are one."""
        lengths = list(map(len, maps))
        if sum(lengths) > WIDEST and len(maps) > 1:
            return list(chain.from_iterable(self._named(some, depth) for some in _portions(maps, lengths)))
        heads: Iterable[str] = map(map_head, lengths)
        names: list[Any] = list(chain.from_iterable(maps))
        values: list[Any] = []
        if self._shapes.have_no_integers(names):
            names.clear()
            for items in maps:
                own = self._shapes.sorted_names(items)
                names += own
                values += map(items.__getitem__, own)
            prefixes = _rows(self._texts(names, depth), len(names))
        else:
            plans = [self._plan(items) for items in maps]
            heads = repeat("")
            lengths = [len(plan.keys) for plan, _ in plans]
            prefixes = list(chain.from_iterable(plan.keys for plan, _ in plans))
            values += chain.from_iterable(plan.values(items) for plan, items in plans)
        written_ = map(add, prefixes, self._column(values, depth + 1))
        return [start + "".join(islice(written_, length)) for start, length in _pairs(heads, lengths)]

    def _plan(self, items: dict[Any, Any]) -> tuple[Plan, dict[str, Any]]:
        """How a map is written that has keys, but may have no plan yet; and the map with these keys as text."""
        if not all(type(key) is str for key in items):
            items = {text_key(key): value for key, value in items.items()}
        shape = tuple(items)
        return self._shapes.plans.get(shape) or self._shapes.plan(shape, self._utf8), items


def _rows(parts: Parts, count: int) -> list[str]:
    """Join the pieces of each row.

    Args:
        parts: The pieces.
        count: Of the rows.
    """
    columns: list[Iterable[str]] = []
    common: list[str] = []
    for part in parts:
        if type(part) is str:
            common.append(part)
        else:
            if common:
                columns.append(repeat("".join(common)))
                common = []
            columns.append(part)
    if not columns:
        return ["".join(common)] * count
    if common:
        columns.append(repeat("".join(common)))
    return list(map("".join, _pairs(*columns))) if len(columns) > 1 else list(columns[0])


def _portions(items: list[Any], lengths: list[int]) -> Iterator[list[Any]]:
    """Divide arrays or maps so that those of a portion have `WIDEST` items together, or it is one."""
    start = total = 0
    for place, length in enumerate(lengths):
        total += length
        if total > WIDEST and place > start:
            yield items[start:place]
            start, total = place, length
    yield items[start:]
