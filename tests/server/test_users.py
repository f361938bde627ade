# SPDX-License-Identifier: AGPL-3.0-or-later
"""Two users on one association: what is kept for one of them is nothing to the other. And what ends a token."""

from __future__ import annotations

from typing import Any

from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.observe import DEREGISTER, REGISTER
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Tuning
from synapse_lb.msc3079.extension import UNKNOWN_ALIAS
from synapse_lb.msc3079.mapping import decode_response, encode_request, encode_x1_request
from synapse_lb.msc3079.messages import NO_BODY, MatrixRequest, MatrixResponse
from synapse_lb.msc3079.options import ACCESS_TOKEN
from synapse_lb.msc3079.x1 import AliasBook, Side
from synapse_lb.msc3079.x1.aliases import MAX_USERS
from tests.server.observing import SYNC, ObserverTestCase
from tests.server.test_gateway import Client, GatewayTestCase

WHOAMI = "/_matrix/client/v3/account/whoami"
SECRET = "of-the-first-user"
SECOND_BLOCK = (OptionNumber.BLOCK2, bytes([0x10 | 6]))
ROOM = "!OGEhHVWSdvArJzumhm:example.org"


class SecondUserTestCase(ObserverTestCase):
    """Messages by hand on `self.alice`, the association of alice and bob."""

    tuning = Tuning(q_block=True)

    def setUp(self) -> None:
        super().setUp()
        self.alice.deaf = True
        self._numbers = iter(range(100, 200))
        self.homeserver.answer = self.answer

    def answer(self, request: MatrixRequest) -> MatrixResponse:
        """Large, and with the user's token in it, so that it is seen whose it is."""
        text = (SECRET if request.access_token == "alice-1" else "mine-") * 400
        return MatrixResponse(200, {"next_batch": f"s{self.homeserver.position}", "rooms": {"x": text}})

    def send(
        self, *options: tuple[int, bytes], token: str | None = None, path: str = SYNC, coap: bytes = b"\x01"
    ) -> list[Message]:
        """One request; returns what came of it."""
        code, pairs, _ = encode_request("GET", path, token=token)
        return self.send_raw(Message(Type.CON, code, next(self._numbers), coap, Options.of(*pairs, *options)))

    def send_raw(self, message: Message) -> list[Message]:
        self.alice.received.clear()
        self.gateway.message_received(1, message.encode())
        self.settle()
        return [Message.decode(data) for data in self.alice.received]

    def assert_nothing_of_the_first(self, answers: list[Message]) -> None:
        self.assertTrue(answers)
        for message in answers:
            self.assertNotIn(SECRET.encode(), message.payload)

    def seen_by_the_first(self, answers: list[Message]) -> bool:
        return any(SECRET.encode() in message.payload for message in answers)


