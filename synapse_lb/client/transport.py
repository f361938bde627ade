# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which way a client's requests go: CoAP, or HTTPS while UDP does not get through.

    UNDECIDED --handshake--> COAP --handshake fails--> HTTPS --a probe's handshake, later and later--> COAP

A request that was not sent over CoAP goes over HTTPS. One that was sent, and whose association then ended, may have
been run: it is repeated only where that does no harm.
"""

from __future__ import annotations

import enum
import random
import re
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode
from weakref import WeakSet

import attrs
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure

from synapse_lb.client import errors
from synapse_lb.client.discovery import Discovered, Discovery
from synapse_lb.client.https import HttpsLimits, HttpsResponse, HttpsTransport
from synapse_lb.client.persistence import Backoff, Persistence
from synapse_lb.client.polling import HttpsRegistration
from synapse_lb.client.query import full_path, pairs_of
from synapse_lb.client.subject import Asking, MatrixSubject
from synapse_lb.client.uri import CoapUri
from synapse_lb.msc3079.mapping import MatrixResponse
from synapse_lb.txdtls.context import ClientVerification

if TYPE_CHECKING:
    from synapse_lb.client.channel import Channel
    from synapse_lb.client.keeper import Keeper
    from synapse_lb.client.query import Query
    from synapse_lb.client.registration import Registration

_CARRIED: Final = re.compile(r"/_matrix/client/|/[0-9A-Za-z](/|$)")
"""Paths and path codes that MSC3079 is about."""

_LEFT_OUT: Final = re.compile(
    r"/_matrix/client/(v1/media/|[^/]+/(login/(sso|cas|saml2)/|auth/[^/]+/fallback/|login/fallback))"
)
"""Under `/_matrix/client`, but with answers that are media, redirects or web pages."""

_WITH_TRANSACTION: Final = re.compile(
    r"/_matrix/client/[^/]+/(rooms/[^/]+/(send|redact)/[^/]+/[^/]+|sendToDevice/[^/]+/[^/]+)/?"
)


class Transport(enum.Enum):
    """How requests go."""

    UNDECIDED = "undecided"
    """There was no request yet."""
    COAP = "coap"
    """Over CoAP."""
    HTTPS = "https"
    """Over HTTPS: the server speaks no CoAP, or UDP does not get through."""


@attrs.frozen
class TransportChange:
    """Requests go another way from now on.

    Attributes:
        transport: which.
        error: why CoAP does not work.
        retry_in: seconds until CoAP is tried again.
    """

    transport: Transport
    error: Exception | None = None
    retry_in: float | None = None


def _positive(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{attribute.name} must be a positive number, not {value!r}")


@attrs.frozen(kw_only=True)
class Fallback:
    """How a client falls back to HTTPS and returns, of one made with an `https` address.

    Attributes:
        patience: seconds that a DTLS handshake may take until requests go over HTTPS; 8.
        probe_initial: longest wait until CoAP is tried again, in seconds; 30. It doubles with each attempt.
        probe_max: longest wait between two attempts, in seconds; 3600.
        verification: how the HTTPS server is verified; None does it as for DTLS.
        limits: bounds of what goes over HTTPS.

    Raises:
        ValueError: a time is not positive.
    """

    patience: float = attrs.field(default=8.0, validator=_positive)
    probe_initial: float = attrs.field(default=30.0, validator=_positive)
    probe_max: float = attrs.field(default=3600.0, validator=_positive)
    verification: ClientVerification | None = None
    limits: HttpsLimits = attrs.field(factory=HttpsLimits)


@attrs.frozen
class Call:
    """A Matrix request, as `LowBandwidthClient.request` was given it."""

    method: str
    path: str
    query: list[tuple[str, str]] = attrs.field(repr=False)
    json: Any = attrs.field(repr=False)
    token: str | None = attrs.field(repr=False)

    @property
    def left_out(self) -> bool:
        """Whether MSC3079 leaves it to HTTPS: media, redirects and web pages, and all that is no client API."""
        path = self.path.partition("?")[0]
        return not _CARRIED.match(path) or _LEFT_OUT.match(path) is not None

    @property
    def repeatable(self) -> bool:
        """Whether it may be run twice without harm: it only reads, or has a transaction id."""
        if self.method == "GET":
            return True
        return self.method == "PUT" and _WITH_TRANSACTION.fullmatch(self.path.partition("?")[0]) is not None


class Switch:
    """Sends each request over CoAP or HTTPS.

    Args:
        reactor: Twisted's reactor.
        home: the address at which discovery begins.
        discovery: finds the homeserver; None makes one, which ends with this.
        fallback: the times.
        verification: how the DTLS server is verified, and HTTPS servers unless `fallback` says otherwise.
        random: source of the probes' jitter.
        on_change: told of each change; None tells nobody.

    Attributes:
        transport: which way requests go.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        home: str,
        *,
        discovery: Discovery | None,
        fallback: Fallback,
        verification: ClientVerification,
        random: random.Random,
        on_change: Callable[[TransportChange], None] | None,
    ) -> None:
        self.transport = Transport.UNDECIDED
        self._reactor = reactor
        self._home = home
        verification = fallback.verification or verification
        self._own_discovery = discovery is None
        self._discovery = discovery or Discovery(reactor, verification=verification)
        self._https = HttpsTransport(reactor, verification, fallback.limits)
        times = Persistence(retry_initial=fallback.probe_initial, retry_max=fallback.probe_max)
        self._backoff = Backoff(times, random)
        self._on_change = on_change
        self._keeper: Keeper | None = None
        self._found: Discovered | None = None
        self._timer: Any = None
        self._probing: Deferred[Any] | None = None
        self._polls: WeakSet[HttpsRegistration] = WeakSet()
        self._closed = False

    def attach(self, keeper: Keeper) -> None:
        """Take what keeps the association."""
        self._keeper = keeper

    def discover(self) -> Deferred[Discovered]:
        """What is known of the homeserver.

        Returns:
            A Deferred that fails with a `DiscoveryError`.
        """
        return self._discovery.look_up(self._home).addCallbacks(self._remember, self._stale)

    def address(self) -> Deferred[CoapUri]:
        """Where the homeserver speaks CoAP.

        Returns:
            A Deferred that fails with a `DiscoveryError` or `NotOffered`.
        """
        return self.discover().addCallback(_coap_of)

    async def request(
        self, call: Call, coap: Callable[[], Coroutine[Any, Any, MatrixResponse]]
    ) -> MatrixResponse:
        """Make a request.

        Args:
            call: what is asked.
            coap: makes it over CoAP.
        """
        if not call.left_out and await self._coap_works():
            try:
                return await coap()
            except errors.BadRequest:
                pass  # CoAP has no form for it, but HTTP may have
            except errors.ConnectError as error:
                self._fall_back(error)
            except (errors.ConnectionLost, errors.RequestTimeout):
                if not call.repeatable or self._association is not None:
                    raise
                if await self._coap_works():
                    return await coap()
        found = await self._base()
        return await self._https.request(
            call.method, found.base_url, full_path(call.path), call.query, call.json, call.token
        )

    async def fetch(
        self,
        method: str,
        path: str,
        query: Query | None,
        *,
        headers: Mapping[str, str] | None,
        body: bytes | None,
        token: str | None,
    ) -> HttpsResponse:
        """Make a request over HTTPS, whatever it is."""
        found = await self._base()
        pairs = pairs_of(query)
        url = found.base_url + path + (f"{'&' if '?' in path else '?'}{urlencode(pairs)}" if pairs else "")
        authorization = {} if token is None else {"Authorization": f"Bearer {token}"}
        return await self._https.fetch(method, url, headers={**authorization, **(headers or {})}, body=body)

    async def register(
        self,
        subject: MatrixSubject,
        token: str | None,
        asking: Asking,
        coap: Callable[[], Coroutine[Any, Any, Registration]],
    ) -> Registration:
        """Register an observation over CoAP, or ask once over HTTPS.

        Args:
            subject: what is observed.
            token: access token.
            asking: how it is asked.
            coap: registers over CoAP.
        """
        if await self._coap_works():
            try:
                return await coap()
            except errors.ConnectError as error:
                self._fall_back(error)
        found = await self._base()
        path, query = full_path(subject.path), subject.parameters(asking)
        answer = self._https.request(subject.method, found.base_url, path, query, subject.json, token)
        poll = HttpsRegistration(answer, is_long=asking.timeout is not None)
        self._polls.add(poll)
        return poll

    def associated(self) -> None:
        """Use CoAP, because there is an association."""
        self._backoff.reset()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.transport is not Transport.COAP:
            self._change(TransportChange(Transport.COAP))
            for poll in list(self._polls):
                poll.give_way()

    def network_changed(self) -> None:
        """Try CoAP again at once, if requests go over HTTPS."""
        if self._timer is not None:
            self._timer.cancel()
            self._backoff.reset()
            self._probe()

    def close(self) -> Deferred[None]:
        """Stop probing and close the HTTPS connections. Idempotent.

        Returns:
            A Deferred that fires when they are closed.
        """
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        closing = [self._https.close()]
        if self._own_discovery:
            closing.append(self._discovery.close())
        return gatherResults(closing).addCallback(lambda _: None)

    @property
    def _association(self) -> Channel | None:
        assert self._keeper is not None
        return self._keeper.current

    async def _base(self) -> Discovered:
        return self._found or await self.discover()

    def _remember(self, found: Discovered) -> Discovered:
        self._found = found
        return found

    def _stale(self, failure: Failure) -> Discovered | Failure:
        """What was known before is better than nothing."""
        failure.trap(errors.DiscoveryError)
        return self._found or failure

    async def _coap_works(self) -> bool:
        """Whether there is an association; makes one unless it is known that this does not work now."""
        if self.transport is Transport.HTTPS:
            return False
        assert self._keeper is not None
        try:
            await self._keeper.ready()
        except errors.DiscoveryError:
            raise
        except errors.ConnectError as error:
            self._fall_back(error)
            return False
        self.associated()
        return True

    def _fall_back(self, error: Exception) -> None:
        """Requests go over HTTPS until a probe succeeds; many may come here with the same failure."""
        if self._closed or self._timer is not None or self._probing is not None:
            return
        self._probe_later(error)

    def _probe_later(self, error: Exception) -> None:
        delay = self._backoff.after_failure()
        self._timer = self._reactor.callLater(delay, self._probe)
        self._change(TransportChange(Transport.HTTPS, error, delay))

    def _probe(self) -> None:
        assert self._keeper is not None
        self._timer = None
        self._probing = self._keeper.ready()
        self._probing.addCallbacks(self._probed, self._probe_failed)
        self._probing.addErrback(lambda failure: self._log.failure("A probe went wrong", failure=failure))

    def _probed(self, _: object) -> None:
        self._probing = None
        self.associated()

    def _probe_failed(self, failure: Failure) -> None:
        self._probing = None
        failure.trap(errors.ClientError, CancelledError)
        if not self._closed and isinstance(failure.value, Exception):
            self._probe_later(failure.value)

    def _change(self, change: TransportChange) -> None:
        self.transport = change.transport
        if self._on_change is None:
            return
        try:
            self._on_change(change)
        except Exception:
            self._log.failure("A change of the transport could not be told")


def _coap_of(found: Discovered) -> CoapUri:
    if found.coap is None:
        raise errors.NotOffered(f"{found.base_url} does not offer MSC3079")
    return found.coap
