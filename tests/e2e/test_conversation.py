# SPDX-License-Identifier: AGPL-3.0-or-later
"""The demo's conversation, held by this process; and what CoAP tells is what HTTP tells."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from synapse_lb.cli.conversation import GREETING, REPLY, Answer, Names, Outcome, converse
from synapse_lb.client.client import LowBandwidthClient
from synapse_lb.msc3079.messages import NO_BODY
from tests.e2e.harness import CLIENT, SynapseTestCase

BIGGEST = 2**53 - 1
"""The largest integer of Canonical JSON."""

CHANGING = frozenset({"age", "next_batch", "last_active_ago"})


def without_age(value: Any) -> Any:
    """The value without what changes from one request to the next."""
    if isinstance(value, dict):
        return {key: without_age(each) for key, each in value.items() if key not in CHANGING}
    if isinstance(value, list):
        return [without_age(each) for each in value]
    return value


class ConversationTests(SynapseTestCase):
    async def hold(self, names: Names, clients: list[LowBandwidthClient]) -> Outcome:
        steps = converse(names)
        step = next(steps)
        while True:
            json = NO_BODY if step.body is None else step.body
            response = await clients[step.speaker].request(
                step.method, step.path, step.query, json, step.token, timeout=30
            )
            self.assertEqual(response.status, 200, f"{step.method} {step.path}: {response.body}")
            try:
                step = steps.send(Answer(response.status, response.body))
            except StopIteration as end:
                outcome: Outcome = end.value
                return outcome

    async def test_two_clients_meet_and_talk(self) -> None:
        outcome = await self.hold(Names("ann", "ben"), [self.client(), self.client()])
        self.assertEqual(outcome.heard, [REPLY, GREETING])
        status, history = self.homeserver.request(
            "GET", f"{CLIENT}/rooms/{outcome.room_id}/messages?dir=b", token=outcome.tokens[0]
        )
        self.assertEqual(status, 200)
        texts = [event["content"]["body"] for event in history["chunk"] if event["type"] == "m.room.message"]
        self.assertEqual(texts, [REPLY, GREETING])

    async def test_full_paths_and_text_keys_do_as_well(self) -> None:
        clients = [self.client(key_version=None, path_codes=False) for _ in range(2)]
        outcome = await self.hold(Names("anna", "benn"), clients)
        self.assertEqual(outcome.heard, [REPLY, GREETING])

    async def test_one_access_log_line_for_each_request_and_no_token_in_it(self) -> None:
        user = self.user()
        client = self.client()
        for _ in range(3):
            await self.ask(client, "GET", f"{CLIENT}/account/whoami", token=user.token)
        pattern = r'"GET /_matrix/client/(v3|r0)/account/whoami CoAP/1"'
        await self.assert_run(pattern, 3)
        self.assertIn(f"{{{user.user_id}", self.logged_requests(pattern)[0])
        self.assertNotIn(user.token, self.logged())

    async def test_a_token_in_the_query_is_redacted_in_the_log(self) -> None:
        user = self.user()
        query = {"access_token": user.token}
        body = await self.ask(self.client(), "GET", f"{CLIENT}/account/whoami", query=query)
        self.assertEqual(body["user_id"], user.user_id)
        await self.until(lambda: self.logged_requests("whoami"), "an access-log line")
        self.assertIn("access_token=<redacted>", self.logged_requests("whoami")[0])
        self.assertNotIn(user.token, self.logged())


class SameAsHttpTests(SynapseTestCase):
    """The same request by HTTP and by CoAP has the same answer, to the last integer."""

    async def compare(self, user: Any, path: str, query: str = "") -> Any:
        target = f"{path}?{query}" if query else path
        over_http = user.http("GET", target)
        pairs = [(key, value) for key, _, value in (pair.partition("=") for pair in query.split("&")) if key]
        over_coap = await self.ask(self.client(), "GET", path, query=pairs, token=user.token)
        self.assertEqual(without_age(over_coap), without_age(over_http))
        return over_coap

    async def test_reads(self) -> None:
        user = self.user()
        room = user.room(name="Größe ✓", topic="numbers", room_alias_name=f"alias-{user.name}")
        content = {"biggest": BIGGEST, "least": -BIGGEST, "list": [1, [2, {"x": None}], True], "8": "text"}
        user.http("PUT", f"{CLIENT}/rooms/{room}/send/org.example.numbers/1", content)
        for path, query in (
            ("/_matrix/client/versions", ""),
            (f"{CLIENT}/rooms/{room}/state", ""),
            (f"{CLIENT}/rooms/{room}/members", ""),
            (f"{CLIENT}/joined_rooms", ""),
            (f"{CLIENT}/capabilities", ""),
            (f"{CLIENT}/pushrules/", ""),
            (f"{CLIENT}/profile/{quote(user.user_id)}", ""),
            (f"{CLIENT}/publicRooms", "limit=3"),
        ):
            await self.compare(user, path, query)
        messages = await self.compare(user, f"{CLIENT}/rooms/{room}/messages", "dir=b&limit=20")
        event = next(event for event in messages["chunk"] if event["type"] == "org.example.numbers")
        self.assertEqual(event["content"], content)
        self.assertTrue(all(type(e["origin_server_ts"]) is int for e in messages["chunk"]))
        self.assertGreater(event["origin_server_ts"], 2**32)

    async def test_sync(self) -> None:
        user = self.user()
        user.say(user.room(name="one"), "hello")
        await self.compare(user, f"{CLIENT}/sync", "timeout=0")

    async def test_numbers_written_over_coap_arrive_exactly(self) -> None:
        user = self.user()
        room = user.room()
        content = {"biggest": BIGGEST, "least": -BIGGEST, "odd": 2**53 - 2, "zero": 0}
        path = f"{CLIENT}/rooms/{room}/state/org.example.numbers/k"
        await self.ask(self.client(), "PUT", path, content, token=user.token)
        self.assertEqual(user.http("GET", path), content)

    async def test_paths_with_characters_that_urls_escape(self) -> None:
        user = self.user()
        client = self.client()
        room = user.room(room_alias_name=f"lounge-{user.name}")
        alias = quote(f"#lounge-{user.name}:localhost", safe="")
        found = await self.ask(client, "GET", f"{CLIENT}/directory/room/{alias}")
        self.assertEqual(found["room_id"], room)
        for key in ("a/b", "%2F", "a b", "ä#?&=+", ""):
            path = f"{CLIENT}/rooms/{room}/state/org.example.key/{quote(key, safe='')}"
            await self.ask(client, "PUT", path, {"key": key}, token=user.token)
            self.assertEqual(user.http("GET", path), {"key": key})
        state = user.http("GET", f"{CLIENT}/rooms/{room}/state")
        keys = {event["state_key"] for event in state if event["type"] == "org.example.key"}
        self.assertEqual(keys, {"a/b", "%2F", "a b", "ä#?&=+", ""})

    async def test_versions_advertise_the_listener_over_http_and_coap_alike(self) -> None:
        _, over_http = self.homeserver.request("GET", "/_matrix/client/versions")
        over_coap = await self.ask(self.client(), "GET", "/_matrix/client/versions")
        self.assertEqual(over_coap, over_http)
        self.assertEqual(
            over_http["org.matrix.msc3079.low_bandwidth"],
            {
                "dtls": self.homeserver.ports.lowbandwidth,
                "cbor_enum_version": 1,
                "coap_enum_version": 1,
                "observe": 1,
                "q_block": 1,
                "x1": 1,
            },
        )
