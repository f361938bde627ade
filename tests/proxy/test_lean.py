# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `--lean` leaves out, and filters that are too long for CoAP."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from tests.proxy.harness import SyncTestCase

SYNC = "/_matrix/client/v3/sync"


class LeanTests(SyncTestCase):
    def serve(self, request: MatrixRequest) -> MatrixResponse | None:
        """What the homeserver has besides `/sync`."""
        if request.path.endswith(b"/whoami"):
            return MatrixResponse(200, {"user_id": self.homeserver.users[request.access_token or ""]})
        if b"@bob" in request.path and request.path.endswith(b"/filter/5"):
            return MatrixResponse(200, {"room": {"timeline": {"limit": 99}}})
        if request.path.endswith(b"/filter/5"):
            return MatrixResponse(200, {"room": {"timeline": {"limit": 3}, "ephemeral": {"limit": 1}}})
        if request.path.endswith(b"/filter/6"):
            return MatrixResponse(404, {"errcode": "M_NOT_FOUND", "error": "No such filter"})
        if request.method == "POST" and request.path.endswith(b"/filter"):
            self.uploaded.append(request.body)
            return MatrixResponse(200, {"filter_id": "99"})
        return None

    def setUp(self) -> None:
        """Nobody has uploaded a filter."""
        super().setUp()
        self.uploaded: list[Any] = []
        self.homeserver.answer = self.serve

    def last_filter(self) -> Any:
        """The filter of the last request."""
        return json.loads(self.homeserver.syncs[-1]["filter"])

    async def test_filters_are_merged(self) -> None:
        _, http = self.start_proxy(self.start_gateway(), lean=True)
        nothing = {"not_types": ["*"]}
        await http.get(f"{SYNC}?timeout=0&set_presence=online", "alice-1")
        self.assertEqual(self.last_filter(), {"presence": nothing, "room": {"ephemeral": nothing}})
        self.assertEqual(self.homeserver.syncs[-1]["set_presence"], "offline")
        inline = quote(json.dumps({"room": {"rooms": ["!r:x"]}, "event_format": "client"}))
        await http.get(f"{SYNC}?timeout=0&filter={inline}", "alice-1")
        self.assertEqual(
            self.last_filter(),
            {
                "room": {"rooms": ["!r:x"], "ephemeral": nothing},
                "event_format": "client",
                "presence": nothing,
            },
        )
        for _ in range(2):
            await http.get(f"{SYNC}?timeout=0&filter=5", "alice-1")
        room = {"timeline": {"limit": 3}, "ephemeral": {"limit": 1, "not_types": ["*"]}}
        self.assertEqual(self.last_filter(), {"room": room, "presence": nothing})
        asked = [request.path for request, _ in self.homeserver.requests if b"filter" in request.path]
        self.assertEqual(len(asked), 1, "a filter is fetched once")

    async def test_filters_of_several_users(self) -> None:
        """The id of a filter means another one for each user."""
        _, http = self.start_proxy(self.start_gateway(), lean=True)
        for token, limit in (("alice-1", 3), ("bob-1", 99)):
            await http.get(f"{SYNC}?timeout=0&filter=5", token)
            self.assertEqual(self.last_filter()["room"]["timeline"], {"limit": limit})

    async def test_filters_that_fail(self) -> None:
        _, http = self.start_proxy(self.start_gateway(), lean=True)
        got = await http.get(f"{SYNC}?timeout=0&filter=6", "alice-1")
        self.assertEqual((got.status, got.json["errcode"]), (404, "M_NOT_FOUND"))
        got = await http.get(f"{SYNC}?timeout=0&filter=%7Bbad", "alice-1")
        self.assertEqual((got.status, got.json["errcode"]), (400, "M_INVALID_PARAM"))
        got = await http.get(f"{SYNC}?timeout=0&filter=5", "wrong")
        self.assertEqual(got.status, 401)

    async def test_long_filters_are_kept_by_the_homeserver(self) -> None:
        """Not only with --lean: a query of CoAP holds 255 bytes."""
        _, http = self.start_proxy(self.start_gateway())
        long = {"room": {"rooms": ["!" + "r" * 300]}}
        for _ in range(2):
            got = await http.get(f"{SYNC}?timeout=0&filter={quote(json.dumps(long))}", "alice-1")
            self.assertEqual(got.status, 200)
        self.assertEqual(self.homeserver.syncs[-1]["filter"], "99")
        self.assertEqual(self.uploaded, [long])

    async def test_own_typing_receipts_and_presence(self) -> None:
        proxy, http = self.start_proxy(self.start_gateway(), lean=True)
        room = "/_matrix/client/v3/rooms/%21r%3Ax"
        for method, path in (
            ("PUT", f"{room}/typing/%40alice%3Ax"),
            ("POST", f"{room}/receipt/m.read/%24event"),
            ("POST", f"{room}/read_markers"),
            ("PUT", "/_matrix/client/r0/presence/%40alice%3Ax/status"),
        ):
            got = await http.fetch(method, path, {}, "alice-1")
            self.assertEqual((got.status, got.json), (200, {}))
        self.assertEqual(self.homeserver.requests, [])
        self.assertEqual(proxy.status()["requests_dropped"], 4)
        await http.get("/_matrix/client/v3/presence/%40alice%3Ax/status", "alice-1")
        self.assertEqual(len(self.homeserver.requests), 1)

    async def test_sliding_sync(self) -> None:
        path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
        body = {"lists": {}, "extensions": {"typing": {}, "receipts": {}, "e2ee": {"enabled": True}}}
        for lean in (True, False):
            _, http = self.start_proxy(self.start_gateway(), lean=lean)
            await http.post(f"{path}?timeout=0&pos=1", body, "alice-1")
            sent = self.homeserver.requests[-1][0].body["extensions"]
            self.assertEqual(set(sent), {"e2ee"} if lean else {"typing", "receipts", "e2ee"})
