# SPDX-License-Identifier: AGPL-3.0-or-later
"""Links so slow that the size of a message decides how long it takes: nothing is sent twice for nothing."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.bytetime import ByteTime
from synapse_lb.coap.events import CoapResponse, RequestReceived
from synapse_lb.coap.numbers import Code
from synapse_lb.coap.rto import RetransmissionTimeout
from synapse_lb.coap.tuning import Tuning
from tests.coap.bulk import BulkSimulation, shape
from tests.coap.lockstep import body

RATES = (12.5, 37.5, 150.0, 1200.0)
"""B/s."""


class ByteTimeTests(SynchronousTestCase):
    def test_line(self) -> None:
        """Half a second, and 10 ms for each byte."""
        line = ByteTime()
        for size in (100, 1200, 100, 300, 1200, 100):
            line.sample(size, 0.5 + size * 0.01)
        self.assertAlmostEqual(line.seconds(), 0.01)

    def test_noise(self) -> None:
        """A way that takes as long for any size: jitter is not taken for bytes, by and large."""
        line, source = ByteTime(), random.Random(1)
        for _ in range(200):
            line.sample(source.choice((100, 1200)), 0.5 + source.uniform(0, 0.05))
        self.assertLess(line.seconds() * 1100, 0.05)

    def test_one_size(self) -> None:
        """As long as all were of one size, the worst is assumed: that it was the bytes that took the time."""
        line = ByteTime()
        self.assertEqual((line.seconds(), line.further(1000)), (0.0, 0.0))
        for _ in range(10):
            line.sample(200, 2.0)
        self.assertAlmostEqual(line.seconds(), 0.01)
        self.assertAlmostEqual(line.further(1200), 1.25 * 10.0)
        self.assertEqual(line.further(100), 0.0)

    def test_what_was_learnt_is_kept(self) -> None:
        """Many messages of one size later, and it is still known what a byte takes."""
        line = ByteTime()
        for size in (100, 1200, 100, 1200):
            line.sample(size, 0.5 + size * 0.01)
        for _ in range(1000):
            line.sample(100, 1.5)
        self.assertApproximates(line.seconds(), 0.01, 0.001)

    def test_faster_link(self) -> None:
        """A byte never takes more than a whole round trip allows."""
        line = ByteTime()
        for size in (100, 1200, 100, 1200):
            line.sample(size, 0.5 + size * 0.01)
        for _ in range(100):
            line.sample(100, 0.02)
        self.assertLess(line.seconds(), 0.00021)

    def test_larger_is_not_faster(self) -> None:
        line = ByteTime()
        for size in (100, 1200, 100, 1200):
            line.sample(size, 20.0 - size * 0.01)
        self.assertEqual(line.seconds(), 0.0)


class DrawTests(SynchronousTestCase):
    def test_large_message(self) -> None:
        """After many small ones: what it takes, and no less than before; without a size as ever."""
        rto = RetransmissionTimeout(Tuning())
        for _ in range(50):
            rto.sample(2.0, 300)
        source = random.Random(1)
        self.assertLess(rto.draw(source, size=300), 3.1)
        self.assertLess(rto.draw(source), 3.1)
        self.assertGreater(rto.draw(source, size=1200), 2.0 + 900 / 150)

    def test_bounded(self) -> None:
        """The further time has the bound that the timeout has."""
        rto = RetransmissionTimeout(Tuning(max_rto=10.0))
        for _ in range(50):
            rto.sample(9.0, 100)
        self.assertLessEqual(rto.draw(random.Random(1), size=100_000), 40.0)

    def test_fast_link(self) -> None:
        """Where a byte takes no time, a large message has the timeout of a small one."""
        rto = RetransmissionTimeout(Tuning())
        for _ in range(10):
            for size in (100, 1200):
                rto.sample(0.2, size)
        for seed in range(20):
            self.assertEqual(rto.draw(random.Random(seed), size=1200), rto.draw(random.Random(seed)))


class _Chat(BulkSimulation):
    """PUTs are answered with 60 bytes, GETs with `response`."""

    def _answer(self, _simulation: object, event: RequestReceived) -> None:
        put = event.request.code == Code.PUT
        answer = CoapResponse(Code.CONTENT, payload=body(60) if put else self.response)
        self.server.respond(event.exchange, answer, self.now)


class ConversationTests(SynchronousTestCase):
    def chat(self, rate: float, *, loss: float = 0.0) -> _Chat:
        way = shape(rtt=0.0, rate=rate, queue=None, loss=loss)
        chat = _Chat(way, handshake=False, q_block=False, response=body(900))
        # What a handshake takes there: 1,200 bytes or so.
        chat.client.set_peer("server", rtt=700 / rate, now=0.0)
        chat.server.set_peer("client", rtt=900 / rate, now=0.0)
        return chat

    def test_nothing_is_sent_twice(self) -> None:
        """Small messages, large answers, and blocks, in any order, at 100 to 9600 bit/s without loss."""
        for rate in RATES:
            for small in (1, 3, 40):
                chat = self.chat(rate)
                for _ in range(3):
                    for _ in range(small):
                        chat.put(body(90))
                        chat.run_until_answered()
                    chat.get()
                    chat.run_until_answered()
                chat.response = body(3000)
                chat.get()
                chat.run_until_answered()
                for endpoint in (chat.client, chat.server):
                    self.assertEqual(endpoint.counters.retransmissions, 0, (rate, small))

    def test_losses_are_made_good(self) -> None:
        """A lost message is sent again soon after it could have been known to be lost."""
        chat = self.chat(150.0)
        for _ in range(20):
            chat.put(body(90))
            chat.run_until_answered()
        began, way = chat.now, chat.up.shape
        chat.up.shape = shape(rtt=0.0, rate=150.0, queue=None, loss=1.0)
        chat.put(body(90))
        chat._drain()
        chat.up.shape = way
        self.assertEqual(chat.up.counters.lost, 1)
        chat.run_until_answered()
        self.assertEqual(chat.client.counters.retransmissions, 1)
        self.assertLess(chat.now - began, 10.0)  # a round trip takes 2.5 s
