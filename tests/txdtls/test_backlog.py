# SPDX-License-Identifier: AGPL-3.0-or-later
"""Each association is served in its turn; one that floods delays nobody, and its excess is dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.txdtls.backlog import AT_ONCE, FEW, MANY, ROUNDS, SHORTEST, Backlog
from synapse_lb.txdtls.options import ServerCounters, ServerOptions
from tests.txdtls.support import NetworkTestCase

Item = tuple[str, int]


class BacklogTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.served: list[Item] = []
        self.also: Callable[[], object] = lambda: None
        self.counters = ServerCounters()
        self.backlog = self.make(ServerOptions(max_waiting_per_association=60, max_waiting=90))

    def make(self, options: ServerOptions) -> Backlog[Item]:
        return Backlog(self.clock, options, self.counters, lambda item: self.serve(item))

    def serve(self, item: Item) -> None:
        self.served.append(item)
        self.also()

    def flood(self, source: str, count: int, start: int = 0) -> None:
        for number in range(start, start + count):
            self.backlog.take(source, (source, number))

    def test_a_few_are_served_at_once(self) -> None:
        self.flood("a", AT_ONCE)
        self.flood("b", AT_ONCE)
        self.assertEqual(len(self.served), 2 * AT_ONCE)
        self.assertEqual(self.counters.datagrams_deferred, 0)
        self.clock.advance(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_timer_for_a_few(self) -> None:
        self.flood("a", FEW)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.flood("a", 1)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(0)
        self.flood("a", FEW)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_is_noted_of_associations_is_bounded(self) -> None:
        for number in range(3 * MANY):
            self.flood(str(number), 1)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(0)
        self.flood("1", AT_ONCE)
        self.assertEqual(len(self.backlog), 0)

    def test_after_quiet_turns_a_burst_is_served_but_for_a_few(self) -> None:
        for number in range(FEW):
            self.flood("a", 1, start=number)
            self.clock.advance(0)
        self.flood("a", AT_ONCE, start=FEW)
        self.assertEqual((len(self.served), len(self.backlog)), (AT_ONCE, FEW))
        self.clock.advance(0)
        self.assertEqual(self.served, [("a", number) for number in range(AT_ONCE + FEW)])

    def test_a_pause_is_no_long_turn(self) -> None:
        """Those who wait after it are not given as long as it was."""
        self.clock.advance(3600)
        self.flood("a", AT_ONCE + 50)
        self.also = lambda: self.pass_time(SHORTEST)
        self.one_turn()
        self.assertEqual(len(self.served), AT_ONCE + 1)

    def test_a_quiet_one_does_not_wait_for_a_flood(self) -> None:
        self.flood("a", AT_ONCE + 15)
        self.backlog.take("b", ("b", 0))
        self.assertEqual(self.served[-1], ("b", 0))
        self.assertEqual(len(self.backlog), 15)

    def test_in_order_and_nothing_overtakes(self) -> None:
        self.flood("a", AT_ONCE + 10)
        self.clock.advance(0)
        self.flood("a", 3, start=AT_ONCE + 10)
        for _ in range(5):
            self.clock.advance(0)
        self.assertEqual(self.served, [("a", number) for number in range(AT_ONCE + 13)])
        self.assertEqual((len(self.backlog), self.clock.getDelayedCalls()), (0, []))

    def test_those_who_wait_are_served_in_turn(self) -> None:
        self.flood("a", AT_ONCE + 4)
        self.flood("b", AT_ONCE + 2)
        self.served.clear()
        self.clock.advance(0)
        self.assertEqual("".join(source for source, _ in self.served), "ababaa")

    def test_a_turn_ends(self) -> None:
        """After so many of each, or so long; the reactor reads its sockets before the next one."""
        self.flood("a", AT_ONCE + 50)
        self.served.clear()
        self.one_turn()
        self.assertEqual(len(self.served), ROUNDS)
        self.also = lambda: self.pass_time(SHORTEST / 2)
        self.one_turn()
        self.assertEqual(len(self.served), ROUNDS + 2)

    def test_after_a_long_turn_those_who_wait_are_given_as_long(self) -> None:
        self.flood("a", AT_ONCE + 50)
        self.served.clear()
        self.pass_time(1.0)
        self.also = lambda: self.pass_time(0.125)
        self.one_turn()
        self.assertEqual(len(self.served), 8)
        self.pass_time(0.25)
        self.one_turn()
        self.assertEqual(len(self.served), 10)

    def test_everybody_has_a_datagram_in_each_turn_however_long_it_takes(self) -> None:
        for source in "abc":
            self.flood(source, AT_ONCE + 2)
        self.also = lambda: self.pass_time(SHORTEST)
        self.served.clear()
        self.one_turn()
        self.assertEqual("".join(source for source, _ in self.served), "abc")

    def one_turn(self) -> None:
        """What a reactor does before it reads its sockets again."""
        call: Any = self.clock.getDelayedCalls()[0]
        turn = call.func
        call.cancel()
        turn()

    def pass_time(self, seconds: float) -> None:
        """Something takes so long, and no timer is run meanwhile."""
        self.clock.rightNow += seconds

    def test_what_is_too_much_is_dropped(self) -> None:
        self.flood("a", AT_ONCE + 65)
        self.assertEqual((len(self.backlog), self.counters.datagrams_overflowed), (60, 5))
        self.assertEqual(self.counters.datagrams_deferred, 60)
        self.clock.advance(0)
        self.assertEqual(self.served[-1], ("a", AT_ONCE + 59))

    def test_all_together_and_yet_one_of_each(self) -> None:
        self.flood("a", AT_ONCE + 60)
        self.flood("b", AT_ONCE + 60)
        self.assertEqual((len(self.backlog), self.counters.datagrams_overflowed), (90, 30))
        self.flood("c", AT_ONCE + 2)
        self.assertEqual((len(self.backlog), self.counters.datagrams_overflowed), (91, 31))

    def test_nothing_stays(self) -> None:
        self.flood("a", AT_ONCE + 5)
        self.backlog.cancel()
        self.assertEqual((len(self.backlog), self.clock.getDelayedCalls()), (0, []))
        self.served.clear()
        self.clock.advance(1)
        self.assertEqual(self.served, [])

    def test_the_end_of_all_while_one_is_served(self) -> None:
        self.flood("a", AT_ONCE + 5)
        self.served.clear()
        self.also = lambda: self.backlog.cancel()
        self.clock.advance(0)
        self.assertEqual(len(self.served), 1)
        self.assertEqual((len(self.backlog), self.clock.getDelayedCalls()), (0, []))


class PortTests(NetworkTestCase):
    """The port asks it about associations that are established."""

    def test_a_flood_within_one_association(self) -> None:
        client = self.raw_client()
        association = client.new_association()
        client.shake_hands(association)
        flood = []
        for number in range(600):
            association.send(b"%d" % number)
            flood += association.take_datagrams(self.network.seconds())
        for data in flood:
            self.server.datagramReceived(data, client.address)
        self.assertEqual((len(flood), len(self.handler.messages)), (600, AT_ONCE))
        waiting = ServerOptions().max_waiting_per_association
        self.assertEqual(self.server.counters.datagrams_overflowed, len(flood) - AT_ONCE - waiting)
        self.server.shutdown()
        self.assertEqual(len(self.handler.messages), AT_ONCE)
