# SPDX-License-Identifier: AGPL-3.0-or-later
"""`make demo-workers` that is interrupted: it says so, and nothing of it is left."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from synapse_lb.cli.errors import EXIT_INTERRUPTED
from synapse_lb.testing import throwaway_services
from tests.commands import interrupted, processes_in
from tests.project.sources import ROOT
from tools.demo_workers import FAREWELL


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
        ended = interrupted(
            self,
            [sys.executable, "-m", "tools.demo_workers"],
            sign,
            after,
            environment={**os.environ, "TMPDIR": str(self.folder)},
            folder=ROOT,
        )
        self.assertEqual((ended[0], ended[1].strip()), (EXIT_INTERRUPTED, FAREWELL))
        self.assertEqual(list(self.folder.iterdir()), [])
        self.assertEqual(processes_in(self.folder), [])

    def test_ctrl_c_in_the_middle_of_the_conversation(self) -> None:
        self.interrupt(signal.SIGINT, "alice > worker1  POST /createRoom")

    def test_sigterm_in_the_middle_of_the_conversation(self) -> None:
        self.interrupt(signal.SIGTERM, "bob   > worker2  POST /login")

    def test_sigterm_while_it_starts(self) -> None:
        self.interrupt(signal.SIGTERM, "Starting")
