# SPDX-License-Identifier: AGPL-3.0-or-later
"""The in-memory network delivers as UDP does, in virtual time."""

from __future__ import annotations

from typing import Any

from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.testing.lossy import LossyLink, Weather
from synapse_lb.testing.memory import MemoryUDP


class Echo(DatagramProtocol):
    """Keeps what it receives, and answers as often as asked."""

    transport: Any

    def __init__(self, network: MemoryUDP, answers: int = 0) -> None:
        self.network = network
        self.answers = answers
        self.received: list[tuple[float, bytes, tuple[str, int]]] = []
        self.stopped = False

    def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
        self.received.append((round(self.network.seconds(), 6), datagram, addr))
        if self.answers:
            self.answers -= 1
            self.transport.write(b"+" + datagram, addr)

    def stopProtocol(self) -> None:
        self.stopped = True


class MemoryUDPTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.network = MemoryUDP()
        self.server = Echo(self.network, answers=3)
        self.client = Echo(self.network, answers=2)
        self.port = self.network.listenUDP(8008, self.server, interface="192.0.2.1")
        self.network.listenUDP(0, self.client, interface="192.0.2.2")

    def test_a_datagram_is_not_delivered_inside_write(self) -> None:
        self.server.answers = 0
        self.client.transport.write(b"x", ("192.0.2.1", 8008))
        self.assertEqual(self.server.received, [])
        self.network.advance(0)
        self.assertEqual(self.server.received, [(0.0, b"x", ("192.0.2.2", 49152))])

    def test_answers_to_answers_arrive_within_one_advance(self) -> None:
        self.network.latency = 0.1
        self.client.transport.write(b"x", ("192.0.2.1", 8008))
        self.network.advance(1)
        self.assertEqual([data for _, data, _ in self.client.received], [b"+x", b"+++x", b"+++++x"])
        self.assertEqual(self.network.seconds(), 1.0)
        self.assertEqual(len(self.network.sent), 6)
        self.assertEqual(self.network.getDelayedCalls(), [])

    def test_the_link_decides(self) -> None:
        self.server.answers = 0
        self.network.link = LossyLink(Weather(duplication=1.0, hold_back=0.0))
        self.client.transport.write(b"x", ("192.0.2.1", 8008))
        self.network.clock.advance(0)
        self.assertEqual(len(self.server.received), 2)
        self.network.link.weather = Weather(loss=1.0)
        self.network.advance(1)
        self.client.transport.write(b"y", ("192.0.2.1", 8008))
        self.network.advance(1)
        self.assertNotIn(b"y", [data for _, data, _ in self.server.received])

    def test_a_connected_port_hears_only_its_peer(self) -> None:
        self.client.transport.connect("192.0.2.1", 8008)
        self.network.carry(("192.0.2.66", 1), ("192.0.2.2", 49152), b"forged")
        self.client.transport.write(b"x")
        self.network.advance(1)
        self.assertEqual(next(data for _, data, _ in self.client.received), b"+x")
        self.assertNotIn(b"forged", [data for _, data, _ in self.client.received])

    def test_a_closed_port_receives_nothing(self) -> None:
        self.successResultOf(self.port.stopListening())
        self.client.transport.write(b"x", ("192.0.2.1", 8008))
        self.network.advance(1)
        self.assertTrue(self.server.stopped)
        self.assertEqual(self.server.received, [])
        self.assertEqual(self.network.unreachable, 1)

    def test_an_unplugged_port_is_silent_both_ways(self) -> None:
        """As when its process is killed: the protocol is not told, and what it still says goes nowhere."""
        self.port.unplug()
        self.server.transport.write(b"x", ("192.0.2.2", 49152))
        self.client.transport.write(b"y", ("192.0.2.1", 8008))
        self.network.advance(1)
        self.assertEqual((self.server.received, self.client.received, self.server.stopped), ([], [], False))
        self.assertEqual(self.network.unreachable, 1)
        self.network.listenUDP(8008, Echo(self.network), interface="192.0.2.1")

    def test_a_taken_port_is_refused_and_the_next_is_found(self) -> None:
        again = Echo(self.network)
        self.assertRaises(CannotListenError, self.network.listenUDP, 8008, again, interface="192.0.2.1")
        self.network.listenUDP(0, again, interface="192.0.2.2")
        self.assertEqual(again.transport.getHost().port, 49153)

    def test_unconnected_without_an_address(self) -> None:
        self.assertRaises(ValueError, self.client.transport.write, b"x")
