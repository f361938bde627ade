# SPDX-License-Identifier: AGPL-3.0-or-later
"""Observations of a real Synapse, message by message, and what is left of them when they have ended (RFC 7641)."""

from __future__ import annotations

import re
import urllib.request
from itertools import pairwise
from typing import Any

from synapse_lb.coap.block import Block
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.observe import is_newer
from synapse_lb.coap.options import Options, encode_uint
from synapse_lb.msc3079.cbor import decode
from synapse_lb.msc3079.mapping import decode_response, encode_request
from synapse_lb.testing.throwaway import free_ports
from tests.e2e.harness import RawPeer
from tests.homeserver.test_observe import Person, until_equal
from tests.homeserver.test_synapse import V3, SynapseTestCase

QUIET = '{"presence":{"types":[]}}'
LONG = '{"presence":{"types":[]},"room":{"timeline":{"limit":50}}}'


class WireTestCase(SynapseTestCase):
    """Has a user, and associations without a client library."""

    def options(self) -> dict[str, Any]:
        ports = free_ports()
        address = {"bind_addresses": ["127.0.0.1"]}
        narrow = {"limits": {"max_observations_per_peer": 2, "max_observations_per_user": 3}}
        listeners = [
            {"type": "http", "port": ports.http, "resources": [{"names": ["client", "metrics"]}], **address},
            {"type": "lowbandwidth", "port": ports.lowbandwidth, **narrow, **address},
        ]
        return {
            "ports": ports,
            "presence": False,
            "extra_config": {"enable_metrics": True, "listeners": listeners},
        }

    def setUp(self) -> None:
        super().setUp()
        self.alice = Person(self.homeserver)
        self.errors = len(self.homeserver.error_lines())

    def tearDown(self) -> None:
        self.assertEqual(self.homeserver.error_lines()[self.errors :], [])

    async def peer(self) -> RawPeer:
        """A new association."""
        peer = RawPeer()
        self.addCleanup(peer.close)
        return await peer.open("127.0.0.1", self.homeserver.ports.lowbandwidth)

    def observe(
        self,
        peer: RawPeer,
        token: bytes = b"\x01",
        *,
        path: str = f"{V3}/sync",
        since: str | None = None,
        filter: str = QUIET,
        value: int = 0,
    ) -> Options:
        """Send a registration, or its end; return the options of it."""
        query = [("since", since or self.alice.since()), ("filter", filter)]
        code, pairs, _ = encode_request("GET", path, query, token=self.alice.token)
        options = Options.of(*pairs)
        peer.request(code, options.with_option(OptionNumber.OBSERVE, encode_uint(value)), token=token)
        return options

    async def notification(
        self, peer: RawPeer, token: bytes = b"\x01", *, answer: Type = Type.ACK
    ) -> Message:
        """Wait for a notification, and acknowledge or reject it."""
        message = await peer.find(lambda m: m.token == token and m.code == Code.CONTENT, "notification")
        self.assertEqual(message.type, Type.CON)
        self.assertIn(OptionNumber.OBSERVE, message.options)
        peer.send(Message(answer, Code.EMPTY, message.message_id))
        return message

    def metric(self, name: str) -> float:
        """A metric of the listener."""
        with urllib.request.urlopen(f"{self.homeserver.http_url}/_synapse/metrics") as response:
            text = response.read().decode()
        found = re.search(rf"^synapse_lb_{name}\{{.*\}} (\S+)$", text, re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    async def assert_observed(self, count: int) -> None:
        """So many are observed."""
        await until_equal(lambda: self.metric("observations"), count)


class NotificationTests(WireTestCase):
    """What is sent."""

    async def test_each_path_and_rising_numbers(self) -> None:
        """The r0 path, which has a code, and the v3 path; Observe, Max-Age, and a message id of its own for each."""
        peer = await self.peer()
        self.observe(peer, b"\x01", path="/_matrix/client/r0/sync")
        self.observe(peer, b"\x02")
        numbers: dict[bytes, list[int]] = {b"\x01": [], b"\x02": []}
        message_ids = set()
        for value in range(4):
            for token, seen in numbers.items():
                message = await self.notification(peer, token)
                seen.append(message.options.get_uint(OptionNumber.OBSERVE) or 0)
                message_ids.add(message.message_id)
                self.assertEqual(message.options.get_uint(OptionNumber.MAX_AGE), 65535)
            self.alice.set_data(value)
        for token in numbers:
            await self.notification(peer, token)
        self.assertEqual(len(message_ids), 8)
        for seen in numbers.values():
            self.assertTrue(all(is_newer(b, 1.0, a, 0.0) for a, b in pairwise(seen)), seen)

    async def test_a_large_one_is_fetched_as_it_was_pushed(self) -> None:
        """Messages and syncs meanwhile change nothing of it; they are in the next one."""
        room = self.alice.room()
        since = self.alice.since()
        for number in range(5):
            self.alice.say(room, f"{number} " + "x" * 2000)
        peer = await self.peer()
        options = self.observe(peer, since=since, filter=LONG)
        first = await self.notification(peer)
        etag = first.options.get(OptionNumber.ETAG)
        block = Block.decode(first.options.get(OptionNumber.BLOCK2) or b"")
        self.assertTrue(block.more and etag)
        body, number = first.payload, 0
        while block.more:
            number += 1
            self.alice.say(room, f"meanwhile {number}")
            self.alice.http("GET", f"{V3}/sync?since={since}")
            peer.request(
                Code.GET,
                options.with_option(OptionNumber.BLOCK2, Block(number, False, block.szx).encode()),
                token=b"\x09",
            )
            further = await peer.response(b"\x09")
            block = Block.decode(further.options.get(OptionNumber.BLOCK2) or b"")
            self.assertEqual((block.number, further.options.get(OptionNumber.ETAG)), (number, etag))
            self.assertNotIn(OptionNumber.OBSERVE, further.options)
            body += further.payload
        events = decode(body).value["rooms"]["join"][room]["timeline"]["events"]
        self.assertEqual([event["content"]["body"].split()[0] for event in events], list("01234"))
        following = await self.notification(peer)
        self.assertIsNotNone(following)


class EndTests(WireTestCase):
    """Nothing is left."""

    async def test_a_reset(self) -> None:
        peer = await self.peer()
        self.observe(peer)
        await self.notification(peer)
        await self.assert_observed(1)
        self.alice.set_data(1)
        await self.notification(peer, answer=Type.RST)
        await self.assert_observed(0)
        self.assertIsNone(peer.lost)

    async def test_the_association_goes(self) -> None:
        peer = await self.peer()
        for token in (b"\x01", b"\x02"):
            self.observe(peer, token)
            await self.notification(peer, token)
        await self.assert_observed(2)
        peer.close()
        await self.assert_observed(0)

    async def test_the_same_token_again(self) -> None:
        """It takes the place of the old one, and sends at once what was not acknowledged."""
        peer = await self.peer()
        since = self.alice.since()
        self.observe(peer, since=since)
        await self.notification(peer)
        self.alice.set_data(1)
        unanswered = await peer.find(lambda m: m.token == b"\x01" and m.code == Code.CONTENT, "notification")
        self.observe(peer, since=since)
        again = await peer.find(
            lambda m: (
                m.token == b"\x01"
                and m.code == Code.CONTENT
                and m.message_id != unanswered.message_id
                and OptionNumber.OBSERVE in m.options
            ),
            "notification",
        )
        peer.send(Message(Type.ACK, Code.EMPTY, again.message_id))
        self.assertEqual(
            decode(again.payload).value["account_data"], decode(unanswered.payload).value["account_data"]
        )
        await self.assert_observed(1)

    async def test_deregistered(self) -> None:
        peer = await self.peer()
        self.observe(peer)
        first = await self.notification(peer)
        self.observe(peer, value=1)
        last = await peer.find(lambda m: m.type is Type.ACK and m.code == Code.CONTENT, "answer")
        self.assertNotIn(OptionNumber.OBSERVE, last.options)
        self.assertEqual(
            decode(last.payload).value, {"next_batch": decode(first.payload).value["next_batch"]}
        )
        await self.assert_observed(0)


class LimitTests(WireTestCase):
    """How many there may be."""

    async def test_of_an_association(self) -> None:
        """One too many is answered plainly."""
        peer = await self.peer()
        for token in (b"\x01", b"\x02"):
            self.observe(peer, token)
            await self.notification(peer, token)
        self.observe(peer, b"\x03")
        plain = await peer.response(b"\x03")
        self.assertEqual(plain.code, Code.CONTENT)
        self.assertNotIn(OptionNumber.OBSERVE, plain.options)
        await self.assert_observed(2)

    async def test_of_a_user(self) -> None:
        """The oldest of the same access token makes room."""
        peers = [await self.peer() for _ in range(4)]
        for peer in peers:
            self.observe(peer)
            await self.notification(peer)
        last = await peers[0].response()
        answer = decode_response(last.code, last.options, last.payload)
        self.assertEqual((answer.status, answer.body["errcode"]), (503, "M_LIMIT_EXCEEDED"))
        self.assertEqual(answer.retry_after, 60.0)
        await self.assert_observed(3)
