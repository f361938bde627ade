# SPDX-License-Identifier: AGPL-3.0-or-later
"""A Matrix client over CoAP, CBOR and DTLS (MSC3079): requests in, Matrix answers out."""

from __future__ import annotations

import random as random_module
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Literal, TypeVar

import attrs
from twisted.internet.defer import Deferred, gatherResults

from synapse_lb.client.channel import Channel
from synapse_lb.client.connector import AssociationInfo, Connector, fixed
from synapse_lb.client.counters import Traffic
from synapse_lb.client.dialect import Dialect
from synapse_lb.client.discovery import Discovered, Discovery, home_of
from synapse_lb.client.errors import ClientError, HttpsUnknown, RequestTimeout, Superseded
from synapse_lb.client.extension import Wish
from synapse_lb.client.https import HttpsResponse
from synapse_lb.client.keeper import Keeper
from synapse_lb.client.large import may_be_large
from synapse_lb.client.observation import Change, Observation, State
from synapse_lb.client.observing import Observer
from synapse_lb.client.pace import Pace
from synapse_lb.client.persistence import Persistence
from synapse_lb.client.query import Query, pairs_of
from synapse_lb.client.registration import CoapRegistration, Registration
from synapse_lb.client.sticky import Carried, StickySender, unmixed
from synapse_lb.client.subject import (
    MISSING_TOKEN,
    Asking,
    Handler,
    MatrixSubject,
    RawSubject,
    Subject,
    decoded,
)
from synapse_lb.client.transport import Call, Fallback, Switch, Transport, TransportChange
from synapse_lb.client.uri import parse_server
from synapse_lb.coap.counters import Counters
from synapse_lb.coap.events import CoapRequest, CoapResponse
from synapse_lb.coap.numbers import Code
from synapse_lb.coap.tuning import Limits, Tuning
from synapse_lb.msc3079.extension import UNKNOWN_ALIAS
from synapse_lb.msc3079.mapping import NO_BODY, MatrixResponse
from synapse_lb.txdtls.context import ClientVerification

T = TypeVar("T")


