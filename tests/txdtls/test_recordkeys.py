# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether a record is of an association: the keys of RFC 5246 section 6.3, for every cipher suite that is offered."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL

from synapse_lb.txdtls import binding, records
from synapse_lb.txdtls.association import Association
from synapse_lb.txdtls.context import CIPHERS, ClientVerification, make_client_context
from synapse_lb.txdtls.recordkeys import RecordKeys
from synapse_lb.txdtls.table import Entry
from tests.txdtls.support import SERVER, NetworkTestCase, RawClient
from tests.txdtls.test_records import record


def entry_of(server: Any, known: int) -> Entry:
    """The entry of an association."""
    entry = server._table.get(known)
    assert isinstance(entry, Entry)
    return entry


class SuitesTests(NetworkTestCase):
    """Full and resumed handshakes with every suite."""

    def assert_keys(self, client: RawClient, association: Association, known: int) -> None:
        entry = entry_of(self.server, known)
        for text in (b"x", b"y" * 1000):
            association.send(text)
            [genuine] = association.take_datagrams(0.0)
            self.assertTrue(entry.association.opens(genuine))
            self.assertTrue(entry.association.opens(genuine), "as often as one likes")
            for place in range(len(genuine)):
                if place in (11, 12):
                    continue  # the length: such a record is not whole
                forged = genuine[:place] + bytes([genuine[place] ^ 1]) + genuine[place + 1 :]
                self.assertFalse(entry.association.opens(forged), place)
            self.server.datagramReceived(genuine, client.address)
            self.assertEqual(self.handler.texts[-1], text)
            self.assertTrue(entry.association.opens(genuine), "one that was seen is authentic too")

    def test_every_suite_that_can_be_offered(self) -> None:
        for cipher in CIPHERS.split(":"):
            if "-RSA-" in cipher:
                continue  # the certificate here is ECDSA; see the next test
            context = make_client_context(ClientVerification.none())
            context.ssl_context.set_cipher_list(cipher.encode())
            client = RawClient(self.network, context)
            first = client.new_association()
            client.shake_hands(first)
            self.assertEqual(first.connection.get_cipher_name(), cipher)
            self.assert_keys(client, first, self.handler.up[-1])
            session = binding.export_session(first.connection)
            assert session is not None
            connection = SSL.Connection(context.ssl_context, None)
            connection.set_connect_state()
            connection.set_ciphertext_mtu(1200)
            self.assertTrue(binding.import_session(connection, session))
            second = Association(connection, mtu=1200)
            second.start()
            client.shake_hands(second)
            self.assertTrue(second.resumed)
            self.assert_keys(client, second, self.handler.up[-1])

    def test_suites_of_both_kinds_of_certificate_protect_records_alike(self) -> None:
        kinds = [cipher.split("-", 2)[1:] for cipher in CIPHERS.split(":")]
        self.assertEqual({kind for kind, _ in kinds}, {"ECDSA", "RSA"})
        self.assertEqual(
            {suite for kind, suite in kinds if kind == "RSA"},
            {suite for kind, suite in kinds if kind == "ECDSA"},
        )

    def test_an_unknown_suite_has_no_keys(self) -> None:
        class Other:
            def get_cipher_name(self) -> str:
                return "ECDHE-ECDSA-AES128-CCM8"

            def master_key(self) -> bytes:
                return bytes(48)

            server_random = client_random = master_key

        other: Any = Other()
        self.assertIsNone(RecordKeys.of_client(other))


class UnharmedTests(NetworkTestCase):
    """An attempt leaves nothing behind, in the association and in OpenSSL."""

    def test_attempts_in_vain(self) -> None:
        client = self.raw_client()
        association = client.new_association()
        client.shake_hands(association)
        entry = entry_of(self.server, 1)
        stranger = self.raw_client()
        other = stranger.new_association()
        stranger.shake_hands(other)
        library: Any = binding._lib
        binding.clear_errors()
        for number in range(200):
            other.send(b"of somebody else")
            [datagram] = other.take_datagrams(0.0)
            self.assertFalse(entry.association.opens(datagram))
            self.assertFalse(entry.association.opens(record(23, bytes(number), epoch=1, sequence=number)))
        self.assertEqual(library.ERR_peek_error(), 0)
        self.assertEqual(entry.association.newest, 0)
        self.assertRaises(SSL.WantReadError, entry.association.connection.bio_read, 100)
        # records 1 to 70: the replay window (64) is where it was, so that the oldest of them still count
        association.send(b"first")
        [first] = association.take_datagrams(0.0)
        for _ in range(62):
            association.send(b"lost")
            association.take_datagrams(0.0)
        association.send(b"last")
        client.write(association)
        self.server.datagramReceived(first, client.address)
        self.assertEqual(self.handler.texts, [b"last", b"first"])

    def test_a_success_leaves_nothing_either(self) -> None:
        client = self.raw_client()
        association = client.new_association()
        client.shake_hands(association)
        association.send(b"hello")
        [datagram] = association.take_datagrams(0.0)
        self.assertTrue(entry_of(self.server, 1).association.opens(datagram))
        self.assertEqual(self.handler.texts, [])
        self.network.carry(client.address, SERVER, datagram)
        self.network.advance(0.01)
        self.assertEqual(self.handler.texts, [b"hello"])

    def test_before_the_handshake_is_complete_and_after_the_end(self) -> None:
        client = self.raw_client()
        association = client.new_association()
        self.assertFalse(association.opens(record(23, bytes(40), epoch=1)))
        client.shake_hands(association)
        association.release()
        self.assertFalse(association.opens(record(23, bytes(40), epoch=1)))


class NewestTests(NetworkTestCase):
    """The number of the newest record, as far as it is certain."""

    def test_it_rises_with_authentic_records_only(self) -> None:
        client = self.raw_client()
        association = client.new_association()
        client.shake_hands(association)
        server = entry_of(self.server, 1).association
        self.assertEqual(server.newest, 0)
        datagrams = []
        for number in range(6):
            association.send(b"%d" % number)
            datagrams += association.take_datagrams(0.0)
        forged = record(records.APPLICATION_DATA, bytes(40), epoch=1, sequence=1000)
        for data, newest in (
            (datagrams[1], 2),
            (datagrams[0], 2),  # late
            (datagrams[1], 2),  # again
            (forged, 2),
            (datagrams[2] + datagrams[3], 4),  # two in one datagram
            (datagrams[4] + forged, 4),  # it is not certain which of them it was
            (datagrams[5], 6),
        ):
            self.server.datagramReceived(data, client.address)
            self.assertEqual(server.newest, newest)
        self.assertEqual(len(self.handler.texts), 6)
