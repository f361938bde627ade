# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a server with Q-Block (RFC 9177) refuses, and the bounds of what it keeps and sends."""

from __future__ import annotations

import random
from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.endpoint import Endpoint
from synapse_lb.coap.events import CoapResponse, RequestReceived
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits, Tuning
from tests.coap.lockstep import Script, body


class _Base(SynchronousTestCase):
    def setUp(self) -> None:
        self.start()

    def start(self, limits: Limits | None = None, *, max_payloads: int = 10) -> None:
        self.script = Script(self, tuning=Tuning(q_block=True, max_payloads=max_payloads), limits=limits)
        self.counters = self.script.endpoint.counters
        self.message_id = 0x4000

    def says(self, words: str, payload: bytes = b"", kind: str = "NON") -> int:
        """The peer sends a message; return its id."""
        self.message_id += 1
        self.script.peer_sends(f"{kind} [{self.message_id}] {words}", payload)
        return self.message_id

    def serves(self, size: int, opening: str = "NON [1] GET /a Token=01 Q2:0/0/1024") -> bytes:
        """The peer asks for a body of this size, and gets the first block."""
        whole = body(size)
        self.script.peer_sends(opening)
        exchange = self.script.event(RequestReceived).exchange
        self.script.endpoint.respond(exchange, CoapResponse(Code.CONTENT, payload=whole), self.script.now)
        return whole

    def sent(self) -> list[int]:
        """Return the numbers of the blocks that the endpoint has sent."""
        values = [message.options.get_uint(OptionNumber.Q_BLOCK2) for message in self.script.datagrams()]
        return [value >> 4 for value in values if value is not None]

    def refusal(self, code: int) -> Message:
        """The endpoint's only message is this refusal."""
        (message,) = self.script.datagrams()
        self.assertEqual(message.code, code)
        return message


class Refusals(_Base):
    def test_switched_off(self) -> None:
        """Section 4.1: 4.02 to a Confirmable, a Reset to the rest."""
        script = Script(self)
        script.peer_sends("CON [1] PUT /a Request-Tag=0x01 Size1=2000 Q1:0/1/1024", bytes(1024))
        script.endpoint_sends("ACK [1] 4.02")
        script.peer_sends("NON [2] GET /a Q2:0/1/1024")
        script.endpoint_sends("RST [2]")
        script.no_event()

    def test_mixed_with_block(self) -> None:
        """Section 4.1: 4.02."""
        for words in ("Q2:0/1/1024 2:0/0/1024", "Q1:0/0/1024 Request-Tag=0x01 Size1=1 1:0/0/1024"):
            self.says(f"PUT /a {words}", b"x", "CON")
            self.refusal(Code.BAD_OPTION)

    def test_repeated_q_block1(self) -> None:
        """It is not repeatable: 4.02."""
        self.says("PUT /a Q1:0/1/16 Q1:1/1/16 Request-Tag=0x01 Size1=99", bytes(16), "CON")
        self.refusal(Code.BAD_OPTION)

    def test_not_rising(self) -> None:
        """Section 4.4: 4.00."""
        self.says("GET /a Q2:2/0/1024 Q2:1/0/1024")
        self.refusal(Code.BAD_REQUEST)

    def test_reserved_size(self) -> None:
        self.says("GET /a Q-Block2=7")
        self.refusal(Code.BAD_REQUEST)

    def test_upload_without_tag_or_size(self) -> None:
        """Section 4.3: 4.00."""
        self.says("PUT /a Q1:0/1/16 Size1=99", bytes(16))
        self.refusal(Code.BAD_REQUEST)
        self.says("PUT /a Q1:0/1/16 Request-Tag=0x01", bytes(16))
        self.refusal(Code.BAD_REQUEST)
        self.script.nothing_leaks()

    def test_upload_that_lies(self) -> None:
        """Blocks that do not fit in the size that was announced: 4.00, and nothing is kept of them."""
        for words, size in (
            ("Q1:0/1/16", 15),
            ("Q1:0/1/16", 17),
            ("Q1:0/0/16", 16),
            ("Q1:2/1/16", 8),
            ("Q1:2/0/16", 7),
            ("Q1:3/0/16", 0),
            ("Q1:900/1/16", 16),
        ):
            self.says(f"PUT /a {words} Request-Tag=0x01 Size1=40", bytes(size))
            self.refusal(Code.BAD_REQUEST)
            self.script.no_event()
        self.script.passes(300)
        self.script.nothing_leaks()

    def test_upload_too_large(self) -> None:
        """4.13 names what would be accepted."""
        self.start(Limits(max_request_body=1000))
        self.says("PUT /a Q1:0/1/16 Request-Tag=0x01 Size1=1001", bytes(16))
        self.assertEqual(
            self.refusal(Code.REQUEST_ENTITY_TOO_LARGE).options.get_uint(OptionNumber.SIZE1), 1000
        )

    def test_body_that_is_not_kept(self) -> None:
        """No block but the first ever runs a request: 4.08 without a list."""
        for kind in ("CON", "NON"):
            self.says("GET /a Q2:1/1/1024", kind=kind)
            self.assertNotIn(
                OptionNumber.CONTENT_FORMAT, self.refusal(Code.REQUEST_ENTITY_INCOMPLETE).options
            )
        self.script.no_event()

    def test_beyond_the_end(self) -> None:
        self.serves(3000)
        self.sent()
        self.says("GET /a Token=02 Q2:3/0/1024")
        self.refusal(Code.BAD_REQUEST)
        self.says("GET /a Token=02 Q2:2/0/1024 Q2:3/0/1024")
        self.assertEqual(self.sent(), [2])

    def test_too_many_exchanges(self) -> None:
        self.start(Limits(max_exchanges_per_peer=1))
        self.says("GET /a Token=01 Q2:0/1/1024", kind="CON")
        self.says("GET /b Token=02 Q2:0/1/1024", kind="CON")
        self.refusal(Code.SERVICE_UNAVAILABLE)


