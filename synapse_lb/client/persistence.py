# SPDX-License-Identifier: AGPL-3.0-or-later
"""How an observation holds on: its times, how long it waits before it tries again, and the heartbeat (RFC 7252 4.3)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from synapse_lb.client.errors import ClientError

if TYPE_CHECKING:
    from synapse_lb.coaps.clock import Clock, Timer

_SHORTEST_WAIT: Final = 0.01
"""s: until the heartbeat listens again."""


def _positive(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{attribute.name} must be a positive number, not {value!r}")


@attrs.frozen(kw_only=True)
class Persistence:
    """The times of observations, in seconds.

    Attributes:
        heartbeat: while observing, silence is broken with a ping after so long at most; 285, just less than the
            five minutes for which a NAT had better keep a mapping (RFC 4787 section 4.3).
        first_heartbeat: the same at first, and the least. What the network allows between the two is learnt
            (`synapse_lb.client.pace`); 25.
        retry_initial: longest wait before the first attempt to return; 1. It doubles with each further one.
        retry_max: longest wait between two attempts; 120.
        spread: clients that were told of a planned stop return spread over so long, or over the Max-Age that they
            were told, if that is longer; 5.
        refresh: an observation without any notification for so long is registered anew, in case the server has
            given it up unnoticed; 3600. A shorter Max-Age of the last notification, from 60 on, comes before it.
        slow_handler: the same after a handler that took so long, for the server may have given up; 60.
        answer_timeout: a registration, or a poll, without any answer for so long is made anew; 300.
        poll_timeout: the `timeout` of the long polls at a server that does not notify; 30.
        farewell: longest that `stop` waits for the server's answer; 5.

    Raises:
        ValueError: a time is not positive.
    """

    heartbeat: float = attrs.field(default=285.0, validator=_positive)
    first_heartbeat: float = attrs.field(default=25.0, validator=_positive)
    retry_initial: float = attrs.field(default=1.0, validator=_positive)
    retry_max: float = attrs.field(default=120.0, validator=_positive)
    spread: float = attrs.field(default=5.0, validator=_positive)
    refresh: float = attrs.field(default=3600.0, validator=_positive)
    slow_handler: float = attrs.field(default=60.0, validator=_positive)
    answer_timeout: float = attrs.field(default=300.0, validator=_positive)
    poll_timeout: float = attrs.field(default=30.0, validator=_positive)
    farewell: float = attrs.field(default=5.0, validator=_positive)


class Backoff:
    """Exponential backoff with jitter.

    Args:
        persistence: the times.
        random: source of the jitter.
    """

    def __init__(self, persistence: Persistence, random: random.Random) -> None:
        self._times = persistence
        self._random = random
        self._failures = 0

    def reset(self) -> None:
        """The server is there: the next failure is the first one."""
        self._failures = 0

    def after_failure(self) -> float:
        """Seconds to wait after one more failure: from half of the doubled time to all of it."""
        # The exponent is bounded only to keep the number small; retry_max is reached long before.
        longest = min(self._times.retry_max, self._times.retry_initial * 2.0 ** min(self._failures, 64))
        self._failures += 1
        return longest * self._random.uniform(0.5, 1.0)

    def after_planned_stop(self, at_least: float) -> float:
        """Seconds to wait when the server said that it stops, or that it is busy.

        Args:
            at_least: seconds that it asked for (Max-Age, RFC 7252 section 5.9.3.4).
        """
        first = not self._failures
        at_least = max(at_least, 0.0 if first else self.after_failure())
        self._failures += first
        return at_least + self._random.uniform(0.0, max(self._times.spread, at_least))


class Heartbeat:
    """Pings the server when there has been silence for a while.

    Args:
        clock: the reactor.
        interval: for how many seconds there may be.
        silent_since: since when there is, in seconds of `now`.
        now: seconds that never run backwards.
        ping: pings the server; an answer that does not come is for the callee to deal with.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        interval: Callable[[], float],
        silent_since: Callable[[], float],
        now: Callable[[], float],
        ping: Callable[[], Deferred[None]],
    ) -> None:
        self._clock = clock
        self._interval = interval
        self._silent_since = silent_since
        self._now = now
        self._ping = ping
        self._timer: Timer | None = None
        self._pinging: Deferred[None] | None = None
        self._running = False

    def start(self) -> None:
        """Begin, or go on, to listen for silence. Idempotent."""
        if not self._running:
            self._running = True
            self._arm(self._interval())

    def renew(self) -> None:
        """Look when the next ping is due, since the interval has changed."""
        if self._timer is not None:
            self._timer.cancel()
            self._arm(0.0)

    def stop(self) -> None:
        """Stop. Idempotent."""
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pinging is not None:
            self._pinging.cancel()

    def _arm(self, delay: float) -> None:
        if self._running:
            self._timer = self._clock.callLater(delay, self._due)

    def _due(self) -> None:
        self._timer = None
        quiet, interval = self._now() - self._silent_since(), self._interval()
        if quiet < interval:
            # What is left of the time may be too small for the clock to move by.
            self._arm(max(interval - quiet, _SHORTEST_WAIT))
            return
        try:
            pinging = self._ping()
        except ClientError:
            # Too much is under way; its answers will do as well.
            self._arm(interval)
            return
        self._pinging = pinging
        pinging.addCallbacks(self._answered, self._unanswered)

    def _answered(self, _: None) -> None:
        self._pinging = None
        self._arm(self._interval())

    def _unanswered(self, failure: Failure) -> None:
        self._pinging = None
        # If something else was heard meanwhile the association goes on; else this has been stopped.
        self._arm(self._interval())
