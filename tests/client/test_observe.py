# SPDX-License-Identifier: AGPL-3.0-or-later
"""Observing /sync on a network that is well: notifications, acknowledgements, handlers, and how it is stopped."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from synapse_lb.client import Persistence, State
from synapse_lb.client.errors import (
    ClientClosed,
)
from synapse_lb.coap.events import CoapResponse, NotificationFailure
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.tuning import Tuning
from synapse_lb.msc3079.cbor import encode
from synapse_lb.msc3079.options import KEY_VERSION
from tests.client.harness import REACTOR, until
from tests.client.journal import CBOR
from tests.client.observing import ObserveTestCase


class ObserveTests(ObserveTestCase):
    async def test_events_as_they_come(self) -> None:
        self.journal.add("a", "b")
        server, journal = self.start_journal()
        client = self.client_of(server)
        observation = self.observe(client)
        await self.caught_up()
        self.journal.add("c")
        await self.caught_up()
        self.assertEqual(self.taken, ["a", "b", "c"])
        self.assertEqual(observation.since, "s3")
        self.assertIs(observation.state, State.OBSERVING)
        self.assertEqual(len(journal.requests), 1)
        self.assertEqual(self.states(), ["observing"])

    async def test_request(self) -> None:
        """GETs of path code 7 with the sticky options and the query: a plain one, and one with Observe 0."""
        server, journal = self.start_journal()
        client = self.client_of(server)
        observation = client.observe_sync(
            None, self.handler, token="syt_a", filter="f1", set_presence="offline", full_state=True
        )
        await until(lambda: observation.state is State.OBSERVING)
        fetch, registration = journal.requests
        for request in (fetch, registration):
            self.assertEqual(request.code, Code.GET)
            self.assertEqual(request.options.get_all(OptionNumber.URI_PATH), (b"7",))
        self.assertNotIn(OptionNumber.OBSERVE, fetch.options)
        self.assertEqual(fetch.options.get(KEY_VERSION), b"\x01")
        self.assertEqual(registration.options.get(OptionNumber.OBSERVE), b"")
        # What the answer to the first has shown to be known is not said again.
        self.assertEqual([journal.token(0), journal.token(1)], [b"syt_a", None])
        query = ["filter=f1", "set_presence=offline"]
        self.assertEqual(journal.queries(), [[*query, "full_state=true"], [*query, "since=s0"]])

    async def test_filter_as_json(self) -> None:
        server, journal = self.start_journal()
        observation = self.client_of(server).observe_sync(
            "s0", self.handler, token="syt_a", filter={"room": {"timeline": {"limit": 1}}}
        )
        await until(lambda: observation.state is State.OBSERVING)
        self.assertEqual(journal.queries(), [['filter={"room":{"timeline":{"limit":1}}}', "since=s0"]])

    async def test_from_a_kept_place(self) -> None:
        self.journal.add("a", "b", "c")
        self.taken = ["a", "b"]
        server, journal = self.start_journal()
        self.observe(self.client_of(server), since="s2")
        await self.caught_up()
        self.assertEqual(journal.queries(), [["since=s2"]])

    async def test_place_in_the_query(self) -> None:
        self.journal.add("a", "b")
        self.taken = ["a"]
        server, journal = self.start_journal()
        self.observe(self.client_of(server), query={"since": "s1", "filter": "f"})
        await self.caught_up()
        self.assertEqual(journal.queries(), [["filter=f", "since=s1"]])

    async def test_body_in_many_blocks(self) -> None:
        self.journal.add("a")
        server, journal = self.start_journal()
        journal.padding = 30_000
        self.observe(self.client_of(server))
        await self.caught_up()
        self.journal.add("b", "c")
        await self.caught_up()
        self.assertEqual([len(body["padding"]) for body in self.bodies], [30_000, 30_000])
        await until(lambda: not any(each.in_flight for each in journal.registered.values()))

    async def test_sliding_sync(self) -> None:
        """A body makes it a FETCH, and its place is called pos."""
        self.journal.add("a")
        server, journal = self.start_journal()
        observation = self.client_of(server).observe(
            "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync",
            json={"lists": {}},
            handler=self.handler,
            token="syt_a",
        )
        await self.caught_up()
        self.assertEqual((observation.since, journal.requests[0].code), ("s1", Code.FETCH))
        self.assertEqual(journal.requests[0].payload, encode({"lists": {}}, 1))
        await server.stop()
        _, journal = self.start_journal(port=server.port)
        self.journal.add("b")
        await self.caught_up()
        self.assertEqual(journal.queries(), [["pos=s1"]])

    async def test_other_requests_go_on(self) -> None:
        server, journal = self.start_journal()
        client = self.client_of(server)
        self.observe(client)
        await until(lambda: self.bodies)
        response = await client.request("GET", "/_matrix/client/v3/account/whoami", token="syt_a")
        self.assertEqual(response.status, 200)
        self.assertIsNone(journal.token(1), "the token had been said")
        self.journal.add("a")
        await self.caught_up()

    async def test_two_observations(self) -> None:
        server, journal = self.start_journal()
        journal.padding = 3000
        client = self.client_of(server)
        other: list[str] = []
        self.observe(client)
        client.observe(
            handler=lambda body: other.extend(body["events"]), token="syt_a", query={"filter": "2"}
        )
        self.journal.add("a")
        await self.caught_up()
        await until(lambda: other == ["a"])
        self.journal.add("b")
        await self.caught_up()
        await until(lambda: other == ["a", "b"])

    async def test_two_users(self) -> None:
        """The blocks of one user's notifications repeat the token, so that of the other is always said too."""
        server, journal = self.start_journal()
        journal.padding = 3000
        client = self.client_of(server)
        self.observe(client, token="syt_a")
        await until(lambda: self.bodies)
        for _ in range(2):
            await client.request("GET", "/_matrix/client/v3/a", token="syt_b")
        await client.request("GET", "/_matrix/client/v3/a", token="syt_a")
        self.assertEqual([journal.token(n) for n in range(4)], [b"syt_a", b"syt_b", b"syt_b", b"syt_a"])

    async def test_user_after_an_observation_that_relies(self) -> None:
        """The token was said before the registration; another user's requests take another association."""
        server, journal = self.start_journal()
        client = self.client_of(server)
        await client.request("GET", "/_matrix/client/v3/a", token="syt_a")
        observation = self.observe(client)
        await until(lambda: self.bodies)
        self.assertIsNone(journal.token(1))
        await client.request("GET", "/_matrix/client/v3/a", token="syt_b")
        self.assertEqual(server.dtls.associations, 2)
        self.journal.add("a")
        await self.caught_up()
        await observation.stop()
        await until(lambda: server.dtls.associations == 1)


