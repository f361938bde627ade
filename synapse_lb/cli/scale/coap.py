# SPDX-License-Identifier: AGPL-3.0-or-later
"""Many CoAP clients in one process, as cheap as can be: one endpoint for all of them, a socket for each.

The client library has what an application needs; here the driver must not take more of the machine than the server
that is measured. What goes over the wire is the same: DTLS, CoAP, CBOR with integer keys, compressed
where the library asks for it. Not the extension x1.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import attrs
from twisted.internet.defer import Deferred

from synapse_lb.client.large import gains_by_deflate
from synapse_lb.coap.endpoint import Endpoint
from synapse_lb.coap.events import (
    CoapRequest,
    Event,
    NotificationReceived,
    Peer,
    PongReceived,
    RequestFailed,
    ResponseReceived,
)
from synapse_lb.coap.numbers import OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Tuning
from synapse_lb.coaps.driver import EndpointDriver
from synapse_lb.msc3079.client_mapping import decode_response, encode_request
from synapse_lb.msc3079.keys_v1 import KEY_VERSION_1
from synapse_lb.msc3079.messages import NO_BODY, MatrixResponse
from synapse_lb.msc3079.options import FORMAT_CBOR_DEFLATE
from synapse_lb.txdtls.client import ClientAssociation, connect
from synapse_lb.txdtls.context import ClientVerification, make_client_context
from synapse_lb.txdtls.errors import AssociationLost
from synapse_lb.txdtls.options import ClientOptions

AT_ONCE: Final = 20
"""Handshakes that are under way at a time."""


@attrs.define(eq=False)
class CoapClient:
    """One client.

    Attributes:
        association: its association.
        news: how many notifications it has got, but for the first.
        heard_at: when the last of them came, in seconds of `time.monotonic`.
        lost: why its association has ended, or None.
    """

    association: ClientAssociation
    announced: bool = False
    news: int = -1
    heard_at: float = 0.0
    lost: str | None = None


class CoapCrowd:
    """Clients of one server.

    Args:
        reactor: Twisted's.
        host: of the server.
        port: UDP.
        ca_path: PEM file of its certificate.
    """

    def __init__(self, reactor: Any, host: str, port: int, ca_path: str) -> None:
        self.clients: list[CoapClient] = []
        self.errors: list[str] = []
        self._reactor = reactor
        self._address = host, port
        self._context = make_client_context(ClientVerification.ca_file(ca_path))
        self._by_id: dict[int, CoapClient] = {}
        self._endpoint = Endpoint(random=random.Random(1), tuning=Tuning(), understood=(256, 257))
        self._driver = EndpointDriver(self._endpoint, reactor, self._send, self._on_event)
        self._waiting: dict[int, Deferred[MatrixResponse]] = {}
        self._observing: dict[int, CoapClient] = {}
        self._first: dict[int, Deferred[None]] = {}

    # -- connecting

    async def connect(self, session: bytes | None = None) -> CoapClient:
        """Make one client.

        Args:
            session: to resume.
        """
        association = await connect(
            self._reactor,
            *self._address,
            context=self._context,
            session=session,
            options=ClientOptions(),
            handler=self,
        )
        client = CoapClient(association)
        self._by_id[association.association_id] = client
        self._endpoint.set_peer(
            association.association_id,
            max_message_size=association.max_message_size,
            rtt=association.rtt,
            now=self._driver.now(),
        )
        return client

    async def grow(self, tokens: list[str], since: str, progress: Callable[[int], None]) -> None:
        """Make an observer of `/sync` for each access token.

        Args:
            tokens: the access tokens.
            since: where the observers begin.
            progress: is told how many there are.
        """

        made: dict[str, CoapClient] = {}

        async def observer(token: str) -> None:
            client = await self.connect()
            await self.observe(client, token, since)
            made[token] = client
            progress(len(self.clients) + len(made))

        await in_parallel([partial(observer, token) for token in tokens], AT_ONCE)
        self.clients += [made[token] for token in tokens]

    # -- asking

    def ask(
        self,
        client: CoapClient,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = NO_BODY,
        token: str | None = None,
    ) -> Deferred[MatrixResponse]:
        """Make a request; the token is needed once."""
        exchange = self._request(client, method, path, query, body, token, Options())
        answer: Deferred[MatrixResponse] = Deferred()
        self._waiting[exchange] = answer
        self._driver.flush()
        return answer

    def observe(self, client: CoapClient, token: str, since: str) -> Deferred[None]:
        """Register for `/sync`; fires with the first notification."""
        options = Options.of((OptionNumber.OBSERVE, b""))
        query = {"since": since}
        exchange = self._request(client, "GET", "/_matrix/client/v3/sync", query, NO_BODY, token, options)
        self._observing[exchange] = client
        first: Deferred[None] = Deferred()
        self._first[exchange] = first
        self._driver.flush()
        return first

    def ping(self, client: CoapClient) -> None:
        """Show that it is there, as against a NAT that forgets."""
        self._endpoint.ping(client.association.association_id, self._driver.now())
        self._driver.flush()

    def _request(
        self,
        client: CoapClient,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Any,
        token: str | None,
        further: Options,
    ) -> int:
        # As the client library asks.
        compressed = gains_by_deflate(method, path, ())
        code, options, payload = encode_request(
            method,
            path,
            query,
            body,
            accept=FORMAT_CBOR_DEFLATE if compressed else None,
            token=token,
            key_version=KEY_VERSION_1,
            announce_key_version=None if client.announced else KEY_VERSION_1,
        )
        client.announced = True
        request = CoapRequest(code, Options.of(*options, *further), payload)
        return self._endpoint.request(client.association.association_id, request, self._driver.now())

    async def close(self) -> None:
        """End all associations."""
        self._driver.stop()
        clients, self._by_id = list(self._by_id.values()), {}
        for client in clients:
            await client.association.close()

    async def leave(self, client: CoapClient) -> None:
        """End one association."""
        number = client.association.association_id
        self._by_id.pop(number, None)
        self._endpoint.drop_peer(number, self._driver.now())
        self._driver.flush()
        await client.association.close()

    # -- what the associations tell

    def association_established(self, association_id: int) -> None:
        """Nothing is to be done; `connect` has it."""

    def association_moved(self, association_id: int) -> None:
        """Servers do not move."""

    def message_received(self, association_id: int, data: bytes) -> None:
        """A message came."""
        self._driver.receive(association_id, data)

    def association_lost(self, association_id: int, reason: AssociationLost) -> None:
        """An association has ended, by the server or by an error of the network."""
        client = self._by_id.pop(association_id, None)
        if client is not None:
            client.lost = str(reason)
            self.errors.append(f"an association was lost: {reason}")
            self._endpoint.drop_peer(association_id, self._driver.now())
            self._driver.flush()

    def _send(self, peer: Peer, data: bytes) -> None:
        assert isinstance(peer, int)
        client = self._by_id.get(peer)
        if client is not None:
            client.association.send(data)

    # -- what the endpoint tells

    def _on_event(self, event: Event) -> None:
        if isinstance(event, NotificationReceived):
            client = self._observing[event.exchange]
            client.news += 1
            client.heard_at = time.monotonic()
            self._endpoint.confirm(event.exchange, self._driver.now())
            first = self._first.pop(event.exchange, None)
            if first is not None:
                first.callback(None)
        elif isinstance(event, ResponseReceived) and event.exchange in self._waiting:
            response = event.response
            answer = decode_response(response.code, response.options, response.payload)
            self._waiting.pop(event.exchange).callback(answer)
        elif isinstance(event, ResponseReceived | RequestFailed):
            self._failed(event)
        else:
            assert isinstance(event, PongReceived)

    def _failed(self, event: ResponseReceived | RequestFailed) -> None:
        what = (
            event.error if isinstance(event, RequestFailed) else f"an observation has ended: {event.response}"
        )
        self.errors.append(str(what))
        for waiting in (self._waiting.pop(event.exchange, None), self._first.pop(event.exchange, None)):
            if waiting is not None:
                waiting.errback(RuntimeError(str(what)))


async def in_parallel(works: list[Callable[[], Any]], at_once: int) -> None:
    """Run coroutines, so many of them at a time; the first error ends it.

    Args:
        works: each makes a coroutine.
        at_once: how many.
    """
    from twisted.internet.defer import gatherResults

    waiting = iter(works)

    async def one_after_another() -> None:
        for work in waiting:
            await work()

    await gatherResults(
        [Deferred.fromCoroutine(one_after_another()) for _ in range(at_once)], consumeErrors=True
    )
