# SPDX-License-Identifier: AGPL-3.0-or-later
"""Contents of events as the Matrix specification (v1.16) and today's clients have them, for `tools.x1_corpus`."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from typing import Any, Final

_WORDS: Final = (
    "the of and to a in that it is was for on are as with his they at be this have from or one had "
    "by word but not what all were we when your can said there use an each which she do how their if "
    "will up other about out many then them these so some her would make like him into time has look "
    "two more write go see number no way could people my than first water been call who oil its now "
    "find long down day did get come made may part over new sound take only little work know place "
    "year live me back give most very after thing our just name good sentence man think say great "
    "where help through much before line right too mean old any same tell boy follow came want show "
    "also around form three small set put end does another well large must big even such because "
    "turn here why ask went men read need land different home us move try kind hand picture again "
    "change off play spell air away animal house point page letter mother answer found study still "
    "learn should world yes thanks okay tomorrow meeting today lunch please hello hey "
)

WORDS: Final = tuple(_WORDS.split())

NAMES: Final = (
    "alice",
    "bob",
    "carol",
    "dave",
    "erin",
    "frank",
    "grace",
    "heidi",
    "ivan",
    "judy",
    "mallory",
    "niaj",
)


def sentence(source: random.Random, words: int) -> str:
    """So many words."""
    text = " ".join(source.choice(WORDS) for _ in range(words))
    return text[:1].upper() + text[1:] + source.choice((".", "", "?", "!"))


def unpadded(source: random.Random, size: int) -> str:
    """Unpadded base64 of so many bytes."""
    return base64.b64encode(source.randbytes(size)).decode().rstrip("=")


def mxc(source: random.Random) -> str:
    """A content URI as Synapse makes them."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    return "mxc://localhost/" + "".join(source.choice(letters) for _ in range(24))


def olm_device(source: random.Random, user_id: str, device_id: str) -> dict[str, Any]:
    """The body of a first /keys/upload."""

    def signed(key: str) -> dict[str, Any]:
        return {"key": key, "signatures": {user_id: {f"ed25519:{device_id}": unpadded(source, 64)}}}

    ids = [base64.b64encode(index.to_bytes(4, "big")).decode().rstrip("=") for index in range(20)]
    return {
        "device_keys": {
            "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
            "device_id": device_id,
            "user_id": user_id,
            "keys": {
                f"curve25519:{device_id}": unpadded(source, 32),
                f"ed25519:{device_id}": unpadded(source, 32),
            },
            "signatures": {user_id: {f"ed25519:{device_id}": unpadded(source, 64)}},
        },
        "one_time_keys": {f"signed_curve25519:{key}": signed(unpadded(source, 32)) for key in ids},
        "fallback_keys": {"signed_curve25519:AAAAFA": {**signed(unpadded(source, 32)), "fallback": True}},
    }


def _info(source: random.Random, mimetype: str) -> dict[str, Any]:
    thumbnail = {"h": 600, "mimetype": mimetype, "size": source.randrange(10**5), "w": 800}
    return {
        "h": 1080,
        "w": 1920,
        "mimetype": mimetype,
        "size": source.randrange(10**7),
        "thumbnail_info": thumbnail,
        "thumbnail_url": mxc(source),
        "xyz.amorgan.blurhash": "LEHV6nWB2yk8pyo0adR*.7kCMdnj",
    }


def _file(source: random.Random) -> dict[str, Any]:
    return {
        "v": "v2",
        "url": mxc(source),
        "key": {
            "alg": "A256CTR",
            "ext": True,
            "k": unpadded(source, 32).replace("+", "-").replace("/", "_"),
            "key_ops": ["encrypt", "decrypt"],
            "kty": "oct",
        },
        "iv": unpadded(source, 16),
        "hashes": {"sha256": unpadded(source, 32)},
    }


Shape = Callable[[random.Random, str, str], "tuple[str, dict[str, Any]]"]
"""From a source of randomness, a text and the id of an earlier event to a type and a content."""

MESSAGE: Final = "m.room.message"


def _formatted(source: random.Random, text: str, event: str) -> tuple[str, dict[str, Any]]:
    return MESSAGE, {
        "msgtype": "m.text",
        "body": text,
        "format": "org.matrix.custom.html",
        "formatted_body": f"<p><strong>{text}</strong></p>",
        "m.mentions": {},
    }


def _reply(source: random.Random, text: str, event: str) -> tuple[str, dict[str, Any]]:
    relation = {"m.in_reply_to": {"event_id": event}}
    mentions = {"user_ids": ["@alice:localhost"]}
    return MESSAGE, {"msgtype": "m.text", "body": text, "m.relates_to": relation, "m.mentions": mentions}


def _thread(source: random.Random, text: str, event: str) -> tuple[str, dict[str, Any]]:
    relation = {
        "rel_type": "m.thread",
        "event_id": event,
        "is_falling_back": True,
        "m.in_reply_to": {"event_id": event},
    }
    return MESSAGE, {"msgtype": "m.text", "body": text, "m.relates_to": relation}


def _edit(source: random.Random, text: str, event: str) -> tuple[str, dict[str, Any]]:
    return MESSAGE, {
        "msgtype": "m.text",
        "body": f"* {text}",
        "m.new_content": {"msgtype": "m.text", "body": text, "m.mentions": {}},
        "m.mentions": {},
        "m.relates_to": {"rel_type": "m.replace", "event_id": event},
    }


def _reaction(source: random.Random, text: str, event: str) -> tuple[str, dict[str, Any]]:
    key = source.choice(("👍️", "❤️", "😂", "🎉", "👀"))
    return "m.reaction", {"m.relates_to": {"rel_type": "m.annotation", "event_id": event, "key": key}}


