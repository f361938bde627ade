# SPDX-License-Identifier: AGPL-3.0-or-later
"""Access tokens in fewer bytes (docs/extensions.md, "Access tokens").

Tokens have a checksum at their end, which follows from the rest, and letters that take a byte where six bits would do:

    syt_<base64 of the localpart>_<20 letters>_<checksum>         Synapse's
    mat_<30 letters and digits>_<checksum>                        of the Matrix Authentication Service
    mct_<30 letters and digits>_<checksum>                        the same, of a login as before

The checksum is the CRC-32 of what stands before its `_`, in six digits of base 62. As everything that x1 packs, a token
is only packed if unpacking gives the very same one.
"""

from __future__ import annotations

import re
import string
import zlib
from typing import Final

from synapse_lb.msc3079.x1 import texts

SYNAPSE: Final = 0x80
_SERVICE: Final = {0x81: "mat", 0x82: "mct"}
"""First bytes; as of x1's paths, no UTF-8 begins with such a one."""

_LETTERS: Final = string.ascii_letters
_ALPHANUMERIC: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_CHECKSUM: Final = 6
_SYNAPSE_LETTERS: Final = 20
_SYNAPSE_BYTES: Final = 15
_SERVICE_LETTERS: Final = 30
_SERVICE_BYTES: Final = 23
_SYNAPSES: Final = re.compile(r"syt_([A-Za-z0-9+/]*)_([A-Za-z]{20})_[0-9A-Za-z]{6}", re.ASCII)
_SERVICES: Final = re.compile(r"(mat|mct)_([0-9A-Za-z]{30})_[0-9A-Za-z]{6}", re.ASCII)


def is_packed(value: bytes) -> bool:
    """Whether the value of an option is no text, but may be a packed token."""
    return bool(value) and 0x80 <= value[0] < 0xC0


def pack_access_token(token: str) -> bytes | None:
    """The bytes of an access token, or None if it is not exactly of a known form."""
    packed: bytes | None = None
    if (match := _SYNAPSES.fullmatch(token)) is not None:
        localpart = texts.standard_to_bytes(match[1])
        if localpart is not None:
            number = _to_number(match[2], _LETTERS)
            packed = bytes((SYNAPSE,)) + number.to_bytes(_SYNAPSE_BYTES, "big") + localpart
    elif (match := _SERVICES.fullmatch(token)) is not None:
        kind = next(kind for kind, prefix in _SERVICE.items() if prefix == match[1])
        packed = bytes((kind,)) + _to_number(match[2], _ALPHANUMERIC).to_bytes(_SERVICE_BYTES, "big")
    return packed if packed is not None and unpack_access_token(packed) == token else None


def unpack_access_token(packed: bytes) -> str | None:
    """The access token that bytes stand for, or None if they stand for none."""
    kind = packed[0] if packed else 0
    if kind == SYNAPSE:
        letters = _from_number(packed[1 : 1 + _SYNAPSE_BYTES], _SYNAPSE_LETTERS, _LETTERS)
        if letters is None or len(packed) < 1 + _SYNAPSE_BYTES:
            return None
        base = f"syt_{texts.bytes_to_standard(packed[1 + _SYNAPSE_BYTES :])}_{letters}"
        return f"{base}_{_checksum(base)}"
    if kind in _SERVICE and len(packed) == 1 + _SERVICE_BYTES:
        letters = _from_number(packed[1:], _SERVICE_LETTERS, _ALPHANUMERIC)
        if letters is None:
            return None
        base = f"{_SERVICE[kind]}_{letters}"
        # This service writes the digits the other way round.
        return f"{base}_{_checksum(base).lstrip('0')[::-1].rjust(_CHECKSUM, '0')}"
    return None


def _checksum(base: str) -> str:
    number = zlib.crc32(base.encode("ascii"))
    return _digits(number, _CHECKSUM, _ALPHANUMERIC)


def _to_number(text: str, alphabet: str) -> int:
    number = 0
    for character in text:
        number = number * len(alphabet) + alphabet.index(character)
    return number


def _from_number(data: bytes, length: int, alphabet: str) -> str | None:
    number = int.from_bytes(data, "big")
    return _digits(number, length, alphabet) if number < len(alphabet) ** length else None


def _digits(number: int, length: int, alphabet: str) -> str:
    """A number below the base to the power of `length`, the most significant digit first."""
    digits = []
    for _ in range(length):
        number, digit = divmod(number, len(alphabet))
        digits.append(alphabet[digit])
    return "".join(reversed(digits))
