# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the end-to-end tests share: real Synapses that live as long as the test run, users, clients, raw peers.

Nothing is mocked here: Synapse is a subprocess, datagrams cross the loopback interface. After every test, the log of
the Synapse that it used must have no new error.
"""

from __future__ import annotations

import itertools
import random
import re
import time
import unittest
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from synapse_lb.client.client import LowBandwidthClient
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import Options
from synapse_lb.msc3079 import cbor
from synapse_lb.msc3079.messages import NO_BODY, MatrixResponse
from synapse_lb.testing.lossy import CLEAR, LossyRelay, Weather
from synapse_lb.testing.throwaway import ThrowawayHomeserver, synapse_is_installed
from synapse_lb.txdtls.client import ClientAssociation, connect
from synapse_lb.txdtls.context import ClientVerification, make_client_context
from synapse_lb.txdtls.errors import AssociationLost
from synapse_lb.txdtls.options import ClientOptions

reactor: Any = _reactor

CLIENT = "/_matrix/client/v3"
WAIT = 30.0
"""Seconds after which something that a test waits for has failed to happen."""

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rate-limited": {
        "rate_limits": True,
        "extra_config": {
            "rc_message": {"per_second": 0.05, "burst_count": 2},
            "rc_registration": {"per_second": 1000, "burst_count": 1000},
        },
    },
    "special": {
        # Single sign-on, which answers with redirects, and metrics.
        "http_resources": ["client", "metrics"],
        "extra_config": {
            "enable_metrics": True,
            "cas_config": {"enabled": True, "server_url": "https://cas.example.com"},
        },
    },
    # As it comes, without our module: for the gateway that stands in front of it.
    "bare": {"lowbandwidth": False},
    "few-logins": {
        "rate_limits": True,
        "extra_config": {"rc_login": {"address": {"per_second": 0.001, "burst_count": 3}}},
    },
    "no-q-block": {"lowbandwidth_options": {"tuning": {"q_block": False}}},
    # Tests of the network's badness need not wait for timeouts that are made for the whole world.
    "brisk": {"lowbandwidth_options": {"tuning": {"min_rto": 0.02, "separate_after": 0.2}}},
}
"""What the shared homeservers are started with."""

_shared: dict[str, ThrowawayHomeserver] = {}
numbers = itertools.count(1)


def shared_homeserver(kind: str = "plain") -> ThrowawayHomeserver:
    """The homeserver of this kind, started on first use; it is stopped when the interpreter ends."""
    homeserver = _shared.get(kind)
    if homeserver is None:
        homeserver = ThrowawayHomeserver(**KINDS[kind])
        try:
            homeserver.start()
        except BaseException:
            homeserver.stop()
            raise
        _shared[kind] = homeserver
    return homeserver


class User:
    """A user who was registered over HTTP."""

    def __init__(self, homeserver: ThrowawayHomeserver, name: str) -> None:
        registered = homeserver.register(name)
        self.homeserver = homeserver
        self.name = name
        self.user_id = str(registered["user_id"])
        self.token = str(registered["access_token"])
        self.device_id = str(registered["device_id"])

    def http(self, method: str, path: str, body: Any = None) -> Any:
        """A request over HTTP that must succeed: the response's body."""
        status, answer = self.homeserver.request(method, path, body, self.token)
        if status != 200:
            raise AssertionError(f"{method} {path} over HTTP: {status} {answer}")
        return answer

    def room(self, **settings: Any) -> str:
        """Make a room over HTTP: its id."""
        return str(self.http("POST", f"{CLIENT}/createRoom", settings)["room_id"])

    def say(self, room_id: str, text: str) -> str:
        """Send a message over HTTP: its event id."""
        path = f"{CLIENT}/rooms/{room_id}/send/m.room.message/http{next(numbers)}"
        return str(self.http("PUT", path, {"msgtype": "m.text", "body": text})["event_id"])


