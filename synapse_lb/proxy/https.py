# SPDX-License-Identifier: AGPL-3.0-or-later
"""What cannot go over CoAP goes to the homeserver over HTTPS as it is (RFC 9110 section 7.6: an intermediary)."""

from __future__ import annotations

import io
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as OutOfTime
from twisted.internet.error import ConnectError as TcpConnectError
from twisted.internet.error import DNSLookupError, TimeoutError
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import (
    Agent,
    FileBodyProducer,
    HTTPConnectionPool,
    ResponseDone,
    readBody,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers

from synapse_lb.client.https import CONNECTION_REUSE
from synapse_lb.client.tls import HttpsPolicy
from synapse_lb.proxy.answers import Answer, ProxyError
from synapse_lb.proxy.call import Call
from synapse_lb.txdtls.context import ClientVerification

CONNECT_TIMEOUT: Final = 15.0
"""s that a connection may take."""

ANSWER_TIMEOUT: Final = 120.0
"""s until an answer begins, in addition to the `timeout` of a long poll."""

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"host",
        b"content-length",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Headers of one connection, and those that the other connection gets of its own."""


class Truncated(Exception):
    """The connection ended before the body did."""


class Passage:
    """An answer that comes over HTTPS, to be passed on as it comes.

    Attributes:
        status: HTTP status.
        headers: names and values.
    """

    def __init__(self, response: Any) -> None:
        self._response = response
        self.status: int = response.code
        self.headers = tuple(
            (name, value)
            for name, values in response.headers.getAllRawHeaders()
            for value in values
            if name.lower() not in _HOP_BY_HOP
        )

    @property
    def length(self) -> int | None:
        """Bytes of its body, or None if that is not known yet."""
        return self._response.length if isinstance(self._response.length, int) else None

    def deliver(self, request: Any) -> Deferred[int]:
        """Write the body to a request of `twisted.web`, no faster than its client takes it.

        Returns:
            A Deferred of the bytes written, which fails with `Truncated`. To cancel it is to close the connection.
        """
        pipe = _Pipe(request)
        self._response.deliverBody(pipe)
        return pipe.done

    async def whole(self) -> Answer:
        """The answer, when all of it is there."""
        headers = tuple(pair for pair in self.headers if pair[0].lower() != b"content-length")
        return Answer(self.status, await readBody(self._response), headers)


class _Pipe(Protocol):
    """Passes a body on."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self._written = 0
        self._client_is_gone = False
        request.notifyFinish().addErrback(self._gone)
        self.done: Deferred[int] = Deferred(lambda _: self._abort())

    def connectionMade(self) -> None:
        """The body begins."""
        self._request.registerProducer(self.transport, True)

    def dataReceived(self, data: bytes) -> None:
        """A part of it has come."""
        if not self._client_is_gone:
            self._written += len(data)
            self._request.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is complete, or will never be."""
        if self._client_is_gone:
            return
        self._request.unregisterProducer()
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(self._written)
        else:
            self.done.errback(Truncated())

    def _gone(self, _: Failure) -> None:
        self._client_is_gone = True

    def _abort(self) -> None:
        transport: Any = self.transport
        if transport is not None:
            transport.stopProducing()


class HttpsForwarder:
    """Asks the homeserver over HTTPS.

    Args:
        reactor: Twisted's reactor.
        verification: how its certificate is checked.

    Raises:
        AuthoritiesError: the file of the authorities cannot be used.
    """

    def __init__(self, reactor: Any, verification: ClientVerification) -> None:
        self._reactor = reactor
        self._pool = HTTPConnectionPool(reactor)
        self._pool.cachedConnectionTimeout = CONNECTION_REUSE
        policy = HttpsPolicy(verification)
        self._agent = Agent(reactor, policy, connectTimeout=CONNECT_TIMEOUT, pool=self._pool)

    async def fetch(self, base_url: str, call: Call) -> Passage:
        """Pass a request on.

        Args:
            base_url: of the homeserver's client-server API.
            call: the request.

        Raises:
            ProxyError: there is no answer.
        """
        headers = Headers()
        for name, value in call.headers:
            if name.lower() not in _HOP_BY_HOP:
                headers.addRawHeader(name, value)
        body: Any = FileBodyProducer(io.BytesIO(call.body)) if call.body else None
        try:
            asking: Deferred[Any] = self._agent.request(
                call.method.encode("ascii"), base_url.rstrip("/").encode("ascii") + call.target, headers, body
            )
            asking.addTimeout(ANSWER_TIMEOUT + call.wait, self._reactor)
            response = await asking
        except CancelledError:
            raise
        except (TimeoutError, OutOfTime) as error:
            raise ProxyError(504, "M_UNKNOWN", f"HTTPS to the homeserver: {error}") from error
        except (TcpConnectError, DNSLookupError) as error:
            raise ProxyError(502, "M_UNKNOWN", f"HTTPS to the homeserver: {error}") from error
        except Exception as error:
            # What goes wrong in TLS or HTTP has many types and little text.
            raise ProxyError(502, "M_UNKNOWN", f"HTTPS to the homeserver has failed: {error!r}") from error
        return Passage(response)

    def close(self) -> Deferred[None]:
        """Close the connections that are open."""
        closing: Deferred[None] = self._pool.closeCachedConnections()
        return closing
