# SPDX-License-Identifier: AGPL-3.0-or-later
"""`make demo-workers` that is interrupted: it says so, and nothing of it is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from synapse_lb.cli.errors import EXIT_INTERRUPTED
from synapse_lb.testing import throwaway_services
from tests.project.sources import ROOT
from tools.demo_workers import FAREWELL


def restore_sigint() -> None:
    """A shell's background jobs ignore SIGINT and hand that on; a terminal's do not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def processes_in(folder: Path) -> list[str]:
    """Command lines that name the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


class InterruptedDemoTests(SynchronousTestCase):
    """The command in a process of its own, with a folder for temporary files of its own."""

    def setUp(self) -> None:
        missing = throwaway_services.missing()
        if missing is not None:
            raise SkipTest(missing)
        self.folder = Path(tempfile.mkdtemp(prefix="slb-t-"))
        self.addCleanup(shutil.rmtree, self.folder, True)
        # PostgreSQL runs as a user of its own, if this is root.
        self.folder.chmod(0o755)

    def interrupt(self, sign: signal.Signals, after: str) -> None:
        """Send a signal once a line of the output has begun with `after`, and look at the end."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tools.demo_workers"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(self.folder)},
            preexec_fn=restore_sigint,
        )
        self.addCleanup(process.kill)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(after):
                break
        process.send_signal(sign)
        _, errors = process.communicate(timeout=120)
        self.assertEqual((process.returncode, errors.strip()), (EXIT_INTERRUPTED, FAREWELL))
        self.assertEqual(list(self.folder.iterdir()), [])
        self.assertEqual(processes_in(self.folder), [])

    def test_ctrl_c_in_the_middle_of_the_conversation(self) -> None:
        self.interrupt(signal.SIGINT, "alice > worker1  POST /createRoom")

    def test_sigterm_in_the_middle_of_the_conversation(self) -> None:
        self.interrupt(signal.SIGTERM, "bob   > worker2  POST /login")

    def test_sigterm_while_it_starts(self) -> None:
        self.interrupt(signal.SIGTERM, "Starting")
