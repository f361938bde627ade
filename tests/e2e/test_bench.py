# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb bench` over the simulated link, with a real Synapse: with root, on Linux, where there is /dev/net/tun.

Where no link can be made there is nothing to measure: then the command has to say so, and to end with 2.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.cli.errors import EXIT_INTERRUPTED, EXIT_USAGE
from synapse_lb.testing.netns import why_unavailable
from tests.commands import restore_sigint
from tests.project.sources import ROOT

_MARK = "SYNAPSE_LB_TEST_MARK"
_LONGEST = 240.0
"""Seconds after which a run has hung."""


class BenchTests(SynchronousTestCase):
    def start(self, *argv: str) -> subprocess.Popen[str]:
        self.mark = f"{_MARK}={uuid.uuid4()}"
        self.folder = Path(self.mktemp()).resolve()
        self.folder.mkdir()
        name, value = self.mark.split("=")
        process = subprocess.Popen(
            [sys.executable, "-m", "synapse_lb.cli.main", "bench", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            # A shell's background jobs ignore SIGINT and hand that on; a terminal's do not.
            preexec_fn=restore_sigint,
            env={**os.environ, name: value, "TMPDIR": str(self.folder)},
        )
        killer = threading.Timer(_LONGEST, process.kill)
        killer.start()
        self.addCleanup(killer.cancel)
        return process

    def run_bench(self, *argv: str) -> tuple[int, str, str]:
        process = self.start(*argv)
        output, errors = process.communicate()
        self.assert_nothing_stays()
        return process.returncode, output, errors

    def measure(self, *argv: str) -> dict[str, Any] | None:
        """Run a measurement with `--json`; None where no link can be made."""
        status, output, errors = self.run_bench(*argv, "--json")
        reason = why_unavailable()
        if reason is not None:
            self.assertEqual(status, EXIT_USAGE, errors)
            self.assertEqual(errors, f"synapse-lb bench: the simulated link cannot be made: {reason}\n")
            return None
        self.assertEqual(status, 0, errors)
        value: dict[str, Any] = json.loads(output)
        return value

    def assert_nothing_stays(self) -> None:
        """No process of the run is left, and no folder: namespaces and devices go with the processes."""
        left = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                environment = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if self.mark.encode() in environment:
                left.append(path.parent.name)
        self.assertEqual(left, [])
        self.assertEqual([path.name for path in self.folder.iterdir()], [])

    def test_bulk(self) -> None:
        """Every way fetches the same sync over the same link; what is given up says how far it was."""
        value = self.measure(
            *("bulk", "--size", "60000", "--rtt", "200", "--loss", "0", "--repeat", "1", "--warm"),
            *("--transports", "block2,q-block2,https", "--patience", "4"),
        )
        if value is None:
            return
        runs = {cell["transport"]: cell["runs"] for cell in value["cells"] if cell["limited"]}
        self.assertEqual(set(runs), {"block2", "q-block2", "https-cubic"})
        sizes = value["conditions"]["body_bytes"]
        self.assertTrue(0.9 < sizes["json"] / 60_000 < 1.1, sizes)
        for name, size in (("q-block2", sizes["cbor"]), ("https-cubic", sizes["json"])):
            (run,) = runs[name]
            self.assertIsNone(run["error"])
            for fetch in (run["first"], run["warm"]):
                self.assertEqual(fetch["share"], 1)
                self.assertTrue(size < fetch["bytes"] < 1.5 * size, (name, fetch, size))
        (run,) = runs["block2"]
        # 40 blocks, one in 200 ms: some come within 4 s, and never all.
        self.assertTrue(0.05 < run["first"]["share"] < 0.6, run)
        self.assertTrue(run["warm"] is None)

    def test_observe(self) -> None:
        """All readers get what is pushed, and OBSERVE sends nothing while nothing happens."""
        value = self.measure("observe", "--span", "3", "--messages", "2", "--poll", "1.5", "--settle", "0.6")
        if value is None:
            return
        observe, x1, *polls = value["rows"]
        for row in (observe, x1):
            self.assertEqual(row["idle"]["to_client_packets"] + row["idle"]["to_server_packets"], 0)
        self.assertLess(x1["pushed_message_bytes"], observe["pushed_message_bytes"])
        self.assertEqual(len(polls), 3)
        for row in polls:
            self.assertTrue(1 <= row["rounds"] <= 2, row)
            self.assertGreater(row["idle_hour_bytes"], observe["idle_hour_bytes"])
            self.assertGreater(row["pushed_message_bytes"], observe["pushed_message_bytes"])
        self.assertEqual(observe["pushed_message_packets"], 2)

    def test_slow(self) -> None:
        """The conversation comes to its end; nothing is sent twice for nothing once the timer has learnt."""
        value = self.measure("slow", "--links", "9600", "--messages", "1")
        if value is None:
            return
        calm, slow = value["links"]
        self.assertEqual((calm["error"], slow["error"]), (None, None))
        names = ["connect", "log in", "first sync", "send 1", "sync 1", "observe", "push 1"]
        for link in (calm, slow):
            self.assertEqual([step["name"] for step in link["steps"]], names)
        for step in slow["steps"]:
            # Each direction has the whole rate.
            self.assertGreater(step["seconds"], step["bytes"] * 8 / 9600 / 2 - 0.2, step)
            self.assertEqual(step["lost"], 0)
        self.assertEqual([step["spurious"] for step in slow["steps"][3:]], [0] * 4)

    def test_interrupted(self) -> None:
        """Ctrl-C in the midst of it: one line, and nothing stays."""
        process = self.start(
            "bulk", "--size", "20000", "--rtt", "1000", "--loss", "0", "--transports", "block2"
        )
        assert process.stderr is not None and process.stdout is not None
        for line in process.stderr:
            if line.startswith("[1/"):  # the base line is done, and what follows takes half a minute
                process.send_signal(signal.SIGINT)
                break
        errors = process.stderr.read()
        process.wait()
        process.stdout.close()
        process.stderr.close()
        if why_unavailable() is not None:
            self.assertEqual(process.returncode, EXIT_USAGE)
            return
        self.assertEqual(process.returncode, EXIT_INTERRUPTED, errors)
        self.assertIn("interrupted; Synapse and the link have been removed", errors)
        self.assertNotIn("Traceback", errors)
        self.assert_nothing_stays()
