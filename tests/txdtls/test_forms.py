# SPDX-License-Identifier: AGPL-3.0-or-later
"""When datagrams are compact: between a client and a server, and where they do not get through."""

from __future__ import annotations

from typing import Any

from synapse_lb.txdtls import compact, records
from synapse_lb.txdtls.client import ClientAssociation
from synapse_lb.txdtls.context import make_server_context
from synapse_lb.txdtls.forms import FEW, PATIENCE, ClientForm
from synapse_lb.txdtls.hellos import KnownSession
from synapse_lb.txdtls.options import ServerOptions
from tests.txdtls.support import SERVER, NetworkTestCase, feed
from tests.txdtls.test_moved_clients import ELSEWHERE, MovedTestCase

REQUEST = b"a request of some length"


class FormTestCase(NetworkTestCase):
    """Clients and a server."""

    def setUp(self) -> None:
        super().setUp()
        self.handler.reaction = lambda association_id, data: self.server.send(association_id, b"re " + data)

    def kinds(self) -> list[int]:
        """The first byte of each datagram since the last time."""
        kinds = [data[0] for _, _, data in self.network.sent if data]
        self.network.sent.clear()
        return kinds

    def say(self, association: ClientAssociation, text: bytes = REQUEST) -> None:
        """A request that is answered."""
        self.client_handler.messages.clear()
        association.send(text)
        self.network.advance(0.2)
        self.assertEqual(self.client_handler.texts, [b"re " + text])

    def known(self) -> bytes:
        """The session of a client that has found that the server reads compact datagrams."""
        association = self.connect()
        self.say(association)
        association.use_compact()
        session = association.session
        assert session is not None
        association.close()
        self.network.advance(0.1)
        self.network.sent.clear()
        return session

    def come_again(self, session: bytes) -> ClientAssociation:
        """Resume, with a request beside the end of the handshake."""
        made: list[ClientAssociation] = []

        def established(association: ClientAssociation) -> None:
            made.append(association)
            association.send(REQUEST)

        self.client_handler.messages.clear()
        self.start(session=session).addCallback(established)
        self.network.advance(0.2)
        self.addCleanup(made[0].abort)
        self.assertEqual(self.client_handler.texts, [b"re " + REQUEST])
        return made[0]


class RecordTests(FormTestCase):
    """On an association."""

    def test_not_unasked(self) -> None:
        association = self.connect()
        self.say(association)
        self.assertEqual([kind for kind in self.kinds() if kind >= compact.HELLO], [])

    def test_the_server_answers_in_kind(self) -> None:
        association = self.connect()
        self.say(association)
        self.kinds()
        before = association.counters.bytes_sent, association.counters.bytes_received
        association.use_compact()
        self.say(association)
        self.assertEqual(self.kinds(), [compact.RECORD] * 2)
        size = len(REQUEST) + 2 + 16
        after = association.counters.bytes_sent, association.counters.bytes_received
        self.assertEqual((after[0] - before[0], after[1] - before[1]), (size, size + 3))

    def test_after_a_datagram_of_dtls_the_server_goes_back(self) -> None:
        association = self.connect()
        association.use_compact()
        self.say(association)
        association._protocol.form.compact = False
        self.kinds()
        self.say(association)
        self.assertEqual(self.kinds(), [records.APPLICATION_DATA] * 2)

    def test_forged_ones_change_nothing(self) -> None:
        """A compact datagram that is not authentic does not make the server's compact."""
        association = self.connect()
        self.say(association)
        client = self.network.sent[-1][1]
        self.kinds()
        for junk in (b"\xf4\x09" + bytes(30), b"\xf4\x09", b"\xff" * 30, b"\xf2\x28" + bytes(60)):
            self.network.carry(client, SERVER, junk)
        self.network.advance(0.1)
        self.kinds()
        self.say(association)
        self.assertEqual(self.kinds(), [records.APPLICATION_DATA] * 2)
        self.assertEqual(self.server.counters.datagrams_malformed, 1)

    def test_one_that_was_changed_is_dropped(self) -> None:
        association = self.connect()
        association.use_compact()
        self.say(association)
        sender, _, data = next(each for each in reversed(self.network.sent) if each[1] == SERVER)
        before = len(self.handler.messages)
        for changed in (b"\xf5\x00" + data[1:], b"\xf4" + bytes([data[1] + 1]) + data[2:], data[:-1], data):
            self.network.carry(sender, SERVER, changed)
        self.network.advance(0.1)
        self.assertEqual(len(self.handler.messages), before)
        self.say(association)


