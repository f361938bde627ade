# SPDX-License-Identifier: AGPL-3.0-or-later
"""When a flight of a handshake is sent again (RFC 6347 section 4.2.4): one timer for each association that waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from synapse_lb.txdtls.flights import FINISHED_WAITS
from synapse_lb.txdtls.interfaces import Clock
from synapse_lb.txdtls.sweeper import MINIMUM_DELAY
from synapse_lb.txdtls.table import Entry


class FlightTimers:
    """Keeps the timer of each entry.

    Args:
        clock: For the time and the timers.
        flush: Sends what an entry has to send.
    """

    def __init__(self, clock: Clock, flush: Callable[[Entry], None]) -> None:
        self._clock: Final = clock
        self._flush: Final = flush

    def arm(self, entry: Entry) -> None:
        """Have the flight of this handshake sent again when it is due."""
        self.cancel(entry)
        due = entry.association.due
        if due is not None:
            delay = max(MINIMUM_DELAY, due - self._clock.seconds())
            entry.timer = self._clock.callLater(delay, self._timed_out, entry)

    def hold_back(self, entry: Entry) -> None:
        """A request came with the client's Finished: this side's shares a datagram with the answer."""
        entry.timer = self._clock.callLater(FINISHED_WAITS, self._timed_out, entry)

    def cancel(self, entry: Entry) -> None:
        """Nothing is sent again. Idempotent."""
        if entry.timer is not None and entry.timer.active():
            entry.timer.cancel()
        entry.timer = None

    def _timed_out(self, entry: Entry) -> None:
        entry.timer = None
        if not entry.association.gone:
            entry.association.handle_timeout(self._clock.seconds())
            self._flush(entry)
            self.arm(entry)
