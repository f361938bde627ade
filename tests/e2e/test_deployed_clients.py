# SPDX-License-Identifier: AGPL-3.0-or-later
"""What deployed MSC3079 clients do (matrix-org/lb's Go code, in phones and proxies), each played and served."""

from __future__ import annotations

import math
import re
import socket
import struct
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.block import Block
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import encode_uint
from synapse_lb.msc3079 import cbor
from tests.e2e.harness import CLIENT, FixedPort, RawPeer, SynapseTestCase, cbor_value, path_options

ACCESS_TOKEN = 256
KEY_VERSION = 257
R0 = "/_matrix/client/r0"


def go_cbor(value: Any, integer_keys: bool = True) -> bytes:
    """CBOR as the Go code writes it: every number a 9-byte float64, integer keys where the MSC has some."""
    floats: list[float] = []

    def without_numbers(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: without_numbers(each) for key, each in part.items()}
        if isinstance(part, list):
            return [without_numbers(each) for each in part]
        if isinstance(part, int | float) and not isinstance(part, bool):
            floats.append(float(part))
            return f"<number {len(floats) - 1}>"
        return part

    data = cbor.encode(without_numbers(value), 1 if integer_keys else None, canonical=False)
    for number, each in enumerate(floats):
        mark = f"<number {number}>".encode()
        data = data.replace(bytes([0x60 + len(mark)]) + mark, b"\xfb" + struct.pack(">d", each))
    return data


