# SPDX-License-Identifier: AGPL-3.0-or-later
"""A client and a gateway whose CoAP messages go from one to the other within the process, without DTLS between.

The gateway, both endpoints, the mapping and the client library are those that one has with a network. What DTLS would
know of an association, `Association` says.
"""

from __future__ import annotations

import random
from typing import Any, Final, cast

import attrs
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed

from synapse_lb.client import ClientVerification, LowBandwidthClient
from synapse_lb.client.channel import Channel
from synapse_lb.client.connector import Connector
from synapse_lb.client.keeper import Keeper
from synapse_lb.coap.tuning import Limits
from synapse_lb.server.dispatcher import Address, Dispatcher
from synapse_lb.server.gateway import Gateway
from synapse_lb.txdtls.errors import AssociationGone, PeerClosed

MAX_MESSAGE_SIZE: Final = 1152
"""B: the largest CoAP message in one datagram (RFC 7252 section 4.6)."""

SERVER: Final = IPv4Address("UDP", "127.0.0.1", 5684)

MAX_REQUEST_BODY: Final = 200 * 65536
"""B: the largest body that Synapse takes (``MAX_REQUEST_SIZE``); the listener takes 1 MiB by default."""

LIMITS: Final = Limits(max_request_body=MAX_REQUEST_BODY, max_reassembly_bytes_per_peer=2 * MAX_REQUEST_BODY)

FIRST_PORT: Final = 49152
LAST_PORT: Final = 65535


@attrs.define
class Datagrams:
    """What crossed the link, one way and the other; as the counters of a DTLS association name it."""

    datagrams_sent: int = 0
    datagrams_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


class Association:
    """The client's end of an association.

    Args:
        port: the server's end.
        number: its number there.
        address: the client's address.
        handler: takes the messages that come.
    """

    rtt = 0.05
    longest_rtt = None
    max_message_size = MAX_MESSAGE_SIZE
    peer_address = SERVER
    session = None
    cookie_wanted = False

    def __init__(self, port: LinkPort, number: int, address: Address, handler: Channel) -> None:
        self.address: Final = address
        self.handler: Final = handler
        self.counters: Final = Datagrams()
        self._port = port
        self._number = number

    def send(self, data: bytes) -> None:
        """Send a message to the server."""
        self.counters.datagrams_sent += 1
        self.counters.bytes_sent += len(data)
        self._port.gateway.message_received(self._number, data)

    def receive(self, data: bytes) -> None:
        """A message has come from the server."""
        self.counters.datagrams_received += 1
        self.counters.bytes_received += len(data)
        self.handler.message_received(self._number, data)

    def use_compact(self) -> None:
        """Records have no headers here that could be shorter."""

    def close(self) -> Deferred[None]:
        """End the association."""
        self._port.end(self._number)
        return succeed(None)


class LinkPort:
    """The server's end of all associations, where the DTLS port is otherwise (``SecurePort`` of the gateway).

    Args:
        dispatcher: serves the requests.
        reactor: the clock.
        seed: of message ids, tokens and jitter.
    """

    def __init__(self, dispatcher: Dispatcher, reactor: Any, seed: int) -> None:
        self.gateway: Final = Gateway(dispatcher, clock=reactor, random=random.Random(seed), limits=LIMITS)
        self.gateway.attach(self)
        self._associations: dict[int, Association] = {}
        self._next = 0

    def associate(self, handler: Channel, ip: str) -> Association:
        """Make an association with a client.

        Args:
            handler: the client's channel.
            ip: the client's address; it gets a port of its own.
        """
        number = self._next
        self._next += 1
        kind = IPv6Address if ":" in ip else IPv4Address
        address = kind("UDP", ip, FIRST_PORT + number % (LAST_PORT - FIRST_PORT))
        association = self._associations[number] = Association(self, number, address, handler)
        self.gateway.association_established(number)
        return association

    def end(self, number: int) -> None:
        """An association ends, at both of its ends."""
        association = self._associations.pop(number, None)
        if association is not None:
            self.gateway.association_lost(number, PeerClosed("close_notify"))
            association.handler.association_lost(number, PeerClosed("close_notify"))

    # What the gateway asks of a DTLS port

    def send(self, association_id: int, data: bytes) -> None:
        """Send a message to a client.

        Raises:
            AssociationGone: it is no longer there.
        """
        association = self._associations.get(association_id)
        if association is None:
            raise AssociationGone("the association has ended")
        association.receive(data)

    def peer_address(self, association_id: int) -> Address:
        """The client's address."""
        return self._associations[association_id].address

    def confirm_address(self, association_id: int) -> None:
        """Nobody moves here."""

    def max_message_size(self, association_id: int) -> int:
        """Bytes that fit into one message."""
        return MAX_MESSAGE_SIZE

    def rtt(self, association_id: int) -> float | None:
        """Seconds of a round trip, as a handshake would have measured it."""
        return Association.rtt

    def longest_rtt(self, association_id: int) -> float | None:
        """There is an `rtt`."""
        return None

    def close(self, association_id: int) -> None:
        """End an association."""
        self.end(association_id)

    def trust(self, association_id: int, *, known: bool = True) -> None:
        """Nobody is crowded out here."""


class _LinkConnector(Connector):
    """Makes associations of a link in place of handshakes."""

    def __init__(self, reactor: Any, port: LinkPort, ip: str) -> None:
        self._port = port
        self._ip = ip

    def learn(self, association: Any) -> None:
        """There are no handshakes to adapt."""

    def connect(self, handler: Any, session: bytes | None) -> Deferred[Any]:
        """Make an association at once."""
        return succeed(self._port.associate(cast(Channel, handler), self._ip))


class LinkedClient(LowBandwidthClient):
    """The client library, over a link.

    Args:
        reactor: the clock.
        port: the server's end.
        ip: the client's address.
        seed: of message ids, tokens and jitter.
        options: as of `LowBandwidthClient`.
    """

    def __init__(self, reactor: Any, port: LinkPort, ip: str, seed: int, **options: Any) -> None:
        super().__init__(
            reactor,
            "coaps://localhost",
            verification=ClientVerification.none(),
            random=random.Random(seed),
            **options,
        )
        self._keeper = Keeper(_LinkConnector(reactor, port, ip), self._make_channel, None)
