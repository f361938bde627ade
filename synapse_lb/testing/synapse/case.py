# SPDX-License-Identifier: AGPL-3.0-or-later
"""A test case with a homeserver, of the kind that Synapse's own tests have, whose requests go over CoAP."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any, ClassVar, TypeVar, cast
from urllib.parse import quote

from synapse.http.site import SynapseSite
from synapse.logging.context import (
    SENTINEL_CONTEXT,
    PreserveLoggingContext,
    run_in_background,
    set_current_context,
)
from synapse.server import HomeServer
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from synapse_lb.homeserver import hooks
from synapse_lb.testing.synapse.channel import QUICK_STEPS, FakeChannel
from synapse_lb.testing.synapse.errors import Reason, TimedOutException
from synapse_lb.testing.synapse.homeserver import (
    ThreadlessReactor,
    default_config,
    make_homeserver,
    make_site,
)
from synapse_lb.testing.synapse.requests import Requester

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])

_EXTRA = "synapse_lb_extra_config"
_TURNS = 3000
"""Turns that something is waited for at most: no virtual time, but seconds where other threads are at it."""


def override_config(extra: dict[str, Any]) -> Callable[[Function], Function]:
    """Decorate a test with what its ``homeserver.yaml`` has besides.

    Args:
        extra: top-level keys.
    """

    def decorate(function: Function) -> Function:
        function.__dict__[_EXTRA] = extra
        return function

    return decorate


async def _done(awaitable: Awaitable[T]) -> T:
    return await awaitable


class HomeserverTestCase(TestCase):
    """Has a homeserver for each test; its time passes only when the test lets it.

    Attributes:
        over_http: for which reasons requests may go over HTTP; others that cannot go over CoAP raise `NotOverCoap`.
        client_options: how the client words its requests, as of `LowBandwidthClient`.
        reactor: the virtual time.
        hs: the homeserver.
        site: its resources.
        requester: makes the requests, and counts them (``requester.tally``).
    """

    over_http: ClassVar[Collection[Reason]] = ()
    client_options: ClassVar[dict[str, Any]] = {}

    reactor: ThreadlessReactor
    hs: HomeServer
    site: SynapseSite
    requester: Requester

    def setUp(self) -> None:
        """Make the homeserver."""
        super().setUp()
        # Where nobody listens, Python would print what Synapse warns of, such as its own end.
        logging.getLogger("synapse").addHandler(logging.NullHandler())
        self.reactor = ThreadlessReactor()
        extra = getattr(getattr(self, self._testMethodName), _EXTRA, {})
        self.hs = make_homeserver(self.reactor, {**self.default_config(), **extra})
        self.addCleanup(self._shut_down)
        self.get_success(self.hs.get_datastores().main.db_pool.updates.run_background_updates(False))
        self.site = make_site(self.hs)
        self.requester = Requester(over_http=self.over_http, **self.client_options)
        self.prepare(self.reactor, self.hs)

    def default_config(self) -> dict[str, Any]:
        """The ``homeserver.yaml`` of all tests; to be extended."""
        return default_config()

    def prepare(self, reactor: ThreadlessReactor, homeserver: HomeServer) -> None:
        """Make what the tests need besides; to be overridden."""

    def make_request(
        self,
        method: str | bytes,
        path: str | bytes,
        content: bytes | str | dict[str, Any] = b"",
        access_token: str | None = None,
        **others: Any,
    ) -> FakeChannel:
        """Make a request over CoAP; see `Requester.make_request`."""
        channel = self.requester.make_request(
            self.reactor, self.site, method, path, content, access_token, **others
        )
        return cast(FakeChannel, channel)

    def get_success(self, awaitable: Awaitable[T]) -> T:
        """Let Synapse do something, without virtual time, and return its result.

        Raises:
            TimedOutException: it takes time.
        """
        results: list[Any] = []
        with hooks.logging_context("test", self.hs.hostname):
            run_in_background(_done, awaitable).addBoth(results.append)
            with PreserveLoggingContext():
                for turn in range(_TURNS):
                    if results:
                        break
                    self.reactor.advance(0)
                    time.sleep(0 if turn < QUICK_STEPS else 0.001)  # Lets other threads run.
        if not results:
            raise TimedOutException("it is not done without time")
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return cast(T, results[0])

    # What most tests need first

    def register_user(self, localpart: str, password: str = "secret", *, admin: bool = False) -> str:
        """Make a user; returns the user id."""

        async def register() -> str:
            password_hash = await self.hs.get_auth_handler().hash(password)
            return await self.hs.get_registration_handler().register_user(
                localpart=localpart, password_hash=password_hash, admin=admin
            )

        return self.get_success(register())

    def login(self, localpart: str, password: str = "secret", device_id: str | None = None) -> str:
        """Log a user in; returns the access token."""
        identifier = {"type": "m.id.user", "user": localpart}
        body = {"type": "m.login.password", "identifier": identifier, "password": password}
        if device_id is not None:
            body["device_id"] = device_id
        return str(self._ok("POST", "/_matrix/client/v3/login", body, None)["access_token"])

    def register_and_login(self, localpart: str, password: str = "secret") -> str:
        """Make a user and log it in; returns the access token."""
        self.register_user(localpart, password)
        return self.login(localpart, password)

    def create_room(self, token: str, **content: Any) -> str:
        """Make a room; returns its id.

        Args:
            token: of the user.
            content: as of ``/createRoom``.
        """
        return str(self._ok("POST", "/_matrix/client/v3/createRoom", content, token)["room_id"])

    def join(self, room: str, token: str) -> None:
        """Join a room."""
        self._ok("POST", f"/_matrix/client/v3/join/{quote(room, safe='')}", {}, token)

    def send(self, room: str, text: str, token: str) -> str:
        """Send a text message to a room; returns the event's id."""
        self._transactions = getattr(self, "_transactions", 0) + 1
        path = f"/_matrix/client/v3/rooms/{quote(room, safe='')}/send/m.room.message/{self._transactions}"
        return str(self._ok("PUT", path, {"msgtype": "m.text", "body": text}, token)["event_id"])

    def sync(self, token: str, since: str | None = None) -> dict[str, Any]:
        """Ask ``/sync`` what is new, without waiting for it."""
        query = "" if since is None else f"?since={quote(since, safe='')}"
        return self._ok("GET", f"/_matrix/client/v3/sync{query}", b"", token)

    def _ok(self, method: str, path: str, content: Any, token: str | None) -> dict[str, Any]:
        channel = self.make_request(method, path, content, token)
        if channel.code != 200:
            self.fail(f"{method} {path}: {channel.result}")
        return channel.json_body

    def _shut_down(self) -> Deferred[None]:
        with PreserveLoggingContext():
            done = ensureDeferred(self.hs.shutdown())
        for _ in range(_TURNS):
            if done.called:
                break
            self.reactor.advance(0)
        self.reactor.triggers.clear()
        set_current_context(SENTINEL_CONTEXT)
        return done
