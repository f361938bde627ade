# SPDX-License-Identifier: AGPL-3.0-or-later
"""Clients whose address changes, at a server port on a network in memory."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import CannotListenError

from synapse_lb.txdtls import binding, errors, records
from synapse_lb.txdtls.association import Association
from synapse_lb.txdtls.movement import MAX_HELD
from synapse_lb.txdtls.options import ServerOptions
from synapse_lb.txdtls.port import DTLSServerPort
from tests.txdtls.support import SERVER, NetworkTestCase, RawClient, Recorder, feed
from tests.txdtls.test_records import record

BELOW = 28  # bytes of the IPv4 and UDP headers
ELSEWHERE = ("198.51.100.7", 4711)


class MovingRecorder(Recorder):
    """A recorder that also keeps moves: the ids, each with how many messages there were before."""

    server: DTLSServerPort

    def __init__(self) -> None:
        super().__init__()
        self.moved: list[tuple[int, int]] = []
        self.confirms = True

    def association_moved(self, association_id: int) -> None:
        self.moved.append((association_id, len(self.messages)))
        if self.confirms:
            self.server.confirm_address(association_id)


class MovedTestCase(NetworkTestCase):
    """A server whose handler wants to hear of moves, and a client that is fed by hand."""

    handler: MovingRecorder

    def setUp(self) -> None:
        super().setUp()
        self.begin()

    def begin(self, options: ServerOptions | None = None) -> None:
        """A new server."""
        self.handler = MovingRecorder()
        self.server = self.handler.server = self.serve(options, handler=self.handler)
        self.client, self.association = self.new_client()

    def new_client(self) -> tuple[RawClient, Association]:
        client = self.raw_client()
        association = client.new_association()
        client.shake_hands(association)
        self.assertTrue(association.established)
        return client, association

    def datagram(self, text: bytes, association: Association | None = None) -> bytes:
        """The next datagram of a client, not sent."""
        chosen = association or self.association
        chosen.send(text)
        [datagram] = chosen.take_datagrams(0.0)
        return datagram

    def carry(self, datagram: bytes, sender: tuple[str, int] = ELSEWHERE) -> None:
        self.network.carry(sender, SERVER, datagram)
        self.network.advance(0.01)

    def sent_to(self, address: tuple[str, int]) -> list[bytes]:
        """What the server has sent to an address."""
        return [data for sender, to, data in self.network.sent if (sender, to) == (SERVER, address)]

    def address_of(self, known: int) -> tuple[str, int]:
        address = self.server.peer_address(known)
        return address.host, address.port


class MoveTests(MovedTestCase):
    """The association goes where the client is."""

    def test_the_next_record_moves_it(self) -> None:
        self.carry(self.datagram(b"before"), self.client.address)
        self.handler.reaction = lambda one, data: self.server.send(one, b"re " + data)
        self.carry(self.datagram(b"after"))
        self.assertEqual(self.handler.texts, [b"before", b"after"])
        self.assertEqual(self.handler.moved, [(1, 1)], "told of before the message")
        self.assertEqual(self.address_of(1), ELSEWHERE)
        [reply] = self.sent_to(ELSEWHERE)
        self.assertEqual(feed(self.association, reply, 0.0).messages, [b"re after"])
        self.server.send(1, b"pushed")
        self.assertEqual(feed(self.association, self.sent_to(ELSEWHERE)[1], 0.0).messages, [b"pushed"])
        counters = self.server.counters
        self.assertEqual((counters.associations_moved, counters.move_trials), (1, 1))
        self.assertEqual((counters.handshakes_started, counters.datagrams_unknown), (1, 0))
        self.assertEqual((self.server.associations, self.handler.lost), (1, []))

    def test_further_records_from_there_need_no_trial(self) -> None:
        for number in range(5):
            self.carry(self.datagram(b"%d" % number))
        self.assertEqual(len(self.handler.texts), 5)
        self.assertEqual((len(self.handler.moved), self.server.counters.move_trials), (1, 1))

    def test_to_another_port_of_the_same_host(self) -> None:
        self.carry(self.datagram(b"hello"), ("127.0.0.1", 1))
        self.assertEqual(self.handler.moved, [(1, 0)])

    def test_several_records_in_the_datagram(self) -> None:
        self.carry(self.datagram(b"one") + self.datagram(b"two"))
        self.assertEqual(self.handler.texts, [b"one", b"two"])
        self.assertEqual(self.handler.moved, [(1, 0)])

    def test_after_messages_were_lost(self) -> None:
        for _ in range(100):
            self.datagram(b"lost")
        self.carry(self.datagram(b"hello"))
        self.assertEqual(self.handler.texts, [b"hello"])

    def test_one_of_many(self) -> None:
        clients = [self.new_client() for _ in range(30)]
        for number, (_, association) in enumerate(clients):
            self.carry(self.datagram(b"%d" % number, association), ("198.51.100.9", 100 + number))
        self.assertEqual(self.handler.messages, [(2 + n, b"%d" % n) for n in range(30)])
        self.assertEqual([one for one, _ in self.handler.moved], list(range(2, 32)))
        self.assertEqual(self.server.counters.datagrams_unknown, 0)

    def test_close_notify_from_another_address(self) -> None:
        self.association.notify_close()
        [alert] = self.association.take_datagrams(0.0)
        self.carry(alert)
        self.assertIsInstance(self.handler.lost[0][1], errors.PeerClosed)
        self.assertEqual(self.handler.moved, [])
        [answer] = self.sent_to(ELSEWHERE)
        self.assertEqual(answer[0], records.ALERT)
        self.assertEqual(self.server.associations, 0)

    def test_one_that_is_over_is_not_found(self) -> None:
        datagram = self.datagram(b"too late")
        self.server.close(1)
        self.carry(datagram)
        self.assertEqual(self.handler.texts, [])
        self.assertEqual((self.server.counters.datagrams_unknown, self.server.counters.move_trials), (1, 0))

    def test_a_handler_that_closes_it(self) -> None:
        def close(association_id: int) -> None:
            self.server.close(association_id)

        handler: Any = self.handler
        handler.association_moved = close
        self.carry(self.datagram(b"hello"))
        self.assertEqual(self.handler.texts, [])
        self.assertIsInstance(self.handler.lost[0][1], errors.LocallyClosed)

    def test_switched_off(self) -> None:
        self.begin(ServerOptions(move_trials_per_datagram=0))
        self.carry(self.datagram(b"hello"))
        self.assertEqual((self.handler.texts, self.handler.moved), ([], []))
        self.assertEqual(self.server.counters.datagrams_unknown, 1)
        self.assertEqual(self.sent_to(ELSEWHERE), [])


class StrayTests(MovedTestCase):
    """Two processes at one port, of which one gets what is the other's (`DTLSServerPort.on_stray`)."""

    def setUp(self) -> None:
        super().setUp()
        self.strays: list[tuple[bytes, tuple[str, int]]] = []
        self.other = DTLSServerPort(context=self.server_context, handler=Recorder(), reactor=self.network)
        self.other.on_stray = lambda datagram, address: self.strays.append((datagram, address))
        self.addCleanup(self.other.shutdown)

    def test_the_record_of_a_client_is_handed_over_and_answered(self) -> None:
        for sender in (self.client.address, ELSEWHERE):
            datagram = self.datagram(b"text")
            self.other.datagramReceived(datagram, sender)
            self.assertEqual(self.strays.pop(), (datagram, sender))
            self.server.stray_received(datagram, sender)
            self.assertEqual(self.handler.messages.pop(), (1, b"text"))
            self.assertEqual(self.address_of(1), sender)
        self.assertEqual(self.other.counters.datagrams_unknown, 2)

    def test_what_was_handed_over_is_not_handed_over_again(self) -> None:
        self.other.stray_received(self.datagram(b"text"), ELSEWHERE)
        self.assertEqual(self.strays, [])
        self.other.datagramReceived(self.datagram(b"text"), ELSEWHERE)
        self.assertEqual(len(self.strays), 1)

    def test_only_records_that_could_be_of_a_client(self) -> None:
        for junk in (b"junk", record(22, b"\0" * 40), record(20, b"\1"), b""):
            self.other.datagramReceived(junk, ELSEWHERE)
        self.assertEqual(self.strays, [])

    def test_what_belongs_here_stays_here(self) -> None:
        strays: list[bytes] = []
        self.server.on_stray = lambda datagram, address: strays.append(datagram)
        datagram = self.datagram(b"text")
        for sender in (self.client.address, self.client.address, ELSEWHERE):
            self.carry(datagram, sender)
        self.carry(self.datagram(b"more"))
        self.assertEqual([text for _, text in self.handler.messages], [b"text", b"more"])
        self.assertEqual(strays, [datagram])  # the copy from elsewhere could be anybody's


