# SPDX-License-Identifier: AGPL-3.0-or-later
"""x1 chosen by an option, in both directions of the mapping (docs/extensions.md)."""

from __future__ import annotations

import zlib
from typing import Any

from hypothesis import given
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.numbers import OptionNumber
from synapse_lb.coap.options import is_critical, is_no_cache_key
from synapse_lb.msc3079 import cbor
from synapse_lb.msc3079.extension import UNKNOWN_ALIAS, X1, X1_BRIEF, X1_WRITTEN
from synapse_lb.msc3079.mapping import (
    NO_BODY,
    MappingError,
    MappingLimits,
    MatrixRequest,
    MatrixResponse,
    ReplyFormat,
    decode_request,
    decode_response,
    encode_error,
    encode_request,
    encode_response,
    encode_x1_request,
)
from synapse_lb.msc3079.server_mapping import encode_answer
from synapse_lb.msc3079.sticky import StickyState
from synapse_lb.msc3079.x1 import AliasBook, Side, encode_body
from synapse_lb.msc3079.x1.aliases import AliasKind
from tests.msc3079.requests import FETCH, GET, PUT, options
from tests.msc3079.strategies import JSON_VALUES, PROPERTY, same, settled

ROOM = "!OGEhHVWSdvArJzumhm:example.org"
SEND = f"/_matrix/client/v3/rooms/{ROOM}/send/m.room.message/7"
TEXT = {"msgtype": "m.text", "body": "Hello World"}


class X1TestCase(SynchronousTestCase):
    """One association, both ends."""

    def setUp(self) -> None:
        self.sticky = StickyState(allows_x1=True)
        self.book = AliasBook(Side.CLIENT)

    def decode(self, code: int, payload: bytes = b"", **kwargs: Any) -> MatrixRequest:
        return decode_request(code, options(**kwargs), payload, self.sticky)

    def refusal(self, code: int, payload: bytes = b"", **kwargs: Any) -> MappingError:
        error: MappingError = self.assertRaises(MappingError, self.decode, code, payload, **kwargs)
        return error

    def send(
        self, method: str = "PUT", path: str = SEND, body: Any = NO_BODY, **kwargs: Any
    ) -> MatrixRequest:
        """A request of x1, as the server reads it."""
        written = encode_x1_request(method, path, None, body, self.book, **kwargs)
        self.size = len(written.payload) + sum(len(value) + 1 for _, value in written.options)
        request = decode_request(written.code, written.options, written.payload, self.sticky)
        self.book.confirm(written.definitions)
        return request


class NumberTests(SynchronousTestCase):
    """The numbers say how the options may be treated (RFC 7252 section 5.4)."""

    def test_kinds(self) -> None:
        for number, critical in ((X1, False), (X1_WRITTEN, True), (X1_BRIEF, False)):
            self.assertTrue(65000 <= number <= 65535)
            self.assertEqual(is_critical(number), critical)
            self.assertTrue(is_no_cache_key(number))
            self.assertNotIn(number, OptionNumber.__members__.values())


