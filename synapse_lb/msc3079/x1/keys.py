# SPDX-License-Identifier: AGPL-3.0-or-later
"""The integer keys of x1: version 1, 105 to 148 as they are used in the field, and ours from 149 on.

As every released table, this one never changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from synapse_lb.msc3079.keys_v1 import KEY_TO_INTEGER as KEYS_V1

FIELD_KEYS: Final[tuple[str, ...]] = (
    "edus",
    "pdus",
    "edu_type",
    "message_id",
    "messages",
    "retry_after_ms",
    "self_signing_key",
    "master_key",
    "stream_id",
    "keys",
    "algorithms",
    "usage",
    "prev_id",
    "m.read",
    "data",
    "event_ids",
    "thread_id",
    "ts",
    "join_authorised_via_users_server",
    "invite_room_state",
    "event",
    "m.room.create",
    "m.room.power_levels",
    "m.room.join_rules",
    "m.room.name",
    "m.room.server_acl",
    "auth_chain",
    "m.room.tombstone",
    "m.room.avatar",
    "m.room.canonical_alias",
    "m.room.encryption",
    "m.room.history_visibility",
    "notifications",
    "prev_state_events",
    "state_dag",
    "partial_state_event_ids",
    "partial_auth_chain_ids",
    "members_omitted",
    "additional_creators",
    "forward_extremities",
    "m.mentions",
    "m.relates_to",
    "key",
    "rel_type",
)
"""105 to 148, in order."""

OWN_KEYS: Final[tuple[str, ...]] = ()
"""149 and on, in order."""

SHORT_KEYS: Final[tuple[str, ...]] = (
    "body",
    "msgtype",
    "membership",
    "displayname",
    "join",
    "ephemeral",
    "algorithm",
    "ciphertext",
    "sender_key",
    "session_id",
    "device_id",
)
"""A second number for the most frequent of the keys above 23: -1 and on, in order, in one byte instead of two."""

KEY_TO_INTEGER: Final[Mapping[str, int]] = MappingProxyType(
    {**KEYS_V1, **{key: 105 + index for index, key in enumerate((*FIELD_KEYS, *OWN_KEYS))}}
)
"""Text key -> integer."""

INTEGER_TO_KEY: Final[Mapping[int, str]] = MappingProxyType(
    {
        **{integer: key for key, integer in KEY_TO_INTEGER.items()},
        **{-1 - index: key for index, key in enumerate(SHORT_KEYS)},
    }
)
"""Integer -> text key, the short forms among them."""