class NoMoveTests(MovedTestCase):
    """What must not move an association, and harms it no more than other junk does."""

    def assert_stays(self) -> None:
        self.assertEqual(self.handler.moved, [])
        self.assertEqual(self.sent_to(ELSEWHERE), [])
        before = len(self.handler.texts)
        self.carry(self.datagram(b"still here"), self.client.address)
        self.assertEqual(self.handler.texts[before:], [b"still here"])
        self.assertEqual(self.address_of(1), self.client.address)

    def test_replays_of_every_record(self) -> None:
        sent = [self.datagram(b"%d" % number) for number in range(100)]
        for datagram in sent:
            self.carry(datagram, self.client.address)
        handshake = self.to_server()[2:-100]  # the two hellos are answered, to anybody
        self.assertEqual(len(handshake), 1)
        for datagram in handshake + sent:
            self.carry(datagram)
        self.assertEqual(len(self.handler.texts), 100)
        self.assertEqual(self.server.counters.move_trials, 0)
        self.assert_stays()

    def test_a_late_record_that_was_never_seen(self) -> None:
        late = self.datagram(b"late")
        self.carry(self.datagram(b"newer"), self.client.address)
        self.carry(late)
        self.assertEqual(self.handler.texts, [b"newer"])
        self.assertEqual(self.server.counters.move_trials, 0)
        self.carry(late, self.client.address)
        self.assertEqual(self.handler.texts, [b"newer", b"late"], "the replay window knows nothing of it")
        self.assert_stays()

    def test_junk_that_looks_like_the_next_record(self) -> None:
        others = [self.new_client() for _ in range(20)]
        genuine = self.datagram(b"genuine")
        library: Any = binding._lib
        binding.clear_errors()
        for number in range(200):
            forged = bytearray(genuine)
            forged[13 + number % (len(forged) - 13)] ^= 1 + number
            self.server.datagramReceived(bytes(forged), ("198.51.100.7", number))
            self.assertEqual(library.ERR_peek_error(), 0)
        self.assertEqual(self.server.counters.datagrams_unknown, 200)
        trials = self.server.counters.move_trials
        self.assertEqual(trials, ServerOptions().move_trials_per_source)
        self.assertEqual(self.handler.messages, [])
        self.carry(genuine, self.client.address)
        self.assertEqual(self.handler.texts, [b"genuine"])
        for number, (client, association) in enumerate(others):
            self.carry(self.datagram(b"%d" % number, association), client.address)
            self.server.send(2 + number, b"re")
            self.network.advance(0.01)
            self.assertEqual([p.messages for p in client.read(association)], [[b"re"]])
        self.assertEqual(self.handler.messages[1:], [(2 + n, b"%d" % n) for n in range(20)])
        self.assertEqual(self.server.counters.move_trials, trials)
        self.assert_stays()

    def test_short_and_odd_records(self) -> None:
        for content_type in (20, 21, 22, 23):
            for epoch in (0, 1, 2):
                for size in (0, 1, 15, 16, 17, 400):
                    data = record(content_type, bytes(size), epoch=epoch, sequence=1)
                    self.server.datagramReceived(data, ELSEWHERE)
        self.assert_stays()

    def test_copies_at_the_known_address_cost_no_trials_of_others(self) -> None:
        for _ in range(10):
            self.new_client()
        datagram = self.datagram(b"once")
        for _ in range(10):
            self.carry(datagram, self.client.address)
        self.assertEqual(self.handler.texts, [b"once"])
        self.assertEqual(self.server.counters.move_trials, 0)
        self.assertEqual(self.server.counters.records_discarded, 9)


