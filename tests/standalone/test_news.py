# SPDX-License-Identifier: AGPL-3.0-or-later
"""Observed syncs in front of a homeserver that has only long polls: what `tests/server` asks of any source of news."""

from __future__ import annotations

import random
from typing import Any
from urllib.parse import parse_qs

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater

from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.server.dispatcher import Address
from synapse_lb.server.gateway import Gateway
from synapse_lb.server.sync_observer import ObserveOptions
from synapse_lb.standalone.news import LONGEST_RETRY, PollingNews
from synapse_lb.standalone.standing import WHOAMI
from synapse_lb.testing.lossy import LossyLink, Weather
from tests.server.observing import (
    SLIDING,
    UNKNOWN_TOKEN,
    FakeHomeserver,
    Observer,
    ObserverTestCase,
)


class PolledHomeserver(FakeHomeserver):
    """Holds a sync with a timeout until there is something in it.

    Attributes:
        polls: long polls that came in: their query.
        held: long polls that are held.
        trouble: what polls get instead.
        hidden: places of what only an unfiltered sync shows.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.polls: list[dict[str, str]] = []
        self.held = 0
        self.trouble: MatrixResponse | None = None
        self.shows_hidden = True
        self.changed_at: list[int] = []

    def change_something_hidden(self) -> None:
        """Something that the observers' filter hides and that a poll shows."""
        super().change_something_hidden()
        self.changed_at.append(self.position)

    def dispatch(self, request: MatrixRequest, client: Address) -> Deferred[MatrixResponse]:
        if request.path == WHOAMI:
            user = self.users.get(request.access_token or "")
            answer = MatrixResponse(200, {"user_id": user}) if user else MatrixResponse(401, UNKNOWN_TOKEN)
            answered: Deferred[MatrixResponse] = Deferred()
            answered.callback(answer)
            return answered
        query = {name: values[0] for name, values in parse_qs(request.query.decode()).items()}
        timeout = int(query.get("timeout", "0")) / 1000
        if not timeout:
            return super().dispatch(request, client)
        self.polls.append(query)
        return Deferred.fromCoroutine(self._poll(request, query, timeout))

    async def _poll(self, request: MatrixRequest, query: dict[str, str], timeout: float) -> MatrixResponse:
        self.held += 1
        try:
            until = self.clock.seconds() + timeout
            while True:
                if self.trouble is not None:
                    return self.trouble
                number = int(query["since"][1:])
                # A sync deletes to-device messages up to the `since` that it is shown.
                response = self._serve(request, query)
                if self.position > number or response.status != 200:
                    if response.status == 200 and any(each > number for each in self.changed_at):
                        response.body["account_data"] = {"events": [{"type": "x"}]}
                    return response
                if self.clock.seconds() >= until:
                    return response
                timing: Any = self.clock
                await deferLater(timing, 0.5, lambda: None)
        finally:
            self.held -= 1


