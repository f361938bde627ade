# SPDX-License-Identifier: AGPL-3.0-or-later
"""Heads of CBOR's items (RFC 8949 section 3), and how maps with the same keys are written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from operator import itemgetter
from typing import Any, Final

import attrs

from synapse_lb.msc3079.keys_v1 import KEY_TO_INTEGER, KEY_VERSION_1

UNSIGNED: Final = 0x00
NEGATIVE: Final = 0x20
TEXT: Final = 0x60
ARRAY: Final = 0x80
MAP: Final = 0xA0
TAG: Final = 0xC0
SIMPLE_OR_FLOAT: Final = 0xE0
"""Major types, in the place that they have in an initial byte (RFC 8949 section 3.1)."""


def head(major: int, argument: int) -> bytes:
    """The initial byte and argument of an item (RFC 8949 section 3)."""
    if argument < 24:
        return bytes((major | argument,))
    if argument < 0x100:
        return bytes((major | 24, argument))
    if argument < 0x10000:
        return bytes((major | 25,)) + argument.to_bytes(2, "big")
    if argument < 0x100000000:
        return bytes((major | 26,)) + argument.to_bytes(4, "big")
    return bytes((major | 27,)) + argument.to_bytes(8, "big")


SHORT: Final = 256
_KEYS_V1: Final = {key: head(UNSIGNED, integer) for key, integer in KEY_TO_INTEGER.items()}


def written(data: bytes) -> str:
    """Bytes as characters, of which each stands for one byte; `Encoder.encode` says why."""
    return data.decode("latin-1")


_MAP_HEADS: Final = tuple(written(head(MAP, length)) for length in range(SHORT))

Shape = tuple[Any, ...]
"""The keys of a map, in its own order."""

Values = Callable[[dict[Any, Any]], Iterable[Any]]
"""Takes the values from a map."""

MAX_SHAPES: Final = 1024
MAX_SHAPE_KEYS: Final = 64
MAX_SHAPE_CHARACTERS: Final = 2048
"""Bounds of what `Shapes` keeps: 1,024 shapes of so many keys with so many characters, 10 MB at the worst."""


_SIGILS: Final = frozenset("!$@#+")


def names_something(shape: Iterable[Any]) -> bool:
    """Whether the keys of a map seem to be identifiers of rooms, events, users, so that hardly another map has them."""
    key = next(iter(shape), None)
    return type(key) is str and key[:1] in _SIGILS


def map_head(length: int) -> str:
    """The head of a map of so many pairs."""
    return _MAP_HEADS[length] if length < SHORT else written(head(MAP, length))


@attrs.frozen(eq=False)
class Plan:
    """How maps with the same keys are written.

    Attributes:
        keys: What stands before each value, in the order of writing; the first begins with the map's head.
        names: The keys as they are in the map, in that order.
        values: Takes the values in that order.
    """

    keys: tuple[str, ...]
    names: tuple[str, ...]
    values: Values


class Shapes:
    """The plans of maps that were written before: most maps of Matrix have the keys of some other one.

    When there are `MAX_SHAPES`, all are forgotten. Those of maps with many or long keys, or keys that are not ASCII or
    identifiers, are not kept.

    Args:
        keys: The keys that have an encoding of their own.
        canonical: Whether keys are sorted.
    """

    def __init__(self, keys: Mapping[str, bytes], canonical: bool) -> None:
        self._keys = keys
        self._canonical = canonical
        self.plans: dict[Shape, Plan] = {}

    def plan(self, shape: Shape, utf8: Callable[[str], bytes]) -> Plan:
        """Make the plan of a shape that has none.

        Args:
            shape: Texts, one at least.
            utf8: Encodes a key.
        """
        entries = []
        for key in shape:
            encoded = self._keys.get(key)
            if encoded is None:
                content = utf8(key)
                encoded = head(TEXT, len(content)) + content
            entries.append((encoded, key))
        if self._canonical:
            entries.sort(key=_key_order)
        first, *others = (written(encoded) for encoded, _ in entries)
        names = tuple(key for _, key in entries)
        values: Values = itemgetter(*names) if others else dict.values  # itemgetter of one gives no tuple
        plan = Plan((map_head(len(shape)) + first, *others), names, values)
        if len(shape) <= MAX_SHAPE_KEYS and not names_something(shape):
            together = "".join(shape)
            if len(together) <= MAX_SHAPE_CHARACTERS and together.isascii():
                if len(self.plans) >= MAX_SHAPES:
                    self.plans.clear()
                self.plans[shape] = plan
        return plan

    def have_no_integers(self, names: Collection[Any]) -> bool:
        """Whether keys are ASCII, each of them, and none has an encoding of its own."""
        return (
            set(map(type, names)) <= {str}
            and "".join(names).isascii()
            and self._keys.keys().isdisjoint(names)
        )

    def sorted_names(self, names: Iterable[str]) -> list[str]:
        """The keys of a map in the order of writing, if they are such."""
        ordered = list(names)
        if self._canonical and len(ordered) > 1:
            ordered.sort()
            ordered.sort(key=len)
        return ordered


def _key_order(item: tuple[bytes, Any]) -> tuple[int, bytes]:
    return len(item[0]), item[0]


SHAPES: Final = {
    (version, canonical): Shapes(keys, canonical)
    for version, keys in ((None, {}), (KEY_VERSION_1, _KEYS_V1))
    for canonical in (False, True)
}
"""For each version of the integer keys, None for text keys, with keys in their own order and sorted."""
