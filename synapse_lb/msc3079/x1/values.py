# SPDX-License-Identifier: AGPL-3.0-or-later
"""What x1 gives to the CBOR items that JSON does not use: simple values, byte strings and tags.

As every released table, those here never change.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final


class Simple(IntEnum):
    """Simple values whose content stands in the tail, or follows from what came before."""

    EVENT_ID = 0
    """`$` and 43 characters of base64url: 32 bytes of the tail."""
    ROOM_ID = 1
    """`!` and 43 characters of base64url (room version 12): 32 bytes of the tail."""
    KEY = 2
    """43 characters of base64: 32 bytes of the tail."""
    SIGNATURE = 3
    """86 characters of base64: 64 bytes of the tail."""
    BASE64 = 4
    """Unpadded base64: a varint with the number of bytes, and the bytes."""
    BASE64_URL = 5
    """Unpadded base64url, likewise."""
    TOKEN = 6
    """A stream token."""
    TIME = 7
    """A time in milliseconds: the zigzag varint of its distance to the time before it."""
    AGE = 8
    """An age in milliseconds: the zigzag varint of how much later the present is than it was before."""
    SAME_AGE = 9
    """An age, with the same present as the one before."""
    ROOMS_OWN = 255
    """The event id that says the same as the room id that was the last such key: that of the room's create event
    (room version 12)."""


class Kind(IntEnum):
    """First byte of a byte string of at least two bytes: what the others are."""

    DEFINITION = 0
    """The number of an alias, and its text: a byte string's content in its turn, or `FROM_TAIL` and a simple value."""
    TEXT = 1
    """UTF-8; only within a definition."""
    EVENT_ID = 2
    ROOM_ID = 3
    BASE64 = 4
    BASE64_URL = 5
    TOKEN = 6
    """A stream token, never relative to another one."""
    REPETITION = 7
    """A varint: the number of the packed text of this body that is repeated."""
    TRANSACTION = 8
    """A transaction id as matrix-js-sdk makes them, `m1790000000000.7`: its two numbers as varints."""


FROM_TAIL: Final = 0x10
"""Added to a simple value up to 6 in place of the text of a definition: the text is what that stands for."""

FIRST_VALUE: Final = 10
"""The simple values from here to 19, and from 32 on, stand for texts."""

