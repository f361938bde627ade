# SPDX-License-Identifier: AGPL-3.0-or-later
"""What x1 gives to the CBOR items that JSON does not use: simple values, byte strings and tags.

As every released table, those here never change.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final


class Simple(IntEnum):
    """Simple values whose content stands in the tail, or follows from what came before."""

    EVENT_ID = 0
    """`$` and 43 characters of base64url: 32 bytes of the tail."""
    ROOM_ID = 1
    """`!` and 43 characters of base64url (room version 12): 32 bytes of the tail."""
    KEY = 2
    """43 characters of base64: 32 bytes of the tail."""
    SIGNATURE = 3
    """86 characters of base64: 64 bytes of the tail."""
    BASE64 = 4
    """Unpadded base64: a varint with the number of bytes, and the bytes."""
    BASE64_URL = 5
    """Unpadded base64url, likewise."""
    TOKEN = 6
    """A stream token."""
    TIME = 7
    """A time in milliseconds: the zigzag varint of its distance to the time before it."""
    AGE = 8
    """An age in milliseconds: the zigzag varint of how much later the present is than it was before."""
    SAME_AGE = 9
    """An age, with the same present as the one before."""


class Kind(IntEnum):
    """First byte of a byte string of at least two bytes: what the others are."""

    DEFINITION = 0
    """The number of an alias, and its text: a byte string's content in its turn."""
    TEXT = 1
    """UTF-8; only within a definition."""
    EVENT_ID = 2
    ROOM_ID = 3
    BASE64 = 4
    BASE64_URL = 5
    TOKEN = 6
    """A stream token, never relative to another one."""
    REPETITION = 7
    """A varint: the number of the packed text of this body that is repeated."""


FIRST_VALUE: Final = 10
"""The simple values from here to 19, and from 32 on, stand for texts."""

VALUES: Final[tuple[str, ...]] = (
    "m.room.message",
    "m.text",
    "m.room.member",
    "join",
    "m.room.encrypted",
    "m.megolm.v1.aes-sha2",
    "m.room.redaction",
    "m.reaction",
    "m.notice",
    "m.image",
)
"""These texts, in order."""


def _simples() -> list[int]:
    return [*range(FIRST_VALUE, 20), *range(32, 256)]


SIMPLE_TO_VALUE: Final[Mapping[int, str]] = MappingProxyType(
    dict(zip(_simples(), VALUES, strict=False)),
)
"""Simple value -> text."""

VALUE_TO_SIMPLE: Final[Mapping[str, int]] = MappingProxyType(
    {text: number for number, text in SIMPLE_TO_VALUE.items()}
)
"""Text -> simple value."""

TIME_START: Final = 1_750_000_000_000
"""The time before the first one of a body."""

FIRST_TIME: Final = 1_000_000_000_000
LAST_TIME: Final = 4_000_000_000_000
"""Integers from here to there are written as times, in milliseconds since 1970; whatever they are, they come back."""
