# SPDX-License-Identifier: AGPL-3.0-or-later
"""The client and x1: when it uses it, what it says of it, and servers that do not have it."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any, cast

from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.client import NO_BODY, LowBandwidthClient
from synapse_lb.client.errors import BadResponse, ConnectionLost
from synapse_lb.client.extension import Extensions, Wish, Words, X1Sender
from synapse_lb.client.sticky import StickySender
from synapse_lb.coap.events import CoapRequest, CoapResponse
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.msc3079 import cbor
from synapse_lb.msc3079.extension import X1, X1_BRIEF, X1_WRITTEN
from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.msc3079.x1 import encode_body
from synapse_lb.msc3079.x1.aliases import AliasKind
from tests.client import test_observe_gateway as observe_gateway
from tests.client.harness import REACTOR, LoopbackTestCase, PlainServer, Server
from tests.client.test_wire import TEXT, TOKEN, WireGateway

CLIENT = "/_matrix/client"
ROOM = "!OGEhHVWSdvArJzumhm:example.org"
OTHER_ROOM = "!zzjvQWYrNuCzexIPHl:example.org"
SEND = f"{CLIENT}/v3/rooms/{ROOM}/send/m.room.message/"
EVENT = {"event_id": "$Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zg"}
CONTENT_60 = Options.of((OptionNumber.CONTENT_FORMAT, b"\x3c"))
VERSIONS = {"versions": ["v1.11"], "org.matrix.msc3079.low_bandwidth": {"dtls": 8008, "x1": 1}}


class WordsTests(SynchronousTestCase):
    """What is written how, by what is known."""

    def test_wishes(self) -> None:
        cases: list[tuple[Wish, Words]] = [
            (False, Words.VERSION_1),
            ("auto", Words.VERSION_1),
            (True, Words.OFFER),
            ("known", Words.ANNOUNCE),
        ]
        for wish, expected in cases:
            self.assertIs(X1Sender(Extensions(wish)).words(), expected)

    def test_versions(self) -> None:
        cases: list[tuple[Wish, dict[str, int], bool | None]] = [
            ("auto", {"x1": 1}, True),
            ("auto", {"x1": 2}, False),
            ("auto", {}, False),
            (True, {"x1": 1}, None),
            (False, {"x1": 1}, None),
        ]
        for wish, said, expected in cases:
            extensions = Extensions(wish)
            extensions.read_versions({"org.matrix.msc3079.low_bandwidth": said})
            self.assertIs(extensions.speaks_x1, expected)
        extensions = Extensions("auto")
        bodies: list[Any] = [None, NO_BODY, [], {"versions": []}, {"org.matrix.msc3079.low_bandwidth": 1}]
        for body in bodies:
            extensions.read_versions(body)
        self.assertIsNone(extensions.speaks_x1)

    def answer(self, code: int, payload: bytes = b"", options: Options | None = None) -> CoapResponse:
        return CoapResponse(code, options or Options(), payload)

    def test_announced_until_the_gateway_has_answered(self) -> None:
        """An error of the CoAP layer shows nothing: it may be older than what the option says."""
        for response, expected in (
            (self.answer(Code.SERVICE_UNAVAILABLE), Words.ANNOUNCE),
            (self.answer(Code.REQUEST_ENTITY_INCOMPLETE), Words.ANNOUNCE),
            (self.answer(Code.FORBIDDEN, b"\xa0"), Words.X1),
            (self.answer(Code.CONTENT), Words.X1),
        ):
            sender = X1Sender(Extensions("known"))
            sender.answered(sender.words(), (), response)
            self.assertIs(sender.words(), expected)

    def test_an_answer_to_something_else_shows_nothing(self) -> None:
        """A request of version 1 that was under way when x1 became known."""
        extensions = Extensions("auto")
        sender = X1Sender(extensions)
        earlier = sender.words()
        extensions.speaks_x1 = True
        sender.answered(earlier, (), self.answer(Code.CONTENT, b"\xa0", CONTENT_60))
        self.assertIs(sender.words(), Words.ANNOUNCE)

    def test_offered(self) -> None:
        for response, expected in (
            (self.answer(Code.CONTENT, b"\xa0", CONTENT_60), Words.VERSION_1),
            (self.answer(Code.CONTENT, b"\xa0"), Words.ANNOUNCE),
            (self.answer(Code.CHANGED), Words.OFFER),
            (self.answer(Code.BAD_GATEWAY, b"text"), Words.VERSION_1),
        ):
            sender = X1Sender(Extensions(True))
            sender.answered(sender.words(), (), response)
            self.assertIs(sender.words(), expected)

    def test_in_force(self) -> None:
        """Heard of with the first answer that shows that the server has x1, and with no other."""
        for wish, response, expected in (
            ("known", self.answer(Code.CONTENT), 1),
            ("known", self.answer(Code.FORBIDDEN, b"\xa0"), 1),
            ("known", self.answer(Code.SERVICE_UNAVAILABLE), 0),
            (True, self.answer(Code.CONTENT, b"\xa0"), 1),
            (True, self.answer(Code.CONTENT, b"\xa0", CONTENT_60), 0),
            (True, self.answer(Code.BAD_GATEWAY, b"text"), 0),
            (False, self.answer(Code.CONTENT, b"text"), 0),
        ):
            heard: list[int] = []
            sender = X1Sender(Extensions(cast("Wish", wish)))
            sender.when_in_force(partial(heard.append, 1))
            sender.answered(sender.words(), (), response)
            self.assertEqual(sum(heard), expected, (wish, response))

    def test_definitions(self) -> None:
        """A success shows that all of the request was read, an error does not."""
        sender = X1Sender(Extensions("known"))
        definitions = encode_body({"room_id": ROOM}, sender.aliases).definitions
        words = sender.words()
        sender.answered(words, definitions, self.answer(Code.FORBIDDEN, b"\xa0"))
        self.assertIsNone(sender.aliases.reference(ROOM))
        sender.answered(words, definitions, self.answer(Code.CONTENT, b"\xa0"))
        self.assertIsNotNone(sender.aliases.reference(ROOM))
        sender.answered(words, (), self.answer(Code.BAD_REQUEST, b"\xa0"))
        self.assertIsNone(sender.aliases.reference(ROOM))

    def test_no_key_version_with_it(self) -> None:
        """x1 has keys of its own; option 257 is for answers of version 1."""
        self.assertIsNone(StickySender(1, extensions=Extensions("known")).prepare(None).key_version)
        self.assertEqual(StickySender(1, extensions=Extensions(True)).prepare(None).key_version, 1)
        refuted = StickySender(1, extensions=Extensions(True, False))
        self.assertEqual(refuted.prepare(None).key_version, 1)


class X1TestCase(LoopbackTestCase):
    """A gateway that keeps what crosses the wire."""

    def setUp(self) -> None:
        super().setUp()
        self.dispatcher.answer = self.answer
        self.body: dict[str, Any] = dict(EVENT)

    def answer(self, request: MatrixRequest) -> MatrixResponse:
        if request.path.endswith(b"/versions"):
            return MatrixResponse(200, VERSIONS)
        if request.path.endswith(b"/forbidden"):
            return MatrixResponse(403, {"errcode": "M_FORBIDDEN", "error": "No"})
        return MatrixResponse(200, self.body)

    def start(self, **settings: Any) -> LowBandwidthClient:
        self.gateway = WireGateway(self.dispatcher)
        return self.make_client(self.start_server(self.gateway), **settings)

    def numbers(self) -> list[set[int]]:
        """The options of the messages, without those that each request has."""
        return [
            {number for number, _ in each.options} - {OptionNumber.URI_PATH} for each in self.gateway.messages
        ]

    async def send(self, client: LowBandwidthClient, transaction: int = 1, **more: Any) -> MatrixResponse:
        return await client.request("PUT", f"{SEND}{transaction}", json=TEXT, token=TOKEN, **more)


class GatewayTests(X1TestCase):
    """With a server that has it."""

    async def test_known(self) -> None:
        client = self.start(extensions="known")
        for transaction in (1, 2):
            self.assertEqual(await self.send(client, transaction), MatrixResponse(200, EVENT))
        self.assertEqual(self.numbers(), [{256, X1_WRITTEN}, set(), set(), set()])
        self.assertEqual([each.body for each in self.dispatcher.requests], [TEXT, TEXT])
        self.assertEqual(
            {each.path for each in self.dispatcher.requests}, {f"{SEND}{n}".encode() for n in (1, 2)}
        )

    async def test_goals(self) -> None:
        """Bytes at the IP level: 20 of IPv4, 8 of UDP, 29 of DTLS, and the message."""
        client = self.start(extensions="known")
        for transaction in (1, 2):
            await self.send(client, transaction)
        await self.send(client, 3, brief=True)
        sizes = [57 + len(each.encode()) for each in self.gateway.messages]
        self.assertLessEqual(sizes[2], 95)
        self.assertLessEqual(sizes[3], 105)
        self.assertLessEqual(sizes[4], 95)
        self.assertLessEqual(sizes[5], 66)

    async def test_compact_datagrams(self) -> None:
        """Where x1 is in force, and not before; a session says so to the client that resumes it."""
        self.gateway = WireGateway(self.dispatcher)
        server = self.start_server(self.gateway)
        client = self.make_client(server, extensions="known")
        sent = [client.counters.bytes_sent]
        for transaction in (1, 2, 3):
            await self.send(client, transaction)
            sent.append(client.counters.bytes_sent)
        size = len(self.gateway.messages[4].encode())
        self.assertEqual([sent[3] - sent[2], sent[2] - sent[1]], [2 + 16 + size] * 2)
        session = client.session
        await client.close()
        again = self.make_client(server, extensions="known", session=session)
        await self.send(again, 4)
        size = len(self.gateway.messages[6].encode())
        self.assertEqual(again.counters.bytes_sent, 66 + 42 + 2 + 16 + size)

    async def test_tried(self) -> None:
        """In words of version 1 first."""
        client = self.start(extensions=True)
        self.assertIsNone(client.speaks_x1)
        for transaction in (1, 2, 3):
            self.assertEqual((await self.send(client, transaction)).body, EVENT)
        self.assertTrue(client.speaks_x1)
        first = {OptionNumber.CONTENT_FORMAT, 256, 257, X1}
        self.assertEqual(self.numbers(), [first, set(), {X1_WRITTEN}, set(), set(), set()])

    async def test_auto(self) -> None:
        client = self.start()
        await self.send(client)
        await client.request("GET", CLIENT + "/versions")
        self.assertTrue(client.speaks_x1)
        self.assertEqual((await self.send(client, 2)).body, EVENT)
        self.assertEqual(self.numbers()[4:], [{X1_WRITTEN}, set()])

    async def test_not_wanted(self) -> None:
        client = self.start(extensions=False)
        await client.request("GET", CLIENT + "/versions")
        await self.send(client)
        self.assertEqual(
            self.numbers()[2:], [{OptionNumber.CONTENT_FORMAT, 256}, {OptionNumber.CONTENT_FORMAT}]
        )
        self.assertRaises(ValueError, LowBandwidthClient, REACTOR, "a", extensions="maybe")

    async def test_brief(self) -> None:
        client = self.start(extensions="known")
        self.assertEqual(await self.send(client, brief=True), MatrixResponse(200, NO_BODY))
        self.assertIn(X1_BRIEF, self.numbers()[0])
        self.assertEqual((await self.send(client)).body, EVENT)
        failed = await client.request("PUT", CLIENT + "/v3/forbidden", json={}, brief=True)
        self.assertEqual((failed.status, failed.body["errcode"]), (403, "M_FORBIDDEN"))

    async def test_brief_without_x1(self) -> None:
        client = self.start(extensions=False)
        self.assertEqual((await self.send(client, brief=True)).body, EVENT)

    async def test_large_both_ways(self) -> None:
        """By Q-Block and by blocks, with aliases in paths and bodies."""
        self.body = {"room_id": ROOM, "chunk": [f"{n:x}" * 7 for n in range(3000)]}
        for q_block in ("auto", False):
            client = self.start(extensions="known", q_block=q_block)
            for _ in range(2):
                answer = await client.request(
                    "POST", f"{CLIENT}/v3/rooms/{ROOM}/messages", json=self.body, token=TOKEN
                )
                self.assertEqual(answer.body, self.body)
                self.assertEqual(self.dispatcher.requests[-1].body, self.body)

    async def test_many_at_once(self) -> None:
        client = self.start(extensions="known")
        answers = await gatherResults([Deferred.fromCoroutine(self.send(client, n)) for n in range(20)])
        self.assertEqual([each.body for each in answers], [EVENT] * 20)
        self.assertEqual(len({each.path for each in self.dispatcher.requests}), 20)

    async def test_new_association(self) -> None:
        """What is known of the server stays, aliases and what was said go."""
        client = self.start(extensions=True)
        await self.send(client, 1)
        await self.send(client, 2)
        (association_id,) = self.gateway._associations
        self.gateway._attached().close(association_id)
        del self.gateway.messages[:]
        with contextlib.suppress(ConnectionLost):
            await self.send(client, 3)
        self.assertEqual((await self.send(client, 4)).body, EVENT)
        self.assertEqual(self.numbers()[:2], [{256, X1_WRITTEN}, set()])
        self.assertEqual(self.dispatcher.requests[-1].path, f"{SEND}4".encode())

    async def test_raw_requests_are_not_of_it(self) -> None:
        client = self.start(extensions="known")
        await self.send(client)
        options = Options.of((OptionNumber.URI_PATH, b"7"))
        response = await client.raw_request(CoapRequest(Code.GET, options))
        self.assertEqual(response.options.get_uint(OptionNumber.CONTENT_FORMAT), 60)
        self.assertEqual(cbor.decode(response.payload).value, EVENT)
        self.assertEqual((await self.send(client, 2)).body, EVENT)
        self.assertEqual(self.numbers()[4:], [set(), set()])

    async def test_an_alias_that_the_server_does_not_know(self) -> None:
        """It was not run, and is repeated with the definition."""
        client = self.start(extensions="known")
        await self.send(client)
        channel = await client._keeper.ready()
        book = channel.sticky.x1.aliases
        book.confirm([book.definition(OTHER_ROOM, AliasKind.ROOM) or 0])
        for transaction in (1, 2):
            path = f"{CLIENT}/v3/rooms/{OTHER_ROOM}/send/m.room.message/{transaction}"
            self.assertEqual((await client.request("PUT", path, json=TEXT, token=TOKEN)).body, EVENT)
            self.assertEqual(self.dispatcher.requests[-1].path, path.encode())
        codes = [each.code for each in self.gateway.messages[2:]]
        put = Code.PUT
        self.assertEqual(codes, [put, Code.BAD_REQUEST, put, Code.CONTENT, put, Code.CONTENT])

    async def test_another_user(self) -> None:
        """It gets its definitions with its first request, those of the server's numbers too: nothing is refused."""
        self.body = {"user_id": "@somebody:example.org"}
        client = self.start(extensions="known")
        for token in (TOKEN, "other"):
            for transaction in (1, 2, 3):
                path = f"{CLIENT}/v3/rooms/{ROOM}/send/m.room.message/{transaction}"
                body = {"user_id": "@somebody:example.org"}
                answer = await client.request("PUT", path, json=body, token=token)
                self.assertEqual(answer.body, self.body)
                self.assertEqual(self.dispatcher.requests[-1].access_token, token)
        self.assertEqual({each.code for each in self.gateway.messages}, {Code.PUT, Code.CONTENT})
        self.assertEqual(len(self.gateway._associations), 1)

    async def test_a_number_of_the_server_s_that_it_does_not_know_for_this_user(self) -> None:
        client = self.start(extensions="known")
        await self.send(client)
        channel = await client._keeper.ready()
        channel.sticky.x1.aliases.learn({1: OTHER_ROOM})
        path = f"{CLIENT}/v3/rooms/{OTHER_ROOM}/send/m.room.message/1"
        self.assertEqual((await client.request("PUT", path, json=TEXT, token=TOKEN)).body, EVENT)
        codes = [each.code for each in self.gateway.messages[2:]]
        self.assertEqual(codes, [Code.PUT, Code.BAD_REQUEST, Code.PUT, Code.CONTENT])

    async def test_the_server_forgets_the_token(self) -> None:
        client = self.start(extensions="known")
        answers = [await client.request("GET", CLIENT + "/v3/a", token="ended") for _ in range(2)]
        self.assertEqual([each.body for each in answers], [EVENT] * 2)


