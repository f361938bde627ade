# SPDX-License-Identifier: AGPL-3.0-or-later
"""TLS over TCP for the requests that go over HTTPS: the server is verified exactly as with DTLS."""

from __future__ import annotations

from typing import Any, Final

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.python.failure import Failure
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from synapse_lb.client.errors import AuthoritiesError
from synapse_lb.txdtls.context import ClientVerification, VerificationMode, is_ip_address, verify_server
from synapse_lb.txdtls.errors import DTLSError

_TLS_1_2: Final = 0x0303


@implementer(IPolicyForHTTPS)
class HttpsPolicy:
    """Verifies HTTPS servers by the same rules and with the same code as DTLS servers.

    Args:
        verification: how.

    Raises:
        AuthoritiesError: the file of the authorities cannot be used.
    """

    def __init__(self, verification: ClientVerification) -> None:
        self._verification = verification
        self._context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        self._context.set_min_proto_version(_TLS_1_2)
        if verification.mode is VerificationMode.SYSTEM:
            self._context.set_default_verify_paths()
        elif verification.mode is VerificationMode.CA_FILE:
            try:
                self._context.load_verify_locations(verification.ca_path or "")
            except SSL.Error as error:
                raise AuthoritiesError(
                    f"cannot load certificate authorities from {verification.ca_path}"
                ) from error
        # OpenSSL judges the chain in any case; `verify_server` reads its verdict, which says more than an alert.
        self._context.set_verify(SSL.VERIFY_NONE)
        self._context.set_info_callback(self._progressed)

    def creatorForNetloc(self, hostname: bytes, port: int) -> Any:
        """See `IPolicyForHTTPS`."""
        return _Creator(self._context, hostname.decode("ascii"))

    def _progressed(self, connection: SSL.Connection, where: int, _: int) -> None:
        if not where & SSL.SSL_CB_HANDSHAKE_DONE:
            return
        protocol, host = connection.get_app_data()
        try:
            verify_server(connection, self._verification, host)
        except DTLSError:
            # Nothing has been sent under this handshake yet, and nothing will be.
            protocol.failVerification(Failure())


@implementer(IOpenSSLClientConnectionCreator)
class _Creator:
    """Makes the connections to one host."""

    def __init__(self, context: SSL.Context, host: str) -> None:
        self._context = context
        self._host = host.strip("[]")

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        """See `IOpenSSLClientConnectionCreator`."""
        connection = SSL.Connection(self._context, None)
        connection.set_app_data((tlsProtocol, self._host))
        if not is_ip_address(self._host):
            connection.set_tlsext_host_name(self._host.encode("ascii"))
        return connection
