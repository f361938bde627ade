# SPDX-License-Identifier: AGPL-3.0-or-later
"""The project's files, and what a Python source imports, for the tests beside this file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

ROOT: Final = Path(__file__).resolve().parent.parent.parent
PACKAGE: Final = "synapse_lb"
FOREIGN: Final = {"__pycache__", "node_modules"}
"""Folders in which nothing is ours."""


@attrs.frozen
class Import:
    """One imported name."""

    line: int
    module: str
    """Dotted and absolute: ``a.b`` of ``import a.b``, of ``from a.b import c`` and of ``from .b import c`` in ``a``."""
    name: str | None
    """``c`` of ``from a.b import c``; None for ``import a.b``."""
    for_types_only: bool
    """Whether it stands under ``if TYPE_CHECKING:``."""

    @property
    def target(self) -> str:
        """The longest dotted name, which may be a module or a name in one."""
        return self.module if self.name is None else f"{self.module}.{self.name}"


def python_files(*folders: str) -> list[Path]:
    """Every Python source under these folders of the project, sorted."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path for path in found if not FOREIGN & set(path.parts))


def package_files() -> list[Path]:
    """Every Python source of the package."""
    return python_files(PACKAGE)


def own_files() -> list[Path]:
    """Every text file that is ours: all but the licence, what git ignores and what it keeps for itself."""
    folders = [ROOT / name for name in (PACKAGE, "tests", "tools", "docs", ".ci")]
    files = [path for path in ROOT.iterdir() if path.is_file() and path.name != "LICENSE"]
    files += [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return sorted(path for path in files if not FOREIGN & set(path.parts) and ".egg-info" not in str(path))


def relative(path: Path) -> str:
    """A path as it is called in the project: with slashes, from the top."""
    return path.relative_to(ROOT).as_posix()


def module_name(path: Path) -> str:
    """``synapse_lb.coap.block`` of ``synapse_lb/coap/block.py``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(dotted: str) -> str:
    """The room that a dotted name of the package is in; ``(top)`` for the package's own ``__init__``."""
    parts = dotted.split(".")
    if len(parts) > 1 and (ROOT / PACKAGE / parts[1]).is_dir():
        return parts[1]
    return "(top)"


def imports(path: Path) -> list[Import]:
    """Everything that a source imports, wherever the statement stands."""
    package = module_name(path).split(".")
    return imports_of(path.read_text(), package if path.name == "__init__.py" else package[:-1])


def imports_of(text: str, package: list[str]) -> list[Import]:
    """Everything that a text imports, of a source that lies in this package (split at its dots)."""
    tree = ast.parse(text)
    guarded = {id(node) for guard in _type_guards(tree) for node in ast.walk(guard)}
    return [found for node in ast.walk(tree) for found in _of_node(node, package, id(node) in guarded)]


def _of_node(node: ast.AST, package: list[str], for_types_only: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(node.lineno, alias.name, None, for_types_only)
    elif isinstance(node, ast.ImportFrom):
        base = package[: len(package) - node.level + 1] if node.level else []
        module = ".".join([*base, *([node.module] if node.module else [])])
        for alias in node.names:
            yield Import(node.lineno, module, alias.name, for_types_only)
    elif isinstance(node, ast.Call) and _is_import_call(node.func):
        for argument in node.args[:1]:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield Import(node.lineno, argument.value, None, for_types_only)


def _is_import_call(function: ast.expr) -> bool:
    return ast.unparse(function) in ("importlib.import_module", "import_module", "__import__")


def _type_guards(tree: ast.Module) -> list[ast.If]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    ]


def starts_with(dotted: str, prefix: str) -> bool:
    """Whether a dotted name is `prefix` or lies in it."""
    return dotted == prefix or dotted.startswith(prefix + ".")
