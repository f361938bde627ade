# SPDX-License-Identifier: AGPL-3.0-or-later
"""A bot that says everything again: python bot.py https://example.com NAME PASSWORD [CERTIFICATE.pem]"""

import sys
from urllib.parse import quote

from twisted.internet import task
from twisted.internet.defer import ensureDeferred

from synapse_lb.client import ClientVerification, LowBandwidthClient

API = "/_matrix/client/v3"


async def main(reactor, server, name, password, certificate=None):
    trust = ClientVerification.ca_file(certificate) if certificate else ClientVerification.system()
    client = LowBandwidthClient(reactor, server, verification=trust)
    credentials = {"identifier": {"type": "m.id.user", "user": name}, "password": password}
    login = (
        await client.request("POST", f"{API}/login", json={"type": "m.login.password", **credentials})
    ).body
    token = login["access_token"]

    async def handle(sync):
        for room in sync.get("rooms", {}).get("invite", {}):
            await client.request("POST", f"{API}/rooms/{quote(room)}/join", json={}, token=token)
        for room, news in sync.get("rooms", {}).get("join", {}).items():
            for event in news["timeline"]["events"]:
                if event["type"] == "m.room.message" and event["sender"] != login["user_id"]:
                    content = {"msgtype": "m.notice", "body": event["content"].get("body", "?")}
                    path = f"{API}/rooms/{quote(room)}/send/m.room.message/{quote(event['event_id'])}"
                    await client.request("PUT", path, json=content, token=token)

    await client.observe_sync(None, handle, token=token).done


task.react(lambda *arguments: ensureDeferred(main(*arguments)), sys.argv[1:])
