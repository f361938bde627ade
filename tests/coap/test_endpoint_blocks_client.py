# SPDX-License-Identifier: AGPL-3.0-or-later
"""Block-wise transfer with the endpoint as the client (RFC 7959), beside the examples of the RFC."""

from __future__ import annotations

from synapse_lb.coap.errors import (
    BlockOptionError,
    BlockwiseError,
    BodyTooLarge,
    MessageTooLarge,
    RequestTimedOut,
    UnexpectedResponse,
)
from synapse_lb.coap.events import CoapRequest, CoapResponse, RequestFailed
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits
from tests.coap.lockstep import Script, body
from tests.coap.test_endpoint_client import ClientTestCase

BODY = body(3000)
A = Options.of((OptionNumber.URI_PATH, b"a"))
GET = CoapRequest(Code.GET, A)
POST = CoapRequest(Code.POST, A, BODY)


class Downloads(ClientTestCase):
    """Response bodies of more than one block (Block2)."""

    def _first(self, request: CoapRequest = GET, line: str = "2:0/1/1024 ETag=0x01") -> int:
        """Send a request and get the first block of its response."""
        exchange = self.request(request)
        (sent,) = self.script.datagrams()
        self.script.bound.update({"$m": sent.message_id, "$t": sent.token})
        self.script.peer_sends(f"ACK [$m] 2.05 Token=$t {line}", BODY[:1024])
        return exchange

    def _next(self, line: str, payload: bytes = b"", code: str = "2.05") -> None:
        """The endpoint asks for one more block and gets this."""
        (sent,) = self.script.datagrams()
        self.assertEqual(sent.payload, b"")
        self.script.bound.update({"$m": sent.message_id, "$t": sent.token})
        self.script.peer_sends(f"ACK [$m] {code} Token=$t {line}", payload)

    def test_whole(self) -> None:
        """With the options of the first block, without those of the transfer."""
        exchange = self._first(line="2:0/1/1024 ETag=0x01 Content-Format=60 Size2=3000")
        self._next("2:1/1/1024 ETag=0x01", BODY[1024:2048])
        self._next("2:2/0/1024 ETag=0x01", BODY[2048:])
        options = Options.of((OptionNumber.ETAG, b"\x01"), (OptionNumber.CONTENT_FORMAT, b"\x3c"))
        self.has_response(exchange, CoapResponse(Code.CONTENT, options, BODY))

    def test_the_request_is_asked_for_with_all_its_options(self) -> None:
        options = Options.of((OptionNumber.URI_PATH, b"a"), (OptionNumber.URI_QUERY, b"x"), (256, b"tok"))
        self._first(CoapRequest(Code.FETCH, options, b"what"))
        self.script.endpoint_sends("CON [$n] FETCH /a ?x 256=0x746f6b Token=$u 2:1/0/1024")
        self.script.peer_sends("ACK [$n] 2.05 Token=$u 2:1/0/1024 ETag=0x01", b"end")
        self.assertEqual(len(self.script.events()), 1)

    def test_blocks_in_separate_responses(self) -> None:
        script = self.script
        exchange = self.request(GET)
        script.endpoint_sends("CON [$a] GET /a Token=$1")
        script.peer_sends("ACK [$a]")
        script.passes(60)
        script.peer_sends("CON [7] 2.05 Token=$1 2:0/1/1024", BODY[:1024])
        script.endpoint_sends("ACK [7]")
        script.endpoint_sends("CON [$b] GET /a Token=$2 2:1/0/1024")
        script.peer_sends("CON [7] 2.05 Token=$1 2:0/1/1024", BODY[:1024])
        script.endpoint_sends("ACK [7]")
        script.peer_sends("CON [8] 2.05 Token=$2 2:1/0/1024", b"end")
        script.endpoint_sends("ACK [8]")
        self.has_response(exchange, CoapResponse(Code.CONTENT, Options(), BODY[:1024] + b"end"))

    def test_the_wait_for_one_block_does_not_end_the_next(self) -> None:
        script = self.script
        exchange = self.request(GET)
        script.endpoint_sends("CON [$a] GET /a Token=$1")
        script.peer_sends("ACK [$a]")
        script.passes(299)
        script.peer_sends("NON [7] 2.05 Token=$1 2:0/1/1024", BODY[:1024])
        script.passes(10)  # response_timeout after the first ACK
        script.no_event()
        self.assertEqual({sent.code for sent in script.datagrams()}, {Code.GET})
        script.endpoint.cancel(exchange, script.now)

    def test_another_code_is_another_representation(self) -> None:
        exchange = self._first(CoapRequest(Code.POST, A))
        self._next("2:1/1/1024 ETag=0x01", BODY[1024:2048], code="2.04")
        self.has_failed(exchange, BlockwiseError)

    def test_non_confirmable(self) -> None:
        script = self.script
        exchange = self.request(CoapRequest(Code.GET, A, confirmable=False))
        script.endpoint_sends("NON [$a] GET /a Token=$1")
        script.peer_sends("NON [7] 2.05 Token=$1 2:0/1/1024", BODY[:1024])
        script.endpoint_sends("NON [$b] GET /a Token=$2 2:1/0/1024")
        script.passes(200)
        script.peer_sends("NON [8] 2.05 Token=$2 2:1/1/1024", BODY[1024:2048])
        script.endpoint_sends("NON [$c] GET /a Token=$3 2:2/0/1024")
        script.passes(299.9)  # the wait begins anew with each block
        script.no_event()
        script.passes(0.1)
        self.has_failed(exchange, RequestTimedOut)

    def test_changed_representation_is_fetched_anew(self) -> None:
        """RFC 7959 section 2.4: blocks of two representations are never mixed."""
        exchange = self._first()
        self._next("2:1/1/1024 ETag=0x02", BODY[1024:2048])
        (sent,) = self.script.datagrams()
        self.assertEqual(sent.options, A)
        self.script.bound.update({"$m": sent.message_id, "$t": sent.token})
        self.script.peer_sends("ACK [$m] 2.05 Token=$t 2:0/1/1024 ETag=0x02", bytes(1024))
        self._next("2:1/0/1024 ETag=0x02", b"end")
        options = Options.of((OptionNumber.ETAG, b"\x02"))
        self.has_response(exchange, CoapResponse(Code.CONTENT, options, bytes(1024) + b"end"))
        self.assertEqual(self.script.endpoint.counters.transfers_restarted, 1)

    def test_a_representation_that_keeps_changing(self) -> None:
        exchange = self._first()
        for etag in (2, 3):
            self._next(f"2:1/1/1024 ETag=0x0{etag}", BODY[1024:2048])
            (sent,) = self.script.datagrams()
            self.script.bound.update({"$m": sent.message_id, "$t": sent.token})
            self.script.peer_sends(f"ACK [$m] 2.05 Token=$t 2:0/1/1024 ETag=0x0{etag}", BODY[:1024])
        self._next("2:1/1/1024 ETag=0x04", BODY[1024:2048])
        self.has_failed(exchange, BlockwiseError)

    def test_a_request_that_is_not_safe_is_not_sent_again(self) -> None:
        exchange = self._first(CoapRequest(Code.POST, A))
        self._next("2:1/1/1024 ETag=0x02", BODY[1024:2048])
        self.has_failed(exchange, BlockwiseError)

    def test_the_body_is_gone(self) -> None:
        exchange = self._first()
        self._next("", code="4.08")
        self.has_failed(exchange, BlockwiseError)

    def test_an_error_instead_of_a_block_is_the_response(self) -> None:
        exchange = self._first()
        self._next("Max-Age=5", code="5.03")
        options = Options.of((OptionNumber.MAX_AGE, b"\x05"))
        self.has_response(exchange, CoapResponse(Code.SERVICE_UNAVAILABLE, options))

    def test_an_error_with_a_large_body(self) -> None:
        exchange = self.request()
        self.script.endpoint_sends("CON [$a] GET /a Token=$1")
        self.script.peer_sends("ACK [$a] 4.03 Token=$1 2:0/1/1024", BODY[:1024])
        self._next("2:1/0/1024", b"end", code="4.03")
        self.has_response(exchange, CoapResponse(Code.FORBIDDEN, Options(), BODY[:1024] + b"end"))

    def test_408_of_a_request_in_one_message_is_the_response(self) -> None:
        """It may mean something to the application: only in a transfer is it about blocks."""
        exchange = self.request()
        self.script.endpoint_sends("CON [$a] GET /a Token=$1")
        self.script.peer_sends("ACK [$a] 4.08 Token=$1")
        self.has_response(exchange, CoapResponse(Code.REQUEST_ENTITY_INCOMPLETE))

    def test_what_makes_no_sense(self) -> None:
        for line, payload, error in (
            ("2:2/1/1024 ETag=0x01", BODY[:1024], BlockwiseError),  # not the block that was asked for
            ("2:0/1/1024 ETag=0x01", BODY[:1024], BlockwiseError),
            ("2:1/1/1024 ETag=0x01", BODY[:1000], BlockwiseError),  # more to come, but not full
            ("2:1/0/512 ETag=0x01", BODY[:1024], BlockwiseError),  # at another place, too large
            ("ETag=0x01", b"all of it", UnexpectedResponse),
            ("Block2=7 ETag=0x01", b"", BlockOptionError),
        ):
            exchange = self._first()
            self._next(line, payload)
            self.has_failed(exchange, error)

    def test_a_first_block_that_is_none(self) -> None:
        exchange = self._first(line="2:1/1/1024")
        self.has_failed(exchange, BlockwiseError)

    def test_the_server_makes_its_blocks_smaller(self) -> None:
        exchange = self._first()
        self._next("2:4/1/256 ETag=0x01", BODY[1024:1280])
        (sent,) = self.script.datagrams()
        self.script.bound.update({"$m": sent.message_id, "$t": sent.token})
        self.assertEqual(sent.options, self.script.build("CON [1] GET /a 2:5/0/256").options)
        self.script.peer_sends("ACK [$m] 2.05 Token=$t 2:5/0/256 ETag=0x01", b"end")
        options = Options.of((OptionNumber.ETAG, b"\x01"))
        self.has_response(exchange, CoapResponse(Code.CONTENT, options, BODY[:1280] + b"end"))

    def test_cancelled_between_two_blocks(self) -> None:
        exchange = self._first()
        self.script.endpoint.cancel(exchange, self.script.now)
        self.script.datagrams()
        self.script.passes(100)
        self.script.endpoint_is_quiet()

    def test_small_datagrams_ask_for_small_blocks(self) -> None:
        self.script.endpoint.set_peer("peer", max_message_size=600, now=self.script.now)
        self.request()
        self.script.endpoint_sends("CON [$a] GET /a Token=$1 2:0/0/512")
        self.script.peer_sends("ACK [$a] 2.05 Token=$1")
        self.script.events()
        self.script.endpoint.drop_peer("peer", self.script.now)


