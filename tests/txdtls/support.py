# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the tests of the DTLS transport share: certificates, a recording handler, a network with a server on it."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.protocol import DatagramProtocol
from twisted.trial.unittest import TestCase

from synapse_lb.testing.memory import MemoryUDP
from synapse_lb.txdtls import records
from synapse_lb.txdtls.association import Association, Progress
from synapse_lb.txdtls.certificates import generate_self_signed
from synapse_lb.txdtls.client import ClientAssociation, connect
from synapse_lb.txdtls.context import (
    ClientContext,
    ClientVerification,
    ServerContext,
    make_client_context,
    make_server_context,
)
from synapse_lb.txdtls.errors import AssociationLost
from synapse_lb.txdtls.interfaces import AssociationHandler
from synapse_lb.txdtls.options import ClientOptions, ServerOptions
from synapse_lb.txdtls.port import DTLSServerPort

SERVER = ("127.0.0.1", 5684)
NAMES = ("localhost", "127.0.0.1", "::1")


class Recorder:
    """A handler that keeps what it is told.

    Attributes:
        up: Ids that were established.
        messages: Ids with their messages.
        lost: Ids with the reasons.
        reaction: Called with each message.
    """

    def __init__(self) -> None:
        self.up: list[int] = []
        self.messages: list[tuple[int, bytes]] = []
        self.lost: list[tuple[int, AssociationLost]] = []
        self.reaction: Callable[[int, bytes], None] = lambda association_id, data: None

    def association_established(self, association_id: int) -> None:
        self.up.append(association_id)

    def message_received(self, association_id: int, data: bytes) -> None:
        self.messages.append((association_id, data))
        self.reaction(association_id, data)

    def association_moved(self, association_id: int) -> None:
        raise AssertionError("no address changes here")

    def association_lost(self, association_id: int, reason: AssociationLost) -> None:
        self.lost.append((association_id, reason))

    def clear(self) -> None:
        """Forget what it was told."""
        self.up.clear()
        self.messages.clear()
        self.lost.clear()

    @property
    def texts(self) -> list[bytes]:
        """The messages without their ids."""
        return [data for _, data in self.messages]


def write_certificate(folder: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> tuple[str, str]:
    """A self-signed certificate for localhost with any key; returns the paths."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return write_pair(folder, certificate.public_bytes(serialization.Encoding.PEM), key_pem)


def write_pair(folder: str, certificate: bytes, key: bytes) -> tuple[str, str]:
    """Write PEM texts into a new folder; returns the paths."""
    os.makedirs(folder)
    paths = os.path.join(folder, "server.crt"), os.path.join(folder, "server.key")
    for path, content in zip(paths, (certificate, key), strict=True):
        with open(path, "wb") as file:
            file.write(content)
    return paths


class RawClient(DatagramProtocol):
    """A client without timers that can hold several associations at one address, fed by hand."""

    noisy = False

    def __init__(self, network: MemoryUDP, context: ClientContext, *, mtu: int = 1200) -> None:
        self.network = network
        self.context = context
        self.mtu = mtu
        self.inbox: list[bytes] = []
        self.port = network.listenUDP(0, self)
        host = self.port.getHost()
        self.address: tuple[str, int] = (host.host, host.port)

    def datagramReceived(self, datagram: bytes, addr: object) -> None:
        self.inbox.append(datagram)

    def new_association(self) -> Association:
        connection = SSL.Connection(self.context.ssl_context, None)
        connection.set_connect_state()
        connection.set_ciphertext_mtu(self.mtu)
        association = Association(connection, mtu=self.mtu)
        association.start()
        return association

    def write(self, association: Association) -> list[bytes]:
        """Send what an association has to send; returns the datagrams."""
        datagrams = association.take_datagrams(self.network.seconds())
        for datagram in datagrams:
            self.network.carry(self.address, SERVER, datagram)
        self.network.advance(0.01)
        return datagrams

    def read(self, association: Association) -> list[Progress]:
        """Feed everything that arrived to an association."""
        inbox, self.inbox = self.inbox, []
        return [feed(association, datagram, self.network.seconds()) for datagram in inbox]

    def shake_hands(self, association: Association) -> None:
        """Go on until nothing comes any more."""
        self.write(association)
        while self.inbox:
            self.read(association)
            self.write(association)


def feed(association: Association, datagram: bytes, now: float) -> Progress:
    """Feed one well-formed datagram."""
    summary = records.inspect(datagram)
    assert summary is not None
    return association.receive(datagram, summary, now)


class NetworkTestCase(TestCase):
    """A test with a server at `SERVER` on a network in memory."""

    def setUp(self) -> None:
        self.network = MemoryUDP()
        self.paths = write_pair(self.mktemp(), *generate_self_signed(NAMES))
        self.server_context = make_server_context(*self.paths)
        self.client_context = make_client_context(ClientVerification.ca_file(self.paths[0]))
        self.handler = Recorder()
        self.client_handler = Recorder()
        self.server = self.serve()

    def serve(
        self,
        options: ServerOptions | None = None,
        *,
        context: ServerContext | None = None,
        address: tuple[str, int] = SERVER,
        handler: AssociationHandler | None = None,
    ) -> DTLSServerPort:
        """Put a server at an address, in place of the one that is there."""
        self.network.close(address)
        server = DTLSServerPort(
            context=context or self.server_context,
            handler=handler or self.handler,
            options=options,
            reactor=self.network,
        )
        self.network.listenUDP(address[1], server, interface=address[0])
        self.addCleanup(server.shutdown)
        return server

    def start(
        self,
        *,
        context: ClientContext | None = None,
        host: str = SERVER[0],
        server_name: str | None = None,
        session: bytes | None = None,
        options: ClientOptions | None = None,
        handler: AssociationHandler | None = None,
    ) -> Deferred[ClientAssociation]:
        """Begin to connect to the server."""
        return connect(
            self.network,
            host,
            SERVER[1],
            context=context or self.client_context,
            server_name=server_name,
            session=session,
            options=options,
            handler=handler or self.client_handler,
        )

    def connect(
        self,
        *,
        context: ClientContext | None = None,
        server_name: str | None = None,
        session: bytes | None = None,
        options: ClientOptions | None = None,
        handler: AssociationHandler | None = None,
    ) -> ClientAssociation:
        """Connect to the server at once."""
        deferred = self.start(
            context=context, server_name=server_name, session=session, options=options, handler=handler
        )
        self.network.advance(0.1)
        association = self.successResultOf(deferred)
        self.addCleanup(association.abort)
        return association

    def raw_client(self, *, mtu: int = 1200) -> RawClient:
        """A client that is fed by hand."""
        return RawClient(self.network, self.client_context, mtu=mtu)

    def assert_echo(self, association: ClientAssociation, text: bytes = b"still there?") -> None:
        """Messages pass in both directions."""
        before = len(self.client_handler.messages)
        self.handler.reaction = lambda association_id, data: self.server.send(association_id, b"re " + data)
        association.send(text)
        self.network.advance(0.05)
        self.assertEqual(self.client_handler.texts[before:], [b"re " + text])

    def from_server(self) -> list[bytes]:
        """Datagrams that the server sent, in order."""
        return [data for sender, _, data in self.network.sent if sender == SERVER]

    def to_server(self) -> list[bytes]:
        """Datagrams that were sent to the server, in order."""
        return [data for _, to, data in self.network.sent if to == SERVER]
