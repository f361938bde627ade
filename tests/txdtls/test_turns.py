# SPDX-License-Identifier: AGPL-3.0-or-later
"""Messages of one turn share datagrams, with a peer that reads all of a datagram."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.txdtls import errors, records
from synapse_lb.txdtls.client import ClientAssociation
from synapse_lb.txdtls.turns import EndOfTurn
from tests.txdtls.support import SERVER, NetworkTestCase


class EndOfTurnTests(SynchronousTestCase):
    """The one timer."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.flushed: list[str] = []
        self.turn = EndOfTurn(self.clock, self.flushed.append)

    def test_each_once_and_in_order(self) -> None:
        for one in ("b", "a", "b"):
            self.turn.flush(one, wait=True)
        self.assertEqual((self.flushed, len(self.clock.getDelayedCalls())), ([], 1))
        self.clock.advance(0)
        self.assertEqual((self.flushed, self.clock.getDelayedCalls()), (["b", "a"], []))
        self.turn.flush("b", wait=True)
        self.clock.advance(0)
        self.assertEqual(self.flushed, ["b", "a", "b"])

    def test_at_once(self) -> None:
        self.turn.flush("a", wait=True)
        self.turn.flush("b", wait=False)
        self.assertEqual(self.flushed, ["b"])

    def test_nothing_stays(self) -> None:
        self.turn.cancel()
        self.turn.flush("a", wait=True)
        self.turn.cancel()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.clock.advance(1)
        self.assertEqual(self.flushed, [])


class SharingTests(NetworkTestCase):
    """Both sides, and what is lost when a datagram is."""

    def setUp(self) -> None:
        super().setUp()
        # Request and answer travel with a Finished each: both sides have shown that they read all of a datagram.
        self.handler.reaction = lambda one, data: self.server.send(one, b"answer")
        deferred = self.start()
        deferred.addCallback(self.ask)
        self.network.advance(0.2)
        self.association = self.successResultOf(deferred)
        self.addCleanup(self.association.abort)
        self.handler.reaction = lambda one, data: None
        self.handler.messages.clear()
        self.client_handler.messages.clear()
        self.network.sent.clear()

    def ask(self, association: ClientAssociation) -> ClientAssociation:
        association.send(b"request")
        return association

    def counts(self) -> list[int]:
        """How many records there are in each datagram."""
        return [len(records.split_records(data)) for _, _, data in self.network.sent]

    def test_of_the_client(self) -> None:
        for text in (b"a", b"b", b"c"):
            self.association.send(text)
        self.assertEqual(self.network.sent, [], "the turn is not over")
        self.network.advance(0.01)
        self.assertEqual((self.handler.texts, self.counts()), ([b"a", b"b", b"c"], [3]))

    def test_of_the_server(self) -> None:
        (one,) = self.handler.up
        for text in (b"a", b"b", b"c"):
            self.server.send(one, text)
        self.assertEqual(self.network.sent, [], "the turn is not over")
        self.network.advance(0.01)
        self.assertEqual((self.client_handler.texts, self.counts()), ([b"a", b"b", b"c"], [3]))

    def test_of_several_clients(self) -> None:
        other = self.connect()  # shows nothing
        (first, second) = self.handler.up
        self.network.sent.clear()
        for one in (first, second, first, second):
            self.server.send(one, b"news")
        self.network.advance(0.01)
        self.assertEqual(sorted(self.counts()), [1, 1, 2])
        other.abort()

    def test_up_to_the_mtu(self) -> None:
        for size in (600, 500, 500, 1100, 20, 20):
            self.association.send(bytes(size))
        self.network.advance(0.01)
        self.assertEqual([len(data) for data in self.handler.texts], [600, 500, 500, 1100, 20, 20])
        self.assertEqual(self.counts(), [2, 1, 2, 1])
        self.assertLessEqual(max(len(data) for _, _, data in self.network.sent), 1200)

    def test_what_is_written_while_a_datagram_is_read(self) -> None:
        self.client_handler_reacts(b"acknowledgement", b"request")
        self.server.send(self.handler.up[0], b"news")
        self.network.advance(0.01)
        self.assertEqual(self.counts(), [1, 2])

    def client_handler_reacts(self, *texts: bytes) -> None:
        def react(association_id: int, data: bytes) -> None:
            for text in texts:
                self.association.send(text)

        self.client_handler.reaction = react

    def test_what_was_sent_before_the_end_leaves(self) -> None:
        self.association.send(b"last")
        self.association.close()
        self.network.advance(0.01)
        self.assertEqual(self.handler.texts, [b"last"])
        self.assertIsInstance(self.handler.lost[0][1], errors.PeerClosed)

    def test_also_before_an_abrupt_end(self) -> None:
        self.association.send(b"last")
        self.association.abort()
        self.assertRaises(errors.AssociationGone, self.association.send, b"too late")
        self.network.advance(0.01)
        self.assertEqual(self.handler.texts, [b"last"])

    def test_the_servers_last_words(self) -> None:
        (one,) = self.handler.up
        self.server.send(one, b"last")
        self.server.close(one)
        self.network.advance(0.01)
        self.assertEqual(self.client_handler.texts, [b"last"])

    def test_shutdown_leaves_no_timer(self) -> None:
        (one,) = self.handler.up
        self.server.send(one, b"last")
        self.server.shutdown()
        self.network.advance(0.01)
        self.assertEqual(self.client_handler.texts, [b"last"])
        self.assertFalse(self.association.connected)
        self.assertEqual(self.network.getDelayedCalls(), [])

    def test_the_new_socket_takes_it_along(self) -> None:
        before = len({sender for sender, _, _ in self.network.sent})
        self.association.send(b"from where?")
        self.association.rebind()
        self.handler.association_moved = lambda association_id: None  # type: ignore[method-assign]  # it does here
        self.network.advance(0.01)
        self.assertEqual((before, self.handler.texts), (0, [b"from where?"]))
        self.assertEqual(self.server.peer_address(self.handler.up[0]).port, self.network.sent[0][0][1])

    def test_a_session_brings_the_knowledge_along(self) -> None:
        session = self.association.session
        self.association.close()
        self.network.advance(0.1)
        association = self.connect(session=session)
        self.network.sent.clear()
        association.send(b"a")
        association.send(b"b")
        self.network.advance(0.01)
        self.assertEqual(self.counts(), [2])
        self.assertEqual([to for _, to, _ in self.network.sent], [SERVER])
