# SPDX-License-Identifier: AGPL-3.0-or-later
"""Content-Format 11060: what is compressed, what never is, and what a peer's compressed bytes may do."""

from __future__ import annotations

import random
import re
import string
import zlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.msc3079 import cbor
from synapse_lb.msc3079.compression import ALWAYS_INFLATED, TIMES_INFLATED, deflate, inflate, most_inflated
from synapse_lb.msc3079.errors import CompressionError
from synapse_lb.msc3079.extension import X1
from synapse_lb.msc3079.mapping import (
    MappingError,
    MappingLimits,
    MatrixResponse,
    ReplyFormat,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
    encode_x1_request,
)
from synapse_lb.msc3079.secrecy import SECRET_RESOURCES, holds_secret, takes_or_gives_secrets
from synapse_lb.msc3079.sticky import StickyState
from synapse_lb.msc3079.x1 import AliasBook, Side, encode_body
from tests.msc3079.requests import POST, PUT, options, refusal, request
from tests.msc3079.strategies import JSON_VALUES, PROPERTY, same, settled

LONG: dict[str, Any] = {"rooms": {"join": {f"!{n}:x": {"timeline": {"events": []}} for n in range(20)}}}
SYNC = ("_matrix", "client", "v3", "sync")
DEFLATED = encode_response(MatrixResponse(200, LONG), ReplyFormat(deflate=True))[2]


def raw(data: bytes) -> bytes:
    """Deflate without the zlib format."""
    stream = zlib.compressobj(6, zlib.DEFLATED, -15)
    return stream.compress(data) + stream.flush()


class RatioTests(SynchronousTestCase):
    """A datagram of a stranger does not become a megabyte."""

    def text(self, size: int) -> dict[str, str]:
        """A body of so many bytes of CBOR that deflate makes next to nothing."""
        body = {"body": "x" * (size - 9)}
        self.assertEqual(len(cbor.encode(body)), size)
        return body

    def read(self, content_format: bytes, payload: bytes) -> Any:
        return request(PUT, payload, more=[(12, content_format)]).body

    def test_most(self) -> None:
        self.assertEqual(most_inflated(10, 1 << 20), ALWAYS_INFLATED)
        self.assertEqual(most_inflated(10_000, 1 << 20), 10_000 * TIMES_INFLATED)
        self.assertEqual(most_inflated(10_000, 15_000), 15_000)
        self.assertEqual(most_inflated(1, 10), 10)

    def test_at_the_bound(self) -> None:
        for size, fits in ((ALWAYS_INFLATED, True), (ALWAYS_INFLATED + 1, False)):
            body = self.text(size)
            payload = zlib.compress(cbor.encode(body), 9)
            if fits:
                self.assertEqual(self.read(b"\x2b\x34", payload), body)
            else:
                error = refusal(PUT, payload, more=[(12, b"\x2b\x34")])
                self.assertEqual((error.code, error.errcode), (0x8D, "M_TOO_LARGE"))

    def test_in_x1(self) -> None:
        sticky = StickyState(allows_x1=True)
        for size, fits in ((ALWAYS_INFLATED, True), (ALWAYS_INFLATED + 1, False)):
            body = ["x" * (size - 4)]
            payload = encode_body(body).data
            self.assertLess(len(payload), 100)
            if fits:
                self.assertEqual(request(PUT, payload, sticky, more=[(X1, b"\x01")]).body, body)
            else:
                error = refusal(PUT, payload, sticky, more=[(X1, b"\x01")])
                self.assertEqual((error.code, error.errcode), (0x8D, "M_TOO_LARGE"))

    def test_what_the_client_writes_is_taken(self) -> None:
        """It compresses no request that would be refused; answers have no such bound."""
        sticky = StickyState(allows_x1=True)
        for size in (ALWAYS_INFLATED, ALWAYS_INFLATED + 20, 60_000):
            body = self.text(size)
            _, pairs, payload = encode_request(
                "PUT", "/_matrix/client/v3/x", None, body, content_format=11060
            )
            self.assertEqual(len(payload) < 200, size == ALWAYS_INFLATED)
            self.assertEqual(decode_request(PUT, pairs, payload, StickyState()).body, body)
            written = encode_x1_request(
                "PUT", "/_matrix/client/v3/x", None, body, AliasBook(Side.CLIENT), announce=True
            )
            self.assertEqual(len(written.payload) < 200, size == ALWAYS_INFLATED)
            self.assertEqual(decode_request(PUT, written.options, written.payload, sticky).body, body)
            answer = encode_response(MatrixResponse(200, body), ReplyFormat(deflate=True))
            self.assertLess(len(answer[2]), 200)
            self.assertEqual(decode_response(*answer).body, body)


