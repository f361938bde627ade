# SPDX-License-Identifier: AGPL-3.0-or-later
"""Requests from CoAP, asked of a homeserver over HTTP."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred

from synapse_lb.msc3079.messages import NO_BODY, MatrixRequest, MatrixResponse
from synapse_lb.standalone.rewriting import VERSIONS_KEY, Advertisement
from synapse_lb.standalone.upstream import Upstream
from tests.client.harness import REACTOR, LoopbackTestCase, until
from tests.client.https_server import HttpsHomeserver, Reply, Seen

CLIENT = IPv4Address("UDP", "192.0.2.7", 5684)
PATH = "/_matrix/client/v3/a"


class UpstreamCase(LoopbackTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.server = HttpsHomeserver(None, self.answer)
        self.addCleanup(self.server.stop)

    def answer(self, seen: Seen) -> Reply | None:
        """What the homeserver answers."""
        return None if "/wait" in seen.path else Reply(body={"path": seen.path})

    def upstream(self, **settings: Any) -> Upstream:
        """A homeserver, asked as `settings` say."""
        advertisement = Advertisement(8448, "https://lb.example.com")
        upstream = Upstream(REACTOR, self.server.url + "/", advertisement=advertisement, **settings)
        self.addCleanup(upstream.close)
        return upstream

    def ask(self, upstream: Upstream, path: str = PATH, **request: Any) -> Deferred[MatrixResponse]:
        """Ask as the gateway does."""
        return upstream.dispatch(
            MatrixRequest(request.pop("method", "GET"), path.encode(), **request), CLIENT
        )


class UpstreamTests(UpstreamCase):
    async def test_what_goes_out(self) -> None:
        path = "/_matrix/client/v3/rooms/%21a%3Ab/state/t/a%2Fb%25"
        answer = await self.ask(
            self.upstream(), path, method="PUT", query=b"a=%26&b", body={"x": [1, None]}, access_token="t0ken"
        )
        self.assertEqual((answer.status, answer.body), (200, {"path": path}))
        seen, check = self.server.seen
        self.assertTrue(check.path.endswith("/whoami"))
        self.assertEqual((seen.method, seen.uri, seen.json), ("PUT", f"{path}?a=%26&b", {"x": [1, None]}))
        self.assertEqual(seen.headers["authorization"], "Bearer t0ken")
        self.assertNotIn("x-forwarded-for", seen.headers)

    async def test_the_clients_address_only_where_it_is_wanted(self) -> None:
        await self.ask(self.upstream(forwarded_for=True))
        self.assertEqual(self.server.seen[0].headers["x-forwarded-for"], "192.0.2.7")

    async def test_statuses_and_errors_are_the_homeservers(self) -> None:
        upstream = self.upstream()
        for status in (200, 201, 400, 401, 403, 404, 409, 429, 500):
            self.server.replies[PATH] = Reply(status, {"errcode": "M_X", "error": "x"})
            answer = await self.ask(upstream)
            self.assertEqual((answer.status, answer.body["errcode"]), (status, "M_X"))
        self.server.replies[PATH] = Reply(302, b"", {"Location": "/x"})
        answer = await self.ask(upstream)
        self.assertEqual((answer.status, answer.body), (302, NO_BODY))

    async def test_the_gateway_is_advertised(self) -> None:
        self.server.replies["/_matrix/client/versions"] = Reply(body={"versions": ["v1.1"]})
        answer = await self.ask(self.upstream(), "/_matrix/client/versions")
        self.assertEqual(answer.body[VERSIONS_KEY]["dtls"], 8448)

    async def test_what_coap_cannot_carry(self) -> None:
        self.server.replies[PATH] = Reply(200, b"<html>")
        answer = await self.ask(self.upstream())
        self.assertEqual((answer.status, answer.body["errcode"]), (501, "M_UNRECOGNIZED"))

    async def test_what_is_not_for_clients(self) -> None:
        upstream = self.upstream()
        for path in (
            "/_synapse/admin/v1/users",
            "/_matrix/client/../../_synapse/admin",
            "/_matrix/media/v3/config",
        ):
            answer = await self.ask(upstream, path)
            self.assertEqual((answer.status, answer.body["errcode"]), (404, "M_UNRECOGNIZED"))
        self.assertEqual((self.server.seen, upstream.counters.refused), ([], 3))

    async def test_a_request_that_http_has_no_form_for(self) -> None:
        answer = await self.ask(self.upstream(), method="PUT", body={"x": float("nan")})
        self.assertEqual(answer.status, 400)


class TroubleTests(UpstreamCase):
    async def test_the_homeserver_is_down(self) -> None:
        upstream = self.upstream()
        await self.server.stop()
        answer = await self.ask(upstream)
        self.assertEqual((answer.status, answer.body["errcode"]), (502, "M_UNKNOWN"))
        self.assertEqual(upstream.counters.failures, 1)

    async def test_the_homeserver_takes_too_long(self) -> None:
        answer = await self.ask(self.upstream(timeout=0.1), "/_matrix/client/v3/wait")
        self.assertEqual(answer.status, 504)
        await until(lambda: self.server.gone)

    async def test_the_client_goes_away(self) -> None:
        upstream = self.upstream(max_requests=1)
        waiting = self.ask(upstream, "/_matrix/client/v3/wait")
        await until(lambda: self.server.open)
        waiting.cancel()
        await self.assertFailure(waiting, CancelledError)
        await until(lambda: self.server.gone)
        self.assertEqual((await self.ask(upstream)).status, 200)

    async def test_too_much_at_once(self) -> None:
        upstream = self.upstream(max_requests=2)
        waiting = [self.ask(upstream, "/_matrix/client/v3/wait") for _ in range(2)]
        refused = await self.ask(upstream)
        self.assertEqual((refused.status, refused.retry_after), (503, 5.0))
        self.assertEqual((upstream.counters.requests, upstream.counters.busy), (2, 1))
        for each in waiting:
            each.cancel()
            await self.assertFailure(each, CancelledError)
        self.assertEqual((await self.ask(upstream)).status, 200)
