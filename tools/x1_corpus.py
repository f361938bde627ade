# SPDX-License-Identifier: AGPL-3.0-or-later
"""Makes a corpus of Matrix bodies: what clients send, and what a real Synapse answers.

    python -m tools.x1_corpus FILE [--seed N] [--people N] [--messages N]

Starts a throw-away Synapse, walks through the Client-Server API with a few people in a few rooms, and writes every
request and answer as one line of JSON: `{"method", "path", "request", "status", "answer"}`. From such a corpus come
x1's tables of keys and values (`tools.x1_tables`) and its dictionary (`tools.x1_dictionary`). Texts and keys follow
from the seed; ids and times are Synapse's.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from synapse_lb.testing.throwaway import ThrowawayHomeserver
from tools.x1_shapes import ACCOUNT_DATA, MESSAGES, NAMES, STATES, olm_device, sentence

CLIENT: Final = "/_matrix/client/v3"
UNSTABLE: Final = "/_matrix/client/unstable"


class Recorder:
    """Requests to a Synapse, each written down.

    Args:
        homeserver: The Synapse, which runs.
        seed: What all texts follow from.
    """

    def __init__(self, homeserver: ThrowawayHomeserver, seed: int) -> None:
        self.homeserver = homeserver
        self.random = random.Random(seed)
        self.entries: list[dict[str, Any]] = []
        self.events: dict[str, list[str]] = {}
        self._transaction = 0

    def ask(self, method: str, path: str, body: Any = None, token: str | None = None) -> Any:
        """One request; its answer."""
        status, answer = self.homeserver.request(method, path, body, token)
        if isinstance(answer, dict | list):
            entry = {"method": method, "path": path, "request": body, "status": status, "answer": answer}
            self.entries.append(entry)
        return answer

    def transaction(self) -> str:
        """A transaction id as clients make them."""
        self._transaction += 1
        return f"m{1790000000000 + self._transaction}.{self._transaction}"

    def base64(self, size: int) -> str:
        """Unpadded base64 of so many random bytes."""
        return base64.b64encode(self.random.randbytes(size)).decode().rstrip("=")


class Person:
    """A user with one device."""

    def __init__(self, recorder: Recorder, name: str) -> None:
        self.recorder = recorder
        body = {"auth": {"type": "m.login.dummy"}, "username": name, "password": f"the password of {name}"}
        answer = recorder.ask("POST", f"{CLIENT}/register", body)
        self.name: str = name
        self.user_id: str = answer["user_id"]
        self.device_id: str = answer["device_id"]
        self.token: str = answer["access_token"]
        self.since: str | None = None

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One request with this user's token; `path` below v3 unless it is a whole one."""
        whole = path if path.startswith("/_matrix") else CLIENT + path
        return self.recorder.ask(method, whole, body, self.token)

    def sync(self) -> Any:
        """A sync from where the last one ended."""
        since = "" if self.since is None else f"&since={quote(self.since)}"
        answer = self.ask("GET", f"/sync?timeout=0{since}")
        self.since = answer["next_batch"]
        return answer

    def send(self, room: str, kind: str, content: Any) -> str:
        """An event; its id."""
        path = f"/rooms/{quote(room)}/send/{quote(kind)}/{self.recorder.transaction()}"
        return str(self.ask("PUT", path, content).get("event_id"))


def encrypted(recorder: Recorder, person: Person, session: str, size: int) -> dict[str, Any]:
    """The content of an m.room.encrypted event (Megolm)."""
    return {
        "algorithm": "m.megolm.v1.aes-sha2",
        "sender_key": base64.b64encode(person.name.encode().ljust(32, b"k")).decode().rstrip("="),
        "ciphertext": recorder.base64(size),
        "session_id": session,
        "device_id": person.device_id,
    }


def make_keys(recorder: Recorder, person: Person) -> None:
    """Devices' keys, one-time keys, cross-signing, key backup, to-device messages."""
    person.ask("POST", "/keys/upload", olm_device(recorder.random, person.user_id, person.device_id))
    person.ask("POST", "/keys/query", {"device_keys": {person.user_id: []}, "timeout": 10000})
    person.ask(
        "POST",
        "/keys/claim",
        {"one_time_keys": {person.user_id: {person.device_id: "signed_curve25519"}}, "timeout": 10000},
    )
    master = {
        "user_id": person.user_id,
        "usage": ["master"],
        "keys": {f"ed25519:{(key := recorder.base64(32))}": key},
    }
    person.ask("POST", "/keys/device_signing/upload", {"master_key": master})
    auth = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": person.user_id},
        "password": f"the password of {person.name}",
    }
    person.ask("POST", "/keys/device_signing/upload", {"master_key": master, "auth": auth})
    make_backup(recorder, person)
    send_to_devices(recorder, person)
    for kind, data in ACCOUNT_DATA:
        person.ask("PUT", f"/user/{quote(person.user_id)}/account_data/{kind}", data)
    person.sync()