class Bounds(ClientTestCase):
    """`Limits.max_response_body`."""

    def setUp(self) -> None:
        self.script = Script(self, limits=Limits(block_szx=0, max_response_body=32))

    def _fetch(self, lines: list[tuple[str, bytes]]) -> int:
        exchange = self.request()
        for line, payload in lines:
            (sent,) = self.script.datagrams()
            self.script.bound.update({"$m": sent.message_id, "$t": sent.token})
            self.script.peer_sends(f"ACK [$m] 2.05 Token=$t {line}", payload)
        return exchange

    def test_at_the_bound(self) -> None:
        exchange = self._fetch([("2:0/1/16", BODY[:16]), ("2:1/0/16", BODY[16:32])])
        self.has_response(exchange, CoapResponse(Code.CONTENT, Options(), BODY[:32]))

    def test_over_the_bound(self) -> None:
        exchange = self._fetch(
            [("2:0/1/16", BODY[:16]), ("2:1/1/16", BODY[16:32]), ("2:2/0/16", BODY[32:33])]
        )
        self.has_failed(exchange, BodyTooLarge)

    def test_announced(self) -> None:
        self.has_failed(self._fetch([("2:0/1/16 Size2=33", BODY[:16])]), BodyTooLarge)

    def test_in_one_message(self) -> None:
        self.has_failed(self._fetch([("", BODY[:33])]), BodyTooLarge)


