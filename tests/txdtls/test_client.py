# SPDX-License-Identifier: AGPL-3.0-or-later
"""The client: verification, typed failures, names, cancelling, key log."""

from __future__ import annotations

import datetime
import re
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError

from synapse_lb.txdtls import errors
from synapse_lb.txdtls.certificates import generate_self_signed, sha256_fingerprint
from synapse_lb.txdtls.client import connect
from synapse_lb.txdtls.context import ClientVerification, make_client_context, make_server_context
from synapse_lb.txdtls.options import ClientOptions, ServerOptions
from tests.txdtls.support import SERVER, NetworkTestCase, Recorder, write_pair


class VerificationTests(NetworkTestCase):
    """Who is accepted as the server."""

    def refused(self, verify: ClientVerification, server_name: str | None = None) -> errors.HandshakeFailed:
        up = len(self.client_handler.up)
        deferred = self.start(context=make_client_context(verify), server_name=server_name)
        self.network.advance(0.1)
        error = self.failureResultOf(deferred, errors.HandshakeFailed).value
        assert isinstance(error, errors.HandshakeFailed)
        self.assertEqual(len(self.client_handler.up), up)
        self.network.advance(0.1)
        self.assertEqual(self.server.associations, up)
        return error

    def accepted(self, verify: ClientVerification, server_name: str | None = None) -> None:
        association = self.connect(context=make_client_context(verify), server_name=server_name)
        self.assertEqual(association.certificate_sha256, self.server_context.fingerprint)
        self.assert_echo(association)

    def test_ca_file(self) -> None:
        for name in (None, "localhost", "127.0.0.1", "::1"):
            self.accepted(ClientVerification.ca_file(self.paths[0]), name)

    def test_a_name_that_the_certificate_does_not_have(self) -> None:
        for name in ("example.org", "127.0.0.2"):
            error = self.refused(ClientVerification.ca_file(self.paths[0]), name)
            self.assertEqual(error.verification, f"it does not name {name}")

    def test_another_authority(self) -> None:
        other, _ = write_pair(self.mktemp(), *generate_self_signed(["localhost"]))
        error = self.refused(ClientVerification.ca_file(other))
        self.assertIn("self-signed", str(error.verification))
        self.assertIn("not accepted", str(error))

    def test_the_system_does_not_know_it(self) -> None:
        self.assertIn("self-signed", str(self.refused(ClientVerification.system()).verification))

    def test_the_server_hears_why(self) -> None:
        self.refused(ClientVerification.system())
        self.assertEqual(self.server.counters.handshakes_failed, 1)

    def test_pinned(self) -> None:
        self.accepted(ClientVerification.pinned(self.server_context.fingerprint), "any.name")
        other = sha256_fingerprint(generate_self_signed(["localhost"])[0])
        error = self.refused(ClientVerification.pinned(other))
        self.assertIn(self.server_context.fingerprint, str(error.verification))

    def test_a_resumed_session_is_pinned_too(self) -> None:
        first = self.connect()
        first.close()
        self.network.advance(0.1)
        self.client_handler.up.clear()
        other = sha256_fingerprint(generate_self_signed(["localhost"])[0])
        strict = make_client_context(ClientVerification.pinned(other))
        deferred = self.start(context=strict, session=first.session)
        self.network.advance(0.1)
        self.failureResultOf(deferred, errors.HandshakeFailed)
        self.assertEqual(self.client_handler.up, [])

    def test_none(self) -> None:
        self.accepted(ClientVerification.none(), "any.name")

    def test_an_expired_certificate(self) -> None:
        pair = generate_self_signed(
            ["localhost"], now=datetime.datetime(2000, 1, 1, tzinfo=datetime.timezone.utc)
        )
        paths = write_pair(self.mktemp(), *pair)
        context = make_server_context(*paths)
        self.assertIn("expired", context.warnings[0])
        self.server = self.serve(context=context)
        error = self.refused(ClientVerification.ca_file(paths[0]), "localhost")
        self.assertIn("expired", str(error.verification))