class RawPeer:
    """A DTLS association on which a test writes and reads CoAP messages by itself."""

    def __init__(self) -> None:
        self.received: list[Message] = []
        self.lost: AssociationLost | None = None
        self.association: ClientAssociation | None = None
        self._message_id = random.randrange(0x10000)
        self._waiting: list[Deferred[None]] = []

    # AssociationHandler

    def association_established(self, association_id: int) -> None:
        """Nothing to do."""

    def association_moved(self, association_id: int) -> None:
        """Nothing to do."""

    def message_received(self, association_id: int, data: bytes) -> None:
        """Keep it."""
        self.received.append(Message.decode(data))
        self._wake()

    def association_lost(self, association_id: int, reason: AssociationLost) -> None:
        """Remember why."""
        self.lost = reason
        self._wake()

    # Ours

    async def open(
        self,
        host: str,
        port: int,
        using: Any = None,
        options: ClientOptions | None = None,
        session: bytes | None = None,
    ) -> RawPeer:
        """Complete the handshake."""
        self.association = await connect(
            using if using is not None else reactor,
            host,
            port,
            context=make_client_context(ClientVerification.none()),
            handler=self,
            session=session,
            options=options,
        )
        return self

    def next_message_id(self) -> int:
        """A message id that was not used before."""
        self._message_id = (self._message_id + 1) % 0x10000
        return self._message_id

    def send(self, message: Message) -> Message:
        """Send a message; returns it."""
        self.send_bytes(message.encode())
        return message

    def send_bytes(self, data: bytes) -> None:
        """Send any bytes as one record."""
        assert self.association is not None
        self.association.send(data)

    def request(
        self, code: int, options: Options, payload: bytes = b"", *, token: bytes = b"\x01", con: bool = True
    ) -> Message:
        """Send a request with a new message id; returns it."""
        kind = Type.CON if con else Type.NON
        return self.send(Message(kind, code, self.next_message_id(), token, options, payload))

    async def find(self, wanted: Callable[[Message], bool], what: str = "message") -> Message:
        """Wait for a message and take it out of `received`."""

        def there() -> bool:
            return any(wanted(message) for message in self.received)

        await self.until(there, what)
        found = next(message for message in self.received if wanted(message))
        self.received.remove(found)
        return found

    async def response(self, token: bytes = b"\x01") -> Message:
        """Wait for the response with this token; acknowledge it if it asks for that."""
        message = await self.find(lambda m: m.token == token and m.code >= 0x40, "response")
        if message.type is Type.CON:
            self.send(Message(Type.ACK, Code.EMPTY, message.message_id))
        return message

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until something that was received, or the end, makes the condition true."""
        while not condition():
            waiting: Deferred[None] = Deferred()
            self._waiting.append(waiting)
            waiting.addTimeout(WAIT, reactor)
            try:
                await waiting
            except Exception as error:
                if condition():
                    return
                raise AssertionError(f"no {what} came; lost: {self.lost!r}; {self.received}") from error

    async def until_lost(self) -> None:
        """Wait for the end of the association."""
        await self.until(lambda: self.lost is not None, "end of the association")

    def close(self) -> Deferred[None] | None:
        """Say close_notify."""
        return None if self.association is None else self.association.close()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.called:
                each.callback(None)


class FixedPort:
    """A reactor whose UDP sockets have one port of the client's: deployed clients come back on theirs."""

    def __init__(self, port: int) -> None:
        self._port = port

    def listenUDP(self, port: int, protocol: Any, interface: str = "", maxPacketSize: int = 8192) -> Any:
        """Bind to the fixed port."""
        return reactor.listenUDP(self._port, protocol, interface=interface, maxPacketSize=maxPacketSize)

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


def path_options(path: str, query: str = "") -> Options:
    """Uri-Path and Uri-Query options of a path that needs no percent-encoding."""
    options = Options()
    for segment in path.strip("/").split("/"):
        options = options.with_option(OptionNumber.URI_PATH, segment.encode())
    for pair in filter(None, query.split("&")):
        options = options.with_option(OptionNumber.URI_QUERY, pair.encode())
    return options


def cbor_value(message: Any) -> Any:
    """The body of a message or response, decoded."""
    return cbor.decode(message.payload).value


