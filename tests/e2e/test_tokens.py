# SPDX-License-Identifier: AGPL-3.0-or-later
"""The sticky access token, with a real Synapse: whose it is, what ends it, and two users on one association."""

from __future__ import annotations

from typing import Any

from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import Options
from synapse_lb.msc3079.extension import UNKNOWN_ALIAS
from synapse_lb.msc3079.mapping import decode_response, encode_x1_request
from synapse_lb.msc3079.messages import NO_BODY
from synapse_lb.msc3079.options import ACCESS_TOKEN
from synapse_lb.msc3079.x1 import AliasBook, Side
from tests.e2e.harness import CLIENT, RawPeer, SynapseTestCase, User, cbor_value, path_options

WHOAMI = path_options(f"{CLIENT}/account/whoami")
SYNC = path_options(f"{CLIENT}/sync", "timeout=0")


def by(user: User | None, options: Options) -> Options:
    """A request with the token of a user."""
    return options if user is None else options.with_option(ACCESS_TOKEN, user.token.encode())


def block(number: int) -> tuple[int, bytes]:
    """Block2 of a further block, or Q-Block2 of one."""
    return OptionNumber.BLOCK2, bytes([number << 4 | 6])


class TokenTestCase(SynapseTestCase):
    """One association."""

    number = 0

    async def exchange(self, peer: RawPeer, options: Options, code: int = Code.GET) -> Message:
        """One request; its response."""
        TokenTestCase.number += 1
        token = TokenTestCase.number.to_bytes(2, "big")
        peer.request(code, options, token=token)
        return await peer.response(token)

    async def who(self, peer: RawPeer, user: User | None = None) -> str:
        """Who Synapse thinks it is: a user id or an error."""
        body: dict[str, Any] = cbor_value(await self.exchange(peer, by(user, WHOAMI)))
        return str(body.get("user_id") or body["errcode"])


class EndTests(TokenTestCase):
    """What ends a token."""

    async def test_a_resumed_session_has_to_say_it_again(self) -> None:
        """The session has the keys, nothing more: neither its token nor what was to be fetched with it."""
        user = self.user()
        room = user.room()
        user.say(room, "x" * 3000)
        peer = await self.raw()
        self.assertEqual(await self.who(peer, user), user.user_id)
        first = await self.exchange(peer, SYNC)
        self.assertTrue(first.options.get(OptionNumber.BLOCK2))
        assert peer.association is not None
        session = peer.association.session
        self.assertIsNotNone(session)
        peer.close()
        again = await self.raw(session=session)
        assert again.association is not None
        self.assertTrue(again.association.resumed)
        self.assertEqual(await self.who(again), "M_MISSING_TOKEN")
        code = (await self.exchange(again, by(user, SYNC.with_option(*block(1))))).code
        self.assertEqual(code, Code.REQUEST_ENTITY_INCOMPLETE)
        self.assertEqual(await self.who(again), user.user_id)

    async def test_another_s_session_is_nobody_s(self) -> None:
        """Whoever resumes it is a stranger, even beside the association that it came from."""
        user = self.user()
        peer = await self.raw()
        self.assertEqual(await self.who(peer, user), user.user_id)
        assert peer.association is not None
        thief = await self.raw(session=peer.association.session)
        self.assertEqual(await self.who(thief), "M_MISSING_TOKEN")
        self.assertEqual(await self.who(peer), user.user_id)

    async def test_a_logout_over_coap(self) -> None:
        user = self.user()
        peer = await self.raw()
        self.assertEqual(await self.who(peer, user), user.user_id)
        self.assertEqual(
            (await self.exchange(peer, path_options(f"{CLIENT}/logout"), Code.POST)).code, Code.CONTENT
        )
        self.assertEqual(await self.who(peer), "M_MISSING_TOKEN")
        self.assertEqual(await self.who(peer, user), "M_UNKNOWN_TOKEN")

    async def test_a_logout_elsewhere(self) -> None:
        """It is seen with the first request, and then the token is gone."""
        user = self.user()
        peer = await self.raw()
        self.assertEqual(await self.who(peer, user), user.user_id)
        user.http("POST", f"{CLIENT}/logout", {})
        self.assertEqual(await self.who(peer), "M_UNKNOWN_TOKEN")
        self.assertEqual(await self.who(peer), "M_MISSING_TOKEN")


