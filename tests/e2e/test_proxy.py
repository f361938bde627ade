# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb proxy` as a process, discovering a real Synapse: what it says is what Synapse says over HTTP."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.testing.throwaway import ThrowawayHomeserver, synapse_is_installed
from tests.e2e.harness import CLIENT, User, numbers, shared_homeserver

ROOT: Final = Path(__file__).resolve().parents[2]
CLOCKS: Final = frozenset({"age", "last_seen_ts", "session"})
SYNC: Final = f"{CLIENT}/sync"


def without_clocks(value: Any) -> Any:
    """An answer without what is different each time."""
    if isinstance(value, dict):
        return {name: without_clocks(each) for name, each in value.items() if name not in CLOCKS}
    return [without_clocks(each) for each in value] if isinstance(value, list | tuple) else value


def timeline(sync: Any, room: str) -> list[str]:
    """The texts of the messages in a sync."""
    events = sync.get("rooms", {}).get("join", {}).get(room, {}).get("timeline", {}).get("events", [])
    return [event["content"]["body"] for event in events if event["type"] == "m.room.message"]


@unittest.skipUnless(synapse_is_installed(), "matrix-synapse is not installed")
class ProxyTests(SynchronousTestCase):
    """A proxy for each test."""

    def setUp(self) -> None:
        self.homeserver: ThrowawayHomeserver = shared_homeserver()
        self.errors_before = len(self.homeserver.error_lines())

    def tearDown(self) -> None:
        self.assertEqual(self.homeserver.error_lines()[self.errors_before :], [])

    def start(self, *options: str) -> None:
        """Start it."""
        command = [sys.executable, "-m", "synapse_lb.cli.main", "proxy", "--listen", "0", "--quiet"]
        command += ["--cacert", str(self.homeserver.certificate_path), *options]
        command.append(f"https://localhost:{self.homeserver.ports.https}")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.addCleanup(self.stop)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def stop(self) -> None:
        """SIGTERM ends it in order."""
        self.process.terminate()
        try:
            self.assertEqual(self.process.wait(30), 0)
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()

    def ask(
        self, method: str, path: str, body: Any = None, token: str | None = None, **headers: str
    ) -> tuple[int, Any]:
        """A request to the proxy: status and JSON, or bytes."""
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
        content = body if isinstance(body, bytes | None) else json.dumps(body)
        try:
            connection.request(method, path, content, headers)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        is_json = (response.getheader("Content-Type") or "").startswith("application/json")
        return response.status, json.loads(text) if is_json else text

    def good(self, method: str, path: str, body: Any = None, token: str | None = None) -> Any:
        """A request that must succeed."""
        status, answer = self.ask(method, path, body, token)
        self.assertEqual(status, 200, f"{method} {path}: {answer}")
        return answer

    def status(self) -> Any:
        """What the proxy says of itself."""
        return self.good("GET", "/_lb/status")

    def user(self) -> User:
        return User(self.homeserver, f"proxied{next(numbers)}")

    def test_same_answers_as_over_http(self) -> None:
        """Statuses and bodies, of what works and of what does not."""
        self.start()
        alice = self.user()
        room = quote(alice.room(name="Ä / & ?", preset="public_chat"), safe="")
        alice.say(alice.room(), "elsewhere")
        user = quote(alice.user_id, safe="")
        alice.http("PUT", f"{CLIENT}/user/{user}/account_data/org.example", {"a": [1, None, "ü", 1.5]})
        for method, path, body, token in self.requests(room, user, alice.token):
            direct = self.homeserver.request(method, path, body, token)
            through = self.ask(method, path, body, token)
            self.assertEqual(without_clocks(through), without_clocks(direct), f"{method} {path}")
        status = self.status()
        self.assertEqual((status["requests_https"], status["requests_failed"]), (0, 0))

    def requests(self, room: str, user: str, token: str) -> Iterator[tuple[str, str, Any, str | None]]:
        """Requests that can be made twice."""
        for path in (
            "/_matrix/client/versions",
            f"{CLIENT}/login",
            f"{CLIENT}/capabilities",
            f"{CLIENT}/account/whoami",
            f"{CLIENT}/joined_rooms",
            f"{CLIENT}/pushrules/",
            f"{CLIENT}/devices",
            f"{CLIENT}/profile/{user}",
            f"{CLIENT}/profile/%40nobody%3Alocalhost",
            f"{CLIENT}/user/{user}/account_data/org.example",
            f"{CLIENT}/user/{user}/account_data/org.example.none",
            f"{CLIENT}/rooms/{room}/state",
            f"{CLIENT}/rooms/{room}/state/m.room.name/",
            f"{CLIENT}/rooms/{room}/state/m.room.topic",
            f"{CLIENT}/rooms/{room}/members?not_membership=leave",
            f"{CLIENT}/rooms/{room}/messages?dir=b&limit=3",
            f"{CLIENT}/rooms/{room}/messages?dir=sideways",
            f"{CLIENT}/rooms/%21none%3Alocalhost/state",
            f"{CLIENT}/directory/room/%23none%3Alocalhost",
            f"{CLIENT}/nothing/of/this",
            f"{SYNC}?timeout=0&filter=%7B%22room%22%3A%7B%22rooms%22%3A%5B%5D%7D%7D&set_presence=offline",
            f"{SYNC}?since=nonsense",
        ):
            yield "GET", path, None, token
        yield "GET", f"{CLIENT}/account/whoami", None, None
        yield "GET", f"{CLIENT}/account/whoami", None, "wrong"
        yield "POST", f"{CLIENT}/createRoom", {"preset": "nonsense"}, token
        yield "POST", f"{CLIENT}/join/%23none%3Alocalhost", {}, token
        yield "POST", f"{CLIENT}/keys/query", {"device_keys": {}}, token
        yield (
            "PUT",
            f"{CLIENT}/rooms/{room}/send/m.room.message/t1",
            {"msgtype": "m.text", "body": "x"},
            token,
        )
        yield "PUT", f"{CLIENT}/rooms/{room}/state/m.room.power_levels", {"users": {"x": 1}}, token
        yield "POST", f"{CLIENT}/login", {"type": "m.login.password", "password": "x"}, None
        yield "POST", f"{CLIENT}/register", {"username": "a b"}, None
        yield "DELETE", f"{CLIENT}/devices/NONE", {}, token

    def test_media_over_https(self) -> None:
        """It is discovered, where; and what is no JSON goes there too."""
        self.start()
        alice = self.user()
        content = bytes(range(256)) * 500
        status, uploaded = self.ask(
            "POST",
            "/_matrix/media/v3/upload?filename=x",
            content,
            alice.token,
            **{"Content-Type": "image/png"},
        )
        if status == 404:
            # This Synapse has no media: it says so over HTTPS.
            self.assertEqual(uploaded["errcode"], "M_UNRECOGNIZED")
        else:
            where = uploaded["content_uri"].removeprefix("mxc://")
            path = f"/_matrix/client/v1/media/download/{where}"
            self.assertEqual(self.ask("GET", path, None, alice.token), (200, content))
        self.assertGreaterEqual(self.status()["requests_https"], 1)

    def test_long_polls(self) -> None:
        """Messages, and a to-device message that is only gone when the client has said that it has it."""
        self.start()
        alice, bob = self.user(), self.user()
        room = alice.room(preset="public_chat")
        self.good("POST", f"{CLIENT}/join/{quote(room, safe='')}", {}, bob.token)
        since = self.good("GET", f"{SYNC}?timeout=0", None, bob.token)["next_batch"]
        heard: list[str] = []
        for number in range(3):
            threading.Timer(0.2, alice.say, [room, f"{number}"]).start()
            while f"{number}" not in heard:
                sync = self.good("GET", f"{SYNC}?timeout=30000&since={since}", None, bob.token)
                heard += timeline(sync, room)
                since = sync["next_batch"]
        self.assertEqual(heard, ["0", "1", "2"])
        letter = {"messages": {bob.user_id: {bob.device_id: {"secret": 1}}}}
        alice.http("PUT", f"{CLIENT}/sendToDevice/org.example/{next(numbers)}", letter)
        for _ in range(3):
            sync = self.good("GET", f"{SYNC}?timeout=30000&since={since}", None, bob.token)
            events = sync["to_device"]["events"]
            self.assertEqual([event["content"] for event in events], [{"secret": 1}])
        sync = self.good("GET", f"{SYNC}?timeout=200&since={sync['next_batch']}", None, bob.token)
        self.assertNotIn("to_device", sync)
        self.assertGreater(self.status()["syncs"]["observed"], 3)

    def test_lean(self) -> None:
        """Typing, receipts and presence do not arrive, messages do."""
        self.start("--lean")
        alice, bob = self.user(), self.user()
        room = alice.room(preset="public_chat")
        path = f"{CLIENT}/rooms/{quote(room, safe='')}"
        self.good("POST", f"{CLIENT}/join/{quote(room, safe='')}", {}, bob.token)
        own = self.good(
            "POST", f"{CLIENT}/user/{quote(bob.user_id, safe='')}/filter", {"room": {}}, bob.token
        )
        query = f"filter={own['filter_id']}"
        since = self.good("GET", f"{SYNC}?{query}", None, bob.token)["next_batch"]
        event = alice.say(room, "hello")
        alice.http(
            "PUT", f"{path}/typing/{quote(alice.user_id, safe='')}", {"typing": True, "timeout": 30000}
        )
        alice.http("POST", f"{path}/receipt/m.read/{quote(event, safe='')}", {})
        self.good("PUT", f"{path}/typing/{quote(bob.user_id, safe='')}", {"typing": True}, bob.token)
        answers = []
        for _ in range(3):
            sync = self.good("GET", f"{SYNC}?{query}&timeout=300&since={since}", None, bob.token)
            since = sync["next_batch"]
            answers.append(sync)
        self.assertEqual([text for sync in answers for text in timeline(sync, room)], ["hello"])
        for sync in answers:
            joined = sync.get("rooms", {}).get("join", {}).get(room, {})
            self.assertFalse(joined.get("ephemeral", {}).get("events"), joined)
            self.assertNotIn("presence", sync)
        direct = bob.http("GET", f"{SYNC}?timeout=0&set_presence=offline")
        typing = [
            each
            for each in direct["rooms"]["join"][room]["ephemeral"]["events"]
            if each["type"] == "m.typing"
        ]
        self.assertEqual(typing[0]["content"]["user_ids"], [alice.user_id])
