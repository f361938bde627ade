# SPDX-License-Identifier: AGPL-3.0-or-later
"""What two users do with a homeserver, request by request, whatever carries the requests.

`live` and then `part` are given a `World` and make the same requests in every one: the conversation of the demo, then
a walk through the Client-Server API, its errors included, and logging out. Where a request needs what an earlier
answer said (a room id, a session), it takes that from its own world.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote

import attrs

from synapse_lb.cli.conversation import PASSWORD, Answer, Names, converse
from synapse_lb.msc3079.messages import NO_BODY
from tests.e2e.harness import CLIENT

BIGGEST = 2**53 - 1
"""The largest integer of Canonical JSON."""

V1 = "/_matrix/client/v1"
UNSTABLE = "/_matrix/client/unstable"


@attrs.frozen
class Call:
    """One request."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: Any = NO_BODY
    token: str | None = None


class World(Protocol):
    """A homeserver, by one transport, with users of its own."""

    first: str
    """Localpart of the first user."""
    second: str
    """Localpart of the second one."""
    loner: str
    """Localpart of the third one. All have the same lengths in every world."""

    async def ask(self, call: Call) -> Answer:
        """Make a request, and remember it and its answer."""


class Person:
    """A user in a world."""

    def __init__(self, world: World, name: str, token: str | None) -> None:
        self.world = world
        self.name = name
        self.token = token
        self.id = f"@{name}:localhost"

    async def ask(self, method: str, path: str, body: Any = NO_BODY, **query: str) -> Any:
        """A request of this user: the answer's body."""
        path = path if path.startswith(("/_", "/.")) else CLIENT + path
        answer = await self.world.ask(Call(method, path, tuple(query.items()), body, self.token))
        return answer.body


def escaped(text: str) -> str:
    """As one segment of a path."""
    return quote(text, safe="")


async def live(world: World) -> tuple[Person, Person]:
    """The story but for its end: the two users."""
    first, second = await _meet(world)
    nobody = Person(world, "nobody", None)
    await _without_a_token(nobody, first)
    await _profile(nobody)
    await _account(first)
    room = await _room(first, second)
    await _messages(first, second, room)
    await _state_and_paths(first, room)
    await _directory(first, second, room)
    await _keys(first, second)
    await _filters_and_sync(first, room)
    await _refusals(first, second, room)
    await _devices(first)
    await _leave(first, second, room)
    return first, second


async def _meet(world: World) -> tuple[Person, Person]:
    names = Names(world.first, world.second)
    steps = converse(names)
    step = next(steps)
    while True:
        body = NO_BODY if step.body is None else step.body
        answer = await world.ask(Call(step.method, step.path, step.query, body, step.token))
        try:
            step = steps.send(answer)
        except StopIteration as end:
            tokens = end.value.tokens
            return Person(world, world.first, tokens[0]), Person(world, world.second, tokens[1])


async def _without_a_token(nobody: Person, user: Person) -> None:
    await nobody.ask("GET", "/.well-known/matrix/client")
    await nobody.ask("GET", "/login")
    await nobody.ask("POST", "/register", {"username": user.name})
    await nobody.ask("POST", "/register", {"username": user.name, "auth": {"type": "m.login.dummy"}})
    await nobody.ask("POST", "/register", {}, kind="guest")
    await nobody.ask("GET", "/register/available", username=user.name)
    await nobody.ask("GET", "/register/available", username="Not Valid")
    await nobody.ask("GET", "/register/available", username=f"{user.name}-free")
    await nobody.ask("POST", "/login", {"type": "m.login.unheard-of"})
    await nobody.ask("POST", "/login", {})
    identifier = {"type": "m.id.user", "user": user.name}
    await nobody.ask(
        "POST", "/login", {"type": "m.login.password", "identifier": identifier, "password": "wrong"}
    )
    for path in ("/sync", "/account/whoami", "/joined_rooms", "/publicRooms"):
        await nobody.ask("GET", path)
    stranger = Person(nobody.world, "stranger", "nonsense")
    await stranger.ask("GET", "/account/whoami")


async def _profile(nobody: Person) -> None:
    """Of somebody who is in no room, so that Synapse has no member events to change later."""
    world = nobody.world
    body = {"auth": {"type": "m.login.dummy"}, "username": world.loner, "password": PASSWORD}
    registered = await nobody.ask("POST", "/register", body)
    user = Person(world, world.loner, str(registered["access_token"]))
    me = escaped(user.id)
    await user.ask("PUT", f"/profile/{me}/displayname", {"displayname": "Zoë 🦊"})
    await user.ask("PUT", f"/profile/{me}/displayname", {"displayname": 7})
    for part in ("", "/displayname", "/avatar_url"):
        await user.ask("GET", f"/profile/{me}{part}")


