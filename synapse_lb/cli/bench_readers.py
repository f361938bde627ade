# SPDX-License-Identifier: AGPL-3.0-or-later
"""Clients that wait for news, each in its own way, for the measurements of `synapse-lb bench`.

All of them count what they have been told, and how often they have asked.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from synapse_lb.cli.bench_transports import FetchFailed, HttpsFetcher
from synapse_lb.cli.bench_world import CLIENT_API, User, World

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from synapse_lb.client.client import LowBandwidthClient
    from synapse_lb.client.observation import Observation

_PATIENCE: Final = 120.0
"""Seconds that an answer may take on top of the time limit of a long poll."""


class Reader(Protocol):
    """One way to wait for news.

    Attributes:
        title: of the row.
        rounds: how often it has asked, or pinged, so far.
        news: messages that it has got.
        renewed_hourly: whether it begins anew after an hour of silence.
        error: why it ended, or None.
    """

    title: str
    rounds: int
    news: int
    renewed_hourly: bool
    error: BaseException | None

    async def connect(self) -> None:
        """Make the connection."""
        ...

    def start(self) -> None:
        """Begin to wait, from `since` on."""
        ...

    async def stop(self) -> None:
        """End it."""
        ...


def messages_in(sync: Any) -> int:
    """Count the messages in a body of `/sync`."""
    rooms = sync.get("rooms", {}).get("join", {}).values()
    events = [event for room in rooms for event in room.get("timeline", {}).get("events", [])]
    return sum(event.get("type") == "m.room.message" for event in events)


class CoapReader:
    """OBSERVE, or long polling over CoAP.

    Args:
        world: where.
        reactor: Twisted's.
        user: who reads.
        since: where to begin.
        observe: which of the two.
        x1: whether it speaks the extension x1, or version 1 of MSC3079 alone.
        poll: seconds, the time limit of a poll.
        heartbeat: seconds of silence after which an observer pings.
    """

    def __init__(
        self,
        world: World,
        reactor: Any,
        user: User,
        since: str,
        *,
        observe: bool,
        x1: bool,
        poll: float,
        heartbeat: float,
    ) -> None:
        self.title = f"OBSERVE{', x1' if x1 else ''}" if observe else "long polling over CoAP"
        self.rounds = self.news = 0
        self.renewed_hourly = observe
        self.error: BaseException | None = None
        self._client = self._make_client(world, reactor, heartbeat, x1)
        self._user, self._since, self._observe = user, since, observe
        self._poll = f"{round(poll * 1000)}"
        self._observation: Observation | None = None
        self._polling: Deferred[None] | None = None

    @staticmethod
    def _make_client(world: World, reactor: Any, heartbeat: float, x1: bool) -> LowBandwidthClient:
        from synapse_lb.client.client import LowBandwidthClient
        from synapse_lb.client.persistence import Persistence
        from synapse_lb.txdtls.context import ClientVerification

        return LowBandwidthClient(
            reactor,
            world.coaps_url,
            verification=ClientVerification.ca_file(str(world.homeserver.certificate_path)),
            # The state in which a client is after some minutes.
            persistence=Persistence(heartbeat=heartbeat, first_heartbeat=heartbeat),
            extensions="known" if x1 else False,
            deflate=x1,
        )

    async def connect(self) -> None:
        await self._client.connect()

    def start(self) -> None:
        from twisted.internet.defer import Deferred

        if self._observe:
            self._observation = self._client.observe_sync(self._since, self._take, token=self._user.token)
            self._observation.done.addErrback(self._failed)
        else:
            self._polling = Deferred.fromCoroutine(self._poll_on())
            self._polling.addErrback(self._failed)

    async def stop(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
        await self._client.close()

    def _take(self, body: Any) -> None:
        self.news += messages_in(body)

    async def _poll_on(self) -> None:
        while True:
            query = {"since": self._since, "timeout": self._poll}
            answer = await self._client.request("GET", f"{CLIENT_API}/sync", query, token=self._user.token)
            if answer.status != 200:
                raise FetchFailed(f"the server answers {answer.status}")
            self._since = answer.body["next_batch"]
            self.rounds += 1
            self._take(answer.body)

    def _failed(self, failure: Any) -> None:
        self.error = failure.value


class HttpsReader:
    """Long polling over HTTPS on one keep-alive connection, in a thread.

    Args:
        world: where.
        reactor: Twisted's.
        user: who reads.
        since: where to begin.
        compressed: whether the answers come compressed.
        poll: seconds, the time limit of a poll.
    """

    renewed_hourly = False

    def __init__(
        self,
        world: World,
        reactor: Any,
        user: User,
        since: str,
        *,
        compressed: bool,
        poll: float,
    ) -> None:
        self.title = f"long polling over HTTPS{', gzip' if compressed else ''}"
        self.rounds = self.news = 0
        self.error: BaseException | None = None
        self._reactor = reactor
        self._user, self._since = user, since
        self._compressed = compressed
        self._poll = round(poll * 1000)
        self._fetcher = HttpsFetcher(world, compressed=compressed, patience=poll + _PATIENCE)
        self._stopping = False
        self._thread: Deferred[None] | None = None

    async def connect(self) -> None:
        await self._in_thread(self._fetcher.connect)

    def start(self) -> None:
        self._thread = self._in_thread(self._poll_on)

    async def stop(self) -> None:
        self._stopping = True
        self._fetcher.give_up()
        if self._thread is not None:
            await self._thread
        self._fetcher.close()

    def _in_thread(self, work: Callable[[], None]) -> Deferred[None]:
        from twisted.internet.threads import deferToThreadPool

        return deferToThreadPool(self._reactor, self._reactor.getThreadPool(), work)

    def _poll_on(self) -> None:
        try:
            while True:
                target = f"{CLIENT_API}/sync?since={self._since}&timeout={self._poll}"
                with contextlib.closing(self._fetcher.open(target, self._user.token)) as response:
                    data = response.read()
                body = json.loads(gzip.decompress(data) if self._compressed else data)
                self._since = body["next_batch"]
                self.rounds += 1
                self.news += messages_in(body)
        except (OSError, ValueError, http.client.HTTPException, FetchFailed) as error:
            if not self._stopping:
                self.error = error