def make_backup(recorder: Recorder, person: Person) -> None:
    """A key backup with one session."""
    backup = {
        "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2",
        "auth_data": {
            "public_key": recorder.base64(32),
            "signatures": {person.user_id: {f"ed25519:{person.device_id}": recorder.base64(64)}},
        },
    }
    person.ask("POST", "/room_keys/version", backup)
    person.ask("GET", "/room_keys/version")
    session = {
        "first_message_index": 0,
        "forwarded_count": 0,
        "is_verified": True,
        "session_data": {
            "ciphertext": recorder.base64(300),
            "ephemeral": recorder.base64(32),
            "mac": recorder.base64(8),
        },
    }
    rooms: dict[str, Any] = {
        "rooms": {"!" + recorder.base64(32).replace("+", "-").replace("/", "_"): {"sessions": {}}}
    }
    next(iter(rooms["rooms"].values()))["sessions"][recorder.base64(32)] = session
    person.ask("PUT", "/room_keys/keys?version=1", rooms)
    person.ask("GET", "/room_keys/keys?version=1")


def send_to_devices(recorder: Recorder, person: Person) -> None:
    """An Olm message, and the steps of a verification."""
    olm = {
        "algorithm": "m.olm.v1.curve25519-aes-sha2",
        "ciphertext": {recorder.base64(32): {"type": 0, "body": recorder.base64(700)}},
        "org.matrix.msgid": "2f6b1a7e",
        "sender_key": recorder.base64(32),
    }
    path = f"/sendToDevice/m.room.encrypted/{recorder.transaction()}"
    person.ask("PUT", path, {"messages": {person.user_id: {person.device_id: olm}}})
    for kind in ("request", "ready", "start", "accept", "key", "mac", "done", "cancel"):
        content = {
            "from_device": person.device_id,
            "transaction_id": recorder.base64(24),
            "methods": ["m.sas.v1", "m.qr_code.scan.v1", "m.qr_code.show.v1", "m.reciprocate.v1"],
            "timestamp": 1790000000000,
        }
        path = f"/sendToDevice/m.key.verification.{kind}/{recorder.transaction()}"
        person.ask("PUT", path, {"messages": {person.user_id: {"*": content}}})
    person.sync()


def make_room(recorder: Recorder, number: int, people: Sequence[Person], messages: int) -> str:
    """A room with its people, events of each kind, and what clients ask about it."""
    owner = people[number % len(people)]
    shapes: list[dict[str, Any]] = [
        {"preset": "public_chat", "room_alias_name": f"room{number}"},
        {"preset": "private_chat", "is_direct": True, "invite": [people[0].user_id]},
        {"preset": "trusted_private_chat"},
    ]
    encryption = {
        "type": "m.room.encryption",
        "state_key": "",
        "content": {"algorithm": "m.megolm.v1.aes-sha2"},
    }
    body = {
        **shapes[number % 3],
        "name": sentence(recorder.random, 2),
        "topic": sentence(recorder.random, 8),
        "initial_state": [encryption] if number % 2 else [],
    }
    room = str(owner.ask("POST", "/createRoom", body)["room_id"])
    for person in people:
        if person is not owner:
            owner.ask("POST", f"/rooms/{quote(room)}/invite", {"user_id": person.user_id})
            if number == 0:
                person.sync()
            person.ask("POST", f"/rooms/{quote(room)}/join", {})
    for index in range(messages):
        speak(recorder, recorder.random.choice(people), room, index, bool(number % 2))
    return room


