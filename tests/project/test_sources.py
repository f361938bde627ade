# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every source is of one make, and names nothing of the machine that it was written on."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from twisted.trial.unittest import SynchronousTestCase

from tests.project.sources import Import, imports_of, own_files, package_files, python_files, relative

SPDX: Final = "# SPDX-License-Identifier: AGPL-3.0-or-later"
MOST_LINES_OF_A_FILE: Final = 500
MOST_LINES_OF_A_FUNCTION: Final = 60
"""Of the package's functions, without their docstring."""

MACHINE_PATH: Final = re.compile(r"(?<![\w.~-])/(?:work|root|home|Users)(?:/|\b)(?!\()")
UNFINISHED: Final = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X|NotImplemented" + r"Error)\b")
SILENCED: Final = re.compile(r"#\s*(?:no" + r"qa|type:\s*ig" + r"nore)(?P<rest>.*)")


def all_python() -> list[Path]:
    """Every Python source that is ours."""
    return python_files("synapse_lb", "tests", "tools")


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function of a source."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines(node: ast.stmt) -> int:
    """How many lines it has."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


class SourceTests(SynchronousTestCase):
    """The form of our Python sources."""

    def test_licence_line(self) -> None:
        """Each begins with the licence's SPDX line; a file with nothing in it needs none."""
        wrong = [
            relative(path)
            for path in all_python()
            if path.read_text().strip() and path.read_text().split("\n", 1)[0] != SPDX
        ]
        self.assertEqual(wrong, [])

    def test_docstring(self) -> None:
        """Each says at its top what lives there."""
        wrong = [
            relative(path)
            for path in all_python()
            if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
        ]
        self.assertEqual(wrong, [])

    def test_annotations_are_not_evaluated(self) -> None:
        """Each that has code has ``from __future__ import annotations``: 3.10 reads what is written for 3.13."""
        wrong = []
        for path in all_python():
            code = [node for node in ast.parse(path.read_text()).body if not isinstance(node, ast.Expr)]
            if code and "from __future__ import annotations" not in path.read_text():
                wrong.append(relative(path))
        self.assertEqual(wrong, [])

    def test_files_are_short(self) -> None:
        """None has more lines than one can read at a sitting."""
        lengths = {relative(path): len(path.read_text().splitlines()) for path in all_python()}
        self.assertEqual({name: n for name, n in lengths.items() if n > MOST_LINES_OF_A_FILE}, {})

    def test_functions_are_short(self) -> None:
        """No function of the package has more lines than fit on a screen."""
        wrong = {}
        for path in package_files():
            for node in functions(path):
                length = lines(node) - (lines(node.body[0]) if ast.get_docstring(node) else 0)
                if length > MOST_LINES_OF_A_FUNCTION:
                    wrong[f"{relative(path)}:{node.lineno} {node.name}"] = length
        self.assertEqual(wrong, {})

    def test_nothing_unfinished(self) -> None:
        """No mark of unfinished work."""
        wrong = [
            f"{relative(path)}:{number}: {line.strip()}"
            for path in all_python()
            for number, line in enumerate(path.read_text().splitlines(), 1)
            if UNFINISHED.search(line)
        ]
        self.assertEqual(wrong, [])

    def test_silenced_checks_say_why(self) -> None:
        """A checker is only silenced with the code of what it says, and a reason in the same comment."""
        wrong = []
        for path in all_python():
            for number, line in enumerate(path.read_text().splitlines(), 1):
                match = SILENCED.search(line)
                if match and not re.match(
                    r"\[[\w-]+(?:,\s*[\w-]+)*\]\s+#\s+\w|:\s*[A-Z]+\d+\s+\S", match["rest"]
                ):
                    wrong.append(f"{relative(path)}:{number}: {line.strip()}")
        self.assertEqual(wrong, [])


class MachineTests(SynchronousTestCase):
    """What is committed holds on any machine."""

    def test_no_path_of_a_machine(self) -> None:
        """No file names a folder of somebody's machine."""
        wrong = []
        for path in own_files():
            try:
                text = path.read_text()
            except UnicodeDecodeError:
                continue
            wrong += [
                f"{relative(path)}:{number}: {line.strip()}"
                for number, line in enumerate(text.splitlines(), 1)
                if MACHINE_PATH.search(line)
            ]
        self.assertEqual(wrong, [])

    def test_what_counts_as_such_a_path(self) -> None:
        """The pattern sees paths, and does not see addresses that look like them."""
        for text in ("cd /" + "work/x", '"/' + "root" + '"', "/" + "home/alice/y"):
            self.assertTrue(MACHINE_PATH.search(text), text)
        for text in ("coaps://h/_matrix/client/v3/home", "/opt/venvs/matrix-synapse", "network/work"):
            self.assertIsNone(MACHINE_PATH.search(text), text)


class ImportWalkTests(SynchronousTestCase):
    """`imports_of` sees what Python would import."""

    def seen(self, text: str) -> list[str]:
        return [found.target for found in imports_of(text, ["synapse_lb", "coap"])]

    def test_absolute(self) -> None:
        """Both statements, wherever they stand."""
        self.assertEqual(self.seen("import a.b\ndef f():\n  from c import d"), ["a.b", "c.d"])

    def test_relative(self) -> None:
        """Dots are resolved against the package."""
        self.assertEqual(
            self.seen("from . import x\nfrom .y import z\nfrom ..txdtls.port import p"),
            ["synapse_lb.coap.x", "synapse_lb.coap.y.z", "synapse_lb.txdtls.port.p"],
        )

    def test_by_name(self) -> None:
        """`import_module` with a literal name is an import."""
        self.assertEqual(self.seen("import_module('time')"), ["time"])

    def test_for_types(self) -> None:
        """What stands under `TYPE_CHECKING` is marked."""
        text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  import a"
        self.assertEqual(
            imports_of(text, ["p"]),
            [Import(1, "typing", "TYPE_CHECKING", False), Import(3, "a", None, True)],
        )
