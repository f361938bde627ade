# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb coap --observe` in this process against a server whose /sync can be observed."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from synapse_lb.coap.events import CoapResponse
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.msc3079.cbor import encode
from tests.cli.test_coap import CoapTestCase
from tests.client.harness import REACTOR, Server, until
from tests.client.journal import CBOR, Journal, JournalServer
from tests.client.observing import BRISK

SYNC = "/_matrix/client/v3/sync"


class ObserveTestCase(CoapTestCase):
    """Has a journal."""

    def setUp(self) -> None:
        """The journal is empty."""
        super().setUp()
        self.journal = Journal()
        self.addCleanup(self.assert_signals_as_before)

    def assert_signals_as_before(self) -> None:
        """The command has taken back what it did to the signals."""
        self.assertNotIn("on_interrupt", repr(signal.getsignal(signal.SIGINT)))

    def start_journal(self, port: int = 0, **settings: Any) -> tuple[Server, JournalServer]:
        """Start a server that serves the journal."""
        handler = JournalServer(self.journal, tuning=BRISK, **settings)
        return self.start_server(handler, port=port), handler

    def observe(self, server: Server, *argv: str, path: str = SYNC, **settings: Any) -> Deferred[int]:
        """Start the command against a server whose certificate it trusts."""
        url = f"coaps://{server.address}{path}"
        arguments = ("--observe", "--cacert", self.certificate.path, *argv, url)
        return self.run_coap(*arguments, **settings)

    def lines(self) -> list[Any]:
        """The JSON texts that were written, one a line."""
        return [json.loads(line) for line in self.terminal.output().splitlines()]

    def events(self) -> list[str]:
        """The events that were written."""
        return [event for line in self.lines() for event in line["events"]]


class ObserveTests(ObserveTestCase):
    async def test_until_it_is_interrupted(self) -> None:
        """It says goodbye to the server, and all is well."""
        server, journal = self.start_journal()
        self.journal.add("a")
        status = self.observe(server, "--json", "--token", "syt_a")
        await until(lambda: self.events() == ["a"])
        self.journal.add("b")
        await until(lambda: self.events() == ["a", "b"])
        os.kill(os.getpid(), signal.SIGINT)
        self.assertEqual(await status, 0)
        self.assertEqual(self.terminal.errors(), "")
        self.assertEqual(journal.requests[0].options.get_uint(OptionNumber.OBSERVE), 0)
        self.assertEqual(journal.requests[-1].options.get_uint(OptionNumber.OBSERVE), 1)
        self.assertEqual([journal.token(n) for n in range(2)], [b"syt_a", b"syt_a"])
        self.assertEqual(journal.registered, {})

    async def test_count(self) -> None:
        server, _ = self.start_journal()
        status = self.observe(server, "--json", "--count", "3")
        await until(lambda: len(self.lines()) == 1)
        self.journal.add("a")
        await until(lambda: len(self.lines()) == 2)
        self.journal.add("b")
        self.assertEqual(await status, 0)
        self.assertEqual(len(self.lines()), 3)

    async def test_one_line_each_on_a_screen_too(self) -> None:
        server, _ = self.start_journal()
        self.assertEqual(await self.observe(server, "--json", "--count", "1", screen=True), 0)
        self.assertEqual(len(self.lines()), 1)

    async def test_cbor(self) -> None:
        """A CBOR sequence (RFC 8742)."""
        server, _ = self.start_journal()
        self.assertEqual(await self.observe(server, "--count", "1"), 0)
        self.assertEqual(self.terminal.output(), encode({"next_batch": "s0", "pos": "s0", "events": []}))

    async def test_file_is_appended_to(self) -> None:
        server, _ = self.start_journal()
        path = Path(self.mktemp())
        for _ in range(2):
            status = self.observe(server, "--json", "--count", "1", "-o", str(path))
            self.assertEqual(await status, 0)
        self.assertEqual(len(path.read_text().splitlines()), 2)

    async def test_output_that_cannot_be_written(self) -> None:
        """Nothing is acknowledged that was not written."""
        server, journal = self.start_journal()
        status = self.observe(server, "-o", "/nowhere/file")
        self.assertEqual(await status, 23)
        self.assertIn("cannot write", self.terminal.errors())
        self.assertEqual(journal.endpoint.counters.notifications_delivered, 0)

    async def test_restart(self) -> None:
        """The server goes and comes back; -v tells of it."""
        server, _ = self.start_journal()
        self.journal.add("a")
        status = self.observe(server, "--json", "-v", path=SYNC + "?filter=f")
        await until(lambda: self.events() == ["a"])
        await server.stop()
        self.journal.add("b")
        _, journal = self.start_journal(port=server.port)
        await until(lambda: self.events() == ["a", "b"])
        os.kill(os.getpid(), signal.SIGINT)
        self.assertEqual(await status, 0)
        self.assertEqual(journal.queries()[0], ["filter=f", "since=s1"])
        told = self.terminal.errors()
        for text in (
            "> Observe: 0",
            "* Observing",
            "trying again in",
            "* Registering",
            "* The next place is s2",
        ):
            self.assertIn(text, told)

    async def test_from_a_place(self) -> None:
        self.journal.add("a", "b")
        server, journal = self.start_journal()
        status = self.observe(server, "--json", "--count", "1", path="/7?since=s1")
        self.assertEqual(await status, 0)
        self.assertEqual(self.events(), ["b"])
        self.assertEqual(journal.queries()[0], ["since=s1"])

    async def test_body_makes_it_a_fetch(self) -> None:
        server, journal = self.start_journal()
        path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
        self.assertEqual(await self.observe(server, "--json", "--count", "1", "-d", "{}", path=path), 0)
        self.assertEqual((journal.requests[0].code, journal.requests[0].payload), (Code.FETCH, b"\xa0"))

    async def test_polling(self) -> None:
        server, _ = self.start_journal(observes=False)
        status = self.observe(server, "--json", "-v", "--count", "2")
        await until(lambda: len(self.lines()) == 1)
        self.journal.add("a")
        self.assertEqual(await status, 0)
        self.assertEqual(self.events(), ["a"])
        self.assertIn("* The server does not notify", self.terminal.errors())

    async def test_what_cannot_be_observed(self) -> None:
        server, _ = self.start_plain(CoapResponse(Code.CONTENT, Options(), b"text"))
        self.assertEqual(await self.observe(server, path="/a"), 0)
        self.assertEqual(self.terminal.output(), b"text")

    async def test_refusal(self) -> None:
        server, journal = self.start_journal()
        journal.refusal = CoapResponse(Code.UNAUTHORIZED, CBOR, encode({"errcode": "M_UNKNOWN_TOKEN"}))
        self.assertEqual(await self.observe(server, "--json"), 22)
        self.assertEqual(self.lines(), [{"errcode": "M_UNKNOWN_TOKEN"}])
        self.assertIn("the server answered 4.01 Unauthorized", self.terminal.errors())

    async def test_nobody_there(self) -> None:
        server, _ = self.start_journal()
        await server.stop()
        self.assertEqual(await self.observe(server), 7)

    async def test_time_limit(self) -> None:
        server, _ = self.start_journal()
        self.assertEqual(await self.observe(server, "--json", "-m", "0.2"), 28)
        self.assertEqual(len(self.lines()), 1)

    async def test_silent(self) -> None:
        server, _ = self.start_journal()
        self.assertEqual(await self.observe(server, "-s", "-m", "0.1"), 28)
        self.assertEqual(self.terminal.errors(), "")


