# SPDX-License-Identifier: AGPL-3.0-or-later
"""CBOR (RFC 8949) as JSON values, with the integer keys of MSC3079; `encode`, for the other way, is in `cbor_encoder`.

In one pass over an explicit stack: no depth, no declared length and no choice of keys by a peer makes it
recurse, allocate or work more than the bytes themselves are worth. (General CBOR libraries build map keys
of any type, whose hashes a peer can make collide, and recurse on the C stack.)
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any, Final

import attrs

from synapse_lb.msc3079.cbor_encoder import encode
from synapse_lb.msc3079.cbor_scalars import MAX_INTEGER, MIN_INTEGER
from synapse_lb.msc3079.cbor_shapes import ARRAY, MAP, NEGATIVE, SIMPLE_OR_FLOAT, TAG, TEXT, UNSIGNED, head
from synapse_lb.msc3079.errors import CborError
from synapse_lb.msc3079.keys_v1 import INTEGER_TO_KEY

DEFAULT_MAX_DEPTH: Final = 100
"""Nested arrays and maps that a request may have. The deepest Matrix bodies in use have about ten."""

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