class ChoiceTests(X1TestCase):
    """When x1 is in force."""

    def test_not_before_it_is_chosen(self) -> None:
        self.assertIsNone(self.decode(GET).reply.x1)
        self.assertIsNone(self.sticky.aliases)

    def test_either_option_and_sticky(self) -> None:
        for number in (X1, X1_WRITTEN):
            self.setUp()
            reply = self.decode(GET, more=[(number, b"\x01")]).reply
            assert reply.x1 is not None
            reply.x1.definition("!room:example.org", AliasKind.ROOM)
            for again in (self.decode(GET), self.decode(GET, more=[(number, b"\x01")])):
                assert again.reply.x1 is not None
                self.assertEqual(again.reply.x1.resolve(1), "!room:example.org")

    def test_other_versions(self) -> None:
        """A later one that is offered is ignored; a request that is written in it cannot be read."""
        self.assertIsNone(self.decode(GET, more=[(X1, b"\x02")]).reply.x1)
        error = self.refusal(GET, more=[(X1_WRITTEN, b"\x02")])
        self.assertEqual((error.code, error.errcode), (0x82, "M_INVALID_PARAM"))
        self.assertIsNone(self.sticky.aliases)
        self.decode(GET, more=[(X1, b"\x01")])
        self.assertIsNotNone(self.decode(GET, more=[(X1, b"\x02")]).reply.x1)

    def test_not_for_this_request(self) -> None:
        self.decode(GET, more=[(X1, b"\x01")])
        payload = cbor.encode({"type": "x"}, None)
        found = self.decode(PUT, payload, more=[(X1, b"")])
        self.assertEqual((found.body, found.reply), ({"type": "x"}, ReplyFormat()))
        self.assertIsNotNone(self.decode(GET).reply.x1)

    def test_accept_says_otherwise(self) -> None:
        for accept, reply in ((60, ReplyFormat()), (50, ReplyFormat(50)), (11060, ReplyFormat(deflate=True))):
            found = self.decode(GET, path=("7",), accept=accept, more=[(X1, b"\x01")])
            self.assertEqual(found.reply, reply)

    def test_other_bodies_by_their_content_format(self) -> None:
        for content_format, payload in ((60, b"\xa1\x02\x61x"), (50, b'{"type":"x"}')):
            found = self.decode(PUT, payload, content_format=content_format, more=[(X1, b"\x01")])
            self.assertEqual(found.body, {"type": "x"})
            self.assertIsNotNone(found.reply.x1)

    def test_not_allowed(self) -> None:
        """Then the elective options are ignored, and the critical one is a critical option like others."""
        self.sticky = StickyState()
        more = [(X1, b"\x01"), (X1_BRIEF, b"")]
        self.assertEqual(self.decode(GET, more=more).reply, ReplyFormat())
        self.assertEqual(self.refusal(GET, more=[(X1_WRITTEN, b"\x01")]).code, 0x82)

    def test_brief_needs_it(self) -> None:
        self.assertFalse(self.decode(GET, more=[(X1_BRIEF, b"")]).reply.brief)
        self.assertTrue(self.decode(GET, more=[(X1, b"\x01"), (X1_BRIEF, b"")]).reply.brief)
        self.assertFalse(self.decode(GET).reply.brief)


