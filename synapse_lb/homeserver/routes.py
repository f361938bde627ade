# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which of a homeserver's processes serves a request: where Synapse's documentation of workers routes it.

Pure: no Synapse, no network. Over HTTP a reverse proxy follows that documentation; a CoAP client reaches one port, so
that the listener has to (docs/workers.md has the same in words). The processes have their names from Synapse's
``instance_map``, where the main one is `MAIN`.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import attrs

from synapse_lb.msc3079.messages import MatrixRequest
from synapse_lb.server.observable import Observable

MAIN: Final = "main"
"""The main process."""

_CLIENT: Final = "/_matrix/client/"
_V: Final = r"/_matrix/client/(?:api/v1|r0|v1|v3|unstable)"

STREAM_ENDPOINTS: Final[Mapping[str, str]] = {
    "typing": rf"{_V}/rooms/[^/]+/typing/",
    "to_device": rf"{_V}/sendToDevice/",
    "account_data": rf"{_V}(?:/org\.matrix\.msc3391)?/user/[^/]+/(?:rooms/[^/]+/)?(?:tags|account_data)/",
    "receipts": rf"{_V}/rooms/[^/]+/(?:receipt/|read_markers$)",
    "presence": rf"{_V}/presence/",
    "push_rules": rf"{_V}/pushrules/",
    "device_lists": rf"{_V}/(?:delete_devices$|devices(?:/|$)|keys/(?:(?:device_signing|signatures)/)?upload(?:/|$))",
    "thread_subscriptions": r"/_matrix/client/unstable/io\.element\.msc4306/rooms/[^/]+/thread/[^/]+/subscription",
}
"""By stream, the paths whose requests, but for GET, belong to the stream's writers. The last is of no documentation:
Synapse's servlet fails in every other process."""

WRITERS_ONLY: Final = ("typing", "push_rules")
"""Streams of which Synapse does not pass on by itself what another process gets."""

_STREAMS: Final = re.compile("|".join(f"(?P<{stream}>{path})" for stream, path in STREAM_ENDPOINTS.items()))

_PAGINATION: Final = re.compile(rf"{_V}/rooms/[^/]+/messages$")
"""All of a room's have to go to the same process."""


@attrs.frozen
class Route:
    """Requests that the admin wants to have served by a certain process.

    Attributes:
        path: of the requests; matched from the beginning.
        methods: of the requests; None for all.
        instance: name of the process.
    """

    path: re.Pattern[str]
    methods: frozenset[str] | None
    instance: str

    def takes(self, method: str, path: str) -> bool:
        """Whether a request is one of them."""
        return (self.methods is None or method in self.methods) and self.path.match(path) is not None


@attrs.frozen(kw_only=True)
class Router:
    """Tells where requests go.

    Attributes:
        own: name of this process.
        urls: by name, the base URLs of the others.
        writers: by stream, the names of those that write it.
        routes: of the admin; they go before what is built in.
        serves: whether this process has a servlet for a method and a path.
    """

    own: str
    urls: Mapping[str, str]
    writers: Mapping[str, Sequence[str]]
    routes: Sequence[Route] = ()
    serves: Callable[[str, bytes], bool] = attrs.field(repr=False)

    def url_for(self, request: MatrixRequest) -> str | None:
        """The base URL of the process that a request goes to; None for this one.

        `/sync` and sliding sync are always served here, because here is where they are observed.
        """
        path = request.path.decode("ascii")
        if not path.startswith(_CLIENT) or Observable.of(request) is not None:
            return None
        for route in self.routes:
            if route.takes(request.method, path):
                return self.urls.get(route.instance)
        writer = self._writer(request, path)
        if writer is not None:
            return self.urls.get(writer)
        if _PAGINATION.match(path) or not self.serves(request.method, request.path):
            return self.urls.get(MAIN)
        return None

    def _writer(self, request: MatrixRequest, path: str) -> str | None:
        """Who writes what a request changes; None if it changes nothing that one process alone writes."""
        found = None if request.method == "GET" else _STREAMS.match(path)
        if found is None or found.lastgroup is None:
            return None
        writers = self.writers.get(found.lastgroup, ())
        if self.own in writers:
            return self.own
        reachable = [name for name in writers if name in self.urls]
        if not reachable:
            # Synapse passes it on by itself, through its replication.
            return self.own
        # All of one device go to the same writer.
        return reachable[zlib.crc32((request.access_token or "").encode()) % len(reachable)]


def missing(own: str, names: Collection[str], writers: Mapping[str, Sequence[str]]) -> Mapping[str, str]:
    """What cannot be served if no more processes can be reached than these.

    Args:
        own: name of this process.
        names: the others that can be reached.
        writers: as of `Router`.

    Returns:
        By stream, one of its writers.
    """
    return {
        stream: writers[stream][0]
        for stream in WRITERS_ONLY
        if writers.get(stream) and not {own, *names} & set(writers[stream])
    }
