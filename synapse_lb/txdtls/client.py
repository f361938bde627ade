# SPDX-License-Identifier: AGPL-3.0-or-later
"""The client side: `connect` to a DTLS server (RFC 6347), one socket at a time for each association."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import CannotListenError

from synapse_lb.txdtls.client_protocol import ClientProtocol, format_address
from synapse_lb.txdtls.context import ClientContext, ascii_host_name
from synapse_lb.txdtls.errors import (
    ConnectError,
    HandshakeTimeout,
    LocallyClosed,
    NameNotResolved,
    NetworkUnreachable,
)
from synapse_lb.txdtls.interfaces import AssociationHandler
from synapse_lb.txdtls.options import ClientCounters, ClientOptions
from synapse_lb.txdtls.resolve import resolve


class ClientAssociation:
    """An established association with a server; what `connect` gives.

    Attributes:
        association_id: The id in the handler's events; never reused in this process.
        counters: Datagrams and bytes both ways, the handshake included.
    """

    def __init__(self, protocol: ClientProtocol) -> None:
        self._protocol = protocol
        self.association_id = protocol.association_id
        self.counters = protocol.counters

    def send(self, data: bytes) -> None:
        """Send one message, at the end of the turn if it may share a datagram with others.

        Raises:
            MessageTooLarge: It does not fit into one datagram.
            AssociationGone: The association is over.
            ValueError: The message is empty.
        """
        self._protocol.send(data)

    def close(self) -> Deferred[None]:
        """Close with close_notify; idempotent.

        Returns:
            Fires when the socket is closed.
        """
        return self._protocol.end(LocallyClosed("closed by this side"), notify=True)

    def abort(self) -> Deferred[None]:
        """Close without telling the peer; idempotent.

        Returns:
            Fires when the socket is closed.
        """
        return self._protocol.end(LocallyClosed("aborted by this side"), notify=False)

    def rebind(self) -> None:
        """Use a new local socket from now on, because the network has changed; the association stays.

        The server learns of it from the next message. Until then, what it sends goes to the old address and is
        lost. A message that is on its way from the old address may move the association back there, until the
        message after it.

        Raises:
            NetworkUnreachable: There is no such socket; the old one stays in use.
            AssociationGone: The association is over.
        """
        self._protocol.rebind()

    def use_compact(self) -> None:
        """Send compact datagrams from now on, for the server is known to read them (see `compact`)."""
        self._protocol.form.use_compact()

    @property
    def connected(self) -> bool:
        """Whether messages can be sent."""
        return not self._protocol.over

    @property
    def max_message_size(self) -> int:
        """Bytes of the largest message that fits into one datagram."""
        return self._protocol.association.max_message_size

    @property
    def rtt(self) -> float | None:
        """Round-trip time in seconds as the handshake showed it; None if every flight was repeated."""
        return self._protocol.association.rtt

    @property
    def longest_rtt(self) -> float | None:
        """Seconds that no round trip exceeds, if a flight was repeated: a bound where `rtt` is None."""
        return self._protocol.association.longest_rtt

    @property
    def resumed(self) -> bool:
        """Whether the handshake resumed a session."""
        return self._protocol.association.resumed

    @property
    def cookie_wanted(self) -> bool:
        """Whether the server wanted a cookie before the handshake."""
        return self._protocol.association.cookie_wanted

    @property
    def session(self) -> bytes | None:
        """The session to give to a later `connect`; secret. Still there after the association is over."""
        return self._protocol.session

    @property
    def certificate_sha256(self) -> str:
        """SHA-256 fingerprint of the server's certificate, in the form of `sha256_fingerprint`."""
        return self._protocol.certificate_sha256

    @property
    def certificate_pem(self) -> bytes:
        """The server's certificate; empty before the handshake."""
        certificate = self._protocol.certificate
        return b"" if certificate is None else bytes(certificate.public_bytes(Encoding.PEM))

    @property
    def cipher(self) -> str:
        """OpenSSL's name of the cipher suite."""
        return self._protocol.cipher

    @property
    def peer_address(self) -> IPv4Address | IPv6Address:
        """The server's address."""
        host, port = self._protocol.peer
        return IPv6Address("UDP", host, port) if ":" in host else IPv4Address("UDP", host, port)


def connect(
    reactor: Any,
    host: str,
    port: int,
    *,
    context: ClientContext,
    server_name: str | None = None,
    session: bytes | None = None,
    options: ClientOptions | None = None,
    handler: AssociationHandler,
) -> Deferred[ClientAssociation]:
    """Open an association with a DTLS server.

    The addresses of the host are tried one after another. What the callback of the Deferred sends at once
    leaves in the same datagram as the end of a resumed handshake.

    Args:
        reactor: Offers `Clock`, `listenUDP` (see `DatagramReactor`) and, for names, `nameResolver`.
        host: DNS name or IP address, an IPv6 address also in brackets.
        port: UDP port.
        context: From `make_client_context`.
        server_name: Name or IP address that the certificate has to name, and SNI; `host` by default.
        session: `ClientAssociation.session` of an earlier association with this server, to resume it. Bytes
            that are no session lead to a full handshake.
        options: Limits and times.
        handler: Receives the events once the association is established.

    Returns:
        Fires with the association, or fails with a `ConnectError`: `NameNotResolved`, `NetworkUnreachable`,
        `HandshakeTimeout` or `HandshakeFailed`. Cancelling it gives up.
    """
    chosen = options or ClientOptions()
    counters = ClientCounters()
    target = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        verified_name = ascii_host_name(server_name or target)
    except NameNotResolved as error:
        return fail(error)

    def make_protocol(address: str, timeout: float) -> ClientProtocol:
        return ClientProtocol(
            reactor=reactor,
            peer=(address, port),
            context=context,
            server_name=verified_name,
            session=session,
            options=chosen,
            handler=handler,
            timeout=timeout,
            counters=counters,
        )

    return Deferred.fromCoroutine(_try_addresses(reactor, target, chosen.handshake_timeout, make_protocol))


async def _try_addresses(
    reactor: Any, host: str, timeout: float, make_protocol: Callable[[str, float], ClientProtocol]
) -> ClientAssociation:
    """Try one address after another, each for its share of the time that is left."""
    deadline = reactor.seconds() + timeout
    addresses = await resolve(reactor, host)
    failure: ConnectError = HandshakeTimeout(f"no time left to connect to {host}")
    for position, address in enumerate(addresses):
        share = (deadline - reactor.seconds()) / (len(addresses) - position)
        if share <= 0:
            break
        protocol = make_protocol(address, share)
        try:
            reactor.listenUDP(0, protocol, interface="::" if ":" in address else "")
        except (OSError, CannotListenError) as error:
            failure = NetworkUnreachable(f"{format_address(protocol.peer)}: {error}")
            continue
        protocol.begin()
        try:
            return ClientAssociation(await protocol.established)
        except (NetworkUnreachable, HandshakeTimeout) as error:
            failure = error
    raise failure
