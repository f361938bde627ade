# SPDX-License-Identifier: AGPL-3.0-or-later
"""Q-Block1 (RFC 9177) with the endpoint as the client: the examples of section 10.1 and appendix A, line by line."""

from __future__ import annotations

from synapse_lb.coap.errors import RequestReset, RequestTimedOut
from synapse_lb.coap.events import CoapResponse
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import Options
from synapse_lb.coap.qblock import MISSING_BLOCKS, encode_missing
from synapse_lb.coap.tuning import Tuning
from tests.coap.lockstep import body
from tests.coap.qblock_case import Q_BLOCK, ClientCase, cut


class Uploads(ClientCase):
    def _line(self, number: int, tag: str = "$tag") -> str:
        more = int((number + 1) * 1024 < len(self.whole))
        return f"Request-Tag={tag} Size1={len(self.whole)} Q1:{number}/{more}/1024 Q2:0/0/1024"

    def sent(self, kind: str, number: int) -> None:
        """The endpoint sends this block."""
        self.script.endpoint_sends(
            f"{kind} [$m{number}] PUT /path Token=$t{number} {self._line(number)}", cut(self.whole, number)
        )

    def puts(self, size: int, *, confirmable: bool = True) -> None:
        self.whole = body(size)
        self.ask(Code.PUT, self.whole, confirmable=confirmable)

    def test_confirmable(self) -> None:
        """Figure 17: the first block alone, then as many as the window allows."""
        self.puts(4 * 1024)
        self.sent("CON", 0)
        self.script.endpoint_is_quiet()
        self.script.passes(0.1)
        self.script.peer_sends("ACK [$m0]")
        for number in (1, 2, 3):
            self.sent("CON", number)
        for number in (3, 1, 2):
            self.script.peer_sends(f"ACK [$m{number}]" + (" 2.04 Token=$t2" if number == 2 else ""))
        self.assertEqual(self.response(), CoapResponse(Code.CHANGED))
        self.gone()

    def test_confirmable_with_loss(self) -> None:
        """Figure 18: what is not acknowledged is sent again, and nothing else."""
        self.puts(4 * 1024)
        self.sent("CON", 0)
        self.script.passes(0.1)
        self.script.peer_sends("ACK [$m0]")
        for number in (1, 2, 3):
            self.sent("CON", number)
        self.script.passes(0.1)
        self.script.peer_sends("ACK [$m1]")
        self.script.passes(4)
        again = [message.message_id for message in self.script.datagrams()]
        self.assertEqual(set(again), {self.script.bound["$m2"], self.script.bound["$m3"]})
        # How many blocks may be under way is for the window to say; other messages wait no longer for it.
        self.assertEqual(self.script.endpoint._core.settings_of("peer").rto.timeout, Q_BLOCK.ack_timeout)
        self.script.peer_sends("ACK [$m2]")
        self.script.peer_sends("ACK [$m3] 2.04 Token=$t3")
        self.assertEqual(self.response(), CoapResponse(Code.CHANGED))
        self.assertEqual(self.script.endpoint.counters.blocks_recovered, 2)
        self.gone()

    def test_nstart_is_for_the_others(self) -> None:
        """Blocks do not count for NSTART: other requests get through meanwhile, and no more of them than ever."""
        self.puts(30 * 1024)
        self.sent("CON", 0)
        self.script.passes(0.1)
        self.script.peer_sends("ACK [$m0]")
        self.assertEqual(len(self.script.datagrams()), 10)
        for _ in range(6):
            self.ask()
        self.assertEqual(len(self.script.datagrams()), 4)
        self.script.peer_sends("ACK [$m0]")
        self.script.endpoint_is_quiet()
        self.script.endpoint.cancel(1, self.script.now)
        self.script.endpoint_is_quiet()
        self.ask()
        self.script.endpoint_is_quiet()

    def test_lost_blocks_shrink_the_window(self) -> None:
        """A block that had to be sent again tells of congestion: fewer are under way than without."""
        windows = []
        for copies in (0, 1):
            self.start(Tuning(q_block=True, ack_random_factor=1.0))
            self.puts(200 * 1024)
            self.sent("CON", 0)
            self.script.passes(0.1)
            self.script.peer_sends("ACK [$m0]")
            sent = self.script.datagrams()
            self.script.passes(0.1 + copies * 2)
            for message in sent:
                self.script.peer_sends_bytes(Message(Type.ACK, 0, message.message_id).encode())
            stream = next(iter(self.script.endpoint._core.peers["peer"].requesting.values())).stream
            assert stream is not None and stream.upload is not None and stream.upload.window is not None
            windows.append(stream.upload.window.window)
        self.assertLess(windows[1], 0.6 * windows[0])

    def test_separate_response(self) -> None:
        """All blocks are acknowledged, and the response comes later with the token of any."""
        self.puts(2 * 1024)
        self.sent("CON", 0)
        self.script.peer_sends("ACK [$m0]")
        self.sent("CON", 1)
        self.script.peer_sends("ACK [$m1]")
        self.script.passes(60)
        self.script.peer_sends('CON [9] 2.04 Token=$t0 "done"')
        self.script.endpoint_sends("ACK [9]")
        self.assertEqual(self.response().payload, b"done")
        self.gone()

    def test_response_overtakes_acknowledgements(self) -> None:
        """The response says that the body is there: no block is sent again."""
        self.puts(3 * 1024)
        self.sent("CON", 0)
        self.script.peer_sends("ACK [$m0]")
        self.sent("CON", 1)
        self.sent("CON", 2)
        self.script.peer_sends("NON [9] 2.04 Token=$t2")
        self.assertEqual(self.response().code, Code.CHANGED)
        self.script.passes(10)
        self.script.endpoint_is_quiet()
        self.gone()

    def test_no_response(self) -> None:
        self.puts(2 * 1024)
        self.sent("CON", 0)
        self.script.peer_sends("ACK [$m0]")
        self.sent("CON", 1)
        self.script.peer_sends("ACK [$m1]")
        self.script.passes(301)
        self.failure(RequestTimedOut)
        self.gone()

    def test_never_acknowledged(self) -> None:
        self.puts(2 * 1024)
        self.sent("CON", 0)
        self.script.passes(200)
        self.script.datagrams()
        self.failure(RequestTimedOut)
        self.gone()

    def test_reset(self) -> None:
        self.puts(2 * 1024)
        self.sent("CON", 0)
        self.script.peer_sends("RST [$m0]")
        self.failure(RequestReset)
        self.gone()

    def test_refused_in_between(self) -> None:
        """An error is the response; the rest of the body stays here."""
        self.puts(40 * 1024)
        self.sent("CON", 0)
        self.script.peer_sends("ACK [$m0] 4.13 Token=$t0 Size1=1024")
        response = self.response()
        self.assertEqual(response.code, Code.REQUEST_ENTITY_TOO_LARGE)
        self.gone()

    def test_missing_blocks_of_confirmable_ones(self) -> None:
        """A server that has lost blocks which it acknowledged gets them again."""
        self.puts(3 * 1024)
        self.sent("CON", 0)
        self.script.peer_sends("ACK [$m0]")
        self.sent("CON", 1)
        self.sent("CON", 2)
        self.script.peer_sends("ACK [$m1]")
        self.script.peer_sends("ACK [$m2] 4.08 Token=$t2 Content-Format=272", b"\x01")
        self.script.endpoint_sends(
            f"CON [$again] PUT /path Token=$t_again {self._line(1)}", cut(self.whole, 1)
        )
        self.script.peer_sends("ACK [$again] 2.04 Token=$t_again")
        self.assertEqual(self.response().code, Code.CHANGED)
        self.gone()

    def test_non_confirmable(self) -> None:
        """Figure 4: the set leaves at once, the next with the 2.31."""
        self.puts(11 * 1024, confirmable=False)
        for number in range(10):
            self.sent("NON", number)
        self.script.endpoint_is_quiet()
        self.script.peer_sends("NON [1] 2.31 Token=$t9 Q1:9/1/1024")
        self.sent("NON", 10)
        self.script.peer_sends("NON [2] 2.04 Token=$t10")
        self.assertEqual(self.response().code, Code.CHANGED)
        self.gone()

    def test_non_confirmable_recovery(self) -> None:
        """Figures 5 and 6: the next set after NON_TIMEOUT_RANDOM; what a 4.08 names is sent at once."""
        self.puts(13 * 1024, confirmable=False)
        for number in range(10):
            self.sent("NON", number)
        self.script.passes(1.99)
        self.script.endpoint_is_quiet()
        self.script.passes(1.01)
        for number in (10, 11, 12):
            self.sent("NON", number)
        self.script.peer_sends("NON [1] 4.08 Token=$t11 Content-Format=272", b"\x01\x09")
        for number in (1, 9):
            self.script.endpoint_sends(
                f"NON [$again{number}] PUT /path Token=$t_again{number} {self._line(number)}",
                cut(self.whole, number),
            )
        self.script.passes(4)
        self.script.peer_sends("NON [2] 4.08 Token=$t_again9 Content-Format=272", b"\x0a")
        self.script.endpoint_sends(
            f"NON [$last] PUT /path Token=$t_last {self._line(10)}", cut(self.whole, 10)
        )
        self.script.peer_sends("NON [3] 2.04 Token=$t_last")
        self.assertEqual(self.response().code, Code.CHANGED)
        self.assertEqual(self.script.endpoint.counters.blocks_recovered, 3)
        self.gone()

    def test_malformed_lists_are_ignored(self) -> None:
        """Section 5: the client drops what does not rise, or is no list."""
        self.puts(3 * 1024, confirmable=False)
        self.script.datagrams()
        token = next(iter(self.script.endpoint._core.peers["peer"].requesting)).hex()
        for index, payload in enumerate(
            (b"", b"\x01\x00", b"\x01\x01", b"\x03", b"\x18", b"\x41\x00", b"\xf6")
        ):
            self.script.peer_sends(f"NON [{index}] 4.08 Token=0x{token} Content-Format=272", payload)
            self.script.endpoint_is_quiet()
        self.assertEqual(self.script.endpoint.counters.unmatched, 7)

    def test_one_set_of_missing_blocks_at_a_time(self) -> None:
        """Section 7.2: a set of missing blocks is one of MAX_PAYLOADS."""
        self.puts(30 * 1024, confirmable=False)
        for _ in range(3):
            self.script.passes(3)
        sent = self.script.datagrams()
        self.assertEqual(len(sent), 30)
        payload = encode_missing(range(30), 1000)
        options = Options().with_uint(OptionNumber.CONTENT_FORMAT, MISSING_BLOCKS)
        refusal = Message(Type.NON, Code.REQUEST_ENTITY_INCOMPLETE, 1, sent[-1].token, options, payload)
        self.script.peer_sends_bytes(refusal.encode())
        self.assertEqual(len(self.script.datagrams()), 10)

    def test_probing_rate(self) -> None:
        """A body that nobody answered makes the next wait: meanwhile it goes block by block (PROBING_RATE)."""
        self.puts(3 * 1024, confirmable=False)
        self.assertEqual(len(self.script.datagrams()), 3)
        self.script.passes(301)
        self.failure(RequestTimedOut)
        self.puts(3 * 1024, confirmable=False)
        (only,) = self.script.datagrams()
        self.assertIn(OptionNumber.BLOCK1, only.options)
        self.script.passes(301)
        self.failure(RequestTimedOut)
        self.puts(3 * 1024, confirmable=False)
        self.assertEqual(len(self.script.datagrams()), 3)

    def test_both_directions(self) -> None:
        """Section 10.3: the response to a body that went up comes down in blocks."""
        self.puts(2 * 1024)
        self.sent("CON", 0)
        self.script.peer_sends("ACK [$m0]")
        self.sent("CON", 1)
        answer = body(2 * 1024, seed=3)
        self.script.peer_sends("ACK [$m1] 2.04 Token=$t1 ETag=0x15 Size2=2048 Q2:0/1/1024", answer[:1024])
        self.script.endpoint_sends("NON [$n] PUT /path Request-Tag=$tag Token=$t_n Q2:1/0/1024")
        self.script.peer_sends("NON [5] 2.04 Token=$t_n ETag=0x15 Size2=2048 Q2:1/0/1024", answer[1024:])
        self.assertEqual(self.response().payload, answer)
        self.gone()