class FailureTests(NetworkTestCase):
    """What `connect` fails with."""

    def test_nobody_answers(self) -> None:
        deferred = self.start(host="192.0.2.9", options=ClientOptions(handshake_timeout=7.0))
        self.network.clock.advance(6.9)
        self.assertNoResult(deferred)
        self.network.clock.advance(0.2)
        error = self.failureResultOf(deferred, errors.HandshakeTimeout).value
        self.assertIn("192.0.2.9:5684", str(error))
        self.assertEqual(self.network.getDelayedCalls(), [])

    def test_a_server_of_another_kind(self) -> None:
        deferred = self.start(options=ClientOptions(handshake_timeout=3.0))
        protocol = next(iter(self.network._ports.values()))
        self.assertIsNotNone(protocol)
        for junk in (b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(20000), b"\x16\xfe\xfd" + bytes(40)):
            self.network.carry(SERVER, ("127.0.0.1", 49152), junk)
        self.network.advance(0.1)
        self.assertTrue(self.successResultOf(deferred).connected, "junk in between does no harm")

    def test_the_server_has_no_cipher_for_it(self) -> None:
        context = make_client_context(ClientVerification.none())
        context.ssl_context.set_cipher_list(b"ECDHE-ECDSA-AES128-CCM")
        deferred = self.start(context=context)
        self.network.advance(0.1)
        error = self.failureResultOf(deferred, errors.HandshakeFailed).value
        self.assertEqual((error.alert, error.verification), ("handshake failure", None))

    def test_icmp_ends_a_handshake_but_not_an_association(self) -> None:
        deferred = self.start(host="192.0.2.9")
        port: Any = self.network._ports["127.0.0.1", 49152]
        port._protocol.connectionRefused()
        error = self.failureResultOf(deferred, errors.NetworkUnreachable).value
        self.assertIn("nobody listens on 192.0.2.9:5684", str(error))
        association = self.connect()
        association._protocol.connectionRefused()
        self.assertEqual(association.counters.connections_refused, 1)
        self.assert_echo(association)

    def test_no_route(self) -> None:
        def refuse(*arguments: object) -> None:
            raise OSError(101, "Network is unreachable")

        listen = self.network.listenUDP

        def listen_without_route(*arguments: Any, **named: Any) -> Any:
            port = listen(*arguments, **named)
            self.patch(port, "write", refuse)
            return port

        self.patch(self.network, "listenUDP", listen_without_route)
        error = self.failureResultOf(self.start(), errors.NetworkUnreachable).value
        self.assertIn("Network is unreachable", str(error))
        self.assertEqual(self.network.getDelayedCalls(), [])

    def test_cancelling(self) -> None:
        deferred = self.start(host="192.0.2.9")
        deferred.cancel()
        self.failureResultOf(deferred, CancelledError)
        self.network.advance(0.01)  # the hello is still under way
        self.assertEqual(self.network.getDelayedCalls(), [])
        self.assertEqual(list(self.network._ports), [SERVER])

    def test_a_handler_that_raises_at_once(self) -> None:
        class Raising(Recorder):
            def association_established(self, association_id: int) -> None:
                raise RuntimeError("unwilling")

        association = self.connect(handler=Raising())
        self.assertTrue(association.connected)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_a_handler_that_cancels_at_once(self) -> None:
        class Cancelling(Recorder):
            def association_established(self, association_id: int) -> None:
                super().association_established(association_id)
                deferred.cancel()

        handler = Cancelling()
        deferred = self.start(handler=handler)
        self.network.advance(0.1)
        self.failureResultOf(deferred, CancelledError)
        self.assertEqual([type(reason) for _, reason in handler.lost], [errors.LocallyClosed])
        self.assertEqual((self.server.associations, self.network.getDelayedCalls()), (0, []))

    def test_closing_in_the_callback_of_the_deferred(self) -> None:
        deferred = self.start()
        deferred.addCallback(lambda association: association.close())
        self.network.advance(0.1)
        self.successResultOf(deferred)
        self.assertIsInstance(self.client_handler.lost[0][1], errors.LocallyClosed)
        self.assertEqual((self.server.associations, self.network.getDelayedCalls()), (0, []))

    def test_the_server_drops_it_before_it_is_complete(self) -> None:
        self.server = self.serve(ServerOptions(handshake_timeout=0.001))
        self.network.latency = 0.01
        deferred = self.start(options=ClientOptions(handshake_timeout=2.0))
        self.network.clock.advance(3.0)
        self.failureResultOf(deferred, errors.HandshakeTimeout)


class FakeResolver:
    """A `nameResolver` that knows some names."""

    def __init__(self, names: dict[str, list[IPv4Address | IPv6Address]]) -> None:
        self.names = names
        self.receivers: list[Any] = []

    def resolveHostName(self, receiver: Any, host: str, *arguments: object, **named: object) -> Any:
        self.receivers.append(receiver)
        receiver.resolutionBegan(self)
        if host in self.names:
            for address in self.names[host]:
                receiver.addressResolved(address)
            receiver.resolutionComplete()
        return self

    def cancel(self) -> None:
        self.receivers[-1].resolutionComplete()