def _plain(msgtype: str) -> Shape:
    return lambda source, text, event: (MESSAGE, {"msgtype": msgtype, "body": text})


def _media(msgtype: str, mimetype: str, secret: bool) -> Shape:
    def shape(source: random.Random, text: str, event: str) -> tuple[str, dict[str, Any]]:
        content = {
            "msgtype": msgtype,
            "body": "IMG_2041.jpg",
            "filename": "IMG_2041.jpg",
            "info": _info(source, mimetype),
        }
        return MESSAGE, {**content, **({"file": _file(source)} if secret else {"url": mxc(source)})}

    return shape


def _location(source: random.Random, text: str, event: str) -> tuple[str, dict[str, Any]]:
    return MESSAGE, {"msgtype": "m.location", "body": text, "geo_uri": "geo:52.5162,13.3777;u=20"}


def _sticker(source: random.Random, text: str, event: str) -> tuple[str, dict[str, Any]]:
    return "m.sticker", {"body": text, "info": _info(source, "image/png"), "url": mxc(source)}


def _poll(source: random.Random, text: str, event: str) -> tuple[str, dict[str, Any]]:
    answers = [{"id": str(number), "org.matrix.msc1767.text": text[:8]} for number in range(3)]
    poll = {
        "question": {"org.matrix.msc1767.text": text, "body": text, "msgtype": "m.text"},
        "kind": "org.matrix.msc3381.poll.disclosed",
        "max_selections": 1,
        "answers": answers,
    }
    return "org.matrix.msc3381.poll.start", {
        "org.matrix.msc3381.poll.start": poll,
        "org.matrix.msc1767.text": text,
    }


def _voice(source: random.Random, text: str, event: str) -> tuple[str, dict[str, Any]]:
    return MESSAGE, {
        "msgtype": "m.audio",
        "body": "Voice message.ogg",
        "url": mxc(source),
        "info": {"duration": 3920, "mimetype": "audio/ogg", "size": 28461},
        "org.matrix.msc1767.audio": {"duration": 3920, "waveform": [0, 128, 512, 900, 1024, 3]},
        "org.matrix.msc3245.voice": {},
    }


def _call(kind: str) -> Shape:
    def shape(source: random.Random, text: str, event: str) -> tuple[str, dict[str, Any]]:
        call = {"call_id": "c1790000000.2", "party_id": "PHONE", "version": "1", "lifetime": 60000}
        return kind, {**call, "offer": {"type": "offer", "sdp": "v=0"}, "reason": "user_hangup"}

    return shape


MESSAGES: Final[tuple[Shape, ...]] = (
    _formatted,
    _reply,
    _reaction,
    _edit,
    _thread,
    _media("m.image", "image/jpeg", False),
    _media("m.image", "image/jpeg", True),
    _plain("m.notice"),
    _plain("m.emote"),
    _media("m.file", "application/pdf", False),
    _media("m.video", "video/mp4", False),
    _reaction,
    _voice,
    _location,
    _sticker,
    _poll,
    _call("m.call.invite"),
    _call("m.call.candidates"),
    _call("m.call.answer"),
    _call("m.call.hangup"),
)

STATES: Final[tuple[tuple[str, str, dict[str, Any]], ...]] = (
    ("m.room.name", "", {"name": "The room"}),
    (
        "m.room.topic",
        "",
        {"topic": "What it is about", "m.topic": {"m.text": [{"body": "What it is about"}]}},
    ),
    (
        "m.room.avatar",
        "",
        {"url": "mxc://localhost/JRsfBfvbsHxsuJWtzDgTGxEv", "info": {"mimetype": "image/png"}},
    ),
    ("m.room.join_rules", "", {"join_rule": "public"}),
    ("m.room.history_visibility", "", {"history_visibility": "world_readable"}),
    ("m.room.guest_access", "", {"guest_access": "can_join"}),
    ("m.room.pinned_events", "", {"pinned": []}),
    ("m.room.server_acl", "", {"allow": ["*"], "deny": ["evil.example.org"], "allow_ip_literals": False}),
    (
        "m.space.child",
        "!GQHMv6xQSfUVEFNHDRBAmBXbWKtaTaGDjRDYTKJUoT0",
        {"via": ["localhost"], "suggested": True},
    ),
    (
        "im.vector.modular.widgets",
        "w1",
        {"type": "m.jitsi", "url": "https://w", "data": {}, "creatorUserId": "@a:b"},
    ),
)
"""Type, state key and content of state events."""

ACCOUNT_DATA: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("m.direct", {"@bob:localhost": ["!GQHMv6xQSfUVEFNHDRBAmBXbWKtaTaGDjRDYTKJUoT0"]}),
    ("m.ignored_user_list", {"ignored_users": {"@mallory:localhost": {}}}),
    ("m.secret_storage.default_key", {"key": "yQ9xbA3fW2kqTtLxTtQyRr8OoB1kS0Ld"}),
    (
        "m.secret_storage.key.yQ9xbA3fW2kqTtLxTtQyRr8OoB1kS0Ld",
        {
            "algorithm": "m.secret_storage.v1.aes-hmac-sha2",
            "iv": "gH2iNpiETFhApvW6/FFEJQ",
            "mac": "9Lw12m5SKDip",
        },
    ),
    (
        "m.cross_signing.master",
        {"encrypted": {"yQ9x": {"iv": "gH2iNpiETFhA", "ciphertext": "lCRSSA1lChON", "mac": "bpj"}}},
    ),
    ("im.vector.setting.breadcrumbs", {"recent_rooms": []}),
    ("org.matrix.msc3890.local_notification_settings.PHONE", {"is_silenced": False}),
    ("io.element.recent_emoji", {"recent_emoji": [["👍️", 3], ["🎉", 1]]}),
)
"""Type and content of a user's account data."""