async def _account(user: Person) -> None:
    me = escaped(user.id)
    await user.ask("GET", "/account/whoami")
    await user.ask("GET", "/capabilities")
    await user.ask("GET", "/account/3pid")
    await user.ask("PUT", f"/presence/{me}/status", {"presence": "online", "status_msg": "here"})
    await user.ask("GET", f"/presence/{me}/status")
    await user.ask("PUT", f"/user/{me}/account_data/org.example.a", {"list": [1, None, True, {}], "8": "x"})
    await user.ask("GET", f"/user/{me}/account_data/org.example.a")
    await user.ask("GET", f"/user/{me}/account_data/org.example.none")
    await user.ask("GET", "/pushrules/")
    await user.ask("GET", "/pushrules/global/override/.m.rule.master/enabled")
    rule = {"actions": ["notify"], "pattern": "cake"}
    await user.ask("PUT", "/pushrules/global/content/cake", rule)
    await user.ask("GET", "/pushrules/global/content/cake")
    await user.ask("DELETE", "/pushrules/global/content/cake")
    await user.ask("GET", "/pushrules/global/content/cake")
    await user.ask("GET", "/pushers")
    await user.ask("GET", "/notifications")
    await user.ask("POST", f"/user/{me}/openid/request_token", {})
    await user.ask("GET", "/voip/turnServer")
    await user.ask("GET", "/thirdparty/protocols")


async def _room(first: Person, second: Person) -> str:
    room = await first.ask(
        "POST",
        "/createRoom",
        {
            "name": "Größe ✓",
            "topic": "numbers",
            "room_alias_name": f"lounge-{first.name}",
            "initial_state": [{"type": "org.example.initial", "content": {"least": -BIGGEST}}],
            "power_level_content_override": {"users_default": 0, "events": {"m.room.name": 50}},
        },
    )
    room_id = str(room["room_id"])
    here = f"/rooms/{escaped(room_id)}"
    await second.ask("POST", f"{here}/join", {})
    await first.ask("POST", f"{here}/invite", {"user_id": second.id})
    await second.ask("POST", f"/join/{escaped(room_id)}", {"reason": "asked"})
    await second.ask("POST", f"{here}/join", {})
    return room_id


async def _messages(first: Person, second: Person, room: str) -> None:
    here = f"/rooms/{escaped(room)}"
    text = {"msgtype": "m.text", "body": "héllo\n\u2028\x00 \\ \" '", "numbers": [0, -1, BIGGEST, -BIGGEST]}
    sent = await first.ask("PUT", f"{here}/send/m.room.message/a1", text)
    again = await first.ask("PUT", f"{here}/send/m.room.message/a1", text)
    assert sent == again, "a transaction id stands for one event"
    event = escaped(str(sent["event_id"]))
    await second.ask("GET", f"{here}/event/{event}")
    await second.ask("GET", f"{here}/context/{event}", limit="2")
    await second.ask("GET", f"{here}/messages", dir="b", limit="5")
    await second.ask("GET", f"{here}/messages", dir="sideways")
    reaction = {"m.relates_to": {"rel_type": "m.annotation", "event_id": str(sent["event_id"]), "key": "👍"}}
    await second.ask("PUT", f"{here}/send/m.reaction/b1", reaction)
    await second.ask("PUT", f"{here}/send/m.reaction/b2", reaction)
    await second.ask("GET", f"{V1}{here}/relations/{event}/m.annotation")
    await second.ask("POST", f"{here}/receipt/m.read/{event}", {})
    await second.ask("POST", f"{here}/read_markers", {"m.fully_read": str(sent["event_id"])})
    await second.ask("PUT", f"{here}/typing/{escaped(second.id)}", {"typing": True, "timeout": 1000})
    await first.ask("PUT", f"{here}/typing/{escaped(second.id)}", {"typing": True})
    await first.ask("PUT", f"{here}/redact/{event}/r1", {"reason": "typo"})
    await second.ask("GET", f"{here}/event/{event}")
    await second.ask("PUT", f"{here}/redact/{escaped('$none')}/r2", {})
    await first.ask("POST", f"{here}/report/{event}", {"reason": "spam", "score": -100})
    await first.ask("POST", "/search", {"search_categories": {"room_events": {"search_term": "nothing"}}})


