# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where `bench scale` takes place: a real Synapse in a process of its own, and users that are made quickly."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import quote

import attrs

from synapse_lb.cli.errors import CommandError
from synapse_lb.cli.scale.process import ServerProcess
from synapse_lb.cli.terminal import Terminal
from synapse_lb.testing.throwaway import HomeserverFailed, SynapseMissing, ThrowawayHomeserver

API: Final = "/_matrix/client/v3"
_CROWD: Final = "/_synapse/client/crowd"
_AT_ONCE: Final = 100
_PLENTY: Final = 1_000_000
CACHE_FACTOR: Final = 10
"""`caches.global_factor` of Synapse, as whoever has thousands of users who sync sets it. With its default of 0.5 it
keeps what it needs of 500 users, and looks it up for each of the others, each time."""

_LIMITS: Final = {
    "max_associations": _PLENTY,
    "max_associations_per_source": _PLENTY,
    "max_unauthenticated": _PLENTY,
    "handshakes_per_second": _PLENTY,
}
"""Nobody is turned away: all clients have one address here."""


@attrs.frozen
class Member:
    """A user."""

    user_id: str
    token: str = attrs.field(repr=False)


@attrs.frozen
class Room:
    """A room, and who is in it.

    Attributes:
        room_id: its id.
        owner: who writes; does not listen.
        members: the others.
    """

    room_id: str
    owner: Member
    members: list[Member]


class Place:
    """A homeserver that runs.

    Args:
        terminal: where progress is told.
        homeserver: the homeserver.
    """

    def __init__(self, terminal: Terminal, homeserver: ThrowawayHomeserver) -> None:
        self.homeserver = homeserver
        assert homeserver.pid is not None
        self.process = ServerProcess(homeserver.pid)
        self._terminal = terminal
        self._numbers = itertools.count(1)

    @property
    def host(self) -> str:
        """Its address."""
        return self.homeserver.settings.address

    def ask(self, method: str, path: str, body: Any = None, token: str | None = None) -> dict[str, Any]:
        """Make a request over plain HTTP; blocks.

        Raises:
            CommandError: the answer is not 200.
        """
        status, answer = self.homeserver.request(method, path, body, token, timeout=600)
        if status != 200 or not isinstance(answer, dict):
            raise CommandError(f"{method} {path.partition('?')[0]}: {status} {answer}")
        return answer

    def make_users(self, count: int, room_id: str | None = None) -> list[Member]:
        """Register users, who join a room.

        Args:
            count: how many.
            room_id: the room, or None.
        """
        users: list[Member] = []
        while len(users) < count:
            names = [f"u{next(self._numbers)}" for _ in range(min(_AT_ONCE, count - len(users)))]
            answer = self.ask("POST", f"{_CROWD}/users", {"names": names, "room_id": room_id})
            users += [Member(user["user_id"], user["access_token"]) for user in answer["users"]]
            if len(users) % 1000 == 0:
                self._terminal.error(f"  {len(users):,} of {count:,} users")
        return users

    def make_room(self, members: int) -> Room:
        """Make a public room with so many members beside its owner."""
        (owner,) = self.make_users(1)
        body = {"name": "Scale", "preset": "public_chat"}
        room_id = str(self.ask("POST", f"{API}/createRoom", body, owner.token)["room_id"])
        return Room(room_id, owner, self.make_users(members, room_id))

    def say(self, room: Room, text: str) -> None:
        """Send a message."""
        path = f"{API}/rooms/{quote(room.room_id, safe='')}/send/m.room.message/t{next(self._numbers)}"
        self.ask("PUT", path, {"msgtype": "m.text", "body": text}, room.owner.token)

    def now(self, member: Member) -> str:
        """Where the streams are: a `since`, which every user may begin at."""
        nothing = '{"room":{"rooms":[]},"presence":{"types":[]},"account_data":{"types":[]}}'
        return str(self.ask("GET", f"{API}/sync?filter={quote(nothing)}", token=member.token)["next_batch"])

    def profile(self, path: str | None) -> None:
        """Begin to profile the process (None), or end it and write what was found to a file."""
        self.ask("POST", f"{_CROWD}/profile", {"path": path})


@contextmanager
def place(terminal: Terminal, **extra: Any) -> Iterator[Place]:
    """A homeserver for as long as the block lasts.

    Args:
        terminal: where progress is told.
        extra: further top-level keys of its configuration.

    Raises:
        CommandError: Synapse does not start.
    """
    terminal.error("starting Synapse")
    homeserver = ThrowawayHomeserver(
        presence=False,
        log_level="WARNING",
        lowbandwidth_options={"limits": _LIMITS},
        extra_config={
            "modules": [
                {"module": "synapse_lb.LowBandwidthModule", "config": {}},
                {"module": "synapse_lb.testing.crowd.CrowdModule", "config": {}},
            ],
            "caches": {"global_factor": CACHE_FACTOR},
            **extra,
        },
    )
    try:
        homeserver.start()
        yield Place(terminal, homeserver)
    except (SynapseMissing, HomeserverFailed) as error:
        raise CommandError(str(error)) from error
    finally:
        homeserver.stop()
