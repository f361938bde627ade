# SPDX-License-Identifier: AGPL-3.0-or-later
"""The proxy itself: a request in, the homeserver's answer out, over CoAP where that goes and over HTTPS where not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger

from synapse_lb.client.client import LowBandwidthClient
from synapse_lb.client.errors import (
    BadRequest,
    CertificateError,
    ClientError,
    ConnectError,
    ConnectionLost,
)
from synapse_lb.msc3079.mapping import MatrixResponse
from synapse_lb.proxy.answers import Answer, ProxyError, client_error, matrix_answer
from synapse_lb.proxy.associations import Association, Associations
from synapse_lb.proxy.call import Call, Way
from synapse_lb.proxy.filters import Filters, Refused, lean_query, lean_sliding_sync
from synapse_lb.proxy.home import Home
from synapse_lb.proxy.https import HttpsForwarder, Passage
from synapse_lb.proxy.options import ProxyOptions
from synapse_lb.proxy.statistics import Statistics, summary
from synapse_lb.proxy.sync import Syncs, Tally

COAP_BODY: Final = 2**20
"""Bytes of a body that can go over CoAP; the server's default bound."""

DETOUR: Final = 60.0
"""s for which everything goes over HTTPS after UDP has not got through."""

PATIENCE: Final = 8.0
"""s that a DTLS handshake may take."""

SAMPLE_INTERVAL: Final = 5.0
"""s between two points of the plot."""

_KEYS_UPLOAD: Final = "/keys/upload"
_WELL_KNOWN: Final = "/.well-known/matrix/client"


MakeClient = Callable[[str, "bytes | None"], LowBandwidthClient]


