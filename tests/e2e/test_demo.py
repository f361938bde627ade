# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb demo` as a user runs it: a process of its own, of which nothing is left."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.cli.demo_table import WIDTH
from synapse_lb.cli.https_meter import wire_is_measurable
from synapse_lb.testing.throwaway import synapse_is_installed
from tests.commands import interrupted, processes_in

ROOT = Path(__file__).resolve().parents[2]
STEPS = 13
"""Requests of the conversation."""


class DemoTestCase(SynchronousTestCase):
    """Runs the command with a folder for temporary files of its own, to see what is left in it."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slb-t-"))
        self.addCleanup(shutil.rmtree, self.folder, True)
        self.environment = {**os.environ, "TMPDIR": str(self.folder), "PYTHONPATH": str(ROOT)}

    def command(self, *arguments: str, python: tuple[str, ...] = ()) -> list[str]:
        return [sys.executable, *python, "-m", "synapse_lb.cli.main", *arguments]

    def run_command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=150,
            check=False,
        )

    def assert_nothing_left(self) -> None:
        self.assertEqual(list(self.folder.iterdir()), [])
        if sys.platform.startswith("linux"):
            self.assertEqual(processes_in(self.folder), [])


@unittest.skipUnless(synapse_is_installed(), "matrix-synapse is not installed")
class DemoTests(DemoTestCase):
    def test_it_shows_the_conversation_and_leaves_nothing(self) -> None:
        finished = self.run_command("demo")
        self.assertEqual(finished.returncode, 0, finished.stderr)
        self.assertEqual(finished.stderr, "")
        lines = finished.stdout.splitlines()
        self.assertLessEqual(max(map(len, lines)), WIDTH)
        self.assertNotIn("\x1b", finished.stdout)
        for request in ("/versions", "/register", "/login", "/createRoom", "/invite", "/join", "/messages"):
            self.assertTrue(any(request in line and " 200 " in line for line in lines), request)
        self.assertTrue(any(re.search(r"PUT .*/send/m\.room\.message +200 +\d+", line) for line in lines))
        self.assertTrue(any(re.search(r"GET /sync\?since +200 +\d+", line) for line in lines))
        self.assertTrue(any(re.search(r"^ +total +[\d,]+ +\d+", line) for line in lines), finished.stdout)
        self.assertIn("bob read: Hello World", finished.stdout)
        self.assert_nothing_left()

    def test_json_and_the_numbers_in_it(self) -> None:
        finished = self.run_command("demo", "--json")
        self.assertEqual(finished.returncode, 0, finished.stderr)
        result = json.loads(finished.stdout)
        requests = [step for step in result["steps"] if step["status"] is not None]
        self.assertEqual(len(requests), STEPS)
        self.assertEqual({step["status"] for step in requests}, {200})
        self.assertEqual(len(result["steps"]), STEPS + 2, "and two handshakes")
        total = sum(step["coap"]["bytes"] for step in result["steps"])
        self.assertEqual(result["total"]["coap"]["bytes"], total)
        for step in result["steps"]:
            # 28 bytes of headers, 13 and 16 of DTLS, 4 of CoAP are in each datagram, and there are two at least.
            self.assertGreaterEqual(step["coap"]["packets"], 2, step)
            self.assertGreater(step["coap"]["bytes"], 2 * (28 + 29 + 4), step)
            if wire_is_measurable():
                self.assertGreater(step["https"]["packets"], 2, step)
                self.assertGreater(step["https"]["bytes"], step["coap"]["bytes"], step)
        self.assert_nothing_left()

    def interrupted(self, sign: signal.Signals, after: str) -> tuple[int, str]:
        """Send a signal once a line of the output has begun with `after`."""
        return interrupted(self, self.command("demo"), sign, after, environment=self.environment)

    def test_ctrl_c_in_the_middle(self) -> None:
        status, errors = self.interrupted(signal.SIGINT, "alice")
        self.assertEqual(status, 130, errors)
        self.assertNotIn("Traceback", errors)
        self.assert_nothing_left()

    def test_sigterm_in_the_middle(self) -> None:
        status, errors = self.interrupted(signal.SIGTERM, "alice")
        self.assertEqual(status, 130, errors)
        self.assertNotIn("Traceback", errors)
        self.assert_nothing_left()

    def test_sigterm_while_https_is_measured(self) -> None:
        status, errors = self.interrupted(signal.SIGTERM, "Starting")
        self.assertEqual(status, 130, errors)
        self.assertNotIn("Traceback", errors)
        self.assert_nothing_left()

    def test_keep(self) -> None:
        finished = self.run_command("demo", "--keep", "--json")
        self.assertEqual(finished.returncode, 0, finished.stderr)
        kept = json.loads(finished.stdout)["kept"]
        self.addCleanup(stop, kept["pid"])
        self.assertEqual(processes_in(Path(kept["folder"])), [kept["pid"]])
        versions, send, read, *_, end = kept["commands"]
        self.assertIn("v1.1", json.loads(self.try_next(versions))["versions"])
        self.assertTrue(json.loads(self.try_next(send))["event_id"].startswith("$"))
        newest = json.loads(self.try_next(read))["chunk"][0]
        self.assertEqual((newest["sender"], newest["content"]["body"]), ("@alice:localhost", "Hello again"))
        subprocess.run(["sh", "-c", end], check=True, timeout=30)
        deadline = time.monotonic() + 30
        while processes_in(Path(kept["folder"])) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assert_nothing_left()

    def try_next(self, command: str) -> str:
        """Run one of the commands that the demo prints, with this interpreter's `synapse-lb`."""
        program, *arguments = shlex.split(command)
        self.assertEqual(program, "synapse-lb")
        finished = self.run_command(*arguments)
        self.assertEqual(finished.returncode, 0, f"{command}\n{finished.stderr}")
        return finished.stdout


class WithoutSynapseTests(DemoTestCase):
    def test_it_says_how_to_install_it(self) -> None:
        # The interpreter that looks for Synapse is this one, with a finder in front that finds none.
        site = self.folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(
            "import sys\n"
            "class NoSynapse:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name.partition('.')[0] == 'synapse':\n"
            "            raise ModuleNotFoundError(name)\n"
            "sys.meta_path.insert(0, NoSynapse())\n"
        )
        self.environment["PYTHONPATH"] = f"{site}{os.pathsep}{ROOT}"
        finished = self.run_command("demo")
        self.assertEqual(finished.returncode, 1, finished.stderr)
        self.assertIn("pip install 'synapse-lb[server]'", finished.stderr)
        self.assertNotIn("Traceback", finished.stderr)


def stop(pid: int) -> None:
    """Make sure that a kept Synapse is gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
