# SPDX-License-Identifier: AGPL-3.0-or-later
"""Answers that are no notifications: refusals, the end of a token, polling, and what cannot be observed."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from synapse_lb.client import State
from synapse_lb.client.errors import (
    BadRequest,
    BadResponse,
    ObservationRefused,
    TokenRejected,
)
from synapse_lb.coap.events import CoapRequest, CoapResponse
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.msc3079.options import KEY_VERSION
from tests.client.harness import REACTOR, PlainServer, until
from tests.client.observing import ObserveTestCase, error_response


class EndTests(ObserveTestCase):
    async def test_token_is_gone(self) -> None:
        server, journal = self.start_journal()
        observation = self.observe(self.client_of(server))
        await until(lambda: self.bodies)
        journal.say_last(error_response(Code.UNAUTHORIZED, "M_UNKNOWN_TOKEN"))
        error = await self.error_of(observation, TokenRejected)
        assert error.matrix is not None
        self.assertEqual((error.matrix.status, error.matrix.body["errcode"]), (401, "M_UNKNOWN_TOKEN"))
        self.assertIn("4.01 M_UNKNOWN_TOKEN Sorry", str(error))
        self.assertNotIn("syt_a", str(error))

    async def test_token_was_never_there(self) -> None:
        server, journal = self.start_journal()
        journal.refusal = error_response(Code.UNAUTHORIZED, "M_UNKNOWN_TOKEN")
        observation = self.observe(self.client_of(server))
        await self.error_of(observation, TokenRejected)
        self.assertEqual(len(journal.requests), 1)

    async def test_server_that_forgot_the_token(self) -> None:
        """A registration that left the token out is repeated with it before it is given up."""
        server, journal = self.start_journal()
        client = self.client_of(server)
        await client.request("GET", "/_matrix/client/v3/a", token="syt_a")
        journal.refusals = [error_response(Code.UNAUTHORIZED, "M_MISSING_TOKEN")]
        self.observe(client)
        await until(lambda: self.bodies)
        self.assertEqual([journal.token(n) for n in range(3)], [b"syt_a", None, b"syt_a"])

    async def test_token_that_was_left_out_is_gone(self) -> None:
        """The server knows it, and refuses it: there is no use in saying it once more."""
        server, journal = self.start_journal()
        client = self.client_of(server)
        await client.request("GET", "/_matrix/client/v3/a", token="syt_a")
        observation = self.observe(client)
        await until(lambda: self.bodies)
        journal.say_last(error_response(Code.UNAUTHORIZED, "M_UNKNOWN_TOKEN"))
        await self.error_of(observation, TokenRejected)
        self.assertEqual([journal.token(n) for n in range(len(journal.requests))], [b"syt_a", None])

    async def test_refused(self) -> None:
        server, journal = self.start_journal()
        journal.refusal = error_response(Code.BAD_REQUEST, "M_UNKNOWN_POS")
        observation = self.observe(self.client_of(server), since="s9")
        error = await self.error_of(observation, ObservationRefused)
        self.assertEqual(error.response.code, Code.BAD_REQUEST)

    async def test_request_that_cannot_be_sent(self) -> None:
        server, _ = self.start_journal()
        client = self.client_of(server)
        for observation in (
            self.observe(client, since="s" * 300),
            self.observe(client, path="/" + "p" * 300),
            self.observe(client, query=[("q", "v" * 200)] * 20),
        ):
            await self.error_of(observation, BadRequest)

    async def test_answer_without_a_place(self) -> None:
        server, journal = self.start_journal()
        journal.extra = {"next_batch": None}
        observation = self.observe(self.client_of(server))
        await self.error_of(observation, BadResponse)
        self.assertEqual((self.bodies, observation.since), ([], None))
        await until(lambda: journal.failures)

    async def test_unknown_key_version(self) -> None:
        server, journal = self.start_journal(key_versions=False)
        self.observe(self.client_of(server))
        self.journal.add("a")
        await self.caught_up()
        self.assertNotIn(KEY_VERSION, journal.requests[0].options)
        self.assertEqual(journal.token(0), b"syt_a")

    async def test_busy_server(self) -> None:
        """5.xx and 4.29 pass, and the place stays."""
        server, journal = self.start_journal()
        self.journal.add("a")
        self.taken = ["a"]
        for code, errcode in ((Code.INTERNAL_SERVER_ERROR, "M_UNKNOWN"), (Code.TOO_MANY_REQUESTS, "M_X")):
            journal.refusals = [error_response(code, errcode)] * 3
            observation = self.observe(self.client_of(server), since="s1")
            await self.until_observing(observation)
            failed = [change for change in self.changes if change.state is State.WAITING]
            self.assertEqual([errcode in str(change.error) for change in failed], [True] * 3)
            self.changes.clear()
            await observation.stop()
        self.assertEqual({tuple(query[:1]) for query in journal.queries()}, {("since=s1",)})

    async def test_waits_as_long_as_it_was_asked_to(self) -> None:
        server, journal = self.start_journal()
        journal.refusal = error_response(Code.SERVICE_UNAVAILABLE, "M_UNKNOWN", max_age=3)
        self.observe(self.client_of(server))
        await until(lambda: self.changes)
        delay = self.changes[0].delay
        assert delay is not None
        self.assertTrue(3.0 <= delay <= 6.0, delay)


class PollingTests(ObserveTestCase):
    """A server that does not know Observe."""

    async def test_same_guarantees(self) -> None:
        self.journal.add("a")
        server, journal = self.start_journal(observes=False)
        observation = self.observe(self.client_of(server))
        await self.caught_up()
        for name in "bcd":
            self.journal.add(name)
            await self.caught_up()
        self.assertIs(observation.state, State.POLLING)
        await until(lambda: len(journal.requests) == 5)
        self.assertEqual(
            journal.queries(),
            [[], *([f"since=s{place}", "timeout=30000"] for place in (1, 2, 3, 4))],
        )
        self.assertEqual(self.states(), ["polling"])

    async def test_next_poll_waits_for_the_handler(self) -> None:
        server, journal = self.start_journal(observes=False)
        work: Deferred[None] = Deferred()
        observation = self.observe(self.client_of(server), handler=lambda body: work)
        await until(lambda: journal.requests)
        await deferLater(REACTOR, 0.05)
        self.assertEqual((len(journal.requests), observation.since), (1, None))
        work.callback(None)
        await until(lambda: len(journal.requests) == 2)

    async def test_handler_that_fails(self) -> None:
        server, _ = self.start_journal(observes=False)
        self.journal.add("a")

        def handler(body: dict[str, Any]) -> None:
            raise KeyError

        observation = self.observe(self.client_of(server), handler=handler)
        await self.error_of(observation, KeyError)
        self.assertIsNone(observation.since)

    async def test_stop(self) -> None:
        server, journal = self.start_journal(observes=False)
        observation = self.observe(self.client_of(server))
        await until(lambda: len(journal.requests) == 2)
        await until(lambda: journal.registered)
        await observation.stop()
        self.assertEqual(len(journal.requests), 2)

    async def test_timeout_of_the_caller(self) -> None:
        server, journal = self.start_journal(observes=False)
        self.observe(self.client_of(server), query={"timeout": "5000"})
        await until(lambda: len(journal.requests) == 2)
        self.assertEqual(journal.queries(), [["timeout=5000"], ["timeout=5000", "since=s0"]])

    async def test_restart(self) -> None:
        server, _ = self.start_journal(observes=False)
        self.observe(self.client_of(server))
        self.journal.add("a")
        await self.caught_up()
        await server.stop()
        self.journal.add("b")
        self.start_journal(port=server.port, observes=False)
        await self.caught_up()

    async def test_server_that_learns_to_notify(self) -> None:
        server, journal = self.start_journal(observes=False)
        observation = self.observe(self.client_of(server))
        await until(lambda: len(journal.requests) == 2)
        journal.observes = True
        self.journal.add("a")
        await self.caught_up()
        await until(lambda: observation.state is State.OBSERVING)
        self.journal.add("b")
        await self.caught_up()
        self.assertEqual(len(journal.requests), 3)

    async def test_server_that_does_not_hold_back(self) -> None:
        """Polls that bring nothing new at once are a second apart."""
        server, journal = self.start_journal(observes=False)
        self.observe(self.client_of(server), query={"timeout": "0"})
        await until(lambda: len(journal.requests) == 2)
        await deferLater(REACTOR, 0.3)
        self.assertEqual(len(journal.requests), 2)


class RawTests(ObserveTestCase):
    """CoAP requests as they are given."""

    async def test_place_moves(self) -> None:
        self.journal.add("a", "b")
        server, journal = self.start_journal()
        options = Options.of(
            (OptionNumber.URI_PATH, b"7"),
            (OptionNumber.URI_QUERY, b"since=s1"),
            (OptionNumber.URI_QUERY, b"flag"),
            (OptionNumber.URI_QUERY, b"raw=\xff"),
            (256, b"syt_a"),
        )
        responses: list[CoapResponse] = []
        client = self.client_of(server)
        observation = client.raw_observe(CoapRequest(Code.GET, options), responses.append)
        await until(lambda: responses)
        self.assertEqual(observation.since, "s2")
        self.assertEqual(responses[0].code, Code.CONTENT)
        await server.stop()
        _, again = self.start_journal(port=server.port)
        await until(lambda: again.requests)
        self.assertEqual(
            [each.requests[0].options.get_all(OptionNumber.URI_QUERY) for each in (journal, again)],
            [(b"flag", b"raw=\xff", b"since=s1"), (b"flag", b"raw=\xff", b"since=s2")],
        )
        self.assertEqual(again.token(0), b"syt_a")

    async def test_its_token_does_not_get_into_others_way(self) -> None:
        """It says its token with every block, so requests of another user always say theirs."""
        server, journal = self.start_journal()
        options = Options.of((OptionNumber.URI_PATH, b"7"), (256, b"syt_a"))
        client = self.client_of(server)
        observation = client.raw_observe(CoapRequest(Code.GET, options), lambda response: None)
        await self.until_observing(observation)
        for _ in range(2):
            await client.request("GET", "/_matrix/client/v3/a", token="syt_b")
        self.assertEqual([journal.token(n) for n in range(3)], [b"syt_a", b"syt_b", b"syt_b"])

    async def test_what_cannot_be_observed_is_delivered_once(self) -> None:
        server = self.start_server(PlainServer(lambda _: CoapResponse(Code.CONTENT, Options(), b"text")))
        responses: list[CoapResponse] = []
        request = CoapRequest(Code.GET, Options.of((OptionNumber.URI_PATH, b"a")))
        observation = self.client_of(server).raw_observe(request, responses.append)
        await observation.done
        self.assertEqual([response.payload for response in responses], [b"text"])