class Proxy:
    """Answers HTTP requests.

    Args:
        reactor: Twisted's reactor.
        options: the configuration.
        make_client: makes what speaks CoAP, given the homeserver's address and a DTLS session to resume or None; None
            makes it as the options say.

    Attributes:
        statistics: what it has done.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        options: ProxyOptions,
        make_client: MakeClient | None = None,
    ) -> None:
        self._reactor = reactor
        self._options = options
        self._home = Home(reactor, options)
        self._client_for_address = make_client or self._client_for
        self._address: str | None = None
        self._https = HttpsForwarder(reactor, options.https_verification)
        self._filters = Filters(lean=options.lean)
        self._tally = Tally()
        self._associations = Associations(
            reactor,
            self._make_client,
            self._make_syncs,
            most=options.max_associations,
            idle_timeout=options.idle_timeout,
        )
        self._detour_until = float("-inf")
        self._began = reactor.seconds()
        self.statistics = Statistics()
        self._sampler = reactor.callLater(0.0, self._sample)

    async def answer(self, call: Call) -> Answer | Passage:
        """The answer to a request.

        Raises:
            ProxyError: there is none of the homeserver's.
        """
        way = call.way
        if way is None:
            if call.path == _WELL_KNOWN:
                return matrix_answer(MatrixResponse(200, {"m.homeserver": {"base_url": _own_url(call)}}))
            raise ProxyError(404, "M_UNRECOGNIZED", "Unrecognized request")
        if self._options.lean and call.is_dispensable and call.token is not None:
            self.statistics.dropped += 1
            return matrix_answer(MatrixResponse(200, {}))
        place = await self._home.find()
        if way is not Way.HTTPS and place.coaps is not None and not self._on_detour:
            self._move_to(place.coaps)
            answer = await self._over_coap(call, way, has_https=place.https is not None)
            if answer is not None:
                self.statistics.coap += 1
                return answer
        return await self._over_https(call, way, place.https)

    def status(self) -> dict[str, Any]:
        """What `/_lb/status` says. No tokens, users, paths or bodies are in it."""
        traffic = self._associations.traffic
        syncs = self._tally.counts
        return {
            "uptime_seconds": round(self._reactor.seconds() - self._began, 1),
            **summary(self.statistics, traffic),
            "requests_under_way": self._associations.under_way,
            "lean": self._options.lean,
            "on_detour": self._on_detour,
            "associations": len(self._associations),
            "associations_opened": self._associations.opened,
            "associations_closed_idle": self._associations.closed_idle,
            "associations_refused": self._associations.refused,
            "observations": self._associations.observations,
            "syncs": {"observed": syncs.observed, "quiet": syncs.quiet, "polled": syncs.polled},
            "datagrams_sent": traffic.datagrams_sent,
            "datagrams_received": traffic.datagrams_received,
            "samples": [[each.time, each.requests, each.wire, each.http] for each in self.statistics.samples],
        }

    def numbers(self) -> dict[str, Any]:
        """The numbers of the line of statistics."""
        return summary(self.statistics, self._associations.traffic)

    def close(self) -> Deferred[Any]:
        """End all associations and connections.

        Returns:
            A Deferred that fires when their sockets are closed.
        """
        if self._sampler.active():
            self._sampler.cancel()
        closing: list[Deferred[Any]] = [self._associations.close(), self._home.close(), self._https.close()]
        return DeferredList(closing, consumeErrors=True)

    # --- over CoAP ---

    def _move_to(self, address: str) -> None:
        """Leave the associations behind if the homeserver is elsewhere now."""
        if self._address not in (None, address):
            self._associations.close()
        self._address = address

    async def _over_coap(self, call: Call, way: Way, *, has_https: bool) -> Answer | None:
        """The answer over CoAP; None if the request goes over HTTPS instead.

        Raises:
            ProxyError: there is none.
        """
        try:
            if len(call.body) > COAP_BODY:
                raise ProxyError(413, "M_TOO_LARGE", f"A body over {COAP_BODY} bytes cannot go over CoAP")
            with self._associations.using(call.token) as association:
                if way is Way.SYNC:
                    response = await self._sync(association, call)
                else:
                    response = await self._request(association, call)
        except ClientError as error:
            if not (has_https and self._may_go_round(error)):
                raise client_error(error) from error
            return None
        except ProxyError as error:
            if not has_https or error.errcode not in ("M_NOT_JSON", "M_TOO_LARGE"):
                raise
            return None
        return matrix_answer(_with_own_url(response, call))

    async def _request(self, association: Association, call: Call) -> MatrixResponse:
        body = call.json()
        if self._options.lean and call.is_sliding_sync:
            body = lean_sliding_sync(body)
        response = await self._run(association, call, body)
        if call.path.endswith(_KEYS_UPLOAD) and response.status == 200:
            association.syncs.note_upload(body, response.body)
        return response

    async def _run(self, association: Association, call: Call, body: Any) -> MatrixResponse:
        """Send a request when there is room for it; once more if the association was lost and that does no harm."""
        method = "GET" if call.method == "HEAD" else call.method
        await association.slots.acquire()
        try:
            for repetition in (False, True):
                try:
                    return await association.client.request(
                        method, call.path, call.query, body, association.token
                    )
                except ConnectionLost:
                    if repetition or not call.may_be_repeated:
                        raise
            raise AssertionError("unreachable")
        finally:
            association.slots.release()

    async def _sync(self, association: Association, call: Call) -> MatrixResponse:
        try:
            query = await self._filters.apply(association.client, call.token, call.query)
            return await association.syncs.sync(query)
        except Refused as refused:
            return refused.response

    def _may_go_round(self, error: ClientError) -> bool:
        """Whether a request that has failed over CoAP was surely not run, and can go over HTTPS."""
        if isinstance(error, ConnectError) and not isinstance(error, CertificateError):
            self._log.info(
                "UDP does not get through: {error}. HTTPS for {seconds:g} s", error=error, seconds=DETOUR
            )
            self._detour_until = self._reactor.seconds() + DETOUR
            return True
        return isinstance(error, BadRequest)

    @property
    def _on_detour(self) -> bool:
        return bool(self._reactor.seconds() < self._detour_until)

    # --- over HTTPS ---

    async def _over_https(self, call: Call, way: Way, base_url: str | None) -> Answer | Passage:
        if base_url is None:
            raise ProxyError(
                502,
                "M_UNKNOWN",
                "Low-bandwidth proxy: this cannot go over CoAP, and no HTTPS address of the homeserver is known",
            )
        if self._options.lean and way is Way.SYNC:
            call = call.with_query(lean_query(call.query))
        passage = await self._https.fetch(base_url, call)
        self.statistics.https += 1
        if not call.answer_has_well_known:
            return passage
        answer = await passage.whole()
        return _with_own_url_in_text(answer, call)

    # --- inside ---

    def _make_client(self, session: bytes | None) -> LowBandwidthClient:
        assert self._address is not None
        return self._client_for_address(self._address, session)

    def _client_for(self, address: str, session: bytes | None) -> LowBandwidthClient:
        return LowBandwidthClient(
            self._reactor,
            address,
            verification=self._options.verification,
            session=session,
            connect_timeout=PATIENCE,
        )

    def _make_syncs(self, client: LowBandwidthClient, token: str | None) -> Syncs:
        return Syncs(
            self._reactor,
            client,
            token,
            linger=self._options.linger,
            observe=self._options.observe,
            tally=self._tally,
        )

    def _sample(self) -> None:
        self.statistics.sample(self._reactor.seconds() - self._began, self._associations.traffic)
        self._sampler = self._reactor.callLater(SAMPLE_INTERVAL, self._sample)


def _own_url(call: Call) -> str:
    """What the client calls this proxy."""
    return f"http://{call.host}"


def _with_own_url(response: MatrixResponse, call: Call) -> MatrixResponse:
    """A login's answer names the homeserver's own address, where the client would go from then on."""
    body = response.body
    if not call.answer_has_well_known or not isinstance(body, dict) or "well_known" not in body:
        return response
    body = {**body, "well_known": {"m.homeserver": {"base_url": _own_url(call)}}}
    return MatrixResponse(response.status, body, response.retry_after)


def _with_own_url_in_text(answer: Answer, call: Call) -> Answer:
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError):
        return answer
    changed = _with_own_url(MatrixResponse(answer.status, body), call)
    return Answer(answer.status, json.dumps(changed.body).encode("utf-8"), answer.headers)
