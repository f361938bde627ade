# SPDX-License-Identifier: AGPL-3.0-or-later
"""How an observed sync ends, and what is left of it; how many there may be."""

from __future__ import annotations

from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import Options
from synapse_lb.msc3079.mapping import encode_request
from synapse_lb.server.sync_observer import ObserveOptions
from tests.server.observing import SYNC, UNKNOWN_TOKEN, Observer, ObserverTestCase, Seen


class EndTests(ObserverTestCase):
    """Who ends it and how."""

    def assert_nothing_left(self) -> None:
        """Neither here nor in the homeserver is anything of an observation."""
        self.assertEqual((self.gateway.observations, self.homeserver.open), (0, 0))
        self.assertEqual([each.closed for each in self.homeserver.subscriptions if each.closed != 1], [])
        self.assertEqual([each.waiting for each in self.homeserver.subscriptions if each.waiting], [])
        self.assertEqual(self.homeserver.running, 0)

    def test_deregistration(self) -> None:
        self.homeserver.say("one")
        seen = self.registered()
        self.homeserver.say("two")
        self.settle()
        self.alice.deregister(seen)
        self.settle()
        # No sync was run for it; what it says is a result after the last that was delivered.
        self.assertEqual((seen.final.status, seen.final.body), (200, {"next_batch": "s2"}))
        self.assertEqual(len(self.homeserver.syncs), 2)
        self.assertEqual(self.counters.ended, 1)
        self.assert_nothing_left()

    def test_deregistration_while_one_is_on_its_way(self) -> None:
        self.alice.processing = False
        seen = self.registered(SYNC + "?since=s0")
        self.alice.deregister(seen)
        self.settle()
        self.assertEqual(seen.final.body, {"next_batch": "s0"})
        self.assert_nothing_left()

    def test_deregistration_of_what_is_not_there(self) -> None:
        for path, body in ((SYNC, {}), (SYNC + "?since=s7&timeout=30000", {"next_batch": "s7"})):
            seen = self.alice.ask_to_stop(path)
            self.settle()
            self.assertEqual((seen.final.status, seen.final.body), (200, body))
        self.assertEqual(self.homeserver.syncs, [])

    def test_what_was_ended_is_not_told_to_another(self) -> None:
        """The request that ended it was refused; the next one with Observe 1 is somebody else's."""
        self.ended_by_what_is_refused()
        other = self.alice.ask_to_stop(token="bob-1")
        self.settle()
        self.assertEqual(other.final.body, {})

    def test_what_was_ended_is_not_told_of_something_else(self) -> None:
        """The next one is the same user's, and of another place."""
        self.ended_by_what_is_refused()
        other = self.alice.ask_to_stop(SYNC + "?since=s7")
        self.settle()
        self.assertEqual(other.final.body, {"next_batch": "s7"})

    def ended_by_what_is_refused(self) -> None:
        """Observe 1 with the token of an observation, in a message that is not served."""
        self.homeserver.say("one")
        seen = self.registered()
        token = next(iter(self.gateway.endpoint._core.peers[1].serving))
        code, pairs, _ = encode_request("GET", SYNC, token="alice-1")
        options = Options.of(*pairs, (OptionNumber.OBSERVE, b"\x01"), (65001, b"critical"))
        self.gateway.message_received(1, Message(Type.CON, code, 9999, token, options).encode())
        self.settle()
        self.assertEqual(Message.decode(self.alice.received[-1]).code, Code.BAD_OPTION)
        self.assertEqual(len(seen.notifications), 1)

    def test_a_reset(self) -> None:
        seen = self.registered()
        self.alice.forget(seen)
        self.homeserver.say("unwanted")
        self.settle()
        self.assertEqual((self.counters.failed, self.port.closed), (1, []))
        self.assert_nothing_left()

    def test_the_association_ends(self) -> None:
        """While nothing happens, while a sync runs, while a notification is on its way."""
        self.registered()
        self.alice.lose()
        self.assert_nothing_left()
        for processing, latency in ((True, None), (False, 0.0)):
            self.alice = Observer(self.gateway, self.port, self.clock, len(self.homeserver.subscriptions) + 1)
            self.alice.processing = processing
            self.homeserver.latency = latency
            self.alice.observe()
            self.settle()
            self.assertEqual(self.gateway.observations, 1)
            self.alice.lose()
            self.assert_nothing_left()
        self.assertEqual(self.homeserver.cancelled, 1)
        self.assertTrue(self.gateway.endpoint.idle)

    def test_the_same_token_again_begins_anew(self) -> None:
        self.alice.processing = False
        self.homeserver.say("one")
        seen = self.registered()
        token = next(iter(self.gateway.endpoint._core.peers[1].serving))
        code, pairs, _ = encode_request("GET", SYNC, token="alice-1")
        options = Options.of(*pairs, (OptionNumber.OBSERVE, b""))
        self.gateway.message_received(1, Message(Type.CON, code, 9999, token, options).encode())
        self.settle()
        # It is tried again at once, with a number of its own.
        self.assertEqual(seen.timeline, ["one", "one"])
        self.assertEqual((self.gateway.observations, self.homeserver.open), (1, 1))
        self.alice.confirm(seen)
        self.alice.confirm(seen)
        self.homeserver.say("two")
        self.settle()
        self.assertEqual(seen.timeline, ["one", "one", "two"])

    def test_a_token_is_revoked(self) -> None:
        seen = self.registered()
        other = self.registered(token="alice-2")
        self.homeserver.revoke("alice-1")
        self.settle()
        self.assertEqual((seen.final.status, seen.final.body), (401, UNKNOWN_TOKEN))
        self.assertEqual((self.gateway.observations, self.counters.revoked), (1, 1))
        self.homeserver.say("still")
        self.settle()
        self.assertEqual((seen.timeline, other.timeline), ([], ["still"]))

    def test_a_token_is_revoked_while_a_sync_runs(self) -> None:
        seen = self.registered()
        self.homeserver.latency = None
        self.homeserver.say("secret")
        self.settle()
        self.homeserver.revoke("alice-1")
        self.homeserver.release()
        self.settle()
        self.assertEqual((seen.final.status, seen.timeline, self.homeserver.cancelled), (401, [], 1))
        self.assert_nothing_left()

    def test_a_token_is_revoked_while_one_is_on_its_way(self) -> None:
        self.alice.processing = False
        seen = self.registered()
        self.homeserver.revoke("alice-1")
        self.settle()
        self.assertEqual(seen.final.status, 401)
        self.assert_nothing_left()

    def test_a_token_that_was_revoked_is_not_sticky(self) -> None:
        self.registered()
        self.homeserver.revoke("alice-1")
        self.settle()
        self.alice.request("GET", "/_matrix/client/v3/account/whoami")
        self.settle()
        self.assertIsNone(self.homeserver.requests[-1][0].access_token)

    def test_the_server_stops(self) -> None:
        self.alice.processing = False
        seen = [self.registered()]
        self.alice.processing = True
        seen.append(self.registered())
        self.homeserver.latency = None
        self.homeserver.say("too late")
        self.settle()
        seen.append(self.alice.observe())
        self.settle()
        self.gateway.end_observations()
        self.settle()
        self.assertEqual([each.final.status for each in seen], [503] * 3)
        self.assertEqual([each.final.retry_after for each in seen], [5.0] * 3)
        self.assert_nothing_left()
        self.gateway.shutdown()
        self.alice.driver.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_stop_alone_leaves_nothing(self) -> None:
        self.registered()
        self.homeserver.latency = 5.0
        self.alice.observe()
        self.settle()
        self.gateway.shutdown()
        self.alice.driver.stop()
        self.homeserver.latency = None
        self.assert_nothing_left()
        self.pass_time(6)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class NoObserverTests(ObserverTestCase):
    """A listener with observing switched off."""

    def test_registrations_are_plain_requests(self) -> None:
        self.gateway.observer = None
        seen = self.alice.observe(SYNC + "?timeout=5")
        self.settle()
        self.assertEqual((seen.final.status, seen.notifications), (200, []))
        self.assertEqual(self.homeserver.syncs, [{"timeout": "5"}])
        self.assertEqual(self.gateway.observations, 0)