class TwoUsersTests(TokenTestCase):
    """The second user on the association of the first, in whose room something is that is nobody else's business."""

    async def meet(self) -> None:
        """Both users, the room of the first one, and the association."""
        self.one, self.two = self.user(), self.user()
        self.room_id = self.one.room()
        self.peer = await self.raw()

    async def test_blocks(self) -> None:
        await self.meet()
        self.one.say(self.room_id, "confidential " * 300)
        sync = SYNC.with_option(OptionNumber.URI_QUERY, b"full_state=true")
        first = await self.exchange(self.peer, by(self.one, sync))
        self.assertEqual(first.code, Code.CONTENT)
        self.assertTrue(first.options.get(OptionNumber.BLOCK2))
        for user in (self.two, None):
            answer = await self.exchange(self.peer, by(user, sync.with_option(*block(1))))
            self.assertEqual((answer.code, answer.payload), (Code.REQUEST_ENTITY_INCOMPLETE, b""))
        own = await self.exchange(self.peer, by(self.one, sync.with_option(*block(1))))
        self.assertEqual(own.code, Code.CONTENT)
        q_block = sync.with_option(OptionNumber.Q_BLOCK2, bytes([0x10 | 6]))
        answer = await self.exchange(self.peer, by(self.two, q_block))
        self.assertEqual(answer.code >> 5, 4)
        self.assertNotIn(b"confidential", answer.payload)

    async def test_notifications(self) -> None:
        await self.meet()
        since = self.one.http("GET", f"{CLIENT}/sync")["next_batch"]
        # in one message each, so that nothing of it has to be fetched
        sync = path_options(f"{CLIENT}/sync", f"since={since}")
        observe = sync.with_option(OptionNumber.OBSERVE, b"")
        for token, user in ((b"\xa1", self.one), (b"\xa2", self.two)):
            self.peer.request(Code.GET, by(user, observe), token=token)
            await self.peer.response(token)
        self.assertEqual(await self.who(self.peer), self.two.user_id)
        self.one.say(self.room_id, "confidential")
        heard = await self.peer.response(b"\xa1")
        self.assertIn(b"confidential", heard.payload)
        for message in self.peer.received:
            self.assertNotIn(b"confidential", message.payload)
        # By the first one's CoAP token the second gets no more than what is his own.
        self.peer.request(Code.GET, by(self.two, observe), token=b"\xa1")
        taken = await self.peer.response(b"\xa1")
        self.assertNotIn(self.room_id.encode(), taken.payload)
        self.one.say(self.room_id, "confidential again")
        self.assertEqual(await self.who(self.peer, self.one), self.one.user_id)
        self.assertFalse([each for each in self.peer.received if b"again" in each.payload])

    async def test_a_kept_reply(self) -> None:
        """It is for copies of the message that it answered; with another token it is another message."""
        await self.meet()
        first = self.peer.request(Code.GET, by(self.one, WHOAMI), token=b"\x01")
        self.assertEqual(cbor_value(await self.peer.response(b"\x01"))["user_id"], self.one.user_id)
        for options in (by(self.two, WHOAMI), WHOAMI):
            self.peer.send(Message(Type.CON, Code.GET, first.message_id, b"\x01", options))
            self.assertEqual(cbor_value(await self.peer.response(b"\x01"))["user_id"], self.two.user_id)

    async def test_aliases(self) -> None:
        await self.meet()
        book = AliasBook(Side.CLIENT)
        path = f"{CLIENT}/rooms/{self.room_id}/joined_members"

        async def state(user: User) -> tuple[int, Any]:
            written = encode_x1_request("GET", path, None, NO_BODY, book, token=user.token, announce=True)
            answer = await self.exchange(self.peer, Options.of(*written.options))
            book.confirm(written.definitions)
            return answer.code, decode_response(
                answer.code, answer.options, answer.payload, book=AliasBook(Side.CLIENT)
            ).body

        self.assertEqual((await state(self.one))[0], Code.CONTENT)
        code, body = await state(self.two)
        self.assertEqual((code, body["errcode"]), (Code.BAD_REQUEST, UNKNOWN_ALIAS))
        self.assertNotIn(self.room_id, str(body))
        self.assertEqual((await state(self.one))[0], Code.CONTENT)
