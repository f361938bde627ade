# SPDX-License-Identifier: AGPL-3.0-or-later
"""The proxy's HTTP side: `twisted.web` requests in, answers out, and `/_lb/status`."""

from __future__ import annotations

import json
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from synapse_lb.proxy.answers import Answer, ProxyError, preflight
from synapse_lb.proxy.call import Call
from synapse_lb.proxy.https import Passage, Truncated
from synapse_lb.proxy.proxy import Proxy
from synapse_lb.proxy.statistics import https_bytes
from synapse_lb.proxy.status_page import PAGE

STATUS_PATH: Final = b"/_lb/status"
_STATUS_LINE: Final = len("HTTP/1.1 200 OK\r\n")
_PAGE_POLICY: Final = (
    b"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
)


class BoundedRequest(Request):
    """A request whose body is thrown away as soon as it is too large."""

    max_body: int = 0
    is_too_large = False

    def handleContentChunk(self, data: bytes) -> None:
        """Keep a part of the body, if there is room for it."""
        content: Any = self.content
        if self.is_too_large or content.tell() + len(data) > self.max_body:
            self.is_too_large = True
        else:
            Request.handleContentChunk(self, data)


class _SilentSite(Site):
    """Whom the user talks to, and tokens in queries, are nobody's business: there is no access log."""

    def log(self, request: Any) -> None:
        """Write nothing."""


def make_site(proxy: Proxy, *, max_body: int) -> Site:
    """A site that serves a proxy.

    Args:
        proxy: what answers.
        max_body: bytes in the body of a request at most.
    """

    class _Request(BoundedRequest):
        pass

    _Request.max_body = max_body
    make: Any = _SilentSite
    site: Site = make(ProxyResource(proxy), requestFactory=_Request)
    site.noisy = False
    return site


class ProxyResource(Resource):
    """All paths.

    Args:
        proxy: what answers.
    """

    isLeaf = True
    _log = Logger()

    def __init__(self, proxy: Proxy) -> None:
        Resource.__init__(self)
        self._proxy = proxy

    def render(self, request: Any) -> int:
        """Answer a request of any method."""
        serving = Deferred.fromCoroutine(self._serve(request))
        request.notifyFinish().addErrback(lambda _: serving.cancel())
        serving.addErrback(self._broken, request)
        return NOT_DONE_YET

    async def _serve(self, request: Any) -> None:
        if request.path.partition(b"?")[0].startswith(STATUS_PATH):
            _write(request, self._status(request))
            return
        if request.method == b"OPTIONS":
            _write(request, preflight())
            return
        size = 0
        try:
            if request.is_too_large:
                raise ProxyError(413, "M_TOO_LARGE", "The body is too large for this proxy")
            call = _call(request)
            size = call.http_size()
            answer = await self._proxy.answer(call)
        except ProxyError as error:
            self._proxy.statistics.failed += 1
            answer = error.answer()
            size = 0
        if isinstance(answer, Passage):
            await self._pass_on(request, answer, size)
            return
        written = _write(request, answer)
        if size:
            self._proxy.statistics.http += https_bytes(size, written)

    async def _pass_on(self, request: Any, passage: Passage, size: int) -> None:
        headers = _set_head(request, passage.status, passage.headers)
        if passage.length is not None:
            request.setHeader(b"Content-Length", b"%d" % passage.length)
        try:
            written = await passage.deliver(request)
        except Truncated:
            # The client has to see that something is missing.
            request.loseConnection()
            return
        self._proxy.statistics.https_wire += https_bytes(size, headers + written)
        request.finish()

    def _status(self, request: Any) -> Answer:
        if request.method not in (b"GET", b"HEAD"):
            return Answer(405, b"", ((b"Allow", b"GET, HEAD"),))
        wants_page = b"text/html" in (request.getHeader(b"accept") or b"")
        if wants_page and not request.path.endswith(b".json"):
            return Answer(
                200,
                PAGE.encode("utf-8"),
                (
                    (b"Content-Type", b"text/html; charset=utf-8"),
                    (b"Content-Security-Policy", _PAGE_POLICY),
                    (b"Cache-Control", b"no-store"),
                ),
            )
        text = json.dumps(self._proxy.status())
        return Answer(
            200,
            text.encode("utf-8"),
            ((b"Content-Type", b"application/json"), (b"Cache-Control", b"no-store")),
        )

    def _broken(self, failure: Failure, request: Any) -> None:
        if failure.check(CancelledError):
            return
        self._log.failure("A request could not be answered", failure)
        if not request.startedWriting:
            error = ProxyError(500, "M_UNKNOWN", "Low-bandwidth proxy: internal error")
            _write(request, error.answer())


def _call(request: Any) -> Call:
    headers = tuple(
        (name.lower(), value)
        for name, values in request.requestHeaders.getAllRawHeaders()
        for value in values
    )
    request.content.seek(0)
    return Call.of(request.method, request.uri, headers, request.content.read())


def _set_head(request: Any, status: int, headers: tuple[tuple[bytes, bytes], ...]) -> int:
    """Set status and headers; returns their bytes."""
    request.setResponseCode(status)
    request.responseHeaders.removeHeader(b"Server")
    for name, value in headers:
        request.responseHeaders.addRawHeader(name, value)
    return _STATUS_LINE + 2 + sum(len(name) + len(value) + 4 for name, value in headers)


def _write(request: Any, answer: Answer) -> int:
    """Write an answer; returns its bytes in HTTP/1.1."""
    headers = _set_head(request, answer.status, answer.headers)
    if answer.status != 204:
        request.setHeader(b"Content-Length", b"%d" % len(answer.body))
    request.write(answer.body)
    request.finish()
    return headers + len("Content-Length: \r\n") + len(str(len(answer.body))) + len(answer.body)
