# SPDX-License-Identifier: AGPL-3.0-or-later
"""Aliases: who may use which number when, and that no loss or order of messages makes one mean another text."""

from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.msc3079.x1 import (
    AliasBook,
    AliasError,
    Encoded,
    Side,
    UnknownAliasError,
    decode_body,
    encode_body,
)
from synapse_lb.msc3079.x1.aliases import MAX_ALIASES, AliasKind
from tests.msc3079.strategies import PROPERTY

ROOM = "!room:example.org"


class BookTests(SynchronousTestCase):
    """One book."""

    def setUp(self) -> None:
        super().setUp()
        self.client, self.server = AliasBook(Side.CLIENT), AliasBook(Side.SERVER)

    def test_parity(self) -> None:
        """A client's numbers are even, a server's odd."""
        texts = [f"!{number}:example.org" for number in range(3)]
        self.assertEqual([self.client.definition(text, AliasKind.ROOM) for text in texts], [0, 2, 4])
        self.assertEqual([self.server.definition(text, AliasKind.ROOM) for text in texts], [1, 3, 5])

    def test_definition_stays(self) -> None:
        """Before and after it is known, a text has one number."""
        number = self.client.definition(ROOM, AliasKind.ROOM)
        self.assertIsNone(self.client.reference(ROOM))
        self.client.confirm([0])
        self.assertEqual(self.client.reference(ROOM), number)
        self.client.forget_known()
        self.assertIsNone(self.client.reference(ROOM))
        self.assertEqual(self.client.definition(ROOM, AliasKind.ROOM), number)

    def test_peers_definition_is_known_at_once(self) -> None:
        self.server.learn({0: ROOM})
        self.assertEqual(self.server.reference(ROOM), 0)

    def test_peers_definitions_can_be_forgotten_until_they_come_again(self) -> None:
        self.server.learn({0: ROOM})
        self.server.forget_peers()
        self.assertIsNone(self.server.reference(ROOM))
        self.assertEqual(self.server.resolve(0), ROOM)
        self.server.learn({0: ROOM})
        self.assertEqual((self.server.reference(ROOM), self.server.counters.learned), (0, 1))

    def test_use_by_the_peer_confirms(self) -> None:
        """Whoever refers to a number has it."""
        self.server.definition(ROOM, AliasKind.ROOM)
        self.assertEqual(self.server.resolve(1), ROOM)
        self.assertEqual(self.server.reference(ROOM), 1)

    def test_confirmed_before_it_is_defined(self) -> None:
        """Only what this side has given counts as confirmed."""
        self.server.learn({0: ROOM})
        self.server.confirm([0, 1, 77])
        self.assertEqual(self.server.definition("!other:example.org", AliasKind.ROOM), 1)
        self.assertIsNone(self.server.reference("!other:example.org"))

    def test_unknown(self) -> None:
        with self.assertRaises(UnknownAliasError) as caught:
            self.server.resolve(4)
        self.assertEqual(caught.exception.number, 4)

    def test_numbers_that_are_not_the_peers(self) -> None:
        """Own numbers, numbers out of range, and another text for a number: nothing of all that is learned."""
        self.server.learn({0: ROOM})
        for wrong in ({1: ROOM}, {-2: ROOM}, {MAX_ALIASES: ROOM}, {0: "!other:example.org"}):
            with self.assertRaises(AliasError):
                self.server.learn({2: "!third:example.org", **wrong})
        self.assertEqual(len(self.server), 1)
        self.server.learn({0: ROOM})
        self.assertEqual((len(self.server), self.server.counters.learned), (1, 1))

    def test_full(self) -> None:
        """Each kind has a share; what has no room left is refused, and what was given stays."""
        for number in range(200):
            for kind in AliasKind:
                self.client.definition(f"!{kind}{number}:example.org", kind)
        self.assertEqual(len(self.client), MAX_ALIASES // 2)
        self.assertEqual(self.client.counters.defined, MAX_ALIASES // 2)
        self.assertEqual(self.client.counters.refused, 200 * len(AliasKind) - MAX_ALIASES // 2)
        self.assertEqual(self.client.definition("!00:example.org", AliasKind.ROOM), 0)
        self.client.learn({number: f"!{number}:example.net" for number in range(1, MAX_ALIASES, 2)})
        self.assertEqual(len(self.client), MAX_ALIASES)

    def test_too_long(self) -> None:
        """No id of Matrix is longer than 255 bytes."""
        for text in ("!" + "x" * 255, "!" + "é" * 128, "!\ud800:example.org"):
            self.assertIsNone(self.client.definition(text, AliasKind.ROOM))


class BodyTests(SynchronousTestCase):
    """Definitions and references within bodies."""

    def setUp(self) -> None:
        super().setUp()
        self.client, self.server = AliasBook(Side.CLIENT), AliasBook(Side.SERVER)

    def test_defined_until_confirmed(self) -> None:
        """Each body defines until the peer is known to have one; within a body, the first time only."""
        body = {"a": ROOM, "b": ROOM}
        for _ in range(2):
            encoded = encode_body(body, self.client, compress=False)
            self.assertEqual(encoded.definitions, (0,))
            self.assertEqual(encoded.data.count(ROOM.encode()), 1)
        self.assertEqual(decode_body(encoded.data, self.server), body)
        self.client.confirm(encoded.definitions)
        later = encode_body(body, self.client)
        self.assertEqual(later, Encoded(bytes.fromhex("a2 6161 4100 6162 4100")))
        self.assertEqual(decode_body(later.data, self.server), body)
        self.assertEqual(encode_body(body, self.server), later)

    def test_nothing_is_learned_from_what_is_refused(self) -> None:
        """A definition in a body that ends early is none."""
        data = encode_body({"a": ROOM, "b": 1}, self.client).data
        with self.assertRaises(Exception) as caught:
            decode_body(data[:-1], self.server)
        self.assertIn("too early", str(caught.exception))
        self.assertEqual(len(self.server), 0)

    def test_two_definitions_of_one_number(self) -> None:
        """In one body as in two."""
        one, two = (b"\x45\x00\x00\x01!" + letter for letter in (b"a", b"b"))
        with self.assertRaises(AliasError):
            decode_body(b"\x82" + one + two, self.server)
        self.assertEqual(decode_body(b"\x82" + one + one, self.server), ["!a", "!a"])

    def test_without_a_book(self) -> None:
        """A body for nobody in particular has no aliases."""
        self.assertEqual(encode_body([ROOM, ROOM], compress=False).data.count(ROOM.encode()), 2)
        for data in (b"\x41\x00", b"\x45\x00\x00\x01!a"):
            with self.assertRaises(AliasError):
                decode_body(data)

    def test_what_gets_one(self) -> None:
        """Rooms and users wherever they are, devices and sessions by their keys."""
        key = "JGLn/yafz74HB2AbPLYJWIVGnKAtqECOBf11yyXac2Y"
        body = {
            "x": "@alice:example.org",
            "session_id": key,
            "sender_key": key[::-1],
            "device_id": "RJYKSTBOIE",
        }
        self.assertEqual(len(encode_body(body, self.client).definitions), 4)
        for name in ("key", "user", "mxid"):
            self.assertEqual(encode_body({name: key, "y": "!", "z": "@no one"}, self.client).definitions, ())

    def test_a_first_sync_leaves_numbers(self) -> None:
        """One body defines at most half of what there is of a kind."""
        rooms = {f"!{number}:example.org": 1 for number in range(100)}
        self.assertEqual(len(encode_body(rooms, self.server).definitions), 28)


@attrs.define
class _Message:
    """A message under way: who gets it, what it is, and how often it has arrived."""

    receiver: Side
    encoded: Encoded
    value: list[str]
    arrived: bool = False


TEXTS = [f"!{number}:example.org" for number in range(4)] + ["@alice:example.org", "@bob:example.org"]

STEPS = st.lists(
    st.tuples(st.sampled_from(("send", "deliver", "acknowledge", "forget")), st.integers(0, 50)), max_size=60
)


class LossyTests(SynchronousTestCase):
    """Two books and a network that loses, repeats and reorders."""

    @PROPERTY
    @given(STEPS)
    def test_no_wrong_and_no_unknown_text(self, steps: list[tuple[str, int]]) -> None:
        """Whatever arrives whenever, how often and whether or not it is acknowledged, it means what was sent.

        A message that has arrived may be acknowledged at any time later, or never.
        """
        books = {side: AliasBook(side) for side in Side}
        messages: list[_Message] = []
        for step, choice in steps:
            if step == "send":
                sender = Side(choice & 1)
                value = [TEXTS[choice % len(TEXTS)], TEXTS[choice // 7 % len(TEXTS)]]
                message = _Message(Side(1 - sender), encode_body(value, books[sender]), value)
                messages.append(message)
            elif step == "forget":
                books[Side(choice & 1)].forget_known()
            elif messages:
                message = messages[choice % len(messages)]
                if step == "deliver":
                    self.assertEqual(
                        decode_body(message.encoded.data, books[message.receiver]), message.value
                    )
                    message.arrived = True
                elif message.arrived:
                    books[Side(1 - message.receiver)].confirm(message.encoded.definitions)
