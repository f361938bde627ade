# SPDX-License-Identifier: AGPL-3.0-or-later
"""The section ``dispatch``, and the dispatcher that comes of it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from synapse.module_api.errors import ConfigError
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.client.errors import BadRequest
from synapse_lb.client.https import HttpsTransport
from synapse_lb.client.sockets import path_of, url_of
from synapse_lb.homeserver import hooks, routing
from synapse_lb.homeserver.config import parse_listener
from synapse_lb.homeserver.routes import Route
from synapse_lb.homeserver.routing_config import DispatchConfig
from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.server.dispatcher import Address
from synapse_lb.testing.throwaway_process import short_home
from synapse_lb.txdtls.context import ClientVerification
from tests.client.harness import REACTOR, Certificate, LoopbackTestCase, until
from tests.client.https_server import HttpsHomeserver, Reply, Seen

CLIENT = IPv4Address("UDP", "192.0.2.7", 5684)
V3 = "/_matrix/client/v3"


def parsed(**section: Any) -> DispatchConfig:
    """The section of a listener."""
    return parse_listener(2, {"type": "lowbandwidth", "port": 8008, "dispatch": section}).dispatch


class ConfigTests(SynchronousTestCase):
    """What an admin may write."""

    def refused(self, *path: str, **section: Any) -> str:
        """What is said of a section that is wrong at a place."""
        error = self.assertRaises(ConfigError, parsed, **section)
        self.assertEqual(tuple(error.path or ()), ("listeners", "2", "dispatch", *path))
        return str(error.msg)

    def test_nothing(self) -> None:
        self.assertEqual(parsed(), DispatchConfig())
        self.assertFalse(parsed(timeout=5))

    def test_everything(self) -> None:
        config = parsed(
            instances={"main": "http://127.0.0.1:8008/", "b": "https://[::1]:80"},
            routes=[{"path": "^/x$", "methods": ["GET"], "instance": "b"}, {"path": "y", "instance": "c"}],
            timeout="30s",
            max_requests=7,
        )
        self.assertEqual(
            config,
            DispatchConfig(
                instances={"main": "http://127.0.0.1:8008", "b": "https://[::1]:80"},
                routes=(
                    Route(re.compile("^/x$"), frozenset({"GET"}), "b"),
                    Route(re.compile("y"), None, "c"),
                ),
                timeout=30.0,
                max_requests=7,
            ),
        )
        self.assertTrue(config)

    def test_unix_sockets_and_authorities(self) -> None:
        config = parsed(
            instances={"main": "unix:/run/synapse/main.sock", "b": "https://b:8443"},
            tls_ca_path="/etc/ca.pem",
        )
        self.assertEqual(config.tls_ca_path, "/etc/ca.pem")
        self.assertEqual(
            path_of(config.instances["main"].partition("://")[2].encode()), "/run/synapse/main.sock"
        )
        longest = "/" + "ü" * 53
        host = parsed(instances={"main": f"unix:{longest}"}).instances["main"].partition("://")[2]
        self.assertEqual(path_of(host.encode()), longest)
        self.assertLessEqual(max(map(len, host.split("."))), 63)
        for path in ("", "main.sock", "//host" + "y" * 108, "/" + "ü" * 54, "/run/", "/a\0b", "/a\nb"):
            said = self.refused("instances", instances={"main": f"unix:{path}"})
            self.assertIn("'main'", said)
            self.assertIn("socket", said)
        self.assertIn("https", self.refused("tls_ca_path", instances={"main": "http://x"}, tls_ca_path="/x"))
        self.assertIn("text", self.refused("tls_ca_path", instances={"main": "https://x"}, tls_ca_path=5))

    def test_mistakes(self) -> None:
        there = {"main": "http://127.0.0.1:8008"}
        self.assertIn("mapping", self.refused("instances", instances=["http://x"]))
        for url in ("127.0.0.1:8008", "ftp://x", "http://x/path", "http://x:y", 8008, "http://u:p@x"):
            self.assertIn("'main'", self.refused("instances", instances={"main": url}))
        self.assertIn("no process", self.refused("instances", routes=[{"path": "x", "instance": "a"}]))
        self.assertIn("list", self.refused("routes", instances=there, routes={}))
        self.assertIn(
            "regular",
            self.refused("routes", "0", "path", instances=there, routes=[{"path": "(", "instance": "a"}]),
        )
        self.assertIn(
            "missing", self.refused("routes", "0", "path", instances=there, routes=[{"instance": "a"}])
        )
        self.assertIn(
            "missing", self.refused("routes", "0", "instance", instances=there, routes=[{"path": "x"}])
        )
        for methods in (["get"], [], "GET"):
            route = {"path": "x", "instance": "a", "methods": methods}
            self.assertIn("must be", self.refused("routes", "0", "methods", instances=there, routes=[route]))
        extra: dict[str, Any] = {"path": "x", "instance": "a", "to": 1}
        self.assertIn("unknown", self.refused("routes", "0", "to", instances=there, routes=[extra]))
        self.refused("timeout", timeout=0)
        self.refused("max_requests", max_requests=0)
        self.assertIn("unknown option", self.refused("main", main="http://127.0.0.1:8008"))

    def test_sharing_a_port(self) -> None:
        listener = {"type": "lowbandwidth", "port": 8008}
        config = parse_listener(0, {**listener, "reuse_port": True, "handover_path": "/run/x"})
        self.assertEqual((config.reuse_port, config.handover_path), (True, "/run/x"))
        error = self.assertRaises(ConfigError, parse_listener, 0, {**listener, "handover_path": "/run/x"})
        self.assertIn("reuse_port", error.msg)


class FakeHomeserver:
    """As much of a `hooks.Homeserver` as routing looks at."""

    reactor = REACTOR

    def __init__(self, own: str, **writers: list[str]) -> None:
        self.instance_name = own
        self._writers = writers

    def writers(self, stream: str) -> list[str]:
        return self._writers.get(stream, ["main"])


def homeserver(own: str = "here", **writers: list[str]) -> hooks.Homeserver:
    """A worker, and who writes what."""
    return cast(hooks.Homeserver, FakeHomeserver(own, **writers))


class CheckTests(SynchronousTestCase):
    """Whether every process is there that is needed."""

    def refused(self, config: DispatchConfig, at: hooks.Homeserver) -> ConfigError:
        """What is said of it."""
        with self.assertRaises(ConfigError) as caught:
            routing.check(at, config, ("listeners", "0", "dispatch"))
        error: ConfigError = caught.exception
        return error

    def test_all_is_there(self) -> None:
        routing.check(homeserver(typing=["far"]), DispatchConfig(), ())
        config = parsed(instances={"main": "http://x"}, routes=[{"path": "x", "instance": "here"}])
        routing.check(homeserver(), config, ())

    def test_a_route_to_nowhere(self) -> None:
        config = parsed(instances={"main": "http://x"}, routes=[{"path": "x", "instance": "far"}])
        error = self.refused(config, homeserver())
        self.assertEqual(tuple(error.path or ())[-3:], ("routes", "0", "instance"))

    def test_authorities_that_cannot_be_used(self) -> None:
        broken = self.mktemp()
        Path(broken).write_text("no certificate")
        for path in (broken, self.mktemp()):
            error = self.refused(parsed(instances={"main": "https://x"}, tls_ca_path=path), homeserver())
            self.assertEqual(tuple(error.path or ())[-1], "tls_ca_path")
            self.assertIn(path, error.msg)

    def test_a_writer_that_cannot_be_reached(self) -> None:
        error = self.refused(parsed(instances={"main": "http://x"}), homeserver(typing=["far"]))
        self.assertIn("'far'", error.msg)
        self.assertIn("'typing'", error.msg)


class Local:
    """What this process serves: 'everything with 'own' in it."""

    def __init__(self) -> None:
        self.served: list[MatrixRequest] = []

    def serves(self, method: str, path: bytes) -> bool:
        return b"own" in path

    def dispatch(self, request: MatrixRequest, client: Address) -> Deferred[MatrixResponse]:
        self.served.append(request)
        return succeed(MatrixResponse(200, {}, authenticated=True))