async def _state_and_paths(user: Person, room: str) -> None:
    here = f"/rooms/{escaped(room)}"
    for key in ("", "a/b", "%2F", "a b", "ä#?&=+", "€"):
        await user.ask("PUT", f"{here}/state/org.example.key/{escaped(key)}", {"key": key})
        await user.ask("GET", f"{here}/state/org.example.key/{escaped(key)}")
    await user.ask("PUT", f"{here}/state/m.room.name", {"name": "renamed"})
    await user.ask("GET", f"{here}/state/m.room.name")
    await user.ask("GET", f"{here}/state/org.example.none")
    await user.ask("GET", f"{here}/state")
    await user.ask("GET", f"{here}/members", membership="join")
    await user.ask("GET", f"{here}/joined_members")
    await user.ask("GET", f"{here}/aliases")
    await user.ask("GET", "/joined_rooms")
    await user.ask("GET", f"{V1}{here}/hierarchy")
    await user.ask("GET", f"{V1}{here}/threads")
    tags = f"/user/{escaped(user.id)}{here}/tags"
    await user.ask("PUT", f"{tags}/u.work", {"order": 1})
    await user.ask("GET", tags)
    await user.ask("DELETE", f"{tags}/u.work")
    await user.ask("PUT", f"/user/{escaped(user.id)}{here}/account_data/org.example.r", {"a": {"b": []}})
    await user.ask("GET", f"/user/{escaped(user.id)}{here}/account_data/org.example.r")


async def _directory(first: Person, second: Person, room: str) -> None:
    alias = escaped(f"#lounge-{first.name}:localhost")
    await second.ask("GET", f"/directory/room/{alias}")
    await second.ask("PUT", f"/directory/room/{alias}", {"room_id": room})
    await second.ask("DELETE", f"/directory/room/{alias}")
    await second.ask("GET", f"/directory/room/{escaped('#none:localhost')}")
    await second.ask("GET", "/directory/room/nonsense")
    await first.ask("PUT", f"/directory/list/room/{escaped(room)}", {"visibility": "private"})
    await first.ask("GET", f"/directory/list/room/{escaped(room)}")
    await first.ask("POST", "/user_directory/search", {"search_term": "nobody has this name", "limit": 3})
    await first.ask("GET", f"/profile/{escaped('@none:localhost')}")
    await first.ask("GET", "/profile/nonsense")


async def _keys(first: Person, second: Person) -> None:
    algorithms = ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"]
    who = await first.ask("GET", "/account/whoami")
    device = str(who["device_id"])
    keys = {f"curve25519:{device}": "A" * 43, f"ed25519:{device}": "B" * 43}
    device_keys = {
        "user_id": first.id,
        "device_id": device,
        "algorithms": algorithms,
        "keys": keys,
        "signatures": {first.id: {f"ed25519:{device}": "C" * 86}},
    }
    one_time = {f"signed_curve25519:AAAAA{n}": {"key": f"{n}" * 43} for n in range(3)}
    await first.ask("POST", "/keys/upload", {"device_keys": device_keys, "one_time_keys": one_time})
    await first.ask("POST", "/keys/upload", {"device_keys": {**device_keys, "user_id": "@x:y"}})
    await second.ask("POST", "/keys/query", {"device_keys": {first.id: []}})
    claim = {"one_time_keys": {first.id: {device: "signed_curve25519"}}}
    await second.ask("POST", "/keys/claim", claim)
    await second.ask("PUT", "/sendToDevice/org.example.d/1", {"messages": {first.id: {"*": {"n": 1}}}})
    await second.ask("POST", "/keys/device_signing/upload", {"master_key": {}})
    await second.ask("GET", "/room_keys/version")
    version = {"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": {"public_key": "x"}}
    made = await second.ask("POST", "/room_keys/version", version)
    await second.ask("GET", "/room_keys/version")
    await second.ask("GET", "/room_keys/keys", version=str(made["version"]))
    await second.ask("DELETE", f"/room_keys/version/{made['version']}")


async def _filters_and_sync(user: Person, room: str) -> None:
    wanted = {"room": {"rooms": [room], "timeline": {"limit": 2}}, "presence": {"types": []}}
    made = await user.ask("POST", f"/user/{escaped(user.id)}/filter", wanted)
    await user.ask("GET", f"/user/{escaped(user.id)}/filter/{made['filter_id']}")
    await user.ask("GET", f"/user/{escaped(user.id)}/filter/9999")
    synced = await user.ask("GET", "/sync", filter=str(made["filter_id"]), timeout="0")
    await user.ask("GET", "/sync", filter='{"presence":{"types":[]}}', timeout="0", full_state="true")
    since = str(synced["next_batch"])
    say = {"msgtype": "m.text", "body": "one more"}
    await user.ask("PUT", f"/rooms/{escaped(room)}/send/m.room.message/s1", say)
    await user.ask("GET", "/sync", filter=str(made["filter_id"]), since=since, timeout="5000")
    await user.ask("GET", "/sync", filter="nonsense")
    await user.ask("GET", "/sync", since="nonsense")
    await user.ask("GET", "/sync", timeout="soon")
    sliding = {
        "lists": {"all": {"ranges": [[0, 3]], "required_state": [["m.room.name", ""]], "timeline_limit": 1}}
    }
    await user.ask("POST", f"{UNSTABLE}/org.matrix.simplified_msc3575/sync", sliding, timeout="0")


