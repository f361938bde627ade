# SPDX-License-Identifier: AGPL-3.0-or-later
"""Observing where UDP does not get through, or not always: long polls over HTTPS, with the same guarantees."""

from __future__ import annotations

import random
from typing import Any
from urllib.parse import parse_qs

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from synapse_lb.client import (
    Change,
    ClientVerification,
    Fallback,
    LowBandwidthClient,
    Observation,
    State,
    Transport,
)
from synapse_lb.client.errors import ObservationRefused, TokenRejected
from synapse_lb.msc3079.messages import NO_BODY, MatrixRequest
from synapse_lb.server.gateway import Gateway
from tests.client.harness import REACTOR, Server, until
from tests.client.https_server import HttpsHomeserver, Reply, Seen
from tests.client.observing import BRISK, QUICK
from tests.client.test_fallback import Blackhole
from tests.client.test_observe_gateway import GatewayTestCase
from tests.server.observing import SLIDING

PROMPT = Fallback(patience=0.3, probe_initial=0.1, probe_max=0.2)
NEVER_BACK = Fallback(patience=0.2, probe_initial=600.0)


class ObserveFallbackCase(GatewayTestCase):
    """The same homeserver, reached both ways."""

    def setUp(self) -> None:
        super().setUp()
        self.https = HttpsHomeserver(self.certificate, self.answer)
        self.addCleanup(self.https.stop)
        self.changes: list[Change] = []
        self.holding = True

    def client(self, fallback: Fallback, **settings: Any) -> LowBandwidthClient:
        """A client with quick times that is told the HTTPS address."""
        client = LowBandwidthClient(
            REACTOR,
            self.https.url,
            verification=ClientVerification.ca_file(self.certificate.path),
            fallback=fallback,
            persistence=QUICK,
            tuning=BRISK,
            random=random.Random(3),
            **settings,
        )
        self.addCleanup(client.close)
        return client

    def observe(self, client: LowBandwidthClient, since: str | None = None) -> Observation:
        """Observe as Alice, and see what it goes through."""
        return client.observe_sync(since, self.bodies.append, token="alice-1", on_change=self.changes.append)

    def blackhole(self) -> Blackhole:
        """UDP does not get through."""
        hole = Blackhole()
        self.addCleanup(hole.stop)
        self.https.advertise(hole.port)
        return hole

    def coap(self, port: int = 0) -> tuple[Server, Gateway]:
        """UDP gets through."""
        server, gateway = self.start_gateway(port)
        self.https.advertise(server.port)
        return server, gateway

    def answer(self, seen: Seen) -> Deferred[Reply]:
        """A request over HTTPS, as the homeserver answers it: a long poll is held until there is something."""
        return Deferred.fromCoroutine(self._answer(seen))

    async def _answer(self, seen: Seen) -> Reply:
        query = {name: values[0] for name, values in parse_qs(seen.uri.partition("?")[2]).items()}
        since = int(query.get("since", "s0")[1:])
        if int(query.get("timeout", "0")):
            while self.holding and self.homeserver.position <= since:
                await deferLater(REACTOR, 0.01, lambda: None)
        request = MatrixRequest(
            seen.method,
            seen.path.encode(),
            seen.uri.partition("?")[2].encode(),
            seen.json if seen.body else NO_BODY,
            seen.headers["authorization"].removeprefix("Bearer "),
        )
        response = await self.homeserver.dispatch(request, IPv4Address("TCP", "127.0.0.1", 1))
        body = b"<html>" if response.body is NO_BODY else response.body
        return Reply(response.status, body)


