# SPDX-License-Identifier: AGPL-3.0-or-later
"""TLS over TCP for the requests that go over HTTPS: the server is verified exactly as with DTLS."""

from __future__ import annotations

from typing import Any, Final
from weakref import ReferenceType, WeakKeyDictionary, ref

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.python.failure import Failure
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from synapse_lb.client.errors import AuthoritiesError
from synapse_lb.txdtls.context import ClientVerification, VerificationMode, is_ip_address, verify_server

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
        if verification.mode in (VerificationMode.SYSTEM, VerificationMode.CA_FILE):
            self._context.set_verify(SSL.VERIFY_PEER)
        else:
            self._context.set_verify(SSL.VERIFY_NONE)
        self._context.set_info_callback(self._progressed)
        self._meant: WeakKeyDictionary[SSL.Connection, tuple[ReferenceType[Any], str]] = WeakKeyDictionary()

    def creatorForNetloc(self, hostname: bytes, port: int) -> Any:
        """See `IPolicyForHTTPS`."""
        return _Creator(self, hostname.decode("ascii").strip("[]"))

    def connection(self, protocol: Any, host: str) -> SSL.Connection:
        """Make a connection.

        Args:
            protocol: Twisted's TLS protocol, which is told if the server is not the right one.
            host: name or address that the certificate has to name.
        """
        connection = SSL.Connection(self._context, None)
        connection.set_app_data(protocol)
        if not is_ip_address(host):
            connection.set_tlsext_host_name(host.encode("ascii"))
        self._meant[connection] = ref(protocol), host
        return connection

    def _progressed(self, connection: SSL.Connection, where: int, _: int) -> None:
        if not where & SSL.SSL_CB_HANDSHAKE_DONE:
            return
        protocol, host = self._meant[connection]
        try:
            verify_server(connection, self._verification, host)
        except Exception:
            # Whatever it is: nothing has been sent under this handshake yet, and nothing shall be.
            if (known := protocol()) is not None:
                known.failVerification(Failure())


@implementer(IOpenSSLClientConnectionCreator)
class _Creator:
    """Makes the connections to one host."""

    def __init__(self, policy: HttpsPolicy, host: str) -> None:
        self._policy = policy
        self._host = host

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        """See `IOpenSSLClientConnectionCreator`."""
        return self._policy.connection(tlsProtocol, self._host)
