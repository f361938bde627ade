# SPDX-License-Identifier: AGPL-3.0-or-later
"""The policy of an observed sync: what is sent when, and what an acknowledgement moves."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred

from synapse_lb.coap.tuning import Limits
from synapse_lb.msc3079.messages import MatrixResponse
from synapse_lb.server.news import NewsSubscription
from synapse_lb.testing.lossy import LossyLink, Weather
from tests.server.observing import SYNC, ObserverTestCase, Seen


class FirstAnswerTests(ObserverTestCase):
    """The answer to a registration."""

    def answer_with(self, response: MatrixResponse) -> None:
        """Let all syncs have this answer."""
        self.homeserver.answer = lambda _: response

    def test_it_is_the_first_result(self) -> None:
        self.homeserver.say("hello")
        seen = self.registered()
        self.assertEqual(seen.timeline, ["hello"])
        self.assertEqual(seen.bodies[0]["next_batch"], "s1")
        self.assertEqual(len(seen.sequences), 1)

    def test_it_comes_even_if_nothing_is_in_it(self) -> None:
        self.homeserver.say("hello")
        seen = self.registered(SYNC + "?since=s1")
        self.assertEqual(seen.timeline, [])
        self.assertEqual(seen.bodies[0]["next_batch"], "s1")

    def test_every_path_of_sync(self) -> None:
        for path in (SYNC, "/_matrix/client/r0/sync"):
            self.registered(path)
        self.assertEqual([request.path[16:18] for request, _ in self.homeserver.requests], [b"v3", b"r0"])

    def test_what_the_client_asked_for(self) -> None:
        self.registered(
            SYNC + "?filter=7&timeout=30000&full_state=true&set_presence=unavailable&since=s0&x=y%26z"
        )
        self.homeserver.say("hello")
        self.settle()
        first, second = self.homeserver.syncs
        self.assertEqual(
            first,
            {"filter": "7", "full_state": "true", "set_presence": "unavailable", "since": "s0", "x": "y&z"},
        )
        # Later ones are our own doing: the client is not shown active, and gets no full state.
        self.assertEqual(second, {"filter": "7", "since": "s0", "set_presence": "offline", "x": "y&z"})
        self.assertEqual(self.homeserver.subscriptions[0].presence, "unavailable")

    def test_presence_is_online_by_default(self) -> None:
        self.registered()
        self.assertEqual(self.homeserver.subscriptions[0].presence, "online")

    def test_an_unknown_token_gets_the_servers_error(self) -> None:
        seen = self.alice.observe(token="nobody")
        self.settle()
        self.assertEqual((seen.final.status, seen.final.body["errcode"]), (401, "M_UNKNOWN_TOKEN"))
        self.assertEqual((seen.notifications, self.gateway.observations), ([], 0))
        self.alice.request("GET", "/_matrix/client/v3/account/whoami")
        self.settle()
        self.assertIsNone(self.homeserver.requests[-1][0].access_token)

    def test_an_error_is_an_answer_without_observe(self) -> None:
        for status in (400, 403, 429, 500, 503):
            body = {"errcode": "M_X", "error": "no"}
            self.answer_with(MatrixResponse(status, body, 7.0))
            seen = self.alice.observe()
            self.settle()
            self.assertEqual((seen.final.status, seen.final.body, seen.notifications), (status, body, []))
        self.assertEqual(len(self.homeserver.syncs), 5)
        self.assertEqual((self.gateway.observations, self.homeserver.open), (0, 0))

    def test_a_result_that_is_none(self) -> None:
        bodies: tuple[Any, ...] = ({"rooms": {}}, ["next_batch"], {"next_batch": 5}, None)
        for body in bodies:
            self.answer_with(MatrixResponse(200, body))
            seen = self.alice.observe()
            self.settle()
            self.assertEqual(seen.final.status, 502)

    def test_another_resource_is_served_plainly(self) -> None:
        self.homeserver.answer = lambda _: MatrixResponse(200, {"versions": []})
        seen = self.alice.observe("/_matrix/client/versions")
        self.settle()
        self.assertEqual((seen.final.body, seen.notifications), ({"versions": []}, []))
        self.assertEqual((self.counters.registrations, self.homeserver.subscriptions), (0, []))

    def test_a_dispatcher_that_fails(self) -> None:
        def fail(_: object) -> MatrixResponse:
            raise RuntimeError("of the dispatcher")

        self.homeserver.answer = fail
        seen = self.alice.observe()
        self.settle()
        self.assertEqual((seen.final.status, seen.notifications), (500, []))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_a_subscription_that_fails(self) -> None:
        waiting: Deferred[NewsSubscription | None] = Deferred()
        self.homeserver.subscribing = lambda _: waiting
        seen = self.alice.observe()
        self.settle()
        waiting.errback(RuntimeError("of the homeserver"))
        self.settle()
        self.assertEqual(seen.final.status, 500)
        self.assertEqual((self.counters.failures, self.gateway.observations), (1, 0))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class PushTests(ObserverTestCase):
    """What comes after."""

    def test_what_happens_is_pushed(self) -> None:
        seen = self.registered()
        for number in range(5):
            self.homeserver.say(str(number))
            self.settle()
            self.assertEqual(seen.bodies[-1]["next_batch"], f"s{number + 1}")
        self.assertEqual(seen.timeline, ["0", "1", "2", "3", "4"])
        self.assertEqual(
            [sync.get("since") for sync in self.homeserver.syncs], [None, "s0", "s1", "s2", "s3", "s4"]
        )
        self.assertEqual(seen.sequences, sorted(set(seen.sequences)))
        self.assertEqual(seen.max_ages, [65535] * 6)
        self.assertEqual(self.counters.delivered, 6)

    def test_nothing_while_nothing_happens(self) -> None:
        self.registered()
        self.pass_time(400, 1.0)
        received, syncs = len(self.alice.received), len(self.homeserver.syncs)
        self.pass_time(24 * 3600, 60.0)
        self.assertEqual((len(self.alice.received), len(self.homeserver.syncs)), (received, syncs))
        self.assertEqual(self.gateway.observations, 1)
        self.alice.driver.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_empty_results_are_not_sent(self) -> None:
        seen = self.registered()
        for _ in range(20):
            self.homeserver.change_something_hidden()
            self.settle()
        self.assertEqual((len(seen.notifications), self.counters.empty), (1, 20))
        # One for each time that it was woken, and each begins where the last one ended.
        self.assertEqual(len(self.homeserver.syncs), 21)
        self.assertEqual(self.homeserver.syncs[-1]["since"], "s19")
        self.homeserver.say("seen")
        self.settle()
        self.assertEqual(seen.timeline, ["seen"])

    def test_a_result_from_a_cache_hides_nothing(self) -> None:
        """Synapse gives the same answer to the same `since` for two minutes."""
        self.homeserver.say("old")
        seen = self.registered(SYNC + "?since=s1")
        self.homeserver.cached["s1"] = {"next_batch": "s2"}
        self.homeserver.change_something_hidden()
        self.settle()
        self.homeserver.cached["s2"] = {"next_batch": "s3"}
        self.homeserver.change_something_hidden()
        self.homeserver.say("new")
        self.settle()
        self.assertEqual(seen.timeline, ["new"])

    def test_a_cache_that_goes_nowhere_is_no_endless_loop(self) -> None:
        seen = self.registered()
        self.homeserver.cached["s0"] = {"next_batch": "s0"}
        self.homeserver.say("hidden by the cache")
        self.settle()
        self.assertLess(len(self.homeserver.syncs), 10)
        self.homeserver.cached.clear()
        self.homeserver.say("more")
        self.settle()
        self.assertEqual(seen.timeline, ["hidden by the cache", "more"])

    def test_a_cache_that_goes_nowhere_is_asked_again(self) -> None:
        """Nothing moves any more when it has forgotten its result; there is something to send all the same."""
        seen = self.registered()
        self.homeserver.cached["s0"] = {"next_batch": "s0"}
        self.homeserver.say("hidden by the cache")
        self.pass_time(60, 1.0)
        self.assertLess(len(self.homeserver.syncs), 30)
        self.homeserver.cached.clear()
        self.pass_time(10, 1.0)
        self.assertEqual(seen.timeline, ["hidden by the cache"])
        syncs = len(self.homeserver.syncs)
        self.pass_time(60, 1.0)
        self.assertEqual(len(self.homeserver.syncs), syncs)

    def test_a_pause_can_be_cut_short(self) -> None:
        self.registered()
        self.homeserver.cached["s0"] = {"next_batch": "s0"}
        self.homeserver.say("hidden by the cache")
        self.settle()
        self.alice.lose()
        self.assertEqual(self.gateway.observations, 0)
        self.pass_time(10, 1.0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_many_empty_results_from_a_cache(self) -> None:
        """An earlier observation went that way, one step at a time; the cache has each step."""
        for number in range(20):
            self.homeserver.change_something_hidden()
            self.homeserver.cached[f"s{number}"] = {"next_batch": f"s{number + 1}"}
        self.homeserver.say("at the end")
        seen = self.alice.observe(SYNC + "?since=s0")
        self.settle()
        self.assertEqual(seen.timeline, ["at the end"])

    def test_one_at_a_time(self) -> None:
        self.alice.processing = False
        seen = self.registered()
        for number in range(10):
            self.homeserver.say(str(number))
        self.settle()
        self.assertEqual((len(seen.notifications), len(self.homeserver.syncs)), (1, 1))
        self.alice.confirm(seen)
        self.settle()
        self.assertEqual(seen.timeline, [str(number) for number in range(10)])
        self.assertEqual((len(seen.notifications), len(self.homeserver.syncs)), (2, 2))

    def test_a_burst_costs_one_sync_at_a_time(self) -> None:
        seen = self.registered()
        self.homeserver.latency = None
        for number in range(50):
            self.homeserver.say(str(number))
            self.settle()
        self.assertEqual((self.homeserver.most_running, len(self.homeserver.syncs)), (1, 2))
        self.homeserver.release()
        self.settle()
        self.homeserver.say("while it was on its way")
        self.homeserver.latency = 0.0
        self.settle()
        self.homeserver.release()
        self.settle()
        self.assertEqual(seen.timeline, [*map(str, range(50)), "while it was on its way"])
        self.assertEqual(self.homeserver.most_running, 1)

    def test_a_large_one_is_fetched_from_what_was_pushed(self) -> None:
        self.alice.processing = False
        seen = self.registered()
        self.alice.confirm(seen)
        texts = [f"{number} " + "x" * 2000 for number in range(10)]
        for text in texts:
            self.homeserver.say(text)
        for _ in range(5):
            self.clock.advance(0)
            self.homeserver.say("later")
        self.settle()
        first = seen.timeline
        self.assertIn(texts[0], first)
        self.alice.confirm(seen)
        self.settle()
        self.alice.confirm(seen)
        self.settle()
        self.assertEqual(seen.timeline, [*texts, *["later"] * 5])

    def test_the_address_of_one_that_moved(self) -> None:
        self.registered()
        self.port.address = IPv4Address("UDP", "192.0.2.99", 1)
        self.gateway.association_moved(1)
        self.homeserver.say("hello")
        self.settle()
        self.assertEqual([address for _, address in self.homeserver.requests][-1], self.port.address)

    def test_the_log_gets_the_size_of_what_was_sent(self) -> None:
        seen = self.registered()
        self.homeserver.change_something_hidden()
        self.settle()
        first, empty = self.homeserver.sizes
        self.assertEqual(empty, 0)
        self.assertIsInstance(first, int)
        self.homeserver.users.clear()
        self.homeserver.change_something_hidden()
        self.settle()
        assert seen.last is not None
        self.assertEqual(self.homeserver.sizes[-1], len(seen.last.payload))

    def test_two_observations_of_one_client(self) -> None:
        one, two = self.registered(), self.registered(SYNC + "?filter=2")
        self.homeserver.say("both")
        self.settle()
        self.assertEqual((one.timeline, two.timeline), (["both"], ["both"]))


class DeliveryTests(ObserverTestCase):
    """What an acknowledgement means."""

    def test_a_letter_that_was_not_acknowledged_is_not_lost(self) -> None:
        seen = self.registered()
        self.alice.processing = False
        self.homeserver.send_to_device("key")
        self.settle()
        self.assertEqual(seen.letters, ["key"])
        self.homeserver.send_to_device("second key")
        self.pass_time(300, 1.0)
        # It was never confirmed: the observation has ended, and nothing was deleted.
        self.assertEqual((self.gateway.observations, self.counters.failed), (0, 1))
        self.assertEqual(self.port.closed, [1], "the client has to notice")
        self.assertEqual(len(self.homeserver.syncs), 2)
        self.assertEqual([text for _, text in self.homeserver.to_device], ["key", "second key"])
        self.alice.processing = True
        again = self.registered(SYNC + "?since=" + seen.bodies[0]["next_batch"])
        self.assertEqual(again.letters, ["key", "second key"])

    def test_a_letter_is_deleted_once_it_was_acknowledged(self) -> None:
        self.registered()
        self.homeserver.send_to_device("key")
        self.settle()
        self.homeserver.say("next")
        self.settle()
        self.assertEqual(self.homeserver.to_device, [])

    def test_one_that_takes_its_time(self) -> None:
        self.alice.processing = False
        seen = self.registered()
        self.homeserver.say("later")
        self.pass_time(100, 1.0)
        self.alice.confirm(seen)
        self.settle()
        self.assertEqual(seen.timeline, ["later"])

    def test_over_a_bad_link(self) -> None:
        """Every message and every letter, once and in their order, as long as the observation lives."""
        for seed in range(12):
            self.setUp()
            dice = random.Random(seed)
            weather = Weather(loss=0.25, duplication=0.15, reordering=0.2)
            self.alice.links = (LossyLink(weather, seed), LossyLink(weather, seed + 1000))
            seen = self.alice.observe()
            said: list[str] = []
            letters: list[str] = []
            for number in range(40):
                self.pass_time(dice.choice((0.0, 0.1, 3.0)))
                if dice.random() < 0.4:
                    letters.append(f"letter {number}")
                    self.homeserver.send_to_device(letters[-1])
                else:
                    said.append(f"{number} " + "x" * dice.choice((1, 1, 3000)))
                    self.homeserver.say(said[-1])
            history: list[Seen] = [seen]
            for _ in range(8):
                self.pass_time(200, 0.1)
                if [text for each in history for text in each.timeline] == said:
                    break
                since = [body["next_batch"] for each in history for body in each.bodies]
                history.append(self.alice.observe(SYNC + (f"?since={since[-1]}" if since else "")))
            self.assertEqual([text for each in history for text in each.timeline], said, f"seed {seed}")
            self.assertEqual([text for each in history for text in each.letters], letters, f"seed {seed}")
            self.assertEqual(self.homeserver.most_running, 1)


class TroubleTests(ObserverTestCase):
    """Syncs that fail later on."""

    def fail_with(self, status: int, times: int, retry_after: float | None = None) -> list[float]:
        """Let the next syncs fail; returns the times at which they were run."""
        at: list[float] = []

        def answer(_: object) -> MatrixResponse | None:
            at.append(self.clock.seconds())
            if len(at) > times:
                return None
            return MatrixResponse(status, {"errcode": "M_X", "error": "no"}, retry_after)

        self.homeserver.answer = answer
        return at

    def test_a_passing_error_is_waited_out(self) -> None:
        for status in (429, 500, 502, 503):
            self.setUp()
            seen = self.registered()
            at = self.fail_with(status, 3)
            self.homeserver.say("hello")
            self.pass_time(10)
            self.assertEqual(seen.timeline, ["hello"])
            self.assertEqual([round(b - a) for a, b in pairwise(at)], [1, 2, 4])
            self.assertEqual(self.counters.retries, 3)

    def test_the_server_says_when(self) -> None:
        seen = self.registered()
        at = self.fail_with(429, 1, 5.0)
        self.homeserver.say("hello")
        self.pass_time(10)
        self.assertEqual((seen.timeline, round(at[1] - at[0])), (["hello"], 5))

    def test_a_lasting_one_ends_it(self) -> None:
        seen = self.registered()
        at = self.fail_with(503, 1000)
        self.homeserver.say("hello")
        self.pass_time(300, 1.0)
        self.assertEqual((seen.final.status, len(at)), (503, 7))
        self.assertEqual((self.gateway.observations, self.homeserver.open), (0, 0))

    def test_a_long_wait_is_the_clients(self) -> None:
        seen = self.registered()
        at = self.fail_with(429, 1000, 3600.0)
        self.homeserver.say("hello")
        self.settle()
        self.assertEqual((seen.final.status, seen.final.retry_after, len(at)), (429, 3600.0, 1))

    def test_any_other_error_ends_it(self) -> None:
        for status in (400, 403, 404):
            self.setUp()
            seen = self.registered()
            self.fail_with(status, 1)
            self.homeserver.say("hello")
            self.settle()
            self.assertEqual((seen.final.status, seen.final.body["errcode"]), (status, "M_X"))
            self.assertEqual(self.gateway.observations, 0)

    def test_a_token_that_has_expired(self) -> None:
        seen = self.registered()
        del self.homeserver.users["alice-1"]
        self.homeserver.say("not for you")
        self.settle()
        self.assertEqual((seen.final.status, seen.final.body["errcode"]), (401, "M_UNKNOWN_TOKEN"))
        self.assertEqual(seen.timeline, [])
        self.alice.request("GET", "/_matrix/client/v3/account/whoami")
        self.settle()
        self.assertIsNone(self.homeserver.requests[-1][0].access_token)

    def test_a_wait_between_attempts_can_be_cut_short(self) -> None:
        self.registered()
        self.fail_with(503, 1000)
        self.homeserver.say("hello")
        self.pass_time(2)
        self.alice.lose()
        self.assertEqual((self.gateway.observations, self.homeserver.open), (0, 0))
        self.alice.driver.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_result_that_cannot_be_encoded(self) -> None:
        seen = self.registered()
        self.homeserver.answer = lambda _: MatrixResponse(200, {"next_batch": "s9", "x": object()})
        self.homeserver.say("hello")
        self.settle()
        self.assertEqual((seen.final.status, self.gateway.observations), (500, 0))
        self.assertEqual(self.homeserver.open, 0)


class TooLargeTests(ObserverTestCase):
    """A result that no notification holds."""

    limits = Limits(snapshot_bytes_per_peer=4096)

    def test_it_ends_the_observation(self) -> None:
        seen = self.registered()
        self.homeserver.say("x" * 5000)
        self.settle()
        self.assertEqual((seen.final.status, seen.final.body["errcode"]), (500, "M_TOO_LARGE"))
        self.assertEqual((self.gateway.observations, self.homeserver.open), (0, 0))


class AssociationLimitTests(ObserverTestCase):
    """One observation too many of one client."""

    limits = Limits(max_observations_per_peer=2)

    def test_it_is_a_plain_request(self) -> None:
        for _ in range(2):
            self.registered()
        third = self.alice.observe()
        self.settle()
        self.assertEqual((third.final.status, third.notifications), (200, []))
        self.assertEqual(self.gateway.observations, 2)
