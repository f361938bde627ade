# SPDX-License-Identifier: AGPL-3.0-or-later
"""``hs.shutdown()``, with which a process of several homeservers ends one of them: nothing of ours stays."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.testing import throwaway_config
from synapse_lb.testing.throwaway import ThrowawayHomeserver

ROOT = Path(__file__).resolve().parents[2]


class ShutdownTests(SynchronousTestCase):
    """One homeserver in a process of its own, which goes on without it."""

    def test_nothing_stays(self) -> None:
        homeserver = ThrowawayHomeserver()
        self.addCleanup(homeserver.stop)
        homeserver.start()
        homeserver.halt()  # The files are what is wanted of it.
        ended = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.homeserver.shutdown_child",
                str(homeserver.folder / throwaway_config.CONFIG),
                str(homeserver.ports.lowbandwidth),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.assertEqual(ended.returncode, 0, ended.stderr)
        result = json.loads(ended.stdout.splitlines()[-1])
        self.assertEqual(result["status"], 200)
        self.assertTrue(result["before"]["versions_replaced"])
        self.assertTrue(result["before"]["admin_replaced"])
        self.assertEqual(len(result["before"]["sockets"]), 1)
        self.assertNotEqual(result["before"]["delayed_calls"], [])
        self.assertEqual(result["before"]["listening"], 1)
        self.assertIn("synapse_lb_associations", result["before"]["metrics"])
        self.assertEqual(
            result["after"],
            {
                "versions_replaced": False,
                "admin_replaced": False,
                "delayed_calls": [],
                "sockets": [],
                "metrics": [],
                "listening": 0,
            },
        )
        self.assertTrue(result["collected"])  # Nothing refers to the homeserver any more.