class Process(ProcessProtocol):
    """The command in a process of its own; standard output is `written`, and `ended` its exit status."""

    def __init__(self) -> None:
        self.written = b""
        self.ended: Deferred[int] = Deferred()

    def outReceived(self, data: bytes) -> None:
        """Standard output."""
        self.written += data

    def processEnded(self, reason: Failure) -> None:
        """The process has ended."""
        assert isinstance(reason.value, (ProcessDone, ProcessTerminated))
        self.ended.callback(-1 if reason.value.exitCode is None else reason.value.exitCode)


class ProcessTests(ObserveTestCase):
    async def test_interrupted(self) -> None:
        """As a person does it with Ctrl-C."""
        server, journal = self.start_journal()
        process = Process()
        command = [sys.executable, "-m", "synapse_lb.cli.main", "coap", "--observe", "--json"]
        url = f"coaps://{server.address}{SYNC}"
        transport = REACTOR.spawnProcess(
            process,
            sys.executable,
            [*command, "--cacert", self.certificate.path, url],
            env=dict(os.environ) | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
        )
        await until(lambda: process.written)
        self.journal.add("a")
        await until(lambda: process.written.count(b"\n") == 2)
        transport.signalProcess("INT")
        self.assertEqual(await process.ended, 0)
        self.assertEqual(journal.registered, {})


class ArgumentTests(ObserveTestCase):
    async def test_wrong_ones(self) -> None:
        server, _ = self.start_journal()
        self.assertEqual(await self.observe(server, "-X", "POST"), 2)
        self.assertIn("GET and FETCH", self.terminal.errors())
        self.assertEqual(await self.run_coap("--count", "1", "coaps://localhost/"), 2)
        self.assertIn("--count goes with --observe", self.terminal.errors())
        for count in ("0", "-1", "x"):
            with self.assertRaises(SystemExit):
                self.run_coap("--observe", "--count", count, "coaps://localhost/")
        self.assertEqual(server.dtls.counters.datagrams_received, 0)

    def test_second_interruption_ends_it_at_once(self) -> None:
        calls: list[int] = []
        before = signal.getsignal(signal.SIGINT)

        class Reactor:
            def callFromThread(self, action: Any) -> None:
                action()

        self.terminal.given_reactor = Reactor()
        take_back = self.terminal.on_interrupt(lambda: calls.append(1))
        os.kill(os.getpid(), signal.SIGINT)
        self.assertEqual(calls, [1])
        self.assertIs(signal.getsignal(signal.SIGINT), before)
        take_back()
        self.assertIs(signal.getsignal(signal.SIGINT), before)
