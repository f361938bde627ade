# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where requests go in a Synapse with workers."""

from __future__ import annotations

import re
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.homeserver.routes import MAIN, STREAM_ENDPOINTS, Route, Router, missing
from synapse_lb.msc3079.messages import MatrixRequest

V3 = "/_matrix/client/v3"
MAIN_URL, WRITER_URL = "http://127.0.0.1:8008", "http://127.0.0.1:8081"
ALL_MAIN: dict[str, list[str]] = {stream: [MAIN] for stream in STREAM_ENDPOINTS}


def router(**settings: Any) -> Router:
    """A router of a worker that serves everything with 'here' in it."""
    defaults: dict[str, Any] = {
        "own": "here",
        "urls": {MAIN: MAIN_URL, "writer": WRITER_URL},
        "writers": ALL_MAIN,
        "serves": lambda method, path: b"here" in path,
    }
    return Router(**{**defaults, **settings})


class RouterTests(SynchronousTestCase):
    """`Router.url_for`."""

    def goes(self, found: Router, method: str, path: str, token: str | None = None) -> str | None:
        """Where a request goes."""
        return found.url_for(MatrixRequest(method, path.encode(), access_token=token))

    def test_what_is_served_here_stays(self) -> None:
        self.assertIsNone(self.goes(router(), "GET", f"{V3}/here"))

    def test_what_is_not_served_here_goes_to_the_main_process(self) -> None:
        self.assertEqual(self.goes(router(), "POST", f"{V3}/logout"), MAIN_URL)

    def test_without_a_main_process_it_is_refused_here(self) -> None:
        self.assertIsNone(self.goes(router(urls={}), "POST", f"{V3}/logout"))

    def test_syncs_are_observed_here_and_stay(self) -> None:
        everything = [Route(re.compile(".*"), None, MAIN)]
        found = router(routes=everything)
        self.assertEqual(self.goes(found, "GET", f"{V3}/here"), MAIN_URL)
        self.assertIsNone(self.goes(found, "GET", f"{V3}/sync"))
        sliding = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
        self.assertIsNone(self.goes(found, "POST", sliding))

    def test_only_the_client_api_goes_anywhere(self) -> None:
        self.assertIsNone(self.goes(router(), "GET", "/.well-known/matrix/client"))

    def test_messages_of_a_room_go_to_one_process(self) -> None:
        self.assertEqual(self.goes(router(), "GET", f"{V3}/rooms/!here:x/messages"), MAIN_URL)
        self.assertIsNone(self.goes(router(), "GET", f"{V3}/rooms/!here:x/messages/more"))

    def test_each_stream_goes_to_its_writer(self) -> None:
        paths = {
            "typing": f"{V3}/rooms/!here:x/typing/@a:x",
            "to_device": f"{V3}/sendToDevice/m.here/1",
            "account_data": f"{V3}/user/@here:x/account_data/m.x",
            "receipts": f"{V3}/rooms/!here:x/receipt/m.read/$e",
            "presence": f"{V3}/presence/@here:x/status",
            "push_rules": f"{V3}/pushrules/global/override/here/enabled",
            "device_lists": f"{V3}/devices/here",
            "thread_subscriptions": "/_matrix/client/unstable/io.element.msc4306/rooms/!here:x/thread/$e/subscription",
        }
        self.assertEqual(set(paths), set(STREAM_ENDPOINTS))
        for stream, path in paths.items():
            found = router(writers={**ALL_MAIN, stream: ["writer"]})
            self.assertEqual(self.goes(found, "PUT", path), WRITER_URL, stream)
            self.assertIsNone(self.goes(found, "GET", path), stream)
            self.assertEqual(self.goes(router(), "PUT", path), MAIN_URL, stream)
            own = router(writers={**ALL_MAIN, stream: ["writer", "here"]})
            self.assertIsNone(self.goes(own, "PUT", path), stream)
            unreachable = router(writers={**ALL_MAIN, stream: ["far"]})
            self.assertIsNone(self.goes(unreachable, "PUT", path), stream)

    def test_further_paths_of_streams(self) -> None:
        for method, path in (
            ("PUT", f"{V3}/user/@here:x/rooms/!r:x/tags/u.x"),
            ("DELETE", "/_matrix/client/unstable/org.matrix.msc3391/user/@here:x/account_data/m.x"),
            ("POST", "/_matrix/client/r0/rooms/!here:x/read_markers"),
            ("POST", f"{V3}/keys/upload"),
            ("POST", f"{V3}/keys/upload/here"),
            ("POST", f"{V3}/keys/device_signing/upload"),
            ("POST", "/_matrix/client/unstable/keys/signatures/upload"),
            ("POST", f"{V3}/delete_devices"),
        ):
            self.assertEqual(self.goes(router(), method, path), MAIN_URL, path)
        for path in ("keys/query/here", "rooms/!here:x/send/typing/1", "rooms/!here:x/state/tags/x"):
            self.assertIsNone(self.goes(router(), "POST", f"{V3}/{path}"), path)

    def test_one_device_always_goes_to_the_same_of_several_writers(self) -> None:
        found = router(
            urls={"a": "http://a", "b": "http://b"}, writers={**ALL_MAIN, "receipts": ["a", "b", "far"]}
        )
        path = f"{V3}/rooms/!r:x/receipt/m.read/$e"
        where = {token: self.goes(found, "POST", path, token) for token in map(str, range(30))}
        self.assertEqual(set(where.values()), {"http://a", "http://b"})
        self.assertEqual(where, {token: self.goes(found, "POST", path, token) for token in where})

    def test_the_admins_routes_come_first(self) -> None:
        routes = [
            Route(re.compile(f"{V3}/rooms/[^/]+/messages$"), None, "here"),
            Route(re.compile(f"{V3}/search"), frozenset({"POST"}), "writer"),
        ]
        found = router(routes=routes)
        self.assertIsNone(self.goes(found, "GET", f"{V3}/rooms/!r:x/messages"))
        self.assertEqual(self.goes(found, "POST", f"{V3}/search"), WRITER_URL)
        self.assertEqual(self.goes(found, "GET", f"{V3}/search"), MAIN_URL)


class MissingTests(SynchronousTestCase):
    """`missing`: what Synapse does not pass on by itself."""

    def test_it(self) -> None:
        self.assertEqual(missing("here", {MAIN}, ALL_MAIN), {})
        self.assertEqual(missing(MAIN, (), ALL_MAIN), {})
        self.assertEqual(missing("here", {"x"}, ALL_MAIN), {"typing": MAIN, "push_rules": MAIN})
        writers = {**ALL_MAIN, "typing": ["writer"], "receipts": ["far"]}
        self.assertEqual(missing("here", {MAIN}, writers), {"typing": "writer"})
        self.assertEqual(missing("writer", {MAIN}, writers), {})
