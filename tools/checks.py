# SPDX-License-Identifier: AGPL-3.0-or-later
"""Runs checks one after the other, shows their output as it comes, and ends with one line that counts them all.

    python -m tools.checks --name NAME STEP...     lint | types | demo | demo-workers | tests=NAME[,NAME...]
    python -m tools.checks --total NAME...         the counts of these earlier runs, added up

A step that counts nothing itself (lint, types, the demos) is one check. A test run that ends without having said what
happened (a crash, a hang) is one failed check. With `CI` in the environment a skipped test is a failed one: there,
everything that the tests want is installed. Only the standard library is used, so that `--total` runs anywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent
RESULTS: Final = ROOT / "artifacts" / "results"
SOURCES: Final = ("synapse_lb", "tests", "tools")

DEADLINE: Final[dict[str, float]] = {
    "lint": 120,
    "types": 300,
    "demo": 180,
    "demo-workers": 300,
    "tests": 2400,
}
"""Seconds after which a step is ended and counted as failed."""

output: int | None = None
"""File descriptor that the steps' output goes to; None for our own standard output and error."""


class Outcome(NamedTuple):
    """Counts of checks, and lines that say what was wrong."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    notes: tuple[str, ...] = ()

    def plus(self, other: Outcome) -> Outcome:
        """Both together."""
        return Outcome(
            self.passed + other.passed,
            self.failed + other.failed,
            self.skipped + other.skipped,
            self.notes + other.notes,
        )

    def line(self) -> str:
        """The closing line."""
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def say(text: str) -> None:
    """Print at once: the steps write to the same stream."""
    print(text, flush=True)


def run(command: Sequence[str], seconds: float) -> int | None:
    """Run a command in the project's folder, with its output going where ours goes.

    Args:
        command: program and arguments.
        seconds: after this time the command and its children are ended.

    Returns:
        The exit status, or None when the time was up.
    """
    say("$ " + " ".join(os.path.relpath(part, ROOT) if os.path.isabs(part) else part for part in command))
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    ) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def simple(name: str, *commands: Sequence[str]) -> Outcome:
    """A step that is one check: it passes when all its commands exit with 0."""
    bad = [command for command in commands if run(command, DEADLINE[name]) != 0]
    return Outcome(failed=1, notes=(f"failed: {name}",)) if bad else Outcome(passed=1)


def tests(run_name: str, names: Sequence[str], limit: float = DEADLINE["tests"]) -> Outcome:
    """Run tests with trial in a child process (see `tools.trial_child`).

    Args:
        run_name: what the result is kept under.
        names: dotted names of packages, modules, classes or tests; those after a minus are left out.
        limit: seconds after which the child says where it hangs and ends; it is ended when it does not.
    """
    result_file = RESULTS / f"{run_name}.trial.json"
    result_file.unlink(missing_ok=True)
    folder = RESULTS.parent / f"trial-{run_name}"
    child = [sys.executable, "-m", "tools.trial_child", str(result_file), str(folder), str(limit), *names]
    status = run(child, limit + 30)
    try:
        result = json.loads(result_file.read_text())
        passed, failed, skipped = int(result["passed"]), list(result["failed"]), list(result["skipped"])
    except (OSError, ValueError, KeyError) as error:
        how = "was ended, out of time" if status is None else f"ended with status {status}"
        return Outcome(failed=1, notes=(f"failed: the tests' process {how} and left no result ({error})",))
    return judge(passed, failed, skipped, strict="CI" in os.environ)


def judge(passed: int, failed: Sequence[str], skipped: Sequence[Sequence[str]], *, strict: bool) -> Outcome:
    """Count a test run.

    Args:
        passed: number of tests that passed.
        failed: names of those that failed.
        skipped: name and reason of those that were skipped.
        strict: whether a skipped test is a failed one.
    """
    notes = [f"failed: {name}" for name in failed]
    notes += [
        f"{'failed, because skipped' if strict else 'skipped'}: {name}: {reason}" for name, reason in skipped
    ]
    if not (passed or failed or skipped):
        return Outcome(failed=1, notes=("failed: no test was found",))
    if strict:
        return Outcome(passed, len(failed) + len(skipped), 0, tuple(notes))
    return Outcome(passed, len(failed), len(skipped), tuple(notes))


def step(run_name: str, wanted: str) -> Outcome:
    """Run one step, named as on the command line."""
    python = sys.executable
    if wanted == "lint":
        ruff = (python, "-m", "ruff")
        return simple("lint", (*ruff, "check", *SOURCES), (*ruff, "format", "--check", *SOURCES))
    if wanted == "types":
        return simple("types", (python, "-m", "mypy"))
    if wanted == "demo":
        return simple("demo", (python, "-m", "synapse_lb.cli.main", "demo"))
    if wanted == "demo-workers":
        return simple("demo-workers", (python, "-m", "tools.demo_workers"))
    kind, _, names = wanted.partition("=")
    if kind != "tests" or not names:
        raise SystemExit(f"no such step: {wanted}")
    return tests(run_name, names.split(","))


def run_steps(run_name: str, steps: Sequence[str]) -> Outcome:
    """Run the steps, and keep the counts in a file for `--total`."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    kept = RESULTS / f"{run_name}.json"
    kept.unlink(missing_ok=True)
    outcome = Outcome()
    for wanted in steps:
        say(f"\n=== {run_name}: {wanted}")
        began = time.monotonic()
        one = step(run_name, wanted)
        say(f"=== {run_name}: {wanted}: {one.line()} ({time.monotonic() - began:.0f} s)")
        outcome = outcome.plus(one)
    kept.write_text(json.dumps(outcome))
    return outcome


def total(run_names: Sequence[str]) -> Outcome:
    """Add up what earlier runs kept. A run that kept nothing is a failed check."""
    outcome = Outcome()
    for name in run_names:
        try:
            passed, failed, skipped, notes = json.loads((RESULTS / f"{name}.json").read_text())
        except (OSError, ValueError):
            outcome = outcome.plus(Outcome(failed=1, notes=(f"failed: {name}: came to no end",)))
            continue
        outcome = outcome.plus(Outcome(passed, failed, skipped, tuple(f"{name}: {note}" for note in notes)))
    return outcome


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments say; see the module's docstring.

    Returns:
        0 when nothing failed, otherwise 1.
    """
    parser = argparse.ArgumentParser(prog="tools.checks")
    parser.add_argument("--name", default="checks", help="what this run's results are kept under")
    parser.add_argument("--total", action="store_true", help="add up the runs that are named")
    parser.add_argument("steps", nargs="+", metavar="STEP")
    options = parser.parse_args(arguments)
    outcome = total(options.steps) if options.total else run_steps(options.name, options.steps)
    if outcome.notes:
        say("")
    for note in outcome.notes:
        say(note)
    say("")
    say(outcome.line())
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
