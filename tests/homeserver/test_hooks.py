# SPDX-License-Identifier: AGPL-3.0-or-later
"""The names of Synapse that are needed: looked for at start, a missing one is a clear error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from synapse.config import server, workers
from synapse.module_api import ModuleApi
from synapse.module_api.errors import ConfigError
from synapse.rest.client.versions import VersionsRestServlet
from synapse.util import SYNAPSE_VERSION
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.homeserver import config, hooks

ROOT = Path(__file__).resolve().parents[2]


class FakeConfig:
    """Has the attributes that it is given, and can be referred to weakly, as Synapse's."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def fake_api(**changes: Any) -> ModuleApi:
    """As much of a module API as `hooks.Homeserver` looks at."""
    config = FakeConfig(
        server=SimpleNamespace(listeners=[], server_name="example.org"),
        worker=SimpleNamespace(
            worker_app=None, worker_listeners=[], writers=SimpleNamespace(typing=["master", "b"])
        ),
        tls=SimpleNamespace(tls_certificate_file=None, tls_private_key_file=None),
        config_files=[],
    )
    hs = SimpleNamespace(
        hostname="example.org", config=config, start_listening=None, version_string="", get_instance_id=None
    )
    for name, value in changes.items():
        setattr(hs, name, value)
    return cast(ModuleApi, SimpleNamespace(_hs=hs))


class CheckTests(SynchronousTestCase):
    """`check` and the constructor of `Homeserver`."""

    def test_this_synapse_has_everything(self) -> None:
        hooks.check()
        self.assertEqual(hooks.Homeserver(fake_api()).server_name, "example.org")

    def test_each_missing_method_is_named_with_the_version(self) -> None:
        for owner, name in hooks.NEEDED:
            with self.assertRaises(ConfigError) as caught:
                hooks.check([(owner, f"{name}_of_old")])
            self.assertIn(f"Synapse {SYNAPSE_VERSION}", caught.exception.msg)
            self.assertIn(repr(f"{name}_of_old"), caught.exception.msg)

    def test_missing_attributes_of_the_homeserver(self) -> None:
        with self.assertRaises(ConfigError) as caught:
            hooks.Homeserver(cast(ModuleApi, SimpleNamespace()))
        self.assertIn("'_hs'", caught.exception.msg)
        with self.assertRaises(ConfigError) as caught:
            hooks.Homeserver(fake_api(config=SimpleNamespace(server=SimpleNamespace())))
        self.assertIn("'listeners'", caught.exception.msg)

    def test_a_missing_import_is_a_config_error_of_the_configuration(self) -> None:
        """As Synapse prints it: without a traceback, and the process ends with status 1."""
        program = (
            "import sys, synapse.http.site as site\n"
            "from synapse.app.homeserver import load_or_generate_config\n"
            "del site.SynapseRequest\n"
            "load_or_generate_config(sys.argv[1:])\n"
        )
        path = self.mktemp()
        Path(path).write_text(
            "server_name: example.org\nreport_stats: false\nmodules: [{module: synapse_lb.LowBandwidthModule}]\n"
        )
        ended = subprocess.run(
            [sys.executable, "-c", program, "-c", path],
            capture_output=True,
            text=True,
            env={"PYTHONPATH": str(ROOT)},
            timeout=60,
        )
        self.assertEqual(ended.returncode, 1)
        self.assertIn("Error in configuration:\n  synapse-lb does not support", ended.stderr)
        self.assertIn("SynapseRequest", ended.stderr)
        self.assertNotIn("Traceback", ended.stderr)


class ListenerTypeTests(SynchronousTestCase):
    """Teaching Synapse the listener type."""

    def test_twice_is_once(self) -> None:
        hooks.teach_listener_type(config.LISTENER_TYPE, config.parse_listener)
        before = [vars(holder)["parse_listener_def"] for holder in (server, workers)]
        hooks.teach_listener_type(config.LISTENER_TYPE, config.parse_listener)
        self.assertEqual([vars(holder)["parse_listener_def"] for holder in (server, workers)], before)


class ListeningTests(SynchronousTestCase):
    """Opening our listeners with those of Synapse, in the main process and in a worker."""

    def check(self, section: str, attribute: str, worker_app: str | None) -> None:
        """Synapse must see all but ours, and ours must be there before and after."""
        calls: list[Any] = []
        api = fake_api()
        settings = api._hs.config
        settings.worker.worker_app = worker_app
        setattr(getattr(settings, section), attribute, ["http", "ours"])

        def start_listening() -> None:
            calls.append(list(getattr(getattr(settings, section), attribute)))
            if len(calls) > 2:
                raise RuntimeError("a listener of Synapse's own")

        vars(api._hs)["start_listening"] = start_listening
        homeserver = hooks.Homeserver(api)
        self.assertEqual(
            (list(homeserver.listeners), homeserver.is_worker), (["http", "ours"], bool(worker_app))
        )
        homeserver.when_listening(lambda listener: listener == "ours", lambda: calls.append("started"))
        api._hs.start_listening()
        self.assertEqual(calls, [["http"], "started"])
        self.assertEqual(list(homeserver.listeners), ["http", "ours"])
        self.assertRaises(RuntimeError, api._hs.start_listening)
        self.assertEqual(list(homeserver.listeners), ["http", "ours"])

    def test_main_process(self) -> None:
        self.check("server", "listeners", None)

    def test_worker(self) -> None:
        self.check("worker", "worker_listeners", "synapse.app.generic_worker")


class StopTests(SynchronousTestCase):
    """Ending the start of Synapse."""

    def test_whoever_else_starts_a_homeserver_gets_the_error(self) -> None:
        error = ConfigError("mend this")
        with self.assertRaises(ConfigError) as caught:
            hooks.stop_starting_up(error)
        self.assertIs(caught.exception, error)


class VersionsTests(SynchronousTestCase):
    """What ``/versions`` says besides."""

    def test_added_for_one_homeserver_and_taken_back(self) -> None:
        servlet = VersionsRestServlet
        original = servlet.on_GET
        homeservers = [hooks.Homeserver(fake_api()) for _ in range(2)]
        homeservers[0].advertise({"a": 1})
        homeservers[1].advertise({"a": 2})
        self.assertIsNot(servlet.on_GET, original)
        homeservers[0].stop_advertising()
        self.assertIsNot(servlet.on_GET, original)
        homeservers[1].stop_advertising()
        homeservers[1].stop_advertising()
        self.assertIs(servlet.on_GET, original)
