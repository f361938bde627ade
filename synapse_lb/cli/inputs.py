# SPDX-License-Identifier: AGPL-3.0-or-later
"""Arguments that stand for bytes: literal text, `@file`, or `-` for standard input."""

from __future__ import annotations

import os

from synapse_lb.cli.errors import EXIT_READ, CommandError
from synapse_lb.cli.terminal import Terminal

STANDARD_INPUT = "-"


def read_file(path: str, terminal: Terminal) -> bytes:
    """Read a file, or standard input where the path is `-`.

    Raises:
        CommandError: it cannot be read.
    """
    if path == STANDARD_INPUT:
        return terminal.stdin.read()
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}", EXIT_READ) from None


def read_argument(argument: str, terminal: Terminal) -> bytes:
    """Return the bytes an argument stands for.

    Args:
        argument: `-` is standard input, `@file` a file (`@-` standard input too), all else is literal.
        terminal: where standard input is.

    Raises:
        CommandError: the file cannot be read.
    """
    if argument == STANDARD_INPUT:
        return terminal.stdin.read()
    if argument.startswith("@"):
        return read_file(argument[1:], terminal)
    return os.fsencode(argument)
