# SPDX-License-Identifier: AGPL-3.0-or-later
"""Hydrogen (npm: hydrogen-view-sdk) in Debian's Chromium: somebody logs in, sees a room, speaks, and is answered."""

from __future__ import annotations

import struct
from pathlib import Path

from tests.clients.harness import ARTIFACTS, JS, PASSWORD, ClientsTestCase, chromium, node


def png_size(path: Path) -> tuple[int, int]:
    """Width and height of a picture."""
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG\r\n\x1a\n"), path
    width, height = struct.unpack(">II", head[16:24])
    return width, height


class HydrogenTests(ClientsTestCase):
    def test_conversation(self) -> None:
        """A browser has no UDP at all, and the homeserver has no TCP port."""
        program, browser = node(), chromium()
        alice, bob = self.new_name("alice"), self.new_name("bob")
        alice_id = self.register(alice)["user_id"]
        self.register(bob)
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        script = str(JS / "hydrogen.mjs")
        said = self.run_client(
            [program, script, self.url, alice, bob, PASSWORD, browser, str(ARTIFACTS)], timeout=180
        )
        self.assertEqual(said["sender"], alice_id)
        self.assertEqual((said["elsewhere"], said["faults"]), ([], []))
        self.assertTrue(said["plotted"])
        self.assertRegex(said["saving"], r"^[0-9.]+ % saved$")
        for name in ("hydrogen.png", "hydrogen-login.png", "status.png"):
            self.assertEqual(png_size(ARTIFACTS / name), (1100, 640))
        status = self.status()
        self.assertGreater(status["requests_coap"], 20)
        self.assertGreater(status["syncs"]["observed"], 1)
