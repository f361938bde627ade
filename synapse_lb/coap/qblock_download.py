# SPDX-License-Identifier: AGPL-3.0-or-later
"""Client role: a response body of which many blocks are under way at once (Q-Block2, RFC 9177 section 4.4).

It knows no peer and sends nothing: `wanted` says which blocks to ask for now, `take` takes one that has arrived.

The client asks for blocks as fast as its window (`congestion`) allows: for a whole set, or the rest of one, with M;
for fewer by their numbers. A server sends the blocks in the order in which they were asked for. So what was asked
for clearly before a block that has arrived is lost, and is asked for again at once. Nothing else is, except that a
single block is when nothing arrives any more: what is merely late never is asked for twice.
"""

from __future__ import annotations

from typing import Final

from attrs import define

from synapse_lb.coap.block import MAX_BLOCK_NUMBER, Block
from synapse_lb.coap.blockwise import is_another
from synapse_lb.coap.congestion import CongestionWindow, Mark
from synapse_lb.coap.errors import BlockOptionError, BlockwiseError
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import OptionNumber
from synapse_lb.coap.qblock import blocks_in

_PATIENCE: Final = 0.25
_LONGEST_PATIENCE: Final = 2.0
"""Round trips by which blocks may overtake one another: at first, and at most."""

_QUANTUM: Final = 4
"""A request asks for a quarter of the window or more, so that a fast transfer takes few requests."""


@define(eq=False)
class Ask:
    """One request for blocks.

    Attributes:
        token: Of its message.
        mark: When it was sent.
        awaited: The blocks it asked for that are not here, however they come.
        heard: Whether a block with its token has arrived.
        given_up: Whether one of its blocks was lost.
    """

    token: bytes
    mark: Mark
    awaited: set[int]
    heard: bool = False
    given_up: bool = False


class Download:
    """One response body.

    Args:
        first: The message with block 0.
        block: Its Q-Block2 option.
        window: How many blocks may be under way.
        max_payloads: MAX_PAYLOADS.
        brief: Whether further blocks are asked for by the ETag alone.

    Raises:
        BlockwiseError: The message does not say what it has to.
    """

    def __init__(
        self,
        first: Message,
        block: Block,
        window: CongestionWindow,
        max_payloads: int,
        *,
        brief: bool = False,
    ) -> None:
        size = first.options.get_uint(OptionNumber.SIZE2)
        if size is None or block.number:
            raise BlockwiseError("the first block has no Size2, or is not the first")
        self.first = first
        self.size = size
        self.szx = block.szx
        self.count = blocks_in(size, block.szx)
        self.window = window
        self.asks: dict[bytes, Ask] = {}
        if self.count > MAX_BLOCK_NUMBER + 1:
            raise BlockwiseError("the body has more blocks than have numbers")
        self._max_payloads = max_payloads
        self._brief = brief
        self._parts: dict[int, bytes] = {}
        self._next = 1
        self._under_way: dict[int, Ask] = {}
        self._lost: set[int] = set()
        self._reordering = _PATIENCE
        self._store(first, block)

    @property
    def whole(self) -> bool:
        """Whether all blocks are here."""
        return len(self._parts) == self.count

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(self._parts[number] for number in range(self.count))

    def changed(self, message: Message) -> bool:
        """Whether a block is of another representation than the first one (RFC 7959 section 2.4)."""
        return is_another(message, self.first, brief=self._brief)

    # --- asking ---

    def wanted(self) -> list[int]:
        """Return the blocks to ask for in one request now, rising; empty if that has to wait."""
        room = self.window.window - len(self._under_way)
        left = len(self._lost) + self.count - self._next
        if room <= 0 or left == 0 or room < min(left, self.window.window // _QUANTUM):
            return []
        numbers = sorted(self._lost)[: min(room, self._max_payloads)]
        stop = min(self.count, self._next + min(room, self._max_payloads) - len(numbers))
        if stop - self._next > 1 and stop < self.count:
            # To the end of a set, if that is not far: then it can be named with M.
            end = stop // self._max_payloads * self._max_payloads
            stop = end if end - self._next > 1 else stop
        return numbers + list(range(self._next, max(stop, self._next)))

    def asked(self, token: bytes, numbers: list[int], now: float) -> int:
        """Note that a request for these blocks is sent; return how many of them were asked for before."""
        again = 0
        ask = self.asks[token] = Ask(token, self.window.mark(now), set(numbers))
        for number in numbers:
            if number >= self._next:
                self._next = number + 1
            else:
                again += 1
            self._lost.discard(number)
            self._under_way.pop(number, None)
            self._under_way[number] = ask
        return again

    def overdue(self, now: float) -> list[int]:
        """Nothing has arrived for the time of `window.timeout`: return the one block to ask for."""
        self.window.expired(now)
        if self._lost:
            return [min(self._lost)]
        if self._under_way:
            return [min(self._under_way)]
        return [self._next] if self._next < self.count else []

    # --- taking ---

    def take(self, message: Message, block: Block, now: float) -> bool:
        """Take one block of this representation.

        Args:
            message: With a token that is in `asks`, or that of the request for block 0.
            block: Its Q-Block2 option.
            now: Monotonic seconds.

        Returns:
            Whether it is new.

        Raises:
            BlockwiseError: It does not fit.
            BlockOptionError: It is no block of this body.
        """
        if block.szx != self.szx or message.options.get_uint(OptionNumber.SIZE2) not in (self.size, None):
            raise BlockwiseError("the peer has changed the size in the midst of a transfer")
        if block.number >= self.count:
            raise BlockOptionError(f"block {block.number} of {self.count}")
        ask = self.asks.get(message.token)
        if block.number in self._parts:
            return False
        self._store(message, block)
        if self._under_way.pop(block.number, None) is not ask:
            # It was late, not lost: be more patient with the others.
            self._reordering = min(_LONGEST_PATIENCE, self._reordering * 2)
        self._lost.discard(block.number)
        if ask is not None:
            self.window.arrived(ask.mark, now, first=not ask.heard)
            ask.heard = True
            self._detect_losses(ask.mark, now)
        for token, other in list(self.asks.items()):
            other.awaited.discard(block.number)
            if not other.awaited:
                del self.asks[token]
        return True

    def _detect_losses(self, arrived: Mark, now: float) -> None:
        """Give up what was asked for clearly before the block that has arrived (as in RACK, RFC 8985)."""
        before = arrived.time - self._reordering * self.window.smoothed_rtt
        for number, ask in list(self._under_way.items()):
            if ask.mark.time >= before:
                return
            del self._under_way[number]
            self._lost.add(number)
            if ask.heard or not ask.given_up:
                # If none of its blocks has come, it was the request that was lost.
                self.window.lost(ask.mark, now)
            ask.given_up = True

    def _store(self, message: Message, block: Block) -> None:
        expected = min(block.size, self.size - block.offset)
        if len(message.payload) != expected or block.more != (block.number + 1 < self.count):
            raise BlockwiseError(f"block {block.number} has {len(message.payload)} bytes, not {expected}")
        self._parts[block.number] = message.payload
