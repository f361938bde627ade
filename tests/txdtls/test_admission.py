# SPDX-License-Identifier: AGPL-3.0-or-later
"""Handshakes without a cookie: no amplifier, bounded, and nobody else loses anything by them (RFC 9000 8.1)."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from synapse_lb.txdtls import records
from synapse_lb.txdtls.admission import PER_SOURCE, Admission
from synapse_lb.txdtls.context import make_server_context
from synapse_lb.txdtls.options import ClientOptions, ServerOptions
from tests.txdtls.support import SERVER, NetworkTestCase

SMALL = ClientOptions(hello_size=0)


def below(address: tuple[str, int]) -> int:
    """Bytes of the headers of a datagram (RFC 791, RFC 768, RFC 8200; no options)."""
    return 40 + 8 if ":" in address[0] else 20 + 8


class HelloTestCase(NetworkTestCase):
    """Hellos of real clients that go nowhere, to be sent from any address."""

    def hello(self, options: ClientOptions | None = None, session: bytes | None = None) -> bytes:
        """The first datagram of a client."""
        self.network.close(SERVER)
        deferred = self.start(options=options, session=session)
        deferred.addErrback(lambda failure: None)
        hello = self.network.sent[-1][2]
        deferred.cancel()
        self.network.advance(0.01)
        self.network.sent.clear()
        return hello

    def bytes_to(self) -> Counter[tuple[str, int]]:
        """Bytes that the server sent, with the headers below UDP's payload, by address."""
        sent: Counter[tuple[str, int]] = Counter()
        for _, to, data in self.network.sent:
            sent[to] += len(data) + below(to)
        return sent


class AmplificationTests(HelloTestCase):
    """An address that has shown nothing gets at most three times what came from there."""

    @settings(max_examples=40, deadline=None)
    @given(
        steps=st.lists(
            st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from([0.0, 0.5, 1.0, 5.0, 29.0])),
            max_size=30,
        ),
        seed=st.integers(0, 2**16),
    )
    def test_in_every_interleaving(self, steps: list[tuple[int, int, float]], seed: int) -> None:
        drawn = random.Random(seed)
        hellos = self.hellos
        self.server = self.serve(ServerOptions(unproven_per_second=1000))
        self.network.sent.clear()
        received: Counter[tuple[str, int]] = Counter()
        for who, what, wait in steps:
            address = (f"2001:db8::{who}" if who > 1 else f"192.0.2.{who}", 4000)
            data = hellos[what] if what < 3 else drawn.randbytes(drawn.randrange(1, 300))
            if drawn.random() < 0.2:
                data += drawn.randbytes(drawn.randrange(60))
            received[address] += len(data) + below(address)
            self.server.datagramReceived(data, address)
            self.network.advance(wait)
            for to, sent in self.bytes_to().items():
                self.assertLessEqual(sent, 3 * received[to])
        self.assertLessEqual(self.server.handshakes, 4)
        self.server.shutdown()

    def setUp(self) -> None:
        super().setUp()
        session = self.connect().session
        assert session is not None
        self.hellos = [self.hello(SMALL), self.hello(), self.hello(session=session)]
        self.server.shutdown()  # it would say goodbye to its own clients in the middle of a test
        self.network.advance(0.1)
        self.network.sent.clear()

    def test_the_flight_is_sent_again_only_as_often_as_the_client_pays_for_it(self) -> None:
        self.server = self.serve()
        address = ("192.0.2.1", 4000)
        counts = []
        for _ in range(6):
            self.server.datagramReceived(self.hellos[1], address)
            self.network.advance(4.0)
            counts.append(len(self.from_server()))
        # the first copy after 4 s may come from a client whose link is slow; a second one is believed
        self.assertEqual(counts, [1, 1, 2, 2, 3, 3])
        self.network.advance(25.0)
        self.assertEqual((len(self.from_server()), self.server.handshakes), (3, 0))
        self.assertEqual(self.server.counters.handshakes_timed_out, 1)


class WhichTests(HelloTestCase):
    """Which hellos are answered at once."""

    def test_only_those_that_are_the_first_of_a_handshake(self) -> None:
        """One that brings a cookie goes the way of cookies, and is proven by it."""
        hello = records.parse_client_hello(self.hello())
        assert hello is not None
        admission = Admission(ServerOptions())
        for changed, allowed in (
            (hello, True),
            (attrs.evolve(hello, cookie=b"12345678"), False),
            (attrs.evolve(hello, message_sequence=1), False),
        ):
            self.assertEqual(admission.allows(changed, 214, "192.0.2.1", 0, 0.0), allowed)

    def test_a_resumption_is_short_and_so_is_its_answer(self) -> None:
        """Also where the full answer is known to be too long for such a hello."""
        session = self.connect().session
        small, resuming = self.hello(SMALL), self.hello(SMALL, session)
        self.server = self.serve()
        self.server.datagramReceived(small, ("192.0.2.1", 4000))
        self.assertEqual((self.server.handshakes, self.server.counters.hello_verify_requests), (0, 1))
        self.server.datagramReceived(resuming, ("192.0.2.2", 4000))
        self.assertEqual((self.server.handshakes, self.server.counters.cookies_skipped), (1, 1))

    def test_three_times_with_the_headers(self) -> None:
        """Those of each datagram of the answer."""
        admission = Admission(ServerOptions(mtu=1200))
        for answer, size, fits in (
            (3 * (214 + 28) - 28, 214, True),
            (3 * (214 + 28) - 27, 214, False),
            (1201, 390, False),
            (3 * (420 + 28) - 2 * 28, 420, True),
            (3 * (420 + 28) - 2 * 28 + 1, 420, False),
            (0, 214, False),
        ):
            self.assertEqual(admission._fits(answer, size, 28), fits, (answer, size))

    def test_a_signature_in_vain_is_made_once_for_each_certificate(self) -> None:
        small = self.hello(SMALL)
        self.server = self.serve()
        admission, attempts = self.server._admission, []
        attempt = admission.attempt

        def counting(*arguments: Any) -> Any:
            attempts.append(1)
            return attempt(*arguments)

        self.patch(admission, "attempt", counting)
        for expected in (1, 2):
            for port in range(3):
                self.server.datagramReceived(small, ("192.0.2.1", 4000 + port))
            self.assertEqual((len(attempts), self.server.handshakes), (expected, 0))
            self.server.replace_context(make_server_context(*self.paths))


