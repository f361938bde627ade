# SPDX-License-Identifier: AGPL-3.0-or-later
"""The examples of RFC 9177 (section 10 and appendix A), line by line, with the endpoint as the server.

Observe is left out of them, as the RFC allows (section 10.2). Where the RFC's server sends the next set of a body
after NON_TIMEOUT by itself, this one waits until it is asked, which the client of the example does as well.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.events import CoapRequest, CoapResponse, RequestReceived
from synapse_lb.coap.numbers import Code
from synapse_lb.coap.tuning import Tuning
from tests.coap.lockstep import Script, body

Q_BLOCK = Tuning(q_block=True)


def cut(whole: bytes, number: int) -> bytes:
    """Return a block of 1024 bytes."""
    return whole[number * 1024 : (number + 1) * 1024]


class _Base(SynchronousTestCase):
    def setUp(self) -> None:
        self.script = Script(self, tuning=Q_BLOCK)
        self.whole = b""
        self.sent = 0

    def puts(self, message_id: int, token: int, tag: int, number: int, code: str = "PUT") -> None:
        """The client sends one block of `self.whole`, Non-confirmable."""
        self.puts_as("NON", message_id, token, tag, number, code)

    def puts_as(self, kind: str, message_id: int, token: int, tag: int, number: int, code: str) -> None:
        more = int((number + 1) * 1024 < len(self.whole))
        self.script.peer_sends(
            f"{kind} [{message_id}] {code} /path Token=0x{token:02x} Request-Tag=0x{tag:02x} "
            f"Q1:{number}/{more}/1024 Size1={len(self.whole)}",
            cut(self.whole, number),
        )

    def request(self) -> tuple[int, CoapRequest]:
        """The application gets a whole request."""
        event = self.script.event(RequestReceived)
        return event.exchange, event.request

    def answers(self, exchange: int, code: int = Code.CHANGED, payload: bytes = b"") -> None:
        self.script.endpoint.respond(exchange, CoapResponse(code, payload=payload), self.script.now)

    def arrives(self, line: str, *numbers: int) -> None:
        """The endpoint sends these blocks of `self.whole`, with the token and options of the line."""
        count = -(-len(self.whole) // 1024)
        for number in numbers:
            more = int(number + 1 < count)
            self.sent += 1
            self.script.endpoint_sends(
                f"NON [$block{self.sent}] 2.05 {line} Q2:{number}/{more}/1024 Size2={len(self.whole)}",
                cut(self.whole, number),
            )


class QBlock1NonConfirmable(_Base):
    """Section 10.1."""

    def test_simple(self) -> None:
        """Figure 3."""
        self.whole = body(3 * 1024 + 100)
        for number in range(4):
            self.script.no_event()
            self.puts(0x81 + number, 0xC0 + number, 9, number)
        exchange, request = self.request()
        self.assertEqual(request.payload, self.whole)
        self.assertEqual([number for number, _ in request.options], [11])
        self.assertFalse(request.confirmable)
        self.answers(exchange)
        self.script.endpoint_sends("NON [$m] 2.04 Token=c3")
        self.script.nothing_leaks()

    def test_max_payloads(self) -> None:
        """Figure 4: a set is acknowledged with 2.31, and nothing less is."""
        self.whole = body(10 * 1024 + 1)
        for number in range(10):
            self.script.endpoint_is_quiet()
            self.puts(1 + number, 0xF1 + number, 10, number)
        self.script.endpoint_sends("NON [$c] 2.31 Token=fa Q1:9/1/1024")
        self.puts(0x0B, 0xFB, 10, 10)
        exchange, request = self.request()
        self.assertEqual(request.payload, self.whole)
        self.answers(exchange)
        self.script.endpoint_sends("NON [$m] 2.04 Token=fb")
        self.script.nothing_leaks()

    def test_recovery(self) -> None:
        """Figures 5 and 6: 1, 9 and 10 get lost."""
        self.whole = body(12 * 1024 + 1)
        for number in (0, 2, 3, 4, 5, 6, 7, 8):
            self.puts(0x11 + number, 0xE1 + number, 11, number)
        self.script.passes(2.5)
        self.script.endpoint_is_quiet()
        self.puts(0x1C, 0xEC, 11, 11)
        self.script.endpoint_sends("NON [$a] 4.08 Token=ec Content-Format=272", b"\x01\x09")
        self.script.passes(0.1)
        self.puts(0x1D, 0xED, 11, 1)
        self.puts(0x1E, 0xEE, 11, 9)
        self.script.endpoint_sends("NON [$b] 2.31 Token=ee Q1:9/1/1024")
        self.script.passes(0.1)
        self.puts(0x1F, 0xEF, 11, 12)
        # The round trip is known by now: two of them, and something for those that overtake each other.
        self.script.passes(0.39)
        self.script.endpoint_is_quiet()
        self.script.passes(0.02)
        self.script.endpoint_sends("NON [$d] 4.08 Token=ef Content-Format=272", b"\x0a")
        self.puts(0x20, 0xF0, 11, 10)
        exchange, request = self.request()
        self.assertEqual(request.payload, self.whole)
        self.answers(exchange)
        self.script.endpoint_sends("NON [$e] 2.04 Token=f0")
        self.script.nothing_leaks()

    def test_waits_of_a_known_way(self) -> None:
        """The first wait is short, the last one as long as the RFC's, and there is not one request more."""
        self.script.endpoint.set_peer("peer", rtt=0.1, now=self.script.now)
        self.whole = body(2 * 1024 + 1)
        self.puts(0x91, 0xD0, 12, 0)
        self.puts(0x93, 0xD2, 12, 2)
        for retry, wait in enumerate((0.4, 1.423, 5.06, 17.995)):
            self.script.passes(wait - 0.01)
            self.script.endpoint_is_quiet()
            self.script.passes(0.011)
            self.script.endpoint_sends(f"NON [$m{retry}] 4.08 Token=d2 Content-Format=272", b"\x01")
        self.script.passes(63.9)
        self.assertEqual(self.script.endpoint.counters.reassembly_expirations, 0)
        self.script.passes(0.2)
        self.assertEqual(self.script.endpoint.counters.reassembly_expirations, 1)
        self.script.nothing_leaks()

    def test_whole_set_and_then_nothing(self) -> None:
        """Nothing of the set is missing: the client may pause, and is not disturbed before the RFC's time."""
        self.script.endpoint.set_peer("peer", rtt=0.1, now=self.script.now)
        self.whole = body(11 * 1024)
        for number in range(10):
            self.puts(1 + number, 0xF1 + number, 10, number)
        self.script.endpoint_sends("NON [$c] 2.31 Token=fa Q1:9/1/1024")
        self.script.passes(3.99)
        self.script.endpoint_is_quiet()
        self.script.passes(0.01)
        self.script.endpoint_sends("NON [$m] 4.08 Token=fa Content-Format=272", b"\x0a")
        self.puts(0x0B, 0xFB, 10, 10)
        self.answers(self.request()[0])
        self.script.endpoint_sends("NON [$n] 2.04 Token=fb")
        self.script.nothing_leaks()

    def test_recovery_fails(self) -> None:
        """Figure 7: four requests in vain, each after twice the time; then the body is forgotten."""
        self.whole = body(2 * 1024 + 1)
        self.puts(0x91, 0xD0, 12, 0)
        self.puts(0x93, 0xD2, 12, 2)
        for retry, wait in enumerate((4, 8, 16, 32)):
            self.script.passes(wait - 0.01)
            self.script.endpoint_is_quiet()
            self.script.passes(0.01)
            self.script.endpoint_sends(f"NON [$m{retry}] 4.08 Token=d2 Content-Format=272", b"\x01")
        self.assertEqual(self.script.endpoint.counters.reassembly_expirations, 0)
        self.script.passes(64)
        self.assertEqual(self.script.endpoint.counters.reassembly_expirations, 1)
        self.script.nothing_leaks()


