# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which requests wait for something to happen, and so get their empty ACK at once (RFC 7252 section 5.2.2)."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qs

_SYNC: Final = re.compile(rb"/_matrix/client/(?:[^/]+/)+sync")
"""/sync of any version, and sliding sync: unstable/org.matrix.simplified_msc3575/sync."""

_EVENTS: Final = re.compile(rb"/_matrix/client/(?:api/v1|[^/]+)/events")
"""/events (deprecated) waits 30 s unless told otherwise."""


def is_long_poll(path: bytes, query: bytes) -> bool:
    """Tell whether a request may be held until something happens.

    Args:
        path: the whole path.
        query: the query string.
    """
    if _SYNC.fullmatch(path):
        return _timeout(query, default=0) > 0
    return _EVENTS.fullmatch(path) is not None and _timeout(query, default=30_000) > 0


def _timeout(query: bytes, *, default: int) -> int:
    """The query's ``timeout`` in milliseconds."""
    values = parse_qs(query).get(b"timeout")
    if not values:
        return default
    try:
        return int(values[0])
    except ValueError:
        return 0