class RequestTests(X1TestCase):
    """What the client writes and the server reads."""

    def test_send(self) -> None:
        first = self.send(body=TEXT, announce=True, token="t")
        size = self.size
        self.assertEqual((first.method, first.path, first.body), ("PUT", SEND.encode(), TEXT))
        self.assertEqual(first.access_token, "t")
        second = self.send(body=TEXT)
        self.assertEqual((second.path, second.body, second.access_token), (SEND.encode(), TEXT, "t"))
        self.assertLess(self.size, size - len(ROOM))

    def test_nothing_that_is_not_needed(self) -> None:
        written = encode_x1_request("GET", "/_matrix/client/v3/sync", None, NO_BODY, self.book)
        self.assertEqual([number for number, _ in written.options], [11])
        written = encode_x1_request("POST", "/_matrix/client/v3/keys/query", {"a": "b"}, {}, self.book)
        self.assertEqual([number for number, _ in written.options], [11, 15])

    def test_query(self) -> None:
        query = [("since", "s72594_4483_1934_10_7_1_1_205_1"), ("timeout", "30000"), ("é", "&=%+ ")]
        written = encode_x1_request(
            "GET", "/_matrix/client/v3/sync", query, NO_BODY, self.book, announce=True
        )
        plain = encode_request("GET", "/_matrix/client/v3/sync", query)
        x1 = decode_request(written.code, written.options, b"", self.sticky)
        self.assertEqual(x1.query, decode_request(*plain, StickyState()).query)

    def test_paths_of_version_1_hold(self) -> None:
        found = self.decode(PUT, b"\xa0", path=("9", "!r:x", "m.x", "1"), more=[(X1, b"\x01")])
        self.assertEqual(found.path, b"/_matrix/client/r0/rooms/!r:x/send/m.x/1")

    def test_fetch(self) -> None:
        path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
        written = encode_x1_request("POST", path, None, {"lists": {}}, self.book, announce=True)
        found = decode_request(FETCH, written.options, written.payload, self.sticky)
        self.assertEqual((found.method, found.path, found.body), ("POST", path.encode(), {"lists": {}}))

    def test_secrets_are_not_compressed(self) -> None:
        body = {"filler": "x" * 200}
        compressed = encode_x1_request("POST", SEND, None, body, self.book).payload
        self.assertLess(len(compressed), 100)
        for path, secret in (("/_matrix/client/v3/login", body), (SEND, body | {"password": "x"})):
            self.assertGreater(len(encode_x1_request("POST", path, None, secret, self.book).payload), 200)

    def test_unsendable(self) -> None:
        for path, body in (
            (SEND + "\ud800", {}),
            (SEND, {1: float("nan")}),
            (SEND, {"x": "\ud800"}),
            ("x", {}),
        ):
            error = self.assertRaises(MappingError, encode_x1_request, "PUT", path, None, body, self.book)
            self.assertEqual(error.code, 0x80)
        self.assertRaises(MappingError, encode_x1_request, "TRACE", SEND, None, {}, self.book)

    def test_unreadable(self) -> None:
        more = [(X1, b"\x01")]
        for payload, expected in (
            (b"\xff", (0x80, "M_BAD_JSON")),
            (b"\xa1", (0x80, "M_NOT_JSON")),
            (b"\x1c\x00", (0x80, "M_NOT_JSON")),
            (b"\x81\x41\x02", (0x80, UNKNOWN_ALIAS)),
        ):
            error = self.refusal(PUT, payload, more=more)
            self.assertEqual((error.code, error.errcode), expected, payload)
            assert error.reply is not None
            self.assertIsNotNone(error.reply.x1)
        self.assertEqual(self.refusal(GET, path=(b"\x81",), more=more).code, 0x80)
        self.assertEqual(self.refusal(GET, path=(b"\x81\x41\x02\x61x",), more=more).errcode, UNKNOWN_ALIAS)
        self.assertEqual(self.refusal(GET, path=(b"\xc1\xff",), more=more).code, 0x84)
        self.assertEqual(self.refusal(GET, path=(b"\xff",), more=more).code, 0x84)
        self.assertEqual(self.refusal(GET, path=("7",), query=(b"\x80\x00",), more=more).code, 0x80)

    def test_bomb(self) -> None:
        stream = zlib.compressobj(9, zlib.DEFLATED, -15)
        bomb = b"\x1c" + stream.compress(b"\x78\xff" + b"x" * 255 + b"\0" * 5000) + stream.flush()
        pairs = options(more=[(X1, b"\x01")])
        limits = MappingLimits(max_inflated=4000)
        error = self.assertRaises(MappingError, decode_request, PUT, pairs, bomb, self.sticky, limits)
        self.assertEqual((error.code, error.errcode), (0x8D, "M_TOO_LARGE"))

    def test_depth(self) -> None:
        deep: Any = {}
        for _ in range(101):
            deep = {"x": deep}
        error = self.refusal(PUT, encode_body(deep).data, more=[(X1, b"\x01")])
        self.assertEqual((error.code, error.errcode), (0x80, "M_BAD_JSON"))

    @PROPERTY
    @given(JSON_VALUES)
    def test_any_body(self, body: Any) -> None:
        self.setUp()
        self.assertTrue(same(self.send(body=body, announce=True).body, settled(body)))


