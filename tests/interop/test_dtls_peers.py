# SPDX-License-Identifier: AGPL-3.0-or-later
"""DTLS with other people's implementations: `openssl s_client` (Debian openssl), `gnutls-cli` (gnutls-bin)."""

from __future__ import annotations

import os
import shutil
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from twisted.internet import reactor as the_reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.protocol import DatagramProtocol, ProcessProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest, TestCase

from synapse_lb.txdtls import errors
from synapse_lb.txdtls.certificates import generate_self_signed
from synapse_lb.txdtls.client import connect
from synapse_lb.txdtls.context import (
    ClientVerification,
    ServerContext,
    make_client_context,
    make_server_context,
)
from synapse_lb.txdtls.port import DTLSServerPort
from tests.txdtls.support import NAMES, Recorder, write_certificate, write_pair

reactor: Any = the_reactor


class Peer(ProcessProtocol):
    """A foreign program: what it prints, and when it ends.

    Attributes:
        output: Everything it printed, on either stream.
        ended: Fires when it has ended.
    """

    def __init__(self) -> None:
        self.output = b""
        self.ended: Deferred[None] = Deferred()

    def outReceived(self, data: bytes) -> None:
        self.output += data

    def errReceived(self, data: bytes) -> None:
        self.output += data

    def processEnded(self, reason: Failure) -> None:
        reason.trap(ProcessDone, ProcessTerminated)
        self.ended.callback(None)

    def say(self, text: bytes) -> None:
        """Write to its standard input."""
        transport: Any = self.transport
        transport.write(text)

    async def until(self, text: bytes) -> None:
        """Wait until it has printed something; the test's timeout ends this."""
        while text not in self.output:
            if self.ended.called:
                raise AssertionError(f"it ended without {text!r}: {self.output!r}")
            await deferLater(reactor, 0.02)

    async def finish(self) -> None:
        """Close its standard input and wait for its end."""
        transport: Any = self.transport
        transport.closeStdin()
        await self.ended


async def until(condition: Any) -> None:
    """Wait until a condition holds; the test's timeout ends this."""
    while not condition():
        await deferLater(reactor, 0.02)


class PeerTestCase(TestCase):
    """A server on loopback for foreign clients; and foreign servers."""

    timeout = 30

    def setUp(self) -> None:
        self.paths = write_pair(self.mktemp(), *generate_self_signed(NAMES))
        self.handler = Recorder()

    def serve(self, context: ServerContext | None = None) -> int:
        """Start a server that answers each message with "re " and the message; returns the port's number."""
        self.server = DTLSServerPort(
            context=context or make_server_context(*self.paths), handler=self.handler, reactor=reactor
        )
        self.handler.reaction = lambda one, data: self.server.send(one, b"re " + data)
        port = reactor.listenUDP(0, self.server, interface="127.0.0.1")

        def clean() -> Any:
            self.server.shutdown()
            return port.stopListening()

        self.addCleanup(clean)
        return int(port.getHost().port)

    def run_program(self, program: str, *arguments: str) -> Peer:
        """Start a foreign program, or skip the test if it is not there."""
        path = shutil.which(program)
        if path is None:
            raise SkipTest(f"{program} is not installed")
        peer = Peer()
        process = reactor.spawnProcess(peer, path, [program, *arguments], env=dict(os.environ))

        async def end() -> None:
            if not peer.ended.called:
                process.signalProcess("KILL")
                await until(lambda: peer.ended.called)

        self.addCleanup(lambda: Deferred.fromCoroutine(end()))
        return peer

    async def converse(self, peer: Peer, farewell: bytes | None = None) -> None:
        """A message from the foreign client, its answer, and its goodbye."""
        await until(lambda: self.handler.up)
        peer.say(b"hello\n")
        await peer.until(b"re hello")
        self.assertEqual(self.handler.texts, [b"hello\n"])
        if farewell is not None:
            peer.say(farewell)
        await peer.finish()
        await until(lambda: self.handler.lost)
        self.assertIsInstance(self.handler.lost[0][1], errors.PeerClosed)
        self.assertEqual(self.server.associations, 0)