class GoClient:
    """Asks as the Go code does: tokens from 1 up, Content-Format 42 without a body, 60 with one, no option 257."""

    def __init__(self, peer: RawPeer) -> None:
        self.peer = peer
        self._token = 0

    def send(
        self, code: int, path: str, query: str = "", body: Any = None, access_token: str | None = None
    ) -> bytes:
        """Send a request; returns its CoAP token."""
        self._token += 1
        token = self._token.to_bytes((self._token.bit_length() + 7) // 8, "big")
        options = path_options(path, query)
        content_format = 42 if body is None else 60
        options = options.with_option(OptionNumber.CONTENT_FORMAT, encode_uint(content_format))
        if access_token is not None:
            options = options.with_option(ACCESS_TOKEN, f"Bearer {access_token}".encode())
        self.peer.request(code, options, b"" if body is None else go_cbor(body), token=token)
        return token

    async def ask(self, code: int, path: str, query: str = "", body: Any = None, **more: Any) -> Message:
        """A request and its response."""
        return await self.peer.response(self.send(code, path, query, body, **more))


class DeployedClientTests(SynapseTestCase):
    async def go(self, using: Any = None) -> GoClient:
        return GoClient(await self.raw(using=using))

    async def test_text_keys_until_it_has_sent_integer_keys(self) -> None:
        user = self.user()
        client = await self.go()
        response = await client.ask(Code.GET, f"{R0}/account/whoami", access_token=user.token)
        self.assertEqual(response.code, Code.CONTENT)
        self.assertEqual(response.options.get_uint(OptionNumber.CONTENT_FORMAT), 60)
        first = cbor.decode(response.payload)
        self.assertEqual(first.value["user_id"], user.user_id)
        self.assertFalse(first.used_integer_keys)

        response = await client.ask(Code.POST, f"{R0}/createRoom", body={"name": "integer keys"})
        created = cbor.decode(response.payload)
        self.assertTrue(created.value["room_id"].startswith("!"))
        self.assertTrue(created.used_integer_keys)
        response = await client.ask(Code.GET, f"{R0}/account/whoami")
        self.assertTrue(cbor.decode(response.payload).used_integer_keys)

    async def test_its_whole_life(self) -> None:
        client = await self.go()
        name = self.user().name + "go"
        body = {"username": name, "password": "a long password", "auth": {"type": "m.login.dummy"}}
        registered = await client.ask(Code.POST, f"{R0}/register", body=body)
        self.assertEqual(registered.code, Code.CONTENT, registered.payload)
        login = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": name},
            "password": "a long password",
        }
        logged_in = cbor_value(await client.ask(Code.POST, f"{R0}/login", body=login))
        token = logged_in["access_token"]
        response = await client.ask(Code.POST, f"{R0}/createRoom", body={}, access_token=token)
        room = cbor_value(response)["room_id"]
        message = {"msgtype": "m.text", "body": "from Go"}
        sent = await client.ask(Code.PUT, f"{R0}/rooms/{room}/send/m.room.message/txn1", body=message)
        self.assertEqual(sent.code, Code.CONTENT)
        synced = await client.ask(Code.GET, f"{R0}/sync", "timeout=0")
        self.assertEqual(synced.options.get_uint(OptionNumber.CONTENT_FORMAT), 60)
        out = await client.ask(Code.POST, f"{R0}/logout", body={})
        # They panic on an empty body: `{}` in CBOR is one byte.
        self.assertEqual((out.code, out.payload), (Code.CONTENT, b"\xa0"))

    async def test_float64_numbers_become_integers(self) -> None:
        user = self.user()
        room = user.room()
        client = await self.go()
        content = {"n": 3, "zero": 0, "big": 2**53 - 1, "negative": -17, "deep": [{"n": 1000000}]}
        self.assertIn(b"\xfb" + struct.pack(">d", 3.0), go_cbor(content))
        path = f"{R0}/rooms/{room}/state/org.example.floats/k"
        response = await client.ask(Code.PUT, path, body=content, access_token=user.token)
        self.assertEqual(response.code, Code.CONTENT, response.payload)
        stored = user.http("GET", f"{CLIENT}/rooms/{room}/state/org.example.floats/k")
        self.assertEqual(stored, content)
        self.assertTrue(all(type(stored[key]) is int for key in ("n", "zero", "big", "negative")))

    async def test_a_float_with_a_fraction_is_for_synapse_to_judge(self) -> None:
        user = self.user()
        room = user.room()
        client = await self.go()
        # In an event it is an error; in account data, which is no event, it may stand.
        path = f"{R0}/rooms/{room}/send/org.example.floats/1"
        response = await client.ask(Code.PUT, path, body={"pi": math.pi}, access_token=user.token)
        status, over_http = self.homeserver.request(
            "PUT", path.replace("/1", "/2"), {"pi": math.pi}, user.token
        )
        self.assertEqual((status, response.code), (400, Code.BAD_REQUEST))
        self.assertEqual(cbor_value(response), over_http)
        path = f"{R0}/user/{user.user_id}/account_data/org.example.floats"
        response = await client.ask(Code.PUT, path, body={"pi": math.pi})
        self.assertEqual(response.code, Code.CONTENT)
        self.assertEqual(user.http("GET", path), {"pi": math.pi})

    async def test_a_get_with_content_format_42_and_no_body(self) -> None:
        client = await self.go()
        response = await client.ask(Code.GET, "/_matrix/client/versions")
        self.assertEqual(response.code, Code.CONTENT)

    async def test_tokens_of_one_and_two_bytes(self) -> None:
        client = await self.go()
        client._token = 254
        for _ in range(3):
            response = await client.ask(Code.GET, f"{R0}/login")
            self.assertEqual(response.code, Code.CONTENT)
        self.assertEqual(client._token, 257)

    async def test_a_ping_is_answered_with_a_reset(self) -> None:
        client = await self.go()
        for _ in range(3):
            ping = client.peer.send(Message(Type.CON, Code.EMPTY, client.peer.next_message_id()))
            pong = await client.peer.find(lambda m: m.type is Type.RST, "Reset")
            self.assertEqual((pong.message_id, pong.code), (ping.message_id, Code.EMPTY))

    async def test_it_never_acknowledges_quickly_and_never_repeats_soon(self) -> None:
        # Its acknowledgement of a separate response may take seconds; the response is repeated, not lost.
        user = self.user()
        client = await self.go()
        since = user.http("GET", f"{CLIENT}/sync?timeout=0")["next_batch"]
        token = client.send(Code.GET, f"{R0}/sync", f"since={since}&timeout=30000", access_token=user.token)
        acknowledgement = await client.peer.find(lambda m: m.type is Type.ACK, "empty ACK")
        self.assertEqual(acknowledgement.code, Code.EMPTY)
        user.room(name="news")

        def is_response(message: Message) -> bool:
            return message.token == token and message.code == Code.CONTENT

        first = await client.peer.find(is_response, "response")
        again = await client.peer.find(is_response, "copy of the response")
        self.assertEqual(first, again)
        self.assertIs(first.type, Type.CON)
        self.assertNotEqual(first.message_id, acknowledgement.message_id)
        client.peer.send(Message(Type.ACK, Code.EMPTY, first.message_id))
        await self.assert_run(rf"GET \S+/sync\?since={re.escape(since)}&timeout=30000 CoAP", 1)

    async def test_blocks_of_1024_bytes(self) -> None:
        user = self.user()
        room = user.room()
        for number in range(5):
            user.say(room, f"{number}" * 1000)
        client = await self.go()
        path, query = f"{R0}/rooms/{room}/messages", "dir=b&limit=5"
        response = await client.ask(Code.GET, path, query, access_token=user.token)
        payload = response.payload
        block = Block.decode(response.options.get(OptionNumber.BLOCK2) or b"")
        self.assertEqual((block.number, block.size, block.more), (0, 1024, True))
        etag = response.options.get(OptionNumber.ETAG)
        while block.more:
            # As go-coap does: the first request's options with the next block number.
            client._token += 1
            token = bytes([client._token])
            options = path_options(path, query)
            options = options.with_option(OptionNumber.CONTENT_FORMAT, encode_uint(42))
            options = options.with_option(ACCESS_TOKEN, f"Bearer {user.token}".encode())
            following = Block(block.number + 1, False, 6)
            options = options.with_option(OptionNumber.BLOCK2, following.encode())
            client.peer.request(Code.GET, options, token=token)
            response = await client.peer.response(token)
            self.assertEqual(response.code, Code.CONTENT)
            self.assertEqual(response.options.get(OptionNumber.ETAG), etag)
            block = Block.decode(response.options.get(OptionNumber.BLOCK2) or b"")
            self.assertEqual((block.number, block.size), (following.number, 1024))
            payload += response.payload
        texts = [e["content"]["body"] for e in cbor.decode(payload).value["chunk"]]
        self.assertEqual(texts, [f"{number}" * 1000 for number in (4, 3, 2, 1, 0)])
        await self.assert_run(r"GET \S+/messages\S* CoAP", 1)

    async def test_it_comes_back_on_its_port_without_having_said_goodbye(self) -> None:
        user = self.user()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for number in range(3):
            client = await self.go(using=FixedPort(port))
            response = await client.ask(Code.GET, f"{R0}/account/whoami", access_token=user.token)
            self.assertEqual(response.code, Code.CONTENT, f"association {number}")
            assert client.peer.association is not None
            await client.peer.association.abort()
        # A new association knows nothing of the token of the old one.
        client = await self.go(using=FixedPort(port))
        response = await client.ask(Code.GET, f"{R0}/account/whoami")
        self.assertEqual(response.code, Code.UNAUTHORIZED)
        self.assertEqual(cbor_value(response)["errcode"], "M_MISSING_TOKEN")

    async def test_a_registration_to_observe_is_answered_as_a_request(self) -> None:
        user = self.user()
        client = await self.go()
        options = path_options(f"{R0}/sync", "timeout=0").with_option(ACCESS_TOKEN, user.token.encode())
        client.peer.request(Code.GET, options.with_option(OptionNumber.OBSERVE, b""), token=b"\x09")
        response = await client.peer.response(b"\x09")
        self.assertEqual(response.code, Code.CONTENT)

    async def test_every_path_code_and_the_full_path_are_the_same(self) -> None:
        user = self.user()
        room = user.room()
        client = await self.go()
        for code, full in (
            ("0", "/_matrix/client/versions"),
            (f"C/{room}", f"{R0}/rooms/{room}/members"),
            ("I", f"{R0}/joined_rooms"),
            (f"W/{user.user_id}", f"{R0}/profile/{user.user_id}"),
        ):
            short = await client.ask(Code.GET, code, access_token=user.token)
            long = await client.ask(Code.GET, full, access_token=user.token)
            self.assertEqual((short.code, long.code), (Code.CONTENT, Code.CONTENT), code)
        sent = await client.ask(
            Code.PUT, f"9/{room}/m.room.message/t1", body={"msgtype": "m.text", "body": "short"}
        )
        event = cbor_value(sent)["event_id"]
        self.assertEqual(user.http("GET", f"{CLIENT}/rooms/{room}/event/{event}")["content"]["body"], "short")

    async def test_the_key_version_asked_for_is_sticky(self) -> None:
        user = self.user()
        peer = await self.raw()
        options = path_options(f"{CLIENT}/account/whoami").with_option(ACCESS_TOKEN, user.token.encode())
        peer.request(Code.GET, options.with_option(KEY_VERSION, b"\x01"))
        self.assertTrue(cbor.decode((await peer.response()).payload).used_integer_keys)
        peer.request(Code.GET, path_options(f"{CLIENT}/account/whoami"), token=b"\x02")
        decoded = cbor.decode((await peer.response(b"\x02")).payload)
        self.assertTrue(decoded.used_integer_keys)
        self.assertEqual(decoded.value["user_id"], user.user_id)

    async def test_json_both_ways(self) -> None:
        user = self.user()
        peer = await self.raw()
        options = path_options(f"{CLIENT}/createRoom").with_option(ACCESS_TOKEN, user.token.encode())
        json_format = encode_uint(50)
        options = options.with_option(OptionNumber.CONTENT_FORMAT, json_format)
        peer.request(Code.POST, options, b'{"name": "json"}')
        response = await peer.response()
        # A JSON request gets JSON, unless its Accept asks for CBOR.
        self.assertEqual(response.options.get_uint(OptionNumber.CONTENT_FORMAT), 50)
        self.assertTrue(response.payload.startswith(b'{"room_id":'))
        peer.request(
            Code.POST, options.with_option(OptionNumber.ACCEPT, encode_uint(60)), b"{}", token=b"\x02"
        )
        response = await peer.response(b"\x02")
        self.assertEqual(response.options.get_uint(OptionNumber.CONTENT_FORMAT), 60)
        self.assertIn("room_id", cbor_value(response))


class HelperTests(SynchronousTestCase):
    def test_the_go_encoder_writes_floats_and_integer_keys(self) -> None:
        self.assertEqual(go_cbor({"body": 1}), b"\xa1\x18\x1b\xfb\x3f\xf0" + bytes(6))
