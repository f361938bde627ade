# SPDX-License-Identifier: AGPL-3.0-or-later
"""The reverse proxy beside CoAP: bytes go through as they are, and only what clients need."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.web.http_headers import Headers

from synapse_lb.client import ClientVerification
from synapse_lb.client.errors import ConnectionLost
from synapse_lb.client.https import HttpsTransport
from synapse_lb.standalone import reverse
from synapse_lb.standalone.reverse import BoundedRequest, site
from synapse_lb.standalone.rewriting import VERSIONS_KEY
from tests.client.harness import REACTOR, until
from tests.client.https_server import Reply
from tests.standalone.test_upstream import UpstreamCase

MEDIA = "/_matrix/client/v1/media/download/a/b"
SIZE = 64 * 1024 * 1024
"""Bytes: many times what the kernel's buffers hold."""
WAIT = "/_matrix/client/v3/wait"


class Counting(Protocol):
    """Counts a body."""

    def __init__(self) -> None:
        self.received = 0
        self.ended = False

    def dataReceived(self, data: bytes) -> None:
        """Count it."""
        self.received += len(data)

    def connectionLost(self, reason: Any = None) -> None:
        """The end."""
        self.ended = True


class ReverseCase(UpstreamCase):
    def setUp(self) -> None:
        super().setUp()
        self.front(self.upstream())
        self.asker = HttpsTransport(REACTOR, ClientVerification.system())
        self.addCleanup(self.asker.close)

    def front(self, upstream: Any) -> None:
        """Listen before a homeserver."""
        self.counters = upstream.counters
        port = REACTOR.listenTCP(0, site(upstream), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.url = f"http://127.0.0.1:{port.getHost().port}"


class PassingTests(ReverseCase):
    async def test_a_request_goes_through_as_it_is(self) -> None:
        content = bytes(range(256)) * 4000
        self.server.replies["/_matrix/media/v3/upload"] = Reply(
            201, content[::-1], {"X-Theirs": "1", "Content-Type": "image/png"}
        )
        answer = await self.asker.fetch(
            "POST",
            self.url + "/_matrix/media/v3/upload?filename=a%2Fb&c",
            headers={"Authorization": "Bearer t", "Content-Type": "image/png", "X-Mine": "ü"},
            body=content,
        )
        self.assertEqual((answer.status, answer.body), (201, content[::-1]))
        self.assertEqual((answer.header("x-theirs"), answer.header("content-type")), ("1", "image/png"))
        (seen,) = self.server.seen
        self.assertEqual((seen.method, seen.uri), ("POST", "/_matrix/media/v3/upload?filename=a%2Fb&c"))
        self.assertEqual(seen.body, content)
        self.assertEqual((seen.headers["authorization"], seen.headers["x-mine"]), ("Bearer t", "ü"))

    async def test_what_a_client_says_of_its_address_does_not(self) -> None:
        claimed = {
            "X-Forwarded-For": "198.51.100.1",
            "X-Real-IP": "198.51.100.1",
            "Forwarded": "for=198.51.100.1",
        }
        await self.asker.fetch("GET", self.url + MEDIA, headers=claimed)
        self.assertNotIn("198.51.100.1", str(self.server.seen[0].headers))

    async def test_its_address_where_it_is_wanted(self) -> None:
        self.front(self.upstream(forwarded_for=True))
        await self.asker.fetch("GET", self.url + MEDIA, headers={"X-Forwarded-For": "198.51.100.1"})
        self.assertEqual(self.server.seen[0].headers["x-forwarded-for"], "127.0.0.1")

    async def test_headers_of_one_connection_do_not(self) -> None:
        headers = {"Connection": "X-Secret", "X-Secret": "1", "TE": "trailers", "X-Open": "1"}
        await self.asker.fetch("GET", self.url + MEDIA, headers=headers)
        seen = self.server.seen[0].headers
        self.assertEqual((seen.get("x-secret"), seen.get("te"), seen["x-open"]), (None, None, "1"))

    async def test_redirects_and_cookies(self) -> None:
        headers = {"Location": "https://sso.example.com/", "Set-Cookie": "a=b"}
        self.server.replies["/_matrix/client/v3/login/sso/redirect"] = Reply(302, b"", headers)
        answer = await self.asker.fetch("GET", self.url + "/_matrix/client/v3/login/sso/redirect")
        self.assertEqual((answer.status, answer.header("location")), (302, "https://sso.example.com/"))
        self.assertEqual(answer.header("set-cookie"), "a=b")

    async def test_head_and_no_content(self) -> None:
        answer = await self.asker.fetch("HEAD", self.url + MEDIA)
        self.assertEqual((answer.status, answer.body), (200, b""))
        self.server.replies[MEDIA] = Reply(204, b"")
        self.assertEqual((await self.asker.fetch("GET", self.url + MEDIA)).status, 204)

    async def test_what_clients_do_not_need(self) -> None:
        for path in (
            "/_synapse/admin/v1/users",
            "/_matrix/federation/v1/version",
            "/_matrix/client/../../_synapse/x",
        ):
            answer = await self.asker.fetch("GET", self.url + path)
            self.assertEqual((answer.status, json.loads(answer.body)["errcode"]), (404, "M_UNRECOGNIZED"))
        self.assertEqual(self.server.seen, [])

    async def test_a_slow_reader_slows_the_homeserver_down(self) -> None:
        self.server.replies[MEDIA] = Reply(body=bytes(SIZE))
        passed = 0

        class Stream(reverse.Stream):
            def dataReceived(self, data: bytes) -> None:
                nonlocal passed
                passed += len(data)
                super().dataReceived(data)

        self.patch(reverse, "Stream", Stream)
        response = await self.asker.open(b"GET", (self.url + MEDIA).encode(), Headers(), None)
        slow = Counting()
        response.deliverBody(slow)
        transport: Any = slow.transport
        transport.pauseProducing()
        await until(lambda: passed)
        await deferLater(REACTOR, 0.3, lambda: None)
        self.assertLess(passed, SIZE / 2)
        transport.resumeProducing()
        await until(lambda: slow.ended)
        self.assertEqual((slow.received, passed), (SIZE, SIZE))


class ChangedTests(ReverseCase):
    async def test_the_gateway_is_advertised(self) -> None:
        self.server.replies["/_matrix/client/versions"] = Reply(
            body={"versions": ["v1.1"]}, headers={"ETag": "x"}
        )
        answer = await self.asker.fetch("GET", self.url + "/_matrix/client/versions")
        self.assertEqual(json.loads(answer.body)[VERSIONS_KEY]["dtls"], 8448)
        self.assertIsNone(answer.header("etag"))

    async def test_well_known(self) -> None:
        answer = await self.asker.fetch("GET", self.url + "/.well-known/matrix/client")
        expected = {"m.homeserver": {"base_url": "https://lb.example.com"}}
        self.assertEqual((answer.status, json.loads(answer.body)), (200, expected))
        self.assertEqual(answer.header("access-control-allow-origin"), "*")

    async def test_an_answer_that_is_not_to_be_changed(self) -> None:
        path = "/_matrix/client/v3/login"
        self.server.replies[path] = Reply(403, b'{"errcode": "M_FORBIDDEN" }', {"X-A": "b"})
        answer = await self.asker.fetch("POST", self.url + path, body=b"{}")
        # It had to be read.
        self.assertNotIn("accept-encoding", self.server.seen[0].headers)
        self.assertEqual((answer.status, answer.body), (403, b'{"errcode": "M_FORBIDDEN" }'))
        self.assertEqual(answer.header("x-a"), "b")


class TroubleTests(ReverseCase):
    async def test_the_homeserver_is_down(self) -> None:
        await self.server.stop()
        answer = await self.asker.fetch("GET", self.url + MEDIA)
        self.assertEqual((answer.status, json.loads(answer.body)["errcode"]), (502, "M_UNKNOWN"))
        self.assertEqual(self.counters.failures, 1)

    async def test_the_client_goes_away(self) -> None:
        waiting = self.asker.fetch("GET", self.url + WAIT)
        await until(lambda: self.server.open)
        waiting.cancel()
        await self.assertFailure(waiting, CancelledError)
        await until(lambda: self.server.gone)
        self.assertEqual(self.counters.failures, 0)

    async def test_too_much_at_once(self) -> None:
        self.front(self.upstream(max_requests=1))
        waiting = self.asker.fetch("GET", self.url + WAIT)
        await until(lambda: self.server.open)
        refused = await self.asker.fetch("GET", self.url + MEDIA)
        self.assertEqual((refused.status, refused.header("retry-after")), (503, "5"))
        waiting.cancel()
        await self.assertFailure(waiting, CancelledError)
        await until(lambda: self.server.gone)
        self.assertEqual((await self.asker.fetch("GET", self.url + MEDIA)).status, 200)

    async def test_the_homeserver_breaks_off(self) -> None:
        asking = Deferred.fromCoroutine(self.asker.open(b"GET", (self.url + WAIT).encode(), Headers(), None))
        await until(lambda: self.server.open)
        (request,) = self.server.open
        request.setHeader("Content-Length", "1000")
        request.write(b"x")
        response = await asking
        request.transport.abortConnection()
        await self.assertFailure(Deferred.fromCoroutine(self.asker.collect(response)), ConnectionLost)

    async def test_too_large(self) -> None:
        self.patch(BoundedRequest, "max_body", 1000)
        answer = await self.asker.fetch("POST", self.url + "/_matrix/media/v3/upload", body=bytes(1001))
        self.assertEqual((answer.status, json.loads(answer.body)["errcode"]), (413, "M_TOO_LARGE"))
        self.assertEqual((await self.asker.fetch("POST", self.url + MEDIA, body=bytes(1000))).status, 200)
        self.assertEqual(len(self.server.seen), 1)

    async def test_too_large_without_saying_so(self) -> None:
        self.patch(BoundedRequest, "max_body", 1000)
        ended: list[bytes] = []

        class Chunks(Protocol):
            received = b""

            def connectionMade(self) -> None:
                transport: Any = self.transport
                transport.write(b"POST /_matrix/media/v3/upload HTTP/1.1\r\nHost: a\r\n")
                transport.write(b"Transfer-Encoding: chunked\r\n\r\n")
                for _ in range(20):
                    transport.write(b"64\r\n" + bytes(100) + b"\r\n")

            def dataReceived(self, data: bytes) -> None:
                self.received += data

            def connectionLost(self, reason: Any = None) -> None:
                ended.append(self.received)

        port = int(self.url.rpartition(":")[2])
        await connectProtocol(TCP4ClientEndpoint(REACTOR, "127.0.0.1", port), Chunks())
        await until(lambda: ended)
        self.assertIn(b"HTTP/1.1 413", ended[0])
        self.assertEqual(self.server.seen, [])
