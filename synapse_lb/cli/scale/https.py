# SPDX-License-Identifier: AGPL-3.0-or-later
"""Many HTTPS clients in one process, as cheap as can be: HTTP/1.1 on one keep-alive connection each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import CertificateOptions
from twisted.python.failure import Failure

from synapse_lb.cli.scale.coap import in_parallel

AT_ONCE: Final = 20
_HOUR: Final = 3_600_000
_CONTENT_LENGTH: Final = b"\r\ncontent-length:"


class HttpsConnection(Protocol):
    """One connection, with at most one request under way."""

    def __init__(self) -> None:
        self._answer: Deferred[tuple[int, bytes]] | None = None
        self._closed: Deferred[None] = Deferred()
        self._buffer = b""

    def ask(
        self, method: str, target: str, token: str | None, body: Any = None
    ) -> Deferred[tuple[int, bytes]]:
        """Make a request; fires with the status and the body of the answer."""
        head = [f"{method} {target} HTTP/1.1", "Host: localhost"]
        if token is not None:
            head.append(f"Authorization: Bearer {token}")
        content = b""
        if body is not None:
            content = json.dumps(body).encode()
            head += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
        answer: Deferred[tuple[int, bytes]] = Deferred()
        self._answer = answer
        self._transport().write("\r\n".join([*head, "", ""]).encode() + content)
        return answer

    def dataReceived(self, data: bytes) -> None:
        """Part of an answer."""
        self._buffer += data
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end or self._answer is None:
            return
        body = _body(head.lower(), rest)
        if body is not None:
            answer, self._answer = self._answer, None
            self._buffer = b""  # nothing is asked before the answer is there
            answer.callback((int(head.split(b" ", 2)[1]), body))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is over."""
        self._closed.callback(None)
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.errback(reason)

    def close(self) -> Deferred[None]:
        """End it, at once."""
        self._answer = None
        self._transport().abortConnection()
        return self._closed

    def _transport(self) -> Any:
        return self.transport


def _body(head: bytes, rest: bytes) -> bytes | None:
    """The body of an answer (RFC 9112 section 6), or None if it is not complete."""
    _, named, length = head.partition(_CONTENT_LENGTH)
    if named:
        size = int(length.partition(b"\r\n")[0])
        return rest[:size] if len(rest) >= size else None
    chunks: list[bytes] = []
    while True:
        size_line, end, rest = rest.partition(b"\r\n")
        size = int(size_line or b"0", 16)
        if not end or len(rest) < size + 2:
            return None
        if not size:
            return b"".join(chunks)
        chunks.append(rest[:size])
        rest = rest[size + 2 :]


def connect(reactor: Any, host: str, port: int) -> Deferred[HttpsConnection]:
    """Open a connection to a server on the loopback interface, whose certificate is not looked at."""
    from twisted.internet.endpoints import SSL4ClientEndpoint

    factory = Factory.forProtocol(HttpsConnection)
    connecting: Deferred[HttpsConnection] = SSL4ClientEndpoint(
        reactor, host, port, CertificateOptions()
    ).connect(factory)
    return connecting


@attrs.define(eq=False)
class Poller:
    """A client that polls `/sync`.

    Attributes:
        news: how many answers it has got.
        heard_at: when the last of them came, in seconds of `time.monotonic`.
    """

    connection: HttpsConnection
    token: str = attrs.field(repr=False)
    since: str
    news: int = 0
    heard_at: float = 0.0


class HttpsCrowd:
    """Clients of one server that poll.

    Args:
        reactor: Twisted's.
        host: of the server.
        port: TCP.
    """

    def __init__(self, reactor: Any, host: str, port: int) -> None:
        self.clients: list[Poller] = []
        self.errors: list[str] = []
        self._reactor = reactor
        self._address = host, port
        self._stopping = False

    async def grow(self, tokens: list[str], since: str, progress: Callable[[int], None]) -> None:
        """Make a client for each access token, which polls from then on."""

        made: dict[str, Poller] = {}

        async def poller(token: str) -> None:
            connection = await connect(self._reactor, *self._address)
            # TLS is complete, and all is as it is for a client that has been there for a while.
            await connection.ask("GET", "/_matrix/client/v3/account/whoami", token)
            client = made[token] = Poller(connection, token, since)
            Deferred.fromCoroutine(self._poll(client)).addErrback(self._failed)
            progress(len(self.clients) + len(made))

        await in_parallel([partial(poller, token) for token in tokens], AT_ONCE)
        self.clients += [made[token] for token in tokens]

    async def _poll(self, client: Poller) -> None:
        while True:
            target = f"/_matrix/client/v3/sync?since={client.since}&timeout={_HOUR}"
            status, body = await client.connection.ask("GET", target, client.token)
            client.heard_at = time.monotonic()
            if status != 200:
                raise RuntimeError(f"/sync: {status}")
            client.news += 1
            client.since = json.loads(body)["next_batch"]

    def _failed(self, failure: Failure) -> None:
        if not self._stopping:
            self.errors.append(f"a long poll has failed: {failure.value}")

    async def close(self) -> None:
        """End all connections."""
        self._stopping = True
        clients, self.clients = self.clients, []
        for client in clients:
            await client.connection.close()