VALUES: Final[tuple[str, ...]] = (
    "m.room.message",
    "m.text",
    "m.room.member",
    "join",
    "m.room.encrypted",
    "m.megolm.v1.aes-sha2",
    "m.receipt",
    "invite",
    "leave",
    "m.reaction",
    "m.notice",
    "m.image",
    "m.emote",
    "m.file",
    "m.audio",
    "m.video",
    "m.location",
    "m.sticker",
    "m.room.redaction",
    "m.room.create",
    "m.room.power_levels",
    "m.room.join_rules",
    "m.room.history_visibility",
    "m.room.guest_access",
    "m.room.name",
    "m.room.topic",
    "m.room.avatar",
    "m.room.canonical_alias",
    "m.room.encryption",
    "m.room.tombstone",
    "m.room.pinned_events",
    "m.room.server_acl",
    "m.room.third_party_invite",
    "m.space.child",
    "m.space.parent",
    "m.space",
    "m.typing",
    "m.presence",
    "m.fully_read",
    "m.tag",
    "m.direct",
    "m.push_rules",
    "m.ignored_user_list",
    "m.marked_unread",
    "m.bridge",
    "m.policy.rule.user",
    "m.policy.rule.room",
    "m.policy.rule.server",
    "m.call.invite",
    "m.call.candidates",
    "m.call.answer",
    "m.call.hangup",
    "m.call.reject",
    "m.call.select_answer",
    "m.call.negotiate",
    "m.call.member",
    "org.matrix.msc3401.call.member",
    "m.poll.start",
    "m.poll.response",
    "m.poll.end",
    "org.matrix.msc3381.poll.start",
    "org.matrix.msc3381.poll.response",
    "org.matrix.msc3381.poll.end",
    "org.matrix.msc3381.poll.disclosed",
    "org.matrix.msc3381.poll.undisclosed",
    "m.key.verification.request",
    "m.key.verification.ready",
    "m.key.verification.start",
    "m.key.verification.accept",
    "m.key.verification.key",
    "m.key.verification.mac",
    "m.key.verification.done",
    "m.key.verification.cancel",
    "m.room_key",
    "m.room_key_request",
    "m.forwarded_room_key",
    "m.room_key.withheld",
    "m.dummy",
    "m.secret.request",
    "m.secret.send",
    "m.olm.v1.curve25519-aes-sha2",
    "m.megolm_backup.v1.curve25519-aes-sha2",
    "m.sas.v1",
    "m.qr_code.scan.v1",
    "m.qr_code.show.v1",
    "m.reciprocate.v1",
    "curve25519-hkdf-sha256",
    "hkdf-hmac-sha256.v2",
    "sha256",
    "decimal",
    "emoji",
    "signed_curve25519",
    "m.secret_storage.v1.aes-hmac-sha2",
    "m.secret_storage.default_key",
    "m.cross_signing.master",
    "m.cross_signing.self_signing",
    "m.cross_signing.user_signing",
    "m.megolm_backup.v1",
    "m.replace",
    "m.annotation",
    "m.thread",
    "m.reference",
    "org.matrix.custom.html",
    "ban",
    "knock",
    "public",
    "private",
    "shared",
    "joined",
    "invited",
    "world_readable",
    "can_join",
    "forbidden",
    "restricted",
    "knock_restricted",
    "online",
    "offline",
    "unavailable",
    "m.read",
    "m.read.private",
    "main",
    "m.favourite",
    "m.lowpriority",
    "image/jpeg",
    "image/png",
    "image/webp",
    "image/gif",
    "video/mp4",
    "audio/ogg",
    "audio/mpeg",
    "application/pdf",
    "text/plain",
    "application/octet-stream",
    "m.login.password",
    "m.login.token",
    "m.login.sso",
    "m.login.dummy",
    "m.login.application_service",
    "m.login.recaptcha",
    "m.login.terms",
    "m.login.email.identity",
    "m.login.registration_token",
    "m.id.user",
    "m.id.thirdparty",
    "m.id.phone",
    "email",
    "msisdn",
    "http",
    "event_id_only",
    "M_FORBIDDEN",
    "M_UNKNOWN_TOKEN",
    "M_MISSING_TOKEN",
    "M_NOT_FOUND",
    "M_LIMIT_EXCEEDED",
    "M_UNRECOGNIZED",
    "M_UNKNOWN",
    "M_BAD_JSON",
    "M_NOT_JSON",
    "M_INVALID_PARAM",
    "M_MISSING_PARAM",
    "M_ROOM_IN_USE",
    "M_USER_IN_USE",
    "M_INVALID_USERNAME",
    "M_UNKNOWN_POS",
    "M_USER_DEACTIVATED",
    "M_TOO_LARGE",
    "M_UNAUTHORIZED",
    "M_BAD_STATE",
    "M_GUEST_ACCESS_FORBIDDEN",
    "M_UNSUPPORTED_ROOM_VERSION",
    "M_INCOMPATIBLE_ROOM_VERSION",
    "M_EXCLUSIVE",
    "M_RESOURCE_LIMIT_EXCEEDED",
    "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM",
    "M_WRONG_ROOM_KEYS_VERSION",
    "M_WEAK_PASSWORD",
    "M_DUPLICATE_ANNOTATION",
    "M_USER_LOCKED",
    "M_USER_SUSPENDED",
    "public_chat",
    "private_chat",
    "trusted_private_chat",
    "master",
    "self_signing",
    "user_signing",
    "encrypt",
    "decrypt",
    "A256CTR",
    "oct",
    "v2",
    "Bearer",
    "user_hangup",
    "👍️",
    "❤️",
    "😂",
    "🎉",
    "im.vector.modular.widgets",
    "im.vector.setting.breadcrumbs",
    "io.element.recent_emoji",
    "m.jitsi",
    "org.matrix.msc3890.local_notification_settings",
    "m.server_notice",
    "m.room.policy",
    "m.key_backup",
    "m.widget",
)
"""These texts, in order."""


def _simples() -> list[int]:
    return [*range(FIRST_VALUE, 20), *range(32, Simple.ROOMS_OWN)]


SIMPLE_TO_VALUE: Final[Mapping[int, str]] = MappingProxyType(
    dict(zip(_simples(), VALUES, strict=False)),
)
"""Simple value -> text."""

VALUE_TO_SIMPLE: Final[Mapping[str, int]] = MappingProxyType(
    {text: number for number, text in SIMPLE_TO_VALUE.items()}
)
"""Text -> simple value."""

TIME_START: Final = 1_750_000_000_000
"""The time before the first one of a body."""

FIRST_TIME: Final = 1_000_000_000_000
LAST_TIME: Final = 4_000_000_000_000
"""Integers from here to there are written as times, in milliseconds since 1970; whatever they are, they come back."""
