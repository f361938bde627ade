# SPDX-License-Identifier: AGPL-3.0-or-later
"""HTTPS beside CoAP: a reverse proxy for media, single sign-on and whatever else MSC3079 leaves out.

Bodies stream both ways; a slow reader slows the writer down. Only answers that name the homeserver's address or its
abilities are read and changed.
"""

from __future__ import annotations

import json
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import FileBodyProducer, ResponseDone
from twisted.web.http import PotentialDataLoss, Request
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site
from twisted.web.server import Request as SiteRequest

from synapse_lb.client.errors import ClientError, ConnectionLost
from synapse_lb.standalone.rewriting import goes_over_tcp
from synapse_lb.standalone.upstream import Upstream, changed_answer
from synapse_lb.upstream.http import BUSY, BUSY_DELAY

MAX_UPLOAD: Final = 100 * 1024 * 1024
"""Bytes of a request's body; the homeserver has a limit of its own."""

IDLE_TIMEOUT: Final = 120.0
"""s: without a byte from a client until its connection is closed."""

_HOP_BY_HOP: Final = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization te trailer transfer-encoding upgrade".split()
)
"""RFC 9110 section 7.6.1."""

_NOT_PASSED_ON: Final = _HOP_BY_HOP | frozenset(
    b"host content-length forwarded x-forwarded-for x-forwarded-proto x-forwarded-host x-real-ip".split()
)
"""What a client says of where it is proves nothing."""


_TOO_LARGE: Final = b'{"errcode":"M_TOO_LARGE","error":"The request is too large"}'


class BoundedRequest(SiteRequest):
    """A request whose body has an end, or that is refused as soon as it is known to have none."""

    max_body = MAX_UPLOAD
    _refused = False
    _received = 0

    def gotLength(self, length: int | None) -> None:
        """Refuse what is announced as too long."""
        too_long = length is not None and length > self.max_body
        untyped: Any = super()  # Twisted's has no annotations
        untyped.gotLength(0 if too_long else length)
        if too_long:
            self._refuse()

    def handleContentChunk(self, data: bytes) -> None:
        """Refuse what has become too long."""
        self._received += len(data)
        if self._received > self.max_body and not self._refused:
            self._refuse()
        if not self._refused:
            untyped: Any = super()
            untyped.handleContentChunk(data)

    def process(self) -> None:
        """Serve it, unless it was refused."""
        if not self._refused:
            untyped: Any = super()
            untyped.process()

    def _refuse(self) -> None:
        self._refused = True
        channel: Any = self.channel
        channel.transport.write(
            b"HTTP/1.1 413 Request Entity Too Large\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(_TOO_LARGE), _TOO_LARGE)
        )
        channel.loseConnection()


