# SPDX-License-Identifier: AGPL-3.0-or-later
"""Observing /sync on a network that is well: notifications, acknowledgements, handlers, ends, polling."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from synapse_lb.client import Persistence, State
from synapse_lb.client.errors import (
    BadRequest,
    BadResponse,
    ClientClosed,
    ObservationRefused,
    TokenRejected,
)
from synapse_lb.coap.events import CoapRequest, CoapResponse, NotificationFailure
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Tuning
from synapse_lb.msc3079.cbor import encode
from synapse_lb.msc3079.options import KEY_VERSION
from tests.client.harness import REACTOR, PlainServer, until
from tests.client.journal import CBOR
from tests.client.observing import ObserveTestCase


def error_response(code: int, errcode: str, **options: int) -> CoapResponse:
    """A Matrix error."""
    headers = CBOR
    if "max_age" in options:
        headers = headers.with_uint(OptionNumber.MAX_AGE, options["max_age"])
    return CoapResponse(code, headers, encode({"errcode": errcode, "error": "Sorry"}))


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
        """It is a GET of path code 7 with Observe 0, the sticky options and the query."""
        server, journal = self.start_journal()
        client = self.client_of(server)
        observation = client.observe_sync(
            None, self.handler, token="syt_a", filter="f1", set_presence="offline", full_state=True
        )
        await until(lambda: observation.state is State.OBSERVING)
        request = journal.requests[0]
        self.assertEqual(request.code, Code.GET)
        self.assertEqual(request.options.get_all(OptionNumber.URI_PATH), (b"7",))
        self.assertEqual(request.options.get(OptionNumber.OBSERVE), b"")
        self.assertEqual(journal.token(0), b"syt_a")
        self.assertEqual(request.options.get(KEY_VERSION), b"\x01")
        self.assertEqual(journal.queries(), [["filter=f1", "set_presence=offline", "full_state=true"]])

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
        self.observe(client)
        await until(lambda: self.bodies)
        self.assertIsNone(journal.token(1))
        await client.request("GET", "/_matrix/client/v3/a", token="syt_b")
        self.assertEqual(server.dtls.associations, 2)
        self.journal.add("a")
        await self.caught_up()


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
        server, _ = self.start_journal()
        client = self.client_of(server)
        observation = self.observe(client)
        await until(lambda: self.bodies)
        await client.close()
        self.assertIsNone(self.successResultOf(observation.done))
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

    async def test_what_cannot_be_observed_is_delivered_once(self) -> None:
        server = self.start_server(PlainServer(lambda _: CoapResponse(Code.CONTENT, Options(), b"text")))
        responses: list[CoapResponse] = []
        request = CoapRequest(Code.GET, Options.of((OptionNumber.URI_PATH, b"a")))
        observation = self.client_of(server).raw_observe(request, responses.append)
        await observation.done
        self.assertEqual([response.payload for response in responses], [b"text"])
