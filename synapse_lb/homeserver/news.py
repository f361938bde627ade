# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tells observed syncs when there may be something new, and when their token has ended.

A subscription that waits costs a listener of Synapse's notifier and nothing else: no request, no coroutine, no timer.
All subscriptions together have one timer, which keeps their users present and sees to it that none listens in vain.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from synapse_lb.coaps.clock import Clock, Timer
from synapse_lb.homeserver.streams import PRESENT, Streams
from synapse_lb.msc3079.messages import MatrixResponse
from synapse_lb.server.news import NewsSubscription

logger = logging.getLogger(__name__)

TEND_INTERVAL: Final = 40.0
"""s: less than the 60 s after which Synapse says of a user who did nothing that it is not active any more, so that a
user who observes counts as one who polls, and nobody is told of a change where there is none."""

TEND_AT_ONCE: Final = 200
TEND_PAUSE: Final = 0.05
"""Subscriptions that are tended in one turn, and the seconds until the next: nothing else waits for
ten thousand of them."""

OnRevoked = Callable[[MatrixResponse], None]


class SynapseNews:
    """The subscriptions of one homeserver (a ``NewsWaiter`` of `synapse_lb.server`).

    Args:
        streams: the homeserver's streams.
        clock: the reactor.
    """

    def __init__(self, streams: Streams, clock: Clock) -> None:
        self.streams: Final = streams
        self._clock: Final = clock
        self._by_token: dict[str, list[Subscription]] = {}
        self._timer: Timer | None = None
        self._unwatch: Final = streams.watch_tokens(self._token_changed)

    def subscribe(
        self, access_token: str, presence: str, on_revoked: OnRevoked
    ) -> Deferred[NewsSubscription | None]:
        """Subscribe to the streams of a token's user; see ``NewsWaiter.subscribe``."""
        subscription = Subscription(self, access_token, presence, on_revoked)
        # From now on: the token may end while its owner is looked for.
        self._by_token.setdefault(access_token, []).append(subscription)
        if self._timer is None:
            self._timer = self._clock.callLater(TEND_INTERVAL, self._tend)
        result: Deferred[NewsSubscription | None] = Deferred(lambda _: subscription.close())
        owner = self.streams.in_background("low-bandwidth-observe", lambda: self.streams.owner(access_token))

        def found(owner: tuple[str, str | None] | None) -> None:
            if owner is None or subscription.closed:
                subscription.close()
            else:
                subscription.open(*owner)
            if not result.called:
                result.callback(None if subscription.closed else subscription)

        def failed(failure: Failure) -> None:
            subscription.close()
            if not result.called:
                result.errback(failure)

        owner.addCallbacks(found, failed)
        return result

    def token_ended(self, access_token: str) -> None:
        """An access token was revoked: its subscriptions are told, and are no more."""
        subscriptions = self._by_token.get(access_token, ())
        if subscriptions:
            status, body = self.streams.unknown_token()
            for subscription in list(subscriptions):
                subscription.revoke(MatrixResponse(status, body))

    def _token_changed(self, access_token: str) -> None:
        """Another process has changed or deleted an access token."""
        if access_token not in self._by_token:
            return
        owner = self.streams.in_background("low-bandwidth-token", lambda: self.streams.owner(access_token))

        def found(owner: tuple[str, str | None] | None) -> None:
            if owner is None:
                self.token_ended(access_token)

        # If Synapse cannot tell now, the next sync with the token will.
        owner.addCallbacks(
            found, lambda failure: logger.error("A token cannot be looked up: %s", failure.value)
        )

    def forget(self, subscription: Subscription) -> None:
        """A subscription has ended."""
        subscriptions = self._by_token.get(subscription.access_token, [])
        if subscription in subscriptions:
            subscriptions.remove(subscription)
        if not subscriptions:
            self._by_token.pop(subscription.access_token, None)
        if not self._by_token:
            self.stop()

    def close(self) -> None:
        """Cancel the timer, and hear of no tokens any more. Idempotent."""
        self._unwatch()
        self.stop()

    def stop(self) -> None:
        """Cancel the timer. Idempotent."""
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _tend(self) -> None:
        everybody = [each for subscriptions in self._by_token.values() for each in subscriptions]
        self._tend_some(everybody, set())

    def _tend_some(
        self, subscriptions: list[Subscription], present: set[tuple[str, str | None, str]]
    ) -> None:
        """Tend the first of them, and see to it that the others' turn comes, or everybody's again."""
        some, others = subscriptions[:TEND_AT_ONCE], subscriptions[TEND_AT_ONCE:]
        if others:
            self._timer = self._clock.callLater(TEND_PAUSE, self._tend_some, others, present)
        else:
            self._timer = self._clock.callLater(TEND_INTERVAL, self._tend)
        for subscription in some:
            if not subscription.closed:
                # Several observations of one device need it only once.
                subscription.tend(present)