class InflateTests(SynchronousTestCase):
    """A peer's bytes."""

    def test_both_forms(self) -> None:
        for size in (0, 1, 100, 10_000):
            data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
            self.assertEqual(inflate(zlib.compress(data), size), data)
            self.assertEqual(inflate(raw(data), size), data)

    def test_written_in_the_zlib_format(self) -> None:
        self.assertEqual(zlib.decompress(deflate(b"x" * 100)), b"x" * 100)

    def test_bomb(self) -> None:
        """One byte more than is allowed is refused, whatever it would become."""
        bomb = zlib.compress(b"\0" * (64 << 20), 9)
        error = self.assertRaises(CompressionError, inflate, bomb, 1 << 20)
        self.assertTrue(error.too_large)
        error = self.assertRaises(CompressionError, inflate, zlib.compress(b"x" * 11), 10)
        self.assertTrue(error.too_large)

    def test_malformed(self) -> None:
        whole = zlib.compress(b"some text that is compressed")
        stream = zlib.compressobj(9, zlib.DEFLATED, 15, zdict=b"some text")
        with_dictionary = stream.compress(b"some text") + stream.flush()
        for data in (
            b"",
            b"\x78",
            whole[:-1],
            raw(b"some text")[:-1],
            whole + b"\0",
            whole[:-1] + b"\0",
            with_dictionary,
            b"\xa1\x02\x61x",
            b"\xff" * 30,
        ):
            error = self.assertRaises(CompressionError, inflate, data, 1000)
            self.assertFalse(error.too_large, data)

    @PROPERTY
    @given(st.binary(max_size=200))
    def test_any_bytes(self, data: bytes) -> None:
        try:
            found = inflate(data, 1000)
        except CompressionError:
            return
        self.assertLessEqual(len(found), 1000)


class RequestTests(SynchronousTestCase):
    """Accept, and bodies that come compressed."""

    def test_accept(self) -> None:
        self.assertEqual(request(path=SYNC, accept=11060).reply, ReplyFormat(60, None, True))
        self.assertEqual(request(path=SYNC, accept=60).reply, ReplyFormat(60))
        self.assertEqual(request(path=SYNC, accept=50).reply, ReplyFormat(50))
        self.assertEqual(refusal(path=SYNC, accept=11050).code, 0x86)

    def test_key_version_holds(self) -> None:
        found = request(path=SYNC, accept=11060, more=[(257, b"\x01")])
        self.assertEqual(found.reply, ReplyFormat(60, 1, True))

    def test_a_compressed_body_asks_for_a_compressed_answer(self) -> None:
        path = ("_matrix", "client", "v3", "keys", "query")
        found = request(POST, DEFLATED, path=path, content_format=11060)
        self.assertEqual((found.body, found.reply), (LONG, ReplyFormat(60, None, True)))
        found = request(POST, DEFLATED, path=path, content_format=11060, accept=60)
        self.assertEqual(found.reply, ReplyFormat(60))

    def test_integer_keys_in_it(self) -> None:
        sticky = StickyState()
        payload = zlib.compress(cbor.encode({"type": "x"}, 1))
        self.assertEqual(request(PUT, payload, sticky, content_format=11060).body, {"type": "x"})
        self.assertTrue(sticky.used_integer_keys)

    def test_bomb(self) -> None:
        bomb = zlib.compress(b"\x60" * 2000)
        pairs = options(content_format=11060)
        for limit, expected in ((1999, (0x8D, "M_TOO_LARGE")), (2000, (0x80, "M_NOT_JSON"))):
            limits = MappingLimits(max_inflated=limit)
            error = self.assertRaises(MappingError, decode_request, PUT, pairs, bomb, StickyState(), limits)
            self.assertEqual((error.code, error.errcode), expected)

    def test_malformed(self) -> None:
        for payload in (b"\xa0", b"\x78\x9c", DEFLATED[:-1], zlib.compress(b"\xa1")):
            error = refusal(PUT, payload, content_format=11060)
            self.assertEqual((error.code, error.errcode), (0x80, "M_NOT_JSON"))

    def test_errors_are_answered_without(self) -> None:
        self.assertEqual(refusal(path=("nowhere",), accept=11060).reply, ReplyFormat(60))


