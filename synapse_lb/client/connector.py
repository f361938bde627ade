# SPDX-License-Identifier: AGPL-3.0-or-later
"""Makes a client's associations, and says what is known of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.address import IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from synapse_lb.client import errors
from synapse_lb.client.counters import IPV4_UDP_HEADERS, IPV6_UDP_HEADERS, Traffic
from synapse_lb.client.uri import CoapUri
from synapse_lb.txdtls import errors as dtls_errors
from synapse_lb.txdtls.client import ClientAssociation, connect
from synapse_lb.txdtls.context import ClientVerification, make_client_context
from synapse_lb.txdtls.interfaces import AssociationHandler
from synapse_lb.txdtls.options import ClientOptions


@attrs.frozen
class AssociationInfo:
    """What is known of an association.

    Attributes:
        address: the server's IP address.
        port: its UDP port.
        cipher: OpenSSL's name of the cipher suite.
        certificate_sha256: fingerprint of the server's certificate.
        resumed: whether the handshake resumed a session.
        max_message_size: bytes of the largest CoAP message in one datagram.
        rtt: seconds of a round trip as the handshake showed it, or None.
        certificate_pem: the server's certificate.
    """

    address: str
    port: int
    cipher: str
    certificate_sha256: str
    resumed: bool
    max_message_size: int
    rtt: float | None
    certificate_pem: bytes = attrs.field(default=b"", repr=False)

    @classmethod
    def of(cls, association: ClientAssociation) -> AssociationInfo:
        """What is known of this one."""
        return cls(
            address=association.peer_address.host,
            port=association.peer_address.port,
            cipher=association.cipher,
            certificate_sha256=association.certificate_sha256,
            resumed=association.resumed,
            max_message_size=association.max_message_size,
            rtt=association.rtt,
            certificate_pem=association.certificate_pem,
        )


class Connector:
    """Makes associations with one server.

    Args:
        reactor: Twisted's reactor.
        address: finds out where the server is; its host is what the certificate has to name.
        verification: how the certificate is checked.
        keylog: called with each line of key material, or None.
        timeout: seconds that a handshake may take; None leaves it to the DTLS layer.

    Raises:
        CertificateError: the file of the authorities cannot be used.
    """

    def __init__(
        self,
        reactor: Any,
        address: Callable[[], Deferred[CoapUri]],
        *,
        verification: ClientVerification,
        keylog: Callable[[bytes], None] | None,
        timeout: float | None,
    ) -> None:
        self._reactor = reactor
        self._address = address
        try:
            self._context = make_client_context(verify=verification, keylog=keylog)
        except dtls_errors.CertificateError as error:
            raise errors.AuthoritiesError(str(error)) from error
        self._options = ClientOptions() if timeout is None else ClientOptions(handshake_timeout=timeout)

    def learn(self, association: ClientAssociation) -> None:
        """Adapt the next handshakes to what an association has shown of the link and the server."""
        if association.rtt is not None:
            self._options = attrs.evolve(self._options, retransmit_after=max(1.0, 3 * association.rtt))
        if association.cookie_wanted:
            # A longer hello did not spare the cookie: the server's flight is longer still, or it always wants one.
            self._options = attrs.evolve(self._options, hello_size=0)

    def connect(self, handler: AssociationHandler, session: bytes | None) -> Deferred[ClientAssociation]:
        """Make an association.

        Args:
            handler: receives its events.
            session: the session to resume if the server still knows it, or None.

        Returns:
            A Deferred that fails with a `ConnectError` of this room.
        """

        def handshake(uri: CoapUri) -> Deferred[ClientAssociation]:
            return connect(
                self._reactor,
                uri.host,
                uri.port,
                context=self._context,
                server_name=uri.host,
                session=session,
                options=self._options,
                handler=handler,
            ).addErrback(_translate)

        return self._address().addCallback(handshake)


def fixed(uri: CoapUri) -> Callable[[], Deferred[CoapUri]]:
    """The `address` of a server that need not be found."""
    return lambda: succeed(uri)


def traffic_of(association: ClientAssociation) -> Traffic:
    """What an association has moved so far."""
    counters = association.counters
    return Traffic.of(
        datagrams_sent=counters.datagrams_sent,
        datagrams_received=counters.datagrams_received,
        bytes_sent=counters.bytes_sent,
        bytes_received=counters.bytes_received,
        headers=IPV6_UDP_HEADERS if isinstance(association.peer_address, IPv6Address) else IPV4_UDP_HEADERS,
    )


def _translate(failure: Failure) -> Failure:
    """The error of the DTLS layer as one of the client."""
    cause = failure.value
    if not isinstance(cause, dtls_errors.DTLSError):
        return failure
    if isinstance(cause, dtls_errors.NameNotResolved):
        error: errors.ConnectError = errors.ResolveError(str(cause))
    elif isinstance(cause, dtls_errors.HandshakeTimeout):
        error = errors.ConnectTimeout(str(cause))
    elif isinstance(cause, dtls_errors.HandshakeFailed) and cause.verification is not None:
        error = errors.CertificateError(str(cause))
    else:
        error = errors.HandshakeError(str(cause))
    error.__cause__ = cause
    return Failure(error)
