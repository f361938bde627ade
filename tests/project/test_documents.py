# SPDX-License-Identifier: AGPL-3.0-or-later
"""The documents say what is: their links lead somewhere, the commands they name exist, versions agree."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import Final

import attrs
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb import __version__
from synapse_lb.cli.main import COMMANDS
from synapse_lb.coap.counters import Counters
from synapse_lb.coap.tuning import Limits
from synapse_lb.homeserver.handover import HandoverCounters
from synapse_lb.server.counters import GatewayCounters
from synapse_lb.server.sync_observer import ObserveOptions, ObserverCounters
from synapse_lb.txdtls.options import ServerCounters, ServerOptions
from synapse_lb.upstream.http import UpstreamCounters
from tests.project.sources import PACKAGE, ROOT, relative

LINK: Final = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
FENCE: Final = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def documents() -> list[Path]:
    """Every document: those at the top and those in docs/."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def prose(path: Path) -> str:
    """A document without its code blocks."""
    return FENCE.sub("", path.read_text())


def anchors(path: Path) -> set[str]:
    """The names under which a document's headings can be linked to, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def make_targets() -> set[str]:
    """What `make` can be asked for."""
    return set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def setup_cfg() -> configparser.ConfigParser:
    """The package's metadata."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def requirements() -> list[str]:
    """What the package and its `server` extra demand, one requirement a line of setup.cfg."""
    extras = setup_cfg()["options.extras_require"]
    return (setup_cfg()["options"]["install_requires"] + extras["server"]).split("\n")[1:]


def oldest() -> dict[str, str]:
    """The versions in tools/oldest.txt."""
    text = (ROOT / "tools" / "oldest.txt").read_text()
    return dict(re.findall(r"^([\w-]+)==(\S+)$", text, re.MULTILINE))


class LinksTests(SynchronousTestCase):
    """Links between the documents."""

    def test_links_resolve(self) -> None:
        """Each relative link leads to a file of the project, and its anchor to a heading."""
        wrong = []
        for path in documents():
            for link in LINK.findall(prose(path)):
                if "://" in link or link.startswith("mailto:"):
                    continue
                target, _, anchor = link.partition("#")
                file = (path.parent / target).resolve() if target else path
                if not file.exists() or (anchor and anchor not in anchors(file)):
                    wrong.append(f"{relative(path)}: {link}")
        self.assertEqual(wrong, [])

    def test_every_document_is_reached(self) -> None:
        """The README leads to every document in docs/."""
        linked = {link.partition("#")[0] for link in LINK.findall((ROOT / "README.md").read_text())}
        here = {relative(path) for path in (ROOT / "docs").rglob("*.md")}
        self.assertEqual(here - linked, set())


class CommandsTests(SynchronousTestCase):
    """Commands that the documents name."""

    def test_make_targets_exist(self) -> None:
        """Every `make x` is in the Makefile."""
        wrong = [
            f"{relative(path)}: make {name}"
            for path in documents()
            for name in re.findall(r"(?:^|`)make ([a-z][a-z0-9-]*)", path.read_text(), re.MULTILINE)
            if name not in make_targets()
        ]
        self.assertEqual(wrong, [])

    def test_readme_names_the_commands(self) -> None:
        """The two commands of a fresh checkout stand in the README and in the Makefile."""
        for name in ("demo", "test"):
            self.assertIn(f"make {name}", (ROOT / "README.md").read_text())
            self.assertIn(name, make_targets())

    def test_subcommands_exist(self) -> None:
        """Every `synapse-lb x` is a subcommand, and every subcommand is in the README."""
        wrong = [
            f"{relative(path)}: synapse-lb {name}"
            for path in documents()
            for name in re.findall(r"(?:^|`|\$ |/)synapse-lb ([a-z]+)", path.read_text(), re.MULTILINE)
            if name not in COMMANDS
        ]
        self.assertEqual(wrong, [])
        readme = (ROOT / "README.md").read_text()
        self.assertEqual([name for name in COMMANDS if f"synapse-lb {name}" not in readme], [])


