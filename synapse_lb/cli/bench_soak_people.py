# SPDX-License-Identifier: AGPL-3.0-or-later
"""The clients of `synapse-lb bench soak`: each writes, reads, syncs, observes, moves, vanishes and comes back."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import attrs

from synapse_lb.cli.bench_world import CLIENT_API, PASSWORD

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from synapse_lb.client.client import LowBandwidthClient
    from synapse_lb.client.observation import Observation
    from synapse_lb.testing.plug import Plug

PATIENCE: Final = 120.0
"""Seconds that one request may take: more than the 93 after which CoAP gives an association up."""

OBSERVERS: Final = 0.8
"""Share of the clients that observe; the others poll."""

_SMALL_SYNC: Final = {"room": {"timeline": {"limit": 5}}}
_POLL: Final = "10000"
_LARGE: Final = (20_000, 200_000)
"""Bytes of the text in a large body, from and to."""

_AWAY: Final = 8.0
"""Seconds that somebody who has gone stays away, on average."""


@attrs.define
class Tally:
    """What all clients have done and met.

    Attributes:
        done: what was done, by name.
        statuses: of answers.
        errors: that the client library reported, by class.
        failures: answers that say that the server has failed: status and what was asked for.
        pushed: bodies that handlers were given.
    """

    done: Counter[str] = attrs.field(factory=Counter)
    statuses: Counter[int] = attrs.field(factory=Counter)
    errors: Counter[str] = attrs.field(factory=Counter)
    failures: Counter[str] = attrs.field(factory=Counter)
    pushed: int = 0


@attrs.define
class Crowd:
    """What all clients share.

    Attributes:
        reactor: Twisted's.
        server: address of the relay, for `LowBandwidthClient`.
        certificate: file of the server's certificate.
        think: seconds between two deeds of one client, on average.
        heartbeat: seconds of silence after which an observer pings.
        tally: what was done.
        over: whether no more is to be done.
    """

    reactor: Any
    server: str
    certificate: str
    think: float
    heartbeat: float
    tally: Tally = attrs.field(factory=Tally)
    over: bool = False

    def sleep(self, seconds: float) -> Deferred[None]:
        """Wait."""
        from twisted.internet.task import deferLater

        return deferLater(self.reactor, seconds, lambda: None)

    async def rest(self, seconds: float) -> None:
        """Wait, but no longer than until all is over."""
        end = self.reactor.seconds() + seconds
        while not self.over and (left := end - self.reactor.seconds()) > 0:
            await self.sleep(min(left, 1.0))


class Person:
    """One client: a device of a user, in one room.

    Args:
        crowd: what it shares with the others.
        name: local part of the user's id.
        device: id of the device.
        room: id of the room.
        seed: of everything that it decides.
    """

    def __init__(self, crowd: Crowd, name: str, device: str, room: str, seed: int) -> None:
        self.observes = random.Random(seed).random() < OBSERVERS
        self.last_seen: str | None = None
        self._crowd, self._name, self._device, self._room = crowd, name, device, room
        self._room_path = f"{CLIENT_API}/rooms/{quote(room, safe='')}"
        self._random = random.Random(seed)
        self._x1 = self._random.random() < 0.5
        self._token: str | None = None
        self._since: str | None = None
        self._session: bytes | None = None
        self._client: LowBandwidthClient | None = None
        self._plug: Plug | None = None
        self._observation: Observation | None = None
        self._deeds = 0
        self._event: str | None = None
        self._deed_table = self._deeds_by_weight()

    def _deeds_by_weight(self) -> dict[Callable[[], Awaitable[None]], float]:
        return {
            self._send: 40,
            self._receipt: 14,
            self._typing: 8,
            self._poll: 8 if self.observes else 30,
            self._large: 4,
            self._initial_sync: 3,
            self._history: 4,
            self._keys: 3,
            self._rebind: 5,
            self._reconnect: 4,
            self._reconnect_fully: 2,
            self._vanish: 2,
            self._vanish_in_upload: 1,
            self._log_out: 2,
        }

    async def live(self, delay: float) -> None:
        """Come after some seconds, and go on until all is over."""
        from synapse_lb.client.errors import ClientError

        await self._crowd.rest(delay)
        while not self._crowd.over:
            deed: Callable[[], Awaitable[None]] = self._appear
            try:
                await self._appear()
                deed = self._random.choices(list(self._deed_table), weights=list(self._deed_table.values()))[
                    0
                ]
                await deed()
                self._crowd.tally.done[deed.__name__.strip("_")] += 1
            except ClientError as error:
                self._crowd.tally.errors[f"{type(error).__name__} in {deed.__name__.strip('_')}"] += 1
            await self._crowd.rest(self._random.expovariate(1 / self._crowd.think))

    async def be_there(self) -> None:
        """Be connected, and observe if it observes, for the last word."""
        from synapse_lb.client.errors import ClientError

        for _ in range(5):
            try:
                await self._appear()
                return
            except ClientError as error:
                self._crowd.tally.errors[type(error).__name__] += 1
                await self._crowd.sleep(self._random.random() * 3)

    async def leave(self, abruptly: bool) -> None:
        """Go for good."""
        await self._go(abruptly=abruptly)

    # Being there

    async def _appear(self) -> None:
        if self._client is None:
            self._client = self._make_client()
        if self._token is None:
            await self._log_in()
        if self.observes and self._observation is None and self._token is not None:
            self._observe(self._client, self._token)

    def _make_client(self) -> LowBandwidthClient:
        from synapse_lb.client.client import LowBandwidthClient
        from synapse_lb.client.persistence import Persistence
        from synapse_lb.testing.plug import Plug
        from synapse_lb.txdtls.context import ClientVerification

        crowd = self._crowd
        self._plug = Plug(crowd.reactor)
        return LowBandwidthClient(
            self._plug,
            crowd.server,
            verification=ClientVerification.ca_file(crowd.certificate),
            session=self._session,
            extensions="known" if self._x1 else False,
            persistence=Persistence(
                heartbeat=crowd.heartbeat, first_heartbeat=min(25.0, crowd.heartbeat), retry_max=20.0
            ),
            random=random.Random(self._random.getrandbits(64)),
        )

    def _observe(self, client: LowBandwidthClient, token: str) -> None:
        observation = client.observe_sync(self._since, self._take, token=token, filter=_SMALL_SYNC)
        self._observation = observation

        def ended(failure: Any) -> None:
            self._crowd.tally.errors[f"observation: {failure.type.__name__}"] += 1
            if self._observation is observation:
                self._observation = None

        observation.done.addErrback(ended)

    async def _take(self, body: Any) -> None:
        self._crowd.tally.pushed += 1
        if self._random.random() < 0.1:
            await self._crowd.sleep(self._random.random() * 2)
        self._note(body)

    def _note(self, body: Any) -> None:
        self._since = body["next_batch"]
        room = body.get("rooms", {}).get("join", {}).get(self._room, {})
        for event in room.get("timeline", {}).get("events", []):
            if event["type"] == "m.room.message":
                self._event = event["event_id"]
                self.last_seen = str(event["content"].get("body"))

    async def _go(self, abruptly: bool) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        self._session = client.session or self._session
        if abruptly and self._plug is not None:
            self._plug.pull()
        self._observation = None
        await client.close()

    async def _stay_away(self) -> None:
        await self._crowd.rest(self._random.expovariate(1 / _AWAY))

    # Deeds

    async def _log_in(self) -> None:
        body = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": self._name},
            "password": PASSWORD,
            "device_id": self._device,
        }
        answer = await self._ask("POST", f"{CLIENT_API}/login", json=body, token=None)
        if answer.status == 200:
            self._token = str(answer.body["access_token"])

    async def _send(self) -> None:
        content = {"msgtype": "m.text", "body": f"Hello World {self._random.random()}"}
        path = f"{self._room_path}/send/m.room.message/{self._transaction()}"
        await self._ask("PUT", path, json=content, brief=self._random.random() < 0.5)

    async def _receipt(self) -> None:
        if self._event is None:
            await self._poll()
        else:
            path = f"{self._room_path}/receipt/m.read/{quote(self._event, safe='')}"
            await self._ask("POST", path, json={})

    async def _typing(self) -> None:
        path = f"{self._room_path}/typing/{quote(f'@{self._name}:localhost', safe='')}"
        await self._ask("PUT", path, json={"typing": True, "timeout": 4000})

    async def _poll(self) -> None:
        query = {"timeout": "0" if self.observes else _POLL, "filter": '{"room":{"timeline":{"limit":5}}}'}
        if self._since is not None and not self.observes:
            query["since"] = self._since
        answer = await self._ask("GET", f"{CLIENT_API}/sync", query)
        if answer.status == 200 and not self.observes:
            self._note(answer.body)

    async def _large(self) -> None:
        kind = f"org.example.soak.{self._device}"
        path = f"{CLIENT_API}/user/{quote(f'@{self._name}:localhost', safe='')}/account_data/{kind}"
        await self._ask("PUT", path, json=self._large_body())
        await self._ask("GET", path)

    def _large_body(self) -> dict[str, str]:
        return {"text": self._random.randbytes(self._random.randint(*_LARGE) // 2).hex()}

    async def _initial_sync(self) -> None:
        await self._ask("GET", f"{CLIENT_API}/sync", {"timeout": "0", "full_state": "true"})

    async def _history(self) -> None:
        await self._ask("GET", f"{self._room_path}/messages", {"dir": "b", "limit": "40"})

    async def _keys(self) -> None:
        await self._ask(
            "POST", f"{CLIENT_API}/keys/query", json={"device_keys": {f"@{self._name}:localhost": []}}
        )

    async def _rebind(self) -> None:
        if self._client is not None:
            self._client.rebind()

    async def _reconnect(self) -> None:
        await self._go(abruptly=False)
        await self._stay_away()

    async def _reconnect_fully(self) -> None:
        await self._go(abruptly=False)
        self._session = None
        await self._stay_away()

    async def _vanish(self) -> None:
        await self._go(abruptly=True)
        await self._stay_away()

    async def _vanish_in_upload(self) -> None:
        if self._client is not None:
            path = (
                f"{CLIENT_API}/user/{quote(f'@{self._name}:localhost', safe='')}/account_data/org.example.cut"
            )
            upload = self._client.request("PUT", path, None, self._large_body(), self._token)
            upload.addErrback(lambda _: None)
            await self._crowd.sleep(self._random.random())
        await self._vanish()

    async def _log_out(self) -> None:
        if self._observation is not None:
            observation, self._observation = self._observation, None
            await observation.stop()
        await self._ask("POST", f"{CLIENT_API}/logout", json={})
        self._token = self._since = None

    def _transaction(self) -> str:
        self._deeds += 1
        return f"{self._device}.{self._deeds}"

    async def _ask(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        json: Any = None,
        token: str | None = "",
        *,
        brief: bool = False,
    ) -> Any:
        from synapse_lb.msc3079.messages import NO_BODY

        assert self._client is not None
        answer = await self._client.request(
            method,
            path,
            query,
            NO_BODY if json is None else json,
            self._token if token == "" else token,
            timeout=PATIENCE,
            brief=brief,
        )
        self._crowd.tally.statuses[answer.status] += 1
        if answer.status >= 500:
            what = path.partition("/rooms/")[0] if "/rooms/" in path else path.partition("?")[0]
            self._crowd.tally.failures[f"{answer.status} to {method} {what.rpartition('/')[2]}"] += 1
        elif answer.status == 401:
            # After a logout whose answer was lost: begin anew.
            self._token = self._since = None
            self._observation = None
        return answer
