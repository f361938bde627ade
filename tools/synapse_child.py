# SPDX-License-Identifier: AGPL-3.0-or-later
"""Runs Synapse's own REST tests over CoAP, and over HTTP those that fail there, and leaves the results in a JSON file.

    python -m tools.synapse_child TREE RESULT.json WORKING-FOLDER DEADLINE-SECONDS WORDS NAME...

`tools.synapse_tests` starts it as a child process. ``TREE`` is a folder whose package ``tests`` is Synapse's;
``make_request`` of its ``tests.server`` is replaced before anything else imports it.
"""

from __future__ import annotations

import faulthandler
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final
from unittest import TestSuite

import attrs
from twisted.trial.runner import TrialRunner

from synapse_lb.testing.synapse.errors import NotOverCoap, Reason
from synapse_lb.testing.synapse.requests import Requester, Tally
from tools.trial_child import LineReporter, chosen, counts, each_test

WORDS: Final[dict[str, dict[str, Any]]] = {
    "version1": {"extensions": False},
    "plain": {
        "key_version": None,
        "path_codes": False,
        "deflate": False,
        "extensions": False,
        "q_block": False,
    },
    "x1": {"extensions": "known"},
}
"""How the client words its requests: MSC3079 with all that it has, with nothing of it that is optional, or in x1."""


@attrs.define
class Switch:
    """Which way requests go, and how those of each test went."""

    requester: Requester
    original: Any
    coap: bool = True
    tallies: dict[str, Tally] = attrs.field(factory=dict)
    refusals: dict[str, list[str]] = attrs.field(factory=dict)
    test: str = ""

    def make_request(self, *args: Any, **named: Any) -> Any:
        """Stands in the place of ``tests.server.make_request``."""
        if not self.coap:
            return self.original(*args, **named)
        try:
            return self.requester.make_request(*args, **named)
        except NotOverCoap as error:
            self.refusals.setdefault(self.test, []).append(str(error))
            raise

    def begin(self, test: str) -> None:
        """A test begins."""
        self.test = test
        self.requester.tally = self.tallies[test] = Tally()


switch: Switch


class Reporter(LineReporter):
    """Says which test the requests are of."""

    def startTest(self, test: Any) -> None:
        """A test begins."""
        if switch.coap:
            switch.begin(test.id())
        LineReporter.startTest(self, test)

    def addError(self, test: Any, error: Any) -> None:
        """Say at once what went wrong: the run is long."""
        LineReporter.addError(self, test, error)
        self._write(f"\n        {_last_line(error)}")

    def addFailure(self, test: Any, failure: Any) -> None:
        """Say at once what went wrong."""
        LineReporter.addFailure(self, test, failure)
        self._write(f"\n        {_last_line(failure)}")


def replace(words: str) -> Switch:
    """Put our function in the place of Synapse's."""
    import tests.server as theirs  # Synapse's, not ours: the tree is first in the path.

    server: Any = theirs
    original = server.make_request

    class Channel(server.FakeChannel):  # type: ignore[misc]  # a class of the tree, of which nothing is known here
        """Synapse's own result, which waits as its version does."""

        failure: BaseException | None = None
        resource_usage: Any = None

        def is_finished(self) -> bool:
            """As `synapse_lb.testing.synapse.FakeChannel`."""
            if self.failure is not None:
                if isinstance(self.failure, NotOverCoap):
                    switch.refusals.setdefault(switch.test, []).append(str(self.failure))
                raise self.failure
            return bool(super().is_finished())

    requester = Requester(over_http={Reason.API}, channel=Channel, http=original, **WORDS[words])
    made = Switch(requester, original)
    server.make_request = made.make_request
    return made


def run(tests: Iterable[Any], folder: str) -> dict[str, Any]:
    """Run tests; returns their counts."""
    one_line_per_test: Any = Reporter
    result: Any = TrialRunner(one_line_per_test, workingDirectory=folder).run(TestSuite(tests))
    found = counts(result)
    found["why"] = {test.id(): _last_line(failure) for test, failure in [*result.failures, *result.errors]}
    return found


def _last_line(failure: Any) -> str:
    return f"{failure.type.__name__}: {failure.getErrorMessage()}".replace("\n", " ")[:300]


def main(arguments: list[str]) -> int:
    """Run the tests.

    Args:
        arguments: the tree, the result file, the working folder, the deadline in seconds, one of `WORDS`, then the
            tests' dotted names; those after a minus are left out.
    """
    global switch
    tree, result_path, folder, deadline, words, *names = arguments
    result_file = Path(result_path).resolve()
    sys.path.insert(0, str(Path(tree).resolve()))
    faulthandler.enable()
    faulthandler.dump_traceback_later(float(deadline), exit=True)
    switch = replace(words)
    tests = list(each_test(chosen(names)))
    coap = run(tests, folder)
    switch.coap = False
    http = run([test for test in each_test(chosen(names)) if test.id() in coap["failed"]], folder)
    faulthandler.cancel_dump_traceback_later()
    tallies = {
        test: {"coap": tally.coap, "http": sum(tally.http.values())} for test, tally in switch.tallies.items()
    }
    result_file.write_text(
        json.dumps(
            {
                "tests": sorted(test.id() for test in tests),
                "coap": coap,
                "http": http,
                "requests": tallies,
                "refusals": switch.refusals,
            },
            indent=1,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