class NamesTests(SynchronousTestCase):
    """Names of the code in the documents."""

    def test_counters_exist(self) -> None:
        """Every counter of the table of failures, and every metric named elsewhere, is counted."""
        rooms = {
            "dtls": ServerCounters,
            "coap": Counters,
            "gateway": GatewayCounters,
            "dispatch": UpstreamCounters,
            "handover": HandoverCounters,
        }
        known = {
            f"{room}_{field.name}" for room, counters in rooms.items() for field in attrs.fields(counters)
        }
        named = set()
        for path in documents():
            named |= set(re.findall(rf"`((?:{'|'.join(rooms)})_\w+)`", path.read_text()))
            named |= set(re.findall(rf"synapse_lb_((?:{'|'.join(rooms)})_\w+)_total", path.read_text()))
        named -= {"handover_path"}
        self.assertGreater(len(named), 20)
        self.assertEqual(named - known, set())

    def test_files_exist(self) -> None:
        """Every file of the package that the documents name is there, or is said to be still to come."""
        coming = (ROOT / "docs" / "architecture.md").read_text().partition("## What comes next")[2]
        wrong = []
        for path in documents():
            for name in re.findall(r"`((?:\w+/)+\w+\.py)`", path.read_text()):
                if (
                    not any((ROOT / top / name).exists() for top in ("", PACKAGE))
                    and f"`{name}`" not in coming
                ):
                    wrong.append(f"{relative(path)}: {name}")
        self.assertEqual(wrong, [])


class VersionsTests(SynchronousTestCase):
    """A version is said in several places and must be the same in all."""

    def test_oldest(self) -> None:
        """What is tested as the oldest version of each dependency is what the metadata demands."""
        demanded = {}
        for line in requirements():
            name, _, rest = line.partition(" >= ")
            demanded[re.sub(r"\[.*\]", "", name)] = rest.partition(",")[0]
        for name, version in oldest().items():
            self.assertRegex(version, rf"^{re.escape(demanded.pop(name))}(\.0)*$", name)
        self.assertEqual(demanded, {})

    def test_oldest_synapse(self) -> None:
        """The documents promise what is tested."""
        short = oldest()["matrix-synapse"].removesuffix(".0")
        for name in ("README.md", "docs/install.md"):
            self.assertIn(f"Synapse {short}", (ROOT / name).read_text(), name)

    def test_pythons(self) -> None:
        """The Pythons of the classifiers are those that the README names, and the oldest is demanded."""
        text = setup_cfg()["metadata"]["classifiers"]
        versions = re.findall(r"Python :: (3\.\d+)", text)
        self.assertEqual(setup_cfg()["options"]["python_requires"], f">={versions[0]}")
        self.assertIn(f"Python {versions[0]}", (ROOT / "README.md").read_text())

    def test_changelog(self) -> None:
        """The version of the package has its section in the changelog."""
        self.assertIn(f"## {__version__}", (ROOT / "CHANGELOG.md").read_text())

    def test_every_dependency_is_explained(self) -> None:
        """docs/dependencies.md says of each dependency why it is there."""
        lines = [
            setup_cfg()["options"]["install_requires"],
            *setup_cfg()["options.extras_require"].values(),
        ]
        names = {name for text in lines for name in re.findall(r"^([A-Za-z][\w-]*)", text, re.MULTILINE)}
        text = (ROOT / "docs" / "dependencies.md").read_text()
        self.assertEqual({name for name in names if f"`{name}`" not in text}, set())


