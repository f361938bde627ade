# SPDX-License-Identifier: AGPL-3.0-or-later
"""The throw-away homeserver: it starts, restarts with its data, stops, and leaves nothing behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import time
import unittest
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.testing.throwaway import (
    HomeserverFailed,
    SynapseMissing,
    ThrowawayHomeserver,
    free_ports,
    synapse_is_installed,
)


def process_exists(pid: int) -> bool:
    """Whether a process (not a zombie) has this id."""
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


class PortTests(SynchronousTestCase):
    def test_the_low_bandwidth_port_is_free_in_tcp_and_udp(self) -> None:
        ports = free_ports()
        self.assertEqual(ports.https, ports.lowbandwidth)
        self.assertNotEqual(ports.http, ports.https)
        with (
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        ):
            tcp.bind(("127.0.0.1", ports.https))
            udp.bind(("127.0.0.1", ports.https))

    def test_nothing_is_known_before_the_start(self) -> None:
        homeserver = ThrowawayHomeserver()
        self.assertIsNone(homeserver.pid)
        self.assertRaises(RuntimeError, lambda: homeserver.folder)
        self.assertRaises(RuntimeError, lambda: homeserver.ports)

    def test_an_interpreter_without_synapse(self) -> None:
        # -S -E -like isolation: an interpreter that sees no site-packages at all.
        wrapper = Path(self.mktemp())
        wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
        wrapper.chmod(0o755)
        homeserver = ThrowawayHomeserver(python=str(wrapper.resolve()))
        self.assertRaises(SynapseMissing, homeserver.start)


@unittest.skipUnless(synapse_is_installed(), "matrix-synapse is not installed")
class LifeTests(SynchronousTestCase):
    """A plain Synapse, without the module."""

    def test_a_life(self) -> None:
        homeserver = ThrowawayHomeserver(lowbandwidth=False)
        self.addCleanup(homeserver.stop)
        homeserver.start()
        folder, pid = homeserver.folder, homeserver.pid
        assert pid is not None
        status, body = homeserver.request("GET", "/_matrix/client/versions")
        self.assertEqual(status, 200)
        self.assertIn("v1.1", body["versions"])
        alice = homeserver.register("alice")
        self.assertEqual(alice["user_id"], "@alice:localhost")

        homeserver.restart()
        self.assertNotEqual(homeserver.pid, pid)
        self.assertFalse(process_exists(pid))
        status, body = homeserver.request(
            "GET", "/_matrix/client/v3/account/whoami", token=alice["access_token"]
        )
        self.assertEqual((status, body["user_id"]), (200, "@alice:localhost"))

        homeserver.kill()
        homeserver.start()
        status, body = homeserver.request("GET", "/_matrix/client/v3/account/whoami", token="nonsense")
        self.assertEqual((status, body["errcode"]), (401, "M_UNKNOWN_TOKEN"))
        self.assertIn("GET /_matrix/client/v3/account/whoami", homeserver.log_text())
        self.assertEqual(homeserver.error_lines(), [])

        last = homeserver.pid
        assert last is not None
        self.assertEqual(homeserver.stop(), 0)
        self.assertFalse(process_exists(last))
        self.assertFalse(folder.exists())

    def test_a_configuration_that_synapse_refuses(self) -> None:
        homeserver = ThrowawayHomeserver(lowbandwidth=False, extra_config={"server_name": "not valid"})
        self.addCleanup(homeserver.stop)
        failure = self.assertRaises(HomeserverFailed, homeserver.start)
        self.assertEqual(failure.exit_status, 1)
        self.assertIn("not valid", str(failure))
        self.assertIsNone(homeserver.pid)

    def test_it_dies_with_the_process_that_started_it(self) -> None:
        if not sys.platform.startswith("linux"):
            raise unittest.SkipTest("needs PR_SET_PDEATHSIG of Linux")
        folder = Path(self.mktemp()).resolve()
        script = f"""
            import os, signal
            from pathlib import Path
            from synapse_lb.testing.throwaway import ThrowawayHomeserver
            homeserver = ThrowawayHomeserver(lowbandwidth=False, folder=Path({str(folder)!r}))
            homeserver.start()
            print(homeserver.pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """
        finished = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        )
        self.assertEqual(finished.returncode, -9, finished.stderr)
        pid = int(finished.stdout)
        deadline = time.monotonic() + 30
        while process_exists(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertFalse(process_exists(pid))
