# SPDX-License-Identifier: AGPL-3.0-or-later
"""A hello that offers nothing but a resumption, and what comes when the server does not take it up."""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from OpenSSL import SSL

from synapse_lb.txdtls import binding, records
from synapse_lb.txdtls.association import Association
from synapse_lb.txdtls.client import ClientAssociation
from synapse_lb.txdtls.context import (
    CLIENT_CIPHERS,
    ClientVerification,
    make_client_context,
    make_server_context,
)
from synapse_lb.txdtls.errors import HandshakeTimeout, NetworkUnreachable
from synapse_lb.txdtls.hellos import KnownSession
from synapse_lb.txdtls.options import ClientOptions, ServerOptions
from tests.txdtls.support import SERVER, NetworkTestCase, feed, write_certificate

HANDSHAKE_FAILURE = bytes.fromhex("15fefd000000000000000000020228")
RESUMING = 142 if SSL.OPENSSL_VERSION_NUMBER < 0x4000_0000 else 118
"""Bytes of the datagram with a hello that offers nothing but a resumption; OpenSSL 3 names groups all the same."""


class HelloTestCase(NetworkTestCase):
    """Clients that come again."""

    def known(self) -> bytes:
        """The session of a client that has been there, and was answered without a cookie."""
        session = self.connect_and_close().session
        assert session is not None
        return session

    def connect_and_close(self, **arguments: Any) -> ClientAssociation:
        association = self.connect(**arguments)
        association.close()
        self.network.advance(0.1)
        return association

    def come_again(self, session: bytes | None, **arguments: Any) -> ClientAssociation:
        """Connect, and see that messages pass."""
        self.network.sent.clear()
        association = self.connect(session=session, **arguments)
        self.assert_echo(association)
        return association

    def hellos(self) -> list[int]:
        """Sizes of the hellos that were sent, cookies included."""
        return [len(data) for data in self.to_server() if data[0] == records.HANDSHAKE and data[13] == 1]

    def ports(self) -> int:
        """From how many addresses the server got datagrams."""
        return len({sender for sender, to, _ in self.network.sent if to == SERVER})

    def on_the_way(self, change: Any) -> None:
        """Have somebody in the path see what is sent to the server."""
        carry = self.network.carry

        def altered(sender: Any, to: Any, data: bytes) -> None:
            if to != SERVER or change(sender, data):
                carry(sender, to, data)
            else:
                self.network.sent.append((sender, to, data))

        self.network.carry = altered  # type: ignore[method-assign]  # somebody in the path


class ResumptionTests(HelloTestCase):
    """The server knows the session."""

    def test_it_offers_nothing_else(self) -> None:
        association = self.come_again(self.known())
        self.assertTrue(association.resumed)
        self.assertEqual((self.hellos(), self.ports()), ([RESUMING], 1))
        self.assertEqual(association.certificate_sha256, self.server_context.fingerprint)

    def test_again_and_again(self) -> None:
        session = self.known()
        for _ in range(3):
            association = self.come_again(session)
            self.assertTrue(association.resumed)
            self.assertEqual(self.hellos(), [RESUMING])
            session = association.session or b""
            association.close()
            self.network.advance(0.1)

    def test_with_a_server_that_wants_cookies_it_offers_everything(self) -> None:
        self.server = self.serve(ServerOptions(cookie="always"))
        association = self.come_again(self.known())
        self.assertTrue(association.resumed)
        first, second = self.hellos()
        self.assertGreater(first, RESUMING)
        self.assertEqual((second - first, self.ports()), (8, 1))

    def test_every_suite(self) -> None:
        paths = {
            "ECDSA": self.paths,
            "RSA": write_certificate(self.mktemp(), rsa.generate_private_key(65537, 2048)),
        }
        for suite in CLIENT_CIPHERS.split(":"):
            certified = paths[suite.split("-")[1]]
            self.server = self.serve(context=make_server_context(*certified))
            context = make_client_context(ClientVerification.none())
            offered = self.client_context.resuming(suite)
            assert offered is not None
            only = make_client_context(ClientVerification.none())
            only.ssl_context.set_cipher_list(suite.encode())
            self.connect_and_close(context=only)  # an RSA certificate is too long an answer at first
            session = self.connect_and_close(context=only).session
            known = KnownSession.parse(session or b"")
            again = KnownSession(known.secret, cookie=False).serialise()
            association = self.come_again(again, context=context)
            self.assertEqual((association.resumed, association.cipher), (True, suite))
            self.assertEqual(self.hellos(), [RESUMING])
            association.close()
            self.network.advance(0.1)


