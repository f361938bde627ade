# SPDX-License-Identifier: AGPL-3.0-or-later
"""The `synapse-lb` command: finds the subcommand and runs it.

A subcommand is a module of this package, named in `COMMANDS`, with one function:

    def add_parser(subparsers: Subparsers) -> None

It adds its parser and calls `parser.set_defaults(run=run)`, where

    def run(arguments: argparse.Namespace, terminal: Terminal) -> int | Deferred[int]

returns the exit status, or a Deferred of it when it needs the reactor (`terminal.reactor`), which `main`
then runs until the Deferred fires. Modules are imported for `--help`, so they import what is heavy
(Twisted's reactor, Synapse) inside `run`. A `CommandError` out of `run` is one line on standard error and
an exit status.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from synapse_lb import __version__
from synapse_lb.cli.errors import EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, EXIT_USAGE, CommandError
from synapse_lb.cli.terminal import Terminal

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]
    ExitStatus = int | Deferred[int]
    Run = Callable[[argparse.Namespace, Terminal], ExitStatus]

COMMANDS: Final[tuple[str, ...]] = ("coap", "jc", "check", "proxy", "demo", "gateway", "bench")
"""Modules of `synapse_lb.cli` that add a subcommand, in the order in which `--help` shows them."""

_DESCRIPTION = "Low-bandwidth Matrix (MSC3079): CoAP and CBOR over DTLS/UDP."
_EPILOG = """\
examples:
  synapse-lb coap --json coaps://localhost:8008/_matrix/client/versions
  synapse-lb jc '{"type": "m.room.message"}' | xxd
  synapse-lb COMMAND --help
"""


def build_parser(commands: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser with these subcommands in it."""
    parser = argparse.ArgumentParser(
        prog="synapse-lb",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"synapse-lb {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in commands:
        importlib.import_module(f"synapse_lb.cli.{name}").add_parser(subparsers)
    return parser


def start(argv: Sequence[str], terminal: Terminal) -> ExitStatus:
    """Parse the arguments and start the subcommand, without running a reactor.

    Args:
        argv: the arguments, without the program's name.
        terminal: where to read and write.

    Returns:
        The exit status, or a Deferred that fires with it and never fails with a `CommandError`.

    Raises:
        SystemExit: `--help`, `--version` (0) or wrong arguments (2), as argparse does.
    """
    # A subcommand that is named is imported alone: `jc` in a pipe is not to wait for what `demo` needs.
    named = [argv[0]] if argv and argv[0] in COMMANDS else COMMANDS
    arguments = build_parser(named).parse_args(list(argv))
    run: Run = arguments.run
    try:
        status = run(arguments, terminal)
    except CommandError as error:
        return _report(error, arguments.command, terminal)
    if isinstance(status, int):
        return status
    command: str = arguments.command
    return status.addErrback(_recover, command, terminal)


def _recover(failure: Failure, command: str, terminal: Terminal) -> int:
    if not isinstance(failure.value, CommandError):
        failure.raiseException()
    assert isinstance(failure.value, CommandError)
    return _report(failure.value, command, terminal)


def _report(error: CommandError, command: str, terminal: Terminal) -> int:
    if error.message:
        terminal.error(f"synapse-lb {command}: {error.message}")
    return error.exit_status


def main(argv: Sequence[str] | None = None, terminal: Terminal | None = None) -> int:
    """Run the command; the console script's entry point.

    Args:
        argv: the arguments, without the program's name; None takes this process's own.
        terminal: where to read and write; None takes this process's own streams.

    Returns:
        The exit status.
    """
    terminal = terminal or Terminal.of_process()
    try:
        status = start(sys.argv[1:] if argv is None else argv, terminal)
        return status if isinstance(status, int) else run_reactor(status, terminal)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): not an error worth a traceback.
        return EXIT_BROKEN_PIPE


def run_reactor(status: Deferred[int], terminal: Terminal) -> int:
    """Run the reactor until the Deferred has fired.

    Returns:
        The exit status: the Deferred's, or that of an interruption if a signal stopped the reactor before.
    """
    from twisted.internet.error import ReactorNotRunning
    from twisted.python.failure import Failure

    outcome: list[int | Failure] = []

    def finished(result: int | Failure) -> None:
        outcome.append(result)
        if terminal.reactor.running:
            # A signal may be stopping it already.
            with contextlib.suppress(ReactorNotRunning):
                terminal.reactor.stop()

    status.addBoth(finished)
    if not outcome:
        # From inside the loop, so that a Deferred which fires while the reactor starts still stops it.
        terminal.reactor.callWhenRunning(lambda: terminal.reactor.stop() if outcome else None)
        terminal.reactor.run()
    if not outcome:
        return EXIT_INTERRUPTED
    if isinstance(outcome[0], Failure):
        outcome[0].raiseException()
    assert isinstance(outcome[0], int)
    return outcome[0]


if __name__ == "__main__":
    sys.exit(main())

__all__ = ["COMMANDS", "EXIT_USAGE", "build_parser", "main", "run_reactor", "start"]
