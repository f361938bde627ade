# SPDX-License-Identifier: AGPL-3.0-or-later
"""Columns work no more than what is in them is worth, whatever a peer chooses, and leave little things to the loop."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.msc3079.cbor_columns import ALIKE, DEEPEST, WIDEST, Columns
from synapse_lb.msc3079.cbor_encoder import MANY, MANY_NAMED, Encoder, encode
from synapse_lb.msc3079.cbor_shapes import MAX_SHAPES, SHAPES, Plan, Shapes
from synapse_lb.msc3079.errors import CborError
from tests.msc3079.columns import by_loop


class Spy:
    """Counts what is handed to columns and to the loop.

    Attributes:
        columns: Columns.
        values: Values in them.
        widest: Values in one of them at most.
        left: Values that were left to the loop.
    """

    def __init__(self, test: SynchronousTestCase) -> None:
        self.columns = 0
        self.values = 0
        self.widest = 0
        self.left = 0
        self._test = test

    def encode(self, value: Any) -> bytes:
        """Encode, and count."""
        self.columns = self.values = self.widest = self.left = 0
        parts, each = Columns._parts, Encoder._each

        def spied_parts(encoder: Columns, values: list[Any], depth: int) -> Any:
            self.columns += 1
            self.values += len(values)
            self.widest = max(self.widest, len(values))
            return parts(encoder, values, depth)

        def spied_each(encoder: Encoder, values: list[Any], depth: int) -> list[str]:
            self.columns += 1
            self.values += len(values)
            self.left += len(values)
            return each(encoder, values, depth)

        undo = [
            self._test.patch(Columns, "_parts", spied_parts),
            self._test.patch(Encoder, "_each", spied_each),
        ]
        try:
            return encode(value, 1, lossy=True)
        finally:
            for patch in undo:
                patch.restore()

    def frames(self, value: Any) -> int:
        """Encode; returns how many calls were in one another."""
        depth = deepest = 0

        def profiled(frame: FrameType, event: str, argument: object) -> None:
            nonlocal depth, deepest
            depth += {"call": 1, "return": -1}.get(event, 0)
            deepest = max(deepest, depth)

        sys.setprofile(profiled)
        try:
            encode(value, 1, lossy=True)
        except CborError:
            pass
        finally:
            sys.setprofile(None)
        return deepest


def size(value: Any) -> int:
    """Values that are in one, itself included; without recursion."""
    count, stack = 0, [value]
    while stack:
        inner = stack.pop()
        count += 1
        if isinstance(inner, dict):
            stack += inner.values()
        elif isinstance(inner, list):
            stack += inner
    return count


def nested(levels: int, around: Callable[[Any], Any]) -> Any:
    """A value in so many others."""
    value: Any = 0
    for _ in range(levels):
        value = around(value)
    return value


HOSTILE: Final[dict[str, Callable[[int], Any]]] = {
    "a set of keys for each map": lambda n: [{f"k{number}": {f"l{number}": number}} for number in range(n)],
    "groups that are just large enough": lambda n: [
        {f"k{number // ALIKE}": [number], "type": "x"} for number in range(n)
    ],
    "groups that are just too small": lambda n: [
        {f"k{number // (ALIKE - 1)}": [{"a": number}]} for number in range(n)
    ],
    "deep, one in another": lambda n: nested(n, lambda inner: [inner]),
    "deep, with many beside": lambda n: nested(n // MANY, lambda inner: [inner, *range(MANY)]),
    "deep, with many maps beside": lambda n: nested(
        n // MANY, lambda inner: [{"a": inner}, *([{"a": 1}] * MANY)]
    ),
    "deep, among identifiers": lambda n: nested(
        n // MANY, lambda inner: {f"!{number}": inner if number == 7 else {} for number in range(MANY)}
    ),
    "deep rows": lambda n: [nested(50, lambda inner: {"a": [inner]}) for _ in range(n // 40)],
    "deep rows of maps": lambda n: [nested(100, lambda inner: {"a": inner}) for _ in range(n // 40)],
    "deep rows of other types": lambda n: [
        nested(20, lambda inner: [inner, {"a": 1}, None, "x", 10**6, 1.5, True]) for _ in range(n // 40)
    ],
    "wide": lambda n: [{f"k{number}": [number] for number in range(60)} for _ in range(n // 60)],
    "too wide for a plan": lambda n: [
        {f"k{number}": [number] for number in range(70)} for _ in range(n // 70)
    ],
    "identifiers": lambda n: [{f"${number}": {f"@{number}": {f"!{number}": []}}} for number in range(n)],
}
"""Bodies of about so many values that are made to cost more than others."""


class WorkTests(SynchronousTestCase):
    """What a peer chooses costs no more than its values do."""

    def test_linear(self) -> None:
        """A value is in `DEEPEST` columns and once in the loop at most; and columns are not for a few."""
        spy = Spy(self)
        for name, make in HOSTILE.items():
            for count in (1000, 4000):
                value = make(count)
                spy.encode(value)
                self.assertLessEqual(spy.values, (DEEPEST + 1) * size(value), name)
                self.assertLessEqual(spy.columns, size(value), name)

    def test_twice_as_much_takes_twice_as_long(self) -> None:
        spy = Spy(self)
        for name, make in HOSTILE.items():
            done = []
            for count in (4000, 8000):
                spy.encode(make(count))
                done.append((spy.columns + 10, spy.values + 10))
            self.assertLessEqual(done[1][0], 2.2 * done[0][0], name)
            self.assertLessEqual(done[1][1], 2.2 * done[0][1], name)

    def test_plans_are_made_once(self) -> None:
        """Also where there are more sets of keys in a body than are kept."""
        made = 0
        plan = Shapes.plan

        def counted(shapes: Shapes, shape: Any, utf8: Any) -> Plan:
            nonlocal made
            made += 1
            return plan(shapes, shape, utf8)

        self.patch(Shapes, "plan", counted)
        SHAPES[1, True].plans.clear()
        count = 2 * MAX_SHAPES
        encode([{f"k{number}": number, "type": "x"} for number in range(count)], 1)
        self.assertEqual(made, count)
        made = 0
        encode([{f"k{number // ALIKE}": number, "": "x"} for number in range(count)], 1)
        self.assertEqual(made, -(-count // ALIKE))

    def test_same_bytes(self) -> None:
        for name, make in HOSTILE.items():
            value = make(3000)
            self.assertEqual(encode(value, 1), by_loop(value, (1, True, False)), name)

    def test_recursion_is_bounded(self) -> None:
        """Far below the interpreter's limit, however deep a value is."""
        spy = Spy(self)
        for name, make in HOSTILE.items():
            self.assertLess(spy.frames(make(4000)), 15 * DEEPEST, name)

    def test_cycles(self) -> None:
        """Even where each level has more in it than the one before."""
        rings: dict[str, Callable[[Any], list[Any]]] = {
            "arrays": lambda ring: [ring] * MANY,
            "arrays in arrays": lambda ring: [[ring]] * MANY,
            "tuples": lambda ring: [(ring,)] * MANY,
            "maps": lambda ring: [{"a": ring}] * MANY,
            "maps with several sets of keys": lambda ring: [{f"k{number}": ring} for number in range(MANY)],
            "identifiers": lambda ring: [{f"!{number}": ring} for number in range(MANY)],
            "other values": lambda ring: [*range(MANY), ring],
            "wide": lambda ring: [ring] * (WIDEST + 1),
        }
        for name, make in rings.items():
            ring: list[Any] = []
            ring.extend(make(ring))
            for lossy in (False, True):
                with self.assertRaises(CborError, msg=name):
                    encode(ring, lossy=lossy)


