# SPDX-License-Identifier: AGPL-3.0-or-later
"""Compact datagrams, byte for byte, and what is none (docs/extensions.md, "Compact datagrams")."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Final

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.txdtls import compact, records

DOCUMENT: Final = Path(__file__).resolve().parents[2] / "docs" / "extensions.md"

RANDOM: Final = bytes(range(32))
SESSION: Final = bytes(range(64, 96))

EXTENSIONS: Final = "ff01000100 {name} {groups} 00170000 000d0004 0002 {signatures}"
GROUPS: Final = "000b000403000102 000a000c000a001d0017001e00190018"
NAME: Final = "0000 000c 000a 00 0007 61622e632e6465"  # ab.c.de


def hello(
    suite: str = "cca9", name: str = "", groups: str = "", number: int = 0, cookie: str = "00"
) -> bytes:
    """A ClientHello that offers nothing but a resumption, as OpenSSL writes it."""
    signatures = "0403" if suite in ("cca9", "c02b") else "0401"
    extensions = bytes.fromhex(EXTENSIONS.format(name=name, groups=groups, signatures=signatures))
    body = b"\xfe\xfd" + RANDOM + b"\x20" + SESSION + bytes.fromhex(f"{cookie} 0002 {suite} 0100")
    body += len(extensions).to_bytes(2, "big") + extensions
    length = len(body).to_bytes(3, "big")
    message = b"\1" + length + bytes(5) + length + body
    return b"\x16\xfe\xff\0\0" + number.to_bytes(6, "big") + len(message).to_bytes(2, "big") + message


def record(kind: int, number: int, fragment: bytes, epoch: int = 1) -> bytes:
    """A record."""
    head = bytes([kind]) + b"\xfe\xfd" + epoch.to_bytes(2, "big") + number.to_bytes(6, "big")
    return head + len(fragment).to_bytes(2, "big") + fragment


CHANGED: Final = record(20, 1, b"\1", epoch=0)
FINISHED: Final = record(22, 0, b"f" * 40)
SERVER_HELLO: Final = record(
    22,
    0,
    bytes.fromhex("02000051 0000 000000 000051 fefd")
    + RANDOM
    + b"\x20"
    + SESSION
    + bytes.fromhex("cca9 00 0009 ff01000100 00170000"),
    epoch=0,
)
ANSWER: Final = SERVER_HELLO + CHANGED + FINISHED


class HelloTests(SynchronousTestCase):
    """Hellos of resumptions."""

    def test_shapes(self) -> None:
        for index, suite in enumerate(("cca9", "c02b", "cca8", "c02f")):
            for bit, groups in ((0, ""), (4, GROUPS)):
                for name, said in ((b"", ""), (b"ab.c.de", NAME)):
                    whole = hello(suite, said, groups)
                    expected = bytes((0xF0, index | bit)) + RANDOM + SESSION + name
                    self.assertEqual(compact.shrink_hello(whole), expected)
                    self.assertEqual(compact.expand(expected), whole)
                    self.assertEqual(compact.Offer.of(whole), compact.Offer(SESSION, bytes.fromhex(suite)))
        self.assertEqual((len(hello()), len(compact.shrink_hello(hello()) or b"")), (118, 66))

    def test_others_have_no_such_form(self) -> None:
        """A copy with another number, with a cookie, a suite that is not known, two of them, another extension."""
        for other in (
            hello(number=1),
            hello(cookie="0101"),
            hello(suite="c0ac"),
            hello(name="00230000"),
            hello(name=NAME.replace("00 0007", "01 0007")),
            hello().replace(b"\0\2\xcc\xa9", b"\0\4\xcc\xa9\xcc\xa8"),
            hello().replace(b"\x16\xfe\xff", b"\x16\xfe\xfd"),
            hello()[:-1],
            hello() + b"\0",
        ):
            self.assertIsNone(compact.shrink_hello(other))
            self.assertIsNone(compact.Offer.of(other))

    def test_what_is_no_hello(self) -> None:
        self.assertIsNone(compact.expand(b"\xf0\x08" + RANDOM + SESSION))
        self.assertIsNone(compact.expand(b"\xf0\x00" + RANDOM + SESSION[1:]))
        self.assertIsNone(compact.expand(b"\xf0"))


class AnswerTests(SynchronousTestCase):
    """The server's flight."""

    def test_form(self) -> None:
        offer = compact.Offer(SESSION, b"\xcc\xa9")
        short = b"\xf1" + RANDOM + b"f" * 40
        self.assertEqual(compact.shrink_answer(ANSWER, offer), short)
        self.assertEqual(compact.expand_answer(short, offer), ANSWER)
        self.assertEqual((len(ANSWER), len(short)), (173, 73))
        self.assertIsNone(compact.expand_answer(short + b"f", offer))
        self.assertIsNone(compact.expand_answer(short, compact.Offer(SESSION, b"\xc0\x2b")))
        self.assertIsNone(compact.expand(short))

    def test_others_have_no_such_form(self) -> None:
        """Another session, another suite, a repetition, a full handshake's."""
        for offer in (compact.Offer(SESSION[::-1], b"\xcc\xa9"), compact.Offer(SESSION, b"\xcc\xa8")):
            self.assertEqual(compact.shrink_answer(ANSWER, offer), ANSWER)
        offer = compact.Offer(SESSION, b"\xcc\xa9")
        again = b"".join(records.renumber(each, 7) for each in records.split_records(SERVER_HELLO + CHANGED))
        for other in (again + FINISHED, SERVER_HELLO, SERVER_HELLO + FINISHED, ANSWER + FINISHED):
            self.assertEqual(compact.shrink_answer(other, offer), other)


