# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every bound of the endpoint, at the bound: what still fits, what does not, who is hurt, and that it is counted."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.counters import Counters
from synapse_lb.coap.deduplication import DuplicateTable, digest_of
from synapse_lb.coap.endpoint import Endpoint
from synapse_lb.coap.events import CoapResponse, RequestReceived
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits
from tests.coap.lockstep import Script, body


class _Two:
    """An endpoint with several peers."""

    def __init__(self, test: SynchronousTestCase, limits: Limits) -> None:
        self.endpoint = Endpoint(random=random.Random(1), limits=limits)
        self.scripts = {
            name: Script(test, peer=name, endpoint=self.endpoint, now=0.0) for name in ("alice", "bob")
        }
        self.test = test

    def sends(self, name: str, line: str, payload: bytes = b"") -> Message:
        """A peer sends a message; return the one datagram that answers it."""
        self.scripts[name].peer_sends(line, payload)
        ((peer, datagram),) = self.endpoint.datagrams_to_send(0.0)
        self.test.assertEqual(peer, name)
        return Message.decode(datagram)

    def asks(self, name: str, line: str, answer: bytes) -> Message:
        """A peer sends a request; return the first message of the response with this body."""
        self.scripts[name].peer_sends(line)
        event = self.scripts[name].event(RequestReceived)
        self.endpoint.respond(event.exchange, CoapResponse(Code.CONTENT, Options(), answer), 0.0)
        ((peer, datagram),) = self.endpoint.datagrams_to_send(0.0)
        self.test.assertEqual(peer, name)
        return Message.decode(datagram)


class Exchanges(SynchronousTestCase):
    """`max_exchanges_per_peer`."""

    def test_over_it(self) -> None:
        script = Script(self, limits=Limits(max_exchanges_per_peer=2))
        exchanges = []
        for number in (1, 2):
            script.peer_sends(f"CON [{number}] GET /a Token=0{number}")
            exchanges.append(script.event(RequestReceived).exchange)
        script.peer_sends("CON [3] GET /a Token=03")
        script.endpoint_sends("ACK [3] 5.03 Token=03 Max-Age=5")
        script.peer_sends("NON [4] GET /a Token=04")
        script.endpoint_is_quiet()
        script.no_event()
        self.assertEqual(script.endpoint.counters.requests_overload, 2)
        script.endpoint.receive("another", script.build("CON [3] GET /a").encode(), script.now)
        other = script.event(RequestReceived)
        script.endpoint.respond(exchanges[0], CoapResponse(Code.CONTENT), script.now)
        script.endpoint_sends("ACK [1] 2.05 Token=01")
        script.peer_sends("CON [5] GET /a Token=05")
        script.endpoint.respond(
            script.event(RequestReceived).exchange, CoapResponse(Code.CONTENT), script.now
        )
        script.endpoint_sends("ACK [5] 2.05 Token=05")
        script.endpoint.drop_peer("another", script.now)
        self.assertEqual(len(script.events()), 1)
        self.assertEqual(other.peer, "another")
        script.endpoint.respond(exchanges[1], CoapResponse(Code.CONTENT), script.now)
        script.endpoint_sends("ACK [2] 2.05 Token=02")
        script.nothing_leaks()

    def test_a_response_under_way_counts(self) -> None:
        """Else a peer that never acknowledges could pile them up."""
        script = Script(self, limits=Limits(max_exchanges_per_peer=1))
        script.peer_sends("CON [1] GET /a Token=01")
        exchange = script.event(RequestReceived).exchange
        script.endpoint.acknowledge(exchange, script.now)
        script.endpoint.respond(exchange, CoapResponse(Code.CONTENT), script.now)
        script.endpoint_sends("ACK [1]")
        script.endpoint_sends("CON [$m] 2.05 Token=01")
        script.peer_sends("CON [2] GET /a Token=02")
        script.endpoint_sends("ACK [2] 5.03 Token=02 Max-Age=5")
        script.peer_sends("ACK [$m]")
        script.nothing_leaks()


