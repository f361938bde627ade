# SPDX-License-Identifier: AGPL-3.0-or-later
"""Work for Synapse beside any request, in log contexts of its own.

For `hooks`, which looks whether the names of Synapse are there that this file uses.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from synapse.logging import context as log_contexts
from synapse.logging.context import (
    SENTINEL_CONTEXT,
    PreserveLoggingContext,
    current_context,
    run_in_background,
    set_current_context,
)
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

S = TypeVar("S")
T = TypeVar("T")


def logging_context(name: str, server_name: str) -> Any:
    """Return a log context of Synapse's, which is a context manager."""
    return vars(log_contexts)["LoggingContext"](name=name, server_name=server_name)


def between_requests() -> bool:
    """Whether what happens now is no part of a request of Synapse's, to whose account its time would go."""
    return current_context() is SENTINEL_CONTEXT


def outside(work: Callable[[S], object], argument: S) -> None:
    """Call a function outside of any log context, and come back to the one there is."""
    before = set_current_context(SENTINEL_CONTEXT)
    try:
        work(argument)
    finally:
        set_current_context(before)


def in_background(name: str, server_name: str, work: Callable[[], Awaitable[T]]) -> Deferred[T]:
    """Do some of Synapse's work in a log context of its own.

    Args:
        name: of the log context.
        server_name: the homeserver's.
        work: starts it.

    Returns:
        Its result, outside of any log context. To cancel the Deferred is to lose interest in that; the work itself
        is not interrupted, because most of Synapse's is not made for it.
    """

    async def run() -> T:
        with logging_context(name, server_name):
            return await work()

    result: Deferred[T] = Deferred()

    def done(value: T | Failure) -> None:
        if not result.called:
            result.callback(value)

    with PreserveLoggingContext():
        run_in_background(run).addBoth(done)
    return result
