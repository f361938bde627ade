# SPDX-License-Identifier: AGPL-3.0-or-later
"""Hypothesis strategies for what x1 has special forms for, and for what only looks like it."""

from __future__ import annotations

from typing import Any, Final

from hypothesis import strategies as st

from synapse_lb.msc3079.x1.keys import KEY_TO_INTEGER
from synapse_lb.msc3079.x1.paths import PATHS as PATH_TABLE
from synapse_lb.msc3079.x1.templates import NO_DEFAULT, TEMPLATES
from synapse_lb.msc3079.x1.values import FIRST_TIME, LAST_TIME
from synapse_lb.msc3079.x1.values import VALUES as TABLE
from tests.msc3079.strategies import FLOATS, INTEGERS, TEXT

_BASE64: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

IDS = st.builds(
    lambda sigil, rest, end: sigil + rest + end,
    st.sampled_from(("$", "!", "@", "", "mxc://", "#")),
    st.text(_BASE64 + "-_+/", min_size=40, max_size=44) | st.text(_BASE64, max_size=90),
    st.sampled_from(("", "", ":example.org", "=", "==", "\n")),
)
"""Ids, and base64 that is one character too long, padded, or not as its bytes would be written."""

TRANSACTIONS = st.builds(
    lambda *parts: "".join(parts),
    st.sampled_from(("m", "m", "m0", "M", "mm")),
    st.integers(0, 10**19).map(str),
    st.sampled_from((".", ".", ".0", "")),
    st.integers(0, 300).map(str),
    st.sampled_from(("", "", "\n", ".")),
)
"""Transaction ids as matrix-js-sdk makes them, and what is nearly one."""

TOKENS = st.builds(
    lambda start, numbers, end: start + "_".join(numbers) + end,
    st.sampled_from(
        ("s", "t12-", "t-", "t0-", "s0", "t007-", "s-", "m", "1/s", "0/t1-", "01/s", "/s", "1/", "1")
    ),
    st.lists(
        st.integers(0, 10**19).map(str) | st.sampled_from(("00", "+1", " 1", "0", "1", "\u0663")), max_size=16
    ),
    st.sampled_from(("", "", "_", "\n", "~1")),
)

STRINGS = TEXT | IDS | TOKENS | TRANSACTIONS | st.sampled_from(TABLE)

NUMBERS = INTEGERS | st.integers(FIRST_TIME - 2, FIRST_TIME + 2) | st.integers(LAST_TIME - 2, LAST_TIME + 2)

KEYS = st.sampled_from(sorted(KEY_TO_INTEGER)) | STRINGS | st.just("age")

ALMOST_DEFAULTS: Final[tuple[Any, ...]] = (
    0,
    0.0,
    False,
    True,
    1,
    [],
    {},
    {"events": []},
    {"events": {}},
    {"events": [[]]},
    [0],
    [False],
)
"""What equals a default of a template in Python and is another JSON value, and some defaults."""


@st.composite
def _template_maps(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    """A map with keys of a template, with its defaults or others, and now and then a key that it does not have."""
    template = draw(st.sampled_from(TEMPLATES))
    values = {}
    for key, default in template:
        choice = draw(st.integers(0, 4))
        if choice == 0:
            continue
        if choice < 3 and default is not NO_DEFAULT:
            values[key] = default
        else:
            values[key] = draw(st.sampled_from(ALMOST_DEFAULTS) if choice == 3 else inner)
    if draw(st.integers(0, 5)) == 0:
        values[draw(KEYS)] = draw(inner)
    return values


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | FLOATS | STRINGS,
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(KEYS, inner, max_size=8) | _template_maps(inner)
    ),
    max_leaves=30,
)

SEGMENTS = st.text(max_size=8) | IDS | TOKENS | TRANSACTIONS | st.sampled_from(TABLE)


@st.composite
def _paths(draw: st.DrawFn) -> tuple[str, ...]:
    template = draw(st.sampled_from(PATH_TABLE)).split("/")[1:]
    return tuple(draw(SEGMENTS) if part.startswith("{") else part for part in template)


PATHS = _paths() | st.lists(SEGMENTS, max_size=5).map(lambda rest: ("_matrix", *rest))
"""Full paths, of the table and others."""