class Downloads(_Base):
    def test_first_block_only(self) -> None:
        """Section 4.4: without M just that block."""
        self.serves(30_000)
        self.assertEqual(self.sent(), [0])
        self.script.passes(300)
        self.script.nothing_leaks()

    def test_one_request_yields_one_set(self) -> None:
        self.serves(100_000)
        self.sent()
        self.says("GET /a Token=02 " + " ".join(f"Q2:{number}/1/1024" for number in range(1, 90, 10)))
        self.assertEqual(len(self.sent()), 10)

    def test_configured_sets(self) -> None:
        self.start(max_payloads=4)
        self.serves(100_000, "NON [1] GET /a Token=01 Q2:0/1/1024")
        self.assertEqual(self.sent(), [0, 1, 2, 3])
        self.says("GET /a Token=02 Q2:5/1/1024")
        self.assertEqual(self.sent(), [5, 6, 7])

    def test_whole_in_one_message(self) -> None:
        """A body of one message has neither option."""
        self.script.peer_sends("CON [1] GET /a Token=01 Q2:0/1/1024")
        exchange = self.script.event(RequestReceived).exchange
        self.script.endpoint.respond(exchange, CoapResponse(Code.CONTENT, payload=b"short"), self.script.now)
        self.script.endpoint_sends('ACK [1] 2.05 Token=01 "short"')
        self.script.nothing_leaks()

    def test_smaller_blocks(self) -> None:
        """The client's size is honoured, from the first block on or later."""
        whole = self.serves(1000, "NON [1] GET /a Token=01 Q2:0/0/64")
        (first,) = self.script.datagrams()
        self.assertEqual(first.payload, whole[:64])
        self.says("GET /a Token=02 Q2:5/0/32")
        (other,) = self.script.datagrams()
        self.assertEqual(other.payload, whole[160:192])
        self.assertEqual(other.options.get(OptionNumber.Q_BLOCK2), b"\x59")

    def test_larger_blocks_than_fit(self) -> None:
        """A size that does not fit in the datagrams of the peer: the blocks at that place, smaller."""
        self.script.endpoint.set_peer("peer", max_message_size=200, now=self.script.now)
        whole = self.serves(3000)
        (first,) = self.script.datagrams()
        self.assertEqual(first.payload, whole[:128])
        self.says("GET /a Token=02 Q2:1/0/1024")
        (other,) = self.script.datagrams()
        self.assertEqual(other.payload, whole[1024:1152])

    def test_block2_from_the_same_body(self) -> None:
        """A client may go on with Block2."""
        whole = self.serves(3000)
        self.sent()
        self.says("GET /a Token=02 2:1/0/1024")
        (other,) = self.script.datagrams()
        self.assertEqual(other.payload, whole[1024:2048])
        self.script.no_event()

    def test_a_new_request_runs(self) -> None:
        """Block 0 alone, Confirmable, or with M, is a new request, whatever is kept."""
        for words, kind in (("Q2:0/0/1024", "CON"), ("Q2:0/1/1024", "CON"), ("Q2:0/1/1024", "NON")):
            self.says(f"GET /a Token=01 {words}", kind=kind)
            exchange = self.script.event(RequestReceived).exchange
            self.script.endpoint.respond(
                exchange, CoapResponse(Code.CONTENT, payload=bytes(3000)), self.script.now
            )
            self.script.datagrams()

    def test_names_do_not_mix(self) -> None:
        """What is kept in one name is not for another."""
        names = iter(("alice", "alice", "bob"))
        endpoint = Endpoint(
            random=random.Random(1), tuning=Tuning(q_block=True), scope=lambda _peer, _options: next(names)
        )
        self.script = Script(self, endpoint=endpoint)
        self.serves(3000)
        self.says("GET /a Token=02 Q2:1/0/1024")
        self.assertEqual(self.sent(), [0, 1])
        self.says("GET /a Token=03 Q2:1/0/1024")
        self.refusal(Code.REQUEST_ENTITY_INCOMPLETE)

    def test_queue_of_a_peer(self) -> None:
        """More blocks than may wait are dropped and counted; they can be asked for again."""
        self.start(Limits(q_blocks_queued_per_peer=15))
        self.script.endpoint.set_peer("peer", rtt=1.0, now=self.script.now)
        self.serves(100_000)
        for first in range(10, 60, 10):
            self.says(f"GET /a Token=02 Q2:{first}/1/1024")
        # One has left at once, 15 wait.
        self.assertEqual(self.counters.blocks_dropped, 34)
        self.script.passes(10)
        self.assertEqual(self.sent(), [0, *range(10, 26)])
        self.script.passes(300)
        self.script.nothing_leaks()

    def test_queue_of_all_peers(self) -> None:
        self.start(Limits(q_blocks_queued_total=5))
        endpoint, now = self.script.endpoint, self.script.now
        for peer in ("a", "b"):
            endpoint.set_peer(peer, rtt=1.0, now=now)
            endpoint.receive(peer, self.script.build("NON [1] GET /a Token=01 Q2:0/1/1024").encode(), now)
            exchange = self.script.event(RequestReceived).exchange
            endpoint.respond(exchange, CoapResponse(Code.CONTENT, payload=bytes(20_000)), now)
        self.assertEqual(self.counters.blocks_dropped, 4 + 8)
        endpoint.drop_peer("a", now)
        self.assertIsNotNone(endpoint.next_timer())
        endpoint.drop_peer("b", now)
        self.assertTrue(endpoint.idle)
        # What waited for those that have gone does not count any more.
        dropped = self.counters.blocks_dropped
        endpoint.receive("c", self.script.build("NON [1] GET /a Token=01 Q2:0/1/1024").encode(), now)
        while not isinstance(event := endpoint.next_event(), RequestReceived):
            self.assertIsNotNone(event)
        endpoint.respond(event.exchange, CoapResponse(Code.CONTENT, payload=bytes(5000)), now)
        self.assertEqual(self.counters.blocks_dropped, dropped)

    def test_pace(self) -> None:
        """Where the round trip is known a set leaves within half of it, not at once."""
        self.script.endpoint.set_peer("peer", rtt=1.0, now=self.script.now)
        self.serves(100_000, "NON [1] GET /a Token=01 Q2:0/1/1024")
        began, times = self.script.now, []
        while self.script.now < began + 5:
            times += [self.script.now] * len(self.sent())
            self.script.until_timer()
        self.assertEqual(len(times), 10)
        self.assertEqual(times[:2], [began, began])
        gaps = [later - earlier for earlier, later in pairwise(times[1:])]
        for gap in gaps:
            self.assertApproximates(gap, 0.05, 1e-9)

    def test_body_goes_while_blocks_wait(self) -> None:
        """What waits of a body that is not kept any more is not sent."""
        self.start(Limits(max_snapshots_per_peer=1))
        self.script.endpoint.set_peer("peer", rtt=1.0, now=self.script.now)
        self.serves(100_000, "NON [1] GET /a Token=01 Q2:0/1/1024")
        self.serves(3000, "NON [2] GET /b Token=02 Q2:0/0/1024")
        self.script.passes(5)
        self.assertEqual(self.sent(), [0, 1, 0])
        self.assertEqual(self.counters.snapshot_evictions, 1)

    def test_streams_of_confirmable_blocks(self) -> None:
        """However often a client asks for the rest, NSTART messages of a body are under way."""
        self.serves(100_000, "CON [1] GET /a Token=01 Q2:0/1/1024")
        for number in range(50):
            self.says(f"GET /a Token=02 Q2:{number + 10}/1/1024", kind="CON")
        types = [message.type for message in self.script.datagrams()]
        self.assertEqual((types.count(Type.CON), types.count(Type.ACK)), (4, 51))
        state = self.script.endpoint._core.peers["peer"]
        self.assertEqual((state.streaming, len(state.queue)), (4, 0))
        self.script.endpoint.drop_peer("peer", self.script.now)
        self.assertTrue(self.script.endpoint.idle)

    def test_streams_of_many_bodies(self) -> None:
        """Nor do many bodies fill the queue."""
        self.start(Limits(max_snapshots_per_peer=3))
        for number in range(50):
            self.serves(5000, f"CON [{number}] GET /{number} Token=01 Q2:0/1/1024")
        state = self.script.endpoint._core.peers["peer"]
        self.assertEqual(state.streaming, 3 * 4)

    def test_unacknowledged_stream_ends(self) -> None:
        self.serves(100_000, "CON [1] GET /a Token=01 Q2:0/1/1024")
        self.script.passes(200)
        self.assertEqual(sorted(set(self.sent())), [0, 1, 2, 3, 4])
        self.script.passes(300)
        self.script.nothing_leaks()


