# SPDX-License-Identifier: AGPL-3.0-or-later
"""Reliable transmission of Confirmable messages (RFC 7252 section 4.2) and its congestion control (section 4.7).

Of each peer at most NSTART messages are outstanding; further ones wait in order. There are never more of them
than open exchanges, which are bounded. A message whose acknowledgement the peer may hold back while it works on it
(a notification) counts until its first retransmission only, so that it does not keep others waiting; its copies
are ever further apart. A ping counts as well, but never waits, and nothing waits for it: where there is no room each of
the outstanding messages asks the same. The timeout follows the round trip (`rto`) and doubles with each
retransmission. A small timeout must not make a short outage a failure: besides MAX_RETRANSMIT, an adaptive
transmission uses up MAX_TRANSMIT_SPAN before it is given up. With a great one it ends after EXCHANGE_LIFETIME.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from attrs import define

from synapse_lb.coap.bytetime import EMPTY, OVERHEAD
from synapse_lb.coap.core import Core
from synapse_lb.coap.message import HEADER_LENGTH, Message
from synapse_lb.coap.numbers import Code, is_request
from synapse_lb.coap.peers import PeerState
from synapse_lb.coap.timers import Timer


class Outcome(Enum):
    """How a transmission ended."""

    ACKNOWLEDGED = "acknowledged"
    RESET = "reset"
    TIMED_OUT = "timed out"
    GAVE_WAY = "gave way"


OnOutcome = Callable[[Outcome, "Message | None", float], None]
"""Called with the outcome, the message that brought it (None if there is none), and the time."""


@define(eq=False)
class Transmission:
    """One Confirmable message on its way.

    Attributes:
        peer: To whom.
        message: The message.
        datagram: Its bytes.
        on_outcome: Called once, unless it is stopped.
        allowance: Seconds that the peer may take before it acknowledges.
        answer: Bytes of the message that is expected to acknowledge it.
        first_sent: Monotonic seconds.
        last_sent: Monotonic seconds; the last copy.
        timeout: Seconds from the last copy to the next.
        retransmissions: Copies after the first.
        windowed: Whether a congestion window of the caller's bounds it in place of NSTART.
        patience: Seconds for which the peer may hold the ACK back; 0 if it may not.
        yielding: Whether it does not, or no longer, count for NSTART.
        gives_way: Whether it is given up when another message waits for NSTART.
        measurable: Whether the time of its ACK tells something of the way to the peer.
        timer: When the next copy is due; None while it is queued.
    """

    peer: PeerState
    message: Message
    datagram: bytes
    on_outcome: OnOutcome
    allowance: float = 0.0
    answer: int = EMPTY
    first_sent: float = 0.0
    last_sent: float = 0.0
    timeout: float = 0.0
    retransmissions: int = 0
    windowed: bool = False
    patience: float = 0.0
    yielding: bool = False
    gives_way: bool = False
    measurable: bool = True
    timer: Timer | None = None


def _bytes_of(transmission: Transmission, answer: int) -> int:
    """Bytes of a message and of its answer, with those of the layers below."""
    return len(transmission.datagram) + answer + 2 * OVERHEAD


class ReliabilityLayer:
    """Sends Confirmable messages until they are acknowledged, rejected or given up.

    Args:
        core: What the layers share.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    def send(
        self,
        state: PeerState,
        message: Message,
        on_outcome: OnOutcome,
        now: float,
        *,
        allowance: float = 0.0,
        answer: int = EMPTY,
        windowed: bool = False,
        timeout: float = 0.0,
        patience: float = 0.0,
        gives_way: bool = False,
    ) -> Transmission:
        """Send a Confirmable message, or queue it behind those that are outstanding.

        Args:
            state: To whom.
            message: With a message id that `PeerState.take_message_id` gave out.
            on_outcome: Told how it ended.
            now: Monotonic seconds.
            allowance: Seconds that the peer may take before it acknowledges, because it works on the answer.
            answer: Bytes of the message that is expected to acknowledge it.
            windowed: Whether the caller has a congestion window in place of NSTART (RFC 7252 section 4.7). That takes
                note of losses; they do not lengthen the timeout of other messages.
            timeout: Seconds that the window has measured; 0 takes the peer's timeout.
            patience: Seconds for which it may hold the ACK back, because it works on the message. So long the ACK
                is waited for, also after the last copy.
            gives_way: Whether it is given up (RFC 7252 section 4.2 allows that at any time) when another message has to
                wait for NSTART, because that tells as much.

        Raises:
            MessageError: The message has no wire form.
            OptionError: One of its options has none.
        """
        transmission = Transmission(
            state,
            message,
            message.encode(),
            on_outcome,
            allowance,
            answer,
            timeout=timeout,
            windowed=windowed,
            yielding=windowed,
            patience=patience,
            gives_way=gives_way,
        )
        if windowed:
            self._start(transmission, now)
        else:
            state.queue.append(transmission)
            self._start_queued(state, now)
        return transmission

    def has_room(self, state: PeerState) -> bool:
        """Whether a message would leave at once (RFC 7252 section 4.7)."""
        return not state.queue and self._counted(state) < self._core.tuning.nstart

    def pause(self, transmission: Transmission, now: float) -> None:
        """Send no more copies: the peer has shown that it has the message. Its ACK is still waited for."""
        if self._is_outstanding(transmission):
            self._core.timers.cancel(transmission.timer)
            # However long it takes the peer to fetch the rest, and to acknowledge or reject it all.
            transmission.measurable = False
            self._yield(transmission, now)

    def resume(self, transmission: Transmission, now: float) -> None:
        """Send copies again, if the ACK does not come: it may be held back no more, or it got lost."""
        if not self._is_outstanding(transmission):
            return
        self._core.timers.cancel(transmission.timer)
        self._yield(transmission, now)
        transmission.measurable = False
        transmission.first_sent = transmission.last_sent = now
        transmission.retransmissions = 0
        transmission.timeout = transmission.peer.settings.rto.draw(self._core.random)
        self._await(transmission, now + transmission.timeout)

    def stop(self, transmission: Transmission | None, now: float) -> None:
        """End a transmission whose outcome nobody waits for. None, and one that has ended, are left alone."""
        if transmission is None:
            return
        if self._is_outstanding(transmission):
            self._remove(transmission, now)
        elif transmission in transmission.peer.queue:
            transmission.peer.queue.remove(transmission)

    def stop_all(self, state: PeerState) -> None:
        """End all transmissions to a peer."""
        state.queue.clear()
        for transmission in state.outstanding.values():
            self._core.timers.cancel(transmission.timer)
        state.outstanding.clear()

    def receive_acknowledgement(self, state: PeerState, message: Message, now: float) -> bool:
        """Take in an ACK, empty or with a piggybacked response.

        Returns:
            Whether it belonged to a message of ours. A response whose token is not that of the request does
            not (RFC 7252 section 5.3.2).
        """
        transmission = state.outstanding.get(message.message_id)
        if transmission is None:
            return False
        sent = transmission.message
        if message.code != Code.EMPTY and (not is_request(sent.code) or message.token != sent.token):
            return False
        # The peer may have held back an empty ACK for a request for as long as it liked (separate_after):
        # that tells nothing of the way to it.
        if not (message.code == Code.EMPTY and is_request(sent.code)):
            self._measure(transmission, message, now)
        self._remove(transmission, now)
        transmission.on_outcome(Outcome.ACKNOWLEDGED, message, now)
        return True

    def receive_reset(self, state: PeerState, message: Message, now: float) -> bool:
        """Take in a Reset; return whether it belonged to a Confirmable message of ours."""
        transmission = state.outstanding.get(message.message_id)
        if transmission is None:
            return False
        self._core.counters.resets_received += 1
        self._measure(transmission, message, now)
        self._remove(transmission, now)
        transmission.on_outcome(Outcome.RESET, message, now)
        return True

    def _start(self, transmission: Transmission, now: float) -> None:
        state = transmission.peer
        state.outstanding[transmission.message.message_id] = transmission
        transmission.first_sent = now
        if transmission.timeout:
            drawn = transmission.timeout * self._core.random.uniform(1.0, self._core.tuning.ack_random_factor)
            transmission.timeout = max(drawn, transmission.timeout + transmission.allowance)
        else:
            size = _bytes_of(transmission, transmission.answer)
            transmission.timeout = state.settings.rto.draw(self._core.random, transmission.allowance, size)
        self._transmit(transmission, now)

    def _transmit(self, transmission: Transmission, now: float) -> None:
        transmission.peer.keep_message_ids(now, self._core.tuning.exchange_lifetime)
        self._core.send_datagram(transmission.peer.peer, transmission.datagram)
        transmission.last_sent = now
        self._await(transmission, now + transmission.timeout)

    def _await(self, transmission: Transmission, deadline: float) -> None:
        transmission.timer = self._core.timers.schedule(
            deadline, lambda now: self._timed_out(transmission, now)
        )

    def _timed_out(self, transmission: Transmission, now: float) -> None:
        rto = transmission.peer.settings.rto
        if self._exhausted(transmission, now):
            if now < transmission.first_sent + transmission.patience:
                self._await(transmission, transmission.first_sent + transmission.patience)
                return
            self._core.counters.timeouts += 1
            self._remove(transmission, now)
            transmission.on_outcome(Outcome.TIMED_OUT, None, now)
            self._core.tend(transmission.peer, now)
            return
        transmission.timeout = rto.doubled(transmission.timeout)
        # The missing ACK of a message that the peer works on is less of a sign: it counts once.
        once = transmission.patience and transmission.retransmissions
        if transmission.measurable and not transmission.windowed and not once:
            rto.backed_off(transmission.timeout / self._core.tuning.ack_random_factor)
        transmission.retransmissions += 1
        self._core.counters.retransmissions += 1
        self._transmit(transmission, now)
        if transmission.patience:
            self._yield(transmission, now)

    def _exhausted(self, transmission: Transmission, now: float) -> bool:
        tuning, since = self._core.tuning, now - transmission.first_sent
        if transmission.retransmissions < tuning.max_retransmit:
            # From then on the peer would not take a copy for one (RFC 7252 section 4.5).
            return tuning.adaptive_rto and since >= tuning.exchange_lifetime
        return not tuning.adaptive_rto or since >= tuning.max_transmit_span

    def _measure(self, transmission: Transmission, answer: Message, now: float) -> None:
        if not transmission.measurable:
            return
        rto = transmission.peer.settings.rto
        since_first = now - transmission.first_sent
        if transmission.retransmissions == 0:
            # The options are left out: it is a matter of a few bytes in comparison with a block.
            answered = HEADER_LENGTH + len(answer.token) + len(answer.payload)
            rto.sample(since_first, _bytes_of(transmission, answered))
        else:
            rto.repeated(since_first, now - transmission.last_sent, transmission.retransmissions)

    def _remove(self, transmission: Transmission, now: float) -> None:
        """Take a transmission out, and let the next one go."""
        state = transmission.peer
        self._core.timers.cancel(transmission.timer)
        transmission.timer = None
        del state.outstanding[transmission.message.message_id]
        self._start_queued(state, now)

    def _yield(self, transmission: Transmission, now: float) -> None:
        """Count a transmission no longer among the NSTART."""
        if not transmission.yielding:
            transmission.yielding = True
            self._start_queued(transmission.peer, now)

    def _start_queued(self, state: PeerState, now: float) -> None:
        """Let those go for which there is room (RFC 7252 section 4.7)."""
        while state.queue:
            if self._counted(state) < self._core.tuning.nstart:
                self._start(state.queue.popleft(), now)
                continue
            polite = next((each for each in state.outstanding.values() if each.gives_way), None)
            if polite is None:
                return
            self._remove(polite, now)
            polite.on_outcome(Outcome.GAVE_WAY, None, now)

    @staticmethod
    def _counted(state: PeerState) -> int:
        return sum(not transmission.yielding for transmission in state.outstanding.values())

    @staticmethod
    def _is_outstanding(transmission: Transmission) -> bool:
        return transmission.peer.outstanding.get(transmission.message.message_id) is transmission
