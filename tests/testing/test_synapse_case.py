# SPDX-License-Identifier: AGPL-3.0-or-later
"""`HomeserverTestCase`: Synapse in this process, asked over CoAP."""

from __future__ import annotations

from synapse_lb.testing.synapse import HomeserverTestCase


class ConversationTests(HomeserverTestCase):
    """What most tests need first."""

    def test_conversation(self) -> None:
        """Two users in a room; the one sees what the other sends."""
        alice, bob = self.register_and_login("alice"), self.register_and_login("bob")
        room = self.create_room(alice, preset="public_chat")
        self.join(room, bob)
        since = self.sync(bob)["next_batch"]
        event = self.send(room, "Hello", alice)
        timeline = self.sync(bob, since)["rooms"]["join"][room]["timeline"]["events"]
        self.assertEqual(
            [(each["event_id"], each["content"]["body"]) for each in timeline], [(event, "Hello")]
        )