class RecordTests(SynchronousTestCase):
    """Application records, and the end of a handshake."""

    def test_numbers(self) -> None:
        for number, head in (
            (0, "f400"),
            (1, "f401"),
            (255, "f4ff"),
            (256, "f50100"),
            (65535, "f5ffff"),
            (65536, "f6010000"),
            (2**24 - 1, "f6ffffff"),
        ):
            whole = record(23, number, b"x" * 20)
            self.assertEqual(compact.shrink(whole), bytes.fromhex(head) + b"x" * 20)
            self.assertEqual(compact.expand(compact.shrink(whole)), whole)

    def test_what_goes_as_it_is(self) -> None:
        """A number in four bytes, other epochs and types, two records, half of one, and what is none."""
        one = record(23, 1, b"x" * 20)
        for whole in (
            record(23, 2**24, b"x" * 20),
            record(23, 1, b"x" * 20, epoch=2),
            record(23, 1, b"x" * 20, epoch=0),
            record(21, 1, b"x" * 18),
            record(22, 1, b"x" * 40),
            one + one,
            one[:-1],
            CHANGED,
            CHANGED + FINISHED,
            CHANGED + record(22, 1, b"f" * 40) + one,
            record(20, 2, b"\1", epoch=0) + FINISHED + one,
            b"",
            b"x",
        ):
            self.assertEqual(compact.shrink(whole), whole)

    def test_the_end_of_a_handshake(self) -> None:
        one = record(23, 1, b"x" * 20)
        short = b"\xf2\x28" + b"f" * 40 + b"\xf4\x01" + b"x" * 20
        self.assertEqual(compact.shrink(CHANGED + FINISHED + one), short)
        self.assertEqual(compact.expand(short), CHANGED + FINISHED + one)
        both = CHANGED + FINISHED + one + one
        self.assertEqual(compact.shrink(both), b"\xf2\x28" + b"f" * 40 + one + one)
        self.assertEqual(compact.expand(compact.shrink(both)), both)

    def test_what_stands_for_nothing(self) -> None:
        end = b"\xf2\x01f"
        for data in (
            b"\xf2",
            b"\xf2\x28" + b"f" * 40,
            end + b"\xf2\x01f" + record(23, 1, b"x"),
            end + b"\xf0",
            end + b"\xf7",
            b"\xf3\x01",
            b"\xf4",
            b"\xf5\x01",
            b"\xf6\x01\x02",
            b"\xf7\x01\x02\x03\x04",
            b"\xff" * 40,
        ):
            self.assertIsNone(compact.expand(data), data.hex())

    def test_anything(self) -> None:
        """Whatever a compact datagram stands for has a compact form that stands for the same."""
        source = random.Random(79)
        for _ in range(2000):
            data = bytes((0xF0 | source.randrange(8),)) + source.randbytes(source.randrange(100))
            plain = compact.expand(data)
            if plain is not None:
                short = compact.shrink_hello(plain) or compact.shrink(plain)
                self.assertLessEqual(len(short), len(plain))
                self.assertIn(plain, (short, compact.expand(short)))


class DocumentTests(SynchronousTestCase):
    """docs/extensions.md."""

    def test_examples(self) -> None:
        """What stands above stands for what stands below."""
        text = DOCUMENT.read_text(encoding="utf-8").split("## Compact datagrams", 1)[1].split("\n## ", 1)[0]
        offer = compact.Offer(SESSION, b"\xcc\xa9")
        found = []
        for block in re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            short, plain = (bytes.fromhex(part) for part in block.split("\n\n"))
            found.append(short[0])
            answers = short[0] == compact.ANSWER
            self.assertEqual(compact.expand_answer(short, offer) if answers else compact.expand(short), plain)
        self.assertEqual(found, [compact.HELLO, compact.ANSWER, compact.END])