class Uploads(_Base):
    def block(self, number: int, count: int, tag: int = 1, kind: str = "NON", path: str = "a") -> int:
        """The peer sends a block of 16 bytes, of so many."""
        more = int(number + 1 < count)
        token = (number + 64 * max(0, tag - 1)) % 256
        return self.says(
            f"PUT /{path} Token=0x{token:02x} Request-Tag=0x{tag:04x} Size1={16 * count} Q1:{number}/{more}/16",
            bytes([number % 256]) * 16,
            kind,
        )

    def test_late_blocks_begin_nothing(self) -> None:
        """A block that comes again once the body is whole: no request, no 4.08, nothing kept for long."""
        for number in (0, 1, 2):
            self.block(number, 3)
        exchange = self.script.event(RequestReceived).exchange
        self.script.endpoint.respond(exchange, CoapResponse(Code.CHANGED), self.script.now)
        self.script.datagrams()
        for number in (0, 1, 2):
            self.block(number, 3)
            self.block(number, 3, kind="CON")
        self.assertEqual(len(self.script.datagrams()), 3)
        self.assertEqual(self.counters.blocks_duplicate, 6)
        self.script.passes(300)
        self.script.no_event()
        self.script.nothing_leaks()

    def test_same_tag_other_size(self) -> None:
        """A body of another size is another body, whatever its tag."""
        for number in (0, 1, 2):
            self.block(number, 3)
        self.script.event(RequestReceived)
        for number in (0, 1):
            self.block(number, 2)
        self.script.event(RequestReceived)

    def test_the_continue_is_repeated(self) -> None:
        """Section 4.3: a duplicate is answered as the first copy was."""
        for number in range(10):
            self.block(number, 30)
        self.script.endpoint_sends("NON [$a] 2.31 Token=09 Q1:9/1/16")
        self.block(4, 30)
        self.script.endpoint_sends("NON [$b] 2.31 Token=04 Q1:9/1/16")
        self.block(10, 30)
        self.block(10, 30)
        self.script.endpoint_is_quiet()

    def test_gaps_are_named_once_for_a_set(self) -> None:
        for number in (*range(1, 10), 11, 12, 21, 22):
            self.block(number, 40)
        payloads = [message.payload for message in self.script.datagrams()]
        self.assertEqual(payloads, [b"\x00", b"\x00\x0a" + b"".join(bytes([n]) for n in range(13, 20))])

    def test_a_list_has_one_set(self) -> None:
        self.block(99, 100)
        self.script.passes(5)
        (message,) = self.script.datagrams()
        self.assertEqual(message.payload, bytes(range(10)))

    def test_slow_blocks_are_not_missing(self) -> None:
        """Blocks that come every 10 s: the wait follows, and none is named."""
        for number in (0, 1):
            self.block(number, 8)
            self.script.passes(3)
        for number in range(2, 8):
            self.script.passes(3 + number)
            self.block(number, 8)
        self.script.event(RequestReceived)
        self.assertEqual(self.script.datagrams(), [])

    def test_bodies_of_a_peer(self) -> None:
        """The bounds of Block1 hold for both kinds together."""
        self.start(Limits(max_reassemblies_per_peer=3))
        for tag in range(5):
            self.block(0, 3, tag, path=f"q{tag}")
        self.assertEqual(self.counters.reassembly_evictions, 2)
        self.says("PUT /a 1:0/1/16", bytes(16))
        self.assertEqual(self.counters.reassembly_evictions, 3)

    def test_bytes_of_a_peer(self) -> None:
        self.start(Limits(max_request_body=100, max_reassembly_bytes_per_peer=100))
        for tag in range(4):
            for number in range(3):
                self.block(number, 5, tag)
        reassembly = self.script.endpoint._responder.reassembly
        self.assertLessEqual(reassembly.total_bytes, 100)
        self.assertEqual(reassembly.total_bytes, 96)

    def test_peer_gone(self) -> None:
        self.block(0, 3)
        self.script.endpoint.drop_peer("peer", self.script.now)
        self.assertTrue(self.script.endpoint.idle)

    def test_tags_keep_bodies_apart(self) -> None:
        for number in (0, 1, 2):
            for tag in (1, 2):
                self.block(number, 3, tag)
        self.script.event(RequestReceived)
        self.script.event(RequestReceived)

    def test_options_of_the_request(self) -> None:
        """The application sees none of the transfer's options."""
        self.says("PUT /a Content-Format=60 Request-Tag=0x01 Size1=3 Q1:0/0/16 Q2:0/0/1024", b"abc")
        request = self.script.event(RequestReceived).request
        self.assertEqual(
            request.options, Options.of((OptionNumber.URI_PATH, b"a"), (OptionNumber.CONTENT_FORMAT, b"\x3c"))
        )
        self.assertEqual(request.payload, b"abc")