class SecurityTests(SynchronousTestCase):
    """The threat model and the hardening guide against the code."""

    def test_each_threat_names_tests_that_there_are(self) -> None:
        """Each line of its tables; every named file is there."""
        text = (ROOT / "docs" / "threat-model.md").read_text()
        rows = [line for line in text.splitlines() if line.startswith("| ") and "| cannot |" not in line]
        rows = [row for row in rows if not row.startswith("| ---")]
        self.assertGreater(len(rows), 15)
        for row in rows:
            named = re.findall(r"`(tests/\w+/\w+\.py)`", row.rpartition("| ")[0] + row)
            self.assertNotEqual(named, [], row)
            for name in named:
                self.assertTrue((ROOT / name).exists(), name)

    def test_each_bound_is_tested_counted_and_shown(self) -> None:
        """Each row of "Bounds at a glance": its tests name its options and counters, and so does the dashboard."""
        text = (ROOT / "docs" / "architecture.md").read_text()
        table = text.partition("### Bounds at a glance")[2].partition("Every eviction")[0]
        rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][2:]
        self.assertGreater(len(rows), 15)
        dashboard = (ROOT / "contrib" / "grafana" / "synapse-lb.json").read_text()
        options = {
            field.name for kind in (ServerOptions, Limits, ObserveOptions) for field in attrs.fields(kind)
        }
        hardening = (ROOT / "docs" / "hardening.md").read_text()
        for bound, option, counter, tests in rows:
            sources = "".join((ROOT / name).read_text() for name in re.findall(r"`([\w/]+\.py)`", tests))
            for name in re.findall(r"`(\w+)`", option):
                self.assertIn(name, options, bound)
                self.assertTrue(name in sources, f"{bound}: {name} is not in its tests")
                if re.match("max_(ass|una)|una|evi|handshakes", name):
                    self.assertIn(f"| `{name}` |", hardening, bound)
            counters = re.findall(r"`(\w+)`", counter)
            self.assertNotEqual(counters, [], bound)
            for name in counters:
                counted = re.search(rf"\b{name.partition('_')[2]}\b", sources)
                self.assertIsNotNone(counted, f"{bound}: {name} is not in its tests")
                self.assertTrue(f"synapse_lb_{name}_total" in dashboard, f"{bound}: {name}")

    def test_bounds_are_the_defaults(self) -> None:
        """The options, defaults and counters of the hardening guide are those of the code."""
        defaults: dict[str, object] = {}
        for options in (ServerOptions(), Limits(), ObserveOptions()):
            defaults |= attrs.asdict(options)
        text = (ROOT / "docs" / "hardening.md").read_text()
        rows = re.findall(r"^\| `(\w+)` \| (\d+) \| .* \| `(\w+)` \|$", text, re.MULTILINE)
        self.assertGreater(len(rows), 12)
        rooms = {
            "dtls": ServerCounters,
            "coap": Counters,
            "gateway": GatewayCounters,
            "observe": ObserverCounters,
        }
        for name, default, counter in rows:
            self.assertEqual(defaults[name], int(default), name)
            room, _, field = counter.partition("_")
            self.assertIn(field, [each.name for each in attrs.fields(rooms[room])], counter)

    def test_metrics_exist(self) -> None:
        """Every metric of the monitoring guide is one that the collector makes."""
        source = (ROOT / PACKAGE / "homeserver" / "metrics.py").read_text()
        text = (ROOT / "docs" / "monitoring.md").read_text()
        rooms = {"dtls": ServerCounters, "coap": Counters, "gateway": GatewayCounters}
        named = set(re.findall(r"`synapse_lb_(\w+)`", text))
        self.assertGreater(len(named), 10)
        for name in named:
            room, _, field = name.removesuffix("_total").partition("_")
            if room in rooms:
                self.assertIn(field, [each.name for each in attrs.fields(rooms[room])], name)
            else:
                self.assertRegex(source, rf'"(synapse_lb_)?{name.removesuffix("_total")}"')

    def test_each_reason_is_explained(self) -> None:
        """The reasons for which something is dropped, in the guide and in the code."""
        source = (ROOT / PACKAGE / "homeserver" / "metrics.py").read_text()
        reasons = re.findall(r'^    \("(\w+)", "(?:dtls|coap)", "\w+"\),$', source, re.MULTILINE)
        self.assertGreater(len(reasons), 8)
        text = (ROOT / "docs" / "monitoring.md").read_text()
        table = text.partition("The reasons of")[2].partition("###")[0]
        rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", table, re.MULTILINE)
        explained = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
        self.assertEqual(sorted(explained), sorted(reasons))