def speak(recorder: Recorder, person: Person, room: str, index: int, secretly: bool) -> None:
    """One event of the kind whose turn it is, and how another client sees it."""
    text = sentence(recorder.random, recorder.random.randrange(2, 16))
    if secretly and index % 3:
        session = base64.b64encode(room.encode().ljust(32)[:32]).decode().rstrip("=")
        event = person.send(
            room,
            "m.room.encrypted",
            encrypted(recorder, person, session, recorder.random.randrange(150, 400)),
        )
    elif index % 2:
        event = person.send(room, "m.room.message", {"msgtype": "m.text", "body": text})
    else:
        kind, content = MESSAGES[index // 2 % len(MESSAGES)](
            recorder.random, text, recorder.events[room][-1] if room in recorder.events else "$none"
        )
        event = person.send(room, kind, content)
    recorder.events.setdefault(room, []).append(event)
    if index % 4 == 0:
        path = f"/rooms/{quote(room)}/receipt/m.read/{quote(event)}"
        person.ask("POST", path, {} if index % 8 else {"thread_id": "main"})
        typing = {"typing": True, "timeout": 30000}
        person.ask("PUT", f"/rooms/{quote(room)}/typing/{quote(person.user_id)}", typing)
    person.sync()


def look_around(recorder: Recorder, person: Person, other: Person, room: str) -> None:
    """What clients ask about a room and about themselves."""
    here = f"/rooms/{quote(room)}"
    event = quote(recorder.events[room][-1])
    user = quote(person.user_id)
    for kind, key, content in STATES:
        person.ask("PUT", f"{here}/state/{kind}/{quote(key)}", content)
    for path in (
        f"{here}/messages?dir=b&limit=10",
        f"{here}/messages?dir=f&limit=2&filter=%7B%22lazy_load_members%22%3Atrue%7D",
        f"{here}/members",
        f"{here}/joined_members",
        f"{here}/state",
        f"{here}/state/m.room.power_levels",
        f"{here}/event/{event}",
        f"{here}/context/{event}?limit=4",
        f"{here}/aliases",
        f"/_matrix/client/v1{here}/relations/{event}",
        f"/_matrix/client/v1{here}/threads",
        f"/_matrix/client/v1{here}/hierarchy",
        f"/_matrix/client/v1{here}/timestamp_to_event?ts=1790000000000&dir=f",
        f"/user/{user}{here}/account_data/m.fully_read",
        f"/user/{user}{here}/tags",
        "/joined_rooms",
        "/publicRooms",
        f"/profile/{user}",
        f"/profile/{user}/displayname",
        f"/presence/{user}/status",
        "/devices",
        f"/devices/{person.device_id}",
        "/pushrules/",
        "/pushers",
        "/notifications?limit=5",
        "/capabilities",
        "/login",
        "/account/whoami",
        "/account/3pid",
        "/voip/turnServer",
        "/thirdparty/protocols",
        "/_matrix/client/versions",
        f"/directory/room/{quote('#room0:localhost')}",
        "/keys/changes?from=s1_0_0_0_0_0_0_0_0_0_0_0_0_0_0&to=s9_0_0_0_0_0_0_0_0_0_0_0_0_0_0",
    ):
        person.ask("GET", path)
    change_things(recorder, person, other, room)
    slide(person, room)


def change_things(recorder: Recorder, person: Person, other: Person, room: str) -> None:
    """What clients set, and ask with a body."""
    here, user = f"/rooms/{quote(room)}", quote(person.user_id)
    event = quote(recorder.events[room][-1])
    filters = {"room": {"timeline": {"limit": 20}, "state": {"lazy_load_members": True}}}
    identifier = person.ask("POST", f"/user/{user}/filter", filters)["filter_id"]
    person.ask("GET", f"/user/{user}/filter/{identifier}")
    person.ask("PUT", f"/user/{user}{here}/tags/m.favourite", {"order": 0.25})
    person.ask(
        "POST",
        f"{here}/read_markers",
        {"m.fully_read": recorder.events[room][-1], "m.read": recorder.events[room][0]},
    )
    person.ask("PUT", f"/profile/{user}/displayname", {"displayname": person.name.title()})
    person.ask("PUT", f"/presence/{user}/status", {"presence": "online", "status_msg": "Here"})
    person.ask("PUT", f"/devices/{person.device_id}", {"display_name": "Phone"})
    person.ask("PUT", f"{here}/redact/{event}/{recorder.transaction()}", {"reason": "Spam"})
    person.ask("POST", "/user_directory/search", {"search_term": other.name, "limit": 10})
    person.ask(
        "POST",
        "/search",
        {"search_categories": {"room_events": {"search_term": "time", "order_by": "recent"}}},
    )
    person.ask("POST", f"/user/{user}/openid/request_token", {})
    person.ask("POST", "/pushers/set", PUSHER)


