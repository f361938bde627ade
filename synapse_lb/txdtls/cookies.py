# SPDX-License-Identifier: AGPL-3.0-or-later
"""Stateless cookies that prove a client's address before anything is kept for it (RFC 6347 4.2.1).

    Cookie = HMAC(Secret, Client-IP, Client-Port, Client-Parameters)

The secret is changed every `lifetime` seconds; cookies of the previous one stay valid, so that a cookie lives
for one to two lifetimes. OpenSSL asks for cookies through callbacks of the Context that know only the
Connection: the `CookieClaim` set as its application data says whose cookie is meant.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable

import attrs
from OpenSSL import SSL

COOKIE_SIZE = 8
"""Bytes of a cookie. Forging one takes 2^63 datagrams to a secret that lives for minutes; every byte is sent twice."""


class CookieJar:
    """Makes and checks cookies, with a rotating secret.

    Args:
        lifetime: Seconds until the secret is changed.
        new_secret: Source of 32-byte secrets.
    """

    def __init__(
        self, *, lifetime: float = 300.0, new_secret: Callable[[], bytes] = lambda: secrets.token_bytes(32)
    ) -> None:
        self._lifetime = lifetime
        self._new_secret = new_secret
        self._current = new_secret()
        self._previous = new_secret()
        self._changed_at: float | None = None

    def rotate(self, now: float) -> None:
        """Change the secret if it is due; call it before cookies are made or checked.

        Args:
            now: Monotonic seconds.
        """
        if self._changed_at is None:
            self._changed_at = now
        age = now - self._changed_at
        if age < self._lifetime:
            return
        self._previous = self._current if age < 2 * self._lifetime else self._new_secret()
        self._current = self._new_secret()
        self._changed_at = now

    def make(self, address: tuple[str, int], parameters: bytes) -> bytes:
        """The cookie for a ClientHello with these parameters from this address."""
        return _cookie(self._current, address, parameters)

    def check(self, cookie: bytes, address: tuple[str, int], parameters: bytes) -> bool:
        """Whether this cookie was made for this address and these parameters, and has not expired."""
        matches = [
            hmac.compare_digest(cookie, _cookie(secret, address, parameters))
            for secret in (self._current, self._previous)
        ]
        return any(matches)


def _cookie(secret: bytes, address: tuple[str, int], parameters: bytes) -> bytes:
    host = address[0].encode()
    material = len(host).to_bytes(2, "big") + host + address[1].to_bytes(4, "big") + parameters
    return hmac.digest(secret, material, "sha256")[:COOKIE_SIZE]


@attrs.frozen
class CookieClaim:
    """Whose cookie OpenSSL's callbacks are to make or check; the application data of a Connection.

    Attributes:
        jar: The port's cookies.
        address: Host and port of the client.
        parameters: See `records.ClientHello.parameters`.
    """

    jar: CookieJar
    address: tuple[str, int]
    parameters: bytes = attrs.field(repr=False)


def install_cookie_callbacks(context: SSL.Context) -> None:
    """Let a Context ask the `CookieClaim` of its Connections; must come before the first Connection."""

    def generate(connection: SSL.Connection) -> bytes:
        claim: CookieClaim = connection.get_app_data()
        return claim.jar.make(claim.address, claim.parameters)

    def verify(connection: SSL.Connection, cookie: bytes) -> bool:
        claim: CookieClaim = connection.get_app_data()
        return claim.jar.check(cookie, claim.address, claim.parameters)

    context.set_cookie_generate_callback(generate)
    context.set_cookie_verify_callback(verify)
