# SPDX-License-Identifier: AGPL-3.0-or-later
"""How much is asked of Synapse at a time, where the rest had better wait for its turn.

Synapse serves whatever it is given, a slice of each request after the other. So a client's share of it is the number of
its requests among all: those of one association pass a turnstile, so that one that floods does not delay the others. A
browser has six connections to a server, and as many requests over HTTP/1.1. And of many requests that begin together
all end late: the syncs of observers whom the same message woke pass another, so that the first are told at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred

from synapse_lb.coaps.clock import Clock, Timer

T = TypeVar("T")

AT_ONCE: Final = 8
"""Requests of one association that are served at a time. What is asked for observations is not among them."""

SLOW: Final = 3.0
"""s: a request that takes longer waits for something else, news or another homeserver, and does not count any more."""


class Turnstile:
    """Lets requests in, in the order in which they came. How many may wait is bounded by who owns them.

    Args:
        clock: the reactor.
        at_once: how many are served at a time.
    """

    def __init__(self, clock: Clock, at_once: int = AT_ONCE) -> None:
        self._clock = clock
        self._at_once = at_once
        self._inside: dict[object, float] = {}  # in the order in which they came in
        self._waiting: OrderedDict[Deferred[None], None] = OrderedDict()
        self._opening = False
        self._timer: Timer | None = None

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def run(self, work: Callable[[], Deferred[T]]) -> Deferred[T]:
        """Begin this now, or when it is its turn.

        Returns:
            A Deferred of its outcome; cancelling it cancels the work, also before it has begun.
        """
        if not self._waiting and len(self._inside) < self._at_once:
            return self._begin(work)
        turn: Deferred[None] = Deferred(self._give_up)
        self._waiting[turn] = None
        self._arm()
        return turn.addCallback(lambda _: self._begin(work))

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Let nobody in as long as the block lasts, in which all are cancelled: they are not to begin before."""
        before, self._opening = self._opening, True
        try:
            yield
        finally:
            self._opening = before
            self._open()

    def _begin(self, work: Callable[[], Deferred[T]]) -> Deferred[T]:
        visit = object()
        self._inside[visit] = self._clock.seconds()

        def ended(outcome: T) -> T:
            self._inside.pop(visit, None)
            self._open()
            return outcome

        return maybeDeferred(work).addBoth(ended)

    def _open(self) -> None:
        """Let in whoever may come in; what ends at once lets in the next, without any depth of calls."""
        if self._opening:
            return
        self._opening = True
        try:
            while self._waiting and len(self._inside) < self._at_once:
                self._waiting.popitem(last=False)[0].callback(None)
        finally:
            self._opening = False
        self._arm()

    def _give_up(self, turn: Deferred[None]) -> None:
        del self._waiting[turn]
        self._arm()

    def _arm(self) -> None:
        """Have the timer run exactly while somebody waits and somebody is inside who may turn out to be slow."""
        wanted = bool(self._waiting and self._inside)
        if not wanted and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif wanted and self._timer is None:
            delay = next(iter(self._inside.values())) + SLOW - self._clock.seconds()
            self._timer = self._clock.callLater(max(0.0, delay), self._slow)

    def _slow(self) -> None:
        self._timer = None
        before = self._clock.seconds() - SLOW
        for visit in [visit for visit, since in self._inside.items() if since <= before]:
            del self._inside[visit]
        self._open()
