# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the tests of notifications in blocks share, in the server role."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.events import (
    CoapResponse,
    NotificationDelivered,
    NotificationFailed,
    NotificationFailure,
    RequestReceived,
)
from synapse_lb.coap.numbers import Code
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits, Tuning
from tests.coap.lockstep import Script, body

ONE, TWO, OTHER = body(40, 1), body(40, 2), body(60, 3)
S16 = Limits(block_szx=0)


class BlocksCase(SynchronousTestCase):
    """An observer whose notifications take blocks of 16 bytes."""

    def setUp(self) -> None:
        self.begin()

    def tearDown(self) -> None:
        self.script.endpoint.drop_peer("peer", self.script.now)
        self.script.events()
        self.script.nothing_leaks()

    def begin(self, limits: Limits = S16, tuning: Tuning | None = None) -> None:
        self.script = Script(self, limits=limits, tuning=tuning)
        self.next_id = 100

    def registers(self, token: str = "4a", path: str = "/r") -> int:
        """A registration comes, and gets its empty ACK; return its exchange."""
        message_id = self._id()
        self.script.peer_sends(f"CON [{message_id}] GET {path} Token={token} Observe=0")
        exchange = self.script.event(RequestReceived).exchange
        self.script.endpoint.acknowledge(exchange, self.script.now)
        self.script.endpoint_sends(f"ACK [{message_id}]")
        return exchange

    def _id(self) -> int:
        self.next_id += 1
        return self.next_id

    def notifies(self, exchange: int, payload: bytes) -> None:
        response = CoapResponse(Code.CONTENT, Options(), payload)
        self.script.endpoint.notify(exchange, response, self.script.now)

    def pushes(self, name: str, payload: bytes, *, token: str = "4a", number: int = 2) -> None:
        """The first block of a notification leaves; its message id is `$name`, its ETag `$name-etag`."""
        line = f"CON [${name}] 2.05 Token={token} Observe={number} 2:0/1/16 ETag=${name}-etag"
        self.script.endpoint_sends(line, payload[:16])

    def serves(self, name: str, payload: bytes, number: int, path: str = "/r", token: str = "77") -> None:
        """The observer asks for a further block of the notification, and gets it."""
        message_id = self._id()
        more = int(16 * (number + 1) < len(payload))
        self.script.peer_sends(f"CON [{message_id}] GET {path} Token={token} 2:{number}/0/16")
        line = f"ACK [{message_id}] 2.05 Token={token} 2:{number}/{more}/16 ETag=${name}-etag"
        self.script.endpoint_sends(line, payload[16 * number : 16 * number + 16])

    def is_gone(self, number: int, path: str = "/r") -> None:
        """The observer asks for a further block, and is told that there is none."""
        message_id = self._id()
        self.script.peer_sends(f"CON [{message_id}] GET {path} Token=77 2:{number}/0/16")
        self.script.endpoint_sends(f"ACK [{message_id}] 4.08 Token=77")

    def delivered(self, exchange: int) -> None:
        self.assertEqual(self.script.event(NotificationDelivered).exchange, exchange)

    def failed(self, exchange: int, reason: NotificationFailure) -> None:
        self.assertEqual(self.script.event(NotificationFailed), NotificationFailed("peer", exchange, reason))

    def copies(self, seconds: float) -> int:
        """Time passes; return how many datagrams left in it."""
        self.script.passes(seconds)
        return len(self.script.datagrams())
