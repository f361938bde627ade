# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb proxy`: its arguments, its line of statistics, and how it begins and ends."""

from __future__ import annotations

import argparse
import io
import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.cli.errors import (
    EXIT_CERTIFICATE_FILE,
    EXIT_CONNECT,
    EXIT_USAGE,
    CommandError,
)
from synapse_lb.cli.main import build_parser, start
from synapse_lb.cli.proxy import StatisticsLine, configuration, parse_listen
from synapse_lb.cli.terminal import Terminal
from synapse_lb.txdtls.context import VerificationMode
from tests.client.harness import REACTOR, LoopbackTestCase, until
from tests.proxy.harness import Http


def parsed(*argv: str) -> argparse.Namespace:
    """Arguments of the subcommand."""
    return build_parser(["proxy"]).parse_args(["proxy", *argv])


class ArgumentsTests(SynchronousTestCase):
    def test_listen(self) -> None:
        for text, expected in (
            ("8077", ("127.0.0.1", 8077)),
            ("0", ("127.0.0.1", 0)),
            ("localhost:80", ("127.0.0.1", 80)),
            ("0.0.0.0:80", ("0.0.0.0", 80)),
            ("[::1]:80", ("::1", 80)),
        ):
            self.assertEqual(parse_listen(text), expected)
        for bad in ("", "x", "70000", "::1:80", "example.org:80", "1.2.3:80", ":80", "[::1]", "-1"):
            error = self.assertRaises(CommandError, parse_listen, bad)
            self.assertEqual(error.exit_status, EXIT_USAGE, bad)

    def test_defaults(self) -> None:
        options = configuration(parsed("example.org"))
        self.assertEqual((options.coaps, options.https), ("example.org", None))
        self.assertEqual((options.lean, options.observe), (False, True))
        self.assertIs(options.verification.mode, VerificationMode.SYSTEM)
        self.assertEqual(parse_listen(parsed("x").listen), ("127.0.0.1", 8077))

    def test_all(self) -> None:
        options = configuration(
            parsed("--https", "https://m.example.org/x", "--lean", "--no-observe", "-k", "coaps://[::1]:1")
        )
        self.assertEqual((options.coaps, options.https), ("coaps://[::1]:1", "https://m.example.org/x"))
        self.assertEqual((options.lean, options.observe), (True, False))
        self.assertIs(options.verification.mode, VerificationMode.NONE)

    def test_discovery(self) -> None:
        for given in ("https://example.org/", "@alice:example.org"):
            options = configuration(parsed(given))
            self.assertEqual((options.discover, options.coaps), ("https://example.org", None))

    def test_bad_ones(self) -> None:
        for status, argv in (
            (EXIT_USAGE, ("http://example.org",)),
            (EXIT_USAGE, ("--https", "https://example.org", "https://example.org")),
            (EXIT_USAGE, ("--https", "@alice:example.org", "example.org")),
            (EXIT_USAGE, ("@alice",)),
            (EXIT_USAGE, ("example.org:0",)),
            (EXIT_USAGE, ("--https", "example.org", "example.org")),
            (EXIT_USAGE, ("--https", "https://example.org?x", "example.org")),
            (EXIT_USAGE, ("--pin", "12", "example.org")),
            (EXIT_USAGE, ("-k", "--pin", "00" * 32, "example.org")),
        ):
            error = self.assertRaises(CommandError, configuration, parsed(*argv))
            self.assertEqual(error.exit_status, status, argv)


class Screen(io.StringIO):
    """Standard error on a screen."""

    def isatty(self) -> bool:
        """It is one."""
        return True


class FakeProxy:
    """Has numbers."""

    def __init__(self) -> None:
        self.requests = 0

    def numbers(self) -> dict[str, Any]:
        """See `Proxy`."""
        return {
            "requests": self.requests,
            "wire_bytes": 250 * self.requests,
            "http_bytes": 1000 * self.requests,
            "saving_percent": 75.0 if self.requests else None,
            "requests_https": 0,
        }


