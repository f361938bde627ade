# SPDX-License-Identifier: AGPL-3.0-or-later
"""An application on the client library, and what it keeps on its disk: all that the invariant is about.

It has processed an event when its disk says so, together with the `since` after it. That takes a while for each body;
an application that is killed meanwhile has not processed it. What it sends it sends again, with the same transaction
id, until it has been told that it arrived.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from typing import Any, Final
from urllib.parse import quote

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from synapse_lb.client import ClientVerification, LowBandwidthClient, Observation
from synapse_lb.client.errors import ClientError

CLIENT: Final = "/_matrix/client/v3"


class HandlerBroke(Exception):
    """The application could not process what it was given."""


@attrs.define
class Lane:
    """Messages that are sent one after another.

    Attributes:
        name: of the room; None for to-device messages.
        total: how many there are to be sent.
        sent: how many have arrived for certain.
        sizes: bytes of padding of each.
    """

    name: str | None
    sizes: list[int]
    sent: int = 0

    @property
    def total(self) -> int:
        """How many there are to be sent."""
        return len(self.sizes)


@attrs.define
class Disk:
    """What an application keeps.

    Attributes:
        user: whose it is.
        peer: to whom it sends to-device messages.
        token: the access token.
        since: the place after what was processed.
        events: content and sender of the events that were processed, by room, in order.
        to_device: content of the to-device messages that were processed, in order.
        lanes: what is to be sent.
        session: a DTLS session.
    """

    user: str
    peer: str
    token: str
    lanes: list[Lane]
    since: str | None = None
    events: dict[str, list[tuple[str, int]]] = attrs.field(factory=dict)
    to_device: list[int] = attrs.field(factory=list)
    session: bytes | None = None

    @property
    def all_sent(self) -> bool:
        """Whether everything has arrived at the server."""
        return all(lane.sent == lane.total for lane in self.lanes)

    @property
    def processed_count(self) -> int:
        """How many events were processed."""
        return sum(len(events) for events in self.events.values())

    def processed(self, body: dict[str, Any]) -> None:
        """Keep what was in a body, and where it ends, at once."""
        for room, joined in body.get("rooms", {}).get("join", {}).items():
            events = joined.get("timeline", {}).get("events", [])
            kept = self.events.setdefault(room, [])
            kept += [(each["sender"], _number(each)) for each in events if each["type"] == "m.room.message"]
        self.to_device += [_number(each) for each in body.get("to_device", {}).get("events", [])]
        self.since = body["next_batch"]


def _number(event: dict[str, Any]) -> int:
    return int(event["content"]["body"])


@attrs.frozen
class Habits:
    """How an application behaves; seconds and probabilities.

    Attributes:
        pause: mean time between two messages of a lane.
        work: mean time that a body takes.
        long_work: how often it takes `longest_work` instead.
        longest_work: see there.
        breaks: how often the handler fails.
        patience: longest that a request may take until it is made again.
        connect_timeout: longest that a handshake may take.
    """

    pause: float = 1.0
    work: float = 0.3
    long_work: float = 0.02
    longest_work: float = 70.0
    breaks: float = 0.01
    patience: float = 120.0
    connect_timeout: float = 12.0


class Application:
    """One process, from its start to its end.

    Args:
        disk: where it goes on from.
        reactor: of its process.
        server: `host:port`.
        verification: how the server's certificate is checked.
        random: of everything that it does.
        habits: how it behaves.
        check: called when something was processed; what it raises is a violation.
        violated: called with what must not happen.
        settings: of the client.

    Attributes:
        disk: see there.
        running: whether it goes on to send.
        broke: how often the handler has failed.
        at_work: called when a body is next at work, and not processed yet; for whoever wants to kill it then.
    """

    def __init__(
        self,
        disk: Disk,
        reactor: Any,
        server: str,
        *,
        verification: ClientVerification,
        random: random.Random,
        habits: Habits,
        check: Callable[[Disk], None],
        violated: Callable[[Exception], None],
        **settings: Any,
    ) -> None:
        self.disk: Final = disk
        self.reactor: Final = reactor
        self.running = True
        self.broke = 0
        self.at_work: Callable[[], None] | None = None
        self._random = random
        self._habits = habits
        self._check = check
        self._violated = violated
        self._wakers: list[Deferred[None]] = []
        self.client: Final = LowBandwidthClient(
            reactor,
            server,
            verification=verification,
            session=disk.session,
            connect_timeout=habits.connect_timeout,
            random=random,
            **settings,
        )
        self.observation: Observation = self._observe()
        for lane in disk.lanes:
            self._start(self._send_all(lane))

    async def stop(self) -> None:
        """End it as planned; a body that is being processed will have been."""
        self.running = False
        await self.observation.stop()
        await self.client.close()
        self.disk.session = self.client.session

    # What comes in

    def _observe(self) -> Observation:
        observation = self.client.observe_sync(
            self.disk.since,
            self._handle,
            token=self.disk.token,
            filter={"room": {"timeline": {"limit": 10_000}}},
            set_presence="offline",
        )
        observation.done.addErrback(lambda failure: self._start(self._observe_again(_exception(failure))))
        return observation

    async def _observe_again(self, error: Exception) -> None:
        if not isinstance(error, HandlerBroke):
            self._violated(error)
            return
        await self.reactor.sleep(1.0)
        if self.running:
            self.observation = self._observe()

    async def _handle(self, body: dict[str, Any]) -> None:
        habits, random = self._habits, self._random
        mean = habits.longest_work if random.random() < habits.long_work else habits.work
        if random.random() > 0.3:
            await self.reactor.sleep(min(random.expovariate(1 / mean), 2 * mean))
        if self.at_work is not None:
            await self.reactor.sleep(random.uniform(0.0, 10.0))
            self.at_work()
            await self.reactor.sleep(0.0)
        if random.random() < habits.breaks:
            self.broke += 1
            raise HandlerBroke
        self.disk.processed(body)
        self.disk.session = self.client.session
        self._check(self.disk)

    # What goes out

    async def _send_all(self, lane: Lane) -> None:
        while self.running and lane.sent < lane.total:
            await self.reactor.sleep(self._random.expovariate(1 / self._habits.pause))
            await self._send(lane)

    async def _send(self, lane: Lane) -> None:
        number = lane.sent
        while self.running:
            try:
                path, json = self._request(lane, number)
                response = await self.client.request(
                    "PUT", path, json=json, token=self.disk.token, timeout=self._habits.patience
                )
            except ClientError:
                await self.reactor.sleep(self._random.uniform(0.5, 3.0))
                continue
            if response.status == 200:
                lane.sent = number + 1
                return
            if response.status != 429 and response.status < 500:
                raise AssertionError(f"{path}: {response.status} {response.body}")
            await self.reactor.sleep(response.retry_after or 1.0)

    def _request(self, lane: Lane, number: int) -> tuple[str, Any]:
        content = {"msgtype": "m.text", "body": str(number), "padding": "p" * lane.sizes[number]}
        if lane.name is None:
            messages = {self.disk.peer: {"*": content}}
            return f"{CLIENT}/sendToDevice/m.test/d{number}", {"messages": messages}
        return f"{CLIENT}/rooms/{quote(lane.name)}/send/m.room.message/{lane.name[1:4]}{number}", content

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        Deferred.fromCoroutine(work).addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        if self.running:
            self._violated(_exception(failure))


def _exception(failure: Failure) -> Exception:
    return failure.value if isinstance(failure.value, Exception) else AssertionError(repr(failure.value))