class ResponseTests(X1TestCase):
    """What the server writes and the client reads."""

    def answer(self, response: MatrixResponse, **kwargs: Any) -> MatrixResponse:
        """An answer, as the client reads it."""
        request = self.send(announce=kwargs.pop("announce", True), **kwargs)
        self.encoded = encode_answer(response, request.reply)
        return decode_response(*self.encoded.triple, book=self.book)

    def test_without_a_content_format(self) -> None:
        body = {"event_id": "$" + "Ev3nt_id" * 5 + "Abc"}
        self.assertEqual(self.answer(MatrixResponse(200, body)), MatrixResponse(200, body))
        self.assertEqual(self.encoded.options, [])
        self.assertLess(len(self.encoded.payload), 40)

    def test_errors(self) -> None:
        body = {"errcode": "M_FORBIDDEN", "error": "No"}
        self.assertEqual(self.answer(MatrixResponse(403, body)).body, body)
        self.assertEqual(self.encoded.options, [])
        limited = {"errcode": "M_LIMIT_EXCEEDED", "error": "Slow", "retry_after_ms": 1500}
        self.assertEqual(self.answer(MatrixResponse(429, limited)).retry_after, 1.5)
        self.assertEqual(self.encoded.options, [(14, b"\x02")])

    def test_errors_of_the_gateway(self) -> None:
        error = self.refusal(PUT, b"\xa1", more=[(X1, b"\x01")])
        found = decode_response(*encode_error(error), book=self.book)
        self.assertEqual((found.status, found.body["errcode"]), (400, "M_NOT_JSON"))
        self.assertEqual(encode_error(error)[1], [])

    def test_brief(self) -> None:
        found = self.answer(MatrixResponse(200, {"event_id": "$x"}), brief=True)
        self.assertEqual(found, MatrixResponse(200, NO_BODY))
        self.assertEqual(self.encoded.triple, (0x45, [], b""))
        failure = MatrixResponse(403, {"errcode": "M_FORBIDDEN", "error": "No"})
        self.assertEqual(self.answer(failure, brief=True), failure)

    def test_aliases_of_the_server(self) -> None:
        """A room id of its own stays until the client is known to have it."""
        body = {"room_id": ROOM}
        path = "/_matrix/client/v3/sync"
        sizes = []
        for announce in (True, False, False, False, True):
            response = MatrixResponse(200, body)
            self.assertEqual(self.answer(response, method="GET", path=path, announce=announce).body, body)
            sizes.append(len(self.encoded.payload))
            if len(sizes) == 2:
                assert self.sticky.aliases is not None
                self.sticky.aliases.confirm(self.encoded.definitions)
        first, second, third, fourth, last = sizes
        self.assertEqual((first, third), (second, fourth))
        self.assertLess(third, second - 15)
        # A client that says once more that it writes x1 may have missed something.
        self.assertEqual(last, first)

    def test_aliases_of_the_client_hold_at_once(self) -> None:
        body = {"room_id": ROOM}
        self.assertEqual(self.answer(MatrixResponse(200, body)).body, body)
        self.assertLess(len(self.encoded.payload), 8)
        self.assertEqual(self.encoded.definitions, ())

    def test_secrets_are_not_compressed(self) -> None:
        filler = {"filler": "x" * 200}
        login = "/_matrix/client/v3/login"
        self.answer(MatrixResponse(200, filler))
        self.assertLess(len(self.encoded.payload), 100)
        self.answer(MatrixResponse(200, filler), method="POST", path=login, body={})
        self.assertGreater(len(self.encoded.payload), 200)
        self.answer(MatrixResponse(200, filler | {"access_token": "x"}))
        self.assertGreater(len(self.encoded.payload), 200)

    def test_other_answers(self) -> None:
        """A client that has offered x1 reads what has a Content-Format by that."""
        for reply in (ReplyFormat(60, 1), ReplyFormat(50), ReplyFormat(60, 1, deflate=True)):
            triple = encode_response(MatrixResponse(200, {"x": "y" * 100}), reply)
            self.assertEqual(decode_response(*triple, book=self.book).body, {"x": "y" * 100})

    def test_unreadable(self) -> None:
        for payload in (b"\xff", b"\xa1", b"\x81\x41\x05"):
            error = self.assertRaises(MappingError, decode_response, 0x45, [], payload, book=self.book)
            self.assertEqual(error.code, 0xA2)

    @PROPERTY
    @given(JSON_VALUES)
    def test_any_body(self, body: Any) -> None:
        self.setUp()
        found = self.answer(MatrixResponse(200, body), method="POST", body={})
        self.assertTrue(same(found.body, settled(body)))
