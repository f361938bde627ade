# SPDX-License-Identifier: AGPL-3.0-or-later
"""A Synapse without any TCP port, and a proxy before it: whoever gets anything from there got it over CoAP."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import unittest
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.testing.throwaway import ThrowawayHomeserver, free_ports, synapse_is_installed

ROOT: Final = Path(__file__).resolve().parents[2]
PYTHON: Final = ROOT / ".venv-clients" / "bin" / "python"
"""Where `tools/clients.sh` installs the clients that are written in Python; SYNAPSE_LB_CLIENTS_PYTHON names another."""

JS: Final = ROOT / "tests" / "clients" / "js"
ARTIFACTS: Final = ROOT / "artifacts" / "clients"
PASSWORD: Final = "correct horse battery"
NODE_LEAST: Final = 20

_homeserver: ThrowawayHomeserver | None = None
_numbers = itertools.count(1)


def homeserver() -> ThrowawayHomeserver:
    """The homeserver, started on first use and stopped when the interpreter ends."""
    global _homeserver
    if _homeserver is None:
        ports = free_ports()
        only = {"type": "lowbandwidth", "port": ports.lowbandwidth, "bind_addresses": ["127.0.0.1"]}
        started = ThrowawayHomeserver(ports=ports, extra_config={"listeners": [only]})
        try:
            started.start()
        except BaseException:
            started.stop()
            raise
        _homeserver = started
    return _homeserver


def clients_python() -> str:
    """The interpreter that has matrix-nio.

    Raises:
        SkipTest: there is none.
    """
    path = os.environ.get("SYNAPSE_LB_CLIENTS_PYTHON", str(PYTHON))
    if not Path(path).exists():
        raise unittest.SkipTest("matrix-nio is not installed: run tools/clients.sh")
    return path


def node() -> str:
    """The program that runs JavaScript, with its packages.

    Raises:
        SkipTest: it is missing or too old.
    """
    path = shutil.which("node")
    if path is None:
        raise unittest.SkipTest("Node.js is not installed")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.lstrip("v").split(".")[0]) < NODE_LEAST:
        raise unittest.SkipTest(f"Node.js is {version.strip()}; {NODE_LEAST} is needed")
    if not (JS / "node_modules" / "matrix-js-sdk").exists():
        raise unittest.SkipTest("the packages of tests/clients/js are not installed: run tools/clients.sh")
    return path


def chromium() -> str:
    """The browser.

    Raises:
        SkipTest: there is none.
    """
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        raise unittest.SkipTest("Chromium is not installed (Debian: apt-get install chromium)")
    return path


class ClientsTestCase(SynchronousTestCase):
    """Has a proxy of its own for each test; the homeserver's log must stay clean."""

    def setUp(self) -> None:
        """Start the proxy, and see that there is no other way."""
        if not synapse_is_installed():
            raise unittest.SkipTest("Synapse is not installed")
        self.homeserver = homeserver()
        for port in (self.homeserver.ports.http, self.homeserver.ports.https):
            with contextlib.closing(socket.socket()) as probe:
                self.assertNotEqual(probe.connect_ex(("127.0.0.1", port)), 0, "it has a TCP port")
        self.errors_before = len(self.homeserver.error_lines())
        self.folder = Path(self.mktemp()).resolve()
        self.folder.mkdir()
        self.url = self.start_proxy()

    def tearDown(self) -> None:
        """Nothing may have gone wrong at the homeserver."""
        self.assertEqual(self.homeserver.error_lines()[self.errors_before :], [])

    def start_proxy(self, *options: str) -> str:
        """Start `synapse-lb proxy` as a user does: its address."""
        command = [sys.executable, "-m", "synapse_lb.cli.main", "proxy", "--listen", "0", "--quiet", *options]
        command += ["--cacert", str(self.homeserver.certificate_path)]
        command += [f"coaps://localhost:{self.homeserver.ports.lowbandwidth}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.addCleanup(self.stop, process)
        assert process.stdout is not None
        return process.stdout.readline().strip()

    def stop(self, process: subprocess.Popen[str]) -> None:
        """End a process that is ours."""
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            self.fail("it did not end")
        finally:
            if process.stdout is not None:
                process.stdout.close()

    def request(self, method: str, path: str, body: Any = None, token: str | None = None) -> Any:
        """A request to the proxy that must succeed."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        address = urllib.parse.urlsplit(self.url)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            content = response.read()
        self.assertEqual(response.status, 200, content)
        return json.loads(content)

    def register(self, name: str) -> dict[str, Any]:
        """Register a user: the answer."""
        body = {"auth": {"type": "m.login.dummy"}, "username": name, "password": PASSWORD}
        answer: dict[str, Any] = self.request("POST", "/_matrix/client/v3/register", body)
        return answer

    def new_name(self, stem: str) -> str:
        """A user name that nobody has."""
        return f"{stem}{next(_numbers)}"

    def run_client(self, command: Sequence[str], timeout: float = 120) -> Any:
        """Run a client, which prints one JSON object as its last line."""
        finished = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, cwd=self.folder
        )
        self.assertEqual(finished.returncode, 0, f"{finished.stdout}\n{finished.stderr}")
        return json.loads(finished.stdout.splitlines()[-1])

    def status(self) -> Any:
        """What the proxy says of itself; everything must have gone over CoAP."""
        status = self.request("GET", "/_lb/status")
        self.assertEqual(status["requests_https"], 0)
        return status