class HandlerTests(ObserveTestCase):
    async def test_acknowledged_when_processed(self) -> None:
        server, journal = self.start_journal()
        work: list[Deferred[None]] = []

        def handler(body: dict[str, Any]) -> Deferred[None]:
            self.assertEqual(len(work), len(self.bodies), "only one at a time")
            self.handler(body)
            return deferred

        deferred: Deferred[None] = Deferred()
        observation = self.observe(self.client_of(server), handler=handler)
        await until(lambda: self.bodies)
        self.journal.add("a")
        await deferLater(REACTOR, 0.2)
        # The server has repeated it, and the copies were absorbed.
        self.assertGreater(journal.endpoint.counters.retransmissions, 0)
        self.assertEqual((len(self.bodies), observation.since), (1, None))
        self.assertEqual([each.in_flight for each in journal.registered.values()], ["s0"])
        work.append(deferred)
        deferred, finished = Deferred(), deferred
        finished.callback(None)
        await self.caught_up()
        self.assertEqual(observation.since, "s0")
        deferred.callback(None)
        await until(lambda: observation.since == "s1")
        self.assertEqual(len(journal.requests), 1)

    async def test_coroutine(self) -> None:
        server, _ = self.start_journal()

        async def handler(body: dict[str, Any]) -> None:
            await deferLater(REACTOR, 0.01)
            self.handler(body)

        self.observe(self.client_of(server), handler=handler)
        for name in "abc":
            self.journal.add(name)
            await self.caught_up()

    async def test_failure(self) -> None:
        """What was not processed is not acknowledged, and comes again when it is asked for again."""
        server, journal = self.start_journal()
        client = self.client_of(server)

        def handler(body: dict[str, Any]) -> None:
            if "b" in body["events"]:
                raise KeyError("b")
            self.handler(body)

        observation = self.observe(client, handler=handler)
        self.journal.add("a")
        await self.caught_up()
        self.journal.add("b")
        await self.error_of(observation, KeyError)
        self.assertEqual((observation.since, observation.state), ("s1", State.ENDED))
        await until(lambda: journal.failures)
        self.assertIs(journal.failures[0].reason, NotificationFailure.RESET)
        self.assertIsInstance(self.changes[-1].error, KeyError)

        self.observe(client, since=observation.since)
        await self.caught_up()
        self.assertEqual(self.taken, ["a", "b"])

    async def test_failure_later(self) -> None:
        server, journal = self.start_journal()
        work: Deferred[None] = Deferred()
        observation = self.observe(self.client_of(server), handler=lambda body: work)
        await until(lambda: journal.notified)
        await deferLater(REACTOR, 0.02)
        work.errback(KeyError("b"))
        await self.error_of(observation, KeyError)
        self.assertIsNone(observation.since)

    async def test_slower_than_the_server_waits(self) -> None:
        """The server gives the registration up; the client registers again with what it has processed."""
        server, journal = self.start_journal(
            tuning=Tuning(ack_timeout=0.02, min_rto=0.02, max_rto=0.02, notification_processing=0.1)
        )

        async def handler(body: dict[str, Any]) -> None:
            if body["events"]:
                await until(lambda: journal.failures)
            self.handler(body)

        observation = self.observe(self.client_of(server), handler=handler)
        await until(lambda: self.bodies)
        self.journal.add("a")
        await self.caught_up()
        self.assertIs(journal.failures[0].reason, NotificationFailure.TIMED_OUT)
        await until(lambda: len(journal.requests) == 2)
        self.assertEqual((journal.queries()[1], observation.since), (["since=s1"], "s1"))
        self.journal.add("b")
        await self.caught_up()

    async def test_slow_handler_registers_anew(self) -> None:
        """In case the server has given up without a word."""
        server, journal = self.start_journal()
        times = Persistence(slow_handler=0.02)

        async def handler(body: dict[str, Any]) -> None:
            if body["events"] == ["a"]:
                await deferLater(REACTOR, 0.05)
            self.handler(body)

        self.observe(self.client_of(server, persistence=times), handler=handler)
        self.journal.add("a")
        await until(lambda: len(journal.requests) == 3)
        observes = [request.options.get_uint(OptionNumber.OBSERVE) for request in journal.requests]
        self.assertEqual(observes, [0, 1, 0])
        self.journal.add("b")
        await self.caught_up()
        self.assertEqual(server.dtls.counters.handshakes_completed, 1)

    async def test_full_state_is_wanted_once(self) -> None:
        server, _ = self.start_journal()
        self.observe(self.client_of(server), query={"full_state": "true", "filter": "f"})
        self.journal.add("a")
        await self.caught_up()
        await server.stop()
        self.journal.add("b")
        _, journal = self.start_journal(port=server.port)
        await self.caught_up()
        self.assertEqual(journal.queries(), [["filter=f", "since=s1"]])

    async def test_same_place_is_not_handed_over_twice(self) -> None:
        """A server that knows nothing new says so; a body was processed, or it was not."""
        server, _ = self.start_journal()
        self.journal.add("a")
        self.observe(self.client_of(server))
        await self.caught_up()
        await server.stop()
        _, journal = self.start_journal(port=server.port)
        await until(lambda: journal.notified and not any(e.in_flight for e in journal.registered.values()))
        self.assertEqual((journal.notified, len(self.bodies)), (["s1"], 1))


