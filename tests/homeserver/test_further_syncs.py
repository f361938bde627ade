# SPDX-License-Identifier: AGPL-3.0-or-later
"""Further syncs of observations: what comes of them is what comes of ``/sync``, and they share what they read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from random import Random
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import quote, urlencode

from synapse.api.errors import ResourceLimitError
from synapse.module_api import ModuleApi
from synapse.module_api.errors import ConfigError
from synapse.rest.client.sync import SyncRestServlet
from synapse.storage.database import DatabasePool
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred

from synapse_lb.homeserver import further_syncs, hooks
from synapse_lb.homeserver.dispatch import SynapseDispatcher
from synapse_lb.homeserver.further_syncs import MAX_BATCHES, Batches
from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.testing.synapse import HomeserverTestCase, override_config

V3 = "/_matrix/client/v3"
SYNC = f"{V3}/sync".encode()
CLIENT = IPv4Address("UDP", "192.0.2.7", 50000)
HOST = IPv4Address("UDP", "192.0.2.1", 8008)


class FurtherSyncTestCase(HomeserverTestCase):
    """Asks a homeserver for syncs, as the observers of a listener do."""

    def prepare(self, reactor: Any, homeserver: Any) -> None:
        """Make the listener's dispatcher."""
        api = cast(ModuleApi, SimpleNamespace(_hs=homeserver))
        self.homeserver = hooks.Homeserver(api)
        self.dispatcher = SynapseDispatcher(self.homeserver, tag="lb", port=HOST.port, host=HOST)
        self.whole: list[Any] = []
        original = SyncRestServlet.on_GET

        async def on_GET(servlet: SyncRestServlet, request: Any) -> tuple[int, Any]:
            self.whole.append(request)
            return await original(servlet, request)

        # Plain requests do not come by here: their servlet's method was registered before.
        self.patch(SyncRestServlet, "on_GET", on_GET)

    def ok(self, method: str, path: str, body: Any, token: str) -> Any:
        """A request that must succeed."""
        return self._ok(method, V3 + path, body, token)

    def begin(
        self, token: str, since: str, query: dict[str, str] | None = None, *, further: bool = True
    ) -> Deferred[MatrixResponse]:
        """Ask for a sync."""
        text = urlencode({**(query or {}), "since": since, "set_presence": "offline"}).encode()
        request = MatrixRequest("GET", SYNC, text, access_token=token, is_further=further)
        return self.dispatcher.dispatch(request, CLIENT)

    def ask(
        self, token: str, since: str, query: dict[str, str] | None = None, *, further: bool = True
    ) -> MatrixResponse:
        """Ask for a sync and wait for it."""
        done = self.begin(token, since, query, further=further)
        self.reactor.advance(0)
        return self.successResultOf(done)

    def both(self, token: str, since: str, *, without: Collection[str] = (), **query: str) -> dict[str, Any]:
        """Ask for a further sync and for a plain one, which must be the same but for some parts; return it."""
        whole = len(self.whole)
        further = self.ask(token, since, query)
        self.assertEqual(len(self.whole), whole, "served as a plain one")
        # Synapse remembers whose memberships a client has been sent, also in a result that it never saw.
        sent: Any = self.hs.get_sync_handler().lazy_loaded_members_cache
        for key in list(vars(sent)["_cache"]):
            sent.pop(key)
        plain = self.ask(token, since, query, further=False)
        self.assertEqual(plain.status, 200, plain.body)
        self.assertEqual(_in_order(further.body, without), _in_order(plain.body, without))
        self.assertEqual((further.status, further.authenticated), (200, True))
        return dict(further.body)


def _in_order(body: Any, without: Collection[str]) -> Any:
    """A result as JSON, with the state of rooms, which has none, in an order."""
    result = {name: part for name, part in json.loads(json.dumps(body)).items() if name not in without}
    for room in [room for rooms in result.get("rooms", {}).values() for room in rooms.values()]:
        room.get("state", {}).get("events", []).sort(key=lambda event: str(event["event_id"]))
    return result


