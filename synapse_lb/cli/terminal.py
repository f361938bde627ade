# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a subcommand may touch of the world: streams, environment and reactor, all passed in."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, TextIO

import attrs


def _loaded_reactor() -> Any:
    # Imported late: `jc` and `--help` need no reactor and should not pay for one.
    from twisted.internet import reactor

    return reactor


@attrs.define
class Terminal:
    """The streams, environment and reactor of one run of the command.

    Args:
        stdin: bytes in; read only when an argument asks for it.
        stdout: bytes out.
        stderr: text out, for errors and `-v`.
        environ: environment variables.
        given_reactor: the reactor to run on; None takes the process-wide one when first asked.
        columns: width of the screen to write to, in characters.
    """

    stdin: BinaryIO
    stdout: BinaryIO
    stderr: TextIO
    environ: Mapping[str, str] = attrs.field(factory=dict)
    given_reactor: Any = None
    columns: int = 80

    @classmethod
    def of_process(cls) -> Terminal:
        """The streams, environment and reactor of this process."""
        return cls(sys.stdin.buffer, sys.stdout.buffer, sys.stderr, os.environ)

    @classmethod
    def in_memory(
        cls, stdin: bytes = b"", environ: Mapping[str, str] | None = None, reactor: Any = None
    ) -> Terminal:
        """A terminal of memory buffers; read what was written with `output()` and `errors()`."""
        return cls(io.BytesIO(stdin), io.BytesIO(), io.StringIO(), environ or {}, reactor)

    @property
    def reactor(self) -> Any:
        """The reactor to run on, loaded when first asked for."""
        if self.given_reactor is None:
            self.given_reactor = _loaded_reactor()
        return self.given_reactor

    def write(self, text: str) -> None:
        """Write text to standard output as UTF-8 and flush it."""
        self.stdout.write(text.encode("utf-8", "surrogateescape"))
        self.stdout.flush()

    def error(self, text: str) -> None:
        """Write one line to standard error."""
        self.stderr.write(text + "\n")
        self.stderr.flush()

    def on_interrupt(self, action: Callable[[], object]) -> Callable[[], None]:
        """Do something in place of ending when the user interrupts the program; a second time ends it.

        Args:
            action: called once on the reactor's thread.

        Returns:
            What takes that back.
        """
        previous = signal.getsignal(signal.SIGINT)

        def take_back() -> None:
            if signal.getsignal(signal.SIGINT) is interrupted:
                signal.signal(signal.SIGINT, previous)

        def interrupted(_number: int, _frame: object) -> None:
            take_back()
            self.reactor.callFromThread(action)

        signal.signal(signal.SIGINT, interrupted)
        return take_back

    def stdout_is_screen(self) -> bool:
        """Whether a person would see the raw bytes of standard output."""
        return self.stdout.isatty()

    def output(self) -> bytes:
        """What was written to an in-memory standard output."""
        assert isinstance(self.stdout, io.BytesIO)
        return self.stdout.getvalue()

    def errors(self) -> str:
        """What was written to an in-memory standard error."""
        assert isinstance(self.stderr, io.StringIO)
        return self.stderr.getvalue()
