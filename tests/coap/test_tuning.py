# SPDX-License-Identifier: AGPL-3.0-or-later
"""Transmission parameters and bounds: their defaults, what is derived from them, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import attrs
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.tuning import Limits, Tuning


class TuningTests(SynchronousTestCase):
    def test_defaults_and_derived(self) -> None:
        """RFC 7252 section 4.8 table 2, and section 4.8.2 table 3."""
        tuning = Tuning()
        self.assertEqual((tuning.ack_timeout, tuning.ack_random_factor, tuning.max_retransmit), (2.0, 1.5, 4))
        self.assertEqual(tuning.max_transmit_span, 45)
        self.assertEqual(tuning.max_transmit_wait, 93)
        self.assertEqual(tuning.max_latency, 100)
        self.assertEqual(tuning.processing_delay, 2)
        self.assertEqual(tuning.max_rtt, 202)
        self.assertEqual(tuning.exchange_lifetime, 247)
        self.assertEqual(tuning.non_lifetime, 145)

    def test_q_block(self) -> None:
        """RFC 9177 section 7.2, table 3."""
        tuning = Tuning()
        self.assertFalse(tuning.q_block)
        self.assertEqual((tuning.max_payloads, tuning.non_max_retransmit), (10, 4))
        self.assertEqual((tuning.non_timeout, tuning.non_receive_timeout), (2.0, 4.0))
        self.assertEqual((tuning.non_partial_timeout, tuning.non_probing_wait), (247, 247))
        self.assertEqual(Tuning(non_max_retransmit=2, max_latency=10.0).non_partial_timeout, 9 + 20 + 2)
        Tuning(non_timeout=3, non_receive_timeout=4)
        error = self.assertRaises(ValueError, Tuning, non_timeout=3.5, non_receive_timeout=4)
        self.assertIn("non_receive_timeout must be at least non_timeout + 1 (4.5)", str(error))

    def test_derived_follow(self) -> None:
        tuning = Tuning(ack_timeout=8.0, ack_random_factor=1.0, max_retransmit=2, max_latency=10.0)
        self.assertEqual(tuning.max_transmit_span, 24)
        self.assertEqual(tuning.max_transmit_wait, 56)
        self.assertEqual(tuning.exchange_lifetime, 24 + 20 + 8)
        self.assertEqual(tuning.non_lifetime, 34)

    def test_no_retransmission_at_all(self) -> None:
        tuning = Tuning(max_retransmit=0)
        self.assertEqual(tuning.max_transmit_span, 0)
        self.assertEqual(tuning.max_transmit_wait, 3)

    def test_out_of_range(self) -> None:
        for name, value in (
            ("ack_timeout", 0),
            ("ack_random_factor", 0.99),
            ("max_retransmit", -1),
            ("max_retransmit", 21),
            ("nstart", 0),
            ("max_latency", 0),
            ("separate_after", -0.1),
            ("response_timeout", 0),
            ("min_rto", 0),
            ("max_rto", 0.5),
            ("max_payloads", 0),
            ("non_timeout", 0),
            ("non_receive_timeout", 2.9),
            ("non_max_retransmit", 21),
            ("probing_rate", 0),
        ):
            values: dict[str, Any] = {name: value}
            error = self.assertRaises(ValueError, Tuning, **values)
            self.assertTrue(str(error).startswith(f"{name} must be "), str(error))

    def test_at_the_edge_of_the_range(self) -> None:
        Tuning(ack_random_factor=1, max_retransmit=20, nstart=1, separate_after=0, min_rto=3, max_rto=3)


class LimitsTests(SynchronousTestCase):
    def test_defaults(self) -> None:
        limits = Limits()
        self.assertEqual(limits.max_message_size, 1152)
        self.assertEqual(limits.block_szx, 6)
        self.assertEqual(limits.max_request_body, 1048576)

    def test_out_of_range(self) -> None:
        for name, value in (
            ("max_message_size", 63),
            ("max_message_size", 65536),
            ("block_szx", 7),
            ("block_szx", -1),
            ("max_request_body", -1),
            ("max_request_body", 1024 * 2**20 + 1),
            ("max_exchanges_per_peer", 0),
            ("dedup_entries_per_peer", 65537),
            ("dedup_bytes_per_peer", -1),
            ("snapshot_lifetime", 0),
            ("reassembly_lifetime", 0),
        ):
            values: dict[str, Any] = {name: value}
            error = self.assertRaises(ValueError, Limits, **values)
            self.assertTrue(str(error).startswith(f"{name} must be "), str(error))

    def test_a_smaller_bound_over_a_larger_one(self) -> None:
        for name, values in (
            ("max_reassembly_bytes_per_peer", {"max_request_body": 3 * 2**20}),
            ("max_reassembly_bytes_total", {"max_reassembly_bytes_total": 2**20}),
            ("snapshot_bytes_total", {"snapshot_bytes_total": 2**20}),
        ):
            error = self.assertRaises(ValueError, Limits, **values)
            self.assertTrue(str(error).startswith(f"{name} must be at least "), str(error))


class EveryFieldTests(SynchronousTestCase):
    def test_each_refuses_what_is_no_number_and_names_itself(self) -> None:
        for cls in (Tuning, Limits):
            for attribute in attrs.fields(cls):
                for value in ("1", None, math.nan, math.inf, -math.inf):
                    values: dict[str, Any] = {attribute.name: value}
                    error = self.assertRaises(ValueError, cls, **values)
                    self.assertTrue(str(error).startswith(f"{attribute.name} must be "), str(error))

    def test_numbers_are_no_booleans_and_counts_no_fractions(self) -> None:
        for cls in (Tuning, Limits):
            for attribute in attrs.fields(cls):
                if not isinstance(attribute.default, bool):
                    boolean: dict[str, Any] = {attribute.name: True}
                    self.assertRaises(ValueError, cls, **boolean)
                if isinstance(attribute.default, int):
                    fraction: dict[str, Any] = {attribute.name: 1.5}
                    self.assertRaises(ValueError, cls, **fraction)
