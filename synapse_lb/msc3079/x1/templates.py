# SPDX-License-Identifier: AGPL-3.0-or-later
"""The templates of x1: maps that are so frequent that their keys go without saying.

As every released table, this one never changes.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

NO_DEFAULT: Final = object()
"""What stands for a default where there is none: then the key is absent if its value is."""


class Field(NamedTuple):
    """A key of a template, and its value if none is given."""

    key: str
    default: Any = NO_DEFAULT


Template = tuple[Field, ...]

_NO_EVENTS: Final[dict[str, Any]] = {"events": []}

TEMPLATES: Final[tuple[Template, ...]] = (
    (  # 0: an event
        Field("type"),
        Field("sender"),
        Field("content"),
        Field("event_id"),
        Field("origin_server_ts"),
        Field("unsigned"),
        Field("state_key"),
        Field("room_id"),
        Field("user_id"),
        Field("age"),
        Field("redacts"),
    ),
    (  # 1: content of a text message
        Field("body"),
        Field("msgtype", "m.text"),
        Field("m.mentions"),
        Field("m.relates_to"),
    ),
    (  # 2: content of another message
        Field("body"),
        Field("msgtype"),
        Field("format"),
        Field("formatted_body"),
        Field("m.mentions"),
        Field("m.relates_to"),
        Field("m.new_content"),
    ),
    (  # 3: content of an encrypted event
        Field("ciphertext"),
        Field("session_id"),
        Field("sender_key"),
        Field("device_id"),
        Field("algorithm", "m.megolm.v1.aes-sha2"),
        Field("m.relates_to"),
    ),
    (  # 4: answer to a sync
        Field("next_batch"),
        Field("rooms"),
        Field("device_one_time_keys_count", {"signed_curve25519": 0}),
        Field("device_unused_fallback_key_types", []),
        Field("account_data"),
        Field("presence"),
        Field("to_device"),
        Field("device_lists"),
    ),
    (  # 5: the same, to a client with end-to-end encryption
        Field("next_batch"),
        Field("rooms"),
        Field("device_one_time_keys_count", {"signed_curve25519": 50}),
        Field("device_unused_fallback_key_types", ["signed_curve25519"]),
        Field("account_data"),
        Field("presence"),
        Field("to_device"),
        Field("device_lists"),
    ),
    (  # 6: a joined room in that
        Field("timeline"),
        Field("unread_notifications", {"notification_count": 0, "highlight_count": 0}),
        Field("ephemeral", _NO_EVENTS),
        Field("state", _NO_EVENTS),
        Field("account_data", _NO_EVENTS),
        Field("summary", {}),
        Field("unread_thread_notifications"),
    ),
    (Field("events"), Field("prev_batch"), Field("limited", False)),  # 7: the timeline of one
    (Field("notification_count"), Field("highlight_count", 0)),  # 8: its unread notifications
    (  # 9: unsigned of an event
        Field("age"),
        Field("membership", "join"),
        Field("transaction_id"),
        Field("replaces_state"),
        Field("prev_content"),
        Field("prev_sender"),
        Field("m.relations"),
    ),
    (Field("age"), Field("transaction_id")),  # 10: the same of other answers
    (  # 11: content of a member event
        Field("membership"),
        Field("displayname"),
        Field("avatar_url"),
        Field("reason"),
        Field("is_direct"),
    ),
    (
        Field("event_id"),
        Field("rel_type"),
        Field("key"),
        Field("is_falling_back"),
        Field("m.in_reply_to"),
    ),  # 12
    (Field("ts"), Field("thread_id")),  # 13: a receipt
    (Field("signed_curve25519"),),  # 14: counts of keys
    (Field("errcode"), Field("error")),  # 15: an error
    (Field("room_id"),),  # 16
    (Field("user_ids"),),  # 17: mentions, and those who type
    (Field("m.relates_to"),),  # 18: content of a reaction
    (Field("events"), Field("prev_batch"), Field("limited", True)),  # 19: a timeline that is cut off
    (  # 20: keys of a device
        Field("user_id"),
        Field("device_id"),
        Field("keys"),
        Field("signatures"),
        Field("unsigned"),
        Field("algorithms", ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"]),
    ),
    (Field("key"), Field("signatures"), Field("fallback")),  # 21: a one-time key
    (
        Field("rule_id"),
        Field("actions"),
        Field("conditions"),
        Field("default", True),
        Field("enabled", True),
    ),  # 22
    (
        Field("kind"),
        Field("key"),
        Field("pattern"),
        Field("is"),
        Field("value"),
    ),  # 23: a condition of a push rule
    (Field("pos"), Field("rooms"), Field("lists"), Field("extensions", {})),  # 24: answer to a sliding sync
    (  # 25: a room in that
        Field("timeline"),
        Field("bump_stamp"),
        Field("num_live"),
        Field("prev_batch"),
        Field("notification_count", 0),
        Field("highlight_count", 0),
        Field("limited"),
        Field("joined_count"),
        Field("invited_count"),
        Field("required_state"),
        Field("name"),
        Field("initial"),
        Field("avatar"),
        Field("heroes"),
        Field("is_dm"),
    ),
    (Field("count"), Field("ops", [])),  # 26: a list in that
    (Field("range"), Field("room_ids"), Field("op", "SYNC")),  # 27: what of a list has changed
)
"""By tag."""
