# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the tests of observations share: quick times, a journal and its servers, and a handler that takes notes."""

from __future__ import annotations

import random
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred

from synapse_lb.client import Change, LowBandwidthClient, Observation, Persistence, State
from synapse_lb.coap.events import CoapResponse
from synapse_lb.coap.numbers import OptionNumber
from synapse_lb.coap.tuning import Tuning
from synapse_lb.msc3079.cbor import encode
from tests.client.harness import LoopbackTestCase, Server, until
from tests.client.journal import CBOR, Journal, JournalServer

E = TypeVar("E", bound=Exception)

QUICK: Final = Persistence(
    heartbeat=0.1, first_heartbeat=0.05, retry_initial=0.02, retry_max=0.1, spread=0.02, poll_timeout=30.0
)
"""For networks without a delay."""

BRISK: Final = Tuning(
    ack_timeout=0.05, min_rto=0.02, max_rto=0.05, separate_after=0.02, notification_processing=5.0
)
"""Gives up after a third of a second, but lets handlers work."""


class ObserveTestCase(LoopbackTestCase):
    """Has a journal, starts servers for it, and observes it with a handler that notes the events that it was given."""

    timeout = 60

    def setUp(self) -> None:
        """The journal is empty, and nothing was taken."""
        super().setUp()
        self.journal = Journal()
        self.taken: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.changes: list[Change] = []
        self.at_work = 0

    def start_journal(self, *, port: int = 0, **settings: Any) -> tuple[Server, JournalServer]:
        """Start a server that serves the journal."""
        settings.setdefault("tuning", BRISK)
        handler = JournalServer(self.journal, **settings)
        return self.start_server(handler, port=port), handler

    def client_of(self, server: Server, **settings: Any) -> LowBandwidthClient:
        """Make a client with quick times."""
        settings.setdefault("tuning", BRISK)
        settings.setdefault("persistence", QUICK)
        return self.make_client(server, random=random.Random(7), **settings)

    def handler(self, body: dict[str, Any]) -> Deferred[None] | None:
        """Note the events; only one at a time may be noted."""
        self.assertEqual(self.at_work, 0, "the handler was called while it was at work")
        self.bodies.append(body)
        self.taken.extend(body["events"])
        return None

    def observe(self, client: LowBandwidthClient, since: str | None = None, **settings: Any) -> Observation:
        """Observe the journal."""
        settings.setdefault("token", "syt_a")
        settings.setdefault("handler", self.handler)
        return client.observe(since=since, on_change=self.changes.append, **settings)

    def caught_up(self) -> Deferred[None]:
        """A Deferred that fires when all that happened was taken, each event once and in its order."""

        def look() -> bool:
            self.assertEqual(self.taken, self.journal.events[: len(self.taken)])
            return len(self.taken) == len(self.journal.events)

        return until(look)

    def acknowledged(self, journal: JournalServer) -> Deferred[None]:
        """A Deferred that fires when the server has notified, and nothing of it is on its way."""
        return until(
            lambda: journal.registered and not any(each.in_flight for each in journal.registered.values())
        )

    def until_observing(self, observation: Observation) -> Deferred[None]:
        """A Deferred that fires when the server notifies."""
        return until(lambda: observation.state is State.OBSERVING)

    async def error_of(self, observation: Observation, kind: type[E]) -> E:
        """What the observation fails with."""
        try:
            await observation.done
        except kind as error:
            return error
        raise AssertionError("the observation did not fail")

    def states(self) -> list[str]:
        """The states that the observation went through."""
        return [change.state.value for change in self.changes]


def error_response(code: int, errcode: str, **options: int) -> CoapResponse:
    """A Matrix error."""
    headers = CBOR
    if "max_age" in options:
        headers = headers.with_uint(OptionNumber.MAX_AGE, options["max_age"])
    return CoapResponse(code, headers, encode({"errcode": errcode, "error": "Sorry"}))
