# SPDX-License-Identifier: AGPL-3.0-or-later
"""The conversation of `synapse-lb demo`: two people meet in a room. It knows nothing of how requests travel.

`converse` is a generator of `Step`s which is sent the answer to each, so that the very same conversation can be
held over CoAP and over HTTPS, with other users each time:

    steps = converse(Names("alice", "bob"))
    step = next(steps)
    while True:
        step = steps.send(answer_to(step))
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final
from urllib.parse import quote, urlencode

import attrs

CLIENT: Final = "/_matrix/client/v3"
PASSWORD: Final = "correct horse battery"
GREETING: Final = "Hello World"
REPLY: Final = "Hello! Over how many packets did that come?"


class ConversationFailed(Exception):
    """An answer was not what the conversation needs to go on."""


@attrs.frozen
class Names:
    """Localparts of the two users. The same lengths give the same sizes on the wire."""

    first: str
    second: str


@attrs.frozen
class Answer:
    """What came back.

    Attributes:
        status: HTTP status.
        body: JSON value.
    """

    status: int
    body: Any


@attrs.frozen
class Step:
    """One request of the conversation.

    Attributes:
        speaker: 0 or 1: which of the two sends it.
        does: what it is for, in a person's words.
        method: HTTP method.
        path: full path, percent-encoded, without query.
        title: the path as a person reads it: short, without ids.
        query: keys and values, in their order.
        body: JSON object, or None for no body.
        token: access token, or None.
    """

    speaker: int
    does: str
    method: str
    path: str
    title: str
    query: tuple[tuple[str, str], ...] = ()
    body: dict[str, Any] | None = attrs.field(default=None, repr=False)
    token: str | None = attrs.field(default=None, repr=False)

    @property
    def target(self) -> str:
        """Path and query as HTTP's request line has them."""
        return f"{self.path}?{urlencode(self.query)}" if self.query else self.path


@attrs.define
class Outcome:
    """What the conversation leaves behind; the generator's return value.

    Attributes:
        user_ids: of the two.
        tokens: their access tokens.
        room_id: the room in which they met.
        heard: what each of the two read from the other.
    """

    user_ids: list[str]
    tokens: list[str]
    room_id: str
    heard: list[str]


Conversation = Generator[Step, Answer, Outcome]


def converse(names: Names) -> Conversation:
    """Hold the conversation.

    Raises:
        ConversationFailed: a status other than 200, or a message that did not arrive.
    """
    versions = yield Step(0, "What can this server do?", "GET", "/_matrix/client/versions", "/versions")
    _expect("versions" in versions.body, "no versions in the answer to /versions")
    yield _register(0, names.first)
    yield _register(1, names.second)
    first = yield _login(0, names.first)
    second = yield _login(1, names.second)
    tokens = [str(first.body["access_token"]), str(second.body["access_token"])]
    user_ids = [str(first.body["user_id"]), str(second.body["user_id"])]
    room_id = yield from _meet(names, tokens, user_ids[1])
    heard = yield from _talk(names, tokens, room_id)
    return Outcome(user_ids, tokens, room_id, heard)


def _meet(names: Names, tokens: list[str], guest: str) -> Generator[Step, Answer, str]:
    room = {"name": "Low bandwidth", "preset": "private_chat"}
    created = yield Step(
        0, "Make a room.", "POST", f"{CLIENT}/createRoom", "/createRoom", body=room, token=tokens[0]
    )
    room_id = str(created.body["room_id"])
    yield _in_room(0, tokens[0], room_id, f"Ask {names.second} in.", "POST", "/invite", {"user_id": guest})
    yield _in_room(1, tokens[1], room_id, "Come in.", "POST", "/join", {})
    return room_id


def _talk(names: Names, tokens: list[str], room_id: str) -> Generator[Step, Answer, list[str]]:
    synced = yield _sync(1, tokens[1], f"{names.second} catches up.", None)
    since = str(synced.body["next_batch"])
    yield _message(0, tokens[0], room_id, GREETING, "t1")
    synced = yield _sync(1, tokens[1], f"{names.second} receives it.", since)
    heard = _bodies(synced.body["rooms"]["join"][room_id]["timeline"]["events"])
    _expect(heard == [GREETING], f"{names.second} should have received {GREETING!r}, not {heard}")
    yield _message(1, tokens[1], room_id, REPLY, "t1")
    step = _in_room(0, tokens[0], room_id, f"{names.first} reads back.", "GET", "/messages", None)
    history = yield attrs.evolve(step, query=(("dir", "b"), ("limit", "10")))
    texts = _bodies(history.body["chunk"])
    _expect(texts == [REPLY, GREETING], f"the history should hold both messages, not {texts}")
    return [REPLY, GREETING]


def _register(speaker: int, name: str) -> Step:
    body = {
        "auth": {"type": "m.login.dummy"},
        "username": name,
        "password": PASSWORD,
        "inhibit_login": True,
    }
    return Step(speaker, f"Become {name}.", "POST", f"{CLIENT}/register", "/register", body=body)


def _login(speaker: int, name: str) -> Step:
    body = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": name},
        "password": PASSWORD,
        "initial_device_display_name": "demo",
    }
    return Step(speaker, f"Log in as {name}.", "POST", f"{CLIENT}/login", "/login", body=body)


def _sync(speaker: int, token: str, does: str, since: str | None) -> Step:
    query = (("timeout", "0"),) if since is None else (("since", since), ("timeout", "30000"))
    title = "/sync" if since is None else "/sync?since"
    return Step(speaker, does, "GET", f"{CLIENT}/sync", title, query=query, token=token)


def _message(speaker: int, token: str, room_id: str, text: str, transaction: str) -> Step:
    body = {"msgtype": "m.text", "body": text}
    step = _in_room(speaker, token, room_id, f"Say {text!r}.", "PUT", "/send/m.room.message", body)
    return attrs.evolve(step, path=f"{step.path}/{transaction}")


def _in_room(
    speaker: int, token: str, room_id: str, does: str, method: str, what: str, body: dict[str, Any] | None
) -> Step:
    path = f"{CLIENT}/rooms/{quote(room_id, safe='')}{what}"
    return Step(speaker, does, method, path, f"/rooms/…{what}", body=body, token=token)


def _bodies(events: list[dict[str, Any]]) -> list[str]:
    return [str(event["content"]["body"]) for event in events if event["type"] == "m.room.message"]


def _expect(condition: bool, complaint: str) -> None:
    if not condition:
        raise ConversationFailed(complaint)