@unittest.skipUnless(synapse_is_installed(), "matrix-synapse is not installed")
class SynapseTestCase(TestCase):
    """A test that talks to a real Synapse over real UDP."""

    timeout = 180
    kind = "plain"
    allowed_errors: tuple[str, ...] = ()
    """Parts of log lines that are errors by Synapse's own will."""

    homeserver: ThrowawayHomeserver
    log_start: int
    errors_before: int

    def setUp(self) -> None:
        self.homeserver = shared_homeserver(self.kind)
        if self.homeserver.pid is None:
            self.homeserver.start()
        self._let_the_log_catch_up()
        self.log_start = len(self.homeserver.log_text())
        self.errors_before = len(self.homeserver.error_lines(self.allowed_errors))

    def _let_the_log_catch_up(self) -> None:
        """Wait for a line of our own: those of the test before, written after their answers, are there then."""
        mark = f"/_matrix/client/versions?mark={next(numbers)}"
        self.homeserver.request("GET", mark)
        deadline = time.monotonic() + WAIT
        while mark not in self.homeserver.log_text():
            if time.monotonic() > deadline:
                self.fail(f"Synapse never logged {mark}")
            time.sleep(0.005)

    def tearDown(self) -> None:
        new = self.homeserver.error_lines(self.allowed_errors)[self.errors_before :]
        self.assertEqual(new, [], "Synapse logged errors during this test")
        self.assertIsNotNone(self.homeserver.pid, "Synapse ended")

    def user(self) -> User:
        """A new user."""
        return User(self.homeserver, f"user{next(numbers)}")

    def client(self, port: int | None = None, *, host: str = "", **arguments: Any) -> LowBandwidthClient:
        """A client of the homeserver, or of a relay in front of it; closed after the test."""
        port = port if port is not None else self.homeserver.ports.lowbandwidth
        verification = ClientVerification.ca_file(str(self.homeserver.certificate_path))
        arguments.setdefault("verification", verification)
        client = LowBandwidthClient(reactor, f"coaps://{host or self.homeserver.host}:{port}", **arguments)
        self.addCleanup(client.close)
        return client

    async def ask(
        self, client: LowBandwidthClient, method: str, path: str, json: Any = NO_BODY, **arguments: Any
    ) -> Any:
        """A request that must succeed: the answer's body."""
        arguments.setdefault("timeout", WAIT)
        response: MatrixResponse = await client.request(method, path, json=json, **arguments)
        self.assertEqual(response.status, 200, f"{method} {path}: {response.body}")
        return response.body

    async def raw(self, port: int | None = None, using: Any = None, session: bytes | None = None) -> RawPeer:
        """A raw association with the homeserver; closed after the test."""
        peer = RawPeer()
        self.addCleanup(peer.close)
        await peer.open(
            self.homeserver.settings.address,
            port if port is not None else self.homeserver.ports.lowbandwidth,
            using,
            session=session,
        )
        return peer

    def relay(self, weather: Weather = CLEAR, seed: int = 1, interface: str = "127.0.0.1") -> LossyRelay:
        """A bad network in front of the homeserver."""
        server = (self.homeserver.settings.address, self.homeserver.ports.lowbandwidth)
        relay = LossyRelay(reactor, server=server, weather=weather, seed=seed, interface=interface)
        relay.start()
        self.addCleanup(relay.stop)
        return relay

    def logged(self) -> str:
        """What Synapse has logged since the test began."""
        return self.homeserver.log_text()[self.log_start :]

    def logged_requests(self, pattern: str) -> list[str]:
        """Access-log lines since the test began that match."""
        lines = [line for line in self.logged().splitlines() if "Processed request" in line]
        return [line for line in lines if re.search(pattern, line)]

    async def assert_run(self, pattern: str, times: int) -> None:
        """So many requests that match have been run since the test began.

        Synapse writes the access-log line of a request after its answer, which can be here before.
        """
        await self.until(lambda: len(self.logged_requests(pattern)) >= times, f"{times} lines of {pattern}")
        self.assertEqual(len(self.logged_requests(pattern)), times, pattern)

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        """Wait until something outside of this process has happened."""
        deadline = reactor.seconds() + WAIT
        while not condition():
            if reactor.seconds() > deadline:
                self.fail(f"still not so after {WAIT:g} s: {what}\n{self.homeserver.log_tail(15)}")
            await deferLater(reactor, 0.02)

    async def assert_alive(self) -> None:
        """The server answers a newcomer."""
        body = await self.ask(self.client(), "GET", "/_matrix/client/versions")
        self.assertIn("v1.1", body["versions"])
