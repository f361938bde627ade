# SPDX-License-Identifier: AGPL-3.0-or-later
"""A bot and somebody who talks to it, both written with matrix-nio as anybody would; knows nothing of CoAP.

    python nio_bot.py HOMESERVER-URL STORE-FOLDER USER BOT

Runs in an environment of its own (`tools/clients.sh`), and prints what happened as one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from nio import (
    AsyncClient,
    AsyncClientConfig,
    InviteMemberEvent,
    JoinError,
    LoginResponse,
    MatrixRoom,
    MegolmEvent,
    RoomCreateResponse,
    RoomMessagesResponse,
    RoomMessageText,
    RoomSendResponse,
)

PASSWORD = "correct horse battery"
ENCRYPTED = {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}


async def log_in(url: str, store: Path, user: str) -> Any:
    """A client that has logged in, with a store for its keys."""
    folder = store / user
    folder.mkdir(parents=True)
    config = AsyncClientConfig(encryption_enabled=True, store_sync_tokens=True)
    client = AsyncClient(url, f"@{user}:localhost", store_path=str(folder), config=config)
    answer = await client.login(PASSWORD, device_name="nio")
    assert isinstance(answer, LoginResponse), answer
    return client


def make_bot(client: Any) -> None:
    """Let a client join where it is invited, and answer what is said."""

    async def invited(room: MatrixRoom, event: InviteMemberEvent) -> None:
        if event.state_key == client.user_id and event.membership == "invite":
            answer = await client.join(room.room_id)
            assert not isinstance(answer, JoinError), answer

    async def said(room: MatrixRoom, event: RoomMessageText) -> None:
        if event.sender != client.user_id:
            await say(client, room.room_id, f"You said: {event.body}")

    client.add_event_callback(invited, InviteMemberEvent)
    client.add_event_callback(said, RoomMessageText)


async def say(client: Any, room: str, text: str) -> None:
    """Send a message; it is encrypted if the room is."""
    content = {"msgtype": "m.text", "body": text}
    answer = await client.room_send(room, "m.room.message", content, ignore_unverified_devices=True)
    assert isinstance(answer, RoomSendResponse), answer


class Listener:
    """What a client hears."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._heard: asyncio.Queue[Any] = asyncio.Queue()
        client.add_event_callback(self._take, (RoomMessageText, MegolmEvent))

    async def _take(self, room: MatrixRoom, event: Any) -> None:
        if event.sender != self._client.user_id:
            await self._heard.put(event)

    async def next(self) -> Any:
        """The next message of somebody else."""
        return await asyncio.wait_for(self._heard.get(), 60)


async def has_joined(client: Any, room: str, user: str) -> None:
    """Wait until a client knows that a user is in a room."""
    while room not in client.rooms or user not in client.rooms[room].users:
        await asyncio.sleep(0.05)


async def talk(alice: Any, bot: str, listener: Listener, *, encrypted: bool) -> dict[str, Any]:
    """Invite the bot to a new room, say something, and wait for its answer."""
    state = [ENCRYPTED] if encrypted else []
    created = await alice.room_create(invite=[bot], initial_state=state, name="Talk")
    assert isinstance(created, RoomCreateResponse), created
    await asyncio.wait_for(has_joined(alice, created.room_id, bot), 60)
    await say(alice, created.room_id, "Grüße, bot")
    event = await listener.next()
    history = await alice.room_messages(created.room_id, start=None, limit=20)
    assert isinstance(history, RoomMessagesResponse), history
    return {
        "heard": getattr(event, "body", repr(event)),
        "decrypted": bool(getattr(event, "decrypted", False)),
        "encryption": any(each.source["type"] == "m.room.encryption" for each in history.chunk),
    }


async def main(url: str, store: Path, user: str, other: str) -> dict[str, Any]:
    """Both of them, in both kinds of room."""
    alice, bot = await log_in(url, store, user), await log_in(url, store, other)
    make_bot(bot)
    listener = Listener(alice)
    tasks = [asyncio.create_task(each.sync_forever(timeout=30000, full_state=True)) for each in (alice, bot)]
    try:
        return {
            "plain": await talk(alice, bot.user_id, listener, encrypted=False),
            "encrypted": await talk(alice, bot.user_id, listener, encrypted=True),
        }
    finally:
        for task in tasks:
            task.cancel()
        for client in (alice, bot):
            await client.close()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:5]))))
