# SPDX-License-Identifier: AGPL-3.0-or-later
"""Observers whom one message wakes are served in turn: a few syncs at a time, the first of them told at once."""

from __future__ import annotations

from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.server.sync_observer import ObserveOptions
from synapse_lb.server.turnstile import SLOW
from tests.server.observing import Observer, ObserverTestCase, Seen

AT_ONCE = 2


class TurnTestCase(ObserverTestCase):
    """Several users who observe, each on an association of its own."""

    options = ObserveOptions(max_syncs_at_once=AT_ONCE)

    def setUp(self) -> None:
        super().setUp()
        self.clients: list[Observer] = []
        assert self.gateway.observer is not None
        self.observer = self.gateway.observer

    def join(self) -> Seen:
        """One more user registers."""
        token = f"user{len(self.clients)}-1"
        self.homeserver.users[token] = f"@{token}:x"
        client = Observer(self.gateway, self.port, self.clock, 100 + len(self.clients))
        self.clients.append(client)
        seen = client.observe(token=token)
        self.settle()
        return seen

    def all_woken(self, count: int) -> list[Seen]:
        """So many have registered, and a message has come; its syncs end when they are released."""
        seen = [self.join() for _ in range(count)]
        self.homeserver.latency = None
        self.homeserver.syncs.clear()
        self.homeserver.most_running = 0
        self.homeserver.say("one")
        self.settle()
        self.assertEqual((self.homeserver.running, self.observer.waiting), (AT_ONCE, count - AT_ONCE))
        return seen

    def release_one(self) -> None:
        """The sync that began first ends."""
        self.homeserver._held.pop(0)()
        self.settle()

    def release_all(self) -> None:
        """Syncs end until none runs."""
        while self.homeserver.running:
            self.homeserver.release()
            self.settle()

    def assert_nothing_left(self) -> None:
        """Nobody observes, waits or runs."""
        self.assertEqual((self.gateway.observations, self.homeserver.open), (0, 0))
        self.assertEqual((self.observer.waiting, self.homeserver.running), (0, 0))


class OrderTests(TurnTestCase):
    """Who is told when."""

    def test_the_first_are_told_while_the_others_wait(self) -> None:
        seen = self.all_woken(5)
        for told in range(1, 6):
            self.release_one()
            self.assertEqual([each.timeline for each in seen], [["one"]] * told + [[]] * (5 - told))
            self.assertEqual(self.homeserver.running, min(AT_ONCE, 5 - told))
        self.assertEqual((self.homeserver.most_running, len(self.homeserver.syncs)), (AT_ONCE, 5))
        self.assertEqual((self.counters.queued, self.observer.waiting), (3, 0))

    def test_in_the_order_of_waking(self) -> None:
        """Who was served has to wait behind the others when there is more."""
        seen = self.all_woken(3)
        self.release_one()
        self.homeserver.say("two")
        self.settle()
        self.assertEqual(self.observer.waiting, 1)
        self.release_one()
        self.release_one()
        self.assertEqual([each.timeline for each in seen], [["one"], ["one", "two"], ["one", "two"]])
        self.release_all()
        self.assertEqual([each.timeline for each in seen], [["one", "two"]] * 3)

    def test_what_happens_meanwhile_is_in_the_one_sync(self) -> None:
        seen = self.all_woken(4)
        for text in ("two", "three"):
            self.homeserver.say(text)
        self.settle()
        self.homeserver.send_to_device("letter")
        self.settle()
        self.release_all()
        self.assertEqual([each.timeline for each in seen], [["one", "two", "three"]] * 4)
        self.assertEqual([each.letters for each in seen], [["letter"]] * 4)
        self.assertEqual([len(each.notifications) for each in seen], [2] * 4)
        # Those whose sync had begun before have to look once more. Those that waited have not.
        self.assertEqual((len(self.homeserver.syncs), self.counters.empty), (4 + AT_ONCE, AT_ONCE))

    def test_what_happens_during_a_sync_is_told_after_it(self) -> None:
        """The first had looked where the streams were before; those that waited had not."""
        seen = self.all_woken(3)
        bodies = [dict(self.homeserver._serve(*each).body) for each in self.asked()]
        self.homeserver.answer = lambda _: MatrixResponse(200, bodies[0])
        self.homeserver.say("two")
        self.settle()
        self.release_one()
        self.homeserver.answer = lambda _: None
        self.release_all()
        self.assertEqual([each.timeline for each in seen], [["one", "two"]] * 3)
        self.assertEqual([len(each.notifications) for each in seen], [3, 2, 2])

    def asked(self) -> list[tuple[MatrixRequest, dict[str, str]]]:
        """The requests of the syncs that run, and their queries."""
        running = len(self.homeserver.syncs)
        requests = [request for request, _ in self.homeserver.requests[-running:]]
        return list(zip(requests, self.homeserver.syncs, strict=True))

    def test_first_syncs_and_news_do_not_wait_for_each_other(self) -> None:
        watching = self.join()
        self.homeserver.latency = None
        newcomers = [self.join() for _ in range(3)]
        self.assertEqual((self.homeserver.running, self.observer.waiting), (AT_ONCE, 1))
        self.homeserver.latency = 0.0
        self.homeserver.say("one")
        self.settle()
        self.assertEqual(watching.timeline, ["one"])
        self.assertEqual([each.notifications for each in newcomers], [[]] * 3)
        self.release_all()
        self.assertEqual([each.timeline for each in newcomers], [["one"]] * 3)


