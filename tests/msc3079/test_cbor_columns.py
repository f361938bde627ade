# SPDX-License-Identifier: AGPL-3.0-or-later
"""Columns write what the loop writes, byte by byte, whatever is in them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any, Final

import cbor2
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.cli.scale.bodies import large_sync
from synapse_lb.cli.scale.varied import varied_sync
from synapse_lb.msc3079.cbor_columns import ALIKE, DEEPEST, FEW, WIDEST
from synapse_lb.msc3079.cbor_encoder import MANY, encode
from synapse_lb.msc3079.cbor_scalars import MAX_INTEGER, MIN_INTEGER
from synapse_lb.msc3079.errors import CborError
from tests.msc3079.columns import WAYS, by_loop, outcome, thresholds
from tests.msc3079.odd_values import Frozen, Level, Membership, Name
from tests.msc3079.strategies import FLOATS, INTEGERS, JSON_VALUES, KEYS, PROPERTY, TEXT

ODD_SCALARS: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | INTEGERS
    | FLOATS
    | TEXT
    | st.sampled_from(
        (
            math.nan,
            2**64,
            -(2**63) - 1,
            10**400,
            "a\0b",
            "\ud800",
            "é\0",
            Membership.JOIN,
            Level.ADMIN,
            Name("x"),
        )
    )
)
IDENTIFIERS: Final = st.sampled_from(("!a:b", "!c", "@d:e", "$long" * 60, "!é", "$", "#\ud800"))
ODD_KEYS: st.SearchStrategy[Any] = (
    KEYS | IDENTIFIERS | st.sampled_from((5, None, True, Membership.JOIN, Name("type")))
)
ODD_VALUES: st.SearchStrategy[Any] = st.recursive(
    ODD_SCALARS,
    lambda inner: (
        st.lists(inner, max_size=8)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(ODD_KEYS, inner, max_size=5)
        | st.dictionaries(st.sampled_from(("a", "b", "type")), inner, max_size=3).map(
            lambda items: Frozen(**items)
        )
        | st.lists(st.fixed_dictionaries({"type": inner, "content": inner}), max_size=4)
    ),
    max_leaves=25,
)


class PropertyTests(SynchronousTestCase):
    """Of generated values, with sizes at which columns are made of everything."""

    @PROPERTY
    @given(
        ODD_VALUES,
        st.sampled_from(WAYS),
        st.integers(1, 3),
        st.sampled_from((1, 3, DEEPEST)),
        st.integers(1, 6),
    )
    def test_same_as_the_loop(
        self, value: Any, way: tuple[int | None, bool, bool], few: int, deepest: int, widest: int
    ) -> None:
        expected = by_loop(value, way)
        with thresholds(few, deepest, widest):
            self.assertEqual(outcome(value, way), expected)

    @PROPERTY
    @given(JSON_VALUES)
    def test_same_as_another_library(self, value: Any) -> None:
        with thresholds(1):
            self.assertEqual(encode([value, value]), cbor2.dumps([value, value], canonical=True))

    @PROPERTY
    @given(
        st.lists(st.lists(ODD_SCALARS, min_size=1, max_size=3), min_size=1, max_size=3), st.sampled_from(WAYS)
    )
    def test_long_columns(self, some: list[list[Any]], way: tuple[int | None, bool, bool]) -> None:
        """Of the sizes that are in use."""
        value = [
            {"type": items, "content": {"body": items[0]}, f"k{len(items)}": items[-1]} for items in some
        ] * MANY
        self.assertEqual(outcome(value, way), by_loop(value, way))


class KindTests(SynchronousTestCase):
    """Each kind of column."""

    def check(self, values: list[Any]) -> None:
        """A list of these, and maps with them, are written as by the loop, and as by another library."""
        assert len(values) >= MANY
        for value in (
            values,
            [{"body": inner} for inner in values],
            [{"x": 1, "y": [inner]} for inner in values],
        ):
            for way in WAYS:
                written = outcome(value, way)
                self.assertEqual(written, by_loop(value, way))
            try:
                expected = cbor2.dumps(value, canonical=True)
            except (cbor2.CBOREncodeError, UnicodeEncodeError):
                continue
            if not any(type(inner) is int and not MIN_INTEGER <= inner <= MAX_INTEGER for inner in values):
                self.assertEqual(encode(value), expected)

    def test_texts(self) -> None:
        number = iter(range(10**6))
        texts: tuple[Callable[[], str], ...] = (
            lambda: "same",
            lambda: "é",
            lambda: "x" * 300,
            lambda: f"{next(number):06}",
            lambda: "x" * (next(number) % 300),
            lambda: "é" * (next(number) % 200),
            lambda: "😀 a"[: next(number) % 4],
            lambda: "x" * (next(number) % 2 * 70_000),
            lambda: "a\0b"[: next(number) % 4],
            lambda: "é\0b"[: next(number) % 4],
        )
        for text in texts:
            self.check([text() for _ in range(MANY)])

    def test_texts_that_are_no_unicode(self) -> None:
        values = ["a", "\ud800", "é"] * MANY
        self.assertRaises(CborError, encode, values)
        self.assertEqual(encode(values, lossy=True), encode(["a", "\ufffd", "é"] * MANY))
        self.check(values)

    def test_integers(self) -> None:
        edges = (0, 23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**40, 2**63, MAX_INTEGER)
        for least, most in ((0, 0), (0, 3), (3, 6), (4, 8), (4, 12), (8, 12), (0, 12)):
            self.check((list(edges[least : most + 1]) or [0]) * MANY)
        for values in ((-1, 0), (MIN_INTEGER, MAX_INTEGER), (2**64, 1), (MIN_INTEGER - 1, 1), (10**400, 1)):
            self.check(list(values) * MANY)

    def test_constants(self) -> None:
        for values in ((None,), (True,), (False, True), (True, None, 1, 0, 1.0)):
            self.check(list(values) * MANY)

    def test_floats(self) -> None:
        self.check([0.0, 0.1, 1.5, 1e300] * MANY)
        self.assertRaises(CborError, encode, [math.nan] * MANY)
        self.assertEqual(encode([math.inf, 0.5] * MANY, lossy=True), encode([None, 0.5] * MANY))

    def test_arrays(self) -> None:
        self.check([[]] * MANY)
        self.check([[number] for number in range(MANY)])
        self.check([["x"] * (number % 7) for number in range(MANY)])
        self.check([["x"] * 300, [], [{"a": 1}, {"a": 2}], [[[]]]] * MANY)

    def test_more_items_than_are_in_a_column(self) -> None:
        """They are divided where there are too many of several arrays or maps."""
        self.check([[number] * (WIDEST // 8) for number in range(MANY)])
        self.check([[0] * (WIDEST + 1), [], [1], [2] * WIDEST] * FEW + [[3]] * MANY)
        self.check([{f"!{number}": number for number in range(WIDEST // 8 + place)} for place in range(MANY)])

    def test_maps(self) -> None:
        self.check([{}] * MANY)
        self.check([{"a": number, "type": str(number)} for number in range(MANY)])
        self.check([dict(pairs) for pairs in ([("b", 1), ("a", 2)], [("a", 3), ("b", 4)])] * MANY)

    def test_maps_with_several_sets_of_keys(self) -> None:
        """Many with each, few with each, and one; long and other keys that no plan is kept of."""
        self.check([{"a": number} if number % 3 else {"b": number, "c": {}} for number in range(9 * ALIKE)])
        rare = [{f"k{number}": number, "type": "x"} for number in range(ALIKE - 1)]
        self.check([*({"a": [{}]} for _ in range(MANY)), *rare, {}, *rare])
        self.check([{"é": 1}, {"k" * 3000: 2}, {f"k{number}": number for number in range(80)}] * MANY)

    def test_maps_whose_keys_are_identifiers(self) -> None:
        def key(number: int) -> str:
            return f"${number:043}"

        self.check([{key(number): {"m.read": {f"@{number}": {"ts": number}}}} for number in range(MANY)])
        self.check([{key(number): 1, f"@{'u' * (number % 40)}": [], "$": {}} for number in range(MANY)])
        self.check([{f"!{'x' * 300}{number}": number} for number in range(MANY)])
        self.check([{"!same": {"a": number}} for number in range(MANY)])

    def test_identifiers_beside_other_keys(self) -> None:
        """Keys of the table, that are not ASCII, and that are not text."""
        keys: tuple[tuple[Any, str], ...] = (
            ("type", "type"),
            ("é", "é"),
            ("", ""),
            (5, "5"),
            (None, "null"),
            (True, "true"),
            (Membership.JOIN, "join"),
            (Name("x"), "x"),
        )
        for odd, text in keys:
            value = [{f"!{number}": number, odd: {"a": [number]}} for number in range(MANY)]
            plain = [{f"!{number}": number, text: {"a": [number]}} for number in range(MANY)]
            for way in WAYS:
                self.assertEqual(outcome(value, way), by_loop(value, way))
                self.assertEqual(outcome(value, way), outcome(plain, way))

    def test_keys_that_become_the_same_text(self) -> None:
        value = [{"a": {f"!{number}": number, 5: "a", "5": "b"}, "b": number} for number in range(MANY)]
        plain = [{"a": {f"!{number}": number, "5": "b"}, "b": number} for number in range(MANY)]
        self.assertEqual(encode(value), encode(plain))

    def test_keys_that_are_equal_and_not_the_same(self) -> None:
        value: list[Any] = [{1: "a"}, {True: "b"}, {"1": "c"}, {1.0: "d"}]
        self.assertEqual(encode(value[:3] * MANY), encode([{"1": "a"}, {"true": "b"}, {"1": "c"}] * MANY))
        self.assertRaises(CborError, encode, value * MANY)

    def test_types_that_stand_for_others(self) -> None:
        """As `test_cbor_encode` has them one by one."""
        value = [Frozen(a=(Membership.JOIN, Level.ADMIN), b={Membership.JOIN: Name("it")}), (), Name("x")]
        plain = [{"a": ["join", 100], "b": {"join": "it"}}, [], "x"]
        for kind in range(3):
            self.assertEqual(
                encode(value[kind : kind + 1] * MANY, 1), encode(plain[kind : kind + 1] * MANY, 1)
            )
        self.assertEqual(encode(value * MANY, 1), encode(plain * MANY, 1))

    def test_what_is_no_json_value(self) -> None:
        for odd in (b"", {1}, object(), {b"a": 1}):
            for lossy in (False, True):
                self.assertRaises(CborError, encode, [odd] * MANY, lossy=lossy)
                self.assertRaises(CborError, encode, [*range(MANY), {"a": [odd]}], lossy=lossy)

    def test_syncs(self) -> None:
        for make in (large_sync, varied_sync):
            value = make(random.Random(1))
            for way in WAYS:
                self.assertEqual(outcome(value, way), by_loop(value, way))
            self.assertEqual(encode(value), cbor2.dumps(value, canonical=True))
