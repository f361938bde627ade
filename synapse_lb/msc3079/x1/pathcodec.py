# SPDX-License-Identifier: AGPL-3.0-or-later
"""Paths and queries <-> one Uri-Path and one Uri-Query value of x1 (docs/extensions.md, "x1 paths")."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Final

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
_OLD: Final = 0xC1
"""First bytes of an x1 path. 80 to BF are the codes 0 to 63; C0 and a byte n the code 64 + n; C1 and n the code n with
r0 in the place of v3. No UTF-8 begins so."""

_FIRST_OLD: Final = _SHORT_CODES + 256

MAX_PATH_EXPANSION: Final = 4096
"""Characters that the aliases of one path may stand for."""


@attrs.frozen
class EncodedPath:
    """A path or a query that was written.

    Attributes:
        values: Uri-Path or Uri-Query values.
        definitions: As `Encoded.definitions`.
    """

    values: tuple[bytes, ...]
    definitions: tuple[int, ...] = ()


Template = tuple["str | None", ...]
"""The segments of a path template; None where a parameter stands."""


def _template(path: str) -> Template:
    return tuple(None if part.startswith("{") else part for part in path.split("/")[1:])


_TEMPLATES: Final[Mapping[int, Template]] = MappingProxyType(
    {
        **{code: _template(path) for code, path in enumerate(PATHS)},
        **{
            _FIRST_OLD + code: _template(path.replace("/v3/", "/r0/"))
            for code, path in enumerate(PATHS)
            if "/client/v3/" in path
        },
    }
)

_Tree = dict["str | None", Any]
"""Templates by their first segment, then by their second, and so on; the code under the empty tuple's place, `_END`."""

_END: Final = "\0end"


def _grow() -> _Tree:
    tree: _Tree = {}
    for code, template in _TEMPLATES.items():
        branch = tree
        for part in template:
            branch = branch.setdefault(part, {})
        branch[_END] = code
    return tree


_TREE: Final = _grow()


def _find(segments: Sequence[str]) -> int | None:
    """The code of a path. Where a fixed segment and a parameter fit, the fixed one is taken."""
    branches: list[_Tree] = [_TREE]
    for segment in segments:
        branches = [
            branch[part] for branch in branches for part in (segment, None) if part != _END and part in branch
        ]
    codes = [branch[_END] for branch in branches if _END in branch]
    return codes[0] if codes else None


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
    code = _find(segments)
    if code is not None:
        parameters = [
            segment for part, segment in zip(_TEMPLATES[code], segments, strict=True) if part is None
        ]
        encoder = X1Encoder(book, lossy=False)
        value = _write_code(code) + encoder.parameters(parameters)
        if len(value) <= MAX_URI_OPTION:
            return EncodedPath((value,), tuple(encoder.definitions))
    return EncodedPath(tuple(segment.encode() for segment in paths_v1.compress(segments)))


def expand_path(values: Sequence[bytes], book: AliasBook | None = None) -> tuple[str, ...]:
    """Read a path: one of x1, or else one of version 1 or plain segments.

    Args:
        values: The Uri-Path values of a request.
        book: The aliases of the association; None for none.

    Returns:
        The segments of the full path.

    Raises:
        UnknownPathError: there is no such code, or it has other parameters, or a plain segment is not UTF-8.
        UnknownAliasError: it refers to an alias that is not in the book.
        CborError: the parameters cannot be read.
    """
    if not is_x1_path(values):
        try:
            return paths_v1.expand([value.decode() for value in values])
        except UnicodeDecodeError:
            raise UnknownPathError("Uri-Path is not UTF-8") from None
    if len(values) != 1:
        raise UnknownPathError("An x1 path has one Uri-Path value")
    code, position = _read_code(values[0])
    template = _TEMPLATES.get(code)
    if template is None:
        raise UnknownPathError(f"x1 has no path code {code}")
    parser = X1Parser(values[0], Reader(b""), book, MAX_PATH_EXPANSION)
    segments: list[str] = []
    with _typed_errors():
        for part in template:
            if part is None:
                part, position = parser.parameter(position)
            segments.append(part)
    _finish(parser, book, position, len(values[0]))
    return tuple(segments)


def compress_query(values: Sequence[bytes], book: AliasBook | None = None) -> EncodedPath:
    """Write a query.

    Args:
        values: The Uri-Query values that it would have otherwise, `name=value` each, not percent-encoded.
        book: The aliases of the association; None for none.

    Returns:
        One value, if all of them are of that form and it fits and is shorter; otherwise `values` themselves.
    """
    pairs: list[tuple[str, str]] = []
    for value in values:
        name, equals, rest = value.partition(b"=")
        try:
            pairs.append((name.decode(), rest.decode()))
        except UnicodeDecodeError:
            equals = b""
        if not equals:
            return EncodedPath(tuple(values))
    encoder = X1Encoder(book, lossy=False)
    packed = bytes((_FIRST,)) + encoder.query(pairs)
    if len(packed) > MAX_URI_OPTION or len(packed) >= sum(map(len, values)) + len(values) - 1:
        return EncodedPath(tuple(values))
    return EncodedPath((packed,), tuple(encoder.definitions))


def expand_query(values: Sequence[bytes], book: AliasBook | None = None) -> tuple[bytes, ...]:
    """Read a query: one of x1, or else one that is not.

    Args:
        values: The Uri-Query values of a request.
        book: The aliases of the association; None for none.

    Returns:
        The values that it would have without x1: `values` themselves if they are none of x1.

    Raises:
        UnknownAliasError: it refers to an alias that is not in the book.
        CborError: it cannot be read.
    """
    if len(values) != 1 or values[0][:1] != bytes((_FIRST,)):
        return tuple(values)
    parser = X1Parser(values[0], Reader(b""), book, MAX_PATH_EXPANSION)
    position = 1
    plain: list[bytes] = []
    with _typed_errors():
        while position < len(values[0]):
            name, value, position = parser.pair(position)
            plain.append(f"{name}={value}".encode())
    _finish(parser, book, position, len(values[0]))
    return tuple(plain)


@contextmanager
def _typed_errors() -> Iterator[None]:
    try:
        yield
    except (IndexError, struct.error):
        raise X1Error(ENDS_EARLY) from None
    except UnicodeDecodeError:
        raise X1Error("A parameter that is not UTF-8") from None


def _finish(parser: X1Parser, book: AliasBook | None, position: int, length: int) -> None:
    if position != length:
        raise X1Error(ENDS_EARLY if position > length else "Bytes after the parameters")
    if book is not None:
        book.learn(parser.definitions)


def is_x1_path(values: Sequence[bytes]) -> bool:
    """Whether Uri-Path values are an x1 path."""
    return bool(values) and values[0][:1] >= b"\x80" and values[0][:1] <= b"\xc1"


def _write_code(code: int) -> bytes:
    if code < _SHORT_CODES:
        return bytes((_FIRST + code,))
    if code < _FIRST_OLD:
        return bytes((_LONG, code - _SHORT_CODES))
    return bytes((_OLD, code - _FIRST_OLD))


def _read_code(value: bytes) -> tuple[int, int]:
    """The code at the start of a value, and the position behind it."""
    if value[0] < _LONG:
        return value[0] - _FIRST, 1
    if len(value) < 2:
        raise UnknownPathError("A path code that ends early")
    return value[1] + (_SHORT_CODES if value[0] == _LONG else _FIRST_OLD), 2
