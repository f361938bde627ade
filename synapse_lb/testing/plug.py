# SPDX-License-Identifier: AGPL-3.0-or-later
"""A reactor for one UDP client, whose plug can be pulled: what it sends from then on gets nowhere."""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import DatagramProtocol


class Plug:
    """Hands everything on to a reactor, but for the datagrams of a client that has vanished.

    Args:
        reactor: Twisted's.
        datagrams: how many may leave until the plug is pulled by itself; None for no bound.
    """

    def __init__(self, reactor: Any, datagrams: int | None = None) -> None:
        self._reactor = reactor
        self._left = datagrams

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def pull(self) -> None:
        """Send nothing more."""
        self._left = 0

    @property
    def pulled(self) -> bool:
        """Whether nothing leaves any more."""
        return self._left == 0

    def listenUDP(
        self, port: int, protocol: DatagramProtocol, interface: str = "", maxPacketSize: int = 8192
    ) -> Any:
        """Open a socket, and put the plug before it."""
        listening = self._reactor.listenUDP(port, protocol, interface=interface, maxPacketSize=maxPacketSize)
        plugged: Any = protocol
        plugged.transport = _Socket(self, listening)
        return listening

    def take(self) -> bool:
        """Whether one more datagram may leave."""
        if self._left is None:
            return True
        if self._left == 0:
            return False
        self._left -= 1
        return True


class _Socket:
    """A transport that asks the plug first."""

    def __init__(self, plug: Plug, transport: Any) -> None:
        self._plug = plug
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, packet: bytes, addr: tuple[str, int] | None = None) -> Any:
        """Send a datagram, unless the plug was pulled."""
        return self._transport.write(packet, addr) if self._plug.take() else len(packet)
