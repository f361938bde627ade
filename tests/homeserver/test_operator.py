# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an operator sees of a real Synapse: metrics, dashboard, alerts, admin endpoint, and a log without secrets."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.client import ClientVerification, LowBandwidthClient
from synapse_lb.client.errors import ConnectError, ConnectionLost
from synapse_lb.testing.throwaway import ThrowawayHomeserver, free_ports
from tests.homeserver import promql
from tests.homeserver.test_synapse import REACTOR, V3, SynapseTestCase, until

CONTRIB = Path(__file__).resolve().parents[2] / "contrib" / "grafana"
ADMIN = "/_synapse/admin/v1/lowbandwidth"


def queries() -> list[str]:
    """All queries of the dashboard and of the alerts."""
    dashboard = json.loads((CONTRIB / "synapse-lb.json").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    found += [
        variable["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"
    ]
    alerts = yaml.safe_load((CONTRIB / "alerts.yaml").read_text())
    found += [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    return found


class OperatorTestCase(SynapseTestCase):
    """One homeserver at the level DEBUG, with an administrator."""

    # The classes share it: `SynapseTestCase` keeps one for each class otherwise.
    shared: ThrowawayHomeserver | None = None
    admin_token = ""

    def setUp(self) -> None:
        if OperatorTestCase.shared is not None:
            self.running[type(self)] = OperatorTestCase.shared
        super().setUp()
        if OperatorTestCase.shared is None:
            OperatorTestCase.shared = self.homeserver
            OperatorTestCase.admin_token = self.make_admin()

    def options(self) -> dict[str, Any]:
        ports = free_ports()
        address = {"bind_addresses": ["127.0.0.1"]}
        listeners = [
            {"type": "http", "port": ports.http, "resources": [{"names": ["client", "metrics"]}], **address},
            {"type": "lowbandwidth", "port": ports.lowbandwidth, "tag": "narrow", **address},
        ]
        return {
            "ports": ports,
            "log_level": "DEBUG",
            "extra_config": {
                "enable_metrics": True,
                "listeners": listeners,
                "registration_shared_secret": "a secret of the server",
            },
        }

    def make_admin(self) -> str:
        """Register an administrator as Synapse's register_new_matrix_user does; returns the access token."""
        path = "/_synapse/admin/v1/register"
        nonce = self.homeserver.request("GET", path)[1]["nonce"]
        content = "\0".join((nonce, "root", "correct horse", "admin"))
        mac = hmac.new(b"a secret of the server", content.encode(), hashlib.sha1).hexdigest()
        body = {"nonce": nonce, "username": "root", "password": "correct horse", "admin": True, "mac": mac}
        status, answer = self.homeserver.request("POST", path, body)
        self.assertEqual(status, 200, answer)
        return str(answer["access_token"])

    def admin(self, method: str = "GET", path: str = "", token: str | None = None) -> tuple[int, Any]:
        """Ask the admin endpoint over HTTP."""
        return self.homeserver.request(method, ADMIN + path, token=token or self.admin_token)

    def scrape(self) -> dict[str, list[Any]]:
        """What Prometheus gets: samples by their name."""
        with urllib.request.urlopen(f"{self.homeserver.http_url}/_synapse/metrics") as response:
            families = text_string_to_metric_families(response.read().decode())
            samples = [sample for family in families for sample in family.samples]
        found: dict[str, list[Any]] = {}
        for sample in samples:
            found.setdefault(sample.name, []).append(sample)
        return found

    def value(self, name: str, **labels: str) -> float:
        """One metric of ours."""
        samples = self.scrape()[f"synapse_lb_{name}"]
        found = [each for each in samples if labels.items() <= each.labels.items()]
        self.assertEqual(len(found), 1, (name, labels, samples))
        return float(found[0].value)


class MetricsTests(OperatorTestCase):
    """What Prometheus gets."""

    async def test_queries_name_metrics_and_labels_that_there_are(self) -> None:
        """Of the dashboard and of the alerts."""
        await self.client().request("GET", "/_matrix/client/versions")
        scrape = self.scrape()
        known = set(queries())
        self.assertGreater(len(known), 40)
        for text in known:
            query = promql.parse(re.sub(r"label_values\((\w+), (\w+)\)", r"sum by (\2) (\1)", text))
            self.assertNotEqual(query.metrics, frozenset(), text)
            for metric in query.metrics:
                self.assertIn(metric, scrape, text)
                for sample in scrape[metric]:
                    self.assertEqual(query.labels - set(sample.labels), set(), text)

    async def test_states_and_outcomes(self) -> None:
        user = self.homeserver.register("stateful")
        before = {
            outcome: self.value("handshakes_total", outcome=outcome)
            for outcome in ("full", "resumed", "failed")
        }
        client = self.client()
        await client.request("GET", "/_matrix/client/versions")
        self.assertEqual(self.value("associations", state="anonymous"), 1)
        strangers = self.value("strangers")
        await client.request("GET", f"{V3}/account/whoami", token=user["access_token"])
        self.assertEqual(self.value("strangers"), strangers - 1)
        self.assertEqual(self.value("associations", state="anonymous"), 0)
        self.assertEqual(self.value("associations", state="authenticated"), 1)
        session = client.session
        await client.close()
        await until(lambda: self.value("associations", state="authenticated") == 0)
        again = LowBandwidthClient(
            REACTOR, self.homeserver.coaps_url, verification=ClientVerification.none(), session=session
        )
        self.addCleanup(again.close)
        await again.request("GET", "/_matrix/client/versions")
        self.assertEqual(self.value("handshakes_total", outcome="full") - before["full"], 1)
        self.assertEqual(self.value("handshakes_total", outcome="resumed") - before["resumed"], 1)

    async def test_why_handshakes_fail(self) -> None:
        """A client that does not know who issued the certificate says so."""
        before = self.value("handshakes_total", outcome="failed")
        stranger = LowBandwidthClient(REACTOR, self.homeserver.coaps_url)
        self.addCleanup(stranger.close)
        failure = await self.assertFailure(stranger.connect(), ConnectError)
        self.assertIn("certificate", str(failure))
        await until(lambda: self.value("handshakes_total", outcome="failed") == before + 1)
        reasons = {each.labels["reason"] for each in self.scrape()["synapse_lb_handshake_failures_total"]}
        self.assertTrue(reasons & {"unknown ca", "bad certificate"}, reasons)

    async def test_drops(self) -> None:
        """A datagram that is no DTLS."""
        before = self.value("dropped_total", reason="not_dtls")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"hello", ("127.0.0.1", self.homeserver.ports.lowbandwidth))
        await until(lambda: self.value("dropped_total", reason="not_dtls") == before + 1)

    async def test_the_certificate_expires(self) -> None:
        left = self.value("certificate_expiry_seconds", listener="narrow") - time.time()
        self.assertTrue(3600 * 24 < left < 3600 * 24 * 366 * 11, left)

    async def test_what_http_would_have_taken(self) -> None:
        """The estimate is near what the same request takes over HTTP, and not above it."""
        user = self.homeserver.register("counted")
        path, token = f"{V3}/account/whoami", user["access_token"]
        before = self.value("gateway_http_bytes_total")
        await self.client().request("GET", path, token=token)
        estimate = self.value("gateway_http_bytes_total") - before
        request = (
            f"GET {path} HTTP/1.1\r\nHost: matrix.example.com\r\nAccept: */*\r\n"
            f"Authorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        ).encode()
        with socket.create_connection(("127.0.0.1", self.homeserver.ports.http)) as connection:
            connection.sendall(request)
            answer = b""
            while data := connection.recv(65536):
                answer += data
        real = len(request) + len(answer)
        self.assertLessEqual(estimate, real)
        self.assertGreater(estimate, 0.85 * real)


class AdminTests(OperatorTestCase):
    """``/_synapse/admin/v1/lowbandwidth``."""

    def test_for_admins_only(self) -> None:
        user = self.homeserver.register("nobody")
        for method, path in (("GET", ""), ("DELETE", "/associations/0.1"), ("DELETE", "/observations/0.1.1")):
            status, body = self.homeserver.request(method, ADMIN + path)
            self.assertEqual((status, body["errcode"]), (401, "M_MISSING_TOKEN"))
            status, body = self.admin(method, path, token=user["access_token"])
            self.assertEqual((status, body["errcode"]), (403, "M_FORBIDDEN"))

    async def test_who_is_there(self) -> None:
        """By user, with what is observed, and without any token."""
        user = self.homeserver.register("present")
        client, stranger = self.client(), self.client()
        await stranger.request("GET", "/_matrix/client/versions")
        bodies: list[Any] = []
        client.observe_sync(None, bodies.append, token=user["access_token"])
        await until(lambda: bodies)
        await until(lambda: self.value("observations") == 1)
        status, body = self.admin(path=f"?user_id={quote(user['user_id'])}")
        self.assertEqual((status, body["total"]), (200, 1))
        self.assertNotIn(user["access_token"], json.dumps(body))
        (mine,) = body["associations"]
        self.assertEqual((mine["user_id"], mine["device_id"]), (user["user_id"], user["device_id"]))
        self.assertEqual(
            (mine["state"], mine["ip"], mine["listener"]), ("authenticated", "127.0.0.1", "narrow")
        )
        self.assertTrue(0 <= mine["silence_ms"] <= mine["age_ms"] < 60000, mine)
        (observed,) = mine["observations"]
        self.assertEqual(observed["user_id"], user["user_id"])
        self.assertTrue(observed["path"].endswith("/sync"), observed)
        _, everyone = self.admin(path="?limit=1")
        self.assertEqual(
            (everyone["total"], everyone["next_token"], len(everyone["associations"])), (2, 1, 1)
        )
        _, rest = self.admin(path="?limit=1&from=1")
        self.assertNotIn("next_token", rest)
        _, strangers = self.admin(path="?state=anonymous")
        self.assertEqual([each["user_id"] for each in strangers["associations"]], [None])
        (listener,) = everyone["listeners"]
        self.assertEqual((listener["associations"], listener["observations"]), (2, 1))

    def test_bad_parameters(self) -> None:
        for query in ("limit=0", "limit=1001", "from=-1", "limit=x", "state=sleepy"):
            status, body = self.admin(path=f"?{query}")
            self.assertEqual(status, 400, (query, body))

    async def test_closing_an_association(self) -> None:
        client = self.client()
        await client.request("GET", "/_matrix/client/versions")
        _, body = self.admin()
        (mine,) = body["associations"]
        self.assertEqual(self.admin("DELETE", f"/associations/{mine['id']}"), (200, {}))
        self.assertEqual(self.admin()[1]["total"], 0)
        status, body = self.admin("DELETE", f"/associations/{mine['id']}")
        self.assertEqual((status, body["errcode"]), (404, "M_NOT_FOUND"))
        # The close_notify is in the socket; the next request but one connects anew.
        await self.assertFailure(client.request("GET", "/_matrix/client/versions"), ConnectionLost)
        await client.request("GET", "/_matrix/client/versions")

    async def test_ending_an_observation(self) -> None:
        user = self.homeserver.register("observer")
        client = self.client()
        bodies: list[Any] = []
        client.observe_sync(None, bodies.append, token=user["access_token"])
        await until(lambda: bodies)
        _, body = self.admin()
        name = body["associations"][0]["observations"][0]["id"]
        self.assertEqual(self.admin("DELETE", f"/observations/{name}"), (200, {}))
        _, body = self.admin()
        self.assertEqual((body["total"], body["associations"][0]["observations"]), (1, []))
        self.assertEqual(self.admin("DELETE", f"/observations/{name}")[0], 404)


class SecretsTests(OperatorTestCase):
    """The log at the level DEBUG."""

    async def test_no_secret_in_the_log(self) -> None:
        """Registration, login, a message, an observation, a refused body, a forgotten token: all over CoAP."""
        secrets = {
            "password": "open sesame 4711",
            "body": "the eagle lands at dawn",
            "wrong": "syt_wrong_4712",
        }
        client = self.client()
        body = {"auth": {"type": "m.login.dummy"}, "username": "agent", "password": secrets["password"]}
        registered = (await client.request("POST", f"{V3}/register", json=body)).body
        identifier = {"type": "m.id.user", "user": "agent"}
        login = {"type": "m.login.password", "identifier": identifier, "password": secrets["password"]}
        answer = (await client.request("POST", f"{V3}/login", json=login)).body
        secrets["token"], secrets["first token"] = answer["access_token"], registered["access_token"]
        token = secrets["token"]
        room = (await client.request("POST", f"{V3}/createRoom", json={}, token=token)).body["room_id"]
        bodies: list[Any] = []
        observation = client.observe_sync(None, bodies.append, token=token)
        observation.done.addErrback(lambda _: None)  # The logout ends it.
        await until(lambda: bodies)
        path = f"{V3}/rooms/{quote(room)}/send/m.room.message/1"
        content = {"msgtype": "m.text", "body": secrets["body"]}
        self.assertEqual((await client.request("PUT", path, json=content, token=token)).status, 200)
        await until(lambda: secrets["body"] in json.dumps(bodies))
        query = {"access_token": token}
        self.assertEqual((await self.client().request("GET", f"{V3}/account/whoami", query)).status, 200)
        refused = await self.client().request("GET", f"{V3}/account/whoami", token=secrets["wrong"])
        self.assertEqual(refused.status, 401)
        await client.request("POST", f"{V3}/logout", json={}, token=token)
        self.admin()
        await until(lambda: "/logout CoAP/1" in self.homeserver.log_text())
        lines = self.homeserver.log_text().splitlines()
        mine = [line for line in lines if "synapse_lb" in line or "synapse.access.coap" in line]
        self.assertGreater(len(mine), 8)
        self.assertIn(" - DEBUG - ", "".join(lines))
        for name, secret in secrets.items():
            # Synapse's own loggers of SQL and of replication show values at this level, whoever asks.
            self.assertEqual([line for line in mine if secret in line], [], name)
            self.assertEqual([line for line in lines if secret in line and "coap" in line.lower()], [], name)


class PromqlTests(SynchronousTestCase):
    """The reader of queries itself."""

    def test_names(self) -> None:
        query = promql.parse('sum by (a, b) (rate(x_total{c=~"y|z",d="e"}[5m])) / min (z) - time() < 3')
        self.assertEqual(query, promql.Query(frozenset({"x_total", "z"}), frozenset("abcd")))

    def test_nonsense(self) -> None:
        for text in ("sum(x", "x)", "x{a}", "x{a=b}", 'x{a="b"', "x % 2", "x[5m"):
            with self.assertRaises(ValueError, msg=text):
                promql.parse(text)