class Uploads(ClientTestCase):
    """Request bodies of more than one block (Block1)."""

    def _answer(self, line: str) -> None:
        """The endpoint sends a block and gets this answer."""
        (sent,) = self.script.datagrams()
        self.script.bound.update({"$m": sent.message_id, "$t": sent.token})
        head, _, rest = line.partition(" ")
        self.script.peer_sends(f"ACK [$m] {head} Token=$t {rest}".rstrip())

    def test_exactly_one_block_needs_no_option(self) -> None:
        exchange = self.request(CoapRequest(Code.POST, A, BODY[:1024]))
        self.script.endpoint_sends("CON [$a] POST /a Token=$1", BODY[:1024])
        self.script.peer_sends("ACK [$a] 2.04 Token=$1")
        self.has_response(exchange, CoapResponse(Code.CHANGED))

    def test_one_byte_more_needs_two(self) -> None:
        exchange = self.request(CoapRequest(Code.POST, A, BODY[:1025]))
        self.script.endpoint_sends("CON [$a] POST /a Token=$1 1:0/1/1024 Size1=1025", BODY[:1024])
        self.script.peer_sends("ACK [$a] 2.31 Token=$1 1:0/1/1024")
        self.script.endpoint_sends("CON [$b] POST /a Token=$2 1:1/0/1024", BODY[1024:1025])
        self.script.peer_sends("ACK [$b] 2.04 Token=$2 1:1/0/1024")
        self.has_response(exchange, CoapResponse(Code.CHANGED))

    def test_413_asks_for_smaller_blocks(self) -> None:
        """RFC 7959 section 2.9.3, by a Block1 option."""
        self.request(POST)
        self._answer("4.13 1:0/0/256")
        self.script.endpoint_sends("CON [$a] POST /a Token=$1 1:0/1/256 Size1=3000", BODY[:256])
        self.script.peer_sends("ACK [$a] 2.31 Token=$1 1:0/1/256")
        self.script.endpoint_sends("CON [$b] POST /a Token=$2 1:1/1/256", BODY[256:512])
        self.script.peer_sends("ACK [$b] 4.00 Token=$2")
        self.assertEqual(len(self.script.events()), 1)

    def test_413_to_a_body_in_one_message(self) -> None:
        """RFC 7252 section 5.9.2.9: Size1 says how much fits."""
        self.request(CoapRequest(Code.POST, A, BODY[:1000]))
        self._answer("4.13 Size1=600")
        self.script.endpoint_sends("CON [$a] POST /a Token=$1 1:0/1/512 Size1=1000", BODY[:512])
        self.script.peer_sends("ACK [$a] 4.00 Token=$1")
        self.assertEqual(len(self.script.events()), 1)

    def test_413_that_means_the_body(self) -> None:
        for line in ("4.13", "4.13 Size1=2000", "4.13 1:0/0/1024", "4.13 Size1=3"):
            exchange = self.request(POST)
            self._answer(line)
            options = self.script.build(f"ACK [1] {line}").options.without(OptionNumber.BLOCK1)
            self.has_response(exchange, CoapResponse(Code.REQUEST_ENTITY_TOO_LARGE, options))

    def test_413_again_and_again(self) -> None:
        exchange = self.request(POST)
        for size in (512, 256, 128, 64, 32, 16):
            self._answer(f"4.13 1:0/0/{size}")
        self._answer("4.13 1:0/0/16")
        self.has_response(exchange, CoapResponse(Code.REQUEST_ENTITY_TOO_LARGE))

    def test_408(self) -> None:
        exchange = self.request(POST)
        self._answer("2.31 1:0/1/1024")
        self._answer("4.08")
        self.has_failed(exchange, BlockwiseError)

    def test_an_error_ends_the_upload(self) -> None:
        exchange = self.request(POST)
        self._answer("4.01")
        self.has_response(exchange, CoapResponse(Code.UNAUTHORIZED))

    def test_what_makes_no_sense(self) -> None:
        for lines, error in (
            (["2.31 1:1/1/1024"], BlockwiseError),  # another block than was sent
            (["2.04"], UnexpectedResponse),  # the peer ignores that there is more
            (["2.31 1:0/1/1024", "2.31 1:1/1/1024", "2.31 1:2/0/1024"], UnexpectedResponse),
            (["2.31 Block1=7"], BlockOptionError),
        ):
            exchange = self.request(POST)
            for line in lines:
                self._answer(line)
            self.has_failed(exchange, error)
        exchange = self.request(CoapRequest(Code.POST, A, b"small"))
        self._answer("2.31")
        self.has_failed(exchange, UnexpectedResponse)

    def test_a_continue_without_block1(self) -> None:
        exchange = self.request(POST)
        self._answer("2.31")
        self._answer("2.31")
        self._answer("2.04")
        self.has_response(exchange, CoapResponse(Code.CHANGED))

    def test_overlapping_uploads_are_told_apart(self) -> None:
        """RFC 9175 section 3.3: Request-Tag, but only where it is needed."""
        script = self.script
        exchanges = [self.request(POST) for _ in range(3)]
        other = self.request(CoapRequest(Code.PUT, A, BODY))
        script.endpoint_sends("CON [$a] POST /a Token=$1 1:0/1/1024", BODY[:1024])
        script.endpoint_sends("CON [$b] POST /a Token=$2 1:0/1/1024 Request-Tag=0x01", BODY[:1024])
        script.endpoint_sends("CON [$c] POST /a Token=$3 1:0/1/1024 Request-Tag=0x02", BODY[:1024])
        script.endpoint_sends("CON [$d] PUT /a Token=$4 1:0/1/1024", BODY[:1024])
        script.peer_sends("ACK [$b] 2.31 Token=$2 1:0/1/1024")
        script.endpoint_sends("CON [$e] POST /a Token=$5 1:1/1/1024 Request-Tag=0x01", BODY[1024:2048])
        for exchange in (*exchanges[:2], other):
            script.endpoint.cancel(exchange, script.now)
        self.request(POST)
        script.endpoint_sends("CON [$f] POST /a Token=$6 1:0/1/1024 Request-Tag=0x03", BODY[:1024])
        for event in script.events():
            self.assertNotIsInstance(event, RequestFailed)
        script.endpoint.drop_peer("peer", script.now)
        self.assertEqual(len(script.events()), 2)

    def test_options_of_the_transfer_are_the_endpoints_own(self) -> None:
        options = Options.of(
            (OptionNumber.URI_PATH, b"a"),
            (OptionNumber.BLOCK1, b"\x0e"),
            (OptionNumber.BLOCK2, b"\x16"),
            (OptionNumber.SIZE1, b"\x01"),
            (OptionNumber.REQUEST_TAG, b"\x01"),
        )
        self.request(CoapRequest(Code.POST, options, b"x"))
        self.script.endpoint_sends("CON [$a] POST /a Token=$1", b"x")
        self.script.peer_sends("ACK [$a] 2.04 Token=$1")
        self.script.events()

    def test_blocks_fit_in_the_datagrams_of_the_peer(self) -> None:
        for size in (64, 100, 300, 1080, 1152, 1280):
            self.script = Script(self)
            self.script.endpoint.set_peer("peer", max_message_size=size, now=self.script.now)
            self.request(POST)
            got = b""
            for _ in range(400):
                (sent,) = self.script.datagrams()
                self.assertLessEqual(len(sent.encode()), size)
                got += sent.payload
                self.script.bound.update({"$m": sent.message_id, "$t": sent.token})
                if got == BODY:
                    break
                self.script.peer_sends("ACK [$m] 2.31 Token=$t")
            self.script.peer_sends("ACK [$m] 2.04 Token=$t")
            self.assertEqual(len(self.script.events()), 1)
            self.assertEqual(got, BODY)
            self.script.endpoint.drop_peer("peer", self.script.now)

    def test_more_blocks_than_have_numbers(self) -> None:
        self.script = Script(self, limits=Limits(block_szx=0))
        self.script.endpoint.cancel(self.request(CoapRequest(Code.POST, A, bytes(16 << 20))), self.script.now)
        self.script.datagrams()
        too_many = CoapRequest(Code.POST, A, bytes((16 << 20) + 1))
        self.assertRaises(MessageTooLarge, self.request, too_many)
