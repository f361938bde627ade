# SPDX-License-Identifier: AGPL-3.0-or-later
"""The operations that are measured, and the requests they consist of. It knows nothing of how requests travel."""

from __future__ import annotations

import base64
import json
import random
import string
from typing import Any, Final
from urllib.parse import quote, urlencode

import attrs

from synapse_lb.cli.conversation import CLIENT, GREETING

CIPHERTEXT_LENGTH: Final = 400
"""Characters of unpadded base64: the Megolm message of a short text."""

POLL_TIMEOUT: Final = "01000"
"""Milliseconds that an empty sync waits: one second, written with as many characters as the usual 30000."""

TIMELINE_LIMIT: Final = 20
FILTER: Final = json.dumps({"room": {"timeline": {"limit": TIMELINE_LIMIT}}}, separators=(",", ":"))


class UnexpectedAnswer(Exception):
    """An answer has not in it what is to be measured."""


@attrs.frozen
class Sizes:
    """How much there is to fetch.

    Attributes:
        rooms: rooms of the initial sync.
        messages: messages in each.
        active_rooms: rooms with something new in the incremental sync.
        new_messages: messages in each.
        devices: devices of the key query, two of each user.
    """

    rooms: int = 50
    messages: int = 20
    active_rooms: int = 10
    new_messages: int = 5
    devices: int = 20


@attrs.frozen
class Operation:
    """Something whose bytes are counted.

    Attributes:
        key: its name in `--json` and in the tests.
        title: its name in the table, with the names of what there is to fetch in braces.
    """

    key: str
    title: str

    def title_with(self, sizes: Sizes) -> str:
        """Its name in the table, with how much there was to fetch."""
        return self.title.format(**attrs.asdict(sizes))


OPERATIONS: Final = (
    Operation("connect_first", "connect, send, answer: first time"),
    Operation("connect_resumed", "connect, send, answer: resumed"),
    Operation("send", "send a message, and its answer"),
    Operation("send_brief", "send a message, answer without its body"),
    Operation("send_encrypted", "send an encrypted event, and its answer"),
    Operation("receipt", "read receipt"),
    Operation("typing", "typing"),
    Operation("sync_empty", "long poll that ends empty"),
    Operation("push", "a message arrives"),
    Operation("push_encrypted", "an encrypted event arrives"),
    Operation("keepalive", "keep-alive"),
    Operation("sync_initial", "initial sync, {rooms} rooms x {messages} messages"),
    Operation("sync_incremental", "sync, {active_rooms} rooms x {new_messages} messages"),
    Operation("keys_query", "keys/query, {devices} devices"),
)
"""In the order in which they are shown."""


@attrs.frozen
class Call:
    """One request.

    Attributes:
        method: HTTP method.
        path: full path, percent-encoded, without query.
        query: names and values, in their order.
        body: JSON object, or None for no body.
    """

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: dict[str, Any] | None = attrs.field(default=None, repr=False)

    @property
    def target(self) -> str:
        """Path and query as HTTP's request line has them."""
        return f"{self.path}?{urlencode(self.query)}" if self.query else self.path


def _segment(text: str) -> str:
    """One segment of a path."""
    return quote(text, safe="")


def in_room(room_id: str, rest: str) -> str:
    """A path below a room's."""
    return f"{CLIENT}/rooms/{_segment(room_id)}/{rest}"


def send(room_id: str, transaction: str, text: str = GREETING) -> Call:
    """A message."""
    body = {"msgtype": "m.text", "body": text}
    return Call("PUT", in_room(room_id, f"send/m.room.message/{transaction}"), body=body)


def send_encrypted(room_id: str, transaction: str, content: dict[str, Any]) -> Call:
    """An encrypted event."""
    return Call("PUT", in_room(room_id, f"send/m.room.encrypted/{transaction}"), body=content)


def receipt(room_id: str, event_id: str) -> Call:
    """A read receipt."""
    return Call("POST", in_room(room_id, f"receipt/m.read/{_segment(event_id)}"), body={})


def typing(room_id: str, user_id: str, types: bool) -> Call:
    """A user types, or has stopped."""
    body: dict[str, Any] = {"typing": True, "timeout": 30000} if types else {"typing": False}
    return Call("PUT", in_room(room_id, f"typing/{_segment(user_id)}"), body=body)


def sync(since: str | None, *, timeout: str = "0", limited: bool = False) -> Call:
    """A sync.

    Args:
        since: where to go on; None for an initial one.
        timeout: milliseconds.
        limited: with `FILTER`.
    """
    query = [("timeout", timeout)]
    query += [("since", since)] if since is not None else []
    query += [("filter", FILTER)] if limited else []
    return Call("GET", f"{CLIENT}/sync", tuple(query))


