# SPDX-License-Identifier: AGPL-3.0-or-later
"""The client against a real server on loopback: requests, big bodies, tokens, time limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.internet.defer import CancelledError, gatherResults

from synapse_lb.client import NO_BODY, ClientVerification, LowBandwidthClient, MatrixResponse
from synapse_lb.client.errors import (
    AuthoritiesError,
    BadRequest,
    BadResponse,
    BadUri,
    ClientClosed,
    ConnectionLost,
    RequestTimeout,
)
from synapse_lb.coap.events import CoapRequest, CoapResponse
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits
from synapse_lb.msc3079.options import ACCESS_TOKEN, KEY_VERSION
from tests.client.harness import REACTOR, LoopbackTestCase, PlainServer, RecordingGateway, Server, until

PATH: Final = "/_matrix/client/v3/a"
"""A path without a code."""


def seen(server: Server, number: int) -> list[bytes | None]:
    """The values of an option in the requests that reached a server's gateway."""
    assert isinstance(server.handler, RecordingGateway)
    return [message.options.get(number) for message in server.handler.seen]


class RequestTests(LoopbackTestCase):
    async def test_request_and_answer(self) -> None:
        client = self.make_client(self.start_server())
        response = await client.request(
            "PUT",
            "/_matrix/client/v3/rooms/%21room:a/state/m.x/a%2Fb",
            query={"q": "ü", "r": ["1", "2"]},
            json={"type": "x", "n": 2**53},
            token="syt_a",
        )
        self.assertEqual(response.status, 200)
        self.assertEqual(
            response.body,
            {
                "method": "PUT",
                "path": "/_matrix/client/v3/rooms/!room:a/state/m.x/a%2Fb",
                "query": "q=%C3%BC&r=1&r=2",
                "token": "syt_a",
                "json": {"type": "x", "n": 2**53},
            },
        )

    async def test_path_codes(self) -> None:
        server = self.start_server()
        for path_codes, expected in ((True, (b"0",)), (False, (b"_matrix", b"client", b"versions"))):
            client = self.make_client(server, path_codes=path_codes)
            response = await client.request("GET", "/_matrix/client/versions")
            self.assertEqual(response.body["path"], "/_matrix/client/versions")
            assert isinstance(server.handler, RecordingGateway)
            self.assertEqual(server.handler.seen[-1].options.get_all(OptionNumber.URI_PATH), expected)

    async def test_no_body_and_null_differ(self) -> None:
        client = self.make_client(self.start_server())
        await client.request("POST", "/_matrix/client/v3/a")
        await client.request("POST", "/_matrix/client/v3/a", json={})
        self.assertIs(self.dispatcher.requests[0].body, NO_BODY)
        self.assertEqual(self.dispatcher.requests[1].body, {})

    async def test_errors_of_the_server_are_answers(self) -> None:
        client = self.make_client(self.start_server())
        response = await client.request("GET", "/_matrix/client/v3/missing")
        self.assertEqual(response, MatrixResponse(404, {"errcode": "M_NOT_FOUND", "error": "Not here"}))

    async def test_many_at_once_share_one_association(self) -> None:
        server = self.start_server()
        client = self.make_client(server)
        answers = await gatherResults(
            [client.request("GET", "/_matrix/client/v3/a", {"n": str(n)}) for n in range(50)]
        )
        self.assertEqual([answer.body["query"] for answer in answers], [f"n={n}" for n in range(50)])
        self.assertEqual(server.dtls.counters.handshakes_completed, 1)

    async def test_big_answer(self) -> None:
        client = self.make_client(self.start_server())
        response = await client.request("GET", "/_matrix/client/v3/big")
        self.assertEqual(response.body, {"body": "b" * 300_000})
        self.assertEqual(len(self.dispatcher.requests), 1)

    async def test_big_request(self) -> None:
        client = self.make_client(self.start_server())
        body = {"keys": {str(n): "k" * 100 for n in range(600)}}
        response = await client.request("POST", "/_matrix/client/v3/keys/upload", json=body)
        self.assertEqual(response.body["json"], body)
        self.assertEqual(len(self.dispatcher.requests), 1)

    async def test_answer_that_comes_late(self) -> None:
        client = self.make_client(self.start_server())
        waiting = client.request("GET", "/_matrix/client/v3/wait")
        await until(lambda: self.dispatcher.waiting)
        quick = await client.request("GET", "/_matrix/client/v3/a")
        self.assertEqual(quick.status, 200)
        self.assertNoResult(waiting)
        self.dispatcher.waiting[0].callback(MatrixResponse(200, {"late": True}))
        self.assertEqual((await waiting).body, {"late": True})

    async def test_ipv6(self) -> None:
        client = self.make_client(self.start_server(interface="::1"))
        info = await client.connect()
        self.assertEqual(info.address, "::1")
        self.assertEqual((await client.request("GET", "/_matrix/client/versions")).status, 200)
        traffic = client.counters
        self.assertEqual(traffic.ip_bytes_sent, traffic.bytes_sent + 48 * traffic.datagrams_sent)

    async def test_by_name(self) -> None:
        server = self.start_server()
        client = LowBandwidthClient(
            REACTOR,
            f"coaps://localhost:{server.port}",
            verification=ClientVerification.ca_file(self.certificate.path),
        )
        self.addCleanup(client.close)
        self.assertEqual((await client.request("GET", "/_matrix/client/versions")).status, 200)

    async def test_counters_agree_with_the_server(self) -> None:
        server = self.start_server()
        client = self.make_client(server)
        await client.request("GET", "/_matrix/client/v3/big")
        ours, theirs = client.counters, server.dtls.counters
        await until(lambda: theirs.datagrams_received == ours.datagrams_sent)
        self.assertEqual(
            (ours.datagrams_sent, ours.bytes_sent), (theirs.datagrams_received, theirs.bytes_received)
        )
        self.assertEqual(
            (ours.datagrams_received, ours.bytes_received), (theirs.datagrams_sent, theirs.bytes_sent)
        )
        self.assertGreater(ours.bytes_received, 300_000)
        self.assertEqual(ours.ip_bytes_received, ours.bytes_received + 28 * ours.datagrams_received)


