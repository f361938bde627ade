# SPDX-License-Identifier: AGPL-3.0-or-later
"""The client's association: made, shared, lost, resumed; and what becomes of the certificate's check."""

from __future__ import annotations

from typing import Final

from twisted.internet.defer import CancelledError, gatherResults
from twisted.internet.protocol import DatagramProtocol

from synapse_lb.client import ClientVerification, LowBandwidthClient
from synapse_lb.client.errors import (
    CertificateError,
    ConnectError,
    ConnectionLost,
    ConnectTimeout,
    HandshakeError,
    RequestTimeout,
    ResolveError,
)
from synapse_lb.coap.tuning import Tuning
from synapse_lb.msc3079.options import ACCESS_TOKEN, KEY_VERSION
from tests.client.harness import REACTOR, Certificate, LoopbackTestCase, RecordingGateway, until

PATH: Final = "/_matrix/client/v3/a"
WAIT: Final = "/_matrix/client/v3/wait"
LONG_POLL: Final = "/_matrix/client/v3/wait/sync"
IMPATIENT: Final = Tuning(ack_timeout=0.02, min_rto=0.01, max_rto=0.02, max_retransmit=2, separate_after=0.01)


class AssociationTests(LoopbackTestCase):
    async def test_nothing_is_sent_before_the_first_request(self) -> None:
        server = self.start_server()
        client = self.make_client(server)
        self.assertEqual(client.counters.datagrams_sent, 0)
        self.assertIsNone(client.session)
        await client.request("GET", PATH)
        self.assertEqual(server.dtls.counters.handshakes_completed, 1)

    async def test_what_is_known_of_it(self) -> None:
        server = self.start_server()
        info = await self.make_client(server).connect()
        self.assertEqual((info.address, info.port), ("127.0.0.1", server.port))
        self.assertEqual(info.certificate_sha256, self.certificate.fingerprint)
        self.assertEqual(info.cipher, "ECDHE-ECDSA-CHACHA20-POLY1305")
        self.assertFalse(info.resumed)
        self.assertGreater(info.max_message_size, 1000)

    async def test_cancelling_one_of_two_leaves_the_other(self) -> None:
        server = self.start_server()
        client = self.make_client(server)
        first, second = client.request("GET", PATH), client.request("GET", PATH)
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertEqual((await second).status, 200)
        self.assertEqual(len(self.dispatcher.requests), 1)

    async def test_cancelling_the_last_gives_the_handshake_up(self) -> None:
        server = self.start_server()
        client = self.make_client(server)
        only = client.request("GET", PATH)
        only.cancel()
        self.failureResultOf(only, CancelledError)
        self.assertEqual((await client.request("GET", PATH)).status, 200)
        self.assertEqual(server.dtls.counters.handshakes_completed, 1)


