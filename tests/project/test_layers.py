# SPDX-License-Identifier: AGPL-3.0-or-later
"""Who may import whom (docs/architecture.md, "Rooms"). Walks the sources; runs nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from twisted.trial.unittest import SynchronousTestCase

from tests.project.sources import (
    PACKAGE,
    Import,
    imports,
    module_name,
    package_files,
    relative,
    room,
    starts_with,
)

WIRE: Final = frozenset({"coap", "txdtls", "msc3079", "coaps"})

ALLOWED: Final[dict[str, frozenset[str]]] = {
    "coap": frozenset(),
    "txdtls": frozenset(),
    "msc3079": frozenset(),
    "coaps": frozenset({"coap", "txdtls"}),
    "server": WIRE,
    "client": WIRE,
    "upstream": WIRE | {"server", "client"},
    "homeserver": WIRE | {"server", "upstream"},
    "proxy": WIRE | {"client"},
    "standalone": WIRE | {"server", "client", "upstream"},
    "testing": WIRE | {"server", "homeserver", "client"},
    "cli": WIRE | {"client", "proxy", "standalone", "testing"},
    "(top)": frozenset({"homeserver"}),
}
"""What each room may import of the others. ``(top)`` is `synapse_lb/__init__.py`; every room may import its version."""

PURE: Final = frozenset({"coap", "msc3079"})
"""Rooms that do no input and output: no Twisted, no socket, no clock, no randomness but what they are handed."""

IMPURE_MODULES: Final = (
    "asyncio",
    "datetime",
    "multiprocessing",
    "os",
    "secrets",
    "select",
    "selectors",
    "signal",
    "socket",
    "ssl",
    "subprocess",
    "threading",
    "time",
    "twisted",
    "uuid",
    "OpenSSL",
    "cryptography",
)

SYNAPSE_ROOMS: Final = frozenset({"homeserver", "testing"})
"""Rooms that may import Synapse."""

SYNAPSE_HARNESS: Final = "synapse_lb.testing.synapse"
"""Synapse in the process of a test."""

PRIVATE_SYNAPSE_FILE: Final = "synapse_lb/homeserver/hooks.py"
PRIVATE_BINDING_FILE: Final = "synapse_lb/txdtls/binding.py"


def package_imports() -> Iterator[tuple[Path, Import]]:
    """Every import statement of the package."""
    for path in package_files():
        for found in imports(path):
            yield path, found


def where(path: Path, line: int) -> str:
    """How a finding is named in a failure."""
    return f"{relative(path)}:{line}"


class RoomsTests(SynchronousTestCase):
    """Imports between the rooms go one way."""

    def test_table_names_every_room(self) -> None:
        """A new room must say what it may import."""
        rooms = {room(module_name(path)) for path in package_files()}
        self.assertEqual(rooms, set(ALLOWED))

    def test_table_has_no_cycle(self) -> None:
        """The table itself goes one way (but for the package's `__init__`, which loads the module lazily)."""
        left = {name: set(targets) for name, targets in ALLOWED.items() if name != "(top)"}
        while left:
            free = {name for name, targets in left.items() if not targets & set(left)}
            self.assertTrue(free, f"a cycle among {sorted(left)}")
            left = {name: targets for name, targets in left.items() if name not in free}

    def test_imports_follow_the_table(self) -> None:
        """No room imports one that the table does not allow it, not even for its types."""
        wrong = []
        for path, found in package_imports():
            if not starts_with(found.module, PACKAGE):
                continue
            own, other = room(module_name(path)), room(found.target)
            if own != other and other != "(top)" and other not in ALLOWED[own]:
                wrong.append(f"{where(path, found.line)}: {own} imports {found.target}")
        self.assertEqual(wrong, [])

    def test_only_homeserver_loads_lazily_from_the_top(self) -> None:
        """Nothing inside takes `LowBandwidthModule` by way of the package's `__getattr__`."""
        wrong = [
            where(path, found.line)
            for path, found in package_imports()
            if found.module == PACKAGE and found.name == "LowBandwidthModule"
        ]
        self.assertEqual(wrong, [])


class PurityTests(SynchronousTestCase):
    """`coap` and `msc3079` do no input and output and are the same every time."""

    def test_no_impure_module(self) -> None:
        """They import nothing that reads a clock, opens a socket or draws a random number."""
        wrong = [
            f"{where(path, found.line)}: {found.target}"
            for path, found in package_imports()
            if room(module_name(path)) in PURE
            and any(starts_with(found.module, module) for module in IMPURE_MODULES)
        ]
        self.assertEqual(wrong, [])

    def test_random_only_as_a_type(self) -> None:
        """Of `random` they use the class `Random`, to name what they are handed, and never make one."""
        wrong = []
        for path in package_files():
            if room(module_name(path)) not in PURE:
                continue
            for found in imports(path):
                if found.module == "random" and found.name not in (None, "Random"):
                    wrong.append(where(path, found.line))
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Random", "random.Random"):
                    wrong.append(where(path, node.lineno))
                if (
                    isinstance(node, ast.Attribute)
                    and ast.unparse(node.value) == "random"
                    and node.attr != "Random"
                ):
                    wrong.append(where(path, node.lineno))
        self.assertEqual(wrong, [])

    def test_no_global_reactor(self) -> None:
        """The reactor is passed in: at the top of a module nothing imports it."""
        wrong = []
        for path in package_files():
            for node in ast.parse(path.read_text()).body:
                names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
                if (
                    isinstance(node, ast.ImportFrom)
                    and node.module == "twisted.internet"
                    and "reactor" in names
                ):
                    wrong.append(where(path, node.lineno))
        self.assertEqual(wrong, [])


class PrivateNamesTests(SynchronousTestCase):
    """What belongs to others and may change is touched in one file for each."""

    def test_synapse_in_its_room(self) -> None:
        """Only `homeserver`, and the harness in `testing`, import Synapse."""
        wrong = [
            f"{where(path, found.line)}: {found.target}"
            for path, found in package_imports()
            if starts_with(found.module, "synapse") and room(module_name(path)) not in SYNAPSE_ROOMS
        ]
        self.assertEqual(wrong, [])

    def test_client_tools_need_no_synapse(self) -> None:
        """What `cli` imports of `testing` at its top must not import Synapse at its top (the bare install)."""
        wrong = [
            f"{where(path, found.line)}: {found.target}"
            for path in package_files()
            if room(module_name(path)) == "testing" and not module_name(path).startswith(SYNAPSE_HARNESS)
            for found in _top_imports(path)
            if starts_with(found.module, "synapse") or starts_with(found.module, f"{PACKAGE}.homeserver")
        ]
        self.assertEqual(wrong, [])

    def test_only_tests_use_the_harness(self) -> None:
        """Nothing else of the package imports the harness, which imports Synapse at its top."""
        wrong = [
            f"{where(path, found.line)}: {found.target}"
            for path, found in package_imports()
            if starts_with(found.target, SYNAPSE_HARNESS)
            and not module_name(path).startswith(SYNAPSE_HARNESS)
        ]
        self.assertEqual(wrong, [])

    def test_private_names_of_synapse(self) -> None:
        """Names of Synapse that begin with an underscore are imported in `hooks.py` alone."""
        wrong = [
            f"{where(path, found.line)}: {found.target}"
            for path, found in package_imports()
            if starts_with(found.module, "synapse")
            and _is_private(found.target)
            and relative(path) != PRIVATE_SYNAPSE_FILE
        ]
        self.assertEqual(wrong, [])

    def test_binding_in_one_file(self) -> None:
        """OpenSSL's C functions and pyOpenSSL's private names are used in `binding.py` alone."""
        wrong = []
        for path, found in package_imports():
            foreign = starts_with(found.module, "OpenSSL") or starts_with(found.module, "cryptography")
            private = starts_with(found.module, "cryptography.hazmat.bindings") or _is_private(found.target)
            if foreign and private and relative(path) != PRIVATE_BINDING_FILE:
                wrong.append(f"{where(path, found.line)}: {found.target}")
        self.assertEqual(wrong, [])

    def test_private_attributes_in_one_file(self) -> None:
        """`x._lib`, `x._ffi` and the C handles of Connection and Context are read in `binding.py` alone."""
        handles = {"_lib", "_ffi", "_ssl", "_context", "_session", "_from_ssl"}
        own = {"synapse_lb/txdtls/binding.py"}
        wrong = []
        for path in package_files():
            if room(module_name(path)) != "txdtls" or relative(path) in own:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, ast.Attribute)
                    and node.attr in handles
                    and ast.unparse(node.value) != "self"
                ):
                    wrong.append(f"{where(path, node.lineno)}: {ast.unparse(node)}")
        self.assertEqual(wrong, [])

    def test_private_names_of_twisted_in_one_file(self) -> None:
        """If Twisted's private modules or names are needed, then in one file."""
        files = {
            relative(path)
            for path, found in package_imports()
            if starts_with(found.module, "twisted") and _is_private(found.target)
        }
        self.assertLessEqual(len(files), 1, files)

    def test_tests_stay_tests(self) -> None:
        """The package imports neither the tests nor the tools nor what is only installed for them."""
        wrong = [
            f"{where(path, found.line)}: {found.target}"
            for path, found in package_imports()
            if any(starts_with(found.module, name) for name in ("tests", "tools", "aiocoap", "hypothesis"))
        ]
        self.assertEqual(wrong, [])


def _top_imports(path: Path) -> list[Import]:
    """Imports that run when the module is imported: those outside functions, and not only for types."""
    tree = ast.parse(path.read_text())
    inner = {
        node.lineno
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Call)
    }
    return [found for found in imports(path) if found.line not in inner and not found.for_types_only]


def _is_private(dotted: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in dotted.split("."))
