# SPDX-License-Identifier: AGPL-3.0-or-later
"""The policy of an observed sync (RFC 7641, MSC3079): what is sent when, and what an acknowledgement moves.

    register ──> wait for its turn ──> where are the streams? ──> sync after S ──> anything in it? ──no──┐
                     ^                                                |             yes, or the first    │
                     |                                             an error                 v            │
                     |                                                v                  notify          │
                     |                                      the last response, end          |            │
                     |                                                     delivered: S = its next_batch │
                     └────────────── wait until the streams move <──────────────────────────┴────────────┘

A message in a room wakes all its observers. If the syncs of very many began at once, all would end when the last one
does. So there is a limit to those that are run at a time; others wait, in the order of waking. Where the streams are is
looked up when it is an observer's turn: what has happened while it waited is in the one sync that comes then. First
syncs, which may be large, have a queue of their own, so that news does not wait for them.

Nothing is kept of a result but in the one notification that is on its way. If that fails the registration goes, and
S with it: the client comes back with the S that it has processed. What happens meanwhile is not queued; that the
streams have moved is seen from where they were before the sync.

S never passes a to-device message that was not acknowledged, because Synapse deletes up to the S that it is shown:
it moves to the end of a delivered result, or to the end of one in which there is nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol, TypeVar

from attrs import define, field, frozen, validators
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from synapse_lb.coaps.clock import Clock, Timer
from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.server.dispatcher import Address, Dispatcher
from synapse_lb.server.news import NewsSubscription, NewsWaiter, Position
from synapse_lb.server.observable import Observable
from synapse_lb.server.turnstile import Turnstile

T = TypeVar("T")

RESTART_DELAY: Final = 5.0
"""s: after which clients may come back to a server that is stopped (Max-Age of the 5.03)."""

REFUSAL_DELAY: Final = 60.0
"""s: after which a client may try again that has too many observations (Max-Age of the 5.03)."""

MAX_SPINS: Final = 4
"""Results in a row that end where they began, after each of which the next is computed at once."""

STALE_DELAY: Final = 5.0
"""s: until the next one after them, if the streams do not move before."""


@frozen(kw_only=True)
class ObserveOptions:
    """Bounds of what is observed.

    Attributes:
        max_observations_per_user: Observations of one user. One more ends the oldest with the same access token; if
            there is none it is refused with 5.03.
        max_retries: Further attempts at a sync that failed for a passing reason (429, 5xx).
        first_retry_after: s: before the first of them; doubled for each further one.
        longest_retry_after: s: the longest wait before one. A server that asks for more ends the observation.
        max_syncs_at_once: Syncs that are run at a time, and as many first ones; the others wait for their turn.
        sliding_sync: Whether sliding sync can be observed, and not `/sync` only.
    """

    max_observations_per_user: int = field(default=32, validator=validators.ge(1))
    max_retries: int = field(default=6, validator=validators.ge(0))
    first_retry_after: float = field(default=1.0, validator=validators.gt(0))
    longest_retry_after: float = field(default=30.0, validator=validators.gt(0))
    max_syncs_at_once: int = field(default=1024, validator=validators.ge(1))
    sliding_sync: bool = True


@define
class ObserverCounters:
    """What an observer has done since it was made."""

    registrations: int = 0
    """Registrations that came in."""
    refused: int = 0
    """Registrations that were one too many for their user."""
    displaced: int = 0
    """Observations that made room for a newer one of the same access token."""
    syncs: int = 0
    """Syncs that were run."""
    queued: int = 0
    """Syncs that had to wait for their turn."""
    empty: int = 0
    """Results that were not sent, because nothing was in them."""
    notifications: int = 0
    """Results that were sent."""
    delivered: int = 0
    """Results that were acknowledged."""
    failed: int = 0
    """Results that were not, which ended their observation."""
    retries: int = 0
    """Further attempts at syncs that had failed."""
    revoked: int = 0
    """Observations whose access token ended."""
    ended: int = 0
    """Observations that the client ended, or whose client went away."""
    failures: int = 0
    """Observations that ended in an error of this program."""


class Channel(Protocol):
    """The way to the client of one registration."""

    @property
    def address(self) -> Address:
        """Where the client is now."""

    def notify(self, response: MatrixResponse) -> int | None:
        """Send a notification, of which `SyncObserver.delivered` or `SyncObserver.failed` will tell.

        Returns:
            Bytes of its body; None if it cannot be sent, and the client was told so, which ends the observation.
        """

    def finish(self, response: MatrixResponse) -> int:
        """Send the last response, which ends the observation; returns the bytes of its body."""


class SyncObserver:
    """Keeps the observations of one gateway.

    Args:
        dispatcher: runs the syncs.
        news: tells when there may be something new.
        clock: the reactor.
        options: its bounds.
    """

    def __init__(
        self, dispatcher: Dispatcher, news: NewsWaiter, *, clock: Clock, options: ObserveOptions | None = None
    ) -> None:
        self.dispatcher: Final = dispatcher
        self.news: Final = news
        self.clock: Final = clock
        self.options: Final = options if options is not None else ObserveOptions()
        self.counters: Final = ObserverCounters()
        self._first: Final = Turnstile(clock, self.options.max_syncs_at_once)
        self._further: Final = Turnstile(clock, self.options.max_syncs_at_once)
        self._observations: dict[int, Observation] = {}
        self._by_user: dict[str, dict[int, Observation]] = {}

    def __len__(self) -> int:
        return len(self._observations)

    def __iter__(self) -> Iterator[Observation]:
        return iter(list(self._observations.values()))

    @property
    def waiting(self) -> int:
        """How many observations wait for their turn to sync."""
        return self._first.waiting + self._further.waiting

    def observable(self, request: MatrixRequest) -> Observable | None:
        """What observes a request; None if it cannot be observed."""
        observable = Observable.of(request)
        if observable is not None and observable.is_sliding and not self.options.sliding_sync:
            return None
        return observable

    def register(self, exchange: int, observable: Observable, channel: Channel) -> None:
        """Take a registration, whose first result is on its way soon.

        Args:
            exchange: its number.
            observable: what is observed.
            channel: the way to the client.
        """
        self.counters.registrations += 1
        observation = Observation(self, exchange, observable, channel)
        self._observations[exchange] = observation
        observation.start()

    def delivered(self, exchange: int) -> None:
        """The notification on its way was acknowledged."""
        observation = self._observations.get(exchange)
        if observation is not None:
            self.counters.delivered += 1
            observation.delivered()

    def failed(self, exchange: int) -> None:
        """The notification on its way was not acknowledged, and the observation has ended."""
        observation = self._observations.get(exchange)
        if observation is not None:
            self.counters.failed += 1
            observation.stop()

    def cancelled(self, exchange: int) -> Observable | None:
        """The client has ended an observation, or has gone.

        Returns:
            What was observed, up to the last delivered result; None if `exchange` is no observation.
        """
        observation = self._observations.get(exchange)
        if observation is None:
            return None
        self.counters.ended += 1
        observation.stop()
        return observation.observable

    def shutdown(self) -> None:
        """Tell all observers that the server stops (5.03), and end everything. Idempotent."""
        body = {"errcode": "M_UNKNOWN", "error": "The server is shutting down"}
        with self._first.closed(), self._further.closed():
            for observation in list(self._observations.values()):
                observation.end(MatrixResponse(503, body, RESTART_DELAY))

    # For observations

    def in_turn(self, work: Callable[[], Deferred[T]], *, is_first: bool) -> Deferred[T]:
        """Begin a sync when it is its turn; to cancel the Deferred is to give up the turn, or the sync."""
        turnstile = self._first if is_first else self._further
        before = turnstile.waiting
        result = turnstile.run(work)
        self.counters.queued += turnstile.waiting > before
        return result

    def admit(self, newcomer: Observation, user_id: str) -> bool:
        """Find room for an observation of a user, whose it is from then on; it may take that of an older one."""
        others = list(self._by_user.get(user_id, {}).values())
        if len(others) >= self.options.max_observations_per_user and not self._make_room(newcomer, others):
            return False
        newcomer.user_id = user_id
        self._by_user.setdefault(user_id, {})[newcomer.exchange] = newcomer
        return True

    def _make_room(self, newcomer: Observation, others: list[Observation]) -> bool:
        """End the oldest of a user's observations that has the newcomer's token, or else the newcomer."""
        body = {"errcode": "M_LIMIT_EXCEEDED", "error": "Too many observations"}
        refusal = MatrixResponse(503, body, REFUSAL_DELAY)
        token = newcomer.observable.request.access_token
        older = [each for each in others if each.observable.request.access_token == token]
        if not older:
            self.counters.refused += 1
            newcomer.end(refusal)
            return False
        self.counters.displaced += 1
        older[0].end(refusal)
        return True

    def forget(self, exchange: int) -> None:
        """An observation has ended."""
        observation = self._observations.pop(exchange, None)
        if observation is None or observation.user_id is None:
            return
        of_user = self._by_user[observation.user_id]
        del of_user[exchange]
        if not of_user:
            del self._by_user[observation.user_id]


class Observation:
    """One registration.

    Args:
        observer: whose it is.
        exchange: its number.
        observable: what is observed.
        channel: the way to the client.
    """

    _log = Logger()

    def __init__(
        self, observer: SyncObserver, exchange: int, observable: Observable, channel: Channel
    ) -> None:
        self.observable = observable
        self.user_id: str | None = None
        self._observer: Final = observer
        self._counters: Final = observer.counters
        self.exchange: Final = exchange
        self.channel: Final = channel
        self._waiting: Deferred[Any] | None = None
        self._in_flight: Deferred[None] | None = None
        self._over = False
        self._size = 0

        self._since: Final = observer.clock.seconds()

    @property
    def age(self) -> float:
        """Seconds since it was registered."""
        return self._observer.clock.seconds() - self._since

    def start(self) -> None:
        """Begin."""
        Deferred.fromCoroutine(self._run()).addErrback(self._broken)

    def delivered(self) -> None:
        """The notification on its way was acknowledged: go on."""
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None:
            in_flight.callback(None)

    def stop(self) -> None:
        """End it without a word. Idempotent."""
        self._over = True
        self._observer.forget(self.exchange)
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()

    def end(self, response: MatrixResponse) -> None:
        """Send the last response and end it. Nothing happens if it has ended."""
        if not self._over:
            self._over = True
            self._size = self.channel.finish(response)
            self.stop()

    async def _wait(self, waiting: Deferred[T]) -> T:
        """Wait for something that `stop` cancels, whenever it is called."""
        if self._over:
            waiting.addErrback(lambda _: None)
            waiting.cancel()
            raise CancelledError
        self._waiting = waiting
        try:
            return await waiting
        finally:
            self._waiting = None

    def _broken(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        self._counters.failures += 1
        self._log.failure("An observation failed", failure=failure)
        self.end(MatrixResponse(500, {"errcode": "M_UNKNOWN", "error": "Internal server error"}))

    def _revoked(self, response: MatrixResponse) -> None:
        if not self._over:
            self._counters.revoked += 1
            self.end(response)

    async def _run(self) -> None:
        observer, token = self._observer, self.observable.request.access_token
        subscription: NewsSubscription | None = None
        if token is not None:
            presence = self.observable.set_presence
            subscription = await self._wait(observer.news.subscribe(token, presence, self._revoked))
        if subscription is None:
            self.end(await self._wait(self._dispatch(self.observable.request)))
            return
        try:
            if observer.admit(self, subscription.user_id):
                await self._observe(subscription)
        finally:
            subscription.close()

    async def _observe(self, subscription: NewsSubscription) -> None:
        spins = 0
        while not self._over:
            before, response = await self._sync(subscription)
            batch = self.observable.position_in(response.body)
            if response.status != 200 or batch is None:
                self.end(response if response.status != 200 else _no_result())
                return
            following = self.observable.after(response.body)
            spins = 0 if following.position != self.observable.position else spins + 1
            if self.observable.is_first or not self.observable.is_empty(response.body):
                if not await self._notify(response):
                    return
            else:
                self._counters.empty += 1
            self.observable = following
            if await self._wait(subscription.covers(before, batch)):
                spins = 0
                await self._wait(subscription.news(before))
            elif spins > MAX_SPINS:
                await self._pause(subscription.news(before))

    async def _pause(self, news: Deferred[None]) -> None:
        """Wait until the streams move, but not for long, because there may be something that is not sent yet."""
        timer = self._observer.clock.callLater(STALE_DELAY, news.cancel)
        try:
            await self._wait(news)
        except CancelledError:
            if self._over:
                raise
        finally:
            if timer.active():
                timer.cancel()

    async def _notify(self, response: MatrixResponse) -> bool:
        """Send a notification; return True once it is delivered, False if it cannot be sent."""
        in_flight: Deferred[None] = Deferred()
        self._in_flight = in_flight
        self._counters.notifications += 1
        size = self.channel.notify(response)
        if size is None:
            self.stop()
            return False
        self._size = size
        await self._wait(in_flight)
        return True

    async def _sync(self, subscription: NewsSubscription) -> tuple[Position, MatrixResponse]:
        """Run the sync, again after a while if it fails for a passing reason; the first one is not repeated.

        Returns:
            Where the streams were before, and what came of it.
        """
        observer, options, is_first = self._observer, self._observer.options, self.observable.is_first

        def begin() -> Deferred[tuple[Position, MatrixResponse]]:
            return subscription.position().addCallback(run)

        def run(before: Position) -> Deferred[tuple[Position, MatrixResponse]]:
            request = self.observable.next_request()
            return self._dispatch(request).addCallback(lambda response: (before, response))

        wait = options.first_retry_after
        for attempt in range(options.max_retries + 1):
            before, response = await self._wait(observer.in_turn(begin, is_first=is_first))
            delay = max(wait, response.retry_after or 0.0)
            passing = response.status == 429 or response.status >= 500
            if not passing or is_first or delay > options.longest_retry_after:
                return before, response
            if attempt < options.max_retries:
                self._counters.retries += 1
                await self._sleep(delay)
                wait = min(2 * wait, options.longest_retry_after)
        return before, response

    def _dispatch(self, request: MatrixRequest) -> Deferred[MatrixResponse]:
        """Run a request; its Deferred goes back to the dispatcher with the size of what it led to."""
        observer = self._observer
        self._counters.syncs += 1
        dispatched = maybeDeferred(observer.dispatcher.dispatch, request, self.channel.address)
        answer: Deferred[MatrixResponse] = Deferred(lambda _: dispatched.cancel())

        def done(response: MatrixResponse) -> int:
            self._size = 0
            answer.callback(response)  # What goes on here sends it, or not.
            return self._size

        def failed(failure: Failure) -> None:
            if answer.called:
                return  # Cancelled.
            if failure.check(CancelledError):
                answer.errback(failure)
                return
            self._log.failure("A sync could not be dispatched", failure=failure)
            answer.callback(MatrixResponse(500, {"errcode": "M_UNKNOWN", "error": "Internal server error"}))

        dispatched.addCallbacks(done, failed)
        dispatched.addErrback(lambda failure: self._log.failure("An observation is stuck", failure=failure))
        return answer

    async def _sleep(self, delay: float) -> None:
        timer: Timer

        def cancel(_: object) -> None:
            timer.cancel()

        slept: Deferred[None] = Deferred(cancel)
        timer = self._observer.clock.callLater(delay, slept.callback, None)
        await self._wait(slept)


def _no_result() -> MatrixResponse:
    return MatrixResponse(502, {"errcode": "M_UNKNOWN", "error": "The sync has no position to go on from"})


def when_deregistered(observable: Observable, last: Observable | None) -> MatrixResponse:
    """Return the answer to a request that ends an observation (Observe 1; RFC 7641 section 3.6).

    No sync is run for it: it would be thrown away, and may be large. What it says is true, and a whole result.

    Args:
        observable: what the request names.
        last: what was observed with its token until now, if there was anything.
    """
    return MatrixResponse(200, (last or observable).nothing_new())
