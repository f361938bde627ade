# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a stranger with an association tries: half bodies, bombs, tokens by the thousand. It stays cheap and his own."""

from __future__ import annotations

import random
import zlib
from typing import Any

from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits
from synapse_lb.msc3079.extension import X1_WRITTEN
from synapse_lb.msc3079.mapping import decode_response, encode_request
from synapse_lb.msc3079.options import ACCESS_TOKEN
from synapse_lb.msc3079.x1.aliases import MAX_USERS
from synapse_lb.msc3079.x1.dictionary import DICTIONARY
from tests.server.observing import SYNC, Observer, ObserverTestCase

UPLOAD = "/_matrix/client/v3/keys/upload"
ROOM = "!" + "r" * 200 + ":example.org"


class AttackTestCase(ObserverTestCase):
    """Associations that send whatever they like, and one of somebody who is known."""

    limits = Limits(
        max_reassembly_bytes_total=256 * 1024,
        max_reassembly_bytes_per_peer=128 * 1024,
        max_request_body=64 * 1024,
    )

    def setUp(self) -> None:
        super().setUp()
        self.numbers = iter(range(1, 60000))
        self.known = Observer(self.gateway, self.port, self.clock, 99)
        self.known.request("GET", SYNC, token="bob-1")
        self.settle()
        self.assertIn((99, True), self.port.trusted)

    def stranger(self, number: int) -> Observer:
        client = Observer(self.gateway, self.port, self.clock, number)
        client.deaf = True
        return client

    def send(
        self,
        client: Observer,
        *options: tuple[int, bytes],
        payload: bytes = b"",
        method: str = "PUT",
        path: str = "/_matrix/client/v3/x",
    ) -> Message:
        """One request; the answer."""
        code, pairs, _ = encode_request(method, path)
        number = next(self.numbers)
        message = Message(
            Type.CON, code, number, number.to_bytes(2, "big"), Options.of(*pairs, *options), payload
        )
        self.gateway.message_received(client.id, message.encode())
        self.settle()
        return Message.decode(client.received[-1])

    def assert_nothing_stays(self) -> None:
        for client in list(self.port.clients.values()):
            client.lose()
        self.pass_time(600, 10.0)
        self.assertTrue(self.gateway.endpoint.idle)
        self.assertEqual((self.gateway.running, self.gateway.observations), (0, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])


class HalfBodyTests(AttackTestCase):
    """Uploads that never end."""

    def half(self, client: Observer, tag: int) -> int:
        """The first block of a body, of 1 KiB."""
        options = (OptionNumber.REQUEST_TAG, tag.to_bytes(2, "big")), (OptionNumber.BLOCK1, bytes([8 | 6]))
        return self.send(client, *options, payload=bytes(1024), method="POST", path=UPLOAD).code

    def test_of_one_association(self) -> None:
        mallory = self.stranger(2)
        for tag in range(100):
            self.assertEqual(self.half(mallory, tag), Code.CONTINUE)
        reassembly = self.gateway.endpoint._responder.reassembly
        self.assertEqual(len(reassembly), self.limits.max_reassemblies_per_peer)
        self.assertEqual(self.gateway.endpoint.counters.reassembly_evictions, 92)
        self.assert_nothing_stays()

    def test_of_many_they_take_no_room_from_a_known_one(self) -> None:
        """A body that was begun before the flood is whole after it."""
        body = {"keys": random.Random(1).randbytes(3000).hex()}
        code, pairs, payload = encode_request("POST", UPLOAD, None, body, token="bob-1")
        parts = [payload[at : at + 1024] for at in range(0, len(payload), 1024)]

        def block(number: int) -> int:
            option = OptionNumber.BLOCK1, bytes([number << 4 | (number + 1 < len(parts)) << 3 | 6])
            message = Message(
                Type.CON, code, 1000 + number, b"\x07", Options.of(*pairs, option), parts[number]
            )
            self.gateway.message_received(99, message.encode())
            self.settle()
            return Message.decode(self.known.received[-1]).code

        self.assertEqual(block(0), Code.CONTINUE)
        for number in range(100, 150):
            mallory = self.stranger(number)
            for tag in range(8):
                self.half(mallory, tag)
        self.assertGreater(self.gateway.endpoint.counters.reassembly_evictions, 100)
        self.assertLessEqual(self.gateway.endpoint._responder.reassembly.total_bytes, 256 * 1024)
        codes = [block(number) for number in range(1, len(parts))]
        self.assertEqual(codes, [Code.CONTINUE] * (len(parts) - 2) + [Code.CONTENT])
        self.assertEqual(self.homeserver.requests[-1][0].body, body)
        self.assert_nothing_stays()


