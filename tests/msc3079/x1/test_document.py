# SPDX-License-Identifier: AGPL-3.0-or-later
"""The examples of x1 in docs/extensions.md are what is sent."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import Options
from synapse_lb.msc3079.x1 import DIGEST, AliasBook, Side, compress_path, encode_body
from tests.msc3079.strategies import VECTORS

DOCUMENT: Final = Path(__file__).resolve().parents[3] / "docs" / "extensions.md"

LINE: Final = re.compile(r" *((?:[0-9a-f]{2})+(?: (?:[0-9a-f]{2})+)*)(?:  |$)")
"""The bytes at the start of a line; what explains them comes after two spaces."""


def examples() -> list[str]:
    """The bytes of each example of x1, as hexadecimal digits."""
    text = DOCUMENT.read_text(encoding="utf-8").split("## x1: bodies", 1)[1].split("### Examples", 1)[1]
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [[LINE.match(line) for line in block.splitlines()] for block in blocks]
    return ["".join(match[1].replace(" ", "") for match in block if match is not None) for block in lines]


class DocumentTests(SynchronousTestCase):
    """docs/extensions.md."""

    def test_examples(self) -> None:
        hello = {"msgtype": "m.text", "body": "Hello World"}
        answer = {"event_id": "$eCY91UGSF5P-CCGLehGGjflBO80LIlXc7AQQs-5kfGE"}
        book = AliasBook(Side.CLIENT)
        path = ("_matrix", "client", "v3", "rooms", "!foo:localhost", "send", "m.room.message", "m1")
        book.confirm(compress_path(path, book).definitions)
        request = Message(
            Type.CON,
            Code.PUT,
            0x7D34,
            b"\x4a",
            Options.of((OptionNumber.URI_PATH, compress_path(path, book).values[0])),
            encode_body(hello, book).data,
        )
        vectors = json.loads((VECTORS / "x1_bodies.json").read_text(encoding="utf-8"))
        push = next(one["hex"] for one in vectors if one["name"] == "one message pushed to an observer")
        self.assertEqual(
            examples(),
            [encode_body(hello).data.hex(), encode_body(answer).data.hex(), request.encode().hex(), push],
        )
        self.assertLessEqual(len(request.encode()), 38)

    def test_digest(self) -> None:
        """The dictionary that the document names is the one that there is."""
        self.assertIn(DIGEST, DOCUMENT.read_text(encoding="utf-8"))