class ResponseTests(SynchronousTestCase):
    """What is written compressed."""

    def formats(self, body: Any) -> tuple[bytes, int]:
        _, pairs, payload = encode_response(MatrixResponse(200, body), ReplyFormat(60, 1, True))
        return dict(pairs)[12], len(payload)

    def test_only_if_it_is_smaller(self) -> None:
        self.assertEqual(self.formats({}), (b"\x3c", 1))
        noise = "".join(random.Random(1).choices(string.printable, k=60))
        self.assertEqual(self.formats({"body": noise})[0], b"\x3c")
        number, size = self.formats(LONG)
        self.assertEqual(number, (11060).to_bytes(2, "big"))
        self.assertLess(size, len(cbor.encode(LONG, 1)) // 2)

    def test_not_where_nobody_asked(self) -> None:
        for reply in (ReplyFormat(60), ReplyFormat(50)):
            _, pairs, _ = encode_response(MatrixResponse(200, LONG), reply)
            self.assertEqual(pairs, [(12, bytes([reply.content_format]))])

    @PROPERTY
    @given(JSON_VALUES)
    def test_there_and_back(self, body: Any) -> None:
        response = MatrixResponse(200, {"x": body, "padding": "x" * 100})
        found = decode_response(*encode_response(response, ReplyFormat(60, 1, True)))
        self.assertTrue(same(found.body, settled(response.body)))

    def test_a_client_bounds_what_comes_out(self) -> None:
        triple = encode_response(MatrixResponse(200, {"x": "y" * 1000}), ReplyFormat(deflate=True))
        self.assertEqual(decode_response(*triple, max_inflated=2000).body, {"x": "y" * 1000})
        error = self.assertRaises(MappingError, decode_response, *triple, max_inflated=1000)
        self.assertEqual(error.code, 0xA2)


class ClientTests(SynchronousTestCase):
    """What a client compresses."""

    def content_format(self, path: str, body: Any, **more: Any) -> int:
        _, pairs, _ = encode_request("POST", path, None, body, content_format=11060, **more)
        return int.from_bytes(dict(pairs)[12], "big")

    def test_where_it_helps(self) -> None:
        query = "/_matrix/client/v3/keys/query"
        self.assertEqual(self.content_format(query, LONG), 11060)
        self.assertEqual(self.content_format(query, {"a": 1}), 60)
        self.assertEqual(self.content_format("/h", LONG), 11060)

    def test_never_a_secret(self) -> None:
        filler = {"password": "x" * 500}
        for path in (
            "/_matrix/client/v3/login",
            "/1",
            "/_matrix/client/r0/%6Cogin",
            "/_matrix/client/v3/login/",
        ):
            self.assertEqual(self.content_format(path, {"filler": "x" * 500}), 60, path)
        self.assertEqual(self.content_format("/_matrix/client/v3/keys/query", filler), 60)
        self.assertEqual(self.content_format("/9/too/few", {"filler": "x" * 500}), 60)

    def test_read_again(self) -> None:
        triple = encode_request("POST", "/_matrix/client/v3/keys/query", None, LONG, content_format=11060)
        self.assertEqual(decode_request(*triple, StickyState()).body, LONG)


class SecrecyTests(SynchronousTestCase):
    """Where a secret may be."""

    def test_resources(self) -> None:
        examples = {
            "login": "/v3/login",
            "login/": "/v1/login/get_token",
            "register": "/r0/register",
            "register/": "/v3/register/email/requestToken",
            "refresh": "/v3/refresh",
            "logout": "/v3/logout/all",
            "password": "/v3/account/password",
            "password/": "/v3/account/password/email/requestToken",
            "deactivate": "/v3/account/deactivate",
            "3pid": "/v3/account/3pid/add",
            "openid": "/v3/user/@a:x/openid/request_token",
            "auth": "/v3/auth/m.login.recaptcha/fallback/web",
            "device": "/v3/devices/ABC",
            "delete": "/v3/delete_devices",
            "cross-signing": "/v3/keys/device_signing/upload",
            "unstable cross-signing": "/unstable/keys/device_signing/upload",
            "pushers": "/v3/pushers",
            "set": "/v3/pushers/set",
            "turn": "/v3/voip/turnServer",
            "rendezvous": "/unstable/org.matrix.msc4108/rendezvous/x",
            "dehydrated": "/unstable/org.matrix.msc3814.v1/dehydrated_device",
            "server's": "/unstable/org.matrix.msc2965/auth/x",
        }
        for what, path in examples.items():
            self.assertTrue(takes_or_gives_secrets(self.segments(path)), what)
        for pattern in SECRET_RESOURCES:
            self.assertTrue(any(self.hit(pattern, path) for path in examples.values()), pattern)

    def segments(self, path: str) -> list[str]:
        return ["_matrix", "client", *path[1:].split("/")]

    def hit(self, pattern: str, path: str) -> bool:
        return re.fullmatch(r"/(r0|v\d|unstable(/[^/]*\.[^/]+)?)/" + pattern, path) is not None

    def test_others(self) -> None:
        for path in (
            "/versions",
            "/v3/sync",
            "/v3/keys/query",
            "/v3/devices",
            "/v3/rooms/!r:x/messages",
            "/v3/logins",
        ):
            self.assertFalse(takes_or_gives_secrets(self.segments(path)), path)
        self.assertFalse(takes_or_gives_secrets([".well-known", "matrix", "client"]))

    def test_what_is_not_known_counts_as_secret(self) -> None:
        for segments in ([], ["_matrix"], ["_synapse", "x"], ["_matrix", "client"]):
            self.assertTrue(takes_or_gives_secrets(segments))

    def test_a_slash_within_a_segment_is_none(self) -> None:
        segments = ["_matrix", "client", "v3", "user", "@a/b:x", "openid", "request_token"]
        self.assertTrue(takes_or_gives_secrets(segments))

    def test_names(self) -> None:
        secret: list[Any] = [{"access_token": 1}, {"x": {"password": 1}}, {"auth": {}}, {"x": 1, "mac": 2}]
        for body in secret:
            self.assertTrue(holds_secret(body), body)
        harmless: list[Any] = [{}, [], None, "password", {"body": "password"}, {"x": [{"password": 1}]}]
        for body in harmless:
            self.assertFalse(holds_secret(body), body)

    def test_answers(self) -> None:
        """By the name of what is in it, wherever it comes from; and by where it comes from, whatever is in it."""
        body = LONG | {"refresh_token": "x"}
        _, pairs, _ = encode_response(MatrixResponse(200, body), request(path=SYNC, accept=11060).reply)
        self.assertEqual(pairs, [(12, b"\x3c")])
        reply = request(POST, b"\xa0", path=("_matrix", "client", "v3", "login"), accept=11060).reply
        self.assertFalse(reply.deflate)
        self.assertFalse(request(POST, b"\xa0", path=("1",), accept=11060).reply.deflate)
