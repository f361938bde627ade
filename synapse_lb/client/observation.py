# SPDX-License-Identifier: AGPL-3.0-or-later
"""An observation that outlives its associations (RFC 7641 over MSC3079), and long polling where there is none.

    fetch an initial sync --> handler --> since = next_batch
                                               |
    .--> register with `since` <---------------'
    |          '----------------> notification --> handler --> since = next_batch --> ACK --.
    |          |                        ^                                                   |
    |          |                        '---------------------------------------------------'
    |          |  association lost, nobody answers, 5.xx, 4.29: wait, with jitter
    '----------+  a plain answer: it is processed like a notification, and asked for again

What was processed is never asked for again, and what was not processed always is: `since` moves when the handler has
done its work, and a registration is only made while no handler is at work.
"""

from __future__ import annotations

import enum
import inspect
import random
from collections.abc import Callable, Coroutine
from typing import Any, Final, NoReturn, TypeVar

import attrs
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from synapse_lb.client.errors import (
    BadRequest,
    BadResponse,
    CertificateError,
    ClientClosed,
    ClientError,
    ObservationEnded,
    ObservationRefused,
    RequestTimeout,
    ServerUnavailable,
    TokenRejected,
)
from synapse_lb.client.persistence import Backoff, Persistence
from synapse_lb.client.registration import Incoming, RegisterAgain, Registration
from synapse_lb.client.subject import Asking, Handler, Subject, decoded
from synapse_lb.coap.events import CoapResponse
from synapse_lb.coap.numbers import Code, OptionNumber, code_to_text, is_success
from synapse_lb.msc3079.mapping import NO_BODY, MatrixResponse
from synapse_lb.txdtls.errors import PeerClosed

T = TypeVar("T")
Register = Callable[[Asking], Coroutine[Any, Any, Registration]]

_SHORTEST_POLL: Final = 1.0
"""s: a poll that is answered sooner, and with nothing new, was not held back by the server."""

_LEAST_MAX_AGE: Final = 60.0
"""s: a shorter Max-Age is for caches, and no reason to register again."""

_PASSING: Final = (Code.TOO_MANY_REQUESTS, Code.REQUEST_ENTITY_INCOMPLETE)
"""Answers of 4.xx after which a new registration has better prospects (RFC 8516, RFC 7959 section 2.9.2)."""

_FINAL_ERRORS: Final = (ObservationEnded, BadRequest, BadResponse, ClientClosed)


class _HandlerFailed(Exception):
    """The handler has not processed what it was given."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


class _Finished(Exception):
    """The server's last answer to a registration was taken; the next is due in so many seconds."""

    def __init__(self, delay: float) -> None:
        super().__init__(delay)
        self.delay = delay


class _Refresh(Exception):
    """The registration is to be ended and made anew."""


class _Delivered(Exception):
    """There is nothing to observe, and what there is was delivered."""


class State(enum.Enum):
    """What an observation is doing."""

    REGISTERING = "registering"
    """It asks the server, on a new association if there is none."""
    OBSERVING = "observing"
    """The server notifies."""
    POLLING = "polling"
    """The server does not notify, and is asked again and again."""
    WAITING = "waiting"
    """It waits until it tries again."""
    ENDED = "ended"
    """It has been stopped, or has failed for good."""


@attrs.frozen
class Change:
    """A new state of an observation.

    Attributes:
        state: the new state.
        error: why, if something went wrong.
        delay: seconds until the next attempt; only while waiting.
    """

    state: State
    error: Exception | None = None
    delay: float | None = None


