# SPDX-License-Identifier: AGPL-3.0-or-later
"""What another process takes, as Linux accounts for it (proc(5))."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import attrs

from synapse_lb.cli.errors import EXIT_USAGE, CommandError

_TICK = 1 / os.sysconf("SC_CLK_TCK")


@attrs.frozen
class ServerProcess:
    """A process that is watched.

    Args:
        pid: its number.

    Raises:
        CommandError: there is no /proc, or no such process in it.
    """

    pid: int

    def __attrs_post_init__(self) -> None:
        try:
            self.cpu()
        except (OSError, IndexError) as error:
            raise CommandError(f"a process cannot be watched here: {error}", EXIT_USAGE) from error

    def cpu(self) -> float:
        """Seconds of processor time so far, of all threads, in the kernel too; known to 0.01 s."""
        # The name of the program, in brackets, may hold spaces.
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * _TICK

    def finely(self) -> float:
        """Seconds of processor time so far, of the threads that there are, known to less than a microsecond.

        Where the kernel does not account for that, it is what `cpu` says.
        """
        nanoseconds = 0
        for thread in Path(f"/proc/{self.pid}/task").iterdir():
            with suppress(OSError):  # it has ended meanwhile, or the kernel does not say
                nanoseconds += int((thread / "schedstat").read_text().split()[0])
        return nanoseconds / 1e9 if nanoseconds else self.cpu()

    def memory(self) -> int:
        """Bytes of memory that it occupies (VmRSS)."""
        for line in Path(f"/proc/{self.pid}/status").read_text().split("\n"):
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise CommandError(f"process {self.pid} has ended")


def lost_datagrams(port: int) -> int:
    """Datagrams that came for an IPv4 UDP port when its socket's buffer was full, since it was opened.

    Args:
        port: local port.
    """
    return sum(int(fields[-1]) for fields in _sockets(port))


def waiting_bytes(port: int) -> int:
    """What waits in the buffer of an IPv4 UDP port's socket to be read, as the kernel counts it.

    Args:
        port: local port.
    """
    return sum(int(fields[4].partition(":")[2], 16) for fields in _sockets(port))


def _sockets(port: int) -> list[list[str]]:
    """The lines of /proc/net/udp about a local port, split."""
    lines = [line.split() for line in Path("/proc/net/udp").read_text().split("\n")[1:]]
    return [fields for fields in lines if fields and int(fields[1].partition(":")[2], 16) == port]
