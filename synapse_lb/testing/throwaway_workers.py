# SPDX-License-Identifier: AGPL-3.0-or-later
"""A real Synapse with workers, PostgreSQL and Redis, started as subprocesses and thrown away afterwards.

The configuration is that of ``contrib/workers``, which an admin may copy: only the names of places, ports and secrets
in it are replaced, and what a throw-away homeserver has besides stands in a file of its own.

    with ThrowawayWorkers(Path("contrib/workers")) as homeserver:
        print(homeserver.coaps_url("worker1"), homeserver.certificate_path)
"""

from __future__ import annotations

import atexit
import contextlib
import json
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from synapse_lb.testing import throwaway_config, throwaway_services
from synapse_lb.testing.throwaway_process import (
    LAUNCHER,
    MAIN_PROCESS,
    WORKER,
    environment_of,
    notify_socket,
    short_home,
)
from synapse_lb.testing.throwaway_services import Postgres, Redis, ServicesMissing
from synapse_lb.txdtls.certificates import generate_self_signed

START_TIMEOUT: Final = 180.0
"""s: until a process that is not ready counts as failed; the first one makes the database."""

STOP_TIMEOUT: Final = 30.0
"""s: between SIGTERM and SIGKILL."""

MAIN: Final = "main"
WORKERS: Final = ("worker1", "worker2")
SHARED_PORT: Final = 8448
OWN_PORTS: Final = {"worker1": 8451, "worker2": 8452}
"""Of the low-bandwidth listeners in ``contrib/workers``."""

HTTP_PORTS: Final = {MAIN: 8008, "worker1": 8081, "worker2": 8082}
METRICS_PORTS: Final = {"worker1": 9101, "worker2": 9102}

_PORT: Final = re.compile(r"(?<=[:\s])(?:80\d\d|84\d\d|909\d|910\d)$", re.MULTILINE)
_PORTS: Final = range(20_000, 30_000)
_SECRET: Final = re.compile(r"CHANGE-ME-\d")


class WorkersFailed(Exception):
    """A process did not start; the text has its last lines."""


