# SPDX-License-Identifier: AGPL-3.0-or-later
"""JSON values as CBOR and back (RFC 8949), with the integer keys of MSC3079.

Both ways in one pass over an explicit stack: no depth, no declared length and no choice of keys by a peer
makes them recurse, allocate or work more than the bytes themselves are worth. (General CBOR libraries
build map keys of any type, whose hashes a peer can make collide, and recurse on the C stack.)

Canonical output is that of RFC 7049 section 3.9, which is what deployed clients produce: shortest heads and
floats, definite lengths, keys sorted by the length of their encoding and then bytewise (RFC 8949 section
4.2.3 calls it length-first).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from itertools import repeat
from typing import Any, Final

import attrs

from synapse_lb.msc3079.cbor_shapes import (
    ARRAY,
    MAP,
    NEGATIVE,
    SHAPES,
    SHORT,
    SIMPLE_OR_FLOAT,
    TAG,
    TEXT,
    UNSIGNED,
    Shapes,
    head,
    written,
)
from synapse_lb.msc3079.errors import CborError
from synapse_lb.msc3079.keys_v1 import INTEGER_TO_KEY, KEY_VERSION_1

DEFAULT_MAX_DEPTH: Final = 100
"""Nested arrays and maps that a request may have. The deepest Matrix bodies in use have about ten."""

MAX_ENCODE_DEPTH: Final = 100_000
"""Levels at which an encoder gives up: nothing parsed from JSON is so deep, but a cycle is."""

MIN_INTEGER: Final = -(2**63)
MAX_INTEGER: Final = 2**64 - 1
"""The integers that CBOR and 64-bit readers share; others are refused, as bignums are tags."""


__all__ = [
    "ARRAY",
    "DEFAULT_MAX_DEPTH",
    "MAP",
    "MAX_INTEGER",
    "MIN_INTEGER",
    "NEGATIVE",
    "SIMPLE_OR_FLOAT",
    "TAG",
    "TEXT",
    "UNSIGNED",
    "CborError",
    "Decoded",
    "decode",
    "encode",
    "head",
]


@attrs.frozen
class Decoded:
    """What a CBOR body says.

    Attributes:
        value: JSON value.
        used_integer_keys: Whether any map, however deep, had an integer key.
    """

    value: Any = attrs.field(repr=False)
    used_integer_keys: bool


# --- decoding ---------------------------------------------------------------------------------------

MAJOR: Final = 0xE0
INFORMATION: Final = 0x1F
INDEFINITE: Final = 0x1F
_LONG_TEXT: Final = TEXT | 24
_BREAK: Final = 0xFF
_SIMPLE: Final[Mapping[int, bool | None]] = {0xF4: False, 0xF5: True, 0xF6: None}
_FLOATS: Final = {0xF9: struct.Struct(">e"), 0xFA: struct.Struct(">f"), 0xFB: struct.Struct(">d")}


def decode(data: bytes, *, max_depth: int = DEFAULT_MAX_DEPTH) -> Decoded:
    """Decode one CBOR item that stands for a JSON value.

    * Integer keys are expanded with version 1 of the table. If a map has a key in both forms, the text form
      wins. A text key that looks like a number stays as it is. An integer that the table does not have is an
      error: nobody can know what was meant, and a guess would be stored for good.
    * A float with an integral value within 64 bits becomes an integer, since deployed clients send every
      number as a float and Matrix has none. Others stay: Matrix's own rules decide about them.
    * Indefinite lengths and heads longer than need be are accepted.

    Work and memory grow with the bytes that came, never with the lengths that they declare.

    Args:
        data: The body.
        max_depth: Nested arrays and maps that are allowed.

    Raises:
        CborError: `data` is not one well-formed item, or has tags, byte strings, undefined or other simple
            values, NaN or infinities, integers outside [-2**63, 2**64), keys that are neither text nor
            known integers, the same key twice, text that is not UTF-8, or more depth than allowed.
    """
    parser = Parser(data)
    try:
        value, end = parser.run(max_depth)
    except (IndexError, struct.error):
        raise CborError(TOO_SHORT) from None
    except UnicodeDecodeError:
        raise CborError("Text that is not UTF-8") from None
    if end != len(data):
        raise CborError(TOO_SHORT if end > len(data) else "Bytes after the CBOR item")
    return Decoded(value, parser.used_integer_keys)


TOO_SHORT: Final = "The CBOR ends too early"


class Parser:
    """One run of `decode`. A position past the end is noticed by the next read, or at the end of all."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.used_integer_keys = False

    def run(self, max_depth: int) -> tuple[Any, int]:
        """Parse the item at the start of the data.

        Returns:
            Its JSON value, and the position behind it.
        """
        data = self._data
        position = 0
        # The innermost open array or map; items or pairs still to come (below 0: until a break); the key
        # whose value comes next; whether it has integer keys; its tag. The outermost is an array of our own.
        container: Any = []
        left, integers = 1, False
        key: Any = None
        tag: int | None = None
        value: Any
        stack: list[tuple[Any, int, Any, bool, int | None]] = []
        while True:
            if not left:
                value = self._with_names(container) if integers else container
                if not stack:
                    return value[0], position
                if tag is not None:
                    value = self._tagged(tag, value)
                container, left, key, integers, tag = stack.pop()
            else:
                left -= 1
                initial = data[position]
                position += 1
                if initial == _BREAK and left < 0:
                    left = 0
                    continue
                if type(container) is dict:
                    key, position = self._key(initial, position)
                    if key in container:
                        raise CborError("The same key twice in a map", well_formed=True)
                    integers = integers or type(key) is int
                    initial = data[position]
                    position += 1
                if ARRAY <= initial < SIMPLE_OR_FLOAT:
                    inner_tag = None
                    if initial >= TAG:
                        inner_tag, initial, position = self._tag(initial, position)
                    stack.append((container, left, key, integers, tag))
                    if len(stack) > max_depth:
                        raise CborError(f"More than {max_depth} nested arrays and maps", well_formed=True)
                    container = {} if initial >= MAP else []
                    left, position = self._count(initial, position)
                    integers, tag = False, inner_tag
                    continue
                if TEXT <= initial < _LONG_TEXT:  # by far the most frequent
                    end = position + initial - TEXT
                    value = data[position:end].decode()
                    position = end
                else:
                    value, position = self._scalar(initial, position)
            if type(container) is dict:
                container[key] = value
            else:
                container.append(value)

    def _with_names(self, container: dict[Any, Any]) -> dict[str, Any]:
        """A map with the names of its integer keys, in the same order; the text form wins."""
        self.used_integer_keys = True
        named: dict[str, Any] = {}
        for key, value in container.items():
            if type(key) is str:
                named[key] = value
            elif (name := INTEGER_TO_KEY[key]) not in container:
                named[name] = value
        return named

    def _key(self, initial: int, position: int) -> tuple[str | int, int]:
        if TEXT <= initial < _LONG_TEXT:
            end = position + initial - TEXT
            return self._data[position:end].decode(), end
        major = initial & MAJOR
        if major == TEXT:
            return self._text(initial, position)
        if major != UNSIGNED:
            raise CborError("Map key that is neither text nor a known integer", well_formed=True)
        integer, position = self._argument(initial, position)
        if integer not in INTEGER_TO_KEY:
            raise CborError("Integer key that version 1 does not have", well_formed=True)
        return integer, position

    def _scalar(self, initial: int, position: int) -> tuple[Any, int]:
        if initial in _SIMPLE:
            return _SIMPLE[initial], position
        major = initial & MAJOR
        if major == TEXT:
            return self._text(initial, position)
        if major == UNSIGNED:
            return self._argument(initial, position)
        if major == NEGATIVE:
            argument, position = self._argument(initial, position)
            if -1 - argument < MIN_INTEGER:
                raise CborError("Integer outside 64 bits", well_formed=True)
            return -1 - argument, position
        if initial in _FLOATS:
            form = _FLOATS[initial]
            return _number(form.unpack_from(self._data, position)[0]), position + form.size
        raise CborError("Byte strings and simple values stand for nothing in JSON", well_formed=True)

    def _tag(self, initial: int, position: int) -> tuple[int, int, int]:
        """The tag of an array or map, the initial byte of that, and the position behind it."""
        raise CborError("A tag stands for nothing in JSON", well_formed=True)

    def _tagged(self, tag: int, value: Any) -> Any:
        """What an array or map with a tag stands for."""
        raise AssertionError("no tag was let in")

    def _argument(self, initial: int, position: int) -> tuple[int, int]:
        information = initial & INFORMATION
        if information < 24:
            return information, position
        if information > 27:
            raise CborError("A head that RFC 8949 does not have")
        end = position + (1 << (information - 24))
        if end > len(self._data):
            raise CborError(TOO_SHORT)
        return int.from_bytes(self._data[position:end], "big"), end

    def _count(self, initial: int, position: int) -> tuple[int, int]:
        """The items or pairs of an array or map; -1 for an indefinite length."""
        if initial & INFORMATION == INDEFINITE:
            return -1, position
        return self._argument(initial, position)

    def _text(self, initial: int, position: int) -> tuple[str, int]:
        if initial & INFORMATION != INDEFINITE:
            length, position = self._argument(initial, position)
            if length > len(self._data) - position:
                raise CborError(TOO_SHORT)
            end = position + length
            return self._data[position:end].decode(), end
        chunks: list[str] = []
        while (initial := self._data[position]) != _BREAK:
            if initial & MAJOR != TEXT or initial & INFORMATION == INDEFINITE:
                raise CborError("A chunk of text that is none")
            chunk, position = self._text(initial, position + 1)
            chunks.append(chunk)
        return "".join(chunks), position + 1


