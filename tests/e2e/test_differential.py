# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every operation by CoAP and by HTTP on one real Synapse: the same status and the same JSON value.

The story of `differential_story` is told twice, each time with users of its own. What comes back is compared answer
by answer. Two worlds cannot have the same names and times, so the following, and nothing else, is made equal first:

- the users' localparts, wherever they occur, and ids of events and rooms, by their form;
- the values of `OPAQUE` (tokens, sessions, device ids: a placeholder each) and of `TIMES` (0), where they are text and
  integers, as they should be;
- the order of lists of events, and of `UNORDERED` ones: Synapse takes it from its database and its dictionaries.

What could hide behind that is covered by the second comparison: each GET of the CoAP world is asked again, by both
transports, for the same user at the same time. These answers must be the same without any placeholder, but
for `AGES` and that order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlencode

from synapse_lb.cli.conversation import Answer
from synapse_lb.client.client import LowBandwidthClient
from synapse_lb.msc3079.messages import NO_BODY
from synapse_lb.testing.throwaway import ThrowawayHomeserver
from tests.e2e.differential_story import Call, live, part
from tests.e2e.harness import WAIT, SynapseTestCase

OPAQUE = frozenset(
    {
        "access_token", "device_id", "session", "next_batch", "prev_batch", "start", "end", "pos", "etag",
        "version", "next_token", "hashes", "signatures", "auth_events", "prev_events",
    }
)  # fmt: skip
"""Keys of texts that Synapse makes up."""

TIMES = re.compile(r"(^|_)(age|ts|age_ts|last_active_ago|expires_in|retry_after_ms|pos|bump_stamp|depth)$")
"""Keys of times and positions."""

AGES = frozenset({"age", "last_active_ago", "last_seen_ts", "next_batch", "end", "start"})
"""What differs from one request to the next."""


UNORDERED = frozenset({"state", "events", "chunk", "required_state", "joined_rooms"})
"""Keys of lists whose order is Synapse's affair."""

MISSING = object()

Transport = Callable[[Call], Awaitable[tuple[int, Any]]]
"""Carries a request: the status and the JSON value."""


def differences(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Where two values differ; integers are no floats and no booleans."""
    if type(one) is not type(other):
        yield f"{where}: {one!r:.200} and {other!r:.200}"
    elif isinstance(one, dict):
        for key in {**one, **other}:
            yield from differences(one.get(key, MISSING), other.get(key, MISSING), f"{where}/{key}")
    elif isinstance(one, (list, tuple)) and len(one) == len(other):
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from differences(left, right, f"{where}/{number}")
    elif one != other:
        yield f"{where}: {one!r:.200} and {other!r:.200}"


class Told:
    """A world: a homeserver, one transport, and what came back by it."""

    def __init__(self, kind: str, transport: Transport) -> None:
        self.first = f"ann-{kind}"
        self.second = f"ben-{kind}"
        self.loner = f"cai-{kind}"
        self.kind = kind
        self.heard: list[tuple[Call, Answer]] = []
        self._transport = transport
        self._rooms: dict[str, str] = {}  # in the order in which they were heard of

    async def ask(self, call: Call) -> Answer:
        """Make a request, and remember it and its answer."""
        answer = Answer(*await self._transport(call))
        self.heard.append((call, answer))
        return answer

    def alike(self, value: Any) -> Any:
        """A value without what can only be of this world."""
        return self._alike(value, "")

    def _alike(self, value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {self._text(name): self._alike(each, name) for name, each in value.items()}
        if isinstance(value, list):
            values = [self._alike(each, key if key in OPAQUE else "") for each in value]
            return _ordered(values, key)
        if isinstance(value, str):
            return f"<{key}>" if key in OPAQUE else self._text(value)
        return 0 if TIMES.search(key) and type(value) is int else value

    def _text(self, text: str) -> str:
        text = re.sub(r"\$[A-Za-z0-9_-]{43}", "$event", text)
        text = re.sub(r"![A-Za-z0-9_-]{18,43}(:localhost)?", self._room, text)
        return re.sub(rf"\b(ann|ben|cai)-{self.kind}", r"\1", text)

    def _room(self, found: re.Match[str]) -> str:
        return self._rooms.setdefault(found.group(), f"!room{len(self._rooms) + 1}")


def _ordered(values: list[Any], key: str) -> list[Any]:
    """In an order of our own, if Synapse's has no meaning: events, and what is the value of such a key."""
    events = all(isinstance(each, dict) and "event_id" in each for each in values)
    return sorted(values, key=_sorting) if events or key in UNORDERED else values


def _sorting(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _without_ages(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _without_ages(each, name) for name, each in value.items() if name not in AGES}
    if isinstance(value, list):
        return _ordered([_without_ages(each) for each in value], key)
    return value


def _by_http(homeserver: ThrowawayHomeserver) -> Transport:
    async def ask(call: Call) -> tuple[int, Any]:
        target = f"{call.path}?{urlencode(call.query)}" if call.query else call.path
        body = None if call.body is NO_BODY else call.body
        return homeserver.request(call.method, target, body, call.token)

    return ask


def _by_coap(client: LowBandwidthClient, stranger: LowBandwidthClient) -> Transport:
    """Requests without a token are the stranger's: on an association the last token stays in force."""

    async def ask(call: Call) -> tuple[int, Any]:
        chosen = stranger if call.token is None else client
        response = await chosen.request(
            call.method, call.path, call.query, call.body, call.token, timeout=WAIT
        )
        return response.status, response.body

    return ask


class DifferentialTests(SynapseTestCase):
    async def test_the_same_story_is_heard_by_both_transports(self) -> None:
        by_http, by_coap = _by_http(self.homeserver), _by_coap(self.client(), self.client())
        over_http, over_coap = Told("http", by_http), Told("coap", by_coap)
        of_http, of_coap = await live(over_http), await live(over_coap)
        for call in dict.fromkeys(call for call, _ in over_coap.heard if call.method == "GET"):
            await self.compare_anew(call, by_http, by_coap)
        await part(*of_http)
        await part(*of_coap)
        found = []
        for (call, expected), (same, heard) in zip(over_http.heard, over_coap.heard, strict=True):
            self.assertEqual(same.method, call.method)
            told = (
                [expected.status, over_http.alike(expected.body)],
                [heard.status, over_coap.alike(heard.body)],
            )
            found += [f"{call.method} {call.path}{each}" for each in differences(*told)]
        self.assertEqual(found, [], "\n".join(found))
        statuses = {answer.status for _, answer in over_coap.heard}
        self.assertLessEqual({200, 400, 401, 403, 404, 405, 409, 413}, statuses)
        self.assertGreater(len(over_coap.heard), 180)

    async def compare_anew(self, call: Call, by_http: Transport, by_coap: Transport) -> None:
        """A GET for one user by both transports at the same time."""
        over_http, over_coap = await by_http(call), await by_coap(call)
        found = list(differences(_without_ages(list(over_http)), _without_ages(list(over_coap))))
        self.assertEqual(found, [], f"{call.method} {call.path}")
