# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a request costs the server process, over CoAP and over HTTPS, in turns; and what a handshake and junk cost."""

from __future__ import annotations

import itertools
import os
import socket
import statistics
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final
from urllib.parse import quote

import attrs
from twisted.internet.task import deferLater

from synapse_lb.cli.errors import CommandError
from synapse_lb.cli.scale import https
from synapse_lb.cli.scale.coap import CoapClient, CoapCrowd
from synapse_lb.cli.scale.place import API, Place, Room
from synapse_lb.cli.scale.process import lost_datagrams, waiting_bytes
from synapse_lb.cli.terminal import Terminal

JUNK_AT_ONCE: Final = 100
JUNK_SIZE: Final = 80
_READ_TURN: Final = 0.01  # s
_READ_TURNS: Final = 3000
_RECORD: Final = bytes.fromhex("17fefd0001")
"""How a record of application data begins (RFC 6347 section 4.1)."""


@attrs.frozen
class Cost:
    """Seconds of the server's processor time for one request, in each of the blocks.

    Attributes:
        name: what was asked.
        coap: over CoAP.
        https: over HTTPS with keep-alive.
    """

    name: str
    coap: list[float]
    https: list[float]

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return statistics.median(self.coap) / statistics.median(self.https)


@attrs.frozen
class Handshakes:
    """Seconds of the server's processor time for one.

    Attributes:
        full: a new session.
        resumed: an old one.
    """

    full: float
    resumed: float


@attrs.frozen
class Junk:
    """Seconds of the server's processor time for one datagram of junk over the socket.

    Attributes:
        garbage: random bytes.
        records: well-formed records with random content.
        lost: share of them that the socket had no room for; not counted in the others.
    """

    garbage: float
    records: float
    lost: float


