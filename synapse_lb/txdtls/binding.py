# SPDX-License-Identifier: AGPL-3.0-or-later
"""The only file that touches private names of pyOpenSSL: what its public API lacks for DTLS.

pyOpenSSL offers no setter for groups and signature algorithms, no serialised sessions, no
`SSL_session_reused` and no way to clear OpenSSL's error queue; the library underneath has them. Every name is
looked up by `check_binding`, so that a changed pyOpenSSL is met with one clear error and not in mid-handshake.
"""

from __future__ import annotations

from typing import Any

import cryptography
import OpenSSL
from OpenSSL import SSL

from synapse_lb.txdtls.errors import BindingError

_FUNCTIONS = (
    "ERR_clear_error",
    "SSL_CTX_set1_sigalgs_list",
    "SSL_SESSION_free",
    "SSL_get1_session",
    "SSL_get_verify_result",
    "SSL_session_reused",
    "SSL_set_alpn_protos",
    "SSL_set_session",
    "SSL_set_shutdown",
    "X509_verify_cert_error_string",
    "d2i_SSL_SESSION",
    "i2d_SSL_SESSION",
)
_CONSTANTS = (
    "SSL_MODE_RELEASE_BUFFERS",
    "SSL_OP_NO_RENEGOTIATION",
    "SSL_RECEIVED_SHUTDOWN",
    "SSL_SENT_SHUTDOWN",
    "X509_V_OK",
)
_CONNECTION_METHODS = ("DTLSv1_listen", "set_ciphertext_mtu")

_lib: Any = getattr(SSL, "_lib", None)
_ffi: Any = getattr(SSL, "_ffi", None)

_MAX_SESSION_BYTES = 65536


def missing_names() -> list[str]:
    """List the names that the installed pyOpenSSL lacks; empty when everything is there."""
    missing = [name for name in (*_FUNCTIONS, *_CONSTANTS) if not hasattr(_lib, name)]
    missing += [f"Connection.{name}" for name in _CONNECTION_METHODS if not hasattr(SSL.Connection, name)]
    if _ffi is None:
        missing.append("_ffi")
    return missing


def check_binding() -> None:
    """Check that everything this file uses exists.

    Raises:
        BindingError: A name is missing; the text gives the names and the versions installed.
    """
    missing = missing_names()
    if missing:
        raise BindingError(
            f"pyOpenSSL {OpenSSL.__version__} with cryptography {cryptography.__version__} lacks "
            f"{', '.join(missing)}, which DTLS needs: install another version of them"
        )


def release_buffers_mode() -> int:
    """`SSL_MODE_RELEASE_BUFFERS`: idle associations give their record buffers back."""
    return int(_lib.SSL_MODE_RELEASE_BUFFERS)


def no_renegotiation_option() -> int:
    """`SSL_OP_NO_RENEGOTIATION`."""
    return int(_lib.SSL_OP_NO_RENEGOTIATION)


def clear_errors() -> None:
    """Empty OpenSSL's error queue of this thread.

    Before OpenSSL 4.0 `SSL_get_error` blames the connection at hand for whatever is in the queue, also for what
    another user of OpenSSL in the same thread left there.
    """
    _lib.ERR_clear_error()


def no_encrypt_then_mac_option() -> int:
    """`SSL_OP_NO_ENCRYPT_THEN_MAC`: AEAD suites have no use for RFC 7366, whose extension costs 4 bytes a hello.

    pyOpenSSL does not name it; it is a constant of OpenSSL's public header, the same in all versions since 1.1.1.
    """
    return 1 << 19


def set_groups(context: SSL.Context, groups: str) -> None:
    """Set the key-exchange groups, best first, such as "X25519:P-256".

    cryptography before 47 has no setter: there OpenSSL's default stays, which begins with X25519 and P-256 too
    (in DTLS 1.2) and costs a client a few bytes for the groups that it names besides.

    Raises:
        BindingError: OpenSSL knows none of them.
    """
    if not hasattr(_lib, "SSL_CTX_set1_curves_list"):
        return
    if _lib.SSL_CTX_set1_curves_list(_context_pointer(context), groups.encode()) != 1:
        clear_errors()
        raise BindingError(f"OpenSSL does not accept the groups {groups}")


def set_signature_algorithms(context: SSL.Context, algorithms: str) -> None:
    """Set the signature algorithms offered, best first, such as "ECDSA+SHA256:RSA+SHA256".

    Raises:
        BindingError: OpenSSL knows none of them.
    """
    if _lib.SSL_CTX_set1_sigalgs_list(_context_pointer(context), algorithms.encode()) != 1:
        clear_errors()
        raise BindingError(f"OpenSSL does not accept the signature algorithms {algorithms}")


def was_resumed(connection: SSL.Connection) -> bool:
    """Whether the handshake of this connection resumed a session."""
    return bool(_lib.SSL_session_reused(_ssl_pointer(connection)))


def verification_error(connection: SSL.Connection) -> str | None:
    """Why OpenSSL did not accept the peer's chain, or None if it did (also for a resumed session)."""
    result = _lib.SSL_get_verify_result(_ssl_pointer(connection))
    if result == _lib.X509_V_OK:
        return None
    return str(_ffi.string(_lib.X509_verify_cert_error_string(result)).decode("utf-8", "replace"))


def forget_alpn(connection: SSL.Connection) -> None:
    """Leave the ALPN extension out of the next ClientHello."""
    _lib.SSL_set_alpn_protos(_ssl_pointer(connection), _ffi.NULL, 0)


def keep_session(connection: SSL.Connection) -> None:
    """Mark both directions as shut down: otherwise OpenSSL forgets the session when the connection is freed."""
    _lib.SSL_set_shutdown(_ssl_pointer(connection), _lib.SSL_SENT_SHUTDOWN | _lib.SSL_RECEIVED_SHUTDOWN)


def export_session(connection: SSL.Connection) -> bytes | None:
    """Serialise the session of a connection (ASN.1 as of `i2d_SSL_SESSION`).

    It holds the master secret: whoever has it can read and forge the resumed association.
    """
    session = _lib.SSL_get1_session(_ssl_pointer(connection))
    if session == _ffi.NULL:
        return None
    session = _ffi.gc(session, _lib.SSL_SESSION_free)
    size = _lib.i2d_SSL_SESSION(session, _ffi.NULL)
    if size <= 0:
        clear_errors()
        return None
    buffer = _ffi.new("unsigned char[]", size)
    cursor = _ffi.new("unsigned char **", buffer)
    _lib.i2d_SSL_SESSION(session, cursor)
    return bytes(_ffi.buffer(buffer, size))


def import_session(connection: SSL.Connection, serialised: bytes) -> bool:
    """Offer a serialised session for resumption on a client connection that has not started.

    Returns:
        False when the bytes are not a session that OpenSSL can use; the handshake will then be a full one.
    """
    if not 0 < len(serialised) <= _MAX_SESSION_BYTES:
        return False
    buffer = _ffi.from_buffer("unsigned char[]", serialised)
    cursor = _ffi.new("const unsigned char **", buffer)
    session = _lib.d2i_SSL_SESSION(_ffi.NULL, cursor, len(serialised))
    if session == _ffi.NULL:
        clear_errors()
        return False
    session = _ffi.gc(session, _lib.SSL_SESSION_free)
    accepted = bool(_lib.SSL_set_session(_ssl_pointer(connection), session) == 1)
    clear_errors()
    return accepted


def _context_pointer(context: SSL.Context) -> Any:
    return context._context


def _ssl_pointer(connection: SSL.Connection) -> Any:
    return connection._ssl
