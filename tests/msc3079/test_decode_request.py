# SPDX-License-Identifier: AGPL-3.0-or-later
"""CoAP request -> Matrix request: methods, paths, queries, bodies and formats."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.msc3079.cbor import encode
from synapse_lb.msc3079.mapping import (
    NO_BODY,
    MappingError,
    MappingLimits,
    MatrixRequest,
    ReplyFormat,
    decode_request,
)
from synapse_lb.msc3079.options import CONTENT_FORMAT, URI_PATH
from synapse_lb.msc3079.paths_v1 import CODE_TO_PATH
from synapse_lb.msc3079.sticky import StickyState
from tests.msc3079.requests import DELETE, FETCH, GET, IPATCH, PATCH, POST, PUT, options, refusal, request
from tests.msc3079.strategies import PROPERTY
from tests.msc3079.vectors import MESSAGE, MESSAGE_CBOR


class MethodTests(SynchronousTestCase):
    """Request codes."""

    def test_methods(self) -> None:
        for code, method in (
            (GET, "GET"),
            (POST, "POST"),
            (PUT, "PUT"),
            (DELETE, "DELETE"),
            (PATCH, "PATCH"),
        ):
            self.assertEqual(request(code).method, method)

    def test_codes_without_a_method(self) -> None:
        for code in (0, FETCH, IPATCH, 8, 31, 0x45, 255):
            error = refusal(code)
            self.assertEqual((error.code, error.errcode), (0x85, "M_UNRECOGNIZED"))

    def test_fetch_is_the_post_of_sliding_sync(self) -> None:
        """RFC 8132 section 2; docs/extensions.md."""
        path = ("_matrix", "client", "unstable", "org.matrix.simplified_msc3575", "sync")
        found = request(FETCH, b"\xa0", path=path, query=("pos=1",), content_format=60)
        self.assertEqual((found.method, found.query, found.body), ("POST", b"pos=1", {}))
        self.assertEqual(found, request(POST, b"\xa0", path=path, query=("pos=1",), content_format=60))
        for other in (path[:-1], (*path, ""), ("/".join(path),), ("7",), ("_matrix", "client", "v3", "sync")):
            self.assertEqual(refusal(FETCH, path=other).code, 0x85, other)


class PathTests(SynchronousTestCase):
    """Uri-Path values -> percent-encoded path."""

    def test_full_path(self) -> None:
        self.assertEqual(request().path, b"/_matrix/client/versions")
        self.assertEqual(request(path=("_matrix", "client", "v3", "sync")).path, b"/_matrix/client/v3/sync")

    def test_every_code(self) -> None:
        for code, template in CODE_TO_PATH.items():
            values = [f"v{number}" for number in range(template.count("{"))]
            wanted = template
            for value in values:
                before, _, rest = wanted.partition("{")
                wanted = before + value + rest.partition("}")[2]
            self.assertEqual(request(path=(code, *values)).path.decode(), wanted)

    def test_nothing_in_a_segment_is_a_delimiter(self) -> None:
        """A `#`, `/`, `?` or `%` in a value stays part of the value."""
        for value, encoded in (
            ("#alias:h", b"%23alias:h"),
            ("a/b", b"a%2Fb"),
            ("a?b=c", b"a%3Fb=c"),
            ("%2F", b"%252F"),
            ("é 😀", b"%C3%A9%20%F0%9F%98%80"),
            ("a;b+c", b"a;b+c"),
            ("\r\nX: y\x00", b"%0D%0AX:%20y%00"),
            ("...", b"..."),
        ):
            self.assertEqual(request(path=("H", value)).path, b"/_matrix/client/r0/directory/room/" + encoded)

    def test_empty_segments(self) -> None:
        base = b"/_matrix/client/r0/rooms/!r:h/state/m.room.name"
        self.assertEqual(request(path=("8", "!r:h", "m.room.name", "")).path, base + b"/")
        self.assertEqual(request(path=("8", "!r:h", "m.room.name")).path, base)
        self.assertEqual(request(path=("n",)).path, b"/_matrix/client/r0/pushrules/")
        self.assertEqual(request(path=("_matrix", "client", "", "")).path, b"/_matrix/client//")

    @PROPERTY
    @given(
        st.lists(st.text(max_size=12).filter(lambda text: text not in (".", "..")), min_size=1, max_size=8)
    )
    def test_segments_can_be_told_apart_again(self, segments: list[str]) -> None:
        path = request(path=("_matrix", "client", *segments)).path
        found = [unquote_to_bytes(part).decode() for part in path.split(b"/")[3:]]
        self.assertEqual(found, segments)
        self.assertRegex(path.decode("ascii"), r"\A[!-~]*\Z")

    def assert_not_found(self, path: tuple[str | bytes, ...]) -> None:
        error = refusal(path=path)
        self.assertEqual((error.code, error.errcode), (0x84, "M_UNRECOGNIZED"), path)

    def test_no_way_out(self) -> None:
        for path in (
            ("_matrix", "client", ".."),
            ("_matrix", "client", "..", "federation", "v1", "version"),
            ("_matrix", "client", "."),
            ("H", ".."),
            ("n", "..", "..", ".."),
            ("..", "_matrix", "client", "versions"),
        ):
            self.assert_not_found(path)

    def test_elsewhere(self) -> None:
        paths: tuple[tuple[str | bytes, ...], ...] = (
            (),
            ("",),
            ("_matrix",),
            ("_matrix", "client"),
            ("_matrix", "media", "v3", "config"),
            ("_matrix", "federation", "v1", "version"),
            ("_matrix/client", "versions", "x"),
            ("_synapse", "admin", "v1", "x"),
            ("", "_matrix", "client", "versions"),
            (".well-known", "core"),
            (".well-known", "matrix", "server"),
            (".well-known", "matrix", "client", "x"),
            ("?",),
            ("7", "too", "many"),
            ("9", "!r", "few"),
        )
        for path in paths:
            self.assert_not_found(path)

    def test_not_utf8(self) -> None:
        self.assert_not_found(("_matrix", "client", b"\xff"))
        self.assert_not_found((b"\xff",))

    def test_well_known(self) -> None:
        found = request(path=(".well-known", "matrix", "client"))
        self.assertEqual(found.path, b"/.well-known/matrix/client")


class QueryTests(SynchronousTestCase):
    """Uri-Query values -> query string."""

    def test_none(self) -> None:
        self.assertEqual(request().query, b"")

    def test_order_and_repeats(self) -> None:
        self.assertEqual(request(query=("b=1", "a=2", "b=3")).query, b"b=1&a=2&b=3")

    def test_literal(self) -> None:
        """Nothing is percent-decoded, and nothing in a value is a delimiter."""
        for value, query in (
            ("ts=a+b", b"ts=a%2Bb"),
            ("f=a&b=c", b"f=a%26b%3Dc"),
            ("f=%20", b"f=%2520"),
            ("f=a b", b"f=a%20b"),
            ('f={"a":1}', b"f=%7B%22a%22:1%7D"),
            ("f=#", b"f=%23"),
            ("é=é", b"%C3%A9=%C3%A9"),
            ("flag", b"flag"),
            ("empty=", b"empty="),
            ("=v", b"=v"),
            ("f=\r\n", b"f=%0D%0A"),
        ):
            self.assertEqual(request(query=(value,)).query, query)

    @PROPERTY
    @given(
        st.lists(
            st.tuples(
                st.text(min_size=1, max_size=8).filter(lambda name: "=" not in name), st.text(max_size=8)
            )
        )
    )
    def test_a_form_decoder_sees_what_was_sent(self, pairs: list[tuple[str, str]]) -> None:
        query = request(query=[f"{name}={value}" for name, value in pairs]).query
        self.assertEqual(parse_qsl(query.decode("ascii"), keep_blank_values=True), pairs)

    def test_not_utf8(self) -> None:
        error = refusal(query=(b"a=\xff",))
        self.assertEqual((error.code, error.errcode), (0x80, "M_INVALID_PARAM"))


class BodyTests(SynchronousTestCase):
    """Bodies by Content-Format, and the format of the answer."""

    JSON = b' {"type": "x"}'
    CBOR = b"\xa1\x02\x61x"

    def test_by_content_format(self) -> None:
        self.assertEqual(request(PUT, MESSAGE_CBOR, content_format=60).body, MESSAGE)
        self.assertEqual(request(PUT, self.JSON, content_format=50).body, {"type": "x"})

    def test_without_content_format(self) -> None:
        for payload in (self.JSON, self.CBOR):
            self.assertEqual(request(PUT, payload).body, {"type": "x"})
        self.assertEqual(request(PUT, b"[1]").body, [1])
        self.assertEqual(request(PUT, b"\x81\x01").body, [1])

    def test_no_body(self) -> None:
        """With any Content-Format: deployed clients send 42 with every GET."""
        for content_format in (None, 42, 50, 60, 0, 65535):
            for code in (GET, POST, PUT, DELETE):
                self.assertIs(request(code, content_format=content_format).body, NO_BODY)

    def test_null_is_a_body(self) -> None:
        self.assertIsNone(request(PUT, b"\xf6", content_format=60).body)

    def test_other_formats(self) -> None:
        for content_format in (42, 0, 40, 41, 61, 112, 65535):
            for code in (GET, PUT):
                error = refusal(code, self.CBOR, content_format=content_format)
                self.assertEqual((error.code, error.errcode), (0x8F, "M_NOT_JSON"))

    def test_bad_cbor(self) -> None:
        for payload, errcode in (
            (b"\xa1\x02", "M_NOT_JSON"),
            (b"\xa1\x02\x61\xff", "M_NOT_JSON"),
            (b"\xa0\x00", "M_NOT_JSON"),
            (b"\x41\x00", "M_BAD_JSON"),
            (b"\xa1\x18\x69\x00", "M_BAD_JSON"),
            (b"\xc2\x41\x00", "M_BAD_JSON"),
            (b"\x81" * 10_000, "M_BAD_JSON"),
        ):
            error = refusal(PUT, payload, content_format=60)
            self.assertEqual((error.code, error.errcode), (0x80, errcode), payload[:9])

    def test_bad_json(self) -> None:
        for payload in (
            b"{",
            b"nope",
            b'{"a":NaN}',
            b"[Infinity]",
            b"[1e999]",
            b'{"a":"\xff"}',
            b"\xef\xbb\xbf{}",
            b"{}x",
        ):
            error = refusal(PUT, payload, content_format=50)
            self.assertEqual((error.code, error.errcode), (0x80, "M_NOT_JSON"), payload)

    def test_deep_json(self) -> None:
        for depth in (101, 990, 100_000):
            for opener, closer in ((b"[", b"]"), (b'{"a":', b"}")):
                error = refusal(PUT, opener * depth + b"1" + closer * depth, content_format=50)
                self.assertEqual((error.code, error.errcode), (0x80, "M_BAD_JSON"), depth)

    def test_json_as_deep_as_allowed(self) -> None:
        payload = b"[" * 100 + b'"[{[{"' + b"]" * 100
        self.assertIsNot(request(PUT, payload, content_format=50).body, NO_BODY)
        self.assertIsNot(request(PUT, b"[" + b"[]," * 200 + b"[]]", content_format=50).body, NO_BODY)

    def test_configured_depth(self) -> None:
        limits = MappingLimits(max_depth=2)
        for payload, content_format in ((b"\x81\x81\x80", b"\x3c"), (b"[[[]]]", b"\x32")):
            pairs = [*options(), (CONTENT_FORMAT, content_format)]
            error = self.assertRaises(
                MappingError, decode_request, PUT, pairs, payload, StickyState(), limits
            )
            self.assertEqual(error.errcode, "M_BAD_JSON")
        self.assertRaises(ValueError, MappingLimits, max_depth=0)

    def test_reply_format(self) -> None:
        """MSC3079: CBOR gets CBOR; JSON gets CBOR only where its Accept says so."""
        rows: tuple[tuple[int | None, bytes, int | None, int], ...] = (
            (None, b"", None, 60),
            (42, b"", None, 60),
            (50, b"", None, 60),
            (None, b"", 50, 50),
            (None, b"", 60, 60),
            (60, self.CBOR, None, 60),
            (60, self.CBOR, 60, 60),
            (60, self.CBOR, 50, 50),
            (50, self.JSON, None, 50),
            (50, self.JSON, 50, 50),
            (50, self.JSON, 60, 60),
            (None, self.JSON, None, 50),
            (None, self.CBOR, None, 60),
        )
        for content_format, payload, accept, wanted in rows:
            found = request(PUT, payload, content_format=content_format, accept=accept)
            self.assertEqual(found.reply.content_format, wanted, (content_format, payload, accept))

    def test_other_accept(self) -> None:
        for accept in (0, 42, 40, 65535):
            error = refusal(accept=accept)
            self.assertEqual((error.code, error.errcode), (0x86, "M_INVALID_PARAM"))

    def test_reply_format_of_errors(self) -> None:
        rows: tuple[tuple[bytes, int | None, int | None, int], ...] = (
            (b"", None, None, 60),
            (b"{", 50, None, 50),
            (b"{", None, None, 50),
            (b"\xa1", 60, None, 60),
            (b"\xa1", None, None, 60),
            (b"\xa1", 60, 50, 50),
            (b"{", 50, 60, 60),
            (b"x", 42, None, 60),
            (b"{}", 50, 42, 50),
        )
        for payload, content_format, accept, wanted in rows:
            error = refusal(IPATCH, payload, content_format=content_format, accept=accept)
            self.assertEqual(error.reply, ReplyFormat(wanted, None), (payload, content_format, accept))


class CriticalOptionTests(SynchronousTestCase):
    """RFC 7252 section 5.4.1."""

    def test_unknown_critical_options(self) -> None:
        """If-Match and If-None-Match among them: a condition that nobody checks must not be ignored."""
        for number in (1, 5, 9, 13, 33, 35, 39, 259, 65001):
            error = refusal(more=[(number, b"")])
            self.assertEqual((error.code, error.errcode), (0x82, "M_UNRECOGNIZED"), number)

    def test_known_critical_options(self) -> None:
        pairs = [
            (3, b"example.org"),
            (7, b"\x1f\x48"),
            (19, b"\x06"),
            (23, b"\x06"),
            (27, b"\x06"),
            (31, b"\x06"),
        ]
        self.assertEqual(request(more=pairs).path, b"/_matrix/client/versions")

    def test_elective_options_are_ignored(self) -> None:
        pairs = [
            (4, b"tag"),
            (6, b""),
            (14, b""),
            (28, b""),
            (60, b""),
            (258, b"\x02"),
            (292, b"x"),
            (65000, b"x"),
        ]
        self.assertEqual(request(more=pairs).path, b"/_matrix/client/versions")


class RequestTests(SynchronousTestCase):
    """What a `MatrixRequest` says about itself."""

    def test_repr_hides_what_is_private(self) -> None:
        found = repr(MatrixRequest("PUT", b"/p", b"access_token=s3cret", {"password": "s3cret"}, "s3cret"))
        self.assertNotIn("s3cret", found)
        self.assertIn("/p", found)

    def test_long_poll(self) -> None:
        sync = b"/_matrix/client/r0/sync"
        rows: tuple[tuple[bytes, bytes, bool], ...] = (
            (sync, b"timeout=30000", True),
            (sync, b"since=s1&timeout=1", True),
            (sync, b"timeout=0", False),
            (sync, b"timeout=", False),
            (sync, b"", False),
            (b"/_matrix/client/versions", b"timeout=30000", False),
        )
        for path, query, wanted in rows:
            self.assertEqual(MatrixRequest("GET", path, query).is_long_poll, wanted, query)


class AnyRequestTests(SynchronousTestCase):
    """Anything at all: a request or an error that can be answered."""

    @PROPERTY
    @given(
        st.integers(0, 255),
        st.lists(
            st.tuples(
                st.sampled_from((1, 3, 11, 12, 15, 17, 256, 257)) | st.integers(0, 65535),
                st.binary(max_size=9),
            )
        ),
        st.binary(max_size=40),
        st.sampled_from(((), ("_matrix", "client"), ("9", "a", "b"), ("7",))),
    )
    def test_request_or_error(
        self, code: int, pairs: list[tuple[int, bytes]], payload: bytes, path: tuple[str, ...]
    ) -> None:
        whole = [(URI_PATH, part.encode()) for part in path] + pairs
        found: Any
        try:
            found = decode_request(code, whole, payload, StickyState())
        except MappingError as error:
            self.assertIn(error.code, (0x80, 0x82, 0x84, 0x85, 0x86, 0x8F))
            self.assertIsNotNone(error.reply)
            return
        self.assertRegex(found.path, rb"\A/[!-~]+\Z")
        self.assertRegex(found.query, rb"\A[!-~]*\Z")
        self.assertRegex(found.access_token or "x", r"\A[!-~]+\Z")

    def test_encoded_body_of_every_kind(self) -> None:
        value: Any
        for value in ({}, [], "x", 1, True, None):
            self.assertEqual(request(PUT, encode(value), content_format=60).body, value)
