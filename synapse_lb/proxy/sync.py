# SPDX-License-Identifier: AGPL-3.0-or-later
"""`/sync` of one access token: answered from observations where that is right, asked of the homeserver where not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.internet.defer import Deferred, TimeoutError

from synapse_lb.client.client import LowBandwidthClient
from synapse_lb.client.errors import ObservationEnded
from synapse_lb.client.observing import SYNC_PATH
from synapse_lb.msc3079.mapping import MatrixResponse
from synapse_lb.proxy.answers import ProxyError
from synapse_lb.proxy.call import milliseconds
from synapse_lb.proxy.subscription import COUNTS, Body, Repeated, Subscription

if TYPE_CHECKING:
    from synapse_lb.coaps.clock import Clock

Pairs = tuple[tuple[str, str], ...]

MOST: Final = 4
"""Observations of one access token; a server allows 8 on one association. More clients poll."""

LIVELY: Final = 5.0
"""s: an observation that was asked for so recently may have a client that is at work on its answer."""

PATIENCE: Final = 10.0
"""s beyond a request's timeout that a registration may take before the homeserver counts as unreachable."""

_POLL_MARGIN: Final = 60.0
"""s beyond a request's timeout that the homeserver's own answer may take."""

_OWN_PARAMETERS: Final = frozenset({"since", "timeout", "full_state"})
LONGEST_TIMEOUT: Final = 240.0
"""s that a client may wait; CoAP gives a request up after 300 s."""


@attrs.frozen
class SyncCounters:
    """How requests for `/sync` were answered, added up over the tokens.

    Attributes:
        observed: from an observation, with news.
        quiet: from an observation, after a wait in which nothing happened.
        polled: by a request to the homeserver.
    """

    observed: int = 0
    quiet: int = 0
    polled: int = 0


class Tally:
    """Counts for all tokens together."""

    def __init__(self) -> None:
        self.counts = SyncCounters()

    def add(self, name: str) -> None:
        """Count one more answer."""
        self.counts = attrs.evolve(self.counts, **{name: getattr(self.counts, name) + 1})


