# SPDX-License-Identifier: AGPL-3.0-or-later
"""The fake dispatcher keeps the dispatcher's promises."""

from __future__ import annotations

from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.server.dispatcher import Dispatcher
from synapse_lb.testing.fakes import FakeDispatcher

CLIENT = IPv4Address("UDP", "192.0.2.1", 5683)
SYNC = MatrixRequest("GET", b"/_matrix/client/v3/sync")


class FakeDispatcherTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.fake = FakeDispatcher()
        self.dispatcher: Dispatcher = self.fake  # it has the protocol's shape: mypy says so

    def test_a_handler_answers(self) -> None:
        self.fake.on("GET", "/_matrix/client/v3/sync", lambda request: MatrixResponse(200, {"path": "sync"}))
        answer = self.successResultOf(self.dispatcher.dispatch(SYNC, CLIENT))
        self.assertEqual((answer.status, answer.body), (200, {"path": "sync"}))
        self.assertEqual(self.fake.calls[0].client, CLIENT)
        self.assertEqual(self.fake.requests("GET", "/_matrix/client/v3/sync"), [SYNC])
        self.assertEqual(self.fake.requests("PUT", "/_matrix/client/v3/sync"), [])

    def test_what_it_does_not_know(self) -> None:
        answer = self.successResultOf(self.dispatcher.dispatch(SYNC, CLIENT))
        self.assertEqual((answer.status, answer.body["errcode"]), (404, "M_UNRECOGNIZED"))

    def test_a_held_request_waits_for_the_test(self) -> None:
        self.fake.hold("GET", "/_matrix/client/v3/sync")
        waiting = self.dispatcher.dispatch(SYNC, CLIENT)
        self.assertNoResult(waiting)
        self.fake.calls[0].answer(429, {"errcode": "M_LIMIT_EXCEEDED"}, retry_after=2.0)
        answer = self.successResultOf(waiting)
        self.assertEqual((answer.status, answer.retry_after), (429, 2.0))
        self.assertRaises(RuntimeError, self.fake.calls[0].answer)

    def test_a_client_that_goes_away_cancels(self) -> None:
        self.fake.hold("GET", "/_matrix/client/v3/sync")
        waiting = self.dispatcher.dispatch(SYNC, CLIENT)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertTrue(self.fake.calls[0].cancelled)
        self.assertRaises(RuntimeError, self.fake.calls[0].answer)

    def test_a_handler_that_raises(self) -> None:
        def broken(request: MatrixRequest) -> MatrixResponse:
            raise ZeroDivisionError

        self.fake.on("GET", "/_matrix/client/v3/sync", broken)
        self.failureResultOf(self.dispatcher.dispatch(SYNC, CLIENT), ZeroDivisionError)
