# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where `bench bulk` and `bench observe` take place: a real Synapse at one end of a simulated link.

Synapse runs in the namespace at the link's one end (`testing/tunlink.py`) with its low-bandwidth listener, a TLS
listener as its sample configuration has it, and one more that compresses. Rooms are filled over plain HTTP inside
that namespace: what is prepared does not cross the link.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import platform
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote, urlencode

import attrs

from synapse_lb.cli.errors import EXIT_OK, EXIT_USAGE, CommandError
from synapse_lb.cli.interruptible import heed_sigterm, until_interrupted
from synapse_lb.cli.terminal import Terminal
from synapse_lb.testing.netns import LinkUnavailable
from synapse_lb.testing.throwaway import HomeserverFailed, Ports, SynapseMissing, ThrowawayHomeserver
from synapse_lb.testing.tunlink import TunLink

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

T = TypeVar("T")

CLIENT_API: Final = "/_matrix/client/v3"
PASSWORD: Final = "correct horse battery"
PORTS: Final = Ports(http=8008, https=8448, lowbandwidth=8448)
COMPRESSING_PORT: Final = 8449
"""TCP; the namespace is empty, so any port is free."""

MESSAGES_PER_ROOM: Final = 40
_ROUNDS: Final = 6
_EVENT_BYTES: Final = 560
"""Bytes of JSON that a message takes in a /sync, about, to begin with."""

_FREQUENT: Final = (
    "the of and to in is that it was for on are as with they be at one have this from or had by not but what all "
    "were when we there can an your which their said if do will each about how up out them then she many some so "
    "these would other into has more her two like him see time could no make than first been its who now people my "
    "made over did down only way find use may water long little very after words called just where most know get "
    "through back much before go good new write our used me man too any day same right look think also around "
    "another came come work three word must because does part even place well such here take why things help put "
    "years different away again off went old number great tell men say small every found still between name should "
    "home big give air line set own under read last never us left end along while might next sound below saw both"
)
_WORDS: Final = _FREQUENT.split()


@attrs.frozen
class User:
    """A user of the homeserver."""

    user_id: str
    token: str = attrs.field(repr=False)


class World:
    """A link and a homeserver at its end. Usable as a context manager.

    Args:
        terminal: where progress is told, on standard error.
        lowbandwidth_options: further keys of the low-bandwidth listener.
        metrics: whether Synapse exports its metrics, for `metric`.

    Attributes:
        link: the link.
        homeserver: Synapse.

    Raises:
        CommandError: no link can be made here.
    """

    def __init__(
        self,
        terminal: Terminal,
        *,
        lowbandwidth_options: dict[str, Any] | None = None,
        metrics: bool = False,
    ) -> None:
        self._terminal = terminal
        try:
            self.link = TunLink()
        except LinkUnavailable as error:
            raise CommandError(f"the simulated link cannot be made: {error}", EXIT_USAGE) from error
        address = self.link.server.address
        self.homeserver = ThrowawayHomeserver(
            address=address,
            ports=PORTS,
            presence=False,
            log_level="WARNING",
            extra_config={
                "listeners": _listeners(address, lowbandwidth_options or {}, metrics),
                "enable_metrics": metrics,
                # The same answer is taken from Synapse's cache each time, so that what is measured is its transport.
                "caches": {"sync_response_cache_duration": "1d"},
            },
        )

    def start(self) -> None:
        """Start Synapse; blocks.

        Raises:
            CommandError: it did not start.
        """
        self._terminal.error("starting Synapse")
        try:
            with self.link.server.entered():
                self.homeserver.start()
        except SynapseMissing as error:
            raise CommandError(f"{error}") from error
        except HomeserverFailed as error:
            raise CommandError(str(error)) from error

    def close(self) -> None:
        """Stop Synapse and remove everything. Idempotent."""
        self.homeserver.stop()
        self.link.close()

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def coaps_url(self) -> str:
        """The low-bandwidth listener, for clients in the client's namespace."""
        return self.homeserver.coaps_url

    def request(self, method: str, path: str, body: Any = None, token: str | None = None) -> dict[str, Any]:
        """Make a request inside the server's namespace, beside the link.

        Raises:
            CommandError: the answer is not 200.
        """
        with self.link.server.entered():
            status, answer = self.homeserver.request(method, path, body, token)
        if status != 200 or not isinstance(answer, dict):
            raise CommandError(f"{method} {path.partition('?')[0]}: {status} {answer}")
        return answer

    def metric(self, name: str) -> int:
        """Read a counter from Synapse's metrics: the sum over its labels.

        Raises:
            CommandError: there is none of that name.
        """
        connection = http.client.HTTPConnection(self.link.server.address, PORTS.http, timeout=10)
        with self.link.server.entered(), contextlib.closing(connection):
            connection.request("GET", "/_synapse/metrics")
            text = connection.getresponse().read().decode()
        lines = [line for line in text.split("\n") if line.split("{")[0].split(" ")[0] == name]
        if not lines:
            raise CommandError(f"Synapse has no metric {name}")
        return round(sum(float(line.rpartition(" ")[2]) for line in lines))

    def register(self, name: str) -> User:
        """Register a user."""
        body = {"auth": {"type": "m.login.dummy"}, "username": name, "password": PASSWORD}
        answer = self.request("POST", f"{CLIENT_API}/register", body)
        return User(str(answer["user_id"]), str(answer["access_token"]))

    def make_room(self, name: str, owner: User, guests: list[User]) -> str:
        """Make a room in which all of them are; return its id."""
        body = {"name": name, "preset": "private_chat", "invite": [guest.user_id for guest in guests]}
        room_id = str(self.request("POST", f"{CLIENT_API}/createRoom", body, owner.token)["room_id"])
        for guest in guests:
            self.request("POST", f"{CLIENT_API}/join/{quote(room_id, safe='')}", {}, guest.token)
        return room_id

    def say(self, room_id: str, sender: User, content: dict[str, Any], transaction: str) -> None:
        """Send a message."""
        path = f"{CLIENT_API}/rooms/{quote(room_id, safe='')}/send/m.room.message/{transaction}"
        self.request("PUT", path, content, sender.token)

    def fill(self, size: int) -> tuple[User, str]:
        """Let people write until an initial sync of one of them has about `size` bytes of JSON.

        Args:
            size: bytes.

        Returns:
            The reader, and the target (path and query) of the sync.
        """
        reader, writer = self.register("reader"), self.register("writer")
        timeline = json.dumps({"room": {"timeline": {"limit": 1000}}}, separators=(",", ":"))
        target = f"{CLIENT_API}/sync?{urlencode({'filter': timeline})}&timeout="
        pen = random.Random(3079)
        each, said, rooms = float(_EVENT_BYTES), 0, list[str]()
        for round_number in range(_ROUNDS):
            # Each answer is kept, and the same question would get it again: ask another until all is written.
            now = self._json_size(f"{target}{1 + round_number}", reader)
            if said:
                each = max(1.0, now / said)
            missing = round((size - now) / each)
            if missing <= 0:
                break
            self._terminal.error(f"filling rooms: {now:,} of {size:,} bytes, {missing} messages more")
            for _ in range(missing):
                if said % MESSAGES_PER_ROOM == 0:
                    rooms.append(self.make_room(_text(pen, 2), writer, [reader]))
                sender = reader if pen.random() < 0.3 else writer
                self.say(rooms[-1], sender, _message(pen), f"m{said}")
                said += 1
        return reader, f"{target}0"

    def conditions(self) -> dict[str, Any]:
        """What the figures were measured with."""
        from importlib import metadata

        controls = self.link.server.congestion_controls()
        return {
            "synapse": metadata.version("matrix-synapse"),
            "python": platform.python_version(),
            "kernel": platform.release(),
            "processor": _processor(),
            "tcp_congestion_controls": controls,
        }

    def _json_size(self, target: str, user: User) -> int:
        answer = self.request("GET", target, token=user.token)
        return len(json.dumps(answer, separators=(",", ":"), ensure_ascii=False).encode())


