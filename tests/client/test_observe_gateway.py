# SPDX-License-Identifier: AGPL-3.0-or-later
"""The client observes the server's own gateway: nothing is lost and nothing comes twice, between the two of them."""

from __future__ import annotations

import random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from synapse_lb.client import LowBandwidthClient, Observation, Persistence, State
from synapse_lb.client.errors import TokenRejected
from synapse_lb.coap.tuning import Tuning
from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.server import sync_observer
from synapse_lb.server.gateway import Gateway
from synapse_lb.testing.lossy import CLEAR, LossyRelay, Weather
from tests.client.harness import REACTOR, LoopbackTestCase, Server, until
from tests.client.observing import BRISK, QUICK
from tests.server.observing import SLIDING, FakeHomeserver


class GatewayTestCase(LoopbackTestCase):
    """Has a homeserver that outlives its gateways, and takes note of what is processed."""

    def setUp(self) -> None:
        """Nothing has happened."""
        super().setUp()
        self.homeserver = FakeHomeserver(REACTOR)
        self.bodies: list[dict[str, Any]] = []
        self.states: list[State] = []
        self.said: list[str] = []
        self.sent: list[str] = []

    def start_gateway(self, port: int = 0, tuning: Tuning = BRISK) -> tuple[Server, Gateway]:
        """Start a server; it knows what the homeserver knows."""
        gateway = Gateway(
            self.homeserver, clock=REACTOR, random=random.Random(1), tuning=tuning, news=self.homeserver
        )
        return self.start_server(gateway, port=port), gateway

    def client_at(self, port: int, persistence: Persistence = QUICK) -> LowBandwidthClient:
        """Make a client with quick times."""
        server: Any = type("At", (), {"address": f"127.0.0.1:{port}"})
        return self.make_client(server, persistence=persistence, tuning=BRISK, random=random.Random(3))

    def observe(self, client: LowBandwidthClient, since: str | None = None) -> Observation:
        """Observe as Alice."""
        return client.observe_sync(
            since,
            self.bodies.append,
            token="alice-1",
            on_change=lambda change: self.states.append(change.state),
        )

    def say(self, *texts: str) -> None:
        """Messages and to-device messages."""
        for text in texts:
            self.said.append(text)
            self.homeserver.say(text)
            self.sent.append(f"to {text}")
            self.homeserver.send_to_device(f"to {text}")

    def texts(self) -> tuple[list[str], list[str]]:
        """What was processed: messages and to-device messages."""
        timelines = [
            body["rooms"]["join"]["!r:x"]["timeline"]["events"] for body in self.bodies if "rooms" in body
        ]
        letters = [body["to_device"]["events"] for body in self.bodies if "to_device" in body]
        return (
            [event["body"] for events in timelines for event in events],
            [event["body"] for events in letters for event in events],
        )

    async def caught_up(self) -> None:
        """All that happened was processed, each once and in its order."""
        await until(lambda: self.texts()[1][-1:] == self.sent[-1:])
        self.assertEqual(self.texts(), (self.said, self.sent))


