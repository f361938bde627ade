# SPDX-License-Identifier: AGPL-3.0-or-later
"""One homeserver with workers for all tests here, users of it, clients of either worker."""

from __future__ import annotations

import hmac
import itertools
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote

import attrs
from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import SkipTest, TestCase

from synapse_lb.client.client import LowBandwidthClient
from synapse_lb.client.persistence import Persistence
from synapse_lb.coap.tuning import Tuning
from synapse_lb.msc3079.messages import MatrixResponse
from synapse_lb.testing import throwaway_services
from synapse_lb.testing.throwaway_workers import ThrowawayWorkers
from synapse_lb.txdtls.context import ClientVerification
from tests.project.sources import ROOT

REACTOR: Any = reactor
V3: Final = "/_matrix/client/v3"
PATIENCE: Final = 60.0
"""s: that something which happens soon is waited for."""

BRISK: Final = Persistence(
    heartbeat=0.5, first_heartbeat=0.5, retry_initial=0.2, retry_max=1.0, spread=0.2, refresh=3600.0
)
"""An observer that notices within seconds that it is not heard, where one in the field has minutes."""

QUICK: Final = Tuning(min_rto=0.1, max_rto=0.5, ack_timeout=0.3, max_retransmit=3)
"""Retransmissions for a network that has no delays."""

ENDURING: Final = attrs.evolve(QUICK, max_retransmit=6)
"""The same, of a client that has time to find another way before it gives up."""

SECRET: Final = "for administrators"

EXTRA: Final[dict[str, Any]] = {
    "rc_login": {
        "address": {"per_second": 100_000, "burst_count": 100_000},
        "account": {"per_second": 100_000, "burst_count": 100_000},
        "failed_attempts": {"per_second": 100_000, "burst_count": 100_000},
    },
    "registration_shared_secret": SECRET,
    "experimental_features": {"msc4306_enabled": True},
}

_shared: list[ThrowawayWorkers] = []
numbers = itertools.count(1)


def shared_workers() -> ThrowawayWorkers:
    """The homeserver, started on first use; it is stopped when the interpreter ends."""
    missing = throwaway_services.missing()
    if missing is not None:
        raise SkipTest(missing)
    if not _shared:
        homeserver = ThrowawayWorkers(ROOT / "contrib" / "workers", extra_config=EXTRA)
        homeserver.start()
        _shared.append(homeserver)
    return _shared[0]


async def until(happened: Callable[[], Any]) -> Any:
    """Wait until something is true, and return it."""
    for _ in range(int(PATIENCE / 0.02)):
        result = happened()
        if result:
            return result
        await deferLater(REACTOR, 0.02)
    raise AssertionError(f"it has not happened: {happened}")


class User:
    """Somebody who was registered over HTTP with the main process."""

    def __init__(self, homeserver: ThrowawayWorkers) -> None:
        body = {
            "auth": {"type": "m.login.dummy"},
            "username": f"user{next(numbers)}",
            "password": "correct horse battery",
        }
        status, answer = http(homeserver.http_url(), "POST", f"{V3}/register", body)
        assert status == 200, answer
        self.user_id = str(answer["user_id"])
        self.token = str(answer["access_token"])
        self.device_id = str(answer["device_id"])


def administrator(homeserver: ThrowawayWorkers) -> str:
    """Register an administrator as Synapse's register_new_matrix_user does; returns the access token."""
    path, name, password = "/_synapse/admin/v1/register", f"root{next(numbers)}", "correct horse"
    _, answer = http(homeserver.http_url(), "GET", path)
    content = "\0".join((answer["nonce"], name, password, "admin"))
    mac = hmac.new(SECRET.encode(), content.encode(), "sha1").hexdigest()
    body = {"nonce": answer["nonce"], "username": name, "password": password, "admin": True, "mac": mac}
    status, answer = http(homeserver.http_url(), "POST", path, body)
    assert status == 200, answer
    return str(answer["access_token"])


class WorkersCase(TestCase):
    """Has the homeserver, and leaves it whole."""

    timeout = 180

    def setUp(self) -> None:
        super().setUp()
        self.homeserver = shared_workers()
        self.addCleanup(self.mend)

    def mend(self) -> None:
        """Start the workers that a test has ended."""
        for process in self.homeserver.processes.values():
            if process.pid is None:
                process.start()

    def client(self, worker: str | None = None, **settings: Any) -> LowBandwidthClient:
        """A client of one worker, or of whichever of them the kernel chooses."""
        url = settings.pop("url", None) or self.homeserver.coaps_url(worker)
        verification = ClientVerification.ca_file(str(self.homeserver.certificate_path))
        client = LowBandwidthClient(
            settings.pop("reactor", REACTOR),
            url,
            verification=verification,
            persistence=BRISK,
            tuning=settings.pop("tuning", QUICK),
            **settings,
        )
        self.addCleanup(client.close)
        return client

    def user(self) -> User:
        """A new user."""
        return User(self.homeserver)

    async def ok(self, client: LowBandwidthClient, method: str, path: str, **arguments: Any) -> Any:
        """A request that must succeed; returns the body."""
        response: MatrixResponse = await client.request(method, path, **arguments)
        self.assertEqual(response.status, 200, f"{method} {path}: {response.body}")
        return response.body

    async def room_of(self, alice: User, bob: User) -> str:
        """A room with both in it, made through both workers."""
        first, second = self.client("worker1"), self.client("worker2")
        made = await self.ok(
            first, "POST", f"{V3}/createRoom", json={"invite": [bob.user_id]}, token=alice.token
        )
        room_id = str(made["room_id"])
        await self.ok(second, "POST", f"{V3}/join/{room_id}", json={}, token=bob.token)
        return room_id

    async def say(self, client: LowBandwidthClient, user: User, room_id: str, text: str) -> str:
        """Send a message; returns its event id."""
        path = f"{V3}/rooms/{room_id}/send/m.room.message/{next(numbers)}"
        body = {"msgtype": "m.text", "body": text}
        return str((await self.ok(client, "PUT", path, json=body, token=user.token))["event_id"])

    def served_by(self, path: str) -> list[str]:
        """The processes that have a line of the access log for a path."""
        path = unquote(path)
        path += "" if "?" not in path else " "
        return [
            name
            for name, process in self.homeserver.processes.items()
            if any(
                "Processed request" in line and f" {path}" in unquote(line) and "synapse.access" in line
                for line in process.log_text.splitlines()
            )
        ]


class Heard:
    """What an observer of `/sync` has processed: the texts of messages, in order."""

    def __init__(self, room_id: str) -> None:
        self.room_id = room_id
        self.texts: list[str] = []

    def __call__(self, body: Any) -> None:
        """Process a result."""
        joined = body.get("rooms", {}).get("join", {}).get(self.room_id, {})
        for event in joined.get("timeline", {}).get("events", []):
            if event["type"] == "m.room.message":
                self.texts.append(event["content"]["body"])


def http(url: str, method: str, path: str, body: Any = None, token: str | None = None) -> tuple[int, Any]:
    """A request over plain HTTP: status and JSON."""
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, content, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")
