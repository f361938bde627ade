# SPDX-License-Identifier: AGPL-3.0-or-later
"""Requests through the proxy: what arrives at the homeserver, and what comes back."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

from twisted.internet.defer import gatherResults, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.interfaces import IPullProducer
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import ResponseFailed
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site
from zope.interface import implementer

from synapse_lb.client import ClientVerification
from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.proxy import proxy as proxy_module
from synapse_lb.proxy.associations import REQUESTS_AT_A_TIME
from synapse_lb.proxy.filters import lean_filter
from synapse_lb.proxy.home import Home, Place
from synapse_lb.proxy.proxy import COAP_BODY
from tests.client.harness import REACTOR, Dispatcher, RecordingGateway, until
from tests.proxy.harness import ProxyTestCase

ECHO = "/_matrix/client/v3/echo"


class Raw(Protocol):
    """A TCP connection to the proxy."""

    def __init__(self, take: Callable[[bytes], object]) -> None:
        self._take = take

    @classmethod
    async def connect(cls, url: str, take: Callable[[bytes], object]) -> Raw:
        """Open one."""
        port = int(url.rpartition(":")[2])
        endpoint = TCP4ClientEndpoint(REACTOR, "127.0.0.1", port)
        connected: Raw = await connectProtocol(endpoint, cls(take))
        return connected

    def dataReceived(self, data: bytes) -> None:
        """Something has come."""
        self._take(data)

    def write(self, data: bytes) -> None:
        """Send it."""
        transport: Any = self.transport
        transport.write(data)

    def pause(self) -> None:
        """Read no more."""
        transport: Any = self.transport
        transport.pauseProducing()

    def abort(self) -> None:
        """Go away."""
        transport: Any = self.transport
        transport.abortConnection()


@implementer(IPullProducer)
class Endless:
    """A body without an end."""

    def __init__(self, site: HttpsHomeserver, request: Any) -> None:
        self.site = site
        self.request = request

    def resumeProducing(self) -> None:
        """Write some."""
        self.site.written += 10_000
        self.request.write(b"x" * 10_000)

    def stopProducing(self) -> None:
        """Nobody wants more."""


class HttpsHomeserver(Resource):
    """Stands where the homeserver's HTTPS would be; says what it was asked."""

    isLeaf = True

    def __init__(self) -> None:
        Resource.__init__(self)
        self.seen: list[tuple[bytes, bytes, bytes, dict[bytes, bytes]]] = []
        self.answer: bytes = b"over https"
        self.json: dict[bytes, Any] = {}
        self.left: list[Failure] = []
        self.written = 0

    def render(self, request: Any) -> bytes | int:
        """Answer."""
        headers = {name: values[0] for name, values in request.requestHeaders.getAllRawHeaders()}
        self.seen.append((request.method, request.uri, request.content.read(), headers))
        request.setHeader(b"Content-Type", b"image/png")
        request.setHeader(b"Access-Control-Allow-Origin", b"*")
        request.responseHeaders.setRawHeaders(b"Set-Cookie", [b"a=1", b"b=2"])
        if request.path in self.json:
            return json.dumps(self.json[request.path]).encode()
        if request.path.endswith(b"/truncated"):
            request.write(b"some")
            REACTOR.callLater(0.02, request.loseConnection)
            return int(NOT_DONE_YET)
        if request.path.endswith(b"/endless"):
            request.notifyFinish().addErrback(self.left.append)
            request.registerProducer(Endless(self, request), False)
            return int(NOT_DONE_YET)
        if request.path.endswith(b"/redirect"):
            request.redirect(b"https://sso.example.com/")
            return b""
        return self.answer


