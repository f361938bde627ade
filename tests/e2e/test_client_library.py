# SPDX-License-Identifier: AGPL-3.0-or-later
"""The client library as applications use it: the documents' examples, and UDP that gets through at times."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from synapse_lb.client import (
    ClientVerification,
    Discovered,
    Discovery,
    Fallback,
    LowBandwidthClient,
    State,
    Transport,
)
from synapse_lb.client.uri import CoapUri
from synapse_lb.testing.lossy import CLEAR, Weather
from tests.e2e.harness import CLIENT, SynapseTestCase, reactor

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "correct horse battery"


class Program(ProcessProtocol):
    """An example, run as its reader runs it."""

    def __init__(self, name: str, *arguments: str) -> None:
        self.output = b""
        self.ended: Deferred[int] = Deferred()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(ROOT / "docs" / name), *arguments]
        self._process = reactor.spawnProcess(self, command[0], command, env=environment)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Keep what it says."""
        self.output += data

    def processEnded(self, reason: Failure) -> None:
        """Tell the status."""
        assert isinstance(reason.value, (ProcessDone, ProcessTerminated))
        self.ended.callback(reason.value.exitCode if reason.value.exitCode is not None else -1)

    def stop(self) -> Deferred[int]:
        """End it."""
        if not self.ended.called:
            self._process.signalProcess("TERM")
        return self.ended


class ExamplesTests(SynapseTestCase):
    """The bot of `docs/client.md`, and somebody who asks it by asyncio; they discover Synapse over HTTPS."""

    async def test_ask_the_bot(self) -> None:
        server, certificate = self.homeserver.https_url, str(self.homeserver.certificate_path)
        bot, human = self.user(), self.user()
        running = Program("bot.py", server, bot.name, PASSWORD, certificate)
        self.addCleanup(running.stop)
        asking = Program("ask.py", server, human.name, PASSWORD, bot.user_id, "Größe ✓", certificate)
        self.addCleanup(asking.stop)
        status = await asking.ended
        self.assertEqual((status, asking.output.decode()), (0, "Größe ✓ (over coap)\n"))
        self.assertEqual(running.output, b"")
        await self.until(
            lambda: self.logged_requests(r'"PUT .*/send/m.room.message/\$.* CoAP/1"'), "the bot's line"
        )
        self.assertEqual(
            self.logged_requests(r'"(GET|PUT|POST) /_matrix/client/(v3|r0)/.* HTTP/1.1" .*Twisted'), []
        )


class Known(Discovery):
    """Knows where the homeserver is: behind a network of ours."""

    def __init__(self, found: Discovered) -> None:
        super().__init__(reactor)
        self._found_before = found

    def look_up(self, server: str) -> Deferred[Discovered]:
        """What is known."""
        return succeed(self._found_before)


class FallbackTests(SynapseTestCase):
    async def test_udp_comes_and_goes(self) -> None:
        """Nothing is lost and nothing comes twice, whichever way it goes; each message is sent once."""
        relay = self.relay(Weather(loss=1.0))
        found = Discovered(self.homeserver.https_url, CoapUri("coaps", "127.0.0.1", relay.port))
        client = LowBandwidthClient(
            reactor,
            self.homeserver.https_url,
            verification=ClientVerification.ca_file(str(self.homeserver.certificate_path)),
            discovery=Known(found),
            fallback=Fallback(patience=1.5, probe_initial=0.2, probe_max=0.4),
        )
        self.addCleanup(client.close)
        user = self.user()
        room = user.room()
        heard: list[str] = []

        def handler(body: dict[str, Any]) -> None:
            news = body.get("rooms", {}).get("join", {}).get(room, {"timeline": {"events": []}})
            heard.extend(
                e["content"]["body"] for e in news["timeline"]["events"] if e["type"] == "m.room.message"
            )

        async def say(text: str) -> None:
            path = f"{CLIENT}/rooms/{room}/send/m.room.message/{text}"
            await self.ask(client, "PUT", path, {"msgtype": "m.text", "body": text}, token=user.token)

        said: list[str] = []
        observation = client.observe_sync(None, handler, token=user.token)
        for transport in (Transport.HTTPS, Transport.COAP):
            if transport is Transport.COAP:
                relay.set_weather(CLEAR)
                await self.until(lambda: client.transport is Transport.COAP, "an association")
                await self.until(lambda: observation.state is State.OBSERVING, "notifications")
            for number in range(3):
                said.append(f"{transport.value}{number}")
                await say(said[-1])
            await self.until(lambda: len(heard) >= len(said), "messages")
            self.assertEqual(heard, said)
            self.assertIs(client.transport, transport)
        self.assertEqual(len(self.logged_requests(r'"PUT .*/send/.*/https\d CoAP/1"')), 0)
        await self.assert_run(r'"PUT .*/send/.*/https\d HTTP/1.1"', 3)
        await self.assert_run(r'"PUT .*/send/.*/coap\d CoAP/1"', 3)
        await observation.stop()
