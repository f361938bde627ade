# SPDX-License-Identifier: AGPL-3.0-or-later
"""Q-Block2 (RFC 9177) with the endpoint as the client: the examples as far as a client can be led through them.

The client offers Q-Block2 with M unset, gets the first block, and asks for the others as its window allows.
"""

from __future__ import annotations

from itertools import pairwise

from attrs import evolve

from synapse_lb.coap.errors import (
    BlockwiseError,
    BodyTooLarge,
    MessageTooLarge,
    RequestTimedOut,
    TooManyExchanges,
    UnexpectedResponse,
)
from synapse_lb.coap.events import CoapRequest, CoapResponse, RequestFailed
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import Options
from synapse_lb.coap.qblock import QBlocks, numbers_of
from synapse_lb.coap.tuning import Limits, Tuning
from tests.coap.lockstep import Script, body
from tests.coap.qblock_case import PATH, Q_BLOCK, ClientCase, cut


class _Base(ClientCase):
    def begins(self, size: int, *, etag: int = 0x15) -> None:
        """A GET is answered with the first block of a body of this size."""
        self.whole = body(size)
        self.ask()
        self.script.endpoint_sends("CON [$get] GET /path Token=$t_get Q2:0/0/1024")
        self.script.passes(0.1)
        self.script.peer_sends(
            f"ACK [$get] 2.05 Token=$t_get ETag=0x{etag:02x} Size2={size} Q2:0/1/1024", cut(self.whole, 0)
        )

    def asked(self) -> list[tuple[bytes, list[int]]]:
        """Return what the endpoint has asked for: token and numbers of each request."""
        asked = []
        for message in self.script.datagrams():
            self.assertEqual((message.type, message.code, message.payload), (Type.NON, Code.GET, b""))
            blocks = QBlocks.read(message.options)
            assert blocks is not None and blocks.upload is None
            self.assertEqual(message.options.without(OptionNumber.Q_BLOCK2), PATH)
            asked.append((message.token, numbers_of(blocks.wanted, -(-len(self.whole) // 1024), 10)))
        return asked

    def sends(self, token: bytes, number: int, *, etag: int = 0x15, payload: bytes | None = None) -> None:
        """The server sends a block."""
        self.replies += 1
        more = int((number + 1) * 1024 < len(self.whole))
        self.script.peer_sends(
            f"NON [{self.replies}] 2.05 Token=0x{token.hex()} ETag=0x{etag:02x} Size2={len(self.whole)} "
            f"Q2:{number}/{more}/1024",
            cut(self.whole, number) if payload is None else payload,
        )


class Downloads(_Base):
    def test_one_message(self) -> None:
        """A body of one message has no Q-Block2; nothing differs from a plain request."""
        self.ask()
        self.script.endpoint_sends("CON [$m] GET /path Token=$t Q2:0/0/1024")
        self.script.peer_sends('ACK [$m] 2.05 Token=$t "short"')
        self.assertEqual(self.response(), CoapResponse(Code.CONTENT, payload=b"short"))
        self.gone()

    def test_one_block(self) -> None:
        """Nor does one that says that it is the only block."""
        self.ask()
        self.script.endpoint_sends("CON [$m] GET /path Token=$t Q2:0/0/1024")
        self.script.peer_sends('ACK [$m] 2.05 Token=$t ETag=0x01 Size2=5 Q2:0/0/1024 "short"')
        response = self.response()
        self.assertEqual(response.payload, b"short")
        self.assertEqual([number for number, _ in response.options], [OptionNumber.ETAG])
        self.gone()

    def test_sets(self) -> None:
        """The whole way: each block is asked for once, sets by one option with M, and none before block 1."""
        self.begins(60 * 1024)
        wanted: list[int] = []
        while asked := self.asked():
            self.script.passes(0.1)
            for token, numbers in asked:
                wanted += numbers
                for number in numbers:
                    self.sends(token, number)
        self.assertEqual(wanted, list(range(1, 60)))
        self.assertEqual(self.response().payload, self.whole)
        self.gone()

    def test_m_names_the_rest_of_a_set(self) -> None:
        """Section 4.4: one option for the rest of a set."""
        self.begins(60 * 1024)
        (message,) = self.script.datagrams()
        self.assertEqual(message.options.get_all(OptionNumber.Q_BLOCK2), (b"\x1e",))

    def test_losses_are_named(self) -> None:
        """Blocks 3 and 5 get lost: as soon as a later request is answered they are asked for, and only they."""
        self.begins(20 * 1024)
        ((first, numbers),) = self.asked()
        self.assertEqual(numbers, list(range(1, 10)))
        self.script.passes(0.1)
        for number in (1, 2, 4, 6, 7, 8, 9):
            self.sends(first, number)
        pending = self.asked()
        following = [number for _, numbers in pending for number in numbers]
        self.assertEqual(following, list(range(10, 20)))
        again: list[int] = []
        while pending:
            self.script.passes(0.1)
            for token, numbers in pending:
                for number in numbers:
                    self.sends(token, number)
            pending = self.asked()
            again += [number for _, numbers in pending for number in numbers]
        self.assertEqual(again, [3, 5])
        self.assertEqual(self.response().payload, self.whole)
        self.assertEqual(self.script.endpoint.counters.blocks_recovered, 2)
        self.gone()

    def test_silence(self) -> None:
        """Nothing arrives: one block is asked for, after twice the time each; then the request fails."""
        self.begins(20 * 1024)
        self.asked()
        times, numbers = [], []
        while not self.script.endpoint._core.events:
            self.script.until_timer()
            for _, asked in self.asked():
                times.append(self.script.now)
                numbers.append(asked)
        self.assertEqual(numbers, [[1]] * len(numbers))
        self.assertGreaterEqual(len(numbers), 4)
        waits = [later - earlier for earlier, later in pairwise(times)]
        for earlier, later in pairwise(waits):
            self.assertAlmostEqual(later, 2 * earlier)
        self.failure(RequestTimedOut)
        self.gone()

    def test_fixed_times(self) -> None:
        """Section 7.2 to the letter, without adaptive timeouts: 4, 8, 16, 32 s, and the end after 64."""
        self.start(evolve(Q_BLOCK, adaptive_rto=False))
        self.begins(20 * 1024)
        self.asked()
        for wait in (4, 8, 16, 32):
            self.script.passes(wait - 0.1)
            self.assertEqual(self.asked(), [])
            self.script.passes(0.1 + 1e-9)
            self.assertEqual([numbers for _, numbers in self.asked()], [[1]])
        self.script.no_event()
        self.script.passes(64)
        self.failure(RequestTimedOut)
        self.gone()

    def test_late_is_not_lost(self) -> None:
        """After silence one block is asked for; when the late ones come nevertheless, no other is."""
        self.begins(8 * 1024)
        ((first, numbers),) = self.asked()
        self.assertEqual(numbers, list(range(1, 8)))
        self.script.passes(1.5)
        self.assertEqual([numbers for _, numbers in self.asked()], [[1]])
        for number in numbers:
            self.sends(first, number)
        self.assertEqual(self.response().payload, self.whole)
        self.gone()

    def test_duplicates(self) -> None:
        """Section 4.4: a block that is here already is ignored."""
        self.begins(4 * 1024)
        ((token, _),) = self.asked()
        for number in (1, 1, 0, 2, 1):
            self.sends(token, number)
        self.assertEqual(self.script.endpoint.counters.blocks_duplicate, 3)
        self.sends(token, 3)
        self.assertEqual(self.response().payload, self.whole)
        self.gone()

    def test_cancelled(self) -> None:
        """Blocks of a request that is not open any more mean nothing."""
        self.begins(20 * 1024)
        ((token, _),) = self.asked()
        exchange = next(iter(self.script.endpoint._core.exchanges))
        self.script.endpoint.cancel(exchange, self.script.now)
        self.sends(token, 1)
        self.assertEqual(self.script.endpoint.counters.unmatched, 1)
        self.gone()

    def test_peer_gone(self) -> None:
        self.begins(20 * 1024)
        self.asked()
        self.script.endpoint.drop_peer("peer", self.script.now)
        self.script.event(RequestFailed)
        self.assertTrue(self.script.endpoint.idle)

    def test_changed(self) -> None:
        """Section 4.4: another ETag is another body; a GET begins anew."""
        self.begins(4 * 1024)
        ((token, _),) = self.asked()
        self.sends(token, 1, etag=0x16)
        self.script.endpoint_sends("CON [$get2] GET /path Token=$t_get2 Q2:0/0/1024")
        self.assertEqual(self.script.endpoint.counters.transfers_restarted, 1)
        self.sends(token, 2)
        self.script.peer_sends('ACK [$get2] 2.05 Token=$t_get2 "short"')
        self.assertEqual(self.response().payload, b"short")
        self.gone()

    def test_changed_after_a_post(self) -> None:
        """A request that is not safe is never made twice."""
        self.whole = body(4 * 1024)
        self.ask(Code.POST, b"x")
        self.script.endpoint_sends('CON [$p] POST /path Token=$t_p Q2:0/0/1024 "x"')
        self.script.peer_sends(
            f"ACK [$p] 2.05 Token=$t_p ETag=0x15 Size2={len(self.whole)} Q2:0/1/1024", cut(self.whole, 0)
        )
        token = self.script.datagrams()[0].token
        self.sends(token, 1, etag=0x16)
        self.failure(BlockwiseError)
        self.gone()

    def test_not_kept(self) -> None:
        """4.08 without a list: the server has let the body go."""
        self.begins(4 * 1024)
        ((token, _),) = self.asked()
        self.script.peer_sends(f"NON [7] 4.08 Token=0x{token.hex()}")
        self.failure(BlockwiseError)
        self.gone()

    def test_error_in_between(self) -> None:
        """An error takes the place of the response."""
        self.begins(4 * 1024)
        ((token, _),) = self.asked()
        self.script.peer_sends(f'NON [7] 4.01 Token=0x{token.hex()} "who?"')
        self.assertEqual(self.response(), CoapResponse(Code.UNAUTHORIZED, payload=b"who?"))
        self.gone()

    def test_success_without_block(self) -> None:
        self.begins(4 * 1024)
        ((token, _),) = self.asked()
        self.script.peer_sends(f"NON [7] 2.05 Token=0x{token.hex()} ETag=0x15")
        self.failure(UnexpectedResponse)
        self.gone()

    def test_bad_blocks(self) -> None:
        """Blocks that are not what they say end the transfer; nothing of them is delivered."""
        for line, payload in (
            ("Size2=4096 Q2:1/1/1024", bytes(1023)),
            ("Size2=4096 Q2:3/1/1024", bytes(1024)),
            ("Size2=4096 Q2:1/0/1024", bytes(1024)),
            ("Size2=4097 Q2:1/1/1024", bytes(1024)),
            ("Size2=4096 Q2:1/1/512", bytes(512)),
            ("Size2=4096 Q2:4/0/1024", b""),
            ("Size2=4096 Q-Block2=7", b""),
        ):
            self.start(Q_BLOCK)
            self.begins(4 * 1024)
            ((token, _),) = self.asked()
            self.script.peer_sends(f"NON [7] 2.05 Token=0x{token.hex()} ETag=0x15 {line}", payload)
            self.script.event(RequestFailed)
            self.gone()

    def test_bad_first_blocks(self) -> None:
        for line, payload, error in (
            ("Q2:0/1/1024", bytes(1024), BlockwiseError),
            ("Size2=4096 Q2:1/1/1024", bytes(1024), BlockwiseError),
            ("Size2=4096 Q2:0/1/1024", bytes(1000), BlockwiseError),
            ("Size2=900000000 Q2:0/1/1024", bytes(1024), BodyTooLarge),
            ("Size2=4000000000 Q2:0/1/16", bytes(16), BlockwiseError),
        ):
            self.start(Q_BLOCK)
            self.ask()
            self.script.endpoint_sends("CON [$m] GET /path Token=$t Q2:0/0/1024")
            self.script.peer_sends(f"ACK [$m] 2.05 Token=$t ETag=0x15 {line}", payload)
            self.failure(error)
            self.gone()

    def test_many_options_have_no_room(self) -> None:
        """A request names as many blocks as fit in one message."""
        self.start(Q_BLOCK)
        self.script.endpoint.set_peer("peer", max_message_size=64, now=self.script.now)
        path = Options.of((OptionNumber.URI_PATH, b"p" * 30))
        self.script.endpoint.request("peer", CoapRequest(Code.GET, path), self.script.now)
        (get,) = self.script.datagrams()
        whole = body(16 * 40)
        options = Options.of(
            (OptionNumber.ETAG, b"e"), (OptionNumber.SIZE2, b"\x02\x80"), (OptionNumber.Q_BLOCK2, b"\x08")
        )
        message = Message(Type.ACK, Code.CONTENT, get.message_id, get.token, options, whole[:16])
        self.script.peer_sends_bytes(message.encode())
        sent = self.script.datagrams()
        self.assertTrue(sent)
        for request in sent:
            self.assertLessEqual(len(request.encode()), 64)

    def test_requests_for_blocks_validate_and_observe_nothing(self) -> None:
        """Sections 4.4 and 4.5: neither ETag nor Observe."""
        options = PATH.with_option(OptionNumber.ETAG, b"old").with_uint(OptionNumber.OBSERVE, 1)
        self.script.endpoint.request("peer", CoapRequest(Code.GET, options), self.script.now)
        self.script.endpoint_sends("CON [$m] GET /path ETag=0x6f6c64 Observe=1 Token=$t Q2:0/0/1024")
        self.script.peer_sends("ACK [$m] 2.05 Token=$t ETag=0x15 Size2=1025 Q2:0/1/1024", bytes(1024))
        self.script.endpoint_sends("NON [$n] GET /path Token=$u Q2:1/0/1024")

    def test_transfer_options_of_the_application(self) -> None:
        """What the application says of the transfer is left out: it is chosen here."""
        options = PATH.with_option(OptionNumber.Q_BLOCK2, b"\x16").with_option(OptionNumber.Q_BLOCK1, b"\x16")
        self.script.endpoint.request("peer", CoapRequest(Code.GET, options), self.script.now)
        self.script.endpoint_sends("CON [$m] GET /path Token=$t Q2:0/0/1024")

    def test_tokens_do_not_count_as_exchanges(self) -> None:
        """A transfer with many tokens is one exchange."""
        self.start(Q_BLOCK, Limits(max_exchanges_per_peer=2))
        self.begins(100 * 1024)
        self.ask()
        self.assertRaises(TooManyExchanges, self.ask)
        self.script.endpoint.drop_peer("peer", self.script.now)
        self.script.endpoint.set_peer("peer", q_block=True, now=self.script.now)

    def test_tokens_are_given_back(self) -> None:
        """When a transfer has ended, the bound of open requests is as before."""
        self.start(Q_BLOCK, Limits(max_exchanges_per_peer=2))
        self.begins(4 * 1024)
        ((token, numbers),) = self.asked()
        for number in numbers:
            self.sends(token, number)
        self.response()
        self.ask()
        self.ask()
        self.assertRaises(TooManyExchanges, self.ask)


class FallingBack(_Base):
    def test_get(self) -> None:
        """4.02: the request is made once more without, and the next one offers nothing."""
        self.ask()
        self.script.endpoint_sends("CON [$a] GET /path Token=$t_a Q2:0/0/1024")
        self.script.peer_sends("ACK [$a] 4.02 Token=$t_a")
        self.script.no_event()
        self.script.endpoint_sends("CON [$b] GET /path Token=$t_b")
        self.script.peer_sends("ACK [$b] 2.05 Token=$t_b")
        self.assertEqual(self.response().code, Code.CONTENT)
        self.ask()
        self.script.endpoint_sends("CON [$c] GET /path Token=$t_c")
        self.script.peer_sends("ACK [$c] 2.05 Token=$t_c")
        self.response()
        self.assertEqual(self.script.endpoint.counters.q_block_fallbacks, 1)
        self.gone()

    def test_put(self) -> None:
        """A body goes up by Block1 instead, from its beginning."""
        whole = body(2 * 1024)
        self.ask(Code.PUT, whole)
        (first,) = self.script.datagrams()
        self.assertIn(OptionNumber.Q_BLOCK1, first.options)
        refusal = Message(Type.ACK, Code.BAD_OPTION, first.message_id, first.token)
        self.script.peer_sends_bytes(refusal.encode())
        self.script.endpoint_sends("CON [$b] PUT /path Token=$t_b Request-Tag=$tag 1:0/1/1024", whole[:1024])
        self.script.peer_sends("ACK [$b] 2.31 Token=$t_b 1:0/1/1024")
        self.script.endpoint_sends("CON [$c] PUT /path Token=$t_c Request-Tag=$tag 1:1/0/1024", whole[1024:])
        self.script.peer_sends("ACK [$c] 2.04 Token=$t_c 1:1/0/1024")
        self.assertEqual(self.response().code, Code.CHANGED)
        self.gone()

    def test_another_option_was_meant(self) -> None:
        """4.02 without Q-Block as well: the peer knows Q-Block for all we know."""
        self.ask()
        self.script.endpoint_sends("CON [$a] GET /path Token=$t_a Q2:0/0/1024")
        self.script.peer_sends("ACK [$a] 4.02 Token=$t_a")
        self.script.endpoint_sends("CON [$b] GET /path Token=$t_b")
        self.script.peer_sends("ACK [$b] 4.02 Token=$t_b")
        self.assertEqual(self.response().code, Code.BAD_OPTION)
        self.ask()
        self.script.endpoint_sends("CON [$c] GET /path Token=$t_c Q2:0/0/1024")

    def test_block1_does_not_fit(self) -> None:
        """A datagram with room for Q-Block1 but, by one byte, not for Block1: the request fails, nothing raises."""
        self.script.endpoint.set_peer("peer", max_message_size=64, now=self.script.now)
        options = Options.of((OptionNumber.LOCATION_PATH, b""), (2048, bytes(13)))
        request = CoapRequest(Code.PUT, options, bytes(100))
        self.script.endpoint.request("peer", request, self.script.now)
        (first,) = self.script.datagrams()
        refusal = Message(Type.ACK, Code.BAD_OPTION, first.message_id, first.token)
        self.script.peer_sends_bytes(refusal.encode())
        self.failure(MessageTooLarge)
        self.gone()

    def test_block2_in_the_answer(self) -> None:
        """A server may answer with Block2 nevertheless."""
        whole = body(2 * 1024)
        self.ask()
        self.script.endpoint_sends("CON [$a] GET /path Token=$t_a Q2:0/0/1024")
        self.script.peer_sends("ACK [$a] 2.05 Token=$t_a ETag=0x01 2:0/1/1024", whole[:1024])
        self.script.endpoint_sends("CON [$b] GET /path Token=$t_b 2:1/0/1024")
        self.script.peer_sends("ACK [$b] 2.05 Token=$t_b ETag=0x01 2:1/0/1024", whole[1024:])
        self.assertEqual(self.response().payload, whole)
        self.gone()

    def test_not_for_a_registration(self) -> None:
        """Notifications come with Block2."""
        options = PATH.with_uint(OptionNumber.OBSERVE, 0)
        self.script.endpoint.request("peer", CoapRequest(Code.GET, options), self.script.now)
        self.script.endpoint_sends("CON [$a] GET /path Observe=0 Token=$t")

    def test_only_where_it_is_known(self) -> None:
        """Neither without `set_peer` nor without the tuning is anything offered."""
        for tuning, known in ((Q_BLOCK, None), (Q_BLOCK, False), (Tuning(), True)):
            script = Script(self, tuning=tuning)
            script.endpoint.set_peer("peer", q_block=known, now=script.now)
            script.endpoint.request("peer", CoapRequest(Code.GET, PATH), script.now)
            script.endpoint_sends("CON [$a] GET /path Token=$t_a")
