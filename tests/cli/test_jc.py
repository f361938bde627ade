# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb jc`: JSON to CBOR and back, with the MSC's own examples."""

from __future__ import annotations

import io
import json
import os
import zlib
from typing import Final

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.cli.main import main
from synapse_lb.cli.terminal import Terminal

MESSAGE: Final = (
    '{"type":"m.room.message","content":{"msgtype":"m.text","body":"Hello World"},"sender":"@alice:localhost",'
    '"room_id":"!foo:localhost","unsigned":{"bool_value":true,"null_value":null}}'
)
MESSAGE_CBOR: Final = (
    "a5026e6d2e726f6f6d2e6d65737361676503a2181b6b48656c6c6f20576f726c64181c666d2e74657874056e21666f6f3a6c6f63616c"
    "686f7374067040616c6963653a6c6f63616c686f737409a26a626f6f6c5f76616c7565f56a6e756c6c5f76616c7565f6"
)
ERROR: Final = '{"error":"something","errcode":"M_UNKNOWN"}'
ERROR_CBOR: Final = "a21866694d5f554e4b4e4f574e186769736f6d657468696e67"


class Screen(io.BytesIO):
    """Standard output that a person looks at."""

    def isatty(self) -> bool:
        return True


class JcTestCase(SynchronousTestCase):
    def jc(self, *argv: str, stdin: bytes = b"", screen: bool = False, status: int = 0) -> bytes:
        """Run the command, check its exit status, and return its standard output."""
        self.terminal = Terminal.in_memory(stdin)
        if screen:
            self.terminal.stdout = Screen()
        self.assertEqual(main(["jc", *argv], self.terminal), status, self.terminal.errors())
        self.assertEqual(bool(self.terminal.errors()), status != 0)
        return self.terminal.output()


class VectorTests(JcTestCase):
    """MSC3079's examples, in each of the ways to give them."""

    def test_message_to_cbor(self) -> None:
        self.assertEqual(self.jc(MESSAGE), bytes.fromhex(MESSAGE_CBOR))

    def test_message_to_hexadecimal(self) -> None:
        self.assertEqual(self.jc("-x", MESSAGE), MESSAGE_CBOR.encode() + b"\n")

    def test_message_to_json(self) -> None:
        self.assertEqual(json.loads(self.jc("-c2j", stdin=bytes.fromhex(MESSAGE_CBOR))), json.loads(MESSAGE))

    def test_error_both_ways(self) -> None:
        self.assertEqual(self.jc("--hex", "-", stdin=ERROR.encode()), ERROR_CBOR.encode() + b"\n")
        self.assertEqual(self.jc("-c2j", ERROR_CBOR), b'{"errcode":"M_UNKNOWN","error":"something"}\n')


class DeflateTests(JcTestCase):
    def test_both_ways(self) -> None:
        compressed = self.jc("--deflate", MESSAGE)
        self.assertEqual(zlib.decompress(compressed), bytes.fromhex(MESSAGE_CBOR))
        self.assertEqual(json.loads(self.jc("-c2j", "--deflate", stdin=compressed)), json.loads(MESSAGE))

    def test_not_compressed(self) -> None:
        self.jc("-c2j", "--deflate", ERROR_CBOR, status=1)
        self.assertIn("deflate", self.terminal.errors())


class InputTests(JcTestCase):
    def test_file(self) -> None:
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(bytes.fromhex(ERROR_CBOR))
        self.assertEqual(json.loads(self.jc("-c2j", f"@{path}")), json.loads(ERROR))

    def test_standard_input_by_any_name(self) -> None:
        for argv in ((), ("-",), ("@-",)):
            self.assertEqual(self.jc(*argv, stdin=b"{}"), b"\xa0")

    def test_hexadecimal_from_standard_input(self) -> None:
        self.assertEqual(self.jc("-c2j", "-x", stdin=b" A1 61\n6101\n"), b'{"a":1}\n')

    def test_missing_file(self) -> None:
        path = os.path.abspath(self.mktemp())
        self.jc(f"@{path}", status=26)
        self.assertIn(path, self.terminal.errors())


class OutputTests(JcTestCase):
    def test_no_keys(self) -> None:
        self.assertEqual(self.jc("--no-keys", '{"type": 1}'), b"\xa1\x64type\x01")

    def test_no_keys_refuses_them(self) -> None:
        self.jc("-c2j", "--no-keys", "a10201", status=1)
        self.assertIn("integer keys", self.terminal.errors())

    def test_canonical(self) -> None:
        self.assertEqual(self.jc('{"bb": 1, "a": 1, "type": 2}').hex(), "a3" + "0202" + "616101" + "62626201")

    def test_screen_gets_no_binary(self) -> None:
        self.assertEqual(self.jc(ERROR, screen=True), ERROR_CBOR.encode() + b"\n")

    def test_screen_gets_indented_json(self) -> None:
        self.assertEqual(self.jc("-c2j", "a1616101", screen=True), b'{\n  "a": 1\n}\n')

    def test_text_stays_readable(self) -> None:
        self.assertEqual(self.jc("-c2j", "62c3bc"), '"ü"\n'.encode())


class BadInputTests(JcTestCase):
    def test_json(self) -> None:
        for text in (b"", b"{", b'{"a":1,"a":2}', b"[NaN]", b"\xff", b'"\\ud800"', b"18446744073709551616"):
            with self.subTest(text=text):
                self.assertEqual(self.jc(stdin=text, status=1), b"")
                self.assertEqual(len(self.terminal.errors().splitlines()), 1)

    def test_cbor(self) -> None:
        for text in (
            "",
            "4100",
            "a1",
            "c100",
            "f97e00",
            "a2616101616102",
            "62c328",
            "0000",
            "a118ff00",
            "81" * 10_000,
        ):
            with self.subTest(text=text[:20]):
                self.assertEqual(self.jc("-c2j", "-x", stdin=text.encode(), status=1), b"")
                self.assertEqual(len(self.terminal.errors().splitlines()), 1)

    def test_hexadecimal(self) -> None:
        for text in ("a", "zz", "ü"):
            with self.subTest(text=text):
                self.jc("-c2j", text, status=1)
                self.assertIn("bad hexadecimal", self.terminal.errors())
