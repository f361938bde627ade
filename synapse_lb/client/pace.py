# SPDX-License-Identifier: AGPL-3.0-or-later
"""How long nothing need be sent: what a client learns of the NATs and firewalls on its way (RFC 4787 section 4.3).

A NAT forgets a client that has sent nothing for a while, between half a minute and never. What it forgot shows when the
client speaks again: the server finds it at another address, and asks with a CoAP ping whether it is there; a server
that does not follow is silent. So each silence is a measurement, and the next one may be a little longer:

    shortest --> twice as long --> ... --> longest
                       |  lost
                       v
                 half way between the longest that survived and the shortest that was lost, until these are close

What was lost is tried once more after some hours, for networks change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from attrs import evolve, frozen

_CLOSE: Final = 5.0
_CLOSE_SHARE: Final = 0.1
"""A lost and a survived silence that are so many seconds apart, or such a share of them, need no further trial."""

_MARGIN: Final = 0.95
"""The share of the longest silence that survived which is kept, once it is known which one does not."""

_RETREAT: Final = 0.75
"""How far to go back when a silence was lost that has been known to survive."""

_STRIKES: Final = 2
"""So often in a row such a silence has to be lost: once may have been the network, or the server."""

_TRY_AGAIN: Final = 6 * 3600.0
"""s: after which a silence that was lost is tried once more."""

_MOVED_WITHIN: Final = 10.0
"""s: a ping of the server's so soon after a silence is because of it."""


@frozen
class Knowledge:
    """What is known of the way.

    Attributes:
        survived: Seconds of the longest silence after which the way was still open; 0 if there was none.
        lost: Seconds of the shortest one after which it was not; None if there was none.
        lost_at: When, in monotonic seconds.
        strikes: How often in a row a silence was lost that should have survived.
    """

    survived: float = 0.0
    lost: float | None = None
    lost_at: float = 0.0
    strikes: int = 0


class Pace:
    """How long a client may be silent.

    Args:
        shortest: Seconds, the least.
        longest: Seconds, the most.
        known: What an earlier client has found out (`known`), which is tried first.
    """

    def __init__(self, shortest: float, longest: float, known: float | None = None) -> None:
        self._shortest = min(shortest, longest)
        self._longest = longest
        self._hint = known
        self._knowledge = Knowledge()
        self._before: tuple[float, Knowledge] | None = None

    @property
    def shortest(self) -> float:
        """Seconds, the least."""
        return self._shortest

    @property
    def known(self) -> float | None:
        """Seconds of the longest silence that survived, to be kept for the next client; None if none did."""
        return self._knowledge.survived or None

    def interval(self, now: float) -> float:
        """Seconds of silence after which something is to be sent.

        Args:
            now: Monotonic seconds.
        """
        return min(max(self._wanted(now), self._shortest), self._longest)

    def _wanted(self, now: float) -> float:
        survived, lost = self._knowledge.survived, self._knowledge.lost
        if lost is None:
            return 2 * survived if survived or self._hint is None else self._hint
        if now - self._knowledge.lost_at >= _TRY_AGAIN:
            return lost
        if lost - survived <= max(_CLOSE, _CLOSE_SHARE * survived):
            return _MARGIN * survived
        return (survived + lost) / 2

    def survived(self, silence: float) -> None:
        """After so many seconds of silence the way was open."""
        known, self._before = self._knowledge, None
        if silence > known.survived:
            self._before = silence, known
            still_lost = known.lost is not None and silence < known.lost
            known = evolve(known, survived=silence, lost=known.lost if still_lost else None)
        self._knowledge = evolve(known, strikes=0)

    def lost(self, silence: float, now: float) -> None:
        """After so many seconds of silence it was not, or the server had gone.

        Args:
            silence: Seconds.
            now: Monotonic seconds.
        """
        self._hint = None
        before, self._before = self._before, None
        if before is not None and before[0] == silence:
            # That it had survived was said too soon.
            self._knowledge = before[1]
        known = self._knowledge
        if silence <= known.survived and known.strikes + 1 < _STRIKES:
            self._knowledge = evolve(known, strikes=known.strikes + 1)
            return
        lost = silence if known.lost is None else min(silence, known.lost)
        survived = known.survived if known.survived < lost else _RETREAT * lost
        self._knowledge = Knowledge(survived, lost, now)

    def forget(self) -> None:
        """It is another network now."""
        self._knowledge, self._before, self._hint = Knowledge(), None, None


class Silences:
    """Notes the silences of one association, and what comes of them.

    Args:
        pace: What learns from them.
        now: Monotonic seconds.
        on_lost: Called when one was lost on an association that goes on.
    """

    def __init__(self, pace: Pace, now: Callable[[], float], on_lost: Callable[[], None]) -> None:
        self.pace: Final = pace
        self._now = now
        self._on_lost = on_lost
        self._sent_at: float | None = None
        self._heard_at = float("-inf")
        self._silence: float | None = None
        self._ended_at = 0.0
        self._answered = False

    @property
    def since(self) -> float:
        """Since when there is silence, in monotonic seconds: an open way needs what is sent, a server what is heard."""
        return self._heard_at if self._sent_at is None else min(self._sent_at, self._heard_at)

    def restart(self) -> None:
        """What was before tells nothing of what comes: there is a new socket."""
        self._silence, self._sent_at = None, self._now()

    def sent(self) -> None:
        """A datagram leaves."""
        now = self._now()
        # What is sent again because there is no answer belongs to the same silence.
        open_question = self._silence is not None and not self._answered
        if self._sent_at is not None and not open_question:
            silence = now - self._sent_at
            if silence >= self.pace.shortest / 2:
                self._silence, self._ended_at, self._answered = silence, now, False
        self._sent_at = now

    def heard(self, *, ping: bool) -> None:
        """A datagram has arrived.

        Args:
            ping: Whether it is a CoAP ping: so a server asks whether the client is where it seems to be.
        """
        now = self._heard_at = self._now()
        silence = self._silence
        if silence is not None and ping and now - self._ended_at <= _MOVED_WITHIN:
            self._silence = None
            self.pace.lost(silence, now)
            self._on_lost()
        elif silence is not None and not self._answered:
            self._answered = True
            self.pace.survived(silence)
        elif self._sent_at is not None and now - self._sent_at >= self.pace.shortest / 2:
            # Nobody asked for it: the way has been open all the time.
            self.pace.survived(now - self._sent_at)

    def unanswered(self) -> None:
        """Nothing was heard any more, and the association is given up."""
        silence, self._silence = self._silence, None
        if silence is not None and not self._answered:
            self.pace.lost(silence, self._now())
