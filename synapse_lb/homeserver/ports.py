# SPDX-License-Identifier: AGPL-3.0-or-later
"""UDP ports, alone or shared with other processes (SO_REUSEPORT, socket(7))."""

from __future__ import annotations

import socket
from typing import Any, Final

from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol

MAX_DATAGRAM: Final = 65535
"""Bytes that are read from the socket at once: any UDP datagram, so that none is cut."""


def listen_udp(reactor: Any, port: int, protocol: DatagramProtocol, address: str, *, reuse_port: bool) -> Any:
    """Open a UDP port.

    Args:
        reactor: Twisted's reactor.
        port: its number.
        protocol: gets what comes in.
        address: IP address to listen on.
        reuse_port: share it with every process of the same user that shares it too; the kernel deals out datagrams by
            the addresses and ports of both ends, so that those of one client stay with one process.

    Raises:
        CannotListenError: the port cannot be opened.
    """
    if not reuse_port:
        return _sending_at_once(
            reactor.listenUDP(port, protocol, interface=address, maxPacketSize=MAX_DATAGRAM)
        )
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as shared:
            shared.setblocking(False)
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                # Else 0.0.0.0, which may be shared too, would be there twice.
                shared.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            shared.bind((address, port))
            opened = reactor.adoptDatagramPort(shared.fileno(), family, protocol, MAX_DATAGRAM)
    except OSError as error:
        raise CannotListenError(address, port, error) from error
    return _sending_at_once(opened)


def _sending_at_once(opened: Any) -> Any:
    """Let a port send without a look at what kind of address it is, which is one that the socket has named.

    What cannot be sent is sent once more as Twisted does, which knows what the error means.
    """
    sendto, carefully = opened.socket.sendto, opened.write

    def write(datagram: bytes, address: tuple[str, int]) -> int:
        try:
            return int(sendto(datagram, address))
        except OSError:
            return int(carefully(datagram, address) or 0)

    opened.write = write
    return opened
