# SPDX-License-Identifier: AGPL-3.0-or-later
"""The bytes in docs/extensions.md are those that are taken and given here."""

from __future__ import annotations

import re
from pathlib import Path

from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, Type
from synapse_lb.msc3079.mapping import encode_request, encode_x1_request
from synapse_lb.msc3079.messages import MatrixResponse
from tests.server.observing import SLIDING, ObserverTestCase
from tests.server.test_x1 import X1TestCase

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "extensions.md"
BODY = {"lists": {"a": {"ranges": [[0, 9]], "required_state": [], "timeline_limit": 5}}}
TEXT = {"msgtype": "m.text", "body": "Hello World"}
EVENT = {"event_id": "$eCY91UGSF5P-CCGLehGGjflBO80LIlXc7AQQs-5kfGE"}
RESULT = {
    "rooms": {"!r:x": {"name": "A"}},
    "pos": "2/s8",
    "lists": {"a": {"ops": [], "count": 0}},
    "extensions": {},
}


def messages(heading: str) -> list[bytes]:
    """The messages of a section: in its blocks of code, two columns before what they mean, an empty line between."""
    section = DOCUMENT.read_text().partition(f"\n## {heading}")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    texts = [text for block in blocks for text in block.split("\n\n")]
    lines = [[line.partition("   ")[0] for line in text.splitlines() if line[:1] != " "] for text in texts]
    return [bytes.fromhex("".join(each)) for each in lines]


class ExampleTests(ObserverTestCase):
    """The example of an observed sliding sync."""

    def test_there_and_back(self) -> None:
        registration, notification, acknowledgement = messages("Sliding sync")
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


class X1ExampleTests(X1TestCase):
    """The example of x1: the bytes of both ends."""

    PATH = "/_matrix/client/{}/rooms/!OGEhHVWSdvArJzumhm:example.org/send/m.room.message/{}"

    def setUp(self) -> None:
        super().setUp()
        self.homeserver.users["t0k3n"] = "@a:x"
        self.homeserver.answer = lambda _: MatrixResponse(200, EVENT)

    def test_there_and_back(self) -> None:
        sent = messages("x1: choosing it")
        for request, answer in zip(sent[0:6:2], sent[1:6:2], strict=True):
            self.gateway.message_received(1, request)
            self.settle()
            self.assertEqual(self.alice.received[-1], answer)
        paths = [each.path.decode() for each, _ in self.homeserver.requests]
        self.assertEqual(paths, [self.PATH.format("v3", f"m{number}") for number in (1, 2, 3)])
        self.assertEqual([each.body for each, _ in self.homeserver.requests], [TEXT] * 3)

    def test_offered(self) -> None:
        self.gateway.message_received(1, messages("x1: choosing it")[6])
        self.settle()
        answer = Message.decode(self.alice.received[-1])
        self.assertEqual((list(answer.options), answer.payload[:2]), ([], b"\xcc\xe0"))

    def test_written_by_the_client(self) -> None:
        sent = [Message.decode(data) for data in messages("x1: choosing it")]
        for number, message in enumerate(sent[0:6:2]):
            written = encode_x1_request(
                "PUT",
                self.PATH.format("v3", f"m{number + 1}"),
                None,
                TEXT,
                self.book,
                token="t0k3n" if number == 0 else None,
                announce=number == 0,
                brief=number == 2,
            )
            self.book.confirm(written.definitions)
            self.assertEqual((written.options, written.payload), (list(message.options), message.payload))
        code, options, payload = encode_request(
            "PUT",
            self.PATH.format("r0", "m0"),
            None,
            TEXT,
            token="t0k3n",
            key_version=1,
            announce_key_version=1,
            offer_x1=True,
        )
        last = sent[6]
        self.assertEqual((code, options, payload), (last.code, list(last.options), last.payload))
