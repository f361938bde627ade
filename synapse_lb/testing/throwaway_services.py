# SPDX-License-Identifier: AGPL-3.0-or-later
"""PostgreSQL and Redis of one's own, in temporary folders and on Unix sockets, for a Synapse with workers.

They come from the distribution's packages. PostgreSQL does not run as root: started by root, it runs as the user of
Debian's package. `setpriv` (util-linux) changes the user, and has Linux end the server when who started it ends.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from synapse_lb.testing.throwaway_process import short_home

DEBIAN_PACKAGES: Final = ("postgresql", "redis-server")
PYTHON_MODULES: Final = {"psycopg2": "psycopg2-binary", "txredisapi": "txredisapi", "hiredis": "hiredis"}
"""What Synapse imports for them, and the package on PyPI that has it."""

START_TIMEOUT: Final = 60.0
"""s: until a server that is not ready counts as failed."""

STOP_TIMEOUT: Final = 20.0
"""s: between the wish that a server ends and SIGKILL."""

_DATABASE: Final = (
    "CREATE DATABASE {name} ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0 OWNER {user};\n"
)
_FORGETFUL: Final = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=16MB")
"""Settings of a database that nobody needs after a crash of the machine."""


class ServicesMissing(Exception):
    """What has to be installed is not; the text says how."""


class ServiceFailed(Exception):
    """A server did not start; the text has its last lines."""


def missing() -> str | None:
    """Say what has to be installed before `Postgres` and `Redis` can be used; None if all is there."""
    found = []
    absent = [
        package
        for package, binary in zip(
            DEBIAN_PACKAGES, (_postgres_folder(), shutil.which("redis-server")), strict=True
        )
        if binary is None
    ]
    if absent:
        found.append(
            f"Debian packages are missing: sudo apt-get install --no-install-recommends {' '.join(absent)}"
        )
    modules = [pypi for name, pypi in PYTHON_MODULES.items() if importlib.util.find_spec(name) is None]
    if modules:
        found.append(f"Python packages are missing: pip install {' '.join(modules)}")
    return "; ".join(found) or None


def _postgres_folder() -> Path | None:
    """Where `initdb` and `postgres` are: Debian does not have them in PATH."""
    versions = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").exists()]
    if versions:
        return max(
            versions, key=lambda path: [int(part) for part in path.parent.name.split(".") if part.isdigit()]
        )
    binary = shutil.which("initdb")
    return None if binary is None else Path(binary).resolve().parent


class Service:
    """A server in a folder of its own, which goes with it.

    Args:
        name: of the server.
        user: who runs it; None for who runs this.
        stop_signal: what ends it in order.
    """

    def __init__(self, name: str, *, user: pwd.struct_passwd | None, stop_signal: signal.Signals) -> None:
        self.folder: Final = Path(tempfile.mkdtemp(prefix=f"slb-{name}-", dir=short_home()))
        self._name = name
        self._user = user
        self._stop_signal = stop_signal
        self._process: subprocess.Popen[bytes] | None = None
        if user is not None:
            os.chown(self.folder, user.pw_uid, user.pw_gid)

    @property
    def log_path(self) -> Path:
        """What it printed."""
        return self.folder / "output.txt"

    def start(self) -> None:
        """Start it; returns once it takes connections.

        Raises:
            ServiceFailed: it ended or hung instead; nothing runs then.
        """
        raise AssertionError("each server has its own way")

    def stop(self) -> None:
        """End it and remove the folder. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(self._stop_signal)
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, command: Sequence[str | Path], text: str = "") -> None:
        """Run a command to its end."""
        done = subprocess.run(
            [*self._as_user(), *map(str, command)],
            input=text.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            check=False,
        )
        if done.returncode:
            raise ServiceFailed(f"{command[0]} failed: {done.stdout.decode(errors='replace')}")

    def _serve(self, command: Sequence[str | Path], ready: Callable[[], bool]) -> None:
        """Start the server itself."""
        with self.log_path.open("ab") as output:
            self._process = process = subprocess.Popen(
                [*self._as_user(die_with_parent=True), *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                last = self.log_path.read_text(errors="replace")[-2000:]
                self.stop()
                raise ServiceFailed(f"{self._name} does not start\n{last}")
            time.sleep(0.05)

    def _as_user(self, *, die_with_parent: bool = False) -> list[str]:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            return []
        words = [setpriv]
        if self._user is not None:
            words += [f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}", "--clear-groups"]
        if die_with_parent:
            words.append(f"--pdeathsig={self._stop_signal.name.removeprefix('SIG')}")
        return [*words, "--"] if len(words) > 1 else []


class Postgres(Service):
    """A PostgreSQL with one empty database, as Synapse wants it (UTF-8, collation C), open to who may enter its folder.

    Args:
        user: role that owns the database.
        database: its name.
    """

    def __init__(self, user: str, database: str) -> None:
        super().__init__("postgres", user=_unprivileged(), stop_signal=signal.SIGINT)
        self._role = user
        self._database = database

    def start(self) -> None:
        """Make the database and start the server; see `Service.start`."""
        binaries, data = _postgres_folder(), self.folder / "data"
        if binaries is None:
            raise ServicesMissing(str(missing()))
        options = ["--encoding=UTF8", "--locale=C", "--auth=trust", "--no-sync", "--no-instructions"]
        self._run([binaries / "initdb", "-D", data, "-U", self._role, *options])
        create = _DATABASE.format(name=self._database, user=self._role)
        self._run([binaries / "postgres", "--single", "-F", "-D", data, "postgres"], create)
        settings = [*_FORGETFUL, "listen_addresses=", f"unix_socket_directories={self.folder}"]
        words = [word for setting in settings for word in ("-c", setting)]
        self._serve([binaries / "postgres", "-D", data, *words], lambda: self._is_ready(data))

    def _is_ready(self, data: Path) -> bool:
        """Line 8 of its pid file says so (PostgreSQL's `miscadmin.h`), which is what `pg_ctl` waits for."""
        with contextlib.suppress(OSError):
            lines = (data / "postmaster.pid").read_text().splitlines()
            return len(lines) >= 8 and lines[7].strip() == "ready"
        return False


class Redis(Service):
    """A Redis that keeps nothing on its disk."""

    def __init__(self) -> None:
        super().__init__("redis", user=None, stop_signal=signal.SIGTERM)

    @property
    def socket_path(self) -> Path:
        """Its Unix socket."""
        return self.folder / "redis.sock"

    def start(self) -> None:
        """Start it; see `Service.start`."""
        binary = shutil.which("redis-server")
        if binary is None:
            raise ServicesMissing(str(missing()))
        nothing_kept = ["--save", "", "--appendonly", "no", "--daemonize", "no"]
        place = ["--port", "0", "--unixsocket", str(self.socket_path), "--dir", str(self.folder)]
        self._serve([binary, *place, *nothing_kept], self._is_ready)

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(self.socket_path))
            return True
        return False


def _unprivileged() -> pwd.struct_passwd | None:
    """Who runs PostgreSQL in place of root; None where nobody has to."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise ServicesMissing(
        "PostgreSQL does not run as root, and there is neither a user 'postgres' nor 'nobody'"
    )
