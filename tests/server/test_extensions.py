# SPDX-License-Identifier: AGPL-3.0-or-later
"""The bytes in docs/extensions.md are those that are taken and given here."""

from __future__ import annotations

import re
from pathlib import Path

from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, Type
from synapse_lb.msc3079.messages import MatrixResponse
from tests.server.observing import SLIDING, ObserverTestCase

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "extensions.md"
BODY = {"lists": {"a": {"ranges": [[0, 9]], "required_state": [], "timeline_limit": 5}}}
RESULT = {
    "rooms": {"!r:x": {"name": "A"}},
    "pos": "2/s8",
    "lists": {"a": {"ops": [], "count": 0}},
    "extensions": {},
}


def messages() -> list[bytes]:
    """The messages of the document: in its blocks of code, two columns before what they mean, an empty line between."""
    section = DOCUMENT.read_text().partition("\n## Sliding sync")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    texts = [text for block in blocks for text in block.split("\n\n")]
    lines = [[line.partition("   ")[0] for line in text.splitlines() if line[:1] != " "] for text in texts]
    return [bytes.fromhex("".join(each)) for each in lines]


class ExampleTests(ObserverTestCase):
    """The example of an observed sliding sync."""

    def test_there_and_back(self) -> None:
        registration, notification, acknowledgement = messages()
        self.homeserver.users["t0k3n"] = "@a:x"
        self.homeserver.answer = lambda _: MatrixResponse(200, RESULT)
        self.alice.deaf = True
        self.gateway.message_received(1, registration)
        self.settle()
        request, _ = self.homeserver.requests[0]
        self.assertEqual((request.method, request.path, request.body), ("POST", SLIDING.encode(), BODY))
        self.assertEqual((request.query, request.access_token), (b"pos=1%2Fs7", "t0k3n"))
        empty, sent = (Message.decode(data) for data in self.alice.received)
        self.assertEqual((empty.type, empty.code, empty.message_id), (Type.ACK, Code.EMPTY, 0x7D34))
        wanted = Message.decode(notification)
        self.assertEqual((sent.type, sent.code, sent.token), (wanted.type, wanted.code, wanted.token))
        self.assertEqual(list(sent.options), list(wanted.options))
        self.assertEqual(sent.payload, wanted.payload)
        last = Message.decode(acknowledgement)
        self.assertEqual((last.type, last.code, last.message_id), (Type.ACK, Code.EMPTY, wanted.message_id))
