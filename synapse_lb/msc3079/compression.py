# SPDX-License-Identifier: AGPL-3.0-or-later
"""The content coding deflate of Content-Format 11060 (IANA CoAP Content-Formats; RFC 9110 section 8.4.1.2).

It is the zlib format (RFC 1950) around deflate (RFC 1951). Some senders leave the zlib format out, in HTTP as here
(RFC 9110, the note in the same section), so both are read; only the zlib format is written.
"""

from __future__ import annotations

import zlib
from typing import Final

from synapse_lb.msc3079.errors import CompressionError

_LEVEL: Final = 6
"""zlib's own choice: level 9 takes twice the time for less than one percent."""

_SMALL: Final = 2048
_SMALL_WINDOW: Final = 12
_SMALL_MEMORY: Final = 5
"""What zlib needs to make the same of so many bytes, a tenth of the memory that it clears for any number of them: a
window of 4 KiB, and room for 2,048 symbols."""

_MOST_EXPANDED: Final = 4 << 20
_ALWAYS_EXPANDED: Final = 64 << 10
_TIMES_EXPANDED: Final = 128

_RAW: Final = -zlib.MAX_WBITS
_DEFLATED: Final = 8
_PRESET_DICTIONARY: Final = 0x20


ALWAYS_INFLATED: Final = 4096
"""B: what any compressed request may become."""

TIMES_INFLATED: Final = 10
"""What a larger one may become, in times its own size. Requests of Matrix become a fifth at best; deflate alone could
make a thousandth, so that one datagram would keep the server busy for a second before it is known who sent it."""


def most_inflated(size: int, limit: int) -> int:
    """How many bytes a compressed request may become.

    Args:
        size: Its bytes.
        limit: What no request may exceed.
    """
    return min(limit, max(ALWAYS_INFLATED, TIMES_INFLATED * size))


def most_expanded(size: int) -> int:
    """How many characters the references of a request of x1 may stand for.

    Args:
        size: Its bytes, as they came. A reference to the longest alias takes two of them.
    """
    return min(_MOST_EXPANDED, _ALWAYS_EXPANDED + _TIMES_EXPANDED * size)


def deflate(data: bytes) -> bytes:
    """Compress."""
    if len(data) > _SMALL:
        return zlib.compress(data, _LEVEL)
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _SMALL_WINDOW, _SMALL_MEMORY)
    return stream.compress(data) + stream.flush()


def inflate(data: bytes, limit: int) -> bytes:
    """Decompress what a peer sent, in memory that `limit` bounds.

    Args:
        data: One stream, with nothing behind it.
        limit: Bytes that may come out.

    Raises:
        CompressionError: It is no such stream, or more comes out of it.
    """
    stream = zlib.decompressobj(zlib.MAX_WBITS if _has_zlib_header(data) else _RAW)
    try:
        # One byte more shows that there is more; zlib takes a length of 0 for none.
        found = stream.decompress(data, limit + 1)
    except zlib.error:
        raise CompressionError("The body is not what deflate makes") from None
    if len(found) > limit:
        raise CompressionError(f"The body has more than {limit} bytes when decompressed", too_large=True)
    if not stream.eof:
        raise CompressionError("The compressed body ends early")
    if stream.unused_data:
        raise CompressionError("There are bytes behind the compressed body")
    return found


def _has_zlib_header(data: bytes) -> bool:
    """Whether it begins as RFC 1950 section 2.2 says; not with a preset dictionary, since none is agreed.

    Deflate itself begins so only where the bits that it skips before a stored block are not zero, and nobody writes
    them so.
    """
    if len(data) < 2:
        return False
    method, flags = data[0], data[1]
    return method & 0x0F == _DEFLATED and (method << 8 | flags) % 31 == 0 and not flags & _PRESET_DICTIONARY
