# SPDX-License-Identifier: AGPL-3.0-or-later
"""A Matrix client over CoAP, CBOR and DTLS (MSC3079): requests in, Matrix answers out."""

from __future__ import annotations

import json as json_text
import random as random_module
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar

import attrs
from twisted.internet.defer import Deferred

from synapse_lb.client.channel import Channel
from synapse_lb.client.connector import AssociationInfo, Connector
from synapse_lb.client.counters import Traffic
from synapse_lb.client.errors import BadRequest, ClientError, RequestTimeout
from synapse_lb.client.keeper import Keeper
from synapse_lb.client.large import may_be_large
from synapse_lb.client.observation import Change, Observation, State
from synapse_lb.client.pace import Pace
from synapse_lb.client.persistence import Persistence
from synapse_lb.client.registration import Registration
from synapse_lb.client.sticky import Carried, StickySender
from synapse_lb.client.subject import (
    MISSING_TOKEN,
    Asking,
    Handler,
    MatrixSubject,
    RawSubject,
    Subject,
    cursor_of,
    decoded,
)
from synapse_lb.client.uri import parse_server
from synapse_lb.coap.counters import Counters
from synapse_lb.coap.events import CoapRequest, CoapResponse
from synapse_lb.coap.numbers import Code
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits, Tuning
from synapse_lb.msc3079.mapping import NO_BODY, MappingError, MatrixResponse, encode_request
from synapse_lb.msc3079.options import ACCESS_TOKEN
from synapse_lb.txdtls.context import ClientVerification

T = TypeVar("T")
Query = Mapping[str, "str | Sequence[str]"] | Sequence[tuple[str, str]]

KEY_VERSIONS: Final = (None, 1)
SYNC_PATH: Final = "/_matrix/client/r0/sync"
"""The one that has a path code."""


