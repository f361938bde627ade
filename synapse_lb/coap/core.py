# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the layers of one endpoint share: its peers, timers, outgoing datagrams, events and counters."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

from synapse_lb.coap.counters import Counters
from synapse_lb.coap.deduplication import DuplicateTable
from synapse_lb.coap.events import Event, Peer
from synapse_lb.coap.exchange import ClientExchange, Exchange, ServerExchange
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Type
from synapse_lb.coap.peers import PeerSettings, PeerState
from synapse_lb.coap.rto import RetransmissionTimeout
from synapse_lb.coap.timers import TimerHeap
from synapse_lb.coap.tuning import Limits, Tuning


class Core:
    """The state of an endpoint that belongs to no single layer.

    Args:
        random: Source of first message ids and of the spread of timeouts.
        tuning: Transmission parameters.
        limits: Bounds.
    """

    def __init__(self, random: random.Random, tuning: Tuning, limits: Limits) -> None:
        self.random = random
        self.tuning = tuning
        self.limits = limits
        self.counters = Counters()
        self.timers = TimerHeap()
        self.peers: dict[Peer, PeerState] = {}
        self.settings: dict[Peer, PeerSettings] = {}
        self.exchanges: dict[int, ClientExchange | ServerExchange] = {}
        self.events: deque[Event] = deque()
        self.outbox: list[tuple[Peer, bytes]] = []
        self._last_exchange = 0

    def peer_state(self, peer: Peer) -> PeerState:
        """Return the state of a peer, made now if there is none."""
        state = self.peers.get(peer)
        if state is None:
            state = self.peers[peer] = PeerState(
                peer,
                self.settings.get(peer) or self._default_settings(),
                self.random.randrange(0x10000),
                DuplicateTable(self.limits, self.counters),
            )
        return state

    def settings_of(self, peer: Peer) -> PeerSettings:
        """Return the settings of a peer, which stay until it is dropped."""
        settings = self.settings.get(peer)
        if settings is None:
            state = self.peers.get(peer)
            settings = self.settings[peer] = self._default_settings() if state is None else state.settings
        return settings

    def tend(self, state: PeerState, now: float) -> None:
        """Free the state of a peer with which nothing is pending, or see to it that this is looked at again."""
        if state.active or state.sweep is not None or self.peers.get(state.peer) is not state:
            return
        state.dedup.sweep(now)
        quiet_at = state.quiet_at()
        if quiet_at <= now:
            del self.peers[state.peer]
            return

        def sweep(now: float) -> None:
            state.sweep = None
            self.tend(state, now)

        state.sweep = self.timers.schedule(quiet_at, sweep)

    def next_exchange(self) -> int:
        """Return the number of a new exchange."""
        self._last_exchange += 1
        return self._last_exchange

    def forget(self, exchange: ClientExchange | ServerExchange) -> None:
        """Stop the timer of an exchange that has ended, and take it out of the table."""
        self.timers.cancel(exchange.timer)
        exchange.timer = None
        self.exchanges.pop(exchange.id, None)

    def later(self, exchange: Exchange, delay: float, action: Callable[[float], None], now: float) -> None:
        """Set the timer of an exchange in place of the one it had.

        Args:
            exchange: Whose timer.
            delay: Seconds from now.
            action: Called with the time.
            now: Monotonic seconds.
        """
        self.timers.cancel(exchange.timer)
        exchange.timer = self.timers.schedule(now + delay, action)

    def send_datagram(self, peer: Peer, datagram: bytes) -> None:
        """Put a datagram into the outbox."""
        self.counters.datagrams_sent += 1
        self.counters.bytes_sent += len(datagram)
        self.outbox.append((peer, datagram))

    def send(self, peer: Peer, message: Message) -> bytes:
        """Encode a message and put it into the outbox.

        Returns:
            The datagram.
        """
        datagram = message.encode()
        self.send_datagram(peer, datagram)
        return datagram

    def send_reset(self, peer: Peer, message_id: int) -> None:
        """Reject a message (RFC 7252 section 4.2)."""
        self.counters.resets_sent += 1
        self.send(peer, Message(Type.RST, 0, message_id))

    def emit(self, event: Event) -> None:
        """Put an event into the queue of the application."""
        self.events.append(event)

    def drop_events(self, exchange: int) -> None:
        """Take back the events of an exchange that the application has not fetched."""
        if any(event.exchange == exchange for event in self.events):
            self.events = deque(event for event in self.events if event.exchange != exchange)

    def _default_settings(self) -> PeerSettings:
        return PeerSettings(self.limits.max_message_size, RetransmissionTimeout(self.tuning))
