# SPDX-License-Identifier: AGPL-3.0-or-later
"""x1 with a real Synapse: what it tells is what HTTP tells, and aliases hold from one request to the next."""

from __future__ import annotations

from typing import Any

from synapse_lb.client.client import LowBandwidthClient
from synapse_lb.msc3079.messages import NO_BODY
from tests.e2e import test_conversation as conversation
from tests.e2e.harness import CLIENT, SynapseTestCase


class X1SameAsHttpTests(conversation.SameAsHttpTests):
    """The same request by HTTP and in x1 has the same answer."""

    def client(self, port: int | None = None, **arguments: Any) -> LowBandwidthClient:
        """A client that writes x1 from the first request on."""
        return super().client(port, extensions="known", **arguments)


class X1Tests(SynapseTestCase):
    """Longer conversations on one association."""

    async def test_send_and_sync_and_errors(self) -> None:
        user, client = self.user(), self.client(extensions="known")
        room = user.room(name="x1")
        since = None
        for number in range(3):
            path = f"{CLIENT}/rooms/{room}/send/m.room.message/{number}"
            text = {"msgtype": "m.text", "body": f"Hello World {number}"}
            sent = await self.ask(client, "PUT", path, text, token=user.token)
            query = {"timeout": "0"} | ({"since": since} if since else {})
            found = await self.ask(client, "GET", f"{CLIENT}/sync", query=query, token=user.token)
            since = found["next_batch"]
            event = found["rooms"]["join"][room]["timeline"]["events"][-1]
            self.assertEqual((event["event_id"], event["content"]), (sent["event_id"], text))
            over_http = user.http("GET", f"{CLIENT}/rooms/{room}/event/{event['event_id']}")
            over_x1 = await self.ask(
                client, "GET", f"{CLIENT}/rooms/{room}/event/{event['event_id']}", token=user.token
            )
            self.assertEqual(conversation.without_age(over_x1), conversation.without_age(over_http))
        refused = await client.request("GET", f"{CLIENT}/rooms/!nowhere:localhost/state", token=user.token)
        self.assertEqual((refused.status, refused.body["errcode"]), (403, "M_FORBIDDEN"))

    async def test_brief(self) -> None:
        user, client = self.user(), self.client(extensions="known")
        room, text = user.room(name="brief"), {"msgtype": "m.text", "body": "x"}
        path = f"{CLIENT}/rooms/{room}/send/m.room.message/1"
        answer = await client.request("PUT", path, json=text, token=user.token, brief=True)
        self.assertEqual((answer.status, answer.body), (200, NO_BODY))
        again = await self.ask(client, "PUT", path, text, token=user.token)
        self.assertIn("event_id", again)

    async def test_found_out_by_versions(self) -> None:
        client = self.client()
        await self.ask(client, "GET", "/_matrix/client/versions")
        self.assertTrue(client.speaks_x1)
        user = self.user()
        found = await self.ask(client, "GET", f"{CLIENT}/account/whoami", token=user.token)
        self.assertEqual(found["user_id"], user.user_id)
