# SPDX-License-Identifier: AGPL-3.0-or-later
"""DTLS 1.2 for Twisted over pyOpenSSL memory BIOs (RFC 6347): a server port and a client. It knows no CoAP."""

from __future__ import annotations

from synapse_lb.txdtls.binding import check_binding
from synapse_lb.txdtls.certificates import generate_self_signed, sha256_fingerprint, write_private_file
from synapse_lb.txdtls.client import ClientAssociation, connect
from synapse_lb.txdtls.context import (
    ClientContext,
    ClientVerification,
    ServerContext,
    make_client_context,
    make_server_context,
)
from synapse_lb.txdtls.errors import (
    AssociationGone,
    AssociationLost,
    BindingError,
    CertificateError,
    ConnectError,
    DTLSError,
    HandshakeFailed,
    HandshakeTimeout,
    MessageTooLarge,
    NameNotResolved,
    NetworkUnreachable,
)
from synapse_lb.txdtls.interfaces import AssociationHandler
from synapse_lb.txdtls.options import ClientOptions, ServerOptions
from synapse_lb.txdtls.port import DTLSServerPort

__all__ = [
    "AssociationGone",
    "AssociationHandler",
    "AssociationLost",
    "BindingError",
    "CertificateError",
    "ClientAssociation",
    "ClientContext",
    "ClientOptions",
    "ClientVerification",
    "ConnectError",
    "DTLSError",
    "DTLSServerPort",
    "HandshakeFailed",
    "HandshakeTimeout",
    "MessageTooLarge",
    "NameNotResolved",
    "NetworkUnreachable",
    "ServerContext",
    "ServerOptions",
    "check_binding",
    "connect",
    "generate_self_signed",
    "make_client_context",
    "make_server_context",
    "sha256_fingerprint",
    "write_private_file",
]
