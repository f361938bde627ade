# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the tests of RFC 7641 share, for each role."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.errors import (
    CoapError,
    ExchangeUnknown,
    LocalError,
)
from synapse_lb.coap.events import (
    CancelReason,
    CoapRequest,
    CoapResponse,
    NotificationDelivered,
    NotificationFailed,
    NotificationFailure,
    NotificationReceived,
    RequestCancelled,
    RequestFailed,
    RequestReceived,
)
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits, Tuning
from tests.coap.lockstep import Script

MAX_AGE = Options.of((OptionNumber.MAX_AGE, b"\x0f"))


def content(text: str = "one", code: int = Code.CONTENT) -> CoapResponse:
    return CoapResponse(code, Options(), text.encode())


class ObserveCase(SynchronousTestCase):
    """A server with an observer."""

    def setUp(self) -> None:
        self.script = Script(self)

    def registers(self, line: str = "CON [1] GET /r Token=4a Observe=0") -> int:
        """A registration comes; return its exchange."""
        self.script.peer_sends(line)
        return self.script.event(RequestReceived).exchange

    def notifies(self, exchange: int, response: CoapResponse | None = None) -> None:
        self.script.endpoint.notify(exchange, response or content(), self.script.now)

    def responds(self, exchange: int, response: CoapResponse) -> None:
        self.script.endpoint.respond(exchange, response, self.script.now)

    def refused(self, error: type[LocalError], exchange: int, response: CoapResponse | None = None) -> None:
        self.assertRaises(error, self.notifies, exchange, response)

    def observes(self) -> int:
        """A registration comes, its first notification is delivered; return its exchange."""
        exchange = self.registers()
        self.notifies(exchange)
        self.script.endpoint_sends("ACK [1]")
        self.script.endpoint_sends('CON [$first] 2.05 Token=4a Observe=2 "one"')
        self.script.peer_sends("ACK [$first]")
        self.assertEqual(self.script.event(NotificationDelivered), NotificationDelivered("peer", exchange))
        return exchange

    def failed(self, exchange: int, reason: NotificationFailure) -> None:
        self.assertEqual(self.script.event(NotificationFailed), NotificationFailed("peer", exchange, reason))
        self.refused(ExchangeUnknown, exchange)

    def cancelled(self, exchange: int, reason: CancelReason) -> None:
        self.assertEqual(self.script.event(RequestCancelled), RequestCancelled("peer", exchange, reason))
        self.refused(ExchangeUnknown, exchange)

    def waits(self, seconds: float) -> int:
        """Time passes; return how many copies of one message were sent in it."""
        self.script.passes(seconds)
        sent = self.script.datagrams()
        self.assertLessEqual(len(set(sent)), 1)
        return len(sent)


OBSERVE = CoapRequest(Code.GET, Options.of((OptionNumber.OBSERVE, b""), (OptionNumber.URI_PATH, b"r")))


class ObserverCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.begin()

    def begin(self, *, tuning: Tuning | None = None, limits: Limits | None = None) -> None:
        self.script = Script(self, tuning=tuning, limits=limits)

    def tearDown(self) -> None:
        self.script.nothing_leaks()

    def requests(self, request: CoapRequest = OBSERVE, *, replacing: int | None = None) -> int:
        return self.script.endpoint.request("peer", request, self.script.now, replacing=replacing)

    def confirms(self, exchange: int) -> None:
        self.script.endpoint.confirm(exchange, self.script.now)

    def cancels(self, exchange: int) -> None:
        self.script.endpoint.cancel(exchange, self.script.now)

    def deregisters(self, exchange: int) -> None:
        self.script.endpoint.deregister(exchange, self.script.now)

    def observes(self) -> int:
        """We register; the peer sends an empty ACK. The token is `$t`."""
        exchange = self.requests()
        self.script.endpoint_sends("CON [$m] GET /r Observe=0 Token=$t")
        self.script.peer_sends("ACK [$m]")
        return exchange

    def notified(self, text: str, sequence: int) -> NotificationReceived:
        event = self.script.event(NotificationReceived)
        self.assertEqual((event.response.payload, event.sequence), (text.encode(), sequence))
        return event

    def failed(self, exchange: int, error: type[CoapError]) -> None:
        event = self.script.event(RequestFailed)
        self.assertEqual(event.exchange, exchange)
        self.assertIsInstance(event.error, error)
        self.assertEqual(self.script.endpoint.open_exchanges, 0)
