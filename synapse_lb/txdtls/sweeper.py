# SPDX-License-Identifier: AGPL-3.0-or-later
"""One timer for all the times at which a server port lets go of something."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from synapse_lb.txdtls.admission import Admission
    from synapse_lb.txdtls.interfaces import Clock, Timer
    from synapse_lb.txdtls.options import ServerOptions
    from synapse_lb.txdtls.strangers import Strangers
    from synapse_lb.txdtls.table import AssociationTable, Entry

MINIMUM_DELAY: Final = 0.001
"""Seconds; keeps a clock that does not quite reach what is due from spinning."""


def deadlines(
    table: AssociationTable, options: ServerOptions, admission: Admission, strangers: Strangers
) -> list[tuple[Entry, float]]:
    """Who is due first, of each kind that there is, with the times in monotonic seconds."""
    due = [*admission.first_deadline, *strangers.first_deadline]
    handshake, silent = table.oldest_handshake(), table.longest_silent()
    if handshake is not None:
        due.append((handshake, handshake.since + options.handshake_timeout))
    if silent is not None:
        due.append((silent, silent.since + options.idle_timeout))
    return due


class Sweeper:
    """Keeps one timer for what is due next, and none when nothing can be due.

    Args:
        clock: For the timer.
        deadlines: The candidates for the next to go, with their times in monotonic seconds.
        overdue: Called for each one whose time has come; it is no candidate afterwards.
    """

    def __init__(
        self,
        clock: Clock,
        deadlines: Callable[[], list[tuple[Entry, float]]],
        overdue: Callable[[Entry], None],
    ) -> None:
        self._clock = clock
        self._deadlines = deadlines
        self._overdue = overdue
        self._timer: Timer | None = None

    def arm(self) -> None:
        """There are new candidates, or none any more."""
        due = [moment for _, moment in self._deadlines()]
        timer = self._timer
        if timer is not None and timer.active():
            if due and timer.getTime() <= min(due):
                return
            timer.cancel()
        self._timer = None
        if due:
            delay = max(MINIMUM_DELAY, min(due) - self._clock.seconds())
            self._timer = self._clock.callLater(delay, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        while overdue := [entry for entry, moment in self._deadlines() if moment <= now]:
            for entry in overdue:
                self._overdue(entry)
        self.arm()