class UserLimitTests(ObserverTestCase):
    """Observations of one user."""

    options = ObserveOptions(max_observations_per_user=2)

    def register(self, token: str) -> Seen:
        """Register on an association of its own."""
        client = Observer(self.gateway, self.port, self.clock, len(self.port.clients) + 1)
        seen = client.observe(token=token)
        self.settle()
        return seen

    def test_the_oldest_of_the_same_token_makes_room(self) -> None:
        """It is likely to be of a client that went away without a word."""
        other, first, second = (self.register(token) for token in ("alice-2", "alice-1", "alice-1"))
        self.assertEqual(first.final.status, 503)
        self.assertEqual((first.final.body["errcode"], first.final.retry_after), ("M_LIMIT_EXCEEDED", 60.0))
        self.assertEqual((other.last, second.last, len(second.notifications)), (None, None, 1))
        self.assertEqual((self.counters.displaced, self.counters.refused), (1, 0))

    def test_if_there_is_none_it_is_refused(self) -> None:
        one, two, third = (self.register(token) for token in ("alice-2", "alice-2", "alice-1"))
        self.assertEqual((one.last, two.last), (None, None))
        self.assertEqual((third.final.status, third.notifications), (503, []))
        self.assertEqual((self.counters.refused, self.homeserver.open, self.gateway.observations), (1, 2, 2))

    def test_who_has_ended_makes_room(self) -> None:
        """Of an observation that has ended nothing is counted: two more of the same token displace nobody."""
        for _ in range(3):
            clients = [
                Observer(self.gateway, self.port, self.clock, len(self.port.clients) + 1) for _ in range(2)
            ]
            seen = [client.observe(token="alice-1") for client in clients]
            self.settle()
            self.assertEqual([len(each.notifications) for each in seen], [1, 1])
            self.gateway.end_observations()
            self.assertEqual(self.gateway.observations, 0)
        self.assertEqual((self.counters.displaced, self.counters.refused), (0, 0))

    def test_others_have_room_of_their_own(self) -> None:
        seen = [self.register(token) for token in ("alice-1", "alice-2", "bob-1", "bob-1")]
        self.assertEqual([each.last for each in seen], [None] * 4)