class Syncs:
    """The observations of one access token.

    Args:
        clock: the reactor.
        client: speaks with the homeserver.
        token: the access token.
        linger: s that an observation goes on without a client.
        observe: whether to observe at all.
        tally: counts.
    """

    def __init__(
        self,
        clock: Clock,
        client: LowBandwidthClient,
        token: str | None,
        *,
        linger: float,
        observe: bool,
        tally: Tally,
    ) -> None:
        self._clock = clock
        self._client = client
        self._token = token
        self._linger = linger
        self._observe = observe
        self._tally = tally
        self._subscriptions: dict[Subscription, Pairs] = {}

    def __len__(self) -> int:
        return len(self._subscriptions)

    async def sync(self, query: Pairs) -> MatrixResponse:
        """Answer a `/sync`.

        Args:
            query: its parameters, with the filter that is to be sent.

        Raises:
            ClientError: CoAP has failed.
            ProxyError: the homeserver cannot be reached.
        """
        parameters = dict(reversed(query))
        since, timeout = (
            parameters.get("since"),
            min(milliseconds(parameters.get("timeout")) / 1000, LONGEST_TIMEOUT),
        )
        if (
            not self._observe
            or self._token is None
            or not since
            or not timeout
            or parameters.get("full_state") == "true"
        ):
            return await self._poll(query, timeout)
        key = tuple(sorted(pair for pair in query if pair[0] not in _OWN_PARAMETERS))
        subscription = self._find(since, key)
        if subscription is None:
            return await self._poll(query, timeout)
        try:
            body = await self._wait(subscription, since, timeout)
        except Repeated:
            return await self._poll_beside(subscription, query, timeout)
        except ObservationEnded as error:
            if error.matrix is None:
                raise ProxyError(502, "M_UNKNOWN", f"Low-bandwidth proxy: {error}") from error
            return error.matrix
        return MatrixResponse(200, body)

    def note_upload(self, request: Any, answer: Any) -> None:
        """Take note of what `/keys/upload` changes, for answers that say that nothing has happened.

        Args:
            request: body of the request.
            answer: body of the answer.
        """
        counts = answer.get("one_time_key_counts") if isinstance(answer, dict) else None
        fallback = request.get("fallback_keys") if isinstance(request, dict) else None
        algorithms = [name.partition(":")[0] for name in fallback] if isinstance(fallback, dict) else []
        for subscription in self._subscriptions:
            noted: Body = {} if counts is None else {COUNTS[0]: counts}
            if algorithms:
                unused = sorted({*subscription.unused_fallback_keys(), *algorithms})
                noted |= dict.fromkeys(COUNTS[1:], unused)
            subscription.note_counts(noted)

    def close(self) -> None:
        """End all observations."""
        for subscription in list(self._subscriptions):
            subscription.stop()

    async def _wait(self, subscription: Subscription, since: str, timeout: float) -> Body:
        """What an observation brings within the time that the client gives."""
        answer = subscription.ask(since)
        self._set_timeout(answer, timeout, lambda: subscription.is_connected)
        try:
            body = await answer
        except TimeoutError:
            if not subscription.is_connected:
                raise ProxyError(504, "M_UNKNOWN", "The homeserver cannot be reached over CoAP") from None
            self._tally.add("quiet")
            return subscription.nothing_new()
        self._tally.add("observed")
        return body

    def _set_timeout(self, answer: Deferred[Body], timeout: float, is_connected: Callable[[], bool]) -> None:
        """Fail with `TimeoutError` after so long; some seconds later if there is no connection yet."""

        def expire() -> None:
            if is_connected() or self._clock.seconds() >= began + timeout + PATIENCE:
                out_of_time.append(True)
                answer.cancel()
            else:
                timers.append(self._clock.callLater(PATIENCE / 10, expire))

        def done(result: Any) -> Any:
            if timers[-1].active():
                timers[-1].cancel()
            if out_of_time:
                raise TimeoutError(timeout)
            return result

        began, out_of_time = self._clock.seconds(), list[bool]()
        timers = [self._clock.callLater(timeout, expire)]
        answer.addBoth(done)

    async def _poll(self, query: Pairs, timeout: float) -> MatrixResponse:
        """Ask the homeserver."""
        self._tally.add("polled")
        limit = timeout + _POLL_MARGIN if timeout else None
        return await self._client.request("GET", SYNC_PATH, query, token=self._token, timeout=limit)

    async def _poll_beside(self, subscription: Subscription, query: Pairs, timeout: float) -> MatrixResponse:
        """Ask the homeserver; an observation that does not go on where its answer ends has lost its client."""
        response = await self._poll(query, timeout)
        place = response.body.get("next_batch") if isinstance(response.body, dict) else None
        if isinstance(place, str) and not subscription.knows(place) and not subscription.waits:
            self._drop(subscription)
        return response

    def _find(self, since: str, key: Pairs) -> Subscription | None:
        """The observation that goes on at a place, a new one if need be; None if there are too many."""
        for subscription, its_key in self._subscriptions.items():
            if its_key == key and subscription.knows(since):
                return subscription
        now = self._clock.seconds()
        for subscription, its_key in list(self._subscriptions.items()):
            if subscription.waits:
                continue
            # Its client has gone back, or has changed what it asks for.
            if subscription.knows(since) or (its_key == key and subscription.last_asked < now - LIVELY):
                self._drop(subscription)
        if len(self._subscriptions) >= MOST:
            unwanted = [each for each in self._subscriptions if not each.waits]
            if not unwanted:
                return None
            self._drop(min(unwanted, key=lambda each: each.last_asked))
        subscription = Subscription(
            self._clock,
            lambda handler, on_change: self._client.observe(
                SYNC_PATH, key, handler=handler, token=self._token, since=since, on_change=on_change
            ),
            since,
            linger=self._linger,
            on_end=self._forget,
        )
        if not subscription.has_ended:
            self._subscriptions[subscription] = key
        return subscription

    def _forget(self, subscription: Subscription) -> None:
        self._subscriptions.pop(subscription, None)

    def _drop(self, subscription: Subscription) -> None:
        self._forget(subscription)
        subscription.stop()
