# SPDX-License-Identifier: AGPL-3.0-or-later
"""The order in which associations are served: each in its turn, so that one that floods does not delay the others.

A reactor reads a socket until it is empty, thousands of datagrams at a time if somebody sends them. Whoever handles
each at once makes everybody wait behind them, and the kernel throws away what comes meanwhile, the datagrams of quiet
clients with those of the flood. So only a few datagrams of an association are handled when they are read. What is
beyond waits for the next turns of the reactor, where one association follows another, a datagram each; what is beyond
that is dropped before it is decrypted, which costs little, as a congested network would have done (RFC 8085 section 3).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

from synapse_lb.txdtls.interfaces import Clock, Timer
from synapse_lb.txdtls.options import ServerCounters, ServerOptions

T = TypeVar("T")

AT_ONCE: Final = 8
"""Datagrams of one association that are handled in one turn when they are read."""

FEW: Final = 3
"""Datagrams of one association that are handled without a look at whether the turn has ended: a timer for each of them
would cost more than the rest of this. So these may be of several turns, and those that are handled in one turn when
they are read are between `AT_ONCE` less `FEW` and `AT_ONCE`."""

MANY: Final = 64
"""Associations of which it is noted how many were handled, before the same look."""

ROUNDS: Final = 32
"""Datagrams of one association that wait and are handled in one turn at most."""

SHORTEST: Final = 0.01
"""Seconds in a turn that those who wait are given at least; or else as long as everything else in the turn took."""


class Backlog(Generic[T]):
    """Hands items on, each source's in their order.

    Args:
        reactor: For the turns.
        options: Bounds.
        counters: Of the port.
        serve: Called with an item.
    """

    def __init__(
        self, reactor: Clock, options: ServerOptions, counters: ServerCounters, serve: Callable[[T], None]
    ) -> None:
        self._reactor = reactor
        self._options = options
        self._counters = counters
        self._serve = serve
        self._served: dict[Hashable, int] = {}
        self._waiting: OrderedDict[Hashable, deque[T]] = OrderedDict()
        self._count = 0
        self._timer: Timer | None = None
        self._turned = (
            reactor.seconds()
        )  # the end of the last service, or when the timer was set after a pause

    def __len__(self) -> int:
        """How many items wait."""
        return self._count

    def take(self, source: Hashable, item: T) -> None:
        """Hand an item on, now or later, or drop it."""
        waiting = self._waiting.get(source)
        if waiting is None:
            served = self._served.get(source, 0)
            if served < AT_ONCE:
                self._served[source] = served + 1
                if served >= FEW or len(self._served) >= MANY:
                    self._arm()
                self._serve(item)
                return
            waiting = self._waiting[source] = deque()
        elif (
            len(waiting) >= self._options.max_waiting_per_association
            or self._count >= self._options.max_waiting
        ):
            # Everybody may have one in any case.
            self._counters.datagrams_overflowed += 1
            return
        waiting.append(item)
        self._count += 1
        self._counters.datagrams_deferred += 1
        self._arm()

    def cancel(self) -> None:
        """Drop all that waits."""
        self._waiting.clear()
        self._served.clear()
        self._count = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._timer is None:
            self._turned = self._reactor.seconds()
            self._timer = self._reactor.callLater(0, self._turn)

    def _turn(self) -> None:
        self._timer = None
        self._served.clear()
        if not self._waiting:
            return
        now, turned = self._reactor.seconds(), self._turned
        # Armed before anything is handed on: what that brings about may arm it, or cancel all.
        self._arm()
        # Turns are long when there is much to do. Those who wait are not to be worse off than the others then.
        self._serve_until(now + max(SHORTEST, now - turned))
        self._turned = self._reactor.seconds()

    def _serve_until(self, end: float) -> None:
        """Serve those who wait, one after another; each once in any case."""
        for number in range(ROUNDS):
            for _ in range(len(self._waiting)):
                if not self._waiting or (number and self._reactor.seconds() >= end):
                    return
                self._serve_next()

    def _serve_next(self) -> None:
        """Hand on the next item of the source whose turn it is, and put that behind the others."""
        source, waiting = next(iter(self._waiting.items()))
        item = waiting.popleft()
        self._count -= 1
        if waiting:
            self._waiting.move_to_end(source)
        else:
            del self._waiting[source]
        self._serve(item)
