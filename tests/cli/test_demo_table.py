# SPDX-License-Identifier: AGPL-3.0-or-later
"""The demo's table, its conversation and what it says when things go wrong; without Synapse."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.cli import demo
from synapse_lb.cli.conversation import GREETING, REPLY, Answer, ConversationFailed, Names, Step, converse
from synapse_lb.cli.demo_table import WIDTH, Painter, Row, total
from synapse_lb.cli.errors import CommandError
from synapse_lb.cli.https_meter import Wire
from synapse_lb.cli.main import build_parser
from synapse_lb.cli.terminal import Terminal
from synapse_lb.testing.throwaway import HomeserverFailed, SynapseMissing

HANDSHAKE = Row("alice", "DTLS handshake", "", None, Wire(6, 1331), Wire(11, 2470))
SEND = Row("alice", "PUT /rooms/…/send/m.room.message", "Say it.", 200, Wire(2, 296), Wire(5, 1184))


class TableTests(SynchronousTestCase):
    def test_a_line(self) -> None:
        line = Painter(colour=False).line(SEND)
        expected = "alice  PUT /rooms/…/send/m.room.message 200 296 2 1,184 5 75%"
        self.assertEqual(line.split(), expected.split())
        self.assertEqual(len(line), WIDTH + 1)

    def test_everything_fits_its_columns(self) -> None:
        painter = Painter(colour=False)
        huge = Row("alice", "GET /sync", "", 200, Wire(999_999, 99_999_999), Wire(999_999, 99_999_999))
        text = (
            painter.header()
            + painter.line(huge)
            + painter.line(HANDSHAKE)
            + painter.footer([SEND, HANDSHAKE])
        )
        self.assertLessEqual(max(map(len, text.splitlines())), WIDTH + 8)
        text = painter.header() + painter.line(SEND) + painter.footer([SEND, HANDSHAKE])
        self.assertLessEqual(max(map(len, text.splitlines())), WIDTH)

    def test_totals(self) -> None:
        both = total([SEND, HANDSHAKE])
        self.assertEqual((both.coap, both.https), (Wire(8, 1627), Wire(16, 3654)))
        footer = Painter(colour=False).footer([SEND, HANDSHAKE])
        self.assertIn("1 requests", footer)
        self.assertIn("1,627", footer)
        self.assertEqual(footer.splitlines()[-1].split()[-1], "55%")

    def test_without_a_measurement_of_https(self) -> None:
        row = Row("alice", "GET /versions", "", 200, Wire(2, 100), None)
        self.assertIsNone(row.saved)
        self.assertEqual(Painter(colour=False).line(row).split()[-3:], ["-", "-", "-"])
        self.assertIsNone(total([row, SEND]).https)
        self.assertEqual(row.as_json()["https"], None)

    def test_colour_only_if_asked_for(self) -> None:
        self.assertNotIn("\x1b", Painter(colour=False).line(SEND))
        self.assertIn("\x1b[32m", Painter(colour=True).line(SEND))

    def test_json(self) -> None:
        self.assertEqual(SEND.as_json()["coap"], {"packets": 2, "bytes": 296})
        self.assertEqual(SEND.as_json()["saved"], 0.75)


class Scripted:
    """Plays the server of a conversation."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.said: list[str] = []
        self.change: Callable[[Step, dict[str, Any]], dict[str, Any]] = lambda step, body: body

    def answer(self, step: Step) -> Answer:
        self.steps.append(step)
        events = [{"type": "m.room.message", "content": {"body": text}} for text in self.said]
        if step.title == "/sync?since":
            body: dict[str, Any] = {"rooms": {"join": {"!r:x": {"timeline": {"events": events}}}}}
        elif step.title.endswith("/messages"):
            body = {"chunk": events[::-1]}
        else:
            body = {"versions": [], "access_token": f"t{step.speaker}", "user_id": "@u:x", "room_id": "!r:x"}
            body |= {"next_batch": "s1"}
        if step.method == "PUT" and step.body is not None:
            self.said.append(step.body["body"])
        return Answer(200, self.change(step, body))

    def play(self) -> Any:
        steps = converse(Names("ann", "ben"))
        step = next(steps)
        while True:
            try:
                step = steps.send(self.answer(step))
            except StopIteration as end:
                return end.value


class ConversationTests(SynchronousTestCase):
    def test_who_asks_what(self) -> None:
        server = Scripted()
        outcome = server.play()
        self.assertEqual(outcome.heard, [REPLY, GREETING])
        self.assertEqual((outcome.room_id, outcome.tokens), ("!r:x", ["t0", "t1"]))
        self.assertEqual(
            [(step.speaker, step.method, step.title.rsplit("/", 1)[1]) for step in server.steps],
            [
                (0, "GET", "versions"),
                (0, "POST", "register"),
                (1, "POST", "register"),
                (0, "POST", "login"),
                (1, "POST", "login"),
                (0, "POST", "createRoom"),
                (0, "POST", "invite"),
                (1, "POST", "join"),
                (1, "GET", "sync"),
                (0, "PUT", "m.room.message"),
                (1, "GET", "sync?since"),
                (1, "PUT", "m.room.message"),
                (0, "GET", "messages"),
            ],
        )
        self.assertEqual(server.steps[10].target, "/_matrix/client/v3/sync?since=s1&timeout=30000")
        self.assertEqual(server.steps[7].path, "/_matrix/client/v3/rooms/%21r%3Ax/join")
        self.assertEqual([step.token for step in server.steps[5:8]], ["t0", "t0", "t1"])
        self.assertNotIn("t0", repr(server.steps[5]))

    def test_a_message_that_does_not_arrive(self) -> None:
        server = Scripted()
        server.change = lambda step, body: {"chunk": []} if step.title.endswith("/messages") else body
        self.assertRaises(ConversationFailed, server.play)


class FakeHomeserver:
    """A homeserver that does not start."""

    def __init__(self, failure: Exception) -> None:
        self.failure = failure
        self.stopped = False

    def start(self) -> None:
        raise self.failure

    def stop(self) -> None:
        self.stopped = True


class FailureTests(SynchronousTestCase):
    def fails_with(self, failure: Exception) -> tuple[CommandError, FakeHomeserver]:
        fake = FakeHomeserver(failure)
        self.patch(demo, "ThrowawayHomeserver", lambda **arguments: fake)
        arguments = argparse.Namespace(keep=False, json=False)
        self.patch(signal, "signal", lambda number, handler: None)
        return self.assertRaises(CommandError, demo.run, arguments, Terminal.in_memory()), fake

    def test_synapse_is_missing(self) -> None:
        error, fake = self.fails_with(SynapseMissing("none here"))
        self.assertIn("pip install 'synapse-lb[server]'", error.message)
        self.assertEqual((error.exit_status, fake.stopped), (1, True))

    def test_synapse_does_not_start(self) -> None:
        error, fake = self.fails_with(HomeserverFailed("Synapse ended with status 1", 1, "the last line"))
        self.assertIn("the last line", error.message)
        self.assertTrue(fake.stopped)

    def test_help(self) -> None:
        self.assertIn("demo", build_parser().format_help())
