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
        return reactor.listenUDP(port, protocol, interface=address, maxPacketSize=MAX_DATAGRAM)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as shared:
            shared.setblocking(False)
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                # Else 0.0.0.0, which may be shared too, would be there twice.
                shared.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            shared.bind((address, port))
            return reactor.adoptDatagramPort(shared.fileno(), family, protocol, MAX_DATAGRAM)
    except OSError as error:
        raise CannotListenError(address, port, error) from error
