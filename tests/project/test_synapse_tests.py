# SPDX-License-Identifier: AGPL-3.0-or-later
"""What holds Synapse's own tests to the list of those that cannot go over CoAP."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tools import synapse_tests
from tools.synapse_tests import CLASSES, LIST, Listed, judge, read_list, report

LISTED = {"tests.a": Listed("page", "A redirect")}


def result(**outcomes: str) -> dict[str, Any]:
    """What a child would have written: for each test what came of it over CoAP and over HTTP."""
    found: dict[str, Any] = {
        "tests": [f"tests.{name}" for name in outcomes],
        "coap": {"failed": [], "skipped": [], "why": {}},
        "http": {"failed": []},
        "requests": {},
    }
    for name, outcome in outcomes.items():
        test, over_coap, over_http = f"tests.{name}", *outcome.split("/")
        found["requests"][test] = {"coap": 0 if over_coap == "silent" else 2, "http": 1}
        if over_coap == "fails":
            found["coap"]["failed"].append(test)
            found["coap"]["why"][test] = "NotOverCoap: a redirect"
        if over_coap == "skipped":
            found["coap"]["skipped"].append([test, "no OIDC"])
        if over_http == "fails":
            found["http"]["failed"].append(test)
    return found


class JudgeTests(SynchronousTestCase):
    """`judge`."""

    def test_all_is_well(self) -> None:
        """Each test is counted once, where it belongs."""
        outcome = judge(
            result(a="fails/passes", b="passes/", c="silent/", d="skipped/", e="fails/fails"), LISTED
        )
        self.assertEqual((outcome.over_coap, outcome.silent, outcome.listed, outcome.skipped), (1, 1, 1, 1))
        self.assertEqual((outcome.elsewhere, outcome.wrong, outcome.requests), (("tests.e",), {}, 8))

    def test_fails_without_being_listed(self) -> None:
        """It is named with what was wrong."""
        outcome = judge(result(b="fails/passes"), LISTED)
        self.assertEqual(list(outcome.wrong), ["tests.b"])
        self.assertIn("NotOverCoap: a redirect", outcome.wrong["tests.b"])

    def test_passes_and_is_listed(self) -> None:
        """The list is not longer than it must be."""
        for outcome in ("passes/", "silent/"):
            judged = judge(result(a=outcome), LISTED)
            self.assertEqual(judged.wrong, {"tests.a": "is in the list, and passes"})
            self.assertEqual((judged.over_coap, judged.silent), (0, 0))

    def test_not_run(self) -> None:
        """A listed test of which nothing is known (a part was run, or another version) is no fault."""
        self.assertEqual(judge(result(b="passes/"), LISTED).wrong, {})

    def test_report(self) -> None:
        """The report says all numbers, and names what is wrong."""
        found = result(a="fails/passes", b="fails/passes", c="passes/", d="fails/fails")
        text = report(judge(found, LISTED), LISTED, found["tests"])
        self.assertIn("1 passed over CoAP, with 8 requests", text)
        self.assertIn(f"1 page: {CLASSES['page']}", text)
        self.assertIn("failed: tests.b: fails over CoAP alone", text)
        self.assertIn("1 fail over HTTP too\n    tests.d", text)


class ListTests(SynchronousTestCase):
    """The list, as a file."""

    def test_ours(self) -> None:
        """It can be read, is sorted, and has each class that is described."""
        listed = read_list(LIST.read_text())
        self.assertEqual(list(listed), sorted(listed))
        self.assertEqual({each.kind for each in listed.values()}, set(CLASSES))
        self.assertTrue(all(name.startswith("tests.rest.client.") for name in listed))

    def test_lines(self) -> None:
        """A line that is none is told with its number."""
        self.assertEqual(read_list("# x\n\ntests.a\tpage\tA redirect\n"), LISTED)
        for line in (
            "tests.a",
            "tests.a\tpage",
            "tests.a\tpage\t",
            "tests.a\tnone\tx",
            "a\tpage\tx\na\tpage\tx",
        ):
            self.assertRaisesRegex(ValueError, "^line [12]: ", read_list, line)


class TreeTests(SynchronousTestCase):
    """Where the tests come from."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.mktemp()).resolve()
        self.folder.mkdir()
        self.patch(synapse_tests, "ARTIFACTS", self.folder / "artifacts")
        self.installed = version("matrix-synapse")

    def tree(self, said: str) -> Path:
        tree = self.folder / said
        (tree / "tests").mkdir(parents=True)
        (tree / "tests" / "server.py").write_text("")
        (tree / "pyproject.toml").write_text(f'[project]\nversion = "{said}"\n')
        return tree

    def test_given(self) -> None:
        """Of the tree only its tests can be imported, since its `synapse` lacks what is compiled."""
        tree = self.tree(self.installed)
        for _ in range(2):
            alone = synapse_tests.tree_with_tests(str(tree))
            self.assertEqual([each.name for each in alone.iterdir()], ["tests"])
            self.assertEqual((alone / "tests").resolve(), tree / "tests")

    def test_of_another_version(self) -> None:
        """Tests of one version say nothing about another."""
        error = self.assertRaises(SystemExit, synapse_tests.tree_with_tests, str(self.tree("1.0")))
        self.assertIn(f"Synapse 1.0, but {self.installed} is installed", str(error))

    def test_no_tree(self) -> None:
        """A folder that is none is named."""
        error = self.assertRaises(SystemExit, synapse_tests.tree_with_tests, str(self.folder))
        self.assertIn(str(self.folder), str(error))

    def test_fetched(self) -> None:
        """pip is asked for the sdist once, and nothing but its tests is unpacked."""
        name = f"matrix_synapse-{self.installed}"
        asked: list[tuple[str, ...]] = []

        def pip(command: tuple[str, ...], **_: object) -> subprocess.CompletedProcess[bytes]:
            asked.append(command)
            folder = Path(command[command.index("--dest") + 1])
            with tarfile.open(folder / f"{name}.tar.gz", "w:gz") as archive:
                for path in ("tests/server.py", "synapse/__init__.py"):
                    archive.addfile(tarfile.TarInfo(f"{name}/{path}"), io.BytesIO())
            return subprocess.CompletedProcess(command, 0)

        self.patch(subprocess, "run", pip)
        source = synapse_tests.fetch(self.installed)
        self.assertEqual([each.name for each in source.iterdir()], ["tests"])
        self.assertEqual(synapse_tests.fetch(self.installed), source)
        self.assertEqual([each[-1] for each in asked], [f"matrix-synapse=={self.installed}"])

    def test_not_fetched(self) -> None:
        """Without the index there is something to be done."""
        self.patch(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess((), 1))
        error = self.assertRaises(SystemExit, synapse_tests.fetch, self.installed)
        self.assertIn("SYNAPSE_TREE", str(error))


