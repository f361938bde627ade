# SPDX-License-Identifier: AGPL-3.0-or-later
"""One DTLS association for each access token, and one for requests without; bounded, and closed when idle."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.defer import Deferred, DeferredList, DeferredSemaphore

from synapse_lb.client.client import LowBandwidthClient
from synapse_lb.client.counters import Traffic
from synapse_lb.proxy.answers import ProxyError

if TYPE_CHECKING:
    from synapse_lb.coaps.clock import Clock, Timer
    from synapse_lb.proxy.sync import Syncs

REQUESTS_AT_A_TIME: Final = 40
"""Requests under way on one association; more wait. An endpoint has 64 exchanges, and observations take some."""


@attrs.define(eq=False)
class Association:
    """What belongs to one access token.

    Attributes:
        token: the access token, or None.
        client: speaks CoAP with the homeserver.
        syncs: the observations of the token's clients.
        slots: one for each request that may be under way.
        users: requests and observations that need it now.
        used_at: s, when it was last needed.
        used_before: what the client's traffic was when last counted.
    """

    token: str | None = attrs.field(repr=False)
    client: LowBandwidthClient
    syncs: Syncs
    slots: DeferredSemaphore = attrs.field(factory=lambda: DeferredSemaphore(REQUESTS_AT_A_TIME))
    users: int = 0
    used_at: float = 0.0


class Associations:
    """The associations of a proxy.

    Args:
        clock: the reactor.
        make_client: makes a client, given a DTLS session to resume or None.
        make_syncs: makes what serves the `/sync` of an association, given its client and token.
        most: associations at a time.
        idle_timeout: s without use after which one is closed.
    """

    def __init__(
        self,
        clock: Clock,
        make_client: Callable[[bytes | None], LowBandwidthClient],
        make_syncs: Callable[[LowBandwidthClient, str | None], Syncs],
        *,
        most: int,
        idle_timeout: float,
    ) -> None:
        self._clock = clock
        self._make_client = make_client
        self._make_syncs = make_syncs
        self._most = most
        self._idle_timeout = idle_timeout
        self._open: OrderedDict[str | None, Association] = OrderedDict()
        self._session: bytes | None = None
        self._closing: set[Association] = set()
        self._past = Traffic()
        self._timer: Timer | None = None
        self.opened = 0
        self.closed_idle = 0
        self.refused = 0

    def __len__(self) -> int:
        return len(self._open)

    @contextlib.contextmanager
    def using(self, token: str | None) -> Iterator[Association]:
        """The association of a token, which stays open meanwhile.

        Raises:
            ProxyError: there are too many, and all are in use.
        """
        association = self._get(token)
        association.users += 1
        try:
            yield association
        finally:
            association.users -= 1
            association.used_at = self._clock.seconds()

    @property
    def traffic(self) -> Traffic:
        """What all associations have moved so far."""
        total = self._past
        for association in (*self._open.values(), *self._closing):
            total += association.client.counters
        return total

    @property
    def under_way(self) -> int:
        """Requests that are not answered yet."""
        return sum(association.users for association in self._open.values())

    @property
    def observations(self) -> int:
        """Observations of `/sync` that there are."""
        return sum(len(association.syncs) for association in self._open.values())

    def of_token(self, token: str | None) -> Association | None:
        """The association of a token, if there is one."""
        return self._open.get(token)

    def close(self) -> Deferred[Any]:
        """Say close_notify on all that there are; fires when their sockets are closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return DeferredList([self._close(each) for each in list(self._open.values())], consumeErrors=True)

    def _get(self, token: str | None) -> Association:
        association = self._open.get(token)
        if association is None:
            self._make_room()
            client = self._make_client(self._newest_session())
            association = Association(token, client, self._make_syncs(client, token))
            self._open[token] = association
            self.opened += 1
            self._arm()
        self._open.move_to_end(token)
        association.used_at = self._clock.seconds()
        return association

    def _newest_session(self) -> bytes | None:
        """The DTLS session to resume: it is with the same server, and says nothing of tokens."""
        sessions = (each.client.session for each in reversed(self._open.values()))
        return next((session for session in sessions if session is not None), self._session)

    def _make_room(self) -> None:
        """Close the association that was idle for longest, if there are as many as there may be."""
        if len(self._open) < self._most:
            return
        for association in self._open.values():
            if not association.users:
                self._close(association)
                return
        self.refused += 1
        raise ProxyError(503, "M_LIMIT_EXCEEDED", f"{self._most} users are connected; more may not be", 30.0)

    def _close(self, association: Association) -> Deferred[None]:
        del self._open[association.token]
        self._session = association.client.session or self._session
        self._closing.add(association)
        association.syncs.close()
        return association.client.close().addCallback(self._closed, association)

    def _closed(self, _: None, association: Association) -> None:
        self._closing.discard(association)
        self._past += association.client.counters

    def _arm(self) -> None:
        if self._timer is None and self._open:
            self._timer = self._clock.callLater(self._idle_timeout / 4, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        before = self._clock.seconds() - self._idle_timeout
        for association in list(self._open.values()):
            if not association.users and not len(association.syncs) and association.used_at <= before:
                self.closed_idle += 1
                self._close(association)
        self._arm()
