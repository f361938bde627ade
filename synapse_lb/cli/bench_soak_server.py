# SPDX-License-Identifier: AGPL-3.0-or-later
"""The server of `synapse-lb bench soak`: a real Synapse with its users and rooms, and how it is looked at."""

from __future__ import annotations

import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import attrs

from synapse_lb.cli.bench_soak_verdict import ZERO_WHEN_GONE, Inside, Sample, Stop
from synapse_lb.cli.bench_world import CLIENT_API, PASSWORD
from synapse_lb.cli.errors import CommandError
from synapse_lb.testing import probe
from synapse_lb.testing.throwaway import STOP_TIMEOUT, HomeserverFailed, SynapseMissing, ThrowawayHomeserver

USERS_PER_ROOM: Final = 5
DEVICES_PER_USER: Final = 2
_HANDS: Final = 8
"""Requests at a time while the server is prepared: as many as make Synapse open all of its database's files."""

_GAUGES: Final = {
    "associations": "synapse_lb_associations",
    "peers": "synapse_lb_peers",
    "exchanges": "synapse_lb_exchanges",
    "observations": "synapse_lb_observations",
    "reassembly_bytes": "synapse_lb_reassembly_bytes",
    "snapshot_bytes": "synapse_lb_snapshot_bytes",
    "running": "synapse_lb_requests_running",
    "requests": "synapse_lb_gateway_requests_total",
}
_LEAN: Final = {
    "caches": {"global_factor": 0.2, "sync_response_cache_duration": "10s"},
    "event_cache_size": "1K",
}
"""Of Synapse: its own caches are full soon, so that what still grows is not them."""

_STOP: Final = 4 * STOP_TIMEOUT


@attrs.frozen
class Member:
    """A device of a user.

    Attributes:
        name: local part of the user's id.
        device: id of the device.
        room: id of the room that it is in.
    """

    name: str
    device: str
    room: str