class QBlock2NonConfirmable(_Base):
    """Section 10.2."""

    def get(self, size: int) -> None:
        """The client asks for a body of this size, which the application has at once."""
        self.whole = body(size)
        self.script.peer_sends("NON [1] GET /path Token=f0 Q2:0/1/1024")
        exchange, request = self.request()
        self.assertEqual([number for number, _ in request.options], [11])
        self.answers(exchange, Code.CONTENT, self.whole)

    def test_simple(self) -> None:
        """Figure 8."""
        self.get(3 * 1024 + 1)
        self.arrives("Token=f0 ETag=$e", 0, 1, 2, 3)
        self.script.nothing_leaks()

    def test_max_payloads(self) -> None:
        """Figure 9: the eleventh block leaves with the 'Continue' Q-Block2."""
        self.get(10 * 1024 + 1)
        self.arrives("Token=f0 ETag=$e", *range(10))
        self.script.endpoint_is_quiet()
        self.script.peer_sends("NON [2] GET /path Token=f1 Q2:10/1/1024")
        self.arrives("Token=f1 ETag=$e", 10)
        self.script.nothing_leaks()

    def test_recovery(self) -> None:
        """Figure 10: 1 and 9 are named, and then 1 once more."""
        self.get(10 * 1024 + 1)
        self.arrives("Token=f0 ETag=$e", *range(10))
        self.script.passes(6)
        self.script.peer_sends("NON [4] GET /path Token=f3 Q2:1/0/1024 Q2:9/0/1024")
        self.arrives("Token=f3 ETag=$e", 1, 9)
        self.script.passes(4)
        self.script.peer_sends("NON [5] GET /path Token=f4 Q2:1/0/1024")
        self.arrives("Token=f4 ETag=$e", 1)
        self.script.peer_sends("NON [6] GET /path Token=f5 Q2:10/1/1024")
        self.arrives("Token=f5 ETag=$e", 10)
        self.script.no_event()
        self.script.nothing_leaks()

    def test_recovery_with_m(self) -> None:
        """Figure 11: the rest of a set is named with M."""
        self.get(10 * 1024 + 1)
        self.arrives("Token=f0 ETag=$e", *range(10))
        self.script.passes(6)
        self.script.peer_sends("NON [6] GET /path Token=f5 Q2:2/1/1024")
        self.arrives("Token=f5 ETag=$e", *range(2, 10))
        self.script.peer_sends("NON [7] GET /path Token=f6 Q2:10/1/1024")
        self.arrives("Token=f6 ETag=$e", 10)
        self.script.nothing_leaks()

    def test_first_block_lost(self) -> None:
        """Section 4.4: block 0 may be missing as any other; that runs nothing anew."""
        self.get(2 * 1024 + 1)
        self.arrives("Token=f0 ETag=$e", 0, 1, 2)
        self.script.peer_sends("NON [2] GET /path Token=f1 Q2:0/0/1024")
        self.arrives("Token=f1 ETag=$e", 0)
        self.script.peer_sends("NON [3] GET /path Token=f2 Q2:0/0/1024 Q2:2/0/1024")
        self.arrives("Token=f2 ETag=$e", 0, 2)
        self.script.no_event()
        self.script.nothing_leaks()