class RequestBench:
    """One CoAP client and one HTTPS client of the same homeserver.

    Args:
        terminal: for the reactor, and to tell progress.
        place: the homeserver; it keeps no answers of `/sync`.
        room: with a member at least.
        count: requests of a block.
        blocks: of each kind.
    """

    def __init__(self, terminal: Terminal, place: Place, room: Room, count: int, blocks: int) -> None:
        self._terminal = terminal
        self._reactor = terminal.reactor
        self._place = place
        self._count = count
        self._blocks = blocks
        self._room = quote(room.room_id, safe="")
        self._token = room.members[0].token  # one user: both ways find the same work, and the same caches
        self._numbers = itertools.count(1)
        ports = place.homeserver.ports
        self._crowd = CoapCrowd(
            self._reactor, place.host, ports.lowbandwidth, str(place.homeserver.certificate_path)
        )
        self._coap: CoapClient
        self._https: https.HttpsConnection

    async def measure(self) -> list[Cost]:
        """Measure the requests."""
        place = self._place
        self._https = await https.connect(self._reactor, place.host, place.homeserver.ports.https)
        self._coap = await self._crowd.connect()
        await self._over_coap("GET", f"{API}/account/whoami", self._token)
        return [
            await self._compare("GET /versions", lambda: ("GET", "/_matrix/client/versions", None)),
            await self._compare("send", lambda: ("PUT", self._message(), _TEXT)),
            await self._compare(
                "sync, nothing new",
                lambda: ("GET", f"{API}/sync?since={self._now}&timeout=0", None),
                prepare=self._look,
            ),
            await self._compare(
                "sync, one message",
                lambda: ("GET", f"{API}/sync?since={self._before}&timeout=0", None),
                prepare=self._write,
            ),
        ]

    _now = _before = ""

    async def _look(self) -> None:
        self._now = (await self._over_https("GET", f"{API}/sync", self._token))["next_batch"]

    async def _write(self) -> None:
        await self._look()
        self._before = self._now
        await self._over_https("PUT", self._message(), self._token, _TEXT)

    def _message(self) -> str:
        return f"{API}/rooms/{self._room}/send/m.room.message/n{next(self._numbers)}"

    async def _compare(
        self,
        name: str,
        make: Callable[[], tuple[str, str, Any]],
        prepare: Callable[[], Awaitable[None]] | None = None,
    ) -> Cost:
        self._terminal.error(f"requests: {name}")
        if prepare is not None:
            await prepare()
        cost = Cost(name, [], [])

        async def over_coap() -> None:
            method, path, body = make()
            await self._over_coap(method, path, None, body)

        async def over_https() -> None:
            method, path, body = make()
            await self._over_https(method, path, self._token, body)

        ways: Sequence[tuple[list[float], Callable[[], Awaitable[None]]]] = (
            (cost.coap, over_coap),
            (cost.https, over_https),
        )
        for _, ask in ways:
            for _ in range(self._count // 5):
                await ask()
        for block in range(self._blocks):
            for figures, ask in ways if block % 2 else reversed(ways):
                figures.append(await self._take(ask, self._count))
        return cost

    async def _take(self, work: Callable[[], Awaitable[Any]], count: int) -> float:
        """Seconds of the server's processor time for one of so many, one after another."""
        process = self._place.process
        before = process.finely()
        for _ in range(count):
            await work()
        return (process.finely() - before) / count

    async def _over_coap(self, method: str, path: str, token: str | None = None, body: Any = None) -> Any:
        arguments = {} if body is None else {"body": body}
        answer = await self._crowd.ask(self._coap, method, path, token=token, **arguments)
        if answer.status != 200:
            raise CommandError(f"{method} {path}: {answer.status}")
        return answer.body

    async def _over_https(self, method: str, path: str, token: str, body: Any = None) -> Any:
        import json

        status, content = await self._https.ask(method, path, token, body)
        if status != 200:
            raise CommandError(f"{method} {path}: {status}")
        return json.loads(content)

    async def handshakes(self) -> Handshakes:
        """Measure handshakes, one after another."""
        self._terminal.error("handshakes")
        session = self._coap.association.session

        async def full() -> None:
            await self._crowd.leave(await self._crowd.connect())

        async def resumed() -> None:
            client = await self._crowd.connect(session)
            if not client.association.resumed:
                raise CommandError("a session was not resumed")
            await self._crowd.leave(client)

        figures: dict[Callable[[], Awaitable[None]], list[float]] = {full: [], resumed: []}
        for _ in range(self._blocks):
            for work, taken in figures.items():
                taken.append(await self._take(work, self._count))
        return Handshakes(statistics.median(figures[full]), statistics.median(figures[resumed]))

    async def junk(self) -> Junk:
        """Measure junk that arrives at the socket."""
        self._terminal.error("junk")
        lost = lost_datagrams(self._place.homeserver.ports.lowbandwidth)
        count = 20 * self._count
        garbage = await self._flood(count, lambda: os.urandom(JUNK_SIZE))
        records = await self._flood(count, _junk_record)
        lost = lost_datagrams(self._place.homeserver.ports.lowbandwidth) - lost
        return Junk(garbage, records, lost / (2 * count))

    async def _flood(self, count: int, make: Callable[[], bytes]) -> float:
        port = self._place.homeserver.ports.lowbandwidth
        process, target = self._place.process, (self._place.host, port)
        lost, before = lost_datagrams(port), process.cpu()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for number in range(count):
                sender.sendto(make(), target)
                if number % JUNK_AT_ONCE == 0:
                    await self._read(port)
        await deferLater(self._reactor, 0.5, lambda: None)
        return (process.cpu() - before) / max(1, count - lost_datagrams(port) + lost)

    async def _read(self, port: int) -> None:
        """Wait until the server has read what has come, so that nothing is lost if it stands still for a while."""
        for _ in range(_READ_TURNS):
            await deferLater(self._reactor, _READ_TURN, lambda: None)
            if not waiting_bytes(port):
                return
        raise CommandError("the server does not read what comes")

    async def close(self) -> None:
        """End all connections."""
        await self._crowd.close()
        await self._https.close()


_TEXT: Final = {"msgtype": "m.text", "body": "Hello World"}


def _junk_record() -> bytes:
    size = JUNK_SIZE - 13
    # The numbers of records that clients send who have moved.
    number = (1 + os.urandom(1)[0] % 8).to_bytes(6, "big")
    return _RECORD + number + size.to_bytes(2, "big") + os.urandom(size)
