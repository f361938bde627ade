# SPDX-License-Identifier: AGPL-3.0-or-later
"""How many associations there are, and when they end."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.client.counters import Traffic
from synapse_lb.proxy.answers import ProxyError
from synapse_lb.proxy.associations import Associations


class FakeClient:
    """A client that has moved some bytes."""

    def __init__(self, session: bytes | None) -> None:
        self.resumed = session
        self.session: bytes | None = b"session of %d" % id(self)
        self.counters = Traffic(bytes_sent=100)
        self.closed = False
        self.closing: Deferred[None] | None = None

    def close(self) -> Deferred[None]:
        """Say goodbye, which takes some bytes."""
        self.closed = True
        self.counters = Traffic(bytes_sent=130)
        return succeed(None) if self.closing is None else self.closing


class FakeSyncs:
    """As many observations as the test says."""

    def __init__(self, client: Any, token: str | None) -> None:
        self.count = 0
        self.closed = False

    def __len__(self) -> int:
        return self.count

    def close(self) -> None:
        """End them."""
        self.closed = True


class AssociationsTests(SynchronousTestCase):
    def setUp(self) -> None:
        """Two associations may be open, for a minute."""
        self.clock = Clock()
        self.made: list[FakeClient] = []
        make_client: Any = self.make
        make_syncs: Any = FakeSyncs
        self.associations = Associations(self.clock, make_client, make_syncs, most=2, idle_timeout=60.0)

    def make(self, session: bytes | None) -> FakeClient:
        """One more client."""
        self.made.append(FakeClient(session))
        return self.made[-1]

    def use(self, token: str | None) -> Any:
        """Use an association for a moment."""
        with self.associations.using(token) as association:
            return association

    def test_one_for_each_token(self) -> None:
        self.assertIs(self.use("a"), self.use("a"))
        self.assertIsNot(self.use("a"), self.use(None))
        self.assertEqual(len(self.associations), 2)

    def test_the_longest_idle_one_makes_room(self) -> None:
        self.use("a")
        self.use("b")
        self.use("a")
        self.use("c")
        self.assertEqual([client.closed for client in self.made], [False, True, False])

    def test_none_in_use_is_closed(self) -> None:
        with self.associations.using("a"), self.associations.using("b"):
            error = self.assertRaises(ProxyError, self.use, "c")
            self.assertEqual((error.status, error.errcode), (503, "M_LIMIT_EXCEEDED"))
        self.assertEqual(self.associations.refused, 1)
        self.use("c")
        self.assertTrue(self.made[0].closed)

    def test_idle(self) -> None:
        self.use("a")
        self.clock.advance(50)
        self.use("b")
        for _ in range(5):
            self.clock.advance(15)
        self.assertEqual((len(self.associations), self.associations.closed_idle), (0, 2))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_used_ones_are_not_idle(self) -> None:
        with self.associations.using("a"):
            association: Any = self.use("b")
            association.syncs.count = 1
            for _ in range(20):
                self.clock.advance(15)
            self.assertEqual(len(self.associations), 2)
        association.syncs.count = 0
        for _ in range(6):
            self.clock.advance(15)
        self.assertEqual(len(self.associations), 0)

    def test_the_newest_session_is_resumed(self) -> None:
        """Of an association that is there, or of the last one that was."""
        self.use("a")
        self.use("b")
        for _ in range(6):
            self.clock.advance(15)
        self.use("c")
        sessions = [client.session for client in self.made]
        self.assertEqual([client.resumed for client in self.made], [None, sessions[0], sessions[1]])

    def test_association_without_a_session(self) -> None:
        self.use("a")
        self.use("b")
        self.made[1].session = None
        self.use("c")
        self.assertEqual(self.made[2].resumed, self.made[0].session)

    def test_traffic_is_counted_once(self) -> None:
        """While open, while it is being closed, and afterwards."""
        self.use("a")
        self.made[0].closing = Deferred()
        self.use("b")
        self.assertEqual(self.associations.traffic.bytes_sent, 200)
        self.use("c")
        self.assertEqual(self.associations.traffic.bytes_sent, 330)
        self.made[0].closing.callback(None)
        self.assertEqual(self.associations.traffic.bytes_sent, 330)

    def test_close(self) -> None:
        association: Any = self.use("a")
        self.successResultOf(self.associations.close())
        self.assertTrue(association.syncs.closed and self.made[0].closed)
        self.assertEqual(self.clock.getDelayedCalls(), [])
