# SPDX-License-Identifier: AGPL-3.0-or-later
"""The messages of one association are served fairly: a flood on one does not starve another."""

from __future__ import annotations

import random

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.tuning import Limits, Tuning
from synapse_lb.server.gateway import Gateway
from synapse_lb.server.turnstile import AT_ONCE
from tests.server.test_gateway import SYNC, VERSIONS, Client, Dispatcher, FakePort


class FairnessTests(SynchronousTestCase):
    """One association asks for all that it can and gets no answers; the other asks once."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.dispatcher = Dispatcher()
        self.gateway = Gateway(
            self.dispatcher,
            clock=self.clock,
            random=random.Random(1),
            limits=Limits(max_exchanges_per_peer=8),
        )
        self.port = FakePort()
        self.gateway.attach(self.port)
        self.flooder = Client(self.gateway, self.port, self.clock, 1)
        self.quiet = Client(self.gateway, self.port, self.clock, 2)

    def test_a_quiet_client_is_served_at_once_beside_one_that_fills_its_share(self) -> None:
        self.dispatcher.answer = self.dispatcher.later
        for _ in range(40):
            self.flooder.request("POST", SYNC, {})
            self.clock.pump([0.01] * 5)
        self.assertLessEqual(self.gateway.running, 8)
        self.assertGreater(self.gateway.running, 0)
        held = self.gateway.running
        self.dispatcher.answer = Dispatcher().answer
        answer = self.quiet.request("GET", VERSIONS)
        self.clock.pump([0.0] * 6)
        self.assertEqual(answer().status, 200)
        self.assertEqual(self.gateway.running, held)

    def test_what_came_first_is_dispatched_first_whoever_sent_it(self) -> None:
        for number in range(3):
            self.flooder.request("GET", f"{VERSIONS}/{number}")
        self.quiet.request("GET", f"{VERSIONS}/quiet")
        for number in range(3, 6):
            self.flooder.request("GET", f"{VERSIONS}/{number}")
        self.clock.pump([0.0] * 10)
        order = [request.path.rsplit(b"/", 1)[1] for request, _ in self.dispatcher.asked]
        self.assertLessEqual(order.index(b"quiet"), 3)

    def test_of_one_association_a_few_are_served_at_a_time(self) -> None:
        tuning = Tuning(separate_after=0.1)
        gateway = Gateway(self.dispatcher, clock=self.clock, random=random.Random(1), tuning=tuning)
        port = FakePort()
        gateway.attach(port)
        flooder, quiet = Client(gateway, port, self.clock, 1), Client(gateway, port, self.clock, 2)
        self.dispatcher.answer = self.dispatcher.later
        for number in range(AT_ONCE + 5):
            flooder.request("GET", f"{VERSIONS}/{number}")
            self.clock.pump([0.05] * 3)
        self.assertEqual(len(self.dispatcher.asked), AT_ONCE)
        quiet.request("GET", f"{VERSIONS}/quiet")
        self.clock.pump([0.0] * 3)
        self.assertEqual(len(self.dispatcher.asked), AT_ONCE + 1)
        self.assertEqual(self.turnstile_timers(), 1)
        gateway.shutdown()
        self.assertEqual(self.turnstile_timers(), 0)

    def turnstile_timers(self) -> int:
        """How many of the delayed calls are a turnstile's."""
        return sum("Turnstile" in str(call) for call in self.clock.getDelayedCalls())