class NotingGateway(RecordingGateway):
    """Takes note of its associations."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__(dispatcher)
        self.established: list[int] = []

    def association_established(self, association_id: int) -> None:
        """One more."""
        self.established.append(association_id)
        super().association_established(association_id)


class RequestTests(ProxyTestCase):
    async def test_what_arrives_and_what_comes_back(self) -> None:
        _, http = self.start_proxy(self.start_server())
        path = "/_matrix/client/v3/rooms/%21r%3Ax/a%2Fb%20c"
        got = await http.fetch("PUT", f"{path}?q=%C3%A9&q=%26&e=", {"n": 1, "t": "ä"}, "syt_a")
        self.assertEqual(got.status, 200)
        self.assertEqual(got.header("Content-Type"), "application/json")
        self.assertEqual(got.header("Access-Control-Allow-Origin"), "*")
        self.assertEqual(got.header("Cache-Control"), "no-cache, no-store, must-revalidate")
        said = got.json
        self.assertEqual((said["method"], said["token"], said["json"]), ("PUT", "syt_a", {"n": 1, "t": "ä"}))
        self.assertEqual(said["query"], "q=%C3%A9&q=%26&e=")
        self.assertEqual(said["path"].lower(), "/_matrix/client/v3/rooms/!r:x/a%2fb%20c")

    async def test_token_in_the_query(self) -> None:
        _, http = self.start_proxy(self.start_server())
        said = (await http.get(f"{ECHO}?a=1&access_token=syt_q")).json
        self.assertEqual((said["token"], said["query"]), ("syt_q", "a=1"))
        said = (await http.get(f"{ECHO}?access_token=syt_q", "syt_header")).json
        self.assertEqual(said["token"], "syt_header")

    async def test_bad_tokens(self) -> None:
        _, http = self.start_proxy(self.start_server())
        got = await http.get(ECHO, "two words")
        self.assertEqual((got.status, got.json["errcode"]), (401, "M_UNKNOWN_TOKEN"))
        said = (await http.get(ECHO, Authorization="Basic abc")).json
        self.assertIsNone(said["token"])

    async def test_tokens_never_mix(self) -> None:
        """Each token has an association of its own, and what has none is nobody's."""
        server = self.start_server()
        proxy, http = self.start_proxy(server)
        tokens = ["syt_a", None, "syt_b", "syt_a", None, "syt_c"] * 5
        answers = await gatherResults([http.fetch("GET", ECHO, None, token) for token in tokens])
        self.assertEqual([answer.json["token"] for answer in answers], tokens)
        self.assertEqual(proxy.status()["associations"], 4)
        self.assertEqual(server.dtls.counters.handshakes_completed, 4)

    async def test_sessions_are_resumed(self) -> None:
        """The second association costs half of the first."""
        server = self.start_server()
        _, http = self.start_proxy(server)
        await http.get(ECHO)
        await http.get(ECHO, "syt_a")
        await http.get(ECHO, "syt_b")
        self.assertEqual(server.dtls.counters.handshakes_resumed, 2)

    async def test_more_requests_than_an_association_takes(self) -> None:
        """They wait for their turn."""
        _, http = self.start_proxy(self.start_server())
        many = 100
        asking = [http.fetch("GET", f"/_matrix/client/v3/wait/{n}", None, "syt_a") for n in range(many)]
        arrived = 0
        while arrived < many:
            await until(lambda: self.dispatcher.waiting)
            self.assertLessEqual(len(self.dispatcher.waiting), REQUESTS_AT_A_TIME)
            arrived += 1
            self.dispatcher.waiting.pop().callback(MatrixResponse(200, {}))
        self.assertEqual({answer.status for answer in await gatherResults(asking)}, {200})

    async def test_no_token_after_one(self) -> None:
        """The homeserver takes a request without a token for nobody's."""
        _, http = self.start_proxy(self.start_server())
        await http.get(ECHO, "syt_a")
        got = await http.get("/_matrix/client/v3/private")
        self.assertEqual((got.status, got.json["errcode"]), (401, "M_MISSING_TOKEN"))

    async def test_errors_of_the_homeserver(self) -> None:
        _, http = self.start_proxy(self.start_server())
        got = await http.get("/_matrix/client/v3/missing")
        self.assertEqual((got.status, got.json["errcode"]), (404, "M_NOT_FOUND"))
        self.assertEqual(got.header("Access-Control-Allow-Origin"), "*")
        slow_down = MatrixResponse(429, {"errcode": "M_LIMIT_EXCEEDED"}, 2.5)
        self.patch(self.dispatcher, "answer", lambda _: slow_down)
        got = await http.get(ECHO)
        self.assertEqual((got.status, got.header("Retry-After")), (429, "3"))

    async def test_options_and_head(self) -> None:
        _, http = self.start_proxy(self.start_server())
        got = await http.fetch("OPTIONS", "/_matrix/client/v3/login")
        self.assertEqual(got.status, 204)
        self.assertIn("PUT", got.header("Access-Control-Allow-Methods") or "")
        self.assertIn("Authorization", got.header("Access-Control-Allow-Headers") or "")
        self.assertEqual(self.dispatcher.requests, [])
        got = await http.fetch("HEAD", ECHO)
        self.assertEqual((got.status, got.content), (200, b""))
        self.assertEqual(self.dispatcher.requests[0].method, "GET")

    async def test_no_body_and_bad_bodies(self) -> None:
        _, http = self.start_proxy(self.start_server())
        got = await http.fetch("POST", ECHO, b"")
        self.assertNotIn("json", got.json)
        for bad in (b"{", b"\xff", b'{"a": NaN}', b'{"a":' * 50_000):
            got = await http.fetch("POST", ECHO, bad)
            self.assertEqual((got.status, got.json["errcode"]), (400, "M_NOT_JSON"))
        got = await http.fetch("POST", ECHO, {"n": 2**70})
        self.assertEqual(got.status, 400)
        got = await http.fetch("POST", ECHO, {"b": "b" * COAP_BODY})
        self.assertEqual((got.status, got.json["errcode"]), (413, "M_TOO_LARGE"))
        self.assertEqual(len(self.dispatcher.requests), 1)

    async def test_bound_of_bodies(self) -> None:
        _, http = self.start_proxy(self.start_server(), max_body=1000)
        got = await http.fetch("POST", ECHO, {"b": "b" * 5000})
        self.assertEqual((got.status, got.json["errcode"]), (413, "M_TOO_LARGE"))
        self.assertEqual((await http.fetch("POST", ECHO, {"b": "b" * 900})).status, 200)

    async def test_large_answers(self) -> None:
        _, http = self.start_proxy(self.start_server())
        got = await http.get("/_matrix/client/v3/big")
        self.assertEqual(got.json, {"body": "b" * 300_000})

    async def test_what_it_does_not_have(self) -> None:
        _, http = self.start_proxy(self.start_server())
        got = await http.get("/favicon.ico")
        self.assertEqual((got.status, got.json["errcode"]), (404, "M_UNRECOGNIZED"))
        for path in ("/_matrix/media/v3/config", "/_matrix/client/v1/media/config", f"{ECHO}/{'x' * 300}"):
            got = await http.get(path)
            self.assertIn(got.status, (400, 502))
            self.assertIn("errcode", got.json)

    async def test_own_address_in_place_of_the_homeservers(self) -> None:
        def log_in(_: MatrixRequest) -> MatrixResponse:
            own = {"m.homeserver": {"base_url": "https://matrix.example.com/"}}
            return MatrixResponse(200, {"access_token": "syt_a", "well_known": own})

        self.patch(self.dispatcher, "answer", log_in)
        _, http = self.start_proxy(self.start_server())
        got = await http.post("/_matrix/client/v3/login", {})
        self.assertEqual(got.json["well_known"], {"m.homeserver": {"base_url": http.url}})
        got = await http.get("/.well-known/matrix/client")
        self.assertEqual(got.json, {"m.homeserver": {"base_url": http.url}})

    async def test_client_goes_away(self) -> None:
        proxy, http = self.start_proxy(self.start_server())
        asking = http.fetch("GET", "/_matrix/client/v3/wait")
        await until(lambda: self.dispatcher.waiting)
        self.assertEqual(proxy.status()["requests_under_way"], 1)
        asking.addErrback(lambda _: None)
        asking.cancel()
        await until(lambda: not proxy.status()["requests_under_way"])
        self.dispatcher.waiting.pop().callback(MatrixResponse(200, {}))
        self.assertEqual((await http.get(ECHO)).status, 200)

    async def test_association_ends(self) -> None:
        """What may be repeated is repeated on a new one; the rest fails."""
        handler = NotingGateway(self.dispatcher)
        server = self.start_server(handler)
        _, http = self.start_proxy(server)
        waiting = [http.fetch(method, "/_matrix/client/v3/wait", {}, "syt_a") for method in ("PUT", "POST")]
        await until(lambda: len(self.dispatcher.waiting) == 2)
        server.dtls.close(handler.established[0])
        self.assertEqual((await waiting[1]).status, 502)
        await until(lambda: self.dispatcher.waiting)
        self.dispatcher.waiting.pop().callback(MatrixResponse(200, {"second": True}))
        self.assertEqual((await waiting[0]).json, {"second": True})