class HttpsOnlyTests(ObserveFallbackCase):
    async def test_events_as_they_come(self) -> None:
        self.blackhole()
        client = self.client(NEVER_BACK)
        observation = self.observe(client)
        await until(lambda: self.bodies)
        for text in "abc":
            self.say(text)
            await self.caught_up()
        self.assertIs(observation.state, State.POLLING)
        self.assertIs(client.transport, Transport.HTTPS)
        self.assertEqual(observation.since, f"s{self.homeserver.position}")
        self.assertEqual(self.https.seen[0].uri, "/_matrix/client/r0/sync")
        self.assertIn("timeout=30000", self.https.seen[-1].uri)
        await observation.stop()
        await until(lambda: not self.https.open)

    async def test_going_on_from_a_place(self) -> None:
        self.blackhole()
        self.say("before")
        place = f"s{self.homeserver.position}"
        self.said.clear()
        self.sent.clear()
        observation = self.observe(self.client(NEVER_BACK), place)
        self.say("after")
        await self.caught_up()
        await observation.stop()

    async def test_nothing_is_acknowledged_before_it_is_processed(self) -> None:
        self.blackhole()
        work: list[Deferred[None]] = []

        def handler(body: dict[str, Any]) -> Deferred[None]:
            self.bodies.append(body)
            work.append(Deferred())
            return work[-1]

        self.say("a")
        observation = self.client(NEVER_BACK).observe_sync(None, handler, token="alice-1")
        await until(lambda: work)
        self.say("b")
        await deferLater(REACTOR, 0.1, lambda: None)
        self.assertEqual((len(self.https.seen), len(work)), (1, 1), "it asked while the handler was at work")
        self.assertIsNone(observation.since)
        self.assertIn("to a", [text for _, text in self.homeserver.to_device])
        work[0].callback(None)
        await until(lambda: len(work) == 2)
        await self.caught_up()
        work[1].callback(None)
        await observation.stop()

    async def test_a_handler_that_fails(self) -> None:
        self.blackhole()

        def handler(_: dict[str, Any]) -> None:
            raise KeyError("x")

        observation = self.client(NEVER_BACK).observe_sync("s0", handler, token="alice-1")
        await self.assertFailure(observation.done, KeyError)
        self.assertEqual(observation.since, "s0")

    async def test_the_token_ends(self) -> None:
        self.blackhole()
        observation = self.observe(self.client(NEVER_BACK))
        await until(lambda: self.bodies)
        self.homeserver.revoke("alice-1")
        self.homeserver.change_something_hidden()
        try:
            await observation.done
        except TokenRejected as error:
            assert error.matrix is not None
            self.assertEqual(error.matrix.body["errcode"], "M_UNKNOWN_TOKEN")
        else:
            self.fail("it should have ended")

    async def test_refused(self) -> None:
        self.blackhole()
        self.https.replies["/_matrix/client/r0/sync"] = Reply(400, {"errcode": "M_X", "error": "no"})
        await self.assertFailure(self.observe(self.client(NEVER_BACK)).done, ObservationRefused)

    async def test_trouble_that_passes(self) -> None:
        self.blackhole()
        path = "/_matrix/client/r0/sync"
        observation = self.observe(self.client(NEVER_BACK))
        for reply in (Reply(502, b"<html>"), Reply(429, {"retry_after_ms": 10}), Reply(200, b"<html>")):
            self.https.replies[path] = reply
            self.homeserver.change_something_hidden()
            await until(lambda: self.changes and self.changes[-1].state is State.WAITING)
            self.changes.clear()
            del self.https.replies[path]
            self.say(str(reply.status))
            await self.caught_up()
        await observation.stop()

    async def test_sliding_sync(self) -> None:
        self.blackhole()
        body = {"pos": "0/s1", "lists": {}}
        self.https.replies[SLIDING] = Reply(body=body)
        observation = self.client(NEVER_BACK).observe(
            SLIDING, {"a": "b"}, json={"lists": {}}, handler=self.bodies.append, token="alice-1"
        )
        await until(lambda: len(self.https.seen) > 1)
        await observation.stop()
        first, second = self.https.seen[:2]
        self.assertEqual((first.method, first.uri, first.json), ("POST", f"{SLIDING}?a=b", {"lists": {}}))
        self.assertIn("pos=0%2Fs1", second.uri)
        self.assertEqual(self.bodies, [body])


class BothWaysTests(ObserveFallbackCase):
    async def test_it_follows_the_transport_and_nothing_is_lost(self) -> None:
        hole = self.blackhole()
        client = self.client(PROMPT)
        observation = self.observe(client)
        self.say("over https")
        await self.caught_up()
        for number in range(2):
            await hole.stop()
            server, _ = self.coap(hole.port)
            await until(lambda: client.transport is Transport.COAP)
            self.say(f"{number} while nobody knows")
            await until(lambda: observation.state is State.OBSERVING)
            self.say(f"{number} over coap")
            await self.caught_up()
            await server.stop(silently=True)
            self.say(f"{number} nobody tells")
            await until(lambda: client.transport is Transport.HTTPS)
            self.say(f"{number} over https again")
            await self.caught_up()
        await observation.stop()

    async def test_a_long_poll_gives_way_to_coap(self) -> None:
        hole = self.blackhole()
        client = self.client(PROMPT)
        observation = self.observe(client)
        await until(lambda: self.https.open and "timeout=" in self.https.seen[-1].uri)
        asked = len(self.https.seen)
        await hole.stop()
        self.coap(hole.port)
        await until(lambda: observation.state is State.OBSERVING)
        await until(lambda: self.https.gone)
        self.say("a")
        await self.caught_up()
        self.assertEqual(len(self.https.seen), asked)

    async def test_stop_tells_the_server_where_there_is_coap(self) -> None:
        _, gateway = self.coap()
        observation = self.observe(self.client(PROMPT))
        self.say("a")
        await self.caught_up()
        await until(lambda: observation.state is State.OBSERVING)
        await observation.stop()
        self.assertEqual(gateway.observations, 0)
        self.assertEqual(self.https.seen, [])
