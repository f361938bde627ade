# SPDX-License-Identifier: AGPL-3.0-or-later
"""Hypothesis strategies for JSON values, and the tables of the MSC as they were published."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Final

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from synapse_lb.msc3079.cbor import MAX_INTEGER, MIN_INTEGER
from synapse_lb.msc3079.keys_v1 import KEY_TO_INTEGER

VECTORS: Final = Path(__file__).parent.parent / "vectors"

PROPERTY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=300)
"""How a property is examined: on a slow machine too, nothing depends on time."""


def table(name: str) -> list[tuple[str, str]]:
    """The rows of a table of two columns."""
    with (VECTORS / name).open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    return [(first, second) for first, second in rows[1:]]


TEXT = st.text(max_size=30) | st.sampled_from(
    ("", "8", "é" * 200, "x" * 23, "x" * 24, "x" * 256, "x" * 65536)
)

KEYS = st.sampled_from(sorted(KEY_TO_INTEGER)) | st.text(max_size=8) | st.integers(0, 300).map(str)
"""Keys of the table, others, and text that looks like the integers of the table."""

INTEGERS = st.integers(MIN_INTEGER, MAX_INTEGER) | st.sampled_from(
    (0, 23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32, -1, -24, -25, -256, -257, MIN_INTEGER, MAX_INTEGER)
)

FLOATS = st.floats(allow_nan=False, allow_infinity=False)

JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | INTEGERS | FLOATS | TEXT,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(KEYS, inner, max_size=8),
    max_leaves=30,
)


def settled(value: Any) -> Any:
    """A JSON value as a decoder gives it: floats that stand for integers are integers."""
    if isinstance(value, dict):
        return {key: settled(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [settled(inner) for inner in value]
    if isinstance(value, float) and value.is_integer() and MIN_INTEGER <= value <= MAX_INTEGER:
        return int(value)
    return value


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal in their types, too: 1, 1.0 and True are different here."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
