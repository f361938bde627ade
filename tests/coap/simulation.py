# SPDX-License-Identifier: AGPL-3.0-or-later
"""Two endpoints, a bad link and a clock that only moves when nothing else can happen."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from attrs import define

from synapse_lb.coap.endpoint import Endpoint
from synapse_lb.coap.events import (
    CoapResponse,
    Event,
    RequestReceived,
)


@define(frozen=True)
class Link:
    """How bad the link is.

    Attributes:
        loss: Probability that a datagram is lost.
        duplication: Probability that it arrives twice.
        latency: Seconds at least.
        jitter: Seconds at most, on top; datagrams overtake one another.
        period: Seconds from one blackout to the next.
        blackout: Seconds of each period, at its end, in which everything is lost.
    """

    loss: float = 0.0
    duplication: float = 0.0
    latency: float = 0.05
    jitter: float = 0.0
    period: float = 1.0
    blackout: float = 0.0


Application = Callable[["Simulation", RequestReceived], None]
Listener = Callable[["Simulation", Event], None]


class Simulation:
    """A client and a server over one link.

    Args:
        client: Calls its peer "server".
        server: Calls its peer "client".
        link: Between them.
        seed: Of the link.
        application: Called with each request that the server's application gets.
        on_server_event: Called with each other event of the server.
        on_client_event: Called with each event of the client.
    """

    def __init__(
        self,
        client: Endpoint,
        server: Endpoint,
        link: Link,
        seed: int,
        application: Application,
        *,
        on_server_event: Listener | None = None,
        on_client_event: Listener | None = None,
    ) -> None:
        self.now = 0.0
        self.client = client
        self.server = server
        self.client_events: list[Event] = []
        self.server_events: list[Event] = []
        self.datagrams = 0
        self._application = application
        self._on_server_event = on_server_event
        self._on_client_event = on_client_event
        self._link = link
        self._random = random.Random(seed)
        self._pending: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0

    def later(self, delay: float, action: Callable[[], None]) -> None:
        """Do something after so many seconds."""
        self._serial += 1
        heapq.heappush(self._pending, (self.now + delay, self._serial, action))

    def respond_later(self, delay: float, exchange: int, response: CoapResponse) -> None:
        """Answer after so many seconds."""
        self.later(delay, lambda: self.server.respond(exchange, response, self.now))

    def run(self, until: float = 1e9) -> None:
        """Run until nothing is left to happen."""
        for _ in range(5_000_000):
            self._drain()
            due = [self._pending[0][0]] if self._pending else []
            due += [
                timer for timer in (self.client.next_timer(), self.server.next_timer()) if timer is not None
            ]
            if not due or min(due) > until:
                return
            self.now = max(self.now, min(due))
            if self._pending and self._pending[0][0] <= self.now:
                heapq.heappop(self._pending)[2]()
            else:
                self.client.handle_timer(self.now)
                self.server.handle_timer(self.now)
        raise AssertionError("the simulation does not end")

    def _drain(self) -> None:
        progress = True
        while progress:
            progress = False
            for sender, receiver, name in (
                (self.client, self.server, "client"),
                (self.server, self.client, "server"),
            ):
                for _, datagram in sender.datagrams_to_send(self.now):
                    progress = True
                    self._transmit(receiver, name, datagram)
            while (event := self.server.next_event()) is not None:
                progress = True
                self.server_events.append(event)
                if isinstance(event, RequestReceived):
                    self._application(self, event)
                elif self._on_server_event is not None:
                    self._on_server_event(self, event)
            while (event := self.client.next_event()) is not None:
                progress = True
                self.client_events.append(event)
                if self._on_client_event is not None:
                    self._on_client_event(self, event)

    def _transmit(self, receiver: Endpoint, sender: str, datagram: bytes) -> None:
        self.datagrams += 1
        link = self._link
        if self.now % link.period > link.period - link.blackout:
            return
        copies = 2 if self._random.random() < link.duplication else 1
        for _ in range(copies):
            if self._random.random() >= link.loss:
                delay = link.latency + self._random.random() * link.jitter
                self.later(delay, lambda: receiver.receive(sender, datagram, self.now))
