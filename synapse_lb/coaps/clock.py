# SPDX-License-Identifier: AGPL-3.0-or-later
"""What this package asks of a reactor's clock, as types.

``IReactorTime`` and ``IDelayedCall`` are zope interfaces, whose methods have no ``self``, so that a type checker
needs a plugin for them. These protocols say the same; the reactor and ``task.Clock`` fit them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Timer(Protocol):
    """A call that is due at some time (``IDelayedCall``)."""

    def cancel(self) -> None:
        """Do not make the call."""

    def reset(self, delay: float, /) -> None:
        """Make the call ``delay`` seconds from now instead."""

    def getTime(self) -> float:
        """When it is due, in the clock's seconds."""

    def active(self) -> bool:
        """Whether the call is still to be made."""


class Clock(Protocol):
    """A reactor's clock (``IReactorTime``)."""

    def seconds(self) -> float:
        """Return the time in seconds since some fixed point."""

    # The return is a Timer; Any, because Twisted declares the zope interface there.
    def callLater(self, delay: float, callable: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call ``callable`` after ``delay`` seconds; returns a :class:`Timer`."""
