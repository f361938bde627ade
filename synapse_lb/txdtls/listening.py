# SPDX-License-Identifier: AGPL-3.0-or-later
"""Answers ClientHellos with cookies and without state, and tells which ones bring a good one (RFC 6347 4.2.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from OpenSSL import SSL

from synapse_lb.txdtls import binding
from synapse_lb.txdtls.cookies import CookieClaim, CookieJar

if TYPE_CHECKING:
    from synapse_lb.txdtls.context import ServerContext
    from synapse_lb.txdtls.options import ServerOptions
    from synapse_lb.txdtls.records import ClientHello
    from synapse_lb.txdtls.table import Address

_MAX_HELLO_VERIFY_REQUEST = 4096


class HelloListener:
    """One OpenSSL connection that looks at any number of hellos, until one of them takes it along.

    Args:
        context: Certificate and settings.
        options: MTU and the cookies' lifetime.
    """

    def __init__(self, context: ServerContext, options: ServerOptions) -> None:
        self._context = context
        self._mtu = options.mtu
        self._jar = CookieJar(lifetime=options.cookie_lifetime)
        self._listener: SSL.Connection | None = None

    def replace_context(self, context: ServerContext) -> None:
        """Use another certificate; cookies stay good."""
        self._context = context
        self._listener = None

    def close(self) -> None:
        """Let go of the connection."""
        self._listener = None

    def new_connection(self) -> SSL.Connection:
        """A connection that waits for a hello."""
        connection = SSL.Connection(self._context.ssl_context, None)
        connection.set_accept_state()
        connection.set_ciphertext_mtu(self._mtu)
        return connection

    def listen(self, hello: ClientHello, address: Address, now: float) -> SSL.Connection | bytes | None:
        """Look at a hello.

        Args:
            hello: A whole one.
            address: Where it came from.
            now: Monotonic seconds.

        Returns:
            The connection that goes on with the handshake, if the hello has a good cookie; else the
            HelloVerifyRequest to send; or None if OpenSSL makes nothing of it.
        """
        self._jar.rotate(now)
        listener = self._listener or self.new_connection()
        self._listener = listener
        listener.set_app_data(CookieClaim(self._jar, address, hello.parameters))
        binding.clear_errors()
        listener.bio_write(hello.record)
        try:
            listener.DTLSv1_listen()
        except SSL.WantReadError:
            return self._request(listener)
        except SSL.Error:
            self._listener = None  # not known to be usable any more
            return None
        finally:
            binding.clear_errors()
        self._listener = None
        return listener

    def _request(self, listener: SSL.Connection) -> bytes | None:
        try:
            return listener.bio_read(_MAX_HELLO_VERIFY_REQUEST)
        except SSL.WantReadError:
            return None
