# SPDX-License-Identifier: AGPL-3.0-or-later
"""The runner of the checks counts what happened, and takes nothing that did not happen for a pass."""

from __future__ import annotations

import io
import json
import os
from contextlib import redirect_stdout
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tools import checks
from tools.checks import Outcome

SAMPLES = "tests.project.samples"


class ChecksTests(SynchronousTestCase):
    """`tools.checks` with its results in a folder of its own."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.mktemp()).resolve()
        self.folder.mkdir()
        self.patch(checks, "RESULTS", self.folder / "results")
        log = (self.folder / "output").open("wb")
        self.addCleanup(log.close)
        self.patch(checks, "output", log.fileno())
        self.patch(os, "environ", {key: value for key, value in os.environ.items() if key != "CI"})

    def run_samples(self, name: str, limit: float = 60.0) -> Outcome:
        """Run one class of the samples in a real child process."""
        (self.folder / "results").mkdir(exist_ok=True)
        with redirect_stdout(io.StringIO()):
            return checks.tests("samples", f"{SAMPLES}.{name}".split(","), limit)

    def test_counts(self) -> None:
        """A passed, a failed and a skipped test are told apart and named."""
        outcome = self.run_samples("Mixed")
        self.assertEqual(outcome[:3], (1, 1, 1))
        self.assertEqual(outcome.notes[0], f"failed: {SAMPLES}.Mixed.test_bad")
        self.assertEqual(outcome.notes[1], f"skipped: {SAMPLES}.Mixed.test_skipped: the moon is down")

    def test_left_out(self) -> None:
        """A name after a minus takes its tests out of what the others name."""
        self.assertEqual(self.run_samples(f"Mixed,-{SAMPLES}.Mixed.test_bad,-{SAMPLES}.Mix")[:3], (1, 0, 1))

    def test_two_faults_are_one_failed_test(self) -> None:
        """A test whose cleaning up fails too is counted once."""
        self.assertEqual(self.run_samples("BadTwice")[:3], (0, 1, 0))

    def test_crash(self) -> None:
        """A child that ends early, even with status 0, has failed."""
        outcome = self.run_samples("Crash")
        self.assertEqual(outcome[:3], (0, 1, 0))
        self.assertIn("ended with status 0 and left no result", outcome.notes[0])

    def test_hang(self) -> None:
        """A child that does not end is ended, and has failed."""
        self.assertEqual(self.run_samples("Hang", limit=3.0)[:3], (0, 1, 0))

    def test_no_test(self) -> None:
        """Nothing found is a failure."""
        self.assertEqual(checks.judge(0, [], [], strict=False)[:3], (0, 1, 0))

    def test_name_that_does_not_exist(self) -> None:
        """A name that trial cannot find is a failure."""
        self.assertEqual(self.run_samples("NoSuchClass").passed, 0)
        self.assertGreater(self.run_samples("NoSuchClass").failed, 0)

    def test_skipped_in_ci(self) -> None:
        """In CI a skipped test has failed, and the reason is shown."""
        outcome = checks.judge(5, [], [["a.b", "not installed"]], strict=True)
        self.assertEqual(outcome[:3], (5, 1, 0))
        self.assertEqual(outcome.notes, ("failed, because skipped: a.b: not installed",))

    def test_step_that_fails(self) -> None:
        """A command that ends with another status than 0 is a failed check, and the next one still runs."""
        with redirect_stdout(io.StringIO()):
            self.assertEqual(checks.simple("lint", ("false",), ("true",))[:3], (0, 1, 0))
            self.assertEqual(checks.simple("lint", ("true",), ("true",))[:3], (1, 0, 0))

    def test_total(self) -> None:
        """Runs are added up; the last line is the one that counts; a run that kept nothing has failed."""
        kept = self.folder / "results"
        kept.mkdir()
        (kept / "one.json").write_text(json.dumps(Outcome(10, 0, 1, ("skipped: x: y",))))
        (kept / "two.json").write_text(json.dumps(Outcome(5, 0, 0)))
        output = io.StringIO()
        with redirect_stdout(output):
            self.assertEqual(checks.main(["--total", "one", "two"]), 0)
        self.assertEqual(output.getvalue().splitlines()[-1], "15 passed, 0 failed, 1 skipped")
        with redirect_stdout(output):
            self.assertEqual(checks.main(["--total", "one", "three"]), 1)
        self.assertEqual(output.getvalue().splitlines()[-1], "10 passed, 1 failed, 1 skipped")

    def test_old_result_does_not_count(self) -> None:
        """What an earlier run of the same name left is removed before the first step."""
        kept = self.folder / "results"
        kept.mkdir()
        (kept / "one.json").write_text(json.dumps(Outcome(10)))
        with redirect_stdout(io.StringIO()), self.assertRaises(SystemExit):
            checks.main(["--name", "one", "nonsense"])
        self.assertFalse((kept / "one.json").exists())
