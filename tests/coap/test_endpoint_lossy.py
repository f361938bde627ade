# SPDX-License-Identifier: AGPL-3.0-or-later
"""Two endpoints over a link that loses, duplicates and reorders: everything arrives, nothing runs twice.

Each case prints its seed where it fails; the same seed gives the same run.
"""

from __future__ import annotations

import random
from collections import Counter
from functools import partial

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.endpoint import Endpoint
from synapse_lb.coap.events import (
    CoapRequest,
    CoapResponse,
    RequestReceived,
    ResponseReceived,
)
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits, Tuning
from tests.coap.lockstep import body
from tests.coap.simulation import Link, Simulation

# With 40 % loss each way a round trip succeeds once in three times: enough tries that none of a thousand messages
# runs out of them. The timeouts stay short, so the tries do not last for ever.
PATIENT = Tuning(max_retransmit=20, max_rto=8.0, response_timeout=4000.0)

# Room for all transfers of a run at once; what happens without it is in test_endpoint_limits.
ROOMY = Limits(max_reassemblies_per_peer=64, max_snapshots_per_peer=64)

REQUEST_SIZES = (0, 10, 1024, 1025, 5000, 20_000)
RESPONSE_SIZES = (0, 10, 1024, 1025, 9000, 30_000)
DELAYS = (0.0, 0.2, 1.4, 1.6, 40.0)


def request_of(number: int, source: random.Random) -> CoapRequest:
    payload = body(source.choice(REQUEST_SIZES), seed=number)
    options = Options.of((OptionNumber.URI_PATH, b"echo"), (OptionNumber.URI_PATH, str(number).encode()))
    code = source.choice((Code.POST, Code.PUT)) if payload else Code.GET
    return CoapRequest(code, options, payload)


def response_to(number: int, seed: int) -> CoapResponse:
    source = random.Random(f"{seed}/{number}")
    payload = body(source.choice(RESPONSE_SIZES), seed=1000 + number)
    return CoapResponse(Code.CONTENT, Options.of((OptionNumber.CONTENT_FORMAT, b"\x3c")), payload)


