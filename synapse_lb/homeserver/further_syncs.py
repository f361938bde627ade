# SPDX-License-Identifier: AGPL-3.0-or-later
"""A further sync of an observation, without what the one before it has shown already.

A client that polls asks for each sync: Synapse reads the query, brings the position into its own bounds, waits until
this process has come as far, keeps the answer for a retry, and so on, while nothing new has happened yet. For an
observer it is only when something has that its sync is asked for, by this process itself, and everybody in the room
waits for it. So of a sync that goes on from a result of this process, which nobody will ask for again, the rest alone
is done: the token is looked at anew, acknowledged to-device messages are deleted, and the sync is computed.

`hooks` looks whether what is used of Synapse here is there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Final

from synapse.handlers.sync import SyncConfig, SyncHandler, non_empty_sync_counter
from synapse.logging.context import current_context
from synapse.metrics import SERVER_NAME_LABEL
from synapse.rest.client.sync import SyncRestServlet
from synapse.types import StreamToken
from synapse.util.cancellation import cancellable

from synapse_lb.homeserver.shared_reads import SharedReads

MAX_BATCHES: Final = 256
"""Positions of results that are remembered. Observers whom the same message wakes have the same one."""

_KIND: Final = "sync_v2:incremental_sync"
"""What Synapse calls such a sync in logs and metrics."""

_NEEDED: Final = {b"since", b"set_presence"}
_KNOWN: Final = {*_NEEDED, b"filter"}
"""Parameters of the query that are understood here. A filter that stands there whole is not."""

NEEDED: Final = (
    (SyncRestServlet, "on_GET"),
    (SyncRestServlet, "encode_response"),
    (SyncHandler, "current_sync_for_user"),
)
"""Classes and attributes that are looked for when Synapse starts."""


def needed_of(servlet: SyncRestServlet) -> Iterator[tuple[object, str]]:
    """What is looked for when a listener starts: objects and attributes."""
    for name in (
        "auth",
        "store",
        "clock",
        "filtering",
        "server_name",
        "sync_handler",
    ):
        yield servlet, name
    yield servlet.sync_handler, "auth_blocking"
    yield servlet.filtering, "get_user_filter"
    yield servlet.store, "delete_messages_for_device"


class Batches:
    """Reads what stands in a ``next_batch``, and remembers it.

    `MAX_BATCHES` are kept; who was not used for the longest time goes first.

    Args:
        store: of the homeserver.
    """

    def __init__(self, store: Any) -> None:
        self._store: Final = store
        self._known: OrderedDict[str, StreamToken] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, batch: str) -> StreamToken | None:
        """Return the position, if it is remembered."""
        token = self._known.get(batch)
        if token is not None:
            self._known.move_to_end(batch)
        return token

    def put(self, batch: str, token: StreamToken) -> None:
        """Remember one."""
        self._known[batch] = token
        if len(self._known) > MAX_BATCHES:
            self._known.popitem(last=False)

    async def read(self, batch: str) -> StreamToken:
        """Return the position.

        Raises:
            SynapseError: it is none.
        """
        token = self.get(batch)
        if token is None:
            token = await StreamToken.from_string(self._store, batch)
            self.put(batch, token)
        return token


class FurtherSyncs:
    """Serves further syncs with the servlet that serves all others.

    Args:
        servlet: Synapse's.
        handler: Synapse's sync handler; its syncs share what they read.
        batches: positions that came from this process.
        reads: what they share.
        notices: Synapse's sender of server notices.
        has_limits: whether Synapse is configured to turn users away.
    """

    def __init__(
        self,
        servlet: SyncRestServlet,
        handler: SyncHandler,
        batches: Batches,
        reads: SharedReads,
        *,
        notices: Any,
        has_limits: bool,
    ) -> None:
        self.reads: Final = reads
        self._servlet: Final = servlet
        self._handler: Final = handler
        self._batches: Final = batches
        self._notices: Final = notices
        self._has_limits: Final = has_limits
        self._labels: Final = {"type": _KIND, SERVER_NAME_LABEL: servlet.server_name}

    @cancellable
    async def on_GET(self, request: Any) -> tuple[int, Any]:
        """Serve one; one that asks for anything special is served as if a client had sent it."""
        servlet, batch = self._servlet, _goes_on_from(request.args)
        if batch is None:
            return await servlet.on_GET(request)
        requester = await servlet.auth.get_user_by_req(request, allow_guest=True)
        since, config = await self._prepare(request, requester, batch)
        result = await self._handler.current_sync_for_user(config, since)
        filters = config.filter_collection
        if result:
            lazy = "true" if filters.lazy_load_members() else "false"
            non_empty_sync_counter.labels(lazy_loaded=lazy, **self._labels).inc()
        now = servlet.clock.time_msec()
        response = await servlet.encode_response(now, config, result, requester, filters)
        self._batches.put(response["next_batch"], result.next_batch)
        return 200, response

    async def _prepare(self, request: Any, requester: Any, batch: str) -> tuple[StreamToken, SyncConfig]:
        """Do what comes before a sync, and return from where on it is to be computed, and how."""
        servlet, user, device_id = self._servlet, requester.user, requester.device_id
        user_id = user.to_string()
        filters = servlet.filtering.DEFAULT_FILTER_COLLECTION
        if b"filter" in request.args:
            filter_id = request.args[b"filter"][0].decode("ascii")
            filters = await servlet.filtering.get_user_filter(user, filter_id)
        await self._notices.on_user_syncing(user_id)
        if self._has_limits:
            await self._handler.auth_blocking.check_auth_blocking(requester=requester)
        current_context().tag = _KIND
        since = await self._batches.read(batch)
        await servlet.store.delete_messages_for_device(user_id, device_id, since.to_device_key)
        return since, SyncConfig(user, filters, requester.is_guest, device_id, use_state_after=False)


def _goes_on_from(arguments: Mapping[bytes, list[bytes]]) -> str | None:
    """The position to go on from; None if anything special is asked for."""
    if not _NEEDED <= arguments.keys() <= _KNOWN or any(len(values) != 1 for values in arguments.values()):
        return None
    if arguments[b"set_presence"] != [b"offline"] or arguments.get(b"filter", [b""])[0].startswith(b"{"):
        return None
    return arguments[b"since"][0].decode("ascii")