class FallbackTests(HelloTestCase):
    """The server does not take it up."""

    def test_a_forgotten_session_costs_no_more_than_a_cookie(self) -> None:
        session = self.known()
        self.server = self.serve(context=make_server_context(*self.paths))
        association = self.come_again(session)
        self.assertFalse(association.resumed)
        first, padded = self.hellos()
        self.assertEqual((first, padded, self.ports()), (RESUMING, ClientOptions().hello_size, 2))
        self.assertEqual(self.server.counters.hello_verify_requests, 1)
        self.assertFalse(association.cookie_wanted, "nor does it say anything of the next handshake")
        self.assertEqual(self.server.handshakes, 0)

    def test_a_server_that_wants_a_cookie_now_still_resumes(self) -> None:
        session = self.known()
        self.server = self.serve(ServerOptions(cookie="always"))
        association = self.come_again(session)
        self.assertTrue(association.resumed)
        self.assertEqual((len(self.hellos()), self.ports()), (3, 2))
        again = association.session
        association.close()
        self.network.advance(0.1)
        self.come_again(again)
        self.assertEqual(len(self.hellos()), 2, "it is known now")

    def test_another_kind_of_certificate(self) -> None:
        session = self.known()
        paths = write_certificate(self.mktemp(), rsa.generate_private_key(65537, 2048))
        self.server = self.serve(context=make_server_context(*paths))
        context = make_client_context(ClientVerification.ca_file(paths[0]))
        association = self.come_again(session, context=context, server_name="localhost")
        self.assertFalse(association.resumed)
        self.assertIn("RSA", association.cipher)

    def test_an_alert(self) -> None:
        session = self.known()

        def refuse(sender: tuple[str, int], data: bytes) -> bool:
            if len(data) != RESUMING:
                return True
            self.network.carry(SERVER, sender, HANDSHAKE_FAILURE)
            return False

        self.on_the_way(refuse)
        association = self.come_again(session)
        self.assertTrue(association.resumed, "by the hello that offers everything")
        self.assertEqual((len(self.hellos()), self.ports()), (2, 2))

    def test_silence(self) -> None:
        session = self.known()
        self.on_the_way(lambda sender, data: len(data) != RESUMING)
        self.network.sent.clear()
        deferred = self.start(session=session)
        self.network.advance(27.9)  # a server answers the second repetition at the latest
        self.assertEqual((self.hellos(), deferred.called), ([RESUMING] * 3, False))
        self.network.advance(0.2)
        association = self.successResultOf(deferred)
        self.addCleanup(association.abort)
        self.assert_echo(association)
        self.assertEqual((len(self.hellos()), self.ports()), (4, 2))

    def test_late_answers_to_the_former_hello_do_no_harm(self) -> None:
        session = self.known()
        late: list[tuple[Any, Any, bytes]] = []
        carry = self.network.carry

        def delayed(sender: Any, to: Any, data: bytes) -> None:
            if sender == SERVER and not late:
                late.append((sender, to, data))
                carry(sender, to, HANDSHAKE_FAILURE)  # forged, and faster
            else:
                carry(sender, to, data)
                if to == SERVER and len(self.hellos()) == 2:
                    carry(*late[0])

        self.network.carry = delayed  # type: ignore[method-assign]  # somebody in the path
        self.assertTrue(self.come_again(session).resumed)

    def test_a_server_that_refuses_everything_is_asked_twice(self) -> None:
        session = self.known()

        def refuse(sender: tuple[str, int], data: bytes) -> bool:
            self.network.carry(SERVER, sender, HANDSHAKE_FAILURE)
            return False

        self.on_the_way(refuse)
        self.network.sent.clear()
        deferred = self.start(session=session)
        self.network.advance(0.1)
        self.assertIn("handshake failure", str(self.failureResultOf(deferred).value))
        self.assertEqual(len(self.hellos()), 2)
        self.server.shutdown()
        self.assertEqual(self.network.getDelayedCalls(), [])

    def test_nobody_there(self) -> None:
        session = self.known()
        self.network.close(SERVER)
        deferred = self.start(session=session, options=ClientOptions(handshake_timeout=40.0))
        self.network.advance(41.0)
        self.failureResultOf(deferred, HandshakeTimeout)
        self.server.shutdown()
        self.assertEqual(self.network.getDelayedCalls(), [])

    def test_without_a_further_socket(self) -> None:
        session = self.known()
        self.server = self.serve(context=make_server_context(*self.paths))
        deferred = self.start(session=session)

        def refuse(*_: object, **__: object) -> None:
            raise OSError("too many open files")

        self.network.listenUDP = refuse  # type: ignore[assignment]  # the system has no more of them
        self.network.advance(0.1)
        self.failureResultOf(deferred, NetworkUnreachable)