class LossyTests(SynchronousTestCase):
    """Whole conversations."""

    def _converse(
        self,
        link: Link,
        seed: int,
        *,
        requests: int = 25,
        limits: Limits = ROOMY,
        tuning: Tuning = PATIENT,
    ) -> Simulation:
        """Send requests of all sizes at random moments, and check everything that came of it."""
        source = random.Random(seed)
        executed: Counter[int] = Counter()
        bodies: dict[int, bytes] = {}

        def application(simulation: Simulation, event: RequestReceived) -> None:
            number = int(event.request.options.get_all(OptionNumber.URI_PATH)[1])
            executed[number] += 1
            bodies[number] = event.request.payload
            simulation.respond_later(source.choice(DELAYS), event.exchange, response_to(number, seed))

        client = Endpoint(random=random.Random(seed + 1), tuning=tuning, limits=limits)
        server = Endpoint(random=random.Random(seed + 2), tuning=tuning, limits=limits)
        simulation = Simulation(client, server, link, seed, application)
        sent: dict[int, tuple[int, CoapRequest]] = {}

        def send(number: int) -> None:
            request = request_of(number, source)
            sent[client.request("server", request, simulation.now)] = (number, request)

        for number in range(requests):
            simulation.later(source.random() * 30, partial(send, number))
        simulation.run()

        where = f"seed {seed}, {link}"
        self.assertEqual(executed, Counter(range(requests)), where)
        self.assertEqual(len(simulation.client_events), requests, where)
        for event in simulation.client_events:
            assert isinstance(event, ResponseReceived), f"{where}: {event}"
            number, request = sent.pop(event.exchange)
            self.assertEqual(bodies[number], request.payload, where)
            expected = response_to(number, seed)
            self.assertEqual(event.response.payload, expected.payload, where)
            self.assertEqual(event.response.options.get(OptionNumber.CONTENT_FORMAT), b"\x3c", where)
        self.assertEqual(sent, {}, where)
        for endpoint in (client, server):
            self.assertEqual(list(endpoint.peers), [], where)
            self.assertEqual(endpoint.open_exchanges, 0, where)
            self.assertIsNone(endpoint.next_timer(), where)
            self.assertTrue(endpoint.idle, where)
        return simulation

    def test_perfect_link(self) -> None:
        """No loss: no copy is sent, of anything."""
        simulation = self._converse(Link(), seed=1)
        self.assertEqual(simulation.client.counters.retransmissions, 0)
        self.assertEqual(simulation.server.counters.retransmissions, 0)

    def test_loss(self) -> None:
        """5, 20 and 40 % loss, with duplication and reordering, and many seeds."""
        for loss in (0.05, 0.2, 0.4):
            for seed in range(8):
                link = Link(loss=loss, duplication=0.1, latency=0.05, jitter=0.4)
                simulation = self._converse(link, seed=100 * seed + int(loss * 100))
                self.assertGreater(simulation.client.counters.retransmissions, 0)
                self.assertGreater(simulation.server.counters.duplicates, 0)

    def test_duplication_and_reordering_alone(self) -> None:
        """Every datagram arrives twice, and late ones overtake."""
        for seed in range(5):
            self._converse(Link(duplication=1.0, latency=0.01, jitter=3.0), seed=seed)

    def test_small_blocks(self) -> None:
        """Blocks of 64 bytes."""
        link = Link(loss=0.2, duplication=0.2, jitter=0.2)
        self._converse(link, seed=7, requests=6, limits=evolve(ROOMY, block_szx=2))

    def test_one_at_a_time(self) -> None:
        """NSTART of 1: further requests wait their turn."""
        tuning = Tuning(nstart=1, max_retransmit=20, max_rto=8.0, response_timeout=4000.0)
        self._converse(Link(loss=0.2, jitter=0.1), seed=8, tuning=tuning)

    def test_fixed_timeouts(self) -> None:
        """Without adaptive timeouts, as RFC 7252 has it."""
        tuning = Tuning(adaptive_rto=False, max_retransmit=10, response_timeout=40_000.0)
        self._converse(Link(loss=0.2, duplication=0.1, jitter=0.2), seed=9, tuning=tuning, requests=10)

    def test_slow_link_learns(self) -> None:
        """A round trip of 8 s, four times the first timeout: copies are sent at first, and then no more."""
        link = Link(latency=4.0)
        executed: list[float] = []

        def application(simulation: Simulation, event: RequestReceived) -> None:
            executed.append(simulation.now)
            simulation.server.respond(event.exchange, CoapResponse(Code.CONTENT), simulation.now)

        client = Endpoint(random=random.Random(1))
        server = Endpoint(random=random.Random(2))
        simulation = Simulation(client, server, link, 1, application)
        copies = []
        for _ in range(12):
            before = client.counters.retransmissions
            client.request("server", CoapRequest(Code.GET), simulation.now)
            simulation.run(until=simulation.now + 30)
            simulation.now += 1
            copies.append(client.counters.retransmissions - before)
        self.assertEqual(len(executed), 12)
        self.assertGreater(copies[0], 0)
        self.assertEqual(copies[3:], [0] * 9)

    def test_seeded_by_the_handshake(self) -> None:
        """The same link, but the handshake has told its round trip: no copy at all."""
        client = Endpoint(random=random.Random(1))
        server = Endpoint(random=random.Random(2))

        def application(simulation: Simulation, event: RequestReceived) -> None:
            simulation.server.respond(event.exchange, CoapResponse(Code.CONTENT), simulation.now)

        simulation = Simulation(client, server, Link(latency=4.0), 1, application)
        client.set_peer("server", rtt=8.0, now=0.0)
        client.request("server", CoapRequest(Code.GET), 0.0)
        simulation.run()
        self.assertEqual(client.counters.retransmissions, 0)
        self.assertEqual(len(simulation.client_events), 1)