class ReconnectTests(LoopbackTestCase):
    async def test_server_that_says_goodbye(self) -> None:
        """What is under way fails, and the next request makes a new association and says everything again."""
        server = self.start_server()
        client = self.make_client(server)
        await client.request("GET", PATH, token="syt_a")
        waiting = client.request("GET", WAIT, token="syt_a")
        await until(lambda: self.dispatcher.waiting)
        await server.stop()
        await self.assertFailure(waiting, ConnectionLost)

        gateway = RecordingGateway(self.dispatcher)
        again = self.start_server(gateway, port=server.port)
        response = await client.request("GET", PATH, token="syt_a")
        self.assertEqual(response.body["token"], "syt_a")
        self.assertEqual(gateway.seen[0].options.get(ACCESS_TOKEN), b"syt_a")
        self.assertEqual(gateway.seen[0].options.get(KEY_VERSION), b"\x01")
        # The session died with the first server: a full handshake.
        self.assertEqual(again.dtls.counters.handshakes_resumed, 0)

    async def test_server_that_vanished(self) -> None:
        """A server that lost its associations answers nothing: CoAP's time limit ends what must not be run twice."""
        server = self.start_server()
        client = self.make_client(server, tuning=IMPATIENT)
        await client.request("GET", PATH)
        await server.stop(silently=True)
        self.start_server(port=server.port)
        errors = await gatherResults(
            [
                self.assertFailure(client.request("POST", PATH, json={}), RequestTimeout, ConnectionLost)
                for _ in range(3)
            ]
        )
        self.assertIn(RequestTimeout, [type(error) for error in errors])
        for error in errors:
            self.assertIn("the server does not answer", str(error))
        self.assertEqual((await client.request("GET", PATH)).status, 200)

    async def test_server_that_vanished_and_what_may_be_repeated(self) -> None:
        """Another association is made when some copies were in vain."""
        server = self.start_server()
        client = self.make_client(server, tuning=Tuning(ack_timeout=0.1, min_rto=0.1, max_retransmit=8))
        await client.request("GET", PATH, token="t")
        await server.stop(silently=True)
        again = self.start_server(port=server.port)
        answers = await gatherResults([client.request("GET", PATH, token="t") for _ in range(3)])
        self.assertEqual([answer.body["token"] for answer in answers], ["t"] * 3)
        self.assertEqual(again.dtls.counters.handshakes_completed, 1)

    async def test_server_that_vanished_and_impatient_callers(self) -> None:
        """Requests that are given up before CoAP would give them up do not keep a dead association."""
        server = self.start_server()
        tuning = Tuning(ack_timeout=0.15, min_rto=0.15, max_rto=2.0, max_retransmit=2)
        client = self.make_client(server, tuning=tuning)
        await client.request("GET", PATH)
        await server.stop(silently=True)
        again = self.start_server(port=server.port)
        given_up = 0
        while not again.dtls.counters.handshakes_completed:
            try:
                await client.request("GET", PATH, timeout=tuning.max_transmit_wait / 5)
            except (RequestTimeout, ConnectionLost):
                given_up += 1
        self.assertGreater(given_up, 1)

    async def test_server_that_answers_others(self) -> None:
        """An association on which anything is heard stays, whatever is given up on it."""
        server = self.start_server()
        client = self.make_client(server, tuning=IMPATIENT)
        waiting = client.request("GET", LONG_POLL, {"timeout": "30000"})
        start = REACTOR.seconds()
        while REACTOR.seconds() < start + 2 * IMPATIENT.max_transmit_wait:
            await client.request("GET", PATH)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        await client.request("GET", PATH)
        self.assertEqual(server.dtls.counters.handshakes_completed, 1)

    async def test_server_whose_port_is_closed(self) -> None:
        """The network says so at once, and there is nothing to wait for."""
        server = self.start_server()
        client = self.make_client(server)
        await client.request("GET", PATH)
        await server.stop(silently=True)
        await self.assertFailure(client.request("GET", PATH), ConnectionLost)
        self.start_server(port=server.port)
        self.assertEqual((await client.request("GET", PATH)).status, 200)

    async def test_slow_answer_does_not_end_the_association(self) -> None:
        """No answer in time, but the server has acknowledged the request: it is alive."""
        server = self.start_server()
        tuning = Tuning(ack_timeout=0.05, min_rto=0.01, response_timeout=0.1)
        client = self.make_client(server, tuning=tuning)
        waiting = client.request("GET", LONG_POLL, {"timeout": "30000"})
        await self.assertFailure(waiting, RequestTimeout)
        self.assertEqual((await client.request("GET", PATH)).status, 200)
        self.assertEqual(server.dtls.counters.handshakes_completed, 1)

    async def test_resumption(self) -> None:
        server = self.start_server()
        client = self.make_client(server)
        await client.request("GET", PATH, token="syt_a")
        full = client.counters
        server.dtls.close(self._only_association(server.handler))
        await until(lambda: client._keeper.current is None)
        self.assertEqual((await client.request("GET", PATH, token="syt_a")).body["token"], "syt_a")
        resumed = client.counters - full
        self.assertEqual(server.dtls.counters.handshakes_resumed, 1)
        self.assertLess(resumed.bytes_received, full.bytes_received)
        # What the first association's endpoint has counted is not forgotten.
        self.assertEqual(client.endpoint_counters.requests_sent, 2)
        self.assertTrue((await client.connect()).resumed)

    async def test_resumption_by_another_client(self) -> None:
        server = self.start_server()
        first = self.make_client(server)
        await first.request("GET", PATH)
        session = first.session
        await first.close()
        second = self.make_client(server, session=session)
        self.assertTrue((await second.connect()).resumed)
        self.assertEqual((await second.request("GET", PATH)).status, 200)

    async def test_session_that_is_none(self) -> None:
        client = self.make_client(self.start_server(), session=b"no session")
        self.assertFalse((await client.connect()).resumed)

    def _only_association(self, handler: object) -> int:
        assert isinstance(handler, RecordingGateway)
        (association_id,) = handler._associations
        return association_id


