# SPDX-License-Identifier: AGPL-3.0-or-later
"""The flood of `synapse-lb bench fairness`, in a process of its own so that it does not delay the quiet client.

It reads its orders from standard input, one line of JSON, writes a line when the flood has begun, and ends when
standard input does; its last line is how many answers it has got.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import ssl
import sys
import threading
from collections.abc import Iterator
from typing import Any, Final, TextIO

import attrs

from synapse_lb.cli.bench_world import CLIENT_API

CHEAP: Final = "cheap"
EXPENSIVE: Final = "expensive"
RECKLESS: Final = "reckless"
"""Over CoAP only: requests as fast as they can be written, whatever comes back."""

BEGUN: Final = "begun"
_BURST: Final = 20


@attrs.frozen
class Orders:
    """What to do.

    Attributes:
        transport: `coap` or `https`.
        kind: of the flood.
        server: `coaps` address, or host and port.
        certificate: file of the server's certificate.
        token: access token.
        in_flight: requests that are under way at any time.
    """

    transport: str
    kind: str
    server: str
    certificate: str
    token: str = attrs.field(repr=False)
    in_flight: int


def targets(kind: str) -> Iterator[tuple[str, dict[str, str]]]:
    """What is asked for, one after another: path and query."""
    for number in itertools.count():
        if kind == EXPENSIVE:
            # Another time limit each, or the answer is the one that Synapse keeps.
            yield f"{CLIENT_API}/sync", {"full_state": "true", "timeout": str(number % 1_000_000)}
        else:
            yield f"{CLIENT_API}/account/whoami", {}


class HttpsFlood:
    """As many connections as requests that are to be under way; each in its thread."""

    def __init__(self, orders: Orders) -> None:
        self.answers = 0
        self._orders = orders
        self._over = False
        self._targets = targets(orders.kind)
        self._lock = threading.Lock()

    def run(self, stdin: TextIO, stdout: TextIO) -> None:
        """Flood until standard input ends."""
        threads = [threading.Thread(target=self._ask_on, daemon=True) for _ in range(self._orders.in_flight)]
        for thread in threads:
            thread.start()
        _write(stdout, BEGUN)
        stdin.read()
        self._over = True

    def _ask_on(self) -> None:
        host, _, port = self._orders.server.rpartition(":")
        context = ssl.create_default_context(cafile=self._orders.certificate)
        headers = {"Authorization": f"Bearer {self._orders.token}"}
        connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=60)
        with contextlib.closing(connection):
            while not self._over:
                with self._lock:
                    path, query = next(self._targets)
                text = "&".join(f"{name}={value}" for name, value in query.items())
                connection.request("GET", f"{path}?{text}" if text else path, headers=headers)
                connection.getresponse().read()
                with self._lock:
                    self.answers += 1


class CoapFlood:
    """One association."""

    def __init__(self, orders: Orders) -> None:
        self.answers = 0
        self._orders = orders
        self._targets = targets(orders.kind)

    def run(self, stdin: TextIO, stdout: TextIO) -> None:
        """Flood until standard input ends."""
        from twisted.internet import reactor as process_reactor
        from twisted.internet.defer import Deferred

        reactor: Any = process_reactor

        def wait() -> None:
            stdin.read()
            reactor.callFromThread(reactor.stop)

        def begin() -> None:
            work = self._rush(reactor) if self._orders.kind == RECKLESS else self._flood(reactor)
            Deferred.fromCoroutine(work).addCallbacks(
                lambda _: _write(stdout, BEGUN), lambda failure: _write(stdout, failure.getErrorMessage())
            )

        threading.Thread(target=wait, daemon=True).start()
        reactor.callWhenRunning(begin)
        reactor.run(installSignalHandlers=False)

    async def _flood(self, reactor: Any) -> None:
        from twisted.internet.defer import Deferred

        from synapse_lb.client.client import LowBandwidthClient
        from synapse_lb.coap.tuning import Tuning
        from synapse_lb.txdtls.context import ClientVerification

        verification = ClientVerification.ca_file(self._orders.certificate)
        # A well-behaved client has four messages at most unacknowledged (NSTART, RFC 7252 section 4.7).
        tuning = Tuning(nstart=self._orders.in_flight)
        client = LowBandwidthClient(reactor, self._orders.server, verification=verification, tuning=tuning)
        await client.connect()

        async def ask_on() -> None:
            while True:
                path, query = next(self._targets)
                await client.request("GET", path, query, token=self._orders.token)
                self.answers += 1

        for _ in range(self._orders.in_flight):
            Deferred.fromCoroutine(ask_on()).addErrback(lambda _: None)

    async def _rush(self, reactor: Any) -> None:
        from synapse_lb.client.uri import parse_server
        from synapse_lb.coap.message import Message
        from synapse_lb.coap.numbers import Type
        from synapse_lb.coap.options import Options
        from synapse_lb.msc3079.mapping import NO_BODY, encode_request
        from synapse_lb.txdtls.client import connect
        from synapse_lb.txdtls.context import ClientVerification, make_client_context
        from synapse_lb.txdtls.errors import AssociationGone

        uri = parse_server(self._orders.server)
        context = make_client_context(ClientVerification.ca_file(self._orders.certificate))
        association = await connect(reactor, uri.host, uri.port, context=context, handler=_Counting(self))
        numbers = itertools.count()

        def burst() -> None:
            for _ in range(_BURST):
                path, query = next(self._targets)
                code, options, payload = encode_request("GET", path, query, NO_BODY, token=self._orders.token)
                number = next(numbers) & 0xFFFF
                token = number.to_bytes(2, "big")
                message = Message(Type.NON, code, number, token, Options.of(*options), payload)
                try:
                    association.send(message.encode())
                except AssociationGone:
                    return
            reactor.callLater(0, burst)

        burst()


class _Counting:
    """A handler that counts messages."""

    def __init__(self, flood: CoapFlood) -> None:
        self._flood = flood

    def association_established(self, association_id: int) -> None: ...

    def message_received(self, association_id: int, data: bytes) -> None:
        self._flood.answers += 1

    def association_moved(self, association_id: int) -> None: ...

    def association_lost(self, association_id: int, reason: Exception) -> None: ...


def _write(stdout: TextIO, text: str) -> None:
    stdout.write(text + "\n")
    stdout.flush()


def main(stdin: TextIO, stdout: TextIO) -> None:
    """Do what standard input says."""
    orders = Orders(**json.loads(stdin.readline()))
    flood = HttpsFlood(orders) if orders.transport == "https" else CoapFlood(orders)
    flood.run(stdin, stdout)
    _write(stdout, str(flood.answers))


if __name__ == "__main__":
    main(sys.stdin, sys.stdout)
