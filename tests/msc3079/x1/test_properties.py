# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whatever goes into an x1 body comes out of it; whatever else comes in is refused with a typed error."""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.msc3079.errors import CborError, UnknownPathError
from synapse_lb.msc3079.x1 import (
    AliasBook,
    Side,
    compress_path,
    decode_body,
    encode_body,
    expand_path,
)
from tests.msc3079.strategies import PROPERTY, same, settled
from tests.msc3079.x1.strategies import PATHS, VALUES


class RoundTripTests(SynchronousTestCase):
    """`decode_body(encode_body(v)) == v`, types included."""

    @PROPERTY
    @given(VALUES, st.booleans())
    def test_without_a_book(self, value: Any, compress: bool) -> None:
        encoded = encode_body(value, compress=compress)
        self.assertTrue(same(decode_body(encoded.data), settled(value)))
        self.assertEqual(encoded.definitions, ())
        self.assertEqual(encode_body(value, compress=compress), encoded)

    @PROPERTY
    @given(st.lists(VALUES, max_size=4))
    def test_with_books(self, values: list[Any]) -> None:
        client, server = AliasBook(Side.CLIENT), AliasBook(Side.SERVER)
        for value in values:
            encoded = encode_body(value, server)
            self.assertTrue(same(decode_body(encoded.data, client), settled(value)))
            server.confirm(encoded.definitions)
            answer = encode_body(value, client)
            self.assertTrue(same(decode_body(answer.data, server), settled(value)))
            client.confirm(answer.definitions)

    @PROPERTY
    @given(PATHS)
    def test_paths(self, segments: tuple[str, ...]) -> None:
        client, server = AliasBook(Side.CLIENT), AliasBook(Side.SERVER)
        for _ in range(2):
            encoded = compress_path(segments, client)
            self.assertEqual(expand_path(encoded.values, server), segments)
            client.confirm(encoded.definitions)


class RefusalTests(SynchronousTestCase):
    """Junk is refused with a typed error."""

    @PROPERTY
    @given(st.binary(max_size=60))
    def test_junk(self, data: bytes) -> None:
        book = AliasBook(Side.SERVER)
        try:
            decode_body(data, book)
        except CborError:
            self.assertEqual(len(book), 0)

    @PROPERTY
    @given(VALUES, st.integers(0, 400), st.binary(max_size=3), st.integers(0, 3), st.booleans())
    def test_damaged(self, value: Any, at: int, replacement: bytes, cut: int, compress: bool) -> None:
        data = encode_body(value, AliasBook(Side.CLIENT), compress=compress).data
        at = min(at, len(data))
        with contextlib.suppress(CborError):
            decode_body(data[:at] + replacement + data[at + cut :], AliasBook(Side.SERVER))

    @PROPERTY
    @given(st.lists(st.binary(max_size=30), max_size=4))
    def test_paths(self, values: list[bytes]) -> None:
        with contextlib.suppress(CborError, UnknownPathError, UnicodeDecodeError):
            expand_path(values, AliasBook(Side.SERVER))