class BlockTests(SecondUserTestCase):
    """Bodies of which further blocks are there to be fetched."""

    def test_block2(self) -> None:
        self.assertTrue(self.seen_by_the_first(self.send(token="alice-1")))
        answers = self.send(SECOND_BLOCK, token="bob-1", coap=b"\x02")
        self.assert_nothing_of_the_first(answers)
        self.assertEqual(answers[-1].code, Code.REQUEST_ENTITY_INCOMPLETE)
        # The token is bob's now, so that what relies on it is no better.
        self.assertEqual(self.send(SECOND_BLOCK)[-1].code, Code.REQUEST_ENTITY_INCOMPLETE)
        self.assertTrue(self.seen_by_the_first(self.send(SECOND_BLOCK, token="alice-1")))
        self.assertEqual(len(self.homeserver.requests), 1)

    def test_by_the_etag(self) -> None:
        """A further block may be asked for by the ETag in the place of the path: only by whose body it is."""
        first = self.send(token="alice-1")[-1]
        etag = first.options.get(OptionNumber.ETAG)
        assert etag is not None

        def ask(token: bytes, number: int) -> list[Message]:
            options = Options.of((OptionNumber.ETAG, etag), SECOND_BLOCK, (ACCESS_TOKEN, token))
            return self.send_raw(Message(Type.CON, Code.GET, number, bytes([number]), options))

        answers = ask(b"bob-1", 10)
        self.assert_nothing_of_the_first(answers)
        self.assertEqual(answers[-1].code, Code.REQUEST_ENTITY_INCOMPLETE)
        self.assertTrue(self.seen_by_the_first(ask(b"alice-1", 11)))

    def test_q_block2(self) -> None:
        def q_block(number: int) -> tuple[int, bytes]:
            return OptionNumber.Q_BLOCK2, bytes([number << 4 | 6])

        answers = self.send(q_block(0), token="alice-1")
        self.assertTrue(self.seen_by_the_first(answers))
        for coap in (b"\x01", b"\x02"):
            answers = self.send(q_block(1), q_block(2), token="bob-1", coap=coap)
            self.pass_time(1)
            self.assert_nothing_of_the_first(answers)
            self.assertEqual(answers[-1].code >> 5, 4)
        answers = self.send(q_block(1), token="alice-1", coap=b"\x03")
        self.assertTrue(self.seen_by_the_first(answers))

    def test_an_upload(self) -> None:
        """Bob's block is not put behind alice's."""
        code, pairs, _ = encode_request("PUT", "/_matrix/client/v3/user/a/account_data/b", body={})
        part = b"\xa1\x61a\x19" + b"x" * 1020

        def block(token: bytes, number: int, more: int) -> Message:
            options = Options.of(*pairs, (ACCESS_TOKEN, token))
            options = options.with_option(OptionNumber.BLOCK1, bytes([number << 4 | more << 3 | 6]))
            return Message(Type.CON, code, next(self._numbers), b"\x01", options, part)

        self.assertEqual(self.send_raw(block(b"alice-1", 0, 1))[-1].code, Code.CONTINUE)
        self.assertEqual(self.send_raw(block(b"bob-1", 1, 0))[-1].code, Code.REQUEST_ENTITY_INCOMPLETE)
        self.assertEqual(self.homeserver.requests, [])

    def test_a_token_that_cannot_be_read_is_not_the_one_before(self) -> None:
        self.send(token="alice-1")
        for value in (b"bob 1", b"x" * 4097):
            self.send(token="alice-1")
            answers = self.send(SECOND_BLOCK, (ACCESS_TOKEN, value), coap=b"\x02")
            self.assert_nothing_of_the_first(answers)
            self.assertIsNone(self.gateway._associations[1].sticky.token)
            self.assert_nothing_of_the_first(self.send(SECOND_BLOCK, coap=b"\x03"))


class ReplyTests(SecondUserTestCase):
    """Replies that are kept for copies of their messages."""

    def request(self, token: str | None, coap: bytes = b"\x01") -> Message:
        code, pairs, _ = encode_request("GET", WHOAMI, token=token)
        return Message(Type.CON, code, 7, coap, Options.of(*pairs))

    def test_the_same_message_id(self) -> None:
        """Only the very bytes of a message get its reply again; what bob says is another message."""
        first = self.send_raw(self.request("alice-1"))
        self.assertTrue(self.seen_by_the_first(first))
        for other in (self.request("bob-1"), self.request(None), self.request(None, b"\x02")):
            self.assert_nothing_of_the_first(self.send_raw(other))
        self.assertEqual(
            [each.access_token for each, _ in self.homeserver.requests], ["alice-1", *["bob-1"] * 3]
        )

    def test_a_late_copy_is_still_the_first_user_s(self) -> None:
        """It gets the reply that was sent to it before, and is not run as the second user's."""
        self.send_raw(self.request("alice-1"))
        relying = self.request(None, b"\x05")
        first = self.send_raw(relying)
        self.send(token="bob-1", path=WHOAMI)
        asked = len(self.homeserver.requests)
        self.assertEqual(self.send_raw(relying), first)
        self.assertTrue(self.seen_by_the_first(first))
        self.assertEqual(len(self.homeserver.requests), asked)


