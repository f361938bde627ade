# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an observed sync asks of the homeserver besides requests: whose it is, and when there may be something new."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from synapse_lb.msc3079.messages import MatrixResponse

Position = Any
"""A place in the homeserver's streams; opaque to this room."""


class NewsSubscription(Protocol):
    """One observer's view of its user's streams, until it is closed.

    No method holds a request, and none but `news` waits for long.
    """

    @property
    def user_id(self) -> str:
        """Whose streams."""

    def position(self) -> Deferred[Position]:
        """Return where the streams are. A sync that begins afterwards has everything up to there."""

    def covers(self, position: Position, batch: str) -> Deferred[bool]:
        """Whether a result that ends at `batch` goes at least as far as `position`.

        It does not if the homeserver answered from a cache, or divided what there was.
        """

    def news(self, position: Position) -> Deferred[None]:
        """Wait until the streams are elsewhere than at `position`; that may be at once.

        The caller cancels the Deferred when it waits no longer.
        """

    def close(self) -> None:
        """End it. The user is no longer present on its account. Idempotent."""


class NewsWaiter(Protocol):
    """Where subscriptions come from."""

    def subscribe(
        self, access_token: str, presence: str, on_revoked: Callable[[MatrixResponse], None]
    ) -> Deferred[NewsSubscription | None]:
        """Subscribe to the streams of the user whom a token belongs to.

        Args:
            access_token: the token.
            presence: ``online``, ``unavailable``, or ``offline`` for none: what the user counts as meanwhile.
            on_revoked: is called once if the token ends before the subscription, with what requests with it get
                from then on.

        Returns:
            The subscription; None for a token that nobody's streams can be had with, where an ordinary request
            has the error. The caller cancels the Deferred when it wants none any more.
        """
