# SPDX-License-Identifier: AGPL-3.0-or-later
"""Runs tests with Twisted's trial, one line for each, and leaves the counts in a JSON file.

    python -m tools.trial_child RESULT.json WORKING-FOLDER DEADLINE-SECONDS NAME...

`tools.checks` starts it as a child process, so that a test that crashes or hangs the interpreter is seen as what
it is: the file is only written after the last test. Shortly before the deadline it prints where it hangs and exits.
"""

from __future__ import annotations

import faulthandler
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from unittest import TestSuite

from twisted.trial.reporter import VerboseTextReporter
from twisted.trial.runner import TestLoader, TrialRunner

SLOW: Final = 1.0
"""Seconds from which a test's line says how long it took."""


class LineReporter(VerboseTextReporter):
    """One line for each test: its name, what came out, and how long it took if that was long."""

    def startTest(self, test: Any) -> None:
        """Begin the line."""
        self._began = time.monotonic()
        VerboseTextReporter.startTest(self, test)

    def stopTest(self, test: Any) -> None:
        """End the line."""
        took = time.monotonic() - self._began
        if took >= SLOW:
            self._write(f" ({took:.1f} s)")
        VerboseTextReporter.stopTest(self, test)


def counts(result: Any) -> dict[str, Any]:
    """What happened, in the form that `tools.checks` reads.

    A test that fails and leaves the reactor dirty is one failed test. An expected failure ("todo") is a failed one:
    there are none here.
    """
    bad = [*result.failures, *result.errors, *result.expectedFailures, *result.unexpectedSuccesses]
    return {
        "passed": result.successes,
        "failed": sorted({test.id() for test, *_ in bad}),
        "skipped": sorted([test.id(), str(reason)] for test, reason in result.skips),
    }


def chosen(names: Sequence[str]) -> TestSuite:
    """The tests of these names, in their order, but for those of names with a minus before them."""
    left_out = [name[1:] for name in names if name.startswith("-")]
    loaded: Any = TestLoader().loadByNames([name for name in names if not name.startswith("-")], recurse=True)
    wanted = (test for test in each_test(loaded) if not any(belongs(test, name) for name in left_out))
    return TestSuite(wanted)


def each_test(suite: Any) -> Iterator[Any]:
    """The tests in a suite of suites."""
    if not hasattr(suite, "__iter__"):
        yield suite
        return
    for part in suite:
        yield from each_test(part)


def belongs(test: Any, name: str) -> bool:
    """Whether a test is in the package, module or class of a dotted name, or has it."""
    return f"{test.id()}.".startswith(f"{name}.")


def main(arguments: list[str]) -> int:
    """Run the tests.

    Args:
        arguments: the result file, the working folder, the deadline in seconds, then the tests' dotted names; those
            after a minus are left out.

    Returns:
        0 when all passed (skipped ones aside), otherwise 1.
    """
    result_path, folder, deadline, *names = arguments
    result_file = Path(result_path).resolve()
    sys.path.insert(0, str(Path.cwd()))
    faulthandler.enable()
    faulthandler.dump_traceback_later(float(deadline), exit=True)
    suite = chosen(names)
    one_line_per_test: Any = LineReporter
    result: Any = TrialRunner(one_line_per_test, workingDirectory=folder).run(suite)
    faulthandler.cancel_dump_traceback_later()
    result_file.write_text(json.dumps(counts(result), indent=1))
    return 0 if result.wasSuccessful() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
