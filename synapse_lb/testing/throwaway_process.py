# SPDX-License-Identifier: AGPL-3.0-or-later
"""How a throw-away homeserver's process is started, and how it says that it is ready (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

# The process that is started: it asks Linux to be sent SIGTERM when its parent dies (prctl(2),
# PR_SET_PDEATHSIG = 1; kept over execve) and becomes the module of Synapse that is named. Elsewhere the request
# fails and is ignored.
LAUNCHER = """
import os, sys
if sys.argv[1] == "die-with-parent":
    try:
        import ctypes
        ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)
    except (OSError, AttributeError):
        pass
os.execv(sys.executable, [sys.executable, "-m", *sys.argv[2:]])
"""


MAIN_PROCESS: Final = "synapse.app.homeserver"
WORKER: Final = "synapse.app.generic_worker"

LONGEST_HOME: Final = 50
"""Bytes of a folder's name beside which the rest fits in `sun_path` (unix(7): 108 bytes; 104 elsewhere)."""


def short_home() -> str:
    """Where folders are made with sockets in them: the folder for temporary files, or /tmp if that has too long a name
    for the address of a socket."""
    home = tempfile.gettempdir()
    return home if len(home) <= LONGEST_HOME else "/tmp"


@contextlib.contextmanager
def notify_socket() -> Iterator[tuple[socket.socket, str]]:
    """A socket as sd_notify(3) wants it, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="slb-", dir=short_home()) as folder:
        path = f"{folder}/notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(path)
            yield notify, path


def environment_of(notify_path: str) -> dict[str, str]:
    """The environment of the process: this very synapse_lb must be importable, installed or not."""
    environment = {**os.environ, "NOTIFY_SOCKET": notify_path}
    root = Path(__file__).resolve().parents[2]
    if root.name not in ("site-packages", "dist-packages"):
        inherited = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{inherited}" if inherited else str(root)
    return environment
