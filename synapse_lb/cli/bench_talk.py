# SPDX-License-Identifier: AGPL-3.0-or-later
"""The conversation of `synapse-lb bench slow` over one link, and what each of its steps takes.

A step is over, and counted, when its answer is there and nothing is on the link any more, so that an acknowledgement
which is late, or a copy which was not needed, counts for the step that it belongs to.
"""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import attrs

from synapse_lb.cli.bench_readers import messages_in
from synapse_lb.cli.bench_world import CLIENT_API, PASSWORD, World
from synapse_lb.cli.terminal import Terminal
from synapse_lb.testing.simlink import LinkShape
from synapse_lb.testing.tunlink import Reading

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from synapse_lb.client.client import LowBandwidthClient

GREETING: Final = "Hello World"
CONNECT: Final = "connect"
_TICK: Final = 0.05
_QUIET: Final = 0.5
"""Seconds without anything on the link after which a step is over."""


class TalkFailed(Exception):
    """A step failed; the text says which and why."""


@attrs.frozen
class SlowLink:
    """A link.

    Attributes:
        title: for people.
        rate: bit/s in each direction; 0 for no limit. Nothing is lost for want of room in front of it.
        rtt_ms: round trip in milliseconds, besides the time that the bytes take.
        loss_percent: of the packets, in each direction.
    """

    title: str
    rate: int
    rtt_ms: float
    loss_percent: float

    def shape(self) -> LinkShape:
        """One direction of it."""
        return LinkShape(rate=self.rate / 8, delay=self.rtt_ms / 2000, loss=self.loss_percent / 100)


@attrs.frozen
class Taken:
    """What a step took.

    Attributes:
        name: of the step.
        seconds: until the answer was there.
        bytes: of IP packets, both ways.
        packets: IP packets, both ways.
        lost: of them, those that were lost on the link.
        repeated: messages that were sent again, by either side.
    """

    name: str
    seconds: float
    bytes: int
    packets: int
    lost: int
    repeated: int

    @property
    def spurious(self) -> int:
        """Of the repetitions, those that no loss can have been the reason of."""
        return max(0, self.repeated - self.lost)


@attrs.frozen
class _Counts:
    """A reading of all counters."""

    bytes: int
    packets: int
    lost: int
    retransmissions: int

    @classmethod
    def of(cls, reading: Reading, retransmissions: int) -> _Counts:
        lost = sum(way.lost + way.overflowed for way in (reading.to_client, reading.to_server))
        return cls(reading.bytes, reading.packets, lost, retransmissions)


