# SPDX-License-Identifier: AGPL-3.0-or-later
"""Texts that are numbers or bytes in disguise: base64 and stream tokens (docs/extensions.md, "Packed texts").

Everything here is reversible to the letter: a text is only packed if unpacking gives the very same text.
"""

from __future__ import annotations

import re
from binascii import Error as BinasciiError
from binascii import a2b_base64, b2a_base64
from collections.abc import Sequence
from typing import Final

from synapse_lb.msc3079.x1.errors import X1Error

_TO_URL: Final = bytes.maketrans(b"+/", b"-_")
_TO_STANDARD: Final = bytes.maketrans(b"-_", b"+/")
_PADDING: Final = (b"", b"", b"==", b"=")

MAX_VARINT: Final = 2**64 - 1
"""The largest number that a varint may stand for."""

_MAX_VARINT_BYTES: Final = 10

ENDS_EARLY: Final = "The bytes end too early"


def standard_to_bytes(text: str) -> bytes | None:
    """The bytes of unpadded base64 (RFC 4648 section 4), or None if the text is not exactly what they give."""
    try:
        ascii_text = text.encode("ascii")
        raw = a2b_base64(ascii_text + _PADDING[len(ascii_text) & 3])
    except (BinasciiError, ValueError):
        return None
    return raw if b2a_base64(raw, newline=False).rstrip(b"=") == ascii_text else None


def url_to_bytes(text: str) -> bytes | None:
    """The bytes of unpadded base64url (RFC 4648 section 5), or None if the text is not exactly what they give."""
    if "+" in text or "/" in text or not text.isascii():
        return None
    return standard_to_bytes(text.encode("ascii").translate(_TO_STANDARD).decode("ascii"))


def bytes_to_standard(raw: bytes) -> str:
    """Unpadded base64."""
    return b2a_base64(raw, newline=False).rstrip(b"=").decode("ascii")


def bytes_to_url(raw: bytes) -> str:
    """Unpadded base64url."""
    return b2a_base64(raw, newline=False).rstrip(b"=").translate(_TO_URL).decode("ascii")


# --- numbers ----------------------------------------------------------------------------------------


def zigzag(value: int) -> int:
    """A number that may be negative as one that is not: 0, -1, 1, -2 become 0, 1, 2, 3."""
    return 2 * value if value >= 0 else -2 * value - 1


def unzigzag(value: int) -> int:
    """The inverse of `zigzag`."""
    return -(value >> 1) - 1 if value & 1 else value >> 1


def varint(value: int) -> bytes:
    """LEB128: seven bits a byte, the least significant first, bit 7 set in all bytes but the last."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class Reader:
    """Reads bytes from the front; never past their end.

    Args:
        data: The bytes.
        position: Where to begin.
    """

    def __init__(self, data: bytes, position: int = 0) -> None:
        self._data = data
        self._position = position

    @property
    def left(self) -> int:
        """Bytes that have not been read."""
        return len(self._data) - self._position

    def take(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            X1Error: there are not so many.
        """
        start = self._position
        if count > len(self._data) - start:
            raise X1Error(ENDS_EARLY)
        self._position = start + count
        return self._data[start : self._position]

    def varint(self) -> int:
        """The next LEB128 number.

        Raises:
            X1Error: there is none, or it is above 64 bits.
        """
        data, position = self._data, self._position
        value = 0
        for index in range(_MAX_VARINT_BYTES):
            if position >= len(data):
                raise X1Error(ENDS_EARLY)
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                if value > MAX_VARINT:
                    break
                self._position = position
                return value
        raise X1Error("A number above 64 bits")

    def rest(self) -> bytes:
        """All that has not been read."""
        return self.take(self.left)


def nibbles(values: Sequence[int]) -> bytes:
    """Numbers in groups of three bits, the least significant first, bit 3 set in all nibbles but a number's last.

    Two nibbles to a byte, the high one first; a last one that is missing is 0.
    """
    out: list[int] = []
    for value in values:
        while value > 7:
            out.append(value & 7 | 8)
            value >>= 3
        out.append(value)
    if len(out) & 1:
        out.append(0)
    return bytes(high << 4 | low for high, low in zip(out[::2], out[1::2], strict=True))


_MAX_NIBBLES: Final = 22


