# SPDX-License-Identifier: AGPL-3.0-or-later
"""Paths <-> one Uri-Path value of x1 (docs/extensions.md, "x1 paths")."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import attrs

from synapse_lb.msc3079 import paths_v1
from synapse_lb.msc3079.errors import UnknownPathError
from synapse_lb.msc3079.options import MAX_URI_OPTION
from synapse_lb.msc3079.x1.aliases import AliasBook
from synapse_lb.msc3079.x1.decoder import X1Parser
from synapse_lb.msc3079.x1.encoder import X1Encoder
from synapse_lb.msc3079.x1.errors import X1Error
from synapse_lb.msc3079.x1.paths import PATHS
from synapse_lb.msc3079.x1.texts import ENDS_EARLY, Reader

_FIRST: Final = 0x80
_SHORT_CODES: Final = 64
_LONG: Final = 0xC0
"""First bytes of an x1 path: 80 to BF are codes 0 to 63, C0 and C1 begin a code of two bytes. No UTF-8 begins so."""

MAX_PATH_EXPANSION: Final = 4096
"""Characters that the aliases of one path may stand for."""


@attrs.frozen
class EncodedPath:
    """A path that was written.

    Attributes:
        values: Uri-Path values.
        definitions: As `Encoded.definitions`.
    """

    values: tuple[bytes, ...]
    definitions: tuple[int, ...] = ()


Template = tuple["str | None", ...]

_TEMPLATES: Final[tuple[Template, ...]] = tuple(
    tuple(None if part.startswith("{") else part for part in path.split("/")[1:]) for path in PATHS
)


def _index(segments: Sequence[str | None]) -> tuple[int, str | None]:
    """What templates are looked up by: the number of segments, and the one that tells most and never is a parameter."""
    return len(segments), segments[min(3, len(segments) - 1)] if segments else None


def _by_index() -> dict[tuple[int, str | None], list[tuple[int, Template]]]:
    found: dict[tuple[int, str | None], list[tuple[int, Template]]] = {}
    for code, template in enumerate(_TEMPLATES):
        found.setdefault(_index(template), []).append((code, template))
    return found


_BY_INDEX: Final = _by_index()


def compress_path(segments: Sequence[str], book: AliasBook | None = None) -> EncodedPath:
    """Write a path.

    Args:
        segments: The segments of a full path, after the leading slash, not percent-encoded.
        book: The aliases of the association; None for none.

    Returns:
        One value where the table has the path and it fits; otherwise what `paths_v1.compress` makes of it.

    Raises:
        CborError: a segment has a lone surrogate.
    """
    for code, template in _BY_INDEX.get(_index(segments), ()):
        if all(part is None or part == segment for part, segment in zip(template, segments, strict=True)):
            encoder = X1Encoder(book, lossy=False)
            values = [segment for part, segment in zip(template, segments, strict=True) if part is None]
            value = _write_code(code) + encoder.parameters(values)
            if len(value) <= MAX_URI_OPTION:
                return EncodedPath((value,), tuple(encoder.definitions))
            break
    return EncodedPath(tuple(segment.encode() for segment in paths_v1.compress(segments)))


def expand_path(values: Sequence[bytes], book: AliasBook | None = None) -> tuple[str, ...]:
    """Read a path: one of x1, or else one of version 1 or plain segments.

    Args:
        values: The Uri-Path values of a request.
        book: The aliases of the association; None for none.

    Returns:
        The segments of the full path.

    Raises:
        UnknownPathError: there is no such code, or it has other parameters.
        UnknownAliasError: it refers to an alias that is not in the book.
        X1Error: the parameters cannot be read.
        UnicodeDecodeError: a plain segment is not UTF-8.
    """
    if not is_x1_path(values):
        return paths_v1.expand([value.decode() for value in values])
    if len(values) != 1:
        raise UnknownPathError("An x1 path has one Uri-Path value")
    code, position = _read_code(values[0])
    if code >= len(_TEMPLATES):
        raise UnknownPathError(f"x1 has no path code {code}")
    parser = X1Parser(values[0], Reader(b""), book, MAX_PATH_EXPANSION)
    segments: list[str] = []
    try:
        for part in _TEMPLATES[code]:
            if part is None:
                part, position = parser.parameter(position)
            segments.append(part)
    except (IndexError, struct.error):
        raise X1Error(ENDS_EARLY) from None
    except UnicodeDecodeError:
        raise X1Error("A parameter that is not UTF-8") from None
    if position != len(values[0]):
        raise X1Error(ENDS_EARLY if position > len(values[0]) else "Bytes after the parameters")
    if book is not None:
        book.learn(parser.definitions)
    return tuple(segments)


def is_x1_path(values: Sequence[bytes]) -> bool:
    """Whether Uri-Path values are an x1 path."""
    return bool(values) and values[0][:1] >= b"\x80" and values[0][:1] <= b"\xc1"


def _write_code(code: int) -> bytes:
    if code < _SHORT_CODES:
        return bytes((_FIRST + code,))
    return bytes((_LONG + (code - _SHORT_CODES >> 8), code - _SHORT_CODES & 0xFF))


def _read_code(value: bytes) -> tuple[int, int]:
    if value[0] < _LONG:
        return value[0] - _FIRST, 1
    if len(value) < 2:
        raise UnknownPathError("A path code that ends early")
    return _SHORT_CODES + (value[0] - _LONG << 8 | value[1]), 2
