# SPDX-License-Identifier: AGPL-3.0-or-later
"""Discovery: `/.well-known/matrix/client` and `/versions`, what is kept of them, and what is refused."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.client import ClientVerification
from synapse_lb.client.discovery import VERSIONS, WELL_KNOWN, Discovered, Discovery, home_of
from synapse_lb.client.errors import BadUri, DiscoveryError
from synapse_lb.client.uri import CoapUri
from tests.client.harness import REACTOR, LoopbackTestCase, until
from tests.client.https_server import ADVERTISED, HttpsHomeserver, Reply, write


class HomeTests(SynchronousTestCase):
    def test_addresses(self) -> None:
        for given, home in (
            ("https://example.com", "https://example.com"),
            ("HTTPS://example.com/", "HTTPS://example.com"),
            ("https://example.com:8448", "https://example.com:8448"),
            ("https://[::1]:8448", "https://[::1]:8448"),
            ("@alice:example.com", "https://example.com"),
            ("@alice:example.com:8448", "https://example.com:8448"),
            ("http://localhost:8008", "http://localhost:8008"),
            ("http://[::1]:8008", "http://[::1]:8008"),
        ):
            self.assertEqual(home_of(given), home)

    def test_coap(self) -> None:
        for given in ("coaps://example.com", "example.com", "example.com:8448", "[::1]:8448", "ftp://h"):
            self.assertIsNone(home_of(given))

    def test_refused(self) -> None:
        for given in (
            "http://example.com",
            "https://",
            "https://a b",
            "https://example.com?a",
            "https://example.com#a",
            "https://alice@example.com",
            "https://example.com:0",
            "https://example.com:70000",
            "https://[::1",
            "https://exämple.com",
            "@alice",
            "@alice:",
        ):
            with self.subTest(given=given):
                self.assertRaises(BadUri, home_of, given)


class DiscoveryCase(LoopbackTestCase):
    timeout = 25  # less than a look-up may take

    def setUp(self) -> None:
        super().setUp()
        self.server = self.homeserver()

    def homeserver(self, *, tls: bool = True) -> HttpsHomeserver:
        """Start one."""
        server = HttpsHomeserver(self.certificate if tls else None)
        self.addCleanup(server.stop)
        return server

    def discovery(self, **settings: Any) -> Discovery:
        """One that trusts the servers."""
        verification = ClientVerification.ca_file(self.certificate.path)
        discovery = Discovery(REACTOR, verification=verification, **settings)
        self.addCleanup(discovery.close)
        return discovery

    async def refused(self, text: str) -> None:
        """What the server says must not be usable."""
        with self.assertRaises(DiscoveryError) as caught:
            await self.discovery().look_up(self.server.url)
        self.assertIn(text, str(caught.exception))


class LookUpTests(DiscoveryCase):
    async def test_the_server_itself(self) -> None:
        self.server.advertise(5684)
        found = await self.discovery().look_up(self.server.url)
        self.assertEqual((found.base_url, found.coap), (self.server.url, CoapUri("coaps", "127.0.0.1", 5684)))
        self.assertEqual(found.features["observe"], 1)
        self.assertEqual(self.server.discovered, [WELL_KNOWN, VERSIONS])

    async def test_the_server_that_well_known_names(self) -> None:
        other = self.homeserver()
        other.advertise(1234)
        self.server.replies[WELL_KNOWN] = Reply(body={"m.homeserver": {"base_url": other.url + "/"}})
        found = await self.discovery().look_up(self.server.url)
        self.assertEqual((found.base_url, found.coap), (other.url, CoapUri("coaps", "127.0.0.1", 1234)))
        self.assertEqual(self.server.discovered + other.discovered, [WELL_KNOWN, VERSIONS])

    async def test_a_base_url_with_a_path(self) -> None:
        url = self.server.url + "/matrix"
        self.server.replies[WELL_KNOWN] = Reply(body={"m.homeserver": {"base_url": url}})
        self.server.replies["/matrix" + VERSIONS] = Reply(body={"versions": []})
        self.assertEqual((await self.discovery().look_up(self.server.url)).base_url, url)

    async def test_well_known_by_way_of_redirects(self) -> None:
        self.server.replies["/there"] = Reply(body={"m.homeserver": {"base_url": self.server.url}})
        self.server.replies["/here"] = Reply(302, b"", {"Location": self.server.url + "/there"})
        self.server.replies[WELL_KNOWN] = Reply(301, b"", {"Location": "/here"})
        self.assertEqual((await self.discovery().look_up(self.server.url)).base_url, self.server.url)

    async def test_redirects_in_a_circle(self) -> None:
        self.server.replies[WELL_KNOWN] = Reply(301, b"", {"Location": WELL_KNOWN})
        await self.refused("HTTP status 301")

    async def test_the_stable_name(self) -> None:
        body = {"versions": [], "m.low_bandwidth": {"dtls": 1}, ADVERTISED: {"dtls": 2}}
        self.server.replies[VERSIONS] = Reply(body=body)
        found = await self.discovery().look_up(self.server.url)
        self.assertEqual(found.coap, CoapUri("coaps", "127.0.0.1", 1))

    async def test_no_low_bandwidth(self) -> None:
        for advertised in (None, 5684, {}, {"dtls": "5684"}, {"dtls": True}, {"dtls": 0}, {"dtls": 65536}):
            self.server.replies[VERSIONS] = Reply(body={"versions": [], ADVERTISED: advertised})
            found = await self.discovery().look_up(self.server.url)
            self.assertEqual(found, Discovered(self.server.url, None))


class RefusedTests(DiscoveryCase):
    async def test_well_known_makes_no_sense(self) -> None:
        nonsense: list[Any] = [b"", b"<html>", b"[" * 10_000, [], {}]
        for body in (*nonsense, {"m.homeserver": 1}, {"m.homeserver": {"base_url": 1}}):
            self.server.replies[WELL_KNOWN] = Reply(body=body)
            await self.refused("names no homeserver")

    async def test_well_known_fails(self) -> None:
        self.server.replies[WELL_KNOWN] = Reply(500)
        await self.refused("HTTP status 500")

    async def test_not_over_https(self) -> None:
        url = "http://example.com"
        self.server.replies[WELL_KNOWN] = Reply(body={"m.homeserver": {"base_url": url}})
        await self.refused("not HTTPS")
        self.server.replies[WELL_KNOWN] = Reply(302, b"", {"Location": url})
        await self.refused("not HTTPS")

    async def test_no_url(self) -> None:
        for url in ("", "example.com", "https://", "https://a?b", "https://a:b", "https://a@b", "https://ä"):
            self.server.replies[WELL_KNOWN] = Reply(body={"m.homeserver": {"base_url": url}})
            await self.refused("UR" if url not in ("", "example.com") else "")

    async def test_a_redirect_to_no_url(self) -> None:
        self.server.replies[WELL_KNOWN] = Reply(302, b"", {"Location": "//["})
        await self.refused("leads nowhere")

    async def test_no_homeserver(self) -> None:
        for reply in (Reply(404), Reply(body=b"<html>"), Reply(body=[]), Reply(body={"versions": 1})):
            self.server.replies[VERSIONS] = reply
            await self.refused("is no homeserver")

    async def test_too_much(self) -> None:
        self.server.replies[VERSIONS] = Reply(body=b'{"versions": []' + b" " * 300_000 + b"}")
        await self.refused("more than 262144 bytes")

    async def test_nobody_there(self) -> None:
        await self.server.stop()
        await self.refused("cannot be asked")

    async def test_the_wrong_one(self) -> None:
        discovery = Discovery(REACTOR)
        self.addCleanup(discovery.close)
        with self.assertRaises(DiscoveryError) as caught:
            await discovery.look_up(self.server.url)
        self.assertIn("certificate", str(caught.exception))


class KeptTests(DiscoveryCase):
    async def test_what_is_known_is_not_asked_for(self) -> None:
        discovery = self.discovery()
        first = await discovery.look_up(self.server.url)
        self.assertIs(self.successResultOf(discovery.look_up(self.server.url)), first)
        self.assertEqual(len(self.server.discovered), 2)
        self.assertEqual((discovery.counters.asked, discovery.counters.cached), (1, 1))

    async def test_it_grows_old(self) -> None:
        discovery = self.discovery(lifetime=0.0)
        for _ in range(2):
            await discovery.look_up(self.server.url)
        self.assertEqual(discovery.counters.asked, 2)

    async def test_it_can_be_forgotten(self) -> None:
        discovery = self.discovery()
        await discovery.look_up(self.server.url)
        discovery.forget(self.server.url)
        await discovery.look_up(self.server.url)
        self.assertEqual(discovery.counters.asked, 2)

    async def test_a_failure_is_not_kept(self) -> None:
        discovery = self.discovery()
        self.server.replies[WELL_KNOWN] = Reply(500)
        await self.assertFailure(discovery.look_up(self.server.url), DiscoveryError)
        self.server.replies[WELL_KNOWN] = Reply(404)
        await discovery.look_up(self.server.url)
        self.assertEqual((discovery.counters.asked, discovery.counters.failed), (2, 1))

    async def test_only_so_many(self) -> None:
        discovery = self.discovery(max_servers=2)
        servers = [self.server, self.homeserver(tls=False), self.homeserver()]
        # The first is plain HTTP on the own machine, which is good enough for a look-up that begins there.
        for server in (*servers[:2], servers[0], servers[2], servers[0]):
            await discovery.look_up(server.url)
        self.assertEqual((discovery.counters.asked, discovery.counters.evicted), (3, 1))
        await discovery.look_up(servers[1].url)
        self.assertEqual(discovery.counters.asked, 4)

    async def test_two_at_once(self) -> None:
        discovery = self.discovery()
        first, second = discovery.look_up(self.server.url), discovery.look_up(self.server.url)
        self.assertIs(await first, await second)
        self.assertEqual((discovery.counters.asked, discovery.counters.shared), (1, 1))

    async def test_one_of_two_is_cancelled(self) -> None:
        discovery = self.discovery()
        first, second = discovery.look_up(self.server.url), discovery.look_up(self.server.url)
        first.cancel()
        await self.assertFailure(first, CancelledError)
        self.assertEqual((await second).base_url, self.server.url)

    async def test_all_are_cancelled(self) -> None:
        del self.server.replies[VERSIONS]
        self.server._answer = lambda seen: None
        discovery = self.discovery()
        only = discovery.look_up(self.server.url)
        await until(lambda: self.server.open)
        only.cancel()
        await self.assertFailure(only, CancelledError)
        await until(lambda: self.server.gone)
        again = discovery.look_up(self.server.url)
        await until(lambda: self.server.open)
        write(self.server.open[0], Reply(body={"versions": []}))
        self.assertIsNone((await again).coap)
