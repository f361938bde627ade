# SPDX-License-Identifier: AGPL-3.0-or-later
"""Packed texts: what is packed comes back to the letter, and what would not is not packed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.msc3079.x1 import texts
from synapse_lb.msc3079.x1.errors import X1Error
from tests.msc3079.strategies import PROPERTY
from tests.msc3079.x1.strategies import IDS, TOKENS, TRANSACTIONS


class Base64Tests(SynchronousTestCase):
    """RFC 4648 sections 4 and 5, without padding."""

    def test_examples(self) -> None:
        for text, raw in (
            ("", b""),
            ("Zg", b"f"),
            ("Zm8", b"fo"),
            ("Zm9v", b"foo"),
            ("+/+/", b"\xfb\xff\xbf"),
        ):
            self.assertEqual(texts.standard_to_bytes(text), raw)
            self.assertEqual(texts.bytes_to_standard(raw), text)
        self.assertEqual(texts.url_to_bytes("-_-_"), b"\xfb\xff\xbf")
        self.assertEqual(texts.bytes_to_url(b"\xfb\xff\xbf"), "-_-_")

    def test_what_does_not_come_back(self) -> None:
        """Bits that no byte has, padding, a lone last character, other characters, the other alphabet."""
        for text in ("Zh", "Zm9", "Zg==", "Zg=", "Z", "Zm9vZ", "Zm 9v", "Zm9v\n", "Zm-_", "Zmé", "Zm9\ud800"):
            self.assertIsNone(texts.standard_to_bytes(text), text)
        for text in ("Zh", "Zm+/", "Zg==", "Z", "Zm9v\n", "é"):
            self.assertIsNone(texts.url_to_bytes(text), text)

    @PROPERTY
    @given(st.text("AZaz09+/-_=\n \x00é", max_size=12) | IDS)
    def test_to_the_letter(self, text: str) -> None:
        for pack, unpack in (
            (texts.standard_to_bytes, texts.bytes_to_standard),
            (texts.url_to_bytes, texts.bytes_to_url),
        ):
            raw = pack(text)
            if raw is not None:
                self.assertEqual(unpack(raw), text)

    @PROPERTY
    @given(st.binary(max_size=40))
    def test_every_byte_string(self, raw: bytes) -> None:
        self.assertEqual(texts.standard_to_bytes(texts.bytes_to_standard(raw)), raw)
        self.assertEqual(texts.url_to_bytes(texts.bytes_to_url(raw)), raw)


class TokenTests(SynchronousTestCase):
    """Stream tokens of Synapse's."""

    def packed(self, text: str, previous: texts.Positions = ()) -> str | None:
        found = texts.pack_token(text, previous)
        if found is None:
            return None
        back, positions = texts.unpack_token(texts.Reader(found[0]), previous)
        self.assertEqual((back, positions), (text, found[1]))
        return found[0].hex()

    def test_alone(self) -> None:
        """Small numbers take four bits, and what stands before the first one takes one byte."""
        self.assertEqual(self.packed("s7"), "0170")
        self.assertEqual(self.packed("s72_4_0_1"), "04891401")
        self.assertEqual(self.packed("t12-34_4"), "82c1a440")
        self.assertEqual(self.packed("3/s8"), "213810")
        self.assertEqual(self.packed("1/t2-3"), "a11230")

    def test_after_another(self) -> None:
        """Only what has changed is said, up to the last change."""
        before = (11, 3, 0, 1)
        self.assertEqual(self.packed("s11_3_0_1", before), "40")
        self.assertEqual(self.packed("s10_3_0_1", before), "4120")
        self.assertEqual(self.packed("s12_3_0_1", before), "4110")
        self.assertEqual(self.packed("s11_3_0_2", before), "440001")
        self.assertEqual(self.packed("t9-11_3_0_1", before), "c091")
        self.assertEqual(self.packed("s11_3_0", before), "03b130")

    def test_what_does_not_come_back(self) -> None:
        for text in (
            "s",
            "s01",
            "s1_",
            "s_1",
            "s1__2",
            "s-1",
            "t1",
            "t1-",
            "s1~2",
            "S1",
            "s1\n",
            "s\u0661",
            "1/",
            "01/s1",
        ):
            self.assertIsNone(self.packed(text), text)
        self.assertIsNone(self.packed("s" + "1" * 19))
        self.assertIsNone(self.packed("s" + "_".join(["1"] * 32)))
        self.assertIsNotNone(self.packed("s" + "_".join(["1"] * 31)))

    @PROPERTY
    @given(TOKENS, TOKENS)
    def test_to_the_letter(self, first: str, second: str) -> None:
        found = texts.pack_token(first, ())
        self.packed(second, () if found is None else found[1])

    @PROPERTY
    @given(st.binary(max_size=20), st.lists(st.integers(0, 2**60), max_size=4).map(tuple))
    def test_junk(self, data: bytes, previous: texts.Positions) -> None:
        """A token that can be read, or a typed error; and it is no longer than its bytes allow."""
        try:
            text, _ = texts.unpack_token(texts.Reader(data), previous)
        except X1Error:
            return
        self.assertLess(len(text), 22 * (len(data) * 2 + len(previous)))


