# SPDX-License-Identifier: AGPL-3.0-or-later
"""The value of the Block1 and Block2 options (RFC 7959 section 2.2)."""

from __future__ import annotations

from attrs import frozen

from synapse_lb.coap.errors import BlockOptionError, OptionError
from synapse_lb.coap.options import decode_uint, encode_uint

MAX_SZX = 6
"""The largest size exponent: 1024 bytes; 7 is reserved (RFC 7959 section 2.2)."""

MAX_BLOCK_NUMBER = 0xFFFFF
"""Block numbers are 20 bits wide (RFC 7959 section 2.2)."""


def block_size(szx: int) -> int:
    """Return the bytes of a block with the size exponent `szx`, 0-6: 16 to 1024."""
    return 16 << szx


def largest_szx(size: int) -> int | None:
    """Return the size exponent of the largest block that fits in `size` bytes, or None if none does."""
    return None if size < 16 else min(size.bit_length() - 5, MAX_SZX)


#         0
#         0 1 2 3 4 5 6 7
#        +-+-+-+-+-+-+-+-+
#        |  NUM  |M| SZX |
#        +-+-+-+-+-+-+-+-+
#         0                   1
#         0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5
#        +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#        |          NUM          |M| SZX |
#        +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#         0                   1                   2
#         0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3
#        +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#        |                   NUM                 |M| SZX |
#        +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#
#                    (RFC 7959 section 2.2, figure 1)
@frozen
class Block:
    """A Block1 or Block2 value.

    Attributes:
        number: Of the block, from 0, in units of its own size.
        more: Whether blocks follow (M); in a Block2 of a request it is 0 and means nothing.
        szx: Size exponent, 0-6.
    """

    number: int
    more: bool
    szx: int

    @property
    def size(self) -> int:
        """Bytes in the block; the last one may hold fewer."""
        return 16 << self.szx

    @property
    def offset(self) -> int:
        """Bytes of the body before the block."""
        return self.number << (self.szx + 4)

    def encode(self) -> bytes:
        """Return the option value, 0-3 bytes.

        Raises:
            OptionError: The number is over 20 bits, or the size exponent over 6.
        """
        if not 0 <= self.number <= MAX_BLOCK_NUMBER or not 0 <= self.szx <= MAX_SZX:
            raise OptionError(f"no block option has NUM {self.number} and SZX {self.szx}")
        return encode_uint(self.number << 4 | self.more << 3 | self.szx)

    @classmethod
    def decode(cls, value: bytes) -> Block:
        """Read an option value.

        Raises:
            BlockOptionError: It has more than three bytes, or SZX is 7.
        """
        if len(value) > 3:
            raise BlockOptionError(f"a block option of {len(value)} bytes")
        bits = decode_uint(value)
        if bits & 0x07 > MAX_SZX:
            raise BlockOptionError("a block option with the reserved SZX 7")
        return cls(bits >> 4, bits & 0x08 != 0, bits & 0x07)

    def with_szx(self, szx: int) -> Block:
        """Name the same offset in units of another size (RFC 7959 section 2.4, late negotiation).

        Raises:
            OptionError: The offset is no multiple of that size.
        """
        if not 0 <= szx <= MAX_SZX or self.offset % block_size(szx):
            raise OptionError(f"offset {self.offset} is no multiple of a block of SZX {szx}")
        return Block(self.offset // block_size(szx), self.more, szx)
