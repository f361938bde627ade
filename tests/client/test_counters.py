# SPDX-License-Identifier: AGPL-3.0-or-later
"""Bytes on the wire, as UDP payload and as IP packets."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.client.counters import IPV4_UDP_HEADERS, IPV6_UDP_HEADERS, Traffic


def traffic(sent: int, received: int, headers: int) -> Traffic:
    """Some datagrams of 50 bytes sent and of 100 bytes received."""
    return Traffic.of(
        datagrams_sent=sent,
        datagrams_received=received,
        bytes_sent=50 * sent,
        bytes_received=100 * received,
        headers=headers,
    )


class TrafficTests(SynchronousTestCase):
    def test_ip_bytes(self) -> None:
        for headers, sent, received in ((IPV4_UDP_HEADERS, 156, 384), (IPV6_UDP_HEADERS, 196, 444)):
            counted = traffic(2, 3, headers)
            self.assertEqual((counted.bytes_sent, counted.bytes_received), (100, 300))
            self.assertEqual((counted.ip_bytes_sent, counted.ip_bytes_received), (sent, received))

    def test_sum_of_two_address_families(self) -> None:
        total = traffic(1, 1, IPV4_UDP_HEADERS) + traffic(1, 1, IPV6_UDP_HEADERS)
        self.assertEqual(total, Traffic(2, 2, 100, 200, 176, 276))

    def test_difference(self) -> None:
        earlier, added = traffic(1, 1, IPV4_UDP_HEADERS), traffic(4, 2, IPV4_UDP_HEADERS)
        self.assertEqual((earlier + added) - earlier, added)
