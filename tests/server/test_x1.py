# SPDX-License-Identifier: AGPL-3.0-or-later
"""x1 through the gateway: answers, blocks, notifications, and whose aliases may stand alone when."""

from __future__ import annotations

import random
from typing import Any

from synapse_lb.coap.events import CoapRequest, Event, NotificationReceived, ResponseReceived
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.observe import REGISTER
from synapse_lb.coap.options import Options
from synapse_lb.msc3079.extension import X1, X1_WRITTEN
from synapse_lb.msc3079.mapping import decode_response, encode_x1_request
from synapse_lb.msc3079.messages import NO_BODY, MatrixResponse
from synapse_lb.msc3079.x1 import AliasBook, Side
from synapse_lb.server.gateway import Gateway
from tests.server.observing import SYNC, Observer, ObserverTestCase

ROOM = "!OGEhHVWSdvArJzumhm:example.org"
NOISE = random.Random(3)


def result(batch: str, room: str = ROOM, count: int = 1) -> MatrixResponse:
    """A result of a sync with so many messages."""
    timeline = [
        {"type": "m.room.message", "content": {"body": NOISE.randbytes(30).hex()}} for _ in range(count)
    ]
    return MatrixResponse(
        200, {"next_batch": batch, "rooms": {"join": {room: {"timeline": {"events": timeline}}}}}
    )


class X1Client(Observer):
    """A client that reads x1, and passes on what it reads."""

    test: X1TestCase

    def _on_event(self, event: Event) -> None:
        self.test.on_event(event)


class X1TestCase(ObserverTestCase):
    """A client of x1 on the association of `self.alice`."""

    def setUp(self) -> None:
        super().setUp()
        self.book = AliasBook(Side.CLIENT)
        self.bodies: list[Any] = []
        self.sizes: list[int] = []
        self.confirming = True
        self.alice.lose()
        self.alice = client = X1Client(self.gateway, self.port, self.clock, 1)
        client.test = self

    def on_event(self, event: Event) -> None:
        if isinstance(event, ResponseReceived | NotificationReceived):
            response = event.response
            found = decode_response(response.code, response.options, response.payload, book=self.book)
            self.bodies.append(found.body)
            self.sizes.append(len(response.payload))
        if isinstance(event, NotificationReceived) and self.confirming:
            self.alice.endpoint.confirm(event.exchange, self.alice.driver.now())

    def ask(
        self,
        path: str = SYNC,
        *,
        method: str = "GET",
        body: Any = NO_BODY,
        observe: bool = False,
        **kwargs: Any,
    ) -> int:
        kwargs.setdefault("announce", not self.bodies)
        written = encode_x1_request(method, path, None, body, self.book, token="alice-1", **kwargs)
        options = Options.of(*written.options)
        if observe:
            options = options.with_uint(OptionNumber.OBSERVE, REGISTER)
        request = CoapRequest(written.code, options, written.payload)
        exchange = self.alice.endpoint.request("server", request, self.alice.driver.now())
        self.alice.driver.flush()
        self.settle()
        return exchange

    def option_sets(self) -> list[set[int]]:
        """The options of each response with a code."""
        messages = [Message.decode(data) for data in self.alice.received]
        return [{number for number, _ in each.options} for each in messages if each.code != Code.EMPTY]


class AnswerTests(X1TestCase):
    """Requests and their answers."""

    def test_no_options_at_all(self) -> None:
        self.ask("/_matrix/client/v3/account/whoami")
        self.assertEqual(self.option_sets(), [set()])
        self.assertEqual(self.bodies[0]["next_batch"], "s0")

    def test_error(self) -> None:
        self.homeserver.answer = lambda _: MatrixResponse(403, {"errcode": "M_FORBIDDEN", "error": "No"})
        self.ask("/_matrix/client/v3/account/whoami")
        self.assertEqual(
            (self.option_sets(), self.bodies), ([set()], [{"errcode": "M_FORBIDDEN", "error": "No"}])
        )

    def test_brief(self) -> None:
        self.homeserver.answer = lambda _: MatrixResponse(200, {"event_id": "$x"})
        self.ask(f"/_matrix/client/v3/rooms/{ROOM}/send/m.room.message/1", method="PUT", body={}, brief=True)
        self.assertEqual((self.option_sets(), self.bodies), ([set()], [NO_BODY]))
        self.assertEqual(len(self.alice.received[-1]), 5)

    def test_block_by_block(self) -> None:
        self.homeserver.answer = lambda _: result("s1", count=200)
        self.ask()
        self.assertEqual(len(self.bodies), 1)
        self.assertEqual(len(self.bodies[0]["rooms"]["join"][ROOM]["timeline"]["events"]), 200)
        self.assertEqual(len(self.homeserver.requests), 1)
        self.assertEqual(set.union(*self.option_sets()), {OptionNumber.ETAG, OptionNumber.BLOCK2})

    def test_body_in_blocks(self) -> None:
        """The option is on each block; the aliases of the first are there for the body."""
        body = {"room_id": ROOM, "filler": NOISE.randbytes(3000).hex()}
        self.ask(f"/_matrix/client/v3/rooms/{ROOM}/send/m.room.message/1", method="PUT", body=body)
        self.assertEqual(self.homeserver.requests[0][0].body, body)

    def test_a_copy_gets_the_same_answer(self) -> None:
        """The bytes of the first, whatever aliases have been confirmed since."""
        self.homeserver.answer = lambda _: result("s1")
        datagrams: list[bytes] = []
        receive = self.gateway.message_received

        def keep(association_id: int, data: bytes) -> None:
            datagrams.append(data)
            receive(association_id, data)

        self.gateway.message_received = keep  # type: ignore[method-assign]  # listens
        self.ask()
        receive(1, datagrams[0])
        self.settle()
        self.assertEqual(len(self.alice.received), 2)
        self.assertEqual(self.alice.received[0], self.alice.received[1])
        self.assertEqual(len(self.homeserver.requests), 1)

    def test_refused_by_the_endpoint(self) -> None:
        """Where the listener does not allow it, the critical option is unknown, and the elective one ignored."""
        self.gateway = Gateway(self.homeserver, clock=self.clock, random=random.Random(1), x1=False)
        self.gateway.attach(self.port)
        self.alice.gateway = self.gateway
        self.gateway.association_established(1)
        self.ask()
        self.assertEqual([Message.decode(each).code for each in self.alice.received], [Code.BAD_OPTION])
        self.assertEqual(self.homeserver.requests, [])
        options = Options.of((OptionNumber.URI_PATH, b"7"), (256, b"alice-1")).with_uint(X1, 1)
        self.alice.raw(CoapRequest(Code.GET, options))
        self.settle()
        self.assertEqual(self.option_sets()[-1], {OptionNumber.CONTENT_FORMAT})

    def test_each_association_has_its_own(self) -> None:
        self.ask(f"/_matrix/client/v3/rooms/{ROOM}/state")
        self.alice.lose()
        self.alice.port.clients[2] = self.alice
        self.alice.id = 2
        self.gateway.association_established(2)
        self.book.confirm(range(256))
        self.ask(f"/_matrix/client/v3/rooms/{ROOM}/state", announce=True)
        self.assertEqual(len(self.homeserver.requests), 1)
        self.assertIn("Alias", self.bodies[-1]["error"])