def _number(value: float) -> float | int:
    if not math.isfinite(value):
        raise CborError("NaN and infinities stand for nothing in JSON", well_formed=True)
    if value.is_integer() and MIN_INTEGER <= value <= MAX_INTEGER:
        return int(value)
    return value


# --- encoding ---------------------------------------------------------------------------------------

TOO_DEEP: Final = "Nested too deeply, or containing itself"
FALSE: Final = b"\xf4"
TRUE: Final = b"\xf5"
NULL: Final = b"\xf6"


_ARRAY_HEADS: Final = tuple(written(head(ARRAY, length)) for length in range(SHORT))
_TEXT_HEADS: Final = tuple(written(head(TEXT, length)) for length in range(SHORT))
_SMALL: Final = tuple(written(head(UNSIGNED, value)) for value in range(SHORT))
_NO_PREFIX: Final = repeat("")
_pairs: Final = zip  # to name its `strict` for each map costs 5 % of an encoding
_EMPTY_MAP: Final = written(head(MAP, 0))
_EMPTY_ARRAY: Final = written(head(ARRAY, 0))
_WIDE: Final = tuple(
    (head(UNSIGNED, max(SHORT, 1 << bits - 1))[0], struct.Struct(form).pack)
    for form, widths in ((">BH", range(1, 17)), (">BI", range(17, 33)), (">BQ", range(33, 65)))
    for bits in widths
)
"""For integers of so many bits, less one: the initial byte, and how that and the integer are written."""
_CONSTANTS: Final = {value: written(item) for value, item in ((False, FALSE), (True, TRUE), (None, NULL))}


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


