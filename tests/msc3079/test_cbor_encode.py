# SPDX-License-Identifier: AGPL-3.0-or-later
"""JSON value -> CBOR: the vectors, the canonical form, and values that are odd."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any

import cbor2
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.msc3079.cbor import MAX_INTEGER, MIN_INTEGER, decode, encode
from synapse_lb.msc3079.cbor_shapes import MAX_SHAPE_CHARACTERS, MAX_SHAPE_KEYS, MAX_SHAPES, SHAPES
from synapse_lb.msc3079.errors import CborError
from synapse_lb.msc3079.keys_v1 import KEY_TO_INTEGER
from tests.msc3079.odd_values import Frozen, Level, Membership, Name
from tests.msc3079.strategies import JSON_VALUES, PROPERTY, same, settled
from tests.msc3079.vectors import ERROR, ERROR_CBOR, MESSAGE, MESSAGE_CBOR


class CanonicalTests(SynchronousTestCase):
    """RFC 7049 section 3.9."""

    def test_vectors_of_the_msc(self) -> None:
        self.assertEqual(encode(MESSAGE, 1).hex(), MESSAGE_CBOR.hex())
        self.assertEqual(encode(ERROR, 1).hex(), ERROR_CBOR.hex())

    def test_order_of_keys(self) -> None:
        """By the length of the encoding first: an empty text comes before an integer of two bytes."""
        value = {"aa": 1, "b": 2, "": 3, "body": 4, "type": 5}
        self.assertEqual(encode(value, 1).hex(), "a502056003181b0461620262616101")

    def test_order_that_the_value_has(self) -> None:
        self.assertEqual(
            encode({"b": 1, "a": {"z": 1, "y": 2}}, canonical=False).hex(), "a26162016161a2617a01617902"
        )

    def test_shortest_heads(self) -> None:
        for value, text in (
            (23, "17"),
            (24, "1818"),
            (255, "18ff"),
            (256, "190100"),
            (65535, "19ffff"),
            (65536, "1a00010000"),
            (2**32 - 1, "1affffffff"),
            (2**32, "1b0000000100000000"),
            (MAX_INTEGER, "1bffffffffffffffff"),
            (-24, "37"),
            (-25, "3818"),
            (MIN_INTEGER, "3b7fffffffffffffff"),
        ):
            self.assertEqual(encode(value).hex(), text)

    def test_shortest_floats(self) -> None:
        for value, text in (
            (1.5, "f93e00"),
            (0.0, "f90000"),
            (-0.0, "f98000"),
            (65504.0, "f97bff"),
            (65505.0, "fa477fe100"),
            (0.1, "fb3fb999999999999a"),
            (3.4028234663852886e38, "fa7f7fffff"),
            (1e300, "fb7e37e43c8800759c"),
            (5e-324, "fb0000000000000001"),
        ):
            self.assertEqual(encode(value).hex(), text)

    @PROPERTY
    @given(JSON_VALUES)
    def test_same_bytes_as_another_library(self, value: Any) -> None:
        self.assertEqual(encode(value), cbor2.dumps(value, canonical=True))

    @PROPERTY
    @given(JSON_VALUES)
    def test_same_bytes_as_another_library_with_integer_keys(self, value: Any) -> None:
        def numbered(inner: Any) -> Any:
            if isinstance(inner, dict):
                return {KEY_TO_INTEGER.get(key, key): numbered(item) for key, item in inner.items()}
            return [numbered(item) for item in inner] if isinstance(inner, list) else inner

        self.assertEqual(encode(value, 1), cbor2.dumps(numbered(value), canonical=True))


class RoundTripTests(SynchronousTestCase):
    """Encoded and decoded."""

    @PROPERTY
    @given(JSON_VALUES, st.sampled_from((None, 1)), st.booleans())
    def test_same_value(self, value: Any, key_version: int | None, canonical: bool) -> None:
        decoded = decode(encode(value, key_version, canonical=canonical))
        self.assertTrue(same(decoded.value, settled(value)))
        if key_version is None:
            self.assertFalse(decoded.used_integer_keys)

    def test_every_key(self) -> None:
        value = dict(KEY_TO_INTEGER)
        data = encode(value, 1)
        self.assertEqual(data, cbor2.dumps({n: n for n in value.values()}, canonical=True))
        self.assertEqual(decode(data).value, value)

    def test_text_that_looks_like_an_integer(self) -> None:
        value = {"8": 1, "origin_server_ts": 2}
        self.assertEqual(encode(value, 1).hex(), "a20802613801")
        self.assertEqual(decode(encode(value, 1)).value, value)

    def test_long(self) -> None:
        value: Any
        for value in (["x"] * 300, {str(n): n for n in range(300)}, "x" * 70_000, [[]] * 70_000):
            self.assertEqual(decode(encode(value, 1)).value, value)


class TypeTests(SynchronousTestCase):
    """What Synapse's servlets hand over beside plain JSON values."""

    def test_mappings_and_tuples(self) -> None:
        value = Frozen(content=Frozen(body=("a", ["b"], ())), type={"x": Frozen()})
        self.assertEqual(
            decode(encode(value, 1)).value, {"content": {"body": ["a", ["b"], []]}, "type": {"x": {}}}
        )

    def test_subclasses(self) -> None:
        value = {"membership": Membership.JOIN, "n": Level.ADMIN, Membership.JOIN: True, "name": Name("it")}
        plain = {"membership": "join", "n": 100, "join": True, "name": "it"}
        self.assertEqual(encode(value, 1), encode(plain, 1))
        self.assertEqual(decode(encode(value, 1)).value, plain)

    def test_subclass_of_float(self) -> None:
        class Half(float):
            pass

        self.assertEqual(encode(Half(1.5)), encode(1.5))

    def test_keys_that_are_not_text(self) -> None:
        """As `json` writes them; an integer never becomes one of the MSC's keys."""
        value: dict[Any, Any] = {5: "a", None: "b", True: "c", False: "d", Level.ADMIN: "e", "type": "f"}
        written = json.loads(json.dumps(value))
        self.assertEqual(decode(encode(value, 1)).value, written)
        self.assertNotIn("room_id", written)

    def test_keys_that_become_the_same_text(self) -> None:
        self.assertEqual(encode({5: "a", "5": "b"}), encode({"5": "b"}))

    def test_what_is_no_json_value(self) -> None:
        """Bytes above all: they must never get into the output as they are."""
        for value in (b"\x00", bytearray(b"\x00"), {1}, object(), Decimal(1), 1j, cbor2.CBORTag(2, b"")):
            for inside in (value, [value], {"a": value}, (value,)):
                for lossy in (False, True):
                    self.assertRaises(CborError, encode, inside, lossy=lossy)

    def test_keys_that_json_has_not(self) -> None:
        for key in (b"a", 1.5, ("a",)):
            self.assertRaises(CborError, encode, {key: 1})

    def test_unknown_key_version(self) -> None:
        for version in (0, 2, -1):
            self.assertRaises(ValueError, encode, {}, version)