class OpenSSLTests(PeerTestCase):
    """`openssl s_client` and `openssl s_server`."""

    def client(self, port: int, *more: str) -> Peer:
        return self.run_program("openssl", "s_client", "-dtls1_2", "-connect", f"127.0.0.1:{port}", *more)

    async def test_client(self) -> None:
        peer = self.client(self.serve(), "-CAfile", self.paths[0], "-verify_return_error")
        await self.converse(peer, b"Q\n")
        self.assertIn(b"Verify return code: 0 (ok)", peer.output)
        self.assertIn(b"ECDHE-ECDSA-CHACHA20-POLY1305", peer.output)

    async def test_client_with_an_rsa_certificate(self) -> None:
        paths = write_certificate(self.mktemp(), rsa.generate_private_key(65537, 2048))
        peer = self.client(self.serve(make_server_context(*paths)))
        await self.converse(peer, b"Q\n")
        self.assertIn(b"ECDHE-RSA-CHACHA20-POLY1305", peer.output)

    async def test_client_with_gcm_over_p256_as_pion_offers_it(self) -> None:
        peer = self.client(self.serve(), "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256", "-groups", "P-256")
        await self.converse(peer, b"Q\n")
        self.assertIn(b"ECDHE-ECDSA-AES128-GCM-SHA256", peer.output)

    async def test_client_resumes(self) -> None:
        port = self.serve()
        session = self.mktemp()
        peer = self.client(port, "-sess_out", session)
        await self.converse(peer, b"Q\n")
        self.handler.clear()
        again = self.client(port, "-sess_in", session)
        await self.converse(again, b"Q\n")
        self.assertEqual(self.server.counters.handshakes_resumed, 1)
        self.assertIn(b"Reused", again.output)

    async def test_client_that_does_not_accept_the_certificate(self) -> None:
        peer = self.client(self.serve(), "-verify_return_error")
        await peer.ended
        await until(lambda: self.server.counters.handshakes_failed)
        self.assertEqual((self.handler.up, self.server.handshakes), ([], 0))

    async def test_server(self) -> None:
        free = reactor.listenUDP(0, DatagramProtocol(), interface="127.0.0.1")
        number = free.getHost().port
        await free.stopListening()
        peer = self.run_program(
            "openssl",
            "s_server",
            "-dtls1_2",
            "-listen",
            "-4",
            "-accept",
            str(number),
            "-cert",
            self.paths[0],
            "-key",
            self.paths[1],
        )
        await peer.until(b"ACCEPT")
        context = make_client_context(ClientVerification.ca_file(self.paths[0]))
        association = await connect(reactor, "127.0.0.1", number, context=context, handler=self.handler)
        association.send(b"hello")
        await peer.until(b"hello")
        peer.say(b"welcome\n")
        await until(lambda: self.handler.texts)
        self.assertEqual(self.handler.texts, [b"welcome\n"])
        await association.close()


class GnuTLSTests(PeerTestCase):
    """`gnutls-cli --udp`."""

    def client(self, port: int, *more: str) -> Peer:
        return self.run_program("gnutls-cli", "--udp", "--port", str(port), *more, "localhost")

    async def test_client(self) -> None:
        peer = self.client(self.serve(), "--x509cafile", self.paths[0])
        await self.converse(peer)
        self.assertIn(b"The certificate is trusted", peer.output)

    async def test_client_with_an_rsa_certificate(self) -> None:
        paths = write_certificate(self.mktemp(), rsa.generate_private_key(65537, 2048))
        peer = self.client(self.serve(make_server_context(*paths)), "--no-ca-verification")
        await self.converse(peer)
        self.assertIn(b"RSA", peer.output)

    async def test_client_with_another_priority(self) -> None:
        peer = self.client(
            self.serve(),
            "--no-ca-verification",
            "--priority",
            "NONE:+VERS-DTLS1.2:+AES-128-GCM:+ECDHE-ECDSA:+AEAD:+GROUP-SECP256R1:+SIGN-ECDSA-SHA256:+COMP-NULL:+CTYPE-X509",
        )
        await self.converse(peer)
        self.assertIn(b"AES-128-GCM", peer.output)
