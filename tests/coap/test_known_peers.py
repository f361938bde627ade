# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whose bodies make room for those of others."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.endpoint import Endpoint
from synapse_lb.coap.events import CoapResponse, RequestReceived
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code
from synapse_lb.coap.tuning import Limits
from tests.coap.lockstep import Script


class Strangers(SynchronousTestCase):
    """Where all peers together have no more room, those that the application does not know make it."""

    def setUp(self) -> None:
        limits = Limits(max_request_body=32, max_reassembly_bytes_per_peer=32, max_reassembly_bytes_total=64)
        self.endpoint = Endpoint(random=random.Random(1), limits=limits)
        self.numbers = iter(range(100))

    def begins(self, peer: str, name: str = "x") -> None:
        self.assertEqual(self.sends(peer, f"PUT /{name} 1:0/1/16"), Code.CONTINUE)

    def goes_on(self, peer: str, name: str = "x") -> bool:
        return self.sends(peer, f"PUT /{name} 1:1/1/16") == Code.CONTINUE

    def sends(self, peer: str, text: str) -> int:
        """A peer sends a message with 16 bytes; the code of the answer."""
        message = Script(self).build(f"CON [{next(self.numbers)}] {text}", bytes(16))
        self.endpoint.receive(peer, message.encode(), 0.0)
        while (event := self.endpoint.next_event()) is not None:
            if isinstance(event, RequestReceived):
                self.endpoint.respond(event.exchange, CoapResponse(Code.CONTENT), 0.0)
        ((receiver, datagram),) = self.endpoint.datagrams_to_send(0.0)
        self.assertEqual(receiver, peer)
        return Message.decode(datagram).code

    def knows(self, peer: str, known: bool = True) -> None:
        self.endpoint.set_peer(peer, known=known, now=0.0)

    def test_a_known_peer_loses_nothing_to_a_flood(self) -> None:
        self.begins("bob")
        self.knows("bob")  # also what he sent before is safe
        self.begins("bob", "y")
        for number in range(20):
            self.begins(f"stranger {number}")
        self.assertTrue(self.goes_on("stranger 19"))
        self.assertFalse(self.goes_on("stranger 18"))
        self.assertEqual(self.endpoint.counters.reassembly_evictions, 19)
        self.assertEqual(self.sends("bob", "PUT /x 1:1/0/16"), Code.CONTENT)

    def test_of_strangers_the_one_that_was_not_touched_for_longest(self) -> None:
        self.knows("bob")
        self.begins("bob")
        for name in ("alice", "carol"):
            self.begins(name)
        self.assertTrue(self.goes_on("alice"))
        self.begins("dave")
        self.assertFalse(self.goes_on("carol"))
        self.assertTrue(self.goes_on("dave"))
        self.assertTrue(self.goes_on("bob"))

    def test_who_goes_on_with_the_oldest_keeps_it(self) -> None:
        for name in ("alice", "bob", "carol", "dave"):
            self.begins(name)
        self.assertTrue(self.goes_on("alice"))
        self.assertEqual(self.endpoint._responder.reassembly.total_bytes, 64)
        self.assertFalse(self.goes_on("bob"))
        self.assertTrue(self.goes_on("carol"))

    def test_who_is_known_no_more(self) -> None:
        self.knows("bob")
        self.knows("bob", known=False)
        self.begins("bob")
        for number in range(4):
            self.begins(f"stranger {number}")
        self.assertFalse(self.goes_on("bob"))

    def test_where_there_is_none_a_known_one_goes(self) -> None:
        for name in ("alice", "bob", "carol", "dave", "erin"):
            self.knows(name)
            self.begins(name)
        self.assertEqual(self.endpoint.counters.reassembly_evictions, 1)
        self.assertFalse(self.goes_on("alice"))
        self.assertTrue(self.goes_on("bob"))

    def test_what_is_gone_is_forgotten(self) -> None:
        for name in ("alice", "bob"):
            self.begins(name)
            self.endpoint.drop_peer(name, 0.0)
        store = self.endpoint._responder.reassembly.store
        self.assertEqual((len(store._strangers), len(store), store.total_bytes), (0, 0, 0))
