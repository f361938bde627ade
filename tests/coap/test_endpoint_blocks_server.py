# SPDX-License-Identifier: AGPL-3.0-or-later
"""Block-wise transfer with the endpoint as the server (RFC 7959), beside the examples of the RFC."""

from __future__ import annotations

import random
from collections.abc import Hashable

from hypothesis import given
from hypothesis import strategies as st

from synapse_lb.coap.block import Block
from synapse_lb.coap.endpoint import Endpoint, Peer
from synapse_lb.coap.events import CoapResponse, RequestReceived, ResponseUndelivered
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits
from tests.coap.lockstep import Script, body
from tests.coap.test_endpoint_server import ServerTestCase

BODY = body(300)


def content(payload: bytes = BODY, *options: tuple[int, bytes]) -> CoapResponse:
    return CoapResponse(Code.CONTENT, Options(options), payload)


class Downloads(ServerTestCase):
    """Response bodies of more than one block (Block2)."""

    def setUp(self) -> None:
        self.script = Script(self, limits=Limits(block_szx=3))

    def _begin(self, line: str = "CON [1] GET /a Token=01", response: CoapResponse | None = None) -> None:
        self.script.peer_sends(line)
        self.respond(self.received(), content() if response is None else response)

    def test_a_token_for_each_block(self) -> None:
        self._begin()
        self.script.endpoint_sends("ACK [1] 2.05 Token=01 2:0/1/128", BODY[:128])
        self.script.peer_sends("CON [2] GET /a Token=02 2:1/0/128")
        self.script.endpoint_sends("ACK [2] 2.05 Token=02 2:1/1/128", BODY[128:256])
        self.script.peer_sends("CON [3] GET /a Token=0303 2:2/0/128")
        self.script.endpoint_sends("ACK [3] 2.05 Token=0303 2:2/0/128", BODY[256:])
        self.script.no_event()

    def test_one_token_for_all_blocks_and_a_separate_response(self) -> None:
        script = self.script
        script.peer_sends("CON [1] GET /a Token=01")
        exchange = self.received()
        script.endpoint.acknowledge(exchange, script.now)
        script.endpoint_sends("ACK [1]")
        self.respond(exchange, content())
        script.endpoint_sends("CON [$m] 2.05 Token=01 2:0/1/128", BODY[:128])
        # The client's ACK is lost, but it goes on: that acknowledges as well.
        script.peer_sends("CON [2] GET /a Token=01 2:1/0/128")
        script.endpoint_sends("ACK [2] 2.05 Token=01 2:1/1/128", BODY[128:256])
        script.passes(100)
        script.endpoint_is_quiet()
        script.no_event()

    def test_non_confirmable(self) -> None:
        self._begin("NON [1] GET /a Token=01")
        self.script.endpoint_sends("NON [$m] 2.05 Token=01 2:0/1/128", BODY[:128])
        self.script.peer_sends("NON [2] GET /a Token=02 2:2/0/128")
        self.script.endpoint_sends("NON [$n] 2.05 Token=02 2:2/0/128", BODY[256:])
        # The response was lost; the client asks again, with a new message id.
        self.script.peer_sends("NON [3] GET /a Token=03 2:2/0/128")
        self.script.endpoint_sends("NON [$o] 2.05 Token=03 2:2/0/128", BODY[256:])

    def test_the_options_of_the_response_are_repeated(self) -> None:
        """Clients compare Content-Format and ETag over the blocks (RFC 7959 section 2.4)."""
        etag = (int(OptionNumber.ETAG), b"v1")
        response = content(BODY, etag, (OptionNumber.CONTENT_FORMAT, b"\x3c"), (OptionNumber.MAX_AGE, b""))
        self._begin(response=response)
        options = "ETag=0x7631 Content-Format=60 Max-Age=0"
        self.script.endpoint_sends(f"ACK [1] 2.05 Token=01 2:0/1/128 {options}", BODY[:128])
        self.script.peer_sends("CON [2] GET /a 2:1/0/128")
        self.script.endpoint_sends(f"ACK [2] 2.05 2:1/1/128 {options}", BODY[128:256])

    def test_an_etag_is_made_of_the_body(self) -> None:
        self._begin()
        self.script.endpoint_sends("ACK [1] 2.05 Token=01 2:0/1/128 ETag=$first", BODY[:128])
        self._begin("CON [2] GET /a Token=02", content(BODY + b"!"))
        self.script.endpoint_sends("ACK [2] 2.05 Token=02 2:0/1/128 ETag=$second", BODY[:128])
        self.assertNotEqual(self.script.bound["$first"], self.script.bound["$second"])
        self.assertEqual(len(self.script.datagrams()), 0)

    def test_a_body_of_one_block_has_no_block_option(self) -> None:
        self._begin(response=content(BODY[:128]))
        sent = self.script.endpoint_sends("ACK [1] 2.05 Token=01", BODY[:128])
        self.assertNotIn(OptionNumber.ETAG, sent.options)
        self._begin("CON [2] GET /a 2:0/0/128", content(BODY[:128]))
        self.script.endpoint_sends("ACK [2] 2.05", BODY[:128])

    def test_the_size_on_request(self) -> None:
        """Size2 (RFC 7959 section 4)."""
        self._begin("CON [1] GET /a Size2=0")
        self.script.endpoint_sends("ACK [1] 2.05 2:0/1/128 Size2=300", BODY[:128])
        self.script.peer_sends("CON [2] GET /a 2:1/0/128 Size2=0")
        self.script.endpoint_sends("ACK [2] 2.05 2:1/1/128", BODY[128:256])

    def test_random_access(self) -> None:
        """Any block in any order, in any size up to that of the server."""
        self._begin()
        self.script.endpoint_sends("ACK [1] 2.05 Token=01 2:0/1/128", BODY[:128])
        for message_id, (number, size) in enumerate([(2, 128), (17, 16), (0x12, 16), (1, 64), (1, 128)], 2):
            self.script.peer_sends(f"CON [{message_id}] GET /a 2:{number}/0/{size}")
            start = number * size
            more = int(start + size < 300)
            self.script.endpoint_sends(
                f"ACK [{message_id}] 2.05 2:{number}/{more}/{size}", BODY[start : start + size]
            )

    def test_larger_blocks_than_the_server_has(self) -> None:
        """A block of the server's size at the place that was asked for."""
        payload = body(3000)
        self._begin(response=content(payload))
        self.script.endpoint_sends("ACK [1] 2.05 Token=01 2:0/1/128", payload[:128])
        self.script.peer_sends("CON [2] GET /a 2:1/0/1024")
        self.script.endpoint_sends("ACK [2] 2.05 2:8/1/128", payload[1024:1152])

    def test_behind_the_end(self) -> None:
        self._begin()
        self.script.datagrams()
        self.script.peer_sends("CON [2] GET /a 2:3/0/128")
        self.script.endpoint_sends("ACK [2] 4.00")
        self.script.peer_sends("CON [3] GET /a 2:1048575/0/1024")
        self.script.endpoint_sends("ACK [3] 4.00")

    def test_no_body_is_kept(self) -> None:
        """A further block never runs the request."""
        self.script.peer_sends("CON [1] GET /a 2:1/0/128")
        self.script.endpoint_sends("ACK [1] 4.08")
        self._begin("CON [2] GET /a")
        self.script.datagrams()
        for line in ("GET /b", "FETCH /a", "GET /a ?since=1", "GET /a Accept=60", "GET /a Request-Tag=0x01"):
            self.script.peer_sends(f"CON [3] {line} 2:1/0/128")
            self.script.endpoint_sends("ACK [3] 4.08")
        self.script.no_event()

    def test_a_further_block_may_leave_out_what_is_no_part_of_the_key(self) -> None:
        """Token (256) and key version (257) are sticky, and Content-Format goes with the payload."""
        endpoint = Endpoint(
            random=random.Random(1),
            limits=Limits(block_szx=3),
            understood=(257,),
            scope=lambda peer, options: "me",
        )
        self.script = Script(self, endpoint=endpoint)
        self._begin("CON [1] POST /a 256=0x746f 257=1 Content-Format=60 No-Response=8 Size2=0")
        self.script.datagrams()
        self.script.peer_sends("CON [2] POST /a 2:1/0/128")
        self.script.endpoint_sends("ACK [2] 2.05 2:1/1/128", BODY[128:256])

    def test_without_a_scope_every_option_is_part_of_the_key(self) -> None:
        """Else bodies that were asked for with different tokens would be mixed up."""
        self._begin("CON [1] GET /a 256=0x61")
        self.script.datagrams()
        self.script.peer_sends("CON [2] GET /a 2:1/0/128 256=0x62")
        self.script.endpoint_sends("ACK [2] 4.08")
        self.script.peer_sends("CON [3] GET /a 2:1/0/128 256=0x61")
        self.script.endpoint_sends("ACK [3] 2.05 2:1/1/128", BODY[128:256])

    def test_scopes_are_kept_apart(self) -> None:
        tokens: list[bytes] = []

        def scope(peer: Peer, options: Options) -> Hashable:
            token = options.get(256)
            if token is not None:
                tokens.append(token)
            return tokens[-1] if tokens else None

        endpoint = Endpoint(random=random.Random(1), limits=Limits(block_szx=3), scope=scope)
        self.script = Script(self, endpoint=endpoint)
        self._begin("CON [1] GET /a 256=0x61")
        self.script.datagrams()
        self.script.peer_sends("CON [2] GET /a 2:1/0/128")
        self.script.endpoint_sends("ACK [2] 2.05 2:1/1/128", BODY[128:256])
        self.script.peer_sends("CON [3] GET /a 2:1/0/128 256=0x62")
        self.script.endpoint_sends("ACK [3] 4.08")
        self.script.peer_sends("CON [4] GET /a 2:1/0/128 256=0x61")
        self.script.endpoint_sends("ACK [4] 2.05 2:1/1/128", BODY[128:256])

    def test_peers_are_kept_apart(self) -> None:
        self._begin()
        self.script.datagrams()
        stray = self.script.build("CON [2] GET /a 2:1/0/128").encode()
        self.script.endpoint.receive("another", stray, self.script.now)
        ((name, datagram),) = self.script.endpoint.datagrams_to_send(self.script.now)
        self.assertEqual((name, Message.decode(datagram).code), ("another", Code.REQUEST_ENTITY_INCOMPLETE))

    def test_a_new_request_takes_the_place_of_the_old_body(self) -> None:
        self._begin()
        self._begin("CON [2] GET /a Token=02", content(BODY[::-1]))
        self.script.datagrams()
        self.script.peer_sends("CON [3] GET /a 2:1/0/128")
        self.script.endpoint_sends("ACK [3] 2.05 2:1/1/128", BODY[::-1][128:256])
        self._begin("CON [4] GET /a Token=03", content(b"short"))
        self.script.datagrams()
        self.script.peer_sends("CON [5] GET /a 2:1/0/128")
        self.script.endpoint_sends("ACK [5] 4.08")

    def test_an_undelivered_first_block_takes_its_body_along(self) -> None:
        script = self.script
        script.peer_sends("CON [1] GET /a Token=01")
        exchange = self.received()
        script.endpoint.acknowledge(exchange, script.now)
        script.endpoint_sends("ACK [1]")
        self.respond(exchange, content())
        script.endpoint_sends("CON [$m] 2.05 Token=01 2:0/1/128", BODY[:128])
        script.peer_sends("RST [$m]")
        script.event(ResponseUndelivered)
        script.peer_sends("CON [2] GET /a 2:1/0/128")
        script.endpoint_sends("ACK [2] 4.08")

    def test_blocks_fit_in_the_datagrams_of_the_peer(self) -> None:
        for size in (64, 65, 100, 200, 1151, 1152, 1280, 9000):
            self.script = Script(self)
            self.script.endpoint.set_peer("peer", max_message_size=size, now=self.script.now)
            payload = body(3000)
            self._begin("CON [1] GET /a Token=0102030405060708", content(payload))
            got = b""
            for number in range(200):
                (sent,) = self.script.datagrams()
                self.assertLessEqual(len(sent.encode()), size)
                got += sent.payload
                block = Block.decode(sent.options.get(OptionNumber.BLOCK2) or b"")
                if not block.more:
                    break
                following = Block(number + 1, False, block.szx).encode()
                options = Options.of((OptionNumber.URI_PATH, b"a"), (OptionNumber.BLOCK2, following))
                request = Message(Type.CON, Code.GET, number + 2, bytes(8), options)
                self.script.peer_sends_bytes(request.encode())
            self.assertEqual(got, payload)

    def test_options_that_leave_no_room(self) -> None:
        crowded = content(BODY, *[(OptionNumber.LOCATION_QUERY, bytes(250))] * 5)
        self._begin(response=crowded)
        self.script.endpoint_sends("ACK [1] 5.00 Token=01")
        self.assertEqual(self.script.endpoint.counters.responses_too_large, 1)

    @given(st.integers(0, 5000), st.integers(0, 6), st.integers(0, 6))
    def test_any_body_in_any_size(self, size: int, server_szx: int, client_szx: int) -> None:
        self.script = Script(self, limits=Limits(block_szx=server_szx))
        payload = body(size)
        options = Options.of((OptionNumber.BLOCK2, Block(0, False, client_szx).encode()))
        self.script.peer_sends_bytes(Message(Type.CON, Code.GET, 0, b"", options).encode())
        self.respond(self.received(), content(payload))
        got = b""
        for message_id in range(1, 400):
            (sent,) = self.script.datagrams()
            got += sent.payload
            value = sent.options.get(OptionNumber.BLOCK2)
            if value is None or not (block := Block.decode(value)).more:
                break
            self.assertEqual(block.szx, min(server_szx, client_szx))
            options = Options.of((OptionNumber.BLOCK2, Block(block.number + 1, False, block.szx).encode()))
            self.script.peer_sends_bytes(Message(Type.CON, Code.GET, message_id, b"", options).encode())
        self.assertEqual(got, payload)
        self.script.nothing_leaks()


