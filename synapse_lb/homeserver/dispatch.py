# SPDX-License-Identifier: AGPL-3.0-or-later
"""Matrix requests straight into Synapse's servlets, without HTTP and without JSON text in the answers.

Each request is a `SynapseRequest` on a channel that goes nowhere, so that authentication, rate limits, log
contexts, the access log, Prometheus metrics and cancellation are Synapse's own. The answer is the object that the
servlet returned; what a servlet writes by itself is caught by the channel and read back.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers

from synapse_lb.coaps.clock import Clock, Timer
from synapse_lb.homeserver import answers, hooks
from synapse_lb.homeserver.shared_reads import ReadCounters
from synapse_lb.msc3079.messages import NO_BODY, MatrixRequest, MatrixResponse, retry_after_of
from synapse_lb.msc3079.options import MAX_UINT32
from synapse_lb.server.dispatcher import Address

PROTOCOL: Final = b"CoAP/1"
"""What stands in the access log where HTTP/1.1 stands for HTTP (RFC 7252 section 3: version 1)."""

MAX_CAPTURED: Final = 16 * 1024 * 1024
"""Bytes of JSON that a servlet may write by itself; beyond it the answer is an error."""

_NO_CONTENT: Final = frozenset({204, 304})


class CaptureChannel:
    """Stands where Twisted's HTTP channel would, and keeps what is written.

    What is no JSON is refused at its headers: of a file that Synapse would stream, nothing is read.

    Args:
        site: the site whose resources serve the request.
        peer: the client's address.
        host: our address.
        done: is fired with the response.
    """

    def __init__(self, site: Any, peer: Address, host: Address, done: Deferred[MatrixResponse]) -> None:
        self.site = site
        self.factory = site
        self.request: hooks.LowBandwidthRequest | None = None
        self._clock: Clock = site.reactor
        self._peer = peer
        self._host = host
        self._done = done
        self._written = bytearray()
        self._unfit: str | None = None
        self._refused: MatrixResponse | None = None
        self._producer: Any = None
        self._beginning = False
        self._next: Timer | None = None

    # What twisted.web.http.Request asks of its channel

    @property
    def transport(self) -> CaptureChannel:
        """The connection below it."""
        return self

    def getPeer(self) -> Address:
        """Return the client's address."""
        return self._peer

    def getHost(self) -> Address:
        """Return our address."""
        return self._host

    def isSecure(self) -> bool:
        """It came over DTLS."""
        return True

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Any) -> None:
        """Look at the headers before a body is written."""
        request = self._served()
        if request.answer is not None:
            return
        if 300 <= request.code < 400 and request.code not in _NO_CONTENT:
            self._refuse(request, "a redirect")
        else:
            self._unfit = _unfit(request.responseHeaders)

    def write(self, data: bytes) -> None:
        """Keep a part of the body."""
        if not data or self._refused is not None:
            return
        if self._unfit is not None:
            self._refuse(self._served(), self._unfit)
            return
        if len(self._written) + len(data) > MAX_CAPTURED:
            self._refuse(self._served(), "too large a body")
            return
        self._written += data

    def writeSequence(self, parts: list[bytes]) -> None:
        """Keep several parts of the body."""
        for part in parts:
            self.write(part)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Let a producer write; one that waits to be asked is asked until it is done, or has written enough."""
        self._producer = producer
        while not streaming and self._producer is producer:
            if self._refused is not None:
                producer.stopProducing()
                return
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        """The producer is done."""
        self._producer = None

    def requestDone(self, request: hooks.LowBandwidthRequest) -> None:
        """The answer is complete."""
        if self._refused is not None:
            self._answer(self._refused)
        elif request.answer is not None:
            status, body = request.answer
            self._answer(_response(status, body, request.responseHeaders))
        else:
            self._answer(_captured(request.code, bytes(self._written), request.responseHeaders))
        self.request = None  # It names this as its transport: both would stay until the garbage is collected.

    def loseConnection(self) -> None:
        """Synapse ends what it refused before it reached a resource; what it wrote is the answer."""
        if self._refused is None and self.request is not None and not self.request.finished:
            self._answer(_captured(self.request.code, bytes(self._written), self.request.responseHeaders))

    def forceAbortClient(self) -> None:
        """A servlet failed in the middle of writing its answer."""
        self._answer(MatrixResponse(500, answers.matrix_error("M_UNKNOWN", "Internal server error")))
        self._clock.callLater(0, self.client_gone)  # Never inside Synapse's call, as with a real connection.

    abortConnection = forceAbortClient

    # Ours

    def begin(self, serve: Callable[[], None]) -> None:
        """Have the request served; what goes wrong in that is the outcome."""
        self._beginning = True
        try:
            serve()
        except Exception:
            self.failed(Failure())
        finally:
            self._beginning = False

    def put_off(self, end: Callable[[], None]) -> bool:
        """Whether an end comes too early; then it comes in the next turn of the reactor."""
        if self._beginning:
            self.later(end)
        return self._beginning

    def later(self, what: Callable[[], None]) -> None:
        """Do something in the next turn of the reactor, unless the client goes away before."""

        def now() -> None:
            self._next = None
            what()

        self._next = self._clock.callLater(0, now)

    def client_gone(self) -> None:
        """Tell Synapse that the client went away."""
        if self._next is not None and self._next.active():
            self._next.cancel()
        request, self.request = self.request, None
        if request is not None and not request.finished:
            request.connectionLost(Failure(ConnectionLost()))
            self._stop_producer()

    def failed(self, failure: Failure) -> None:
        """Hand on an exception that neither Synapse nor Twisted has caught."""
        if not self._done.called:
            self._done.errback(failure)

    def _served(self) -> hooks.LowBandwidthRequest:
        assert self.request is not None
        return self.request

    def _refuse(self, request: hooks.LowBandwidthRequest, what: str) -> None:
        status, error = answers.instead_of(what, request.code)
        request.setResponseCode(status)  # It is this one that the access log is to show.
        self._written.clear()
        self._refused = MatrixResponse(status, error)
        # Never inside the producer's own call, as with a real connection.
        self._clock.callLater(0, self._stop_producer)

    def _stop_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()

    def _answer(self, response: MatrixResponse) -> None:
        done = self._done
        if done.called:
            return
        request = self.request
        if request is not None:
            status, body, wait = response.status, response.body, response.retry_after
            response = MatrixResponse(status, body, wait, authenticated=request.requester is not None)
        hooks.outside(done.callback, response)
        # The caller has encoded it: those are the bytes that the access log is to show.
        if request is not None and isinstance(done.result, int):
            request.sentLength = done.result


class SynapseDispatcher:
    """Serves requests with the resources of a homeserver (a `Dispatcher` of `synapse_lb.server`).

    Args:
        homeserver: the homeserver.
        tag: name of the listener in the access log.
        port: its port.
        host: our address.
    """

    def __init__(self, homeserver: hooks.Homeserver, *, tag: str, port: int, host: Address) -> None:
        self._homeserver = homeserver
        self._host = host
        self._site = homeserver.site(tag=tag, port=port, logger_name=f"synapse.access.coap.{tag}")

    def dispatch(self, request: MatrixRequest, client: Address) -> Deferred[MatrixResponse]:
        """Serve one request in Synapse; see `Dispatcher.dispatch`.

        It begins at once, but for what comes about within another request of Synapse's, whose log context and time it
        is not to use. An answer that needs no waiting is given in the next turn of the reactor: the caller has its
        callbacks in place by then, so that the access log can show its size too.
        """
        channel: CaptureChannel

        def client_gone(_: object) -> None:
            channel.client_gone()

        done: Deferred[MatrixResponse] = Deferred(client_gone)
        channel = CaptureChannel(self._site, client, self._host, done)

        def start() -> None:
            channel.begin(lambda: self._begin(request, channel))

        if self.begins_at_once():
            start()
        else:
            channel.later(start)
        return done

    def begins_at_once(self) -> bool:
        """Whether a request that is dispatched now begins before the next turn of the reactor."""
        return hooks.between_requests()

    @property
    def reads(self) -> ReadCounters:
        """What observers' syncs have read together."""
        further = self._site.client.further
        return ReadCounters() if further is None else further.reads.counters

    def serves(self, method: str, path: bytes) -> bool:
        """Whether this process has a servlet for a method and a path below ``/_matrix/client/``."""
        return self._site.client.serves(method, path)

    def _begin(self, request: MatrixRequest, channel: CaptureChannel) -> None:
        served = self._homeserver.request(channel, self._site)
        channel.request = served
        served.is_further = request.is_further
        if request.body is not NO_BODY:
            body = _json_text(request.body)
            served.requestHeaders.setRawHeaders(b"Content-Type", [b"application/json"])
            served.requestHeaders.setRawHeaders(b"Content-Length", [b"%d" % len(body)])
        else:
            body = b""
        served.content = io.BytesIO(body)
        served.content.seek(0, io.SEEK_END)  # As Twisted's channel leaves it; Synapse compares the position.
        if request.access_token is not None:
            authorization = b"Bearer " + request.access_token.encode("ascii")
            served.requestHeaders.setRawHeaders(b"Authorization", [authorization])
        uri = request.path + (b"?" + request.query if request.query else b"")
        served.requestReceived(request.method.encode("ascii"), uri, PROTOCOL)


