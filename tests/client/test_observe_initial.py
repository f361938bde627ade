# SPDX-License-Identifier: AGPL-3.0-or-later
"""The initial sync is fetched with a plain request, and what comes after it is observed."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from synapse_lb.client import LowBandwidthClient, Observation, State
from synapse_lb.client.errors import BadResponse, ClientClosed, TokenRejected
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.tuning import Tuning
from synapse_lb.testing.lossy import LossyRelay, Weather
from tests.client.harness import REACTOR, until
from tests.client.journal import JournalServer
from tests.client.observing import BRISK, ObserveTestCase, error_response


def observes(journal: JournalServer) -> list[int | None]:
    """The Observe options of the requests that a server got."""
    return [request.options.get_uint(OptionNumber.OBSERVE) for request in journal.requests]


class InitialTestCase(ObserveTestCase):
    """Observes with `observe_sync`."""

    def observe_sync(
        self, client: LowBandwidthClient, since: str | None = None, **settings: Any
    ) -> Observation:
        settings.setdefault("token", "syt_a")
        settings.setdefault("handler", self.handler)
        return client.observe_sync(since, on_change=self.changes.append, **settings)


class InitialSyncTests(InitialTestCase):
    async def test_plain_request_first(self) -> None:
        self.journal.add("a", "b")
        server, journal = self.start_journal()
        observation = self.observe_sync(self.client_of(server))
        await self.caught_up()
        await self.until_observing(observation)
        self.journal.add("c")
        await self.caught_up()
        self.assertEqual((observes(journal), journal.queries()), ([None, 0], [[], ["since=s2"]]))
        self.assertEqual(self.states(), ["observing"])
        # The answer to the registration says the same place once more, and is not handed over again.
        self.assertEqual([body["next_batch"] for body in self.bodies], ["s2", "s3"])

    async def test_kept_place_needs_none(self) -> None:
        self.journal.add("a")
        self.taken = ["a"]
        server, journal = self.start_journal()
        await self.until_observing(self.observe_sync(self.client_of(server), "s1"))
        self.assertEqual(observes(journal), [0])

    async def test_full_state_is_fetched_too(self) -> None:
        self.journal.add("a", "b")
        self.taken = ["a"]
        server, journal = self.start_journal()
        observation = self.observe_sync(self.client_of(server), "s1", full_state=True)
        await self.until_observing(observation)
        await self.caught_up()
        self.assertEqual(observes(journal), [None, 0])
        self.assertEqual(journal.queries(), [["full_state=true", "since=s1"], ["since=s2"]])

    async def test_large_one_comes_by_q_block(self) -> None:
        self.journal.add("a")
        tuning = Tuning(q_block=True, ack_timeout=0.5, min_rto=0.05, separate_after=0.02)
        server, journal = self.start_journal(tuning=tuning)
        journal.padding = 60_000
        client = self.client_of(server, tuning=tuning)
        observation = self.observe_sync(client)
        await self.until_observing(observation)
        self.assertEqual([len(body["padding"]) for body in self.bodies], [60_000])
        # Fewer than there are blocks, with the handshake and all: one request is for many.
        self.assertLess(client.counters.datagrams_sent, 45)
        self.assertEqual(observes(journal), [None, 0])

    async def test_registers_when_the_handler_is_done(self) -> None:
        self.journal.add("a")
        server, journal = self.start_journal()
        work: Deferred[None] = Deferred()
        observation = self.observe_sync(self.client_of(server), handler=lambda body: work)
        await until(lambda: journal.requests)
        await deferLater(REACTOR, 0.05)
        self.assertEqual((observes(journal), observation.since), ([None], None))
        work.callback(None)
        await self.until_observing(observation)
        self.assertEqual((observes(journal), observation.since), ([None, 0], "s1"))

    async def test_server_that_does_not_notify(self) -> None:
        self.journal.add("a")
        server, journal = self.start_journal(observes=False)
        observation = self.observe_sync(self.client_of(server))
        await self.caught_up()
        await until(lambda: len(journal.requests) == 3)
        self.journal.add("b")
        await self.caught_up()
        self.assertIs(observation.state, State.POLLING)
        self.assertEqual(journal.queries()[:3], [[], ["since=s1"], ["since=s1", "timeout=30000"]])


class TroubleTests(InitialTestCase):
    async def test_refused_for_now(self) -> None:
        """It is asked for again, plainly, until it was had."""
        self.journal.add("a")
        server, journal = self.start_journal()
        journal.refusals = [error_response(Code.SERVICE_UNAVAILABLE, "M_UNKNOWN")] * 2
        observation = self.observe_sync(self.client_of(server))
        await self.until_observing(observation)
        self.assertEqual((self.taken, observes(journal)), (["a"], [None, None, None, 0]))
        self.assertEqual(self.states()[:2], ["waiting", "registering"])

    async def test_token_is_not_taken(self) -> None:
        server, journal = self.start_journal()
        journal.refusal = error_response(Code.UNAUTHORIZED, "M_UNKNOWN_TOKEN")
        observation = self.observe_sync(self.client_of(server))
        await self.error_of(observation, TokenRejected)
        self.assertEqual(observes(journal), [None])

    async def test_key_version_is_not_known(self) -> None:
        server, journal = self.start_journal(key_versions=False)
        await self.until_observing(self.observe_sync(self.client_of(server)))
        self.assertEqual(observes(journal), [None, 0])

    async def test_answer_without_a_place(self) -> None:
        server, journal = self.start_journal()
        journal.extra = {"next_batch": None}
        observation = self.observe_sync(self.client_of(server))
        await self.error_of(observation, BadResponse)
        self.assertEqual((self.bodies, observes(journal)), ([], [None]))

    async def test_handler_fails(self) -> None:
        server, journal = self.start_journal()

        def handler(body: dict[str, Any]) -> None:
            raise KeyError("a")

        observation = self.observe_sync(self.client_of(server), handler=handler)
        await self.error_of(observation, KeyError)
        self.assertEqual((observation.since, observes(journal)), (None, [None]))

    async def test_association_is_lost_before_the_answer(self) -> None:
        """Nothing was processed, so the next association begins anew."""
        server, journal = self.start_journal()
        journal.silent = True
        self.journal.add("a")
        observation = self.observe_sync(self.client_of(server))
        await until(lambda: journal.requests)
        await server.stop()
        _, journal = self.start_journal(port=server.port)
        await self.until_observing(observation)
        self.assertEqual((self.taken, observes(journal)), (["a"], [None, 0]))

    async def test_association_is_lost_while_the_handler_works(self) -> None:
        """What was processed is not asked for again, although the association has gone meanwhile."""
        self.journal.add("a")
        server, _ = self.start_journal()
        work: Deferred[None] = Deferred()

        def handler(body: dict[str, Any]) -> Deferred[None]:
            self.handler(body)
            return work

        observation = self.observe_sync(self.client_of(server), handler=handler)
        await until(lambda: self.bodies)
        await server.stop()
        _, journal = self.start_journal(port=server.port)
        self.journal.add("b")
        work.callback(None)
        await self.caught_up()
        self.assertEqual((observes(journal), journal.queries()), ([0], [["since=s1"]]))
        self.assertEqual(observation.since, "s2")

    async def test_network_is_gone_in_the_midst_of_it(self) -> None:
        """The heartbeat notices, and a new association begins anew."""
        self.journal.add("a")
        server, journal = self.start_journal()
        journal.silent = True
        relay = LossyRelay(REACTOR, server=("127.0.0.1", server.port), weather=Weather(), seed=1)
        relay.start()
        self.addCleanup(relay.stop)
        at_relay: Any = type("At", (), {"address": f"127.0.0.1:{relay.port}"})
        observation = self.observe_sync(self.client_of(at_relay, tuning=BRISK))
        await until(lambda: journal.requests)
        relay.set_weather(Weather(loss=1.0))
        await until(lambda: observation.state is State.WAITING)
        journal.silent = False
        relay.set_weather(Weather())
        await self.until_observing(observation)
        self.assertEqual((self.taken, observes(journal)), (["a"], [None, None, 0]))


class StopTests(InitialTestCase):
    async def test_before_the_answer(self) -> None:
        """Nobody is told: there is no registration."""
        server, journal = self.start_journal()
        journal.silent = True
        client = self.client_of(server)
        observation = self.observe_sync(client)
        await until(lambda: journal.requests)
        await observation.stop()
        self.assertIsNone(self.successResultOf(observation.done))
        await client.request("GET", "/_matrix/client/v3/a", token="syt_a")
        self.assertEqual((observes(journal), self.bodies), ([None, None], []))

    async def test_while_the_handler_works(self) -> None:
        """It finishes, and nothing is registered."""
        server, journal = self.start_journal()
        work: Deferred[None] = Deferred()

        def handler(body: dict[str, Any]) -> Deferred[None]:
            self.handler(body)
            return work

        observation = self.observe_sync(self.client_of(server), handler=handler)
        await until(lambda: self.bodies)
        stopping = observation.stop()
        self.assertNoResult(stopping)
        work.callback(None)
        await stopping
        self.assertIsNone(self.successResultOf(observation.done))
        self.assertEqual((observation.since, observes(journal)), ("s0", [None]))

    async def test_client_is_closed(self) -> None:
        server, journal = self.start_journal()
        journal.silent = True
        client = self.client_of(server)
        observation = self.observe_sync(client)
        await until(lambda: journal.requests)
        await client.close()
        self.assertIsNone(self.successResultOf(observation.done))
        self.assertIs(observation.state, State.ENDED)
        again = self.observe_sync(client)
        await self.error_of(again, ClientClosed)