class OvertakenTests(MovedTestCase):
    """Somebody copies a client's record and is faster than the original (RFC 9146 section 6)."""

    def setUp(self) -> None:
        super().setUp()
        self.handler.confirms = False

    def answer_with(self, size: int, count: int) -> None:
        """Answer each message with so many of this size."""

        def react(one: int, data: bytes) -> None:
            for _ in range(count):
                self.server.send(one, bytes(size))

        self.handler.reaction = react

    def test_the_next_record_of_the_client_moves_it_back(self) -> None:
        for number in range(5):
            datagram = self.datagram(b"overtaken %d" % number)
            self.carry(datagram)
            self.assertEqual(self.address_of(1), ELSEWHERE)
            self.carry(datagram, self.client.address)  # the original, which is a replay now
            self.assertEqual(self.address_of(1), ELSEWHERE)
            self.carry(self.datagram(b"next %d" % number), self.client.address)
            self.assertEqual(self.address_of(1), self.client.address)
            self.server.send(1, bytes(1000))
            self.network.advance(0.01)
            self.assertEqual([len(data) > 1000 for data in self.client.inbox], [True], "which is proven")
            self.client.inbox.clear()
        self.assertEqual(len(self.handler.texts), 10)
        self.assertEqual(self.handler.lost, [])

    def test_the_copys_address_gets_three_times_its_bytes(self) -> None:
        self.answer_with(100, 50)
        copies = 0
        for _ in range(3):
            datagram = self.datagram(b"a rather long request, so that there is something to multiply" * 3)
            copies += len(datagram) + BELOW
            self.carry(datagram)
            for _ in range(10):
                self.carry(datagram)  # copies of the copy are no authentic news
            sent = sum(len(data) + BELOW for data in self.sent_to(ELSEWHERE))
            self.assertLessEqual(sent, 3 * copies)
            self.assertGreater(sent, 3 * copies - 129 - BELOW)
        self.assertEqual(len(self.handler.texts), 3)
        self.assertGreater(self.server.counters.datagrams_held, 100)

    def test_moving_on_and_on_gains_nothing(self) -> None:
        self.answer_with(1000, 3)
        for number in range(20):
            datagram = self.datagram(b"overtaken")
            address = ("198.51.100.8", number + 1)
            self.carry(datagram, address)
            sent = sum(len(data) + BELOW for data in self.sent_to(address))
            self.assertLessEqual(sent, 3 * (len(datagram) + BELOW))

    def test_what_is_held_leaves_when_the_address_is_proven(self) -> None:
        self.carry(self.datagram(b"hello"))
        for number in range(MAX_HELD + 4):
            self.server.send(1, bytes([number]) * 1000)
        self.assertEqual(self.sent_to(ELSEWHERE), [])
        self.assertEqual(self.server.counters.datagrams_held, MAX_HELD + 4)
        self.server.confirm_address(1)
        self.server.confirm_address(1)
        texts = [feed(self.association, data, 0.0).messages[0][:1] for data in self.sent_to(ELSEWHERE)]
        self.assertEqual(texts, [bytes([number]) for number in range(MAX_HELD)], "the others are lost")
        self.server.send(1, bytes(1000))
        self.assertEqual(len(self.sent_to(ELSEWHERE)), MAX_HELD + 1)
        self.server.confirm_address(99)

    def test_a_handshake_proves_its_address(self) -> None:
        self.carry(self.datagram(b"hello"))
        self.client.address = ("127.0.0.1", 49152)
        again = self.client.new_association()
        self.client.shake_hands(again)
        self.server.send(2, bytes(1000))
        self.network.advance(0.01)
        self.assertEqual([progress.messages for progress in self.client.read(again)], [[bytes(1000)]])


