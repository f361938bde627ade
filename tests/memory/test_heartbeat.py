# SPDX-License-Identifier: AGPL-3.0-or-later
"""An idle observer behind a NAT that forgets: what it learns, and what that costs, byte by byte, in virtual time."""

from __future__ import annotations

import random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.client import ClientVerification, LowBandwidthClient, Persistence
from synapse_lb.testing.memory import Address
from synapse_lb.txdtls.context import make_server_context
from synapse_lb.txdtls.options import ServerOptions
from tests.client.harness import Certificate
from tests.memory.homeserver import Homeserver, Store
from tests.memory.network import SERVER, BadNetwork, Machine

USER = "@alice:localhost"
HOST = "198.51.100.1"
HEADERS = 28
"""B: IPv4 and UDP."""

PING = HEADERS + 29 + 4
"""B: an empty CoAP message, what DTLS 1.2 with AES-GCM adds to it, and what is around that."""

HOUR = 3600.0
NEVER = 1e9


class ForgetfulNetwork(BadNetwork):
    """A NAT that keeps a mapping for so many seconds from what the client sent last, and counts what it carries.

    Args:
        forgets: that many seconds.

    Attributes:
        sizes: of what the client sent, in bytes of IP packets.
        bytes: both ways.
        mappings: how many were made.
    """

    def __init__(self, forgets: float) -> None:
        super().__init__(seed=1)
        self.forgets = forgets
        self.sizes: list[int] = []
        self.bytes = 0
        self.mappings = 0
        self._spoke_at = float("-inf")

    def carry(self, sender: Address, to: Address, data: bytes) -> None:
        """Put a datagram on its way."""
        if self.seconds() - self._spoke_at > self.forgets:
            self.rebind(HOST)
        if to == SERVER:
            self.mappings += sender not in self._outside
            self._spoke_at = self.seconds()
            self.sizes.append(HEADERS + len(data))
        self.bytes += HEADERS + len(data)
        super().carry(sender, to, data)


class HeartbeatTestCase(SynchronousTestCase):
    """Has an observer behind a NAT."""

    def setUp(self) -> None:
        self.certificate = Certificate()
        self.addCleanup(self.certificate.remove)
        self.bodies: list[Any] = []

    def begin(self, forgets: float, *, follows: bool = True, **settings: Any) -> LowBandwidthClient:
        """Observe; return the client.

        Args:
            forgets: seconds after which the NAT does.
            follows: whether the server follows clients that move.
            settings: of the client.
        """
        self.network = ForgetfulNetwork(forgets)
        self.server = Homeserver(
            self.network,
            Store(),
            random.Random(2),
            make_server_context(self.certificate.path, self.certificate.key_path),
            {"syt_alice": USER},
            0.0,
            options=ServerOptions(handshake_timeout=10.0, move_trials_per_datagram=64 if follows else 0),
        )
        self.addCleanup(self.server.kill)
        return self.observe(**settings)

    def observe(self, **settings: Any) -> LowBandwidthClient:
        """Observe, with a new client."""
        self.bodies.clear()
        machine = Machine(self.network, HOST)
        self.addCleanup(machine.kill)
        client = LowBandwidthClient(
            machine,
            f"{SERVER[0]}:{SERVER[1]}",
            verification=ClientVerification.none(),
            random=random.Random(3),
            **settings,
        )
        client.observe_sync(None, self.bodies.append, token="syt_alice")
        assert self.network.run_until(lambda: bool(self.bodies), 60.0)
        return client

    def pass_time(self, seconds: float) -> int:
        """Let time pass; return the bytes of IP packets that crossed the network meanwhile."""
        before, end = self.network.bytes, self.network.seconds() + seconds
        self.network.sizes.clear()
        self.network.run_until(lambda: False, seconds)
        self.network.clock.advance(max(end - self.network.seconds(), 0.0))
        return self.network.bytes - before

    @property
    def registrations(self) -> int:
        """How often the server was asked to notify."""
        assert self.server.gateway.observer is not None
        return self.server.gateway.observer.counters.registrations


