# SPDX-License-Identifier: AGPL-3.0-or-later
"""What both roles of Q-Block1 and Q-Block2 share (RFC 9177): reading and naming blocks, and the list of missing ones.

Q-Block differs from Block in that many blocks are under way at once. A body is cut into sets of MAX_PAYLOADS
blocks; what has been lost is named and sent again, and nothing else is.

Where this package does other than RFC 9177 recommends, always in a way that its peer cannot tell from the RFC's:

- A client asks for the first block only (Q-Block2 0/0/szx), in a Confirmable message, and then drives the transfer
  itself with Non-confirmable requests: for several sets at once, or for less than one, as `congestion` says.
- A server sends no set before it is asked for (section 7.2 has NON_TIMEOUT for that); `qblock_server` says why.
- The client's wait for missing blocks follows the measured round trip instead of NON_RECEIVE_TIMEOUT, and it gives
  up after NON_MAX_RETRANSMIT requests in vain, but not before MAX_TRANSMIT_SPAN. `Tuning.adaptive_rto` off restores
  the RFC's times. The server's wait is NON_RECEIVE_TIMEOUT, or
  three times the gap between blocks; where the round trip is known, two of that for the blocks of a set.
- A request body goes up in Confirmable blocks, with a window in place of NSTART (section 7.1 leaves that open), unless
  the request is Non-confirmable: then it goes in sets, as section 7.2 has it.
- A body that a server does not keep any more is never made anew for a later block: 4.08 (section 4.4 would allow it).
- PROBING_RATE holds up the next Non-confirmable body to a silent peer by sending it with Block1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

from attrs import frozen

from synapse_lb.coap.block import Block
from synapse_lb.coap.errors import BlockwiseError, UnrecognizedOption
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options

Q_BLOCK_OPTIONS: Final = frozenset({int(OptionNumber.Q_BLOCK1), int(OptionNumber.Q_BLOCK2)})
"""The critical options that an endpoint understands if it knows RFC 9177 (section 4.1: both or neither)."""

MISSING_BLOCKS: Final = 272
"""The Content-Format application/missing-blocks+cbor-seq (RFC 9177 section 12.3)."""

_UINT_8, _UINT_16, _UINT_32 = 0x18, 0x19, 0x1A


@frozen
class QBlocks:
    """The Q-Block options of a request.

    Attributes:
        upload: Q-Block1, or None.
        wanted: Q-Block2, in the order of the message; all of one size.
    """

    upload: Block | None
    wanted: tuple[Block, ...]

    @classmethod
    def read(cls, options: Options) -> QBlocks | None:
        """Read them; None if there are none.

        Raises:
            BlockOptionError: One has the reserved SZX 7 (4.00).
            BlockwiseError: The blocks that are asked for do not rise, or differ in size (4.00).
            UnrecognizedOption: Block1 or Block2 is there too (RFC 9177 section 4.1: 4.02).
        """
        if not any(number in Q_BLOCK_OPTIONS for number, _ in options):
            return None
        for number in (OptionNumber.BLOCK1, OptionNumber.BLOCK2):
            if number in options:
                raise UnrecognizedOption(number)
        value = options.get(OptionNumber.Q_BLOCK1)
        upload = None if value is None else Block.decode(value)
        wanted = tuple(Block.decode(each) for each in options.get_all(OptionNumber.Q_BLOCK2))
        for former, latter in pairwise(wanted):
            if latter.number <= former.number or latter.szx != former.szx:
                raise BlockwiseError("the blocks that are asked for do not rise", Code.BAD_REQUEST)
        if upload is not None and wanted and (len(wanted) > 1 or wanted[0].number):
            raise BlockwiseError("a Q-Block2 beyond the first with a Q-Block1", Code.BAD_REQUEST)
        return cls(upload, wanted)

    @property
    def opening(self) -> Block:
        """What of the response is wanted at first: only its first block, or (M) its first set too.

        A client that sends Q-Block1 alone wants its response in sets (RFC 9177 section 4.1).
        """
        if self.wanted:
            return self.wanted[0]
        assert self.upload is not None
        return Block(0, True, self.upload.szx)


def blocks_in(size: int, szx: int) -> int:
    """Return how many blocks a body of `size` bytes has, at least one."""
    return max(1, -(-size // (16 << szx)))


def numbers_of(wanted: Iterable[Block], count: int, max_payloads: int) -> list[int]:
    """Return the numbers that Q-Block2 options name, each once (RFC 9177 section 4.4).

    M means: this block and all that follow it in its set. No more than `max_payloads` are returned, whatever is
    named: one request yields one set.

    Args:
        wanted: The options, rising.
        count: Blocks of the body; what is beyond it is left out.
        max_payloads: MAX_PAYLOADS.
    """
    numbers: list[int] = []
    last = -1
    for block in wanted:
        stop = (block.number // max_payloads + 1) * max_payloads if block.more else block.number + 1
        for number in range(max(block.number, last + 1), min(stop, count)):
            if len(numbers) == max_payloads:
                return numbers
            numbers.append(number)
            last = number
    return numbers


def name_blocks(numbers: Sequence[int], szx: int, count: int, max_payloads: int) -> list[Block]:
    """Return Q-Block2 options that name exactly these blocks.

    Args:
        numbers: Rising, none of them 0: with M, that would ask for the whole body anew.
        szx: Size exponent.
        count: Blocks of the body.
        max_payloads: MAX_PAYLOADS.
    """
    named: list[Block] = []
    index = 0
    while index < len(numbers):
        first = numbers[index]
        stop = min((first // max_payloads + 1) * max_payloads, count)
        rest = stop - first
        if rest > 1 and index + rest <= len(numbers) and numbers[index + rest - 1] == stop - 1:
            named.append(Block(first, True, szx))
            index += rest
        else:
            named.append(Block(first, False, szx))
            index += 1
    return named


def encode_missing(numbers: Iterable[int], room: int) -> bytes:
    """Return the payload of a 4.08 that names missing blocks (RFC 9177 section 5): a CBOR sequence of uints.

    Args:
        numbers: Rising.
        room: Bytes; what does not fit is left out.
    """
    encoded = b""
    for number in numbers:
        item = _encode_uint(number)
        if len(encoded) + len(item) > room:
            break
        encoded += item
    return encoded


def _encode_uint(number: int) -> bytes:
    if number < _UINT_8:
        return bytes((number,))
    if number < 0x100:
        return bytes((_UINT_8, number))
    if number < 0x10000:
        return bytes((_UINT_16,)) + number.to_bytes(2, "big")
    return bytes((_UINT_32,)) + number.to_bytes(4, "big")


def decode_missing(payload: bytes, count: int) -> list[int]:
    """Read the payload of a 4.08 that names missing blocks.

    Args:
        payload: A CBOR sequence of uints.
        count: Blocks of the body.

    Returns:
        Their numbers, rising.

    Raises:
        BlockwiseError: It is nothing like that, names none, or they do not rise or are not in the body.
    """
    numbers: list[int] = []
    position = 0
    while position < len(payload):
        head = payload[position]
        width = {_UINT_8: 1, _UINT_16: 2, _UINT_32: 4}.get(head, 0)
        if head > _UINT_32 or position + 1 + width > len(payload):
            raise BlockwiseError("the list of missing blocks is malformed", None)
        number = int.from_bytes(payload[position + 1 : position + 1 + width], "big") if width else head
        if number >= count or (numbers and number <= numbers[-1]):
            raise BlockwiseError("the list of missing blocks does not rise, or exceeds the body", None)
        numbers.append(number)
        position += 1 + width
    if not numbers:
        raise BlockwiseError("the list of missing blocks is empty", None)
    return numbers
