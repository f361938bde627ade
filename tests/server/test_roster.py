# SPDX-License-Identifier: AGPL-3.0-or-later
"""Who is connected, and what HTTP would have taken."""

from __future__ import annotations

from typing import Any

from attrs import define, field
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.msc3079.messages import NO_BODY, MatrixRequest, MatrixResponse
from synapse_lb.msc3079.sticky import StickyState
from synapse_lb.server.dispatcher import Address
from synapse_lb.server.http_size import FIRST, LARGE, ONE_OF, HttpEstimate
from synapse_lb.server.roster import ANONYMOUS, AUTHENTICATED, MOVED, Roster
from synapse_lb.txdtls.errors import HandshakeFailed
from synapse_lb.txdtls.options import ServerCounters


@define
class Client:
    """What a gateway keeps of an association."""

    address: Address = field(factory=lambda: IPv4Address("UDP", "192.0.2.7", 50000))
    sticky: StickyState = field(factory=StickyState)
    unproven: bool = False


class RosterTests(SynchronousTestCase):
    """Times and states."""

    def test_a_life(self) -> None:
        clock, client = Clock(), Client()
        roster = Roster(clock)
        roster.came(7)
        clock.advance(10)
        roster.heard(7)
        roster.heard(8)
        clock.advance(5)
        client.sticky.token = "s3cret"
        (present,) = roster.list({7: client})
        self.assertEqual((present.id, present.age, present.silence, present.messages), (7, 15, 5, 1))
        self.assertEqual((present.state, present.access_token), (AUTHENTICATED, "s3cret"))
        self.assertNotIn("s3cret", repr(present))
        roster.went(7)
        roster.went(7)
        self.assertEqual((roster.list({7: client}), len(roster)), ([], 0))

    def test_states(self) -> None:
        roster, client = Roster(Clock()), Client()
        roster.came(1)
        self.assertEqual(roster.list({1: client})[0].state, ANONYMOUS)
        client.unproven = True
        self.assertEqual(roster.list({1: client})[0].state, MOVED)


class HttpSizeTests(SynchronousTestCase):
    """What is counted."""

    def size(self, response: Any = NO_BODY, sent: int = 0, **request: Any) -> int:
        """Of a GET of / with these differences."""
        asked = MatrixRequest(**{"method": "GET", "path": b"/", **request})
        return HttpEstimate().of(asked, MatrixResponse(200, response), sent)

    def test_each_part(self) -> None:
        least = self.size()
        self.assertEqual(self.size(path=b"/abc") - least, 3)
        self.assertEqual(self.size(query=b"a=b") - least, 4)
        self.assertEqual(self.size(access_token="t0k3n") - least, len("Authorization: Bearer t0k3n\r\n"))
        self.assertEqual(self.size({"a": "é"}, 3) - least, len('{"a":"é"}') + 1)
        self.assertEqual(self.size(body={"a": [1, 2]}) - self.size(body={}), len('"a":[1,2]'))
        self.assertEqual(self.size("\ud800") - least, 5)

    def test_what_is_large_or_no_json_counts_as_it_was_sent(self) -> None:
        least = self.size()
        self.assertEqual(self.size("a" * 10, LARGE + 1) - least, LARGE + 1)
        self.assertEqual(self.size("a" * 10, LARGE) - least, 12)
        self.assertEqual(self.size(object(), 5) - least, 5)

    def test_not_each_answer_is_written_as_json(self) -> None:
        least, estimate, looked_at = self.size(), HttpEstimate(), 0
        asked = MatrixRequest("GET", b"/")
        for _ in range(FIRST):
            self.assertEqual(estimate.of(asked, MatrixResponse(200, "a" * 18), 10) - least, 20)
        for _ in range(10 * ONE_OF):
            found = estimate.of(asked, MatrixResponse(200, "a" * 28), 10) - least
            looked_at += found == 30
            self.assertTrue(20 <= found <= 30)
        self.assertEqual(looked_at, 10)

    def test_what_is_large_counts_as_the_others_do(self) -> None:
        least, estimate = self.size(), HttpEstimate()
        asked = MatrixRequest("GET", b"/")
        estimate.of(asked, MatrixResponse(200, "a" * 28), 10)
        self.assertEqual(estimate.of(asked, MatrixResponse(200, object()), 40_000) - least, 120_000)


class FailuresTests(SynchronousTestCase):
    """Why handshakes failed."""

    def test_bounded(self) -> None:
        counters = ServerCounters()
        counters.handshake_failed(HandshakeFailed("no"))
        for number in range(40):
            counters.handshake_failed(HandshakeFailed("no", alert=f"alert {number}"))
        counters.handshake_failed(HandshakeFailed("no", alert="alert 0"))
        self.assertEqual(counters.handshakes_failed, 42)
        self.assertEqual(sum(counters.failures.values()), 42)
        self.assertEqual(len(counters.failures), 33)
        self.assertEqual([counters.failures[each] for each in ("refused", "alert 0", "other")], [1, 2, 9])