class ThresholdTests(SynchronousTestCase):
    """Little is left to the loop."""

    def columns(self, value: Any) -> int:
        spy = Spy(self)
        spy.encode(value)
        return spy.columns

    def test_arrays(self) -> None:
        for item in (1, "x", {"a": 1}, [1]):
            self.assertEqual(self.columns([item] * (MANY - 1)), 0)
            self.assertGreater(self.columns([item] * MANY), 0)

    def test_identifiers(self) -> None:
        for count, expected in ((MANY_NAMED - 1, False), (MANY_NAMED, True)):
            value = {"rooms": {"join": {f"!{number}": {"a": 1} for number in range(count)}}}
            self.assertEqual(self.columns(value) > 0, expected)
        self.assertEqual(self.columns({f"k{number}": {"a": 1} for number in range(MANY_NAMED)}), 0)

    def test_maps_with_identifiers_in_columns(self) -> None:
        """Receipts: no map has the keys of another, and yet nothing of them is left to the loop."""
        spy = Spy(self)
        spy.encode([{f"${number}": {"m.read": {f"@{number}": {"ts": number}}}} for number in range(MANY)])
        self.assertEqual(spy.left, 0)
        spy.encode([{f"k{number}": number} for number in range(MANY)])
        self.assertEqual(spy.left, MANY)

    def test_a_sync_with_little_in_it(self) -> None:
        event = {
            "type": "m.room.message",
            "content": {"body": "x", "msgtype": "m.text"},
            "unsigned": {"age": 1},
        }
        room = {"timeline": {"events": [event, event], "limited": False}, "state": {"events": []}}
        self.assertEqual(self.columns({"rooms": {"join": {"!a": room, "!b": room, "!c": room}}}), 0)

    def test_wide_columns_are_divided(self) -> None:
        """Items of several arrays or maps are `WIDEST` together at most."""
        spy = Spy(self)
        rows = WIDEST // 4
        for value in (
            [[0] * 100 for _ in range(rows)],
            [{f"!{row}/{number}": 0 for number in range(100)} for row in range(rows)],
            [{"a": [[0] * 10] * 10} for _ in range(rows)],
        ):
            spy.encode(value)
            self.assertLessEqual(spy.widest, WIDEST)
            self.assertGreaterEqual(spy.widest, WIDEST - 100)

    def test_deep_columns_end(self) -> None:
        """What is deeper than `DEEPEST` is in no further column."""
        spy = Spy(self)
        value = nested(10 * DEEPEST, lambda inner: [inner, *([{"a": 1}] * MANY)])
        spy.encode(value)
        self.assertLess(spy.columns, 12 * DEEPEST)


class PlansTests(SynchronousTestCase):
    """Maps whose keys hardly any other has take no place in the table."""

    def setUp(self) -> None:
        self.plans = SHAPES[None, True].plans
        self.plans.clear()

    def test_identifiers(self) -> None:
        for count in (1, MANY_NAMED, MANY):
            encode({f"!{number}": {f"@{number}": {f"${number}": 1}} for number in range(count)})
            encode([{f"!{number}": {f"@{number}": {f"${number}": 1}}} for number in range(count)])
            encode([{f"!{number}é": {f"@{number}": 1, "#": 2, "+x": 3}} for number in range(count)])
        self.assertEqual(len(self.plans), 0)

    def test_identifiers_beside_keys_of_the_table(self) -> None:
        before = dict(SHAPES[1, True].plans)
        for number in range(MANY):
            encode({f"!{number}": 1, "type": 2}, 1)
        self.assertEqual(SHAPES[1, True].plans, before)

    def test_others_are_kept(self) -> None:
        encode([{"a": number, "b": 1} for number in range(MANY)])
        encode([{f"k{number}": 1} for number in range(MANY)])
        self.assertEqual(len(self.plans), 1 + MANY)
        encode({"": 1})
        self.assertIn(("",), self.plans)