def slide(person: Person, room: str) -> None:
    """Sliding sync with all that it has."""
    subscription = {
        "timeline_limit": 20,
        "required_state": [["m.room.name", ""], ["m.room.member", "$LAZY"], ["*", "*"]],
    }
    sliding = {
        "lists": {"all_rooms": {"ranges": [[0, 19]], **subscription}},
        "room_subscriptions": {room: subscription},
        "conn_id": "room-list",
        "extensions": {
            name: {"enabled": True} for name in ("to_device", "e2ee", "account_data", "receipts", "typing")
        },
    }
    person.ask("POST", f"{UNSTABLE}/org.matrix.simplified_msc3575/sync?timeout=0", sliding)


PUSHER: Final = {
    "pushkey": "APA91bHPRgkF3JUikC4ENAHEeMrd41Zxv3hVZjC9KtT8OvPVGJ-hQMRKRrZuJAEcl7B338qju59zJMjw2DELjzEvxwYv7h",
    "kind": "http",
    "app_id": "im.vector.app.android",
    "app_display_name": "Element",
    "device_display_name": "Phone",
    "lang": "en",
    "data": {"url": "https://matrix.org/_matrix/push/v1/notify", "format": "event_id_only"},
}


def be_refused(recorder: Recorder, person: Person, other: Person, room: str) -> None:
    """The errors that clients get to see."""
    nowhere = quote("!GQHMv6xQSfUVEFNHDRBAmBXbWKtaTaGDjRDYTKJUoT0")
    person.ask("POST", f"/rooms/{nowhere}/join", {})
    person.ask("GET", f"/rooms/{nowhere}/messages?dir=b")
    person.ask("PUT", f"/rooms/{nowhere}/send/m.room.message/x", {"msgtype": "m.text", "body": "x"})
    person.ask("GET", "/nothing")
    person.ask("GET", f"/user/{quote(other.user_id)}/account_data/m.direct")
    person.ask("GET", f"/user/{quote(person.user_id)}/account_data/none")
    person.ask("GET", f"/rooms/{quote(room)}/event/{quote('$none')}")
    person.ask("DELETE", f"/devices/{person.device_id}", {})
    person.ask("POST", "/createRoom", {"room_alias_name": "room0"})
    recorder.ask("GET", f"{CLIENT}/sync", None, "wrong")
    recorder.ask("GET", f"{CLIENT}/sync")
    recorder.ask(
        "POST", f"{CLIENT}/login", {"type": "m.login.password", "user": "alice", "password": "wrong"}
    )
    other.ask("POST", f"/rooms/{quote(room)}/kick", {"user_id": person.user_id, "reason": "Enough"})
    person.ask("POST", f"/rooms/{quote(room)}/ban", {"user_id": other.user_id, "reason": "Enough"})
    person.sync()
    other.sync()
    person.ask("POST", f"/rooms/{quote(room)}/unban", {"user_id": other.user_id})
    person.ask("POST", f"/rooms/{quote(room)}/upgrade", {"new_version": "12"})
    person.ask("POST", f"/rooms/{quote(room)}/leave", {})
    person.ask("POST", f"/rooms/{quote(room)}/forget", {})
    person.sync()


def record(
    homeserver: ThrowawayHomeserver, seed: int, names: Sequence[str], messages: int
) -> list[dict[str, Any]]:
    """Walk through the API.

    Args:
        homeserver: a Synapse that runs, with nobody on it.
        seed: what texts follow from.
        names: localparts of the people.
        messages: events in each room.

    Returns:
        The requests and answers, in order.
    """
    recorder = Recorder(homeserver, seed)
    people = [Person(recorder, name) for name in names]
    for person in people:
        make_keys(recorder, person)
    rooms = [make_room(recorder, number, people, messages) for number in range(len(people))]
    for number, person in enumerate(people):
        look_around(recorder, person, people[number - 1], rooms[number])
    for person in people:
        person.since = None
        person.sync()
    for number, person in enumerate(people):
        be_refused(recorder, person, people[number - 1], rooms[number])
    people[0].ask("POST", "/logout", {})
    people[0].ask("GET", "/sync")
    return recorder.entries


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments say; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="tools.x1_corpus")
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--people", type=int, default=3)
    parser.add_argument("--messages", type=int, default=44)
    options = parser.parse_args(arguments)
    with ThrowawayHomeserver(lowbandwidth=False) as homeserver:
        entries = record(homeserver, options.seed, NAMES[: options.people], options.messages)
    with options.file.open("w", encoding="utf-8") as file:
        for entry in entries:
            file.write(json.dumps(entry, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(f"{len(entries)} requests and answers")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
