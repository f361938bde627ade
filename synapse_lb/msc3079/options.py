# SPDX-License-Identifier: AGPL-3.0-or-later
"""Option numbers and content formats that the mapping needs (RFC 7252 section 5.10, MSC3079).

Plain integers of our own: this room knows nothing of the `coap` room.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

ACCESS_TOKEN: Final = 256
"""MSC3079: the access token, with or without `Bearer `. Elective by its number. Sticky."""

KEY_VERSION: Final = 257
"""MSC3079: the version of the CBOR keys that the client wants, a uint. Critical by its number. Sticky."""

URI_HOST: Final = 3
URI_PORT: Final = 7
URI_PATH: Final = 11
CONTENT_FORMAT: Final = 12
MAX_AGE: Final = 14
URI_QUERY: Final = 15
ACCEPT: Final = 17
Q_BLOCK1: Final = 19
BLOCK2: Final = 23
BLOCK1: Final = 27
Q_BLOCK2: Final = 31

HANDLED_CRITICAL: Final = frozenset(
    {URI_HOST, URI_PORT, URI_PATH, URI_QUERY, ACCEPT, Q_BLOCK1, BLOCK2, BLOCK1, Q_BLOCK2, KEY_VERSION}
)
"""Critical options that the mapping or the endpoint below it serves; any other means 4.02."""

FORMAT_OCTET_STREAM: Final = 42
FORMAT_JSON: Final = 50
FORMAT_CBOR: Final = 60
FORMAT_CBOR_DEFLATE: Final = 11060
"""application/cbor with the content coding deflate (IANA, CoAP Content-Formats)."""

CBOR_FORMATS: Final = frozenset({FORMAT_CBOR, FORMAT_CBOR_DEFLATE})
FORMATS: Final = CBOR_FORMATS | {FORMAT_JSON}
"""What bodies may be written in."""

MAX_URI_OPTION: Final = 255
"""Bytes that one Uri-Path or Uri-Query may hold (RFC 7252 section 5.10, table 4)."""

MAX_UINT32: Final = 0xFFFFFFFF

OptionPairs = Iterable[tuple[int, bytes]]
"""Options as (number, value) pairs, in order."""


def encode_uint(value: int) -> bytes:
    """Encode an option value of format uint, without leading zero bytes (RFC 7252 section 3.2)."""
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


def decode_uint(value: bytes) -> int:
    """Decode an option value of format uint; leading zero bytes are allowed (RFC 7252 section 3.2)."""
    return int.from_bytes(value, "big")


def first(options: OptionPairs, number: int) -> bytes | None:
    """The first value of an option, or None. Repeats of what may not repeat are ignored (5.4.5)."""
    for candidate, value in options:
        if candidate == number:
            return value
    return None


def first_uint(options: OptionPairs, number: int) -> int | None:
    """The first value of a uint option, or None."""
    value = first(options, number)
    return None if value is None else decode_uint(value)
