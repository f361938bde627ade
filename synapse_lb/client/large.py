# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which requests of Matrix may have an answer so large that an offer of Q-Block (RFC 9177) pays.

The offer takes three bytes and saves a round trip for each kilobyte of the answer, so that it is left out where the
answer nearly always fits into one message.
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
    prefix = _PREFIX.match(path)
    return prefix is not None and _LARGE.fullmatch(path, prefix.end()) is not None
