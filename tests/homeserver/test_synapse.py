# SPDX-License-Identifier: AGPL-3.0-or-later
"""A real Synapse behind the listener: what its servlets answer, what its logs and metrics show of it."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Callable
from typing import Any, ClassVar

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from synapse_lb.client import NO_BODY, ClientVerification, LowBandwidthClient, MatrixResponse
from synapse_lb.client.errors import ConnectionLost
from synapse_lb.testing.throwaway import ThrowawayHomeserver, free_ports
from synapse_lb.txdtls.certificates import generate_self_signed, sha256_fingerprint

REACTOR: Any = reactor
V3 = "/_matrix/client/v3"
PATIENCE = 10.0
"""Seconds that something which happens soon is waited for."""


async def until(happened: Callable[[], Any]) -> Any:
    """Wait until something is true, and return it."""
    for _ in range(int(PATIENCE / 0.02)):
        result = happened()
        if result:
            return result
        await deferLater(REACTOR, 0.02)
    raise AssertionError(f"it has not happened: {happened}")


class SynapseTestCase(TestCase):
    """Starts one homeserver for all tests of the class; `ThrowawayHomeserver` stops it when Python ends."""

    running: ClassVar[dict[type, ThrowawayHomeserver]] = {}

    def setUp(self) -> None:
        super().setUp()
        homeserver = self.running.get(type(self))
        if homeserver is None:
            homeserver = self.running[type(self)] = ThrowawayHomeserver(**self.options())
            homeserver.start()
        self.homeserver = homeserver

    def options(self) -> dict[str, Any]:
        """What the homeserver is made with."""
        return {}

    def client(self) -> LowBandwidthClient:
        """A new client of the homeserver, closed after the test."""
        client = LowBandwidthClient(
            REACTOR, self.homeserver.coaps_url, verification=ClientVerification.none()
        )
        self.addCleanup(client.close)
        return client

    def access_lines(self, path: str) -> list[str]:
        """The lines of the access log for a path."""
        return [
            line
            for line in self.homeserver.log_text().splitlines()
            if "synapse.access.coap" in line and "Processed request" in line and f" {path}" in line
        ]


class ServingTests(SynapseTestCase):
    """Requests and their answers."""

    def options(self) -> dict[str, Any]:
        return {
            "presence": False,  # Its changes would end long polls.
            "extra_config": {
                "cas_config": {"enabled": True, "server_url": "https://cas.invalid"},
                "rc_login": {"address": {"per_second": 0.01, "burst_count": 3}},
            },
        }

    async def ask(
        self, method: str, path: str, json: Any = NO_BODY, token: str | None = None
    ) -> MatrixResponse:
        """One request of a client of its own."""
        return await self.client().request(method, path, json=json, token=token)

    async def test_versions_over_http_and_coap_alike(self) -> None:
        status, over_http = self.homeserver.request("GET", "/_matrix/client/versions")
        response = await self.ask("GET", "/_matrix/client/versions")
        self.assertEqual((response.status, response.body), (status, over_http))
        self.assertEqual(
            over_http["org.matrix.msc3079.low_bandwidth"],
            {
                "dtls": self.homeserver.ports.lowbandwidth,
                "cbor_enum_version": 1,
                "coap_enum_version": 1,
                "observe": 1,
                "q_block": 1,
                "x1": 1,
            },
        )

    async def test_well_known(self) -> None:
        response = await self.ask("GET", "/.well-known/matrix/client")
        self.assertEqual(response.body, {"m.homeserver": {"base_url": self.homeserver.http_url + "/"}})

    async def test_errors_are_those_of_http(self) -> None:
        for method, path, json, token in (
            ("GET", f"{V3}/sync", NO_BODY, None),
            ("GET", f"{V3}/sync", NO_BODY, "nobody's"),
            ("GET", f"{V3}/nothing", NO_BODY, None),
            ("PUT", f"{V3}/login", {}, None),
            ("POST", f"{V3}/register", {"username": "x"}, None),
            ("POST", f"{V3}/register", ["no object"], None),
            ("POST", f"{V3}/createRoom", {}, None),
        ):
            status, body = self.homeserver.request(method, path, None if json is NO_BODY else json, token)
            response = await self.ask(method, path, json, token)
            expected, got = dict(body), dict(response.body)
            if expected.pop("session", None) is not None:
                self.assertIsInstance(got.pop("session"), str)
            self.assertEqual((response.status, got), (status, expected), f"{method} {path}")

    async def test_a_body_is_needed(self) -> None:
        response = await self.ask("POST", f"{V3}/login")
        self.assertEqual((response.status, response.body["errcode"]), (400, "M_NOT_JSON"))

    async def test_a_redirect(self) -> None:
        response = await self.ask("GET", f"{V3}/login/sso/redirect?redirectUrl=https://x.invalid")
        self.assertEqual((response.status, response.body["errcode"]), (501, "M_UNRECOGNIZED"))
        self.assertIn("a redirect, which CoAP cannot carry", response.body["error"])

    async def test_a_web_page(self) -> None:
        response = await self.ask("GET", f"{V3}/auth/m.login.sso/fallback/web?session=none")
        self.assertEqual(
            response.body["errcode"], "M_UNRECOGNIZED" if response.status == 501 else "M_UNKNOWN"
        )
        response = await self.ask("GET", f"{V3}/login/cas/ticket?ticket=none&redirectUrl=https://x.invalid")
        self.assertGreaterEqual(response.status, 400)
        self.assertEqual(set(response.body), {"errcode", "error"})

    async def test_media(self) -> None:
        token = self.homeserver.register("media")["access_token"]
        path = "/_matrix/client/v1/media/download/example.invalid/abc"
        response = await self.ask("GET", path, token=token)
        self.assertEqual((response.status, response.body["errcode"]), (501, "M_UNRECOGNIZED"))
        self.assertIn("media, which CoAP cannot carry", response.body["error"])
        config = await self.ask("GET", "/_matrix/client/v1/media/config", token=token)
        self.assertIn("m.upload.size", config.body)

    async def test_too_many_requests(self) -> None:
        client = self.client()
        wrong = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": "x"},
            "password": "y",
        }
        for _ in range(10):
            response = await client.request("POST", f"{V3}/login", json=wrong)
            if response.status == 429:
                break
        self.assertEqual((response.status, response.body["errcode"]), (429, "M_LIMIT_EXCEEDED"))
        self.assertGreater(response.retry_after or 0, 0)

    async def test_a_body_over_the_limit_of_the_endpoint(self) -> None:
        token = self.homeserver.register("large")["access_token"]
        response = await self.ask("POST", f"{V3}/createRoom", {"topic": "x" * (1 << 20)}, token=token)
        self.assertEqual(response.status, 413)

    async def test_a_room_with_its_messages(self) -> None:
        user = self.homeserver.register("alice")
        client = self.client()
        token = user["access_token"]
        room = (await client.request("POST", f"{V3}/createRoom", json={"name": "Ünïcode"}, token=token)).body
        path = f"{V3}/rooms/{room['room_id']}/send/m.room.message/1"
        content = {"msgtype": "m.text", "body": "Hello World"}
        sent = await client.request("PUT", path, json=content, token=token)
        again = await client.request("PUT", path, json=content, token=token)
        self.assertEqual((sent.status, sent.body), (200, again.body))
        # A state key with a slash, and an empty one.
        for key in ("a%2Fb", ""):
            state = f"{V3}/rooms/{room['room_id']}/state/org.example/{key}"
            self.assertEqual((await client.request("PUT", state, json={"k": key}, token=token)).status, 200)
            self.assertEqual((await client.request("GET", state, token=token)).body, {"k": key})
        messages = await client.request(
            "GET", f"{V3}/rooms/{room['room_id']}/messages", {"dir": "b", "limit": "50"}, token=token
        )
        status, over_http = self.homeserver.request(
            "GET", f"{V3}/rooms/{room['room_id']}/messages?dir=b&limit=50", token=token
        )
        self.assertEqual(status, 200)
        for events in (messages.body["chunk"], over_http["chunk"]):
            for event in events:
                event.pop("age", None)
                event["unsigned"].pop("age", None)
        self.assertEqual(messages.body, over_http)
        self.assertIn("Hello World", [event["content"].get("body") for event in messages.body["chunk"]])

    async def test_logging_out_ends_the_sticky_token(self) -> None:
        token = self.homeserver.register("leaver")["access_token"]
        client = self.client()
        whoami = f"{V3}/account/whoami"
        self.assertEqual((await client.request("GET", whoami, token=token)).status, 200)
        self.assertEqual((await client.request("GET", whoami)).body["user_id"], "@leaver:localhost")
        self.assertEqual((await client.request("POST", f"{V3}/logout", json={})).status, 200)
        response = await client.request("GET", whoami)
        self.assertEqual((response.status, response.body["errcode"]), (401, "M_MISSING_TOKEN"))

    async def test_one_line_in_the_access_log(self) -> None:
        token = self.homeserver.register("logged")["access_token"]
        path = f"{V3}/profile/@logged:localhost/displayname"
        response = await self.client().request("GET", path, {"access_token": token, "x": "y"})
        self.assertEqual(response.status, 200)
        (line,) = await until(lambda: self.access_lines(path.replace("@", "%40")) or self.access_lines(path))
        self.assertRegex(line, r" - 127\.0\.0\.1 - \d+ - \{")
        self.assertRegex(line, r' \d\d+B 200 "GET /\S+\?access_token=<redacted>&x=y CoAP/1" "-" ')
        self.assertNotIn(token, self.homeserver.log_text())

    async def test_the_address_is_remembered_with_the_device(self) -> None:
        user = self.homeserver.register("device")
        device = f"{V3}/devices/{user['device_id']}"
        client = self.client()
        await client.request("GET", f"{V3}/account/whoami", token=user["access_token"])
        response = await client.request("GET", device, token=user["access_token"])
        self.assertEqual(response.body["last_seen_ip"], "127.0.0.1")

    async def test_a_client_that_goes_cancels_its_request(self) -> None:
        """As over HTTP: Synapse cancels what it can (a /sync when its time is over) and logs 499."""
        token = self.homeserver.register("goer")["access_token"]
        client = self.client()
        first = await client.request("GET", f"{V3}/sync", {"timeout": "0"}, token=token)
        query = {"timeout": "1234", "since": first.body["next_batch"]}
        waiting = client.request("GET", f"{V3}/sync", query, token=token)
        await deferLater(REACTOR, 0.3)
        await client.close()
        await self.assertFailure(waiting, ConnectionLost)
        lost = "Connection from client lost before response was sent"
        await until(lambda: lost in self.homeserver.log_text())
        (line,) = await until(lambda: self.access_lines(f"{V3}/sync?timeout=1234"))
        self.assertIn(" 499! ", line)

    async def test_a_long_poll_is_answered_when_something_happens(self) -> None:
        user = self.homeserver.register("poller")
        token = user["access_token"]
        client = self.client()
        first = await client.request("GET", f"{V3}/sync", {"timeout": "0"}, token=token)
        waiting = client.request(
            "GET", f"{V3}/sync", {"timeout": "60000", "since": first.body["next_batch"]}, token=token
        )
        path = f"{V3}/user/{user['user_id']}/account_data/org.example"
        await client.request("PUT", path, json={"a": 1}, token=token)
        self.assertEqual((await waiting).body["account_data"]["events"][0]["content"], {"a": 1})


class MetricsTests(SynapseTestCase):
    """Prometheus."""

    def options(self) -> dict[str, Any]:
        ports = free_ports()
        address = {"bind_addresses": ["127.0.0.1"]}
        listeners = [
            {"type": "http", "port": ports.http, "resources": [{"names": ["client", "metrics"]}], **address},
            {"type": "lowbandwidth", "port": ports.lowbandwidth, "tag": "narrow", **address},
        ]
        return {"ports": ports, "extra_config": {"enable_metrics": True, "listeners": listeners}}

    def metrics(self) -> dict[str, float]:
        """All metrics of the process."""
        with urllib.request.urlopen(f"{self.homeserver.http_url}/_synapse/metrics") as response:
            text = response.read().decode()
        found = re.findall(r"^(\S+\{.*\}) (\S+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in found}

    async def test_ours_and_synapses(self) -> None:
        client = self.client()
        await client.request("GET", "/_matrix/client/versions")
        metrics = self.metrics()
        labels = '{address="127.0.0.1",listener="narrow",server_name="localhost"}'
        states = {
            state: metrics[f'synapse_lb_associations{labels[:-1]},state="{state}"}}']
            for state in ("handshake", "anonymous", "authenticated", "moved")
        }
        self.assertEqual(states, {"handshake": 0, "anonymous": 1, "authenticated": 0, "moved": 0})
        self.assertEqual(metrics[f"synapse_lb_requests_running{labels}"], 0)
        self.assertEqual(metrics[f"synapse_lb_observations{labels}"], 0)
        self.assertEqual(metrics[f"synapse_lb_observe_registrations_total{labels}"], 0)
        self.assertEqual(metrics[f"synapse_lb_gateway_requests_total{labels}"], 1)
        self.assertGreater(metrics[f"synapse_lb_dtls_bytes_received_total{labels}"], 100)
        self.assertGreaterEqual(metrics[f"synapse_lb_coap_datagrams_received_total{labels}"], 1)
        mine = [
            name
            for name in metrics
            if name.startswith("synapse_http_server_requests_received_total")
            and "VersionsRestServlet" in name
        ]
        self.assertEqual([metrics[name] for name in mine], [1])


class LifeTests(TestCase):
    """Starting, reloading and stopping."""

    def start(self, **options: Any) -> ThrowawayHomeserver:
        """Start a homeserver that ends with the test."""
        homeserver = ThrowawayHomeserver(**options)
        self.addCleanup(homeserver.stop)
        homeserver.start()
        return homeserver

    async def fingerprint(self, homeserver: ThrowawayHomeserver) -> str:
        """The certificate that a new client sees."""
        client = LowBandwidthClient(REACTOR, homeserver.coaps_url, verification=ClientVerification.none())
        try:
            return str((await client.connect()).certificate_sha256)
        finally:
            await client.close()

    async def test_a_stop_says_goodbye(self) -> None:
        homeserver = self.start(presence=False)
        token = homeserver.register("alice")["access_token"]
        client = LowBandwidthClient(REACTOR, homeserver.coaps_url, verification=ClientVerification.none())
        self.addCleanup(client.close)
        waiting = client.request("GET", f"{V3}/sync", {"timeout": "60000"}, token=token)
        first = await waiting
        waiting = client.request(
            "GET", f"{V3}/sync", {"timeout": "60000", "since": first.body["next_batch"]}, token=token
        )
        await deferLater(REACTOR, 0.3)
        self.assertEqual(homeserver.halt(), 0)
        await self.assertFailure(waiting, ConnectionLost)
        self.assertEqual(homeserver.error_lines(), [])

    async def test_a_certificate_is_made_once_and_loaded_again_on_sighup(self) -> None:
        address = {"bind_addresses": ["127.0.0.1"]}
        ports = free_ports()
        homeserver = self.start(
            ports=ports,
            extra_config={
                "tls_certificate_path": None,
                "tls_private_key_path": None,
                "listeners": [
                    {"type": "http", "port": ports.http, "resources": [{"names": ["client"]}], **address},
                    {"type": "lowbandwidth", "port": ports.lowbandwidth, **address},
                ],
            },
        )
        certificate = homeserver.folder / "localhost.lowbandwidth.crt"
        key = homeserver.folder / "localhost.lowbandwidth.key"
        first = sha256_fingerprint(certificate.read_bytes())
        self.assertIn(f"SHA-256 fingerprint {first}", homeserver.log_text())
        self.assertEqual(await self.fingerprint(homeserver), first)
        homeserver.restart()
        self.assertEqual(await self.fingerprint(homeserver), first)

        key.write_bytes(b"no key")
        homeserver.sighup()
        await until(lambda: "keeps its certificate" in homeserver.log_text())
        self.assertEqual(await self.fingerprint(homeserver), first)

        for path, content in zip((certificate, key), generate_self_signed(["localhost"]), strict=True):
            path.write_bytes(content)
        second = sha256_fingerprint(certificate.read_bytes())
        homeserver.sighup()
        await until(
            lambda: f"has loaded its certificate; SHA-256 fingerprint {second}" in homeserver.log_text()
        )
        self.assertEqual(await self.fingerprint(homeserver), second)

    async def test_both_address_families(self) -> None:
        homeserver = self.start(lowbandwidth_options={"bind_addresses": None}, log_level="INFO")
        for host in ("127.0.0.1", "[::1]"):
            client = LowBandwidthClient(
                REACTOR,
                f"coaps://{host}:{homeserver.ports.lowbandwidth}",
                verification=ClientVerification.none(),
            )
            self.addCleanup(client.close)
            self.assertEqual((await client.request("GET", "/_matrix/client/versions")).status, 200)
        lines = [line for line in homeserver.log_text().splitlines() if "synapse.access.coap" in line]
        self.assertEqual(len([line for line in lines if " - 127.0.0.1 - " in line]), 1)
        self.assertEqual(len([line for line in lines if " - ::1 - " in line]), 1)

    def test_without_a_listener_there_is_a_warning(self) -> None:
        ports = free_ports()
        http = {"type": "http", "port": ports.http, "bind_addresses": ["127.0.0.1"]}
        homeserver = self.start(
            ports=ports, extra_config={"listeners": [{**http, "resources": [{"names": ["client"]}]}]}
        )
        self.assertIn("there is no listener of type 'lowbandwidth' in this process", homeserver.log_text())
        _, versions = homeserver.request("GET", "/_matrix/client/versions")
        self.assertNotIn("org.matrix.msc3079.low_bandwidth", versions)

    def test_not_advertised(self) -> None:
        homeserver = self.start(lowbandwidth_options={"advertise": False})
        _, versions = homeserver.request("GET", "/_matrix/client/versions")
        self.assertNotIn("org.matrix.msc3079.low_bandwidth", versions)

    def test_another_port_advertised(self) -> None:
        homeserver = self.start(lowbandwidth_options={"advertised_port": 443})
        _, versions = homeserver.request("GET", "/_matrix/client/versions")
        self.assertEqual(versions["org.matrix.msc3079.low_bandwidth"]["dtls"], 443)
