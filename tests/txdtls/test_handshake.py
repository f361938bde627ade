# SPDX-License-Identifier: AGPL-3.0-or-later
"""Handshakes: the cookie, certificates, resumption, sizes, bad hellos (RFC 6347 4.2)."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from OpenSSL import SSL

from synapse_lb.txdtls import records
from synapse_lb.txdtls.context import ClientVerification, make_client_context, make_server_context
from synapse_lb.txdtls.errors import HandshakeFailed, Replaced
from synapse_lb.txdtls.options import ClientOptions, ServerOptions
from tests.txdtls.support import SERVER, NetworkTestCase, write_certificate
from tests.txdtls.test_records import client_hello


class CookieExchangeTests(NetworkTestCase):
    """Nothing is kept, and next to nothing sent, for an address that is not proven."""

    def first_hello(self) -> bytes:
        client = self.raw_client()
        [hello] = client.new_association().take_datagrams(0.0)
        return hello

    def test_hellos_from_thousands_of_addresses_leave_no_state(self) -> None:
        hello = self.first_hello()
        for number in range(3000):
            self.server.datagramReceived(hello, (f"192.0.2.{number % 250}", 1024 + number))
        self.assertEqual(self.server.counters.hello_verify_requests, 3000)
        self.assertEqual((self.server.handshakes, self.server.associations), (0, 0))
        self.network.advance(0.01)
        self.assertEqual(self.network.getDelayedCalls(), [])

    def test_the_answer_is_smaller_than_the_hello(self) -> None:
        hello = self.first_hello()
        self.server.datagramReceived(hello, ("192.0.2.1", 4000))
        [answer] = self.from_server()
        self.assertEqual((answer[0], answer[13]), (records.HANDSHAKE, 3))
        self.assertLess(len(answer), len(hello))

    def test_a_cookie_is_of_no_use_from_another_address(self) -> None:
        client = self.raw_client()
        association = client.new_association()
        client.write(association)
        client.read(association)
        [hello] = association.take_datagrams(0.0)
        self.server.datagramReceived(hello, ("192.0.2.66", 666))
        self.assertEqual(self.server.handshakes, 0)
        self.server.datagramReceived(hello, client.address)
        self.assertEqual(self.server.handshakes, 1)

    def test_a_cookie_outlives_one_change_of_the_secret_and_not_two(self) -> None:
        for wait, accepted in ((250.0, 1), (700.0, 0)):
            client = self.raw_client()
            association = client.new_association()
            client.write(association)
            client.read(association)
            [hello] = association.take_datagrams(0.0)
            self.network.clock.advance(wait)
            before = self.server.counters.handshakes_started
            self.server.datagramReceived(hello, client.address)
            self.assertEqual(self.server.counters.handshakes_started - before, accepted)

    def test_a_stale_cookie_is_answered_with_a_new_one_and_no_state(self) -> None:
        client = self.raw_client()
        association = client.new_association()
        client.write(association)
        client.read(association)
        self.network.clock.advance(700.0)
        client.write(association)
        self.assertEqual(self.server.counters.hello_verify_requests, 2)
        self.assertEqual(self.server.handshakes, 0)
        self.assertEqual([data[13] for data in client.inbox], [3])
        again = client.new_association()
        client.inbox.clear()
        client.shake_hands(again)
        self.assertTrue(again.established)

    def test_fragmented_and_mangled_hellos_are_dropped(self) -> None:
        hello = self.first_hello()
        for bad in (
            client_hello(cut=10),
            client_hello(offset=10),
            hello[:13] + hello[13:40],
            client_hello()[:-1],
        ):
            self.server.datagramReceived(bad, ("192.0.2.1", 4000))
        self.assertEqual(self.from_server(), [])
        counters = self.server.counters
        self.assertEqual(counters.hellos_malformed + counters.datagrams_malformed, 4)
        self.assertTrue(self.connect().connected)

    def test_a_hello_that_openssl_refuses_does_not_spoil_the_next(self) -> None:
        # a good cookie on a hello without any cipher that the server has
        hello = client_hello()
        address = ("192.0.2.1", 4000)
        self.server.datagramReceived(hello, address)
        [request] = self.from_server()
        self.server.datagramReceived(
            client_hello(cookie=request[-8:], message_sequence=1, sequence=1), address
        )
        self.assertEqual(self.server.counters.handshakes_failed, 1)
        self.assertEqual(self.from_server()[1][0], records.ALERT)
        self.assertEqual(self.server.handshakes, 0)
        self.assertTrue(self.connect().connected)

    def test_junk_behind_the_hello_is_not_looked_at(self) -> None:
        hello = self.first_hello()
        self.server = self.serve(ServerOptions(cookie="always"))
        self.server.datagramReceived(hello + b"\x17\xfe\xfd" + bytes(300), ("192.0.2.1", 4000))
        self.assertEqual(self.server.counters.hello_verify_requests, 1)


class SequenceTests(NetworkTestCase):
    """A client that sent its hello several times has seen several HelloVerifyRequests (RFC 6347 4.2.1)."""

    def test_the_server_hello_is_numbered_like_the_hello_that_brought_the_cookie(self) -> None:
        for sequence in (0, 1, 2, 9, 70000):
            client = self.raw_client()
            association = client.new_association()
            client.write(association)
            client.read(association)
            [hello] = association.take_datagrams(0.0)
            numbered = hello[:5] + sequence.to_bytes(6, "big") + hello[11:]
            before = len(self.from_server())
            self.server.datagramReceived(numbered, client.address)
            flight = b"".join(self.from_server()[before:])
            numbers = [int.from_bytes(one[5:11], "big") for one in records.split_records(flight)]
            start = max(1, sequence)
            self.assertEqual(numbers, list(range(start, start + len(numbers))))

    def test_a_client_that_has_seen_higher_numbers_completes(self) -> None:
        client = self.raw_client()
        association = client.new_association()
        [hello] = association.take_datagrams(0.0)
        for sequence in range(
            1, 5
        ):  # copies that the client's timer would have sent; it sees all the answers
            copy = hello[:5] + sequence.to_bytes(6, "big") + hello[11:]
            self.network.carry(client.address, SERVER, copy)
        self.network.advance(0.01)
        client.read(association)
        datagrams = association.take_datagrams(0.0)
        for number, datagram in enumerate(datagrams):
            renumbered = datagram[:5] + (5 + number).to_bytes(6, "big") + datagram[11:]
            self.network.carry(client.address, SERVER, renumbered)
        self.network.advance(0.01)
        client.read(association)
        client.shake_hands(association)
        self.assertTrue(association.established)


class RepeatedHelloTests(NetworkTestCase):
    """Copies of the hello that began the handshake at hand."""

    def test_they_do_not_begin_another(self) -> None:
        client = self.raw_client()
        association = client.new_association()
        client.write(association)
        client.read(association)
        [hello] = client.write(association)
        for _ in range(3):
            self.server.datagramReceived(hello, client.address)
        counters = self.server.counters
        self.assertEqual((counters.handshakes_started, counters.handshakes_superseded), (1, 0))
        client.shake_hands(association)
        self.assertTrue(association.established)


class CertificateKindTests(NetworkTestCase):
    """ECDSA and RSA, and only the ciphers that are meant."""

    def test_ecdsa_gets_chacha20_and_a_record_costs_29_bytes(self) -> None:
        association = self.connect()
        self.assertEqual(association.cipher, "ECDHE-ECDSA-CHACHA20-POLY1305")
        self.assertEqual(association.max_message_size, 1200 - 29)

    def test_rsa_and_p384(self) -> None:
        verify = make_client_context(ClientVerification.none())
        for key, kind in (
            (rsa.generate_private_key(65537, 2048), "RSA"),
            (ec.generate_private_key(ec.SECP384R1()), "ECDSA"),
        ):
            self.server = self.serve(context=make_server_context(*write_certificate(self.mktemp(), key)))
            association = self.connect(context=verify)
            self.assertEqual(association.cipher, f"ECDHE-{kind}-CHACHA20-POLY1305")
            self.assert_echo(association)

    def only(self, ciphers: bytes, *, version: int = 0xFEFD, groups: bytes | None = None) -> str:
        """What comes of a client with these settings: a cipher, or the alert."""
        context = SSL.Context(SSL.DTLS_CLIENT_METHOD)
        context.set_min_proto_version(version)
        context.set_max_proto_version(version)
        context.set_options(SSL.OP_NO_QUERY_MTU)
        context.set_cipher_list(ciphers)
        template = make_client_context(ClientVerification.none())
        client = type(template)(context, template.verification)
        deferred = self.start(context=client)
        self.network.advance(0.1)
        results: list[str] = []
        deferred.addCallbacks(
            lambda association: results.append(association.cipher),
            lambda failure: results.append(failure.trap(HandshakeFailed) and failure.value.alert),
        )
        return results[0]

    def test_gcm_clients_over_p256_are_served(self) -> None:
        for cipher in ("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384"):
            self.assertEqual(self.only(cipher.encode()), cipher)

    def test_ciphers_without_aead_or_forward_secrecy_are_refused(self) -> None:
        for cipher in (b"ECDHE-ECDSA-AES128-SHA256", b"AES128-GCM-SHA256", b"DHE-RSA-AES128-GCM-SHA256"):
            self.assertEqual(self.only(cipher), "handshake failure")
        self.assertEqual(self.server.associations, 0)

    def test_dtls_1_0_is_refused(self) -> None:
        self.assertEqual(self.only(b"ALL:@SECLEVEL=0", version=0xFEFF), "protocol version")


class ResumptionTests(NetworkTestCase):
    """Session-ID resumption: a short handshake, the first request with its end."""

    def test_a_session_is_resumed_after_any_kind_of_end(self) -> None:
        for end in ("close", "abort", "server close", "idle"):
            first = self.connect()
            self.assertFalse(first.resumed)
            if end == "close":
                first.close()
            elif end == "abort":
                first.abort()
            elif end == "server close":
                self.server.close(self.handler.up[-1])
            else:
                self.network.clock.advance(90000.0)
            self.network.advance(0.1)
            self.assertFalse(first.connected)
            second = self.connect(session=first.session)
            self.assertTrue(second.resumed, end)
            self.assertEqual(second.certificate_sha256, self.server_context.fingerprint)
            self.assert_echo(second)
            second.close()
            self.network.advance(0.1)

    def test_a_session_outlives_being_replaced(self) -> None:
        first = self.connect()
        first.abort()  # the server does not know
        other = self.connect()
        self.assertIsInstance(self.handler.lost[0][1], Replaced)
        other.close()
        self.network.advance(0.1)
        self.assertTrue(self.connect(session=first.session).resumed)

    def test_the_client_keeps_its_session_after_the_end(self) -> None:
        first = self.connect()
        first.close()
        self.network.advance(0.1)
        self.assertTrue(self.connect(session=first.session).resumed)

    def test_a_session_goes_to_another_context_of_the_client(self) -> None:
        first = self.connect()
        first.close()
        self.network.advance(0.1)
        again = make_client_context(ClientVerification.ca_file(self.paths[0]))
        self.assertTrue(self.connect(session=first.session, context=again).resumed)

    def test_the_first_request_travels_with_the_finished_message(self) -> None:
        first = self.connect()
        first.close()
        self.network.advance(0.1)
        before = len(self.network.sent)
        self.assertEqual(self.server.counters.hello_verify_requests, 0)
        deferred = self.start(session=first.session)
        deferred.addCallback(lambda association: association.send(b"x" * 60))
        self.network.advance(0.1)
        self.successResultOf(deferred)
        self.assertEqual(self.handler.texts, [b"x" * 60])
        self.assertEqual(len(self.network.sent) - before, 3)  # hello, server flight, client flight
        types = [one[0] for one in records.split_records(self.to_server()[-1])]
        self.assertEqual(types, [records.CHANGE_CIPHER_SPEC, records.HANDSHAKE, records.APPLICATION_DATA])

    def test_junk_as_session_leads_to_a_full_handshake(self) -> None:
        association = self.connect(session=b"\x30\x03junk")
        self.assertFalse(association.resumed)
        self.assert_echo(association)

    def test_a_session_that_the_server_does_not_know_leads_to_a_full_handshake(self) -> None:
        first = self.connect()
        first.close()
        self.network.advance(0.1)
        self.server.replace_context(make_server_context(*self.paths))
        self.assertFalse(self.connect(session=first.session).resumed)

    def test_a_session_made_without_verification_is_no_way_around_it(self) -> None:
        blind = self.connect(context=make_client_context(ClientVerification.none()))
        blind.close()
        self.network.advance(0.1)
        strict = make_client_context(ClientVerification.system())
        deferred = self.start(session=blind.session, context=strict)
        self.network.advance(0.1)
        error = self.failureResultOf(deferred, HandshakeFailed).value
        self.assertIn("self-signed", error.verification)
        self.assertEqual(self.client_handler.up, self.client_handler.up[:1])


class SizeTests(NetworkTestCase):
    """No datagram is longer than the MTU, in either direction."""

    def test_a_handshake_with_a_long_chain_is_fragmented(self) -> None:
        key = rsa.generate_private_key(65537, 2048)
        paths = write_certificate(self.mktemp(), key)
        with open(paths[0], "rb") as file:
            pem = file.read()
        with open(paths[0], "ab") as file:
            file.write(pem * 7)
        for mtu in (256, 600, 1200):
            self.network.sent.clear()
            self.server = self.serve(ServerOptions(mtu=mtu), context=make_server_context(*paths))
            association = self.connect(
                context=make_client_context(ClientVerification.none()), options=ClientOptions(mtu=mtu)
            )
            self.assertLessEqual(max(len(data) for _, _, data in self.network.sent), mtu)
            self.assertGreater(sum(len(data) for data in self.from_server()), 6000)
            self.assertGreater(max(len(data) for data in self.from_server()), mtu * 0.8)
            self.assertEqual(association.max_message_size, mtu - 29)
            self.assert_echo(association, b"x" * (mtu - 29 - 3))
            self.assertLessEqual(max(len(data) for _, _, data in self.network.sent), mtu)

    def test_a_small_handshake_takes_four_datagrams_or_six_with_a_cookie(self) -> None:
        self.connect()
        self.assertEqual(len(self.network.sent), 4)
        self.network.sent.clear()
        self.server = self.serve(ServerOptions(cookie="always"))
        self.connect()
        self.assertEqual(len(self.network.sent), 6)


class ContextTests(NetworkTestCase):
    """A new certificate without a restart."""

    def test_new_handshakes_get_the_new_certificate_and_associations_stay(self) -> None:
        anybody = make_client_context(ClientVerification.none())
        old = self.connect(context=anybody)
        new_context = make_server_context(
            *write_certificate(self.mktemp(), ec.generate_private_key(ec.SECP256R1()))
        )
        self.server.replace_context(new_context)
        new = self.connect(context=anybody)
        self.assertEqual(old.certificate_sha256, self.server_context.fingerprint)
        self.assertEqual(new.certificate_sha256, new_context.fingerprint)
        self.assert_echo(old)
        self.assert_echo(new)

    def test_a_cookie_made_before_is_still_good(self) -> None:
        client = self.raw_client()
        association = client.new_association()
        client.write(association)
        client.read(association)
        self.server.replace_context(make_server_context(*self.paths))
        client.shake_hands(association)
        self.assertTrue(association.established)
        self.assertEqual(self.server.counters.hello_verify_requests, 1)
