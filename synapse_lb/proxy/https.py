# SPDX-License-Identifier: AGPL-3.0-or-later
"""What cannot go over CoAP goes to the homeserver over HTTPS as it is (RFC 9110 section 7.6: an intermediary)."""

from __future__ import annotations

import io
from typing import Any, Final

from twisted.internet import ssl
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError as TcpConnectError
from twisted.internet.error import DNSLookupError, TimeoutError
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import (
    Agent,
    BrowserLikePolicyForHTTPS,
    FileBodyProducer,
    HTTPConnectionPool,
    readBody,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import IPolicyForHTTPS, IResponse
from zope.interface import implementer

from synapse_lb.proxy.answers import Answer, ProxyError
from synapse_lb.proxy.call import Call
from synapse_lb.txdtls.context import ClientVerification, VerificationMode

CONNECT_TIMEOUT: Final = 15.0
"""s that a connection may take."""

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
            A Deferred of the bytes written. To cancel it is to close the connection.
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
        self.done: Deferred[int] = Deferred(lambda _: self._abort())

    def connectionMade(self) -> None:
        """The body begins."""
        self._request.registerProducer(self.transport, True)

    def dataReceived(self, data: bytes) -> None:
        """A part of it has come."""
        self._written += len(data)
        self._request.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is complete, or will never be."""
        self._request.unregisterProducer()
        if not self.done.called:
            self.done.callback(self._written)

    def _abort(self) -> None:
        transport: Any = self.transport
        if transport is not None:
            transport.stopProducing()


class HttpsForwarder:
    """Asks the homeserver over HTTPS.

    Args:
        reactor: Twisted's reactor.
        base_url: without a slash at its end.
        verification: how its certificate is checked; a pinned fingerprint is that of the DTLS listener, so that
            HTTPS trusts the system's authorities then.
    """

    def __init__(self, reactor: Any, base_url: str, verification: ClientVerification) -> None:
        self._base_url = base_url.rstrip("/").encode("ascii")
        self._pool = HTTPConnectionPool(reactor)
        self._agent = Agent(reactor, _policy(verification), connectTimeout=CONNECT_TIMEOUT, pool=self._pool)

    async def fetch(self, call: Call) -> Passage:
        """Pass a request on.

        Raises:
            ProxyError: there is no answer.
        """
        headers = Headers()
        for name, value in call.headers:
            if name.lower() not in _HOP_BY_HOP:
                headers.addRawHeader(name, value)
        body: Any = FileBodyProducer(io.BytesIO(call.body)) if call.body else None
        try:
            response: IResponse = await self._agent.request(
                call.method.encode("ascii"), self._base_url + call.target, headers, body
            )
        except CancelledError:
            raise
        except TimeoutError as error:
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


@implementer(IPolicyForHTTPS)
class _TrustAnyone:
    """For `--insecure`."""

    def creatorForNetloc(self, hostname: bytes, port: int) -> Any:
        """See `IPolicyForHTTPS`."""
        return ssl.CertificateOptions(verify=False)


def _policy(verification: ClientVerification) -> Any:
    if verification.mode is VerificationMode.NONE:
        return _TrustAnyone()
    if verification.mode is VerificationMode.CA_FILE:
        assert verification.ca_path is not None
        with open(verification.ca_path, "rb") as file:
            text = file.read()
        marker = b"-----BEGIN CERTIFICATE-----"
        certificates = [ssl.Certificate.loadPEM(marker + part) for part in text.split(marker)[1:]]
        return BrowserLikePolicyForHTTPS(ssl.trustRootFromCertificates(certificates))
    return BrowserLikePolicyForHTTPS()
