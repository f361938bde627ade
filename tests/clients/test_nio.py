# SPDX-License-Identifier: AGPL-3.0-or-later
"""matrix-nio (PyPI): a bot that is invited, joins, hears and answers, also in an encrypted room."""

from __future__ import annotations

from tests.clients.harness import ROOT, ClientsTestCase, clients_python


class NioTests(ClientsTestCase):
    def test_bot(self) -> None:
        """End-to-end encryption needs to-device messages: Olm carries the room's keys there."""
        python = clients_python()
        alice, bot = self.new_name("alice"), self.new_name("bot")
        self.register(alice)
        self.register(bot)
        script = str(ROOT / "tests" / "clients" / "nio_bot.py")
        said = self.run_client([python, script, self.url, str(self.folder / "store"), alice, bot])
        answer = "You said: Grüße, bot"
        self.assertEqual(said["plain"], {"heard": answer, "decrypted": False, "encryption": False})
        self.assertEqual(said["encrypted"], {"heard": answer, "decrypted": True, "encryption": True})
        status = self.status()
        self.assertGreater(status["syncs"]["observed"], 4)
        self.assertEqual(status["requests_failed"], 0)
        self.assertGreater(status["saving_percent"], 0)
