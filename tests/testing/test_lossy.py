# SPDX-License-Identifier: AGPL-3.0-or-later
"""The bad network does to datagrams what it was asked to do, and counts it."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import DatagramProtocol
from twisted.trial.unittest import SynchronousTestCase, TestCase

from synapse_lb.testing.lossy import CLEAR, STORM, LossyLink, LossyRelay, Weather


class LinkTests(SynchronousTestCase):
    def test_a_clear_link_delivers_everything_at_once(self) -> None:
        link = LossyLink(CLEAR)
        self.assertEqual([link.fate(b"x") for _ in range(50)], [[0.0]] * 50)
        self.assertEqual((link.counters.lost, link.counters.duplicated, link.counters.held_back), (0, 0, 0))

    def test_the_same_seed_gives_the_same_fate_and_another_seed_another(self) -> None:
        def fates(seed: int) -> list[list[float]]:
            link = LossyLink(STORM, seed)
            return [link.fate(b"datagram") for _ in range(200)]

        self.assertEqual(fates(1), fates(1))
        self.assertNotEqual(fates(1), fates(2))

    def test_the_probabilities_hold(self) -> None:
        link = LossyLink(Weather(loss=0.2, duplication=0.5, reordering=0.1, delay=1.0, hold_back=0.5), seed=3)
        fates = [link.fate(b"12345") for _ in range(10_000)]
        counters = link.counters
        self.assertEqual((counters.sent, counters.sent_bytes), (10_000, 50_000))
        self.assertEqual(sum(len(fate) for fate in fates), 10_000 - counters.lost + counters.duplicated)
        self.assertEqual(counters.lost, sum(not fate for fate in fates))
        self.assertTrue(1850 < counters.lost < 2150, counters)
        self.assertTrue(3800 < counters.duplicated < 4200, counters)
        self.assertTrue(700 < counters.held_back < 900, counters)
        self.assertTrue(all(1.0 <= delay < 2.0 for fate in fates for delay in fate))

    def test_a_rule_loses_exactly_one(self) -> None:
        link = LossyLink(drop=lambda number, data: number == 2 and data == b"c")
        self.assertEqual([bool(link.fate(data)) for data in (b"a", b"b", b"c", b"c")], [1, 1, 0, 1])

    def test_a_probability_above_one_is_refused(self) -> None:
        self.assertRaises(ValueError, Weather, loss=1.5)
        self.assertRaises(ValueError, Weather, delay=-1)


class Recorder(DatagramProtocol):
    """Keeps what it receives; answers if asked to."""

    transport: Any

    def __init__(self, echo: bool = False) -> None:
        self.echo = echo
        self.received: list[tuple[bytes, tuple[str, int]]] = []
        self._waiting: list[tuple[int, Deferred[None]]] = []

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        self.received.append((datagram, addr))
        if self.echo:
            self.transport.write(b"re:" + datagram, addr)
        for wanted, waiting in list(self._waiting):
            if len(self.received) >= wanted:
                self._waiting.remove((wanted, waiting))
                waiting.callback(None)

    def count(self, wanted: int) -> Deferred[None]:
        """Fires once that many datagrams have arrived."""
        waiting: Deferred[None] = Deferred()
        if len(self.received) >= wanted:
            waiting.callback(None)
        else:
            self._waiting.append((wanted, waiting))
        return waiting


class RelayTests(TestCase):
    timeout = 20
    reactor: Any = reactor

    def listen(self, protocol: DatagramProtocol) -> int:
        port = self.reactor.listenUDP(0, protocol, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)

    def relay(self, server: int, **arguments: Any) -> LossyRelay:
        relay = LossyRelay(self.reactor, server=("127.0.0.1", server), **arguments)
        relay.start()
        self.addCleanup(relay.stop)
        return relay

    async def test_answers_reach_the_client_that_asked(self) -> None:
        server, one, two = Recorder(echo=True), Recorder(), Recorder()
        relay = self.relay(self.listen(server))
        self.listen(one)
        self.listen(two)
        one.transport.write(b"1", ("127.0.0.1", relay.port))
        two.transport.write(b"2", ("127.0.0.1", relay.port))
        await one.count(1)
        await two.count(1)
        self.assertEqual(one.received, [(b"re:1", ("127.0.0.1", relay.port))])
        self.assertEqual(two.received, [(b"re:2", ("127.0.0.1", relay.port))])
        self.assertEqual(len({address for _, address in server.received}), 2)

    async def test_duplicates_arrive_late_and_are_counted(self) -> None:
        server, client = Recorder(), Recorder()
        relay = self.relay(self.listen(server), weather=Weather(duplication=1.0, hold_back=0.01))
        self.listen(client)
        client.transport.write(b"twice", ("127.0.0.1", relay.port))
        await server.count(2)
        self.assertEqual([data for data, _ in server.received], [b"twice", b"twice"])
        self.assertEqual(relay.to_server.counters.delivered, 2)
        self.assertEqual(relay.to_server.counters.delivered_bytes, 10)

    async def test_what_is_lost_does_not_arrive(self) -> None:
        server, client = Recorder(), Recorder()
        relay = self.relay(self.listen(server))
        relay.to_server.drop = lambda number, data: data == b"lost"
        self.listen(client)
        for data in (b"lost", b"kept"):
            client.transport.write(data, ("127.0.0.1", relay.port))
        await server.count(1)
        self.assertEqual([data for data, _ in server.received], [b"kept"])

    async def test_forgotten_ports_change(self) -> None:
        server, client = Recorder(), Recorder()
        relay = self.relay(self.listen(server))
        self.listen(client)
        client.transport.write(b"a", ("127.0.0.1", relay.port))
        await server.count(1)
        relay.forget_client_ports()
        client.transport.write(b"b", ("127.0.0.1", relay.port))
        await server.count(2)
        self.assertNotEqual(server.received[0][1], server.received[1][1])

    async def test_the_table_is_bounded(self) -> None:
        server = Recorder()
        relay = self.relay(self.listen(server), max_clients=2)
        for number in range(4):
            client = Recorder()
            self.listen(client)
            client.transport.write(b"x", ("127.0.0.1", relay.port))
            await server.count(number + 1)
        self.assertEqual(relay.forgotten, 2)

    async def test_stop_cancels_what_is_on_its_way(self) -> None:
        # Trial itself fails the test if a delayed call stays behind.
        server, client = Recorder(), Recorder()
        relay = self.relay(self.listen(server), weather=Weather(delay=3600))
        self.listen(client)
        client.transport.write(b"late", ("127.0.0.1", relay.port))
        while relay.to_server.counters.sent == 0:
            await self.turn()
        await relay.stop()
        self.assertEqual(server.received, [])

    def turn(self) -> Deferred[None]:
        """Let the reactor run once."""
        turned: Deferred[None] = Deferred()
        self.reactor.callLater(0, turned.callback, None)
        return turned
