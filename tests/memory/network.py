# SPDX-License-Identifier: AGPL-3.0-or-later
"""A network with weather, blackouts and a NAT, and machines on it that can lose their power."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.protocol import DatagramProtocol

from synapse_lb.testing.lossy import LossyLink, Weather
from synapse_lb.testing.memory import Address, MemoryPort, MemoryUDP

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


class Machine:
    """The reactor of one process, which can be killed: it does nothing any more, and tells nobody.

    Args:
        network: the network and its clock.
        host: its address.
    """

    def __init__(self, network: BadNetwork, host: str) -> None:
        self.network: Final = network
        self.alive = True
        self._host: Final = host
        self._timers: list[Timer] = []
        self._prune_at = 64
        self._ports: list[MemoryPort] = []

    def seconds(self) -> float:
        """Virtual time in seconds."""
        return self.network.seconds()

    def callLater(self, delay: float, call: Callable[..., object], *args: object, **named: object) -> Timer:
        """Call something in virtual time, if the process is still there."""

        def due() -> None:
            if self.alive:
                call(*args, **named)

        timer = Timer(self, self.network.clock.callLater(delay, due))
        if len(self._timers) > self._prune_at:
            self._timers = [each for each in self._timers if each.active()]
            self._prune_at = max(64, 2 * len(self._timers))
        self._timers.append(timer)
        return timer

    def listenUDP(
        self, port: int, protocol: DatagramProtocol, interface: str = "", maxPacketSize: int = 8192
    ) -> Any:
        """Open a port on the machine's address."""
        listening = self.network.listenUDP(port, protocol, self._host, maxPacketSize)
        self._ports.append(listening)
        return listening

    def sleep(self, delay: float) -> Deferred[None]:
        """Fires after so many seconds, and never if the process is killed before."""
        timer: Timer

        def cancel(_: object) -> None:
            if timer.active():
                timer.cancel()

        slept: Deferred[None] = Deferred(cancel)
        timer = self.callLater(delay, slept.callback, None)
        return slept

    @property
    def waits_for(self) -> list[Timer]:
        """What is still to be called."""
        return [timer for timer in self._timers if timer.active()]

    def kill(self) -> None:
        """End the process as `kill -9` does."""
        for port in self._ports:
            port.unplug()
        for timer in self.waits_for:
            timer.cancel()
        self.alive = False


class Timer:
    """A call that is due at some time; one of a process that is dead does nothing, whatever is asked of it.

    Args:
        machine: whose it is.
        call: what the clock gave.
    """

    def __init__(self, machine: Machine, call: Any) -> None:
        self._machine = machine
        self._call = call

    def active(self) -> bool:
        """Whether it is still to come."""
        return bool(self._call.active())

    def cancel(self) -> None:
        """Do not make the call."""
        if self._machine.alive:
            self._call.cancel()

    def reset(self, delay: float) -> None:
        """Make it so many seconds from now."""
        if self._machine.alive:
            self._call.reset(delay)

    def getTime(self) -> float:
        """When it is due."""
        return float(self._call.getTime())
