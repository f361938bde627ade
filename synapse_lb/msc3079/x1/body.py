# SPDX-License-Identifier: AGPL-3.0-or-later
"""x1 bodies, whole: encode and decode (docs/extensions.md, "x1 bodies")."""

from __future__ import annotations

import struct
import zlib
from typing import Any, Final

import attrs

from synapse_lb.msc3079 import cbor
from synapse_lb.msc3079.compression import most_inflated
from synapse_lb.msc3079.x1.aliases import AliasBook
from synapse_lb.msc3079.x1.decoder import X1Parser
from synapse_lb.msc3079.x1.dictionary import DICTIONARY
from synapse_lb.msc3079.x1.encoder import X1Encoder
from synapse_lb.msc3079.x1.errors import TooLargeError, X1Error
from synapse_lb.msc3079.x1.texts import ENDS_EARLY, Reader

COMPRESSED: Final = 0x1C
"""First byte of a body whose CBOR is deflated. No CBOR begins so (RFC 8949 section 3: a reserved head)."""

_MARK: Final = bytes((COMPRESSED,))

_SMALLEST: Final = 24
"""Bytes of CBOR below which it is not worth a try."""

_LEVEL: Final = 9
_RAW_DEFLATE: Final = -15


@attrs.frozen
class BodyLimits:
    """What a body may hold.

    Attributes:
        max_depth: Nested arrays and maps.
        max_size: Bytes of CBOR when it is inflated.
        max_expansion: Characters that references within the body and to aliases may stand for, all together.
    """

    max_depth: int = attrs.field(default=cbor.DEFAULT_MAX_DEPTH, validator=attrs.validators.ge(1))
    max_size: int = attrs.field(default=1 << 20, validator=attrs.validators.ge(1))
    max_expansion: int = attrs.field(default=4 << 20, validator=attrs.validators.ge(0))


DEFAULT_LIMITS: Final = BodyLimits()


@attrs.frozen
class Encoded:
    """A body that was written.

    Attributes:
        data: Its bytes.
        definitions: Numbers of the aliases that it defines: once the peer is known to have read it, to be given
            to `AliasBook.confirm`.
    """

    data: bytes = attrs.field(repr=False)
    definitions: tuple[int, ...] = ()


def encode_body(
    value: Any,
    book: AliasBook | None = None,
    *,
    compress: bool = True,
    lossy: bool = False,
    request: bool = False,
) -> Encoded:
    """Write a JSON value as an x1 body.

    The same value and the same book give the same bytes. The order of keys is not kept.

    Args:
        value: The value; what `cbor.encode` takes.
        book: The aliases of the association; None for none.
        compress: Whether it may be deflated (if that makes it smaller): not if it has a secret together with
            somebody else's text, since the length would then tell about the secret.
        lossy: As in `cbor.encode`; for answers.
        request: Whether it is a request's, which a server does not inflate without bounds (`most_inflated`).

    Raises:
        CborError: the value has something that has no CBOR form, or contains itself.
    """
    encoder = X1Encoder(book, lossy)
    plain = encoder.encode(value)
    data = plain
    if compress and len(plain) >= _SMALLEST:
        deflater = zlib.compressobj(_LEVEL, zlib.DEFLATED, _RAW_DEFLATE, zdict=DICTIONARY)
        packed = deflater.compress(plain) + deflater.flush()
        believed = not request or len(plain) <= most_inflated(len(packed), len(plain))
        if len(_MARK) + len(packed) < len(plain) and believed:
            data = _MARK + packed
    return Encoded(data + encoder.tail[::-1], tuple(encoder.definitions))


def decode_body(data: bytes, book: AliasBook | None = None, limits: BodyLimits = DEFAULT_LIMITS) -> Any:
    """Read an x1 body. The aliases that it defines are remembered, if all of it could be read.

    Args:
        data: The body.
        book: The aliases of the association; None for none.
        limits: What it may hold.

    Raises:
        UnknownAliasError: it refers to an alias that is not in the book.
        TooLargeError: it holds more than allowed.
        CborError: it is no x1 body.
    """
    if len(data) > limits.max_size:
        raise TooLargeError(f"A body of more than {limits.max_size} bytes")
    plain, used = _inflate(data, limits.max_size) if data[:1] == _MARK else (data, 0)
    tail = Reader(data[::-1])
    parser = X1Parser(plain, tail, book, limits.max_expansion)
    try:
        value, end = parser.run(limits.max_depth)
    except (IndexError, struct.error):
        raise X1Error(ENDS_EARLY) from None
    except UnicodeDecodeError:
        raise X1Error("Text that is not UTF-8") from None
    if used:
        if end != len(plain):
            raise X1Error(ENDS_EARLY if end > len(plain) else "Bytes after the CBOR item")
        end = used
    if end > tail.left:
        raise X1Error(ENDS_EARLY)
    if end < tail.left:
        raise X1Error("Bytes between the CBOR item and the tail")
    if book is not None:
        book.learn(parser.definitions)
    return value


def _inflate(data: bytes, max_size: int) -> tuple[bytes, int]:
    """Undo the compression.

    Returns:
        The CBOR, and how many bytes of `data` it took.
    """
    inflater = zlib.decompressobj(_RAW_DEFLATE, zdict=DICTIONARY)
    try:
        plain = inflater.decompress(memoryview(data)[1:], max_size + 1)
    except zlib.error:
        raise X1Error("A body that cannot be inflated") from None
    if len(plain) > max_size:
        raise TooLargeError(f"A body that inflates to more than {max_size} bytes")
    if not inflater.eof:
        raise X1Error(ENDS_EARLY)
    return plain, len(data) - len(inflater.unused_data)
