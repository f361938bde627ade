# SPDX-License-Identifier: AGPL-3.0-or-later
"""The retransmission timeout of one peer: RFC 6298, with the randomization of RFC 7252 section 4.2.

Only strong samples count: the round trip of a message that was sent once (Karn's algorithm, RFC 6298
section 3). A message that had to be repeated leaves its doubled timeout behind for those after it, until a
strong sample comes (section 5, rules 5.5 to 5.7): on a link slower than the timeout there would never be one.

That alone would ratchet the timeout up on a link that loses much: where an exchange fails with probability p, its
mean would diverge from p = 0.3 on. So an acknowledgement that comes as soon after the last copy as the measured
round trip lets expect is taken for a sign of loss, not of delay (`repeated`).

A message with more bytes than usual, or with such an answer, gets the time that these take (`bytetime`).
"""

from __future__ import annotations

import random

from synapse_lb.coap.bytetime import ByteTime
from synapse_lb.coap.tuning import Tuning

_ALPHA = 1 / 8
_BETA = 1 / 4
_K = 4
_WEAK_WEIGHT = 1 / 4
"""Weight of a round trip that may be too long (the weak estimator of draft-ietf-core-cocoa section 4.2)."""
_MEASURED = 2
"""How many times the greatest timeout a round trip may justify that was measured: at 100 bit/s a block takes 95 s."""
_WEAK_MARGIN = 1.5
"""How far above it the timeout aims, so that it gets there on a link that is a little slower."""


class RetransmissionTimeout:
    """The measured round trip of a peer, and the timeout that follows from it.

    Args:
        tuning: Its bounds; with `adaptive_rto` off the timeout is always `ack_timeout`.
    """

    __slots__ = ("_bytes", "_rttvar", "_settled", "_srtt", "_timeout", "_tuning")

    def __init__(self, tuning: Tuning) -> None:
        self._tuning = tuning
        self._srtt: float | None = None
        self._rttvar = 0.0
        self._bytes = ByteTime()
        self._timeout = tuning.ack_timeout
        self._settled = tuning.ack_timeout  # what it was before messages under way doubled it

    @property
    def smoothed_rtt(self) -> float | None:
        """SRTT in seconds, or None before the first measurement (RFC 6298 section 2)."""
        return self._srtt

    @property
    def timeout(self) -> float:
        """The timeout in seconds, before randomization."""
        return self._timeout

    def seed(self, rtt: float) -> None:
        """Take a round trip in seconds that another layer measured, unless there is one already."""
        if self._srtt is None:
            self.sample(rtt)

    def at_most(self, rtt: float) -> None:
        """Take a time in seconds that no round trip exceeds: it is the timeout until one was measured, if it is longer
        than the one that is used where nothing is known."""
        if self._srtt is None and self._tuning.adaptive_rto:
            self._timeout = self._settled = self._bounded(max(rtt, self._tuning.ack_timeout))

    def sample(self, rtt: float, size: int | None = None) -> None:
        """Take a strong sample (RFC 6298 section 2, rules 2.2 to 2.4).

        Args:
            rtt: Seconds.
            size: Bytes of the message and of what acknowledged it, as `bytetime` counts them, if they are known.
        """
        if not self._tuning.adaptive_rto or rtt < 0:
            return
        if size is not None:
            self._bytes.sample(size, rtt)
        if self._srtt is None:
            self._srtt = rtt
            self._rttvar = rtt / 2
        else:
            self._rttvar += _BETA * (abs(self._srtt - rtt) - self._rttvar)
            self._srtt += _ALPHA * (rtt - self._srtt)
        self._timeout = self._settled = self._bounded(self._srtt + _K * self._rttvar)

    def repeated(self, since_first: float, since_last: float, copies: int) -> None:
        """Learn from a message that was acknowledged after copies of it had been sent.

        Args:
            since_first: Seconds from its first transmission: the round trip was no longer.
            since_last: Seconds from its last transmission: the round trip was no shorter.
            copies: How many were sent after the first transmission.
        """
        if not self._tuning.adaptive_rto:
            return
        if self._srtt is None:
            if since_last > self._tuning.ack_timeout:
                # The link is slow, whichever copy it was that arrived; else it may be one that loses much.
                self.at_most(_WEAK_MARGIN * since_first)
            return
        if since_last > self._bounded(self._srtt + _K * self._rttvar):
            # The answer to an earlier copy: the link has become slower, and the doubled timeout stays.
            self._settled = self._timeout
            return
        if copies == 1:
            weak = _WEAK_MARGIN * since_first
            self._settled = self._bounded((1 - _WEAK_WEIGHT) * self._settled + _WEAK_WEIGHT * weak)
        self._timeout = self._settled

    def doubled(self, timeout: float) -> float:
        """Return the timeout of the next transmission of a message (RFC 6298 rule 5.5, RFC 7252 4.2).

        Args:
            timeout: That of its last transmission, in seconds.
        """
        if not self._tuning.adaptive_rto:
            return timeout * 2
        return max(timeout, min(timeout * 2, self._tuning.max_rto))

    def backed_off(self, timeout: float) -> None:
        """Remember that a message had to be repeated and now waits for `timeout` seconds (rule 5.7)."""
        if self._tuning.adaptive_rto:
            self._timeout = max(self._timeout, self._bounded(timeout))

    def draw(self, source: random.Random, allowance: float = 0.0, size: int = 0) -> float:
        """Return the timeout for a new message, in seconds: between the timeout and ACK_RANDOM_FACTOR times
        it.

        Args:
            source: Of the randomness.
            allowance: Seconds that the peer may take before it acknowledges, on top of the measured round trip.
            size: Bytes of the message and of what is expected to acknowledge it.
        """
        timeout = self._timeout * source.uniform(1.0, self._tuning.ack_random_factor)
        if self._srtt is None:
            return timeout
        most = _MEASURED * self._tuning.max_rto
        further = min(self._bytes.further(size), most)
        return max(timeout, min(self._srtt + _K * self._rttvar, most) + allowance + further)

    def _bounded(self, timeout: float) -> float:
        return min(max(timeout, self._tuning.min_rto), self._tuning.max_rto)
