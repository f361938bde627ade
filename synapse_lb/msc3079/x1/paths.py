# SPDX-License-Identifier: AGPL-3.0-or-later
"""The path codes of x1. As every released table, this one never changes."""

from __future__ import annotations

from typing import Final

PATHS: Final[tuple[str, ...]] = (
    "/_matrix/client/v3/sync",
    "/_matrix/client/v3/rooms/{roomId}/send/m.room.message/{txnId}",
    "/_matrix/client/v3/rooms/{roomId}/send/m.room.encrypted/{txnId}",
    "/_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}",
    "/_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}",
    "/_matrix/client/v3/rooms/{roomId}/state/{eventType}",
    "/_matrix/client/v3/rooms/{roomId}/typing/{userId}",
    "/_matrix/client/v3/rooms/{roomId}/receipt/m.read/{eventId}",
)
"""Code -> path template, by position. A `{name}` segment is a parameter. Of two that fit, the first is taken."""
