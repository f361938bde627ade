# SPDX-License-Identifier: AGPL-3.0-or-later
"""PostgreSQL and Redis of one's own: what is said when they are missing, and that nothing stays."""

from __future__ import annotations

import shutil
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.testing import throwaway_services
from synapse_lb.testing.throwaway_services import Postgres, Redis, ServiceFailed, ServicesMissing, missing
from synapse_lb.testing.throwaway_workers import ThrowawayWorkers


class MissingTests(SynchronousTestCase):
    """What has to be installed."""

    def without(self) -> None:
        """Let neither server be found."""
        self.patch(throwaway_services, "_postgres_folder", lambda: None)
        self.patch(shutil, "which", lambda name: None)

    def test_the_packages_are_named(self) -> None:
        self.without()
        self.patch(throwaway_services, "PYTHON_MODULES", {"no_such_module": "no-such-package"})
        text = str(missing())
        self.assertIn("apt-get install --no-install-recommends postgresql redis-server", text)
        self.assertIn("pip install no-such-package", text)

    def test_nothing_is_started_then(self) -> None:
        self.without()
        homeserver = ThrowawayWorkers(Path("contrib/workers"))
        error = self.assertRaises(ServicesMissing, homeserver.start)
        self.assertIn("apt-get", str(error))
        self.assertEqual((homeserver.folder, homeserver.processes), (Path(), {}))


class ServiceTests(SynchronousTestCase):
    """The servers."""

    def setUp(self) -> None:
        text = missing()
        if text is not None:
            self.skipTest(text)

    def test_they_come_and_go(self) -> None:
        for service in (Postgres("someone", "something"), Redis()):
            self.addCleanup(service.stop)
            service.start()
            self.assertTrue(service.folder.exists())
            service.stop()
            service.stop()
            self.assertFalse(service.folder.exists())

    def test_one_that_does_not_start(self) -> None:
        redis = Redis()
        self.addCleanup(redis.stop)
        self.patch(Redis, "socket_path", redis.folder / "no" / "such" / "folder")
        error = self.assertRaises(ServiceFailed, redis.start)
        self.assertIn("redis does not start", str(error))
        self.assertFalse(redis.folder.exists())
