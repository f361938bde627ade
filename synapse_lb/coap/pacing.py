# SPDX-License-Identifier: AGPL-3.0-or-later
"""Server role: when the blocks of a set leave (RFC 9177 section 7).

A client asks for several blocks at once; to send them at once would fill the queue in front of the narrowest link.
In the long run a client asks as fast as blocks reach it, so that is the rate of the way. The blocks leave at
`GAIN` times that rate, which lets the client's window double each round trip, but a set always leaves within
half a round trip. As long as no round trip is known there is no rate either, and the blocks leave at once.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from attrs import define, field, frozen

from synapse_lb.coap.snapshots import Snapshot
from synapse_lb.coap.timers import Timer

GAIN: Final = 2.5
"""How much faster than the client asks its blocks may leave."""

_SLACK = 0.002


@frozen
class Queued:
    """One block that waits to be sent.

    Attributes:
        snapshot: Of which body.
        number: Of the block.
        szx: Its size exponent.
        token: Of the request.
        brief: Whether the request named the body by its ETag alone.
    """

    snapshot: Snapshot
    number: int
    szx: int
    token: bytes
    brief: bool


@define(eq=False)
class Pacer:
    """The blocks that wait to be sent to one peer, and the rate at which it asks for blocks.

    Attributes:
        queue: In their order.
        timer: When the next one leaves; None while none waits.
        rate: Bytes per second; 0 if it is not known.
    """

    queue: deque[Queued] = field(factory=deque)
    timer: Timer | None = None
    rate: float = 0.0
    _next_at: float = 0.0
    _since: float | None = None
    _asked: int = 0

    def asked(self, size: int, span: float, now: float) -> None:
        """Take in that the peer has asked for so many bytes.

        Args:
            size: Bytes.
            span: Seconds over which the rate is measured; a round trip.
            now: Monotonic seconds.
        """
        if self._since is None:
            self._since = now
        elif now - self._since >= span > 0:
            sample = self._asked / (now - self._since)
            self.rate = max(sample, self.rate * 0.75)
            self._since, self._asked = now, 0
        self._asked += size

    def interval(self, size: int, set_size: int, rtt: float | None) -> float:
        """Return the seconds from a block of `size` bytes to the next.

        Args:
            size: Bytes of the block.
            set_size: Blocks of a set.
            rtt: Seconds of a round trip, or None.
        """
        if not rtt:
            return 0.0
        widest = rtt / (2 * set_size)
        return min(widest, size / (GAIN * self.rate)) if self.rate else widest

    def due(self, now: float) -> bool:
        """Whether the next block may leave now."""
        return self._next_at <= now + _SLACK

    def sent(self, interval: float, now: float) -> None:
        """Note that a block has left."""
        self._next_at = max(now, self._next_at) + interval

    @property
    def next_at(self) -> float:
        """When the next block may leave, in monotonic seconds."""
        return self._next_at
