# SPDX-License-Identifier: AGPL-3.0-or-later
"""Matrix request -> CoAP request, and that a server reads what a client meant."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, quote

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.msc3079.mapping import NO_BODY, MappingError, decode_request, encode_request
from synapse_lb.msc3079.sticky import StickyState
from tests.msc3079.strategies import JSON_VALUES, PROPERTY, same, settled
from tests.msc3079.vectors import MESSAGE, MESSAGE_CBOR


def values(pairs: list[tuple[int, bytes]], number: int) -> list[bytes]:
    return [value for found, value in pairs if found == number]


class EncodeRequestTests(SynchronousTestCase):
    """What goes on the wire."""

    def assert_unsendable(self, *args: Any, **kwargs: Any) -> None:
        error = self.assertRaises(MappingError, encode_request, *args, **kwargs)
        self.assertEqual((error.code, error.errcode), (0x80, "M_INVALID_PARAM"))

    def test_send(self) -> None:
        code, pairs, payload = encode_request(
            "PUT",
            "/_matrix/client/r0/rooms/%21foo:localhost/send/m.room.message/1",
            body=MESSAGE,
            token="syt",
            key_version=1,
            announce_key_version=1,
        )
        self.assertEqual((code, payload), (3, MESSAGE_CBOR))
        self.assertEqual(
            pairs,
            [
                (11, b"9"),
                (11, b"!foo:localhost"),
                (11, b"m.room.message"),
                (11, b"1"),
                (12, b"\x3c"),
                (256, b"syt"),
                (257, b"\x01"),
            ],
        )

    def test_nothing_that_is_not_needed(self) -> None:
        """The least request is one option of two bytes."""
        self.assertEqual(encode_request("GET", "/_matrix/client/versions"), (1, [(11, b"0")], b""))

    def test_options_are_in_order(self) -> None:
        _, pairs, _ = encode_request(
            "POST", "/a/b?c=d", {"e": "f"}, {}, token="t", announce_key_version=0, accept=60
        )
        numbers = [number for number, _ in pairs]
        self.assertEqual(numbers, sorted(numbers))
        self.assertEqual(numbers, [11, 11, 12, 15, 15, 17, 256, 257])

    def test_methods(self) -> None:
        for method, code in (("GET", 1), ("POST", 2), ("put", 3), ("DELETE", 4), ("PATCH", 6)):
            self.assertEqual(encode_request(method, "/x")[0], code)
        for method in ("HEAD", "OPTIONS", "FETCH", ""):
            self.assert_unsendable(method, "/x")

    def test_without_path_codes(self) -> None:
        _, pairs, _ = encode_request("GET", "/_matrix/client/r0/sync", path_codes=False)
        self.assertEqual(values(pairs, 11), [b"_matrix", b"client", b"r0", b"sync"])

    def test_versions_without_a_code(self) -> None:
        _, pairs, _ = encode_request("GET", b"/_matrix/client/v3/sync")
        self.assertEqual(values(pairs, 11), [b"_matrix", b"client", b"v3", b"sync"])

    def test_percent_encoding_ends_here(self) -> None:
        _, pairs, _ = encode_request("GET", "/_matrix/client/r0/rooms/%21r/state/a%2Fb/%23%25%C3%A9+é")
        self.assertEqual(values(pairs, 11), [b"8", b"!r", b"a/b", "#%é+é".encode()])

    def test_empty_segments(self) -> None:
        _, pairs, _ = encode_request("GET", "/_matrix/client/r0/rooms/!r/state/m.room.name/")
        self.assertEqual(values(pairs, 11), [b"8", b"!r", b"m.room.name", b""])
        _, pairs, _ = encode_request("GET", "/_matrix/client/v3/pushrules/")
        self.assertEqual(values(pairs, 11)[-2:], [b"pushrules", b""])

    def test_query(self) -> None:
        for query in ({"a": ["1", "2"], "b": "x y&=+%é"}, [("a", "1"), ("a", "2"), ("b", "x y&=+%é")]):
            _, pairs, _ = encode_request("GET", "/x", query)
            self.assertEqual(values(pairs, 15), [b"a=1", b"a=2", "b=x y&=+%é".encode()])

    def test_query_in_the_path(self) -> None:
        _, pairs, _ = encode_request("GET", "/x?a=%20b+c&d=&e", {"f": "g"})
        self.assertEqual(values(pairs, 15), [b"a= b c", b"d=", b"e=", b"f=g"])

    def test_token(self) -> None:
        self.assertEqual(values(encode_request("GET", "/x", token="")[1], 256), [b""])
        self.assertEqual(values(encode_request("GET", "/x")[1], 256), [])
        for token in ("a b", "a\nb", "é", "a\x00"):
            self.assert_unsendable("GET", "/x", token=token)

    def test_bodies(self) -> None:
        self.assertEqual(
            encode_request("PUT", "/x", body={"type": 1})[1:],
            ([(11, b"x"), (12, b"\x3c")], b"\xa1\x64type\x01"),
        )
        self.assertEqual(encode_request("PUT", "/x", body=None)[2], b"\xf6")
        self.assertEqual(
            encode_request("PUT", "/x", body={"type": 1}, content_format=50, key_version=1)[1:],
            ([(11, b"x"), (12, b"\x32")], b'{"type":1}'),
        )
        self.assertEqual(encode_request("PUT", "/x", body=NO_BODY)[1:], ([(11, b"x")], b""))

    def test_bodies_that_cannot_be_sent(self) -> None:
        for body in (b"x", {1.5: 1}, 2**64, float("nan"), "\ud800"):
            self.assert_unsendable("PUT", "/x", body=body)
        self.assert_unsendable("PUT", "/x", body=b"x", content_format=50)
        self.assert_unsendable("PUT", "/x", body={}, content_format=42)

    def test_paths_that_cannot_be_sent(self) -> None:
        for path in ("", "x", "?a=b", "/a/../b", "/a/.", "/a/%2e%2E", "/a/%ff", "/\ud800", "/" + "x" * 256):
            self.assert_unsendable("GET", path)

    def test_limits_of_the_options(self) -> None:
        """RFC 7252 section 5.10, table 4: 255 bytes."""
        self.assertEqual(values(encode_request("GET", "/" + "x" * 255)[1], 11), [b"x" * 255])
        self.assertEqual(values(encode_request("GET", "/x", {"a": "y" * 253})[1], 15), [b"a=" + b"y" * 253])
        self.assert_unsendable("GET", "/x", {"a": "y" * 254})
        self.assert_unsendable("GET", "/x", {"a": "é" * 127})
        self.assert_unsendable("GET", "/x", {"a": "\ud800"})
        self.assert_unsendable("GET", "/x?a=%ff")

    def test_errors_show_no_values(self) -> None:
        error = self.assertRaises(MappingError, encode_request, "GET", "/x", {"access_token": "s3cret" * 50})
        self.assertNotIn("s3cret", str(error))
        error = self.assertRaises(MappingError, encode_request, "GET", "/x", token="s3 cret")
        self.assertNotIn("cret", str(error))


SEGMENT = st.text(max_size=10).filter(lambda text: text not in (".", ".."))
NAME = st.text(min_size=1, max_size=8).filter(lambda text: "=" not in text)


class RoundTripTests(SynchronousTestCase):
    """A client's request as the server sees it."""

    @PROPERTY
    @given(
        st.sampled_from(
            (
                "/_matrix/client/r0/rooms/{}/state/{}/{}",
                "/_matrix/client/v3/rooms/{}/send/{}/{}",
                "/_matrix/client/r0/user/{}/rooms/{}/account_data/{}",
                "/_matrix/client/r0/pushrules/{}/{}/{}",
            )
        ),
        st.tuples(SEGMENT, SEGMENT, SEGMENT),
        st.lists(st.tuples(NAME, st.text(max_size=8)), max_size=4),
        st.booleans(),
    )
    def test_path_and_query(
        self, template: str, segments: tuple[str, str, str], query: list[tuple[str, str]], path_codes: bool
    ) -> None:
        safe = "!$&'()*+,;=:@"
        path = template.format(*(quote(segment, safe=safe) for segment in segments))
        found = decode_request(
            *encode_request("GET", path, query, path_codes=path_codes), sticky=StickyState()
        )
        self.assertEqual(found.path, path.encode())
        self.assertEqual(parse_qsl(found.query.decode(), keep_blank_values=True), query)

    @PROPERTY
    @given(JSON_VALUES, st.sampled_from((None, 1)), st.sampled_from((50, 60)))
    def test_body(self, value: Any, key_version: int | None, content_format: int) -> None:
        message = encode_request(
            "PUT",
            "/_matrix/client/r0/login",
            body=value,
            key_version=key_version,
            content_format=content_format,
        )
        found = decode_request(*message, sticky=StickyState())
        self.assertTrue(same(found.body, settled(value) if content_format == 60 else value))
        self.assertEqual(found.reply.content_format, content_format)

    def test_token_and_version(self) -> None:
        sticky = StickyState()
        message = encode_request("GET", "/_matrix/client/r0/sync", token="syt", announce_key_version=1)
        found = decode_request(*message, sticky=sticky)
        self.assertEqual((found.access_token, found.reply.key_version), ("syt", 1))
        found = decode_request(*encode_request("GET", "/_matrix/client/r0/sync"), sticky=sticky)
        self.assertEqual((found.access_token, found.reply.key_version), ("syt", 1))