class BadRequestTests(LoopbackTestCase):
    async def test_what_coap_cannot_carry(self) -> None:
        client = self.make_client(self.start_server())
        for method, path, body in (
            ("HEAD", "/_matrix", NO_BODY),
            ("GET", "_matrix", NO_BODY),
            ("GET", "/" + "a" * 256, NO_BODY),
            ("PUT", PATH, {"n": 2**64}),
            ("PUT", PATH, {"n": object()}),
        ):
            with self.subTest(method=method, path=path[:20]):
                await self.assertFailure(client.request(method, path, json=body), BadRequest)
        self.assertEqual(self.dispatcher.requests, [])
        self.assertEqual((await client.request("GET", PATH, token="t")).status, 200)

    def test_bad_arguments(self) -> None:
        self.assertRaises(BadUri, LowBandwidthClient, REACTOR, "ftp://h")
        self.assertRaises(ValueError, LowBandwidthClient, REACTOR, "h", key_version=2)
        missing = ClientVerification.ca_file(self.mktemp())
        self.assertRaises(AuthoritiesError, LowBandwidthClient, REACTOR, "h", verification=missing)

    async def test_too_many(self) -> None:
        client = self.make_client(self.start_server(), limits=Limits(max_exchanges_per_peer=2))
        first = [client.request("GET", "/_matrix/client/v3/wait") for _ in range(2)]
        await until(lambda: len(self.dispatcher.waiting) == 2)
        error = await self.assertFailure(client.request("GET", PATH), Exception)
        self.assertIn("too many", str(error))
        for waiting in list(self.dispatcher.waiting):
            waiting.callback(MatrixResponse(200, {}))
        await gatherResults(first)


