# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tests that pass, fail, hang and crash on purpose, for `test_checks`. Trial does not find them by itself."""

from __future__ import annotations

import os
import time

from twisted.trial.unittest import SynchronousTestCase


class Mixed(SynchronousTestCase):
    """One of each kind."""

    def test_good(self) -> None:
        """Passes."""

    def test_bad(self) -> None:
        """Fails."""
        self.assertEqual(1, 2)

    def test_skipped(self) -> None:
        """Is skipped."""
        self.skipTest("the moon is down")


class BadTwice(SynchronousTestCase):
    """One test with two faults."""

    def test_bad(self) -> None:
        """Fails, and so does its cleaning up."""
        self.addCleanup(self.fail, "again")
        self.fail("once")


class Crash(SynchronousTestCase):
    """Takes the interpreter with it."""

    def test_crash(self) -> None:
        """Ends the process with status 0, as if all were well."""
        os._exit(0)


class Hang(SynchronousTestCase):
    """Does not end."""

    def test_hang(self) -> None:
        """Sleeps much longer than it is given."""
        time.sleep(600)
