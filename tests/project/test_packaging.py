# SPDX-License-Identifier: AGPL-3.0-or-later
"""The package as a user installs it: built, put into an empty environment with its own dependencies only, and run.

Nothing is fetched: the environment's dependencies are links to those that are installed here.
"""

from __future__ import annotations

import atexit
import functools
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import attrs
from packaging.requirements import Requirement
from twisted.trial.unittest import SynchronousTestCase

from tests.project.sources import ROOT, package_files, relative


def run(*command: str | Path, folder: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command without the variables that would show Python more than it shall see."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def closure(names: list[str]) -> dict[str, importlib.metadata.Distribution]:
    """These distributions and all that they need, as they are installed here, without extras but those asked for."""
    found: dict[str, importlib.metadata.Distribution] = {}
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        text = waiting.pop()
        if text in seen:
            continue
        seen.add(text)
        wanted = Requirement(text)
        distribution = importlib.metadata.distribution(wanted.name)
        found[re.sub(r"[-_.]+", "-", wanted.name).lower()] = distribution
        for line in distribution.requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(
                needed.marker.evaluate({"extra": e}) for e in (*wanted.extras, "")
            ):
                extras = f"[{','.join(sorted(needed.extras))}]" if needed.extras else ""
                waiting.append(needed.name + extras)
    return found


def link_files(distributions: list[importlib.metadata.Distribution], folder: Path) -> None:
    """Fill a folder with links to what these distributions put into theirs."""
    for distribution in distributions:
        tops = {
            file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")
        }
        for top in tops:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(top))))


@attrs.frozen
class Installed:
    """What was built, and where it was installed."""

    folder: Path
    wheel: Path
    python: Path

    @property
    def command(self) -> Path:
        """The `synapse-lb` of the bare environment."""
        return self.python.parent / "synapse-lb"


@functools.cache
def installed() -> Installed:
    """Build and install the package, once for all tests; removed when the tests' process ends."""
    temporary = tempfile.TemporaryDirectory()
    atexit.register(temporary.cleanup)
    folder = Path(temporary.name)
    wheel = build(folder)
    return Installed(folder, wheel, install(folder, wheel))


def build(folder: Path) -> Path:
    """Make the sdist, and the wheel out of the sdist, as a release would."""
    code = (
        "from setuptools import build_meta as b; import sys;"
        "print(b.build_sdist(sys.argv[1]) if sys.argv[2] == 'sdist' else b.build_wheel(sys.argv[1]))"
    )
    source = folder / "checkout"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "synapse_lb", "tests", "tools"):
        (source / name).symlink_to(ROOT / name)
    made = run(sys.executable, "-c", code, folder, "sdist", folder=source)
    assert made.returncode == 0, made.stderr
    with tarfile.open(folder / made.stdout.split()[-1]) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        archive.extractall(folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    made = run(sys.executable, "-c", code, folder, "wheel", folder=unpacked)
    assert made.returncode == 0, made.stderr
    return folder / made.stdout.split()[-1]


def install(folder: Path, wheel: Path) -> Path:
    """Put the wheel into an environment that has its dependencies and nothing else.

    Returns:
        The environment's Python.
    """
    environment = folder / "bare"
    made = run(sys.executable, "-m", "venv", "--without-pip", environment, folder=folder)
    assert made.returncode == 0, made.stderr
    python = environment / "bin" / "python"
    (site,) = environment.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        text = archive.read(metadata).decode()
    needed = [
        line for line in re.findall(r"^Requires-Dist: (.*)$", text, re.MULTILINE) if "extra ==" not in line
    ]
    parsed = [Requirement(line) for line in needed]
    names = [one.name + (f"[{','.join(one.extras)}]" if one.extras else "") for one in parsed]
    link_files(list(closure(names).values()), site)
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps")
    made = run(*pip, "--quiet", "--disable-pip-version-check", wheel, folder=folder)
    assert made.returncode == 0, made.stderr
    return python


class PackageTests(SynchronousTestCase):
    """Every test looks at the same wheel and the same bare environment."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = installed().folder
        self.wheel = installed().wheel
        self.python = installed().python

    def bare(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run the bare environment's `synapse-lb`."""
        return run(installed().command, *arguments, folder=self.folder, stdin=stdin)

    def test_wheel_holds_the_package(self) -> None:
        """Every source is in the wheel, the mark that it is typed too, and no test."""
        with zipfile.ZipFile(self.wheel) as archive:
            names = set(archive.namelist())
        missing = {relative(path) for path in package_files()} - names
        self.assertEqual(missing, set())
        self.assertIn("synapse_lb/py.typed", names)
        tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
        self.assertEqual(tops, {"synapse_lb"})
        self.assertTrue([name for name in names if name.endswith("LICENSE")])

    def test_environment_is_bare(self) -> None:
        """The environment has no Synapse: otherwise the tests below would show nothing."""
        for name in ("synapse", "aiocoap", "hypothesis"):
            done = run(self.python, "-c", f"import {name}", folder=self.folder)
            self.assertIn("ModuleNotFoundError", done.stderr)

    def test_help(self) -> None:
        """Every subcommand can say what it does, without Synapse."""
        done = self.bare("--help")
        self.assertEqual(done.returncode, 0, done.stderr)
        commands = re.findall(r"^    ([a-z]+)\s", done.stdout, re.MULTILINE)
        self.assertIn("coap", commands)
        for command in commands:
            done = self.bare(command, "--help")
            self.assertEqual((command, done.returncode, done.stderr), (command, 0, ""))

    def test_json_to_cbor_and_back(self) -> None:
        """`jc` works without Synapse."""
        done = run(
            self.python,
            "-c",
            "import subprocess, sys;"
            "cbor = subprocess.run([sys.argv[1], 'jc'], input=b'{\"errcode\": \"M_X\"}', capture_output=True).stdout;"
            "text = subprocess.run([sys.argv[1], 'jc', '-c2j'], input=cbor, capture_output=True).stdout;"
            "print(cbor.hex(), text.decode())",
            installed().command,
            folder=self.folder,
        )
        self.assertEqual(done.stderr, "")
        self.assertEqual(done.stdout.split(None, 1)[0], "a118" + "66" + "634d5f58")
        self.assertIn('"errcode"', done.stdout)

    def test_every_module_of_the_client_side_imports(self) -> None:
        """All rooms but `homeserver`, and but the harness with Synapse in it, import without Synapse."""
        modules = sorted(
            relative(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
            for path in package_files()
            if not relative(path).startswith(("synapse_lb/homeserver/", "synapse_lb/testing/synapse/"))
        )
        code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
        done = run(self.python, "-c", code, *modules, folder=self.folder)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_the_module_without_synapse_says_so(self) -> None:
        """`LowBandwidthModule` needs Synapse, and the error names what is missing."""
        done = run(self.python, "-c", "from synapse_lb import LowBandwidthModule", folder=self.folder)
        self.assertIn("No module named 'synapse'", done.stderr)
