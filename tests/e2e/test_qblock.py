# SPDX-License-Identifier: AGPL-3.0-or-later
"""Large bodies many blocks at a time (RFC 9177): a /sync of 300 KB down, a keys/upload of 60 KB up, on good and bad
networks, as the client library does it by itself."""

from __future__ import annotations

from synapse_lb.client.client import LowBandwidthClient
from synapse_lb.coap.block import Block
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.testing.lossy import Weather
from tests.e2e.harness import CLIENT, path_options
from tests.e2e.test_blockwise import BIG, SMALL_WORLD, BlockwiseTestCase, full_account

LOSSY = Weather(loss=0.2)


class GoodNetworkTests(BlockwiseTestCase):
    """Nothing is lost."""

    async def test_sync_of_300_kilobytes_by_q_block2(self) -> None:
        client = self.client(deflate=False)
        await self.fetch_big_sync(client)
        self.assertGreater(client.counters.datagrams_received, BIG // 1100)
        # One request yields many blocks: with Block2 there is one for each.
        self.assertLess(client.counters.datagrams_sent, client.counters.datagrams_received // 2)

    async def test_keys_upload_of_60_kilobytes_by_q_block1(self) -> None:
        client = self.client()
        await self.upload_big_keys(client)
        self.assertGreater(client.counters.datagrams_sent, 50)

    async def test_the_server_says_that_it_knows_q_block(self) -> None:
        _, versions = self.homeserver.request("GET", "/_matrix/client/versions")
        self.assertEqual(versions["org.matrix.msc3079.low_bandwidth"]["q_block"], 1)

    async def test_a_client_asks_for_blocks_by_itself(self) -> None:
        user, _ = full_account(self)
        peer = await self.raw()
        options = path_options(f"{CLIENT}/sync").with_option(256, user.token.encode())
        offer = options.with_option(OptionNumber.Q_BLOCK2, Block(0, False, 6).encode())
        peer.request(Code.GET, offer)
        first = await peer.response()
        self.assertEqual(first.code, Code.CONTENT)
        block = Block.decode(first.options.get(OptionNumber.Q_BLOCK2) or b"")
        self.assertEqual((block.number, block.more, len(first.payload)), (0, True, 1024))
        wanted = options.with_option(OptionNumber.Q_BLOCK2, Block(3, False, 6).encode())
        wanted = wanted.with_option(OptionNumber.Q_BLOCK2, Block(5, False, 6).encode())
        peer.request(Code.GET, wanted, token=b"\x02", con=False)
        got = [await peer.response(b"\x02") for _ in range(2)]
        numbers = [Block.decode(each.options.get(OptionNumber.Q_BLOCK2) or b"").number for each in got]
        self.assertEqual(sorted(numbers), [3, 5])
        self.assertEqual(len(self.logged_requests(r"GET \S+/sync\S* CoAP")), 1)


class BadNetworkTests(BlockwiseTestCase):
    """A fifth of the datagrams is lost in each direction."""

    kind = "brisk"
    timeout = 180

    def lossy_client(self, seed: int) -> LowBandwidthClient:
        self.storm = self.relay(LOSSY, seed)
        return self.client(self.storm.port, tuning=SMALL_WORLD)

    def assert_q_block_was_used(self, client: LowBandwidthClient) -> None:
        channel = client._keeper.current
        assert channel is not None
        counters = channel.endpoint_counters
        self.assertGreater(counters.blocks_recovered, 0, "only Q-Block asks for a block by its name again")
        self.assertEqual(counters.q_block_fallbacks, 0)

    def assert_lossy(self, least: int) -> None:
        up, down = self.storm.to_server.counters, self.storm.to_client.counters
        self.assertGreaterEqual(up.lost + down.lost, least, (up, down))

    async def test_sync_of_300_kilobytes_by_q_block2(self) -> None:
        client = self.lossy_client(3)
        await self.fetch_big_sync(client)
        self.assert_lossy(50)
        self.assert_q_block_was_used(client)

    async def test_keys_upload_of_60_kilobytes_by_q_block1(self) -> None:
        client = self.lossy_client(4)
        await self.upload_big_keys(client)
        self.assert_lossy(10)
        self.assert_q_block_was_used(client)


class RefusedTests(BlockwiseTestCase):
    """A listener without Q-Block: the client does without."""

    kind = "no-q-block"

    async def test_both_ways(self) -> None:
        _, versions = self.homeserver.request("GET", "/_matrix/client/versions")
        self.assertNotIn("q_block", versions["org.matrix.msc3079.low_bandwidth"])
        client = self.client(deflate=False)
        await self.fetch_big_sync(client)
        self.assertGreater(client.counters.datagrams_sent, BIG // 1100)
        await self.upload_big_keys(client)
