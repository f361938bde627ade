# SPDX-License-Identifier: AGPL-3.0-or-later
"""Large bodies, block by block (RFC 7959): a /sync of 300 KB down, a keys/upload of 60 KB up, on good and bad networks.

On the bad one a fifth of the datagrams is lost, a fifth arrives twice and a fifth out of order, in each direction.
"""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import attrs
from twisted.internet.defer import Deferred, gatherResults

from synapse_lb.client.client import LowBandwidthClient
from synapse_lb.coap.block import Block
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import encode_uint
from synapse_lb.coap.tuning import Tuning
from synapse_lb.msc3079 import cbor
from synapse_lb.testing.lossy import STORM, LossyRelay
from tests.e2e.harness import CLIENT, SynapseTestCase, User, cbor_value, path_options

BIG = 300_000
"""Bytes of JSON that the large /sync has at least."""

BAD = attrs.evolve(STORM, hold_back=0.005)
SMALL_WORLD = Tuning(min_rto=0.02, ack_timeout=0.5, max_retransmit=8, separate_after=0.2)
"""The network of these tests has a round trip of up to 20 ms; eight copies are not all lost."""

_filled: dict[int, tuple[User, dict[str, Any]]] = {}


def full_account(case: SynapseTestCase) -> tuple[User, dict[str, Any]]:
    """A user with 100 long messages to catch up with, and the answer to /sync as HTTP gives it."""
    key = id(case.homeserver)
    if key not in _filled:
        user = case.user()
        room = user.room(name="long")
        for number in range(100):
            user.say(room, f"{number} " + base64.b64encode(os.urandom(2400)).decode())
        _filled[key] = user, user.http("GET", sync_path())
    return _filled[key]


def sync_path() -> str:
    return f"{CLIENT}/sync?timeout=0&filter={json.dumps(SYNC_FILTER, separators=(',', ':'))}"


SYNC_FILTER = {"room": {"timeline": {"limit": 100}}, "presence": {"types": []}}


def one_time_keys(user: User, count: int) -> dict[str, Any]:
    """Signed Curve25519 keys, as `/keys/upload` of an Olm library has them (the signature is not checked)."""

    def random_base64(size: int) -> str:
        return base64.b64encode(os.urandom(size)).decode().rstrip("=")

    signer = f"ed25519:{user.device_id}"
    return {
        f"signed_curve25519:AAAA{number:02X}": {
            "key": random_base64(32),
            "signatures": {user.user_id: {signer: random_base64(64)}},
        }
        for number in range(count)
    }


class BlockwiseTestCase(SynapseTestCase):
    """What both networks have to carry."""

    async def fetch_big_sync(self, client: LowBandwidthClient) -> None:
        user, over_http = full_account(self)
        self.assertGreater(len(json.dumps(over_http)), BIG)
        query = {"timeout": "0", "filter": json.dumps(SYNC_FILTER, separators=(",", ":"))}
        body = await self.ask(client, "GET", f"{CLIENT}/sync", query=query, token=user.token, timeout=120)
        (room,) = over_http["rooms"]["join"]
        expected = [event["event_id"] for event in over_http["rooms"]["join"][room]["timeline"]["events"]]
        events = body["rooms"]["join"][room]["timeline"]["events"]
        self.assertEqual([event["event_id"] for event in events], expected)
        self.assertEqual(
            [event["content"] for event in events],
            [event["content"] for event in over_http["rooms"]["join"][room]["timeline"]["events"]],
        )
        await self.assert_run(r"GET \S+/sync\S* CoAP", 1)

    async def upload_big_keys(self, client: LowBandwidthClient, patience: float = 120) -> None:
        user = self.user()
        keys = one_time_keys(user, 300)
        body = {"one_time_keys": keys}
        self.assertGreater(len(json.dumps(body)), 60_000)
        path = f"{CLIENT}/keys/upload"
        answer = await self.ask(client, "POST", path, body, token=user.token, timeout=patience)
        self.assertEqual(answer["one_time_key_counts"]["signed_curve25519"], 300)
        claimed = user.http(
            "POST",
            f"{CLIENT}/keys/claim",
            {"one_time_keys": {user.user_id: {user.device_id: "signed_curve25519"}}},
        )
        ((name, key),) = claimed["one_time_keys"][user.user_id][user.device_id].items()
        self.assertEqual(key, keys[name])
        await self.assert_run(r"POST \S+/keys/upload", 1)


