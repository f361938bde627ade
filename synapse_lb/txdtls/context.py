# SPDX-License-Identifier: AGPL-3.0-or-later
"""TLS settings of both sides: DTLS 1.2, ECDHE with AEAD ciphers only (RFC 6347, RFC 7925, RFC 9325).

ChaCha20-Poly1305 is preferred because its records are 8 bytes shorter than GCM's: its nonce is not sent
(RFC 7905 section 2). TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8, which RFC 7252 section 9.1.3.3 names, is not offered:
its 64-bit tag puts it below OpenSSL's default security level (checked with OpenSSL 4.0), and lowering the level
would admit weak keys and signatures for everybody. All clients known to speak MSC3079 offer one of the suites
below.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Callable

import attrs
from OpenSSL import SSL, crypto
from service_identity import CertificateError as IdentityCertificateError
from service_identity import VerificationError
from service_identity.pyopenssl import verify_hostname, verify_ip_address
from twisted.logger import Logger

from synapse_lb.txdtls import binding
from synapse_lb.txdtls.certificates import (
    fingerprint_of,
    load_certified_key,
    normalise_fingerprint,
)
from synapse_lb.txdtls.cookies import install_cookie_callbacks
from synapse_lb.txdtls.errors import (
    CertificateError,
    HandshakeFailed,
    NameNotResolved,
    describe_openssl_error,
)

_log = Logger()

DTLS_1_2 = 0xFEFD
CIPHERS = ":".join(
    f"ECDHE-{kind}-{suite}"
    for kind in ("ECDSA", "RSA")
    for suite in ("CHACHA20-POLY1305", "AES128-GCM-SHA256", "AES256-GCM-SHA384")
)
CLIENT_CIPHERS = ":".join(
    f"ECDHE-{kind}-{suite}"
    for kind in ("ECDSA", "RSA")
    for suite in ("CHACHA20-POLY1305", "AES128-GCM-SHA256")
)
"""What a client offers: every suite costs 2 bytes in each hello, and all servers known to speak MSC3079 have one."""

GROUPS = "X25519:P-256:P-384"
"""Best first. P-384 is there for certificates on that curve, which could not be used otherwise (RFC 8422 5.1.1)."""

_NO_CURVE = "ffdhe2048"
"""A group that is no curve (RFC 7919): a client that knows no other one leaves the extensions about curves out."""

SIGNATURE_ALGORITHMS = "ECDSA+SHA256:RSA-PSS+SHA256:ECDSA+SHA384:RSA+SHA256:RSA+SHA384"
"""What a client offers, 2 bytes each: enough for the chains that public authorities issue."""

SESSION_LIFETIME = 86400
"""Seconds that a session can be resumed; RFC 5246 F.1.4 suggests at most 24 hours."""

_SESSION_CONTEXT = b"txdtls"
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]+")


class VerificationMode(enum.Enum):
    """How a client decides whether it speaks with the right server."""

    SYSTEM = "system"
    CA_FILE = "ca-file"
    PINNED = "pinned"
    NONE = "none"


@attrs.frozen
class ClientVerification:
    """How a client verifies the server's certificate; use one of the class methods.

    Attributes:
        mode: The way.
        ca_path: PEM file of the authorities, for `CA_FILE`.
        fingerprint: SHA-256 fingerprint of the certificate, for `PINNED`.
    """

    mode: VerificationMode = VerificationMode.SYSTEM
    ca_path: str | None = None
    fingerprint: str | None = None

    @classmethod
    def system(cls) -> ClientVerification:
        """The system's certificate authorities, and the certificate names the host."""
        return cls(VerificationMode.SYSTEM)

    @classmethod
    def ca_file(cls, path: str) -> ClientVerification:
        """The authorities (or the self-signed certificate) in a PEM file, and the certificate names the host."""
        return cls(VerificationMode.CA_FILE, ca_path=path)

    @classmethod
    def pinned(cls, fingerprint: str) -> ClientVerification:
        """Exactly the certificate with this SHA-256 fingerprint, whatever names it has.

        Raises:
            CertificateError: It is not a SHA-256 fingerprint.
        """
        return cls(VerificationMode.PINNED, fingerprint=normalise_fingerprint(fingerprint))

    @classmethod
    def none(cls) -> ClientVerification:
        """No verification: whoever is in the path can read and change everything."""
        return cls(VerificationMode.NONE)


