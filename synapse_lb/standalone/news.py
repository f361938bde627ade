# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tells observed syncs when there may be something new, by long polls at the homeserver (a ``NewsWaiter``).

An observer has been given everything up to the end of its last result, and acknowledged it. A long poll from there
returns when something has happened; what it returns is thrown away, and the observer's own sync, with the client's own
filter, fetches it. So the `since` that the homeserver is shown is always one that the client has acknowledged (or
before which there was nothing), and no to-device message is deleted that the client has not processed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlencode

from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from synapse_lb.coaps.clock import Clock
from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.server.dispatcher import Dispatcher
from synapse_lb.server.news import NewsSubscription
from synapse_lb.server.observable import Observable
from synapse_lb.standalone.standing import WHOAMI

SYNC: Final = b"/_matrix/client/v3/sync"

FILTER: Final = json.dumps(
    {
        "event_fields": ["type"],
        "room": {"timeline": {"limit": 1}, "state": {"types": []}},
    },
    separators=(",", ":"),
)
"""Hides nothing that happens, for the observer's own filter is not known here (what changes a room's state is in the
timeline too), but keeps what is thrown away small."""

FIRST_RETRY: Final = 1.0
LONGEST_RETRY: Final = 60.0
"""s: between attempts when the homeserver does not answer, doubled each time."""

NOBODY: Final = IPv4Address("UDP", "0.0.0.0", 0)

OnRevoked = Callable[[MatrixResponse], None]


class PollingNews:
    """Subscriptions by long polls.

    Args:
        dispatcher: runs the requests.
        clock: the reactor.
        poll_timeout: seconds that the homeserver holds a poll back.
    """

    def __init__(self, dispatcher: Dispatcher, clock: Clock, *, poll_timeout: float = 30.0) -> None:
        self.dispatcher: Final = dispatcher
        self.clock: Final = clock
        self.poll_timeout: Final = poll_timeout

    def subscribe(
        self, access_token: str, presence: str, on_revoked: OnRevoked
    ) -> Deferred[NewsSubscription | None]:
        """Subscribe to the streams of a token's user; see ``NewsWaiter.subscribe``."""
        request = MatrixRequest("GET", WHOAMI, access_token=access_token)
        return self.dispatcher.dispatch(request, NOBODY).addCallback(
            self._subscribed, access_token, presence, on_revoked
        )

    def _subscribed(
        self, answer: MatrixResponse, access_token: str, presence: str, on_revoked: OnRevoked
    ) -> NewsSubscription | None:
        user_id = answer.body.get("user_id") if isinstance(answer.body, dict) else None
        if answer.status != 200 or not isinstance(user_id, str):
            # The sync itself tells the client what is wrong.
            return None
        return PollingSubscription(self, user_id, access_token, presence, on_revoked)


class PollingSubscription:
    """One observer's (a ``NewsSubscription`` of `synapse_lb.server`).

    Args:
        news: whose it is.
        user_id: whose streams.
        access_token: of the user.
        presence: what the user counts as meanwhile.
        on_revoked: is told when a poll finds that the token has ended.
    """

    _log = Logger()

    def __init__(
        self, news: PollingNews, user_id: str, access_token: str, presence: str, on_revoked: OnRevoked
    ) -> None:
        self.user_id: Final = user_id
        self._news: Final = news
        self._token: Final = access_token
        self._presence: Final = presence
        self._on_revoked: Final = on_revoked
        self._batch: str | None = None
        self._woken_at: str | None = None
        self._wakes = 0
        self._work: Deferred[Any] | None = None
        self._closed = False

    def position(self) -> Deferred[Any]:
        """Nothing: where the streams are is not known here, only where results end."""
        return _fired(None)

    def covers(self, position: Any, batch: str) -> Deferred[bool]:
        """Take note of where the last result ends; `news` looks for what comes after it, so nothing is missed."""
        self._batch = batch
        return _fired(True)

    def news(self, position: Any) -> Deferred[None]:
        """Wait until something has happened after the last result."""

        def cancel(_: object) -> None:
            if self._work is not None:
                self._work.cancel()

        waiting: Deferred[None] = Deferred(cancel)

        def done(result: MatrixResponse | Failure | None) -> None:
            self._work = None
            if isinstance(result, Failure):
                if result.check(CancelledError):
                    return
                # The observer's own sync finds out what is wrong, or that nothing is.
                self._log.failure("A poll for news failed", failure=result)
            if isinstance(result, MatrixResponse) and not self._closed:
                self._closed = True
                self._on_revoked(result)
            if not waiting.called:
                waiting.callback(None)

        self._work = Deferred.fromCoroutine(self._wait())
        self._work.addBoth(done)
        return waiting

    def close(self) -> None:
        """End it. Idempotent."""
        self._closed = True
        if self._work is not None:
            self._work.cancel()

    async def _wait(self) -> MatrixResponse | None:
        """Poll until there is something; returns what a poll got whose token has ended."""
        retry = FIRST_RETRY
        if self._batch == self._woken_at and self._wakes:
            # What woke the observer before did not move it on: not to be repeated at once.
            await self._sleep(min(FIRST_RETRY * 2.0 ** min(self._wakes - 1, 16), LONGEST_RETRY))
        while not self._closed:
            started = self._news.clock.seconds()
            answer = await self._poll()
            if answer.status == 401:
                return answer
            if answer.status == 200 and isinstance(answer.body, dict):
                if not self._is_empty(answer.body):
                    self._woke()
                    return None
                retry = FIRST_RETRY
                # A homeserver that does not hold polls back is not to be asked without end.
                await self._sleep(max(0.0, FIRST_RETRY - (self._news.clock.seconds() - started)))
            else:
                await self._sleep(max(retry, min(answer.retry_after or 0.0, LONGEST_RETRY)))
                retry = min(2 * retry, LONGEST_RETRY)
        return None

    def _woke(self) -> None:
        self._wakes = self._wakes + 1 if self._batch == self._woken_at else 0
        self._woken_at = self._batch

    def _poll(self) -> Deferred[MatrixResponse]:
        return self._news.dispatcher.dispatch(self._request(), NOBODY)

    def _request(self) -> MatrixRequest:
        query = {
            "since": self._batch or "",
            "timeout": str(round(self._news.poll_timeout * 1000)),
            "set_presence": self._presence,
            "filter": FILTER,
        }
        return MatrixRequest("GET", SYNC, urlencode(query).encode("ascii"), access_token=self._token)

    def _is_empty(self, body: dict[str, Any]) -> bool:
        observable = Observable.of(self._request())
        assert observable is not None
        return observable.is_empty(body)

    def _sleep(self, delay: float) -> Deferred[None]:
        waiting: Deferred[None] = Deferred(lambda _: timer.cancel())
        timer = self._news.clock.callLater(delay, waiting.callback, None)
        return waiting


def _fired(value: Any) -> Deferred[Any]:
    fired: Deferred[Any] = Deferred()
    fired.callback(value)
    return fired
