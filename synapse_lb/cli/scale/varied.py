# SPDX-License-Identifier: AGPL-3.0-or-later
"""An initial `/sync` with all that rooms have in them: the second body of `bodies`."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from typing import Any, Final

Event = dict[str, Any]

_BEGAN: Final = 1_700_000_000_000
_ROOMS: Final = 30
_MEMBERS: Final = 25
_MESSAGES: Final = 20
_PEOPLE: Final = 200
_SERVERS: Final = ("example.org", "matrix.example.com", "chat.example.net")
_BASE64: Final = string.ascii_letters + string.digits + "-_"
_ENGLISH: Final = (
    "the",
    "server",
    "was",
    "down",
    "for",
    "an",
    "hour",
    "and",
    "nobody",
    "noticed",
    "until",
    "lunch",
)
_RUSSIAN: Final = (
    "сервер",
    "не",
    "отвечал",
    "целый",
    "час",
    "и",
    "никто",
    "этого",
    "не",
    "заметил",
    "до",
    "обеда",
)
_EMOJI: Final = ("👍", "❤️", "😂", "🎉", "👀", "🚀")


class Writer:
    """Makes a sync up.

    Args:
        pen: Where chance comes from.
    """

    def __init__(self, pen: random.Random) -> None:
        self._pen = pen
        self._clock = _BEGAN
        self._people = [f"@{self._letters(8)}:{pen.choice(_SERVERS)}" for _ in range(_PEOPLE)]
        self._messages: tuple[Callable[[list[Event]], tuple[str, Any]], ...] = (
            *(self._plain,) * 6,
            *(self._encrypted,) * 4,
            *(self._formatted,) * 3,
            *(self._reaction,) * 3,
            self._reply,
            self._threaded,
            self._edit,
            self._image,
        )

    def sync(self) -> dict[str, Any]:
        """The body of an answer to `GET /sync` without `since`."""
        pen = self._pen
        return {
            "next_batch": f"s{pen.randrange(10**7)}_{pen.randrange(10**9)}_0_1_1_1_1_{pen.randrange(10**6)}_0_1",
            "account_data": {"events": self._account_data()},
            "presence": {"events": [self._presence(person) for person in self._people[:20]]},
            "device_one_time_keys_count": {"signed_curve25519": 50},
            "org.matrix.msc2732.device_unused_fallback_key_types": ["signed_curve25519"],
            "device_unused_fallback_key_types": ["signed_curve25519"],
            "device_lists": {"changed": self._people[:100], "left": self._people[100:110]},
            "rooms": {
                "join": {f"!{self._letters(18)}:{_SERVERS[0]}": self._room() for _ in range(_ROOMS)},
                "invite": {f"!{self._letters(18)}:{_SERVERS[1]}": self._invitation() for _ in range(3)},
            },
        }

    def _letters(self, count: int) -> str:
        return "".join(self._pen.choices(_BASE64, k=count))

    def _event_id(self) -> str:
        return "$" + self._letters(43)

    def _text(self) -> str:
        words = self._pen.choices(
            _RUSSIAN if self._pen.random() < 1 / 3 else _ENGLISH, k=self._pen.randrange(1, 25)
        )
        if self._pen.random() < 0.1:
            words.append(self._pen.choice(_EMOJI))
        return " ".join(words)

    def _event(self, kind: str, content: Any) -> Event:
        self._clock += self._pen.randrange(100_000)
        event: Event = {
            "type": kind,
            "sender": self._pen.choice(self._people),
            "content": content,
            "origin_server_ts": self._clock,
            "unsigned": {"age": self._pen.randrange(10**9)},
            "event_id": self._event_id(),
        }
        if self._pen.random() < 0.1:
            event["unsigned"]["membership"] = "join"
        return event

    def _state(self, kind: str, content: Any, key: str = "", before: Any = None) -> Event:
        event = {**self._event(kind, content), "state_key": key}
        if before is not None:
            event["unsigned"] |= {
                "replaces_state": self._event_id(),
                "prev_content": before,
                "prev_sender": self._pen.choice(self._people),
            }
        return event

    # Rooms

    def _room(self) -> dict[str, Any]:
        pen = self._pen
        members = pen.sample(self._people, _MEMBERS)
        timeline: list[Event] = []
        for _ in range(_MESSAGES):
            timeline.append(self._event(*pen.choice(self._messages)(timeline)))
        return {
            "timeline": {
                "events": timeline,
                "prev_batch": f"t{pen.randrange(1000)}-{pen.randrange(10**7)}",
                "limited": True,
            },
            "state": {"events": [*self._settings(members), *map(self._member, members)]},
            "account_data": {"events": [{"type": "m.fully_read", "content": {"event_id": self._event_id()}}]},
            "ephemeral": {"events": [self._receipts(timeline, members)]},
            "unread_notifications": {"notification_count": pen.randrange(9), "highlight_count": 0},
            "summary": {
                "m.heroes": members[:5],
                "m.joined_member_count": len(members),
                "m.invited_member_count": 0,
            },
            "org.matrix.msc2654.unread_count": pen.randrange(9),
        }

    def _settings(self, members: list[str]) -> list[Event]:
        levels = {
            "users": dict.fromkeys(members[:3], 100),
            "users_default": 0,
            "events": {"m.room.name": 50, "m.room.power_levels": 100, "m.room.encryption": 100},
            "events_default": 0,
            "state_default": 50,
            "ban": 50,
            "kick": 50,
            "redact": 50,
            "invite": 0,
            "historical": 100,
        }
        created = {"room_version": "10", "creator": members[0]}
        return [
            self._state("m.room.create", created),
            self._state("m.room.power_levels", levels, before={**levels, "ban": 100}),
            self._state("m.room.join_rules", {"join_rule": "invite"}),
            self._state("m.room.history_visibility", {"history_visibility": "shared"}),
            self._state("m.room.guest_access", {"guest_access": "can_join"}),
            self._state("m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"}),
            self._state("m.room.name", {"name": self._text()[:40]}, before={"name": "Empty room"}),
            self._state("m.room.topic", {"topic": self._text()}),
            self._state("m.room.avatar", {"url": self._media()}),
            self._state(
                "m.room.canonical_alias", {"alias": f"#{self._letters(8)}:{_SERVERS[0]}", "alt_aliases": []}
            ),
        ]

    def _member(self, person: str) -> Event:
        content: dict[str, Any] = {
            "membership": "join",
            "displayname": self._name(),
            "avatar_url": self._media(),
        }
        if self._pen.random() < 0.3:
            content["avatar_url"] = None
        before = {"membership": "invite", "displayname": self._name()} if self._pen.random() < 0.4 else None
        return self._state("m.room.member", content, person, before)

    def _invitation(self) -> dict[str, Any]:
        members = self._pen.sample(self._people, 2)
        stripped = ("type", "state_key", "content", "sender")
        events = [*self._settings(members)[:4], self._member(members[0])]
        return {"invite_state": {"events": [{key: event[key] for key in stripped} for event in events]}}

    def _name(self) -> str:
        return " ".join(
            word.title() for word in self._pen.choices(self._pen.choice((_ENGLISH, _ENGLISH, _RUSSIAN)), k=2)
        )

    def _media(self) -> str:
        return f"mxc://{self._pen.choice(_SERVERS)}/{self._letters(24)}"

    def _receipts(self, timeline: list[Event], members: list[str]) -> Event:
        content: dict[str, Any] = {}
        for member in members[:10]:
            read = content.setdefault(self._pen.choice(timeline)["event_id"], {"m.read": {}})
            read["m.read"][member] = {"ts": self._clock + self._pen.randrange(10**6)}
            if self._pen.random() < 0.3:
                read["m.read"][member]["thread_id"] = "main"
        return {"type": "m.receipt", "content": content}

    # What is said

    def _plain(self, _: list[Event]) -> tuple[str, Any]:
        return "m.room.message", {"msgtype": "m.text", "body": self._text(), "m.mentions": {}}

    def _formatted(self, _: list[Event]) -> tuple[str, Any]:
        text = self._text()
        return "m.room.message", {
            "msgtype": "m.text",
            "body": text,
            "format": "org.matrix.custom.html",
            "formatted_body": f"<p>{text.replace(' ', ' <em>', 1)}</em></p>\n",
            "m.mentions": {"user_ids": [self._pen.choice(self._people)]},
        }

    def _encrypted(self, _: list[Event]) -> tuple[str, Any]:
        return "m.room.encrypted", {
            "algorithm": "m.megolm.v1.aes-sha2",
            "sender_key": self._letters(43),
            "ciphertext": "AwgA" + self._letters(self._pen.randrange(200, 900)),
            "session_id": self._letters(43),
            "device_id": self._letters(10).upper(),
        }

    def _reaction(self, timeline: list[Event]) -> tuple[str, Any]:
        relation = {
            "rel_type": "m.annotation",
            "event_id": self._earlier(timeline),
            "key": self._pen.choice(_EMOJI),
        }
        return "m.reaction", {"m.relates_to": relation}

    def _reply(self, timeline: list[Event]) -> tuple[str, Any]:
        relation = {"m.in_reply_to": {"event_id": self._earlier(timeline)}}
        return "m.room.message", {
            "msgtype": "m.text",
            "body": f"> {self._text()}\n\n{self._text()}",
            "m.relates_to": relation,
        }

    def _threaded(self, timeline: list[Event]) -> tuple[str, Any]:
        relation = {
            "rel_type": "m.thread",
            "event_id": self._earlier(timeline),
            "is_falling_back": True,
            "m.in_reply_to": {"event_id": self._earlier(timeline)},
        }
        return "m.room.message", {"msgtype": "m.text", "body": self._text(), "m.relates_to": relation}

    def _edit(self, timeline: list[Event]) -> tuple[str, Any]:
        text = self._text()
        return "m.room.message", {
            "msgtype": "m.text",
            "body": f"* {text}",
            "m.new_content": {"msgtype": "m.text", "body": text},
            "m.relates_to": {"rel_type": "m.replace", "event_id": self._earlier(timeline)},
        }

    def _image(self, _: list[Event]) -> tuple[str, Any]:
        pen = self._pen
        small = {"w": 800, "h": 600, "mimetype": "image/jpeg", "size": pen.randrange(10**5)}
        return "m.room.message", {
            "msgtype": "m.image",
            "body": f"IMG_{pen.randrange(10**4)}.jpg",
            "url": self._media(),
            "info": {
                **small,
                "size": pen.randrange(10**7),
                "thumbnail_info": small,
                "thumbnail_url": self._media(),
                "xyz.amorgan.blurhash": self._letters(28),
            },
        }

    def _earlier(self, timeline: list[Event]) -> str:
        return str(self._pen.choice(timeline)["event_id"]) if timeline else self._event_id()

    # What belongs to the account

    def _account_data(self) -> list[Event]:
        rules = [
            {
                "rule_id": f".m.rule.{self._letters(12).lower()}",
                "default": True,
                "enabled": number % 5 != 0,
                "conditions": [{"kind": "event_match", "key": "type", "pattern": "m.room.message"}],
                "actions": [
                    "notify",
                    {"set_tweak": "sound", "value": "default"},
                    {"set_tweak": "highlight", "value": False},
                ],
            }
            for number in range(25)
        ]
        direct = {person: [f"!{self._letters(18)}:{_SERVERS[0]}"] for person in self._people[:20]}
        sections = {"override": rules[:10], "underride": rules[10:], "content": [], "room": [], "sender": []}
        return [
            {"type": "m.push_rules", "content": {"global": sections, "device": {}}},
            {"type": "m.direct", "content": direct},
            {
                "type": "m.ignored_user_list",
                "content": {"ignored_users": {person: {} for person in self._people[:5]}},
            },
            {"type": "im.vector.setting.breadcrumbs", "content": {"recent_rooms": list(direct)}},
            {
                "type": "io.element.recent_emoji",
                "content": {"recent_emoji": [[emoji, 3] for emoji in _EMOJI]},
            },
        ]

    def _presence(self, person: str) -> Event:
        content = {
            "presence": "online",
            "last_active_ago": self._pen.randrange(10**7),
            "currently_active": True,
        }
        return {"type": "m.presence", "sender": person, "content": content}


def varied_sync(pen: random.Random) -> dict[str, Any]:
    """An initial sync: state of ten types, members with pictures, replies, threads, reactions, ciphertext, receipts.

    A third of what is written is in Cyrillic.

    Args:
        pen: Where chance comes from.
    """
    return Writer(pen).sync()
