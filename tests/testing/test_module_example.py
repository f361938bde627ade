# SPDX-License-Identifier: AGPL-3.0-or-later
"""The example of docs/testing-with-coap.md: a module of Synapse's, and its test through CoAP."""

from __future__ import annotations

from typing import Any

from synapse.module_api import NOT_SPAM, ModuleApi
from synapse.module_api.errors import Codes

from synapse_lb.testing.synapse import HomeserverTestCase


class NoShouting:
    """A module that refuses messages in capital letters."""

    def __init__(self, config: dict[str, Any], api: ModuleApi) -> None:
        self._longest = config.get("longest", 3)
        api.register_spam_checker_callbacks(check_event_for_spam=self.check_event_for_spam)

    async def check_event_for_spam(self, event: Any) -> Any:
        """Synapse asks this for each event."""
        body = event.content.get("body", "")
        return Codes.FORBIDDEN if len(body) > self._longest and body.isupper() else NOT_SPAM


class NoShoutingTests(HomeserverTestCase):
    """What a client sees of the module."""

    def default_config(self) -> dict[str, Any]:
        """The homeserver has the module."""
        module = {"module": f"{__name__}.NoShouting", "config": {"longest": 5}}
        return {**super().default_config(), "modules": [module]}

    def test_shouting(self) -> None:
        """Shouts are refused with the module's error; others see nothing of them."""
        alice, bob = self.register_and_login("alice"), self.register_and_login("bob")
        room = self.create_room(alice, preset="public_chat")
        self.join(room, bob)
        self.send(room, "HELLO", alice)
        path = f"/_matrix/client/v3/rooms/{room}/send/m.room.message/shout"
        channel = self.make_request("PUT", path, {"msgtype": "m.text", "body": "HELLO THERE"}, alice)
        self.assertEqual((channel.code, channel.json_body["errcode"]), (403, "M_FORBIDDEN"))
        events = self.sync(bob)["rooms"]["join"][room]["timeline"]["events"]
        self.assertEqual([e["content"]["body"] for e in events if e["type"] == "m.room.message"], ["HELLO"])