class Together(_Base):
    """Section 10.3: FETCH, in both directions."""

    def fetch(self, blocks: int) -> bytes:
        self.whole = body((blocks - 1) * 1024 + 1, seed=5)
        return self.whole

    def test_simple(self) -> None:
        """Figure 12: Q-Block1 alone says that the client knows Q-Block2 too."""
        asked = self.fetch(3)
        for number in range(3):
            self.puts(0x10 + number, 0x90 + number, 30, number, "FETCH")
        exchange, request = self.request()
        self.assertEqual(request.payload, asked)
        self.whole = body(3 * 1024 + 1)
        self.answers(exchange, Code.CONTENT, self.whole)
        self.arrives("Token=92 ETag=$e", 0, 1, 2, 3)
        self.script.nothing_leaks()

    def test_max_payloads(self) -> None:
        """Figure 13."""
        self.fetch(11)
        for number in range(10):
            self.puts(0x30 + number, 0xA0 + number, 10, number, "FETCH")
        self.script.endpoint_sends("NON [$c] 2.31 Token=a9 Q1:9/1/1024")
        self.puts(0x3A, 0xAA, 10, 10, "FETCH")
        exchange, _ = self.request()
        self.whole = body(10 * 1024 + 1)
        self.answers(exchange, Code.CONTENT, self.whole)
        self.arrives("Token=aa ETag=$e", *range(10))
        self.script.endpoint_is_quiet()
        self.script.peer_sends("NON [0x3b] FETCH /path Request-Tag=0x0a Token=ab Q2:10/1/1024")
        self.arrives("Token=ab ETag=$e", 10)
        self.script.nothing_leaks()

    def test_recovery(self) -> None:
        """Figures 14 to 16: both directions lose blocks; the request for them has neither Q-Block1 nor body."""
        self.fetch(4)
        self.puts(0x50, 0xC0, 31, 0, "FETCH")
        self.puts(0x53, 0xC3, 31, 3, "FETCH")
        self.script.passes(4)
        self.script.endpoint_sends("NON [$a] 4.08 Token=c3 Content-Format=272", b"\x01\x02")
        self.puts(0x54, 0xC4, 31, 1, "FETCH")
        self.puts(0x55, 0xC5, 31, 2, "FETCH")
        exchange, _ = self.request()
        self.whole = body(3 * 1024 + 1)
        self.answers(exchange, Code.CONTENT, self.whole)
        self.arrives("Token=c5 ETag=$e", 0, 1, 2, 3)
        self.script.passes(4)
        self.script.peer_sends("NON [0x56] FETCH /path Request-Tag=0x1f Token=c6 Q2:1/0/1024 Q2:3/0/1024")
        self.arrives("Token=c6 ETag=$e", 1, 3)
        self.script.passes(4)
        self.script.peer_sends("NON [0x57] FETCH /path Request-Tag=0x1f Token=c7 Q2:1/0/1024")
        self.arrives("Token=c7 ETag=$e", 1)
        self.script.no_event()
        self.script.nothing_leaks()


