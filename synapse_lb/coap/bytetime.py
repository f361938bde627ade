# SPDX-License-Identifier: AGPL-3.0-or-later
"""How much longer a round trip takes with more bytes in it.

RFC 6298 takes every round trip for the same. On a link of 1200 bit/s a block of 1024 bytes takes seven seconds more
than an acknowledgement does, and after some small messages the timeout is too short for the first large one. So a line
is laid through round trips over their bytes (least squares, older ones fading), and a message that is larger than
usual, or whose answer will be, is given the time that its further bytes take.
"""

from __future__ import annotations

from typing import Final

OVERHEAD: Final = 57
"""B that IPv4, UDP and DTLS 1.2 add to a message, about; it only has to be of the right order."""

EMPTY: Final = 4
"""B of an empty acknowledgement (RFC 7252 section 3)."""

_FADING: Final = 1 / 8
_LEAST_SPREAD: Final = 48.0
"""B: where sizes differ by less (standard deviation), they tell nothing about the time of a byte."""

_MARGIN: Final = 1.25
"""How much more time is given than the line says."""


class ByteTime:
    """Round trips over bytes, of one peer.

    Bytes are those of the message and of what acknowledges it, `OVERHEAD` of both included.
    """

    __slots__ = ("_product", "_rtt", "_seconds", "_size", "_square")

    def __init__(self) -> None:
        self._size: float | None = None
        self._rtt = 0.0
        self._square = 0.0
        self._product = 0.0
        self._seconds: float | None = None

    def sample(self, size: int, rtt: float) -> None:
        """Take in a round trip of `rtt` seconds with `size` bytes in it."""
        if self._size is None:
            self._size, self._rtt = float(size), rtt
            return
        # Weighted running covariance (West, 1979; Finch, 2009).
        more, longer = size - self._size, rtt - self._rtt
        self._size += _FADING * more
        self._rtt += _FADING * longer
        self._square = (1 - _FADING) * (self._square + _FADING * more * more)
        self._product = (1 - _FADING) * (self._product + _FADING * more * longer)
        if self._square >= _LEAST_SPREAD * _LEAST_SPREAD:
            self._seconds = max(0.0, self._product / self._square)

    def seconds(self) -> float:
        """Return the seconds that one byte takes: at most as many as if nothing else took any time, and so many as
        long as all had the same size."""
        if not self._size:
            return 0.0
        most = self._rtt / self._size
        return most if self._seconds is None else min(self._seconds, most)

    def further(self, size: int) -> float:
        """Return the seconds that a round trip with `size` bytes takes longer than usual ones, with a margin."""
        if self._size is None:
            return 0.0
        return max(0.0, size - self._size) * self.seconds() * _MARGIN
