# SPDX-License-Identifier: AGPL-3.0-or-later
"""Requests go over CoAP where it works, over HTTPS where it does not, and back; nothing is run twice unasked."""

from __future__ import annotations

import random
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.protocol import DatagramProtocol

from synapse_lb.client import (
    ClientVerification,
    Discovery,
    Fallback,
    LowBandwidthClient,
    Transport,
    TransportChange,
)
from synapse_lb.client.discovery import VERSIONS
from synapse_lb.client.errors import (
    BadRequest,
    CertificateError,
    ClientClosed,
    ConnectError,
    ConnectionLost,
    ConnectTimeout,
    DiscoveryError,
    HttpsUnknown,
    NotOffered,
    RequestTimeout,
)
from synapse_lb.client.transport import Call
from synapse_lb.msc3079.messages import NO_BODY, MatrixResponse
from tests.client.harness import REACTOR, Certificate, LoopbackTestCase, RecordingGateway, Server, until
from tests.client.https_server import HttpsHomeserver, Reply, Seen, write

PATH: Final = "/_matrix/client/v3/a"
WAIT: Final = "/_matrix/client/v3/wait"
SEND: Final = "/_matrix/client/v3/rooms/wait/send/m.room.message/t1"
MEDIA: Final = "/_matrix/client/v1/media/download/a/b"
BRISK: Final = Fallback(patience=0.3, probe_initial=0.05, probe_max=0.2)
PATIENT: Final = Fallback(patience=0.3, probe_initial=600.0)


class Blackhole(DatagramProtocol):
    """A UDP port that takes everything and answers nothing."""

    def __init__(self) -> None:
        self.received = 0
        self._port = REACTOR.listenUDP(0, self, interface="127.0.0.1")
        self.port: int = self._port.getHost().port

    def datagramReceived(self, datagram: bytes, addr: object) -> None:
        """Count it."""
        self.received += 1

    async def stop(self) -> None:
        """Free the port."""
        await maybeDeferred(self._port.stopListening)


