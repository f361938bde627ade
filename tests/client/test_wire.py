# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every byte of the first requests of an association, and of their answers: nothing is said twice, nothing in vain."""

from __future__ import annotations

import random
from typing import Any

from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, Type
from synapse_lb.msc3079 import cbor
from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.server.gateway import Gateway
from tests.client.harness import REACTOR, Dispatcher, LoopbackTestCase

ROOM = "!" + "r" * 18 + ":example.org"
SEND = f"/_matrix/client/r0/rooms/{ROOM}/send/m.room.message/"
TEXT = {"msgtype": "m.text", "body": "Hello World"}
EVENT = {"event_id": "$" + "e" * 43}
TOKEN = "syt_" + "t" * 34

Parts = tuple[Type, int, int, list[tuple[int, bytes]], bytes]


class WireGateway(Gateway):
    """Keeps the messages of both directions, in their order."""

    def __init__(self, dispatcher: Dispatcher, **settings: Any) -> None:
        self.messages: list[Message] = []
        super().__init__(dispatcher, clock=REACTOR, random=random.Random(1), **settings)

    def message_received(self, association_id: int, data: bytes) -> None:
        self.messages.append(Message.decode(data))
        super().message_received(association_id, data)

    def _send(self, peer: object, data: bytes) -> None:
        self.messages.append(Message.decode(data))
        super()._send(peer, data)

    def parts(self) -> list[Parts]:
        """What the messages hold; of tokens only the length."""
        return [
            (each.type, each.code, len(each.token), list(each.options), each.payload)
            for each in self.messages
        ]


class WireTests(LoopbackTestCase):
    """MSC3079 version 1, without extensions."""

    def setUp(self) -> None:
        super().setUp()
        self.dispatcher.answer = self.answer
        self.gateway = WireGateway(self.dispatcher)
        self.client = self.make_client(self.start_server(self.gateway))

    def answer(self, request: MatrixRequest) -> MatrixResponse:
        return MatrixResponse(200, {} if request.path.endswith(b"typing") else EVENT)

    def request(self, transaction: bytes, *sticky: tuple[int, bytes]) -> Parts:
        path = [(11, value) for value in (b"9", ROOM.encode(), b"m.room.message", transaction)]
        return (Type.CON, Code.PUT, 1, [*path, (12, b"\x3c"), *sticky], cbor.encode(TEXT, 1))

    def response(self) -> Parts:
        return (Type.ACK, Code.CONTENT, 1, [(12, b"\x3c")], cbor.encode(EVENT, 1))

    async def test_sends(self) -> None:
        """The token and the key version once; then only what the request itself says."""
        for transaction in ("1", "2", "3"):
            await self.client.request("PUT", SEND + transaction, json=TEXT, token=TOKEN)
        sticky = (256, TOKEN.encode()), (257, b"\x01")
        self.assertEqual(
            self.gateway.parts(),
            [
                self.request(b"1", *sticky),
                self.response(),
                self.request(b"2"),
                self.response(),
                self.request(b"3"),
                self.response(),
            ],
        )

    async def test_without_a_body(self) -> None:
        """No Content-Format, no payload marker, no Accept; an empty answer is one byte of CBOR."""
        await self.client.request("POST", "/_matrix/client/v3/typing")
        (_, _, _, options, payload), (_, _, _, given, answer) = self.gateway.parts()
        path = [(11, value) for value in (b"_matrix", b"client", b"v3", b"typing")]
        self.assertEqual((options, payload), ([*path, (257, b"\x01")], b""))
        self.assertEqual((given, answer), ([(12, b"\x3c")], b"\xa0"))

    async def test_blocks_of_one_request(self) -> None:
        """Each block of a request that carries the sticky options carries them: see docs/client.md."""
        body = {"filler": "x" * 3000}
        await self.client.request("PUT", SEND + "1", json=body, token=TOKEN)
        await self.client.request("PUT", SEND + "2", json=body)
        requests = [each for each in self.gateway.messages if each.code == Code.PUT]
        carried = [(256 in each.options, 257 in each.options) for each in requests]
        half = len(requests) // 2
        self.assertEqual(carried, [(True, True)] * half + [(False, False)] * half)

    async def test_tokens_stay_short(self) -> None:
        for _ in range(40):
            await self.client.request("POST", "/_matrix/client/v3/typing")
        self.assertEqual({len(each.token) for each in self.gateway.messages}, {1})
