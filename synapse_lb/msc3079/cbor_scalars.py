# SPDX-License-Identifier: AGPL-3.0-or-later
"""Texts and numbers as CBOR (RFC 8949 section 3), and the built-in values that stand for others.

What is written is text in which each character stands for one byte: most of a body is ASCII and goes there as it is,
and the whole is encoded once. That takes a third less time than to encode each piece.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any, Final

from synapse_lb.msc3079.cbor_shapes import ARRAY, MAP, NEGATIVE, SHORT, TEXT, UNSIGNED, head, written
from synapse_lb.msc3079.errors import CborError

MIN_INTEGER: Final = -(2**63)
MAX_INTEGER: Final = 2**64 - 1
"""The integers that CBOR and 64-bit readers share; others are refused, as bignums are tags."""

FALSE: Final = b"\xf4"
TRUE: Final = b"\xf5"
NULL: Final = b"\xf6"

TEXT_HEADS: Final = tuple(written(head(TEXT, length)) for length in range(SHORT))
SMALL: Final = tuple(written(head(UNSIGNED, value)) for value in range(SHORT))
CONSTANTS: Final = {value: written(item) for value, item in ((False, FALSE), (True, TRUE), (None, NULL))}
EMPTY_MAP: Final = written(head(MAP, 0))
EMPTY_ARRAY: Final = written(head(ARRAY, 0))
_ARRAY_HEADS: Final = tuple(written(head(ARRAY, length)) for length in range(SHORT))

WIDE: Final = tuple(
    (head(UNSIGNED, max(SHORT, 1 << bits >> 1))[0], struct.Struct(form).pack)
    for form, widths in ((">BH", range(17)), (">BI", range(17, 33)), (">BQ", range(33, 65)))
    for bits in widths
)
"""For integers of so many bits that are not `SMALL`: the initial byte, and how that and the integer are written."""


class Scalars:
    """How texts and numbers are written."""

    _lossy: bool
    """As in `cbor.encode`."""

    def _long_text(self, text: str) -> str:
        """Any text; what is short and ASCII is written more quickly with its `TEXT_HEADS`."""
        utf8 = written(self._utf8(text))
        return text_head(len(utf8)) + utf8

    def _large(self, value: int) -> str:
        """An integer that is not `SMALL`."""
        if SHORT <= value <= MAX_INTEGER:  # ages and times, mostly
            initial, form = WIDE[value.bit_length()]
            return form(initial, value).decode("latin-1")
        return written(self._integer(value))

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


def text_head(length: int) -> str:
    """The head of a text of so many bytes."""
    return TEXT_HEADS[length] if length < SHORT else written(head(TEXT, length))


def array_head(length: int) -> str:
    """The head of an array of so many items."""
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