class NotificationTests(SecondUserTestCase):
    """What the first user observes."""

    def setUp(self) -> None:
        super().setUp()
        self.small = False

    def answer(self, request: MatrixRequest) -> MatrixResponse:
        if not self.small:
            return super().answer(request)
        text = SECRET if request.access_token == "alice-1" else "mine"
        return MatrixResponse(200, {"next_batch": f"s{self.homeserver.position}", "rooms": {"x": text}})

    def observe(self, token: str, coap: bytes, value: int = REGISTER) -> list[Message]:
        encoded = (OptionNumber.OBSERVE, bytes([value]) if value else b"")
        answers = self.send(encoded, token=token, coap=coap)
        for message in answers:
            if message.type is Type.CON:
                self.gateway.message_received(1, Message(Type.ACK, 0, message.message_id).encode())
        self.settle()
        return answers

    def test_each_gets_its_own(self) -> None:
        """A notification goes to whom it was registered for, by the CoAP token, whoever spoke last."""
        self.small = True
        self.observe("alice-1", b"\x0a")
        self.observe("bob-1", b"\x0b")
        self.assertEqual(self.gateway.observations, 2)
        self.alice.received.clear()
        self.homeserver.say("something")
        self.settle()
        by_token = {message.token: message.payload for message in map(Message.decode, self.alice.received)}
        self.assertEqual(set(by_token), {b"\x0a", b"\x0b"})
        self.assertIn(SECRET.encode(), by_token[b"\x0a"])
        self.assertNotIn(SECRET.encode(), by_token[b"\x0b"])

    def test_blocks_of_a_notification(self) -> None:
        self.observe("alice-1", b"\x0a")
        answers = self.send(SECOND_BLOCK, token="bob-1", coap=b"\x0c")
        self.assert_nothing_of_the_first(answers)
        self.assertEqual(answers[-1].code, Code.REQUEST_ENTITY_INCOMPLETE)

    def test_taking_over_the_coap_token(self) -> None:
        """It ends alice's observation, and begins one of bob's."""
        self.small = True
        self.observe("alice-1", b"\x0a")
        self.assert_nothing_of_the_first(self.observe("bob-1", b"\x0a"))
        self.assertEqual(self.gateway.observations, 1)
        self.alice.received.clear()
        self.homeserver.say("something")
        self.settle()
        self.assert_nothing_of_the_first([Message.decode(data) for data in self.alice.received])

    def test_ending_it(self) -> None:
        """Bob is not told where alice is in the stream."""
        self.small = True
        self.homeserver.say("something")
        self.observe("alice-1", b"\x0a")
        answers = self.observe("bob-1", b"\x0a", DEREGISTER)
        body = decode_response(answers[-1].code, answers[-1].options, answers[-1].payload).body
        self.assertEqual((body, self.gateway.observations), ({}, 0))


