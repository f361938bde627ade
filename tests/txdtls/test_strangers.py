# SPDX-License-Identifier: AGPL-3.0-or-later
"""Bounds on associations: at each limit somebody silent or the newcomer goes, never a known client who talks."""

from __future__ import annotations

from synapse_lb.txdtls import errors
from synapse_lb.txdtls.association import Association
from synapse_lb.txdtls.options import ServerOptions
from synapse_lb.txdtls.strangers import CROWD
from tests.txdtls.support import SERVER, NetworkTestCase, RawClient, Recorder


class _MovingRecorder(Recorder):
    def association_moved(self, association_id: int) -> None:
        """Its clients may move."""


class StrangersTestCase(NetworkTestCase):
    """Clients at addresses of their own choice, shaken hands with by hand."""

    def come(self, host: str, port: int = 4000) -> tuple[RawClient, Association]:
        """A client completes a handshake, as far as it is let."""
        client = self.raw_client()
        client.address, client.transport = (host, port), None
        self.network.close(client.address)
        self.network.listenUDP(port, client, interface=host)
        association = client.new_association()
        client.shake_hands(association)
        return client, association

    def say(self, client: RawClient, association: Association) -> None:
        """A client sends a message."""
        association.send(b"here")
        client.write(association)

    def pass_time(self, seconds: float) -> None:
        """Nothing happens for so long."""
        self.network.clock.advance(seconds)
        self.network.advance(0.01)

    @property
    def losses(self) -> list[tuple[int, type[Exception]]]:
        """Who was lost, and why."""
        return [(one, type(why)) for one, why in self.handler.lost]


