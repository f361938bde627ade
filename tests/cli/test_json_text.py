# SPDX-License-Identifier: AGPL-3.0-or-later
"""JSON text of the commands: what is taken, and what is refused rather than guessed at."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.cli.json_text import JsonTextError, format_json, parse_json


class ParseJsonTests(SynchronousTestCase):
    def test_values(self) -> None:
        self.assertEqual(parse_json(b'\xef\xbb\xbf {"a": [1, null, "\xc3\xa9"]}'), {"a": [1, None, "é"]})
        self.assertEqual(parse_json("true"), True)

    def test_refused(self) -> None:
        for text, reason in (
            (b"", "Expecting value at line 1"),
            (b"{", "line 1, column 2"),
            (b'{"a": 1} x', "Extra data"),
            (b'{"a": 1, "b": 2, "a": 3}', "key 'a' is there twice"),
            (b"[NaN]", "NaN is not JSON"),
            (b"-Infinity", "-Infinity is not JSON"),
            (b"\xff", "not UTF-8 at byte 0"),
            (b"[" * 100_000, "nested too deeply"),
            (b"1" * 10_000, "a number is too long"),
        ):
            with self.subTest(text=text[:20]), self.assertRaisesRegex(JsonTextError, reason):
                parse_json(text)


class FormatJsonTests(SynchronousTestCase):
    def test_one_line(self) -> None:
        self.assertEqual(format_json({"b": [1, "é"], "a": None}, pretty=False), '{"b":[1,"é"],"a":null}')

    def test_pretty(self) -> None:
        self.assertEqual(format_json({"b": 1}, pretty=True), '{\n  "b": 1\n}')