class LearningTests(HeartbeatTestCase):
    """The server follows clients that move, as ours does."""

    def test_learns_what_the_nat_allows(self) -> None:
        """After that no mapping is lost, and what crosses the network are pings and their Resets, to the byte."""
        for forgets in (30.0, 120.0, 600.0, NEVER):
            client = self.begin(forgets, persistence=Persistence(refresh=NEVER))
            self.pass_time(HOUR)
            mappings = self.network.mappings
            total = self.pass_time(5 * HOUR)
            pings = len(self.network.sizes)
            self.assertEqual(set(self.network.sizes), {PING})
            self.assertEqual(total, pings * 2 * PING)
            interval = 5 * HOUR / pings
            self.assertGreater(interval, 0.85 * min(forgets, 285.0))
            self.assertLess(interval, min(forgets, 288.0))
            self.assertEqual((self.network.mappings, self.registrations), (mappings, 1))
            self.assertEqual(self.server.dtls.counters.handshakes_completed, 1)
            known = client.known_silence
            assert known is not None
            self.assertTrue(0.99 * interval <= known < min(forgets, 286.0), (interval, known))

    def test_search_loses_few(self) -> None:
        for forgets, most in ((30.0, 4), (120.0, 4), (290.0, 0), (NEVER, 0)):
            self.begin(forgets)
            self.pass_time(HOUR)
            self.assertLessEqual(self.network.mappings - 1, most, forgets)

    def test_forty_bytes_a_minute(self) -> None:
        """With everything that the default settings do, the hourly registration included."""
        for forgets in (600.0, NEVER):
            self.begin(forgets)
            self.pass_time(HOUR)
            total = self.pass_time(10 * HOUR)
            self.assertEqual(self.registrations, 11)
            self.assertLess(total, 40 * 10 * 60)
            self.assertGreater(total, 10 * HOUR / 286.0 * 2 * PING)

    def test_a_push_finds_the_way_open(self) -> None:
        """What happens comes within a second, however long nothing has happened."""
        self.begin(120.0)
        self.pass_time(HOUR)
        for silence in (10.0, 100.0, 119.0, 130.0, 1000.0, 5000.0):
            self.pass_time(silence)
            self.bodies.clear()
            self.server.store.add_event("!a:b", USER, str(silence), {})
            self.server.tell()
            self.assertTrue(self.network.run_until(lambda: bool(self.bodies), 1.0), silence)

    def test_pushes_are_signs_of_life(self) -> None:
        """Where something happens often enough, nothing is pinged."""
        self.begin(NEVER)
        self.pass_time(HOUR)
        for number in range(20):
            self.server.store.add_event("!a:b", USER, str(number), {})
            self.server.tell()
            self.pass_time(250.0)
            self.assertEqual(self.network.sizes, [PING], "one empty ACK")
        self.assertEqual(len(self.bodies), 21)

    def test_tried_again(self) -> None:
        """A network that has become better is noticed after some hours."""
        client = self.begin(60.0)
        self.pass_time(HOUR)
        self.assertLess(client.known_silence or 0, 60.0)
        self.network.forgets = NEVER
        self.pass_time(7 * HOUR)
        self.assertGreater(client.known_silence or 0, 280.0)

    def test_a_network_that_has_become_worse(self) -> None:
        self.begin(NEVER)
        self.pass_time(HOUR)
        self.network.forgets = 60.0
        self.pass_time(HOUR)
        mappings = self.network.mappings
        self.pass_time(HOUR)
        self.assertEqual(self.network.mappings, mappings)

    def test_the_next_client_begins_with_what_is_known(self) -> None:
        first = self.begin(NEVER, persistence=Persistence(refresh=NEVER))
        self.pass_time(HOUR)
        first.close()
        self.observe(known_silence=first.known_silence, persistence=Persistence(refresh=NEVER))
        self.pass_time(1.0)
        self.pass_time(HOUR)
        self.assertEqual(self.network.sizes.count(PING), 12)

    def test_another_network(self) -> None:
        client = self.begin(NEVER)
        self.pass_time(HOUR)
        self.network.forgets = 30.0
        client.rebind()
        self.assertIsNone(client.known_silence)
        self.pass_time(24.0)
        mappings = self.network.mappings
        self.pass_time(20.0)
        self.assertEqual(self.network.mappings, mappings)

    def test_a_new_socket_tells_nothing_of_the_silence_before(self) -> None:
        """The server asks at the new address, as it does when a mapping is lost."""
        client = self.begin(NEVER)
        self.pass_time(HOUR)
        while not self.pass_time(10.0):  # until a ping
            pass
        self.pass_time(200.0)
        client.rebind()
        self.pass_time(700.0)
        self.assertGreater(client.known_silence or 0, 280.0)


class BoundsTests(HeartbeatTestCase):
    """The settings."""

    def test_fixed(self) -> None:
        """The least is the most: nothing is to be learnt."""
        self.begin(NEVER, persistence=Persistence(first_heartbeat=60.0, heartbeat=60.0, refresh=NEVER))
        self.pass_time(600.0)
        self.pass_time(HOUR)
        self.assertIn(len(self.network.sizes), (59, 60))

    def test_longer(self) -> None:
        self.begin(600.0, persistence=Persistence(heartbeat=3000.0, refresh=NEVER))
        self.pass_time(3 * HOUR)
        mappings = self.network.mappings
        total = self.pass_time(2 * HOUR)
        self.assertEqual(self.network.mappings, mappings)
        self.assertLess(total, 2 * 60 * 15)


class DeafServerTests(HeartbeatTestCase):
    """The server does not follow: a lost mapping is a lost association."""

    def test_learns_all_the_same(self) -> None:
        self.begin(120.0, follows=False)
        self.pass_time(2 * HOUR)
        handshakes = self.server.dtls.counters.handshakes_completed
        self.assertLess(handshakes, 7)
        self.pass_time(3 * HOUR)
        self.assertEqual(self.server.dtls.counters.handshakes_completed, handshakes)