class BadResponseTests(LoopbackTestCase):
    async def test_what_is_no_matrix_answer(self) -> None:
        for code, options, payload in (
            (0x45, Options().with_uint(OptionNumber.CONTENT_FORMAT, 60), b"\xa1"),
            (0x45, Options().with_uint(OptionNumber.CONTENT_FORMAT, 50), b"{"),
            (0x45, Options().with_uint(OptionNumber.CONTENT_FORMAT, 40), b"<a>"),
            (0x5E, Options(), b""),
        ):
            server = self.start_server(PlainServer(self._always(CoapResponse(code, options, payload))))
            client = self.make_client(server, key_version=None)
            error = await self.assertFailure(client.request("GET", "/_matrix/client/versions"), BadResponse)
            assert isinstance(error, BadResponse)
            self.assertEqual(error.code, code)

    def _always(self, response: CoapResponse) -> Callable[[CoapRequest], CoapResponse]:
        return lambda _: response


class StickyTests(LoopbackTestCase):
    async def test_token_crosses_the_wire_once(self) -> None:
        server = self.start_server()
        client = self.make_client(server)
        for _ in range(3):
            self.assertEqual((await client.request("GET", PATH, token="syt_a")).body["token"], "syt_a")
        self.assertEqual(seen(server, ACCESS_TOKEN), [b"syt_a", None, None])

    async def test_new_token(self) -> None:
        server = self.start_server()
        client = self.make_client(server)
        for token in ("syt_a", "syt_b", "syt_b", "syt_a"):
            self.assertEqual((await client.request("GET", PATH, token=token)).body["token"], token)
        self.assertEqual(seen(server, ACCESS_TOKEN), [b"syt_a", b"syt_b", None, b"syt_a"])

    async def test_overlapping_tokens_are_kept_apart(self) -> None:
        server = self.start_server()
        client = self.make_client(server)
        await client.request("GET", PATH, token="syt_a")
        waiting = client.request("GET", "/_matrix/client/v3/wait", token="syt_a")
        await until(lambda: self.dispatcher.waiting)
        answers = await gatherResults([client.request("GET", PATH, token=f"syt_{user}") for user in "babcab"])
        self.assertEqual([answer.body["token"][-1] for answer in answers], list("babcab"))
        # The first association is kept for the request that relies on its token, and closed after it.
        self.assertEqual(server.dtls.counters.handshakes_completed, 2)
        self.dispatcher.waiting[0].callback(MatrixResponse(200, {"late": True}))
        self.assertEqual((await waiting).body, {"late": True})
        await until(lambda: server.dtls.associations == 1)
        self.assertEqual((await client.request("GET", PATH, token="syt_d")).body["token"], "syt_d")
        self.assertEqual(server.dtls.counters.handshakes_completed, 2)

    async def test_unauthorized_forgets(self) -> None:
        server = self.start_server()
        client = self.make_client(server)
        for _ in range(2):
            self.assertEqual((await client.request("GET", PATH, token="ended")).status, 401)
        self.assertEqual(seen(server, ACCESS_TOKEN), [b"ended", b"ended"])

    async def test_server_that_forgot_the_token_is_told_again(self) -> None:
        server = self.start_server()
        client = self.make_client(server)
        await client.request("GET", PATH, token="syt_a")
        # Another use of the association, which ends the sticky token (an empty option 256).
        channel = client._keeper.current
        assert channel is not None
        await channel.request(CoapRequest(Code.GET, Options.of((ACCESS_TOKEN, b""), (11, b"x"))))
        response = await client.request("GET", PATH + "/private", token="syt_a")
        self.assertEqual((response.status, response.body["token"]), (200, "syt_a"))
        self.assertEqual(seen(server, ACCESS_TOKEN), [b"syt_a", b"", None, b"syt_a"])

    async def test_raw_request_with_a_token_ends_the_reliance(self) -> None:
        server = self.start_server()
        client = self.make_client(server)
        await client.request("GET", PATH, token="syt_a")
        await client.raw_request(CoapRequest(Code.GET, Options.of((ACCESS_TOKEN, b"syt_b"), (11, b"x"))))
        self.assertEqual((await client.request("GET", PATH, token="syt_a")).body["token"], "syt_a")

    async def test_key_version_crosses_the_wire_once(self) -> None:
        server = self.start_server()
        client = self.make_client(server)
        for _ in range(2):
            await client.request("GET", PATH)
        self.assertEqual(seen(server, KEY_VERSION), [b"\x01", None])

    async def test_no_key_version(self) -> None:
        server = self.start_server()
        client = self.make_client(server, key_version=None)
        await client.request("POST", PATH, json={"type": "x"})
        self.assertEqual(seen(server, KEY_VERSION), [None])
        assert isinstance(server.handler, RecordingGateway)
        self.assertIn(b"type", server.handler.seen[0].payload)

    async def test_key_version_that_is_refused(self) -> None:
        """A server that does not know option 257 must answer 4.02, and is not asked again."""
        plain = PlainServer(lambda request: CoapResponse(Code.CONTENT, Options.of((12, b"\x3c")), b"\xa0"))
        client = self.make_client(self.start_server(plain))
        for _ in range(2):
            response = await client.request("POST", PATH, json={"type": "x"}, token="syt_a")
            self.assertEqual(response, MatrixResponse(200, {}))
        self.assertEqual([KEY_VERSION in request.options for request in plain.requests], [False, False])
        self.assertEqual([b"type" in request.payload for request in plain.requests], [True, True])
        self.assertEqual(plain.endpoint.counters.datagrams_received, 3)


