# SPDX-License-Identifier: AGPL-3.0-or-later
"""The socket on which a throw-away homeserver says that it is ready."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.testing.throwaway_process import notify_socket


class NotifySocketTests(SynchronousTestCase):
    def assert_works(self) -> Path:
        """It can be written to, and goes; returns where it was."""
        with notify_socket() as (notify, path), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"READY=1", path)
            self.assertEqual(notify.recv(100), b"READY=1")
        self.assertFalse(Path(path).exists())
        self.assertFalse(Path(path).parent.exists())
        return Path(path)

    def test_in_the_folder_for_temporary_files(self) -> None:
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            self.patch(tempfile, "tempdir", folder)
            self.assertEqual(self.assert_works().parent.parent, Path(folder))

    def test_folder_with_a_long_name(self) -> None:
        folder = Path(self.mktemp()).resolve() / ("long" * 25)
        folder.mkdir(parents=True)
        self.patch(tempfile, "tempdir", str(folder))
        self.assertEqual(self.assert_works().parent.parent, Path("/tmp"))
