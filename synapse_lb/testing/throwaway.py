# SPDX-License-Identifier: AGPL-3.0-or-later
"""A real Synapse in a temporary folder, started as a subprocess and thrown away afterwards.

No room's tests need to mock Synapse: `ThrowawayHomeserver` writes a configuration (SQLite, a fresh signing
key, a P-256 certificate), chooses free ports on the loopback interface, starts
``python -m synapse.app.homeserver`` with the interpreter it runs under itself, waits until Synapse says that
it is ready, and removes everything again. It is synchronous and needs no reactor.

    with ThrowawayHomeserver() as homeserver:
        status, body = homeserver.request("GET", "/_matrix/client/versions")
        print(homeserver.coaps_url, homeserver.certificate_path)

Readiness is Synapse's own systemd notification (``READY=1`` on ``NOTIFY_SOCKET``), which it sends once all of
its listeners are open, so that nothing has to be polled. What is still running when the interpreter ends is
stopped by an ``atexit`` hook; when the interpreter is killed, Linux ends its Synapse with it
(``PR_SET_PDEATHSIG``).
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import attrs

from synapse_lb.testing import throwaway_config
from synapse_lb.testing.throwaway_process import LAUNCHER, MAIN_PROCESS, environment_of, notify_socket

START_TIMEOUT = 90.0
"""Seconds that a start may take (a new SQLite database takes 3-10 s) before it counts as failed."""

STOP_TIMEOUT = 30.0
"""Seconds between SIGTERM and SIGKILL."""

SYNAPSE_NOISE = ("Metric named cache_lru_cache_sync_valid_filter",)
"""What Synapse logs as an error about itself: once for every client listener after the first."""


class HomeserverFailed(Exception):
    """Synapse did not start, or ended by itself.

    Attributes:
        exit_status: what the process returned; None if it was still running.
        log_tail: the end of what Synapse had printed and logged.
    """

    def __init__(self, message: str, exit_status: int | None, log_tail: str) -> None:
        super().__init__(message)
        self.exit_status = exit_status
        self.log_tail = log_tail

    def __str__(self) -> str:
        return f"{self.args[0]}\n--- Synapse's last lines ---\n{self.log_tail}"


class SynapseMissing(Exception):
    """The interpreter has no `synapse` package: the ``server`` extra is not installed."""


def synapse_is_installed(python: str = sys.executable) -> bool:
    """Whether `python` could run Synapse."""
    probe = "import importlib.util, sys; sys.exit(importlib.util.find_spec('synapse.app.homeserver') is None)"
    finished = subprocess.run(
        [python, "-c", probe], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    )
    return finished.returncode == 0


@attrs.define
class Ports:
    """The ports of the loopback interface that a homeserver listens on."""

    http: int
    """TCP, plain HTTP."""
    https: int
    """TCP, HTTP over TLS."""
    lowbandwidth: int
    """UDP, CoAP over DTLS; by default the same number as `https`, as MSC3079 recommends."""


def free_ports(address: str = "127.0.0.1") -> Ports:
    """Choose ports that are free at the moment; `https` is free in TCP and UDP alike.

    Another process may take one before it is used: `ThrowawayHomeserver.start` then chooses again.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for _ in range(100):
        with (
            socket.socket(family, socket.SOCK_STREAM) as plain,
            socket.socket(family, socket.SOCK_STREAM) as tls,
            socket.socket(family, socket.SOCK_DGRAM) as udp,
        ):
            plain.bind((address, 0))
            tls.bind((address, 0))
            number = int(tls.getsockname()[1])
            with contextlib.suppress(OSError):
                udp.bind((address, number))
                return Ports(http=int(plain.getsockname()[1]), https=number, lowbandwidth=number)
    raise OSError("no port is free in TCP and UDP")


_running: weakref.WeakSet[ThrowawayHomeserver] = weakref.WeakSet()


