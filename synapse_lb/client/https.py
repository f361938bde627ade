# SPDX-License-Identifier: AGPL-3.0-or-later
"""Matrix requests over HTTPS and JSON (Matrix client-server API, "API Standards"), through treq."""

from __future__ import annotations

import json as json_text
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

import attrs
from OpenSSL import SSL
from treq.client import HTTPClient
from twisted.internet import error as network
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers

from synapse_lb.client import errors
from synapse_lb.client.sockets import SocketAgent
from synapse_lb.client.tls import HttpsPolicy
from synapse_lb.msc3079.messages import NO_BODY, MatrixResponse, retry_after_of
from synapse_lb.msc3079.options import MAX_UINT32
from synapse_lb.txdtls.context import ClientVerification
from synapse_lb.txdtls.errors import HandshakeFailed, describe_openssl_error

USER_AGENT: Final = "synapse-lb"
METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})

_URL: Final = re.compile(r"https?://[!-~]+")
_URL_OR_SOCKET: Final = re.compile(r"(?:https?|http\+unix)://[!-~]+")
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_IN_HEADERS: Final = re.compile(r"[^\t -~\x80-\U0010ffff]")
"""RFC 9110 sections 5.1 and 5.5."""

CONNECTION_REUSE: Final = 25
"""Seconds that an idle connection is kept: less than servers and the proxies before them do (30 s and more), so that
requests are not sent into one that is just being closed."""


@attrs.frozen
class HttpsLimits:
    """Bounds of what goes over HTTPS.

    Attributes:
        connect_timeout: seconds for connecting, TLS excluded; 15.
        timeout: seconds for everything, in addition to the `timeout` of a long poll; 120.
        max_body: bytes of an answer's body, after decompression; 64 MiB.
        max_connections: idle connections kept for further requests; 4.
    """

    connect_timeout: float = 15.0
    timeout: float = 120.0
    max_body: int = 64 * 1024 * 1024
    max_connections: int = 4


@attrs.frozen
class HttpsResponse:
    """An answer as HTTP has it.

    Attributes:
        status: HTTP status; redirects are not followed.
        headers: names in lower case, and the values of each.
        body: whole, decompressed.
    """

    status: int
    headers: Mapping[str, Sequence[str]]
    body: bytes = attrs.field(repr=False)

    def header(self, name: str) -> str | None:
        """The last value of a header, or None."""
        values = self.headers.get(name.lower())
        return values[-1] if values else None