class Uploads(ServerTestCase):
    """Request bodies of more than one block (Block1)."""

    def _whole(self, payload: bytes) -> int:
        event = self.script.event(RequestReceived)
        self.assertEqual(event.request.payload, payload)
        self.script.no_event()
        return event.exchange

    def test_a_token_for_each_block(self) -> None:
        for number in range(3):
            more = int(number < 2)
            line = f"CON [{number}] PUT /a 1:{number}/{more}/128 Token=0{number}"
            self.script.peer_sends(line, BODY[128 * number : 128 * number + 128])
            if more:
                self.script.endpoint_sends(f"ACK [{number}] 2.31 1:{number}/1/128 Token=0{number}")
        self.respond(self._whole(BODY), CoapResponse(Code.CHANGED))
        self.script.endpoint_sends("ACK [2] 2.04 1:2/0/128 Token=02")

    def test_the_last_block_answered_separately(self) -> None:
        script = self.script
        script.peer_sends("CON [1] PUT /a 1:0/1/128 Token=01", BODY[:128])
        script.endpoint_sends("ACK [1] 2.31 1:0/1/128 Token=01")
        script.peer_sends("CON [2] PUT /a 1:1/0/128 Token=01", BODY[128:200])
        exchange = self._whole(BODY[:200])
        script.passes(1.5)
        script.endpoint_sends("ACK [2]")
        self.respond(exchange, CoapResponse(Code.CHANGED))
        script.endpoint_sends("CON [$m] 2.04 1:1/0/128 Token=01")
        script.peer_sends("ACK [$m]")

    def test_one_block_only(self) -> None:
        self.script.peer_sends("CON [1] PUT /a 1:0/0/128", b"small")
        self.respond(self._whole(b"small"), CoapResponse(Code.CHANGED))
        self.script.endpoint_sends("ACK [1] 2.04 1:0/0/128")

    def test_an_empty_body(self) -> None:
        self.script.peer_sends("CON [1] PUT /a 1:0/0/128")
        self.respond(self._whole(b""), CoapResponse(Code.CHANGED))
        self.script.endpoint_sends("ACK [1] 2.04 1:0/0/128")

    def test_options_of_the_first_block_count_and_those_of_the_transfer_go(self) -> None:
        """A client may send what is sticky with the first block only."""
        endpoint = Endpoint(random=random.Random(1), scope=lambda peer, options: "me")
        self.script = Script(self, endpoint=endpoint)
        self.script.peer_sends("CON [1] PUT /a 1:0/1/16 256=0x61 Size1=20 Request-Tag=0x01", BODY[:16])
        self.script.endpoint_sends("ACK [1] 2.31 1:0/1/16")
        self.script.peer_sends("CON [2] PUT /a 1:1/0/16 2:0/0/64 Request-Tag=0x01", BODY[16:20])
        event = self.script.event(RequestReceived)
        self.assertEqual(event.request.options, Options.of((OptionNumber.URI_PATH, b"a"), (256, b"a")))
        self.respond(event.exchange, content(BODY))
        self.script.endpoint_sends("ACK [2] 2.05 1:1/0/16 2:0/1/64", BODY[:64])

    def test_a_block_is_missing(self) -> None:
        """RFC 7959 section 2.9.2."""
        self.script.peer_sends("CON [1] PUT /a 1:1/1/128", BODY[128:256])
        self.script.endpoint_sends("ACK [1] 4.08")
        self.script.peer_sends("CON [2] PUT /a 1:0/1/128", BODY[:128])
        self.script.endpoint_sends("ACK [2] 2.31 1:0/1/128")
        self.script.peer_sends("CON [3] PUT /a 1:2/0/128", BODY[256:])
        self.script.endpoint_sends("ACK [3] 4.08")
        self.script.no_event()

    def test_the_first_block_begins_anew(self) -> None:
        self.script.peer_sends("CON [1] PUT /a 1:0/1/128", BODY[:128])
        self.script.peer_sends("CON [2] PUT /a 1:0/1/128", BODY[128:256])
        self.script.peer_sends("CON [3] PUT /a 1:1/0/128", b"end")
        self.respond(self._whole(BODY[128:256] + b"end"), CoapResponse(Code.CHANGED))
        self.assertEqual([sent.code for sent in self.script.datagrams()], [0x5F, 0x5F, 0x44])

    def test_a_whole_body_takes_the_place_of_a_half_one(self) -> None:
        self.script.peer_sends("CON [1] PUT /a 1:0/1/128", BODY[:128])
        self.script.peer_sends("CON [2] PUT /a 1:0/0/128", b"whole")
        self.respond(self._whole(b"whole"), CoapResponse(Code.CHANGED))
        self.script.peer_sends("CON [3] PUT /a 1:1/0/128", b"end")
        self.assertEqual([sent.code for sent in self.script.datagrams()], [0x5F, 0x44, 0x88])

    def test_a_block_sent_again_with_a_new_message_id(self) -> None:
        self.script.peer_sends("CON [1] PUT /a 1:0/1/128", BODY[:128])
        self.script.peer_sends("CON [2] PUT /a 1:1/1/128", BODY[128:256])
        self.script.peer_sends("CON [3] PUT /a 1:1/1/128", BODY[128:256])
        self.script.peer_sends("CON [4] PUT /a 1:2/0/128", BODY[256:])
        self.respond(self._whole(BODY), CoapResponse(Code.CHANGED))
        self.assertEqual([sent.code for sent in self.script.datagrams()], [0x5F, 0x5F, 0x5F, 0x44])

    def test_a_block_sent_again_with_other_content(self) -> None:
        self.script.peer_sends("CON [1] PUT /a 1:0/1/128", BODY[:128])
        self.script.peer_sends("CON [2] PUT /a 1:1/1/128", BODY[128:256])
        self.script.peer_sends("CON [3] PUT /a 1:1/1/128", bytes(128))
        self.script.peer_sends("CON [4] PUT /a 1:2/0/128", BODY[256:])
        self.assertEqual([sent.code for sent in self.script.datagrams()], [0x5F, 0x5F, 0x88, 0x88])
        self.script.no_event()

    def test_a_block_of_a_wrong_size(self) -> None:
        for payload, more in ((BODY[:127], 1), (BODY[:129], 1), (BODY[:129], 0), (b"", 1)):
            self.script = Script(self)
            self.script.peer_sends(f"CON [1] PUT /a 1:0/{more}/128", payload)
            self.script.endpoint_sends("ACK [1] 4.00")
            self.script.no_event()

    def test_a_further_block_of_the_response_in_the_same_message(self) -> None:
        self.script.peer_sends("CON [1] PUT /a 1:0/1/128 2:1/0/128", BODY[:128])
        self.script.endpoint_sends("ACK [1] 4.00")

    def test_uploads_with_request_tags_are_kept_apart(self) -> None:
        """RFC 9175 section 3.3."""
        for tag in ("01", "02"):
            self.script.peer_sends(
                f"CON [0x{tag}] PUT /a 1:0/1/128 Request-Tag=0x{tag}", bytes.fromhex(tag) * 128
            )
            self.script.endpoint_sends(f"ACK [0x{tag}] 2.31 1:0/1/128")
        for tag in ("01", "02"):
            self.script.peer_sends(f"CON [0x1{tag}] PUT /a 1:1/0/128 Request-Tag=0x{tag}", b"end")
            self.respond(self._whole(bytes.fromhex(tag) * 128 + b"end"), CoapResponse(Code.CHANGED))
            self.script.endpoint_sends(f"ACK [0x1{tag}] 2.04 1:1/0/128")

    def test_another_content_format_is_another_body(self) -> None:
        """RFC 7959 section 2.5: 4.08."""
        self.script.peer_sends("CON [1] PUT /a 1:0/1/128 Content-Format=60", BODY[:128])
        self.script.endpoint_sends("ACK [1] 2.31 1:0/1/128")
        self.script.peer_sends("CON [2] PUT /a 1:1/0/128 Content-Format=50", b"end")
        self.script.endpoint_sends("ACK [2] 4.08")

    def test_non_confirmable(self) -> None:
        self.script.peer_sends("NON [1] PUT /a 1:0/1/128 Token=01", BODY[:128])
        self.script.endpoint_sends("NON [$a] 2.31 1:0/1/128 Token=01")
        self.script.peer_sends("NON [2] PUT /a 1:1/0/128 Token=02", b"end")
        self.respond(self._whole(BODY[:128] + b"end"), CoapResponse(Code.CHANGED))
        self.script.endpoint_sends("NON [$b] 2.04 1:1/0/128 Token=02")