class Subscription:
    """One observer's (a ``NewsSubscription`` of `synapse_lb.server`).

    Args:
        news: whose it is.
        access_token: the token that it ends with.
        presence: what the user counts as.
        on_revoked: is told when the token ends.
    """

    def __init__(self, news: SynapseNews, access_token: str, presence: str, on_revoked: OnRevoked) -> None:
        self.access_token: Final = access_token
        self.user_id = ""
        self.closed = False
        self._device_id: str | None = None
        self._presence: Final = presence
        self._news: Final = news
        self._streams: Final = news.streams
        self._on_revoked: Final = on_revoked
        self._syncing: Any = None
        self._waiting: Deferred[None] | None = None
        self._listener: Deferred[Any] | None = None
        self._mark: Any = None

    def open(self, user_id: str, device_id: str | None) -> None:
        """Take note of whose token it is."""
        self.user_id, self._device_id = user_id, device_id
        self._appear()

    def position(self) -> Deferred[Any]:
        """Return where the user's streams are."""
        return self._streams.position(self.user_id)

    def covers(self, position: Any, batch: str) -> Deferred[bool]:
        """Whether a result that ends at `batch` goes at least as far as `position`."""
        return self._streams.covers(position, batch)

    def news(self, position: Any) -> Deferred[None]:
        """Wait until the user's streams are elsewhere than at `position`."""

        def cancel(_: object) -> None:
            self._stop_waiting()

        waiting: Deferred[None] = Deferred(cancel)
        found = self._streams.listener(self.user_id, position)
        if found is None:
            # Nobody has listened for long: something may have happened.
            waiting.callback(None)
            return waiting
        self._waiting = waiting
        self._listener, self._mark = found
        self._listener.addCallbacks(self._moved, lambda failure: failure.trap(CancelledError))
        return waiting

    def _moved(self, _: Any) -> None:
        waiting = self._stop_waiting()
        if waiting is not None:
            waiting.callback(None)

    def _stop_waiting(self) -> Deferred[None] | None:
        waiting, self._waiting = self._waiting, None
        listener, self._listener = self._listener, None
        self._mark = None
        if listener is not None and not listener.called:
            listener.cancel()
        return waiting

    def tend(self, present: set[tuple[str, str | None, str]]) -> None:
        """Do what is to be done now and then.

        Args:
            present: whose presence was renewed already; is added to.
        """
        if self._waiting is not None and not self._streams.is_listening(self.user_id, self._mark):
            self._moved(None)
        key = (self.user_id, self._device_id, self._presence)
        if self.user_id and key not in present:
            present.add(key)
            self._appear()

    def revoke(self, response: MatrixResponse) -> None:
        """The token has ended."""
        if not self.closed:
            self.close()
            self._on_revoked(response)

    def close(self) -> None:
        """End it. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._stop_waiting()
        syncing, self._syncing = self._syncing, None
        self._streams.disappear(syncing)
        self._news.forget(self)

    def _appear(self) -> None:
        """Let the user be present, or be so anew."""
        if self._presence not in PRESENT or not self._streams.tracks_presence:
            return
        appearing = self._streams.in_background(
            "low-bandwidth-presence",
            lambda: self._streams.appear(self.user_id, self._device_id, self._presence),
        )

        def appeared(syncing: Any) -> None:
            before, self._syncing = self._syncing, syncing
            self._streams.disappear(before)
            if self.closed:
                self._syncing = None
                self._streams.disappear(syncing)

        def failed(failure: Failure) -> None:
            logger.error("The presence of %s cannot be set: %s", self.user_id, failure.value)

        appearing.addCallbacks(appeared, failed)