class CrowdedAddressTests(MovedTestCase):
    """Addresses where somebody else is, or is about to be."""

    def test_two_clients_whose_addresses_a_nat_has_swapped(self) -> None:
        other_client, other = self.new_client()
        here, there = self.client.address, other_client.address
        for number in range(3):
            self.carry(self.datagram(b"mine %d" % number), there)
            self.carry(self.datagram(b"other %d" % number, other), here)
        self.assertEqual(
            self.handler.messages,
            [(one, b"%s %d" % (who, n)) for n in range(3) for one, who in ((1, b"mine"), (2, b"other"))],
        )
        self.assertEqual((self.address_of(1), self.address_of(2)), (there, here))
        self.assertEqual([one for one, _ in self.handler.moved], [1, 2])
        self.assertEqual(self.handler.lost, [])

    def test_one_whose_address_was_taken_comes_back_to_it(self) -> None:
        _, other = self.new_client()
        self.carry(self.datagram(b"taken", other), self.client.address)
        self.carry(self.datagram(b"mine"), self.client.address)
        self.assertEqual(self.handler.messages, [(2, b"taken"), (1, b"mine")])
        self.server.close(1)
        self.carry(self.datagram(b"again", other), self.client.address)
        self.assertEqual(self.handler.messages[-1], (2, b"again"))
        self.server.close(2)
        self.assertEqual(self.server.associations, 0)

    def test_a_handshake_is_under_way_at_the_new_address(self) -> None:
        stranger = self.raw_client()
        pending = stranger.new_association()
        stranger.write(pending)
        stranger.read(pending)
        stranger.write(pending)
        self.assertEqual(self.server.handshakes, 1)
        self.carry(self.datagram(b"hello"), stranger.address)
        self.assertEqual(self.handler.messages, [(1, b"hello")])
        self.assertEqual(self.handler.moved, [(1, 0)])
        self.assertEqual(self.server.handshakes, 1)
        self.carry(self.datagram(b"more"), stranger.address)
        flight, stranger.inbox = stranger.inbox, []
        for datagram in flight:
            feed(pending, datagram, 0.0)
        stranger.shake_hands(pending)
        self.assertTrue(pending.established)
        self.assertEqual(self.handler.up, [1, 2])
        self.assertEqual([(one, type(why)) for one, why in self.handler.lost], [(1, errors.Replaced)])
        pending.send(b"new")
        stranger.write(pending)
        self.assertEqual(self.handler.messages[-1], (2, b"new"))
        self.assertEqual((len(self.server._movement), self.server.associations), (1, 1))
        self.server.shutdown()
        self.assertEqual(len(self.server._movement), 0)

    def test_it_moves_away_during_its_own_second_handshake(self) -> None:
        again = self.client.new_association()
        self.client.write(again)
        self.client.read(again)
        self.client.write(again)
        self.assertEqual((self.server.associations, self.server.handshakes), (1, 1))
        self.carry(self.datagram(b"from elsewhere"))
        self.assertEqual(self.handler.moved, [(1, 0)])
        flight, self.client.inbox = self.client.inbox, []
        for datagram in flight:
            feed(again, datagram, 0.0)
        self.client.shake_hands(again)
        self.assertEqual(self.handler.up, [1, 2])
        self.assertEqual(self.handler.lost, [], "it is not at that address any more")
        self.assertEqual(self.server.associations, 2)


