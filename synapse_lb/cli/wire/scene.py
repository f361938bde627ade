# SPDX-License-Identifier: AGPL-3.0-or-later
"""The homeserver that is measured, and who and what is on it.

The conditions are those that the goals name: a room id of 44 characters (room version 12), an access token of 38
(a localpart of four), a self-signed P-256 certificate of 414 bytes. Presence is off, so that nothing is said
but what an operation says.
"""

from __future__ import annotations

import base64
import http.client
import itertools
import json
import re
from collections.abc import Callable
from typing import Any, Final

import attrs

from synapse_lb.cli.conversation import CLIENT
from synapse_lb.cli.wire import operations
from synapse_lb.cli.wire.operations import Call, Fabric, Sizes
from synapse_lb.testing.throwaway import ThrowawayHomeserver
from synapse_lb.txdtls.certificates import generate_self_signed

ROOM_ID_LENGTH: Final = 44
TOKEN_LENGTH: Final = 38
CERTIFICATE_LENGTH: Final = 414
ROOM_VERSION: Final = "12"


class SceneFailed(Exception):
    """The homeserver did not do what the measurement needs."""


@attrs.frozen
class User:
    """A registered user.

    Attributes:
        user_id: full id.
        token: access token.
        device_id: device of the token.
    """

    user_id: str
    token: str = attrs.field(repr=False)
    device_id: str


def certificate_of_length(length: int = CERTIFICATE_LENGTH) -> tuple[bytes, bytes]:
    """A self-signed P-256 certificate for the loopback interface whose DER form has so many bytes.

    Returns:
        Certificate and private key, PEM.
    """
    names = ["localhost", "127.0.0.1", "::1"]
    padding = 0
    while True:
        certificate, key = generate_self_signed([*names, *(["m" * padding] if padding else [])])
        missing = length - _der_length(certificate)
        if not missing:
            return certificate, key
        # A further name takes two bytes more than its text. A signature may be two bytes shorter than the
        # longest, so that several attempts are needed.
        padding = max(1, padding + missing) if padding else missing - 2


def _der_length(pem: bytes) -> int:
    match = re.search(rb"-----BEGIN CERTIFICATE-----(.*?)-----END", pem, re.DOTALL)
    assert match is not None
    return len(base64.b64decode(match[1]))