class SameTests(FurtherSyncTestCase):
    """Whatever happens, a further sync says what a plain one says."""

    def story(self, alice: str, bob: str, room: str) -> list[tuple[str, str, str, Any]]:
        """What happens, one after the other: who does it, and how."""
        rooms, path = f"/rooms/{quote(room)}", quote("@bob:test")
        message, alices = {"msgtype": "m.text", "body": "x"}, quote("@alice:test")
        return [
            (alice, "PUT", f"{rooms}/send/m.room.message/1", message),
            (bob, "PUT", f"{rooms}/send/m.room.message/2", message),
            (alice, "PUT", f"{rooms}/state/m.room.name", {"name": "A room"}),
            (alice, "PUT", f"{rooms}/typing/{alices}", {"typing": True, "timeout": 30000}),
            (bob, "PUT", f"/user/{path}/account_data/org.example", {"value": 1}),
            (bob, "PUT", f"/user/{path}/rooms/{quote(room)}/account_data/org.example", {"value": 2}),
            (bob, "PUT", f"/user/{path}/rooms/{quote(room)}/tags/u.tag", {"order": 0.5}),
            (alice, "PUT", "/sendToDevice/org.example/1", {"messages": {"@bob:test": {"*": {"key": "k"}}}}),
            (alice, "PUT", f"/presence/{alices}/status", {"presence": "online", "status_msg": "here"}),
            (alice, "POST", "/createRoom", {"invite": ["@bob:test"]}),
            (alice, "POST", f"{rooms}/invite", {"user_id": "@carol:test"}),
            (bob, "POST", "/createRoom", {"name": "another"}),
            (alice, "PUT", f"{rooms}/state/m.room.history_visibility", {"history_visibility": "joined"}),
            (alice, "PUT", f"{rooms}/state/m.room.topic", {"topic": "of joined people"}),
            (bob, "POST", f"{rooms}/leave", {}),
            (alice, "PUT", f"{rooms}/send/m.room.message/3", message),
            (bob, "POST", f"/join/{quote(room)}", {}),
            (alice, "PUT", f"{rooms}/send/m.room.message/4", message),
            (alice, "POST", f"{rooms}/kick", {"user_id": "@bob:test"}),
        ]

    def set_up(self) -> tuple[str, str, str, str]:
        """Two users in a room; returns their tokens, the room and where the second one's streams are."""
        alice, bob = self.register_and_login("alice"), self.register_and_login("bob")
        self.register_user("carol")
        room = self.create_room(alice, preset="public_chat")
        self.join(room, bob)
        return alice, bob, room, self.sync(bob)["next_batch"]

    def test_one_after_the_other(self) -> None:
        alice, bob, room, since = self.set_up()
        told = 0
        for who, method, path, body in self.story(alice, bob, room):
            self.ok(method, path, body, who)
            result = self.both(bob, since)
            told += bool(result.keys() - {"next_batch", "device_one_time_keys_count"})
            since = result["next_batch"]
        self.assertEqual(told, len(self.story(alice, bob, room)))

    def test_all_together(self) -> None:
        """Also where the sync goes over several results, from each of the places before."""
        alice, bob, room, since = self.set_up()
        places = [since]
        for who, method, path, body in self.story(alice, bob, room):
            self.ok(method, path, body, who)
            places.append(self.sync(bob, places[-1])["next_batch"])
        for place in places[::-1]:
            self.both(bob, place)

    def test_people_in_several_rooms(self) -> None:
        """Who share rooms, come and go, and were told last at different times."""
        random = Random(7)
        names = ("alice", "bob", "carol", "dora")
        tokens = {f"@{name}:test": self.register_and_login(name) for name in names}
        rooms = [self.create_room(tokens["@alice:test"], preset="public_chat") for _ in range(3)]
        places = {user: self.sync(token)["next_batch"] for user, token in tokens.items()}
        # Who came to one room and left another counts as new or not by which of them Synapse has done first.
        by_chance = ("presence", "device_lists")
        compared = 0
        for number in range(120):
            user, room = random.choice(list(tokens)), quote(random.choice(rooms))
            what = random.choice(("say", "say", "say", "say", "join", "join", "leave", "name"))
            method, path, body = {
                "say": (
                    "PUT",
                    f"/rooms/{room}/send/m.room.message/{number}",
                    {"msgtype": "m.text", "body": "x"},
                ),
                "join": ("POST", f"/join/{room}", {}),
                "leave": ("POST", f"/rooms/{room}/leave", {}),
                "name": ("PUT", f"/rooms/{room}/state/m.room.name", {"name": f"Room {number}"}),
            }[what]
            # Who is not there may not; that is no matter.
            self.make_request(method, V3 + path, body, tokens[user])
            for listener in random.sample(list(tokens), random.randrange(3)):
                result = self.both(tokens[listener], places[listener], without=by_chance)
                places[listener] = result["next_batch"]
                compared += 1
        self.assertGreater(compared, 90)

    def test_filters(self) -> None:
        alice, bob, room, since = self.set_up()
        lazy = {"room": {"state": {"lazy_load_members": True}, "timeline": {"limit": 2}}}
        hidden = {"room": {"rooms": []}, "presence": {"not_types": ["*"]}}
        ids = [
            str(self.ok("POST", f"/user/{quote('@bob:test')}/filter", each, bob)["filter_id"])
            for each in (lazy, hidden)
        ]
        for number in range(5):
            self.send(room, f"{number}", alice)
        timelines = [
            self.both(bob, since, filter=each)
            .get("rooms", {})
            .get("join", {})
            .get(room, {})
            .get("timeline", {})
            for each in ids
        ]
        self.assertEqual([len(each.get("events", [])) for each in timelines], [2, 0])
        self.assertTrue(timelines[0]["limited"])

    def test_each_user_sees_what_is_his(self) -> None:
        """What is read together is shown to each as it is to be: own transaction ids, ignored people, old messages."""
        alice, bob, room, _ = self.set_up()
        dora = self.register_and_login("dora")
        ignoring: dict[str, Any] = {"ignored_users": {"@alice:test": {}}}
        self.ok("PUT", f"/user/{quote('@dora:test')}/account_data/m.ignored_user_list", ignoring, dora)
        self.join(room, dora)
        places = [self.sync(token)["next_batch"] for token in (alice, bob, dora)]
        self.send(room, "Hello", alice)
        seen = []
        for token, place in zip((alice, bob, dora), places, strict=True):
            joined = self.both(token, place).get("rooms", {}).get("join", {}).get(room, {})
            events = joined.get("timeline", {}).get("events", [])
            seen.append(["transaction_id" in each["unsigned"] for each in events])
        self.assertEqual(seen, [[True], [False], []])


