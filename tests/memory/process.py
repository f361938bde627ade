# SPDX-License-Identifier: AGPL-3.0-or-later
"""A process that can be killed, within one that goes on: the reactor that it has is its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred


class Process:
    """The timers of one process: when it is killed none of them is called any more, and nobody is told.

    Args:
        clock: the reactor, or a `twisted.internet.task.Clock`.

    Attributes:
        alive: until it is killed.
    """

    def __init__(self, clock: Any) -> None:
        self.clock: Final = clock
        self.alive = True
        self._timers: list[Timer] = []
        self._prune_at = 64

    def seconds(self) -> float:
        """The time in seconds."""
        return float(self.clock.seconds())

    def callLater(self, delay: float, call: Callable[..., object], *args: object, **named: object) -> Timer:
        """Call something, if the process is still there."""

        def due() -> None:
            if self.alive:
                call(*args, **named)

        if not self.alive:
            # What a dead process leaves behind is collected at any time, and asks for timers even in the middle of the
            # clock's own work: it is to leave the clock alone.
            return Timer(self, Never())
        timer = Timer(self, self.clock.callLater(delay, due))
        if len(self._timers) > self._prune_at:
            self._timers = self.waits_for
            self._prune_at = max(64, 2 * len(self._timers))
        self._timers.append(timer)
        return timer

    def sleep(self, delay: float) -> Deferred[None]:
        """Fires after so many seconds, and never if the process is killed before."""
        timer: Timer

        def cancel(_: object) -> None:
            if timer.active():
                timer.cancel()

        slept: Deferred[None] = Deferred(cancel)
        timer = self.callLater(delay, slept.callback, None)
        return slept

    @property
    def waits_for(self) -> list[Timer]:
        """What is still to be called."""
        return [timer for timer in self._timers if timer.active()]

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self.alive = False
        for timer in self.waits_for:
            timer.drop()


class Never:
    """A call that is never made."""

    def active(self) -> bool:
        """It is not to come."""
        return False

    def getTime(self) -> float:
        """When it is due."""
        return float("inf")


class Timer:
    """A call that is due at some time. That of a dead process does nothing, whatever is asked of it.

    Args:
        process: whose it is.
        call: what the clock gave.
    """

    def __init__(self, process: Process, call: Any) -> None:
        self._process = process
        self._call = call

    def active(self) -> bool:
        """Whether it is still to come."""
        return bool(self._call.active())

    def cancel(self) -> None:
        """Do not make the call."""
        if self._process.alive:
            self._call.cancel()

    def drop(self) -> None:
        """Do not make the call, because the process is dead."""
        self._call.cancel()

    def reset(self, delay: float) -> None:
        """Make it so many seconds from now."""
        if self._process.alive:
            self._call.reset(delay)

    def getTime(self) -> float:
        """When it is due."""
        return float(self._call.getTime())