class NobodyThereTests(ProxyTestCase):
    async def test_nobody_listens(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            _, http = self.start_proxy(None, coaps=f"127.0.0.1:{taken.getsockname()[1]}")
            got = await http.get(ECHO)
        self.assertEqual((got.status, got.json["errcode"]), (504, "M_UNKNOWN"))
        self.assertEqual(got.header("Access-Control-Allow-Origin"), "*")

    async def test_wrong_certificate(self) -> None:
        server = self.start_server()
        _, http = self.start_proxy(server, verification=ClientVerification.pinned("00" * 32))
        got = await http.get(ECHO)
        self.assertEqual((got.status, got.json["errcode"]), (502, "M_UNKNOWN"))


class HttpsTests(ProxyTestCase):
    def setUp(self) -> None:
        """Start what stands for HTTPS, without TLS."""
        super().setUp()
        self.https = HttpsHomeserver()
        listening = REACTOR.listenTCP(0, Site(self.https), interface="127.0.0.1")
        self.addCleanup(listening.stopListening)
        self.https_url = f"http://127.0.0.1:{listening.getHost().port}"

    async def test_media_goes_over_https(self) -> None:
        handler = RecordingGateway(self.dispatcher)
        proxy, http = self.start_proxy(self.start_server(handler), https=self.https_url)
        self.https.answer = bytes(range(256)) * 4000
        path = "/_matrix/client/v1/media/download/example.org/a%2Fb?x=%20"
        got = await http.get(path, "syt_a", Range="bytes=0-")
        self.assertEqual((got.status, got.content), (200, self.https.answer))
        self.assertEqual(got.header("Content-Type"), "image/png")
        self.assertEqual(got.header("Access-Control-Allow-Origin"), "*")
        self.assertEqual(got.headers.getRawHeaders("Set-Cookie"), ["a=1", "b=2"])
        method, uri, _, headers = self.https.seen[0]
        self.assertEqual((method, uri), (b"GET", path.encode()))
        self.assertEqual(headers[b"Authorization"], b"Bearer syt_a")
        self.assertEqual(headers[b"Range"], b"bytes=0-")
        self.assertEqual(handler.seen, [])
        self.assertEqual(proxy.status()["requests_https"], 1)

    async def test_uploads_and_redirects(self) -> None:
        _, http = self.start_proxy(self.start_server(), https=self.https_url)
        content = bytes(range(256)) * 8000
        got = await http.fetch("POST", "/_matrix/media/v3/upload", content, "syt_a", Content_Type="image/png")
        self.assertEqual(got.status, 200)
        self.assertEqual(self.https.seen[0][2], content)
        got = await http.get("/_matrix/client/v3/login/sso/redirect")
        self.assertEqual((got.status, got.header("Location")), (302, "https://sso.example.com/"))

    async def test_what_coap_cannot_carry(self) -> None:
        _, http = self.start_proxy(self.start_server(), https=self.https_url)
        for path, body in (
            (f"{ECHO}/{'x' * 300}", None),
            (ECHO, b"no JSON"),
            (ECHO, {"b": "b" * COAP_BODY}),
        ):
            got = await http.fetch("POST", path, body, "syt_a")
            self.assertEqual((got.status, got.content), (200, b"over https"))
        self.assertEqual(self.dispatcher.requests, [])

    async def test_udp_does_not_get_through(self) -> None:
        """Then HTTPS is used, for a while without another attempt, and then CoAP is tried again."""
        self.patch(proxy_module, "DETOUR", 0.5)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
            proxy, http = self.start_proxy(None, coaps=f"127.0.0.1:{port}", https=self.https_url)
            self.assertEqual((await http.get(ECHO)).content, b"over https")
            self.assertTrue(proxy.status()["on_detour"])
        self.start_server(port=port)
        self.assertEqual((await http.get(ECHO)).content, b"over https")
        await until(lambda: not proxy.status()["on_detour"])
        self.assertEqual((await http.get(ECHO)).json["method"], "GET")

    async def test_lean_over_https(self) -> None:
        """The filter is merged, unless it is an id."""
        _, http = self.start_proxy(None, https=self.https_url, lean=True)
        for given, sent in (
            ("", lean_filter({})),
            ("&filter=%7B%22room%22%3A%7B%22rooms%22%3A%5B%5D%7D%7D", lean_filter({"room": {"rooms": []}})),
            ("&filter=5", 5),
        ):
            await http.get(f"/_matrix/client/v3/sync?set_presence=online&timeout=0{given}", "syt_a")
            query = dict(parse_qsl(self.https.seen[-1][1].decode().partition("?")[2]))
            self.assertEqual((query["set_presence"], json.loads(query["filter"])), ("offline", sent))
            self.assertEqual(query["timeout"], "0")

    async def test_wrong_certificate_is_no_detour(self) -> None:
        """Somebody in the way must not be able to choose the way."""
        server = self.start_server()
        pin = ClientVerification.pinned("00" * 32)
        proxy, http = self.start_proxy(server, https=self.https_url, verification=pin)
        got = await http.get(ECHO, "syt_a")
        self.assertEqual((got.status, got.json["errcode"]), (502, "M_UNKNOWN"))
        self.assertEqual((self.https.seen, proxy.status()["on_detour"]), ([], False))

    async def test_server_without_coap(self) -> None:
        _, http = self.start_proxy(None, https=self.https_url)
        self.assertEqual((await http.get(f"{ECHO}?a=b")).content, b"over https")
        self.https.answer = b'{"well_known": {"m.homeserver": {"base_url": "https://x/"}}}'
        got = await http.post("/_matrix/client/v3/login", {})
        self.assertEqual(got.json["well_known"], {"m.homeserver": {"base_url": http.url}})

    async def test_answer_that_ends_early(self) -> None:
        """It does not look complete, though its length is not known before."""
        _, http = self.start_proxy(self.start_server(), https=self.https_url)
        failure = await self.assertFailure(
            http.fetch("GET", "/_matrix/media/v3/download/x/truncated"), ResponseFailed
        )
        self.assertTrue(failure)

    async def test_client_that_goes_away_from_a_download(self) -> None:
        """The homeserver is left, too, and nothing is said of it."""
        _, http = self.start_proxy(self.start_server(), https=self.https_url)
        parts: list[bytes] = []
        client = await Raw.connect(http.url, parts.append)
        client.write(b"GET /_matrix/media/v3/download/x/endless HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: sum(map(len, parts)) > 50_000)
        client.abort()
        await until(lambda: self.https.left)

    async def test_slow_reader(self) -> None:
        """What it does not read is not kept in memory."""
        _, http = self.start_proxy(self.start_server(), https=self.https_url)
        client = await Raw.connect(http.url, lambda _: client.pause())
        client.write(b"GET /_matrix/media/v3/download/x/endless HTTP/1.1\r\nHost: x\r\n\r\n")
        written = -1
        while written != self.https.written:
            written = self.https.written
            await deferLater(REACTOR, 0.3)
        self.assertLess(written, 50_000_000)
        client.abort()
        await until(lambda: self.https.left)

    async def test_discovery(self) -> None:
        """Media goes where `/.well-known` says, and the rest where `/versions` says."""
        server = self.start_server()
        self.https.json[b"/.well-known/matrix/client"] = {
            "m.homeserver": {"base_url": f"{self.https_url}/base/"}
        }
        versions = {"versions": ["v1.1"], "org.matrix.msc3079.low_bandwidth": {"dtls": server.port}}
        self.https.json[b"/base/_matrix/client/versions"] = versions
        _, http = self.start_proxy(None, discover=self.https_url)
        self.assertEqual((await http.get(ECHO, "syt_a")).json["token"], "syt_a")
        self.assertEqual((await http.get("/_matrix/media/v3/config")).content, b"over https")
        self.assertEqual(self.https.seen[-1][1], b"/base/_matrix/media/v3/config")

    async def test_discovery_in_vain(self) -> None:
        _, http = self.start_proxy(None, discover=self.https_url)
        got = await http.get(ECHO)
        self.assertEqual((got.status, got.json["errcode"]), (502, "M_UNKNOWN"))
        self.https.json[b"/_matrix/client/versions"] = {"versions": ["v1.1"]}
        self.https.json[b"/.well-known/matrix/client"] = {"m.homeserver": {"base_url": self.https_url}}
        self.assertEqual((await http.get(ECHO)).content, b"over https")

    async def test_homeserver_that_moves(self) -> None:
        """Nothing more is said where it was."""
        old, new = self.start_server(), self.start_server()
        proxy, http = self.start_proxy(old)
        await http.get(ECHO, "syt_a")
        place = Place(f"coaps://{new.address}", None)
        self.patch(Home, "find", lambda _: succeed(place))
        self.assertEqual((await http.get(ECHO, "syt_a")).status, 200)
        self.assertEqual(new.dtls.counters.handshakes_completed, 1)
        await until(lambda: old.dtls.counters.associations_closed_by_peer)
        self.assertEqual(proxy.status()["associations"], 1)

    async def test_https_does_not_answer(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
            _, http = self.start_proxy(self.start_server(), https=url)
            got = await http.get("/_matrix/media/v3/config")
        self.assertEqual((got.status, got.json["errcode"]), (502, "M_UNKNOWN"))