class FallbackCase(LoopbackTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.https = HttpsHomeserver(self.certificate, self.answer)
        self.addCleanup(self.https.stop)
        self.changes: list[TransportChange] = []

    def answer(self, seen: Seen) -> Reply | None:
        """What the server answers over HTTPS."""
        return None if "wait" in seen.path else Reply(body={"over": "https"})

    def client(self, fallback: Fallback = PATIENT, **settings: Any) -> LowBandwidthClient:
        """A client that is told the HTTPS address."""
        settings.setdefault("verification", ClientVerification.ca_file(self.certificate.path))
        client = LowBandwidthClient(
            REACTOR,
            self.https.url,
            fallback=fallback,
            on_transport=self.changes.append,
            random=random.Random(7),
            **settings,
        )
        self.addCleanup(client.close)
        return client

    def blackhole(self) -> Blackhole:
        """UDP does not get through."""
        hole = Blackhole()
        self.addCleanup(hole.stop)
        self.https.advertise(hole.port)
        return hole

    def coap(self, port: int = 0) -> Server:
        """UDP gets through."""
        server = self.start_server(RecordingGateway(self.dispatcher), port=port)
        self.https.advertise(server.port)
        return server

    @property
    def over_https(self) -> list[tuple[str, str]]:
        """What came in over HTTPS."""
        return [(seen.method, seen.path) for seen in self.https.seen]


class CoapWorksTests(FallbackCase):
    async def test_requests_go_over_coap(self) -> None:
        self.coap()
        client = self.client()
        self.assertIs(client.transport, Transport.UNDECIDED)
        for _ in range(2):
            answer = await client.request("PUT", PATH, {"a": "b"}, {"x": 1}, "t0ken")
            self.assertEqual((answer.body["method"], answer.body["token"]), ("PUT", "t0ken"))
        self.assertIs(client.transport, Transport.COAP)
        self.assertEqual(self.changes, [TransportChange(Transport.COAP)])
        self.assertEqual(self.over_https, [])
        self.assertEqual(len(self.https.discovered), 2)

    async def test_what_msc3079_leaves_out_goes_over_https(self) -> None:
        self.coap()
        client = self.client()
        for path in (
            MEDIA,
            "/_matrix/media/v3/config",
            "/_matrix/client/v3/login/sso/redirect/x",
            "/_synapse/x",
        ):
            self.assertEqual((await client.request("GET", path, token="t")).body, {"over": "https"})
        self.assertEqual(self.dispatcher.requests, [])
        self.assertEqual({seen.headers["authorization"] for seen in self.https.seen}, {"Bearer t"})

    async def test_what_coap_has_no_form_for_goes_over_https(self) -> None:
        self.coap()
        client = self.client()
        path = "/_matrix/client/v3/" + "a" * 256
        self.assertEqual((await client.request("GET", path)).body, {"over": "https"})
        self.assertEqual((await client.request("GET", PATH)).body["path"], PATH)
        await self.assertFailure(client.request("PUT", PATH, json={"a": object()}), BadRequest)

    async def test_bytes_and_redirects(self) -> None:
        self.coap()
        client = self.client()
        self.https.replies["/x"] = Reply(302, b"\xff", {"Location": "/y"})
        answer = await client.fetch("POST", "/x", {"a": "b"}, headers={"X-A": "1"}, body=b"\0", token="t")
        self.assertEqual((answer.status, answer.header("location"), answer.body), (302, "/y", b"\xff"))
        (seen,) = self.https.seen
        self.assertEqual((seen.uri, seen.body), ("/x?a=b", b"\0"))
        self.assertEqual((seen.headers["x-a"], seen.headers["authorization"]), ("1", "Bearer t"))

    async def test_discovery_can_be_shared(self) -> None:
        self.coap()
        verification = ClientVerification.ca_file(self.certificate.path)
        discovery = Discovery(REACTOR, verification=verification)
        self.addCleanup(discovery.close)
        for _ in range(3):
            client = self.client(discovery=discovery)
            await client.request("GET", PATH)
            await client.close()
        self.assertEqual(len(self.https.discovered), 2)
        self.assertEqual((await self.client(discovery=discovery).discover()).base_url, self.https.url)

    async def test_what_was_discovered_is_used_on_if_it_cannot_be_asked_for(self) -> None:
        server = self.coap()
        verification = ClientVerification.ca_file(self.certificate.path)
        discovery = Discovery(REACTOR, verification=verification, lifetime=0.0)
        self.addCleanup(discovery.close)
        client = self.client(discovery=discovery)
        await client.request("GET", PATH)
        self.https.replies[VERSIONS] = Reply(500)
        server.dtls.close(1)
        await until(lambda: client._keeper.current is None)
        self.assertEqual((await client.request("GET", PATH)).body["path"], PATH)
        self.assertEqual(discovery.counters.failed, 1)


class NoCoapTests(FallbackCase):
    async def test_udp_does_not_get_through(self) -> None:
        hole = self.blackhole()
        client = self.client()
        answer = await client.request("POST", PATH, {"a": "b"}, {"x": 1}, "t")
        self.assertEqual(answer.body, {"over": "https"})
        self.assertIs(client.transport, Transport.HTTPS)
        (change,) = self.changes
        self.assertIsInstance(change.error, ConnectTimeout)
        assert change.retry_in is not None
        self.assertTrue(300 <= change.retry_in <= 600, change)
        received = hole.received
        self.assertGreater(received, 0)
        await client.request("GET", PATH)
        self.assertEqual(hole.received, received, "the second request waited for UDP again")

    async def test_all_that_wait_for_the_handshake_fall_back(self) -> None:
        self.blackhole()
        client = self.client()
        waiting = [client.request("POST", f"{PATH}/{number}") for number in range(5)]
        for each in waiting:
            self.assertEqual((await each).status, 200)
        self.assertEqual(len(self.changes), 1)
        self.assertEqual(sorted(self.over_https), [("POST", f"{PATH}/{number}") for number in range(5)])

    async def test_the_server_does_not_offer_it(self) -> None:
        client = self.client()
        self.assertEqual((await client.request("GET", PATH)).body, {"over": "https"})
        self.assertIsInstance(self.changes[0].error, NotOffered)
        await self.assertFailure(client.connect(), NotOffered)

    async def test_a_certificate_that_is_not_the_right_one(self) -> None:
        other = Certificate("elsewhere.example")
        self.addCleanup(other.remove)
        server = self.start_server(certificate=other)
        self.https.advertise(server.port)
        client = self.client()
        self.assertEqual((await client.request("GET", PATH)).body, {"over": "https"})
        self.assertIsInstance(self.changes[0].error, CertificateError)
        self.assertEqual(self.dispatcher.requests, [])

    async def test_neither_way_trusts_a_certificate_that_is_not_pinned(self) -> None:
        self.coap()
        client = self.client(verification=ClientVerification.pinned("ab" * 32))
        await self.assertFailure(client.request("GET", PATH, token="t"), DiscoveryError)
        self.assertEqual(self.over_https + self.dispatcher.requests, [])

    async def test_each_way_has_its_own_verification(self) -> None:
        self.coap()
        fallback = Fallback(verification=ClientVerification.ca_file(self.certificate.path))
        client = self.client(fallback, verification=ClientVerification.pinned(self.certificate.fingerprint))
        self.assertEqual((await client.request("GET", PATH)).body["path"], PATH)

    async def test_nothing_works(self) -> None:
        self.blackhole()
        client = self.client()
        await client.discover()
        await self.https.stop()
        await self.assertFailure(client.request("GET", PATH), ConnectError)

    async def test_cancelling_ends_the_request_over_https(self) -> None:
        self.blackhole()
        client = self.client()
        waiting = client.request("GET", WAIT)
        await until(lambda: self.https.open)
        waiting.cancel()
        await self.assertFailure(waiting, CancelledError)
        await until(lambda: self.https.gone)

    async def test_the_callers_own_limit_holds_for_all_of_it(self) -> None:
        self.blackhole()
        client = self.client()
        await self.assertFailure(client.request("GET", WAIT, timeout=0.6), RequestTimeout)
        await until(lambda: not self.https.open)

    async def test_closing(self) -> None:
        self.blackhole()
        client = self.client(BRISK)
        waiting = client.request("GET", WAIT)
        await until(lambda: self.https.open)
        await client.close()
        await self.assertFailure(waiting, ClientClosed)
        await self.assertFailure(client.request("GET", PATH), ClientClosed)

    async def test_a_client_with_a_coaps_address(self) -> None:
        client = self.make_client(self.start_server())
        self.assertIs(client.transport, Transport.COAP)
        await self.assertFailure(client.fetch("GET", MEDIA), HttpsUnknown)
        await self.assertFailure(client.discover(), HttpsUnknown)


class WayBackTests(FallbackCase):
    async def test_a_probe_finds_that_udp_gets_through(self) -> None:
        hole = self.blackhole()
        client = self.client(BRISK)
        await client.request("GET", PATH)
        await until(lambda: len(self.changes) > 2)  # a probe in vain, and one more
        self.assertEqual({change.transport for change in self.changes}, {Transport.HTTPS})
        delays = [change.retry_in or 0.0 for change in self.changes[:3]]
        self.assertTrue(0.025 <= delays[0] <= 0.05 <= delays[1] <= 0.1 <= delays[2] <= 0.2, delays)
        await hole.stop()
        server = self.coap(hole.port)
        await until(lambda: client.transport is Transport.COAP)
        self.assertEqual((await client.request("GET", PATH)).body["path"], PATH)
        self.assertEqual(server.dtls.counters.handshakes_completed, 1)
        self.assertEqual(self.changes[-1], TransportChange(Transport.COAP))

    async def test_rebind_tries_at_once(self) -> None:
        hole = self.blackhole()
        client = self.client(PATIENT)
        await client.request("GET", PATH)
        await hole.stop()
        self.coap(hole.port)
        client.rebind()
        await until(lambda: client.transport is Transport.COAP)
        self.assertEqual((await client.request("GET", PATH)).body["path"], PATH)

    async def test_an_application_may_connect_by_itself(self) -> None:
        hole = self.blackhole()
        client = self.client(PATIENT)
        await client.request("GET", PATH)
        await hole.stop()
        server = self.coap(hole.port)
        self.assertEqual((await client.connect()).port, server.port)
        self.assertIs(client.transport, Transport.COAP)

    async def test_there_and_back_and_there(self) -> None:
        server = self.coap()
        client = self.client(BRISK)
        await client.request("GET", PATH)
        await server.stop()
        self.assertEqual((await client.request("GET", PATH)).body, {"over": "https"})
        self.coap(server.port)
        await until(lambda: client.transport is Transport.COAP)
        self.assertEqual((await client.request("GET", PATH)).body["path"], PATH)
        self.assertIs(self.changes[0].transport, Transport.COAP)
        self.assertIs(self.changes[1].transport, Transport.HTTPS)


class UnderWayTests(FallbackCase):
    """Requests that were sent over CoAP and whose association then ended."""

    async def lose(self, method: str, path: str, json: Any = NO_BODY) -> Deferred[Any]:
        """Have the association end while the server works on a request, and UDP with it."""
        server = self.coap()
        client = self.client()
        waiting = client.request(method, path, json=json, token="t")
        await until(lambda: self.dispatcher.waiting)
        await server.stop()
        return waiting

    async def test_a_post_is_not_repeated(self) -> None:
        await self.assertFailure(await self.lose("POST", WAIT, {}), ConnectionLost)
        self.assertEqual(self.over_https, [])

    async def test_a_put_without_a_transaction_is_not_repeated(self) -> None:
        await self.assertFailure(await self.lose("PUT", WAIT, {}), ConnectionLost)
        self.assertEqual(self.over_https, [])

    async def test_a_put_with_a_transaction_is_repeated(self) -> None:
        waiting = await self.lose("PUT", SEND, {"body": "x"})
        await until(lambda: self.https.open)
        self.assertEqual(self.https.seen[0].json, {"body": "x"})
        self.assertEqual(self.https.seen[0].headers["authorization"], "Bearer t")
        write(self.https.open[0], Reply(body={"event_id": "$1"}))
        self.assertEqual((await waiting).body, {"event_id": "$1"})

    async def test_a_get_is_repeated(self) -> None:
        waiting = await self.lose("GET", WAIT)
        await until(lambda: self.https.open)
        write(self.https.open[0], Reply(body={"over": "https"}))
        self.assertEqual((await waiting).body, {"over": "https"})

    async def test_it_is_repeated_over_coap_where_that_works(self) -> None:
        server = self.coap()
        client = self.client()
        waiting = client.request("GET", WAIT)
        await until(lambda: self.dispatcher.waiting)
        server.dtls.close(1)
        await until(lambda: len(self.dispatcher.requests) == 2)
        self.dispatcher.waiting[-1].callback(MatrixResponse(200, {"again": True}))
        self.assertEqual((await waiting).body, {"again": True})
        self.assertEqual(self.over_https, [])

    async def test_it_is_repeated_once(self) -> None:
        server = self.coap()
        waiting = self.client().request("GET", WAIT)
        await until(lambda: len(self.dispatcher.requests) == 1)
        server.dtls.close(1)
        await until(lambda: len(self.dispatcher.requests) == 2)
        server.dtls.close(2)
        await self.assertFailure(waiting, ConnectionLost)
        self.assertEqual(self.over_https, [])

    def test_what_may_be_repeated(self) -> None:
        room = "/_matrix/client/v3/rooms/!a:b"
        for method, path, expected in (
            ("GET", PATH, True),
            ("POST", PATH, False),
            ("DELETE", PATH, False),
            ("PUT", f"{room}/send/m.room.message/t1", True),
            ("PUT", f"{room}/send/m.room.message/t1?a=b", True),
            ("PUT", f"{room}/redact/$e/t1", True),
            ("PUT", "/_matrix/client/r0/sendToDevice/m.room.encrypted/t1", True),
            ("PUT", f"{room}/send/m.room.message", False),
            ("PUT", f"{room}/state/m.room.name", False),
            ("PUT", f"{room}/state/m.room.name/send", False),
            ("POST", f"{room}/send/m.room.message/t1", False),
        ):
            call = Call(method, path, [], NO_BODY, None)
            self.assertIs(call.repeatable, expected, f"{method} {path}")

    def test_what_is_left_out(self) -> None:
        for path, expected in (
            (PATH, False),
            ("/7", False),
            ("/9/!a:b/m.room.message/t1", False),
            ("/_matrix/client/versions", False),
            ("/_matrix/client/v3/login", False),
            ("/_matrix/client/v3/login/get_token", False),
            ("/_matrix/client/v3/login/sso/redirect?redirectUrl=x", True),
            ("/_matrix/client/r0/login/cas/ticket", True),
            ("/_matrix/client/v3/auth/m.login.recaptcha/fallback/web", True),
            (MEDIA, True),
            ("/_matrix/media/v3/upload", True),
            ("/_matrix/key/v2/server", True),
            ("/.well-known/matrix/client", True),
            ("/", True),
        ):
            self.assertIs(Call("GET", path, [], NO_BODY, None).left_out, expected, path)