class RequestBodies(SynchronousTestCase):
    """`max_request_body` and the bounds of the bodies that are being put together."""

    def test_at_the_bound(self) -> None:
        script = Script(self, limits=Limits(max_request_body=48))
        payload = body(48)
        for number in range(3):
            more = int(number < 2)
            script.peer_sends(f"CON [{number}] PUT /a 1:{number}/{more}/16", payload[16 * number :][:16])
        event = script.event(RequestReceived)
        self.assertEqual(event.request.payload, payload)
        script.datagrams()
        script.endpoint.respond(event.exchange, CoapResponse(Code.CHANGED), script.now)
        script.endpoint_sends("ACK [2] 2.04 1:2/0/16")
        script.nothing_leaks()

    def test_one_byte_over_it(self) -> None:
        script = Script(self, limits=Limits(max_request_body=48))
        for number in range(3):
            script.peer_sends(f"CON [{number}] PUT /a 1:{number}/1/16", bytes(16))
            script.endpoint_sends(f"ACK [{number}] 2.31 1:{number}/1/16")
        script.peer_sends("CON [3] PUT /a 1:3/0/16", b"!")
        script.endpoint_sends("ACK [3] 4.13 Size1=48")
        self.assertEqual(script.endpoint.counters.requests_refused, 1)
        script.peer_sends("CON [4] PUT /a 1:3/0/16")
        script.endpoint_sends("ACK [4] 4.08")
        script.nothing_leaks()

    def test_announced(self) -> None:
        """Refused with the first block, not after a megabyte."""
        script = Script(self, limits=Limits(max_request_body=48))
        script.peer_sends("CON [1] PUT /a 1:0/1/16 Size1=48", bytes(16))
        script.endpoint_sends("ACK [1] 2.31 1:0/1/16")
        script.peer_sends("CON [2] PUT /a 1:0/1/16 Size1=49", bytes(16))
        script.endpoint_sends("ACK [2] 4.13 Size1=48")
        script.peer_sends("CON [3] PUT /a 1:1/1/16", bytes(16))
        script.endpoint_sends("ACK [3] 4.08")
        script.nothing_leaks()

    def test_a_far_block(self) -> None:
        """A large block number costs no memory."""
        script = Script(self, limits=Limits(max_request_body=48))
        script.peer_sends("CON [1] PUT /a 1:1048575/1/1024", bytes(1024))
        script.endpoint_sends("ACK [1] 4.13 Size1=48")
        self.assertEqual(script.endpoint._responder.reassembly.total_bytes, 0)
        script.nothing_leaks()

    def test_count_per_peer(self) -> None:
        """The body to which nothing was added for the longest goes, and only of this peer."""
        two = _Two(self, Limits(max_reassemblies_per_peer=2))
        two.sends("bob", "CON [1] PUT /x 1:0/1/16", bytes(16))
        for number, name in enumerate(("x", "y")):
            two.sends("alice", f"CON [{number}] PUT /{name} 1:0/1/16", bytes(16))
        two.sends("alice", "CON [2] PUT /x 1:1/1/16", bytes(16))
        self.assertEqual(two.endpoint.counters.reassembly_evictions, 0)
        two.sends("alice", "CON [3] PUT /z 1:0/1/16", bytes(16))
        self.assertEqual(two.endpoint.counters.reassembly_evictions, 1)
        self.assertEqual(two.sends("alice", "CON [4] PUT /y 1:1/1/16", bytes(16)).code, 0x88)
        self.assertEqual(two.sends("alice", "CON [5] PUT /x 1:2/1/16", bytes(16)).code, Code.CONTINUE)
        self.assertEqual(two.sends("bob", "CON [6] PUT /x 1:1/1/16", bytes(16)).code, Code.CONTINUE)

    def test_bytes_per_peer(self) -> None:
        two = _Two(self, Limits(max_request_body=48, max_reassembly_bytes_per_peer=48))
        two.sends("bob", "CON [1] PUT /x 1:0/1/16", bytes(16))
        for number, name in enumerate("xyz"):
            two.sends("alice", f"CON [{number}] PUT /{name} 1:0/1/16", bytes(16))
        self.assertEqual(two.endpoint.counters.reassembly_evictions, 0)
        two.sends("alice", "CON [3] PUT /z 1:1/1/16", bytes(16))
        self.assertEqual(two.endpoint.counters.reassembly_evictions, 1)
        self.assertEqual(two.endpoint._responder.reassembly.total_bytes, 64)
        self.assertEqual(two.sends("alice", "CON [4] PUT /x 1:1/1/16", bytes(16)).code, 0x88)
        self.assertEqual(two.sends("bob", "CON [6] PUT /x 1:1/1/16", bytes(16)).code, Code.CONTINUE)

    def test_bytes_of_all_peers(self) -> None:
        limits = Limits(max_request_body=48, max_reassembly_bytes_per_peer=48, max_reassembly_bytes_total=48)
        two = _Two(self, limits)
        two.sends("bob", "CON [1] PUT /x 1:0/1/16", bytes(16))
        two.sends("alice", "CON [1] PUT /x 1:0/1/16", bytes(16))
        two.sends("alice", "CON [2] PUT /x 1:1/1/16", bytes(16))
        self.assertEqual(two.endpoint.counters.reassembly_evictions, 0)
        two.sends("alice", "CON [3] PUT /x 1:2/1/16", bytes(16))
        self.assertEqual(two.endpoint.counters.reassembly_evictions, 1)
        self.assertEqual(two.sends("bob", "CON [6] PUT /x 1:1/1/16", bytes(16)).code, 0x88)

    def test_lifetime(self) -> None:
        script = Script(self, limits=Limits(reassembly_lifetime=10.0))
        script.peer_sends("CON [1] PUT /a 1:0/1/16", bytes(16))
        script.passes(9.9)
        script.peer_sends("CON [2] PUT /a 1:1/1/16", bytes(16))  # begins its time anew
        script.passes(9.9)
        self.assertEqual(len(script.endpoint._responder.reassembly), 1)
        script.passes(0.1)
        self.assertEqual(len(script.endpoint._responder.reassembly), 0)
        self.assertEqual(script.endpoint.counters.reassembly_expirations, 1)
        script.peer_sends("CON [3] PUT /a 1:2/0/16", bytes(16))
        self.assertEqual([sent.code for sent in script.datagrams()], [0x5F, 0x5F, 0x88])
        script.nothing_leaks()


