# SPDX-License-Identifier: AGPL-3.0-or-later
"""A tape of bytes that a fuzz target reads its decisions from: the fuzzer writes it, and any bytes are a tape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Tape:
    """Reads bytes from the front; after the end everything is zero.

    Args:
        data: What the fuzzer made up.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def ended(self) -> bool:
        """Whether all has been read."""
        return self._position >= len(self._data)

    def byte(self) -> int:
        """The next byte."""
        value = self._data[self._position] if self._position < len(self._data) else 0
        self._position += 1
        return value

    def number(self, width: int) -> int:
        """An unsigned integer of `width` bytes, in network order."""
        return int.from_bytes(self.take(width).ljust(width, b"\0"), "big")

    def take(self, length: int) -> bytes:
        """At most `length` bytes."""
        part = self._data[self._position : self._position + length]
        self._position += length
        return part

    def sized(self) -> bytes:
        """Bytes with a length of two bytes before them."""
        return self.take(self.number(2))

    def pick(self, choices: Sequence[T]) -> T:
        """One of these."""
        return choices[self.byte() % len(choices)]


def sized(data: bytes) -> bytes:
    """What `Tape.sized` reads back."""
    return len(data).to_bytes(2, "big") + data
