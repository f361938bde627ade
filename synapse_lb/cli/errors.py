# SPDX-License-Identifier: AGPL-3.0-or-later
"""Exit statuses of the commands (curl's numbers where curl has one) and the error that carries them."""

from __future__ import annotations

from typing import Final

EXIT_OK: Final = 0
EXIT_FAILURE: Final = 1
"""Bad input to `jc`; a request that failed for a reason without a number of its own."""
EXIT_USAGE: Final = 2
EXIT_BAD_URL: Final = 3
EXIT_RESOLVE: Final = 6
EXIT_CONNECT: Final = 7
EXIT_STATUS_CODE: Final = 22
"""The response was 4.xx or 5.xx."""
EXIT_WRITE: Final = 23
EXIT_READ: Final = 26
EXIT_TIMEOUT: Final = 28
EXIT_BAD_RESPONSE: Final = 56
"""The association broke, or the answer could not be understood (curl: failure in receiving network data)."""
EXIT_CERTIFICATE: Final = 60
EXIT_CERTIFICATE_FILE: Final = 77
"""The CA file cannot be read."""
EXIT_INTERRUPTED: Final = 130
EXIT_BROKEN_PIPE: Final = 141


class CommandError(Exception):
    """The command cannot go on.

    Args:
        message: one line for standard error; empty says nothing.
        exit_status: one of the numbers above.
    """

    def __init__(self, message: str, exit_status: int = EXIT_FAILURE) -> None:
        super().__init__(message)
        self.message = message
        self.exit_status = exit_status