class Snapshots(SynchronousTestCase):
    """The bounds of the response bodies that are being fetched."""

    def test_count_per_peer(self) -> None:
        two = _Two(self, Limits(block_szx=0, max_snapshots_per_peer=2))
        two.asks("bob", "CON [0] GET /x", body(40))
        for number, name in enumerate("xyz"):
            two.asks("alice", f"CON [{number}] GET /{name}", body(40))
        self.assertEqual(two.endpoint.counters.snapshot_evictions, 1)
        self.assertEqual(two.sends("alice", "CON [3] GET /x 2:1/0/16").code, 0x88)
        self.assertEqual(two.sends("alice", "CON [4] GET /y 2:1/0/16").code, Code.CONTENT)
        self.assertEqual(two.sends("bob", "CON [5] GET /x 2:1/0/16").code, Code.CONTENT)

    def test_bytes_per_peer(self) -> None:
        two = _Two(self, Limits(block_szx=0, snapshot_bytes_per_peer=80))
        two.asks("bob", "CON [0] GET /x", body(40))
        two.asks("alice", "CON [1] GET /x", body(40))
        two.asks("alice", "CON [2] GET /y", body(40))
        self.assertEqual(two.endpoint.counters.snapshot_evictions, 0)
        two.asks("alice", "CON [3] GET /z", body(17))
        self.assertEqual(two.endpoint.counters.snapshot_evictions, 1)
        self.assertEqual(two.sends("alice", "CON [4] GET /x 2:1/0/16").code, 0x88)
        self.assertEqual(two.sends("bob", "CON [5] GET /x 2:1/0/16").code, Code.CONTENT)

    def test_one_body_over_the_bytes_per_peer(self) -> None:
        two = _Two(self, Limits(block_szx=0, snapshot_bytes_per_peer=80))
        self.assertEqual(two.asks("alice", "CON [1] GET /x", body(80)).code, Code.CONTENT)
        refused = two.asks("alice", "CON [2] GET /y", body(81))
        self.assertEqual((refused.code, refused.payload), (Code.INTERNAL_SERVER_ERROR, b""))
        self.assertEqual(two.endpoint.counters.responses_too_large, 1)
        self.assertEqual(two.sends("alice", "CON [3] GET /x 2:1/0/16").code, Code.CONTENT)

    def test_bytes_of_all_peers(self) -> None:
        two = _Two(self, Limits(block_szx=0, snapshot_bytes_per_peer=80, snapshot_bytes_total=80))
        two.asks("bob", "CON [0] GET /x", body(40))
        two.asks("alice", "CON [1] GET /x", body(40))
        self.assertEqual(two.endpoint.counters.snapshot_evictions, 0)
        two.asks("alice", "CON [2] GET /y", body(17))
        self.assertEqual(two.endpoint.counters.snapshot_evictions, 1)
        self.assertEqual(two.sends("bob", "CON [5] GET /x 2:1/0/16").code, 0x88)
        self.assertEqual(two.sends("alice", "CON [6] GET /x 2:1/0/16").code, Code.CONTENT)

    def test_a_body_that_was_fetched_goes_first(self) -> None:
        two = _Two(self, Limits(block_szx=0, max_snapshots_per_peer=2))
        two.asks("alice", "CON [1] GET /x", body(20))
        two.asks("alice", "CON [2] GET /y", body(20))
        two.sends("alice", "CON [3] GET /y 2:1/0/16")
        two.asks("alice", "CON [4] GET /z", body(20))
        self.assertEqual(two.sends("alice", "CON [5] GET /x 2:1/0/16").code, Code.CONTENT)
        self.assertEqual(two.sends("alice", "CON [6] GET /y 2:1/0/16").code, 0x88)

    def test_lifetime(self) -> None:
        script = Script(self, limits=Limits(block_szx=0, snapshot_lifetime=10.0))
        script.peer_sends("CON [1] GET /a")
        answer = CoapResponse(Code.CONTENT, Options(), body(60))
        script.endpoint.respond(script.event(RequestReceived).exchange, answer, script.now)
        script.passes(9.9)
        script.peer_sends("CON [2] GET /a 2:1/0/16")  # begins its time anew
        script.passes(9.9)
        self.assertEqual(len(script.endpoint._responder.snapshots), 1)
        script.passes(0.1)
        self.assertEqual(len(script.endpoint._responder.snapshots), 0)
        self.assertEqual(script.endpoint._responder.snapshots.total_bytes, 0)
        script.peer_sends("CON [3] GET /a 2:2/0/16")
        self.assertEqual([sent.code for sent in script.datagrams()], [0x45, 0x45, 0x88])
        script.nothing_leaks()

    def test_soon_after_the_last_block(self) -> None:
        script = Script(self, limits=Limits(block_szx=0))
        script.peer_sends("CON [1] GET /a")
        answer = CoapResponse(Code.CONTENT, Options(), body(20))
        script.endpoint.respond(script.event(RequestReceived).exchange, answer, script.now)
        script.peer_sends("CON [2] GET /a 2:1/0/16")
        script.passes(5.9)
        self.assertEqual(len(script.endpoint._responder.snapshots), 1)
        script.passes(0.1)
        self.assertEqual(len(script.endpoint._responder.snapshots), 0)
        script.peer_sends("CON [2] GET /a 2:1/0/16")  # a copy of the last request gets the same reply
        self.assertEqual([sent.code for sent in script.datagrams()], [0x45, 0x45, 0x45])
        script.nothing_leaks()


