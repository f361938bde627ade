# SPDX-License-Identifier: AGPL-3.0-or-later
"""Ask somebody, with asyncio: python ask.py https://example.com NAME PASSWORD @other:example.com TEXT [CERTIFICATE]"""

import asyncio
import sys
from urllib.parse import quote

from twisted.internet import asyncioreactor, task
from twisted.internet.defer import Deferred

asyncio.set_event_loop(asyncio.new_event_loop())
asyncioreactor.install(asyncio.get_event_loop())

from synapse_lb.client import ClientVerification, LowBandwidthClient  # noqa: E402 after the reactor's installation

API = "/_matrix/client/v3"


async def main(reactor, server, name, password, other, text, certificate=None):
    loop = asyncio.get_running_loop()
    trust = ClientVerification.ca_file(certificate) if certificate else ClientVerification.system()
    client = LowBandwidthClient(reactor, server, verification=trust)
    token = None

    async def ask(method, path, json):
        response = await client.request(method, API + path, json=json, token=token).asFuture(loop)
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {response.body}")
        return response.body

    credentials = {"identifier": {"type": "m.id.user", "user": name}, "password": password}
    token = (await ask("POST", "/login", {"type": "m.login.password", **credentials}))["access_token"]
    room = (await ask("POST", "/createRoom", {"invite": [other], "is_direct": True}))["room_id"]
    answered = loop.create_future()

    async def handle(sync):
        news = sync.get("rooms", {}).get("join", {}).get(room)
        for event in news["timeline"]["events"] if news else ():
            if (event["type"], event["sender"]) == ("m.room.member", other):
                await ask(
                    "PUT", f"/rooms/{quote(room)}/send/m.room.message/1", {"msgtype": "m.text", "body": text}
                )
            if (event["type"], event["sender"]) == ("m.room.message", other) and not answered.done():
                answered.set_result(event["content"]["body"])

    def handler(sync):
        "What has to be awaited in asyncio's way becomes a Deferred."
        return Deferred.fromFuture(asyncio.ensure_future(handle(sync)))

    observation = client.observe_sync(None, handler, token=token)
    try:
        print(await asyncio.wait_for(answered, 60), f"(over {client.transport.value})")
    finally:
        await observation.stop().asFuture(loop)
        await client.close().asFuture(loop)


task.react(lambda *arguments: Deferred.fromFuture(asyncio.ensure_future(main(*arguments))), sys.argv[1:])
