# SPDX-License-Identifier: AGPL-3.0-or-later
"""When an association is doubted: messages are repeated in vain, and nothing at all is heard.

A server that restarted without a word, or another worker to which a new address led, answers no record of an
association that it does not know: who answers strangers is an amplifier and a reset oracle. CoAP gives a request up
after a minute and a half (RFC 7252 section 4.2). Nobody need wait so long: after a few copies another association is
made beside the doubted one (`keeper`), which goes on as if nothing were. Whichever is heard first stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from synapse_lb.coap.numbers import Type

if TYPE_CHECKING:
    from synapse_lb.coaps.clock import Clock, Timer

COPIES: Final = 3
"""Copies of one message: when the last of them leaves, three transmissions were in vain. Where every fifth datagram is
lost, that happens to one message in twenty."""

GRACE: Final = 2.0
"""s: for an answer to the last of them. A server that works on the request acknowledges it sooner
(`Tuning.separate_after`)."""

_WATCHED: Final = 64
"""Messages whose copies are counted at a time; further ones take the place of the oldest."""

_HEADER: Final = 4


class Doubts:
    """Counts the copies of each Confirmable message since something was heard.

    Args:
        clock: the reactor.
        on_doubt: called when there is doubt, once until something is heard.
        on_relief: called when something is heard after all.
    """

    def __init__(self, clock: Clock, on_doubt: Callable[[], None], on_relief: Callable[[], None]) -> None:
        self._clock = clock
        self._on_doubt = on_doubt
        self._on_relief = on_relief
        self._ever_heard = False
        self._copies: dict[bytes, int] = {}
        self._timer: Timer | None = None
        self._standing = False

    def sent(self, message: bytes) -> None:
        """A CoAP message has left."""
        if len(message) < _HEADER or message[0] >> 4 & 3 != Type.CON:
            return
        if not self._ever_heard or self._standing or self._timer is not None:
            # Where nothing was ever heard it is not the association that is to blame.
            return
        message_id = message[2:_HEADER]
        copies = self._copies[message_id] = self._copies.get(message_id, -1) + 1
        if copies >= COPIES:
            self._timer = self._clock.callLater(GRACE, self._doubt)
        elif len(self._copies) > _WATCHED:
            del self._copies[next(iter(self._copies))]

    def heard(self) -> None:
        """Something has come from the server."""
        self._ever_heard = True
        self.forget()

    def forget(self) -> None:
        """What was sent before says nothing any more."""
        self._copies.clear()
        self._stop_timer()
        if self._standing:
            self._standing = False
            self._on_relief()

    def stop(self) -> None:
        """Stop: the association has ended, or another one has taken its place."""
        self._ever_heard = False
        self._stop_timer()

    def _doubt(self) -> None:
        self._timer = None
        self._standing = True
        self._on_doubt()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
