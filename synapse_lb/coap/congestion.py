# SPDX-License-Identifier: AGPL-3.0-or-later
"""How many blocks of one transfer may be under way: the congestion control of Q-Block (RFC 9177 section 7).

RFC 9177 has one set of MAX_PAYLOADS blocks for each round trip, which crawls on a long way, and sends that set at
once, which floods a slow one. Here a window does both:

- It starts with few blocks, the fewer the longer the first block took, and doubles each round trip.
- The queue on the way is what a round trip takes longer than the shortest that was seen. It may grow to
  `QUEUE_TARGET` seconds and one block; then the window shrinks to what keeps it there (as in TCP Vegas, RFC 6817).
- The window never grows far beyond twice what fills the way at the rate at which blocks *do* arrive.
- A loss says little on a lossy way. Where there is no queue, one or two losses in a round trip are tolerated, and an
  eighth of the window; the window goes on doubling (as in BBR, draft-ietf-ccwg-bbr section 5.3.1.3). More of them, or
  with a queue, and the window becomes what fills the way (as in TCP Westwood), but it is never more than halved in one
  round trip. From then on it grows by an eighth each round trip, where there is no queue.
- Silence means congestion: the window becomes `LEAST_WINDOW`, and the timeout doubles. From there it doubles again, to
  half of what it was; without that end if it was small, for then a few losses are silence too.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from attrs import frozen

LEAST_WINDOW: Final = 2
"""Blocks: one on its way while the other is asked for."""

GREATEST_START: Final = 10
"""Blocks: the largest first window (RFC 6928)."""

QUEUE_TARGET: Final = 0.1
"""s: the delay that a transfer may add on a fast way (RFC 6817 section 3.3 has 0.1 too)."""

TOLERATED: Final = 1 / 8
"""The share of a window that may be lost in a round trip without being taken for congestion."""

ALWAYS_TOLERATED: Final = 1.5
"""Blocks on top of that share: in a small window a lossy way takes that many without being narrow. (With 2 a way with
room for five blocks loses a third of them.)"""

STARTING: Final = 2.5
"""While the window doubles, it may be so many times what fills the way at the rate that was seen: blocks of one
round trip arrive spread over it, so that twice the rate would let it grow by little more than half."""

_GRANULARITY: Final = 0.1
_START_SPAN = 2.0
_SAMPLES = 8


@frozen
class Mark:
    """When something was sent.

    Attributes:
        time: Monotonic seconds.
        delivered: Blocks that had been delivered by then.
    """

    time: float
    delivered: int


class CongestionWindow:
    """The window of one transfer.

    Args:
        first: Seconds that the first block took, from the request on.
        limit: Blocks, the largest window.
        timeout: Seconds, the timeout until a round trip was measured.
        max_timeout: Seconds, the largest timeout.
        adaptive: Whether the timeout follows what was measured; else it is `timeout`, and doubles.
    """

    def __init__(
        self, *, first: float, limit: int, timeout: float, max_timeout: float, adaptive: bool = True
    ) -> None:
        start = _START_SPAN / first if first > 0 else GREATEST_START
        self._window = float(min(limit, max(LEAST_WINDOW, min(start, GREATEST_START))))
        self._least = min(LEAST_WINDOW, limit)
        self._limit = limit
        self._threshold = float(limit)
        self._timeout = timeout
        self._max_timeout = max_timeout
        self._adaptive = adaptive
        self._delivered = 0
        self._reduced_at = float("-inf")
        self._round_began = float("-inf")
        self._round_losses = 0
        self._expiries = 0
        self._srtt: float | None = None
        self._rttvar = 0.0
        self._base = float("inf")
        self._recent: deque[float] = deque(maxlen=_SAMPLES)
        self._rates: deque[tuple[float, float]] = deque()

    @property
    def window(self) -> int:
        """Blocks that may be under way."""
        return int(self._window)

    @property
    def smoothed_rtt(self) -> float:
        """Seconds of a round trip with a block in it, or the timeout before the first measurement."""
        return self._timeout if self._srtt is None else self._srtt

    @property
    def rate(self) -> float:
        """Blocks per second that have been arriving lately; 0 if that is not known."""
        return self._rates[0][1] if self._rates else 0.0

    @property
    def expiries(self) -> int:
        """How often `timeout` has passed since the last arrival."""
        return self._expiries

    @property
    def timeout(self) -> float:
        """Seconds without an arrival after which something must have been lost."""
        timeout = self._timeout
        if self._adaptive and self._srtt is not None:
            between = 1 / self.rate if self.rate else 0.0
            timeout = self._srtt + max(4 * self._rttvar, _GRANULARITY) + between
        elif not self._adaptive:
            return timeout * float(1 << self._expiries)
        return min(timeout * float(1 << self._expiries), max(timeout, self._max_timeout))

    def mark(self, now: float) -> Mark:
        """Note that something is sent now."""
        return Mark(now, self._delivered)

    def arrived(self, mark: Mark, now: float, *, first: bool) -> None:
        """Take in that a block has arrived.

        Args:
            mark: Of when it was asked for, or sent.
            now: Monotonic seconds.
            first: Whether it is the first with this mark; only then it tells the round trip.
        """
        self._delivered += 1
        self._expiries = 0
        if now > mark.time:
            if first:
                self._sample(now - mark.time)
            self._measure_rate(mark, now)
        queue, allowed = self._queue(), self._allowed()
        if queue > allowed:
            if mark.time >= self._reduced_at:
                share = (self._base + allowed) / (self._base + queue)
                self._reduce(self._window * max(share, 0.5), now)
        elif self._window < self._threshold:
            self._grow(1.0, max(2 * self._full() + 1, STARTING * self._full()))
        elif queue < allowed / 2:
            self._grow(max(1.0, self._window / 8) / self._window, 2 * self._full() + 1)

    def lost(self, mark: Mark, now: float) -> None:
        """Take in that a datagram with this mark was lost."""
        if mark.time >= self._round_began:
            self._round_began, self._round_losses = now, 0
        self._round_losses += 1
        if mark.time < self._reduced_at:
            return
        if (
            self._round_losses <= ALWAYS_TOLERATED + self._window * TOLERATED
            and self._queue() < self._allowed()
        ):
            return
        filling = self._full() if self._recent else 0.0
        self._reduce(min(self._window, max(filling, self._window / 2)), now)

    def expired(self, now: float) -> None:
        """Take in that nothing has arrived for `timeout` seconds."""
        self._expiries += 1
        if self._expiries == 1 and self._window > GREATEST_START:
            self._threshold = max(self._window / 2, self._least)
        self._window = float(self._least)
        self._reduced_at = now

    def _grow(self, by: float, most: float) -> None:
        """Grow, but not beyond what the rate justifies."""
        self._window = max(self._window, min(self._window + by, most, self._limit))

    def _reduce(self, window: float, now: float) -> None:
        self._window = self._threshold = max(window, self._least)
        self._reduced_at = now

    def _sample(self, rtt: float) -> None:
        if self._srtt is None:
            self._srtt, self._rttvar = rtt, rtt / 2
        else:
            self._rttvar += (abs(self._srtt - rtt) - self._rttvar) / 4
            self._srtt += (rtt - self._srtt) / 8
        self._base = min(self._base, rtt)
        self._recent.append(rtt)

    def _measure_rate(self, mark: Mark, now: float) -> None:
        """Take the rate over the time that a block took; the greatest of the last two round trips counts."""
        rates, rate = self._rates, (self._delivered - mark.delivered) / (now - mark.time)
        while rates and rates[-1][1] <= rate:
            rates.pop()
        rates.append((now, rate))
        while rates[0][0] < now - 2 * self.smoothed_rtt:
            rates.popleft()

    def _queue(self) -> float:
        """Return the seconds of delay that are not the way's own; the least of the latest, for jitter is none."""
        if not self._recent:
            return 0.0
        latest = min(len(self._recent), max(1, int(self._window) // 4))
        return min(list(self._recent)[-latest:]) - self._base

    def _full(self) -> float:
        """Return the blocks that fill the way; with more of them only the queue grows."""
        return self.rate * self._base if self._recent else float(self._limit)

    def _allowed(self) -> float:
        return QUEUE_TARGET + (1 / self.rate if self.rate else 0.0)
