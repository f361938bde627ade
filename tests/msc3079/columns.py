# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the tests of the encoder's columns share: other sizes of columns, and the loop alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from synapse_lb.msc3079 import cbor_columns, cbor_encoder
from synapse_lb.msc3079.cbor_columns import DEEPEST, WIDEST
from synapse_lb.msc3079.cbor_encoder import encode
from synapse_lb.msc3079.errors import CborError

_THRESHOLDS: Final = {
    "MANY": cbor_encoder,
    "MANY_NAMED": cbor_encoder,
    "FEW": cbor_columns,
    "ALIKE": cbor_columns,
}

WAYS: Final = [
    (version, canonical, lossy)
    for version in (None, 1)
    for canonical in (False, True)
    for lossy in (False, True)
]


@contextmanager
def thresholds(value: int, deepest: int = DEEPEST, widest: int = WIDEST) -> Iterator[None]:
    """With other sizes: 1 makes a column of whatever can be in one, `sys.maxsize` makes none."""
    patches: list[tuple[Any, str, int]] = [(module, name, value) for name, module in _THRESHOLDS.items()]
    patches += [(cbor_columns, "DEEPEST", deepest), (cbor_encoder, "DEEPEST", deepest)]
    patches.append((cbor_columns, "WIDEST", widest))
    before = [(module, name, getattr(module, name)) for module, name, _ in patches]
    try:
        for module, name, number in patches:
            setattr(module, name, number)
        yield
    finally:
        for module, name, number in before:
            setattr(module, name, number)


def outcome(value: Any, way: tuple[int | None, bool, bool]) -> bytes | str:
    """What is written, or that it cannot be."""
    try:
        return encode(value, *way)
    except CborError:
        return "CborError"


def by_loop(value: Any, way: tuple[int | None, bool, bool]) -> bytes | str:
    """What the loop alone writes."""
    with thresholds(sys.maxsize):
        return outcome(value, way)