class RebindTests(MovedTestCase):
    """The client library's part."""

    def test_messages_pass_both_ways_over_a_new_socket(self) -> None:
        association = self.connect()
        for number in range(3):
            before = self.address_of(2)
            association.rebind()
            self.assert_echo(association, b"%d" % number)
            self.assertNotEqual(self.address_of(2), before)
        self.assertEqual([one for one, _ in self.handler.moved], [2, 2, 2])
        self.assertEqual(self.server.counters.handshakes_started, 2, "one of each client")
        self.successResultOf(association.close())
        self.network.advance(0.01)
        self.assertEqual(self.handler.lost[-1][0], 2)
        self.assertIsInstance(self.handler.lost[-1][1], errors.PeerClosed)
        self.assertEqual(sorted(self.network._ports), sorted([SERVER, self.client.address]))

    def test_there_is_no_other_socket(self) -> None:
        association = self.connect()
        listen = self.network.listenUDP

        def refuse(*_: object, **__: object) -> object:
            raise CannotListenError("", 0, OSError("no buffer space"))

        network: Any = self.network
        network.listenUDP = refuse
        self.assertRaises(errors.NetworkUnreachable, association.rebind)
        network.listenUDP = listen
        self.assert_echo(association)
        self.assertEqual(self.handler.moved, [])

    def test_a_new_socket_that_cannot_reach_the_server_is_closed(self) -> None:
        association = self.connect()
        before = set(self.network._ports)
        listen = self.network.listenUDP

        def no_route(*_: object) -> None:
            raise OSError("no route")

        def listen_without_route(*arguments: Any, **named: Any) -> Any:
            port: Any = listen(*arguments, **named)
            port.connect = no_route
            return port

        network: Any = self.network
        network.listenUDP = listen_without_route
        self.assertRaises(errors.NetworkUnreachable, association.rebind)
        network.listenUDP = listen
        self.assertEqual(set(self.network._ports), before)
        self.assert_echo(association)

    def test_after_the_end(self) -> None:
        association = self.connect()
        association.close()
        self.assertRaises(errors.AssociationGone, association.rebind)

    def test_the_new_socket_is_lost(self) -> None:
        association = self.connect()
        association.rebind()
        client: Any = association
        client._protocol._socket.transport.stopListening()
        self.assertIsInstance(self.client_handler.lost[0][1], errors.SocketLost)
        self.assertFalse(association.connected)
