# SPDX-License-Identifier: AGPL-3.0-or-later
"""What crossed the wire, counted as UDP payload and as IP packets."""

from __future__ import annotations

import operator
from typing import Final

import attrs

IPV4_UDP_HEADERS: Final = 28
"""Bytes: 20 of IPv4 (RFC 791, no options) and 8 of UDP (RFC 768)."""

IPV6_UDP_HEADERS: Final = 48
"""Bytes: 40 of IPv6 (RFC 8200, no extension headers) and 8 of UDP."""


@attrs.frozen
class Traffic:
    """Datagrams and bytes both ways, DTLS handshakes and records included.

    Attributes:
        datagrams_sent: datagrams.
        datagrams_received: datagrams.
        bytes_sent: bytes of UDP payload.
        bytes_received: bytes of UDP payload.
        ip_bytes_sent: bytes of IP packets: with the headers of IP and UDP.
        ip_bytes_received: bytes of IP packets.
    """

    datagrams_sent: int = 0
    datagrams_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    ip_bytes_sent: int = 0
    ip_bytes_received: int = 0

    @classmethod
    def of(
        cls,
        *,
        datagrams_sent: int,
        datagrams_received: int,
        bytes_sent: int,
        bytes_received: int,
        headers: int,
    ) -> Traffic:
        """Count the IP packets too.

        Args:
            datagrams_sent: datagrams.
            datagrams_received: datagrams.
            bytes_sent: bytes of UDP payload.
            bytes_received: bytes of UDP payload.
            headers: bytes of IP and UDP headers in front of each datagram.
        """
        return cls(
            datagrams_sent,
            datagrams_received,
            bytes_sent,
            bytes_received,
            bytes_sent + datagrams_sent * headers,
            bytes_received + datagrams_received * headers,
        )

    def __add__(self, other: Traffic) -> Traffic:
        """What both have moved together."""
        return Traffic(*map(operator.add, attrs.astuple(self), attrs.astuple(other)))

    def __sub__(self, earlier: Traffic) -> Traffic:
        """What was added since an earlier reading."""
        return Traffic(*map(operator.sub, attrs.astuple(self), attrs.astuple(earlier)))