class LowBandwidthClient:
    """Speaks MSC3079 with one homeserver, over one DTLS association that all calls share.

    The first request makes the association; when it has ended, the next request makes a new one and resumes
    the DTLS session where the server still knows it. Requests that were under way when it ended fail with
    `ConnectionLost`, since the server may have run them. Everything happens on the reactor's thread.

    The access token crosses the wire once for each association (MSC3079's option 256 is sticky) as long as
    all calls have the same one. When calls with different tokens overlap, each carries its own from then on.

    Args:
        reactor: Twisted's reactor.
        server: `coaps://host:port` or `host:port`; the port is 5684 if it is not given.
        verification: how the server's certificate is checked; None trusts the system's authorities.
        key_version: version of the integer keys in bodies, which answers are asked to have too, with option 257
            once for each association. A server that answers 4.02 to it is not asked again and gets text keys.
            None uses text keys and never sends the option, which is critical: servers that do not know it
            refuse it.
        path_codes: send the MSC's short codes in place of paths.
        q_block: whether large bodies go and come by Q-Block (RFC 9177), many blocks at a time: "auto" offers it
            for request bodies of several blocks, and where an answer may be large; True for every request, raw
            ones included; False for none. A server that answers 4.02 to the offer gets the request without it,
            and no further offer from this client.
        session: a DTLS session to resume, from the `session` of an earlier client.
        keylog: called with each line of key material (NSS key log format, without its line end).
        connect_timeout: seconds that a handshake may take; None leaves it to the DTLS layer.
        tuning: retransmission parameters of CoAP.
        limits: bounds of CoAP.
        persistence: the times of observations.
        known_silence: seconds, from the `known_silence` of an earlier client in the same network.
        random: source of the jitter with which observations return, and of CoAP's message ids, tokens and jitter.

    Raises:
        BadUri: the server's address makes no sense.
        AuthoritiesError: the file of the authorities cannot be used.
        ValueError: there is no such key version.
    """

    def __init__(
        self,
        reactor: Any,
        server: str,
        *,
        verification: ClientVerification | None = None,
        key_version: int | None = 1,
        path_codes: bool = True,
        q_block: Literal["auto"] | bool = "auto",
        session: bytes | None = None,
        keylog: Callable[[bytes], None] | None = None,
        connect_timeout: float | None = None,
        tuning: Tuning | None = None,
        limits: Limits | None = None,
        persistence: Persistence | None = None,
        known_silence: float | None = None,
        random: random_module.Random | None = None,
    ) -> None:
        if key_version not in KEY_VERSIONS:
            raise ValueError(f"there is no version {key_version} of the CBOR keys")
        self._reactor = reactor
        self._key_version = key_version
        self._path_codes = path_codes
        self._q_block = q_block
        self._q_block_refused = False
        self._tuning = attrs.evolve(tuning or Tuning(), q_block=q_block is not False)
        self._limits = limits or Limits()
        self._persistence = times = persistence or Persistence()
        self._pace = Pace(times.first_heartbeat, times.heartbeat, known_silence)
        self._random = random or random_module.Random()
        self._several_tokens = False
        self._observations: set[Observation] = set()
        connector = Connector(
            reactor,
            parse_server(server),
            verification=verification or ClientVerification.system(),
            keylog=keylog,
            timeout=connect_timeout,
        )
        self._keeper = Keeper(connector, self._make_channel, session)

    def connect(self) -> Deferred[AssociationInfo]:
        """Make the association now, if there is none.

        Returns:
            A Deferred of what is known of it. It fails with a `ConnectError`.
        """
        return self._keeper.ready().addCallback(lambda channel: AssociationInfo.of(channel.association))

    def request(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        json: Any = NO_BODY,
        token: str | None = None,
        *,
        timeout: float | None = None,
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

        Returns:
            A Deferred of the answer, whatever its status; cancelling it cancels the request. It fails with a
            `ClientError`: `BadRequest` for what cannot be sent, `ConnectError` if it was not sent,
            `ConnectionLost`, `RequestTimeout` and others if no answer came, `BadResponse` for an answer that
            cannot be read.
        """

        pairs = _pairs(query)
        q_block = self._q_block is True or may_be_large(path, pairs)

        def encode(carried: Carried) -> CoapRequest:
            try:
                code, options, payload = encode_request(
                    method,
                    path,
                    pairs,
                    json,
                    token=carried.token,
                    key_version=self._key_version,
                    announce_key_version=carried.key_version,
                    path_codes=self._path_codes,
                )
            except MappingError as error:
                raise BadRequest(error.message) from error
            return CoapRequest(code, Options.of(*options), payload, q_block=q_block)

        return self._limited(self._request(encode, token), timeout)

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
        self._keeper.rebind()

    def observe(
        self,
        path: str = SYNC_PATH,
        query: Query | None = None,
        *,
        handler: Handler,
        token: str | None = None,
        since: str | None = None,
        json: Any = NO_BODY,
        on_change: Callable[[Change], None] | None = None,
    ) -> Observation:
        """Observe `/sync`, or another resource (RFC 7641), until it is stopped.

        It outlives associations and restarts of the server; where the server does not notify it polls. See
        `docs/client.md` for what is guaranteed.

        Args:
            path: percent-encoded path from its leading slash, or a path code as `/7`.
            query: query parameters, not percent-encoded.
            handler: is given the body of each notification, one after another. It returns None, or an awaitable
                that fires when the body has been processed; only then is the notification acknowledged. If it
                fails, the observation ends with its error, and the notification is not acknowledged.
            token: access token.
            since: where to go on, from `Observation.since` of an earlier observation; None begins anew. It is
                `pos` for sliding sync.
            json: the body, for resources that take one: the request is a FETCH then (RFC 8132).
            on_change: told of each new state.

        Returns:
            The observation, which has begun.
        """
        pairs = tuple(_pairs(query))
        subject = self._subject(path, pairs, json)
        if since is None and subject.cursor is not None:
            since = dict(pairs).get(subject.cursor.parameter)
        return self._observe(subject, token, handler, since, on_change)

    def observe_sync(
        self,
        since: str | None,
        handler: Handler,
        *,
        token: str,
        filter: str | Mapping[str, Any] | None = None,
        set_presence: str | None = None,
        full_state: bool = False,
        on_change: Callable[[Change], None] | None = None,
    ) -> Observation:
        """Observe `/sync`; see `observe`.

        An initial sync, and one with the full state, may be large. It is fetched with a plain request, by Q-Block
        if the server has that; once the handler has processed it the rest is observed.

        Args:
            since: where to go on; None begins with the initial sync.
            handler: is given each sync body.
            token: access token.
            filter: id of a filter, or a filter, which may take 248 bytes of percent-encoded JSON at most.
            set_presence: `offline`, `online` or `unavailable`.
            full_state: whether the first body has the whole state of all rooms.
            on_change: told of each new state.

        Returns:
            The observation, which has begun.
        """
        query: list[tuple[str, str]] = []
        if filter is not None:
            text = filter if isinstance(filter, str) else json_text.dumps(filter, separators=(",", ":"))
            query.append(("filter", text))
        if set_presence is not None:
            query.append(("set_presence", set_presence))
        if full_state:
            query.append(("full_state", "true"))
        subject = self._subject(SYNC_PATH, tuple(query), NO_BODY, initial=True)
        return self._observe(subject, token, handler, since, on_change)

    def raw_observe(
        self,
        request: CoapRequest,
        handler: Callable[[CoapResponse], Any],
        *,
        on_change: Callable[[Change], None] | None = None,
    ) -> Observation:
        """Observe with a CoAP request just as it is given, but for Observe, and for `since` where it has one.

        Args:
            request: the request; which resource it means is seen from its path.
            handler: as of `observe`, but it is given the response.
            on_change: told of each new state.

        Returns:
            The observation, which has begun.
        """
        subject = RawSubject(request)
        return self._observe(subject, None, handler, subject.since, on_change)

    @property
    def counters(self) -> Traffic:
        """What crossed the wire so far, handshakes and earlier associations included."""
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
        return self._keeper.close()

    def _make_channel(self, on_lost: Callable[[Channel, Exception], None]) -> Channel:
        return Channel(
            self._reactor,
            sticky=StickySender(self._key_version, always=self._several_tokens),
            tuning=self._tuning,
            limits=self._limits,
            pace=self._pace,
            random=random_module.Random(self._random.getrandbits(64)),
            q_block=self._q_block is not False and not self._q_block_refused,
            on_q_block_refused=self._server_refuses_q_block,
            on_lost=on_lost,
        )

    def _subject(
        self, path: str, query: tuple[tuple[str, str], ...], json: Any, *, initial: bool = False
    ) -> MatrixSubject:
        return MatrixSubject(
            path,
            query,
            json,
            self._path_codes,
            cursor_of(path),
            key_version=lambda: self._key_version,
            initial=initial,
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
            lambda asking: self._register(subject, token, asking),
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

    async def _register(self, subject: Subject, token: str | None, asking: Asking) -> Registration:
        if isinstance(subject, RawSubject):
            channel, carried = await self._keeper.ready(), Carried()
            if ACCESS_TOKEN in subject.template.options:
                channel.sticky.carry_always()
        else:
            channel = await self._channel_for(token)
            carried = channel.sticky.prepare(token)
        registration = Registration(
            channel,
            carried,
            on_version_refused=self._key_version_refused,
            on_end=lambda: self._keeper.close_if_idle(channel),
        )
        registration.send(lambda: subject.request(asking, carried))
        return registration

    def _key_version_refused(self) -> None:
        self._key_version = None

    def _server_refuses_q_block(self) -> None:
        self._q_block_refused = True

    def _limited(self, work: Coroutine[Any, Any, T], timeout: float | None) -> Deferred[T]:
        deferred = Deferred.fromCoroutine(work)
        if timeout is not None:
            deferred.addTimeout(timeout, self._reactor, _out_of_time)
        return deferred

    async def _raw_request(self, request: CoapRequest) -> CoapResponse:
        channel = await self._keeper.ready()
        if ACCESS_TOKEN in request.options:
            channel.sticky.carry_always()
        return await channel.request(attrs.evolve(request, q_block=self._q_block is True))

    async def _request(self, encode: Callable[[Carried], CoapRequest], token: str | None) -> MatrixResponse:
        while True:
            channel = await self._channel_for(token)
            carried = channel.sticky.prepare(token)
            try:
                answer = channel.request(encode(carried))
            except ClientError:
                channel.sticky.unsent(carried)
                raise
            try:
                response = await answer
            except BaseException:
                channel.sticky.abandoned(carried)
                raise
            finally:
                self._keeper.close_if_idle(channel)
            if response.code == Code.BAD_OPTION and carried.key_version is not None:
                channel.sticky.key_version_refused(carried)
                self._key_version_refused()
                continue
            unauthorized = response.code == Code.UNAUTHORIZED
            channel.sticky.answered(carried, unauthorized=unauthorized)
            matrix = decoded(response)
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


def _pairs(query: Query | None) -> list[tuple[str, str]]:
    """Query parameters as pairs."""
    pairs = query.items() if isinstance(query, Mapping) else query or ()
    return [(name, each) for name, value in pairs for each in ([value] if isinstance(value, str) else value)]


def _errcode(response: MatrixResponse) -> object:
    return response.body.get("errcode") if isinstance(response.body, dict) else None


def _out_of_time(_: object, limit: float) -> Any:
    raise RequestTimeout(f"no answer within {limit:g} seconds")
