# SPDX-License-Identifier: AGPL-3.0-or-later
"""Synapse's own REST tests, over CoAP: runs them, and holds them to the list of those that cannot go that way.

    python -m tools.synapse_tests [--tree FOLDER] [--words WORDS] [NAME[,-NAME...]]

``FOLDER`` is Synapse's source tree of the version that is installed; without it the sdist is fetched with pip into
``artifacts``. A wheel of Synapse has no tests, and of the tree nothing but its ``tests`` is used.

``tools/synapse_tests.tsv`` names each test that cannot pass over CoAP, with the class of its reason and the reason. A
test that fails and is not there is a failure, unless it fails over HTTP too; so is one that is there and passes. Only
the standard library is used here; the tests run in a child process (`tools.synapse_child`).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent
ARTIFACTS: Final = ROOT / "artifacts"
LIST: Final = Path(__file__).with_name("synapse_tests.tsv")

ALL: Final = "tests.rest.client"

SAMPLE: Final = (
    *(
        f"tests.rest.client.test_{name}"
        for name in (
            *(
                "account",
                "account_data",
                "auth",
                "capabilities",
                "devices",
                "directory",
                "events",
                "filter",
                "keys",
            ),
            *(
                "login",
                "profile",
                "receipts",
                "redactions",
                "register",
                "relations",
                "rooms",
                "sendtodevice",
                "sync",
            ),
        )
    ),
    "-tests.rest.client.test_sync.SyncCancellationTestCase",  # They take minutes, and are in the list anyhow.
    "-tests.rest.client.test_rooms.RoomsMemberListTestCase",
)
"""What CI runs: a part that takes a few minutes, with something of everything."""
DEADLINE: Final = 3600.0
"""Seconds for all tests."""

CLASSES: Final[Mapping[str, str]] = {
    "method": "an HTTP method that has no CoAP code",
    "body": "a request body that is no JSON",
    "header": "a request header for which MSC3079 has no option, or an answer's header that is looked at",
    "page": "an answer that is a web page, a file or a redirect",
    "option": "what no CoAP option can hold: a path segment or parameter of over 255 bytes, a dot segment (RFC 7252)",
    "status": "an HTTP status that has no CoAP code of its own (RFC 8075 section 7)",
    "internals": "the test reaches into Synapse's HTTP request, or replaces a function that writes to HTTP",
}
"""The classes of reasons that the list knows."""


class Listed(NamedTuple):
    """An entry of the list."""

    kind: str
    reason: str


class Outcome(NamedTuple):
    """What came of a run.

    Attributes:
        over_coap: Tests that passed with all requests to the client-server API over CoAP.
        silent: Tests that passed and made no such request.
        listed: Tests of the list that failed over CoAP and passed over HTTP.
        elsewhere: Tests that fail over HTTP too.
        skipped: Tests that Synapse skips here.
        wrong: What is wrong, by test.
        requests: How many requests went over CoAP.
    """

    over_coap: int
    silent: int
    listed: int
    elsewhere: tuple[str, ...]
    skipped: int
    wrong: dict[str, str]
    requests: int


def read_list(text: str) -> dict[str, Listed]:
    """Read the list: lines of a test's name, a class and a reason, separated by tabs; ``#`` begins a comment.

    Raises:
        ValueError: a line is none of these, or a test is there twice.
    """
    found: dict[str, Listed] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        name, kind, reason = (*line.split("\t"), "", "")[:3]
        if kind not in CLASSES or not reason or name in found:
            raise ValueError(f"line {number}: {line!r}")
        found[name] = Listed(kind, reason)
    return found


def judge(result: Mapping[str, Any], listed: Mapping[str, Listed]) -> Outcome:
    """Hold what came of a run to the list.

    Args:
        result: what the child has written.
        listed: the list.
    """
    coap, http, requests = result["coap"], result["http"], result["requests"]
    skipped = {name for name, _ in coap["skipped"]}
    failed, failed_http = set(coap["failed"]), set(http["failed"])
    passed = set(result["tests"]) - failed - skipped
    wrong = {}
    for name in sorted(failed - failed_http):
        if name not in listed:
            wrong[name] = f"fails over CoAP alone: {coap['why'].get(name, '')}"
    for name in sorted(passed & set(listed)):
        wrong[name] = "is in the list, and passes"
    over_coap = {name for name in passed if requests.get(name, {}).get("coap")}
    return Outcome(
        over_coap=len(over_coap - set(wrong)),
        silent=len(passed - over_coap - set(wrong)),
        listed=len((failed - failed_http) & set(listed)),
        elsewhere=tuple(sorted(failed & failed_http)),
        skipped=len(skipped),
        wrong=wrong,
        requests=sum(each["coap"] for each in requests.values()),
    )


def tree_with_tests(given: str | None) -> Path:
    """A folder whose package ``tests`` is Synapse's.

    Args:
        given: the source tree that the user has; None fetches it.

    Raises:
        SystemExit: there is none, or it is of another version than the one that is installed.
    """
    installed = version("matrix-synapse")
    source = fetch(installed) if given is None else Path(given).resolve()
    if not (source / "tests" / "server.py").is_file():
        raise SystemExit(f"{source} is no source tree of Synapse: there is no tests/server.py")
    project = source / "pyproject.toml"
    said = re.search(r'^version = "(.*)"$', project.read_text(), re.MULTILINE) if project.is_file() else None
    if said is not None and said[1] != installed:
        raise SystemExit(f"{source} is Synapse {said[1]}, but {installed} is installed")
    # Nothing else of the tree may be imported: its `synapse` lacks what is compiled.
    alone = ARTIFACTS / f"synapse-tests-{installed}"
    alone.mkdir(parents=True, exist_ok=True)
    link = alone / "tests"
    link.unlink(missing_ok=True)
    link.symlink_to(source / "tests", target_is_directory=True)
    return alone


def fetch(installed: str) -> Path:
    """Fetch the sdist of a version of Synapse with pip, from the index that it is set up for.

    Raises:
        SystemExit: pip cannot.
    """
    folder = ARTIFACTS / f"synapse-{installed}"
    source = folder / f"matrix_synapse-{installed}"
    if (source / "tests" / "server.py").is_file():
        return source
    folder.mkdir(parents=True, exist_ok=True)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet")
    command = (
        *pip,
        "--no-deps",
        "--no-binary",
        "matrix-synapse",
        "--dest",
        str(folder),
        f"matrix-synapse=={installed}",
    )
    if subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode != 0:
        raise SystemExit(
            f"pip could not fetch the source of Synapse {installed}; give its tree: SYNAPSE_TREE=..."
        )
    with tarfile.open(folder / f"{source.name}.tar.gz") as archive:
        wanted = [
            each
            for each in archive.getmembers()
            if each.name.startswith(f"{source.name}/tests/") and (each.isfile() or each.isdir())
        ]
        for each in wanted:
            each.mode = 0o755 if each.isdir() else 0o644
            if ".." in Path(each.name).parts:
                raise SystemExit(f"the archive holds a file {each.name}")
        archive.extractall(folder, members=wanted)
    return source


def run(tree: Path, result_file: Path, words: str, names: Sequence[str], deadline: float = DEADLINE) -> int:
    """Run the tests in a child process; returns its exit status."""
    result_file.parent.mkdir(parents=True, exist_ok=True)
    result_file.unlink(missing_ok=True)
    folder = ARTIFACTS / f"trial-synapse-{words}"
    child = (
        sys.executable,
        "-m",
        "tools.synapse_child",
        str(tree),
        str(result_file),
        str(folder),
        str(deadline),
    )
    return subprocess.run((*child, words, *names), cwd=ROOT, check=False, stdin=subprocess.DEVNULL).returncode


def report(outcome: Outcome, listed: Mapping[str, Listed], tests: Sequence[str]) -> str:
    """What came of a run, for people."""
    kinds = Counter(listed[name].kind for name in tests if name in listed)
    lines = [f"{outcome.over_coap} passed over CoAP, with {outcome.requests} requests"]
    lines.append(f"{outcome.listed} kept on HTTP with a reason, where they pass")
    lines += [f"    {count:4d} {kind}: {CLASSES[kind]}" for kind, count in kinds.most_common()]
    lines.append(f"{outcome.silent} passed and ask nothing of the client-server API")
    lines.append(f"{outcome.skipped} skipped by Synapse")
    lines += [f"{len(outcome.elsewhere)} fail over HTTP too", *(f"    {name}" for name in outcome.elsewhere)]
    lines += [f"failed: {name}: {why}" for name, why in outcome.wrong.items()]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments say; see the module's docstring.

    Returns:
        0 when the list is true, otherwise 1.
    """
    parser = argparse.ArgumentParser(prog="tools.synapse_tests")
    parser.add_argument("--tree", help="Synapse's source tree of the version that is installed")
    parser.add_argument("--words", default="version1", help="how requests are worded: version1, plain or x1")
    parser.add_argument(
        "--name", default="synapse", help="what the counts are kept under, for tools.checks --total"
    )
    parser.add_argument(
        "names",
        nargs="?",
        default=ALL,
        metavar="NAME[,-NAME...]",
        help="tests, without those after a minus; sample",
    )
    options = parser.parse_args(arguments)
    names = SAMPLE if options.names == "sample" else options.names.split(",")
    kept = ARTIFACTS / "results" / f"{options.name}.json"
    kept.unlink(missing_ok=True)
    result_file = kept.with_suffix(".tests.json")
    listed = read_list(LIST.read_text())
    status = run(tree_with_tests(options.tree or None), result_file, options.words, names)
    try:
        result = json.loads(result_file.read_text())
    except (OSError, ValueError):
        print(f"failed: the tests' process ended with status {status} and left no result", flush=True)
        return 1
    outcome = judge(result, listed)
    print(f"\n{report(outcome, listed, result['tests'])}\n", flush=True)
    notes = [f"failed: {name}: {why}" for name, why in outcome.wrong.items()]
    if not outcome.over_coap:
        notes.append("failed: no test passed over CoAP")
    passed = outcome.over_coap + outcome.silent + outcome.listed
    kept.write_text(json.dumps((passed, len(notes), 0, notes)))
    print(f"{passed} passed, {len(notes)} failed, 0 skipped", flush=True)
    return 1 if notes else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
