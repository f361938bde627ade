# SPDX-License-Identifier: AGPL-3.0-or-later
"""Two endpoints over a bad link, one observing the other: what is delivered was processed, once and in order.

Each case prints its seed where it fails; the same seed gives the same run.
"""

from __future__ import annotations

import random
from functools import partial

from attrs import evolve
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.endpoint import Endpoint
from synapse_lb.coap.events import (
    CoapRequest,
    CoapResponse,
    NotificationDelivered,
    NotificationFailed,
    NotificationReceived,
    RequestCancelled,
    RequestReceived,
)
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits, Tuning
from tests.coap.lockstep import body
from tests.coap.simulation import Link, Simulation

# With 40 % loss each way a round trip succeeds once in three times; see test_endpoint_lossy.
PATIENT = Tuning(max_retransmit=20, max_rto=8.0, response_timeout=4000.0, notification_processing=400.0)
SIZES = (0, 30, 900, 1024, 1025, 3000, 9000)


def content(number: int) -> bytes:
    """The body of an item: its number and something after it."""
    return number.to_bytes(4, "big") + body(random.Random(number).choice(SIZES), seed=number)


def registration(since: int, code: int = Code.GET, payload: bytes = b"") -> CoapRequest:
    options = Options.of(
        (OptionNumber.OBSERVE, b""),
        (OptionNumber.URI_PATH, b"sync"),
        (OptionNumber.URI_QUERY, b"since=%d" % since),
    )
    return CoapRequest(code, options, payload)


class Publisher:
    """The application of the server: to each observer it sends the items after those that it has, one by one.

    Args:
        source: Of the moments at which there is something new.
        count: Of items.
    """

    def __init__(self, source: random.Random, count: int) -> None:
        self._source = source
        self._count = count
        self._observers: dict[int, int] = {}
        self.sent: list[int] = []
        self.delivered: list[int] = []
        self.failures = 0
        self.payloads: list[bytes] = []

    def request(self, simulation: Simulation, event: RequestReceived) -> None:
        """Take a registration, or answer its end."""
        options = event.request.options
        self.payloads.append(event.request.payload)
        if options.get_uint(OptionNumber.OBSERVE) != 0:
            simulation.server.respond(event.exchange, CoapResponse(Code.CONTENT), simulation.now)
            return
        since = options.get(OptionNumber.URI_QUERY)
        assert since is not None
        self._observers[event.exchange] = int(since.decode().removeprefix("since="))
        self._notify(simulation, event.exchange)

    def told(self, simulation: Simulation, event: object) -> None:
        """Take what became of a notification."""
        if isinstance(event, NotificationDelivered):
            self.delivered.append(self._observers[event.exchange])
            self._observers[event.exchange] += 1
            wait = self._source.choice((0.0, 0.0, 0.3, 20.0))
            simulation.later(wait, partial(self._notify, simulation, event.exchange))
        elif isinstance(event, (NotificationFailed, RequestCancelled)):
            self.failures += isinstance(event, NotificationFailed)
            del self._observers[event.exchange]

    def _notify(self, simulation: Simulation, exchange: int) -> None:
        number = self._observers.get(exchange)
        if number is None or number == self._count:
            return
        self.sent.append(number)
        response = CoapResponse(Code.CONTENT, Options.of((OptionNumber.MAX_AGE, b"\x05")), content(number))
        simulation.server.notify(exchange, response, simulation.now)


class Subscriber:
    """The application of the client: it takes its time for each item, and confirms it then.

    Args:
        source: Of the time that it takes.
    """

    def __init__(self, source: random.Random) -> None:
        self._source = source
        self.exchange = -1
        self.processed: list[int] = []
        self._ready_at = 0.0
        self.last_sign = 0.0

    def told(self, simulation: Simulation, event: object) -> None:
        """Take a notification."""
        if isinstance(event, NotificationReceived) and event.exchange == self.exchange:
            self.last_sign = simulation.now
            delay = self._source.choice((0.0, 0.0, 0.1, 5.0, 30.0))
            self._ready_at = max(self._ready_at, simulation.now + delay)
            simulation.later(self._ready_at - simulation.now, partial(self._process, simulation, event))

    def _process(self, simulation: Simulation, event: NotificationReceived) -> None:
        if event.exchange != self.exchange:
            return  # the observation was given up meanwhile, and its successor brings the item again
        number = int.from_bytes(event.response.payload[:4], "big")
        assert event.response.payload == content(number)
        self.processed.append(number)
        self.last_sign = simulation.now
        simulation.client.confirm(event.exchange, simulation.now)


class _Lossy(SynchronousTestCase):
    def _set_up(self, link: Link, seed: int, count: int, tuning: Tuning, limits: Limits) -> None:
        self.publisher = Publisher(random.Random(seed + 3), count)
        self.subscriber = Subscriber(random.Random(seed + 4))
        client = Endpoint(random=random.Random(seed + 1), tuning=tuning, limits=limits)
        server = Endpoint(random=random.Random(seed + 2), tuning=tuning, limits=limits)
        self.simulation = Simulation(
            client,
            server,
            link,
            seed,
            self.publisher.request,
            on_server_event=self.publisher.told,
            on_client_event=self.subscriber.told,
        )
        self.where = f"seed {seed}, {link}"

    def _nothing_is_left(self) -> None:
        for endpoint in (self.simulation.client, self.simulation.server):
            self.assertEqual(list(endpoint.peers), [], self.where)
            self.assertEqual(endpoint.open_exchanges, 0, self.where)
            self.assertTrue(endpoint.idle, self.where)


