# SPDX-License-Identifier: AGPL-3.0-or-later
"""Work that has to end in order when the command is interrupted: it holds processes and folders."""

from __future__ import annotations

import signal
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from synapse_lb.cli.errors import EXIT_INTERRUPTED, CommandError
from synapse_lb.cli.terminal import Terminal

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred
    from twisted.python.failure import Failure


def heed_sigterm() -> None:
    """Have SIGTERM raise, as Ctrl-C does, until the reactor runs and installs handlers of its own."""
    signal.signal(signal.SIGTERM, _terminated)


def until_interrupted(work: Coroutine[Any, Any, int], terminal: Terminal, farewell: str) -> Deferred[int]:
    """Run the work; when a signal stops the reactor, cancel it and wait until it has cleaned up.

    Args:
        work: returns the exit status; its `finally` clauses clean up.
        terminal: its reactor runs the work.
        farewell: a line for standard error after an interruption.

    Returns:
        A Deferred of the exit status; it never fires after an interruption.
    """
    from twisted.internet.defer import Deferred

    running = Deferred.fromCoroutine(work)
    result: Deferred[int] = Deferred()
    over: Deferred[None] = Deferred()
    interrupted = False

    def ended(outcome: int | Failure) -> None:
        over.callback(None)
        if interrupted:
            terminal.error(f"\n{farewell}")
        elif isinstance(outcome, int):
            result.callback(outcome)
        else:
            result.errback(outcome)

    def interrupt() -> Deferred[None]:
        nonlocal interrupted
        if not over.called:
            interrupted = True
            running.cancel()
        return over

    running.addBoth(ended)
    terminal.reactor.addSystemEventTrigger("before", "shutdown", interrupt)
    return result


def _terminated(number: int, frame: object) -> None:
    raise CommandError("terminated", EXIT_INTERRUPTED)