class GatewayTests(GatewayTestCase):
    async def test_events_as_they_come(self) -> None:
        server, gateway = self.start_gateway()
        observation = self.observe(self.client_at(server.port))
        await until(lambda: self.bodies)
        for text in "abc":
            self.say(text)
            await self.caught_up()
        self.assertIs(observation.state, State.OBSERVING)
        assert gateway.observer is not None
        self.assertEqual(gateway.observer.counters.registrations, 1)
        await observation.stop()
        self.assertEqual((gateway.observations, self.homeserver.open), (0, 0))
        self.assertEqual(observation.since, f"s{self.homeserver.position}")

    async def test_planned_restart(self) -> None:
        self.patch(sync_observer, "RESTART_DELAY", 0.0)
        server, gateway = self.start_gateway()
        self.observe(self.client_at(server.port))
        self.say("a")
        await self.caught_up()
        await until(lambda: State.OBSERVING in self.states)
        gateway.end_observations()
        await until(lambda: State.WAITING in self.states)
        await server.stop()
        self.say("b")
        self.start_gateway(server.port)
        await self.caught_up()

    async def test_crashes(self) -> None:
        server, _ = self.start_gateway()
        self.observe(self.client_at(server.port))
        for text in "abc":
            self.say(text)
            await self.caught_up()
            await server.stop(silently=True)
            self.say(f"{text}2")
            server, _ = self.start_gateway(server.port)
            await self.caught_up()

    async def test_token_revoked(self) -> None:
        server, _ = self.start_gateway()
        observation = self.observe(self.client_at(server.port))
        await until(lambda: self.bodies)
        self.homeserver.revoke("alice-1")
        try:
            await observation.done
        except TokenRejected as error:
            assert error.matrix is not None
            self.assertEqual(error.matrix.body["errcode"], "M_UNKNOWN_TOKEN")
        else:
            self.fail("it should have ended")

    async def test_sliding_sync(self) -> None:
        server, gateway = self.start_gateway()

        def answer(_: MatrixRequest) -> MatrixResponse:
            place = f"0/s{self.homeserver.position}"
            body = {"pos": place, "rooms": {"!r:x": {"n": 1}}, "extensions": {}}
            return MatrixResponse(200, body)

        self.homeserver.answer = answer
        observation = self.client_at(server.port).observe(
            SLIDING, json={"lists": {}}, handler=self.bodies.append, token="alice-1"
        )
        await until(lambda: self.bodies)
        self.homeserver.say("a")
        await until(lambda: len(self.bodies) == 2)
        self.assertEqual(observation.since, "0/s1")
        await observation.stop()
        self.assertEqual(gateway.observations, 0)

    async def test_slow_handler(self) -> None:
        server, _ = self.start_gateway()
        work: list[Deferred[None]] = []

        def handler(body: dict[str, Any]) -> Deferred[None]:
            self.bodies.append(body)
            work.append(Deferred())
            return work[-1]

        self.client_at(server.port).observe_sync(None, handler, token="alice-1")
        await until(lambda: work)
        self.say("a")
        work[0].callback(None)
        await until(lambda: len(work) == 2)
        self.say("b", "c")
        await deferLater(REACTOR, 0.2)
        self.assertEqual(len(work), 2)
        # What the handler has not processed is still there.
        self.assertIn("to a", [text for _, text in self.homeserver.to_device])
        work[1].callback(None)
        await until(lambda: len(work) == 3)
        await self.caught_up()
        work[2].callback(None)

    async def test_bad_network(self) -> None:
        for seed in range(3):
            server, _ = self.start_gateway()
            relay = LossyRelay(REACTOR, server=("127.0.0.1", server.port), seed=seed)
            relay.start()
            self.addCleanup(relay.stop)
            client = self.client_at(relay.port)
            self.observe(client, self.place())
            await until(lambda: self.homeserver.open)
            relay.set_weather(Weather(loss=0.25, duplication=0.2, reordering=0.2))
            for number in range(20):
                self.say(f"{seed}.{number}")
                await deferLater(REACTOR, 0.01 * (number % 4))
            relay.set_weather(CLEAR)
            await self.caught_up()
            await client.close()
            await server.stop()

    def place(self) -> str | None:
        """What a program has kept that was killed."""
        return self.bodies[-1]["next_batch"] if self.bodies else None

    async def test_acknowledgements_lost_for_good(self) -> None:
        """The server has given the registration up, and the client could not know; it registers anew in time."""
        server, gateway = self.start_gateway(
            tuning=Tuning(ack_timeout=0.02, min_rto=0.02, max_rto=0.02, notification_processing=0.1)
        )
        relay = LossyRelay(REACTOR, server=("127.0.0.1", server.port), seed=1)
        relay.start()
        self.addCleanup(relay.stop)
        patient = Persistence(heartbeat=30.0, first_heartbeat=30.0, refresh=0.5)
        self.observe(self.client_at(relay.port, patient))
        observer = gateway.observer
        assert observer is not None
        await until(lambda: observer.counters.delivered)
        relay.to_server.weather = Weather(loss=1.0)
        self.say("a")
        await until(lambda: not gateway.observations)
        relay.to_server.weather = CLEAR
        self.say("b")
        await self.caught_up()
