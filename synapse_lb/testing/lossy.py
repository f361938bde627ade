# SPDX-License-Identifier: AGPL-3.0-or-later
"""A bad network: datagrams get lost, arrive twice, late and out of order, all of it from a seed.

`LossyLink` decides what happens to each datagram of one direction and is pure; `LossyRelay` is a UDP relay on the
loopback interface that puts one `LossyLink` into each direction between clients and a server.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.protocol import DatagramProtocol

Address = tuple[str, int]

_LARGEST = 65536  # bytes: no UDP datagram is larger


@attrs.frozen
class Weather:
    """How bad one direction is. All fields but delays are probabilities from 0 to 1, drawn per datagram.

    Args:
        loss: the datagram never arrives.
        duplication: it arrives a second time, after another delay.
        reordering: it is held back by up to `hold_back` more seconds, so that later ones overtake it.
        delay: seconds that every datagram takes.
        hold_back: seconds, see `reordering`; also the most that a duplicate lags behind.
    """

    loss: float = attrs.field(default=0.0, validator=[attrs.validators.ge(0), attrs.validators.le(1)])
    duplication: float = attrs.field(default=0.0, validator=[attrs.validators.ge(0), attrs.validators.le(1)])
    reordering: float = attrs.field(default=0.0, validator=[attrs.validators.ge(0), attrs.validators.le(1)])
    delay: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))
    hold_back: float = attrs.field(default=0.03, validator=attrs.validators.ge(0))


CLEAR = Weather()
"""Nothing is lost, nothing waits."""

STORM = Weather(loss=0.2, duplication=0.2, reordering=0.2)
"""A fifth is lost, a fifth arrives twice, a fifth arrives out of order."""


@attrs.define
class LinkCounters:
    """What happened on one direction, in datagrams and bytes of UDP payload.

    `sent` is what came in, `delivered` what went out: ``delivered == sent - lost + duplicated`` once nothing is
    on its way.
    """

    sent: int = 0
    sent_bytes: int = 0
    lost: int = 0
    duplicated: int = 0
    held_back: int = 0
    delivered: int = 0
    delivered_bytes: int = 0


class LossyLink:
    """Decides the fate of datagrams; pure, and the same for the same seed and the same datagrams.

    Args:
        weather: the probabilities; may be replaced at any time.
        seed: of the random numbers.
        drop: a further rule: called with the datagram's number (from 0) and bytes, True loses it. For tests that
            want to lose exactly one datagram.
    """

    def __init__(
        self,
        weather: Weather = CLEAR,
        seed: int = 0,
        drop: Callable[[int, bytes], bool] | None = None,
    ) -> None:
        self.weather = weather
        self.drop = drop
        self.counters = LinkCounters()
        self._random = random.Random(seed)

    def fate(self, data: bytes) -> list[float]:
        """When the datagram arrives: one delay in seconds per copy, none if it is lost.

        The same number of random numbers is drawn for each datagram, so that a changed probability does not
        change the fate of all that follow.
        """
        loss, duplication, reordering, lag, second_lag = (self._random.random() for _ in range(5))
        weather, counters = self.weather, self.counters
        number = counters.sent
        counters.sent += 1
        counters.sent_bytes += len(data)
        if loss < weather.loss or (self.drop is not None and self.drop(number, data)):
            counters.lost += 1
            return []
        first = weather.delay
        if reordering < weather.reordering:
            counters.held_back += 1
            first += lag * weather.hold_back
        if duplication >= weather.duplication:
            return [first]
        counters.duplicated += 1
        return [first, first + second_lag * weather.hold_back]

    def delivered(self, data: bytes) -> None:
        """Count one copy that arrived."""
        self.counters.delivered += 1
        self.counters.delivered_bytes += len(data)


class LossyRelay:
    """A UDP relay on the loopback interface between any number of clients and one server.

    Each client address gets a socket of its own towards the server, so that the server can tell them apart.

        relay = LossyRelay(reactor, server=("127.0.0.1", 8008), weather=STORM, seed=7)
        relay.start()
        client = LowBandwidthClient(reactor, f"coaps://127.0.0.1:{relay.port}", ...)
        ...
        await relay.stop()

    Args:
        reactor: provides listenUDP and callLater.
        server: address and port to relay to.
        weather: of both directions.
        seed: of both directions (they draw from different sequences).
        interface: the loopback address to listen on.
        max_clients: the table's bound; when it is full the client that was heard of longest ago loses its socket
            (`forgotten` counts them).

    Attributes:
        to_server: the `LossyLink` of what clients send.
        to_client: the `LossyLink` of what the server sends.
        forgotten: clients that were evicted from the table.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        server: Address,
        weather: Weather = CLEAR,
        seed: int = 0,
        interface: str = "127.0.0.1",
        max_clients: int = 64,
    ) -> None:
        self.to_server = LossyLink(weather, seed)
        self.to_client = LossyLink(weather, seed + 1_000_003)
        self.forgotten = 0
        self._reactor = reactor
        self._server = server
        self._interface = interface
        self._max_clients = max_clients
        self._front: _Front | None = None
        self._clients: dict[Address, _Towards] = {}
        self._on_their_way: set[Any] = set()

    @property
    def port(self) -> int:
        """The port that clients send to."""
        if self._front is None:
            raise RuntimeError("the relay has not been started")
        return int(self._front.transport.getHost().port)

    def set_weather(self, weather: Weather) -> None:
        """Change both directions from now on."""
        self.to_server.weather = weather
        self.to_client.weather = weather

    def start(self) -> None:
        """Open the socket that clients send to."""
        self._front = _Front(self)
        self._reactor.listenUDP(0, self._front, interface=self._interface, maxPacketSize=_LARGEST)

    def stop(self) -> Deferred[None]:
        """Close all sockets; what is on its way is lost. Fires when they are closed."""
        for call in self._on_their_way:
            call.cancel()
        self._on_their_way.clear()
        closing = [client.close() for client in self._clients.values()]
        self._clients.clear()
        front, self._front = self._front, None
        if front is not None:
            closing.append(maybeDeferred(front.transport.stopListening))
        return gatherResults(closing).addCallback(lambda _: None)

    def forget_client_ports(self) -> None:
        """Do what a restarted NAT does: the next datagrams of each client reach the server from a new port."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def from_client(self, data: bytes, client: Address) -> None:
        """A datagram arrived at the front."""
        towards = self._clients.pop(client, None)
        if towards is None:
            if len(self._clients) >= self._max_clients:
                self._clients.pop(next(iter(self._clients))).close()
                self.forgotten += 1
            towards = _Towards(self, client)
            self._reactor.listenUDP(0, towards, interface=self._interface, maxPacketSize=_LARGEST)
        self._clients[client] = towards  # at the end: heard of last
        self._carry(self.to_server, data, towards, self._server)

    def from_server(self, data: bytes, client: Address) -> None:
        """A datagram arrived at the socket that belongs to `client`."""
        if self._front is not None:
            self._carry(self.to_client, data, self._front, client)

    def _carry(self, link: LossyLink, data: bytes, through: _Socket, to: Address) -> None:
        for delay in link.fate(data):
            if delay > 0:
                self._carry_later(delay, link, data, through, to)
            else:
                self._arrive(link, data, through, to)

    def _carry_later(self, delay: float, link: LossyLink, data: bytes, through: _Socket, to: Address) -> None:
        def arrive() -> None:
            self._on_their_way.remove(call)
            self._arrive(link, data, through, to)

        call = self._reactor.callLater(delay, arrive)
        self._on_their_way.add(call)

    def _arrive(self, link: LossyLink, data: bytes, through: _Socket, to: Address) -> None:
        if through.send(data, to):
            link.delivered(data)


class _Socket(DatagramProtocol):
    """One UDP socket of the relay."""

    transport: Any  # Twisted declares None and sets it when the port opens

    def send(self, data: bytes, to: Address) -> bool:
        """Write one datagram; False if the socket has been closed meanwhile, or the server refuses it."""
        if self.transport is None:
            return False
        try:
            self.transport.write(data, to)
        except OSError:
            return False
        return True

    def close(self) -> Deferred[None]:
        """Close the socket; fires once it is closed."""
        return maybeDeferred(self.transport.stopListening)


class _Front(_Socket):
    """The socket that clients send to."""

    def __init__(self, relay: LossyRelay) -> None:
        self._relay = relay

    def datagramReceived(self, datagram: bytes, addr: Address) -> None:
        self._relay.from_client(datagram, addr)


class _Towards(_Socket):
    """The socket of one client towards the server."""

    def __init__(self, relay: LossyRelay, client: Address) -> None:
        self._relay = relay
        self._client = client

    def datagramReceived(self, datagram: bytes, addr: Address) -> None:
        self._relay.from_server(datagram, self._client)