class ReverseProxy(Resource):
    """Passes requests on to the homeserver.

    Args:
        upstream: the homeserver.
    """

    isLeaf = True
    _log = Logger()

    def __init__(self, upstream: Upstream) -> None:
        initialise: Any = super().__init__  # Twisted's has no annotations
        initialise()
        self._upstream = upstream

    def render(self, request: Any) -> Any:
        """Answer a request."""
        path = request.path.decode("ascii", "replace")
        if not goes_over_tcp(path):
            _answer(request, 404, {"errcode": "M_UNRECOGNIZED", "error": "Unrecognized request"})
            return NOT_DONE_YET
        if not self._upstream.enter():
            request.setHeader(b"Retry-After", str(round(BUSY_DELAY)).encode("ascii"))
            _answer(request, BUSY.status, BUSY.body)
            return NOT_DONE_YET
        passing = Deferred.fromCoroutine(self._pass_on(request, path))
        gone = False

        def left(_: Failure) -> None:
            nonlocal gone
            gone = True
            passing.cancel()

        request.notifyFinish().addErrback(left)
        passing.addErrback(lambda failure: None if gone else self._failed(failure, request))
        passing.addBoth(lambda _: self._upstream.leave())
        return NOT_DONE_YET

    async def _pass_on(self, request: Any, path: str) -> None:
        headers = self._headers(request)
        changed = self._upstream.advertisement.concerns(path) and request.method in (b"GET", b"POST")
        if changed:
            # Read here, so not compressed.
            headers.removeHeader("Accept-Encoding")
        url = self._upstream.url.encode("ascii") + request.uri
        body = FileBodyProducer(request.content) if _has_body(request) else None
        response = await self._upstream.transport.open(request.method, url, headers, body)
        if changed:
            await self._answer_changed(request, path, response)
            return
        self._begin(request, response.code, response.headers)
        if request.method == b"HEAD" or response.code in (204, 304):
            request.finish()
            response.deliverBody(Protocol())
            return
        streaming = Stream(request)
        response.deliverBody(streaming)
        await streaming.done
        request.finish()

    async def _answer_changed(self, request: Any, path: str, response: Any) -> None:
        given = await self._upstream.transport.collect(response)
        changed = changed_answer(self._upstream.advertisement, path, given)
        status, body = (given.status, given.body) if changed is None else changed
        self._begin(request, status, response.headers)
        if changed is not None:
            request.setHeader(b"Content-Type", b"application/json")
            for name in (b"ETag", b"Content-Encoding"):
                request.responseHeaders.removeHeader(name)
        if path.startswith("/.well-known/"):
            request.setHeader(b"Access-Control-Allow-Origin", b"*")
        request.setHeader(b"Content-Length", str(len(body)).encode("ascii"))
        if request.method != b"HEAD":
            request.write(body)
        request.finish()

    def _headers(self, request: Any) -> Headers:
        named = b",".join(request.requestHeaders.getRawHeaders(b"connection", [])).lower().split(b",")
        dropped = _NOT_PASSED_ON | {name.strip() for name in named}
        headers = Headers()
        for name, values in request.requestHeaders.getAllRawHeaders():
            if name.lower() not in dropped:
                headers.setRawHeaders(name, values)
        if self._upstream.forwarded_for:
            headers.setRawHeaders(b"X-Forwarded-For", [request.getClientAddress().host.encode("ascii")])
            headers.setRawHeaders(b"X-Forwarded-Proto", [b"https"])
        return headers

    def _begin(self, request: Any, status: int, headers: Headers) -> None:
        request.setResponseCode(status)
        named = b",".join(headers.getRawHeaders(b"connection", [])).lower().split(b",")
        dropped = _HOP_BY_HOP | {name.strip() for name in named}
        for name, values in headers.getAllRawHeaders():
            if name.lower() not in dropped:
                request.responseHeaders.setRawHeaders(name, values)

    def _failed(self, failure: Failure, request: Any) -> None:
        if not failure.check(ClientError):
            self._log.failure("A request could not be passed on", failure=failure)
        self._upstream.counters.failures += 1
        if request.startedWriting:
            # Too late for another status: a body that breaks off is seen as one.
            request.loseConnection()
        else:
            error = {"errcode": "M_UNKNOWN", "error": "The homeserver cannot be reached"}
            _answer(request, 502, error)


class Stream(Protocol):
    """Passes a response's body on as fast as the client takes it."""

    def __init__(self, request: Any) -> None:
        self.done: Deferred[None] = Deferred(lambda _: self._stop())
        self._request = request

    def connectionMade(self) -> None:
        """Let the client's connection hold the homeserver's back."""
        if IPushProducer.providedBy(self.transport):
            self._request.registerProducer(self.transport, True)

    def dataReceived(self, data: bytes) -> None:
        """Pass it on."""
        if not self.done.called:
            self._request.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is all there, or it broke off."""
        if self.done.called:
            return
        self._request.unregisterProducer()
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(None)
        else:
            self.done.errback(ConnectionLost(f"the answer broke off: {reason.getErrorMessage()}"))

    def _stop(self) -> None:
        transport: Any = self.transport
        if transport is not None:
            transport.loseConnection()


def site(upstream: Upstream) -> Site:
    """What listens on the TCP port."""
    untyped: Any = Site
    made: Site = untyped(ReverseProxy(upstream), requestFactory=BoundedRequest, timeout=IDLE_TIMEOUT)
    return made


def _has_body(request: Request) -> bool:
    content: Any = request.content
    content.seek(0, 2)
    length: int = content.tell()
    content.seek(0)
    return length > 0 or request.method in (b"POST", b"PUT")


def _answer(request: Any, status: int, body: dict[str, str]) -> None:
    content = json.dumps(body).encode()
    request.setResponseCode(status)
    request.setHeader(b"Content-Type", b"application/json")
    request.setHeader(b"Content-Length", str(len(content)).encode("ascii"))
    request.write(b"" if request.method == b"HEAD" else content)
    request.finish()
