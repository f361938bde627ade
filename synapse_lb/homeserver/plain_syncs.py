# SPDX-License-Identifier: AGPL-3.0-or-later
"""A client's ``/sync``, in which nothing is looked up that cannot make a difference.

Synapse's own code serves it, with other parts for three of its steps:

- A ``since`` that this process has reached already needs no bounds, and nothing is to be waited for. One look at where
  the streams are tells so; Synapse brings each stream into its bounds, and looks once more.
- Whether a user may be turned away is not looked up where Synapse is not configured to turn anybody away.
- Whether a user may ask for MSC4222 is not looked up for a request that does not ask for it.

`hooks` looks whether what is used of Synapse here is there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Final

from synapse.rest.admin.experimental_features import ExperimentalFeature
from synapse.rest.client.sync import SyncRestServlet
from synapse.util.cancellation import cancellable

from synapse_lb.homeserver.shared_reads import Overlay

_ASKS_FOR_MSC4222: Final = b"use_state_after"
"""In the name of the parameter, whose default is not to."""


def needed_of(servlet: SyncRestServlet) -> Iterator[tuple[object, str]]:
    """What is looked for when a listener starts: objects and attributes."""
    handler = servlet.sync_handler
    yield servlet.store, "is_feature_enabled"
    for name in ("event_sources", "notifier", "auth_blocking"):
        yield handler, name
    yield handler.event_sources, "bound_future_token"
    yield handler.event_sources, "get_current_token"
    yield handler.notifier, "wait_for_stream_token"
    yield handler.auth_blocking, "check_auth_blocking"


class PlainSyncs:
    """Serves syncs with Synapse's servlet.

    Args:
        servlet: it.
        has_limits: whether Synapse is configured to turn users away.
    """

    def __init__(self, servlet: SyncRestServlet, *, has_limits: bool) -> None:
        handler: Any = copy.copy(servlet.sync_handler)
        handler.event_sources = sources = _Sources(handler.event_sources)
        handler.notifier = _Notifier(handler.notifier, _sources=sources)
        if not has_limits:
            handler.auth_blocking = Overlay(handler.auth_blocking, check_auth_blocking=_welcome)
        self._servlet: Final = servlet
        self._short: Final[Any] = Overlay(
            servlet, "on_GET", sync_handler=handler, store=_Store(servlet.store)
        )

    @cancellable
    async def on_GET(self, request: Any) -> tuple[int, Any]:
        """Serve one."""
        special = any(_ASKS_FOR_MSC4222 in name for name in request.args)
        answer: tuple[int, Any] = await (self._servlet if special else self._short).on_GET(request)
        return answer


class _Sources(Overlay):
    """Where the streams are."""

    reached: Any = None
    """The position that was last found to be reached."""

    async def bound_future_token(self, token: Any) -> Any:
        """Return a position that is not beyond where the streams are."""
        if token.is_before_or_eq(self._original.get_current_token()):
            self.reached = token
            return token
        return await self._original.bound_future_token(token)


class _Notifier(Overlay):
    """Tells when the streams are somewhere."""

    async def wait_for_stream_token(self, token: Any) -> bool:
        """Wait until this process has come to a position; streams never go back."""
        if token is self._sources.reached:
            return True
        return bool(await self._original.wait_for_stream_token(token))


class _Store(Overlay):
    """Synapse's store for who does not ask for MSC4222."""

    async def is_feature_enabled(self, user_id: str, feature: ExperimentalFeature) -> bool:
        """Whether a user may use a feature."""
        if feature is ExperimentalFeature.MSC4222:
            return False
        return bool(await self._original.is_feature_enabled(user_id, feature))


async def _welcome(*_: object, **__: object) -> None:
    """Turn nobody away."""