class DispatchTests(LoopbackTestCase):
    """Requests and their answers."""

    def setUp(self) -> None:
        super().setUp()
        self.main = HttpsHomeserver(None, self.answer)
        self.addCleanup(self.main.stop)
        self.local = Local()

    def answer(self, seen: Seen) -> Reply | None:
        """What the main process answers."""
        return None if "/wait" in seen.path else Reply(body={"path": seen.path})

    def routing(self, **section: Any) -> routing.RoutingDispatcher:
        """A dispatcher of a worker."""
        config = parsed(instances={"main": self.main.url}, **section)
        made = routing.build(homeserver(), config, self.local)
        self.addCleanup(made.upstream.close)
        return made

    async def test_here_and_there(self) -> None:
        dispatcher = self.routing()
        here = await dispatcher.dispatch(MatrixRequest("GET", f"{V3}/own".encode()), CLIENT)
        self.assertEqual((here.authenticated, self.main.seen), (True, []))
        request = MatrixRequest("POST", f"{V3}/there".encode(), b"a=%20", {"x": 1}, "t0ken")
        there = await dispatcher.dispatch(request, CLIENT)
        self.assertEqual((there.status, there.body), (200, {"path": f"{V3}/there"}))
        (seen,) = self.main.seen
        self.assertEqual((seen.uri, seen.json), (f"{V3}/there?a=%20", {"x": 1}))
        self.assertEqual(seen.headers["authorization"], "Bearer t0ken")
        self.assertEqual(seen.headers["x-forwarded-for"], "192.0.2.7")
        self.assertEqual(seen.headers["x-forwarded-proto"], "https")
        self.assertEqual(len(self.local.served), 1)

    async def test_an_answer_over_http_makes_no_stranger_known(self) -> None:
        """The servlet may not have looked at the token at all."""
        answer = await self.routing().dispatch(
            MatrixRequest("GET", f"{V3}/there".encode(), access_token="anything"), CLIENT
        )
        self.assertIs(answer.authenticated, False)

    async def test_errors_are_those_of_the_other_process(self) -> None:
        error = {"errcode": "M_UNKNOWN_TOKEN", "error": "x", "soft_logout": True}
        self.main.replies[f"{V3}/there"] = Reply(401, error)
        answer = await self.routing().dispatch(MatrixRequest("GET", f"{V3}/there".encode()), CLIENT)
        self.assertEqual((answer.status, answer.body), (401, error))

    async def test_a_client_that_goes_away(self) -> None:
        asked = self.routing().dispatch(MatrixRequest("GET", f"{V3}/wait".encode()), CLIENT)
        await until(lambda: self.main.open)
        asked.cancel()
        await self.assertFailure(asked, CancelledError)
        await until(lambda: self.main.gone)

    async def test_bounds(self) -> None:
        dispatcher = self.routing(max_requests=1, timeout=0.2)
        waiting = dispatcher.dispatch(MatrixRequest("GET", f"{V3}/wait".encode()), CLIENT)
        busy = await dispatcher.dispatch(MatrixRequest("GET", f"{V3}/there".encode()), CLIENT)
        self.assertEqual((busy.status, busy.retry_after), (503, 5.0))
        self.assertEqual((await waiting).status, 504)
        counted = dispatcher.upstream.counters
        self.assertEqual((counted.requests, counted.busy, counted.failures), (1, 1, 1))

    async def test_a_process_that_is_down(self) -> None:
        dispatcher = self.routing()
        await self.main.stop()
        gone = await dispatcher.dispatch(MatrixRequest("GET", f"{V3}/there".encode()), CLIENT)
        self.assertEqual((gone.status, dispatcher.upstream.counters.failures), (502, 1))