class Encoder:
    """One run of `encode`.

    Args:
        lossy: As in `encode`.
        shapes: Plans of maps.
    """

    def __init__(self, lossy: bool, shapes: Shapes) -> None:
        self._lossy = lossy
        self._shapes = shapes

    def encode(self, value: Any) -> bytes:
        """The CBOR of a value.

        Pieces are collected as text, in which each character stands for one byte, and are joined once: text that is
        ASCII, as most is, goes there as it is. That takes a third less time than to encode each.
        """
        pieces: list[str] = []
        plans = self._shapes.plans
        stack: list[Iterator[tuple[str, Any]]] = []
        items: Iterator[tuple[str, Any]] = iter((("", value),))
        while True:
            for prefix, item in items:  # prefix: the encoded key in a map, nothing in an array
                kind = type(item)
                if kind is str:
                    length = len(item)
                    if length < SHORT and item.isascii():
                        pieces += prefix, _TEXT_HEADS[length], item
                    else:
                        pieces += prefix, self._long_text(item)
                elif kind is dict and item:
                    stack.append(items)
                    if len(stack) > MAX_ENCODE_DEPTH:
                        raise CborError(TOO_DEEP)
                    pieces.append(prefix)
                    plan = plans.get(tuple(item))
                    items = self._open_map(item) if plan is None else _pairs(plan.keys, plan.values(item))
                    break
                elif kind is list and item:
                    stack.append(items)
                    if len(stack) > MAX_ENCODE_DEPTH:
                        raise CborError(TOO_DEEP)
                    pieces += prefix, _array_head(len(item))
                    items = _pairs(_NO_PREFIX, item)
                    break
                elif kind is dict or kind is list:
                    pieces += prefix, _EMPTY_MAP if kind is dict else _EMPTY_ARRAY
                elif kind is int:
                    pieces += prefix, _SMALL[item] if 0 <= item < SHORT else self._large(item)
                elif item is True or item is False or item is None:
                    pieces += prefix, _CONSTANTS[item]
                elif kind is float:
                    pieces += prefix, written(self._float(item))
                else:
                    stack.append(items)
                    items = iter(((prefix, plain_value(item)),))
                    break
            else:
                if not stack:
                    return "".join(pieces).encode("latin-1")
                items = stack.pop()

    def _long_text(self, text: str) -> str:
        utf8 = self._utf8(text)
        return written(head(TEXT, len(utf8)) + utf8)

    def _large(self, value: int) -> str:
        if SHORT <= value <= MAX_INTEGER:  # ages and times, mostly
            initial, form = _WIDE[value.bit_length() - 1]
            return form(initial, value).decode("latin-1")
        return written(self._integer(value))

    def _open_map(self, items: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
        """What is to be written of a map whose keys have no plan yet, or are not all text."""
        if not all(type(key) is str for key in items):
            items = {text_key(key): value for key, value in items.items()}
        plan = self._shapes.plan(tuple(items), self._utf8)
        return _pairs(plan.keys, plan.values(items))

    def _utf8(self, text: str) -> bytes:
        try:
            return text.encode()
        except UnicodeEncodeError:
            if self._lossy:
                return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
            raise CborError("Text with a lone surrogate is not Unicode") from None

    def _integer(self, value: int) -> bytes:
        if 0 <= value <= MAX_INTEGER:
            return head(UNSIGNED, value)
        if MIN_INTEGER <= value < 0:
            return head(NEGATIVE, -1 - value)
        if not self._lossy:
            raise CborError("Integer outside 64 bits")
        try:
            return self._float(float(value))
        except OverflowError:
            return NULL

    def _float(self, value: float) -> bytes:
        if not math.isfinite(value):
            if self._lossy:
                return NULL
            raise CborError("NaN and infinities stand for nothing in JSON")
        for initial, form in ((b"\xf9", ">e"), (b"\xfa", ">f")):
            try:
                packed = struct.pack(form, value)
            except OverflowError:
                continue
            if struct.unpack(form, packed)[0] == value:
                return initial + packed
        return b"\xfb" + struct.pack(">d", value)


def _array_head(length: int) -> str:
    return _ARRAY_HEADS[length] if length < SHORT else written(head(ARRAY, length))


def plain_value(value: Any) -> Any:
    """The built-in value that `json` would see in an instance of another type."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    raise CborError(f"No JSON value: {type(value).__name__}")


def text_key(key: Any) -> str:
    """A map key as `json` writes it."""
    if isinstance(key, str):
        return str.__str__(key)
    if key is None:
        return "null"
    if isinstance(key, bool):
        return "true" if key else "false"
    if isinstance(key, int):
        return int.__repr__(key)
    raise CborError(f"No key of a JSON object: {type(key).__name__}")
