# SPDX-License-Identifier: AGPL-3.0-or-later
"""Requests over HTTPS: what goes out is what was asked for, to whom it was meant, and all of it is bounded."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError
from twisted.internet.task import deferLater

from synapse_lb.client import ClientVerification
from synapse_lb.client.errors import (
    AuthoritiesError,
    BadRequest,
    BadResponse,
    CertificateError,
    ClientClosed,
    ConnectError,
    ConnectionLost,
    RequestTimeout,
)
from synapse_lb.client.https import HttpsLimits, HttpsTransport
from synapse_lb.msc3079.messages import NO_BODY
from tests.client.harness import REACTOR, Certificate, LoopbackTestCase, until
from tests.client.https_server import HttpsHomeserver, Reply, Seen, write

PATH = "/_matrix/client/v3/a"


class HttpsCase(LoopbackTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.server = HttpsHomeserver(self.certificate, self.answer)
        self.addCleanup(self.server.stop)

    def answer(self, seen: Seen) -> Reply | None:
        """What the server answers."""
        return None if "/wait" in seen.path else Reply(body={"path": seen.path})

    def transport(self, verification: ClientVerification | None = None, **limits: Any) -> HttpsTransport:
        """A transport that trusts the server's certificate, unless it is told otherwise."""
        verification = verification or ClientVerification.ca_file(self.certificate.path)
        transport = HttpsTransport(REACTOR, verification, HttpsLimits(**limits))
        self.addCleanup(transport.close)
        return transport