class Duplicates(SynchronousTestCase):
    """`dedup_entries_per_peer` and `dedup_bytes_per_peer`."""

    def _table(self, entries: int, size: int) -> tuple[DuplicateTable, Counters]:
        counters = Counters()
        return DuplicateTable(
            Limits(dedup_entries_per_peer=entries, dedup_bytes_per_peer=size), counters
        ), counters

    def _add(
        self, table: DuplicateTable, message_id: int, reply: bytes | None, *, harmless: bool = False
    ) -> None:
        seen = table.add(message_id, digest_of(b"%d" % message_id), 100.0, 0.0)
        table.settle(seen, reply, harmless=harmless)

    def _has(self, table: DuplicateTable, message_id: int, now: float = 0.0) -> bool:
        return table.find(message_id, digest_of(b"%d" % message_id), now) is not None

    def test_entries(self) -> None:
        table, counters = self._table(3, 1000)
        for message_id in range(3):
            self._add(table, message_id, b"")
        self.assertEqual(counters.dedup_evictions, 0)
        self._add(table, 3, b"")
        self.assertEqual(counters.dedup_evictions, 1)
        self.assertEqual([self._has(table, message_id) for message_id in range(4)], [False, True, True, True])

    def test_bytes(self) -> None:
        table, counters = self._table(100, 30)
        for message_id in range(3):
            self._add(table, message_id, bytes(10))
        self.assertEqual((counters.dedup_evictions, table.reply_bytes), (0, 30))
        self._add(table, 3, bytes(1))
        self.assertEqual((counters.dedup_evictions, table.reply_bytes), (1, 21))
        self.assertFalse(self._has(table, 0))

    def test_for_bytes_only_entries_with_a_reply_go(self) -> None:
        table, _ = self._table(100, 10)
        self._add(table, 0, None)
        self._add(table, 1, bytes(10))
        self._add(table, 2, bytes(10))
        self.assertEqual([self._has(table, message_id) for message_id in range(3)], [True, False, True])

    def test_the_harmless_go_first(self) -> None:
        """A long download must not wash out the reply to a request that must not run twice."""
        table, _ = self._table(3, 1000)
        self._add(table, 0, b"")
        self._add(table, 1, b"", harmless=True)
        self._add(table, 2, b"", harmless=True)
        self._add(table, 3, b"")
        self.assertEqual([self._has(table, message_id) for message_id in range(4)], [True, False, True, True])

    def test_what_is_worked_on_stays(self) -> None:
        table, counters = self._table(1, 0)
        seen = [table.add(message_id, digest_of(b"%d" % message_id), 100.0, 0.0) for message_id in range(3)]
        self.assertEqual((len(table), counters.dedup_evictions), (3, 0))
        table.settle(seen[1], None)
        table.settle(seen[0], None)
        self.assertEqual((len(table), counters.dedup_evictions), (1, 2))
        table.sweep(1000.0)
        self.assertTrue(self._has(table, 2, 1000.0))

    def test_a_long_download_in_an_endpoint(self) -> None:
        script = Script(self, limits=Limits(block_szx=0, dedup_entries_per_peer=4))
        script.peer_sends("CON [1] POST /send")
        script.endpoint.respond(
            script.event(RequestReceived).exchange, CoapResponse(Code.CHANGED), script.now
        )
        script.peer_sends("CON [2] GET /sync")
        answer = CoapResponse(Code.CONTENT, Options(), body(1000))
        script.endpoint.respond(script.event(RequestReceived).exchange, answer, script.now)
        for number in range(1, 60):
            script.peer_sends(f"CON [{number + 2}] GET /sync 2:{number}/0/16")
        script.datagrams()
        self.assertGreater(script.endpoint.counters.dedup_evictions, 50)
        script.peer_sends("CON [1] POST /send")
        script.endpoint_sends("ACK [1] 2.04")
        script.no_event()
        script.nothing_leaks()

    def test_a_late_copy_of_a_first_block(self) -> None:
        """It would begin the upload anew, so it is remembered for longer than the blocks after it."""
        script = Script(self, limits=Limits(dedup_entries_per_peer=3))
        for number in range(8):
            script.peer_sends(f"CON [{number}] PUT /a 1:{number}/1/16", bytes([number]) * 16)
        script.peer_sends("CON [0] PUT /a 1:0/1/16", bytes(16))
        script.peer_sends("CON [8] PUT /a 1:8/0/16", b"end")
        event = script.event(RequestReceived)
        self.assertEqual(len(event.request.payload), 8 * 16 + 3)
        script.endpoint.respond(event.exchange, CoapResponse(Code.CHANGED), script.now)
        script.datagrams()
        script.nothing_leaks()

    def test_a_late_copy_of_the_request_for_a_last_block(self) -> None:
        """The body is gone by then, so the reply is kept for longer than those before it."""
        script = Script(self, limits=Limits(block_szx=0, dedup_entries_per_peer=4))
        for first, name in ((1, "a"), (100, "b")):
            script.peer_sends(f"CON [{first}] GET /{name}")
            answer = CoapResponse(Code.CONTENT, Options(), body(100))
            script.endpoint.respond(script.event(RequestReceived).exchange, answer, script.now)
            for number in range(1, 7):
                script.peer_sends(f"CON [{first + number}] GET /{name} 2:{number}/0/16")
            script.passes(10)
        script.datagrams()
        script.peer_sends("CON [7] GET /a 2:6/0/16")
        script.endpoint_sends("ACK [7] 2.05 2:6/0/16", body(100)[96:])
        script.nothing_leaks()

    @settings(max_examples=200)
    @given(
        st.lists(
            st.tuples(st.integers(0, 12), st.integers(0, 30), st.booleans(), st.booleans(), st.floats(0, 40)),
            max_size=60,
        )
    )
    def test_never_over_its_bounds(self, plan: list[tuple[int, int, bool, bool, float]]) -> None:
        table, _ = self._table(5, 60)
        now, waiting = 0.0, []
        for message_id, size, harmless, at_once, pause in plan:
            now += pause
            seen = table.add(message_id, digest_of(b"%d" % message_id), 100.0, now)
            if at_once:
                table.settle(seen, bytes(size), harmless=harmless)
            else:
                waiting.append(seen)
            open_ = {id(other) for other in waiting if other.open}
            self.assertLessEqual(len(table), max(5, len(open_) + 1))
            self.assertLessEqual(table.reply_bytes, 60)
        for seen in waiting:
            table.settle(seen, b"late")
        self.assertLessEqual(len(table), 5)
        table.sweep(now + 1000)
        self.assertEqual((len(table), table.reply_bytes), (0, 0))


