# SPDX-License-Identifier: AGPL-3.0-or-later
"""Runs a sans-I/O CoAP endpoint on a Twisted clock: bytes in, bytes out, events out, one timer.

The endpoint (RFC 7252 and RFC 7959) knows no clock and no socket; the driver gives it both. The same driver
serves the server's gateway and the client. It holds exactly one ``DelayedCall`` whatever the number of peers
and exchanges, and none when the endpoint has nothing to wait for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from twisted.logger import Logger

from synapse_lb.coaps.clock import Clock, Timer

if TYPE_CHECKING:
    from synapse_lb.coap.endpoint import Endpoint, Peer
    from synapse_lb.coap.events import Event


class EndpointDriver:
    """Drives one :class:`~synapse_lb.coap.endpoint.Endpoint` on a reactor's clock.

    Whoever calls a method of the endpoint calls :meth:`flush` afterwards. Both ``send`` and ``on_event`` may
    call the endpoint and :meth:`flush` again: a nested flush is remembered and done by the outer one.

    Args:
        endpoint: the endpoint to drive.
        clock: where the time and the one delayed call come from.
        send: takes one datagram for a peer. What it raises is counted in :attr:`send_failures` and logged at
            debug level, and the datagrams of other peers still go out: to CoAP it is a lost datagram.
        on_event: takes each event of the endpoint, in order. What it raises is logged.
    """

    _log = Logger()

    def __init__(
        self,
        endpoint: Endpoint,
        clock: Clock,
        send: Callable[[Peer, bytes], None],
        on_event: Callable[[Event], None],
    ) -> None:
        self._endpoint: Final = endpoint
        self._clock: Final = clock
        self._send: Final = send
        self._on_event: Final = on_event
        self._timer: Timer | None = None
        self._armed_for = math.inf  # a time of `now`
        self._flushing = False
        self._stopped = False
        self._latest = float("-inf")
        self._correction = 0.0
        self.send_failures = 0

    def now(self) -> float:
        """Return the time in seconds, which never runs backwards.

        A reactor's ``seconds()`` is the wall clock; when that is set back, this goes on from where it was.
        """
        now = self._clock.seconds() + self._correction
        if now < self._latest:
            self._correction += self._latest - now
            now = self._latest
            self._armed_for = math.inf  # The call would come that much later, so it is set anew.
        self._latest = now
        return now

    @property
    def stopped(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._stopped

    def receive(self, peer: Peer, data: bytes) -> None:
        """Hand one received datagram to the endpoint and do what follows from it."""
        if self._stopped:
            return
        self._endpoint.receive(peer, data, self.now())
        self.flush()

    def flush(self) -> None:
        """Send what the endpoint has to send, deliver its events, and re-arm the one timer."""
        if self._stopped or self._flushing:
            return
        self._flushing = True
        try:
            # Until nothing is left: an event's handler may have answered, and an answer may be an event.
            while not self._stopped and (self._send_datagrams() or self._deliver_events()):
                pass
        finally:
            self._flushing = False
        self._arm()

    def stop(self) -> None:
        """Cancel the timer; from now on nothing is sent, delivered or taken in. Idempotent."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _send_datagrams(self) -> bool:
        datagrams = self._endpoint.datagrams_to_send(self._latest)
        for peer, data in datagrams:
            if self._stopped:
                break
            try:
                self._send(peer, data)
            except Exception as error:
                self.send_failures += 1
                self._log.debug(
                    "A CoAP datagram of {size} bytes could not be sent: {error!r}",
                    size=len(data),
                    error=error,
                )
        return bool(datagrams)

    def _deliver_events(self) -> bool:
        delivered = False
        while not self._stopped and (event := self._endpoint.next_event()) is not None:
            delivered = True
            try:
                self._on_event(event)
            except Exception:
                self._log.failure("A CoAP event could not be handled: {kind}", kind=type(event).__name__)
        return delivered

    def _arm(self) -> None:
        if self._stopped:
            return
        deadline = self._endpoint.next_timer()
        if deadline is None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        elif self._timer is None:
            self._armed_for = deadline
            self._timer = self._clock.callLater(max(0.0, deadline - self.now()), self._fire)
        elif deadline < self._armed_for and self._timer.getTime() > self._clock.seconds():
            self._armed_for = deadline
            self._timer.cancel()  # To reset it to sooner, a reactor would look for it among all its timers.
            self._timer = self._clock.callLater(max(0.0, deadline - self.now()), self._fire)
        # Else it comes early, and is set anew then. It is never put off: that would cost something for each message,
        # and done again and again, by whatever comes first in each turn of a busy reactor, the call would never be
        # made: nothing would be sent again, and nothing given up.

    def _fire(self) -> None:
        self._timer = None
        deadline, now = self._endpoint.next_timer(), self.now()
        if deadline is not None and deadline <= now:
            self._endpoint.handle_timer(now)
        self.flush()