class AliasTests(SecondUserTestCase):
    """The aliases of x1: numbers of the association, each for those who have seen it."""

    def setUp(self) -> None:
        super().setUp()
        self.book = AliasBook(Side.CLIENT)
        self.homeserver.answer = lambda request: MatrixResponse(
            404, {"errcode": "M_NOT_FOUND", "error": f"Not found: {request.path.decode()}"}
        )

    def ask(
        self, token: str | None, room: str, book: AliasBook | None = None, *, announce: bool = True
    ) -> tuple[int, Any]:
        written = encode_x1_request(
            "GET",
            f"/_matrix/client/v3/rooms/{room}/state/m.room.name",
            None,
            NO_BODY,
            book or self.book,
            token=token,
            announce=announce,
        )
        options, number = Options.of(*written.options), next(self._numbers)
        [answer] = self.send_raw(Message(Type.CON, written.code, number, b"", options, written.payload))
        body = decode_response(answer.code, answer.options, answer.payload, book=self.book).body
        return answer.code, body

    def guess(self) -> AliasBook:
        """A book that refers to its numbers, of which the first is said to be known."""
        book = AliasBook(Side.CLIENT)
        written = encode_x1_request("GET", f"/_matrix/client/v3/rooms/{ROOM}/state/x", None, NO_BODY, book)
        book.confirm(written.definitions)
        self.assertTrue(written.definitions)
        return book

    def test_of_a_path(self) -> None:
        guess = self.guess()
        self.assertEqual(self.ask("alice-1", ROOM)[0], Code.NOT_FOUND)
        code, body = self.ask("bob-1", ROOM, guess)
        self.assertEqual((code, body["errcode"]), (Code.BAD_REQUEST, UNKNOWN_ALIAS))
        self.assertEqual(len(self.homeserver.requests), 1)
        self.assertEqual(self.ask("alice-1", ROOM, guess)[0], Code.NOT_FOUND)
        # Whoever says the text has the number; a definition is the same for all.
        self.assertEqual(self.ask("bob-1", ROOM)[0], Code.NOT_FOUND)
        self.assertEqual(self.ask("bob-1", ROOM, guess)[0], Code.NOT_FOUND)

    def test_after_a_logout(self) -> None:
        self.ask("alice-1", ROOM)
        self.gateway._associations[1].sticky.forget_token()
        self.assertEqual(self.ask(None, ROOM, self.guess())[1]["errcode"], UNKNOWN_ALIAS)

    def test_before_anybody_was_known(self) -> None:
        """What came with no token may be used by all."""
        self.ask(None, ROOM)
        self.assertEqual(self.ask("bob-1", ROOM, self.guess())[0], Code.NOT_FOUND)

    def test_of_an_answer(self) -> None:
        """What the server has defined for alice, bob may not refer to; he gets it when he is sent the same."""
        room = "!another:example.org"
        self.homeserver.answer = lambda _: MatrixResponse(404, {"errcode": "M_NOT_FOUND", "rooms": [room]})
        self.ask("alice-1", ROOM)
        book = AliasBook(Side.CLIENT)
        book.learn({1: room})
        for token, expected in (("bob-1", UNKNOWN_ALIAS), ("alice-1", "M_NOT_FOUND")):
            self.assertEqual(self.ask(token, room, book)[1]["errcode"], expected, token)
        # The number alone, because the client has used it, is as good as its definition.
        self.ask("bob-1", ROOM, announce=False)
        self.assertNotIn(room.encode(), self.alice.received[-1])
        self.assertEqual(self.ask("bob-1", room, book)[1]["errcode"], "M_NOT_FOUND")

    def test_more_users_than_are_remembered(self) -> None:
        """Whoever was not heard of for longest defines anew."""
        guess = self.guess()
        self.homeserver.users.update({f"user-{number}": "@u:x" for number in range(MAX_USERS)}, more="@u:x")
        for number in range(MAX_USERS):
            self.ask(f"user-{number}", ROOM)
        self.ask("user-0", ROOM, guess)
        self.ask("more", ROOM)
        self.assertEqual(self.ask("user-0", ROOM, guess)[0], Code.NOT_FOUND)
        self.assertEqual(self.ask("user-1", ROOM, guess)[1]["errcode"], UNKNOWN_ALIAS)
        self.assertEqual(self.ask("user-1", ROOM)[0], Code.NOT_FOUND)

    def test_a_token_in_the_query(self) -> None:
        """Its aliases would be nobody's in particular, so there is none."""
        written = encode_x1_request(
            "GET", f"{WHOAMI}?access_token=alice-1", None, NO_BODY, self.book, announce=True
        )
        options = Options.of(*written.options)
        [answer] = self.send_raw(Message(Type.CON, written.code, next(self._numbers), b"", options))
        self.assertEqual((answer.code, self.homeserver.requests), (Code.BAD_REQUEST, []))


class EndOfTokenTests(GatewayTestCase):
    """What the next association has of the last one; see `GatewayTests` for 401 and logout."""

    def test_a_new_association_has_none(self) -> None:
        """A new handshake, resumed or not, is a new association, and has to say its token."""
        self.ask(self.alice, "GET", SYNC, token="alice-1")
        self.alice.lose()
        again = Client(self.gateway, self.port, self.clock, 2)
        self.ask(again, "GET", SYNC)
        self.assertEqual([each.access_token for each, _ in self.dispatcher.asked], ["alice-1", None])

    def test_nothing_of_it_is_kept(self) -> None:
        self.ask(self.alice, "GET", SYNC, token="alice-1")
        self.assertEqual(self.gateway._associations[1].sticky.token, "alice-1")
        self.alice.lose()
        self.assertEqual(self.gateway._associations, {})
        self.assertEqual(self.gateway.present, [])