class HttpsTransport:
    """Makes HTTP requests: redirects are not followed and cookies are not kept.

    Args:
        reactor: Twisted's reactor.
        verification: how servers are verified.
        limits: bounds.
        sockets: whether there are Unix sockets among the servers (see `sockets`).

    Raises:
        AuthoritiesError: the file of the authorities cannot be used.
    """

    def __init__(
        self,
        reactor: Any,
        verification: ClientVerification,
        limits: HttpsLimits | None = None,
        *,
        sockets: bool = False,
    ) -> None:
        self._reactor = reactor
        self._limits = limits or HttpsLimits()
        self._pool = HTTPConnectionPool(reactor, persistent=True)
        self._pool.maxPersistentPerHost = self._limits.max_connections
        self._pool.cachedConnectionTimeout = CONNECTION_REUSE
        self._agent: Any = Agent(
            reactor,
            contextFactory=HttpsPolicy(verification),
            connectTimeout=self._limits.connect_timeout,
            pool=self._pool,
        )
        self._url = _URL
        if sockets:
            self._url = _URL_OR_SOCKET
            timeout = self._limits.connect_timeout
            self._agent = SocketAgent(reactor, self._agent, timeout=timeout, pool=self._pool)
        self._under_way: set[Deferred[HttpsResponse]] = set()
        self._closed = False

    def fetch(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout: float | None = None,
    ) -> Deferred[HttpsResponse]:
        """Make any HTTP request.

        Args:
            method: HTTP method.
            url: absolute, percent-encoded; it goes out as it is.
            headers: names and values.
            body: bytes, or None for none.
            timeout: seconds for everything; by default that of the limits.

        Returns:
            A Deferred of the answer, whatever its status; cancelling it cancels the request. It fails with a
            `ConnectError` if the request was not sent, `ConnectionLost`, `RequestTimeout`, or `BadResponse`
            for a body that is too large.
        """
        if self._closed:
            return _failed(errors.ClientClosed("the client is closed"))
        if method not in METHODS:
            return _failed(errors.BadRequest(f"there is no method {method!r}"))
        if not self._url.fullmatch(url):
            return _failed(errors.BadRequest("the URL has characters that must be percent-encoded"))
        sent = Headers({"User-Agent": [USER_AGENT]})
        for name, value in (headers or {}).items():
            if not _HEADER_NAME.fullmatch(name) or _NOT_IN_HEADERS.search(value):
                return _failed(errors.BadRequest(f"the header {name!r} has no form in HTTP"))
            sent.setRawHeaders(name, [value])
        limit = self._limits.timeout if timeout is None else timeout
        work = Deferred.fromCoroutine(self._fetch(method, url, sent, body))
        work.addTimeout(limit, self._reactor, _out_of_time)
        self._under_way.add(work)
        work.addBoth(self._finished, work)
        return _cancellable(work)

    def request(
        self,
        method: str,
        base_url: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        json: Any = NO_BODY,
        token: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Deferred[MatrixResponse]:
        """Make a Matrix request.

        Args:
            method: HTTP method.
            base_url: of the homeserver, without a slash at its end.
            path: percent-encoded, from its leading slash; may have a query of its own.
            query: further parameters, not percent-encoded.
            json: the body, or `NO_BODY`.
            token: access token.
            headers: further headers.

        Returns:
            A Deferred as of `fetch`, of the Matrix answer. A redirect is one without a body.
        """
        headers = {**(headers or {}), "Accept": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        body = None
        if json is not NO_BODY:
            try:
                body = json_text.dumps(json, separators=(",", ":"), allow_nan=False).encode()
            except (TypeError, ValueError) as error:
                return _failed(errors.BadRequest(f"the body is no JSON: {error}"))
            headers["Content-Type"] = "application/json"
        elif method in ("POST", "PUT"):
            body = b""
        own = path.partition("?")[2]
        limit = self._limits.timeout + _long_poll((*query, *parse_qsl(own)))
        try:
            url = base_url + path + ((("&" if own else "?") + urlencode(query)) if query else "")
        except UnicodeEncodeError as error:
            return _failed(errors.BadRequest(f"the query is no Unicode: {error}"))
        return self.fetch(method, url, headers=headers, body=body, timeout=limit).addCallback(matrix_answer)

    def close(self) -> Deferred[None]:
        """Cancel what is under way and close all connections. Idempotent.

        Returns:
            A Deferred that fires when they are closed.
        """
        self._closed = True
        for work in list(self._under_way):
            work.cancel()
        closing: Deferred[None] = self._pool.closeCachedConnections()
        return closing

    async def open(self, method: bytes, url: bytes, headers: Headers, body: Any) -> Any:
        """Make a request whose answer streams.

        Args:
            method: HTTP method.
            url: absolute, percent-encoded.
            headers: of the request.
            body: an `IBodyProducer`, or None.

        Returns:
            Twisted's `IResponse`, as it comes from the wire; for `collect`, or a protocol of one's own.

        Raises:
            ClientError: as of `fetch`.
        """
        with self._translated():
            return await self._agent.request(method, url, headers, body)

    async def collect(self, response: Any) -> HttpsResponse:
        """Read a response of `open` to its end.

        Raises:
            ClientError: as of `fetch`.
        """
        with self._translated():
            content = await _collect(response, self._limits.max_body)
        received = {
            name.decode("ascii", "replace").lower(): [value.decode("utf-8", "replace") for value in values]
            for name, values in response.headers.getAllRawHeaders()
        }
        return HttpsResponse(response.code, received, content)

    async def _fetch(self, method: str, url: str, headers: Headers, body: bytes | None) -> HttpsResponse:
        # A client of its own for each request, because treq's keep cookies: users are never to be mixed.
        client = HTTPClient(self._agent)
        with self._translated():
            response = await client.request(
                method,
                url,
                headers=headers,
                data=body,
                allow_redirects=False,
                unbuffered=True,
                reactor=self._reactor,
            )
        return await self.collect(response)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Twisted's errors become the client's."""
        try:
            yield
        except errors.ClientError:
            raise
        except Exception as error:
            if self._closed:
                raise errors.ClientClosed("the client was closed") from None
            if any(reason.check(CancelledError) for reason in _reasons(error)):
                raise CancelledError from None
            raise _client_error(error) from error

    def _finished(self, result: Any, work: Deferred[HttpsResponse]) -> Any:
        self._under_way.discard(work)
        return result


def matrix_answer(response: HttpsResponse) -> MatrixResponse:
    """Read an answer as Matrix's.

    Raises:
        BadResponse: a success that is no JSON.
    """
    body: Any = NO_BODY
    if response.body:
        try:
            body = json_text.loads(response.body)
        except (ValueError, RecursionError) as error:
            if response.status < 300:
                raise errors.BadResponse("the answer over HTTPS is no JSON") from error
            if response.status >= 400:
                # A reverse proxy's page: the status says what there is to say.
                text = f"HTTP status {response.status}, told in something else than JSON"
                body = {"errcode": "M_UNKNOWN", "error": text}
    retry_after = _seconds(response.header("retry-after"))
    if retry_after is None and response.status == 429:
        retry_after = retry_after_of(body)
    return MatrixResponse(response.status, body, retry_after)


class _Collector(Protocol):
    """Collects a body up to a bound; what is beyond it ends the connection."""

    def __init__(self, limit: int) -> None:
        self.done: Deferred[bytes] = Deferred(lambda _: self._disconnect())
        self._limit = limit
        self._parts: list[bytes] = []
        self._length = 0

    def dataReceived(self, data: bytes) -> None:
        """Keep it."""
        within = self._length <= self._limit
        self._length += len(data)
        if self._length <= self._limit:
            self._parts.append(data)
        elif within:
            self._disconnect()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The body is whole, or it is not."""
        if self.done.called:
            return
        if self._length > self._limit:
            self.done.errback(errors.BadResponse(f"the answer has more than {self._limit} bytes"))
        elif reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(b"".join(self._parts))
        else:
            self.done.errback(reason)

    def _disconnect(self) -> None:
        self._parts.clear()
        transport: Any = self.transport
        if transport is not None:
            transport.loseConnection()


async def _collect(response: Any, limit: int) -> bytes:
    collector = _Collector(limit)
    response.deliverBody(collector)
    return await collector.done


def _cancellable(work: Deferred[HttpsResponse]) -> Deferred[HttpsResponse]:
    """The same, but who cancels it gets CancelledError, whatever Twisted makes of that while it connects."""
    cancelled = False

    def cancel(_: object) -> None:
        nonlocal cancelled
        cancelled = True
        work.cancel()

    def done(value: HttpsResponse | Failure) -> None:
        # A Deferred that is being cancelled fails by itself.
        if not cancelled:
            result.callback(value)

    result: Deferred[HttpsResponse] = Deferred(cancel)
    work.addBoth(done)
    return result


def _reasons(error: Exception) -> list[Failure]:
    """What went wrong, taken out of Twisted's wrappers."""
    wrapped = getattr(error, "reasons", None)
    if not isinstance(wrapped, list):
        return [Failure(error)]
    return [inner for reason in wrapped for inner in _reasons(reason.value)]


def _client_error(error: Exception) -> errors.ClientError:
    """The client's error for one of Twisted's."""
    reasons = _reasons(error)
    for reason in reasons:
        if reason.check(HandshakeFailed):
            return errors.CertificateError(str(reason.value))
        if isinstance(reason.value, SSL.Error):
            text, _ = describe_openssl_error(reason.value)
            if "certificate verify failed" in text:
                return errors.CertificateError(f"the server's certificate is not accepted: {text}")
            return errors.HandshakeError(f"no TLS over HTTPS: {text}")
    if isinstance(error, network.DNSLookupError):
        return errors.ResolveError(f"the host has no address: {error}")
    if isinstance(error, network.TimeoutError):
        return errors.ConnectTimeout("no connection over HTTPS in time")
    if isinstance(error, network.ConnectError):
        return errors.HandshakeError(f"no connection over HTTPS: {error}")
    if isinstance(error, ResponseFailed):
        said = ", ".join(reason.getErrorMessage() for reason in reasons)
        return errors.ConnectionLost(f"the HTTPS connection ended before the answer: {said}")
    return errors.RequestFailed(f"the request over HTTPS failed: {error}")


def _long_poll(query: Sequence[tuple[str, str]]) -> float:
    """Seconds that the server may hold the answer back."""
    for name, value in query:
        if name == "timeout" and value.isascii() and value.isdigit():
            return min(float(value) / 1000, 3600.0)  # of any number of digits, unlike `int`
    return 0.0


def _seconds(text: str | None) -> float | None:
    """Retry-After in its form with seconds (RFC 9110 section 10.2.3)."""
    return min(float(text), MAX_UINT32) if text is not None and text.isascii() and text.isdigit() else None


def _out_of_time(_: object, limit: float) -> Any:
    raise errors.RequestTimeout(f"no answer over HTTPS within {limit:g} seconds")


def _failed(error: errors.ClientError) -> Deferred[Any]:
    failed: Deferred[Any] = Deferred()
    failed.errback(Failure(error))
    return failed
