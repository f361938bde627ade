# SPDX-License-Identifier: AGPL-3.0-or-later
"""Clients whose address changes in mid-flight: real UDP, a relay as the NAT, the server's port and gateway."""

from __future__ import annotations

from functools import partial

from twisted.internet.defer import Deferred

from synapse_lb.client import ClientVerification, LowBandwidthClient
from synapse_lb.msc3079.messages import MatrixResponse
from synapse_lb.testing.lossy import LossyRelay
from tests.client.harness import REACTOR, LoopbackTestCase, RecordingGateway, Server, until

WAIT = "/_matrix/client/v3/wait"
SYNC = "/_matrix/client/v3/sync"


class MovedTests(LoopbackTestCase):
    """Requests go on, answers that were pending arrive, and there is no new handshake."""

    def setUp(self) -> None:
        super().setUp()
        self.gateway = RecordingGateway(self.dispatcher)
        self.server: Server = self.start_server(self.gateway)

    def relayed_client(self) -> tuple[LowBandwidthClient, LossyRelay]:
        """A client behind a NAT."""
        relay = LossyRelay(REACTOR, server=("127.0.0.1", self.server.port))
        relay.start()
        self.addCleanup(relay.stop)
        client = LowBandwidthClient(
            REACTOR,
            f"127.0.0.1:{relay.port}",
            verification=ClientVerification.ca_file(self.certificate.path),
        )
        self.addCleanup(client.close)
        return client, relay

    async def asked(self, client: LowBandwidthClient) -> Deferred[MatrixResponse]:
        """A request that the server works on and has acknowledged, so that its answer will be a separate one."""
        await client.connect()
        await until(lambda: client.session)  # the handshake is complete
        pending = client.request("GET", WAIT, token="t")
        await until(lambda: self.dispatcher.waiting)
        before = client.counters.datagrams_received
        await until(lambda: client.counters.datagrams_received > before)
        return pending

    def delivered(self, relay: LossyRelay, count: int) -> bool:
        """Whether so many datagrams have come to the client."""
        return relay.to_client.counters.delivered > count

    def answer(self) -> None:
        """The server has finished its work."""
        self.dispatcher.waiting.pop().callback(MatrixResponse(200, {"at": "last"}))

    def assert_one_handshake(self, *, moves: int) -> None:
        counters = self.server.dtls.counters
        self.assertEqual((counters.handshakes_started, counters.associations_moved), (1, moves))
        self.assertEqual((self.server.dtls.associations, self.gateway.counters.moved), (1, moves))

    async def test_requests_go_on_behind_a_nat_that_forgets(self) -> None:
        client, relay = self.relayed_client()
        addresses = set()
        for number in range(4):
            response = await client.request("GET", f"/_matrix/client/v3/{number}", token="t")
            self.assertEqual(response.body["token"], "t")
            addresses.add(str(self.server.dtls.peer_address(1)))
            relay.forget_client_ports()
        self.assertEqual(len(addresses), 4)
        self.assert_one_handshake(moves=3)

    async def test_a_pending_answer_arrives_at_the_new_address(self) -> None:
        client, relay = self.relayed_client()
        pending = await self.asked(client)
        relay.forget_client_ports()
        await client.request("GET", "/_matrix/client/versions")
        self.answer()
        self.assertEqual((await pending).body, {"at": "last"})
        self.assert_one_handshake(moves=1)

    async def test_an_answer_that_was_lost_at_the_old_address_is_repeated_at_the_new_one(self) -> None:
        client, relay = self.relayed_client()
        pending = await self.asked(client)
        relay.forget_client_ports()
        self.answer()
        await client.request("GET", "/_matrix/client/versions")
        self.assertFalse(pending.called)
        self.assertEqual((await pending).body, {"at": "last"})
        self.assertGreater(self.gateway.endpoint.counters.retransmissions, 0)
        self.assert_one_handshake(moves=1)

    async def test_a_large_answer_across_a_move(self) -> None:
        """The new address is proven after one round trip, and then gets as much as any."""
        client, relay = self.relayed_client()
        big = client.request("GET", "/_matrix/client/v3/big", token="t")
        for count in (100, 200):
            await until(partial(self.delivered, relay, count))
            relay.forget_client_ports()
        self.assertEqual(len((await big).body["body"]), 300_000)
        self.assert_one_handshake(moves=2)
        entry = self.server.dtls._table.get(1)
        assert entry is not None
        self.assertIsNone(entry.path.credit, "proven")

    async def test_rebind_tells_the_server_at_once(self) -> None:
        """An answer comes to the new socket although the client has nothing else to say."""
        client = self.make_client(self.server)
        pending = await self.asked(client)
        before = self.server.dtls.peer_address(1)
        client.rebind()
        await until(lambda: self.server.dtls.counters.associations_moved)
        self.assertNotEqual(self.server.dtls.peer_address(1), before)
        self.answer()
        self.assertEqual((await pending).body, {"at": "last"})
        self.assert_one_handshake(moves=1)

    async def test_rebind_without_an_association(self) -> None:
        client = self.make_client(self.server)
        client.rebind()
        await client.request("GET", "/_matrix/client/versions")
        self.assert_one_handshake(moves=0)