def run_in_world(
    terminal: Terminal,
    prepare: Callable[[World], T],
    measure: Callable[[T], Coroutine[Any, Any, None]],
    show: Callable[[T], None],
    *,
    lowbandwidth_options: dict[str, Any] | None = None,
    metrics: bool = False,
) -> Deferred[int]:
    """Make a world, measure in it, and remove it whatever happens.

    Args:
        terminal: where progress is told; its reactor runs the measurement.
        prepare: prepares the measurement; blocks.
        measure: makes it. It runs in the client's namespace, so that Twisted's sockets are made there.
        show: shows what was measured, when the world has gone.
        lowbandwidth_options: as of `World`.
        metrics: likewise.

    Returns:
        A Deferred of the exit status; it fails with a `CommandError` for whatever goes wrong.

    Raises:
        CommandError: no link can be made here, Synapse does not start, or it cannot be prepared.
    """
    heed_sigterm()
    world = World(terminal, lowbandwidth_options=lowbandwidth_options, metrics=metrics)
    try:
        world.start()
        subject = prepare(world)
    except BaseException:
        world.close()
        raise

    async def measured() -> int:
        try:
            with world.link.client.entered():
                await measure(subject)
        finally:
            world.close()
        show(subject)
        return EXIT_OK

    farewell = "synapse-lb bench: interrupted; Synapse and the link have been removed"
    return until_interrupted(measured(), terminal, farewell)


def _processor() -> str:
    """Name and number of the processors."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n")
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} x {names[0] if names else platform.machine()}"


def _text(pen: random.Random, words: int) -> str:
    # Frequent words are frequent, so that gzip finds what it finds in people's texts.
    return " ".join(_WORDS[int(len(_WORDS) * pen.random() ** 2)] for _ in range(words))


def _message(pen: random.Random) -> dict[str, Any]:
    """A message as people write them: mostly short, some long, some with formatting."""
    text = _text(pen, 1 + int(pen.expovariate(1 / 22)))
    if pen.random() < 0.25:
        html = f"<p><strong>{text[:12]}</strong>{text[12:]}</p>"
        return {
            "msgtype": "m.text",
            "body": text,
            "format": "org.matrix.custom.html",
            "formatted_body": html,
        }
    return {"msgtype": "m.text", "body": text}


def _listeners(address: str, lowbandwidth: dict[str, Any], metrics: bool) -> list[dict[str, Any]]:
    def http(port: int, tls: bool, compress: bool) -> dict[str, Any]:
        resources: list[dict[str, Any]] = [{"names": ["client"], "compress": compress}]
        if metrics and not tls:
            resources.append({"names": ["metrics"]})
        return {
            "type": "http",
            "port": port,
            "tls": tls,
            "bind_addresses": [address],
            "resources": resources,
        }

    return [
        http(PORTS.http, tls=False, compress=False),
        http(PORTS.https, tls=True, compress=False),
        http(COMPRESSING_PORT, tls=True, compress=True),
        {"type": "lowbandwidth", "port": PORTS.lowbandwidth, "bind_addresses": [address], **lowbandwidth},
    ]
