# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which requests of Matrix may have an answer so large that it pays to say more in the request.

An offer of Q-Block (RFC 9177) takes three bytes and saves a round trip for each kilobyte of the answer, so that it is
left out where the answer nearly always fits into one message. A wish for compression (Accept: 11060) takes three bytes
as well and saves a third to four fifths of an answer of some hundred bytes and more.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final
from urllib.parse import parse_qsl

from synapse_lb.client.subject import FULL_STATE, cursor_of

_LARGE: Final = re.compile(
    r"/rooms/[^/]+/(messages|members|joined_members|state|initialSync|hierarchy|context/.+|relations/.+|threads)"
    r"|/(keys/query|keys/changes|room_keys/keys(/.+)?|publicRooms|search|user_directory/search|notifications"
    r"|events|initialSync|pushrules)"
)
"""What follows the version in paths of the client-server API."""

_COMPRESSIBLE: Final = re.compile(
    r"/capabilities|/joined_rooms|/devices|/thirdparty/.+|/rooms/[^/]+/event/[^/]+"
    r"|/user/[^/]+/(filter/.+|account_data/.+|rooms/[^/]+/account_data/.+)"
)
"""The same, of what is read with GET and has some hundred bytes."""

_READS: Final = ("GET", "POST")
_VERSIONS: Final = "/_matrix/client/versions"

_PREFIX: Final = re.compile(r"/_matrix/client/(r0|v\d+|unstable(/org\.matrix\.[^/]+)?)(?=/)")


def may_be_large(path: str, query: Collection[tuple[str, str]]) -> bool:
    """Whether an answer may take many blocks.

    Args:
        path: percent-encoded, from its leading slash; may have a query of its own.
        query: further parameters.

    Returns:
        Of a sync: whether it begins anew, for what is new since the last is small as a rule.
    """
    path, _, own = path.partition("?")
    path, query = path.rstrip("/"), (*query, *parse_qsl(own))
    cursor = cursor_of(path)
    if cursor is not None:
        return FULL_STATE in query or all(name != cursor.parameter for name, _ in query)
    return _matches(_LARGE, path)


def gains_by_deflate(method: str, path: str, query: Collection[tuple[str, str]]) -> bool:
    """Whether an answer is likely to gain by compression.

    Args:
        method: HTTP method.
        path: percent-encoded, from its leading slash; may have a query of its own.
        query: further parameters.

    Returns:
        Of a sync: always, since one in which there is something has some hundred bytes.
    """
    method, path = method.upper(), path.partition("?")[0].rstrip("/")
    if method not in _READS:
        return False
    if path == _VERSIONS or cursor_of(path) is not None or may_be_large(path, query):
        return True
    return method == "GET" and _matches(_COMPRESSIBLE, path)


def _matches(pattern: re.Pattern[str], path: str) -> bool:
    """Whether a path is one of a table, behind the version."""
    prefix = _PREFIX.match(path)
    return prefix is not None and pattern.fullmatch(path, prefix.end()) is not None
