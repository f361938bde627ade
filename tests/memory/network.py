# SPDX-License-Identifier: AGPL-3.0-or-later
"""A network in memory with weather, blackouts and a NAT, and machines on it that can lose their power."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs
from twisted.internet.protocol import DatagramProtocol

from synapse_lb.testing.lossy import LossyLink, Weather
from synapse_lb.testing.memory import Address, MemoryPort, MemoryUDP
from tests.memory.process import Process

SERVER: Final[Address] = ("192.0.2.1", 8448)

_HANDSHAKE: Final = frozenset({20, 22})
"""Content types of DTLS records of a handshake (RFC 6347 section 4.1)."""

_SPARED: Final = 4.0
"""A datagram of a handshake is lost that much more rarely; see `BadNetwork`."""


class BadNetwork(MemoryUDP):
    """A network between the server and clients, each of which is behind a NAT.

    OpenSSL repeats the flights of a handshake by the clock on the wall, which does not know of virtual time. So a
    lost flight is lost for good, and the handshake only comes to an end by the client's time limit, after which it
    makes a new attempt. That handshakes succeed at all in bad weather, their datagrams are lost more rarely than
    others; in a blackout, or at a server that is down, they are lost like all.

    Args:
        seed: of the weather.

    Attributes:
        dark: directions in which nothing arrives: addresses of hosts that nothing goes to.
        carried: datagrams that were sent.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.dark: set[str] = set()
        self.carried = 0
        self._links = LossyLink(seed=seed), LossyLink(seed=seed + 1_000_003)
        self._handshakes = LossyLink(seed=seed + 2_000_003), LossyLink(seed=seed + 3_000_003)
        self._outside: dict[Address, Address] = {}
        self._inside: dict[Address, Address] = {}
        self._last_port = 1024

    @property
    def lost(self) -> int:
        """Datagrams that the weather took, blackouts not counted."""
        return sum(link.counters.lost for link in (*self._links, *self._handshakes))

    def set_weather(self, weather: Weather) -> None:
        """Change both directions from now on."""
        for link in self._links:
            link.weather = weather
        for link in self._handshakes:
            link.weather = attrs.evolve(weather, loss=weather.loss / _SPARED)

    def rebind(self, host: str) -> None:
        """Do what a restarted NAT does: from now on the host is seen at other ports, and deaf at the old ones."""
        for outside, inside in list(self._inside.items()):
            if inside[0] == host:
                del self._inside[outside], self._outside[inside]

    def carry(self, sender: Address, to: Address, data: bytes) -> None:
        """Put a datagram on its way."""
        self.carried += 1
        upwards = to == SERVER
        link = (self._handshakes if data[0] in _HANDSHAKE else self._links)[upwards]
        for delay in link.fate(data):
            if upwards:
                self.clock.callLater(delay, self._to_server, self._translated(sender), data)
            else:
                self.clock.callLater(delay, self._to_client, to, data)

    def _translated(self, inside: Address) -> Address:
        outside = self._outside.get(inside)
        if outside is None:
            self._last_port += 1
            outside = inside[0], self._last_port
            self._outside[inside], self._inside[outside] = outside, inside
        return outside

    def _to_server(self, sender: Address, data: bytes) -> None:
        if SERVER[0] not in self.dark:
            self._arrive(sender, SERVER, data)

    def _to_client(self, outside: Address, data: bytes) -> None:
        inside = self._inside.get(outside)
        if inside is not None and inside[0] not in self.dark:
            self._arrive(SERVER, inside, data)

    def run_until(self, condition: Callable[[], bool], limit: float) -> bool:
        """Let time pass from one event to the next until a condition has come true.

        Args:
            condition: looked at after each event.
            limit: seconds after which it has not.

        Returns:
            Whether it has.
        """
        clock, end = self.clock, self.seconds() + limit
        while not condition():
            due = min((call.getTime() for call in clock.calls), default=end)
            if due > end or self.seconds() >= end:
                return False
            # Where rounding would leave the clock just short of it, a little more does not matter.
            clock.advance(max(due - self.seconds(), 1e-6))
        return True


class Machine(Process):
    """A process with an address on the network.

    Args:
        network: the network and its clock.
        host: its address.
    """

    def __init__(self, network: BadNetwork, host: str) -> None:
        super().__init__(network.clock)
        self._network: Final = network
        self._host: Final = host
        self._ports: list[MemoryPort] = []

    def listenUDP(
        self, port: int, protocol: DatagramProtocol, interface: str = "", maxPacketSize: int = 8192
    ) -> Any:
        """Open a port on the machine's address."""
        listening = self._network.listenUDP(port, protocol, self._host, maxPacketSize)
        self._ports.append(listening)
        return listening

    def kill(self) -> None:
        """End it: nothing leaves it any more."""
        for port in self._ports:
            port.unplug()
        super().kill()
