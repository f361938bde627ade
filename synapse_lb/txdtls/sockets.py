# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is asked of the kernel for a UDP socket."""

from __future__ import annotations

import contextlib
import socket
from typing import Any, Final

RECEIVE_BUFFER: Final = 4 * 1024 * 1024
"""Bytes of what came and was not read yet. Linux gives what `net.core.rmem_max` allows, by default some hundred small
datagrams: what comes while the process is busy for some tens of milliseconds."""


def enlarge_receive_buffer(transport: Any) -> None:
    """Ask for a larger buffer; nothing happens where the system refuses, or where there is no socket."""
    handle = getattr(transport, "getHandle", None)
    if handle is not None:
        with contextlib.suppress(OSError):
            handle().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