class CheckTests(FurtherSyncTestCase):
    """What is looked at before each of them."""

    def set_up(self) -> tuple[str, str, str]:
        """A user in a room; returns the token, the room and the place in the streams."""
        token = self.register_and_login("alice")
        room = self.create_room(token)
        since = str(self.sync(token)["next_batch"])
        self.assertEqual(self.ask(token, since).status, 200)
        return token, room, since

    def errcode(self, response: MatrixResponse) -> tuple[int, str]:
        """Status and code of an error."""
        return response.status, response.body["errcode"]

    def test_tokens(self) -> None:
        token, _, since = self.set_up()
        self.assertEqual(self.errcode(self.ask("nobodys", since)), (401, "M_UNKNOWN_TOKEN"))
        self.ok("POST", "/logout", {}, token)
        self.assertEqual(self.errcode(self.ask(token, since)), (401, "M_UNKNOWN_TOKEN"))

    @override_config({"session_lifetime": "10m"})
    def test_a_session_that_is_over(self) -> None:
        token, _, since = self.set_up()
        self.reactor.advance(601)
        refused = self.ask(token, since)
        self.assertEqual(self.errcode(refused), (401, "M_UNKNOWN_TOKEN"))
        self.assertTrue(refused.body["soft_logout"])

    def test_a_locked_account(self) -> None:
        token, _, since = self.set_up()
        self.get_success(self.hs.get_datastores().main.set_user_locked_status("@alice:test", True))
        self.assertEqual(self.errcode(self.ask(token, since)), (401, "M_USER_LOCKED"))

    @override_config({"limit_usage_by_mau": True, "max_mau_value": 5})
    def test_a_user_who_is_turned_away(self) -> None:
        token, _, since = self.set_up()
        blocking = self.hs.get_auth_blocking()

        async def check_auth_blocking(requester: Any) -> None:
            raise ResourceLimitError(403, f"No more of {requester.user}")

        self.patch(blocking, "check_auth_blocking", check_auth_blocking)
        self.assertEqual(self.errcode(self.ask(token, since)), (403, "M_RESOURCE_LIMIT_EXCEEDED"))

    def test_a_position_that_is_none(self) -> None:
        token, _, _ = self.set_up()
        self.assertEqual(self.ask(token, "nonsense").status, 400)

    def test_to_device_messages_that_were_delivered_are_deleted(self) -> None:
        token, _, since = self.set_up()
        body = {"messages": {"@alice:test": {"*": {"key": "k"}}}}
        self.ok("PUT", "/sendToDevice/org.example/1", body, token)
        first = self.ask(token, since).body
        self.assertEqual(len(first["to_device"]["events"]), 1)
        pool = self.hs.get_datastores().main.db_pool
        count = pool.simple_select_list("device_inbox", {}, ["message_json"])
        self.assertEqual(len(self.get_success(count)), 1)
        self.ask(token, first["next_batch"])
        count = pool.simple_select_list("device_inbox", {}, ["message_json"])
        self.assertEqual(len(self.get_success(count)), 0)

    def test_anything_special_is_served_as_a_plain_one(self) -> None:
        token, _, since = self.set_up()
        whole = json.dumps({"room": {"timeline": {"limit": 1}}})
        for number, query in enumerate(
            ({"filter": whole}, {"full_state": "true"}, {"timeout": "0"}, {"x": "y"}), start=1
        ):
            self.assertEqual(self.ask(token, since, query).status, 200)
            self.assertEqual(len(self.whole), number, query)
        for text in (
            b"set_presence=offline",
            b"since=" + since.encode(),
            b"since=1&since=2&set_presence=offline",
        ):
            before = len(self.whole)
            request = MatrixRequest("GET", SYNC, text, access_token=token, is_further=True)
            done = self.dispatcher.dispatch(request, CLIENT)
            self.reactor.advance(0)
            self.successResultOf(done)
            self.assertEqual(len(self.whole), before + 1, text)

    def test_other_resources(self) -> None:
        """Only `/sync` is served in this way, whatever is said of a request."""
        token, _, _ = self.set_up()
        request = MatrixRequest("GET", f"{V3}/account/whoami".encode(), access_token=token, is_further=True)
        done = self.dispatcher.dispatch(request, CLIENT)
        self.reactor.advance(0)
        self.assertEqual(self.successResultOf(done).body["user_id"], "@alice:test")

    def test_a_client_that_goes_away(self) -> None:
        """Cancelled while the database is asked; who asked the same has the answer."""
        token, room, since = self.set_up()
        self.send(room, "Hello", token)
        first, second = self.begin(token, since), self.begin(token, since)
        first.cancel()
        self.reactor.advance(0)
        self.failureResultOf(first)
        self.assertEqual(len(self.successResultOf(second).body["rooms"]["join"]), 1)
        self.flushLoggedErrors()

    def test_a_synapse_without_what_is_needed(self) -> None:
        client = hooks.ClientResource(self.hs)
        servlet = client.sync_servlet()
        assert servlet is not None
        for owner, name in further_syncs.needed_of(servlet):
            self.assertTrue(hasattr(owner, name))
        del servlet.sync_handler._device_handler
        with self.assertRaises(ConfigError) as caught:
            self.homeserver.site(tag="lb", port=1, logger_name="x")
        self.assertIn("_device_handler", caught.exception.msg)