class StopTests(ObserveTestCase):
    async def test_stop_deregisters(self) -> None:
        server, journal = self.start_journal()
        client = self.client_of(server)
        observation = self.observe(client, query={"full_state": "true"})
        self.journal.add("a")
        await self.caught_up()
        await observation.stop()
        self.assertIsNone(self.successResultOf(observation.done))
        self.assertEqual((journal.registered, len(journal.requests)), ({}, 2))
        self.assertEqual(journal.requests[1].options.get_uint(OptionNumber.OBSERVE), 1)
        # Whatever the server makes of it costs little: there is nothing new, and it does not wait.
        self.assertEqual(journal.queries()[1], ["since=s1", "timeout=0"])
        self.journal.add("b")
        await client.request("GET", "/_matrix/client/v3/a", token="syt_a")
        self.assertEqual(self.taken, ["a"])
        await observation.stop()

    async def test_stop_waits_for_the_handler(self) -> None:
        server, journal = self.start_journal()
        work: Deferred[None] = Deferred()
        observation = self.observe(self.client_of(server), handler=lambda body: work)
        await until(lambda: journal.notified)
        await deferLater(REACTOR, 0.05)
        stopping = observation.stop()
        await deferLater(REACTOR, 0.05)
        self.assertNoResult(stopping)
        work.callback(None)
        await stopping
        self.assertEqual(observation.since, "s0")
        self.assertEqual(journal.failures, [])
        self.assertEqual(journal.endpoint.counters.notifications_delivered, 1)

    async def test_stop_in_the_handler(self) -> None:
        server, _ = self.start_journal()

        def handler(body: dict[str, Any]) -> None:
            self.handler(body)
            observation.stop()

        self.journal.add("a")
        observation = self.observe(self.client_of(server), handler=handler)
        await observation.done
        self.assertEqual((self.taken, observation.since), (["a"], "s1"))

    async def test_what_came_meanwhile_is_not_handed_over(self) -> None:
        server, _ = self.start_journal()
        client = self.client_of(server)

        def handler(body: dict[str, Any]) -> None:
            self.handler(body)
            channel = client._keeper.current
            assert channel is not None
            ((registration, _),) = channel._registrations.values()
            next_body = encode({"next_batch": "s9", "events": ["early"]})
            registration.notified(CoapResponse(Code.CONTENT, CBOR, next_body))
            observation.stop()

        self.journal.add("a")
        observation = self.observe(client, handler=handler)
        await observation.done
        self.assertEqual((self.taken, observation.since), (["a"], "s1"))

    async def test_stop_before_anything_was_heard(self) -> None:
        server, journal = self.start_journal()
        client = self.client_of(server)
        observation = self.observe(client)
        await observation.stop()
        self.assertEqual((self.states(), journal.requests), (["ended"], []))

    async def test_stop_while_nobody_answers(self) -> None:
        server, _ = self.start_journal()
        client = self.client_of(server, persistence=Persistence(farewell=0.05))
        observation = self.observe(client)
        await until(lambda: self.bodies)
        deaf: Any = server.dtls
        deaf.datagramReceived = lambda *_: None
        await observation.stop()

    async def test_close(self) -> None:
        server, journal = self.start_journal()
        client = self.client_of(server)
        observation = self.observe(client)
        await until(lambda: self.bodies)
        await client.close()
        self.assertIsNone(self.successResultOf(observation.done))
        await until(lambda: server.dtls.associations == 0)
        self.assertEqual(len(journal.requests), 1, "close_notify says it all")
        late = self.observe(client)
        self.failureResultOf(late.done, ClientClosed)

    async def test_close_while_waiting(self) -> None:
        server, _ = self.start_journal()
        client = self.client_of(server, persistence=Persistence(retry_initial=1000.0, retry_max=1000.0))
        observation = self.observe(client)
        await until(lambda: self.bodies)
        await server.stop(silently=True)
        await self.assertFailure(client.request("GET", "/_matrix/client/v3/a"), Exception)
        await until(lambda: observation.state is State.WAITING)
        await client.close()
        self.assertIsNone(self.successResultOf(observation.done))