class PollingTests(ObserverTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.homeserver = self.polled = PolledHomeserver(self.clock)
        self.news = PollingNews(self.polled, self.clock, poll_timeout=30.0)
        self.gateway = Gateway(
            self.polled,
            clock=self.clock,
            random=random.Random(1),
            tuning=self.tuning,
            news=self.news,
            observe=ObserveOptions(sliding_sync=False),
        )
        self.gateway.attach(self.port)
        self.addCleanup(self.gateway.shutdown)
        self.alice = Observer(self.gateway, self.port, self.clock, 1)
        assert self.gateway.observer is not None
        self.counters = self.gateway.observer.counters

    def test_each_message_once(self) -> None:
        seen = self.registered()
        for text in ("a", "b", "c"):
            self.polled.say(text)
            self.pass_time(1.0)
        self.assertEqual(seen.timeline, ["a", "b", "c"])
        self.assertEqual([each["since"] for each in self.polled.polls], ["s0", "s1", "s2", "s3"])

    def test_the_poll_is_a_long_one_and_shows_the_user_as_present(self) -> None:
        self.registered()
        (poll,) = self.polled.polls
        self.assertEqual((poll["timeout"], poll["set_presence"]), ("30000", "online"))

    def test_what_happens_between_the_result_and_the_poll(self) -> None:
        self.alice.processing = False
        seen = self.registered()
        self.polled.say("meanwhile")
        self.pass_time(1.0)
        self.assertEqual((len(seen.notifications), self.polled.polls), (1, []))
        self.alice.confirm(seen)
        self.pass_time(1.0)
        self.assertEqual(seen.timeline, ["meanwhile"])

    def test_nothing_is_shown_that_was_not_acknowledged(self) -> None:
        self.polled.send_to_device("letter")
        self.alice.processing = False
        seen = self.registered()
        self.pass_time(1.0)
        self.assertEqual(seen.letters, ["letter"])
        self.assertEqual([text for _, text in self.polled.to_device], ["letter"])
        self.alice.confirm(seen)
        self.pass_time(1.0)
        self.assertEqual(self.polled.to_device, [])

    def test_a_poll_that_finds_nothing_is_repeated_from_the_same_place(self) -> None:
        seen = self.registered()
        self.pass_time(95.0)
        self.assertEqual([each["since"] for each in self.polled.polls], ["s0"] * 4)
        self.assertEqual(len(seen.notifications), 1)
        self.polled.say("at last")
        self.pass_time(1.0)
        self.assertEqual(seen.timeline, ["at last"])

    def test_what_the_filter_hides_is_not_sent(self) -> None:
        seen = self.registered()
        self.polled.change_something_hidden()
        self.pass_time(1.0)
        self.assertEqual(len(seen.notifications), 1)
        self.assertEqual(self.counters.empty, 1)
        self.polled.say("a")
        self.pass_time(1.0)
        self.assertEqual(seen.timeline, ["a"])

    def test_a_poll_that_wakes_in_vain_again_and_again_does_so_less_and_less(self) -> None:
        self.registered()
        self.polled.trouble = MatrixResponse(200, {"next_batch": "s0", "account_data": {"events": [1]}})
        self.pass_time(0.5)
        before = len(self.polled.syncs)
        self.pass_time(120.0)
        self.assertLess(len(self.polled.syncs) - before, 12)
        self.assertGreater(len(self.polled.syncs) - before, 2)

    def test_a_homeserver_that_does_not_hold_polls_back(self) -> None:
        self.registered()
        self.polled.trouble = MatrixResponse(200, {"next_batch": "s0"})
        before = len(self.polled.polls)
        self.pass_time(10.0)
        self.assertLessEqual(len(self.polled.polls) - before, 11)

    def test_trouble_with_polls_passes(self) -> None:
        seen = self.registered()
        for trouble in (MatrixResponse(502), MatrixResponse(429, {}, 20.0), MatrixResponse(200, [])):
            self.polled.trouble = trouble
            before = len(self.polled.polls)
            self.pass_time(100.0)
            self.assertTrue(0 < len(self.polled.polls) - before < 10, trouble)
            self.polled.trouble = None
            self.polled.say(str(trouble.status))
            self.pass_time(LONGEST_RETRY + 1.0)
        self.assertEqual(seen.timeline, ["502", "429", "200"])

    def test_the_token_ends(self) -> None:
        seen = self.registered()
        self.polled.revoke("alice-1")
        self.pass_time(1.0)
        self.assertEqual((seen.final.status, seen.final.body), (401, UNKNOWN_TOKEN))
        self.assertEqual(self.counters.revoked, 1)
        self.assertEqual((self.gateway.observations, self.polled.held), (0, 0))

    def test_a_token_that_never_was(self) -> None:
        seen = self.alice.observe(token="nobody")
        self.settle()
        self.assertEqual((seen.final.status, seen.notifications), (401, []))

    def test_the_client_leaves(self) -> None:
        seen = self.registered()
        self.assertEqual(self.polled.held, 1)
        self.alice.deregister(seen)
        self.settle()
        self.assertEqual((self.gateway.observations, self.polled.held), (0, 0))

    def test_the_gateway_stops(self) -> None:
        seen = self.registered()
        self.gateway.end_observations()
        self.settle()
        self.assertEqual((seen.final.status, self.polled.held), (503, 0))

    def test_sliding_sync_is_answered_as_if_observe_were_not_there(self) -> None:
        self.polled.answer = lambda _: MatrixResponse(200, {"pos": "1"})
        seen = self.alice.observe(SLIDING, body={"lists": {}})
        self.settle()
        self.assertEqual((seen.final.body, seen.notifications), ({"pos": "1"}, []))

    def test_a_bad_network(self) -> None:
        for seed in range(5):
            self.setUp()
            weather = Weather(loss=0.3, duplication=0.2, reordering=0.2)
            self.alice.links = (LossyLink(weather, seed), LossyLink(weather, seed + 100))
            seen = self.alice.observe()
            said: list[str] = []
            for number in range(20):
                said.append(str(number))
                self.polled.say(said[-1])
                self.polled.send_to_device(said[-1])
                self.pass_time(random.Random(seed + number).uniform(0.0, 6.0), 0.1)
            self.pass_time(120.0, 0.1)
            self.assertEqual((seen.timeline, seen.letters), (said, said), seed)
