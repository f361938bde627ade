# SPDX-License-Identifier: AGPL-3.0-or-later
"""The client and compression: where it asks for it, what it learns, and servers that do not have it."""

from __future__ import annotations

import zlib
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.client.large import gains_by_deflate
from synapse_lb.coap.events import CoapRequest, CoapResponse
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.msc3079 import cbor
from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from tests.client.harness import LoopbackTestCase, PlainServer, RecordingGateway, Server

CLIENT = "/_matrix/client"
QUERY = CLIENT + "/v3/keys/query"
LONG: dict[str, Any] = {"device_keys": {f"@user{n}:example.org": [] for n in range(30)}}


def sent(server: Server, number: int) -> list[int | None]:
    """The values of an option in the requests that reached a gateway."""
    assert isinstance(server.handler, RecordingGateway)
    return [message.options.get_uint(number) for message in server.handler.seen]


class TableTests(SynchronousTestCase):
    """Which requests ask for it."""

    def test_may_gain(self) -> None:
        for method, path in (
            ("GET", "/versions"),
            ("GET", "/v3/sync?since=s1"),
            ("get", "/v3/sync"),
            ("POST", "/unstable/org.matrix.simplified_msc3575/sync?pos=1"),
            ("POST", "/v3/keys/query"),
            ("GET", "/v3/rooms/!a:b/messages"),
            ("GET", "/v3/rooms/!a:b/members"),
            ("GET", "/v3/rooms/!a:b/state"),
            ("GET", "/v3/capabilities"),
            ("GET", "/v3/user/@a:b/account_data/m.direct"),
        ):
            self.assertTrue(gains_by_deflate(method, CLIENT + path, ()), path)
        self.assertTrue(gains_by_deflate("GET", "/7", (("since", "s1"),)))

    def test_small(self) -> None:
        for method, path in (
            ("PUT", "/v3/rooms/!a:b/send/m.room.message/1"),
            ("PUT", "/v3/rooms/!a:b/state/m.room.name/"),
            ("PUT", "/v3/user/@a:b/account_data/m.direct"),
            ("PUT", "/v3/room_keys/keys"),
            ("POST", "/v3/rooms/!a:b/receipt/m.read/$e"),
            ("POST", "/v3/keys/upload"),
            ("POST", "/v3/login"),
            ("GET", "/v3/account/whoami"),
        ):
            self.assertFalse(gains_by_deflate(method, CLIENT + path, ()), path)


class GatewayTests(LoopbackTestCase):
    """With the server of this project."""

    def setUp(self) -> None:
        super().setUp()
        self.dispatcher.answer = self.answer

    def answer(self, request: MatrixRequest) -> MatrixResponse:
        return MatrixResponse(200, LONG | {"said": request.body if isinstance(request.body, dict) else None})

    async def test_asked_for_where_it_pays(self) -> None:
        server = self.start_server()
        client = self.make_client(server)
        answer = await client.request("GET", CLIENT + "/v3/sync", token="t")
        await client.request("PUT", CLIENT + "/v3/rooms/!a:b/send/m.room.message/1", json={}, token="t")
        self.assertEqual(answer.body["device_keys"], LONG["device_keys"])
        self.assertEqual(sent(server, OptionNumber.ACCEPT), [11060, None])

    async def test_bodies_once_the_server_has_shown_it(self) -> None:
        server = self.start_server()
        client = self.make_client(server)
        for _ in range(3):
            answer = await client.request("POST", QUERY, json=LONG, token="t")
            self.assertEqual(answer.body, LONG | {"said": LONG})
        self.assertEqual(sent(server, OptionNumber.CONTENT_FORMAT), [60, 11060, 11060])
        self.assertEqual(sent(server, OptionNumber.ACCEPT), [11060, None, None])
        await client.request("POST", CLIENT + "/v3/login", json=LONG)
        self.assertEqual(sent(server, OptionNumber.CONTENT_FORMAT)[-1], 60)

    async def test_not_wanted(self) -> None:
        server = self.start_server()
        client = self.make_client(server, deflate=False)
        for _ in range(2):
            await client.request("POST", QUERY, json=LONG)
        self.assertEqual(set(sent(server, OptionNumber.CONTENT_FORMAT)), {60})
        self.assertEqual(set(sent(server, OptionNumber.ACCEPT)), {None})

    async def test_observed(self) -> None:
        server = self.start_server()
        client = self.make_client(server)
        answers: list[Any] = []
        observation = client.observe(CLIENT + "/v3/keys/changes", handler=answers.append, token="t")
        await observation.done
        self.assertEqual([each["device_keys"] for each in answers], [LONG["device_keys"]])
        self.assertEqual(set(sent(server, OptionNumber.ACCEPT)), {11060})


class OtherServerTests(LoopbackTestCase):
    """Servers that know 60 only."""

    def formats(self, handler: PlainServer) -> list[tuple[int | None, int | None]]:
        numbers = OptionNumber.CONTENT_FORMAT, OptionNumber.ACCEPT
        found = [tuple(each.options.get_uint(number) for number in numbers) for each in handler.requests]
        return [(first, second) for first, second in found]

    def answer(self, request: CoapRequest) -> CoapResponse:
        if request.options.get_uint(OptionNumber.ACCEPT) not in (None, 60):
            return CoapResponse(Code.NOT_ACCEPTABLE)
        options = Options.of((OptionNumber.CONTENT_FORMAT, b"\x3c"))
        return CoapResponse(Code.CONTENT, options, cbor.encode({"fine": True}))

    async def test_not_acceptable(self) -> None:
        handler = PlainServer(self.answer)
        client = self.make_client(self.start_server(handler), key_version=None)
        for _ in range(2):
            answer = await client.request("POST", QUERY, json=LONG)
            self.assertEqual(answer.body, {"fine": True})
        self.assertEqual(self.formats(handler), [(60, 11060), (60, None), (60, None)])

    async def test_observed(self) -> None:
        handler = PlainServer(self.answer)
        client = self.make_client(self.start_server(handler), key_version=None)
        answers: list[Any] = []
        observation = client.observe(CLIENT + "/v3/keys/changes", handler=answers.append)
        await observation.done
        self.assertEqual(answers, [{"fine": True}])
        self.assertEqual(self.formats(handler), [(None, 11060), (None, None)])

    async def test_it_does_not_take_what_it_gives(self) -> None:
        def answer(request: CoapRequest) -> CoapResponse:
            if request.options.get_uint(OptionNumber.CONTENT_FORMAT) == 11060:
                return CoapResponse(Code.UNSUPPORTED_CONTENT_FORMAT)
            options = Options.of((OptionNumber.CONTENT_FORMAT, (11060).to_bytes(2, "big")))
            return CoapResponse(Code.CONTENT, options, zlib.compress(b"\xa0"))

        handler = PlainServer(answer)
        client = self.make_client(self.start_server(handler), key_version=None)
        statuses = [(await client.request("POST", QUERY, json=LONG)).status for _ in range(3)]
        self.assertEqual(statuses, [200] * 3)
        self.assertEqual(self.formats(handler), [(60, 11060), (11060, None), (60, 11060), (60, 11060)])

    async def test_what_was_not_asked_is_an_answer(self) -> None:
        handler = PlainServer(lambda _: CoapResponse(Code.NOT_ACCEPTABLE))
        client = self.make_client(self.start_server(handler), key_version=None, deflate=False)
        answer = await client.request("POST", QUERY, json=LONG)
        self.assertEqual((answer.status, len(handler.requests)), (406, 1))