@attrs.frozen
class ServerContext:
    """A server's certificate and settings; made by `make_server_context`.

    Attributes:
        ssl_context: The pyOpenSSL context with the cookie callbacks installed.
        fingerprint: SHA-256 fingerprint of the certificate.
        warnings: What an admin should know about the certificate.
        expires: When the certificate expires, in seconds since 1970 (UTC).
    """

    ssl_context: SSL.Context = attrs.field(repr=False)
    fingerprint: str
    warnings: tuple[str, ...] = ()
    expires: float = float("inf")


@attrs.frozen
class ClientContext:
    """A client's settings; made by `make_client_context`, good for any number of associations.

    Attributes:
        ssl_context: The pyOpenSSL context.
        verification: How servers are verified.
        keylog: As given to `make_client_context`.
    """

    ssl_context: SSL.Context = attrs.field(repr=False)
    verification: ClientVerification
    keylog: Callable[[bytes], None] | None = attrs.field(default=None, repr=False, eq=False)
    _resuming: dict[str, SSL.Context] = attrs.field(factory=dict, init=False, repr=False, eq=False)

    def resuming(self, suite: str) -> SSL.Context | None:
        """Settings for a hello that offers nothing but to resume a session of this suite.

        A full handshake cannot come of it: there is no curve in common, and no certificate is trusted.

        Args:
            suite: OpenSSL's name of a cipher suite.

        Returns:
            The settings, kept for each suite that a client offers, or None if it is none of those.
        """
        if suite not in CLIENT_CIPHERS.split(":"):
            return None
        if suite not in self._resuming:
            context = _new_context(SSL.DTLS_CLIENT_METHOD, groups=_NO_CURVE)
            context.set_cipher_list(suite.encode())
            binding.set_signature_algorithms(context, f"{suite.split('-')[1]}+SHA256")
            context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
            context.set_verify(SSL.VERIFY_PEER)
            if self.keylog is not None:
                _install_keylog(context, self.keylog)
            self._resuming[suite] = context
        return self._resuming[suite]


def make_server_context(certificate_path: str, key_path: str) -> ServerContext:
    """Make a server's context from PEM files.

    Args:
        certificate_path: The server's certificate first, then the intermediates.
        key_path: Its unencrypted private key.

    Raises:
        CertificateError: They cannot be read or do not fit; the text says what to mend.
        BindingError: The installed pyOpenSSL does not fit.
    """
    certified = load_certified_key(certificate_path, key_path)
    context = _new_context(SSL.DTLS_SERVER_METHOD)
    context.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
    # The internal cache is bounded by OpenSSL itself: 20480 sessions, the oldest go first.
    context.set_session_cache_mode(SSL.SESS_CACHE_SERVER)
    context.set_session_id(_SESSION_CONTEXT)
    context.set_timeout(SESSION_LIFETIME)
    leaf, *intermediates = certified.chain
    try:
        context.use_certificate(crypto.X509.from_cryptography(leaf))
        for intermediate in intermediates:
            context.add_extra_chain_cert(crypto.X509.from_cryptography(intermediate))
        context.use_privatekey(crypto.PKey.from_cryptography_key(certified.key))
    except SSL.Error as error:
        text, _ = describe_openssl_error(error)
        raise CertificateError(
            f"OpenSSL does not accept the certificate {certificate_path} with the key {key_path}: {text}"
        ) from error
    install_cookie_callbacks(context)
    expires = leaf.not_valid_after_utc.timestamp()
    return ServerContext(context, fingerprint_of(leaf), certified.warnings, expires)