def keys_query(user_ids: list[str]) -> Call:
    """Ask for the devices of users."""
    body = {"device_keys": {user_id: [] for user_id in user_ids}, "timeout": 10000}
    return Call("POST", f"{CLIENT}/keys/query", body=body)


def transaction(number: int) -> str:
    """A transaction id, as short as may be."""
    digits = string.digits + string.ascii_letters
    return (
        digits[number]
        if number < len(digits)
        else transaction(number // len(digits)) + digits[number % len(digits)]
    )


def expect_empty(body: Any) -> None:
    """Check that a sync has brought nothing.

    Raises:
        UnexpectedAnswer: it has.
    """
    if body.get("rooms") or body.get("to_device") or body.get("presence"):
        raise UnexpectedAnswer(f"a sync that should have been empty: {body}")


def expect_events(body: Any, *, rooms: int, events: int) -> None:
    """Check what a sync has brought: in so many rooms so many events of the timeline.

    Raises:
        UnexpectedAnswer: it is something else.
    """
    joined = body.get("rooms", {}).get("join", {})
    found = {len(room["timeline"]["events"]) for room in joined.values()}
    if len(joined) != rooms or found != {events}:
        raise UnexpectedAnswer(f"a sync with {events} events in each of {rooms} rooms was expected: {body}")


def expect_devices(body: Any, devices: int) -> None:
    """Check the answer to a key query.

    Raises:
        UnexpectedAnswer: it has not so many devices.
    """
    found = sum(len(each) for each in body["device_keys"].values())
    if found != devices:
        raise UnexpectedAnswer(f"the keys of {devices} devices were expected, not of {found}")


class Fabric:
    """Contents that look like the real ones, the same for the same seed.

    Args:
        seed: what they grow from.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def base64(self, octets: int) -> str:
        """Unpadded base64 of random octets, as keys, signatures and ciphertexts are."""
        return base64.b64encode(self._random.randbytes(octets)).decode().rstrip("=")

    def device_id(self) -> str:
        """Ten capital letters, as Synapse makes them."""
        return "".join(self._random.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=10))

    def megolm_session(self, device_id: str) -> MegolmSession:
        """What all events of a sender have in common until the session is replaced, after a hundred or so."""
        return MegolmSession(self, device_id, self.base64(32), self.base64(32))

    def device_keys(self, user_id: str, device_id: str) -> dict[str, Any]:
        """The body of /keys/upload, without one-time keys."""
        keys = {f"{name}:{device_id}": self.base64(32) for name in ("curve25519", "ed25519")}
        signature = {f"ed25519:{device_id}": self.base64(64)}
        algorithms = ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"]
        return {
            "device_keys": {
                "algorithms": algorithms,
                "device_id": device_id,
                "keys": keys,
                "signatures": {user_id: signature},
                "user_id": user_id,
            }
        }

    def text(self) -> str:
        """A message of 2 to 20 words."""
        words = self._random.choices(_WORDS.split(), k=self._random.randint(2, 20))
        return " ".join(words).capitalize() + self._random.choice((".", "!", "?", ""))


@attrs.frozen
class MegolmSession:
    """An outbound Megolm session.

    Attributes:
        fabric: where ciphertexts come from.
        device_id: the sender's.
        sender_key: its identity key.
        session_id: of the session.
    """

    fabric: Fabric = attrs.field(repr=False)
    device_id: str
    sender_key: str
    session_id: str

    def event(self) -> dict[str, Any]:
        """The content of the next m.room.encrypted event (Matrix spec, m.megolm.v1.aes-sha2)."""
        return {
            "algorithm": "m.megolm.v1.aes-sha2",
            "ciphertext": self.fabric.base64(CIPHERTEXT_LENGTH * 3 // 4),
            "device_id": self.device_id,
            "sender_key": self.sender_key,
            "session_id": self.session_id,
        }


_WORDS: Final = (
    "the of and to a in is you that it he was for on are as with his they I at be this have from or one had by "
    "word but not what all were we when your can said there use an each which she do how their if will up other "
    "about out many then them these so some her would make like him into time has look two more write go see "
    "number no way could people my than first water been call who oil its now find long down day did get come "
    "made may part over new sound take only little work know place year live me back give most very after thing "
    "our just name good sentence man think say great where help through much before line right too mean old any "
    "same tell boy follow came want show also around form three small set put end does another well large must "
    "big even such because turn here why ask went men read need land different home us move try kind hand "
    "picture again change off play spell air away animal house point page letter mother answer found study "
    "still learn should server meeting tomorrow thanks train station coffee later okay photo garden ticket"
)