class BoundTests(HelloTestCase):
    """What somebody with made-up addresses can have the server hold."""

    def setUp(self) -> None:
        super().setUp()
        self.padded = self.hello()

    def flood(self, count: int, source: str = "192.0.{}.{}") -> None:
        for number in range(count):
            self.server.datagramReceived(self.padded, (source.format(number // 250, number % 250), 4000))

    def test_there_is_a_limit_and_then_cookies(self) -> None:
        self.server = self.serve(ServerOptions(max_unproven=10, unproven_per_second=1000))
        self.flood(2000)
        counters = self.server.counters
        self.assertEqual((self.server.handshakes, counters.cookies_skipped), (10, 10))
        self.assertEqual((counters.hello_verify_requests, counters.handshakes_evicted), (1990, 0))
        self.network.advance(30.1)
        self.assertEqual((self.server.handshakes, self.network.getDelayedCalls()), (0, []))
        self.flood(1)
        self.assertEqual(self.server.handshakes, 1, "they are welcome again")

    def test_attempts_per_second(self) -> None:
        self.server = self.serve(ServerOptions(max_unproven=1000, max_half_open=5000, unproven_per_second=7))
        self.flood(100)
        self.assertEqual(self.server.handshakes, 7)

    def test_they_count_among_the_handshakes_per_second(self) -> None:
        """Who is one too many gets a cookie, for which nothing is kept."""
        self.server = self.serve(ServerOptions(handshakes_per_second=3))
        self.flood(20)
        counters = self.server.counters
        self.assertEqual((self.server.handshakes, counters.cookies_skipped), (3, 3))
        self.assertEqual(counters.hello_verify_requests, 17)

    def test_one_source(self) -> None:
        self.server = self.serve(ServerOptions(unproven_per_second=1000))
        for port in range(100):
            self.server.datagramReceived(self.padded, ("192.0.2.1", 1024 + port))
            self.server.datagramReceived(self.padded, (f"2001:db8::{port}", 4000))
        self.assertEqual(self.server.handshakes, 2 * PER_SOURCE)
        self.network.advance(30.1)
        self.assertEqual(self.server.handshakes, 0)
        for port in range(100):
            self.server.datagramReceived(self.padded, ("192.0.2.1", 2024 + port))
        self.assertEqual(self.server.handshakes, PER_SOURCE)

    def test_when_half_of_the_room_is_taken_everybody_gets_a_cookie(self) -> None:
        self.server = self.serve(ServerOptions(max_half_open=6))
        self.flood(20)
        self.assertEqual(self.server.handshakes, 3)

    def test_always(self) -> None:
        self.server = self.serve(ServerOptions(cookie="always"))
        self.flood(20)
        self.assertEqual((self.server.handshakes, self.server.counters.hello_verify_requests), (0, 20))

    def test_clients_get_in_and_stay_during_a_flood(self) -> None:
        self.server = self.serve(ServerOptions(max_half_open=4, max_associations=2))
        there = self.connect()
        self.flood(500)
        came = self.connect()
        self.assertEqual(self.server.counters.hello_verify_requests, 499)
        self.flood(500)
        for association in (there, came):
            self.assert_echo(association)
        self.assertEqual(self.server.counters.associations_evicted, 0)

    def test_a_proven_handshake_takes_the_place_of_an_unproven_one(self) -> None:
        self.server = self.serve(ServerOptions(max_half_open=2))
        proven = self.raw_client()
        first = proven.new_association()
        self.flood(1)
        proven.write(first)
        proven.read(first)
        proven.write(first)
        self.assertEqual((self.server.handshakes, self.server.counters.handshakes_evicted), (2, 0))
        another = self.raw_client()
        second = another.new_association()
        another.shake_hands(second)
        proven.shake_hands(first)
        self.assertEqual((first.established, second.established), (True, True))
        self.assertEqual(self.server.counters.handshakes_evicted, 1)

    def test_an_unproven_hello_replaces_nobody(self) -> None:
        self.server = self.serve()
        client = self.raw_client()
        association = client.new_association()
        client.write(association)
        client.read(association)
        client.write(association)
        for _ in range(3):
            self.server.datagramReceived(self.padded, client.address)
        self.assertEqual(self.server.counters.handshakes_superseded, 0)
        client.inbox = client.inbox[:1]
        client.shake_hands(association)
        self.assertTrue(association.established)

    def test_a_hello_that_is_too_short_gets_a_cookie_and_costs_no_second_signature(self) -> None:
        self.server = self.serve()
        small = self.hello(SMALL)
        self.server = self.serve()
        for port in range(3):
            self.server.datagramReceived(small, ("192.0.2.1", 4000 + port))
        self.assertEqual((self.server.handshakes, self.server.counters.hello_verify_requests), (0, 3))
        self.assertEqual(self.connect(options=SMALL).connected, True)