def _json_text(body: Any) -> bytes:
    """The text that a client would have sent over HTTP."""
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError:
        # A lone surrogate, which JSON can name but UTF-8 cannot hold: what becomes of it is Synapse's decision.
        return json.dumps(body, separators=(",", ":")).encode("ascii")


def _unfit(headers: Headers) -> str | None:
    """Say what a body is that a servlet starts to write by itself, if it is no JSON."""
    content_type = (headers.getRawHeaders(b"Content-Type") or [b""])[0].split(b";")[0].strip().lower()
    if content_type in (b"", b"application/json"):
        return None
    return "a web page" if content_type in (b"text/html", b"application/xhtml+xml") else "no JSON"


def _captured(status: int, written: bytes, headers: Headers) -> MatrixResponse:
    """Return the response that a servlet wrote by itself."""
    if status in _NO_CONTENT:
        return MatrixResponse(status, NO_BODY)
    try:
        body = json.loads(written) if written else {}
    except ValueError:
        return MatrixResponse(500, answers.matrix_error("M_UNKNOWN", "The answer is no valid JSON"))
    return _response(status, body, headers)


def _response(status: int, body: Any, headers: Headers) -> MatrixResponse:
    if status in _NO_CONTENT:
        return MatrixResponse(status, NO_BODY)
    if status == 200:
        return MatrixResponse(status, body)
    return MatrixResponse(status, body, _retry_after(body, headers))


def _retry_after(body: Any, headers: Headers) -> float | None:
    """Seconds until the client may try again: ``retry_after_ms`` of the body, or the header."""
    seconds = retry_after_of(body)
    if seconds is not None:
        return seconds
    header = (headers.getRawHeaders(b"Retry-After") or [b""])[0]
    return min(float(header), MAX_UINT32) if header.isdigit() else None
