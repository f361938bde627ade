# SPDX-License-Identifier: AGPL-3.0-or-later
"""Typed errors of the DTLS transport, and how OpenSSL's error lists become them (RFC 6347, RFC 5246 7.2)."""

from __future__ import annotations

from OpenSSL import SSL


class DTLSError(Exception):
    """Base of every error that this package raises or hands to a handler."""


class BindingError(DTLSError):
    """The installed pyOpenSSL or cryptography lacks a name that this package needs."""


class CertificateError(DTLSError):
    """A certificate, key, CA file or fingerprint cannot be used; the text says what to mend."""


class MessageTooLarge(DTLSError):
    """A message does not fit into one record of the association's MTU.

    Attributes:
        size: Bytes that were asked for.
        limit: Bytes that fit (`max_message_size`).
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"message of {size} bytes does not fit: at most {limit} bytes go into one datagram")
        self.size = size
        self.limit = limit


class AssociationGone(DTLSError):
    """The association id is not, or no longer, that of an established association."""


class ConnectError(DTLSError):
    """Base of what the Deferred of `connect` fails with."""


class HandshakeTimeout(ConnectError):
    """The peer did not complete the handshake in time."""


class NetworkUnreachable(ConnectError):
    """The network said that nobody answers there (ICMP port unreachable, no route)."""


class NameNotResolved(ConnectError):
    """The host name has no address."""


class HandshakeFailed(ConnectError):
    """The handshake ended with a fatal alert or a certificate that was not accepted.

    Attributes:
        alert: The alert's name (RFC 5246 7.2, such as "unknown ca") if the peer sent one.
        verification: Why the peer's certificate was not accepted, if that was the cause.
    """

    def __init__(self, text: str, *, alert: str | None = None, verification: str | None = None) -> None:
        super().__init__(text)
        self.alert = alert
        self.verification = verification


class AssociationLost(DTLSError):
    """Base of the reasons why an established association ended."""


class PeerClosed(AssociationLost):
    """The peer sent close_notify."""


class LocallyClosed(AssociationLost):
    """This side closed it."""


class ShutDown(AssociationLost):
    """The whole port was shut down."""


class Replaced(AssociationLost):
    """The peer completed a new handshake from the same address (RFC 6347 4.2.8)."""


class IdleTimeout(AssociationLost):
    """Nothing came from the peer for the idle timeout."""


class Unauthenticated(AssociationLost):
    """The peer did not show who it is within its time."""


class SocketLost(AssociationLost):
    """The network layer closed the socket (ICMP port unreachable)."""


class Evicted(AssociationLost):
    """There were too many associations, and this one had been silent for long."""


class ProtocolFailure(AssociationLost):
    """A fatal alert, received or sent.

    Attributes:
        alert: The alert's name if the peer sent one.
    """

    def __init__(self, text: str, *, alert: str | None = None) -> None:
        super().__init__(text)
        self.alert = alert


def describe_openssl_error(error: SSL.Error) -> tuple[str, str | None]:
    """Make one line out of OpenSSL's error list.

    Args:
        error: What pyOpenSSL raised.

    Returns:
        The reasons joined by "; ", and the name of the alert that the peer sent, if one is among them.
    """
    reasons: list[str] = []
    if error.args and isinstance(error.args[0], (list, tuple)):
        reasons = [str(item[-1]) for item in error.args[0] if item]
    elif error.args:
        reasons = [" ".join(str(item) for item in error.args)]
    alert = None
    for reason in reasons:
        # OpenSSL names received alerts "tlsv1 alert unknown ca", "ssl/tls alert bad certificate", ...
        _, found, name = reason.partition(" alert ")
        if found:
            alert = name
    return "; ".join(reason for reason in reasons if reason) or type(error).__name__, alert
