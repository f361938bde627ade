# SPDX-License-Identifier: AGPL-3.0-or-later
"""UDP without sockets and without waiting: an in-memory datagram network on a `twisted.internet.task.Clock`.

`MemoryUDP` offers what a Twisted protocol asks of the reactor (`listenUDP`, `callLater`, `seconds`), so that a
server port and its clients run unchanged in one process and in virtual time:

    network = MemoryUDP()
    network.listenUDP(8008, server_port, interface="192.0.2.1")
    network.listenUDP(0, client_protocol, interface="192.0.2.2")
    network.advance(0.5)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import Clock

from synapse_lb.testing.lossy import LossyLink

Address = tuple[str, int]

FIRST_EPHEMERAL_PORT = 49152
"""Port 0 gives the next free one from here on (RFC 6335 section 6)."""

STEP = 0.01
"""Seconds by which `MemoryUDP.advance` moves the clock at a time."""


class MemoryUDP:
    """A datagram network and its clock.

    Args:
        clock: the virtual time; a new `Clock` by default.
        latency: seconds that a datagram travels. Never delivered inside `write`, even if it is 0.
        link: the fate of all datagrams (loss, duplication, reordering) on top of `latency`.

    Attributes:
        clock: the virtual time.
        link: may be replaced at any time; None delivers everything.
        sent: every datagram that was written, in order: from, to, bytes.
        unreachable: datagrams to an address where nobody listens.
    """

    def __init__(
        self, clock: Clock | None = None, latency: float = 0.0, link: LossyLink | None = None
    ) -> None:
        self.clock = clock if clock is not None else Clock()
        self.latency = latency
        self.link = link
        self.sent: list[tuple[Address, Address, bytes]] = []
        self.unreachable = 0
        self._ports: dict[Address, MemoryPort] = {}

    # IReactorTime

    def seconds(self) -> float:
        """Virtual time in seconds."""
        return float(self.clock.seconds())

    def callLater(self, delay: float, call: Callable[..., object], *args: object, **named: object) -> Any:
        """Call something in virtual time."""
        return self.clock.callLater(delay, call, *args, **named)

    def getDelayedCalls(self) -> list[Any]:
        """What is still to be called: empty once everybody has cleaned up after himself."""
        return list(self.clock.getDelayedCalls())

    def advance(self, seconds: float) -> None:
        """Let time pass, in steps of `STEP`, so that an answer to an answer still arrives within it."""
        end = self.seconds() + seconds
        while self.seconds() + STEP < end:
            self.clock.advance(STEP)
        self.clock.advance(max(0.0, end - self.seconds()))

    # IReactorUDP

    def listenUDP(
        self, port: int, protocol: DatagramProtocol, interface: str = "", maxPacketSize: int = 8192
    ) -> MemoryPort:
        """Open a port on any address; an empty one means 127.0.0.1.

        Raises:
            CannotListenError: the port is taken.
        """
        host = interface or "127.0.0.1"
        if port == 0:
            port = FIRST_EPHEMERAL_PORT
            while (host, port) in self._ports:
                port += 1
        if (host, port) in self._ports:
            raise CannotListenError(host, port, OSError("the port is taken"))
        listening = MemoryPort(self, protocol, (host, port), maxPacketSize)
        self._ports[host, port] = listening
        transport: Any = listening  # it has what IUDPTransport asks for, but does not inherit from it
        protocol.makeConnection(transport)
        return listening

    def carry(self, sender: Address, to: Address, data: bytes) -> None:
        """Put a datagram on its way; also usable to forge one."""
        self.sent.append((sender, to, bytes(data)))
        fates = [0.0] if self.link is None else self.link.fate(data)
        for delay in fates:
            self.clock.callLater(self.latency + delay, self._arrive, sender, to, bytes(data))

    def _arrive(self, sender: Address, to: Address, data: bytes) -> None:
        port = self._ports.get(to)
        if port is None:
            self.unreachable += 1
            return
        if self.link is not None:
            self.link.delivered(data)
        port.arrive(data, sender)

    def close(self, address: Address) -> None:
        """Nobody listens at this address any longer."""
        self._ports.pop(address, None)


class MemoryPort:
    """An open port of a `MemoryUDP`, and the transport of its protocol."""

    def __init__(
        self, network: MemoryUDP, protocol: DatagramProtocol, address: Address, maximum: int
    ) -> None:
        self._network = network
        self._protocol: DatagramProtocol | None = protocol
        self._address = address
        self._maximum = maximum
        self._remote: Address | None = None

    def write(self, packet: bytes, addr: Address | None = None) -> None:
        """Send one datagram: to `addr`, or to where `connect` said."""
        to = addr if addr is not None else self._remote
        if to is None:
            raise ValueError("the port is not connected and no address was given")
        if self._protocol is not None:
            self._network.carry(self._address, (to[0], to[1]), packet)

    def connect(self, host: str, port: int) -> None:
        """Send to this address from now on, and receive from it only."""
        self._remote = (host, port)

    def arrive(self, data: bytes, sender: Address) -> None:
        """A datagram has arrived (bytes beyond the port's maximum are cut off, as recvfrom does)."""
        if self._protocol is not None and self._remote in (None, sender):
            self._protocol.datagramReceived(data[: self._maximum], sender)

    def getHost(self) -> IPv4Address | IPv6Address:
        """The local address."""
        host, port = self._address
        return IPv6Address("UDP", host, port) if ":" in host else IPv4Address("UDP", host, port)

    def startListening(self) -> None:
        """Nothing to do: the port is open from the beginning."""

    def stopListening(self) -> Deferred[None]:
        """Close the port."""
        self._network.close(self._address)
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            protocol.doStop()
        return succeed(None)

    def loseConnection(self) -> None:
        """Close the port."""
        self.stopListening()

    def unplug(self) -> None:
        """Close the port without a word to its protocol, as when the process is killed: nothing leaves any more."""
        self._network.close(self._address)
        self._protocol = None

    def setBroadcastAllowed(self, enabled: bool) -> None:
        """There is no broadcast here."""

    def getBroadcastAllowed(self) -> bool:
        """There is no broadcast here."""
        return False