class OddValueTests(SynchronousTestCase):
    """What CBOR cannot carry: an error, or for answers the nearest thing."""

    def test_lone_surrogates(self) -> None:
        for value in ("\ud800", "a\udfffb", {"\ud800": 1}, ["\udc00"]):
            self.assertRaises(CborError, encode, value)
        self.assertEqual(decode(encode("a\ud800b", lossy=True)).value, "a\ufffdb")
        self.assertEqual(
            decode(encode({"\udc00": "\udc00\ud800"}, lossy=True)).value, {"\ufffd": "\ufffd\ufffd"}
        )

    def test_pairs_of_surrogates(self) -> None:
        self.assertEqual(decode(encode("\ud83d\ude00\ud800", lossy=True)).value, "😀\ufffd")

    def test_integers_outside_64_bits(self) -> None:
        for value in (MAX_INTEGER + 1, MIN_INTEGER - 1, 10**400, -(10**400)):
            self.assertRaises(CborError, encode, [value])
        self.assertEqual(decode(encode([2**64, -(2**63) - 1], lossy=True)).value, [2.0**64, MIN_INTEGER])
        self.assertEqual(decode(encode([10**400, -(10**400)], lossy=True)).value, [None, None])

    def test_nan_and_infinities(self) -> None:
        for value in (math.nan, math.inf, -math.inf):
            self.assertRaises(CborError, encode, value)
            self.assertEqual(encode(value, lossy=True), b"\xf6")

    def test_lossy_changes_nothing_else(self) -> None:
        self.assertEqual(encode(MESSAGE, 1, lossy=True), MESSAGE_CBOR)

    def test_deep(self) -> None:
        """Far deeper than JSON parsers go; a library that recurses overflows its stack here."""
        value: Any = 0
        for _ in range(50_000):
            value = [{"a": (value,)}] if _ % 1000 == 0 else [value]
        data = encode(value, 1)
        self.assertEqual(data.count(b"\x81"), 50_000 + 50)

    def test_cycles(self) -> None:
        ring: list[Any] = []
        ring.append(ring)
        self.assertRaises(CborError, encode, ring)
        looped: dict[str, Any] = {}
        looped["a"] = (looped,)
        self.assertRaises(CborError, encode, looped, lossy=True)


class ShapesTests(SynchronousTestCase):
    """What is kept of maps that were written before changes nothing, and is bounded."""

    def setUp(self) -> None:
        self.plans = SHAPES[None, True].plans
        self.plans.clear()

    def test_again(self) -> None:
        """The second map with the same keys is written as the first, whatever their order and the values."""
        for items in ({"b": 1, "aa": "x", "a": {}}, {"b": [None], "aa": {"é": 1.5}, "a": "y"}):
            for _ in range(2):
                for value in (items, dict(reversed(items.items()))):
                    self.assertEqual(encode(value), cbor2.dumps(value, canonical=True))

    def test_keys_that_are_equal_and_not_the_same(self) -> None:
        """1, True and "1" are written as `json` writes them, whatever was written before."""
        for key, text in ((1, "1"), (True, "true"), ("1", "1"), (None, "null"), (1, "1"), (True, "true")):
            self.assertEqual(encode({key: 0}), encode({text: 0}))
        self.assertEqual(list(self.plans), [("1",), ("true",), ("null",)])

    def test_lossy(self) -> None:
        """A key that can only be written with a loss is refused where nothing may be lost, before and after."""
        for _ in range(2):
            self.assertRaises(CborError, encode, {"\ud800": 1})
            self.assertEqual(decode(encode({"\ud800": 1}, lossy=True)).value, {"\ufffd": 1})

    def test_bounded(self) -> None:
        """All are forgotten when there are too many; what is large is not kept."""
        encode({f"k{number}": number for number in range(MAX_SHAPE_KEYS + 1)})
        encode({"k" * (MAX_SHAPE_CHARACTERS + 1): 1})
        self.assertEqual(len(self.plans), 0)
        for number in range(MAX_SHAPES):
            encode({f"k{number}": number})
        self.assertEqual(len(self.plans), MAX_SHAPES)
        encode({"one more": 1})
        self.assertEqual(list(self.plans), [("one more",)])
