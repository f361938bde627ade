# SPDX-License-Identifier: AGPL-3.0-or-later
"""The gateway as a whole, over real UDP and TCP, before a homeserver of a few lines."""

from __future__ import annotations

import shutil
from typing import Any

import attrs
from twisted.internet.task import deferLater

from synapse_lb.client import ClientVerification, LowBandwidthClient, State, Transport
from synapse_lb.client.errors import CertificateError, ConnectionLost, DiscoveryError
from synapse_lb.client.https import HttpsTransport
from synapse_lb.standalone.service import GatewayService, ServiceError, ServiceOptions
from synapse_lb.testing.throwaway import free_ports
from tests.client.harness import REACTOR, Certificate, LoopbackTestCase, until
from tests.client.https_server import HttpsHomeserver, Reply, Seen
from tests.server.observing import SLIDING

PATH = "/_matrix/client/v3/a"


class ServiceCase(LoopbackTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.homeserver = HttpsHomeserver(None, self.answer)
        self.addCleanup(self.homeserver.stop)

    def answer(self, seen: Seen) -> Reply | None:
        """What the homeserver answers."""
        if seen.path.endswith("/whoami"):
            return Reply(body={"user_id": "@alice:x"})
        if "timeout=" in seen.uri or seen.path.endswith("/wait"):
            return None
        return Reply(body={"next_batch": "s1", "over": "http", "uri": seen.uri})

    def service(self, **settings: Any) -> GatewayService:
        """Start a gateway on a free port."""
        options = ServiceOptions(
            local=self.homeserver.url,
            certificate_path=self.certificate.path,
            key_path=self.certificate.key_path,
            address="127.0.0.1",
            port=free_ports().https if "advertise" in settings else 0,
        )
        service = GatewayService(REACTOR, attrs.evolve(options, **settings))
        self.addCleanup(service.stop)
        service.start()
        return service

    def asking(self, server: str, certificate: Certificate | None = None) -> LowBandwidthClient:
        """A client."""
        verification = ClientVerification.ca_file((certificate or self.certificate).path)
        client = LowBandwidthClient(REACTOR, server, verification=verification)
        self.addCleanup(client.close)
        return client


class ServiceTests(ServiceCase):
    async def test_requests(self) -> None:
        service = self.service()
        client = self.asking(f"coaps://127.0.0.1:{service.port}")
        answer = await client.request("PUT", PATH, {"b": "ü"}, {"x": 1}, "t0ken")
        self.assertEqual((answer.status, answer.body["over"]), (200, "http"))
        seen, check = self.homeserver.seen
        self.assertTrue(check.path.endswith("/whoami"))
        self.assertEqual((seen.method, seen.uri, seen.json), ("PUT", PATH + "?b=%C3%BC", {"x": 1}))
        self.assertEqual(seen.headers["authorization"], "Bearer t0ken")

    async def test_nothing_listens_on_tcp_unless_it_is_advertised(self) -> None:
        service = self.service()
        client = self.asking(f"https://127.0.0.1:{service.port}")
        await self.assertFailure(client.request("GET", PATH), DiscoveryError)

    async def test_discovery_leads_to_coap(self) -> None:
        service = self.service(advertise="https://127.0.0.1:1")
        client = self.asking(f"https://127.0.0.1:{service.port}")
        self.homeserver.replies["/.well-known/matrix/client"] = Reply(
            body={"m.homeserver": {"base_url": "https://hs.example.com"}}
        )
        service.upstream.advertisement = attrs.evolve(
            service.upstream.advertisement, base_url=f"https://127.0.0.1:{service.port}"
        )
        self.assertEqual((await client.request("GET", PATH)).body["over"], "http")
        self.assertIs(client.transport, Transport.COAP)
        found = await client.discover()
        self.assertEqual(found.base_url, f"https://127.0.0.1:{service.port}")
        assert found.coap is not None
        self.assertEqual(found.coap.port, service.port)

    async def test_another_port_may_be_advertised(self) -> None:
        service = self.service(advertise_port=443, observe=False)
        self.homeserver.replies["/_matrix/client/versions"] = Reply(body={"versions": []})
        client = self.asking(f"coaps://127.0.0.1:{service.port}")
        answer = await client.request("GET", "/_matrix/client/versions")
        advertised = answer.body["org.matrix.msc3079.low_bandwidth"]
        self.assertEqual((advertised["dtls"], "observe" in advertised), (443, False))

    async def test_stop_ends_everything(self) -> None:
        service = self.service()
        client = self.asking(f"coaps://127.0.0.1:{service.port}")
        observation = client.observe_sync(None, lambda body: None, token="t")
        await until(lambda: self.homeserver.open)
        waiting = client.request("GET", "/_matrix/client/v3/wait", token="t")
        await until(lambda: len(self.homeserver.open) == 2)
        self.assertIs(observation.state, State.OBSERVING)
        await service.stop()
        await self.assertFailure(waiting, ConnectionLost)
        await until(lambda: self.homeserver.gone == 2)
        await service.stop()

    async def test_no_observing(self) -> None:
        service = self.service(observe=False)
        client = self.asking(f"coaps://127.0.0.1:{service.port}")
        observation = client.observe_sync(None, lambda body: None, token="t")
        await until(lambda: observation.state is State.POLLING)

    async def test_sliding_sync_is_polled(self) -> None:
        self.homeserver.replies[SLIDING] = Reply(body={"pos": "1"})
        service = self.service()
        client = self.asking(f"coaps://127.0.0.1:{service.port}")
        observation = client.observe(SLIDING, json={}, handler=lambda body: None, token="t")
        await until(lambda: observation.state is not State.REGISTERING)
        self.assertIs(observation.state, State.POLLING)


class CertificateTests(ServiceCase):
    def setUp(self) -> None:
        super().setUp()
        self.other = Certificate()
        self.addCleanup(self.other.remove)

    def test_it_cannot_be_used(self) -> None:
        self.assertRaises(ServiceError, self.service, certificate_path="/nowhere.pem")
        self.assertRaises(ServiceError, self.service, key_path=self.other.key_path)

    async def test_it_is_loaded_again(self) -> None:
        service = self.service(advertise="https://127.0.0.1:1")
        before = self.certificate.fingerprint
        self.assertEqual(service.fingerprint, before)
        shutil.copy(self.other.path, self.certificate.path)
        shutil.copy(self.other.key_path, self.certificate.key_path)
        service.reload()
        self.assertEqual(service.fingerprint, self.other.fingerprint)
        for fingerprint in (before, self.other.fingerprint):
            pinned = ClientVerification.pinned(fingerprint)
            over_coap = LowBandwidthClient(REACTOR, f"coaps://127.0.0.1:{service.port}", verification=pinned)
            over_https = HttpsTransport(REACTOR, pinned)
            self.addCleanup(over_coap.close)
            self.addCleanup(over_https.close)
            url = f"https://127.0.0.1:{service.port}{PATH}"
            if fingerprint == before:
                await self.assertFailure(over_coap.request("GET", PATH), CertificateError)
                await self.assertFailure(over_https.fetch("GET", url), CertificateError)
            else:
                self.assertEqual((await over_coap.request("GET", PATH)).status, 200)
                self.assertEqual((await over_https.fetch("GET", url)).status, 200)

    async def test_it_stays_if_the_new_one_cannot_be_used(self) -> None:
        service = self.service()
        before = service.fingerprint
        shutil.copy(self.other.path, self.certificate.path)
        service.reload()
        self.assertEqual(service.fingerprint, before)
        pinned = ClientVerification.pinned(before)
        client = LowBandwidthClient(REACTOR, f"coaps://127.0.0.1:{service.port}", verification=pinned)
        self.addCleanup(client.close)
        self.assertEqual((await client.request("GET", PATH)).status, 200)


class PortTests(ServiceCase):
    def test_it_is_taken(self) -> None:
        service = self.service()
        self.assertRaises(ServiceError, self.service, port=service.port)

    async def test_the_tcp_port_is_taken(self) -> None:
        other = HttpsHomeserver(None)
        self.addCleanup(other.stop)
        port = int(other.url.rpartition(":")[2])
        self.assertRaises(ServiceError, self.service, port=port, advertise="https://127.0.0.1")
        # Nothing is left open, once the reactor has closed it.
        await deferLater(REACTOR, 0.01, lambda: None)
        await self.service(port=port).stop()