class DeadlineTests(StrangersTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.server = self.serve(ServerOptions(unauthenticated_timeout=100.0))

    def test_a_stranger_is_closed_after_its_time_however_much_it_talks(self) -> None:
        client, association = self.come("192.0.2.1")
        for _ in range(9):
            self.pass_time(10.0)
            self.say(client, association)
        self.assertEqual(self.server.associations, 1)
        self.pass_time(11.0)
        self.assertEqual(self.losses, [(1, errors.Unauthenticated)])
        self.assertEqual(self.server.counters.associations_unauthenticated, 1)
        self.assertEqual(self.server.counters.associations_idle, 0)
        progress = client.read(association)
        self.assertIsInstance(progress[-1].lost, errors.PeerClosed)
        self.assertEqual(self.network.getDelayedCalls(), [])

    def test_a_known_client_stays(self) -> None:
        self.come("192.0.2.1")
        self.server.trust(1)
        self.server.trust(1)
        self.pass_time(5000.0)
        self.assertEqual(self.losses, [])

    def test_one_that_is_known_no_more_has_a_newcomer_s_time(self) -> None:
        self.come("192.0.2.1")
        self.server.trust(1)
        self.pass_time(1000.0)
        self.server.trust(1, known=False)
        self.pass_time(60.0)
        self.server.trust(1, known=False)  # it is no way to have more time
        self.assertEqual(self.losses, [])
        self.pass_time(41.0)
        self.assertEqual(self.losses, [(1, errors.Unauthenticated)])

    def test_nobody_is_no_trouble(self) -> None:
        self.server.trust(7)
        self.server.trust(7, known=False)
        self.assertEqual(self.network.getDelayedCalls(), [])


class TotalTests(StrangersTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.server = self.serve(ServerOptions(max_associations=3))

    def test_the_newcomer_goes_when_nobody_has_been_silent_for_long(self) -> None:
        for number in range(3):
            self.come(f"192.0.2.{number}")
            self.server.trust(number + 1)
        self.come("198.51.100.1")
        self.assertEqual(self.handler.up, [1, 2, 3])
        self.assertEqual(self.losses, [])
        self.assertEqual(self.server.associations, 3)
        self.assertEqual(self.server.counters.associations_refused, 1)
        self.assertEqual(self.server.counters.associations_evicted, 0)

    def test_a_silent_stranger_goes_before_any_known_client(self) -> None:
        self.come("192.0.2.1")
        self.server.trust(1)
        self.pass_time(7200.0)
        talker = self.come("192.0.2.2")
        self.come("192.0.2.3")
        self.pass_time(31.0)
        self.say(*talker)
        self.come("192.0.2.4")
        self.assertEqual(self.losses, [(3, errors.Evicted)])
        self.assertEqual(self.server.counters.associations_evicted, 1)

    def test_a_known_client_goes_only_after_long_silence(self) -> None:
        clients = [self.come(f"192.0.2.{number}") for number in range(3)]
        for number in range(3):
            self.server.trust(number + 1)
        self.pass_time(3000.0)
        self.say(*clients[0])
        self.pass_time(599.0)
        self.come("192.0.2.8")
        self.assertEqual(self.losses, [])
        self.pass_time(2.0)
        self.come("192.0.2.9")
        self.assertEqual(self.losses, [(2, errors.Evicted)])
        self.assertEqual(self.server.counters.associations_refused, 1)

    def test_a_flood_of_strangers_takes_nothing_from_known_clients(self) -> None:
        known = self.come("192.0.2.1")
        self.server.trust(1)
        for number in range(50):
            self.come(f"198.51.100.{number}")
            self.pass_time(20.0)
            self.say(*known)
        self.assertNotIn(1, [one for one, _ in self.handler.lost])
        self.assertEqual(self.server.associations, 3)


class SourceTests(StrangersTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.handler = _MovingRecorder()
        self.server = self.serve(ServerOptions(max_associations_per_source=2))

    def test_one_ipv4_address_has_so_many_and_others_theirs(self) -> None:
        for port in range(4000, 4003):
            self.come("192.0.2.1", port)
        self.assertEqual(self.server.associations, 2)
        self.assertEqual(self.server.counters.associations_refused, 1)
        self.come("192.0.2.2")
        self.assertEqual(self.server.associations, 3)

    def test_an_ipv6_network_of_64_bits_is_one_source(self) -> None:
        for number in range(4):
            self.come(f"2001:db8::{number:x}")
        self.assertEqual(self.server.associations, 2)
        self.come("2001:db8:0:1::1")
        self.assertEqual(self.server.associations, 3)

    def test_the_silent_stranger_of_the_same_source_goes(self) -> None:
        self.come("198.51.100.1")
        self.come("192.0.2.1", 4000)
        self.come("192.0.2.1", 4001)
        self.pass_time(31.0)
        self.come("192.0.2.1", 4002)
        self.assertEqual(self.losses, [(2, errors.Evicted)])

    def test_a_known_client_of_the_same_source_goes_only_after_long_silence(self) -> None:
        """Of several the one that has been silent for longest, whoever came first; never one of elsewhere."""
        evictable_after = 1000.0
        options = ServerOptions(max_associations_per_source=2, evictable_after=evictable_after)
        self.server = self.serve(options)
        self.come("198.51.100.1")
        first = self.come("192.0.2.1", 4000)
        self.come("192.0.2.1", 4001)
        for known in (1, 2, 3):
            self.server.trust(known)
        self.pass_time(500.0)
        self.say(*first)
        self.pass_time(evictable_after - 501.0)
        self.come("192.0.2.1", 4002)
        self.assertEqual((self.losses, self.server.counters.associations_refused), ([], 1))
        self.pass_time(2.0)
        self.come("192.0.2.1", 4003)
        self.assertEqual(self.losses, [(3, errors.Evicted)])
        self.say(*first)
        self.come("192.0.2.1", 4004)
        self.assertEqual((len(self.losses), self.server.counters.associations_refused), (1, 2))

    def test_an_end_makes_room(self) -> None:
        for _ in range(5):
            self.come("192.0.2.1")  # each replaces the one before
        self.server.close(self.handler.up[-1])
        self.come("192.0.2.1", 4001)
        self.come("192.0.2.1", 4002)
        self.assertEqual(self.server.associations, 2)
        self.assertEqual(self.server.counters.associations_refused, 0)

    def test_nothing_is_kept_of_a_source_that_has_gone(self) -> None:
        for number in range(3):
            self.come(f"192.0.2.{number}")
        for association_id in list(self.handler.up):
            self.server.close(association_id)
        strangers = self.server._strangers
        self.assertEqual((strangers._sources, strangers._source_of, len(strangers)), ({}, {}, 0))

    def test_who_has_moved_counts_where_it_is_now(self) -> None:
        client, association = self.come("192.0.2.1", 4000)
        client.address = ("198.51.100.1", 4000)
        self.say(client, association)
        self.assertEqual(self.server.counters.associations_moved, 1)
        self.come("192.0.2.1", 4001)
        self.come("192.0.2.1", 4002)
        self.assertEqual(self.server.associations, 3)
        self.come("198.51.100.1", 4001)
        self.come("198.51.100.1", 4002)
        self.assertEqual(self.server.associations, 4)


class UnauthenticatedTests(StrangersTestCase):
    def test_strangers_are_few_and_known_clients_are_not_counted(self) -> None:
        self.server = self.serve(ServerOptions(max_unauthenticated=2))
        for number in range(4):
            self.come(f"192.0.2.{number}")
            self.server.trust(number + 1)
        for number in range(3):
            self.come(f"198.51.100.{number}")
        self.assertEqual(self.server.associations, 6)
        self.assertEqual(self.server.counters.associations_refused, 1)
        self.pass_time(31.0)
        self.come("203.0.113.1")
        self.assertEqual(self.losses, [(5, errors.Evicted)])

    def test_known_clients_make_no_room_for_strangers(self) -> None:
        """However silent they are, as long as there is room for associations."""
        self.server = self.serve(ServerOptions(max_unauthenticated=1))
        self.come("192.0.2.1")
        self.server.trust(1)
        self.pass_time(80000.0)
        self.come("198.51.100.1")
        self.come("198.51.100.2")
        self.assertEqual((self.losses, self.server.associations), ([], 2))
        self.assertEqual(self.server.counters.associations_refused, 1)


class CrowdTests(StrangersTestCase):
    """Somebody with one address who takes all the room for strangers, and talks so that he is not silent."""

    def crowd(self, size: int) -> None:
        """Strangers from one address, with ids from 1."""
        for port in range(size):
            self.come("198.51.100.1", 4000 + port)

    def test_others_get_in(self) -> None:
        self.server = self.serve(ServerOptions(max_unauthenticated=CROWD))
        self.crowd(CROWD)
        for number in range(3):
            self.assertTrue(self.come(f"192.0.2.{number}")[1].established)
        # the newest goes, and it is over when they are no crowd any more
        self.assertEqual(self.losses, [(CROWD, errors.Evicted)])
        self.assertEqual(self.server.counters.associations_refused, 2)
        self.assertIn(CROWD + 1, self.handler.up)

    def test_one_more_of_them_does_not(self) -> None:
        self.server = self.serve(ServerOptions(max_unauthenticated=2 * CROWD))
        self.crowd(2 * CROWD)
        self.come("198.51.100.1", 9000)
        self.assertEqual((self.losses, self.server.counters.associations_refused), ([], 1))

    def test_a_crowd_is_as_good_as_another(self) -> None:
        self.server = self.serve(ServerOptions(max_unauthenticated=2 * CROWD - 1))
        self.crowd(CROWD)
        for port in range(CROWD):
            self.come("203.0.113.1", 4000 + port)
        self.assertEqual((self.losses, self.server.counters.associations_refused), ([], 1))

    def test_they_go_before_any_known_client(self) -> None:
        """Also where it is associations that there is no room for."""
        self.server = self.serve(ServerOptions(max_associations=CROWD + 1, evictable_after=5.0))
        self.come("192.0.2.1")
        self.server.trust(1)
        self.pass_time(10.0)
        self.crowd(CROWD)
        self.come("192.0.2.2")
        self.assertEqual(self.losses, [(CROWD + 1, errors.Evicted)])

    def test_another_address_s_room_is_its_own(self) -> None:
        """Where there are too many of one address, a crowd at another one makes no room for them."""
        self.server = self.serve(ServerOptions(max_associations_per_source=CROWD + 1))
        self.crowd(CROWD + 1)
        for number in range(CROWD + 1):
            self.come("192.0.2.1", 4000 + number)
            self.server.trust(CROWD + 2 + number)
        self.come("192.0.2.1", 9000)
        self.assertEqual((self.losses, self.server.counters.associations_refused), ([], 1))

    def test_known_ones_are_no_crowd(self) -> None:
        self.server = self.serve(ServerOptions(max_associations=2 * CROWD))
        self.crowd(2 * CROWD)
        for known in range(1, 2 * CROWD + 1):
            self.server.trust(known)
        self.come("192.0.2.1")
        self.assertEqual((self.losses, self.server.counters.associations_refused), ([], 1))


class RateTests(StrangersTestCase):
    def test_so_many_handshakes_begin_in_a_second(self) -> None:
        for cookie in ("always", "auto"):
            self.server = self.serve(ServerOptions(handshakes_per_second=1, cookie=cookie))
            came = [self.come(f"192.0.2.{number}")[1].established for number in range(4)]
            self.assertEqual(came, [True] + [False] * 3, cookie)
            self.assertEqual(self.server.counters.handshakes_started, 1)
            self.assertEqual(self.server.counters.handshakes_refused, 3)
            self.network.clock.advance(1.0)
            self.assertTrue(self.come("192.0.2.99")[1].established)

    def test_nothing_is_sent_or_kept_for_those_beyond(self) -> None:
        self.server = self.serve(ServerOptions(handshakes_per_second=1, cookie="always"))
        self.come("192.0.2.1")
        self.network.sent.clear()
        self.come("192.0.2.2")
        answers = [data for sender, _, data in self.network.sent if sender == SERVER]
        self.assertEqual(len(answers), 1)  # the cookie, for which nothing is kept
        self.assertEqual(self.server.handshakes, 0)