class RequestTests(HttpsCase):
    async def test_what_goes_out(self) -> None:
        path = "/_matrix/client/v3/rooms/%21a%3Ab/state/t/a%2Fb%25%20c//"
        answer = await self.transport().request(
            "PUT", self.server.url, path, [("a", "1&2=%"), ("b", "ä +")], {"x": "ü"}, "t0ken"
        )
        self.assertEqual((answer.status, answer.body), (200, {"path": path}))
        (seen,) = self.server.seen
        self.assertEqual(seen.uri, path + "?a=1%262%3D%25&b=%C3%A4+%2B")
        self.assertEqual(seen.method, "PUT")
        self.assertEqual(seen.json, {"x": "ü"})
        self.assertEqual(seen.headers["authorization"], "Bearer t0ken")
        self.assertEqual(seen.headers["content-type"], "application/json")

    async def test_a_query_in_the_path_goes_on(self) -> None:
        await self.transport().request("GET", self.server.url, PATH + "?a&b=%2B", [("c", "d")])
        self.assertEqual(self.server.seen[0].uri, PATH + "?a&b=%2B&c=d")
        self.assertNotIn("authorization", self.server.seen[0].headers)

    async def test_cookies_are_not_kept(self) -> None:
        transport = self.transport()
        self.server.replies[PATH] = Reply(headers={"Set-Cookie": "user=alice; Path=/"})
        for _ in range(2):
            await transport.request("GET", self.server.url, PATH)
        self.assertNotIn("cookie", self.server.seen[1].headers)

    async def test_redirects_are_not_followed(self) -> None:
        self.server.replies[PATH] = Reply(302, b"", {"Location": "https://example.com/"})
        response = await self.transport().fetch("GET", self.server.url + PATH)
        self.assertEqual((response.status, response.header("Location")), (302, "https://example.com/"))

    async def test_bytes(self) -> None:
        content = bytes(range(256)) * 100
        self.server.replies["/media"] = Reply(body=content)
        response = await self.transport().fetch(
            "POST", self.server.url + "/media", headers={"Content-Type": "image/png"}, body=content
        )
        self.assertEqual(response.body, content)
        self.assertEqual(self.server.seen[0].body, content)
        self.assertEqual(self.server.seen[0].headers["content-type"], "image/png")

    async def test_a_status_without_a_body(self) -> None:
        self.server.replies[PATH] = Reply(204, b"")
        answer = await self.transport().request("GET", self.server.url, PATH)
        self.assertEqual((answer.status, answer.body), (204, NO_BODY))

    async def test_when_to_try_again(self) -> None:
        transport = self.transport()
        self.server.replies[PATH] = Reply(429, {"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 1500})
        self.assertEqual((await transport.request("GET", self.server.url, PATH)).retry_after, 1.5)
        self.server.replies[PATH] = Reply(503, {}, {"Retry-After": "7"})
        self.assertEqual((await transport.request("GET", self.server.url, PATH)).retry_after, 7.0)

    async def test_a_page_in_place_of_an_error(self) -> None:
        self.server.replies[PATH] = Reply(502, b"<html>Bad Gateway</html>")
        answer = await self.transport().request("GET", self.server.url, PATH)
        self.assertEqual((answer.status, answer.body["errcode"]), (502, "M_UNKNOWN"))

    async def test_a_page_in_place_of_an_answer(self) -> None:
        self.server.replies[PATH] = Reply(200, b"<html>Welcome to our Wi-Fi</html>")
        await self.assertFailure(self.transport().request("GET", self.server.url, PATH), BadResponse)

    async def test_what_has_no_form_in_http(self) -> None:
        transport = self.transport()
        for method, path, body in (
            ("BREW", PATH, NO_BODY),
            ("GET", "/ä", NO_BODY),
            ("PUT", PATH, {"a": {1}}),
        ):
            await self.assertFailure(transport.request(method, self.server.url, path, (), body), BadRequest)
        for name, value in (("a\r\nb", "c"), ("", "c"), ("a", "b\r\nc: d"), ("a", "\0")):
            await self.assertFailure(
                transport.fetch("GET", self.server.url + PATH, headers={name: value}), BadRequest
            )
        await self.assertFailure(transport.fetch("GET", self.server.url + "/a b"), BadRequest)
        surrogate = transport.request("GET", self.server.url, PATH, [("since", "\ud800")])
        await self.assertFailure(surrogate, BadRequest)
        self.assertEqual(self.server.seen, [])

    async def test_a_timeout_of_any_length(self) -> None:
        """Longer than a float takes, and longer than Python turns into an integer."""
        for digits in (334, 5000):
            query = [("timeout", "9" * digits)]
            answer = await self.transport().request("GET", self.server.url, PATH, query)
            self.assertEqual(answer.status, 200)


class EndTests(HttpsCase):
    async def test_cancelling_ends_the_exchange(self) -> None:
        waiting = self.transport().request("GET", self.server.url, "/wait")
        await until(lambda: self.server.open)
        waiting.cancel()
        await self.assertFailure(waiting, CancelledError)
        await until(lambda: self.server.gone)

    async def test_cancelling_before_there_is_a_connection(self) -> None:
        waiting = self.transport().request("GET", self.server.url, PATH)
        waiting.cancel()
        await self.assertFailure(waiting, CancelledError)
        self.assertEqual(self.server.seen, [])

    async def test_out_of_time(self) -> None:
        waiting = self.transport(timeout=0.2).request("GET", self.server.url, "/wait")
        await self.assertFailure(waiting, RequestTimeout)
        await until(lambda: self.server.gone)

    async def test_a_long_poll_has_its_own_time_besides(self) -> None:
        waiting = self.transport(timeout=0.2).request("GET", self.server.url, "/wait", [("timeout", "60000")])
        await until(lambda: self.server.open)
        await deferLater(REACTOR, 0.4, lambda: None)
        write(self.server.open[0], Reply(body={"late": True}))
        self.assertEqual((await waiting).body, {"late": True})

    async def test_close_ends_what_is_under_way(self) -> None:
        transport = self.transport()
        waiting = transport.request("GET", self.server.url, "/wait")
        await until(lambda: self.server.open)
        await transport.close()
        await self.assertFailure(waiting, ClientClosed)
        await self.assertFailure(transport.request("GET", self.server.url, PATH), ClientClosed)

    async def test_the_server_goes_away(self) -> None:
        waiting = self.transport().request("POST", self.server.url, "/wait", (), {})
        await until(lambda: self.server.open)
        await self.server.stop()
        await self.assertFailure(waiting, ConnectionLost)

    async def test_nobody_listens(self) -> None:
        await self.server.stop()
        await self.assertFailure(self.transport().request("GET", self.server.url, PATH), ConnectError)

    async def test_a_body_that_never_ends(self) -> None:
        waiting = self.transport(max_body=10_000).request("GET", self.server.url, "/wait")
        await until(lambda: self.server.open)
        self.server.open[0].write(bytes(10_001))
        await self.assertFailure(waiting, BadResponse)
        await until(lambda: self.server.gone)

    async def test_cancelling_in_the_middle_of_a_body(self) -> None:
        transport = self.transport()
        waiting = transport.request("GET", self.server.url, "/wait")
        await until(lambda: self.server.open)
        self.server.open[0].write(b"[")
        await deferLater(REACTOR, 0.05, lambda: None)
        waiting.cancel()
        await self.assertFailure(waiting, CancelledError)
        await until(lambda: self.server.gone)

    async def test_a_body_that_is_too_large(self) -> None:
        self.server.replies[PATH] = Reply(body=b"[" + b"0," * 5000 + b"0]")
        transport = self.transport(max_body=10_000)
        await self.assertFailure(transport.request("GET", self.server.url, PATH), BadResponse)
        self.server.replies[PATH] = Reply(body=b"[" + b"0," * 4900 + b"0]")
        self.assertEqual(len((await transport.request("GET", self.server.url, PATH)).body), 4901)


class VerificationTests(HttpsCase):
    """The same rules as for DTLS, with the server's certificate being self-signed."""

    async def ask(self, verification: ClientVerification, url: str | None = None) -> int:
        url = url or self.server.url
        return (await self.transport(verification).request("GET", url, PATH)).status

    async def refused(self, verification: ClientVerification, url: str | None = None) -> None:
        with self.assertRaises(CertificateError):
            await self.ask(verification, url)
        self.assertEqual(self.server.seen, [])

    async def test_system(self) -> None:
        await self.refused(ClientVerification.system())

    async def test_authority(self) -> None:
        self.assertEqual(await self.ask(ClientVerification.ca_file(self.certificate.path)), 200)

    async def test_another_authority(self) -> None:
        other = Certificate()
        self.addCleanup(other.remove)
        await self.refused(ClientVerification.ca_file(other.path))

    async def test_another_name(self) -> None:
        certificate = Certificate("elsewhere.example")
        self.addCleanup(certificate.remove)
        server = HttpsHomeserver(certificate, self.answer)
        self.addCleanup(server.stop)
        with self.assertRaises(CertificateError) as caught:
            await self.ask(ClientVerification.ca_file(certificate.path), server.url)
        self.assertIn("does not name 127.0.0.1", str(caught.exception))
        self.assertEqual(server.seen, [])

    async def test_a_name_instead_of_an_address(self) -> None:
        url = self.server.url.replace("127.0.0.1", "localhost")
        self.assertEqual(await self.ask(ClientVerification.ca_file(self.certificate.path), url), 200)

    async def test_pinned(self) -> None:
        self.assertEqual(await self.ask(ClientVerification.pinned(self.certificate.fingerprint)), 200)

    async def test_pinned_otherwise(self) -> None:
        await self.refused(ClientVerification.pinned("ab" * 32))

    async def test_none(self) -> None:
        self.assertEqual(await self.ask(ClientVerification.none()), 200)

    async def test_no_such_file(self) -> None:
        self.assertRaises(AuthoritiesError, self.transport, ClientVerification.ca_file("/nowhere.pem"))
