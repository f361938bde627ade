# SPDX-License-Identifier: AGPL-3.0-or-later
"""How the bytes of HTTP are reckoned, and what is said of them."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.client.counters import Traffic
from synapse_lb.proxy.statistics import SAMPLES, Statistics, https_bytes, line, saving, summary


class HttpsBytesTests(SynchronousTestCase):
    def test_small_request_and_answer(self) -> None:
        """A packet each way and an acknowledgement; by hand."""
        self.assertEqual(https_bytes(400, 300), (400 + 22 + 52) + (300 + 22 + 52) + 52)

    def test_large_answer(self) -> None:
        """100,000 bytes are 7 records; with these, 100,154 bytes are 70 segments, and 35 acknowledgements."""
        self.assertEqual(https_bytes(100, 100_000), (100 + 22 + 52) + (100_154 + 70 * 52) + 35 * 52)

    def test_full_segments(self) -> None:
        self.assertEqual(https_bytes(1448 - 22, 1) - https_bytes(1448 - 23, 1), 1)
        self.assertEqual(https_bytes(1448 - 21, 1) - https_bytes(1448 - 22, 1), 1 + 52)


class StatisticsTests(SynchronousTestCase):
    def test_saving(self) -> None:
        self.assertIsNone(saving(500, 0))
        self.assertEqual(saving(250, 1000), 75.0)
        self.assertEqual(saving(1500, 1000), -50.0)

    def test_line(self) -> None:
        statistics = Statistics(coap=3, dropped=1, failed=1, http=40_000)
        traffic = Traffic.of(
            datagrams_sent=10, datagrams_received=10, bytes_sent=3000, bytes_received=6440, headers=28
        )
        numbers = summary(statistics, traffic)
        self.assertEqual(numbers["wire_bytes"], 10_000)
        self.assertEqual(
            line(numbers), "5 requests, 10.0 kB on the wire, 40.0 kB as HTTP and JSON, 75.0 % saved"
        )
        statistics.https, statistics.http = 2, 5000
        self.assertEqual(
            line(summary(statistics, traffic)),
            "7 requests, 10.0 kB on the wire, 5,000 B as HTTP and JSON, 100.0 % more; 2 over HTTPS",
        )
        self.assertEqual(
            line(summary(Statistics(), Traffic())), "0 requests, 0 B on the wire, 0 B as HTTP and JSON"
        )

    def test_samples_are_bounded(self) -> None:
        statistics = Statistics()
        for second in range(SAMPLES + 10):
            statistics.sample(second, Traffic())
        self.assertEqual((len(statistics.samples), statistics.samples[0].time), (SAMPLES, 10))