class NameTests(NetworkTestCase):
    """Hosts by name, addresses one after another."""

    def setUp(self) -> None:
        super().setUp()
        network: Any = self.network
        network.nameResolver = FakeResolver(
            {
                "localhost": [IPv4Address("UDP", "127.0.0.1", 0)],
                "both.example": [
                    IPv6Address("UDP", "2001:db8::1", 0),
                    IPv4Address("UDP", "127.0.0.1", 0),
                    IPv4Address("UDP", "127.0.0.1", 0),
                ],
                "empty.example": [],
            }
        )

    def test_a_name_is_checked_against_the_certificate(self) -> None:
        deferred = self.start(host="localhost")
        self.network.advance(0.1)
        self.assertEqual(self.successResultOf(deferred).peer_address, IPv4Address("UDP", *SERVER))

    def test_the_next_address_is_tried_when_one_does_not_answer(self) -> None:
        deferred = self.start(
            host="both.example", server_name="localhost", options=ClientOptions(handshake_timeout=10.0)
        )
        self.network.advance(4.9)
        self.assertNoResult(deferred)
        self.network.advance(0.3)
        association = self.successResultOf(deferred)
        self.assertEqual(association.peer_address.host, "127.0.0.1")
        tried = {to for _, to, _ in self.network.sent if to[1] == SERVER[1]}
        self.assertEqual(tried, {("2001:db8::1", 5684), SERVER})

    def test_all_addresses_share_the_time(self) -> None:
        self.server.shutdown()
        deferred = self.start(host="both.example", options=ClientOptions(handshake_timeout=10.0))
        self.network.advance(10.1)
        self.failureResultOf(deferred, errors.HandshakeTimeout)

    def test_a_name_without_address(self) -> None:
        error = self.failureResultOf(self.start(host="empty.example"), errors.NameNotResolved).value
        self.assertIn("empty.example", str(error))

    def test_cancelling_while_the_name_is_looked_up(self) -> None:
        deferred = self.start(host="slow.example")
        self.assertNoResult(deferred)
        deferred.cancel()
        self.failureResultOf(deferred, CancelledError)

    def test_the_name_is_sent_as_sni_and_an_address_is_not(self) -> None:
        seen: list[bytes | None] = []
        context = make_server_context(*self.paths)
        context.ssl_context.set_tlsext_servername_callback(
            lambda connection: seen.append(connection.get_servername())
        )
        self.server = self.serve(context=context)
        deferred = self.start(host="localhost")
        self.network.advance(0.1)
        self.successResultOf(deferred)
        self.assertEqual(seen[-1], b"localhost")
        self.connect()
        self.assertNotIn(b"127.0.0.1", seen)

    def test_what_is_no_name(self) -> None:
        for bad in ("", "a..b", "x" * 64 + ".example", "with space", "[::1", "bücher..example"):
            self.failureResultOf(self.start(host=bad), errors.NameNotResolved)
        self.failureResultOf(self.start(server_name="a..b"), errors.NameNotResolved)
        self.assertEqual(self.network.sent, [])

    def test_a_literal_in_brackets(self) -> None:
        self.server = self.serve(address=("::1", SERVER[1]))
        deferred = connect(
            self.network, "[::1]", SERVER[1], context=self.client_context, handler=self.client_handler
        )
        self.network.advance(0.1)
        association = self.successResultOf(deferred)
        self.assertEqual(association.peer_address, IPv6Address("UDP", "::1", SERVER[1]))
        self.assert_echo(association)
        self.assertIsInstance(self.server.peer_address(self.handler.up[-1]), IPv6Address)


class KeyLogTests(NetworkTestCase):
    """Lines for an SSLKEYLOGFILE."""

    def test_a_line_for_each_handshake(self) -> None:
        lines: list[bytes] = []
        context = make_client_context(ClientVerification.none(), keylog=lines.append)
        self.connect(context=context)
        self.connect(context=context)
        self.assertEqual(len(lines), 2)
        for line in lines:
            self.assertTrue(re.fullmatch(rb"CLIENT_RANDOM [0-9a-f]{64} [0-9a-f]{96}", line))
        self.assertEqual(bytes.fromhex(lines[0].split()[1].decode()), self.to_server()[0][27:59])

    def test_a_callback_that_raises_is_logged_and_harms_nothing(self) -> None:
        def fail(line: bytes) -> None:
            raise RuntimeError("disk full")

        self.assert_echo(self.connect(context=make_client_context(ClientVerification.none(), keylog=fail)))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