class EndingTests(LoopbackTestCase):
    async def test_cancelled_request_wants_no_answer(self) -> None:
        server = self.start_server()
        client = self.make_client(server)
        waiting = client.request("GET", "/_matrix/client/v3/wait/sync", {"timeout": "30000"})
        await until(lambda: self.dispatcher.waiting)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.dispatcher.waiting[0].callback(MatrixResponse(200, {"late": True}))
        assert isinstance(server.handler, RecordingGateway)
        counters = server.handler.counters
        await until(lambda: counters.undelivered == 1)
        self.assertEqual((await client.request("GET", PATH)).status, 200)

    async def test_time_limit(self) -> None:
        client = self.make_client(self.start_server())
        await self.assertFailure(
            client.request("GET", "/_matrix/client/v3/wait", timeout=0.05), RequestTimeout
        )
        self.assertEqual((await client.request("GET", PATH, timeout=30)).status, 200)

    async def test_time_limit_of_a_raw_request(self) -> None:
        client = self.make_client(self.start_server(PlainServer(lambda _: None)))
        await self.assertFailure(client.raw_request(CoapRequest(Code.GET), timeout=0.05), RequestTimeout)

    async def test_close_ends_what_is_under_way(self) -> None:
        server = self.start_server()
        client = self.make_client(server)
        waiting = client.request("GET", "/_matrix/client/v3/wait")
        await until(lambda: self.dispatcher.waiting)
        closing = client.close()
        self.failureResultOf(waiting, ConnectionLost)
        await closing
        await until(lambda: self.dispatcher.cancelled == 1)
        self.assertEqual(server.dtls.associations, 0)

    async def test_nothing_after_close(self) -> None:
        client = self.make_client(self.start_server())
        await client.close()
        await client.close()
        await self.assertFailure(client.request("GET", PATH), ClientClosed)
        await self.assertFailure(client.connect(), ClientClosed)

    async def test_close_during_the_handshake(self) -> None:
        client = self.make_client(self.start_server())
        waiting = client.request("GET", PATH)
        self.assertNoResult(waiting)
        await client.close()
        self.failureResultOf(waiting, ClientClosed)
