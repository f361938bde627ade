# SPDX-License-Identifier: AGPL-3.0-or-later
"""A homeserver's HTTPS side in this process, for the tests of discovery and fallback."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.ssl import DefaultOpenSSLContextFactory
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from synapse_lb.client.discovery import VERSIONS, WELL_KNOWN
from tests.client.harness import REACTOR, Certificate

ADVERTISED = "org.matrix.msc3079.low_bandwidth"


@attrs.define
class Seen:
    """A request that came in."""

    method: str
    uri: str
    """Path and query as they were on the wire."""
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        """The path alone."""
        return self.uri.partition("?")[0]

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


@attrs.define
class Reply:
    """An answer."""

    status: int = 200
    body: Any = attrs.field(factory=dict)
    """JSON value, or bytes as they are."""
    headers: dict[str, str] = attrs.field(factory=dict)


Answer = Callable[[Seen], "Reply | Deferred[Reply] | None"]


class _CountingSite(Site):
    """Counts connections."""

    def __init__(self, homeserver: HttpsHomeserver) -> None:
        initialise: Any = super().__init__  # Twisted's has no annotations
        initialise(homeserver)
        self._homeserver = homeserver

    def buildProtocol(self, addr: Any) -> Any:
        """Count one."""
        self._homeserver.connections += 1
        build: Any = super().buildProtocol
        return build(addr)


class HttpsHomeserver(Resource):
    """An HTTPS server on loopback.

    Args:
        certificate: whose it is; None makes it plain HTTP.
        answer: answers what is neither discovery nor registered in `replies`, now or later; None leaves a request
            open.
        path: of a Unix socket, with plain HTTP, in place of a port.

    Attributes:
        seen: what came in, but for discovery.
        discovered: paths of discovery that came in.
        replies: answers by path.
        open: requests that were left open.
        gone: how many clients went away before they had an answer.
        connections: how many there were.
    """

    isLeaf = True

    def __init__(
        self, certificate: Certificate | None, answer: Answer | None = None, *, path: str | None = None
    ) -> None:
        initialise: Any = super().__init__  # Twisted's has no annotations
        initialise()
        self.seen: list[Seen] = []
        self.discovered: list[str] = []
        self.replies: dict[str, Reply] = {
            WELL_KNOWN: Reply(404),
            VERSIONS: Reply(body={"versions": ["v1.1"]}),
        }
        self.open: list[Any] = []
        self.gone = 0
        self._answer = answer or (lambda seen: Reply(body={"over": "https"}))
        self.connections = 0
        site = _CountingSite(self)
        self.url = f"unix:{path}"
        if path is not None:
            self._port = REACTOR.listenUNIX(path, site)
            return
        if certificate is None:
            self._port = REACTOR.listenTCP(0, site, interface="127.0.0.1")
        else:
            context = DefaultOpenSSLContextFactory(certificate.key_path, certificate.path)
            self._port = REACTOR.listenSSL(0, site, context, interface="127.0.0.1")
        self.url = f"{'http' if certificate is None else 'https'}://127.0.0.1:{self._port.getHost().port}"

    def advertise(self, port: int) -> None:
        """Say in `/versions` that CoAP is at a UDP port."""
        self.replies[VERSIONS] = Reply(
            body={
                "versions": ["v1.1"],
                ADVERTISED: {"dtls": port, "cbor_enum_version": 1, "coap_enum_version": 1, "observe": 1},
            }
        )

    def render(self, request: Any) -> Any:
        """Answer a request."""
        uri = request.uri.decode("ascii")
        headers = {
            name.decode().lower(): values[-1].decode("utf-8")
            for name, values in request.requestHeaders.getAllRawHeaders()
        }
        seen = Seen(request.method.decode(), uri, headers, request.content.read())
        if seen.path in (WELL_KNOWN, VERSIONS):
            self.discovered.append(seen.path)
        else:
            self.seen.append(seen)
        reply = self.replies.get(seen.path) or self._answer(seen)
        if isinstance(reply, Reply):
            write(request, reply)
            return NOT_DONE_YET
        self.open.append(request)
        request.notifyFinish().addCallbacks(self._finished, self._left, (request,), {}, (request, reply))
        if reply is not None:
            reply.addCallback(lambda given: write(request, given)).addErrback(
                lambda failure: failure.trap(CancelledError)
            )
        return NOT_DONE_YET

    def stop(self) -> Deferred[None]:
        """Close the port; connections end with their clients."""
        for request in list(self.open):
            request.loseConnection()
        stopping: Deferred[None] = maybeDeferred(self._port.stopListening)
        return stopping

    def _finished(self, _: object, request: Any) -> None:
        self.open.remove(request)

    def _left(self, _: object, request: Any, reply: Deferred[Reply] | None) -> None:
        self.gone += 1
        self.open.remove(request)
        if reply is not None:
            reply.cancel()


def write(request: Any, reply: Reply) -> None:
    """Send an answer."""
    request.setResponseCode(reply.status)
    for name, value in reply.headers.items():
        request.setHeader(name, value)
    body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
    request.write(body) if body else None
    request.finish()
