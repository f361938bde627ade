# SPDX-License-Identifier: AGPL-3.0-or-later
"""What clients cost that wait: memory and processor time while nothing happens, and when a message comes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any, Final, Protocol

import attrs
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool

from synapse_lb.cli.errors import CommandError
from synapse_lb.cli.scale.coap import CoapCrowd
from synapse_lb.cli.scale.https import HttpsCrowd
from synapse_lb.cli.scale.place import Place, Room
from synapse_lb.cli.scale.process import lost_datagrams
from synapse_lb.cli.terminal import Terminal

_TICK: Final = 0.02
_CALM: Final = 0.02
"""Share of a core below which the server counts as come to rest."""

_PATIENCE: Final = 600.0


class Client(Protocol):
    """One that is told of messages."""

    news: int
    heard_at: float


class Crowd(Protocol):
    """Clients of one kind."""

    errors: list[str]

    @property
    def clients(self) -> Sequence[Client]:
        """In the order in which they came; the first ones are members of the room."""


@attrs.frozen
class Push:
    """One message, and until all had it.

    Attributes:
        observers: how many were told of it.
        seconds: from the request that sent it until the last had it.
        median: until half of them had it.
        cpu: seconds of the server's processor time in it, the request that sent it included.
    """

    observers: int
    seconds: float
    median: float
    cpu: float


@attrs.define
class Stage:
    """The figures with one number of clients of one kind.

    Attributes:
        kind: `OBSERVE` or `HTTPS`.
        clients: how many there are.
        memory: bytes by which the server process has grown since there were none, per client.
        arrival: seconds of the server's processor time for each that came: handshake, first request and answer.
        idle: share of a core that the server takes while nothing happens.
        ping: seconds of the server's processor time for a sign of life; None for HTTPS.
        pushes: messages.
        lost: datagrams that the server's socket had no room for, so far.
    """

    kind: str
    clients: int
    memory: float
    arrival: float
    idle: float
    ping: float | None = None
    pushes: list[Push] = attrs.field(factory=list)
    lost: int = 0


class Watch:
    """Measures one homeserver.

    Args:
        terminal: for the reactor, and to tell progress.
        place: the homeserver.
        span: seconds for which idleness is measured.
    """

    def __init__(self, terminal: Terminal, place: Place, span: float) -> None:
        self._terminal = terminal
        self._reactor = terminal.reactor
        self._place = place
        self._span = span
        self._ground = 0
        self.idle_alone = 0.0

    async def begin(self) -> None:
        """See what the process takes without clients."""
        await self.calm()
        self._ground = self._place.process.memory()
        self.idle_alone = await self.idle()

    async def calm(self) -> None:
        """Wait until the server has come to rest."""
        process, deadline = self._place.process, time.monotonic() + _PATIENCE
        before = process.cpu()
        while time.monotonic() < deadline:
            await self.sleep(1.0)
            now = process.cpu()
            if now - before <= _CALM:
                return
            before = now
        raise CommandError("the server does not come to rest")

    async def idle(self) -> float:
        """Share of a core that the server takes while nothing happens."""
        process = self._place.process
        cpu, began = process.cpu(), time.monotonic()
        await self.sleep(self._span)
        return (process.cpu() - cpu) / (time.monotonic() - began)

    async def grow(self, crowd: CoapCrowd | HttpsCrowd, kind: str, tokens: list[str], since: str) -> Stage:
        """Add clients and look at what they take while they wait."""
        process = self._place.process
        before = len(crowd.clients)
        cpu, ground = process.cpu(), self._ground

        def progress(count: int) -> None:
            if count % 1000 == 0:
                self._terminal.error(f"  {count:,} {kind}")

        self._terminal.error(f"{kind}: {before + len(tokens):,} clients")
        await crowd.grow(tokens, since, progress)
        self._check(crowd)
        arrival = (process.cpu() - cpu) / len(tokens)
        await self.calm()
        memory = (process.memory() - ground) / len(crowd.clients)
        stage = Stage(kind, len(crowd.clients), memory, arrival, await self.idle())
        self._check(crowd)
        self._terminal.error(
            f"  {memory / 1000:.1f} kB each, {stage.idle:.2%} of a core while nothing happens"
        )
        return stage

    def leave_out(self) -> None:
        """What there is now is no concern of further memory figures."""
        self._ground = self._place.process.memory()

    async def ping(self, crowd: CoapCrowd) -> float:
        """Processor time of the server for a ping of a client and its answer."""
        process, clients = self._place.process, crowd.clients
        rounds = min(50, max(1, 2000 // len(clients)))
        cpu, began = process.cpu(), time.monotonic()
        for _ in range(rounds):
            for number, client in enumerate(clients):
                crowd.ping(client)
                if number % 20 == 19:
                    await self.sleep(0.01)
            await self.sleep(0.1)
        await self.sleep(0.5)
        away = self.idle_alone * (time.monotonic() - began)
        self._check(crowd)
        return (process.cpu() - cpu - away) / (rounds * len(clients))

    async def push(self, crowd: Crowd, room: Room) -> Push:
        """Send a message to a room and wait until all members that listen have it."""
        process = self._place.process
        told = crowd.clients[: len(room.members)]
        target = [client.news + 1 for client in told]
        cpu, began = process.cpu(), time.monotonic()
        pool = self._reactor.getThreadPool()
        await deferToThreadPool(self._reactor, pool, self._place.say, room, "Hello World")
        while any(client.news < wanted for client, wanted in zip(told, target, strict=True)):
            self._check(crowd)
            if time.monotonic() - began > _PATIENCE:
                raise CommandError("a message did not come")
            await self.sleep(_TICK)
        times = [client.heard_at - began for client in told]
        await self.calm()
        push = Push(len(told), max(times), statistics.median(times), process.cpu() - cpu)
        self._terminal.error(
            f"  a message to {push.observers:,}: {push.seconds:.2f} s, {push.cpu:.2f} s of processor time"
        )
        return push

    def lost(self) -> int:
        """Datagrams that the server's socket had no room for, so far."""
        return lost_datagrams(self._place.homeserver.ports.lowbandwidth)

    def _check(self, crowd: Crowd) -> None:
        if crowd.errors:
            raise CommandError(f"{len(crowd.errors)} clients failed, the first: {crowd.errors[0]}")

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        await deferLater(self._reactor, seconds, _nothing)


def _nothing() -> Any:
    return None