class SeparateTests(X1TestCase):
    """A long poll, whose answer is a message of its own."""

    def poll(self) -> None:
        self.homeserver.answer = lambda _: result("s1")
        self.ask(SYNC + "?timeout=30000")

    def test_acknowledged(self) -> None:
        """The room id goes with the first answer, and stands for itself in the second."""
        self.poll()
        self.poll()
        self.assertEqual(len(self.bodies), 2)
        self.assertLess(self.sizes[1], self.sizes[0] - 8)
        self.assertEqual(self.gateway._associations[1].defining, {})

    def test_not_acknowledged(self) -> None:
        self.alice.deaf = True
        self.poll()
        association = self.gateway._associations[1]
        self.assertEqual(len(association.defining), 1)
        self.pass_time(120, 1.0)
        self.assertEqual(association.defining, {})
        assert association.sticky.aliases is not None
        self.assertIsNone(association.sticky.aliases.reference(ROOM))

    def test_in_an_acknowledgement(self) -> None:
        """Nothing is heard of it."""
        self.homeserver.answer = lambda _: result("s1")
        for _ in range(2):
            self.ask()
        self.assertLess(abs(self.sizes[1] - self.sizes[0]), 8)
        self.assertEqual(self.gateway._associations[1].defining, {})


class NotificationTests(X1TestCase):
    """A room id of the server's goes with each notification until one was acknowledged."""

    def setUp(self) -> None:
        super().setUp()
        self.results = iter(range(1, 100))
        self.homeserver.answer = lambda _: result(f"s{self.homeserver.position}")

    def test_confirmed_by_the_acknowledgement(self) -> None:
        self.confirming = False
        exchange = self.ask(observe=True)
        self.homeserver.say("first")
        self.settle()
        self.assertEqual(len(self.bodies), 1)
        other = "/_matrix/client/v3/account/whoami"
        self.ask(other)
        self.alice.endpoint.confirm(exchange, self.alice.driver.now())
        self.alice.driver.flush()
        self.settle()
        self.assertEqual(len(self.bodies), 3)
        first, aside, second = self.sizes
        self.assertLess(abs(first - aside), 8)
        self.assertLess(second, first - len("OGEhHVWSdvArJzumhm"))
        for body in self.bodies:
            self.assertIn(ROOM, body["rooms"]["join"])

    def test_nothing_that_grows_stale(self) -> None:
        self.ask(observe=True)
        self.assertEqual(self.option_sets(), [{OptionNumber.OBSERVE}])

    def test_nothing_stays_of_what_ended(self) -> None:
        self.confirming = False
        exchange = self.ask(observe=True)
        association = self.gateway._associations[1]
        self.assertEqual(len(association.defining), 1)
        self.alice.endpoint.cancel(exchange, self.alice.driver.now())
        self.alice.driver.flush()
        self.settle()
        self.assertEqual((association.defining, self.gateway.observations), ({}, 0))
        assert association.sticky.aliases is not None
        self.assertIsNone(association.sticky.aliases.reference(ROOM))

    def test_further_blocks(self) -> None:
        """They are asked for in the words of the registration, which still say that they are of x1."""
        self.homeserver.answer = lambda _: result(f"s{self.homeserver.position}", count=100)
        self.ask(observe=True)
        for text in ("second", "third"):
            self.homeserver.say(text)
            self.settle()
        self.assertEqual(len(self.bodies), 3)
        self.assertEqual(len(self.bodies[2]["rooms"]["join"][ROOM]["timeline"]["events"]), 100)

    def test_the_option_of_the_registration(self) -> None:
        self.ask(observe=True)
        self.ask(observe=True, announce=False)
        self.assertEqual(self.gateway.observations, 2)
        self.assertNotIn(X1_WRITTEN, set.union(*self.option_sets()))
