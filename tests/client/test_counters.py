# SPDX-License-Identifier: AGPL-3.0-or-later
"""Bytes on the wire, as UDP payload and as IP packets."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.client.counters import IPV6_UDP_HEADERS, Traffic


class TrafficTests(SynchronousTestCase):
    def test_ip_bytes(self) -> None:
        traffic = Traffic(2, 3, 100, 200)
        self.assertEqual((traffic.ip_bytes_sent, traffic.ip_bytes_received), (156, 284))

    def test_ip_bytes_ipv6(self) -> None:
        traffic = Traffic(2, 3, 100, 200, IPV6_UDP_HEADERS)
        self.assertEqual((traffic.ip_bytes_sent, traffic.ip_bytes_received), (196, 344))

    def test_difference_and_sum(self) -> None:
        earlier, later = Traffic(1, 1, 10, 20), Traffic(3, 2, 50, 90)
        self.assertEqual(later - earlier, Traffic(2, 1, 40, 70))
        self.assertEqual(earlier + (later - earlier), later)