class DeployedClientTests(SynchronousTestCase):
    """The messages of the Go client that phones run, as far as the mapping sees them."""

    def test_a_session(self) -> None:
        sticky = StickyState()
        # A first GET: Content-Format 42, an empty token option, no body.
        first = decode_request(1, [(11, b"0"), (12, b"\x2a"), (256, b"")], b"", sticky)
        self.assertEqual(
            (first.path, first.body, first.access_token), (b"/_matrix/client/versions", NO_BODY, None)
        )
        self.assertEqual((first.reply.content_format, first.reply.key_version), (60, None))
        # Login: integer keys, so that answers have them from here on.
        login = b"\xa2\x02\x70m.login.password\x18\x45\x64pass"
        second = decode_request(2, [(11, b"1"), (12, b"\x3c")], login, sticky)
        self.assertEqual(second.body, {"type": "m.login.password", "password": "pass"})
        self.assertEqual(second.reply.key_version, 1)
        # A number, as a float of 9 bytes.
        typing = b"\xa2\x18\x52\xf5\x18\x59\xfb\x40\xdd\x4c\x00\x00\x00\x00\x00"
        third = decode_request(
            3, [(11, b"Y"), (11, b"!r:h"), (11, b"@u:h"), (12, b"\x3c"), (256, b"syt")], typing, sticky
        )
        self.assertTrue(same(third.body, {"typing": True, "timeout": 30000}))
        self.assertEqual(third.path, b"/_matrix/client/r0/rooms/!r:h/typing/@u:h")
        # Sync with literal query options, on the sticky token and with integer keys.
        fourth = decode_request(
            1, [(11, b"7"), (12, b"\x2a"), (15, b"timeout=30000"), (15, b"since=s1_2")], b"", sticky
        )
        self.assertEqual((fourth.access_token, fourth.reply.key_version), ("syt", 1))
        self.assertEqual(fourth.query, b"timeout=30000&since=s1_2")
        self.assertTrue(fourth.is_long_poll)
        # Logged out: the token becomes empty.
        fifth = decode_request(1, [(11, b"0"), (12, b"\x2a"), (256, b"")], b"", sticky)
        self.assertIsNone(fifth.access_token)

    def test_a_fraction_is_passed_on(self) -> None:
        body = decode_request(
            3, [(11, b"1"), (12, b"\x3c")], b"\xa1\x61a\xfb\x3f\xf8\x00\x00\x00\x00\x00\x00", StickyState()
        ).body
        self.assertTrue(same(body, {"a": 1.5}))