def make_client_context(
    verify: ClientVerification | None = None, *, keylog: Callable[[bytes], None] | None = None
) -> ClientContext:
    """Make a client's context.

    Args:
        verify: How servers are verified; by the system's authorities by default.
        keylog: Called with each line for an SSLKEYLOGFILE, without a line end. Whoever has these can decrypt.

    Raises:
        CertificateError: The CA file cannot be used.
        BindingError: The installed pyOpenSSL does not fit.
    """
    verification = verify or ClientVerification.system()
    context = _new_context(SSL.DTLS_CLIENT_METHOD)
    context.set_cipher_list(CLIENT_CIPHERS.encode())
    binding.set_signature_algorithms(context, SIGNATURE_ALGORITHMS)
    # Sessions are handed out serialised; OpenSSL's own client cache would only cost memory.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    if verification.mode is VerificationMode.SYSTEM:
        context.set_default_verify_paths()
        context.set_verify(SSL.VERIFY_PEER)
    elif verification.mode is VerificationMode.CA_FILE:
        _load_authorities(context, verification.ca_path or "")
        context.set_verify(SSL.VERIFY_PEER)
    else:
        context.set_verify(SSL.VERIFY_NONE)
    if keylog is not None:
        _install_keylog(context, keylog)
    return ClientContext(context, verification, keylog)


def _new_context(method: int, groups: str = GROUPS) -> SSL.Context:
    binding.check_binding()
    context = SSL.Context(method)
    context.set_min_proto_version(DTLS_1_2)
    context.set_max_proto_version(DTLS_1_2)
    context.set_options(
        SSL.OP_NO_QUERY_MTU
        | SSL.OP_NO_COMPRESSION
        | SSL.OP_NO_TICKET
        | binding.no_renegotiation_option()
        | binding.no_encrypt_then_mac_option()
    )
    context.set_mode(binding.release_buffers_mode())
    context.set_cipher_list(CIPHERS.encode())
    binding.set_groups(context, groups)
    return context


def _load_authorities(context: SSL.Context, path: str) -> None:
    try:
        context.load_verify_locations(path)
    except SSL.Error as error:
        text, _ = describe_openssl_error(error)
        raise CertificateError(
            f"cannot load certificate authorities from {path}: {text}; it should be a readable PEM file"
        ) from error


def _install_keylog(context: SSL.Context, keylog: Callable[[bytes], None]) -> None:
    def write_line(connection: SSL.Connection, line: bytes) -> None:
        try:
            keylog(line)
        except Exception:
            # An exception cannot cross OpenSSL; losing the log must not lose the association.
            _log.failure("The key log callback failed")

    context.set_keylog_callback(write_line)


def verify_server(connection: SSL.Connection, verification: ClientVerification, server_name: str) -> None:
    """Check the certificate of a completed handshake, full or resumed, before anything is sent under it.

    Args:
        connection: The client's connection.
        verification: How to verify.
        server_name: DNS name or IP address that the certificate has to name (RFC 9525).

    Raises:
        HandshakeFailed: The server is not the one that was meant; `verification` says why.
    """
    if verification.mode is VerificationMode.NONE:
        return
    certificate = connection.get_peer_certificate()
    if certificate is None:
        raise _refused("the server sent no certificate")
    if verification.mode is VerificationMode.PINNED:
        seen = fingerprint_of(certificate.to_cryptography())
        if seen != verification.fingerprint:
            raise _refused(f"its SHA-256 fingerprint is {seen}, expected {verification.fingerprint}")
        return
    # A resumed session carries the verdict of the handshake it came from, perhaps of another context.
    problem = binding.verification_error(connection)
    if problem is not None:
        raise _refused(problem)
    try:
        if is_ip_address(server_name):
            verify_ip_address(connection, server_name)
        else:
            verify_hostname(connection, server_name)
    except (VerificationError, IdentityCertificateError, ValueError) as error:
        raise _refused(f"it does not name {server_name}") from error


def is_ip_address(text: str) -> bool:
    """Whether the text is an IPv4 or IPv6 address literal."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def ascii_host_name(text: str) -> str:
    """The form of a host name or IP address that goes over the wire (RFC 5890 A-labels).

    Raises:
        NameNotResolved: It can be neither.
    """
    if is_ip_address(text):
        return text
    try:
        name = text.encode("idna").decode("ascii")
    except ValueError as error:  # UnicodeError is one
        raise NameNotResolved(f"{text!r} is neither a host name nor an IP address") from error
    if not _HOST_NAME.fullmatch(name):
        raise NameNotResolved(f"{text!r} is neither a host name nor an IP address")
    return name


def _refused(why: str) -> HandshakeFailed:
    return HandshakeFailed(f"the server's certificate is not accepted: {why}", verification=why)