class PlaceTests(TurnTestCase):
    """What holds a place, and for how long."""

    def test_not_a_notification_that_is_not_acknowledged(self) -> None:
        seen = [self.join() for _ in range(4)]
        for client in self.clients[:AT_ONCE]:
            client.processing = False
        self.homeserver.say("one")
        self.settle()
        self.assertEqual([each.timeline for each in seen], [["one"]] * 4)

    def test_not_a_sync_that_is_slow(self) -> None:
        seen = self.all_woken(2 * AT_ONCE + 1)
        self.pass_time(SLOW + 0.1)
        self.assertEqual((self.homeserver.running, self.observer.waiting), (2 * AT_ONCE, 1))
        slow, self.homeserver._held = self.homeserver._held[:AT_ONCE], self.homeserver._held[AT_ONCE:]
        self.release_one()
        self.assertEqual([each.timeline for each in seen[AT_ONCE:]], [["one"], [], []])
        self.assertEqual(self.observer.waiting, 0)
        self.homeserver._held += slow
        self.release_all()
        self.assertEqual([each.timeline for each in seen], [["one"]] * len(seen))

    def test_not_one_that_will_be_tried_again(self) -> None:
        seen = [self.join() for _ in range(4)]
        failing = {f"user{number}-1" for number in range(AT_ONCE)}

        def answer(request: MatrixRequest) -> MatrixResponse | None:
            return MatrixResponse(503, {"errcode": "M_X"}) if request.access_token in failing else None

        self.homeserver.answer = answer
        self.homeserver.say("one")
        self.settle()
        self.assertEqual([each.timeline for each in seen], [[], [], ["one"], ["one"]])
        failing.clear()
        self.pass_time(2)
        self.assertEqual([each.timeline for each in seen], [["one"]] * 4)


class EndTests(TurnTestCase):
    """Observations that end before it is their turn."""

    def test_the_client_goes(self) -> None:
        seen = self.all_woken(4)
        self.clients[2].lose()
        self.assertEqual((self.observer.waiting, self.homeserver.cancelled), (1, 0))
        self.release_all()
        self.assertEqual([each.timeline for each in seen], [["one"], ["one"], [], ["one"]])
        self.assertEqual(len(self.homeserver.syncs), 3)

    def test_the_client_goes_whose_sync_runs(self) -> None:
        self.all_woken(3)
        self.clients[0].lose()
        self.settle()
        self.assertEqual((self.observer.waiting, self.homeserver.running), (0, AT_ONCE))

    def test_deregistration(self) -> None:
        seen = self.all_woken(3)
        self.clients[2].deregister(seen[2])
        self.settle()
        self.assertEqual((seen[2].final.body, self.observer.waiting), ({"next_batch": "s0"}, 0))

    def test_a_token_is_revoked(self) -> None:
        seen = self.all_woken(3)
        self.homeserver.revoke("user2-1")
        self.settle()
        self.assertEqual((seen[2].final.status, self.observer.waiting), (401, 0))
        self.release_all()
        self.assertEqual((seen[2].timeline, len(self.homeserver.syncs)), ([], 2))

    def test_the_server_stops(self) -> None:
        seen = self.all_woken(5)
        self.gateway.end_observations()
        self.settle()
        self.assertEqual([each.final.status for each in seen], [503] * 5)
        self.assertEqual(len(self.homeserver.syncs), AT_ONCE)
        self.assert_nothing_left()
        self.gateway.shutdown()
        for client in (self.alice, *self.clients):
            client.driver.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_all_go_at_once(self) -> None:
        self.all_woken(5)
        for client in self.clients:
            client.lose()
        self.assert_nothing_left()
        self.gateway.shutdown()
        for client in (self.alice, *self.clients):
            client.driver.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