class LowBandwidthClient(Observer):
    """Speaks MSC3079 with one homeserver, over one DTLS association that all calls share.

    The first request makes the association; when it has ended, the next request makes a new one and resumes
    the DTLS session where the server still knows it. Requests that were under way when it ended fail with
    `ConnectionLost`, since the server may have run them. Everything happens on the reactor's thread.

    The access token crosses the wire once for each association (MSC3079's option 256 is sticky) as long as
    all calls have the same one. When calls with different tokens overlap, each carries its own from then on.

    Args:
        reactor: Twisted's reactor.
        server: `https://example.com` or a user id `@alice:example.com`, and the homeserver is discovered, and asked
            over HTTPS where and while CoAP does not work; or `coaps://host:port` or `host:port`, and there is only
            CoAP. The port is 5684 if it is not given.
        verification: how the server's certificate is checked; None trusts the system's authorities.
        key_version: version of the integer keys in bodies, which answers are asked to have too, with option 257
            once for each association. A server that answers 4.02 to it is not asked again and gets text keys.
            None uses text keys and never sends the option, which is critical: servers that do not know it
            refuse it.
        path_codes: send the MSC's short codes in place of paths.
        deflate: let answers that may be large come compressed (Content-Format 11060), which takes three bytes in the
            request, and send bodies so to a server that has shown that it can. What may hold a secret is never
            compressed. A server that answers 4.06 or 4.15 gets the request without it, and is not asked again.
        extensions: whether requests and answers are written in x1 (docs/extensions.md), which takes the fewest bytes:
            "auto" if the server has said in an answer to `/versions` that it has it; "known" if that is known from an
            earlier client (`speaks_x1`); True finds out with the first request of all; False never.
        q_block: whether large bodies go and come by Q-Block (RFC 9177), many blocks at a time: "auto" offers it
            for request bodies of several blocks, and where an answer may be large; True for every request, raw
            ones included; False for none. A server that answers 4.02 to the offer gets the request without it,
            and no further offer from this client.
        session: a DTLS session to resume, from the `session` of an earlier client.
        keylog: called with each line of key material (NSS key log format, without its line end).
        connect_timeout: seconds that a handshake may take; None leaves it to `fallback` where there is HTTPS, and
            else to the DTLS layer.
        fallback: how the client falls back to HTTPS and returns.
        discovery: finds homeservers; to be shared by several clients. None makes one of the client's own.
        on_transport: told when requests go another way, and each time that CoAP was tried again in vain.
        tuning: retransmission parameters of CoAP.
        limits: bounds of CoAP.
        persistence: the times of observations.
        known_silence: seconds, from the `known_silence` of an earlier client in the same network.
        random: source of the jitter with which observations return, and of CoAP's message ids, tokens and jitter.

    Raises:
        BadUri: the server's address makes no sense.
        AuthoritiesError: the file of the authorities cannot be used.
        ValueError: there is no such key version, or no such wish for extensions.
    """

    def __init__(
        self,
        reactor: Any,
        server: str,
        *,
        verification: ClientVerification | None = None,
        key_version: int | None = 1,
        path_codes: bool = True,
        deflate: bool = True,
        extensions: Wish = "auto",
        q_block: Literal["auto"] | bool = "auto",
        session: bytes | None = None,
        keylog: Callable[[bytes], None] | None = None,
        connect_timeout: float | None = None,
        fallback: Fallback | None = None,
        discovery: Discovery | None = None,
        on_transport: Callable[[TransportChange], None] | None = None,
        tuning: Tuning | None = None,
        limits: Limits | None = None,
        persistence: Persistence | None = None,
        known_silence: float | None = None,
        random: random_module.Random | None = None,
    ) -> None:
        super().__init__(Dialect.chosen(key_version, path_codes, deflate, extensions))
        self._reactor = reactor
        self._q_block = q_block
        self._q_block_refused = False
        self._tuning = attrs.evolve(tuning or Tuning(), q_block=q_block is not False)
        self._limits = limits or Limits()
        self._persistence = times = persistence or Persistence()
        self._pace = Pace(times.first_heartbeat, times.heartbeat, known_silence)
        self._random = random or random_module.Random()
        self._several_tokens = False
        self._observations: set[Observation] = set()
        verification = verification or ClientVerification.system()
        fallback = fallback or Fallback()
        home = home_of(server)
        self._switch = None
        if home is not None:
            self._switch = Switch(
                reactor,
                home,
                discovery=discovery,
                fallback=fallback,
                verification=verification,
                random=self._random,
                on_change=on_transport,
            )
            connect_timeout = connect_timeout or fallback.patience
        connector = Connector(
            reactor,
            fixed(parse_server(server)) if self._switch is None else self._switch.address,
            verification=verification,
            keylog=keylog,
            timeout=connect_timeout,
        )
        self._keeper = Keeper(connector, self._make_channel, session)
        if self._switch is not None:
            self._switch.attach(self._keeper)

    def connect(self) -> Deferred[AssociationInfo]:
        """Make the association now, if there is none.

        Returns:
            A Deferred of what is known of it. It fails with a `ConnectError`.
        """

        def connected(channel: Channel) -> AssociationInfo:
            if self._switch is not None:
                self._switch.associated()
            return AssociationInfo.of(channel.association)

        return self._keeper.ready().addCallback(connected)

    def request(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        json: Any = NO_BODY,
        token: str | None = None,
        *,
        timeout: float | None = None,
        brief: bool = False,
    ) -> Deferred[MatrixResponse]:
        """Make a Matrix request.

        Args:
            method: GET, POST, PUT, DELETE or PATCH.
            path: percent-encoded path from its leading slash, as in a URL.
            query: query parameters, not percent-encoded; values may be lists for repeated names.
            json: the body as a JSON value; `NO_BODY` sends none.
            token: access token; None sends none, for requests that need no user: the server may still take
                the request for one of the user whose token came last.
            timeout: seconds for everything, the handshake included; None waits as long as CoAP does.
            brief: the body of a success is not wanted. In x1 it is left out, and the answer's is `NO_BODY` then;
                else it comes all the same.

        Returns:
            A Deferred of the answer, whatever its status; cancelling it cancels the request. It fails with a
            `ClientError`: `BadRequest` for what cannot be sent, `ConnectError` if it was not sent,
            `ConnectionLost`, `RequestTimeout` and others if no answer came, `BadResponse` for an answer that
            cannot be read.
        """

        pairs = pairs_of(query)
        q_block = self._q_block is True or may_be_large(path, pairs)

        def encode(carried: Carried) -> CoapRequest:
            request = self._dialect.request(method, path, pairs, json, carried, brief=brief)
            return attrs.evolve(request, q_block=q_block)

        call = Call(method, path, pairs, json, token)

        def coap() -> Coroutine[Any, Any, MatrixResponse]:
            return self._request(encode, token, repeatable=call.repeatable)

        if self._switch is None:
            return self._limited(coap(), timeout)
        return self._limited(self._switch.request(call, coap), timeout)

    def fetch(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        token: str | None = None,
        timeout: float | None = None,
    ) -> Deferred[HttpsResponse]:
        """Make a request over HTTPS, for what is no JSON: media, redirects, web pages.

        Args:
            method: HTTP method.
            path: percent-encoded path from its leading slash.
            query: query parameters, not percent-encoded.
            headers: names and values.
            body: bytes, or None for none.
            token: access token, for the Authorization header.
            timeout: seconds for everything; None leaves it to `Fallback.limits`.

        Returns:
            A Deferred of the answer, whatever its status; redirects are not followed. It fails as that of
            `request` does, and with `HttpsUnknown` if the client was made with a `coaps` address.
        """
        return self._limited(self._fetch(method, path, query, headers, body, token), timeout)

    def discover(self) -> Deferred[Discovered]:
        """Find out where the homeserver is.

        Returns:
            A Deferred that fails with a `DiscoveryError`, and with `HttpsUnknown` if the client was made with a
            `coaps` address.
        """
        return self._limited(self._discover(), None)

    def raw_request(self, request: CoapRequest, *, timeout: float | None = None) -> Deferred[CoapResponse]:
        """Make a CoAP request just as it is given, without MSC3079's sticky options.

        Args:
            request: the request, with its whole body.
            timeout: seconds for everything, the handshake included; None waits as long as CoAP does.

        Returns:
            A Deferred of the response with its whole body; cancelling it cancels the request. It fails as that
            of `request` does.
        """
        return self._limited(self._raw_request(request), timeout)

    def rebind(self) -> None:
        """Use a new local socket, because the network has changed; the association and its requests go on.

        The server is told at once, so that what it has to say comes to the new address. A server that cannot
        find the association again does not answer, and requests end as on a dead network; the next one then makes
        a new association. Nothing happens if there is none.

        Raises:
            ConnectionLost: there is no such socket.
        """
        self._pace.forget()
        if self._switch is not None:
            self._switch.network_changed()
        self._keeper.rebind()

    @property
    def transport(self) -> Transport:
        """Which way requests go now; always CoAP if the client was made with a `coaps` address."""
        return Transport.COAP if self._switch is None else self._switch.transport

    @property
    def counters(self) -> Traffic:
        """What crossed the wire as UDP so far, handshakes and earlier associations included, but not HTTPS."""
        return self._keeper.traffic

    @property
    def endpoint_counters(self) -> Counters:
        """What CoAP has done so far, in all associations: messages, retransmissions, blocks."""
        return self._keeper.endpoint_counters

    @property
    def session(self) -> bytes | None:
        """The DTLS session of the last association, to be resumed by another client; secret.

        It is there once the server has answered something.
        """
        return self._keeper.session

    @property
    def speaks_x1(self) -> bool | None:
        """Whether the server has x1, for the `extensions` of another client; None as long as it is not known."""
        return self._dialect.extensions.speaks_x1

    @property
    def known_silence(self) -> float | None:
        """Seconds of the longest silence after which the way to the server was still open, which a later client in the
        same network may begin with; None if there was none."""
        return self._pace.known

    def close(self) -> Deferred[None]:
        """Say close_notify and take no more requests; those under way fail with `ConnectionLost`. Idempotent.

        Observations end as if they had been stopped, but do not tell the server so.

        Returns:
            A Deferred that fires when the sockets are closed.
        """
        for observation in list(self._observations):
            observation.abandon()
        closing = [] if self._switch is None else [self._switch.close()]
        return gatherResults([*closing, self._keeper.close()]).addCallback(lambda _: None)

    def _make_channel(self, keeper: Keeper) -> Channel:
        return Channel(
            self._reactor,
            sticky=StickySender(
                self._dialect.key_version, always=self._several_tokens, extensions=self._dialect.extensions
            ),
            tuning=self._tuning,
            limits=self._limits,
            pace=self._pace,
            random=random_module.Random(self._random.getrandbits(64)),
            q_block=self._q_block is not False and not self._q_block_refused,
            on_q_block_refused=self._server_refuses_q_block,
            keeper=keeper,
        )

    def _observe(
        self,
        subject: Subject,
        token: str | None,
        handler: Handler,
        since: str | None,
        on_change: Callable[[Change], None] | None,
    ) -> Observation:
        def changed(change: Change) -> None:
            if change.state is State.ENDED:
                self._observations.discard(observation)
            if on_change is not None:
                on_change(change)

        observation = Observation(
            self._reactor,
            lambda asking: self._choose(subject, token, asking),
            subject,
            handler,
            since=since,
            persistence=self._persistence,
            random=self._random,
            on_change=changed,
        )
        self._observations.add(observation)
        observation.start()
        return observation

    async def _choose(self, subject: Subject, token: str | None, asking: Asking) -> Registration:
        if self._switch is None or not isinstance(subject, MatrixSubject):
            return await self._register(subject, token, asking)
        return await self._switch.register(
            subject, token, asking, lambda: self._register(subject, token, asking)
        )

    async def _register(self, subject: Subject, token: str | None, asking: Asking) -> Registration:
        if isinstance(subject, RawSubject):
            channel, carried = await self._keeper.ready(), Carried()
            subject = attrs.evolve(subject, template=unmixed(channel.sticky, subject.template))
        else:
            channel = await self._channel_for(token)
            carried = channel.sticky.prepare(token)
        registration = CoapRegistration(
            channel,
            carried,
            self._dialect,
            on_end=lambda: self._keeper.close_if_idle(channel),
        )
        registration.send(lambda: subject.request(asking, carried))
        return registration

    async def _fetch(
        self,
        method: str,
        path: str,
        query: Query | None,
        headers: Mapping[str, str] | None,
        body: bytes | None,
        token: str | None,
    ) -> HttpsResponse:
        switch = self._with_https()
        return await switch.fetch(method, path, query, headers=headers, body=body, token=token)

    async def _discover(self) -> Discovered:
        return await self._with_https().discover()

    def _with_https(self) -> Switch:
        if self._switch is None:
            raise HttpsUnknown("the client was made with a coaps address: no HTTPS address is known")
        return self._switch

    def _server_refuses_q_block(self) -> None:
        self._q_block_refused = True

    def _limited(self, work: Coroutine[Any, Any, T], timeout: float | None) -> Deferred[T]:
        deferred = Deferred.fromCoroutine(work)
        if timeout is not None:
            deferred.addTimeout(timeout, self._reactor, _out_of_time)
        return deferred

    async def _raw_request(self, request: CoapRequest) -> CoapResponse:
        channel = await self._keeper.ready()
        request = attrs.evolve(unmixed(channel.sticky, request), q_block=self._q_block is True)
        return await channel.request(request)

    async def _request(
        self, encode: Callable[[Carried], CoapRequest], token: str | None, *, repeatable: bool
    ) -> MatrixResponse:
        repeated = False
        while True:
            channel = await self._channel_for(token)
            carried = channel.sticky.prepare(token)
            try:
                request = encode(carried)
                answer = channel.request(request, repeatable=repeatable)
            except ClientError:
                channel.sticky.unsent(carried)
                raise
            try:
                response = await answer
            except Superseded:
                channel.sticky.abandoned(carried)
                repeatable = False
                continue
            except BaseException:
                channel.sticky.abandoned(carried)
                raise
            finally:
                self._keeper.close_if_idle(channel)
            x1 = channel.sticky.x1
            if x1.refused(carried.words, response):
                channel.sticky.unsent(carried)
                continue
            if response.code == Code.BAD_OPTION and carried.key_version is not None:
                channel.sticky.key_version_refused(carried)
                self._dialect.key_version = None
                continue
            unauthorized = response.code == Code.UNAUTHORIZED
            channel.sticky.answered(carried, unauthorized=unauthorized)
            x1.answered(carried.words, carried.definitions, response)
            self._dialect.learn(response)
            if self._dialect.refused(request, response):
                continue
            matrix = decoded(response, x1)
            if carried.words.are_x1 and _errcode(matrix) == UNKNOWN_ALIAS and not repeated:
                repeated = True
                continue
            self._dialect.extensions.read_versions(matrix.body)
            if unauthorized and carried.relies and _errcode(matrix) == MISSING_TOKEN:
                # The server had forgotten whose association it is, so it has not run the request.
                continue
            return matrix

    async def _channel_for(self, token: str | None) -> Channel:
        channel = await self._keeper.ready()
        while not channel.sticky.can_take(token):
            # From now on no request relies on what was sent before, so this happens once.
            self._several_tokens = True
            self._keeper.retire(channel)
            channel = await self._keeper.ready()
        return channel


def _errcode(response: MatrixResponse) -> object:
    return response.body.get("errcode") if isinstance(response.body, dict) else None


def _out_of_time(_: object, limit: float) -> Any:
    raise RequestTimeout(f"no answer within {limit:g} seconds")
