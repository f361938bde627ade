# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the tests of Q-Block with the endpoint as the client share."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.errors import CoapError
from synapse_lb.coap.events import CoapRequest, CoapResponse, RequestFailed, ResponseReceived
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits, Tuning
from tests.coap.lockstep import Script

Q_BLOCK = Tuning(q_block=True)
PATH = Options.of((OptionNumber.URI_PATH, b"path"))


def cut(whole: bytes, number: int) -> bytes:
    """Return a block of 1024 bytes."""
    return whole[number * 1024 : (number + 1) * 1024]


class ClientCase(SynchronousTestCase):
    """An endpoint that offers Q-Block to its peer, which is a script."""

    def setUp(self) -> None:
        self.start(Q_BLOCK)

    def start(self, tuning: Tuning, limits: Limits | None = None) -> None:
        self.script = Script(self, tuning=tuning, limits=limits)
        self.script.endpoint.set_peer("peer", q_block=True, now=self.script.now)
        self.whole = b""
        self.replies = 0x8000

    def ask(self, code: int = Code.GET, payload: bytes = b"", *, confirmable: bool = True) -> int:
        return self.script.endpoint.request(
            "peer", CoapRequest(code, PATH, payload, confirmable), self.script.now
        )

    def response(self) -> CoapResponse:
        return self.script.event(ResponseReceived).response

    def failure(self, kind: type[CoapError]) -> None:
        self.assertIsInstance(self.script.event(RequestFailed).error, kind)

    def gone(self) -> None:
        self.script.passes(1000)
        self.script.nothing_leaks()
