# SPDX-License-Identifier: AGPL-3.0-or-later
"""A client's ``/sync`` says what Synapse's own says, and looks up less."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any
from urllib.parse import quote, urlencode

from synapse.api.errors import ResourceLimitError
from synapse.module_api.errors import ConfigError
from synapse.rest.admin.experimental_features import ExperimentalFeature
from twisted.internet.defer import Deferred

from synapse_lb.homeserver import hooks, plain_syncs
from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.testing.synapse import override_config
from tests.homeserver.test_further_syncs import CLIENT, SYNC, FurtherSyncTestCase

FUTURE = "s999999_9_9_9_9_9_9_9_0_9_9_9_9_9"


class PlainSyncTests(FurtherSyncTestCase):
    """`PlainSyncs`."""

    def begin_plain(self, token: str, query: dict[str, str]) -> Deferred[MatrixResponse]:
        """Ask for a sync, as a client does."""
        request = MatrixRequest("GET", SYNC, urlencode(query).encode(), access_token=token)
        return self.dispatcher.dispatch(request, CLIENT)

    def ask_plain(self, token: str, **query: str) -> MatrixResponse:
        """Ask for a sync and wait for it."""
        done = self.begin_plain(token, query)
        self.reactor.advance(0)
        return self.successResultOf(done)

    def ask_synapse(self, token: str, **query: str) -> MatrixResponse:
        """The same of Synapse itself; nothing is taken from its cache."""
        self.hs.get_sync_handler().response_cache._result_cache.clear()
        client = self.dispatcher._site.client
        plain, client.plain = client.plain, None
        try:
            return self.ask_plain(token, **query)
        finally:
            client.plain = plain
            self.hs.get_sync_handler().response_cache._result_cache.clear()

    def same(self, token: str, **query: str) -> Any:
        """Ask for both, which must be the same; return it."""
        ours, theirs = self.ask_plain(token, **query), self.ask_synapse(token, **query)
        self.assertEqual(ours.status, theirs.status)
        self.assertEqual(json.loads(json.dumps(ours.body)), json.loads(json.dumps(theirs.body)))
        return ours.body

    def set_up(self) -> tuple[str, str, str]:
        """A user in a room, where something was said after the position; returns token, room and position."""
        token = self.register_and_login("alice")
        room = self.create_room(token)
        since = str(self.sync(token)["next_batch"])
        self.send(room, "Hello", token)
        return token, room, since

    def looked_up(self) -> Counter[str]:
        """Count from now on what is looked up."""
        counts: Counter[str] = Counter()
        sources, auth = self.hs.get_event_sources(), self.hs.get_auth_blocking()
        store = self.hs.get_datastores().main
        for owner, name in (
            (sources, "bound_future_token"),
            (sources, "get_current_token"),
            (auth, "check_auth_blocking"),
            (store, "is_feature_enabled"),
        ):
            original = getattr(owner, name)

            def counted(*args: Any, original: Any = original, name: str = name, **named: Any) -> Any:
                counts[name] += 1
                return original(*args, **named)

            self.patch(owner, name, counted)
        return counts

    def test_the_same(self) -> None:
        token, room, since = self.set_up()
        told = self.same(token, since=since)
        self.assertEqual(len(told["rooms"]["join"][room]["timeline"]["events"]), 1)
        self.same(token, since=told["next_batch"])
        self.same(token)
        self.same(token, since=since, timeout="0", set_presence="offline")
        self.same(token, since=since, full_state="true", set_presence="unavailable")
        self.same(token, since=since, filter=json.dumps({"room": {"timeline": {"limit": 1}}}))
        for wrong in ({"since": "nonsense"}, {"timeout": "x"}, {"set_presence": "x"}, {"from": "1"}):
            self.assertIn("errcode", self.same(token, **wrong))

    def test_less_is_looked_up(self) -> None:
        token, _, since = self.set_up()
        counts = self.looked_up()
        self.ask_plain(token, since=since)
        ours = counts.copy()
        counts.clear()
        self.ask_synapse(token, since=since)
        self.assertEqual(ours["check_auth_blocking"] + ours["is_feature_enabled"], 0, ours)
        self.assertEqual(counts["check_auth_blocking"], 1, counts)
        self.assertEqual(ours["bound_future_token"] + counts["is_feature_enabled"], 1, (ours, counts))
        self.assertLessEqual(ours["get_current_token"], counts["get_current_token"])

    def test_a_position_that_was_not_reached(self) -> None:
        """Synapse brings it into its bounds, where it does that, or waits."""
        token, _, since = self.set_up()
        ahead = FUTURE.split("_", 1)[0] + "_" + since.split("_", 1)[1]
        counts = self.looked_up()
        ours = self.begin_plain(token, {"since": ahead})
        self.reactor.advance(0)
        self.reactor.advance(60)
        answer = self.successResultOf(ours)
        self.assertEqual(answer.status, 200, answer.body)
        self.assertGreater(counts["bound_future_token"], 0, counts)

    def test_a_long_poll(self) -> None:
        token, room, since = self.set_up()
        since = str(self.ask_plain(token, since=since).body["next_batch"])
        waiting = self.begin_plain(token, {"since": since, "timeout": "30000"})
        self.reactor.advance(1)
        self.assertNoResult(waiting)
        event = self.send(room, "news", token)
        self.reactor.advance(0)
        joined = self.successResultOf(waiting).body["rooms"]["join"][room]
        self.assertEqual([each["event_id"] for each in joined["timeline"]["events"]], [event])

    def test_state_after(self) -> None:
        """Who asks for MSC4222 and may have it."""
        token, room, since = self.set_up()
        path = f"/rooms/{quote(room)}/state/m.room.name"
        self.ok("PUT", path, {"name": "A room"}, token)
        store = self.hs.get_datastores().main
        self.get_success(store.set_features_for_user("@alice:test", {ExperimentalFeature.MSC4222: True}))
        with_it = self.same(token, since=since, **{"org.matrix.msc4222.use_state_after": "true"})
        self.assertIn("org.matrix.msc4222.state_after", with_it["rooms"]["join"][room])
        without = self.same(token, since=since)
        self.assertNotIn("org.matrix.msc4222.state_after", without["rooms"]["join"][room])

    @override_config({"limit_usage_by_mau": True, "max_mau_value": 5})
    def test_a_user_who_is_turned_away(self) -> None:
        token, _, since = self.set_up()

        async def check_auth_blocking(requester: Any) -> None:
            raise ResourceLimitError(403, f"No more of {requester.user}")

        self.patch(self.hs.get_auth_blocking(), "check_auth_blocking", check_auth_blocking)
        self.assertEqual(self.ask_plain(token, since=since).status, 403)

    def test_a_synapse_without_what_is_needed(self) -> None:
        servlet = hooks.ClientResource(self.hs).sync_servlet()
        assert servlet is not None
        for owner, name in plain_syncs.needed_of(servlet):
            self.assertTrue(hasattr(owner, name))
        del servlet.sync_handler.notifier
        with self.assertRaises(ConfigError) as caught:
            self.homeserver.site(tag="lb", port=1, logger_name="x")
        self.assertIn("'notifier'", caught.exception.msg)