class Process:
    """One process of the homeserver.

    Args:
        name: its name.
        folder: where its configuration and its log are.
        configs: the files that it reads.
        python: the interpreter.
    """

    def __init__(self, name: str, folder: Path, configs: list[Path], python: str) -> None:
        self.name: Final = name
        self._module = MAIN_PROCESS if name == MAIN else WORKER
        self._folder = folder
        self._configs = configs
        self._python = python
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def log_text(self) -> str:
        """What it has logged and printed, over all of its starts."""
        texts = []
        for kind in ("log", "out"):
            with contextlib.suppress(FileNotFoundError):
                texts.append((self._folder / f"{self.name}.{kind}").read_text("utf-8", "replace"))
        return "".join(texts)

    def start(self) -> None:
        """Start it; returns once all of its listeners are open.

        Raises:
            WorkersFailed: it ended or hung instead; it does not run then.
        """
        with self.starting():
            pass

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Start it, so that something else can be done meanwhile; at the end its listeners are open. See `start`."""
        configs = [word for path in self._configs for word in ("--config-path", str(path))]
        with notify_socket() as (notify, notify_path):
            with (self._folder / f"{self.name}.out").open("ab") as output:
                self._process = subprocess.Popen(
                    [self._python, "-c", LAUNCHER, "die-with-parent", self._module, *configs],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=self._folder,
                    env=environment_of(notify_path),
                    start_new_session=True,
                )
            try:
                yield
                self._await_ready(self._process, notify)
            except BaseException:
                self.halt(timeout=5)
                raise

    def halt(self, timeout: float = STOP_TIMEOUT) -> None:
        """End it in order (SIGTERM, after `timeout` seconds SIGKILL); `start` continues. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill(self) -> None:
        """SIGKILL: what a crash does; `start` continues."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self._process is None:
            raise RuntimeError(f"{self.name} does not run")
        self._process.send_signal(number)

    def _await_ready(self, process: subprocess.Popen[bytes], notify: socket.socket) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        notify.settimeout(0.1)
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(TimeoutError):
                if b"READY=1" in notify.recv(4096):
                    return
        last = "\n".join(self.log_text.splitlines()[-40:])
        raise WorkersFailed(f"{self.name} does not start (status {process.poll()})\n{last}")


class ThrowawayWorkers:
    """A homeserver of a main process and two workers. Usable as a context manager.

    Args:
        templates: the folder ``contrib/workers``.
        extra_config: top-level keys of the configuration that replace those of the templates, for all processes.
        python: the interpreter; its environment decides which Synapse runs.

    Attributes:
        folder: where everything lies but the database.
        processes: by name.
    """

    def __init__(
        self, templates: Path, *, extra_config: Mapping[str, Any] | None = None, python: str = sys.executable
    ) -> None:
        self._templates = templates
        self._extra = dict(extra_config or {})
        self._python = python
        self._postgres: Postgres | None = None
        self._redis: Redis | None = None
        self._ports: dict[int, int] = {}
        self.folder = Path()
        self.processes: dict[str, Process] = {}

    @property
    def certificate_path(self) -> Path:
        """The self-signed certificate, which clients may trust as their CA."""
        return self.folder / "lb.crt"

    def port(self, number: int) -> int:
        """The port that stands in place of one in the templates."""
        return self._ports[number]

    def coaps_url(self, worker: str | None = None) -> str:
        """The listener of one worker alone, or that which they share."""
        return f"coaps://127.0.0.1:{self.port(SHARED_PORT if worker is None else OWN_PORTS[worker])}"

    def http_url(self, process: str = MAIN) -> str:
        """The HTTP listener of a process."""
        return f"http://127.0.0.1:{self.port(HTTP_PORTS[process])}"

    def start(self) -> None:
        """Start everything; returns once all listeners are open.

        Raises:
            ServicesMissing: PostgreSQL, Redis or what Synapse needs for them is not installed.
            WorkersFailed, ServiceFailed: something did not start; nothing runs then.
        """
        missing = throwaway_services.missing()
        if missing is not None:
            raise ServicesMissing(missing)
        _running.add(self)
        try:
            self.folder = Path(tempfile.mkdtemp(prefix="slb-workers-", dir=short_home()))
            self._postgres = Postgres("synapse", "synapse")
            self._postgres.start()
            self._redis = Redis()
            self._redis.start()
            self._write()
            self.processes[MAIN].start()  # It makes the tables.
            with contextlib.ExitStack() as starting:
                for worker in WORKERS:
                    starting.enter_context(self.processes[worker].starting())
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End everything and remove it. Idempotent."""
        for process in reversed(self.processes.values()):
            process.halt()
        for service in (self._redis, self._postgres):
            if service is not None:
                service.stop()
        self._redis = self._postgres = None
        if self.folder != Path():
            shutil.rmtree(self.folder, ignore_errors=True)
        _running.discard(self)

    def __enter__(self) -> ThrowawayWorkers:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Inside

    def _write(self) -> None:
        folder = self.folder
        certificate, key = generate_self_signed(["localhost", "127.0.0.1"])
        self.certificate_path.write_bytes(certificate)
        (folder / "lb.key").touch(mode=0o600)
        (folder / "lb.key").write_bytes(key)
        throwaway_config.write_signing_key(folder / "signing.key")
        extra = folder / "throwaway.yaml"
        extra.write_text(json.dumps({**_THROWAWAY, "pid_file": str(folder / "main.pid"), **self._extra}))
        names = (MAIN, *WORKERS)
        texts = {name: self._template("homeserver" if name == MAIN else name) for name in names}
        numbers = {int(found) for text in texts.values() for found in _PORT.findall(text)}
        self._ports = dict(zip(sorted(numbers), _free_ports(len(numbers)), strict=True))
        hidden = {f"CHANGE-ME-{number}": secrets.token_hex(16) for number in range(10)}
        for name, text in texts.items():
            text = _PORT.sub(lambda found: str(self.port(int(found[0]))), text)
            (folder / f"{name}.yaml").write_text(_SECRET.sub(lambda found: hidden[found[0]], text))
            log = throwaway_config.log_config(folder / f"{name}.log", "INFO")
            (folder / f"log-{name}.yaml").write_text(json.dumps(log))
        for name in names:
            configs = [folder / "main.yaml", extra] + ([] if name == MAIN else [folder / f"{name}.yaml"])
            self.processes[name] = Process(name, folder, configs, self._python)

    def _template(self, name: str) -> str:
        """A template, with the places of this homeserver in it."""
        assert self._postgres is not None and self._redis is not None
        text = (self._templates / f"{name}.yaml").read_text()
        for place, here in (
            ("/etc/matrix-synapse", self.folder),
            ("/var/lib/matrix-synapse", self.folder),
            ("/run/matrix-synapse", self.folder),
            ("/run/postgresql", self._postgres.folder),
            ("/run/redis/redis-server.sock", self._redis.socket_path),
            ("https://matrix.example.org", "http://127.0.0.1:8008"),
            ("matrix.example.org", "localhost"),
            ("'0.0.0.0'", "'127.0.0.1'"),
        ):
            text = text.replace(place, str(here))
        return text


_THROWAWAY: Final[dict[str, Any]] = {
    "trusted_key_servers": [],
    "suppress_key_server_warning": True,
    "enable_registration": True,
    "enable_registration_without_verification": True,
    "bcrypt_rounds": 4,
    **throwaway_config.NO_RATE_LIMITS,
}
"""What a homeserver for a few minutes has beside the templates."""


def _free_ports(count: int) -> list[int]:
    """Numbers that are free at the moment, in TCP and UDP.

    They are below those that the system gives to sockets which ask for none, so that nobody gets the port of a process
    that is just being restarted.
    """
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for number in random.SystemRandom().sample(_PORTS, len(_PORTS)):
            sockets = [
                held.enter_context(socket.socket(socket.AF_INET, kind))
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
            ]
            with contextlib.suppress(OSError):
                for each in sockets:
                    each.bind(("127.0.0.1", number))
                found.append(number)
            if len(found) == count:
                return found
    raise WorkersFailed("no ports are free")


_running: weakref.WeakSet[ThrowawayWorkers] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for homeserver in list(_running):
        homeserver.stop()
