# SPDX-License-Identifier: AGPL-3.0-or-later
"""One observation of `/sync`, and the HTTP clients that wait for what it brings.

A notification is acknowledged only when a client comes with its `next_batch` as `since`: this is how a client says over
HTTP that it has processed an answer, and until then Synapse keeps the to-device messages in it.

    client                          subscription                       homeserver
      | since=A                          |  <-- notification A..B ---------  |
      |--------------------------------->|                                   |
      |  <-- 200, next_batch=B ----------|   (not acknowledged)              |
      | since=B                          |                                   |
      |--------------------------------->|  --- ACK ---------------------->  |
      |             waits ...            |  <-- notification B..C ---------  |
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from synapse_lb.client.observation import Change, Observation, State

if TYPE_CHECKING:
    from synapse_lb.coaps.clock import Clock, Timer

Body = dict[str, Any]
Observe = Callable[[Callable[[Body], Any], Callable[[Change], None]], Observation]

COUNTS: Final = (
    "device_one_time_keys_count",
    "device_unused_fallback_key_types",
    "org.matrix.msc2732.device_unused_fallback_key_types",
)
"""In every answer to a `/sync`: how things are, and no news. A client takes their absence for zero."""

KNOWN_PLACES: Final = 16
"""Places of an observation between which nothing has happened, of which a client may name any."""


class Repeated(Exception):
    """A client asks for what was answered to it already: it wants to know how things are now."""


class _Unclaimed(Exception):
    """Nobody has come to say that the notification was processed."""


class Subscription:
    """One observation, with one place in the stream.

    Args:
        clock: the reactor.
        observe: begins to observe, given the handler and what is told of changes.
        since: where it begins.
        linger: s without a waiting client after which it ends.
        on_end: called once when it has ended; with it, nothing is known of its place any more.
    """

    def __init__(
        self,
        clock: Clock,
        observe: Observe,
        since: str,
        *,
        linger: float,
        on_end: Callable[[Subscription], None],
    ) -> None:
        self._clock = clock
        self._linger = linger
        self._on_end = on_end
        self._places: deque[str] = deque([since], KNOWN_PLACES)
        self._pending: Body | None = None
        self._answered = False
        self._processed: Deferred[None] | None = None
        self._waiting: list[Deferred[Body]] = []
        self._counts: Body = {}
        self._timer: Timer | None = None
        self._failure: Failure | None = None
        self.last_asked = clock.seconds()
        self._observation = observe(self._take, lambda change: None)
        self._observation.done.addCallbacks(lambda _: self._end(None), self._end)
        self._arm()

    def knows(self, since: str) -> bool:
        """Whether a client that comes with this `since` can go on here."""
        return since in self._places or (self._pending is not None and since == self._pending["next_batch"])

    @property
    def waits(self) -> bool:
        """Whether a client waits for it."""
        return bool(self._waiting)

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes."""
        return self._failure is not None

    @property
    def is_connected(self) -> bool:
        """Whether the homeserver is known to have nothing new: it would have told."""
        return self._observation.state in (State.OBSERVING, State.POLLING)

    def ask(self, since: str) -> Deferred[Body]:
        """What has happened since.

        Args:
            since: one that it `knows`.

        Returns:
            A Deferred of the body of a `/sync`, when something has happened. To cancel it is to wait no more. It
            fails with what the observation fails with.

        Raises:
            Repeated: there is an answer, and it was given before.
        """
        self.last_asked = self._clock.seconds()
        if self._failure is not None:
            return fail(self._failure)
        if self._pending is not None and since == self._pending["next_batch"]:
            self._acknowledge()
        answer: Deferred[Body] = Deferred(self._forget)
        if self._pending is not None:
            if self._answered:
                raise Repeated
            self._answered = True
            answer.callback(self._pending)
            self._arm()
            return answer
        self._waiting.append(answer)
        self._disarm()
        return answer

    def nothing_new(self) -> Body:
        """The body of an answer that says that nothing has happened."""
        return {"next_batch": self._places[-1], **self._counts}

    def note_counts(self, counts: Body) -> None:
        """Take note of how many keys there are, from the answer to an upload of some."""
        self._counts.update(counts)

    def unused_fallback_keys(self) -> list[str]:
        """The algorithms of the fallback keys that nobody has used yet, as far as is known."""
        return list(self._counts.get("device_unused_fallback_key_types", ()))

    def stop(self) -> None:
        """End it; what was not processed stays with the homeserver. Idempotent."""
        if not self.has_ended:
            self._observation.stop()
            processed, self._processed = self._processed, None
            if processed is not None:
                processed.errback(Failure(_Unclaimed()))

    # --- what comes ---

    def _take(self, body: Body) -> Deferred[None] | None:
        """Have a notification answered; the handler of the observation."""
        self._counts.update((name, body[name]) for name in COUNTS if name in body)
        if is_empty(body):
            self._places.append(body["next_batch"])
            return None
        self._pending, self._answered = body, bool(self._waiting)
        processed: Deferred[None] = Deferred()
        self._processed = processed
        waiting, self._waiting = self._waiting, []
        for answer in waiting:
            answer.callback(body)
        self._arm()
        return processed

    def _acknowledge(self) -> None:
        assert self._pending is not None
        self._places.clear()
        self._places.append(self._pending["next_batch"])
        self._pending = None
        processed, self._processed = self._processed, None
        if processed is not None:
            processed.callback(None)

    def _end(self, failure: Failure | None) -> None:
        if failure is None or failure.check(_Unclaimed):
            failure = Failure(Repeated())
        self._failure = failure
        self._disarm()
        waiting, self._waiting = self._waiting, []
        self._on_end(self)
        for answer in waiting:
            answer.errback(failure)

    # --- who waits ---

    def _forget(self, answer: Deferred[Body]) -> None:
        if answer in self._waiting:
            self._waiting.remove(answer)
            self._arm()

    def _arm(self) -> None:
        """End it after a while if no client waits."""
        self._disarm()
        if not self._waiting and not self.has_ended:
            self._timer = self._clock.callLater(self._linger, self._unwanted)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _unwanted(self) -> None:
        self._timer = None
        self.stop()


def is_empty(body: Body) -> bool:
    """Whether the body of a `/sync` holds nothing but where it ends and how many keys there are."""
    return all(name == "next_batch" or name in COUNTS or _is_void(value) for name, value in body.items())


def _is_void(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_void, value.values()))
    return isinstance(value, list) and not value
