# SPDX-License-Identifier: AGPL-3.0-or-later
"""Each class of request is served by the process that serves it, whichever worker it came to (docs/workers.md)."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from synapse_lb.testing.throwaway_workers import MAIN
from tests.workers.harness import REACTOR, V3, WorkersCase, numbers


class Elsewhere:
    """The reactor, but that sockets are at another address of the loopback interface."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __getattr__(self, name: str) -> Any:
        return getattr(REACTOR, name)

    def listenUDP(self, port: int, protocol: Any, interface: str = "", maxPacketSize: int = 8192) -> Any:
        """Open a socket."""
        return REACTOR.listenUDP(port, protocol, interface=self._address, maxPacketSize=maxPacketSize)


class RoutingTests(WorkersCase):
    """By the access logs of the processes."""

    async def served(
        self, worker: str, method: str, path: str, token: str, json: Any
    ) -> tuple[int, list[str]]:
        """Ask a worker; returns the status and who served it."""
        arguments = {} if json is None else {"json": json}
        path = f"{path}?request={next(numbers)}"
        response = await self.client(worker).request(method, path, token=token, **arguments)
        return response.status, self.served_by(path)

    async def test_each_class_of_request(self) -> None:
        alice, bob = self.user(), self.user()
        room = quote(await self.room_of(alice, bob), safe="")
        user = quote(alice.user_id, safe="")
        here = "worker2"
        for method, path, json, by in (
            ("GET", f"{V3}/account/whoami", None, here),
            ("GET", f"{V3}/rooms/{room}/members", None, here),
            ("PUT", f"{V3}/rooms/{room}/send/m.room.message/x", {"msgtype": "m.text", "body": "x"}, here),
            ("GET", f"{V3}/pushrules/", None, here),
            ("POST", f"{V3}/keys/query", {"device_keys": {}}, here),
            # Only the main process has these servlets.
            ("GET", f"{V3}/thirdparty/protocols", None, MAIN),
            ("POST", f"{V3}/user/{user}/openid/request_token", {}, MAIN),
            ("GET", f"{V3}/pushers", None, MAIN),
            # All of one room's to one process.
            ("GET", f"{V3}/rooms/{room}/messages", None, MAIN),
            # Streams that the main process writes, and one that worker1 writes.
            ("PUT", f"{V3}/pushrules/global/content/x/enabled", {"enabled": True}, MAIN),
            ("PUT", f"{V3}/user/{user}/account_data/org.example.x", {"a": 1}, MAIN),
            ("POST", f"{V3}/keys/upload", {}, MAIN),
            ("PUT", f"{V3}/presence/{user}/status", {"presence": "online"}, MAIN),
            ("PUT", f"{V3}/rooms/{room}/typing/{user}", {"typing": True, "timeout": 1000}, "worker1"),
        ):
            status, served = await self.served(here, method, path, alice.token, json)
            expected = 404 if path.endswith("/x/enabled") else 200
            self.assertEqual((path, status, served), (path, expected, [by]))

    async def test_the_writer_serves_its_stream_itself(self) -> None:
        alice, bob = self.user(), self.user()
        room = quote(await self.room_of(alice, bob), safe="")
        path = f"{V3}/rooms/{room}/typing/{quote(bob.user_id, safe='')}"
        self.assertEqual(
            await self.served("worker1", "PUT", path, bob.token, {"typing": False}), (200, ["worker1"])
        )

    async def test_what_nobody_serves_is_the_main_process_answer(self) -> None:
        path = f"{V3}/nothing/of/the/kind"
        response = await self.client("worker1").request("GET", path)
        self.assertEqual((response.status, response.body["errcode"]), (404, "M_UNRECOGNIZED"))
        self.assertEqual(self.served_by(path), [MAIN])

    async def test_media_are_refused_here(self) -> None:
        path = "/_matrix/client/v1/media/download/localhost/abc"
        response = await self.client("worker1").request("GET", path, token=self.user().token)
        self.assertEqual((response.status, self.served_by(path)), (501, ["worker1"]))

    async def test_the_main_process_sees_the_clients_address(self) -> None:
        client = self.client("worker1", reactor=Elsewhere("127.0.0.7"))
        path = f"{V3}/thirdparty/protocols?from=elsewhere"
        await self.ok(client, "GET", path, token=self.user().token)
        (line,) = [
            line
            for line in self.homeserver.processes[MAIN].log_text.splitlines()
            if "Processed request" in line and "from=elsewhere" in line
        ]
        self.assertIn(" - 127.0.0.7 - ", line)

    async def test_a_logout_ends_the_sticky_token(self) -> None:
        user = self.user()
        client = self.client("worker2")
        await self.ok(client, "GET", f"{V3}/account/whoami", token=user.token)
        await self.ok(client, "POST", f"{V3}/logout", json={}, token=user.token)
        response = await client.request("GET", f"{V3}/pushers", token=user.token)
        self.assertEqual((response.status, response.body["errcode"]), (401, "M_UNKNOWN_TOKEN"))
        response = await client.request("GET", f"{V3}/account/whoami")
        self.assertEqual((response.status, response.body["errcode"]), (401, "M_MISSING_TOKEN"))
