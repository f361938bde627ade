# SPDX-License-Identifier: AGPL-3.0-or-later
"""What makes a client known to the DTLS port, and what ends that."""

from __future__ import annotations

import random

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.msc3079.messages import MatrixResponse
from synapse_lb.server.gateway import Gateway
from tests.server.test_gateway import SYNC, Client, Dispatcher, FakePort


class TrustTests(SynchronousTestCase):
    """The DTLS port is told whose client is known, and only by a valid token."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.dispatcher = Dispatcher()
        gateway = Gateway(self.dispatcher, clock=self.clock, random=random.Random(1))
        self.port = FakePort()
        gateway.attach(self.port)
        self.alice = Client(gateway, self.port, self.clock, 1)

    def ask(self, response: MatrixResponse, path: str = SYNC, token: str | None = "secret") -> None:
        self.dispatcher.answer = lambda request: response
        self.alice.request("POST", path, {}, token=token)
        self.clock.pump([0.01] * 10)

    def test_a_valid_token_whatever_the_answer(self) -> None:
        self.ask(MatrixResponse(404, {"errcode": "M_NOT_FOUND"}, authenticated=True))
        self.assertEqual(self.port.trusted, [(1, True)])

    def test_a_success_that_needs_no_token_shows_nothing(self) -> None:
        self.ask(MatrixResponse(200, {}), token=None)
        self.ask(MatrixResponse(200, {}, authenticated=False))
        self.ask(MatrixResponse(403, {}))
        self.assertEqual(self.port.trusted, [])

    def test_a_dispatcher_that_does_not_say_has_looked_at_the_token(self) -> None:
        self.ask(MatrixResponse(200, {}))
        self.assertEqual(self.port.trusted, [(1, True)])

    def test_a_token_that_has_ended(self) -> None:
        self.ask(MatrixResponse(401, {"errcode": "M_UNKNOWN_TOKEN"}, authenticated=False))
        self.ask(MatrixResponse(200, {}, authenticated=True), "/_matrix/client/v3/logout")
        self.assertEqual(self.port.trusted, [(1, False), (1, False)])

    def test_user_interactive_401_is_no_end(self) -> None:
        self.ask(MatrixResponse(401, {"flows": []}, authenticated=True))
        self.assertEqual(self.port.trusted, [(1, True)])
