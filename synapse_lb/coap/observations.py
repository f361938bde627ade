# SPDX-License-Identifier: AGPL-3.0-or-later
"""Client role: the notifications of what we observe (RFC 7641 section 3, RFC 7959 section 2.6).

    notification --> newer? --> whole? --> NotificationReceived --> confirm --> ACK
                       |          |
                       |          '- no: its further blocks are fetched by a request with a token of its own
                       '- no: acknowledged and dropped

The ACK of a Confirmable notification leaves when the application has confirmed it, and so means that it was
processed. Copies that come before are absorbed. One that comes while the blocks of another are being fetched waits;
a third one takes the place of the one that waits, for it is newer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from attrs import define, field, frozen

from synapse_lb.coap.blockwise import read_block
from synapse_lb.coap.core import Core
from synapse_lb.coap.deduplication import Seen
from synapse_lb.coap.errors import CoapError, RemoteError
from synapse_lb.coap.events import CoapResponse, NotificationReceived
from synapse_lb.coap.exchange import ClientExchange, Step
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import OptionNumber, Type
from synapse_lb.coap.observe import is_newer
from synapse_lb.coap.peers import PeerState


@frozen(eq=False)
class Arrival:
    """A notification that has come in.

    Attributes:
        message: Its message.
        seen: Its entry in the table of duplicates; None if it needs no ACK.
    """

    message: Message
    seen: Seen | None

    @property
    def number(self) -> int:
        """Its place in the order of notifications."""
        return self.message.options.get_uint(OptionNumber.OBSERVE) or 0


@define(eq=False)
class Observation:
    """What is kept of one observation of ours.

    Attributes:
        latest: The number of the newest notification, and when it came, in monotonic seconds.
        unconfirmed: The notifications that the application has, in their order.
        fetching: The one whose further blocks are being fetched.
        fetch: The exchange that does.
        waiting: The one that comes after it.
    """

    latest: tuple[int, float] | None = None
    unconfirmed: deque[Arrival] = field(factory=deque)
    fetching: Arrival | None = None
    fetch: ClientExchange | None = None
    waiting: Arrival | None = None


class Observations:
    """What the endpoint observes.

    Args:
        core: What the layers share.
        fetch: Begins to fetch the further blocks of a notification whose first block is this message; raises
            `RemoteError` if that makes no sense.
        end: Ends an exchange in silence.
        fail: Ends an exchange with an error.
    """

    def __init__(
        self,
        core: Core,
        fetch: Callable[[ClientExchange, Message, float], ClientExchange],
        end: Callable[[ClientExchange, float], None],
        fail: Callable[[ClientExchange, CoapError, float], None],
    ) -> None:
        self._core = core
        self._counters = core.counters
        self._fetch = fetch
        self._end = end
        self._fail = fail

    def receive(
        self, exchange: ClientExchange, observation: Observation, arrival: Arrival, now: float
    ) -> None:
        """Take in a notification that is no copy of an earlier message."""
        state = exchange.peer
        latest = observation.latest
        answers = arrival.message.type is Type.ACK  # the request that was sent last, so it is the newest
        if latest is not None and not answers and not is_newer(arrival.number, now, *latest):
            self._counters.notifications_stale += 1
            self._acknowledge(state, arrival)
            return
        if len(observation.unconfirmed) >= self._core.limits.max_unconfirmed_notifications:
            # As if it had been lost: the peer will repeat it.
            self._counters.notifications_refused += 1
            if arrival.seen is not None:
                state.dedup.forget(arrival.seen)
            return
        observation.latest = (arrival.number, now)
        exchange.advance(Step.OBSERVE)
        self._core.timers.cancel(exchange.timer)
        if observation.fetching is None:
            self._begin(exchange, observation, arrival, now)
            return
        if observation.waiting is not None:
            self._counters.notifications_stale += 1
            self._acknowledge(state, observation.waiting)
        observation.waiting = arrival

    def _begin(
        self, exchange: ClientExchange, observation: Observation, arrival: Arrival, now: float
    ) -> None:
        """Fetch the further blocks of a notification, or hand it over if there are none."""
        message = arrival.message
        try:
            block = read_block(message.options, OptionNumber.BLOCK2)
            if block is not None and block.more:
                self._counters.blocks_received += 1
                observation.fetching = arrival
                observation.fetch = self._fetch(exchange, message, now)
                return
        except RemoteError as error:
            self._fail(exchange, error, now)
            return
        options = message.options.without(OptionNumber.BLOCK1, OptionNumber.BLOCK2, OptionNumber.SIZE2)
        self._hand_over(exchange, observation, arrival, CoapResponse(message.code, options, message.payload))

    def fetched(
        self, exchange: ClientExchange, observation: Observation, response: CoapResponse, now: float
    ) -> None:
        """Take the whole notification."""
        arrival, waiting = observation.fetching, observation.waiting
        assert arrival is not None  # there is a fetch for nothing else
        observation.fetching = observation.fetch = observation.waiting = None
        self._hand_over(exchange, observation, arrival, response)
        if waiting is not None:
            self._begin(exchange, observation, waiting, now)

    def not_fetched(
        self, exchange: ClientExchange, observation: Observation, error: CoapError, now: float
    ) -> None:
        """Go on with the next notification, if it has come and the last one is evidently out of date."""
        waiting = observation.waiting
        observation.fetch = None
        if waiting is None or not isinstance(error, RemoteError):
            self._fail(exchange, error, now)
            return
        if observation.fetching is not None:
            self._counters.notifications_stale += 1
            self._acknowledge(exchange.peer, observation.fetching)
        observation.fetching = observation.waiting = None
        self._begin(exchange, observation, waiting, now)

    def _hand_over(
        self,
        exchange: ClientExchange,
        observation: Observation,
        arrival: Arrival,
        response: CoapResponse,
    ) -> None:
        observation.unconfirmed.append(arrival)
        self._counters.notifications_received += 1
        options = response.options.without(OptionNumber.OBSERVE)
        whole = CoapResponse(response.code, options, response.payload)
        self._core.emit(NotificationReceived(exchange.peer.peer, exchange.id, whole, arrival.number))

    def confirm(self, exchange: ClientExchange, observation: Observation) -> None:
        """Acknowledge the oldest notification that is not confirmed."""
        if observation.unconfirmed:
            self._acknowledge(exchange.peer, observation.unconfirmed.popleft())

    def close(self, exchange: ClientExchange, observation: Observation, now: float, *, reject: bool) -> None:
        """End an observation, together with its exchange.

        Args:
            exchange: Its exchange.
            observation: What is kept of it.
            now: Monotonic seconds.
            reject: Whether notifications that are not confirmed are rejected, so that the peer knows at once.
        """
        state = exchange.peer
        arrivals = [*observation.unconfirmed, observation.fetching, observation.waiting]
        observation.unconfirmed.clear()
        observation.fetching = observation.waiting = None
        fetch, observation.fetch = observation.fetch, None
        if fetch is not None and not fetch.ended:
            self._end(fetch, now)
        for arrival in arrivals:
            if arrival is None or arrival.seen is None:
                continue
            state.dedup.settle(arrival.seen, None)
            if reject:
                self._core.send_reset(state.peer, arrival.message.message_id)

    def _acknowledge(self, state: PeerState, arrival: Arrival) -> None:
        if arrival.seen is not None:
            datagram = self._core.send(state.peer, Message(Type.ACK, 0, arrival.message.message_id))
            state.dedup.settle(arrival.seen, datagram)