async def _refusals(first: Person, second: Person, room: str) -> None:
    here = f"/rooms/{escaped(room)}"
    for body in ({"preset": 1}, ["no object"], "text", 7, {"invite": "nobody"}, {"room_version": "no"}):
        await first.ask("POST", "/createRoom", body)
    await first.ask("POST", "/createRoom", {"room_alias_name": f"lounge-{first.name}"})
    await first.ask("GET", "/no/such/thing")
    await first.ask("GET", f"{here}/event/{escaped('$none')}")
    for method in ("DELETE", "PUT", "PATCH", "POST"):
        await first.ask(method, "/sync", {} if method != "DELETE" else NO_BODY)
    await second.ask("PUT", f"{here}/state/m.room.name", {"name": "not allowed"})
    await second.ask("POST", f"{here}/kick", {"user_id": first.id})
    await second.ask("POST", f"{here}/ban", {})
    await second.ask("PUT", f"/profile/{escaped(first.id)}/displayname", {"displayname": "stolen"})
    await second.ask("GET", f"/user/{escaped(first.id)}/account_data/org.example.a")
    await second.ask("GET", f"/rooms/{escaped('!none:localhost')}/state")
    await second.ask("POST", f"/join/{escaped('!none:localhost')}", {})
    await second.ask("POST", f"/join/{escaped('#none:localhost')}", {})
    await first.ask("PUT", f"{here}/send/m.room.message/huge", {"msgtype": "m.text", "body": "x" * 70_000})
    await first.ask("PUT", f"{here}/send/m.room.message/long", {"msgtype": "m.text", "body": "y" * 20_000})
    await first.ask("PUT", f"{here}/send/m.room.message/half", {"msgtype": "m.text", "n": 1.5})
    await first.ask("PUT", f"{here}/send/m.room.message/big", {"msgtype": "m.text", "n": BIGGEST + 1})


async def _devices(user: Person) -> None:
    who = await user.ask("GET", "/account/whoami")
    device = escaped(str(who["device_id"]))
    await user.ask("GET", "/devices")
    await user.ask("PUT", f"/devices/{device}", {"display_name": "renamed"})
    await user.ask("GET", f"/devices/{device}")
    await user.ask("GET", "/devices/NONE")
    asked = await user.ask("POST", "/delete_devices", {"devices": ["NONE"]})
    identifier = {"type": "m.id.user", "user": user.name}
    auth: Mapping[str, Any] = {"type": "m.login.password", "identifier": identifier}
    session = asked["session"]
    for password in ("wrong", PASSWORD):
        proof = {**auth, "password": password, "session": session}
        await user.ask("POST", "/delete_devices", {"devices": ["NONE"], "auth": proof})
    await user.ask("POST", "/account/password", {"new_password": "y"})


async def _leave(first: Person, second: Person, room: str) -> None:
    here = f"/rooms/{escaped(room)}"
    await second.ask("POST", f"{here}/leave", {})
    await second.ask("POST", f"{here}/leave", {})
    await second.ask("POST", f"{here}/forget", {})
    await second.ask("GET", f"{here}/state")
    await first.ask("POST", f"{here}/ban", {"user_id": second.id, "reason": "story"})
    await second.ask("POST", f"{here}/join", {})
    await first.ask("POST", f"{here}/unban", {"user_id": second.id})
    await first.ask("POST", f"{here}/upgrade", {"new_version": "nonsense"})


async def part(first: Person, second: Person) -> None:
    """The end of the story: logging out, and in again."""
    await first.ask("POST", "/logout", {})
    await first.ask("GET", "/account/whoami")
    body = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": first.name},
        "password": PASSWORD,
        "device_id": "AGAIN",
    }
    first.token = None
    again = await first.ask("POST", "/login", body)
    first.token = str(again["access_token"])
    await first.ask("GET", "/account/whoami")
    await first.ask("POST", "/logout/all", {})
    await first.ask("GET", "/account/whoami")
    await second.ask("GET", "/account/whoami")
