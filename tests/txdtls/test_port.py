# SPDX-License-Identifier: AGPL-3.0-or-later
"""The server port: clients that come back, bounds, timeouts, handlers that raise, the end."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from OpenSSL import SSL
from twisted.internet.address import IPv4Address

from synapse_lb.txdtls import errors, records
from synapse_lb.txdtls.association import Association
from synapse_lb.txdtls.options import ClientOptions, ServerOptions
from tests.txdtls.support import SERVER, NetworkTestCase, RawClient, feed
from tests.txdtls.test_records import client_hello, record


class MessageTests(NetworkTestCase):
    """Messages and what the owner can ask."""

    def test_messages_pass_both_ways(self) -> None:
        association = self.connect()
        for text in (b"x", b"y" * 1000, bytes(association.max_message_size - 3)):
            self.assert_echo(association, text)
        self.assertEqual(self.server.counters.messages_received, 3)
        self.assertEqual(self.server.counters.records_discarded, 0)
        self.assertEqual(association.counters.messages_received, 3)

    def test_what_the_owner_can_ask(self) -> None:
        self.network.latency = 0.01
        association = self.connect()
        [known] = self.handler.up
        address = self.server.peer_address(known)
        self.assertIsInstance(address, IPv4Address)
        self.assertEqual((address.host, address.type), ("127.0.0.1", "UDP"))
        self.assertEqual(self.server.max_message_size(known), association.max_message_size)
        self.assertEqual((self.server.longest_rtt(known), association.longest_rtt), (None, None))
        for rtt in (self.server.rtt(known), association.rtt):
            assert rtt is not None
            self.assertAlmostEqual(rtt, 0.02, delta=0.005)

    def test_a_repeated_flight_gives_no_round_trip_time(self) -> None:
        """An answer could be to either copy (Karn's algorithm, RFC 6298 section 3)."""
        self.repeat_a_flight(0.1)
        self.assertIsNone(self.server.rtt(1))
        self.assertIsNone(self.server.longest_rtt(1))

    def test_a_repeated_flight_that_is_answered_late_bounds_the_round_trip(self) -> None:
        """Whichever copy it was, the link is slow: an answer to the second one came after 3 s."""
        self.repeat_a_flight(3.0)
        self.assertIsNone(self.server.rtt(1))
        longest = self.server.longest_rtt(1)
        assert longest is not None
        self.assertApproximates(longest, 4.1, 0.1)

    def repeat_a_flight(self, answered_after: float) -> None:
        """Make an association by hand; the server's flight is lost once, and its copy answered late."""
        client = self.raw_client()
        association = client.new_association()
        client.write(association)
        client.read(association)
        [hello] = client.write(association)
        client.inbox.clear()  # the server's flight is lost
        self.network.advance(1.1)
        self.network.carry(client.address, SERVER, hello)
        self.network.advance(answered_after)
        self.assertTrue(client.inbox)
        client.read(association)
        client.shake_hands(association)
        self.assertEqual(self.handler.up, [1])

    def test_too_large_empty_and_unknown(self) -> None:
        association = self.connect()
        [known] = self.handler.up
        limit = self.server.max_message_size(known)
        before = len(self.network.sent)
        for send in (lambda data: self.server.send(known, data), association.send):
            error = self.assertRaises(errors.MessageTooLarge, send, bytes(limit + 1))
            self.assertEqual((error.size, error.limit), (limit + 1, limit))
            self.assertRaises(ValueError, send, b"")
        self.assertEqual(len(self.network.sent), before)
        for ask in (
            self.server.peer_address,
            self.server.max_message_size,
            self.server.rtt,
            self.server.longest_rtt,
        ):
            self.assertRaises(errors.AssociationGone, ask, known + 1)
        self.assertRaises(errors.AssociationGone, self.server.send, known + 1, b"x")
        self.server.close(known + 1)
        self.assert_echo(association)

    def test_every_message_has_its_own_datagram(self) -> None:
        def react(one: int, data: bytes) -> None:
            for number in range(5):
                self.server.send(one, bytes([number]))

        self.handler.reaction = react
        association = self.connect()
        before = len(self.from_server())
        association.send(b"go")
        self.network.advance(0.05)
        self.assertEqual(len(self.from_server()) - before, 5)
        self.assertEqual(self.client_handler.texts, [bytes([n]) for n in range(5)])

    def test_several_messages_in_one_datagram_are_all_read(self) -> None:
        client = self.raw_client()
        association = client.new_association()
        client.shake_hands(association)
        for text in (b"a", b"b", b"c"):
            association.send(text)
        datagrams = association.take_datagrams(0.0)
        self.network.carry(client.address, SERVER, b"".join(datagrams))
        self.network.advance(0.01)
        self.assertEqual(self.handler.texts, [b"a", b"b", b"c"])
        association.send(b"d")
        association.notify_close()
        self.network.carry(client.address, SERVER, b"".join(association.take_datagrams(0.0)))
        self.network.advance(0.01)
        self.assertEqual(self.handler.texts, [b"a", b"b", b"c", b"d"])
        self.assertIsInstance(self.handler.lost[0][1], errors.PeerClosed)


class CloseTests(NetworkTestCase):
    """close_notify in both directions, once for each association."""

    def test_the_server_closes(self) -> None:
        association = self.connect()
        [known] = self.handler.up
        self.server.close(known)
        self.network.advance(0.05)
        self.assertIsInstance(self.handler.lost[0][1], errors.LocallyClosed)
        self.assertIsInstance(self.client_handler.lost[0][1], errors.PeerClosed)
        self.assertRaises(errors.AssociationGone, association.send, b"x")
        self.assertRaises(errors.AssociationGone, self.server.send, known, b"x")
        self.assertEqual((len(self.handler.lost), len(self.client_handler.lost)), (1, 1))
        self.assertEqual(self.network.getDelayedCalls(), [])

    def test_the_client_closes_and_is_answered_with_close_notify(self) -> None:
        association = self.connect()
        before = len(self.from_server())
        association.close()
        association.close()
        self.network.advance(0.05)
        self.assertIsInstance(self.handler.lost[0][1], errors.PeerClosed)
        self.assertEqual([data[0] for data in self.from_server()[before:]], [records.ALERT])
        self.assertEqual(self.server.counters.associations_closed_by_peer, 1)
        self.assertEqual(len(self.client_handler.lost), 1)
        self.assertEqual(self.network.getDelayedCalls(), [])

    def test_a_handler_may_close_inside_its_call(self) -> None:
        self.handler.reaction = lambda one, data: self.server.close(one)
        client = self.raw_client()
        association = client.new_association()
        client.shake_hands(association)
        association.send(b"1")
        association.send(b"2")
        self.network.carry(client.address, SERVER, b"".join(association.take_datagrams(0.0)))
        self.network.advance(0.01)
        self.assertEqual(self.handler.texts, [b"1"])
        self.assertEqual(self.server.associations, 0)

    def test_shutdown_says_goodbye_to_all_and_leaves_nothing(self) -> None:
        for _ in range(3):
            self.connect()
        client = self.raw_client()
        client.write(half_open := client.new_association())
        client.read(half_open)
        client.write(half_open)
        self.assertEqual((self.server.associations, self.server.handshakes), (3, 1))
        self.server.shutdown()
        self.assertEqual((self.server.associations, self.server.handshakes), (0, 0))
        self.network.advance(0.05)
        self.assertEqual([type(why) for _, why in self.handler.lost], [errors.ShutDown] * 3)
        self.assertEqual([type(why) for _, why in self.client_handler.lost], [errors.PeerClosed] * 3)
        self.assertEqual(self.network.getDelayedCalls(), [])
        before = len(self.from_server())
        self.start(options=ClientOptions(handshake_timeout=0.05)).addErrback(lambda failure: None)
        self.network.advance(0.2)
        self.assertEqual(len(self.from_server()), before)
        self.server.shutdown()
        self.assertEqual(len(self.handler.lost), 3)

    def test_a_closed_socket_ends_everything_too(self) -> None:
        self.connect()
        transport: Any = self.server.transport
        transport.stopListening()
        self.assertIsInstance(self.handler.lost[0][1], errors.ShutDown)


class ComeBackTests(NetworkTestCase):
    """A client that was restarted and uses its old port again (RFC 6347 4.2.8)."""

    def address(self) -> tuple[str, int]:
        return self.network.sent[0][0]

    def test_a_client_that_went_without_goodbye(self) -> None:
        first = self.connect()
        first.abort()
        second = self.connect()
        addresses = {sender for sender, _, _ in self.network.sent}
        self.assertEqual(addresses, {self.address(), SERVER}, "the same port twice, or this shows nothing")
        self.assertEqual(self.handler.up, [1, 2])
        self.assertEqual([(one, type(why)) for one, why in self.handler.lost], [(1, errors.Replaced)])
        self.assertEqual(self.server.counters.associations_replaced, 1)
        self.assertEqual(self.server.associations, 1)
        self.assert_echo(second)

    def test_the_old_association_works_until_the_new_one_is_complete(self) -> None:
        client = self.raw_client()
        old = client.new_association()
        client.shake_hands(old)
        new = client.new_association()
        client.write(new)
        client.read(new)
        client.write(new)  # the hello with the cookie: the server's flight is on its way
        flight, client.inbox = client.inbox, []
        self.assertEqual((self.server.associations, self.server.handshakes), (1, 1))
        old.send(b"from the old one")
        client.write(old)
        self.assertEqual(self.handler.messages, [(1, b"from the old one")])
        self.server.send(1, b"to the old one")
        self.network.advance(0.01)
        self.assertEqual([progress.messages for progress in client.read(old)], [[b"to the old one"]])
        self.assertEqual(self.handler.lost, [])
        for datagram in flight:
            feed(new, datagram, 0.0)
        client.shake_hands(new)
        self.assertTrue(new.established)
        self.assertEqual(self.handler.up, [1, 2])
        self.assertIsInstance(self.handler.lost[0][1], errors.Replaced)
        new.send(b"from the new one")
        client.write(new)
        self.assertEqual(self.handler.messages[-1], (2, b"from the new one"))
        old.send(b"too late")
        client.write(old)
        self.assertEqual(len(self.handler.messages), 2)

    def test_an_unfinished_second_handshake_harms_nobody(self) -> None:
        client = self.raw_client()
        old = client.new_association()
        client.shake_hands(old)
        new = client.new_association()
        client.write(new)
        client.read(new)
        client.write(new)
        client.inbox.clear()
        self.network.clock.advance(61.0)
        self.assertEqual(self.server.counters.handshakes_timed_out, 1)
        self.assertEqual((self.server.associations, self.server.handshakes), (1, 0))
        old.send(b"hello")
        client.write(old)
        self.assertEqual(self.handler.messages, [(1, b"hello")])

    def test_a_hello_without_cookie_from_a_live_address_gets_one_and_no_more(self) -> None:
        association = self.connect()
        host = association.peer_address
        self.assertEqual((host.host, host.port), SERVER)
        address = self.network.sent[0][0]
        for _ in range(10):
            self.server.datagramReceived(client_hello(), address)
        self.assertEqual((self.server.associations, self.server.handshakes), (1, 0))
        self.assertEqual(self.server.counters.hello_verify_requests, 10)
        self.assert_echo(association)

    def test_a_late_copy_of_the_first_hellos_starts_nothing(self) -> None:
        self.server = self.serve(ServerOptions(cookie="always"))
        association = self.connect()
        address = self.network.sent[0][0]
        for hello in self.to_server()[:2]:
            self.server.datagramReceived(hello, address)
        self.assertEqual(self.server.counters.hellos_duplicate, 2)
        self.assertEqual(self.server.handshakes, 0)
        self.assert_echo(association)

    def test_a_client_that_starts_over_in_mid_handshake(self) -> None:
        client = self.raw_client()
        first = client.new_association()
        client.write(first)
        client.read(first)
        client.write(first)
        client.inbox.clear()
        second = client.new_association()
        client.shake_hands(second)
        self.assertTrue(second.established)
        self.assertEqual(self.server.counters.handshakes_superseded, 1)
        self.assertEqual((self.server.associations, self.server.handshakes), (1, 0))


class BoundTests(NetworkTestCase):
    """Tables have their caps, and what is silent goes."""

    def half_open(self, client: RawClient) -> Association:
        association = client.new_association()
        client.write(association)
        client.read(association)
        client.write(association)
        return association

    def test_handshakes_are_capped_and_the_oldest_goes(self) -> None:
        self.server = self.serve(ServerOptions(max_half_open=3))
        clients = [self.raw_client() for _ in range(5)]
        halves = [self.half_open(client) for client in clients]
        self.assertEqual(self.server.handshakes, 3)
        self.assertEqual(self.server.counters.handshakes_evicted, 2)
        for client, association in zip(clients, halves, strict=True):
            client.shake_hands(association)
        self.assertEqual([a.established for a in halves], [False, False, True, True, True])

    def test_a_handshake_has_its_time(self) -> None:
        self.half_open(self.raw_client())
        self.network.clock.advance(59.0)
        self.assertEqual(self.server.handshakes, 1)
        self.network.clock.advance(2.0)
        self.assertEqual(self.server.handshakes, 0)
        self.assertEqual(self.server.counters.handshakes_timed_out, 1)
        self.assertEqual(self.handler.up, [])
        self.assertEqual(self.network.getDelayedCalls(), [])

    def test_associations_are_capped_and_the_longest_silent_goes(self) -> None:
        self.server = self.serve(ServerOptions(max_associations=3))
        clients = [self.connect() for _ in range(3)]
        self.network.clock.advance(40.0)
        for talker in (clients[0], clients[2]):
            talker.send(b"I am here")
        self.network.advance(0.05)
        self.connect()
        self.assertEqual([(one, type(why)) for one, why in self.handler.lost], [(2, errors.Evicted)])
        self.assertEqual(self.server.counters.associations_evicted, 1)
        self.assertEqual(self.server.associations, 3)
        self.network.advance(0.05)
        self.assertEqual([one.connected for one in clients], [True, False, True])

    def test_an_unfinished_handshake_evicts_nobody(self) -> None:
        self.server = self.serve(ServerOptions(max_associations=1))
        association = self.connect()
        for _ in range(5):
            self.half_open(self.raw_client())
        self.assert_echo(association)

    def test_an_idle_association_is_closed_with_close_notify(self) -> None:
        self.server = self.serve(ServerOptions(idle_timeout=100.0))
        silent, busy = self.connect(), self.connect()
        self.network.clock.advance(60.0)
        busy.send(b"I am here")
        self.network.advance(0.05)
        self.network.clock.advance(60.0)
        self.network.advance(0.05)
        self.assertEqual([(one, type(why)) for one, why in self.handler.lost], [(1, errors.IdleTimeout)])
        self.assertEqual((silent.connected, busy.connected), (False, True))
        self.assertEqual(self.server.counters.associations_idle, 1)

    def test_forged_records_do_not_keep_an_association_alive(self) -> None:
        self.server = self.serve(ServerOptions(idle_timeout=100.0))
        self.connect()
        address = self.network.sent[0][0]
        self.network.clock.advance(60.0)
        self.server.datagramReceived(record(23, bytes(40), epoch=1, sequence=99), address)
        self.network.clock.advance(60.0)
        self.assertEqual(self.server.associations, 0)


class HandlerTests(NetworkTestCase):
    """A handler that raises hurts nobody else."""

    def test_it_is_logged_and_counted(self) -> None:
        def fail(association_id: int, data: bytes) -> None:
            raise RuntimeError("a handler's mistake")

        associations = [self.connect(), self.connect()]
        self.handler.reaction = fail
        associations[0].send(b"x")
        self.network.advance(0.05)
        self.assertEqual(self.server.counters.handler_errors, 1)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        for association in associations:
            self.assert_echo(association)

    def test_in_every_callback(self) -> None:
        class Broken:
            def association_established(self, association_id: int) -> None:
                raise RuntimeError("established")

            def message_received(self, association_id: int, data: bytes) -> None:
                raise RuntimeError("message")

            def association_moved(self, association_id: int) -> None:
                raise RuntimeError("moved")

            def association_lost(self, association_id: int, reason: errors.AssociationLost) -> None:
                raise RuntimeError("lost")

        self.server = self.serve(handler=Broken())
        association = self.connect(handler=Broken())
        association.send(b"x")
        association.close()
        self.network.advance(0.05)
        self.assertEqual(self.server.counters.handler_errors, 3)
        self.assertEqual(association.counters.handler_errors, 2)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 5)
        self.assertEqual((self.server.associations, self.network.getDelayedCalls()), (0, []))

    def test_a_network_that_refuses_is_a_loss(self) -> None:
        association = self.connect()
        transport = self.server.transport

        def refuse(packet: bytes, addr: object = None) -> None:
            raise OSError(105, "No buffer space available")

        self.patch(transport, "write", refuse)
        self.server.send(1, b"lost")
        self.assertEqual(self.server.counters.send_errors, 1)
        self.assertEqual(self.server.associations, 1)
        self.assertTrue(association.connected)


class LeakTests(NetworkTestCase):
    """Associations leave nothing behind."""

    def test_two_hundred_associations(self) -> None:
        connections: list[weakref.ref[SSL.Connection]] = []
        original = Association.__init__

        def note(association: Association, connection: SSL.Connection, **settings: Any) -> None:
            connections.append(weakref.ref(connection))
            original(association, connection, **settings)

        self.patch(Association, "__init__", note)
        for number in range(200):
            association = self.connect()
            association.send(b"x")
            self.network.advance(0.02)
            if number % 3 == 0:
                association.close()
            elif number % 3 == 1:
                self.server.close(self.handler.up[-1])
            else:
                association.abort()
            self.network.advance(0.02)
        self.assertEqual(len(self.handler.up), 200)
        self.assertEqual(len(connections), 400)
        self.server.shutdown()
        self.network.advance(0.05)
        self.assertEqual((self.server.associations, self.server.handshakes), (0, 0))
        self.assertEqual(self.network.getDelayedCalls(), [])
        self.assertEqual(len(self.handler.lost), 200)
        del association
        gc.collect()
        alive = sum(reference() is not None for reference in connections)
        self.assertLessEqual(alive, 1)  # the connect of the last one may still stand on the stack
