# SPDX-License-Identifier: AGPL-3.0-or-later
"""The command itself: its subcommands, and how it runs as a process of its own, without Synapse too."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from contextlib import redirect_stdout
from typing import Final
from unittest.mock import patch

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb import __version__
from synapse_lb.cli import jc
from synapse_lb.cli.errors import CommandError
from synapse_lb.cli.main import COMMANDS, build_parser, main, start
from synapse_lb.cli.terminal import Terminal
from tests.client.harness import REACTOR, LoopbackTestCase

WITHOUT_SYNAPSE: Final = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "synapse":
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
import synapse_lb.client, synapse_lb.cli.coap_transfer
from synapse_lb.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


class ParserTests(SynchronousTestCase):
    def _printed(self, *argv: str) -> str:
        """What a run prints that ends by itself with status 0."""
        with redirect_stdout(io.StringIO()) as printed:
            error = self.assertRaises(SystemExit, build_parser().parse_args, list(argv))
        self.assertEqual(error.code, 0)
        return printed.getvalue()

    def test_version(self) -> None:
        self.assertEqual(self._printed("--version"), f"synapse-lb {__version__}\n")

    def test_help_has_examples(self) -> None:
        self.assertIn("examples:", self._printed("--help"))
        for command in COMMANDS:
            text = self._printed(command, "--help")
            self.assertIn(f"synapse-lb {command}", text)

    def test_help_names_every_command(self) -> None:
        text = self._printed("--help")
        for command in COMMANDS:
            self.assertIn(f"    {command} ", text)

    def test_parsing_loads_no_reactor(self) -> None:
        """`jc` and `--help` start fast because of it."""
        with patch("synapse_lb.cli.terminal._loaded_reactor") as loaded:
            terminal = Terminal.in_memory()
            self.assertEqual(main(["jc", "{}"], terminal), 0)
        loaded.assert_not_called()


class _Reactor(Clock):
    """The part of a reactor that `main` uses: runs until it is stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.running = False
        self._starting: list[object] = []

    def callWhenRunning(self, function: object) -> None:
        """Remember what to call."""
        self._starting.append(function)

    def run(self) -> None:
        """Advance the time until somebody stops it, or for ten seconds, after which a signal comes."""
        self.running = True
        for function in self._starting:
            assert callable(function)
            function()
        for _ in range(10):
            if self.running:
                self.advance(1)
        self.running = False

    def stop(self) -> None:
        """Stop."""
        self.running = False


class MainTests(SynchronousTestCase):
    def setUp(self) -> None:
        """A reactor that no signal stops yet."""
        self.reactor = _Reactor()

    def _main(self, outcome: object) -> int:
        """Run `jc` with another function in its place."""

        def run(arguments: argparse.Namespace, terminal: Terminal) -> object:
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        self.patch(jc, "run", run)
        self.terminal = Terminal.in_memory(reactor=self.reactor)
        return main(["jc"], self.terminal)

    def test_status(self) -> None:
        self.assertEqual(self._main(5), 5)

    def test_deferred_that_has_fired(self) -> None:
        self.assertEqual(self._main(succeed(5)), 5)

    def test_deferred_that_fires_later(self) -> None:
        later: Deferred[int] = Deferred()
        self.reactor.callLater(3, later.callback, 5)
        self.assertEqual(self._main(later), 5)
        self.assertEqual(self.reactor.seconds(), 3)

    def test_reactor_that_is_stopped_by_a_signal(self) -> None:
        self.assertEqual(self._main(Deferred()), 130)

    def test_command_error(self) -> None:
        for outcome in (CommandError("no such thing", 7), fail(CommandError("no such thing", 7))):
            self.assertEqual(self._main(outcome), 7)
            self.assertEqual(self.terminal.errors(), "synapse-lb jc: no such thing\n")

    def test_silent_command_error(self) -> None:
        self.assertEqual(self._main(CommandError("", 7)), 7)
        self.assertEqual(self.terminal.errors(), "")

    def test_other_errors_are_not_hidden(self) -> None:
        for outcome in (ZeroDivisionError(), fail(ZeroDivisionError())):
            self.assertRaises(ZeroDivisionError, self._main, outcome)

    def test_reader_that_has_gone(self) -> None:
        self.assertEqual(self._main(BrokenPipeError()), 141)

    def test_interrupted(self) -> None:
        self.assertEqual(self._main(KeyboardInterrupt()), 130)

    def test_start_runs_no_reactor(self) -> None:
        self.patch(jc, "run", lambda arguments, terminal: succeed(4))
        status = start(["jc"], Terminal.in_memory())
        assert isinstance(status, Deferred)
        self.assertEqual(self.successResultOf(status), 4)


class ProcessTests(LoopbackTestCase):
    """The command as a real process."""

    async def execute(self, *arguments: str, **environ: str) -> tuple[str, str, int]:
        environment = {name: value for name, value in os.environ.items() if name != "SSLKEYLOGFILE"}
        path = os.pathsep.join(entry for entry in sys.path if entry)
        out, err, status = await getProcessOutputAndValue(
            sys.executable, arguments, env=environment | {"PYTHONPATH": path} | environ, reactor=REACTOR
        )
        return out.decode(), err.decode(), status

    async def test_coap(self) -> None:
        server = self.start_server()
        keys = os.path.abspath(self.mktemp())
        url = f"coaps://{server.address}/_matrix/client/v3/missing"
        out, err, status = await self.execute(
            *("-m", "synapse_lb.cli.main", "coap", "-k", "-i", "--json", url), SSLKEYLOGFILE=keys
        )
        self.assertEqual(status, 22, err)
        head, _, body = out.partition("\n\n")
        self.assertEqual(head, "4.04 Not Found\nContent-Format: application/cbor")
        self.assertEqual(json.loads(body), {"errcode": "M_NOT_FOUND", "error": "Not here"})
        self.assertEqual(err, "synapse-lb coap: the server answered 4.04 Not Found\n")
        with open(keys) as file:
            self.assertTrue(file.readline().startswith("CLIENT_RANDOM "))

    async def test_jc_imports_no_transport(self) -> None:
        """A filter in a pipe starts fast: it loads neither DTLS nor what the other commands need."""
        code = (
            "import sys; from synapse_lb.cli.main import main; main(['jc', '-x', '{}']); print(*sys.modules)"
        )
        out, err, status = await self.execute("-c", code)
        self.assertEqual((err, status), ("", 0))
        loaded = out.split()
        self.assertIn("synapse_lb.cli.jc", loaded)
        for module in ("synapse_lb.cli.demo", "synapse_lb.txdtls", "OpenSSL", "twisted.internet.reactor"):
            self.assertNotIn(module, loaded)

    async def test_usage(self) -> None:
        out, err, status = await self.execute("-m", "synapse_lb.cli.main", "coap", "--no-such-option")
        self.assertEqual((out, status), ("", 2))
        self.assertIn("usage: synapse-lb", err)

    async def test_without_synapse(self) -> None:
        """The bare install: everything that a client needs imports and runs without Synapse."""
        out, err, status = await self.execute("-c", WITHOUT_SYNAPSE, "jc", "-x", '{"type": 1}')
        self.assertEqual((out, err, status), ("a10201\n", "", 0))
        server = self.start_server()
        url = f"coaps://{server.address}/_matrix/client/versions"
        out, err, status = await self.execute("-c", WITHOUT_SYNAPSE, "coap", "-k", "--json", url)
        self.assertEqual((json.loads(out)["path"], err, status), ("/_matrix/client/versions", "", 0))
