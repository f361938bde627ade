# SPDX-License-Identifier: AGPL-3.0-or-later
"""Q-Block over simulated links: how fast, how sparing, and whole whatever happens. The time is simulated, and the
same in each run."""

from __future__ import annotations

from collections import Counter

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.block import Block
from synapse_lb.coap.events import CoapResponse, RequestReceived, ResponseReceived
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits, Tuning
from synapse_lb.testing.simlink import LinkShape
from tests.coap.bulk import MEGABYTE, BulkSimulation, download, shape
from tests.coap.lockstep import body

PATIENT = Tuning(q_block=True, max_retransmit=20, non_max_retransmit=20, max_rto=8.0, response_timeout=4000.0)
BLOCKS = -(-MEGABYTE // 1024)


class _Recorder(BulkSimulation):
    """Counts how often each block of a body leaves its sender."""

    def __init__(self, way: LinkShape, *, handshake: bool = True, response: bytes = b"") -> None:
        self.blocks: Counter[tuple[str, int]] = Counter()
        super().__init__(way, handshake=handshake, response=response)

    def _transmit(self, receiver: object, sender: str, datagram: bytes) -> None:
        message = Message.decode(datagram)
        number = OptionNumber.Q_BLOCK2 if sender == "server" else OptionNumber.Q_BLOCK1
        value = message.options.get(number)
        if value is not None and message.payload:
            self.blocks[sender, Block.decode(value).number] += 1
        super()._transmit(self.client if sender == "server" else self.server, sender, datagram)


class _Base(SynchronousTestCase):
    def check(self, simulation: BulkSimulation) -> None:
        """The response is whole; in the end neither endpoint holds anything."""
        (event,) = simulation.client_events
        assert isinstance(event, ResponseReceived), event
        self.assertEqual(event.response.payload, simulation.response)
        self.assertEqual(len(simulation.requests), 1)
        self.clean(simulation)

    def clean(self, simulation: BulkSimulation) -> None:
        simulation.run()
        for endpoint in (simulation.client, simulation.server):
            self.assertTrue(endpoint.idle)
            self.assertEqual(endpoint.open_exchanges, 0)
            self.assertEqual(list(endpoint.peers), [])


class Speed(_Base):
    def test_against_block2(self) -> None:
        """RTT 200 ms, 1 % loss: at least 5 times as fast as Block2, for each of some seeds."""
        way = shape(rtt=0.2, loss=0.01)
        _, by_block = download(way, q_block=False)
        for seed in range(1, 9):
            simulation, seconds = download(way, seed=seed)
            self.check(simulation)
            self.assertLess(5 * seconds, by_block, seed)
            # What TCP reaches there with Reno is 1.22 * MSS / (RTT * sqrt(loss)), 89 kB/s (RFC 5348 section 3.1).
            self.assertGreater(MEGABYTE / seconds, 270_000, seed)

    def test_ways(self) -> None:
        """RTT 50 to 600 ms and 0 to 5 % loss: always 5 times as fast as one block in each round trip."""
        for rtt in (0.05, 0.2, 0.6):
            for loss in (0.0, 0.01, 0.05):
                simulation, seconds = download(shape(rtt=rtt, loss=loss))
                self.check(simulation)
                self.assertLess(5 * seconds, BLOCKS * rtt, (rtt, loss))

    def test_upload(self) -> None:
        """The same upwards, Confirmable: at least 5 times as fast as Block1."""
        seconds = {}
        for q_block in (True, False):
            simulation = BulkSimulation(shape(rtt=0.2, loss=0.01), q_block=q_block)
            payload = body(MEGABYTE)
            simulation.put(payload)
            seconds[q_block] = simulation.run_until_answered()
            self.assertEqual(simulation.requests[0].request.payload, payload)
            self.check(simulation)
        self.assertLess(5 * seconds[True], seconds[False])

    def test_lossy_upload(self) -> None:
        """60 KB upwards, with a fifth of the datagrams lost each way: losses are made good soon.

        A lost block must not make the others wait: their timeouts are their own, and the window's.
        """
        for confirmable, most in ((True, 6.0), (False, 25.0)):
            seconds = []
            for seed in range(20):
                simulation = BulkSimulation(shape(rtt=0.1, loss=0.2), seed=seed)
                payload = body(60_000, seed)
                simulation.put(payload, confirmable=confirmable)
                simulation.run_until_answered()
                self.assertEqual(simulation.requests[0].request.payload, payload)
                if isinstance(simulation.client_events[0], ResponseReceived):
                    seconds.append(simulation.now)
            # A Non-confirmable response has one chance to arrive.
            self.assertGreaterEqual(len(seconds), 20 if confirmable else 14)
            self.assertLess(sum(seconds) / len(seconds), most)


class Thrift(_Base):
    def test_datagrams_without_loss(self) -> None:
        """1 MB without loss: each block once, and one request for each set and a few more."""
        simulation, _ = download(shape())
        self.check(simulation)
        self.assertEqual(simulation.down.counters.sent, BLOCKS)
        self.assertLess(simulation.up.counters.sent, 1.2 * BLOCKS / 10)
        self.assertEqual(simulation.client.counters.blocks_recovered, 0)

    def test_losses_are_made_good_once(self) -> None:
        """With losses downwards only, each lost block leaves once more, and no other does."""
        up = shape(rtt=0.2)
        simulation, _ = download(shape(rtt=0.2, loss=0.05), up=up)
        self.check(simulation)
        self.assertEqual(simulation.down.counters.sent, BLOCKS + simulation.down.counters.lost)

    def test_slow_link(self) -> None:
        """1 kB/s, with any amount of buffer: no block leaves twice, and few wait."""
        for rate, size in ((1000, 40_000), (4000, 100_000), (20_000, 300_000)):
            simulation = _Recorder(shape(rate=rate, queue=None), response=body(size))
            simulation.get()
            seconds = simulation.run_until_answered()
            self.check(simulation)
            self.assertEqual(set(simulation.blocks.values()), {1}, rate)
            self.assertLess(simulation.down.counters.longest_wait, 0.6 + 2.2 * 1100 / rate, rate)
            # Nearly the whole time the link is busy with it.
            self.assertLess(seconds, 1.25 * simulation.down.counters.sent_bytes / rate + 1, rate)

    def test_very_slow_link(self) -> None:
        """125 B/s, 9 s for a block: once the first is here, no block is asked for before it is lost."""
        simulation = _Recorder(shape(rate=125, queue=None), handshake=False, response=body(10_000))
        simulation.client.set_peer("server", rtt=10.0, now=0.0)
        simulation.get()
        simulation.run_until_answered()
        self.check(simulation)
        self.assertEqual(set(simulation.blocks.values()), {1})

    def test_slow_upload(self) -> None:
        """The same upwards: no block leaves twice once the round trip is known."""
        simulation = _Recorder(shape(rate=1000, queue=None), handshake=False)
        simulation.client.set_peer("server", rtt=1.5, now=0.0)
        simulation.put(body(20_000))
        simulation.run_until_answered()
        self.check(simulation)
        self.assertEqual(set(simulation.blocks.values()), {1})
        self.assertLess(simulation.up.counters.longest_wait, 4.5)

    def test_shallow_buffer(self) -> None:
        """100 kB/s with room for ten datagrams: an eighth is lost at most, and the link is used."""
        simulation, seconds = download(shape(rate=100_000, queue=10_000))
        self.check(simulation)
        self.assertLess(simulation.down.counters.overflowed, BLOCKS / 8)
        self.assertGreater(MEGABYTE / seconds, 75_000)

    def test_very_shallow_buffer(self) -> None:
        """20 kB/s with room for five datagrams: hardly any is lost."""
        simulation, seconds = download(shape(rate=20_000, queue=5_000))
        self.check(simulation)
        self.assertLess(simulation.down.counters.overflowed, BLOCKS / 50)
        self.assertGreater(MEGABYTE / seconds, 18_000)

    def test_bufferbloat(self) -> None:
        """100 kB/s with any amount of buffer: what waits is a third of a second at most."""
        simulation, seconds = download(shape(rate=100_000, queue=None))
        self.check(simulation)
        self.assertLess(simulation.down.counters.longest_wait, 0.34)
        self.assertGreater(MEGABYTE / seconds, 80_000)

    def test_no_more_under_way_than_allowed(self) -> None:
        """`q_block_window` bounds what a client has asked for, on the longest of ways."""
        simulation = BulkSimulation(shape(rtt=2.0), limits=Limits(q_block_window=30), response=body(MEGABYTE))
        simulation.get()
        most = 0
        while not simulation.client_events:
            simulation.step()
            for exchange in simulation.client._core.exchanges.values():
                stream = getattr(exchange, "stream", None)
                if stream is not None:
                    most = max(most, len(stream.download._under_way))
        self.assertEqual(most, 30)
        self.check(simulation)


class Hardship(_Base):
    def _ways(self) -> list[tuple[LinkShape, int]]:
        return [
            (shape(rtt=0.1, loss=loss, jitter=jitter, duplication=0.1), seed)
            for loss in (0.0, 0.1, 0.2, 0.4)
            for jitter in (0.0, 0.3)
            for seed in range(3)
        ]

    def test_downloads(self) -> None:
        """0 to 40 % loss, duplication, reordering: the body is whole, and the request ran once."""
        for way, seed in self._ways():
            simulation = BulkSimulation(way, tuning=PATIENT, seed=seed, response=body(60_000, seed))
            simulation.get()
            simulation.run_until_answered()
            self.check(simulation)

    def test_uploads(self) -> None:
        for way, seed in self._ways():
            simulation = BulkSimulation(way, tuning=PATIENT, seed=seed, response=body(30_000, seed))
            payload = body(60_000, seed + 1)
            simulation.put(payload)
            simulation.run_until_answered()
            self.assertEqual(simulation.requests[0].request.payload, payload)
            self.check(simulation)

    def test_non_confirmable_uploads(self) -> None:
        """Non-confirmable sets: the request body is whole and runs once; the response has one chance to arrive."""
        for way, seed in self._ways():
            simulation = BulkSimulation(way, tuning=PATIENT, seed=seed)
            payload = body(60_000, seed + 1)
            simulation.put(payload, confirmable=False)
            simulation.run_until_answered()
            self.assertLessEqual(len(simulation.requests), 1)
            if way.loss < 0.3:
                (request,) = simulation.requests
                self.assertEqual(request.request.payload, payload)
                self.assertFalse(request.request.confirmable)
            self.clean(simulation)

    def test_blackouts(self) -> None:
        """5 s of nothing in the midst of it, both ways, and then it goes on."""
        way = shape(rtt=0.2, loss=0.02)
        dead = LinkShape(loss=1.0)
        for upwards in (False, True):
            simulation = BulkSimulation(way, response=body(10 if upwards else 300_000))
            payload = body(300_000, 2)
            if upwards:
                simulation.put(payload)
            else:
                simulation.get()
            for start in (0.7, 8.0):

                def cut(simulation: BulkSimulation = simulation) -> None:
                    simulation.down.shape = simulation.up.shape = dead

                def mend(simulation: BulkSimulation = simulation) -> None:
                    simulation.down.shape = simulation.up.shape = way

                simulation.later(start, cut)
                simulation.later(start + 5, mend)
            simulation.run_until_answered()
            self.check(simulation)

    def test_several_at_once(self) -> None:
        """Transfers of one peer share the way; each is whole, and plain requests get through meanwhile."""
        simulation = BulkSimulation(shape(loss=0.02), response=body(200_000))
        paths = [Options.of((OptionNumber.URI_PATH, bytes((97 + index,)))) for index in range(8)]
        for index, path in enumerate(paths):
            if index % 2:
                simulation.get(options=path)
            else:
                simulation.put(body(100_000, index), options=path)
        simulation.run()
        self.assertEqual(len(simulation.requests), 8)
        self.assertEqual(len(simulation.client_events), 8)
        for event in simulation.client_events:
            assert isinstance(event, ResponseReceived), event
            self.assertEqual(event.response.payload, simulation.response)
        self.clean(simulation)

    def test_very_many_blocks(self) -> None:
        """More blocks than tokens are kept: the tokens of those that arrived long ago are given back."""
        simulation = BulkSimulation(shape(loss=0.01), limits=Limits(block_szx=0))
        payload = body(48_000)
        simulation.put(payload)
        most = 0
        while not simulation.client_events:
            simulation.step()
            state = simulation.client._core.peers["server"]
            most = max(most, len(state.requesting))
            self.assertIn(len(state.requesting) - state.further_tokens, (0, 1))
        self.assertEqual(simulation.requests[0].request.payload, payload)
        self.assertTrue(1000 < most <= 1024 + 256 + 1, most)
        self.check(simulation)

    def test_overtaking_is_learnt(self) -> None:
        """Blocks that overtake one another are not lost: after some have been asked for twice, few more are."""
        simulation, _ = download(shape(rtt=0.1, jitter=0.15))
        self.check(simulation)
        self.assertLess(simulation.client.counters.blocks_recovered, BLOCKS / 50)

    def test_a_server_without(self) -> None:
        """A server that does not know the option: the same bodies, by Block1 and Block2."""
        simulation = BulkSimulation(shape(loss=0.02), server_tuning=Tuning(), response=body(30_000))
        payload = body(30_000, 3)
        simulation.put(payload)
        simulation.run()
        simulation.get()
        simulation.run()
        self.assertEqual([event.request.payload for event in simulation.requests], [payload, b""])
        for event in simulation.client_events:
            assert isinstance(event, ResponseReceived), event
            self.assertEqual(event.response.payload, simulation.response)
        self.assertEqual(simulation.client.counters.q_block_fallbacks, 1)
        self.clean(simulation)

    def test_a_slow_application(self) -> None:
        """The response comes separately, after a minute."""
        simulation = BulkSimulation(shape(loss=0.05))
        response = body(100_000)

        def answer_later(_simulation: object, event: RequestReceived) -> None:

            simulation.respond_later(60.0, event.exchange, CoapResponse(Code.CONTENT, payload=response))

        simulation._application = answer_later
        simulation.get()
        simulation.run_until_answered()
        (event,) = simulation.client_events
        assert isinstance(event, ResponseReceived)
        self.assertEqual(event.response.payload, response)
        self.clean(simulation)
