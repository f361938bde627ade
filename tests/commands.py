# SPDX-License-Identifier: AGPL-3.0-or-later
"""Commands in processes of their own, as somebody at a terminal runs, and interrupts, them."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

_PATIENCE = 120.0
"""Seconds after which a command that was interrupted has hung."""


def restore_sigint() -> None:
    """A shell's background jobs ignore SIGINT and hand that on; a terminal's do not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def processes_in(folder: Path) -> list[int]:
    """Processes whose command line names the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def interrupted(
    test: SynchronousTestCase,
    command: Sequence[str],
    sign: signal.Signals,
    after: str,
    *,
    environment: Mapping[str, str],
    folder: Path | None = None,
) -> tuple[int, str]:
    """Run a command and send it a signal once a line of its output has begun with `after`.

    Args:
        test: ends it in any case.
        command: its arguments.
        sign: the signal.
        after: how the line begins.
        environment: of the command.
        folder: where it is run, if not here.

    Returns:
        Its exit status, and what it wrote to stderr.
    """
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
        preexec_fn=restore_sigint,
    )
    test.addCleanup(process.kill)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(after):
            break
    process.send_signal(sign)
    _, errors = process.communicate(timeout=_PATIENCE)
    return process.returncode, errors
