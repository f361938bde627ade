# SPDX-License-Identifier: AGPL-3.0-or-later
"""What can be observed, what of it is news, and sliding sync by way of FETCH."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.numbers import Code
from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.server.observable import Observable
from tests.server.observing import SLIDING, SYNC, ObserverTestCase


def of(method: str, path: str, body: Any = None) -> Observable | None:
    """What observes a request."""
    plain, _, query = path.partition("?")
    return Observable.of(MatrixRequest(method, plain.encode(), query.encode(), body))


def sync(query: str = "") -> Observable:
    """An observed /sync."""
    found = of("GET", f"{SYNC}?{query}")
    assert found is not None
    return found


def sliding(query: str = "", body: Any = None) -> Observable:
    """An observed sliding sync."""
    found = of("POST", f"{SLIDING}?{query}", body)
    assert found is not None
    return found


class WhatTests(SynchronousTestCase):
    """Which resources."""

    def test_sync_and_nothing_else(self) -> None:
        for method, path in (
            ("POST", SYNC),
            ("GET", SLIDING),
            ("GET", SYNC + "/"),
            ("GET", "/_matrix/client/v3/rooms/sync"),
            ("GET", "/_matrix/client/v1/sync"),
            ("GET", "/_matrix/client/v3/events"),
        ):
            self.assertIsNone(of(method, path), (method, path))

    def test_where_it_begins(self) -> None:
        for query, position in (
            ("", None),
            ("since=", None),
            ("since=s%2B1", "s+1"),
            ("x=1&since=a&since=b", "a"),
        ):
            self.assertEqual(sync(query).position, position, query)
        self.assertEqual(sliding("pos=5%2Fs1&since=no").position, "5/s1")

    def test_presence(self) -> None:
        for query, presence in (
            ("", "online"),
            ("set_presence=offline", "offline"),
            ("set_presence=", "online"),
        ):
            self.assertEqual(sync(query).set_presence, presence)
        self.assertEqual(sliding("set_presence=online").set_presence, "offline")

    def test_the_query_as_it_was(self) -> None:
        request = sync("filter=%7B%22a%22%3A1%7D&%74imeout=5&org.x=%C3%BC&flag").next_request()
        self.assertEqual(request.query, b"filter=%7B%22a%22%3A1%7D&org.x=%C3%BC&flag")

    def test_a_place_that_cannot_be_sent_back_is_none(self) -> None:
        for place in ("", None, 1, ["s"], "s\ud800"):
            self.assertIsNone(sync().position_in({"next_batch": place}))
        self.assertEqual(sync().position_in({"next_batch": "s\u00fc"}), "s\u00fc")

    def test_what_comes_after(self) -> None:
        after = sync("since=a&full_state=1").after({"next_batch": "b&c"})
        self.assertEqual((after.position, after.is_first), ("b&c", False))
        self.assertEqual(after.next_request().query, b"since=b%26c&set_presence=offline")
        self.assertEqual(after.nothing_new(), {"next_batch": "b&c"})


class EmptyTests(SynchronousTestCase):
    """What is no news."""

    def test_sync(self) -> None:
        base = {
            "next_batch": "s1",
            "device_one_time_keys_count": {"signed_curve25519": 50},
            "device_unused_fallback_key_types": ["signed_curve25519"],
            "org.matrix.msc2732.device_unused_fallback_key_types": ["signed_curve25519"],
        }
        empty: tuple[dict[str, Any], ...] = (
            {},
            {"rooms": {}},
            {"rooms": {"join": {}, "leave": {}}},
            {"account_data": {"events": []}},
            {"device_lists": {"changed": [], "left": []}},
        )
        for nothing in empty:
            self.assertTrue(sync().is_empty({**base, **nothing}), nothing)
        full: tuple[dict[str, Any], ...] = (
            {"rooms": {"leave": {"!a:x": {}}}},
            {"rooms": {"join": {"!a:x": {"timeline": {"events": []}}}}},
            {"to_device": {"events": [{}, {"type": "m.room.encrypted"}]}},
            {"account_data": {"events": [{"type": "x", "content": {}}]}},
            {"device_lists": {"changed": ["@a:x"], "left": []}},
            {"presence": {"events": [{"sender": "@a:x"}]}},
            {"org.example.new": {"a": 0}},
        )
        for something in full:
            self.assertFalse(sync().is_empty({**base, **something}), something)

    def test_sliding_sync(self) -> None:
        base = {"pos": "5/s1", "lists": {"all": {"count": 3, "ops": [{"op": "SYNC", "room_ids": ["!a:x"]}]}}}
        nothing = {
            "to_device": {"next_batch": "7", "events": []},
            "e2ee": {
                "device_one_time_keys_count": {"signed_curve25519": 50},
                "device_unused_fallback_key_types": ["signed_curve25519"],
            },
            "account_data": {"global": [], "rooms": {}},
            "receipts": {"rooms": {}},
            "typing": {"rooms": {}},
        }
        empty: list[dict[str, Any]] = [
            {},
            {"rooms": {}},
            {"extensions": {}},
            {"rooms": {}, "extensions": nothing},
        ]
        for body in empty:
            self.assertTrue(sliding().is_empty({**base, **body}), body)
        for body in (
            {"rooms": {"!a:x": {"bump_stamp": 1}}},
            {"extensions": {**nothing, "to_device": {"next_batch": "8", "events": [{"type": "x"}]}}},
            {"extensions": {"e2ee": {"device_lists": {"changed": ["@a:x"], "left": []}}}},
            {"extensions": {"org.matrix.msc4262.profiles": {"users": {"@a:x": None}}}},
        ):
            self.assertFalse(sliding().is_empty({**base, **body}), body)


class SlidingTests(ObserverTestCase):
    """FETCH + Observe on the path of MSC4186 (docs/extensions.md)."""

    def results(self, *bodies: dict[str, Any]) -> None:
        """Answer with these."""
        left = list(bodies)
        self.homeserver.answer = lambda _: MatrixResponse(200, left.pop(0))

    def test_plain_fetch(self) -> None:
        self.homeserver.answer = lambda _: MatrixResponse(200, {"pos": "0/s1"})
        seen = self.alice.observe(SLIDING, body={"lists": {}}, code=Code.FETCH, value=5)
        self.settle()
        self.assertEqual((seen.final.body, seen.notifications), ({"pos": "0/s1"}, []))
        request, _ = self.homeserver.requests[0]
        self.assertEqual(
            (request.method, request.path, request.body), ("POST", SLIDING.encode(), {"lists": {}})
        )

    def test_post_is_no_observation(self) -> None:
        self.homeserver.answer = lambda _: MatrixResponse(200, {"pos": "0/s1"})
        seen = self.alice.observe(SLIDING, body={})
        self.settle()
        self.assertEqual((seen.final.status, seen.notifications), (200, []))

    def test_fetch_of_anything_else(self) -> None:
        seen = self.alice.observe("/_matrix/client/v3/createRoom", body={}, code=Code.FETCH)
        self.settle()
        self.assertEqual(seen.final.status, 405)

    def test_pos_and_the_extensions_go_on_with_what_was_delivered(self) -> None:
        wanted = {
            "lists": {"all": {"ranges": [[0, 9]]}},
            "extensions": {"to_device": {"enabled": True, "since": "3"}, "e2ee": {"enabled": True}},
        }
        self.results(
            {"pos": "1/s1", "rooms": {}, "extensions": {"to_device": {"next_batch": "4", "events": []}}},
            {
                "pos": "2/s2",
                "rooms": {},
                "extensions": {"to_device": {"next_batch": "9", "events": [{"type": "k"}]}},
            },
            {"pos": "3/s3", "rooms": {"!a:x": {"name": "A"}}, "extensions": {}},
        )
        seen = self.alice.observe(SLIDING + "?timeout=5", body=wanted, code=Code.FETCH)
        self.settle()
        for _ in range(2):
            self.homeserver.change_something_hidden()
            self.settle()
        self.assertEqual([body["pos"] for body in seen.bodies], ["1/s1", "2/s2", "3/s3"])
        self.assertEqual([each.get("pos") for each in self.homeserver.syncs], [None, "1/s1", "2/s2"])
        self.assertEqual([each.get("timeout") for each in self.homeserver.syncs], [None] * 3)
        since = [request.body["extensions"]["to_device"]["since"] for request, _ in self.homeserver.requests]
        self.assertEqual(since, ["3", "4", "9"])
        self.assertEqual(
            {str(request.body["lists"]) for request, _ in self.homeserver.requests}, {str(wanted["lists"])}
        )
        self.assertEqual(self.homeserver.subscriptions[0].presence, "offline")
        self.alice.deregister(seen)
        self.settle()
        self.assertEqual(seen.final.body, {"pos": "3/s3"})

    def test_nothing_is_sent_for_nothing(self) -> None:
        self.homeserver.answer = lambda _: MatrixResponse(
            200, {"pos": f"1/s{self.homeserver.position}", "lists": {}, "rooms": {}, "extensions": {}}
        )
        seen = self.alice.observe(SLIDING, body={}, code=Code.FETCH)
        self.settle()
        for _ in range(5):
            self.homeserver.change_something_hidden()
            self.settle()
        self.assertEqual((len(seen.notifications), len(self.homeserver.syncs)), (1, 6))