class Observation:
    """What a client observes, from `LowBandwidthClient.observe`.

    Attributes:
        since: the place after what was processed last (`next_batch`); to be kept for the next start. It has its new
            value before the server is told that the notification was processed.
        state: what it is doing.
        done: fires when the observation has ended. It fails with what the handler failed with, with
            `TokenRejected`, `ObservationRefused`, or with another `ClientError` for which there is no remedy.
    """

    _log = Logger()

    def __init__(
        self,
        clock: Any,
        register: Register,
        subject: Subject,
        handler: Handler,
        *,
        since: str | None,
        persistence: Persistence,
        random: random.Random,
        on_change: Callable[[Change], None] | None,
    ) -> None:
        self.since = since
        self.state = State.REGISTERING
        self.done: Deferred[None] = Deferred()
        self._clock = clock
        self._register = register
        self._subject = subject
        self._handler = handler
        self._times = persistence
        self._random = random
        self._backoff = Backoff(persistence, random)
        self._on_change = on_change
        self._processed = 0
        self._last_place: str | None = None
        self._established = False
        self._polling = False
        self._asked_at = 0.0
        self._stopping = False
        self._farewell = True
        self._pending: Deferred[Any] | None = None
        self._stop_waiters: list[Deferred[None]] = []

    def start(self) -> None:
        """Begin; `LowBandwidthClient.observe` does it."""
        Deferred.fromCoroutine(self._run()).addBoth(self._ended)

    def stop(self) -> Deferred[None]:
        """End it, and tell the server. A handler that is at work may finish, and is acknowledged. Idempotent.

        Returns:
            A Deferred that fires when all is done; it never fails. A handler must not wait for it.
        """
        if self.state is State.ENDED:
            return succeed(None)
        waiter: Deferred[None] = Deferred()
        self._stop_waiters.append(waiter)
        self._stopping = True
        if self._pending is not None:
            self._pending.cancel()
        return waiter

    def abandon(self) -> None:
        """End it without telling the server, because the client is being closed."""
        self._farewell = False
        self.stop()

    # --- the loop ---

    async def _run(self) -> None:
        while not self._stopping:
            delay = await self._follow()
            if delay > 0:
                await self._sleep(delay)

    async def _follow(self) -> float:
        """Make one registration and see it to its end.

        Returns:
            Seconds until the next.
        """
        if not self._polling:
            self._change(State.REGISTERING)
        asking = self._asking()
        registration = None
        self._asked_at = self._clock.seconds()
        try:
            registration = await self._interruptible(Deferred.fromCoroutine(self._register(asking)))
            if asking.observe is None:
                return await self._take_initial(registration)
            await self._take_all(registration)
        except _Finished as finished:
            return finished.delay
        except _Refresh:
            assert registration is not None
            await self._deregister(registration)
            return 0.0
        except CancelledError:
            if registration is not None and asking.observe is not None:
                await self._deregister(registration)
            raise
        except _FINAL_ERRORS:
            raise
        except ClientError as error:
            return self._trouble(error)
        finally:
            if registration is not None:
                registration.forget()

    def _asking(self) -> Asking:
        """What is asked for now."""
        if not self._processed and self._subject.fetches_first(self.since):
            return Asking(self.since, observe=None)
        timeout = self._times.poll_timeout if self._polling else None
        return Asking(self.since, first=not self._processed, timeout=timeout)

    async def _take_initial(self, fetch: Registration) -> float:
        """Take the answer to a plain request, which may be long in coming: each of its blocks has its own limit.

        Returns:
            Seconds until the registration that goes on from there.
        """
        incoming = await self._interruptible(fetch.next())
        if not is_success(incoming.response.code):
            return self._refused(incoming)
        self._established = True
        await self._process(incoming)
        return 0.0

    async def _take_all(self, registration: Registration) -> NoReturn:
        """Take what a registration brings, one after another, until it ends.

        Raises:
            _Finished: the server's last answer was taken.
            _Refresh: it is to be made anew.
            ClientError: it has failed.
        """
        limit, heard = self._times.answer_timeout, False
        while True:
            if self._stopping:
                raise CancelledError
            incoming = await self._next(registration, limit, heard=heard)
            if incoming.last:
                raise _Finished(await self._take_last(incoming))
            self._established, self._polling, heard = True, False, True
            self._change(State.OBSERVING)
            started = self._clock.seconds()
            await self._process(incoming)
            registration.confirm()
            if self._clock.seconds() - started > self._times.slow_handler:
                raise _Refresh
            limit = self._patience(incoming.response)

    def _patience(self, response: CoapResponse) -> float:
        """Seconds without a further notification after which the registration is made anew.

        Max-Age, if the server gives one, and 5 to 15 s: RFC 7641 section 3.3.1.
        """
        max_age = response.options.get_uint(OptionNumber.MAX_AGE)
        if max_age is None:
            return self._times.refresh
        return min(self._times.refresh, max(max_age, _LEAST_MAX_AGE) + self._random.uniform(5.0, 15.0))

    async def _next(self, registration: Registration, limit: float, *, heard: bool) -> Incoming:
        """What a registration brings next.

        Raises:
            RequestTimeout: there was no answer at all within the limit.
            _Refresh: there was nothing new.
        """
        out_of_time = False

        def expire() -> None:
            nonlocal out_of_time
            out_of_time = True
            waiting.cancel()

        waiting = registration.next()
        timer = self._clock.callLater(limit, expire)
        try:
            return await self._interruptible(waiting)
        except CancelledError:
            if not out_of_time or self._stopping:
                raise
            if heard:
                raise _Refresh from None
            raise RequestTimeout(f"no answer within {limit:g} seconds") from None
        finally:
            if timer.active():
                timer.cancel()

    async def _take_last(self, incoming: Incoming) -> float:
        """Take a response without Observe.

        Returns:
            Seconds until the next registration.

        Raises:
            ObservationEnded: there is no use in one.
        """
        if not is_success(incoming.response.code):
            return self._refused(incoming)
        if self._subject.cursor is None:
            await self._process(incoming)
            raise _Delivered
        asked_since, was_polling = self.since, self._polling
        self._established = self._polling = True
        self._change(State.POLLING)
        await self._process(incoming)
        if self.since != asked_since or not was_polling:
            return 0.0
        elapsed: float = self._clock.seconds() - self._asked_at
        return max(0.0, _SHORTEST_POLL - elapsed)

    def _refused(self, incoming: Incoming) -> float:
        """Take a 4.xx or 5.xx.

        Returns:
            Seconds until the next registration.

        Raises:
            ObservationEnded: there is no use in one.
        """
        response, matrix = incoming.response, _matrix(incoming)
        text = _description(response, matrix)
        if response.code == Code.UNAUTHORIZED:
            raise TokenRejected(text, response, matrix)
        if not (response.code >> 5 == 5 or response.code in _PASSING):
            raise ObservationRefused(text, response, matrix)
        retry_after = None if matrix is None else matrix.retry_after
        if retry_after is None and response.code != Code.SERVICE_UNAVAILABLE:
            delay = self._backoff.after_failure()
        else:
            delay = self._backoff.after_planned_stop(retry_after or 0.0)
        self._change(State.WAITING, ServerUnavailable(text), delay)
        return delay

    def _trouble(self, error: ClientError) -> float:
        """Take the failure of a registration.

        Returns:
            Seconds until the next.

        Raises:
            CertificateError: the server has never been the right one.
        """
        if isinstance(error, RegisterAgain):
            return 0.0
        if isinstance(error, CertificateError) and not self._established:
            raise error
        if isinstance(error.__cause__, PeerClosed):
            delay = self._backoff.after_planned_stop(0.0)
        else:
            delay = self._backoff.after_failure()
        self._change(State.WAITING, error, delay)
        return delay

    async def _process(self, incoming: Incoming) -> None:
        """Have a notification processed, unless it was before."""
        read = self._subject.read(incoming.response, incoming.x1)
        if read is NO_BODY:
            return
        place = self._subject.place(read)
        if place is None or place != self._last_place:
            try:
                outcome = self._handler(read)
                if inspect.isawaitable(outcome):
                    await outcome
            except Exception as error:
                raise _HandlerFailed(Failure()) from error
        self._processed += 1
        if place is not None:
            self.since = self._last_place = place
        self._backoff.reset()

    # --- waiting ---

    async def _deregister(self, registration: Registration) -> None:
        """Tell the server that a registration has ended; it need not answer."""
        if self._polling or not self._farewell or not registration.open:
            return
        request = self._subject.request(Asking.farewell(self.since), registration.carried)
        try:
            await registration.deregister(request).addTimeout(self._times.farewell, self._clock)
        except (ClientError, TimeoutError) as error:
            self._log.debug("The end of an observation was not acknowledged: {error}", error=error)

    async def _interruptible(self, deferred: Deferred[T]) -> T:
        """Wait for something that `stop` may cancel."""
        self._pending = deferred
        if self._stopping:
            deferred.cancel()
        try:
            return await deferred
        finally:
            self._pending = None

    async def _sleep(self, delay: float) -> None:
        waiting: Deferred[None] = Deferred(lambda _: timer.cancel())
        timer = self._clock.callLater(delay, waiting.callback, None)
        await self._interruptible(waiting)

    # --- the end ---

    def _ended(self, result: object) -> None:
        failure = result if isinstance(result, Failure) else None
        if failure is not None:
            if isinstance(failure.value, _HandlerFailed):
                failure = failure.value.failure
            elif failure.check(_Delivered) or (
                self._stopping and failure.check(CancelledError, ClientClosed)
            ):
                failure = None
        error = failure.value if failure is not None and isinstance(failure.value, Exception) else None
        self._change(State.ENDED, error)
        if failure is None:
            self.done.callback(None)
        else:
            self.done.errback(failure)
        waiters, self._stop_waiters = self._stop_waiters, []
        for waiter in waiters:
            waiter.callback(None)

    def _change(self, state: State, error: Exception | None = None, delay: float | None = None) -> None:
        if state is self.state and error is None:
            return
        self.state = state
        if self._on_change is None:
            return
        try:
            self._on_change(Change(state, error, delay))
        except Exception:
            self._log.failure("A change of an observation could not be told")


def _matrix(incoming: Incoming) -> MatrixResponse | None:
    try:
        return decoded(incoming.response, incoming.x1)
    except BadResponse:
        return None


def _description(response: CoapResponse, matrix: MatrixResponse | None) -> str:
    text = f"the server answered {code_to_text(response.code)}"
    if matrix is not None and isinstance(matrix.body, dict):
        said = [str(matrix.body[key]) for key in ("errcode", "error") if key in matrix.body]
        text += "".join(f" {part}" for part in said)
    return text
