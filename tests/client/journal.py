# SPDX-License-Identifier: AGPL-3.0-or-later
"""A server whose /sync can be observed, small enough to be trusted, over a journal that outlives it."""

from __future__ import annotations

import random
from typing import Any

import attrs

from synapse_lb.coap.endpoint import Endpoint
from synapse_lb.coap.events import (
    CoapRequest,
    CoapResponse,
    Event,
    NotificationDelivered,
    NotificationFailed,
    Peer,
    RequestCancelled,
    RequestReceived,
)
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Tuning
from synapse_lb.coaps.driver import EndpointDriver
from synapse_lb.msc3079.cbor import encode
from synapse_lb.msc3079.options import ACCESS_TOKEN, KEY_VERSION
from synapse_lb.txdtls.errors import AssociationLost
from synapse_lb.txdtls.port import DTLSServerPort
from tests.client.harness import REACTOR

CBOR = Options.of((OptionNumber.CONTENT_FORMAT, b"\x3c"))


class Journal:
    """The events of one user, which a server reads; it outlives servers as a database does.

    The first places are events; what is "to device" is deleted when a `since` passes it, as Synapse does.
    """

    def __init__(self) -> None:
        self.events: list[str] = []
        self.deleted = 0
        self.servers: list[JournalServer] = []

    def add(self, *names: str) -> None:
        """Let events happen."""
        self.events.extend(names)
        for server in list(self.servers):
            server.news()

    def since(self, place: str | None) -> tuple[int, list[str]]:
        """The place after all events, and the events after a place; those before it are gone for good."""
        number = 0 if place is None else int(place.removeprefix("s"))
        if number < self.deleted:
            raise AssertionError(f"{place} was asked for, but {self.deleted} events were delivered")
        self.deleted = number
        return len(self.events), self.events[number:]


@attrs.define(eq=False)
class Registered:
    """A registration, or a poll that waits."""

    peer: Peer
    since: str | None
    padding: int
    in_flight: str | None = None
    polls: bool = False