class ObserveTests(observe_gateway.GatewayTests):
    """All that holds for observations, with x1: losses, restarts, several at once."""

    def make_client(self, server: Server, **settings: Any) -> LowBandwidthClient:
        """Make a client that writes x1 from the first request on."""
        return super().make_client(server, extensions="known", **settings)


class OtherServerTests(X1TestCase):
    """Servers that do not have it."""

    async def test_elective_option_is_ignored(self) -> None:
        handler = PlainServer(lambda _: CoapResponse(Code.CONTENT, CONTENT_60, cbor.encode(EVENT)))
        client = self.make_client(self.start_server(handler), key_version=None, extensions=True)
        for transaction in (1, 2):
            self.assertEqual((await self.send(client, transaction)).body, EVENT)
        self.assertEqual([X1 in each.options for each in handler.requests], [True, False])
        self.assertFalse(client.speaks_x1)

    async def test_critical_option_is_refused(self) -> None:
        handler = PlainServer(lambda _: CoapResponse(Code.CONTENT, CONTENT_60, cbor.encode(EVENT)))
        client = self.make_client(self.start_server(handler), key_version=None, extensions="known")
        for transaction in (1, 2):
            self.assertEqual((await self.send(client, transaction)).body, EVENT)
        self.assertEqual(len(handler.requests), 2)
        self.assertEqual({each.options.get(OptionNumber.URI_PATH) for each in handler.requests}, {b"_matrix"})
        self.assertIs(client.speaks_x1, False)

    async def test_turned_off_here(self) -> None:
        self.gateway = WireGateway(self.dispatcher, x1=False)
        client = self.make_client(self.start_server(self.gateway), extensions="known")
        answers: list[Any] = []
        observation = client.observe(f"{CLIENT}/v3/a", handler=answers.append, token=TOKEN)
        await observation.done
        self.assertEqual((answers, client.speaks_x1), ([EVENT], False))
        codes = [each.code for each in self.gateway.messages]
        self.assertEqual(codes, [Code.GET, Code.BAD_OPTION, Code.GET, Code.CONTENT])

    async def test_an_alias_that_nobody_defined(self) -> None:
        handler = PlainServer(lambda _: CoapResponse(Code.CONTENT, Options(), b"\x81\x41\x07"))
        handler.endpoint._responder._understood |= {X1_WRITTEN}
        client = self.make_client(self.start_server(handler), key_version=None, extensions="known")
        await self.assertFailure(Deferred.fromCoroutine(self.send(client)), BadResponse)
        await self.assertFailure(Deferred.fromCoroutine(self.send(client)), BadResponse)
        self.assertEqual([X1_WRITTEN in each.options for each in handler.requests], [True, True])
