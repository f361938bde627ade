# SPDX-License-Identifier: AGPL-3.0-or-later
"""CBOR -> JSON value: the vectors, the choices, and everything that is refused."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import cbor2
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.msc3079.cbor import MAX_INTEGER, MIN_INTEGER, decode
from synapse_lb.msc3079.errors import CborError
from synapse_lb.msc3079.keys_v1 import KEY_TO_INTEGER
from tests.msc3079.strategies import JSON_VALUES, PROPERTY, same, settled
from tests.msc3079.vectors import ERROR, ERROR_CBOR, MESSAGE, MESSAGE_CBOR


def value_of(text: str) -> Any:
    """What CBOR in hexadecimal stands for."""
    return decode(bytes.fromhex(text)).value


class Refusals(SynchronousTestCase):
    """Base: what is refused, and how."""

    def assert_malformed(self, *texts: str) -> None:
        for text in texts:
            error = self.assertRaises(CborError, decode, bytes.fromhex(text))
            self.assertFalse(error.well_formed, text)

    def assert_not_json(self, *texts: str) -> None:
        for text in texts:
            error = self.assertRaises(CborError, decode, bytes.fromhex(text))
            self.assertTrue(error.well_formed, text)


class ValueTests(SynchronousTestCase):
    """What is accepted."""

    def test_vectors_of_the_msc(self) -> None:
        for data, value in ((MESSAGE_CBOR, MESSAGE), (ERROR_CBOR, ERROR)):
            decoded = decode(data)
            self.assertEqual(decoded.value, value)
            self.assertTrue(decoded.used_integer_keys)

    def test_scalars(self) -> None:
        for text, value in (
            ("00", 0),
            ("17", 23),
            ("1818", 24),
            ("1bffffffffffffffff", MAX_INTEGER),
            ("20", -1),
            ("3b7fffffffffffffff", MIN_INTEGER),
            ("f4", False),
            ("f5", True),
            ("f6", None),
            ("60", ""),
            ("62c3a9", "é"),
            ("80", []),
            ("a0", {}),
        ):
            self.assertTrue(same(value_of(text), value), text)

    def test_integral_floats_become_integers(self) -> None:
        """Deployed clients send every number as a float of 9 bytes, and Matrix has no floats."""
        for text, value in (
            ("fb4014000000000000", 5),
            ("fb8000000000000000", 0),
            ("fbc3e0000000000000", MIN_INTEGER),
            ("fb43efffffffffffff", 2**64 - 2**11),
            ("fa4b000000", 2**23),
            ("f93c00", 1),
        ):
            self.assertTrue(same(value_of(text), value), text)

    def test_other_floats_stay(self) -> None:
        for text, value in (
            ("fb3ff8000000000000", 1.5),
            ("f93e00", 1.5),
            ("fb43f0000000000000", 2.0**64),
            ("fb7e37e43c8800759c", 1e300),
            ("fb0000000000000001", 5e-324),
        ):
            self.assertTrue(same(value_of(text), value), text)

    def test_indefinite_lengths(self) -> None:
        self.assertEqual(value_of("9f0102ff"), [1, 2])
        self.assertEqual(value_of("9fff"), [])
        self.assertEqual(value_of("bf616101ff"), {"a": 1})
        self.assertEqual(value_of("bf0265782e747970ff"), {"type": "x.typ"})
        self.assertEqual(value_of("7f61616162ff"), "ab")
        self.assertEqual(value_of("a17f6161ff9fff"), {"a": []})

    def test_longer_heads_than_need_be(self) -> None:
        self.assertEqual(value_of("1b0000000000000001"), 1)
        self.assertEqual(value_of("b9000119000200"), {"type": 0})
        self.assertEqual(value_of("7a0000000161"), "a")

    def test_order_is_kept(self) -> None:
        self.assertEqual(list(value_of("a36162000200616100")), ["b", "type", "a"])

    @PROPERTY
    @given(JSON_VALUES)
    def test_reads_what_another_library_writes(self, value: Any) -> None:
        self.assertTrue(same(decode(cbor2.dumps(value)).value, settled(value)))

    @PROPERTY
    @given(JSON_VALUES)
    def test_reads_indefinite_lengths_of_another_library(self, value: Any) -> None:
        self.assertTrue(same(decode(cbor2.dumps(value, indefinite_containers=True)).value, settled(value)))


class KeyTests(Refusals):
    """Integer keys."""

    def test_every_key(self) -> None:
        for key, integer in KEY_TO_INTEGER.items():
            decoded = decode(cbor2.dumps({integer: 0}))
            self.assertEqual(decoded.value, {key: 0})
            self.assertTrue(decoded.used_integer_keys)

    def test_text_that_looks_like_an_integer(self) -> None:
        """The text "8" is never expanded."""
        decoded = decode(cbor2.dumps({"8": 1, "origin_server_ts": 2}))
        self.assertEqual(decoded.value, {"8": 1, "origin_server_ts": 2})
        self.assertFalse(decoded.used_integer_keys)

    def test_text_form_wins(self) -> None:
        for data in (
            b"\xa2\x01\x61i\x68event_id\x61t",
            b"\xa2\x68event_id\x61t\x01\x61i",
        ):
            decoded = decode(data)
            self.assertEqual(decoded.value, {"event_id": "t"})
            self.assertTrue(decoded.used_integer_keys)

    def test_what_loses_must_be_valid_all_the_same(self) -> None:
        self.assert_not_json("a2014100686576656e745f696400")

    def test_nested(self) -> None:
        decoded = decode(cbor2.dumps([{"x": [{2: 1}]}, {"y": 1}]))
        self.assertEqual(decoded.value, [{"x": [{"type": 1}]}, {"y": 1}])
        self.assertTrue(decoded.used_integer_keys)

    def test_values_are_never_expanded(self) -> None:
        self.assertEqual(value_of("a1020a"), {"type": 10})
        self.assertEqual(value_of("820102"), [1, 2])

    def test_unknown_integers(self) -> None:
        self.assert_not_json("a10000", "a1186900", "a119010000", "a11bffffffffffffffff00")

    def test_negative_integers(self) -> None:
        self.assert_not_json("a12000", "a13b7fffffffffffffff00")

    def test_the_same_key_twice(self) -> None:
        self.assert_not_json(
            "a2616101616102",
            "a202010202",
            "a20201180202",
            "a27f6161ff01616102",
            "a302006474797065000200",
        )

    def test_other_keys(self) -> None:
        """Refused before a map is built with them, so that no choice of hashes slows anything down."""
        self.assert_not_json(
            "a1f600", "a1f500", "a1410000", "a1810100", "a1a000", "a1fb3ff000000000000000", "a1c10000"
        )

    def test_keys_with_equal_hashes(self) -> None:
        """Arrays as keys are refused at the first, however many follow."""
        self.assert_not_json("b93e80" + "8200f600" * 16000)


class MalformedTests(Refusals):
    """What is not CBOR."""

    def test_nothing(self) -> None:
        self.assert_malformed("")

    def test_truncated(self) -> None:
        """Every beginning of a body is refused."""
        for data in (MESSAGE_CBOR, bytes.fromhex("bf617f9ffb3ff80000000000007f6161ff1a00010000ffff")):
            for length in range(len(data)):
                self.assertRaises(CborError, decode, data[:length])

    def test_bytes_behind(self) -> None:
        self.assert_malformed("0000", "a000", "80ff", MESSAGE_CBOR.hex() + "00")

    def test_heads_that_do_not_exist(self) -> None:
        self.assert_malformed("1c", "3d", "7e", "9c", "bd", "1f", "3f", "a11c00")

    def test_breaks_out_of_place(self) -> None:
        for text in ("ff", "81ff", "a1ff", "bf6161ff", "a16161ff", "9f81ff"):
            self.assertRaises(CborError, decode, bytes.fromhex(text))

    def test_chunks_of_text_that_are_none(self) -> None:
        self.assert_malformed("7f01ff", "7f4161ff", "7f7f6161ffff", "7f6161")

    def test_text_that_is_not_utf8(self) -> None:
        self.assert_malformed("61ff", "62c328", "63eda080", "a161ff00", "7f61c361a9ff", "7801ff")

    def test_huge_lengths_allocate_nothing(self) -> None:
        """A length costs memory only when what it declares has come."""
        tracemalloc.start()
        try:
            for major in (0x40, 0x60, 0x80, 0xA0):
                for tail in ("1a7fffffff", "1bffffffffffffffff", "1b00000fffffffffff", "1a7fffffff6161"):
                    text = bytes([major | int(tail[:2], 16)]).hex() + tail[2:]
                    self.assertRaises(CborError, decode, bytes.fromhex(text))
                    self.assertRaises(CborError, decode, bytes.fromhex("a1" + text))
            self.assertLess(tracemalloc.get_traced_memory()[1], 200_000)
        finally:
            tracemalloc.stop()


class NotJsonTests(Refusals):
    """What is CBOR but stands for nothing in JSON."""

    def test_byte_strings(self) -> None:
        """The first of these once stopped the reference proxy."""
        self.assert_not_json("4100", "40", "814100", "a161614100", "5f4100ff")

    def test_undefined_and_other_simple_values(self) -> None:
        self.assert_not_json("f7", "e0", "f3", "f8ff", "f820", "81f7")

    def test_nan_and_infinities(self) -> None:
        self.assert_not_json("f97e00", "f97c00", "f9fc00", "fa7fc00000", "fb7ff0000000000000", "81f97e00")

    def test_integers_outside_64_bits(self) -> None:
        self.assert_not_json("3b8000000000000000", "3bffffffffffffffff", "813b8000000000000000")

    def test_every_tag(self) -> None:
        """Bignums, dates, regexes, shared and cyclic values, references to strings, and all others."""
        inner: Any
        for tag in [*range(300), 1004, 43000, 55799, 2**16 - 1, 2**32 - 1, 2**64 - 1]:
            for inner in (0, "a", b"\x01", [], {}, [1, 2], "2020-01-01", None):
                data = cbor2.dumps(cbor2.CBORTag(tag, inner))
                for wrapped in (data, b"\x81" + data, b"\xa1\x61a" + data):
                    error = self.assertRaises(CborError, decode, wrapped)
                    self.assertTrue(error.well_formed, tag)

    def test_cycle(self) -> None:
        self.assert_not_json("d81c81d81d00")


class DepthTests(SynchronousTestCase):
    """Nesting."""

    def test_limit(self) -> None:
        for opener, closer in (
            (b"\x81", b""),
            (b"\xa1\x61a", b""),
            (b"\x9f", b"\xff"),
            (b"\xbf\x61a", b"\xff"),
        ):
            self.assertIsNotNone(decode(opener * 5 + b"\x00" + closer * 5, max_depth=5))
            error = self.assertRaises(CborError, decode, opener * 6 + b"\x00" + closer * 6, max_depth=5)
            self.assertTrue(error.well_formed)

    def test_siblings_do_not_count(self) -> None:
        self.assertEqual(decode(b"\x98\x64" + b"\x81\x80" * 100, max_depth=3).value, [[[]]] * 100)

    def test_ten_thousand_levels(self) -> None:
        for opener in (b"\x81", b"\x9f", b"\xa1\x02", b"\xbf\x61a"):
            self.assertRaises(CborError, decode, opener * 10_000 + b"\x00")
            self.assertRaises(CborError, decode, opener * 10_000)

    def test_no_limit_but_ours(self) -> None:
        value = decode(b"\x81" * 50_000 + b"\x00", max_depth=50_000).value
        depth = 0
        while value != 0:
            value, depth = value[0], depth + 1
        self.assertEqual(depth, 50_000)


class AnyBytesTests(SynchronousTestCase):
    """Any bytes at all."""

    @PROPERTY
    @given(st.binary(max_size=60))
    @example(b"\x41\x00")
    @example(b"\xa1\x81\x00\x00")
    def test_a_json_value_or_an_error(self, data: bytes) -> None:
        try:
            decoded = decode(data)
        except CborError:
            return
        json.dumps(decoded.value, allow_nan=False)

    @PROPERTY
    @given(JSON_VALUES, st.data())
    def test_damaged(self, value: Any, data: st.DataObject) -> None:
        damaged = bytearray(cbor2.dumps(value))
        for _ in range(data.draw(st.integers(1, 3))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        try:
            decoded = decode(bytes(damaged))
        except CborError:
            return
        json.dumps(decoded.value, allow_nan=False)

    def test_errors_never_quote_the_body(self) -> None:
        for data in (b"\xa2\x66secret\x00\x66secret\x00", b"\xa1\x41s\x00", b"\x66secre\xff", b"\x46secret"):
            error = self.assertRaises(CborError, decode, data)
            self.assertNotIn("secre", str(error))

    def test_repr_hides_the_value(self) -> None:
        self.assertNotIn("secret", repr(decode(b"\x66secret")))
