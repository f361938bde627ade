# SPDX-License-Identifier: AGPL-3.0-or-later
"""What this package calls and is called by: the handler of messages and the datagram transport below."""

from __future__ import annotations

from collections.abc import Callable
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
        """The peer's address changed; `peer_address` gives the new one. A message from there follows.

        The new address is not proven: see `DTLSServerPort.confirm_address`.
        """

    def association_lost(self, association_id: int, reason: AssociationLost) -> None:
        """The association is over; nothing can be sent on it any more."""


class Timer(Protocol):
    """A call that is due at some time; `twisted.internet.interfaces.IDelayedCall` without zope's signatures."""

    def cancel(self) -> None:
        """Do not make the call."""

    def active(self) -> bool:
        """Whether the call is still to be made."""

    def getTime(self) -> float:
        """When it is due, in the clock's seconds."""


class Clock(Protocol):
    """`twisted.internet.interfaces.IReactorTime`: a reactor or a `twisted.internet.task.Clock`."""

    def seconds(self) -> float:
        """Monotonic seconds."""

    # The result is a Timer; Any, because Twisted declares its zope interface there.
    def callLater(self, delay: float, callable: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `callable` after `delay` seconds; returns a `Timer`."""


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
    """The part of a reactor that `connect` uses besides `Clock` and `nameResolver`."""

    def listenUDP(
        self, port: int, protocol: DatagramProtocol, interface: str = "", maxPacketSize: int = 8192
    ) -> Any:
        """Bind a protocol to a port; 0 chooses one."""


class ClientReactor(Clock, DatagramReactor, Protocol):
    """What a client association needs once the server's address is known."""