class CertificateTests(LoopbackTestCase):
    async def _connect(self, names: tuple[str, ...], verification: ClientVerification | None) -> object:
        """Connect to a server whose certificate has these names; the outcome or its error."""
        certificate = Certificate(*names)
        self.addCleanup(certificate.remove)
        server = self.start_server(certificate=certificate)
        verification = verification or ClientVerification.ca_file(certificate.path)
        client = self.make_client(server, verification=verification)
        try:
            return await client.connect()
        except ConnectError as error:
            await until(lambda: server.dtls.associations == 0)
            return error

    async def test_trusted(self) -> None:
        self.assertNotIsInstance(await self._connect(("127.0.0.1",), None), ConnectError)

    async def test_unknown_authority(self) -> None:
        for verification in (ClientVerification.ca_file(self.certificate.path), ClientVerification.system()):
            outcome = await self._connect(("127.0.0.1",), verification)
            self.assertIsInstance(outcome, CertificateError)

    async def test_another_name(self) -> None:
        self.assertIsInstance(await self._connect(("matrix.example",), None), CertificateError)

    async def test_insecure(self) -> None:
        outcome = await self._connect(("matrix.example",), ClientVerification.none())
        self.assertNotIsInstance(outcome, ConnectError)

    async def test_pinned(self) -> None:
        server = self.start_server()
        for fingerprint in (
            self.certificate.fingerprint,
            self.certificate.fingerprint.replace(":", "").lower(),
        ):
            pinned = ClientVerification.pinned(fingerprint)
            client = self.make_client(server, verification=pinned)
            self.assertEqual((await client.request("GET", PATH)).status, 200)

    async def test_pinned_to_another(self) -> None:
        outcome = await self._connect(("127.0.0.1",), ClientVerification.pinned(self.certificate.fingerprint))
        self.assertIsInstance(outcome, CertificateError)
        self.assertIn(self.certificate.fingerprint, str(outcome))

    async def test_nothing_is_sent_to_the_wrong_server(self) -> None:
        server = self.start_server()
        client = self.make_client(server, verification=ClientVerification.pinned("00" * 32))
        await self.assertFailure(client.request("GET", PATH, token="syt_a"), CertificateError)
        assert isinstance(server.handler, RecordingGateway)
        self.assertEqual(server.handler.seen, [])


class NoServerTests(LoopbackTestCase):
    def _client(self, address: str, **settings: float) -> LowBandwidthClient:
        client = LowBandwidthClient(
            REACTOR,
            address,
            verification=ClientVerification.none(),
            connect_timeout=settings.get("timeout", 30.0),
        )
        self.addCleanup(client.close)
        return client

    async def test_nobody_listens(self) -> None:
        server = self.start_server()
        await server.stop()
        client = self._client(server.address)
        for _ in range(2):
            await self.assertFailure(client.request("GET", PATH), HandshakeError)

    async def test_nobody_answers(self) -> None:
        deaf = REACTOR.listenUDP(0, DatagramProtocol(), interface="127.0.0.1")
        self.addCleanup(deaf.stopListening)
        client = self._client(f"127.0.0.1:{deaf.getHost().port}", timeout=0.1)
        await self.assertFailure(client.request("GET", PATH), ConnectTimeout)

    async def test_all_that_wait_hear_of_it(self) -> None:
        deaf = REACTOR.listenUDP(0, DatagramProtocol(), interface="127.0.0.1")
        self.addCleanup(deaf.stopListening)
        client = self._client(f"127.0.0.1:{deaf.getHost().port}", timeout=0.1)
        await gatherResults(
            [self.assertFailure(client.request("GET", PATH), ConnectTimeout) for _ in range(3)]
        )

    async def test_time_limit_during_the_handshake(self) -> None:
        deaf = REACTOR.listenUDP(0, DatagramProtocol(), interface="127.0.0.1")
        self.addCleanup(deaf.stopListening)
        client = self._client(f"127.0.0.1:{deaf.getHost().port}")
        await self.assertFailure(client.request("GET", PATH, timeout=0.1), RequestTimeout)

    async def test_unknown_name(self) -> None:
        await self.assertFailure(self._client("does-not-exist.invalid:1").connect(), ResolveError)