QUESTIONS = (
    "get_room_events_stream_for_room",
    "get_timeline_gaps",
    "get_last_event_pos_in_room_before_stream_ordering",
)
"""What Synapse calls the transactions of a sync about a room."""


class SharingTests(FurtherSyncTestCase):
    """Of many observers one asks for all."""

    USERS = 12

    def asked(self) -> Counter[str]:
        """Count what the database is asked from now on."""
        counts: Counter[str] = Counter()
        original = DatabasePool.runInteraction

        async def runInteraction(pool: DatabasePool, desc: str, *args: Any, **named: Any) -> Any:
            counts[desc] += 1
            return await original(pool, desc, *args, **named)

        self.patch(DatabasePool, "runInteraction", runInteraction)
        return counts

    def crowd(self) -> tuple[str, list[str], list[str]]:
        """Users in a room; returns the room, the tokens and the place of each, which is the same."""
        tokens = [self.register_and_login(f"user{number}") for number in range(self.USERS)]
        room = self.create_room(tokens[0], preset="public_chat")
        for token in tokens[1:]:
            self.join(room, token)
        places = [self.sync(token)["next_batch"] for token in tokens]
        places = [
            str(self.ask(token, place).body["next_batch"])
            for token, place in zip(tokens, places, strict=True)
        ]
        self.assertEqual(len(set(places)), 1)
        return room, tokens, places

    def told(self, text: str, room: str, tokens: list[str], places: list[str]) -> Counter[str]:
        """Let all be told of a message together; return what the database was asked."""
        counts = self.asked()
        waiting = [self.begin(token, place) for token, place in zip(tokens, places, strict=True)]
        self.reactor.advance(0)
        for done in waiting:
            timeline = self.successResultOf(done).body["rooms"]["join"][room]["timeline"]["events"]
            self.assertEqual([each["content"]["body"] for each in timeline], [text])
        return counts

    def test_one_question_for_all(self) -> None:
        room, tokens, places = self.crowd()
        self.send(room, "Hello", tokens[0])
        counts = self.told("Hello", room, tokens, places)
        for question in QUESTIONS:
            self.assertEqual(counts[question], 1, counts)
        self.assertEqual(counts["get_unread_event_push_actions_by_room"], self.USERS, counts)

    def test_from_different_places(self) -> None:
        """Each was told of something of its own meanwhile, and of the room before."""
        room, tokens, places = self.crowd()
        self.send(room, "before", tokens[0])
        for number, token in enumerate(tokens):
            self.create_room(token)
            places[number] = str(self.ask(token, places[number]).body["next_batch"])
        self.assertEqual(len(set(places)), self.USERS)
        self.send(room, "Hello", tokens[0])
        counts = self.told("Hello", room, tokens, places)
        for question in QUESTIONS:
            # Rooms of their own, of which some were told last: those are asked for once more.
            self.assertLessEqual(counts[question], 3, counts)

    def test_plain_syncs_share_nothing(self) -> None:
        """They are left as Synapse has them."""
        room, tokens, places = self.crowd()
        self.send(room, "Hello", tokens[0])
        counts = self.asked()
        waiting = [
            self.begin(token, place, further=False) for token, place in zip(tokens, places, strict=True)
        ]
        self.reactor.advance(0)
        for done in waiting:
            self.assertIn("rooms", self.successResultOf(done).body)
        self.assertEqual(counts["get_room_events_stream_for_room"], self.USERS, counts)

    def test_the_next_message_is_another_question(self) -> None:
        room, tokens, places = self.crowd()
        for text in ("one", "two", "three"):
            event = self.send(room, text, tokens[0])
            results = [self.ask(token, place).body for token, place in zip(tokens, places, strict=True)]
            for result in results:
                timeline = result["rooms"]["join"][room]["timeline"]
                self.assertEqual([each["event_id"] for each in timeline["events"]], [event])
            places = [result["next_batch"] for result in results]

    def test_a_redaction(self) -> None:
        """What was read before it is not told after it."""
        room, tokens, places = self.crowd()
        event = self.send(room, "a secret", tokens[0])
        self.assertIn("a secret", str(self.ask(tokens[1], places[1]).body))
        path = f"/rooms/{quote(room)}/redact/{quote(event)}/of-the-redaction"
        self.ok("PUT", path, {}, tokens[0])
        self.assertNotIn("a secret", str(self.ask(tokens[2], places[2]).body))


class BatchesTests(HomeserverTestCase):
    """`Batches`."""

    def test_bounded(self) -> None:
        batches = Batches(None)
        token: Any = object()
        batches.put("first", token)
        for number in range(MAX_BATCHES - 1):
            batches.put(str(number), token)
        self.assertIs(batches.get("first"), token)
        batches.put("one more", token)
        self.assertEqual(len(batches), MAX_BATCHES)
        self.assertIs(batches.get("first"), token)
        self.assertIsNone(batches.get("0"))
