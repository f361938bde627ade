# SPDX-License-Identifier: AGPL-3.0-or-later
"""matrix-js-sdk (npm) under Node.js: login, initial sync, send, receive, sliding sync."""

from __future__ import annotations

from tests.clients.harness import JS, PASSWORD, ClientsTestCase, node


class JsSdkTests(ClientsTestCase):
    def test_two_users(self) -> None:
        """They talk, with the ordinary sync and with the sliding one."""
        program = node()
        names = self.new_name("alice"), self.new_name("bob")
        alice, bob = (self.register(name)["user_id"] for name in names)
        said = self.run_client([program, str(JS / "sdk.mjs"), self.url, *names, PASSWORD])
        self.assertEqual(
            said,
            {
                "versions": True,
                "ordinary": {"rounds": [alice, bob] * 3, "members": 2},
                "sliding": {"before": True, "heard": True},
                "profile": {"displayname": "Alice Ä"},
                "history": 7,
                "loggedOut": "M_UNKNOWN_TOKEN",
            },
        )
        status = self.status()
        self.assertGreater(status["syncs"]["observed"], 4)
        self.assertEqual(status["requests_failed"], 0)