class TokenTests(AttackTestCase):
    """Tokens that are tried."""

    def test_by_the_thousand(self) -> None:
        """No more is kept than of one, and none makes a client known."""
        mallory = self.stranger(2)
        for number in range(2000):
            answer = self.send(
                mallory, (ACCESS_TOKEN, b"guess-%d" % number), (X1_WRITTEN, b"\x01"), method="GET", path=SYNC
            )
            self.assertEqual(answer.code, Code.UNAUTHORIZED)
        sticky = self.gateway._associations[2].sticky
        self.assertIsNone(sticky.token)
        assert sticky.aliases is not None
        self.assertLessEqual(len(sticky.aliases._users), MAX_USERS)
        self.assertNotIn((2, True), self.port.trusted)
        self.assert_nothing_stays()

    def test_observing_with_them(self) -> None:
        mallory = self.stranger(2)
        for number in range(50):
            option = OptionNumber.OBSERVE, b""
            answer = self.send(mallory, option, (ACCESS_TOKEN, b"guess-%d" % number), method="GET", path=SYNC)
            self.assertEqual(answer.code, Code.UNAUTHORIZED)
        self.assertEqual((self.gateway.observations, self.homeserver.open), (0, 0))
        self.assert_nothing_stays()

    def test_observing_without_end(self) -> None:
        """A user has so many on one association; further registrations are plain requests."""
        user = self.stranger(2)
        for _ in range(50):
            self.send(user, (OptionNumber.OBSERVE, b""), (ACCESS_TOKEN, b"alice-1"), method="GET", path=SYNC)
        self.assertEqual(self.gateway.observations, self.limits.max_observations_per_peer)
        refused = 50 - self.limits.max_observations_per_peer
        self.assertEqual(self.gateway.endpoint.counters.observations_refused, refused)
        self.assert_nothing_stays()


class BombTests(AttackTestCase):
    """Requests that become much more than they are."""

    def refused(self, payload: bytes, *options: tuple[int, bytes], code: int = 0x8D) -> Any:
        """Not run, and counted."""
        before, asked = self.gateway.counters.refused, len(self.homeserver.requests)
        mallory = self.stranger(2)
        answer = self.send(mallory, *options, payload=payload)
        self.assertEqual(answer.code, code)
        self.assertEqual(self.gateway.counters.refused, before + 1)
        self.assertEqual(len(self.homeserver.requests), asked)
        book = self.gateway._associations[2].sticky.aliases
        return decode_response(answer.code, answer.options, answer.payload, book=book).body

    def test_deflate(self) -> None:
        """Of Content-Format 11060: no more than 4 KiB of what would be 60 KiB."""
        bomb = zlib.compress(b"\x9a\x00\x00\xf0\x00" + bytes(0xF000), 9)
        self.assertLess(len(bomb), 200)
        body = self.refused(bomb, (OptionNumber.CONTENT_FORMAT, b"\x2b\x34"))
        self.assertEqual(body["errcode"], "M_TOO_LARGE")

    def test_deflate_of_x1(self) -> None:
        stream = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=DICTIONARY)
        bomb = b"\x1c" + stream.compress(b"\x9a\x00\x00\xf0\x00" + bytes(0xF000)) + stream.flush()
        self.assertLess(len(bomb), 200)
        body = self.refused(bomb, (X1_WRITTEN, b"\x01"))
        self.assertEqual(body["errcode"], "M_TOO_LARGE")

    def test_aliases_in_a_body(self) -> None:
        """Two bytes for each 213; compressed, a hundredth of that."""
        text = ROOM.encode()
        definition = b"\x58" + bytes([len(text) + 3]) + b"\x00\x00\x01" + text
        count = 25000
        plain = b"\x9a" + (count + 1).to_bytes(4, "big") + definition + b"\x41\x00" * count
        with self.subTest("in blocks"):
            self.assertIn("too much", self.large(plain))
        stream = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=DICTIONARY)
        bomb = b"\x1c" + stream.compress(plain) + stream.flush()
        self.assertLess(len(bomb), 1000)
        self.refused(bomb, (X1_WRITTEN, b"\x01"))

    def test_templates(self) -> None:
        """Two bytes for each event with all of its defaults."""
        stream = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=DICTIONARY)
        bomb = b"\x1c" + stream.compress(b"\x99\x07\xd0" + b"\xc6\x80" * 2000) + stream.flush()
        self.assertLess(len(bomb), 50)
        self.assertIn("too much", self.refused(bomb, (X1_WRITTEN, b"\x01"))["error"])

    def large(self, payload: bytes) -> str:
        """A body in blocks; the error that answers it."""
        mallory = self.stranger(3)
        for at in range(0, len(payload), 1024):
            number, more = at // 1024, at + 1024 < len(payload)
            value = (number << 4 | more << 3 | 6).to_bytes(2, "big")
            answer = self.send(
                mallory, (OptionNumber.BLOCK1, value), (X1_WRITTEN, b"\x01"), payload=payload[at : at + 1024]
            )
        self.assertEqual(answer.code, Code.REQUEST_ENTITY_TOO_LARGE)
        book = self.gateway._associations[3].sticky.aliases
        return str(decode_response(answer.code, answer.options, answer.payload, book=book).body["error"])

    def test_aliases_in_a_query(self) -> None:
        """A parameter of two bytes each, so that 120 of them become 25 KB."""
        text = ROOM.encode()
        definition = b"\x58" + bytes([len(text) + 3]) + b"\x00\x00\x01" + text
        mallory = self.stranger(2)
        first = self.send(mallory, (OptionNumber.URI_QUERY, b"\x80\x61a" + definition), (X1_WRITTEN, b"\x01"))
        self.assertEqual(first.code, Code.UNAUTHORIZED)
        asked = len(self.homeserver.requests)
        answer = self.send(mallory, (OptionNumber.URI_QUERY, b"\x80" + b"\x61a\x41\x00" * 60))
        self.assertEqual((answer.code >> 5, len(self.homeserver.requests)), (4, asked))
        self.assert_nothing_stays()