class Scene:
    """A throw-away homeserver with users and rooms; a context manager. Blocking.

    Args:
        sizes: how much there is to fetch.
        progress: told of each step.
    """

    def __init__(self, sizes: Sizes, progress: Callable[[str], None]) -> None:
        self.sizes = sizes
        self.fabric = Fabric(3079)
        self.homeserver = ThrowawayHomeserver(
            presence=False, compress=True, certificate=certificate_of_length()
        )
        self._progress = progress
        self._connection: http.client.HTTPConnection | None = None
        self._syncs = itertools.count(1)
        self.since = ""

    def open(self) -> None:
        """Start Synapse and prepare everything.

        Raises:
            SynapseMissing: there is none in this environment.
            HomeserverFailed: it did not start.
            SceneFailed: it did not do what was asked.
        """
        try:
            self._progress("starting a throw-away Synapse")
            self.homeserver.start()
            self._prepare()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Scene:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop Synapse and remove it."""
        if self._connection is not None:
            self._connection.close()
        self.homeserver.stop()

    # What the sides ask for

    def new_room(self) -> str:
        """A room of the two who talk."""
        return self._room(self.alix, self.bert, "A room")

    def now(self) -> Call:
        """A sync for its `next_batch`. Synapse keeps results for two minutes; its filter is like no other one's."""
        unique = {"room": {"timeline": {"limit": 1}}, "presence": {"limit": next(self._syncs)}}
        return Call("GET", f"{CLIENT}/sync", (("timeout", "0"), ("filter", json.dumps(unique))))

    def say(self, room_id: str, transaction: str) -> None:
        """The other one says something."""
        self.http(operations.send(room_id, transaction), self.bert)

    def say_encrypted(self, room_id: str, transaction: str) -> None:
        """The other one sends an encrypted event."""
        content = self._bert_session.event()
        self.http(operations.send_encrypted(room_id, transaction, content), self.bert)

    def http(self, call: Call, user: User) -> Any:
        """A request over plain HTTP that must succeed: the answer's body.

        Raises:
            SceneFailed: it did not.
        """
        if self._connection is None:
            ports, address = self.homeserver.ports, self.homeserver.settings.address
            self._connection = http.client.HTTPConnection(address, ports.http, timeout=60)
        headers = {"Authorization": f"Bearer {user.token}"}
        content = None
        if call.body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(call.body)
        try:
            self._connection.request(call.method, call.target, content, headers)
            response = self._connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._connection.close()
            raise SceneFailed(f"{call.method} {call.path} over HTTP: {error}") from error
        if response.status != 200:
            raise SceneFailed(f"{call.method} {call.path} over HTTP: {response.status} {answer}")
        return answer

    # Inside

    def _prepare(self) -> None:
        self.alix, self.bert = self._user("alix"), self._user("bert")
        self._bert_session = self.fabric.megolm_session(self.bert.device_id)
        self.carl, self.dora = self._user("carl"), self._user("dora")
        self.device_owners = [f"@user{number:02}:localhost" for number in range(self.sizes.devices // 2)]
        for user_id in self.device_owners:
            self._upload_keys(user_id)
        rooms = self._fill_rooms()
        self.since = str(self.http(operations.sync(None), self.carl)["next_batch"])
        for number in range(self.sizes.new_messages):
            for room_id in rooms[: self.sizes.active_rooms]:
                self._small_talk(room_id, number, "n")

    def _fill_rooms(self) -> list[str]:
        rooms = []
        for number in range(self.sizes.rooms):
            if number % 10 == 0:
                self._progress(f"filling rooms: {number} of {self.sizes.rooms}")
            room_id = self._room(self.carl, self.dora, f"Room number {number + 1}")
            rooms.append(room_id)
            for message in range(self.sizes.messages):
                self._small_talk(room_id, message, "m")
        return rooms

    def _small_talk(self, room_id: str, number: int, prefix: str) -> None:
        speaker = (self.carl, self.dora)[number % 2]
        self.http(operations.send(room_id, f"{prefix}{number}", self.fabric.text()), speaker)

    def _user(self, name: str) -> User:
        registered = self.homeserver.register(name)
        user = User(registered["user_id"], registered["access_token"], registered["device_id"])
        if len(user.token) != TOKEN_LENGTH:
            raise SceneFailed(
                f"the access token of {name} has {len(user.token)} characters, not {TOKEN_LENGTH}"
            )
        return user

    def _room(self, host: User, guest: User, name: str) -> str:
        body = {"name": name, "preset": "public_chat", "room_version": ROOM_VERSION}
        room_id = str(self.http(Call("POST", f"{CLIENT}/createRoom", body=body), host)["room_id"])
        if len(room_id) != ROOM_ID_LENGTH:
            raise SceneFailed(f"the room id {room_id} has not {ROOM_ID_LENGTH} characters")
        self.http(Call("POST", operations.in_room(room_id, "join"), body={}), guest)
        return room_id

    def _upload_keys(self, user_id: str) -> None:
        name = user_id[1:].partition(":")[0]
        first = self.homeserver.register(name)
        body = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": name},
            "password": "correct horse battery",
            "initial_device_display_name": "Element Web: Firefox on Linux",
        }
        second = self.homeserver.request("POST", f"{CLIENT}/login", body)[1]
        for device in (first, second):
            user = User(user_id, device["access_token"], device["device_id"])
            self.http(
                Call("POST", f"{CLIENT}/keys/upload", body=self.fabric.device_keys(user_id, user.device_id)),
                user,
            )
