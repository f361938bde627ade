# SPDX-License-Identifier: AGPL-3.0-or-later
"""What can go wrong for a client, one class for each thing that a caller would handle differently."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from synapse_lb.coap.events import CoapResponse
    from synapse_lb.msc3079.messages import MatrixResponse


class ClientError(Exception):
    """Base of everything that the client raises."""


class BadUri(ClientError, ValueError):
    """The URI cannot be split into CoAP options (RFC 7252 section 6.4)."""


class UnsupportedScheme(BadUri):
    """The URI is well-formed, but its scheme is not one that this client speaks."""


class AuthoritiesError(ClientError, ValueError):
    """The file of the certificate authorities cannot be used."""


class BadRequest(ClientError, ValueError):
    """The request cannot be sent over CoAP: a method without a code, a segment over 255 bytes, a bad body."""


class ClientClosed(ClientError):
    """`close()` was called; the client takes no more requests."""


class ConnectError(ClientError):
    """No association with the server could be made; the request was not sent."""


class ResolveError(ConnectError):
    """The host name has no address."""


class HandshakeError(ConnectError):
    """Nobody listens there, or the server refused the handshake."""


class ConnectTimeout(ConnectError):
    """The handshake was not finished in time: nothing listens there, or the network loses everything."""


class DiscoveryError(ConnectError):
    """It could not be found out where the homeserver is, from `/.well-known/matrix/client` and `/versions`."""


class NotOffered(ConnectError):
    """The homeserver does not say in `/versions` that it speaks MSC3079."""


class HttpsUnknown(ConnectError):
    """There is no HTTPS address: the client was made with a `coaps` one."""


class CertificateError(ConnectError):
    """The server's certificate is not trusted, names another host, or is not the pinned one."""


class ConnectionLost(ClientError):
    """The association ended before the answer came; the server may have run the request."""


class Superseded(ConnectionLost):
    """Another association answers where this one is silent, and the request may be made again there."""


class RequestTimeout(ClientError):
    """No answer in time (RFC 7252 section 4.2 or the caller's own limit); the server may have run the request."""


class RequestRejected(ClientError):
    """The server answered with a Reset (RFC 7252 section 4.2): it could not make sense of the message."""


class TooManyRequests(ClientError):
    """More requests outstanding than the endpoint's limits allow; try again when some have ended."""


class RequestFailed(ClientError):
    """The exchange failed in another way; `__cause__` is the error of the CoAP endpoint."""


class BadResponse(ClientError):
    """The answer is no Matrix answer: unknown code, wrong Content-Format or bad CBOR.

    Args:
        message: what is wrong with it.
        code: the CoAP response code.
    """

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class ServerUnavailable(ClientError):
    """The server cannot serve an observation now (5.xx, 4.29); it is asked again later."""


class ObservationEnded(ClientError):
    """The server's answer ends an observation for good: to ask for the same again would be in vain.

    Args:
        message: what it said.
        response: the CoAP response.
        matrix: the Matrix answer in it; None if there is none.
    """

    def __init__(self, message: str, response: CoapResponse, matrix: MatrixResponse | None) -> None:
        super().__init__(message)
        self.response = response
        self.matrix = matrix


class TokenRejected(ObservationEnded):
    """The server does not take the access token (any more): it was revoked, or the user was logged out."""


class ObservationRefused(ObservationEnded):
    """The server refuses the request itself, for example because it does not know the place to go on from."""
