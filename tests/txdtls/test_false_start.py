# SPDX-License-Identifier: AGPL-3.0-or-later
"""Messages that leave before the server's Finished has come (RFC 7918), and messages that share a datagram."""

from __future__ import annotations

from typing import Any

from synapse_lb.txdtls import errors, records
from synapse_lb.txdtls.context import ClientVerification, make_client_context
from synapse_lb.txdtls.options import ClientOptions
from tests.txdtls.support import SERVER, NetworkTestCase


class FalseStartTests(NetworkTestCase):
    """The request travels with the client's Finished."""

    def test_request_and_answer_travel_with_both_finished(self) -> None:
        self.handler.reaction = lambda one, data: self.server.send(one, b"re " + data)
        self.start().addCallback(lambda association: association.send(b"early"))
        self.network.advance(0.05)
        self.assertEqual(self.client_handler.texts, [b"re early"])
        self.assertEqual(len(self.network.sent), 4)
        for flight in self.network.sent[2:]:
            types = [one[0] for one in records.split_records(flight[2])][-3:]
            self.assertEqual(types, [records.CHANGE_CIPHER_SPEC, records.HANDSHAKE, records.APPLICATION_DATA])

    def test_the_server_does_not_wait_long_for_an_answer(self) -> None:
        self.start().addCallback(lambda association: association.send(b"early"))
        self.network.advance(0.05)
        self.assertEqual(len(self.from_server()), 1)
        self.network.advance(0.1)
        self.assertEqual(len(self.from_server()), 2)
        self.network.advance(10.0)
        self.assertEqual(len(self.network.sent), 4)

    def test_nothing_is_sent_to_a_server_that_is_not_accepted(self) -> None:
        deferred = self.start(context=make_client_context(ClientVerification.pinned("ab" * 32)))
        deferred.addCallback(lambda association: association.send(b"early"))
        self.network.advance(0.2)
        self.failureResultOf(deferred, errors.HandshakeFailed)
        self.assertEqual((self.handler.texts, self.client_handler.up), ([], []))

    def test_it_can_be_switched_off(self) -> None:
        deferred = self.start(options=ClientOptions(false_start=False))
        deferred.addCallback(lambda association: association.send(b"late"))
        self.network.advance(0.2)
        self.assertEqual(len(self.network.sent), 5)
        self.assertEqual(self.handler.texts, [b"late"])

    def start_without_the_servers_finished(self, change: Any) -> Any:
        """A client whose server's Finished is changed, or lost, on the way."""
        carry = self.network.carry
        seen = []

        def altered(sender: Any, to: Any, data: bytes) -> None:
            changed = change(data) if sender == SERVER and data[0] == records.CHANGE_CIPHER_SPEC else data
            seen.append(data)
            if changed is not None:
                carry(sender, to, changed)

        self.network.carry = altered  # type: ignore[method-assign]  # somebody in the path
        deferred = self.start(options=ClientOptions(handshake_timeout=20.0))
        self.network.advance(0.2)
        association = self.successResultOf(deferred)
        self.addCleanup(association.abort)
        return association

    def test_a_forged_finished_completes_nothing(self) -> None:
        association = self.start_without_the_servers_finished(lambda data: data[:-1] + bytes([data[-1] ^ 1]))
        self.assertTrue(association.connected)
        self.assertIsNone(association.session)
        self.network.advance(20.0)
        self.assertEqual([type(reason) for _, reason in self.client_handler.lost], [errors.ProtocolFailure])
        self.assertFalse(association.connected)

    def test_messages_before_it_comes_have_numbers_of_their_own(self) -> None:
        lost = [True]
        association = self.start_without_the_servers_finished(lambda data: None if lost[0] else data)
        for number in range(3):
            association.send(b"%d" % number)
        self.network.advance(3.0)  # the client repeats its flight, the server answers in vain
        lost[0] = False
        self.network.advance(8.0)
        self.assertIsNotNone(association.session)
        for number in range(3, 6):
            association.send(b"%d" % number)
        self.network.advance(0.1)
        self.assertEqual(self.handler.texts, [b"%d" % number for number in range(6)])
        numbers: dict[bytes, bytes] = {}
        for datagram in self.to_server():
            for record in records.split_records(datagram):
                if record[3:5] != b"\0\0":
                    self.assertEqual(numbers.setdefault(record[5:11], record), record)
        self.assert_echo(association)

    def test_closing_before_it_comes_is_heard(self) -> None:
        association = self.start_without_the_servers_finished(lambda data: None)
        association.close()
        self.network.advance(0.1)
        self.assertIsInstance(self.handler.lost[0][1], errors.PeerClosed)


class SharedDatagramTests(NetworkTestCase):
    """Several messages in one datagram are for those who read them."""

    def test_who_has_packed_gets_packed(self) -> None:
        def several(one: int, data: bytes) -> None:
            for number in range(3):
                self.server.send(one, data + b"%d" % number)

        self.handler.reaction = several
        self.start().addCallback(lambda association: association.send(b"e"))
        self.network.advance(0.3)
        self.assertEqual(self.client_handler.texts, [b"e0", b"e1", b"e2"])
        self.assertEqual(len(self.from_server()), 2)

    def test_who_has_not_does_not(self) -> None:
        association = self.connect()
        before = len(self.from_server())

        def thrice(one: int, data: bytes) -> None:
            for _ in range(3):
                self.server.send(one, data)

        self.handler.reaction = thrice
        association.send(b"x")
        self.network.advance(0.1)
        self.assertEqual(self.client_handler.texts, [b"x"] * 3)
        self.assertEqual(len(self.from_server()) - before, 3)
