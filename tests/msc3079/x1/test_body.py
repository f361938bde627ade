# SPDX-License-Identifier: AGPL-3.0-or-later
"""x1 bodies, byte for byte (tests/vectors/x1_bodies.json), their sizes, and what is refused."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.msc3079.errors import CborError
from synapse_lb.msc3079.x1 import (
    AliasBook,
    BodyLimits,
    Side,
    TooLargeError,
    X1Error,
    decode_body,
    encode_body,
)
from synapse_lb.msc3079.x1.aliases import AliasKind
from synapse_lb.msc3079.x1.body import COMPRESSED
from synapse_lb.msc3079.x1.dictionary import DICTIONARY
from tests.msc3079.strategies import VECTORS, same


def deflated(plain: bytes) -> bytes:
    """CBOR as an x1 body with compression, whether or not that is shorter."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=DICTIONARY)
    return bytes((COMPRESSED,)) + deflater.compress(plain) + deflater.flush()


class VectorTests(SynchronousTestCase):
    """What another implementer can hold his own against."""

    vectors: list[dict[str, Any]] = json.loads((VECTORS / "x1_bodies.json").read_text(encoding="utf-8"))

    def book(self, vector: dict[str, Any], side: Side) -> AliasBook | None:
        """The book of one side when the peer knows the vector's aliases, which are the server's."""
        if "known" not in vector:
            return None
        book = AliasBook(side)
        known = {int(number): text for number, text in vector["known"].items()}
        if side is Side.CLIENT:
            book.learn(known)
        else:
            for number, text in known.items():
                kind = AliasKind.ROOM if text[0] == "!" else AliasKind.USER
                self.assertEqual(book.definition(text, kind), number)
            book.confirm(known)
        return book

    def test_encode(self) -> None:
        for vector in self.vectors:
            encoded = encode_body(vector["value"], self.book(vector, Side.SERVER), compress=False)
            self.assertEqual(encoded.data.hex(), vector["hex"], vector["name"])
            self.assertEqual(list(encoded.definitions), vector.get("defines", []), vector["name"])

    def test_decode(self) -> None:
        """The deflated form may differ from one zlib to the next; what it stands for may not."""
        for vector in self.vectors:
            for form in ("hex", "deflated"):
                if form in vector:
                    value = decode_body(bytes.fromhex(vector[form]), self.book(vector, Side.CLIENT))
                    self.assertTrue(same(value, vector["value"]), vector["name"])

    def test_compressed_only_where_it_is_shorter(self) -> None:
        for vector in self.vectors:
            encoded = encode_body(vector["value"], self.book(vector, Side.SERVER))
            if encoded.data[0] == COMPRESSED:
                self.assertLess(len(encoded.data) * 2, len(vector["hex"]), vector["name"])
            else:
                self.assertEqual(encoded.data.hex(), vector["hex"])

    def test_not_compressed_if_not_wanted(self) -> None:
        value = {"error": "Unrecognized request " * 9, "errcode": "M_UNRECOGNIZED"}
        self.assertEqual(encode_body(value).data[0], COMPRESSED)
        self.assertNotEqual(encode_body(value, compress=False).data[0], COMPRESSED)

    def test_sizes(self) -> None:
        """What each is to need at most; a pushed message has 93 bytes if it is to fit 160 with all headers."""
        sizes = {vector["name"]: len(vector.get("deflated", vector["hex"])) // 2 for vector in self.vectors}
        for name, most in (
            ("content of a text message", 13),
            ("an event id", 34),
            ("one message pushed to an observer", 88),
            ("the message of the MSC", 60),
        ):
            self.assertLessEqual(sizes[name], most, name)

    def test_encrypted(self) -> None:
        """A Megolm event of a session that is known takes at most 60 % of what version 1 needs."""
        content = {
            "algorithm": "m.megolm.v1.aes-sha2",
            "sender_key": "JGLn/yafz74HB2AbPLYJWIVGnKAtqECOBf11yyXac2Y",
            "session_id": "X3lUlvLELLYxeTx4yOVu6UDpasGEVO0Jbu+QFnm0cKQ",
            "device_id": "RJYKSTBOIE",
            "ciphertext": "AwgAEnACgAkLmt6qF84IK++J7UDH2Za1YVchHyprqTqsg2yyOwAtHa" + "bQ9z" * 86 + "Aw",
        }
        book = AliasBook(Side.CLIENT)
        book.confirm(encode_body(content, book).definitions)
        self.assertEqual(len(encode_body(content, book, compress=False).data), 311)


class RefusedTests(SynchronousTestCase):
    """Bytes that are no x1 body."""

    def refused(self, data: bytes | str, error: type[CborError] = X1Error, **limits: int) -> None:
        raw = bytes.fromhex(data) if isinstance(data, str) else data
        book = AliasBook(Side.SERVER)
        with self.assertRaises(error, msg=repr(data)):
            decode_body(raw, book, BodyLimits(**limits))
        self.assertEqual(len(book), 0)

    def test_ends_early(self) -> None:
        """In the CBOR, in the compressed CBOR, in the tail."""
        for data in ("", "82", "a1", "a1 01", "c1", "c1 82", "f8", "19 00", "65 61", "58", "45 00"):
            self.refused(data, CborError)
        body = deflated(bytes.fromhex("826161 6162"))
        for length in range(1, len(body)):
            self.refused(body[:length])
        for number in range(10):
            if number != 9:
                self.refused(bytes((0xE0 + number,)))
        self.refused("e0" + "00" * 31)
        self.refused("e4 00 05")

    def test_too_long(self) -> None:
        """Bytes between the CBOR and its tail, and behind a compressed body."""
        self.refused("00 00")
        self.refused("e0" + "00" * 33)
        self.refused(deflated(b"\x00") + b"\x00")
        self.refused(deflated(b"\x00\x00"))

    def test_what_x1_does_not_have(self) -> None:
        """Simple values, tags, keys, kinds of byte strings."""
        self.assertEqual(decode_body(b"\xf8\x20"), "m.notice")
        for data in (
            "f8 1f",
            "f8 13",
            "f8 ff",
            "f7",
            "82 f7 f7",
            "d8 1c 80",
            "d8 ff 80",
            "a1 18 00 00",
            "a1 00 00",
        ):
            self.refused(data)
        for data in (
            "40",
            "42 08 00",
            "44 08 00 00 00",
            "42 09 00",
            "42 ff 00",
            "5f 41 00 ff",
            "a1 f4 00",
            "a1 80 00",
            "a1 e7 00 00",
            "a1 f9 0000 00",
        ):
            self.refused(data, CborError)
        self.refused("a1 39 01 00 00")

    def test_one_key_twice(self) -> None:
        """By its two numbers, as number and text, as text and byte string, as simple value and text."""
        for first, second in (
            ("181b", "20"),
            ("02", "64 74797065"),
            ("f8 20", "68 6d2e6e6f74696365"),
            ("61 61", "61 61"),
        ):
            self.refused(f"a2 {first} 00 {second} 00", CborError)

    def test_templates(self) -> None:
        """Too many values, a map, another tag, an undefined value in a container within."""
        self.assertEqual(decode_body(bytes.fromhex("c1 6161")), {"body": "a", "msgtype": "m.text"})
        self.assertEqual(decode_body(bytes.fromhex("c1 81 f7")), {"msgtype": "m.text"})
        self.assertEqual(decode_body(bytes.fromhex("c0 80")), {})
        for data in (
            "c1 85 00 00 00 00 00",
            "c1 a0",
            "c1 c1 80",
            "c1 81 81 f7",
            "c1 a1 01 f7",
            "c1 9f ff 00",
        ):
            self.refused(data, CborError)

    def test_defaults_are_not_shared(self) -> None:
        """To change one value that was decoded changes no other."""
        two = decode_body(bytes.fromhex("82 c6 80 c6 80"))
        two[0]["state"]["events"].append(1)
        self.assertEqual(two[1]["state"], {"events": []})
        self.assertEqual(decode_body(bytes.fromhex("c6 80"))["state"], {"events": []})

    def test_repetitions(self) -> None:
        """Only of what came before, and whole."""
        for data in ("42 07 00", "43 07 00 00", "42 07 80", "82 42 07 00 e0" + "00" * 32):
            self.refused(data)

    def test_byte_strings(self) -> None:
        """An id of another length, a token with bytes behind it, a definition without text, one in another."""
        for data in (
            "42 02 00",
            "44 06 01 10 00",
            "43 06 41 10",
            "42 00 02",
            "45 00 02 00 04 61",
            "44 00 00 07 00",
        ):
            self.refused(data)
        self.refused("44 00 00 01 ff")

    def test_from_the_tail(self) -> None:
        """A definition by a simple value that is no text, by one with bytes behind it, without its bytes."""
        tail = "00" * 32
        self.refused("43 00 00 17 00")
        self.refused("44 00 00 11 00" + tail)
        self.refused("43 00 00 11" + tail[2:])
        with self.assertRaises(X1Error):
            decode_body(bytes.fromhex("43 00 00 11" + tail))  # there are no aliases
        self.assertEqual(decode_body(bytes.fromhex("43 00 00 11" + tail), AliasBook(Side.SERVER))[0], "!")
        self.assertEqual(len(next(iter(decode_body(bytes.fromhex("a1 e0 00" + tail))))), 44)

    def test_a_rooms_own_event(self) -> None:
        """Of no room, of one that is only a value, of one with another id, of one named in another map."""
        tail = "00" * 32
        self.assertEqual(
            decode_body(bytes.fromhex("a1 e1 81 f8ff" + tail)), {"!" + "A" * 43: ["$" + "A" * 43]}
        )
        self.refused("f8ff")
        self.refused("82 e1 f8ff" + tail)
        self.refused("a1 65 213a612e62 f8ff")
        self.refused("a1 e0 f8ff" + tail)
        self.refused("82 a1 61 61 f8ff a1 e1 00" + tail)

    def test_numbers(self) -> None:
        """Ages before there was a time; times and ages beyond 64 bits."""
        self.refused("e9")
        far = "ff" * 9 + "01"
        for head in ("e7", "e8"):
            tail = bytes.fromhex(far)[::-1].hex()
            decode_body(bytes.fromhex(head + tail))
            self.refused("8b" + head * 11 + tail * 11)

    def test_depth(self) -> None:
        self.assertEqual(decode_body(b"\x81" * 100 + b"\x00", limits=BodyLimits())[0][0][0] is not None, True)
        self.refused(b"\x81" * 101 + b"\x00", CborError)
        self.refused(b"\xd0" * 5 + b"\x00", CborError)
        self.refused(b"\xd0\x81" * 101 + b"\x00", CborError)

    def test_bomb(self) -> None:
        """A few bytes that inflate to more than is allowed cost no more than what is allowed."""
        bomb = deflated(b"\x9a\x00\x98\x96\x80" + b"\x00" * 10_000_000)
        self.assertLess(len(bomb), 20_000)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        self.refused(bomb, TooLargeError)
        self.assertLess(tracemalloc.get_traced_memory()[1], 4 << 20)
        self.assertEqual(len(decode_body(bomb, limits=BodyLimits(max_size=10_000_005))), 10_000_000)
        self.refused(bomb, TooLargeError, max_size=10_000_004)
        self.refused(b"\x82\x00\x00", TooLargeError, max_size=2)

    def test_expansion(self) -> None:
        """References and defaults count by what they stand for."""
        text = "Ab1" + "A" * 82 + "Q"
        value = [text] * 1000
        data = encode_body(value, compress=False).data
        self.assertEqual(decode_body(data, limits=BodyLimits(max_expansion=999 * 86)), value)
        self.refused(data, TooLargeError, max_expansion=999 * 86 - 1)
        self.refused("82 c6 80 c6 80", TooLargeError, max_expansion=600)

    def test_values_that_cannot_be_written(self) -> None:
        """As in `cbor.encode`; and `lossy` writes the nearest."""
        for value in ("\ud800", {"\ud800": 1}, 2**64, float("nan"), [object()]):
            with self.assertRaises(CborError):
                encode_body(value)
        lossy = ["\ufffd", {"\ufffd": 1}, float(2**64), None]
        found = decode_body(encode_body(["\ud800", {"\ud800": 1}, 2**64, float("nan")], lossy=True).data)
        self.assertEqual(found, lossy)
        loop: list[Any] = []
        loop.append(loop)
        with self.assertRaises(CborError):
            encode_body(loop)