class ChildTests(SynchronousTestCase):
    """The child process, with a tree of a few tests that stand where Synapse's would."""

    def test_run(self) -> None:
        """Requests go over CoAP; what cannot is refused, and passes over HTTP."""
        folder = Path(self.mktemp()).resolve()
        samples = Path(__file__).with_name("synapse_samples")
        tree = folder / "tests"
        tree.mkdir(parents=True)
        for each in samples.glob("*.txt"):
            (tree / each.with_suffix(".py").name).write_text(each.read_text())
        child = (sys.executable, "-m", "tools.synapse_child", str(folder), str(folder / "result.json"))
        command = (*child, str(folder / "trial"), "120", "version1", "tests.test_samples")
        ended = subprocess.run(command, capture_output=True, check=False, cwd=synapse_tests.ROOT)
        self.assertEqual(ended.returncode, 0, ended.stderr.decode())
        found = json.loads((folder / "result.json").read_text())
        name = "tests.test_samples.Samples"
        listed = {f"{name}.test_cookie": Listed("header", "Cookie")}
        outcome = judge(found, listed)
        self.assertEqual(outcome.wrong, {f"{name}.test_web_page": outcome.wrong[f"{name}.test_web_page"]})
        self.assertIn("a web page", outcome.wrong[f"{name}.test_web_page"])
        self.assertEqual((outcome.over_coap, outcome.silent, outcome.listed), (1, 1, 1))
        self.assertEqual(outcome.elsewhere, (f"{name}.test_wrong_everywhere",))
