# SPDX-License-Identifier: AGPL-3.0-or-later
"""One heap of timers for the whole endpoint; it reads no clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from attrs import define

_COMPACT_AT = 64
"""Cancelled timers that are tolerated in the heap before it is rebuilt without them."""


@define(eq=False)
class Timer:
    """One deadline.

    Attributes:
        deadline: Monotonic seconds.
        action: Called with the time when the deadline has come; None once it has fired or was cancelled.
    """

    deadline: float
    action: Callable[[float], None] | None

    @property
    def active(self) -> bool:
        """Whether it may still fire."""
        return self.action is not None


class TimerHeap:
    """Timers in the order of their deadlines; those of one deadline fire in the order they were set."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._serial = 0
        self._cancelled = 0

    def __len__(self) -> int:
        """Return how many timers may still fire."""
        return len(self._heap) - self._cancelled

    def schedule(self, deadline: float, action: Callable[[float], None]) -> Timer:
        """Call `action` once `run_due` is told of `deadline` or later."""
        timer = Timer(deadline, action)
        self._serial += 1
        heapq.heappush(self._heap, (deadline, self._serial, timer))
        return timer

    def cancel(self, timer: Timer | None) -> None:
        """Let a timer not fire. None, and one that is not active, are left alone."""
        if timer is None or timer.action is None:
            return
        timer.action = None
        self._cancelled += 1
        if self._cancelled > _COMPACT_AT and self._cancelled * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].action is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def next_deadline(self) -> float | None:
        """Return the earliest deadline, or None if there is no timer."""
        heap = self._heap
        while heap and heap[0][2].action is None:
            heapq.heappop(heap)
            self._cancelled -= 1
        return heap[0][0] if heap else None

    def run_due(self, now: float) -> None:
        """Fire every timer whose deadline has come."""
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            timer = heapq.heappop(self._heap)[2]
            action, timer.action = timer.action, None
            assert action is not None  # next_deadline left an active one in front
            action(now)
