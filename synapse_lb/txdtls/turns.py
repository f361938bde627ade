# SPDX-License-Identifier: AGPL-3.0-or-later
"""What leaves at the end of the reactor's turn, so that messages which come about in one turn share datagrams.

A datagram costs 28 bytes of headers (RFC 768, RFC 791). An acknowledgement and the next request, or the news of
several observations, come about in separate calls, but in one turn. They are worth waiting for, because a turn ends
as soon as there is nothing else to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from synapse_lb.txdtls.interfaces import Clock, Timer

T = TypeVar("T")


class EndOfTurn(Generic[T]):
    """Flushes objects now, or once at the end of the turn, in the order in which they came.

    Args:
        reactor: For the one timer.
        flush: Called with an object.
    """

    def __init__(self, reactor: Clock, flush: Callable[[T], None]) -> None:
        self._reactor = reactor
        self._flush = flush
        self._waiting: dict[T, None] = {}
        self._timer: Timer | None = None

    def flush(self, one: T, *, wait: bool) -> None:
        """Flush this one, now or at the end of the turn."""
        if not wait:
            self._flush(one)
            return
        self._waiting[one] = None
        if self._timer is None:
            self._timer = self._reactor.callLater(0, self._end)

    def cancel(self) -> None:
        """Flush nobody."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        self._timer = None
        waiting, self._waiting = self._waiting, {}
        for one in waiting:
            self._flush(one)