def saying(name: str) -> Callable[[Seen], Reply]:
    """Answers with a name."""
    return lambda _: Reply(body={"by": name})


class PlaceTests(LoopbackTestCase):
    """Where other processes may be."""

    async def ask(self, url: str, path: str = "/there", **section: Any) -> MatrixResponse:
        """What the main process at a URL answers."""
        dispatcher = routing.build(homeserver(), parsed(instances={"main": url}, **section), Local())
        try:
            request = MatrixRequest("POST", f"{V3}{path}".encode(), b"a=%20", {"x": 1}, "t0ken")
            return await dispatcher.dispatch(request, CLIENT)
        finally:
            await dispatcher.upstream.close()

    async def test_a_unix_socket(self) -> None:
        with tempfile.TemporaryDirectory(prefix="slb-t-", dir=short_home()) as folder:
            main = HttpsHomeserver(
                None, lambda seen: Reply(body={"path": seen.path}), path=f"{folder}/Main.sock"
            )
            try:
                answer = await self.ask(main.url)
                self.assertEqual((answer.status, answer.body), (200, {"path": f"{V3}/there"}))
                (seen,) = main.seen
                self.assertEqual((seen.uri, seen.json), (f"{V3}/there?a=%20", {"x": 1}))
                self.assertEqual(seen.headers["authorization"], "Bearer t0ken")
                self.assertEqual(seen.headers["x-forwarded-for"], "192.0.2.7")
                self.assertEqual(seen.headers["host"], "localhost")
            finally:
                await main.stop()
            self.assertEqual((await self.ask(main.url)).status, 502)

    async def test_several_unix_sockets_and_connections_that_are_kept(self) -> None:
        with tempfile.TemporaryDirectory(prefix="slb-t-", dir=short_home()) as folder:
            servers = {
                name: HttpsHomeserver(None, saying(name), path=f"{folder}/{name}")
                for name in ("main", "other")
            }
            routes = [{"path": f"^{V3}/far", "instance": "other"}]
            config = parsed(instances={name: each.url for name, each in servers.items()}, routes=routes)
            dispatcher = routing.build(homeserver(), config, Local())
            try:
                for path, by in (("/there", "main"), ("/far", "other")) * 2:
                    answer = await dispatcher.dispatch(MatrixRequest("GET", f"{V3}{path}".encode()), CLIENT)
                    self.assertEqual(answer.body, {"by": by})
                self.assertEqual([each.connections for each in servers.values()], [1, 1])
            finally:
                await dispatcher.upstream.close()
                for each in servers.values():
                    await each.stop()

    async def test_authorities_of_ones_own(self) -> None:
        certificate = Certificate()
        self.addCleanup(certificate.remove)
        main = HttpsHomeserver(certificate)
        try:
            self.assertEqual((await self.ask(main.url)).status, 502)
            answer = await self.ask(main.url, tls_ca_path=certificate.path)
            self.assertEqual((answer.status, answer.body), (200, {"over": "https"}))
            self.assertEqual(len(main.seen), 1)
        finally:
            await main.stop()

    async def test_other_urls_are_none_of_a_unix_socket(self) -> None:
        """A client of any other kind does not go to Unix sockets, whatever it is told."""
        transport = HttpsTransport(REACTOR, ClientVerification.system())
        with self.assertRaises(BadRequest):
            await transport.fetch("GET", f"{url_of('/run/x.sock')}/")


class InstanceTests(SynchronousTestCase):
    """What Synapse calls its processes."""

    def test_the_main_process_has_two_names(self) -> None:
        hs = SimpleNamespace(
            get_instance_name=lambda: "master",
            config=SimpleNamespace(worker=SimpleNamespace(writers=SimpleNamespace(typing=["master", "b"]))),
        )
        found = object.__new__(hooks.Homeserver)
        vars(found)["_hs"] = hs
        self.assertEqual(found.instance_name, "main")
        self.assertEqual(found.writers("typing"), ["main", "b"])
        self.assertEqual(found.writers("of the future"), [])
