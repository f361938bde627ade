# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a client offers in its hello (RFC 5246 7.4.1.2), and the session that it keeps to be resumed.

- **A new session**: all that the client accepts, padded to a third of the server's answer (`admission`).
- **A session to be resumed**, by a server that has answered without a cookie before: nothing but what the session
  uses. OpenSSL leaves out the curves and their formats where a client names no curve. That saves 32 of 150 bytes,
  and no full handshake can come of it. A server that has forgotten the session answers with an alert, or with a
  cookie, because its certificate is too long an answer to such a hello: then the client begins anew with all that
  it accepts (`client_protocol`).
- **A session to be resumed**, by any other server: all that the client accepts, so that a full handshake can follow.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import attrs
from OpenSSL import SSL
from twisted.logger import Logger

from synapse_lb.txdtls import binding
from synapse_lb.txdtls.context import ClientContext, is_ip_address
from synapse_lb.txdtls.options import ClientOptions

_log = Logger()
_ALPN_HEADERS: Final = 6  # bytes: type and length of the extension, length of the list
_LARGEST_HELLO: Final = 4096
_NO_COOKIE: Final = 1
_PACKS: Final = 2
_COMPACT: Final = 4


@attrs.frozen
class KnownSession:
    """A session to be resumed, and how its server behaved.

    Attributes:
        secret: The session as OpenSSL serialises it.
        cookie: Whether the server wanted a cookie.
        packs: Whether it put several messages into one datagram (`Association.peer_packs`).
        compact: Whether it reads compact datagrams.
    """

    secret: bytes = attrs.field(repr=False)
    cookie: bool = True
    packs: bool = False
    compact: bool = False

    def serialise(self) -> bytes:
        """One byte about the server, then the session."""
        known = _NO_COOKIE * (not self.cookie) + _PACKS * self.packs + _COMPACT * self.compact
        return bytes([known]) + self.secret

    @classmethod
    def parse(cls, serialised: bytes) -> KnownSession:
        """Read what `serialise` made; of other bytes becomes a session that OpenSSL does not accept."""
        known = serialised[0] if serialised else 0
        return cls(
            serialised[1:],
            cookie=not known & _NO_COOKIE,
            packs=bool(known & _PACKS),
            compact=bool(known & _COMPACT),
        )


class Hellos:
    """Makes the connections of one client, which are to be started.

    Args:
        context: Settings.
        options: MTU and padding.
        server_name: As of `ascii_host_name`.
        session: What `KnownSession.serialise` gave.
    """

    def __init__(
        self, context: ClientContext, options: ClientOptions, server_name: str, session: bytes | None
    ) -> None:
        self._context = context
        self._options = options
        self._server_name = server_name
        self._session = None if session is None else KnownSession.parse(session)
        if self._session is not None and not self._take_session(self._bare(context.ssl_context)):
            _log.info("The DTLS session to resume is not usable; making a full handshake")
            self._session = None

    @property
    def server_packs(self) -> bool:
        """Whether the server is known to put several messages into one datagram."""
        return self._session is not None and self._session.packs

    @property
    def server_reads_compact(self) -> bool:
        """Whether the server is known to read compact datagrams."""
        return self._session is not None and self._session.compact

    def first(self) -> tuple[SSL.Connection, bool]:
        """The connection to begin with, and whether it offers nothing but a resumption."""
        if self._session is None:
            return self._padded(), False
        if not self._session.cookie:
            trimmed = self._trimmed()
            if trimmed is not None:
                return trimmed, True
        connection = self._bare(self._context.ssl_context)
        self._take_session(connection)
        return connection, False

    def second(self) -> SSL.Connection:
        """The connection for when the server did not take up the resumption: it can become anything."""
        return self._padded()

    def _padded(self) -> SSL.Connection:
        connection = self._bare(self._context.ssl_context)
        self._take_session(connection)
        if self._options.hello_size:
            sample = self._bare(self._context.ssl_context)
            self._take_session(sample)
            missing = self._options.hello_size - _hello_size(sample)
            if missing > 0:
                connection.set_alpn_protos(_padding(missing))
        return connection

    def _trimmed(self) -> SSL.Connection | None:
        known = self._bare(self._context.ssl_context)
        self._take_session(known)
        context = self._context.resuming(known.get_cipher_name() or "")
        if context is None:
            return None
        connection = self._bare(context)
        return connection if self._take_session(connection) else None

    def _take_session(self, connection: SSL.Connection) -> bool:
        return self._session is not None and binding.import_session(connection, self._session.secret)

    def _bare(self, context: SSL.Context) -> SSL.Connection:
        connection = SSL.Connection(context, None)
        connection.set_connect_state()
        connection.set_ciphertext_mtu(self._options.mtu)
        if not is_ip_address(self._server_name):  # RFC 6066 section 3: no literal addresses
            connection.set_tlsext_host_name(self._server_name.encode("ascii"))
        return connection


def _hello_size(connection: SSL.Connection) -> int:
    """Bytes of the datagram with the ClientHello of a connection, which is of no further use."""
    with suppress(SSL.WantReadError):
        connection.do_handshake()
    return len(connection.bio_read(_LARGEST_HELLO))


def _padding(size: int) -> list[bytes]:
    """Protocol names for an ALPN extension (RFC 7301) of so many bytes, or a few more.

    The first is that of CoAP over DTLS; the others are none, and are there for their length. A server that knows
    no ALPN ignores them all, one that does chooses the first. OpenSSL's own padding (RFC 7685) begins at 256 bytes.
    """
    names = [b"co"]
    left = size - _ALPN_HEADERS - 3
    while left > 1:
        length = min(left - 1, 255)
        names.append(b"-" * length)
        left -= length + 1
    return names
