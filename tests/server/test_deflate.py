# SPDX-License-Identifier: AGPL-3.0-or-later
"""Compressed answers through the gateway: one message, block by block, and as notifications."""

from __future__ import annotations

import random
import zlib

from synapse_lb.coap.events import CoapRequest
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.observe import REGISTER
from synapse_lb.coap.options import Options, encode_uint
from synapse_lb.msc3079 import cbor
from synapse_lb.msc3079.mapping import encode_request
from synapse_lb.msc3079.messages import MatrixResponse
from tests.server.observing import SYNC, ObserverTestCase, Seen

DEFLATED = (11060).to_bytes(2, "big")
NOISE = random.Random(7)


def events(count: int) -> dict[str, object]:
    """A result of a sync with so many messages, with texts that differ."""
    timeline = [
        {"type": "m.room.message", "content": {"body": NOISE.randbytes(40).hex()}} for _ in range(count)
    ]
    return {"next_batch": "s1", "rooms": {"join": {"!r:x": {"timeline": {"events": timeline}}}}}


class DeflateTests(ObserverTestCase):
    """A client that sends Accept: 11060."""

    def ask(self, body: dict[str, object], *, observe: bool = False) -> Seen:
        self.homeserver.answer = lambda _: MatrixResponse(200, body)
        code, pairs, payload = encode_request("GET", SYNC, None, token="alice-1", accept=11060)
        options = Options.of(*pairs)
        if observe:
            options = options.with_option(OptionNumber.OBSERVE, encode_uint(REGISTER))
        exchange = self.alice.endpoint.request(
            "server", CoapRequest(code, options, payload), self.alice.driver.now()
        )
        seen = self.alice.seen[exchange] = Seen(exchange)
        self.alice.driver.flush()
        self.settle()
        return seen

    def formats(self) -> set[bytes | None]:
        """The Content-Formats of all that came with a body."""
        messages = [Message.decode(data) for data in self.alice.received]
        return {each.options.get(OptionNumber.CONTENT_FORMAT) for each in messages if each.payload}

    def test_one_message(self) -> None:
        body = events(3)
        self.assertEqual(self.ask(body).final.body, body)
        self.assertEqual(self.formats(), {DEFLATED})
        self.assertLess(len(self.alice.received[-1]), len(cbor.encode(body)))

    def test_block_by_block(self) -> None:
        """What is kept for the further blocks is the compressed body; the request runs once."""
        body = events(300)
        self.assertEqual(self.ask(body).final.body, body)
        self.assertEqual(self.formats(), {DEFLATED})
        self.assertGreater(len(self.alice.received), 10)
        self.assertEqual(len(self.homeserver.requests), 1)

    def test_not_smaller(self) -> None:
        self.assertEqual(self.ask({"next_batch": "s1"}).final.body, {"next_batch": "s1"})
        self.assertEqual(self.formats(), {b"\x3c"})

    def test_notifications(self) -> None:
        first, second = events(2), events(200)
        seen = self.ask(first, observe=True)
        self.homeserver.answer = lambda _: MatrixResponse(200, second | {"next_batch": "s2"})
        self.homeserver.say("something")
        self.settle()
        self.assertEqual(seen.bodies, [first, second | {"next_batch": "s2"}])
        self.assertEqual(self.formats(), {DEFLATED})

    def test_bomb(self) -> None:
        """What a body may become is bounded as what it may be is; and nothing is run."""
        bomb = zlib.compress(b"\0" * (self.limits.max_request_body + 1), 9)
        self.assertLess(len(bomb), 2000)
        _, pairs, _ = encode_request("POST", "/_matrix/client/v3/keys/query", token="alice-1")
        options = Options.of(*pairs).with_uint(OptionNumber.CONTENT_FORMAT, 11060)
        result = self.alice.raw(CoapRequest(Code.POST, options, bomb))
        self.settle()
        self.assertEqual((result().status, result().body["errcode"]), (413, "M_TOO_LARGE"))
        self.assertEqual(self.homeserver.requests, [])
