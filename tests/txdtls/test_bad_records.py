# SPDX-License-Identifier: AGPL-3.0-or-later
"""Records that are not authentic, junk, errors of others: nothing is answered, nobody is harmed (RFC 6347 4.1.2.7)."""

from __future__ import annotations

from typing import Any

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from synapse_lb.txdtls import binding, records
from synapse_lb.txdtls.context import ClientVerification, make_client_context
from tests.txdtls.support import SERVER, NetworkTestCase, RawClient
from tests.txdtls.test_records import record


class BadRecordTests(NetworkTestCase):
    """What is not authentic is dropped silently and counted."""

    def setUp(self) -> None:
        super().setUp()
        self.association = self.connect()
        self.address = self.network.sent[0][0]
        self.replies = len(self.from_server())

    def assert_unharmed(self) -> None:
        self.network.advance(0.02)
        self.assertEqual(len(self.from_server()), self.replies, "nothing may be answered")
        self.assertEqual(self.handler.lost, [])
        self.assert_echo(self.association)

    def pass_turns(self) -> None:
        """Let all be handled: a few datagrams of an association at a time."""
        self.network.clock.advance(0)

    def test_replays(self) -> None:
        self.association.send(b"once")
        self.network.advance(0.02)
        copy = self.to_server()[-1]
        for _ in range(100):
            self.server.datagramReceived(copy, self.address)
        self.assertEqual(self.handler.texts, [b"once"])
        self.pass_turns()
        self.assertEqual(self.server.counters.records_discarded, 100)
        self.assert_unharmed()

    def test_bad_macs(self) -> None:
        self.association.send(b"once")
        self.network.advance(0.02)
        genuine = self.to_server()[-1]
        for sequence in range(2000):
            forged = genuine[:5] + (sequence + 1000).to_bytes(6, "big") + genuine[11:]
            self.server.datagramReceived(forged, self.address)
            self.pass_turns()
        self.assertEqual(self.handler.texts, [b"once"])
        self.assertEqual(self.server.counters.records_discarded, 2000)
        self.assert_unharmed()

    def test_forged_alerts(self) -> None:
        for epoch in (0, 1, 2):
            for alert in (b"\x01\x00", b"\x02\x28", b"\x02\x00", bytes(20)):
                for sequence in (0, 1, 7, 2**48 - 1):
                    forged = record(records.ALERT, alert, epoch=epoch, sequence=sequence)
                    self.server.datagramReceived(forged, self.address)
        self.pass_turns()
        self.assertEqual(self.server.counters.records_discarded, 48)
        self.assert_unharmed()

    def test_forged_handshake_messages_and_plain_application_data(self) -> None:
        for content_type in (20, 22, 23):
            for epoch in (0, 1, 2):
                body = b"\x14" + bytes(60)
                self.server.datagramReceived(
                    record(content_type, body, epoch=epoch, sequence=3), self.address
                )
        self.assertEqual(self.handler.texts, [])
        self.assert_unharmed()

    def test_junk_and_overlong_datagrams(self) -> None:
        for junk in (
            b"",
            b"\0",
            b"junk" * 50,
            b"\x16\xfe\xfd",
            bytes(17000),
            record(23, bytes(16384), epoch=1) * 2,
        ):
            self.server.datagramReceived(junk, self.address)
        self.assertEqual(self.server.counters.datagrams_malformed, 6)
        self.assert_unharmed()

    def test_unknown_addresses_get_no_answer(self) -> None:
        self.association.send(b"mine")
        self.network.advance(0.02)
        for data in (
            self.to_server()[-1],
            record(21, b"\x02\x28"),
            record(22, b"\x10" + bytes(40)),
            record(20, b"\1"),
        ):
            self.server.datagramReceived(data, ("203.0.113.9", 999))
        self.assertEqual(self.server.counters.datagrams_unknown, 4)
        self.assert_unharmed()

    def test_renegotiation_is_refused(self) -> None:
        context = SSL.Context(SSL.DTLS_CLIENT_METHOD)
        context.set_options(SSL.OP_NO_QUERY_MTU)
        client = RawClient(self.network, attrs.evolve(self.client_context, ssl_context=context))
        association = client.new_association()
        client.shake_hands(association)
        association.connection.renegotiate()
        with self.assertRaises(SSL.WantReadError):
            association.connection.do_handshake()
        started = self.server.counters.handshakes_started
        hello = association.connection.bio_read(2000)
        self.assertEqual(hello[3:5], b"\0\1", "a new hello under the old keys")
        self.network.carry(client.address, SERVER, hello)
        self.network.advance(0.01)
        self.assertEqual([(data[0], data[3:5]) for data in client.inbox], [(records.ALERT, b"\0\1")])
        self.assertEqual(self.server.counters.handshakes_started, started)
        self.assertEqual(self.handler.lost, [])
        self.assert_echo(self.association)

    def test_records_too_short_to_be_authentic(self) -> None:
        """OpenSSL 3 would end the association over one of them."""
        client_context = make_client_context(ClientVerification.none())
        client_context.ssl_context.set_cipher_list(b"ECDHE-ECDSA-AES128-GCM-SHA256")
        gcm = self.connect(context=client_context)
        for association, server_side in ((self.association, 1), (gcm, 2)):
            address = (self.address[0], self.server.peer_address(server_side).port)
            for content_type in (20, 21, 22, 23):
                for length in range(26):
                    forged = record(content_type, bytes(length), epoch=1, sequence=100 + length)
                    self.server.datagramReceived(forged, address)
                    self.server.datagramReceived(forged + forged, address)
                    association._protocol.datagramReceived(forged, SERVER)
            self.assert_echo(association)
        self.assertEqual(self.server.counters.records_discarded, 2 * 4 * 26 * 3)
        self.assertEqual(gcm.counters.records_discarded, 4 * 26)

    def test_a_short_record_beside_a_good_one(self) -> None:
        client = self.raw_client()
        association = client.new_association()
        client.shake_hands(association)
        association.send(b"good")
        [datagram] = association.take_datagrams(0.0)
        short = record(23, bytes(5), epoch=1, sequence=77)
        self.server.datagramReceived(short + datagram + short, client.address)
        self.assertEqual(self.handler.texts, [b"good"])
        self.assertEqual(self.server.counters.records_discarded, 2)

    @settings(max_examples=200, deadline=None)
    @given(
        st.binary(max_size=100)
        | st.builds(
            record,
            st.sampled_from([20, 21, 22, 23]),
            st.binary(max_size=80),
            epoch=st.integers(0, 3),
            sequence=st.integers(0, 2**48 - 1),
        ),
        st.booleans(),
    )
    def test_no_datagram_raises_or_harms(self, data: bytes, known: bool) -> None:
        self.server.datagramReceived(data, self.address if known else ("203.0.113.9", 999))
        self.assertEqual(self.server.associations, 1)

    @settings(max_examples=100, deadline=None)
    @given(st.integers(0, 3), st.integers(0, 400), st.integers(1, 255))
    def test_no_mangled_handshake_raises(self, which: int, position: int, change: int) -> None:
        """One byte of the client's handshake is changed: it completes or fails, and others are unharmed."""
        client = self.raw_client()
        self.addCleanup(client.port.stopListening)
        association = client.new_association()
        for step in range(5):
            for datagram in association.take_datagrams(0.0):
                if step == which:
                    place = position % len(datagram)
                    datagram = datagram[:place] + bytes([datagram[place] ^ change]) + datagram[place + 1 :]
                self.network.carry(client.address, SERVER, datagram)
            self.network.advance(0.01)
            if any(progress.lost for progress in client.read(association)):
                break
        self.assertEqual(self.server.peer_address(1).port, self.address[1])


class ErrorQueueTests(NetworkTestCase):
    """OpenSSL before 4.0 blames a connection for errors that others in the same thread left behind."""

    def test_errors_of_others_harm_no_association(self) -> None:
        association = self.connect()
        library: Any = binding._lib

        def leave_an_error() -> None:
            library.ERR_put_error(20, 0, 193, b"somebody else", 1)

        def answer(one: int, data: bytes) -> None:
            leave_an_error()
            self.server.send(one, b"re " + data)
            leave_an_error()

        for text in (b"one", b"two"):
            leave_an_error()
            self.handler.reaction = answer
            association.send(text)
            self.network.advance(0.02)
        # a datagram that brings nothing: here OpenSSL would report the other one's error
        leave_an_error()
        self.server.datagramReceived(record(23, bytes(40), epoch=1, sequence=99), self.network.sent[0][0])
        self.assertEqual(self.client_handler.texts, [b"re one", b"re two"])
        self.assertEqual(self.handler.lost, [])
        leave_an_error()
        self.assertTrue(self.connect().connected)
        binding.clear_errors()