class Talk:
    """One conversation.

    Args:
        terminal: where progress is told.
        world: link and homeserver.
        link: the link.
        arguments: of the command: `dialect`, `messages`, `patience`, `seed`.
        suffix: what makes the names of its users unlike others'.

    Attributes:
        steps: what was done so far.
    """

    handshake_packets = 0
    """What a handshake takes where nothing is repeated: of the first conversation."""

    def __init__(
        self, terminal: Terminal, world: World, link: SlowLink, arguments: argparse.Namespace, suffix: str
    ) -> None:
        self.steps: list[Taken] = []
        self._terminal, self._world, self._link = terminal, world, link
        self._arguments = arguments
        self._reader = world.register(f"reader{suffix}")
        self._writer = world.register(f"writer{suffix}")
        self._room_id = world.make_room("Low bandwidth", self._writer, [self._reader])
        self._room = f"{CLIENT_API}/rooms/{quote(self._room_id, safe='')}"
        self._said = 0
        self._client = self._make_client()

    def _make_client(self) -> LowBandwidthClient:
        from synapse_lb.client.client import LowBandwidthClient
        from synapse_lb.txdtls.context import ClientVerification

        x1 = self._arguments.dialect == "x1"
        return LowBandwidthClient(
            self._terminal.reactor,
            self._world.coaps_url,
            verification=ClientVerification.ca_file(str(self._world.homeserver.certificate_path)),
            connect_timeout=self._arguments.patience,
            # As a client that has been here before.
            extensions="known" if x1 else False,
            deflate=x1,
        )

    async def hold(self) -> None:
        """Hold it.

        Raises:
            TalkFailed: a step did not succeed.
        """
        self._world.link.shape(self._link.shape(), seed=self._arguments.seed)
        try:
            await self._step(CONNECT, self._client.connect)
            token = await self._step("log in", self._log_in)
            since = await self._step("first sync", lambda: self._sync(token, None))
            for number in range(1, self._arguments.messages + 1):
                await self._step(f"send {number}", lambda: self._send(token))
            for number in range(1, self._arguments.messages + 1):
                await self._say()
                since = await self._step(f"sync {number}", partial(self._sync, token, since))
            await self._observe(token, since)
        finally:
            await self._client.close()

    async def _observe(self, token: str, since: str) -> None:
        from twisted.internet.defer import Deferred

        news: list[Deferred[Any]] = [Deferred()]

        def handler(body: Any) -> None:
            if len(news) == 1 or messages_in(body):
                waiting, news[-1:] = news[-1], [news[-1], Deferred()]
                waiting.callback(body)

        def begin() -> Deferred[Any]:
            observation = self._client.observe_sync(since, handler, token=token)
            observation.done.addErrback(lambda failure: news[-1].errback(failure))
            return news[0]

        await self._step("observe", begin)
        for number in range(1, self._arguments.messages + 1):
            await self._step(f"push {number}", partial(self._pushed, news[-1]))

    async def _pushed(self, expected: Deferred[Any]) -> None:
        """Say something, and wait until it has come."""
        await self._say()
        await expected

    async def _log_in(self) -> str:
        body = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": self._reader.user_id},
            "password": PASSWORD,
        }
        answer = await self._request("POST", f"{CLIENT_API}/login", body, None)
        return str(answer["access_token"])

    async def _send(self, token: str) -> None:
        self._said += 1
        path = f"{self._room}/send/m.room.message/{self._said}"
        body = {"msgtype": "m.text", "body": GREETING}
        await self._request("PUT", path, body, token, brief=self._arguments.dialect == "x1")

    async def _sync(self, token: str, since: str | None) -> str:
        query = {"timeout": "0"} if since is None else {"since": since, "timeout": "0"}
        answer = await self._request("GET", f"{CLIENT_API}/sync", None, token, query)
        return str(answer["next_batch"])

    async def _say(self) -> None:
        """The other one says something, beside the link."""
        from twisted.internet.threads import deferToThreadPool

        self._said += 1
        reactor, content = self._terminal.reactor, {"msgtype": "m.text", "body": GREETING}
        pool, transaction = reactor.getThreadPool(), f"w{self._said}"
        await deferToThreadPool(
            reactor, pool, self._world.say, self._room_id, self._writer, content, transaction
        )

    async def _request(
        self,
        method: str,
        path: str,
        body: Any,
        token: str | None,
        query: dict[str, str] | None = None,
        *,
        brief: bool = False,
    ) -> Any:
        from synapse_lb.msc3079.messages import NO_BODY

        json = NO_BODY if body is None else body
        answer = await self._client.request(method, path, query, json, token, brief=brief)
        if answer.status != 200:
            raise TalkFailed(f"{method} {path}: {answer.status} {answer.body}")
        return answer.body

    async def _step(self, name: str, work: Callable[[], Awaitable[Any]]) -> Any:
        """Do a step, wait until the link is empty, and note what it took."""
        from twisted.internet.defer import Deferred, TimeoutError

        from synapse_lb.client.errors import ClientError

        reactor, before = self._terminal.reactor, self._count()
        began = reactor.seconds()

        async def working() -> Any:
            return await work()

        doing: Deferred[Any] = Deferred.fromCoroutine(working())
        doing.addTimeout(self._arguments.patience, reactor)
        try:
            outcome = await doing
        except (ClientError, TimeoutError) as error:
            seconds = reactor.seconds() - began
            raise TalkFailed(f"{name}: {type(error).__name__} after {seconds:.0f} s: {error}") from error
        seconds = reactor.seconds() - began
        await self._until_quiet()
        self._note(name, seconds, before)
        return outcome

    def _note(self, name: str, seconds: float, before: _Counts) -> None:
        now = self._count()
        packets = now.packets - before.packets
        repeated = now.retransmissions - before.retransmissions
        if name == CONNECT:
            if not self._link.rate:
                Talk.handshake_packets = packets
            repeated = max(0, packets - Talk.handshake_packets)
        taken = Taken(name, seconds, now.bytes - before.bytes, packets, now.lost - before.lost, repeated)
        self.steps.append(taken)
        again = f", {repeated} sent again, {taken.lost} lost" if repeated or taken.lost else ""
        self._terminal.error(f"  {name}: {seconds:.2f} s, {taken.bytes:,} bytes{again}")

    def _count(self) -> _Counts:
        ours = self._client.endpoint_counters.retransmissions
        theirs = self._world.metric("synapse_lb_coap_retransmissions_total")
        return _Counts.of(self._world.link.read(), ours + theirs)

    async def _until_quiet(self) -> None:
        from twisted.internet.task import deferLater

        quiet = 0.0
        while quiet < _QUIET:
            before = self._world.link.read()
            await deferLater(self._terminal.reactor, _TICK, lambda: None)
            now = self._world.link.read()
            resting = now.packets == before.packets and now.arrived
            quiet = quiet + _TICK if resting else 0.0