class JournalServer:
    """Serves a journal to whoever asks.

    Args:
        journal: what it serves.
        observes: whether it knows Observe; if not, it holds polls back until there is news.
        tuning: of its endpoint.
        key_versions: whether it knows option 257.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        observes: bool = True,
        tuning: Tuning | None = None,
        key_versions: bool = True,
    ) -> None:
        self.journal = journal
        self.observes = observes
        self.refusal: CoapResponse | None = None
        self.refusals: list[CoapResponse] = []
        self.requests: list[CoapRequest] = []
        self.notified: list[str] = []
        self.failures: list[NotificationFailed] = []
        self.cancelled: list[RequestCancelled] = []
        self.registered: dict[int, Registered] = {}
        self.padding = 0
        self.silent = False
        self.extra: dict[str, Any] = {}
        understood = (KEY_VERSION,) if key_versions else ()
        self.endpoint = Endpoint(random=random.Random(1), tuning=tuning, understood=understood)
        self._driver = EndpointDriver(self.endpoint, REACTOR, self._send, self._on_event)
        self._port: DTLSServerPort | None = None
        journal.servers.append(self)

    @property
    def port(self) -> DTLSServerPort:
        """The DTLS port."""
        assert self._port is not None
        return self._port

    def attach(self, port: DTLSServerPort) -> None:
        """The port is there."""
        self._port = port

    def shutdown(self) -> None:
        """Stop the timer; the journal goes on without this server. Idempotent."""
        if self in self.journal.servers:
            self.journal.servers.remove(self)
        self._driver.stop()

    def association_established(self, association_id: int) -> None:
        """Nothing to do."""

    def message_received(self, association_id: int, data: bytes) -> None:
        """Take a message."""
        self._driver.receive(association_id, data)

    def association_moved(self, association_id: int) -> None:
        """Nothing to do."""

    def association_lost(self, association_id: int, reason: AssociationLost) -> None:
        """Forget the client."""
        self.endpoint.drop_peer(association_id, self._driver.now())
        self._driver.flush()

    def news(self) -> None:
        """There are events that there were not before."""
        for exchange in list(self.registered):
            self._serve(exchange)
        self._driver.flush()

    def say_last(self, response: CoapResponse) -> None:
        """End all observations with a response."""
        registered, self.registered = self.registered, {}
        for exchange in registered:
            self.endpoint.respond(exchange, response, self._driver.now())
        self._driver.flush()

    def close_associations(self) -> None:
        """Say close_notify to all clients."""
        for peer in list(self.endpoint.peers):
            assert isinstance(peer, int)
            self.port.close(peer)

    def token(self, number: int) -> bytes | None:
        """The access token that a request carried."""
        return self.requests[number].options.get(ACCESS_TOKEN)

    def queries(self) -> list[list[str]]:
        """The query parameters of all requests."""
        return [
            [argument.decode() for argument in request.options.get_all(OptionNumber.URI_QUERY)]
            for request in self.requests
        ]

    def _send(self, peer: Peer, data: bytes) -> None:
        assert isinstance(peer, int)
        self.port.send(peer, data)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self.requests.append(event.request)
            self._receive(event)
        elif isinstance(event, RequestCancelled):
            self.cancelled.append(event)
            self.registered.pop(event.exchange, None)
        elif isinstance(event, NotificationDelivered):
            registered = self.registered[event.exchange]
            registered.since, registered.in_flight = registered.in_flight, None
            self._serve(event.exchange)
        elif isinstance(event, NotificationFailed):
            self.failures.append(event)
            del self.registered[event.exchange]
            assert isinstance(event.peer, int)
            self.port.close(event.peer)

    def _receive(self, event: RequestReceived) -> None:
        options = event.request.options
        refusal = self.refusals.pop(0) if self.refusals else self.refusal
        if refusal is not None:
            self.endpoint.respond(event.exchange, refusal, self._driver.now())
            return
        if options.get_all(OptionNumber.URI_PATH)[-1] not in (b"7", b"sync"):
            self.endpoint.respond(
                event.exchange, CoapResponse(Code.CONTENT, CBOR, b"\xa0"), self._driver.now()
            )
            return
        arguments = options.get_all(OptionNumber.URI_QUERY)
        pairs = (argument.decode("latin-1").partition("=") for argument in arguments)
        query = {name: value for name, _, value in pairs}
        registered = Registered(event.peer, query.get("since", query.get("pos")), self.padding)
        self.registered[event.exchange] = registered
        if self.silent:
            del self.registered[event.exchange]
            self.endpoint.acknowledge(event.exchange, self._driver.now())
            return
        if self.observes and options.get_uint(OptionNumber.OBSERVE) == 0:
            self._notify(event.exchange, registered)
            return
        registered.polls = True
        if query.get("timeout", "0") == "0":
            self._answer(event.exchange, registered)
        else:
            self.endpoint.acknowledge(event.exchange, self._driver.now())
            self._serve(event.exchange)

    def _serve(self, exchange: int) -> None:
        """Tell the news, if there are any and nothing is on its way."""
        registered = self.registered[exchange]
        if registered.in_flight is not None or registered.since == f"s{len(self.journal.events)}":
            return
        if registered.polls:
            self._answer(exchange, registered)
        else:
            self._notify(exchange, registered)

    def _body(self, registered: Registered) -> tuple[str, CoapResponse]:
        place, events = self.journal.since(registered.since)
        body: dict[str, Any] = {"next_batch": f"s{place}", "pos": f"s{place}", "events": events}
        if registered.padding and events:
            body["padding"] = "p" * registered.padding
        return f"s{place}", CoapResponse(Code.CONTENT, CBOR, encode(body | self.extra))

    def _notify(self, exchange: int, registered: Registered) -> None:
        place, response = self._body(registered)
        registered.in_flight = place
        self.notified.append(place)
        self.endpoint.notify(exchange, response, self._driver.now())

    def _answer(self, exchange: int, registered: Registered) -> None:
        del self.registered[exchange]
        self.endpoint.respond(exchange, self._body(registered)[1], self._driver.now())
