# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which requests offer Q-Block (RFC 9177) and what that costs: three bytes, and nothing on small ones."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.client import LowBandwidthClient
from synapse_lb.client.large import may_be_large
from synapse_lb.coap.block import Block
from synapse_lb.coap.endpoint import Endpoint
from synapse_lb.coap.events import CoapRequest, CoapResponse
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Tuning
from tests.client.harness import LoopbackTestCase, PlainServer
from tests.client.journal import CBOR

CLIENT = "/_matrix/client"


class MayBeLargeTests(SynchronousTestCase):
    """The choice by path and query."""

    def test_large(self) -> None:
        for path in (
            "/r0/sync",
            "/v3/sync?timeout=0",
            "/v3/rooms/!a%3Ab/messages?dir=b",
            "/v3/rooms/!a:b/messages",
            "/v3/rooms/!a:b/members",
            "/v3/rooms/!a:b/state",
            "/v1/rooms/!a:b/relations/$e/m.thread",
            "/v3/keys/query",
            "/unstable/org.matrix.simplified_msc3575/sync",
        ):
            self.assertTrue(may_be_large(CLIENT + path, ()), path)
        self.assertTrue(may_be_large("/7", (("timeout", "0"),)))
        self.assertTrue(may_be_large("/7", (("since", "s1"), ("full_state", "true"))))

    def test_small(self) -> None:
        for path in (
            "/versions",
            "/v3/sync?since=s1",
            "/v3/rooms/!a:b/send/m.room.message/1",
            "/v3/rooms/!a:b/state/m.room.name/",
            "/v3/rooms/!a:b/messages/x",
            "/v3/account/whoami",
            "/v3/keys/upload",
            "/v3/profile/keys/query",
        ):
            self.assertFalse(may_be_large(CLIENT + path, ()), path)
        self.assertFalse(may_be_large("/7", (("since", "s1"),)))
        self.assertFalse(may_be_large("/elsewhere/keys/query", ()))


class RefusalTests(LoopbackTestCase):
    """A server without Q-Block."""

    async def test_offered_once_in_the_life_of_a_client(self) -> None:
        server = self.start_server(PlainServer(self.answer))
        client = self.make_client(server, key_version=None)
        for _ in range(2):
            await client.request("GET", "/_matrix/client/v3/sync", token="t")
        self.assertEqual(self.fallbacks(client), 1)
        await server.stop()
        server = self.start_server(PlainServer(self.answer), port=server.port)
        await client.request("GET", "/_matrix/client/v3/sync", token="t")
        self.assertEqual((self.fallbacks(client), server.dtls.counters.handshakes_completed), (0, 1))

    async def test_offered_again_where_something_else_was_refused(self) -> None:
        """4.02 without the offer too: nothing is known of Q-Block."""
        handler = PlainServer(lambda request: CoapResponse(Code.BAD_OPTION))
        client = self.make_client(self.start_server(handler), key_version=None)
        for fallbacks in (1, 2):
            await client.request("GET", "/_matrix/client/v3/sync", token="t")
            self.assertEqual(self.fallbacks(client), fallbacks)

    def answer(self, request: CoapRequest) -> CoapResponse:
        """An empty object."""
        return CoapResponse(Code.CONTENT, CBOR, b"\xa0")

    def fallbacks(self, client: LowBandwidthClient) -> int:
        """How often Q-Block was offered in vain on the association in use."""
        channel = client._keeper.current
        assert channel is not None
        return channel.endpoint_counters.q_block_fallbacks


class CostTests(SynchronousTestCase):
    """The bytes on the wire."""

    def first_datagram(self, request: CoapRequest, *, q_block: bool) -> bytes:
        endpoint = Endpoint(random=random.Random(1), tuning=Tuning(q_block=q_block))
        endpoint.set_peer("server", q_block=q_block, now=0.0)
        endpoint.request("server", request, 0.0)
        ((_, datagram),) = endpoint.datagrams_to_send(0.0)[:1]
        return datagram

    def request(self, payload: bytes = b"", *, q_block: bool) -> CoapRequest:
        options = Options.of((OptionNumber.URI_PATH, b"7"), (OptionNumber.URI_QUERY, b"since=s1"))
        return CoapRequest(Code.PUT if payload else Code.GET, options, payload, q_block=q_block)

    def test_without_an_offer_each_byte_is_the_same(self) -> None:
        for payload in (b"", b"x" * 1024):
            request = self.request(payload, q_block=False)
            with_it, without = (self.first_datagram(request, q_block=each) for each in (True, False))
            # Not even the token or the message id may differ in length.
            one, other = Message.decode(with_it), Message.decode(without)
            self.assertEqual(len(with_it), len(without))
            self.assertEqual((one.options, one.payload), (other.options, other.payload))

    def test_the_offer_takes_three_bytes(self) -> None:
        offering, plain = (
            self.first_datagram(self.request(q_block=each), q_block=True) for each in (True, False)
        )
        self.assertEqual(len(offering), len(plain) + 3)
        offered = Message.decode(offering).options.get(OptionNumber.Q_BLOCK2)
        self.assertEqual(offered, Block(0, False, 6).encode())

    def test_a_body_of_several_blocks_is_offered_anyway(self) -> None:
        datagram = self.first_datagram(self.request(b"x" * 1025, q_block=False), q_block=True)
        self.assertIn(OptionNumber.Q_BLOCK1, Message.decode(datagram).options)
