# SPDX-License-Identifier: AGPL-3.0-or-later
"""JSON values as CBOR (RFC 8949), with the integer keys of MSC3079.

In one pass over an explicit stack, which hands what is long to `cbor_columns`: no depth and no choice of keys by a peer
makes it recurse on the C stack, or work more than the bytes themselves are worth.

Canonical output is that of RFC 7049 section 3.9, which is what deployed clients produce: shortest heads and
floats, definite lengths, keys sorted by the length of their encoding and then bytewise (RFC 8949 section
4.2.3 calls it length-first).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import Any, Final

from synapse_lb.msc3079.cbor_columns import DEEPEST, Columns
from synapse_lb.msc3079.cbor_scalars import (
    CONSTANTS,
    EMPTY_ARRAY,
    EMPTY_MAP,
    SMALL,
    TEXT_HEADS,
    array_head,
    plain_value,
    text_head,
)
from synapse_lb.msc3079.cbor_shapes import SHAPES, SHORT, map_head, names_something, written
from synapse_lb.msc3079.errors import CborError
from synapse_lb.msc3079.keys_v1 import KEY_VERSION_1

MAX_ENCODE_DEPTH: Final = 100_000
"""Levels at which an encoder gives up: nothing parsed from JSON is so deep, but a cycle is."""

MANY: Final = 48
"""Items from which on an array is written by columns: below, that takes longer than to write one after another."""

MANY_NAMED: Final = 6
"""The same for maps whose keys are identifiers: rooms, above all, in each of which is more."""

TOO_DEEP: Final = "Nested too deeply, or containing itself"

_NO_PREFIX: Final = repeat("")
_pairs: Final = zip  # to name its `strict` for each map costs 5 % of an encoding


def encode(value: Any, key_version: int | None = None, canonical: bool = True, lossy: bool = False) -> bytes:
    """Encode a JSON value.

    Takes what Python's `json` takes: mappings of any kind, lists, tuples, strings, numbers, booleans and
    None, their subclasses among them (enums). Keys that are not text become text as `json` makes them.

    Args:
        value: The value.
        key_version: Version of the integer keys to use; None for text keys.
        canonical: Sort the keys of each map. Without it they keep their order.
        lossy: Write what CBOR cannot carry as the nearest thing it can, instead of failing: lone
            surrogates as U+FFFD, integers outside 64 bits as floats, and what JSON has not (NaN and
            infinities) as null. For answers: one odd event in an old room must not make a whole
            `/sync` impossible for ever.

    Raises:
        CborError: the value has something that has no CBOR form here, or contains itself.
        ValueError: no such key version.
    """
    if key_version not in (None, KEY_VERSION_1):
        raise ValueError(f"No version {key_version} of the CBOR keys")
    return Encoder(lossy, SHAPES[key_version, canonical]).encode(value)


class Encoder(Columns):
    """One run of `encode`."""

    def encode(self, value: Any) -> bytes:
        """The CBOR of a value."""
        pieces: list[str] = []
        self._write(iter((("", value),)), pieces, 0)
        return "".join(pieces).encode("latin-1")

    def _each(self, values: list[Any], depth: int) -> list[str]:
        pieces: list[str] = []
        starts: list[int] = []

        def noted() -> Iterator[tuple[str, Any]]:
            for value in values:
                starts.append(len(pieces))
                yield "", value

        self._write(noted(), pieces, depth)
        starts.append(len(pieces))
        return ["".join(pieces[start:end]) for start, end in _pairs(starts, starts[1:])]

    def _write(self, items: Iterator[tuple[str, Any]], pieces: list[str], depth: int) -> None:
        """Write values one after another.

        Args:
            items: What stands before each value - the encoded key in a map, nothing in an array - and the value.
            pieces: Takes what is written.
            depth: Columns that these values are in already.
        """
        plans = self._shapes.plans
        stack: list[Iterator[tuple[str, Any]]] = []
        while True:
            for prefix, item in items:
                kind = type(item)
                if kind is str:
                    length = len(item)
                    if length < SHORT and item.isascii():
                        pieces += prefix, TEXT_HEADS[length], item
                    else:
                        pieces += prefix, self._long_text(item)
                elif kind is dict and item:
                    plan = plans.get(tuple(item))
                    if plan is None and len(item) >= MANY_NAMED and depth < DEEPEST and names_something(item):
                        pieces.append(prefix)
                        pieces += self._named([item], depth + 1)
                        continue
                    stack.append(items)
                    if len(stack) > MAX_ENCODE_DEPTH:
                        raise CborError(TOO_DEEP)
                    pieces.append(prefix)
                    items = self._open_map(item) if plan is None else _pairs(plan.keys, plan.values(item))
                    break
                elif kind is list and item:
                    pieces += prefix, array_head(len(item))
                    if len(item) >= MANY and depth < DEEPEST:
                        pieces += self._column(item, depth + 1)
                        continue
                    stack.append(items)
                    if len(stack) > MAX_ENCODE_DEPTH:
                        raise CborError(TOO_DEEP)
                    items = _pairs(_NO_PREFIX, item)
                    break
                elif kind is dict or kind is list:
                    pieces += prefix, EMPTY_MAP if kind is dict else EMPTY_ARRAY
                elif kind is int:
                    pieces += prefix, SMALL[item] if 0 <= item < SHORT else self._large(item)
                elif item is True or item is False or item is None:
                    pieces += prefix, CONSTANTS[item]
                elif kind is float:
                    pieces += prefix, written(self._float(item))
                else:
                    stack.append(items)
                    items = iter(((prefix, plain_value(item)),))
                    break
            else:
                if not stack:
                    return
                items = stack.pop()

    def _open_map(self, items: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
        """What is to be written of a map whose keys have no plan yet, or are not all text."""
        if names_something(items) and self._shapes.have_no_integers(items):
            names = self._shapes.sorted_names(items)
            prefixes = [text_head(len(name)) + name for name in names]
            prefixes[0] = map_head(len(names)) + prefixes[0]
            return _pairs(prefixes, map(items.__getitem__, names))
        plan, items = self._plan(items)
        return _pairs(plan.keys, plan.values(items))
