# SPDX-License-Identifier: AGPL-3.0-or-later
"""One association of a client: its CoAP endpoint and the requests under way on it (RFC 7252 section 9.1)."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from synapse_lb.client.doubt import Doubts
from synapse_lb.client.errors import (
    ClientError,
    ConnectionLost,
    RequestFailed,
    RequestRejected,
    RequestTimeout,
    Superseded,
    TooManyRequests,
)
from synapse_lb.client.pace import Pace, Silences
from synapse_lb.client.persistence import Heartbeat
from synapse_lb.client.registration import CoapRegistration
from synapse_lb.client.sticky import StickySender
from synapse_lb.coap import errors as coap_errors
from synapse_lb.coap import events
from synapse_lb.coap.counters import Counters
from synapse_lb.coap.endpoint import Endpoint
from synapse_lb.coap.events import CoapRequest, CoapResponse
from synapse_lb.coap.numbers import Code
from synapse_lb.coap.tuning import Limits, Tuning
from synapse_lb.coaps.driver import EndpointDriver
from synapse_lb.txdtls.errors import DTLSError

if TYPE_CHECKING:
    from synapse_lb.coaps.clock import Clock
    from synapse_lb.txdtls.client import ClientAssociation
    from synapse_lb.txdtls.errors import AssociationLost

T = TypeVar("T")

_SERVER: Final = "server"
"""The one peer of the endpoint."""

_EMPTY_SIZE: Final = 4
_EMPTY_CONFIRMABLE: Final = 0x40
"""Version 1, Confirmable, no token (RFC 7252 section 3)."""


class ChannelKeeper(Protocol):
    """Whom a channel tells of itself."""

    def lost(self, channel: Channel, reason: Exception) -> None:
        """The association has ended; once."""

    def doubted(self, channel: Channel) -> None:
        """Messages were repeated in vain."""

    def relieved(self, channel: Channel) -> None:
        """Something is heard after all."""


class Channel:
    """The requests on one association; an `AssociationHandler` of txdtls.

    Args:
        clock: the reactor.
        sticky: what the server of this association has been told.
        tuning: how messages are retransmitted.
        limits: the bounds of the endpoint's tables.
        pace: how often the heartbeat beats while something is observed.
        random: source of message ids, tokens and jitter.
        q_block: whether the server is offered Q-Block (RFC 9177).
        on_q_block_refused: called when the server has shown that it does not know it.
        keeper: is told how the association fares.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        sticky: StickySender,
        tuning: Tuning,
        limits: Limits,
        pace: Pace,
        random: random.Random,
        q_block: bool,
        on_q_block_refused: Callable[[], None],
        keeper: ChannelKeeper,
    ) -> None:
        self.sticky: Final = sticky
        self.lost = False
        self._keeper = keeper
        self._q_block = q_block
        self._on_q_block_refused = on_q_block_refused
        self._association: ClientAssociation | None = None
        self._doubts = Doubts(clock, lambda: keeper.doubted(self), lambda: keeper.relieved(self))
        self._repeatable: set[int] = set()
        self._waiting: dict[int, tuple[Deferred[CoapResponse], float]] = {}
        self._pings: dict[int, tuple[Deferred[None], float]] = {}
        self._registrations: dict[int, tuple[CoapRegistration, float]] = {}
        self._heard_at = float("-inf")
        self._asked_since: float | None = None
        self._patience = tuning.max_transmit_wait
        self._silences = Silences(pace, self._now, self._renew_heartbeat)
        self._why_lost: str | None = None
        # Message ids and tokens need to be hard to guess only off the path, and DTLS keeps that out.
        self._endpoint = Endpoint(random=random, tuning=tuning, limits=limits)
        self._driver = EndpointDriver(self._endpoint, clock, self._send, self._on_event)
        self._heartbeat = Heartbeat(
            clock,
            interval=lambda: pace.interval(self._now()),
            silent_since=lambda: self._silences.since,
            now=self._now,
            ping=self.ping,
        )

    @property
    def association(self) -> ClientAssociation:
        """The association; there is one from `attach` on."""
        assert self._association is not None
        return self._association

    @property
    def endpoint_counters(self) -> Counters:
        """What the endpoint of this association has done."""
        return self._endpoint.counters

    @property
    def requests_under_way(self) -> int:
        """How many requests wait for their answer, observations included."""
        return len(self._waiting) + len(self._registrations)

    def attach(self, association: ClientAssociation) -> None:
        """Take the association whose handshake has just been completed."""
        self._association = association
        self.sticky.x1.when_in_force(association.use_compact)
        self._endpoint.set_peer(
            _SERVER,
            max_message_size=association.max_message_size,
            rtt=association.rtt,
            longest_rtt=association.longest_rtt,
            q_block=self._q_block,
            now=self._driver.now(),
        )

    def request(self, request: CoapRequest, *, repeatable: bool = False) -> Deferred[CoapResponse]:
        """Send a request; cancelling the Deferred cancels the exchange.

        Args:
            request: the request.
            repeatable: whether it may be run twice without harm; then it may fail with `Superseded`, to be made again.

        Raises:
            ClientError: it cannot be sent: the association has ended, a limit is reached, or an option or the
                message has no wire form.
        """
        exchange = self._request(request)
        if repeatable:
            self._repeatable.add(exchange)
        return self._wait_for_answer(exchange).addBoth(self._no_longer_waits, exchange)

    def _no_longer_waits(self, result: T, exchange: int) -> T:
        self._repeatable.discard(exchange)
        return result

    def ping(self) -> Deferred[None]:
        """Ask whether the server is there (RFC 7252 section 4.3); cancelling the Deferred forgets the ping.

        Returns:
            A Deferred that fails with a `ClientError`, and then the association has ended unless something else
            was heard meanwhile.

        Raises:
            ClientError: it cannot be sent.
        """
        if self.lost:
            raise ConnectionLost("the association has ended")
        started = self._driver.now()
        try:
            exchange = self._endpoint.ping(_SERVER, started)
        except coap_errors.CoapError as error:
            raise _client_error(error) from error
        answer: Deferred[None] = Deferred(lambda _: self._cancel(exchange))
        self._pings[exchange] = answer, started
        self._driver.flush()
        return answer

    def rebind(self) -> None:
        """Use a new local socket, and tell the server at once with a CoAP ping (RFC 7252 section 4.3).

        Raises:
            ConnectionLost: there is no such socket, or the association has ended.
        """
        try:
            self.association.rebind()
        except DTLSError as error:
            raise ConnectionLost(f"the association cannot use a new socket: {error}") from error
        self._silences.restart()
        self._doubts.forget()
        with suppress(coap_errors.TooManyExchanges):  # then there is enough under way to tell the server
            self._endpoint.ping(_SERVER, self._driver.now())
        self._driver.flush()

    def observe(self, request: CoapRequest, registration: CoapRegistration) -> int:
        """Send a request with Observe, and give the registration what comes of it.

        Returns:
            The number of the exchange.

        Raises:
            ClientError: it cannot be sent.
        """
        exchange = self._request(request)
        self._registrations[exchange] = registration, self._driver.now()
        self._heartbeat.start()
        self._driver.flush()
        return exchange

    def confirm(self, exchange: int) -> None:
        """Acknowledge the oldest notification of an observation that is not confirmed."""
        self._endpoint.confirm(exchange, self._driver.now())
        self._driver.flush()

    def forget(self, exchange: int) -> None:
        """End an observation without a word, but for a Reset to its next notification."""
        if self._registrations.pop(exchange, None) is not None and not self.lost:
            self._endpoint.cancel(exchange, self._driver.now())
            self._driver.flush()
            self._rest()

    def deregister(self, exchange: int, request: CoapRequest) -> Deferred[CoapResponse]:
        """End an observation with a request, which gets its token (RFC 7641 section 3.6).

        Returns:
            A Deferred of the answer.

        Raises:
            ClientError: it cannot be sent.
        """
        following = self._request(request, replacing=exchange)
        self._registrations.pop(exchange, None)
        answer = self._wait_for_answer(following)
        self._rest()
        return answer

    def supersede(self) -> None:
        """Let go of what another association can do, which answers where this one is silent: requests that may be
        repeated, and observations. Others wait on, for they may have been run."""
        error = Superseded("another association has taken its place")
        self._silences.unanswered()
        self._heartbeat.stop()
        self._doubts.stop()
        now = self._driver.now()
        answers = [self._waiting.pop(exchange)[0] for exchange in self._repeatable & self._waiting.keys()]
        registrations, self._registrations = self._registrations, {}
        for exchange in (*self._repeatable, *registrations):
            self._endpoint.cancel(exchange, now)
        self._driver.flush()
        for answer in answers:
            answer.errback(Failure(error))
        for registration, _ in registrations.values():
            registration.failed(error)

    def close(self) -> Deferred[None]:
        """Say close_notify; requests under way and observations fail with `ConnectionLost`. Idempotent.

        Returns:
            A Deferred that fires when the socket is closed.
        """
        return self.association.close()

    def association_established(self, association_id: int) -> None:
        """Nothing to do: `attach` follows with the association itself."""

    def message_received(self, association_id: int, data: bytes) -> None:
        """Take one datagram's CoAP message."""
        self._heard_at, self._asked_since = self._driver.now(), None
        self._silences.heard(ping=_is_ping(data))
        self._doubts.heard()
        self._driver.receive(_SERVER, data)

    def association_moved(self, association_id: int) -> None:
        """Nothing to do: to a client the server stays where it is."""

    def association_lost(self, association_id: int, reason: AssociationLost) -> None:
        """Fail what is under way and let go of everything."""
        if self.lost:
            return
        self.lost = True
        self._driver.stop()
        self._heartbeat.stop()
        self._doubts.stop()
        waiting, self._waiting = self._waiting, {}
        pings, self._pings = self._pings, {}
        registrations, self._registrations = self._registrations, {}
        self._keeper.lost(self, reason)
        for answer, _ in waiting.values():
            answer.errback(Failure(self._lost_error(reason)))
        for ping, _ in pings.values():
            if not ping.called:
                ping.errback(Failure(self._lost_error(reason)))
        for registration, _ in registrations.values():
            registration.failed(self._lost_error(reason))

    def _lost_error(self, reason: AssociationLost) -> ConnectionLost:
        error = ConnectionLost(f"the association has ended: {self._why_lost or reason}")
        error.__cause__ = reason
        return error

    def _request(self, request: CoapRequest, replacing: int | None = None) -> int:
        if self.lost:
            raise ConnectionLost("the association has ended")
        now = self._driver.now()
        if self._asked_since is None:
            self._asked_since = now
        try:
            return self._endpoint.request(_SERVER, request, now, replacing=replacing)
        except coap_errors.CoapError as error:
            raise _client_error(error) from error

    def _wait_for_answer(self, exchange: int) -> Deferred[CoapResponse]:
        answer: Deferred[CoapResponse] = Deferred(lambda _: self._cancel(exchange))
        self._waiting[exchange] = answer, self._driver.now()
        self._driver.flush()
        return answer

    def _rest(self) -> None:
        """Stop the heartbeat if nothing is observed: requests notice by themselves that nobody answers."""
        if not self._registrations:
            self._heartbeat.stop()

    def _now(self) -> float:
        return self._driver.now()

    def _renew_heartbeat(self) -> None:
        self._heartbeat.renew()

    def _send(self, peer: events.Peer, data: bytes) -> None:
        self._silences.sent()
        self.association.send(data)
        self._doubts.sent(data)

    def _cancel(self, exchange: int) -> None:
        # The Deferred fails with CancelledError by itself when its canceller returns.
        known = self._waiting.pop(exchange, None) or self._pings.pop(exchange, None)
        if known is None or self.lost:
            return
        now = self._driver.now()
        self._endpoint.cancel(exchange, now)
        self._driver.flush()
        if self._asked_since is not None and now - self._asked_since >= self._patience:
            # Whoever cancels each request before CoAP gives it up would never learn that the server knows nothing of
            # this association any more.
            self._give_up("the server does not answer")

    def _on_event(self, event: events.Event) -> None:
        if isinstance(event, events.ResponseReceived):
            self._answered(event)
        elif isinstance(event, events.NotificationReceived):
            if (registered := self._registrations.get(event.exchange)) is not None:
                registered[0].notified(event.response)
        elif isinstance(event, events.RequestFailed):
            self._failed(event)
        elif isinstance(event, events.PongReceived):
            if (ping := self._pings.pop(event.exchange, None)) is not None:
                ping[0].callback(None)
        elif isinstance(event, events.RequestReceived):
            # A client has no resources.
            self._endpoint.respond(event.exchange, CoapResponse(Code.NOT_FOUND), self._driver.now())

    def _answered(self, event: events.ResponseReceived) -> None:
        if self._q_block and self._endpoint.refuses_q_block(_SERVER):
            self._q_block = False
            self._on_q_block_refused()
        if (waiting := self._waiting.pop(event.exchange, None)) is not None:
            waiting[0].callback(event.response)
        elif (registered := self._registrations.pop(event.exchange, None)) is not None:
            registered[0].answered(event.response)
            self._rest()

    def _failed(self, event: events.RequestFailed) -> None:
        pending = (
            self._waiting.pop(event.exchange, None)
            or self._pings.pop(event.exchange, None)
            or self._registrations.pop(event.exchange, None)
        )
        if pending is None:
            return
        what, started = pending
        error = _client_error(event.error)
        error.__cause__ = event.error
        if isinstance(event.error, coap_errors.RequestTimedOut) and self._heard_at < started:
            # A server that restarted without a word answers no record of its old associations, and only a
            # new handshake can tell. Closed before the caller hears of it, so that a retry makes one.
            self._give_up(str(error))
        if isinstance(what, CoapRegistration):
            what.failed(error)
            self._rest()
        elif not what.called:
            # The heartbeat gives its ping up by itself when the association ends.
            what.errback(Failure(error))

    def _give_up(self, why: str) -> None:
        """End the association, since nobody answers on it; requests under way fail."""
        self._why_lost = why
        self._silences.unanswered()
        self.close()


def _is_ping(data: bytes) -> bool:
    """Whether a datagram is a CoAP ping: an empty Confirmable message (RFC 7252 section 4.3)."""
    return len(data) == _EMPTY_SIZE and data[0] == _EMPTY_CONFIRMABLE and data[1] == Code.EMPTY


def _client_error(error: coap_errors.CoapError) -> ClientError:
    """The client's error for one of the endpoint."""
    if isinstance(error, coap_errors.RequestTimedOut):
        return RequestTimeout("the server does not answer")
    if isinstance(error, coap_errors.RequestReset):
        return RequestRejected("the server rejected the request with a Reset")
    if isinstance(error, coap_errors.PeerGone):
        return ConnectionLost("the association has ended")
    if isinstance(error, coap_errors.TooManyExchanges):
        return TooManyRequests("too many requests are under way")
    return RequestFailed(str(error))
