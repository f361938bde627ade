# SPDX-License-Identifier: AGPL-3.0-or-later
"""What crossed the wire, counted as UDP payload and as IP packets."""

from __future__ import annotations

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
        headers: bytes of IP and UDP headers in front of each datagram.
    """

    datagrams_sent: int = 0
    datagrams_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    headers: int = IPV4_UDP_HEADERS

    @property
    def ip_bytes_sent(self) -> int:
        """Bytes of IP packets sent."""
        return self.bytes_sent + self.datagrams_sent * self.headers

    @property
    def ip_bytes_received(self) -> int:
        """Bytes of IP packets received."""
        return self.bytes_received + self.datagrams_received * self.headers

    def __sub__(self, earlier: Traffic) -> Traffic:
        """What was added since an earlier reading."""
        return Traffic(
            self.datagrams_sent - earlier.datagrams_sent,
            self.datagrams_received - earlier.datagrams_received,
            self.bytes_sent - earlier.bytes_sent,
            self.bytes_received - earlier.bytes_received,
            self.headers,
        )

    def __add__(self, other: Traffic) -> Traffic:
        """What two associations of one client have moved together."""
        return Traffic(
            self.datagrams_sent + other.datagrams_sent,
            self.datagrams_received + other.datagrams_received,
            self.bytes_sent + other.bytes_sent,
            self.bytes_received + other.bytes_received,
            self.headers,
        )