class NothingElseTests(HelloTestCase):
    """No full handshake can come of such a hello, whatever the server does."""

    def test_it_fails_at_the_client(self) -> None:
        context = self.client_context.resuming("ECDHE-ECDSA-CHACHA20-POLY1305")
        assert context is not None
        client = Association(self.connection(context), mtu=1200)
        server_side = SSL.Connection(self.server_context.ssl_context, None)
        server_side.set_accept_state()
        server_side.set_ciphertext_mtu(1200)
        server = Association(server_side, mtu=1200, client=False)
        client.start()
        lost = None
        for sender, receiver in ((client, server), (server, client)):
            for datagram in sender.take_datagrams(0.0):
                progress = feed(receiver, datagram, 0.0)
                lost = lost or progress.lost
        self.assertIsNotNone(lost)
        self.assertFalse(client.established)

    def connection(self, context: SSL.Context) -> SSL.Connection:
        connection = SSL.Connection(context, None)
        connection.set_connect_state()
        connection.set_ciphertext_mtu(1200)
        return connection

    def test_suites_that_are_not_offered(self) -> None:
        for suite in ("", "ECDHE-ECDSA-AES256-GCM-SHA384", "PSK-AES128-CCM8", "ECDHE-RSA"):
            self.assertIsNone(self.client_context.resuming(suite))

    def test_one_context_for_each_suite(self) -> None:
        suite = CLIENT_CIPHERS.split(":")[0]
        self.assertIs(self.client_context.resuming(suite), self.client_context.resuming(suite))


class KnownSessionTests(HelloTestCase):
    """The bytes that a client keeps."""

    def test_there_and_back(self) -> None:
        for cookie in (False, True):
            for packs in (False, True):
                known = KnownSession(b"secret", cookie, packs)
                self.assertEqual(KnownSession.parse(known.serialise()), known)
                self.assertNotIn("secret", repr(known))

    def test_what_openssl_alone_would_write_is_no_session(self) -> None:
        association = self.connect()
        secret = KnownSession.parse(association.session or b"").secret
        association.close()
        self.network.advance(0.1)
        connection = SSL.Connection(self.client_context.ssl_context, None)
        self.assertTrue(binding.import_session(connection, secret))
        for junk in (b"", b"\0", b"\3", secret, b"\1" + secret[:-1], b"\1" + secret[:20]):
            self.assertFalse(self.come_again(junk).resumed)
            self.assertEqual(len(self.hellos()), 1)
            self.network.advance(0.1)

    def ask(self, association: ClientAssociation) -> ClientAssociation:
        association.send(b"x")
        return association

    def test_whether_the_server_packs(self) -> None:
        def answer_twice(one: int, _: bytes) -> None:
            for text in (b"a", b"b"):
                self.server.send(one, text)

        self.handler.reaction = answer_twice
        deferred = self.start()
        deferred.addCallback(self.ask)
        self.network.advance(0.2)
        association = self.successResultOf(deferred)
        self.assertEqual(self.client_handler.texts, [b"a", b"b"])
        self.assertTrue(KnownSession.parse(association.session or b"").packs)
        association.close()
