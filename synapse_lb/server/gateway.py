# SPDX-License-Identifier: AGPL-3.0-or-later
"""From an association's messages to Matrix requests and back (MSC3079 over RFC 7252 and RFC 7959).

One gateway serves all associations of one UDP port. It owns the CoAP endpoint and its driver, and what is sticky
on each association: the access token and the CBOR key version. Whoever serves the requests is a `Dispatcher`.

    datagram -> DTLS port -> message_received -> Endpoint -> RequestReceived -> decode_request -> Dispatcher
                                                                                                      |
    datagram <- DTLS port <- driver <---------- Endpoint <- CoapResponse <--- encode_response <-------+

A registration (Observe 0) for a resource that can be observed goes to the `SyncObserver` instead of the dispatcher, and
what it sends is a notification.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator
from contextlib import suppress
from typing import Final, Protocol

from attrs import define, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from synapse_lb.coap.endpoint import Endpoint
from synapse_lb.coap.errors import ExchangeUnknown, MessageTooLarge, TooManyExchanges
from synapse_lb.coap.events import (
    CancelReason,
    CoapRequest,
    CoapResponse,
    Event,
    NotificationDelivered,
    NotificationFailed,
    NotificationFailure,
    Peer,
    PongReceived,
    RequestCancelled,
    RequestFailed,
    RequestReceived,
    ResponseDelivered,
    ResponseUndelivered,
)
from synapse_lb.coap.numbers import OptionNumber, is_success
from synapse_lb.coap.observe import DEREGISTER, REGISTER, wanted
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits, Tuning
from synapse_lb.coaps.clock import Clock
from synapse_lb.coaps.driver import EndpointDriver
from synapse_lb.msc3079.errors import MappingError
from synapse_lb.msc3079.extension import X1_WRITTEN
from synapse_lb.msc3079.mapping import (
    MappingLimits,
    decode_request,
    encode_error,
    note_token,
)
from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.msc3079.options import KEY_VERSION
from synapse_lb.msc3079.server_mapping import Answer, encode_answer
from synapse_lb.msc3079.sticky import StickyState
from synapse_lb.server.association import Association, plain
from synapse_lb.server.counters import GatewayCounters
from synapse_lb.server.dispatcher import Address, Dispatcher
from synapse_lb.server.http_size import HttpEstimate
from synapse_lb.server.news import NewsWaiter
from synapse_lb.server.observable import Observable
from synapse_lb.server.roster import Present, Roster
from synapse_lb.server.sync_observer import Observation, ObserveOptions, SyncObserver, when_deregistered
from synapse_lb.server.turnstile import Turnstile
from synapse_lb.server.unchanging import UnchangingAnswers
from synapse_lb.txdtls.errors import AssociationLost

Settling = (
    RequestCancelled | ResponseDelivered | ResponseUndelivered | NotificationDelivered | NotificationFailed
)
"""What tells of the outcome of something that was on its way to a client."""

NOTIFICATION_MAX_AGE: Final = 65535
"""s: Max-Age of a notification, the longest that takes two bytes (RFC 7641 section 4.3.1). A result of /sync does not
grow stale: while nothing is sent nothing has happened. An observer that has heard nothing for so long had better
register again. x1 leaves it out: there a notification never grows stale."""


class SecurePort(Protocol):
    """What the gateway asks of the DTLS port that hands it messages."""

    def send(self, association_id: int, data: bytes) -> None:
        """Send one message."""

    def peer_address(self, association_id: int) -> Address:
        """The address that the association is at now."""

    def confirm_address(self, association_id: int) -> None:
        """The association has answered what was sent to its present address."""

    def max_message_size(self, association_id: int) -> int:
        """Bytes that fit into one message."""

    def rtt(self, association_id: int) -> float | None:
        """The round-trip time in seconds that the handshake measured."""

    def longest_rtt(self, association_id: int) -> float | None:
        """Seconds that no round trip exceeds, where there is no `rtt`."""

    def close(self, association_id: int) -> None:
        """End an association, and tell the client; `Gateway.association_lost` follows."""

    def trust(self, association_id: int, *, known: bool = True) -> None:
        """Whether it is known whose association it is."""


@define
class _Running:
    """A request that was dispatched and not yet answered."""

    deferred: Deferred[MatrixResponse]


class Gateway:
    """Serves the associations of one DTLS port (an ``AssociationHandler`` of `synapse_lb.txdtls`).

    Args:
        dispatcher: serves the requests.
        clock: the reactor.
        random: for message ids, tokens and jitter.
        tuning: transmission parameters of the endpoint; None serves Q-Block (RFC 9177) beside the defaults.
        limits: bounds of the endpoint.
        news: tells when an observer may have to be notified; None serves registrations as plain requests.
        observe: bounds of what is observed.
        x1: whether clients may choose x1 (docs/extensions.md).
    """

    _log = Logger()

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        clock: Clock,
        random: random.Random,
        tuning: Tuning | None = None,
        limits: Limits | None = None,
        news: NewsWaiter | None = None,
        observe: ObserveOptions | None = None,
        x1: bool = True,
    ) -> None:
        self._dispatcher, self._clock = dispatcher, clock
        self._x1 = x1
        self._parted: Observable | None = None
        self._port: SecurePort | None = None
        self._associations: dict[int, Association] = {}
        self._running: dict[int, _Running] = {}
        self.counters, self._over_http = GatewayCounters(), HttpEstimate()
        self._answers: Final = UnchangingAnswers()
        self._roster = Roster(clock)
        limits = limits if limits is not None else Limits()
        self._body_limits = MappingLimits(max_inflated=limits.max_request_body)
        self.endpoint = Endpoint(
            random=random,
            tuning=tuning if tuning is not None else Tuning(q_block=True),
            limits=limits,
            understood=(KEY_VERSION, X1_WRITTEN) if x1 else (KEY_VERSION,),
            scope=self._scope,
        )
        self._driver = EndpointDriver(self.endpoint, clock, self._send, self._on_event)
        self.observer = None if news is None else SyncObserver(dispatcher, news, clock=clock, options=observe)

    def attach(self, port: SecurePort) -> None:
        """Name the port that the associations belong to; to be done before the first of them."""
        self._port = port

    @property
    def associations(self) -> int:
        """How many associations there are."""
        return len(self._associations)

    @property
    def running(self) -> int:
        """How many requests are being served."""
        return len(self._running)

    @property
    def observations(self) -> int:
        """How many observations there are."""
        return 0 if self.observer is None else len(self.observer)

    @property
    def present(self) -> list[Present]:
        """Who is connected."""
        return self._roster.list(self._associations)

    def observing(self) -> Iterator[tuple[int, Observation]]:
        """What is observed, each with the id of its association."""
        ids = {id(association): number for number, association in self._associations.items()}
        for each in self.observer or ():
            if isinstance(each.channel, _Channel) and id(each.channel.association) in ids:
                yield ids[id(each.channel.association)], each

    @property
    def send_failures(self) -> int:
        """Datagrams that the port refused to send."""
        return self._driver.send_failures

    def end_observations(self) -> None:
        """Tell all observers that the server stops, while they can still be told. Idempotent."""
        if self.observer is not None:
            self.observer.shutdown()

    def shutdown(self) -> None:
        """End all observations, cancel all requests that are being served and stop the timer. Idempotent."""
        self.end_observations()
        for association_id in list(self._associations):
            self._forget(association_id)
        self._driver.stop()

    # What the DTLS port tells

    def association_established(self, association_id: int) -> None:
        """A client has completed its handshake."""
        self._roster.came(association_id)
        port = self._attached()
        address = plain(port.peer_address(association_id))
        sticky = StickyState(allows_x1=self._x1)

        def trust(known: bool) -> None:
            port.trust(association_id, known=known)
            self.endpoint.set_peer(association_id, known=known, now=self._driver.now())

        self._associations[association_id] = Association(address, Turnstile(self._clock), sticky, trust=trust)
        self.endpoint.set_peer(
            association_id,
            max_message_size=port.max_message_size(association_id),
            rtt=port.rtt(association_id),
            longest_rtt=port.longest_rtt(association_id),
            now=self._driver.now(),
        )
        self._driver.flush()

    def message_received(self, association_id: int, data: bytes) -> None:
        """A client has sent a message."""
        self._parted = None
        self._roster.heard(association_id)
        association = self._associations.get(association_id)
        if association is not None and association.unproven and association.ping is None:
            self._ping(association_id, association)
        self._driver.receive(association_id, data)

    def association_moved(self, association_id: int) -> None:
        """A client has changed its address.

        Its record could be a copy that somebody sent from an address of his choice, so it is asked to answer a
        CoAP ping there (RFC 9146 section 6): the DTLS port sends little to the address until it has.
        """
        association = self._associations.get(association_id)
        if association is None:
            return
        self.counters.moved += 1
        association.address = plain(self._attached().peer_address(association_id))
        association.unproven = True
        if association.ping is not None:  # its answer would tell of another address
            self.endpoint.cancel(association.ping, self._driver.now())
        self._ping(association_id, association)

    def association_lost(self, association_id: int, reason: AssociationLost) -> None:
        """A client has gone: what it asked for is cancelled and what it left behind forgotten."""
        self._forget(association_id)

    # What the endpoint tells

    def _on_event(self, event: Event) -> None:
        # What a request with Observe 1 has ended comes immediately before it, from the same datagram.
        parted, self._parted = self._parted, None
        if isinstance(event, RequestReceived):
            self._receive(event.peer, event.exchange, event.request, parted)
        elif isinstance(event, RequestCancelled):
            self._settle(event, delivered=False)
            self._cancel(event.exchange, event.reason)
        elif isinstance(event, NotificationDelivered) and self.observer is not None:
            self._settle(event, delivered=True)
            self.observer.delivered(event.exchange)
        elif isinstance(event, NotificationFailed) and self.observer is not None:
            self._settle(event, delivered=False)
            self.observer.failed(event.exchange)
            if event.reason is not NotificationFailure.RESET:
                self._give_up(event.peer)
        elif isinstance(event, ResponseDelivered):
            self._settle(event, delivered=True)
        elif isinstance(event, ResponseUndelivered):
            self._settle(event, delivered=False)
            self.counters.undelivered += 1
        elif isinstance(event, PongReceived | RequestFailed):
            self._ping_ended(event)

    def _settle(self, event: Settling, *, delivered: bool) -> None:
        association = self._associations.get(event.peer) if isinstance(event.peer, int) else None
        if association is not None:
            association.settle(event.exchange, delivered=delivered)

    def _ping(self, association_id: int, association: Association) -> None:
        try:
            association.ping = self.endpoint.ping(association_id, self._driver.now())
        except TooManyExchanges:
            association.ping = None  # the next message tries again
        self._driver.flush()

    def _ping_ended(self, event: PongReceived | RequestFailed) -> None:
        assert isinstance(event.peer, int)
        association = self._associations.get(event.peer)
        if association is None or association.ping != event.exchange:
            return
        association.ping = None
        if isinstance(event, PongReceived):
            association.unproven = False
            self._attached().confirm_address(event.peer)

    def _send(self, peer: Peer, data: bytes) -> None:
        assert isinstance(peer, int)
        self._attached().send(peer, data)

    def _scope(self, peer: Peer, options: Options) -> Hashable:
        """Whose request it is: block-wise state of one user is never shown to another on the association.

        Each block is a request, so what it carries is sticky from it on, not only from the whole request on.
        """
        association = self._associations.get(peer) if isinstance(peer, int) else None
        if association is None:
            return None
        sticky = association.sticky
        with suppress(MappingError):  # which is answered when the request is whole
            note_token(options, sticky, self._body_limits)
        version = options.get_uint(KEY_VERSION)
        return sticky.token, sticky.announced_key_version if version is None else version

    # One request

    def _receive(self, peer: Peer, exchange: int, request: CoapRequest, parted: Observable | None) -> None:
        association = self._associations.get(peer) if isinstance(peer, int) else None
        if association is None:
            return
        try:
            matrix = decode_request(
                request.code, request.options, request.payload, association.sticky, self._body_limits
            )
        except MappingError as error:
            self.counters.refused += 1
            self._respond(exchange, Answer(*encode_error(error)))
            return
        wants = wanted(request.code, request.options)
        observable = None if wants is None or self.observer is None else self.observer.observable(matrix)
        if observable is None or self.observer is None:
            self._serve(association, exchange, matrix)
        elif wants == DEREGISTER:
            if parted is not None and parted.request.access_token != matrix.access_token:
                parted = None  # one user's place in the stream is nothing to another
            self._respond(exchange, encode_answer(when_deregistered(observable, parted), matrix.reply))
        elif wants == REGISTER:
            self.observer.register(exchange, observable, _Channel(self, association, exchange, matrix))

    def _serve(self, association: Association, exchange: int, matrix: MatrixRequest) -> None:
        if matrix.is_long_poll:
            self.endpoint.acknowledge(exchange, self._driver.now())
        self.counters.requests += 1
        deferred = association.turnstile.run(lambda: self._dispatcher.dispatch(matrix, association.address))
        self._running[exchange] = _Running(deferred)
        deferred.addErrback(self._failed)
        deferred.addCallback(self._answer, association, exchange, matrix)
        deferred.addErrback(lambda failure: self._log.failure("A response was lost", failure=failure))

    def _failed(self, failure: Failure) -> MatrixResponse | None:
        """The dispatcher itself failed; what servlets raise is a response."""
        if failure.check(CancelledError):
            return None
        self.counters.failures += 1
        self._log.failure("A request could not be dispatched", failure=failure)
        return MatrixResponse(500, {"errcode": "M_UNKNOWN", "error": "Internal server error"})

    def _answer(
        self,
        response: MatrixResponse | None,
        association: Association,
        exchange: int,
        request: MatrixRequest,
    ) -> int:
        """Send the response on its way; the number of bytes is for the dispatcher's logs."""
        self._running.pop(exchange, None)
        return 0 if response is None else self._finish(response, association, exchange, request)

    def _finish(
        self, response: MatrixResponse, association: Association, exchange: int, request: MatrixRequest
    ) -> int:
        association.settle(exchange, delivered=False)
        association.note_standing(request, response)
        answer = self._encode(response, request)
        size = self._respond(exchange, answer)
        if self.endpoint.is_delivering(exchange):
            association.on_its_way(exchange, answer.definitions)
        if size:
            self.counters.http_bytes += self._over_http.of(request, response, size)
        return size

    def _encode(self, response: MatrixResponse, request: MatrixRequest) -> Answer:
        encoded = self._answers.encode(response, request)
        if encoded.code >> 5 == 5 and response.status < 500:
            self.counters.failures += 1
            self._log.error("The answer to {request} could not be encoded", request=request)
        return encoded

    def _notify(
        self, exchange: int, response: MatrixResponse, association: Association, request: MatrixRequest
    ) -> int | None:
        """Send a notification, or the last response if it cannot be sent; returns the bytes of the former."""
        encoded = self._encode(response, request)
        if not is_success(encoded.code):
            self._respond(exchange, encoded)
            return None
        options, payload = Options.of(*encoded.options), encoded.payload
        if request.reply.x1 is None:
            options = options.with_uint(OptionNumber.MAX_AGE, NOTIFICATION_MAX_AGE)
        try:
            self.endpoint.notify(exchange, CoapResponse(encoded.code, options, payload), self._driver.now())
        except ExchangeUnknown:
            # Ended by the client, of which the event is on its way.
            return 0
        except MessageTooLarge as error:
            body = {"errcode": "M_TOO_LARGE", "error": f"The result has {error.size} bytes"}
            self._respond(exchange, encode_answer(MatrixResponse(500, body), request.reply))
            return None
        association.on_its_way(exchange, encoded.definitions)
        self.counters.response_bytes += len(payload)
        self.counters.http_bytes += self._over_http.of(request, response, len(payload))
        self._driver.flush()
        return len(payload)

    def _respond(self, exchange: int, answer: Answer) -> int:
        options, report = Options.of(*answer.options), bool(answer.definitions)
        response = CoapResponse(answer.code, options, answer.payload, report=report)
        try:
            self.endpoint.respond(exchange, response, self._driver.now())
        except ExchangeUnknown:
            # Cancelled by the client, of which the event is on its way.
            return 0
        self.counters.responses += 1
        self.counters.response_bytes += len(answer.payload)
        self._driver.flush()
        return len(answer.payload)

    def _cancel(self, exchange: int, reason: CancelReason) -> None:
        observed = None if self.observer is None else self.observer.cancelled(exchange)
        if reason is CancelReason.DEREGISTERED:
            self._parted = observed
        running = self._running.pop(exchange, None)
        if running is not None:
            self.counters.cancelled += 1
            running.deferred.cancel()

    def _give_up(self, peer: Peer) -> None:
        """End the association of an observer that a notification did not reach.

        It would go on to wait in silence: its pings would be answered, and nothing else tells it that the server has
        forgotten the observation. It either gets the close_notify, or notices that its next ping is not answered.
        """
        assert isinstance(peer, int)
        self._attached().close(peer)

    def _forget(self, association_id: int) -> None:
        if self._associations.pop(association_id, None) is None:
            return
        self._roster.went(association_id)
        self.endpoint.drop_peer(association_id, self._driver.now())
        self._driver.flush()

    def _attached(self) -> SecurePort:
        assert self._port is not None, "attach() comes before the first association"
        return self._port


@frozen
class _Channel:
    """The way to the client of one registration (a ``Channel`` of `synapse_lb.server.sync_observer`)."""

    gateway: Gateway
    association: Association
    exchange: int
    request: MatrixRequest

    @property
    def address(self) -> Address:
        """Where the client is now."""
        return self.association.address

    def notify(self, response: MatrixResponse) -> int | None:
        """Send a notification; None if it cannot be sent."""
        self.association.note_standing(self.request, response)
        return self.gateway._notify(self.exchange, response, self.association, self.request)

    def finish(self, response: MatrixResponse) -> int:
        """Send the last response."""
        return self.gateway._finish(response, self.association, self.exchange, self.request)
