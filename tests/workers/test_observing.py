# SPDX-License-Identifier: AGPL-3.0-or-later
"""Observers on one worker hear what happens on the other, and miss nothing when workers go or clients move."""

from __future__ import annotations

from synapse_lb.client.errors import TokenRejected
from tests.workers.harness import V3, Heard, WorkersCase, until


class ObservingTests(WorkersCase):
    """Two users in a room, each at a worker."""

    async def test_what_is_sent_through_one_is_pushed_by_the_other(self) -> None:
        alice, bob = self.user(), self.user()
        room_id = await self.room_of(alice, bob)
        heard = Heard(room_id)
        observation = self.client("worker2").observe_sync(None, heard, token=bob.token)
        self.addCleanup(observation.stop)
        sender = self.client("worker1")
        texts = [f"text {number}" for number in range(5)]
        for text in texts:
            await self.say(sender, alice, room_id, text)
        await until(lambda: heard.texts == texts)

    async def test_a_logout_elsewhere_ends_the_observation(self) -> None:
        bob = self.user()
        observation = self.client("worker2").observe_sync(None, Heard(""), token=bob.token)
        await until(lambda: observation.since)
        await self.ok(self.client("worker1"), "POST", f"{V3}/logout", json={}, token=bob.token)
        with self.assertRaises(TokenRejected) as caught:
            await observation.done
        self.assertIn("M_UNKNOWN_TOKEN", str(caught.exception))