class Confirmable(_Base):
    """Appendix A."""

    def test_q_block1(self) -> None:
        """Figure 17: each block is acknowledged, with no 2.31."""
        self.whole = body(3 * 1024 + 1)
        for number in range(3):
            self.puts_as("CON", 1 + number, 0xF0 + number, 10, number, "PUT")
            self.script.endpoint_sends(f"ACK [{1 + number}]")
        self.puts_as("CON", 4, 0xF3, 10, 3, "PUT")
        exchange, request = self.request()
        self.assertEqual(request.payload, self.whole)
        self.answers(exchange)
        self.script.endpoint_sends("ACK [4] 2.04 Token=f3")
        self.script.nothing_leaks()

    def test_q_block1_with_loss(self) -> None:
        """Figure 18: 1 and 2 come late, as copies; no 4.08 asks for them."""
        self.whole = body(3 * 1024 + 1)
        self.puts_as("CON", 5, 0xF4, 11, 0, "PUT")
        self.script.endpoint_sends("ACK [5]")
        self.puts_as("CON", 8, 0xF7, 11, 3, "PUT")
        self.script.endpoint_sends("ACK [8]")
        self.script.passes(20)
        self.script.endpoint_is_quiet()
        self.puts_as("CON", 6, 0xF5, 11, 1, "PUT")
        self.script.endpoint_sends("ACK [6]")
        self.puts_as("CON", 6, 0xF5, 11, 1, "PUT")
        self.script.endpoint_sends("ACK [6]")
        self.puts_as("CON", 7, 0xF6, 11, 2, "PUT")
        exchange, request = self.request()
        self.assertEqual(request.payload, self.whole)
        self.answers(exchange)
        self.script.endpoint_sends("ACK [7] 2.04 Token=f6")
        self.script.nothing_leaks()

    def test_q_block2(self) -> None:
        """Appendix A.2: the first block in the ACK, the others Confirmable, NSTART of them at a time."""
        self.script = Script(self, tuning=Tuning(q_block=True, nstart=3))
        self.whole = body(14 * 1024 + 1)
        self.script.peer_sends("CON [1] GET /path Token=f0 Q2:0/1/1024")
        self.answers(self.request()[0], Code.CONTENT, self.whole)
        line = f"Token=f0 ETag=$e Size2={len(self.whole)}"
        self.script.endpoint_sends(f"ACK [1] 2.05 {line} Q2:0/1/1024", cut(self.whole, 0))
        for number in range(1, 4):
            self.script.endpoint_sends(
                f"CON [$m{number}] 2.05 {line} Q2:{number}/1/1024", cut(self.whole, number)
            )
        self.script.endpoint_is_quiet()
        for number in range(1, 15):
            self.script.peer_sends(f"ACK [$m{number}]")
            if (following := number + 3) < 15:
                self.script.endpoint_sends(
                    f"CON [$m{following}] 2.05 {line} Q2:{following}/{int(following < 14)}/1024",
                    cut(self.whole, following),
                )
        self.script.nothing_leaks()

    def test_q_block2_with_loss(self) -> None:
        """Appendix A.2: what is not acknowledged is sent again; what the client asks for is sent at once."""
        self.script = Script(self, tuning=Tuning(q_block=True, nstart=1, ack_random_factor=1.0))
        self.whole = body(2 * 1024 + 1)
        self.script.peer_sends("CON [1] GET /path Token=f0 Q2:0/1/1024")
        self.answers(self.request()[0], Code.CONTENT, self.whole)
        line = f"ETag=$e Size2={len(self.whole)}"
        self.script.endpoint_sends(f"ACK [1] 2.05 Token=f0 {line} Q2:0/1/1024", cut(self.whole, 0))
        self.script.lost(f"CON [$a] 2.05 Token=f0 {line} Q2:1/1/1024", cut(self.whole, 1))
        self.script.passes(2)
        self.script.endpoint_sends(f"CON [$a] 2.05 Token=f0 {line} Q2:1/1/1024", cut(self.whole, 1))
        self.script.peer_sends("ACK [$a]")
        self.script.endpoint_sends(f"CON [$b] 2.05 Token=f0 {line} Q2:2/0/1024", cut(self.whole, 2))
        self.script.peer_sends("ACK [$b]")
        self.script.peer_sends("CON [2] GET /path Token=f1 Q2:1/0/1024 Q2:2/0/1024")
        self.script.endpoint_sends(f"ACK [2] 2.05 Token=f1 {line} Q2:1/1/1024", cut(self.whole, 1))
        self.script.endpoint_sends(f"CON [$c] 2.05 Token=f1 {line} Q2:2/0/1024", cut(self.whole, 2))
        self.script.peer_sends("ACK [$c]")
        self.script.nothing_leaks()
