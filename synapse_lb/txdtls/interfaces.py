# SPDX-License-Identifier: AGPL-3.0-or-later
"""What this package calls and is called by: the handler of messages and the datagram transport below."""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.protocol import DatagramProtocol

from synapse_lb.txdtls.errors import AssociationLost


class AssociationHandler(Protocol):
    """Receives the events of associations; an exception in one is logged and counted, and hurts nobody else.

    Each id gets `association_established` once, then messages, then `association_lost` once. Inside a call the
    handler may send and close, also on other associations.
    """

    def association_established(self, association_id: int) -> None:
        """A handshake was completed; the id is never reused."""

    def message_received(self, association_id: int, data: bytes) -> None:
        """A message arrived, authentic and not a replay."""

    def association_moved(self, association_id: int) -> None:
        """The peer's address changed; `peer_address` gives the new one."""

    def association_lost(self, association_id: int, reason: AssociationLost) -> None:
        """The association is over; nothing can be sent on it any more."""


class DatagramTransport(Protocol):
    """The part of `twisted.internet.interfaces.IUDPTransport` that is used, for networks in memory."""

    def write(self, packet: bytes, addr: tuple[str, int] | None = None) -> None:
        """Send a datagram; without an address to the connected peer."""

    def connect(self, host: str, port: int) -> None:
        """Exchange datagrams only with this peer; `host` is an IP address."""

    def getHost(self) -> Any:
        """The local `IPv4Address` or `IPv6Address`."""

    def stopListening(self) -> Any:
        """Close; may return a Deferred."""


class DatagramReactor(Protocol):
    """The part of a reactor that `connect` uses besides `IReactorTime` and `nameResolver`."""

    def listenUDP(
        self, port: int, protocol: DatagramProtocol, interface: str = "", maxPacketSize: int = 8192
    ) -> Any:
        """Bind a protocol to a port; 0 chooses one."""