class GoodNetworkTests(BlockwiseTestCase):
    async def test_sync_of_300_kilobytes_by_block2(self) -> None:
        client = self.client(q_block=False, deflate=False)
        await self.fetch_big_sync(client)
        # Each block is a datagram of its own, there and back.
        self.assertGreater(client.counters.datagrams_received, BIG // 1024)

    async def test_keys_upload_of_60_kilobytes_by_block1(self) -> None:
        client = self.client(q_block=False)
        await self.upload_big_keys(client)
        # 300 keys of about 190 bytes of CBOR.
        self.assertGreater(client.counters.datagrams_sent, 50)

    async def test_many_large_transfers_on_one_association(self) -> None:
        user, _ = full_account(self)
        client = self.client()
        query = {"timeout": "0", "filter": json.dumps(SYNC_FILTER, separators=(",", ":"))}
        path = f"{CLIENT}/sync"
        bodies = await gatherResults(
            [self.ask_later(client, path, query, user.token, number) for number in range(4)]
        )
        read = [
            [
                event["event_id"]
                for room in body["rooms"]["join"].values()
                for event in room["timeline"]["events"]
            ]
            for body in bodies
        ]
        self.assertEqual(len(read[0]), 100)
        self.assertEqual(read, [read[0]] * 4)

    def ask_later(self, client: Any, path: str, query: Any, token: str, number: int) -> Any:
        # A query of its own makes it a resource of its own.
        mine = {**query, "set_presence": ("online", "offline", "unavailable", "online")[number]}
        return Deferred.fromCoroutine(self.ask(client, "GET", path, query=mine, token=token, timeout=120))

    async def test_a_client_with_small_blocks_gets_small_blocks(self) -> None:
        peer = await self.raw()
        options = path_options("/_matrix/client/versions").with_option(
            OptionNumber.BLOCK2, Block(0, False, 2).encode()
        )
        payload, number = b"", 0
        while True:
            peer.request(Code.GET, options, token=bytes([number + 1]))
            response = await peer.response(bytes([number + 1]))
            self.assertEqual(response.code, Code.CONTENT)
            block = Block.decode(response.options.get(OptionNumber.BLOCK2) or b"")
            self.assertEqual((block.number, block.szx), (number, 2))
            self.assertLessEqual(len(response.payload), 64)
            payload += response.payload
            if not block.more:
                break
            number += 1
            options = options.replacing(OptionNumber.BLOCK2, Block(number, False, 2).encode())
        _, versions = self.homeserver.request("GET", "/_matrix/client/versions")
        self.assertEqual(cbor.decode(payload).value, versions)

    async def test_a_missing_block_is_4_08_and_a_late_start_too(self) -> None:
        user = self.user()
        token = (256, user.token.encode())
        put = path_options(f"{CLIENT}/rooms/!r:localhost/send/m.room.message/1").with_option(*token)
        put = put.with_option(OptionNumber.CONTENT_FORMAT, encode_uint(60))
        peer = await self.raw()
        peer.request(Code.PUT, put.with_option(OptionNumber.BLOCK1, Block(3, True, 6).encode()), b"x" * 1024)
        self.assertEqual((await peer.response()).code, Code.REQUEST_ENTITY_INCOMPLETE)
        get = path_options(f"{CLIENT}/sync").with_option(*token)
        peer.request(
            Code.GET, get.with_option(OptionNumber.BLOCK2, Block(5, False, 6).encode()), token=b"\x02"
        )
        self.assertEqual((await peer.response(b"\x02")).code, Code.REQUEST_ENTITY_INCOMPLETE)
        self.assertEqual(self.logged_requests("CoAP"), [], "nothing reached Synapse")

    async def test_a_body_over_the_limit_is_4_13_with_size1_before_it_is_whole(self) -> None:
        user = self.user()
        put = path_options(f"{CLIENT}/keys/upload").with_option(256, user.token.encode())
        put = put.with_option(OptionNumber.CONTENT_FORMAT, encode_uint(60))
        peer = await self.raw()
        first = put.with_option(OptionNumber.SIZE1, encode_uint(5_000_000))
        peer.request(
            Code.POST, first.with_option(OptionNumber.BLOCK1, Block(0, True, 6).encode()), b"x" * 1024
        )
        response = await peer.response()
        self.assertEqual(response.code, Code.REQUEST_ENTITY_TOO_LARGE)
        self.assertEqual(response.options.get_uint(OptionNumber.SIZE1), 1024 * 1024)

    async def test_synapse_has_its_own_opinion_of_sizes(self) -> None:
        # An event may have 65,536 bytes; CoAP carries more, and Synapse says no.
        user = self.user()
        room = user.room()
        response = await self.client().request(
            "PUT",
            f"{CLIENT}/rooms/{room}/send/m.room.message/1",
            json={"msgtype": "m.text", "body": "x" * 70_000},
            token=user.token,
        )
        self.assertEqual((response.status, response.body["errcode"]), (413, "M_TOO_LARGE"))


class BadNetworkTests(BlockwiseTestCase):
    kind = "brisk"

    def stormy_client(self, seed: int) -> tuple[LowBandwidthClient, LossyRelay]:
        relay = self.relay(BAD, seed)
        return self.client(relay.port, tuning=SMALL_WORLD, q_block=False), relay

    def assert_stormy(self, relay: LossyRelay, least: int) -> None:
        """Each misfortune has happened that often, both ways together."""
        up, down = relay.to_server.counters, relay.to_client.counters
        for name in ("lost", "duplicated", "held_back"):
            self.assertGreaterEqual(getattr(up, name) + getattr(down, name), least, (name, up, down))

    async def test_sync_of_300_kilobytes_by_block2(self) -> None:
        client, relay = self.stormy_client(3)
        await self.fetch_big_sync(client)
        self.assert_stormy(relay, 100)

    async def test_keys_upload_of_60_kilobytes_by_block1(self) -> None:
        client, relay = self.stormy_client(4)
        await self.upload_big_keys(client)
        self.assert_stormy(relay, 20)

    async def test_nothing_is_lost_and_nothing_sent_twice(self) -> None:
        user = self.user()
        room = user.room()
        client, relay = self.stormy_client(5)

        async def send(number: int) -> str:
            path = f"{CLIENT}/rooms/{room}/send/m.room.message/t{number}"
            body = {"msgtype": "m.text", "body": f"{number}"}
            answer = await self.ask(client, "PUT", path, body, token=user.token, timeout=120)
            return str(answer["event_id"])

        sent = await gatherResults([Deferred.fromCoroutine(send(number)) for number in range(40)])
        self.assertEqual(len(set(sent)), 40)
        history = user.http("GET", f"{CLIENT}/rooms/{room}/messages?dir=b&limit=200")
        texts = [e["content"]["body"] for e in history["chunk"] if e["type"] == "m.room.message"]
        self.assertEqual(sorted(texts, key=int), [str(number) for number in range(40)])
        await self.assert_run(r"PUT \S+/send/", 40)
        self.assert_stormy(relay, 10)

    async def test_requests_without_a_transaction_id_are_run_once(self) -> None:
        # POST /createRoom makes a room each time it is run: this is what deduplication is for.
        user, guest = self.user(), self.user()
        client, relay = self.stormy_client(6)
        rooms = []
        for number in range(12):
            body = await self.ask(
                client, "POST", f"{CLIENT}/createRoom", {"name": f"{number}"}, token=user.token, timeout=120
            )
            rooms.append(body["room_id"])
        self.assertEqual(len(set(rooms)), 12)
        joined = user.http("GET", f"{CLIENT}/joined_rooms")["joined_rooms"]
        self.assertEqual(sorted(joined), sorted(rooms))
        await self.assert_run(r"POST \S+/createRoom \S*CoAP", 12)

        invitation = {"user_id": guest.user_id}
        await self.ask(client, "POST", f"{CLIENT}/rooms/{rooms[0]}/invite", invitation, token=user.token)
        guests_client = self.client(relay.port, tuning=SMALL_WORLD)
        await self.ask(guests_client, "POST", f"{CLIENT}/rooms/{rooms[0]}/join", {}, token=guest.token)
        await self.ask(guests_client, "POST", f"{CLIENT}/rooms/{rooms[0]}/leave", {}, token=guest.token)
        await self.assert_run(r"POST \S+/(invite|join|leave) ", 3)
        history = user.http("GET", f"{CLIENT}/rooms/{rooms[0]}/messages?dir=b&limit=50")
        steps = [
            event["content"]["membership"]
            for event in reversed(history["chunk"])
            if event["type"] == "m.room.member" and event["state_key"] == guest.user_id
        ]
        self.assertEqual(steps, ["invite", "join", "leave"])
        self.assert_stormy(relay, 5)

    async def test_a_conversation(self) -> None:
        alice, bob = self.user(), self.user()
        room = alice.room(preset="public_chat")
        first, relay = self.stormy_client(7)
        second = self.client(relay.port, tuning=SMALL_WORLD)
        await self.ask(second, "POST", f"{CLIENT}/join/{room}", {}, token=bob.token)
        synced = await self.ask(second, "GET", f"{CLIENT}/sync", query={"timeout": "0"}, token=bob.token)
        heard = []
        for number in range(5):
            path = f"{CLIENT}/rooms/{room}/send/m.room.message/t{number}"
            await self.ask(first, "PUT", path, {"msgtype": "m.text", "body": str(number)}, token=alice.token)
            query = {"since": synced["next_batch"], "timeout": "20000"}
            synced = await self.ask(second, "GET", f"{CLIENT}/sync", query=query, token=bob.token)
            for event in synced["rooms"]["join"][room]["timeline"]["events"]:
                heard.append(event["content"]["body"])
        self.assertEqual(heard, ["0", "1", "2", "3", "4"])


class PayloadTests(SynapseTestCase):
    async def test_a_small_answer_is_one_datagram(self) -> None:
        user = self.user()
        peer = await self.raw()
        options = path_options(f"{CLIENT}/account/whoami").with_option(256, user.token.encode())
        peer.request(Code.GET, options)
        response = await peer.response()
        self.assertNotIn(OptionNumber.BLOCK2, response.options)
        self.assertEqual(cbor_value(response)["user_id"], user.user_id)