class Memory(SynchronousTestCase):
    """Idle peers cost nothing."""

    def test_many_peers(self) -> None:
        endpoint = Endpoint(random=random.Random(1))
        ping = Message(Type.CON, 0, 1).encode()
        request = Message(Type.CON, Code.GET, 2, b"t", Options.of((OptionNumber.URI_PATH, b"a"))).encode()
        for peer in range(2000):
            endpoint.receive(peer, ping, 0.0)
        self.assertEqual(len(endpoint.peers), 0)
        for peer in range(2000):
            endpoint.receive(peer, request, 0.0)
            event = endpoint.next_event()
            assert isinstance(event, RequestReceived)
            endpoint.respond(event.exchange, CoapResponse(Code.CONTENT), 0.0)
        endpoint.datagrams_to_send(0.0)
        self.assertEqual(len(endpoint.peers), 2000)
        while (deadline := endpoint.next_timer()) is not None:
            self.assertLessEqual(deadline, 247.0)
            endpoint.handle_timer(deadline)
        self.assertEqual(len(endpoint.peers), 0)
        self.assertTrue(endpoint.idle)

    def test_an_evicted_body_lets_its_peer_go(self) -> None:
        limits = Limits(
            block_szx=0, snapshot_bytes_per_peer=40, snapshot_bytes_total=40, snapshot_lifetime=10_000.0
        )
        two = _Two(self, limits)
        two.asks("bob", "CON [0] GET /x", body(40))
        self.assertEqual(len(two.endpoint.peers), 1)
        two.endpoint.handle_timer(300.0)
        self.assertEqual(list(two.endpoint.peers), ["bob"])  # its body is still there
        two.scripts["alice"].now = 300.0
        two.asks("alice", "CON [1] GET /x", body(40))
        two.endpoint.handle_timer(301.0)
        self.assertEqual(list(two.endpoint.peers), ["alice"])
