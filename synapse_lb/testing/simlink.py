# SPDX-License-Identifier: AGPL-3.0-or-later
"""A simulated link: rate, delay, loss and a queue, on whatever clock its user has; no sockets, no real time.

`SimulatedLink` is one direction of a way, and pure: `send` says when a datagram arrives, if it does. The queue in
front of the link is the only place where datagrams wait, as in a router with a drop-tail buffer:

    sender --> [ queue | rate ] --> loss --> delay, jitter --> receiver

Twisted code calls `send` and schedules the arrivals on its (fake) clock.
"""

from __future__ import annotations

import random

import attrs


@attrs.frozen
class LinkShape:
    """What one direction of a link is like.

    Args:
        rate: bytes per second; 0 for a link without a limit.
        delay: seconds from one end to the other, besides the time that the bytes take at `rate`.
        jitter: seconds at most that are added to `delay`, drawn per datagram; they overtake one another.
        loss: probability that a datagram is lost behind the queue.
        duplication: probability that it arrives twice.
        queue: bytes that may wait for the link; what comes on top is lost. None for no limit (bufferbloat).
        overhead: bytes that the lower layers add to each datagram (for IPv4, UDP and DTLS 1.2 about 28 + 29).
    """

    rate: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))
    delay: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))
    jitter: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))
    loss: float = attrs.field(default=0.0, validator=[attrs.validators.ge(0), attrs.validators.le(1)])
    duplication: float = attrs.field(default=0.0, validator=[attrs.validators.ge(0), attrs.validators.le(1)])
    queue: int | None = attrs.field(default=None, validator=attrs.validators.optional(attrs.validators.ge(0)))
    overhead: int = attrs.field(default=0, validator=attrs.validators.ge(0))


@attrs.define
class ShapeCounters:
    """What happened on one direction; bytes with the overhead of the lower layers.

    Attributes:
        sent: datagrams that came in.
        sent_bytes: their bytes.
        lost: datagrams lost on the way.
        overflowed: datagrams that found the queue full.
        duplicated: datagrams that arrive twice.
        longest_queue: the most bytes that waited at once.
        longest_wait: the most seconds that a datagram waited for the link.
    """

    sent: int = 0
    sent_bytes: int = 0
    lost: int = 0
    overflowed: int = 0
    duplicated: int = 0
    longest_queue: int = 0
    longest_wait: float = 0.0


class SimulatedLink:
    """One direction of a link; the same for the same seed and the same datagrams at the same times.

    Args:
        shape: what it is like; may be replaced at any time.
        seed: of its random numbers.
    """

    def __init__(self, shape: LinkShape, seed: int = 0) -> None:
        self.shape = shape
        self.counters = ShapeCounters()
        self._random = random.Random(seed)
        self._free_at = float("-inf")

    def backlog(self, now: float) -> float:
        """Return the bytes that wait for the link, or are being sent."""
        return max(0.0, self._free_at - now) * self.shape.rate

    def send(self, size: int, now: float) -> list[float]:
        """Put a datagram into the link.

        Args:
            size: its bytes, without the overhead of the lower layers.
            now: seconds; never less than before.

        Returns:
            When it arrives, in seconds: once, not at all, or twice.
        """
        shape, counters = self.shape, self.counters
        size += shape.overhead
        counters.sent += 1
        counters.sent_bytes += size
        through = now
        if shape.rate:
            waiting = self.backlog(now)
            if shape.queue is not None and waiting + size > max(shape.queue, size):
                counters.overflowed += 1
                return []
            counters.longest_queue = max(counters.longest_queue, int(waiting) + size)
            counters.longest_wait = max(counters.longest_wait, self._free_at - now)
            through = self._free_at = max(now, self._free_at) + size / shape.rate
        if self._random.random() < shape.loss:
            counters.lost += 1
            return []
        copies = 1
        if self._random.random() < shape.duplication:
            counters.duplicated += 1
            copies = 2
        return [through + shape.delay + self._random.random() * shape.jitter for _ in range(copies)]
