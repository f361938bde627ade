# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whose association it is, as the homeserver sees it: only what needs an access token shows that one is good."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.standalone import standing
from synapse_lb.standalone.standing import KNOWN_FOR, WHOAMI, KnownTokens
from tests.client.harness import until
from tests.client.https_server import Reply, Seen
from tests.standalone.test_service import ServiceCase
from tests.standalone.test_upstream import UpstreamCase

VERSIONS = "/_matrix/client/versions"
OPEN = "/_matrix/client/v3/publicRooms"
UNKNOWN = {"errcode": "M_UNKNOWN_TOKEN", "error": "no"}


class KnownTokensTests(SynchronousTestCase):
    """The table."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.tokens = KnownTokens(self.clock)

    def see(self, status: int, path: str = VERSIONS, token: str | None = "t") -> bool | None:
        request = MatrixRequest("GET", path.encode(), access_token=token)
        return self.tokens.see(request, MatrixResponse(status))

    def test_a_success_tells_nothing_by_itself(self) -> None:
        self.assertIsNone(self.see(200))
        self.assertIs(self.see(200, token=None), False)
        for status in (302, 400, 403, 404, 429, 500):
            self.assertIs(self.see(status), False)

    def test_whoami_tells(self) -> None:
        for path in (WHOAMI.decode(), "/_matrix/client/r0/account/whoami"):
            self.assertIs(self.see(200, path), True)
            self.assertIs(self.see(200), True)
            self.assertIs(self.see(200, path, None), False)
            self.assertIsNone(self.see(200, token="other"))

    def test_for_a_while(self) -> None:
        self.tokens.add("t")
        self.clock.advance(KNOWN_FOR - 1)
        self.assertIs(self.see(200), True)
        self.clock.advance(1)
        self.assertIsNone(self.see(200))

    def test_until_it_ends(self) -> None:
        for status, path in ((401, VERSIONS), (200, "/_matrix/client/v3/logout"), (200, "/x/logout/all")):
            self.tokens.add("t")
            self.assertIs(self.see(status, path), False)
            self.assertNotIn("t", self.tokens)

    def test_bounded(self) -> None:
        self.patch(standing, "MAX_KNOWN", 3)
        for token in ("a", "b", "c", "a", "d"):
            self.tokens.add(token)
        self.assertEqual([token for token in "abcd" if token in self.tokens], ["a", "c", "d"])
        self.assertEqual(len(self.tokens), 3)

    def test_no_token_is_kept(self) -> None:
        self.tokens.add("s3cret")
        self.assertNotIn("s3cret", repr(vars(self.tokens)))


class AskedTests(UpstreamCase):
    """The homeserver is asked where its answer does not tell."""

    silent = False

    def answer(self, seen: Seen) -> Reply | None:
        if seen.path.endswith("/whoami"):
            if self.silent:
                return None
            good = seen.headers.get("authorization") == "Bearer good"
            return Reply(body={"user_id": "@a:x"}) if good else Reply(401, UNKNOWN)
        return super().answer(seen)

    @property
    def asked(self) -> int:
        """How often."""
        return len([each for each in self.server.seen if each.path.endswith("/whoami")])

    async def test_a_made_up_token_shows_nothing(self) -> None:
        upstream = self.upstream()
        for _ in range(2):
            answer = await self.ask(upstream, OPEN, access_token="made-up")
            self.assertEqual((answer.status, answer.authenticated), (200, False))
        self.assertEqual((self.asked, upstream.counters.checks), (2, 2))

    async def test_a_good_one_is_asked_about_once(self) -> None:
        upstream = self.upstream(forwarded_for=True)
        for _ in range(3):
            answer = await self.ask(upstream, OPEN, access_token="good")
            self.assertEqual((answer.status, answer.authenticated), (200, True))
        self.assertEqual(self.asked, 1)
        self.assertEqual(self.server.seen[1].headers["x-forwarded-for"], "192.0.2.7")

    async def test_no_token(self) -> None:
        answer = await self.ask(self.upstream(), OPEN)
        self.assertEqual((answer.authenticated, self.asked), (False, 0))

    async def test_errors_are_not_asked_about(self) -> None:
        for status in (401, 403, 404, 500):
            self.server.replies[OPEN] = Reply(status, UNKNOWN)
            answer = await self.ask(self.upstream(), OPEN, access_token="good")
            self.assertEqual((answer.status, answer.authenticated), (status, False))
        self.assertEqual(self.asked, 0)

    async def test_a_homeserver_that_does_not_say(self) -> None:
        """The answer is the client's all the same, and so is the room of a request that is given up."""
        self.server.replies[WHOAMI.decode()] = Reply(500, b"?")
        upstream = self.upstream(max_requests=1)
        for _ in range(2):
            answer = await self.ask(upstream, OPEN, access_token="good")
            self.assertEqual((answer.status, answer.authenticated), (200, False))

    async def test_a_client_that_goes_meanwhile(self) -> None:
        self.silent = True
        upstream = self.upstream(max_requests=1)
        waiting = self.ask(upstream, OPEN, access_token="good")
        await until(lambda: self.asked == 1)
        refused = await self.ask(upstream, OPEN)
        self.assertEqual(refused.status, 503)
        waiting.cancel()
        await self.assertFailure(waiting, CancelledError)
        await until(lambda: self.server.gone)
        self.assertEqual((await self.ask(upstream, OPEN)).status, 200)


class ServiceTests(ServiceCase):
    """Through the gateway as a whole."""

    async def test_strangers_and_others(self) -> None:
        self.homeserver.replies[WHOAMI.decode()] = Reply(401, UNKNOWN)
        service = self.service()
        client = self.asking(f"coaps://127.0.0.1:{service.port}")
        self.assertEqual((await client.request("GET", VERSIONS, token="made-up")).status, 200)
        self.assertEqual(len(service._dtls._strangers), 1)
        self.homeserver.replies[WHOAMI.decode()] = Reply(body={"user_id": "@alice:x"})
        self.assertEqual((await client.request("GET", VERSIONS, token="t0ken")).status, 200)
        self.assertEqual(len(service._dtls._strangers), 0)

    async def x1(self, **settings: Any) -> tuple[bool | None, Any]:
        """What a client that asks `/versions` finds out, and what it is answered then."""
        self.homeserver.replies[VERSIONS] = Reply(body={"versions": ["v1.1"]})
        service = self.service(**settings)
        client = self.asking(f"coaps://127.0.0.1:{service.port}")
        await client.request("GET", VERSIONS)
        sizes = []
        path = "/_matrix/client/v3/rooms/!OGEhHVWSdvArJzumhm:example.org/state"
        for _ in range(2):
            before = service._dtls.counters.bytes_received
            answer = await client.request("GET", path, token="t0ken")
            sizes.append(service._dtls.counters.bytes_received - before)
        self.assertEqual(self.homeserver.seen[-1].path, path)
        self.assertEqual(answer.body["over"], "http")
        return client.speaks_x1, sizes

    async def test_x1(self) -> None:
        """It is advertised, and served: the room's alias stands alone in the second request."""
        speaks, sizes = await self.x1()
        self.assertTrue(speaks)
        self.assertLess(sizes[1], sizes[0] - len("OGEhHVWSdvArJzumhm"))
        speaks, without = await self.x1(x1=False)
        self.assertFalse(speaks)
        self.assertLess(sizes[1], without[1])