class TransactionTests(SynchronousTestCase):
    """Transaction ids."""

    def test_examples(self) -> None:
        packed = texts.pack_transaction("m1790000000000.7")
        assert packed is not None
        self.assertEqual(packed.hex(), "80d8c1a28c3407")
        self.assertEqual(texts.unpack_transaction(texts.Reader(packed)), "m1790000000000.7")

    def test_what_does_not_come_back(self) -> None:
        for text in (
            "m",
            "m1",
            "m1.",
            "m.1",
            "m01.1",
            "m1.01",
            "m1.1\n",
            "m-1.1",
            "M1.1",
            "m1.1.1",
            "m\u0661.1",
        ):
            self.assertIsNone(texts.pack_transaction(text), text)

    @PROPERTY
    @given(TRANSACTIONS)
    def test_to_the_letter(self, text: str) -> None:
        packed = texts.pack_transaction(text)
        if packed is not None:
            self.assertEqual(texts.unpack_transaction(texts.Reader(packed)), text)


class NumberTests(SynchronousTestCase):
    """Varints, nibbles, zigzag."""

    @PROPERTY
    @given(st.lists(st.integers(0, 2**64 - 1), max_size=5))
    def test_round_trip(self, values: list[int]) -> None:
        reader = texts.Reader(b"".join(map(texts.varint, values)))
        self.assertEqual([reader.varint() for _ in values], values)
        self.assertEqual(reader.left, 0)
        reader = texts.Reader(texts.nibbles(values))
        self.assertEqual(texts.read_nibbles(reader, len(values)), values)
        self.assertEqual(reader.left, 0)

    def test_varint(self) -> None:
        """The examples of the LEB128 format."""
        self.assertEqual(texts.varint(624485).hex(), "e58e26")
        self.assertEqual([texts.varint(value).hex() for value in (0, 127, 128)], ["00", "7f", "8001"])

    def test_zigzag(self) -> None:
        self.assertEqual([texts.zigzag(value) for value in (0, -1, 1, -2, 2)], [0, 1, 2, 3, 4])
        for value in (0, 1, -1, 2**63, -(2**63)):
            self.assertEqual(texts.unzigzag(texts.zigzag(value)), value)

    def test_too_much(self) -> None:
        """A number above 64 bits, or one that never ends, or one that ends early."""
        for data in (b"\xff" * 9 + b"\x02", b"\x80" * 11, b"\x80", b""):
            with self.assertRaises(X1Error):
                texts.Reader(data).varint()
        for data in (b"\xff" * 10 + b"\xf2", b"\x88" * 12, b"\x88", b""):
            with self.assertRaises(X1Error):
                texts.read_nibbles(texts.Reader(data), 1)

    def test_decimal(self) -> None:
        for text in ("0", "30000", "9" * 18):
            self.assertEqual(texts.decimal(text), int(text))
        for text in ("", "00", "-1", "+1", "1.0", "1_0", "1\n", "\u0663", "1" + "0" * 18):
            self.assertIsNone(texts.decimal(text), text)
