# SPDX-License-Identifier: AGPL-3.0-or-later
"""The operations over CoAP, CBOR and DTLS, with the client library, through a relay that counts datagrams."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from synapse_lb.cli.conversation import CLIENT
from synapse_lb.cli.wire import operations
from synapse_lb.cli.wire.operations import POLL_TIMEOUT, Call
from synapse_lb.cli.wire.relay import Counted, CountingRelay
from synapse_lb.cli.wire.scene import Scene, SceneFailed, User
from synapse_lb.client.client import LowBandwidthClient
from synapse_lb.client.persistence import Persistence
from synapse_lb.msc3079.messages import NO_BODY
from synapse_lb.txdtls.context import ClientVerification

HANDSHAKES: Final = 4
"""How many handshakes are made: an ECDSA signature has 70 to 72 bytes, and the longest is shown."""

_PAUSE: Final = 0.02
_TIMEOUT: Final = 60.0
_NEVER: Final = 3600.0
_SOON: Final = 1.0


@attrs.frozen
class Mode:
    """A way in which the client speaks.

    Attributes:
        name: in `--mode`, `--json` and the tests.
        title: above its columns.
        options: further arguments of `LowBandwidthClient`.
        stranger: other arguments of one that has never spoken with this server.
        version: of the paths that it asks for; version 1 has codes for those of `r0`, x1 for those of `v3`.
    """

    name: str
    title: str
    options: Mapping[str, Any]
    stranger: Mapping[str, Any] = attrs.field(factory=dict)
    version: str = "r0"


MODES: Final = (
    Mode("v1", "CoAP, version 1", {"deflate": False, "extensions": False}),
    Mode("deflate", "with 11060", {"deflate": True, "extensions": False}),
    # A client that has never been there finds out with its first request.
    Mode("x1", "with x1", {"extensions": "known"}, stranger={"extensions": True}, version="v3"),
)


class CoapSide:
    """Measures over CoAP.

    Args:
        reactor: Twisted's reactor.
        scene: the homeserver, with users and rooms.
        mode: how the client speaks.
        progress: told of each step.
    """

    def __init__(self, reactor: Any, scene: Scene, mode: Mode, progress: Callable[[str], None]) -> None:
        self._reactor = reactor
        self._scene = scene
        self._mode = mode
        self._progress = progress
        self._transactions = map(operations.transaction, itertools.count())
        self._session = scene.fabric.megolm_session(scene.alix.device_id)
        self._room = ""
        homeserver = scene.homeserver
        server = (homeserver.settings.address, homeserver.ports.lowbandwidth)
        self._relay = CountingRelay(reactor, server)

    async def measure(self) -> dict[str, Counted]:
        """Everything: key of the operation and what it took.

        Raises:
            ClientError: a request failed.
            SceneFailed, UnexpectedAnswer: an answer was not as expected.
            CountsDiffer: the datagrams were not those of the client.
        """
        self._progress(f"measuring {self._mode.title}")
        self._room = self._scene.new_room()
        self._relay.start()
        try:
            figures = await self._connecting()
            figures |= await self._with_client(self._talking)
            figures |= await self._with_client(self._arriving, _persistence(_NEVER))
            figures |= await self._with_client(self._staying, _persistence(_SOON))
            figures |= await self._with_client(self._fetching)
        finally:
            await self._relay.stop()
        return figures

    # The operations

    async def _connecting(self) -> dict[str, Counted]:
        session: bytes | None = None

        async def once(client: LowBandwidthClient) -> Counted:
            nonlocal session
            used = await self._relay.counted(
                client, lambda: self._run(client, self._scene.alix, self._send())
            )
            session = client.session
            return used

        stranger = self._mode.stranger
        first = [await self._with_client(once, **stranger) for _ in range(HANDSHAKES)]
        resumed = [await self._with_client(once, session=session) for _ in range(HANDSHAKES)]
        return {"connect_first": max(first, key=_total), "connect_resumed": max(resumed, key=_total)}

    async def _talking(self, client: LowBandwidthClient) -> dict[str, Counted]:
        scene, room = self._scene, self._room
        alix = scene.alix
        figures = {}
        sent = await self._run(client, alix, self._send())
        empty = {}

        async def run(call: Call, *, brief: bool = False) -> Counted:
            async def work() -> None:
                empty["body"] = await self._run(client, alix, call, brief=brief)

            return await self._relay.counted(client, work)

        figures["send"] = await run(self._send())
        figures["send_brief"] = await run(self._send(), brief=True)
        # What is said once for an association, or with the first event of a session, has been said.
        await run(self._send_encrypted())
        figures["send_encrypted"] = await run(self._send_encrypted())
        figures["receipt"] = await run(operations.receipt(room, sent["event_id"]))
        figures["typing"] = await run(operations.typing(room, alix.user_id, types=True))
        await run(operations.typing(room, alix.user_id, types=False))
        since = (await self._run(client, alix, self._scene.now()))["next_batch"]
        figures["sync_empty"] = await run(operations.sync(since, timeout=POLL_TIMEOUT))
        operations.expect_empty(empty["body"])
        return figures

    async def _arriving(self, client: LowBandwidthClient) -> dict[str, Counted]:
        scene = self._scene
        since = (await self._run(client, scene.alix, self._scene.now()))["next_batch"]
        inbox = Inbox()
        observation = client.observe_sync(since, inbox.take, token=scene.alix.token)
        await self._limited(inbox.next())
        figures = {}
        for key, speak in (("push", scene.say), ("push_encrypted", scene.say_encrypted)):
            # What is said once for an association has been said with the first one.
            for _ in range(2):
                figures[key] = await self._relay.counted(client, partial(self._heard, inbox, speak))
        await observation.stop()
        return figures

    async def _heard(self, inbox: Inbox, speak: Callable[[str, str], None]) -> None:
        speak(self._room, next(self._transactions))
        operations.expect_events(await self._limited(inbox.next()), rooms=1, events=1)

    async def _staying(self, client: LowBandwidthClient) -> dict[str, Counted]:
        since = (await self._run(client, self._scene.alix, self._scene.now()))["next_batch"]
        inbox = Inbox()
        observation = client.observe_sync(since, inbox.take, token=self._scene.alix.token)
        await self._limited(inbox.next())
        used = await self._relay.counted(client, lambda: self._until_datagrams(client, 2))
        await observation.stop()
        return {"keepalive": used}

    async def _fetching(self, client: LowBandwidthClient) -> dict[str, Counted]:
        scene, sizes = self._scene, self._scene.sizes
        carl = scene.carl
        answers: list[Any] = []

        async def run(call: Call) -> Counted:
            async def work() -> None:
                answers.append(await self._run(client, carl, call))

            return await self._relay.counted(client, work)

        await run(Call("GET", f"{CLIENT}/account/whoami"))
        figures = {"sync_initial": await run(operations.sync(None, limited=True))}
        operations.expect_events(answers[-1], rooms=sizes.rooms, events=operations.TIMELINE_LIMIT)
        figures["sync_incremental"] = await run(operations.sync(scene.since, limited=True))
        operations.expect_events(answers[-1], rooms=sizes.active_rooms, events=sizes.new_messages)
        figures["keys_query"] = await run(operations.keys_query(scene.device_owners))
        operations.expect_devices(answers[-1], sizes.devices)
        return figures

    # What they are made of

    def _send(self) -> Call:
        return operations.send(self._room, next(self._transactions))

    def _send_encrypted(self) -> Call:
        return operations.send_encrypted(self._room, next(self._transactions), self._session.event())

    async def _run(self, client: LowBandwidthClient, user: User, call: Call, *, brief: bool = False) -> Any:
        body = NO_BODY if call.body is None else call.body
        path = call.path.replace("/v3/", f"/{self._mode.version}/", 1)
        answer = await client.request(
            call.method, path, call.query, body, user.token, brief=brief, timeout=_TIMEOUT
        )
        if answer.status != 200:
            raise SceneFailed(f"{call.method} {call.path} over CoAP: {answer.status} {answer.body}")
        return answer.body

    async def _with_client(
        self,
        work: Callable[[LowBandwidthClient], Awaitable[Any]],
        persistence: Persistence | None = None,
        **further: Any,
    ) -> Any:
        homeserver = self._scene.homeserver
        client = LowBandwidthClient(
            self._reactor,
            f"coaps://{homeserver.host}:{self._relay.port}",
            verification=ClientVerification.ca_file(str(homeserver.certificate_path)),
            persistence=persistence,
            keylog=self._relay.keylog,
            **(dict(self._mode.options) | further),
        )
        try:
            return await work(client)
        finally:
            await client.close()

    async def _until_datagrams(self, client: LowBandwidthClient, received: int) -> None:
        enough = client.counters.datagrams_received + received - 1
        for _ in range(round(_TIMEOUT / _PAUSE)):
            if client.counters.datagrams_received >= enough:
                return
            await deferLater(self._reactor, _PAUSE)
        raise SceneFailed("no keep-alive came")

    def _limited(self, waiting: Deferred[Any]) -> Deferred[Any]:
        return waiting.addTimeout(_TIMEOUT, self._reactor)


class Inbox:
    """Sync bodies of an observation, each to be fetched once."""

    def __init__(self) -> None:
        self._bodies: list[Any] = []
        self._waiting: Deferred[Any] | None = None

    def take(self, body: Any) -> None:
        """The observation's handler."""
        self._bodies.append(body)
        self._hand_over()

    def next(self) -> Deferred[Any]:
        """The next body, once it is there."""
        self._waiting = Deferred()
        waiting = self._waiting
        self._hand_over()
        return waiting

    def _hand_over(self) -> None:
        if self._waiting is not None and self._bodies:
            waiting, self._waiting = self._waiting, None
            waiting.callback(self._bodies.pop(0))


def _persistence(heartbeat: float) -> Persistence:
    return Persistence(heartbeat=heartbeat, first_heartbeat=heartbeat)


def _total(counted: Counted) -> int:
    return counted.traffic.ip_bytes_sent + counted.traffic.ip_bytes_received