class LineTests(SynchronousTestCase):
    def line(self, stderr: io.StringIO) -> tuple[FakeProxy, StatisticsLine, Clock]:
        """A line of a proxy that has done nothing."""
        clock, proxy = Clock(), FakeProxy()
        terminal = Terminal(io.BytesIO(), io.BytesIO(), stderr, {}, clock)
        terminal.columns = 60
        fake: Any = proxy
        return proxy, StatisticsLine(terminal, fake), clock

    def test_on_a_screen(self) -> None:
        """It is written over, and ends with the last one and a line's end."""
        screen = Screen()
        proxy, line, clock = self.line(screen)
        clock.advance(1)
        self.assertEqual(screen.getvalue(), "")
        proxy.requests = 4
        clock.advance(1)
        clock.advance(1)
        self.assertEqual(screen.getvalue(), "\r4 requests, 1,000 B on the wire, 4,000 B as HTTP and JSON, ")
        proxy.requests = 1
        line.end()
        self.assertTrue(
            screen.getvalue().endswith("\r1 requests, 250 B on the wire, 1,000 B as HTTP and JSON, 75\n")
        )
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_in_a_log(self) -> None:
        """One a minute, if something has happened."""
        log = io.StringIO()
        proxy, line, clock = self.line(log)
        for requests in (0, 4, 4, 8):
            proxy.requests = requests
            clock.advance(60)
        self.assertEqual(
            log.getvalue().splitlines(),
            [
                "4 requests, 1,000 B on the wire, 4,000 B as HTTP and JSON, 75.0 % saved",
                "8 requests, 2,000 B on the wire, 8,000 B as HTTP and JSON, 75.0 % saved",
            ],
        )
        line.end()
        self.assertEqual(len(log.getvalue().splitlines()), 2)


class RunTests(LoopbackTestCase):
    def run_proxy(self, *argv: str) -> tuple[Terminal, Deferred[int], list[Any]]:
        """Start the command: its terminal, its status, and what an interrupt calls."""
        terminal = Terminal.in_memory(reactor=REACTOR)
        interrupts: list[Any] = []

        def on_interrupt(action: Any) -> Any:
            interrupts.append(action)
            return lambda: None

        self.patch(Terminal, "on_interrupt", lambda _, action: on_interrupt(action))
        status = start(["proxy", "--listen", "0", *argv], terminal)
        assert isinstance(status, Deferred)
        return terminal, status, interrupts

    async def test_from_start_to_end(self) -> None:
        server = self.start_server()
        terminal, status, interrupts = self.run_proxy("--cacert", self.certificate.path, server.address)
        url = terminal.output().decode().strip()
        got = await Http(url).get("/_matrix/client/versions")
        self.assertEqual(got.json["path"], "/_matrix/client/versions")
        self.assertEqual(terminal.errors(), "")
        interrupts[0]()
        self.assertEqual(await status, 0)
        self.assertRegex(terminal.errors(), r"^1 requests, .* on the wire, .* as HTTP and JSON")
        await until(lambda: server.dtls.counters.associations_closed_by_peer)

    async def test_address_that_others_reach(self) -> None:
        server = self.start_server()
        terminal, status, interrupts = self.run_proxy("--quiet", "--listen", "0.0.0.0:0", server.address)
        self.assertIn("warning:", terminal.errors())
        interrupts[0]()
        self.assertEqual(await status, 0)

    async def test_authorities_that_cannot_be_used(self) -> None:
        for path in ("/nowhere", self.certificate.key_path):
            terminal, status, _ = self.run_proxy("--cacert", path, "https://example.org")
            self.assertEqual(await status, EXIT_CERTIFICATE_FILE)
            self.assertIn(path, terminal.errors())

    async def test_port_that_is_taken(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            terminal, status, _ = self.run_proxy("--listen", str(taken.getsockname()[1]), "example.org")
            self.assertEqual(await status, EXIT_CONNECT)
        self.assertIn("cannot listen on 127.0.0.1 port", terminal.errors())
