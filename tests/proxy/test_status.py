# SPDX-License-Identifier: AGPL-3.0-or-later
"""`/_lb/status`: numbers for programs, and a page for people."""

from __future__ import annotations

import re

from synapse_lb.proxy.status_page import PAGE
from tests.proxy.harness import ProxyTestCase

ECHO = "/_matrix/client/v3/echo"


class StatusTests(ProxyTestCase):
    async def test_json(self) -> None:
        proxy, http = self.start_proxy(self.start_server())
        await http.get(f"{ECHO}?secret=1", "syt_secret")
        await http.get("/nothing")
        for path in ("/_lb/status", "/_lb/status.json"):
            got = await http.get(path)
            self.assertEqual((got.status, got.header("Content-Type")), (200, "application/json"))
            self.assertIsNone(got.header("Access-Control-Allow-Origin"), "other sites could read it")
            self.assertNotIn(b"secret", got.content)
            status = got.json
            self.assertEqual(
                (status["requests"], status["requests_coap"], status["requests_failed"]), (2, 1, 1)
            )
            self.assertGreater(status["http_bytes"], 500)
            self.assertGreater(status["wire_bytes"], 500)
        traffic = proxy.status()
        self.assertEqual(traffic["wire_bytes"], status["wire_bytes"])
        self.assertEqual((await http.fetch("POST", "/_lb/status", {})).status, 405)

    async def test_page(self) -> None:
        _, http = self.start_proxy(self.start_server())
        got = await http.get("/_lb/status", Accept="text/html,*/*;q=0.8")
        self.assertEqual(got.content.decode(), PAGE)
        self.assertIn("default-src 'none'", got.header("Content-Security-Policy") or "")
        got = await http.get("/_lb/status.json", Accept="text/html")
        self.assertEqual(got.header("Content-Type"), "application/json")

    def test_page_loads_nothing_from_elsewhere(self) -> None:
        addresses = set(re.findall(r"https?://[^\"'\s)]+|//[a-z]+\.[a-z]+", PAGE))
        self.assertEqual(addresses, {"http://www.w3.org/2000/svg"})
        self.assertNotRegex(PAGE, r"<(link|img|script src|iframe)")

    async def test_page_knows_every_number_it_shows(self) -> None:
        proxy, _ = self.start_proxy(self.start_server())
        shown = set(re.findall(r'\["[^"]+", "([a-z_]+)"\]', PAGE)) | set(
            re.findall(r"status\.([a-z_]+)", PAGE)
        )
        self.assertGreater(len(shown), 12)
        self.assertEqual(shown - set(proxy.status()) - {"json"}, set())
