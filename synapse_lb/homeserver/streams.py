# SPDX-License-Identifier: AGPL-3.0-or-later
"""Synapse's streams, tokens and presence, as far as an observed sync needs them.

Beside `hooks`, this is the file that knows Synapse's internals; what it calls is looked for there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred, succeed

from synapse_lb.homeserver import hooks

T = TypeVar("T")

PRESENT: Final = ("online", "unavailable")
"""What a user may count as while it syncs (Client-Server API, ``set_presence``); ``offline`` is for not at all."""


_TOKENS: Final = "get_user_by_access_token"
"""The cache of Synapse's whose keys are access tokens."""


class Streams:
    """The streams of one homeserver.

    Args:
        homeserver: the homeserver.

    Attributes:
        tracks_presence: whether it matters who is there.

    Raises:
        ConfigError: this version of Synapse lacks an attribute that is needed.
    """

    def __init__(self, homeserver: hooks.Homeserver) -> None:
        self._server_name = homeserver.server_name
        hs = homeserver.hs
        self._config = hs.config
        self._auth = hs.get_auth()
        self._store = hs.get_datastores().main
        self._notifier = hs.get_notifier()
        self._presence = hs.get_presence_handler()
        hooks.require(self._notifier, "user_to_user_stream")
        hooks.require(self._store, "process_replication_rows")
        hooks.require(hs.config.server, "track_presence")
        self.tracks_presence: Final[bool] = hs.config.server.track_presence
        self._afterwards = hooks.logging_context("low-bandwidth-presence", self._server_name)
        self._asking: dict[str, list[Deferred[Any]]] = {}
        self._batches: Final = homeserver.batches

    def in_background(self, name: str, work: Callable[[], Awaitable[T]]) -> Deferred[T]:
        """Do some of Synapse's work in a log context of its own.

        Args:
            name: of the log context.
            work: starts it.

        Returns:
            Its result. To cancel the Deferred is to lose interest in that; the work itself is not
            interrupted, because most of Synapse's is not made for it.
        """
        return hooks.in_background(name, self._server_name, work)

    async def owner(self, access_token: str) -> tuple[str, str | None] | None:
        """Return the user and the device that a token belongs to; None if a request with it would fail."""
        try:
            requester = await self._auth.get_user_by_access_token(access_token)
        except hooks.SynapseError:
            return None
        return requester.user.to_string(), requester.device_id

    def watch_tokens(self, changed: Callable[[str], None]) -> Callable[[], None]:
        """Hear of the access tokens that other processes change or delete: they tell what to forget of them.

        Args:
            changed: is called with the token, when it is forgotten here.

        Returns:
            What ends it; idempotent.
        """
        original = self._store.process_replication_rows

        def process_replication_rows(stream_name: str, instance_name: str, token: int, rows: Any) -> None:
            original(stream_name, instance_name, token, rows)
            for row in rows if stream_name == hooks.CachesStream.NAME else ():
                if row.cache_func == _TOKENS and row.keys:
                    changed(row.keys[0])

        def end() -> None:
            if vars(self._store).get("process_replication_rows") is process_replication_rows:
                del self._store.process_replication_rows

        self._store.process_replication_rows = process_replication_rows
        return end

    def unknown_token(self) -> tuple[int, dict[str, Any]]:
        """Return what Synapse answers to a request with a token that has ended."""
        error = hooks.InvalidClientTokenError()
        return error.code, error.error_dict(self._config)

    def position(self, user_id: str) -> Deferred[Any]:
        """Return where the streams of a user are, which is from then on kept up to date.

        Only one at a time is made for a user: Synapse, asked twice at once, would make two and notify one of them.
        """
        result: Deferred[Any] = Deferred(lambda _: None)
        stream = self._stream(user_id)
        if stream is not None:
            result.callback(stream.current_token)
            return result
        asking = self._asking.get(user_id)
        if asking is not None:
            asking.append(result)
            return result
        self._asking[user_id] = [result]
        making = self.in_background("low-bandwidth-position", lambda: self._make(user_id))
        making.addBoth(self._made, user_id)
        return result

    async def _make(self, user_id: str) -> Any:
        async def where(before: Any, now: Any) -> Any:
            return now

        return await self._notifier.wait_for_events(user_id, 0, where)

    def _made(self, position: Any, user_id: str) -> None:
        for result in self._asking.pop(user_id):
            if not result.called:
                result.callback(position)

    def _stream(self, user_id: str) -> Any:
        return self._notifier.user_to_user_stream.get(user_id)

    def listener(self, user_id: str, position: Any) -> tuple[Deferred[Any], Any] | None:
        """Return a Deferred that fires when a user's streams are elsewhere than at `position`, and its mark.

        The Deferred may have fired already; to cancel it takes it out of the notifier. None if the streams of the
        user are not kept up to date any more, as happens when nobody has listened for long.
        """
        stream = self._stream(user_id)
        return None if stream is None else (stream.new_listener(position), stream)

    def is_listening(self, user_id: str, mark: Any) -> bool:
        """Whether the listener with this mark still hears everything.

        It does not if another request of the user's made the notifier keep the same streams twice.
        """
        return self._stream(user_id) is mark

    def covers(self, position: Any, batch: str) -> Deferred[bool]:
        """Whether a position is no further than the token of a result of ``/sync``, or ``pos`` of sliding sync."""
        token = batch.rpartition("/")[2]
        end = self._batches.get(token)
        if end is not None:
            return succeed(bool(position.is_before_or_eq(end)))
        return self.in_background("low-bandwidth-covers", lambda: self._covers(position, token))

    async def _covers(self, position: Any, token: str) -> bool:
        return bool(position.is_before_or_eq(await self._batches.read(token)))

    async def appear(self, user_id: str, device_id: str | None, presence: str) -> Any:
        """Let a user count as `presence`; returns a context manager that was entered, for as long as it is."""
        syncing = await self._presence.user_syncing(
            user_id, device_id, affect_presence=True, presence_state=presence
        )
        syncing.__enter__()
        return syncing

    def disappear(self, syncing: Any) -> None:
        """Leave what `appear` returned; None is nothing."""
        if syncing is not None:
            # Synapse goes on with it in the background, in a log context that had better not end meanwhile.
            with hooks.PreserveLoggingContext(self._afterwards):
                syncing.__exit__(None, None, None)