class ThrowawayHomeserver:
    """A Synapse of one's own, for a test or a demonstration. Usable as a context manager.

    Args:
        lowbandwidth: load the module and open the CoAP listener; False gives a plain Synapse.
        lowbandwidth_options: further keys of the ``type: lowbandwidth`` listener; None removes a key.
        module_config: the ``config`` of the module.
        rate_limits: Synapse's own default rate limits; by default they are practically off.
        presence: whether presence is tracked.
        log_level: the level of the log file.
        address: the address that all listeners bind to.
        ports: fixed ports instead of free ones.
        https: the homeserver has a certificate and an HTTPS listener; without it, it has neither.
        http_resources: what the two HTTP listeners serve.
        compress: whether they compress for clients that ask for it.
        certificate: PEM of the certificate and of its key; by default a fresh self-signed one.
        extra_config: top-level keys of ``homeserver.yaml`` that replace what is written otherwise.
        python: the interpreter; its environment decides which Synapse runs.
        folder: keep everything here, and do not remove it; by default a new temporary folder.
        outlive: let Synapse run on after this process has ended (``demo --keep``).

    Attributes:
        folder: where everything lies; exists from `start` on.
        ports: valid from `start` on.
        released_pid: the process that `release` let go of, or None.
    """

    def __init__(
        self,
        *,
        lowbandwidth: bool = True,
        lowbandwidth_options: Mapping[str, Any] | None = None,
        module_config: Mapping[str, Any] | None = None,
        rate_limits: bool = False,
        presence: bool = True,
        log_level: str = "INFO",
        address: str = "127.0.0.1",
        ports: Ports | None = None,
        https: bool = True,
        http_resources: Sequence[str] = ("client",),
        compress: bool = False,
        certificate: tuple[bytes, bytes] | None = None,
        extra_config: Mapping[str, Any] | None = None,
        python: str = sys.executable,
        folder: Path | None = None,
        outlive: bool = False,
    ) -> None:
        self.settings = throwaway_config.Settings(
            lowbandwidth=lowbandwidth,
            lowbandwidth_options=dict(lowbandwidth_options or {}),
            module_config=dict(module_config or {}),
            rate_limits=rate_limits,
            presence=presence,
            log_level=log_level,
            address=address,
            https=https,
            http_resources=list(http_resources),
            compress=compress,
            certificate=certificate,
            extra_config=dict(extra_config or {}),
        )
        self._python = python
        self._fixed_ports = ports
        self._given_folder = folder
        self._outlive = outlive
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._ports: Ports | None = ports
        self.released_pid: int | None = None

    # What it is

    @property
    def folder(self) -> Path:
        """The folder of configuration, database, certificate and logs."""
        if self._folder is None:
            raise RuntimeError("the homeserver has not been started")
        return self._folder

    @property
    def ports(self) -> Ports:
        """The ports it listens on."""
        if self._ports is None:
            raise RuntimeError("the homeserver has not been started")
        return self._ports

    @property
    def server_name(self) -> str:
        """The domain of its users."""
        return throwaway_config.SERVER_NAME

    @property
    def host(self) -> str:
        """The address of the listeners, in brackets if it is IPv6."""
        address = self.settings.address
        return f"[{address}]" if ":" in address else address

    @property
    def http_url(self) -> str:
        """Base URL of the plain HTTP listener."""
        return f"http://{self.host}:{self.ports.http}"

    @property
    def https_url(self) -> str:
        """Base URL of the TLS listener."""
        return f"https://{self.host}:{self.ports.https}"

    @property
    def coaps_url(self) -> str:
        """Base URL of the low-bandwidth listener."""
        return f"coaps://{self.host}:{self.ports.lowbandwidth}"

    @property
    def certificate_path(self) -> Path:
        """The self-signed certificate (PEM), which clients may trust as their CA."""
        return self.folder / throwaway_config.CERTIFICATE

    @property
    def config_path(self) -> Path:
        """``homeserver.yaml`` (JSON, which is YAML)."""
        return self.folder / throwaway_config.CONFIG

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    # Life

    def start(self) -> None:
        """Write the configuration (the first time) and start; return once all listeners are open.

        Raises:
            SynapseMissing: the interpreter has no Synapse.
            HomeserverFailed: it ended or hung instead; nothing runs then. The folder is left for `stop`.
        """
        if self.pid is not None:
            raise RuntimeError("the homeserver runs already")
        if self._folder is None and not synapse_is_installed(self._python):
            raise SynapseMissing(f"{self._python} has no Synapse; pip install 'synapse-lb[server]'")
        _running.add(self)
        first = self._folder is None
        self._make_folder()
        attempts = 3 if first and self._fixed_ports is None else 1
        while True:
            attempts -= 1
            if first:
                self._ports = self._fixed_ports or free_ports(self.settings.address)
                self._write_config()
            try:
                self._launch()
                return
            except HomeserverFailed as failure:
                # A port that was free a moment ago may have been taken by somebody else.
                if not attempts or "in use" not in failure.log_tail:
                    raise

    def stop(self, timeout: float = STOP_TIMEOUT) -> int | None:
        """End Synapse (SIGTERM, after `timeout` seconds SIGKILL) and remove the folder.

        Returns:
            The exit status (negative: the signal); None if it did not run.
        """
        status = self.halt(timeout)
        if self._folder is not None and self._given_folder is None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
            self._ports = self._fixed_ports
        _running.discard(self)
        return status

    def halt(self, timeout: float = STOP_TIMEOUT) -> int | None:
        """End Synapse as `stop` does, but keep the folder, so that `start` continues with the same data."""
        process, self._process = self._process, None
        if process is None:
            return None
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
        return process.wait()

    def kill(self) -> None:
        """SIGKILL: what a crash or a power cut does. The folder stays, and `start` continues."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def restart(self) -> None:
        """Stop and start again with the same ports, users and rooms."""
        self.halt()
        self.start()

    def release(self) -> int:
        """Let go of a running homeserver: it stays, and nothing here will stop it. Returns its process id."""
        process, self._process = self._process, None
        if process is None:
            raise RuntimeError("the homeserver does not run")
        _running.discard(self)
        self._given_folder = self._folder
        self.released_pid = process.pid
        process.returncode = 0  # it is somebody else's now: Popen's destructor need not warn
        return process.pid

    def sighup(self) -> None:
        """Make Synapse read its certificates and log configuration again."""
        if self._process is None:
            raise RuntimeError("the homeserver does not run")
        self._process.send_signal(signal.SIGHUP)

    def __enter__(self) -> ThrowawayHomeserver:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Its logs

    def log_text(self) -> str:
        """Everything that Synapse has logged, over all of its starts."""
        return _read(self.folder / throwaway_config.LOG)

    def output_text(self) -> str:
        """What the process printed: configuration errors and crashes appear here."""
        return _read(self.folder / throwaway_config.OUTPUT)

    def error_lines(self, ignore: Sequence[str] = ()) -> list[str]:
        """The log's lines of level ERROR or CRITICAL, and tracebacks, but for `SYNAPSE_NOISE`, `ignore`."""
        marks = (" - ERROR - ", " - CRITICAL - ", "Traceback (most recent call last)", "Unhandled error")
        ignored = (*SYNAPSE_NOISE, *ignore)
        lines = [*self.log_text().splitlines(), *self.output_text().splitlines()]
        return [
            line
            for line in lines
            if any(mark in line for mark in marks) and not any(word in line for word in ignored)
        ]

    def log_tail(self, lines: int = 40) -> str:
        """The end of the output and of the log, for an error message."""
        wanted = [*self.output_text().splitlines()[-lines:], *self.log_text().splitlines()[-lines:]]
        return "\n".join(wanted)

    # A bare HTTP client, for preparing data and for comparing answers

    def request(
        self, method: str, path: str, body: Any = None, token: str | None = None, timeout: float = 60.0
    ) -> tuple[int, Any]:
        """One request over plain HTTP, which has nothing of this project in it.

        Args:
            method: the HTTP method.
            path: path and query, percent-encoded.
            body: a JSON value, or None for no body.
            token: the access token.
            timeout: seconds.

        Returns:
            The status and the decoded JSON body (None if there is none, text if it is no JSON).
        """
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        connection = http.client.HTTPConnection(self.settings.address, self.ports.http, timeout=timeout)
        with contextlib.closing(connection):
            content = json.dumps(body) if body is not None else None
            connection.request(method, path, content, headers)
            response = connection.getresponse()
            text = response.read().decode("utf-8", "replace")
        try:
            return response.status, json.loads(text) if text else None
        except ValueError:
            return response.status, text

    def register(self, username: str, password: str = "correct horse battery") -> dict[str, Any]:
        """Register a user over HTTP: the response, with ``user_id``, ``access_token`` and ``device_id``."""
        body = {"auth": {"type": "m.login.dummy"}, "username": username, "password": password}
        status, answer = self.request("POST", "/_matrix/client/v3/register", body)
        if status != 200 or not isinstance(answer, dict):
            raise AssertionError(f"registering {username}: {status} {answer}")
        return answer

    # Inside

    def _make_folder(self) -> None:
        if self._folder is not None:
            return
        if self._given_folder is not None:
            self._given_folder.mkdir(parents=True, exist_ok=True)
            self._folder = self._given_folder.resolve()
        else:
            self._folder = Path(tempfile.mkdtemp(prefix="synapse-lb-"))

    def _write_config(self) -> None:
        ports = self.ports
        throwaway_config.write(
            self.folder, self.settings, http=ports.http, https=ports.https, lowbandwidth=ports.lowbandwidth
        )

    def _launch(self) -> None:
        fate = "outlive" if self._outlive else "die-with-parent"
        with notify_socket() as (notify, notify_path):
            with (self.folder / throwaway_config.OUTPUT).open("ab") as output:
                self._process = subprocess.Popen(
                    [
                        self._python,
                        "-c",
                        LAUNCHER,
                        fate,
                        MAIN_PROCESS,
                        "--config-path",
                        str(self.config_path),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=self.folder,
                    env=environment_of(notify_path),
                    start_new_session=True,  # Ctrl-C reaches us, and we stop Synapse in order
                )
            try:
                self._await_ready(notify)
            except BaseException:
                self.halt(timeout=5)
                raise

    def _await_ready(self, notify: socket.socket) -> None:
        process = self._process
        assert process is not None
        deadline = time.monotonic() + START_TIMEOUT
        notify.settimeout(0.1)
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                if b"READY=1" in notify.recv(4096):
                    return
            if process.poll() is not None:
                message = f"Synapse ended with status {process.returncode} instead of starting"
                raise HomeserverFailed(message, process.returncode, self.log_tail())
        raise HomeserverFailed(f"Synapse was not ready after {START_TIMEOUT:g} s", None, self.log_tail())


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except FileNotFoundError:
        return ""


@atexit.register
def _stop_all() -> None:
    for homeserver in list(_running):
        homeserver.stop(timeout=10)
