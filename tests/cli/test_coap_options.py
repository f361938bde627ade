# SPDX-License-Identifier: AGPL-3.0-or-later
"""Options, methods and codes as people write and read them."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.cli.coap_options import code_line, method_name, option_line, parse_header, parse_method
from synapse_lb.cli.errors import EXIT_USAGE, CommandError


class ParseHeaderTests(SynchronousTestCase):
    def test_values(self) -> None:
        for text, expected in (
            ("Accept: 60", (17, b"\x3c")),
            ("accept:application/cbor", (17, b"\x3c")),
            ("Content-Format: text/plain", (12, b"")),
            ("Content-Format: application/JSON", (12, b"\x32")),
            ("Max-Age: 300", (14, b"\x01\x2c")),
            ("Uri-Query: a=b: c", (15, b"a=b: c")),
            ("Uri-Query: 5", (15, b"5")),
            ("Uri-Path: é", (11, "é".encode())),
            ("ETag: 0xCafe", (4, b"\xca\xfe")),
            ("ETag: 12", (4, b"12")),
            ("258: 2", (258, b"\x02")),
            ("No-Response: 26", (258, b"\x1a")),
            ("17: 60", (17, b"\x3c")),
            ("2049: 65536", (2049, b"\x01\x00\x00")),
            ("2049: some text", (2049, b"some text")),
            ("2049: 0x", (2049, b"")),
            ("2049: 0xabc", (2049, b"0xabc")),
            ("Authorization: Bearer  syt_x ", (256, b"syt_x")),
            ("Access-Token: 123", (256, b"123")),
            ("CBOR-Key-Version: 1", (257, b"\x01")),
            ("If-None-Match;", (5, b"")),
            ("Content-Format:", (12, None)),
            ("Uri-Host: ", (3, None)),
        ):
            with self.subTest(text=text):
                self.assertEqual(parse_header(text), expected)

    def test_refused(self) -> None:
        for text, reason in (
            ("Accept", "Name: value"),
            ("X-Forwarded-For: 1", "no option is called 'x-forwarded-for'"),
            (": 1", "no option is called ''"),
            ("65536: 1", "no option"),
            ("-1: 1", "no option"),
            ("Accept: cbor", "Accept takes a number, not 'cbor'"),
            ("Max-Age: -1", "takes a number"),
            ("Max-Age: 4294967296", "0 to 4 bytes, not 5"),
            ("Max-Age: ٣", "takes a number"),
            ("ETag: 123456789", "1 to 8 bytes, not 9"),
            ("If-None-Match: x", "0 to 0 bytes"),
            ("Authorization: Basic eA==", "Bearer TOKEN"),
            ("Authorization: Bearer", "Bearer TOKEN"),
        ):
            with self.subTest(text=text), self.assertRaisesRegex(CommandError, reason) as caught:
                parse_header(text)
            self.assertEqual(caught.exception.exit_status, EXIT_USAGE)


class MethodAndCodeTests(SynchronousTestCase):
    def test_methods(self) -> None:
        for text, code in (("GET", 1), ("post", 2), ("iPATCH", 7), ("0.05", 5), ("0.31", 31)):
            self.assertEqual(parse_method(text), code)

    def test_no_methods(self) -> None:
        for text in ("", "EMPTY", "0.00", "CONTENT", "2.05", "0.32", "HEAD", "1"):
            with self.subTest(text=text):
                self.assertRaises(CommandError, parse_method, text)

    def test_names(self) -> None:
        self.assertEqual([method_name(code) for code in (1, 7, 9)], ["GET", "IPATCH", "0.09"])
        self.assertEqual(code_line(0x45), "2.05 Content")
        self.assertEqual(code_line(0x84), "4.04 Not Found")
        self.assertEqual(code_line(0xBF), "5.31")


class OptionLineTests(SynchronousTestCase):
    def test_lines(self) -> None:
        for pair, line in (
            ((12, b"\x3c"), "Content-Format: application/cbor"),
            ((12, b"\xff\xff"), "Content-Format: 65535"),
            ((14, b""), "Max-Age: 0"),
            ((11, b"a b"), "Uri-Path: a b"),
            ((4, b"\x01\x02"), "ETag: 0x0102"),
            ((5, b""), "If-None-Match;"),
            ((257, b"\x01"), "CBOR-Key-Version: 1"),
            ((2049, b"ab"), "2049: 0x6162"),
        ):
            with self.subTest(pair=pair):
                self.assertEqual(option_line(pair), line)

    def test_token_is_not_shown(self) -> None:
        self.assertEqual(option_line((256, b"secret")), "Access-Token: <6 bytes>")

    def test_the_peer_cannot_drive_the_terminal(self) -> None:
        line = option_line((8, b"\x1b[2J\r\n\xff"))
        self.assertTrue(line.isprintable(), line)