def read_nibbles(reader: Reader, count: int) -> list[int]:
    """Read what `nibbles` has written.

    Raises:
        X1Error: there are not so many numbers, or one is above 64 bits.
    """
    values: list[int] = []
    pending: int | None = None
    while len(values) < count:
        value = 0
        for index in range(_MAX_NIBBLES):
            if pending is None:
                byte = reader.take(1)[0]
                nibble, pending = byte >> 4, byte & 15
            else:
                nibble, pending = pending, None
            value |= (nibble & 7) << (3 * index)
            if nibble < 8:
                break
        else:
            raise X1Error("A number above 64 bits")
        if value > MAX_VARINT:
            raise X1Error("A number above 64 bits")
        values.append(value)
    return values


# --- stream tokens ----------------------------------------------------------------------------------

_NUMBER: Final = "(?:0|[1-9][0-9]{0,17})"
_TOKEN: Final = re.compile(
    rf"(?:({_NUMBER})/)?(?:s|t({_NUMBER})-)({_NUMBER}(?:_{_NUMBER}){{0,30}})", re.ASCII
)

_TOPOLOGICAL: Final = 0x80
_RELATIVE: Final = 0x40
_CONNECTION: Final = 0x20
_COUNT: Final = 0x1F

_DECIMAL: Final = re.compile(_NUMBER, re.ASCII)


def decimal(text: str) -> int | None:
    """The number that a text is, or None if it is not exactly how a number below 10**18 is written."""
    return int(text) if _DECIMAL.fullmatch(text) else None


_TRANSACTION: Final = re.compile(rf"m({_NUMBER})\.({_NUMBER})", re.ASCII)


def pack_transaction(text: str) -> bytes | None:
    """The two numbers of a transaction id, `m1790000000000.7`, as varints; None if it is not of that form."""
    match = _TRANSACTION.fullmatch(text)
    return None if match is None else varint(int(match[1])) + varint(int(match[2]))


def unpack_transaction(reader: Reader) -> str:
    """The inverse of `pack_transaction`.

    Raises:
        X1Error: there are no two numbers.
    """
    return f"m{reader.varint()}.{reader.varint()}"


Positions = tuple[int, ...]
"""The stream positions of a token, in its order, without what stands before the `s` and between the `t` and the `-`."""


def pack_token(text: str, previous: Positions) -> tuple[bytes, Positions] | None:
    """Pack a token of Synapse's: `s72_4_0_1`, `t12-34_4_0_1` or, of sliding sync, `7/s72_4_0_1`.

    Args:
        text: The token, or something else.
        previous: The positions of the token before it; what has not changed since costs nothing.

    Returns:
        Its bytes and positions; None if it is no such token.
    """
    match = _TOKEN.fullmatch(text)
    if match is None:
        return None
    positions = tuple(map(int, match[3].split("_")))
    first = (_CONNECTION if match[1] else 0) | (_TOPOLOGICAL if match[2] else 0)
    leading = [int(number) for number in match.group(1, 2) if number]
    values: list[int] = list(positions)
    if len(previous) == len(positions):
        first |= _RELATIVE
        values = [zigzag(old - new) for old, new in zip(previous, positions, strict=True)]
        while values and not values[-1]:
            values.pop()
    return bytes((first | len(values),)) + nibbles(leading + values), positions


def unpack_token(reader: Reader, previous: Positions) -> tuple[str, Positions]:
    """The inverse of `pack_token`.

    Raises:
        X1Error: the bytes are no token.
    """
    first = reader.take(1)[0]
    count = first & _COUNT
    leading = (first & _CONNECTION > 0) + (first & _TOPOLOGICAL > 0)
    numbers = read_nibbles(reader, leading + count)
    values = numbers[leading:]
    if first & _RELATIVE:
        if count > len(previous):
            raise X1Error("A stream token with more numbers than the one before it")
        values += [0] * (len(previous) - count)
        values = [old - unzigzag(value) for old, value in zip(previous, values, strict=True)]
        if any(value < 0 for value in values):
            raise X1Error("A stream token with a negative number")
    if not values:
        raise X1Error("A stream token without a number")
    positions = tuple(values)
    start = f"{numbers[0]}/" if first & _CONNECTION else ""
    start += f"t{numbers[leading - 1]}-" if first & _TOPOLOGICAL else "s"
    return start + "_".join(map(str, positions)), positions
