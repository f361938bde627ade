# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a client can observe (RFC 7641): the methods of `LowBandwidthClient` that begin an observation."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any, Final

from synapse_lb.client.dialect import Dialect
from synapse_lb.client.observation import Change, Observation
from synapse_lb.client.query import Query, pairs_of, sync_query
from synapse_lb.client.subject import Handler, MatrixSubject, RawSubject, Subject, cursor_of
from synapse_lb.coap.events import CoapRequest, CoapResponse
from synapse_lb.msc3079.mapping import NO_BODY

SYNC_PATH: Final = "/_matrix/client/r0/sync"
"""The one that has a path code."""


class Observer(abc.ABC):
    """Begins observations.

    Args:
        dialect: the words of requests.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect

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
        pairs = tuple(pairs_of(query))
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
        query = tuple(sync_query(filter, set_presence, full_state))
        subject = self._subject(SYNC_PATH, query, NO_BODY, initial=True)
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

    def _subject(
        self, path: str, query: tuple[tuple[str, str], ...], json: Any, *, initial: bool = False
    ) -> MatrixSubject:
        return MatrixSubject(path, query, json, cursor_of(path), self._dialect, initial)

    @abc.abstractmethod
    def _observe(
        self,
        subject: Subject,
        token: str | None,
        handler: Handler,
        since: str | None,
        on_change: Callable[[Change], None] | None,
    ) -> Observation:
        """Begin an observation."""
