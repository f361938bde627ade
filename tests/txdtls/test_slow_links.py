# SPDX-License-Identifier: AGPL-3.0-or-later
"""Handshakes over slow and lossy links, in virtual time: what is repeated, and that they end (RFC 6347 4.2.4)."""

from __future__ import annotations

from synapse_lb.testing.simlink import LinkShape, SimulatedLink
from synapse_lb.txdtls import records
from synapse_lb.txdtls.flights import RetransmissionTimer, server_timeout
from synapse_lb.txdtls.options import ClientOptions, ServerOptions
from tests.txdtls.support import SERVER, NetworkTestCase

UDP = 28
"""Bytes of the IPv4 and UDP headers."""


class SlowTestCase(NetworkTestCase):
    """A link with a rate in each direction; `MemoryUDP` asks it for the fate of every datagram."""

    def shape(self, seed: int = 0, *, rate: float = 125.0, loss: float = 0.0) -> None:
        shape = LinkShape(rate=rate, delay=0.1, loss=loss, overhead=UDP)
        up, down = SimulatedLink(shape, 2 * seed), SimulatedLink(shape, 2 * seed + 1)
        network = self.network

        class Both:
            def fate(self, data: bytes) -> list[float]:
                sender = network.sent[-1][0]
                now = network.seconds()
                return [at - now for at in (down if sender == SERVER else up).send(len(data), now)]

            def delivered(self, data: bytes) -> None:
                """Nothing to learn from it."""

        self.network.link = Both()  # type: ignore[assignment]  # it has what is used of a LossyLink

    def converse(
        self, *, session: bytes | None = None, options: ClientOptions | None = None
    ) -> tuple[int, int, float]:
        """Connect, a request of 150 bytes, an answer of 60; packets, IP-level bytes and seconds."""
        self.network.sent.clear()
        self.handler.reaction = lambda one, data: self.server.send(one, b"a" * 60)
        self.client_handler.clear()
        started = self.network.seconds()
        deferred = self.start(session=session, options=options)
        asked = False
        association = None
        again = 0.0
        while not self.client_handler.texts:
            self.network.advance(0.05)
            now = self.network.seconds()
            if not asked and deferred.called:
                asked, again = True, now + 20.0
                association = self.successResultOf(deferred)
                association.send(b"q" * 150)
            elif association is not None and now >= again:
                again = now + 20.0  # as CoAP would, with a patient timer
                association.send(b"q" * 150)
            self.assertLess(now - started, 150.0)
        took = self.network.seconds() - started
        self.network.advance(20.0)
        assert association is not None
        self.assert_no_number_twice()
        self.session = association.session
        counted = [len(data) + UDP for _, _, data in self.network.sent]
        self.network.link = None
        association.close()
        self.network.advance(0.1)
        return len(counted), sum(counted), took

    def assert_no_number_twice(self) -> None:
        """Two different records under one number would be two under one nonce."""
        seen: dict[tuple[object, object, bytes], bytes] = {}
        for (
            sender,
            receiver,
            data,
        ) in self.network.sent:  # a client that begins anew, with new keys, has a new port
            for record in records.split_records(data):
                if record[3:5] != b"\0\0":
                    known = seen.setdefault((sender, receiver, record[3:11]), record)
                    self.assertEqual(known, record)
        self.assertTrue(seen)


class SpuriousTests(SlowTestCase):
    """Not more than 1.3 times what is needed crosses a link of 125 bytes a second."""

    def compare(self, cookie: str, *, resume: bool, options: ClientOptions | None = None) -> None:
        self.server = self.serve(ServerOptions(cookie=cookie))
        self.network.link = None
        _, needed, _ = self.converse(options=options)
        session = self.session if resume else None
        if resume:
            _, needed, _ = self.converse(session=session, options=options)
        self.shape()
        packets, seen, took = self.converse(session=session, options=options)
        self.assertLessEqual(seen, 1.3 * needed, (packets, needed, took))
        print(f"\n{cookie}, resumed {resume}: {needed} B needed, {packets} packets, {seen} B, {took:.1f} s")

    def test_full_without_a_cookie(self) -> None:
        self.compare("auto", resume=False)

    def test_full_with_a_cookie(self) -> None:
        self.compare("always", resume=False)

    def test_resumed_without_a_cookie(self) -> None:
        self.compare("auto", resume=True)

    def test_resumed_with_a_cookie(self) -> None:
        self.compare("always", resume=True)

    def test_a_client_that_knows_the_link_repeats_nothing(self) -> None:
        options = ClientOptions(retransmit_after=9.0, handshake_timeout=100.0)
        for cookie in ("auto", "always"):
            self.server = self.serve(ServerOptions(cookie=cookie))
            self.network.link = None
            packets, needed, _ = self.converse(options=options)
            self.shape()
            seen, taken, _ = self.converse(options=options)
            self.assertEqual(seen, packets)
            self.assertLessEqual(abs(taken - needed), 8)  # ECDSA signatures differ in length


class LossTests(SlowTestCase):
    """With a fifth of all datagrams lost, on a slow link and on a fast one."""

    def test_it_ends_all_the_same(self) -> None:
        options = ClientOptions(handshake_timeout=140.0)
        for cookie in ("auto", "always"):
            for rate in (125.0, 100_000.0):
                for seed in range(12):
                    self.server = self.serve(
                        ServerOptions(cookie=cookie, handshake_timeout=140.0, unproven_timeout=140.0)
                    )
                    self.shape(seed, rate=rate, loss=0.2)
                    self.converse(options=options)
                    if self.session is not None:
                        self.shape(seed + 100, rate=rate, loss=0.2)
                        self.converse(session=self.session, options=options)


class TimerTests(NetworkTestCase):
    """RFC 6298 and RFC 6347 4.2.4.1."""

    def test_it_backs_off_and_follows_what_was_measured(self) -> None:
        timer = RetransmissionTimer(3.0)
        self.assertFalse(timer.expired(100.0))
        timer.start(10.0)
        self.assertFalse(timer.expired(12.9))
        self.assertTrue(timer.expired(13.0))
        self.assertEqual(timer.due, 19.0)
        timer.measured(0.05)
        timer.start(20.0)
        self.assertEqual(timer.due, 21.0)
        timer.measured(5.0)
        timer.start(20.0)
        self.assertEqual(timer.due, 35.0)
        now = 20.0
        for _ in range(9):
            assert timer.due is not None
            now = timer.due
            self.assertTrue(timer.expired(now))
        self.assertEqual(timer.due, now + 60.0)
        timer.stop()
        self.assertFalse(timer.expired(1e9))

    def test_a_server_waits_until_the_slowest_link_has_carried_flight_and_answer(self) -> None:
        self.assertGreater(server_timeout(170), (170 + 28) / 125 + (67 + 197 + 28) / 125)
