# SPDX-License-Identifier: AGPL-3.0-or-later
"""A real proxy on loopback, between an HTTP client and the server's gateway over DTLS."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.web.client import Agent, FileBodyProducer, readBody
from twisted.web.http_headers import Headers

from synapse_lb.client import ClientVerification, LowBandwidthClient
from synapse_lb.proxy.options import ProxyOptions
from synapse_lb.proxy.proxy import Proxy
from synapse_lb.proxy.web import make_site
from synapse_lb.server.gateway import Gateway
from tests.client.harness import REACTOR, LoopbackTestCase, Server
from tests.client.observing import BRISK, QUICK
from tests.server.observing import FakeHomeserver


@attrs.frozen
class Fetched:
    """What an HTTP client got."""

    status: int
    headers: Headers
    content: bytes

    @property
    def json(self) -> Any:
        """The body as a JSON value."""
        return json.loads(self.content)

    def header(self, name: str) -> str | None:
        """The only value of a header."""
        values = self.headers.getRawHeaders(name)
        assert values is None or len(values) == 1, (name, values)
        return None if values is None else str(values[0])


class Http:
    """An HTTP client.

    Args:
        url: of the proxy.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._agent = Agent(REACTOR)

    def fetch(
        self,
        method: str,
        path: str,
        body: Any = None,
        token: str | None = None,
        **headers: str,
    ) -> Deferred[Fetched]:
        """Make a request; the body is JSON, unless it is bytes."""
        fields = Headers({name.replace("_", "-"): [value] for name, value in headers.items()})
        if token is not None:
            fields.addRawHeader("Authorization", f"Bearer {token}")
        content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        producer: Any = None if content is None else FileBodyProducer(io.BytesIO(content))
        asking = self._agent.request(method.encode(), (self.url + path).encode(), fields, producer)
        return asking.addCallback(self._read)

    async def _fetched(self, response: Any) -> Fetched:
        return Fetched(response.code, response.headers, await readBody(response))

    def _read(self, response: Any) -> Deferred[Fetched]:
        return Deferred.fromCoroutine(self._fetched(response))

    async def get(self, path: str, token: str | None = None, **headers: str) -> Fetched:
        """GET."""
        return await self.fetch("GET", path, None, token, **headers)

    async def post(self, path: str, body: Any, token: str | None = None) -> Fetched:
        """POST."""
        return await self.fetch("POST", path, body, token)


class ProxyTestCase(LoopbackTestCase):
    """Starts proxies before gateways."""

    def start_proxy(self, server: Server | None, **options: Any) -> tuple[Proxy, Http]:
        """Start a proxy before a server; without one, before nothing that speaks CoAP."""
        options.setdefault("verification", ClientVerification.ca_file(self.certificate.path))
        if server is not None:
            options.setdefault("coaps", server.address)
        configured = ProxyOptions(**options)

        def make_client(address: str, session: bytes | None) -> LowBandwidthClient:
            return LowBandwidthClient(
                REACTOR,
                address,
                verification=configured.verification,
                session=session,
                tuning=BRISK,
                persistence=QUICK,
                connect_timeout=1.0,
                random=random.Random(5),
            )

        proxy = Proxy(REACTOR, configured, make_client)
        listening = REACTOR.listenTCP(
            0, make_site(proxy, max_body=configured.max_body), interface="127.0.0.1"
        )
        self.addCleanup(proxy.close)
        self.addCleanup(listening.stopListening)
        return proxy, Http(f"http://127.0.0.1:{listening.getHost().port}")


class SyncTestCase(ProxyTestCase):
    """Has a homeserver with messages and to-device messages, as Synapse has them, and its gateway."""

    def setUp(self) -> None:
        """Nothing has happened."""
        super().setUp()
        self.homeserver = FakeHomeserver(REACTOR)

    def start_gateway(self, port: int = 0, *, observed: bool = True) -> Server:
        """Start a gateway; it knows what the homeserver knows."""
        gateway = Gateway(
            self.homeserver,
            clock=REACTOR,
            random=random.Random(1),
            tuning=BRISK,
            news=self.homeserver if observed else None,
        )
        self.gateway = gateway
        return self.start_server(gateway, port=port)


def timeline(body: Any) -> list[str]:
    """The messages in a sync."""
    room = body.get("rooms", {}).get("join", {}).get("!r:x", {})
    return [event["body"] for event in room.get("timeline", {}).get("events", [])]


def letters(body: Any) -> list[str]:
    """The to-device messages in a sync."""
    return [event["body"] for event in body.get("to_device", {}).get("events", [])]