class Delivered(_Lossy):
    """With patience enough that no notification fails."""

    def _observe(
        self,
        link: Link,
        seed: int,
        *,
        count: int = 25,
        tuning: Tuning = PATIENT,
        limits: Limits | None = None,
        request: CoapRequest | None = None,
    ) -> None:
        self._set_up(link, seed, count, tuning, limits or Limits())
        simulation, subscriber = self.simulation, self.subscriber
        subscriber.exchange = simulation.client.request("server", request or registration(0), simulation.now)
        simulation.run(until=100_000)
        self.assertEqual(subscriber.processed, list(range(count)), self.where)
        self.assertEqual(self.publisher.sent, list(range(count)), self.where)
        self.assertEqual(self.publisher.delivered, list(range(count)), self.where)
        self.assertEqual(simulation.client.counters.notifications_received, count, self.where)
        simulation.client.deregister(subscriber.exchange, simulation.now)
        simulation.run()
        self._nothing_is_left()

    def test_perfect_link(self) -> None:
        """Nothing is lost: what is repeated is repeated because the observer takes its time."""
        self._observe(Link(), 1)
        self.assertEqual(self.simulation.client.counters.retransmissions, 0)

    def test_loss(self) -> None:
        """5, 20 and 40 % loss, with duplication and reordering, and many seeds."""
        for loss in (0.05, 0.2, 0.4):
            for seed in range(8):
                link = Link(loss=loss, duplication=0.1, latency=0.05, jitter=0.4)
                self._observe(link, 100 * seed + int(loss * 100))
                self.assertGreater(self.simulation.server.counters.retransmissions, 0)

    def test_duplication_and_reordering_alone(self) -> None:
        """Every datagram arrives twice, and late ones overtake."""
        for seed in range(5):
            self._observe(Link(duplication=1.0, latency=0.01, jitter=3.0), seed)
            self.assertGreater(self.simulation.client.counters.duplicates, 0)

    def test_small_blocks(self) -> None:
        self._observe(Link(loss=0.2, duplication=0.2, jitter=0.2), 7, limits=Limits(block_szx=2))

    def test_one_at_a_time(self) -> None:
        """NSTART of 1: a notification that is not confirmed does not keep the blocks of it from coming."""
        self._observe(Link(loss=0.2, jitter=0.1), 8, tuning=evolve(PATIENT, nstart=1))

    def test_fixed_timeouts(self) -> None:
        tuning = evolve(PATIENT, adaptive_rto=False, max_retransmit=10)
        self._observe(Link(loss=0.2, duplication=0.1, jitter=0.2), 9, tuning=tuning)

    def test_fetch(self) -> None:
        """FETCH with Observe (RFC 8132), and with a request body that takes several blocks."""
        for size in (10, 3000):
            payload = body(size)
            request = registration(0, Code.FETCH, payload)
            self._observe(Link(loss=0.2, duplication=0.1, jitter=0.2), 10 + size, request=request)
            self.assertEqual(self.publisher.payloads, [payload, payload])

    def test_numbers_wrap(self) -> None:
        """The 24 bits of the numbers run out in between, and nobody minds."""
        link = Link(loss=0.3, duplication=0.3, jitter=0.5)
        self._set_up(link, 11, 25, PATIENT, Limits())
        simulation = self.simulation
        simulation.server._core.peer_state("client").observe_number = (1 << 24) - 10
        self.subscriber.exchange = simulation.client.request("server", registration(0), simulation.now)
        simulation.run(until=100_000)
        self.assertEqual(self.subscriber.processed, list(range(25)))
        numbers = [
            event.sequence for event in simulation.client_events if isinstance(event, NotificationReceived)
        ]
        self.assertEqual(numbers, [*range((1 << 24) - 10, 1 << 24), *range(15)])


class Restarted(_Lossy):
    """With the default patience, and blackouts: an observer that hears nothing registers anew, from what it has."""

    def _supervise(self, count: int) -> None:
        """Give the observation up when nothing has come for a while, until everything is there."""
        simulation, subscriber = self.simulation, self.subscriber
        if len(subscriber.processed) == count:
            simulation.client.cancel(subscriber.exchange, simulation.now)
            return
        if simulation.now - subscriber.last_sign > 90 or subscriber.exchange < 0:
            simulation.client.cancel(subscriber.exchange, simulation.now)
            request = registration(len(subscriber.processed))
            subscriber.exchange = simulation.client.request("server", request, simulation.now)
            subscriber.last_sign = simulation.now
        simulation.later(10.0, partial(self._supervise, count))

    def _observe(self, link: Link, seed: int, count: int = 20) -> None:
        self._set_up(link, seed, count, Tuning(), Limits())
        self._supervise(count)
        self.simulation.run()
        self.assertEqual(self.subscriber.processed, list(range(count)), self.where)
        self.assertEqual(
            set(self.publisher.delivered) | set(self.publisher.sent), set(range(count)), self.where
        )
        # Of an observation with which nothing happens the server cannot know that nobody wants it any more.
        self.simulation.server.drop_peer("client", self.simulation.now)
        while self.simulation.server.next_event() is not None:
            pass
        self._nothing_is_left()

    def test_loss_that_is_too_much(self) -> None:
        failures = 0
        for seed in range(6):
            self._observe(Link(loss=0.5, duplication=0.1, latency=0.1, jitter=1.0), seed)
            failures += self.publisher.failures
        self.assertGreater(failures, 0)

    def test_blackouts(self) -> None:
        """Five minutes out of ten nothing comes through."""
        for seed in range(4):
            self._observe(Link(loss=0.1, jitter=0.5, period=600.0, blackout=300.0), seed, count=60)
            self.assertGreater(self.publisher.failures, 0)