class SoakServer:
    """A throw-away Synapse that shows its inside.

    Args:
        clients: how many there will be; bounds per source are as high, since all come from the loopback interface.
        idle_timeout: seconds of silence after which an association is closed.
        tracemalloc: frames that are recorded of each allocation, or 0.

    Attributes:
        homeserver: Synapse.
        process: number of its process; one more after each restart.
        vandal: the access token of a user who is in one room.
    """

    def __init__(self, clients: int, idle_timeout: float, tracemalloc: int = 0) -> None:
        many = 4 * clients + 1000
        self.process = 0
        self.homeserver = ThrowawayHomeserver(
            presence=False,
            log_level="WARNING",
            https=True,
            http_resources=("client", "metrics"),
            lowbandwidth_options={
                "idle_timeout": f"{round(idle_timeout)}s",
                "limits": {"max_associations": many, "max_associations_per_source": many},
            },
            extra_config={
                "enable_metrics": True,
                "modules": [
                    {"module": "synapse_lb.LowBandwidthModule", "config": {}},
                    {
                        "module": "synapse_lb.testing.probe.ProbeModule",
                        "config": {"tracemalloc": tracemalloc},
                    },
                ],
                **_LEAN,
            },
        )
        self.vandal = self._talker = ""
        self._rooms: list[str] = []

    # Preparing; all of this blocks

    def start(self) -> None:
        """Start Synapse.

        Raises:
            CommandError: it did not start.
        """
        try:
            self.homeserver.start()
        except (SynapseMissing, HomeserverFailed) as error:
            raise CommandError(str(error)) from error

    def close(self) -> None:
        """Stop it and remove everything. Idempotent."""
        self.homeserver.stop()

    def populate(self, clients: int) -> list[Member]:
        """Make users and rooms for so many clients."""
        users = [f"u{number}" for number in range(-(-clients // DEVICES_PER_USER))]
        with ThreadPoolExecutor(_HANDS) as hands:
            tokens = list(hands.map(self._register, ["vandal", "talker", *users]))
            self.vandal, self._talker = tokens[:2]
            del tokens[:2]
            groups = range(0, len(users), USERS_PER_ROOM)
            # Each by another user: a room's id is a hash of who made it and when, in milliseconds.
            self._rooms = list(hands.map(self._make_room, [tokens[start] for start in groups]))
            rooms = [self._rooms[number // USERS_PER_ROOM] for number in range(len(users))]
            joins = [
                (self._rooms[0], self.vandal),
                *zip(rooms, tokens, strict=True),
                *((room, self._talker) for room in self._rooms),
            ]
            list(hands.map(lambda join: self._join(*join), joins))
        places = dict(zip(users, rooms, strict=True))
        members = [
            Member(name, f"{name}d{number}", places[name])
            for name in users
            for number in range(DEVICES_PER_USER)
        ]
        return members[:clients]

    def exercise(self) -> None:
        """Have Synapse open all that it opens when it is used: threads, and the database for each of them."""
        with ThreadPoolExecutor(2 * _HANDS) as hands:
            list(hands.map(self._use, range(2 * _HANDS)))

    def _use(self, number: int) -> None:
        room = f"{CLIENT_API}/rooms/{quote(self._rooms[0], safe='')}"
        mine = f"{CLIENT_API}/user/{quote('@vandal:localhost')}"
        ask, token = self._ask, self.vandal
        ask("GET", "/_matrix/client/versions", None, token)
        ask("GET", f"{CLIENT_API}/sync?timeout=0&full_state=true", None, token)
        sent = ask(
            "PUT",
            f"{room}/send/m.room.message/{os.urandom(8).hex()}",
            {"msgtype": "m.text", "body": "x"},
            token,
        )
        ask("POST", f"{room}/receipt/m.read/{quote(sent['event_id'])}", {}, token)
        ask("PUT", f"{room}/typing/{quote('@vandal:localhost')}", {"typing": True, "timeout": 10}, token)
        ask("GET", f"{room}/messages?dir=b&limit=40", None, token)
        ask("PUT", f"{mine}/account_data/org.example.x", {"number": number}, token)
        ask("POST", f"{CLIENT_API}/keys/query", {"device_keys": {"@u0:localhost": []}}, token)
        login = {"type": "m.login.password", "password": PASSWORD}
        user = {"identifier": {"type": "m.id.user", "user": "vandal"}}
        fresh = ask("POST", f"{CLIENT_API}/login", {**login, **user})["access_token"]
        ask("POST", f"{CLIENT_API}/logout", {}, fresh)

    def say_everywhere(self, text: str) -> None:
        """Send a message to each room, over HTTP."""
        body = {"msgtype": "m.text", "body": text}
        for room in self._rooms:
            path = f"{CLIENT_API}/rooms/{quote(room, safe='')}/send/m.room.message/{quote(text)}"
            self._ask("PUT", path, body, self._talker)

    def _register(self, name: str) -> str:
        body = {"auth": {"type": "m.login.dummy"}, "username": name, "password": PASSWORD}
        return str(self._ask("POST", f"{CLIENT_API}/register", body)["access_token"])

    def _make_room(self, token: str) -> str:
        return str(self._ask("POST", f"{CLIENT_API}/createRoom", {"preset": "public_chat"}, token)["room_id"])

    def _join(self, room: str, token: str) -> None:
        self._ask("POST", f"{CLIENT_API}/join/{quote(room, safe='')}", {}, token)

    def _ask(self, method: str, path: str, body: Any = None, token: str | None = None) -> dict[str, Any]:
        status, answer = self.homeserver.request(method, path, body, token)
        if status != 200 or not isinstance(answer, dict):
            raise CommandError(f"{method} {path.partition('?')[0]}: {status} {answer}")
        return answer

    # Looking

    def sample(self, at: float) -> Sample:
        """Look at the server.

        Args:
            at: seconds, for `Sample.at`.
        """
        reading = self.look()
        found = self._scrape()
        pid = self._pid()
        return Sample(
            at=at,
            process=self.process,
            rss=resident(pid),
            blocks=reading.blocks,
            descriptors=sum(descriptors(pid).values()),
            delayed_calls=sum(reading.delayed_calls.values()),
            processor=reading.processor,
            **found,
        )

    def look(self, *, objects: bool = False) -> probe.Reading:
        """Ask the probe."""
        status, answer = self.homeserver.request("GET", probe.PATH + ("?objects=1" if objects else ""))
        if status != 200:
            raise CommandError(f"the probe answers {status} {answer}")
        return probe.Reading(**answer)

    def inside(self) -> tuple[Inside, probe.Reading]:
        """What is there that must not stay."""
        reading = self.look(objects=True)
        inside = Inside(descriptors(self._pid()), reading.own_delayed_calls, reading.objects)
        return inside, reading

    def _pid(self) -> int:
        pid = self.homeserver.pid
        if pid is None:
            raise CommandError(f"Synapse has ended:\n{self.homeserver.log_tail()}")
        return pid

    def _scrape(self) -> dict[str, int]:
        _, text = self.homeserver.request("GET", "/_synapse/metrics")
        sums: Counter[str] = Counter()
        handshakes = 0.0
        for line in text.split("\n"):
            if not line.startswith("synapse_lb_"):
                continue
            name, value = line.split("{")[0], float(line.rpartition(" ")[2])
            if name == _GAUGES["associations"] and 'state="handshake"' in line:
                handshakes += value
            else:
                sums[name] += round(value)
        found = {field: sums[name] for field, name in _GAUGES.items()}
        return {**found, "handshakes": round(handshakes)}

    def counts(self) -> dict[str, int]:
        """What this package has counted in the process, if it is not zero: the sums over all labels."""
        _, text = self.homeserver.request("GET", "/_synapse/metrics")
        sums: Counter[str] = Counter()
        for line in text.split("\n"):
            name = line.split("{")[0]
            if name.startswith("synapse_lb_") and name.endswith("_total"):
                short = name.removeprefix("synapse_lb_").removesuffix("_total")
                sums[short] += round(float(line.rpartition(" ")[2]))
        return {name: count for name, count in sorted(sums.items()) if count}

    # Stopping

    def stop(self, *, under_load: bool) -> Stop:
        """Stop Synapse in order; it can be started again."""
        probe.told_at_exit(self.homeserver.folder)
        status = self.homeserver.halt(_STOP)
        told = probe.told_at_exit(self.homeserver.folder)
        return Stop(status, None if told is None else told.own_delayed_calls, under_load)

    def start_again(self) -> None:
        """Start it with the same data."""
        self.homeserver.start()
        self.process += 1


def resident(pid: int) -> int:
    """Bytes of resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> dict[str, int]:
    """Open file descriptors of a process by kind: the files' names, and what is no file without its number."""
    found: Counter[str] = Counter()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(path)
        except OSError:
            continue
        found[re.sub(r":\[\d+\]$", "", target)] += 1
    return dict(found)


def all_gone(sample: Sample) -> bool:
    """Whether nothing of any client is left that is to be zero."""
    return not any(getattr(sample, name) for name in ZERO_WHEN_GONE)
