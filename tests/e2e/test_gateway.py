# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb gateway` in front of a Synapse that knows nothing of us, as a process of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from synapse_lb.cli.conversation import GREETING, REPLY, Answer, Names, Outcome, converse
from synapse_lb.client import ClientVerification, LowBandwidthClient, State, Transport
from synapse_lb.msc3079.messages import NO_BODY
from synapse_lb.testing.throwaway import free_ports
from tests.e2e.harness import CLIENT, SynapseTestCase, reactor

ROOT = Path(__file__).resolve().parents[2]


class Command(ProcessProtocol):
    """The command at work."""

    def __init__(self, *arguments: str) -> None:
        self.output = b""
        self.ended: Deferred[int | None] = Deferred()
        command = [sys.executable, "-m", "synapse_lb.cli.main", "gateway", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = reactor.spawnProcess(self, command[0], command, env=environment)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Keep what it says."""
        self.output += data

    def processEnded(self, reason: Failure) -> None:
        """Tell the status."""
        assert isinstance(reason.value, (ProcessDone, ProcessTerminated))
        self.ended.callback(reason.value.exitCode)

    def signal(self, name: str) -> None:
        """Send it a signal."""
        if not self.ended.called:
            self._process.signalProcess(name)

    async def stop(self) -> int | None:
        """End it in order."""
        self.signal("TERM")
        return await self.ended


class GatewayCase(SynapseTestCase):
    kind = "bare"

    async def start_gateway(self, *arguments: str) -> Command:
        """Start the command and wait until it serves."""
        self.port = free_ports().https
        self.url = f"https://127.0.0.1:{self.port}"
        certificate = self.homeserver.certificate_path
        command = Command(
            *("--local", self.homeserver.http_url),
            *("--tls-cert", str(certificate), "--tls-key", str(certificate.with_suffix(".key"))),
            *("--bind", f"127.0.0.1:{self.port}", "--advertise", self.url, *arguments),
        )
        self.addCleanup(command.stop)
        await self.until(lambda: b"fingerprint" in command.output or command.ended.called, "a greeting")
        self.assertFalse(command.ended.called, command.output)
        return command

    def discovering(self, **settings: Any) -> LowBandwidthClient:
        """A client that is told the gateway's HTTPS address and nothing else."""
        verification = ClientVerification.ca_file(str(self.homeserver.certificate_path))
        client = LowBandwidthClient(reactor, self.url, verification=verification, **settings)
        self.addCleanup(client.close)
        return client


class ConversationTests(GatewayCase):
    async def hold(self, names: Names, clients: list[LowBandwidthClient]) -> Outcome:
        """The demo's conversation."""
        steps = converse(names)
        step = next(steps)
        while True:
            json = NO_BODY if step.body is None else step.body
            response = await clients[step.speaker].request(
                step.method, step.path, step.query, json, step.token, timeout=30
            )
            self.assertEqual(response.status, 200, f"{step.method} {step.path}: {response.body}")
            if step.title == "/login":
                base_url = response.body["well_known"]["m.homeserver"]["base_url"]
                self.assertEqual(base_url, self.url)
            try:
                step = steps.send(Answer(response.status, response.body))
            except StopIteration as end:
                return cast("Outcome", end.value)

    async def test_all_of_it(self) -> None:
        command = await self.start_gateway("--x-forwarded-for")
        clients = [self.discovering(), self.discovering()]
        outcome = await self.hold(Names("gwann", "gwben"), clients)
        self.assertEqual(outcome.heard, [REPLY, GREETING])
        for client in clients:
            self.assertIs(client.transport, Transport.COAP)
            self.assertEqual((await client.discover()).features["observe"], 1)
        await self.media(clients[0], outcome.tokens[0])
        command.signal("HUP")
        self.assertEqual((await self.discovering().request("GET", f"{CLIENT}/sync")).status, 401)
        self.assertEqual(await command.stop(), 0)
        self.assertNotIn(b"Traceback", command.output)

    async def media(self, client: LowBandwidthClient, token: str) -> None:
        """Media go through the reverse proxy, byte for byte."""
        content = bytes(range(256)) * 4096
        sent = await client.fetch(
            "POST",
            "/_matrix/media/v3/upload",
            headers={"Content-Type": "image/png"},
            body=content,
            token=token,
        )
        self.assertEqual(sent.status, 200, sent.body)
        where = sent.body.decode().partition("mxc://")[2].rstrip('"}')
        got = await client.fetch("GET", f"/_matrix/client/v1/media/download/{where}", token=token)
        self.assertEqual((got.status, got.header("content-type")), (200, "image/png"))
        self.assertEqual(got.body, content)
        self.assertEqual(
            (await client.fetch("GET", "/_synapse/admin/v1/server_version", token=token)).status, 404
        )


class ObserveTests(GatewayCase):
    async def test_what_happens_is_told(self) -> None:
        """Each message and each to-device message once, in order, whether or not the client is there."""
        await self.start_gateway("--poll-timeout", "1")
        user = self.user()
        room = user.room()
        said: list[str] = []
        heard: list[str] = []
        letters: list[int] = []
        client = self.discovering()

        def handler(body: dict[str, Any]) -> None:
            joined = body.get("rooms", {}).get("join", {}).get(room, {"timeline": {"events": []}})
            events = joined["timeline"]["events"]
            heard.extend(event["content"]["body"] for event in events if event["type"] == "m.room.message")
            letters.extend(event["content"]["n"] for event in body.get("to_device", {}).get("events", []))

        async def happen(number: int) -> None:
            said.append(f"m{number}")
            user.say(room, said[-1])
            path = f"{CLIENT}/sendToDevice/org.example.letter/{number}"
            user.http("PUT", path, {"messages": {user.user_id: {user.device_id: {"n": number}}}})

        observation = client.observe_sync(None, handler, token=user.token)
        await self.until(lambda: observation.state is State.OBSERVING, "notifications")
        for number in range(4):
            await happen(number)
            await self.until(lambda: len(heard) == len(letters) == len(said), f"message {number}")
        await observation.stop()
        since = observation.since
        await happen(4)
        again = client.observe_sync(since, handler, token=user.token)
        await self.until(lambda: len(heard) == len(letters) == len(said), "what happened meanwhile")
        self.assertEqual((heard, letters), (said, list(range(5))))
        self.assertIs(again.state, State.OBSERVING)
        user.http("POST", f"{CLIENT}/logout", {})
        await self.until(lambda: again.state is State.ENDED, "the end of the token")
        again.done.addErrback(lambda failure: None)