class LostTests(FormTestCase):
    """A network that lets only DTLS through."""

    def test_the_client_goes_back(self) -> None:
        association = self.connect()
        self.say(association)
        association.use_compact()
        self.assertTrue(KnownSession.parse(association.session or b"").compact)
        self.strict()
        self.kinds()
        for _ in range(FEW):
            association.send(REQUEST)
            self.network.advance(PATIENCE / 2)
        self.assertEqual(set(self.kinds()), {compact.RECORD})
        self.say(association)
        self.assertEqual(set(self.kinds()), {records.APPLICATION_DATA})
        association.use_compact()
        self.say(association)
        self.assertEqual(set(self.kinds()), {records.APPLICATION_DATA})
        self.assertFalse(KnownSession.parse(association.session or b"").compact)

    def test_a_handshake_gets_through(self) -> None:
        """Its hello is repeated as DTLS has it, and so is the end of the handshake."""
        session = self.known()
        self.strict()
        made: list[ClientAssociation] = []
        self.start(session=session).addCallback(made.append)
        self.network.advance(30)
        self.assertTrue(made and made[0].resumed)
        self.addCleanup(made[0].abort)

    def test_many_at_once_are_not_unanswered(self) -> None:
        form = ClientForm(True)
        one = b"\x17\xfe\xfd\0\1" + bytes(5) + b"\1\0\x14" + bytes(20)
        for _ in range(20):
            self.assertTrue(compact.is_compact(form.outgoing(one, 1.0)))
        form.read(one)
        for _ in range(FEW):
            self.assertTrue(compact.is_compact(form.outgoing(one, 1.0 + 2 * PATIENCE)))
        self.assertEqual(form.outgoing(one, 1.0 + 4 * PATIENCE), one)

    def strict(self) -> None:
        """Drop what is not DTLS, in both directions."""
        carry = self.network.carry

        def strict(sender: Any, to: Any, data: bytes) -> None:
            if compact.is_compact(data):
                self.network.sent.append((sender, to, data))
            else:
                carry(sender, to, data)

        self.network.carry = strict  # type: ignore[method-assign]  # somebody in the path


class ResumptionTests(FormTestCase):
    """A resumption by a client that knows the server."""

    def test_all_of_it_is_compact(self) -> None:
        session = self.known()
        association = self.come_again(session)
        self.assertTrue(association.resumed)
        sizes = [len(data) for _, _, data in self.network.sent]
        self.assertEqual(self.kinds(), [compact.HELLO, compact.ANSWER, compact.END, compact.RECORD])
        self.assertEqual(sizes, [66, 73, 42 + 18 + len(REQUEST), 18 + len(REQUEST) + 3])
        self.assertTrue(KnownSession.parse(association.session or b"").compact)
        self.say(association)

    def test_the_first_compact_hello_is_the_only_one(self) -> None:
        """A copy is DTLS: perhaps the first got nowhere because it was not."""
        session = self.known()
        self.network.close(SERVER)
        self.start(session=session).addErrback(lambda _: None)
        self.network.advance(20)
        kinds = self.kinds()
        self.assertEqual(kinds[0], compact.HELLO)
        self.assertGreater(len(kinds), 1)
        self.assertEqual(set(kinds[1:]), {records.HANDSHAKE})
        self.network.advance(300)

    def test_a_server_that_has_forgotten_the_session(self) -> None:
        session = self.known()
        self.server = self.serve(context=make_server_context(*self.paths))
        association = self.come_again(session)
        self.assertFalse(association.resumed)
        self.assertEqual([kind for kind in self.kinds()[1:] if kind >= compact.HELLO], [])
        self.assertFalse(KnownSession.parse(association.session or b"").compact)

    def test_a_server_that_wants_cookies_now(self) -> None:
        session = self.known()
        self.server = self.serve(ServerOptions(cookie="always"))
        association = self.come_again(session)
        self.assertTrue(association.resumed)
        self.assertEqual(self.kinds()[0], compact.HELLO)

    def test_a_server_that_wants_cookies_always(self) -> None:
        self.server = self.serve(ServerOptions(cookie="always"))
        association = self.come_again(self.known())
        self.assertTrue(association.resumed)
        self.say(association)
        self.assertEqual(self.kinds()[-2:], [compact.RECORD] * 2)

    def test_amplification(self) -> None:
        """What an address gets that has proven nothing is counted by what came from there."""
        session = self.known()
        self.start(session=session).addErrback(lambda _: None)
        self.network.advance(0.001)
        stranger = ("127.0.0.9", 4321)
        compact_hello = next(data for _, to, data in self.network.sent if to == SERVER)
        self.assertEqual(compact_hello[0], compact.HELLO)
        self.network.advance(0.1)
        self.network.sent.clear()
        for _ in range(50):
            self.network.carry(stranger, SERVER, compact_hello)
            self.network.advance(2.0)
        got = sum(len(data) + 28 for _, to, data in self.network.sent if to == stranger)
        gave = 50 * (len(compact_hello) + 28)
        self.assertGreater(got, 0)
        self.assertLessEqual(got, 3 * gave)


class MovedTests(MovedTestCase):
    """A client whose address has changed."""

    def test_its_next_record_moves_it(self) -> None:
        self.handler.reaction = lambda one, data: self.server.send(one, b"re " + data)
        short = compact.shrink(self.datagram(b"after"))
        self.assertTrue(compact.is_compact(short))
        self.carry(short)
        self.assertEqual((self.handler.texts, self.handler.moved), ([b"after"], [(1, 0)]))
        [reply] = self.sent_to(ELSEWHERE)
        self.assertEqual(reply[0], compact.RECORD)
        self.assertEqual(feed(self.association, compact.expand(reply) or b"", 0.0).messages, [b"re after"])
