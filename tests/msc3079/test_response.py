# SPDX-License-Identifier: AGPL-3.0-or-later
"""Matrix answer -> CoAP response, and back: codes, bodies, Max-Age."""

from __future__ import annotations

import json
from typing import Any, Final

import cbor2
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.msc3079.codes import code_to_status, status_to_code
from synapse_lb.msc3079.mapping import (
    NO_BODY,
    MappingError,
    MatrixResponse,
    ReplyFormat,
    decode_response,
    encode_error,
    encode_response,
)
from synapse_lb.msc3079.options import encode_uint
from tests.msc3079.strategies import JSON_VALUES, PROPERTY, same, settled
from tests.msc3079.vectors import ERROR, ERROR_CBOR

CBOR: Final = ReplyFormat(60)
CBOR_1: Final = ReplyFormat(60, 1)
JSON: Final = ReplyFormat(50)

CODES: Final = {
    200: "2.05",
    201: "2.01",
    202: "2.05",
    203: "2.05",
    204: "2.04",
    205: "2.04",
    206: "2.05",
    301: "5.02",
    302: "5.02",
    303: "5.02",
    304: "2.03",
    307: "5.02",
    308: "5.02",
    400: "4.00",
    401: "4.01",
    402: "4.00",
    403: "4.03",
    404: "4.04",
    405: "4.05",
    406: "4.06",
    408: "4.00",
    409: "4.09",
    410: "4.04",
    411: "4.00",
    412: "4.12",
    413: "4.13",
    414: "4.00",
    415: "4.15",
    418: "4.00",
    422: "4.22",
    429: "4.29",
    451: "4.03",
    500: "5.00",
    501: "5.01",
    502: "5.02",
    503: "5.03",
    504: "5.04",
    505: "5.00",
    507: "5.00",
}

SHARED: Final = {402: 400, 408: 400, 410: 404, 451: 403, 205: 204}
"""Statuses that share a code with another beside those for which their class decides: what comes back."""

OWN_CODE: Final = frozenset(
    {200, 201, 204, 304, 400, 401, 403, 404, 405, 406, 409, 412, 413, 415, 422, 429, 500, 501, 502, 503, 504}
)


def text(code: int) -> str:
    return f"{code >> 5}.{code & 31:02d}"


def round_trip_status(status: int) -> int:
    """The status that a client sees, by the documentation of `codes`."""
    if status in OWN_CODE:
        return status
    return SHARED.get(status, {2: 200, 3: 502, 4: 400}.get(status // 100, 500))


class StatusTests(SynchronousTestCase):
    """HTTP status -> CoAP code."""

    def test_table(self) -> None:
        for status, code in CODES.items():
            self.assertEqual(text(status_to_code(status)), code, status)

    def test_every_status_comes_back_as_documented(self) -> None:
        for status in range(200, 600):
            for body in (NO_BODY, {"a": 1}):
                found = decode_response(*encode_response(MatrixResponse(status, body), CBOR))
                self.assertEqual(found.status, round_trip_status(status), status)

    def test_never_a_code_that_is_no_response(self) -> None:
        """The reference proxy answered 429, 409, 204, 304, 410, 415, 501 and 503 with 0.00."""
        for status in (*range(1000), -1):
            self.assertIn(status_to_code(status) >> 5, (2, 4, 5), status)
            if not 200 <= status < 600:
                self.assertEqual(text(status_to_code(status)), "5.00")

    def test_failures_stay_failures(self) -> None:
        for status in range(200, 600):
            self.assertEqual(status_to_code(status) >> 5 == 2, status < 300 or status == 304, status)

    def test_unknown_codes(self) -> None:
        """RFC 7252 section 5.9: an unknown detail of class 4 or 5 is its x.00."""
        for code in range(256):
            status = code_to_status(code, has_body=True)
            if code >> 5 in (4, 5):
                assert status is not None
                self.assertEqual(status // 100, code >> 5)
        self.assertEqual(code_to_status(0x9E, has_body=True), 400)
        self.assertEqual(code_to_status(0xBF, has_body=True), 500)
        for code in (0, 1, 0x5F, 0x46, 0x60, 0xC0, 0xE1):
            self.assertIsNone(code_to_status(code, has_body=False))

    def test_codes_of_coap_alone(self) -> None:
        for code, status in ((0x82, 400), (0x88, 400), (0xA5, 502), (0x42, 200)):
            self.assertEqual(code_to_status(code, has_body=True), status)

    def test_changed_depends_on_the_body(self) -> None:
        self.assertEqual(code_to_status(0x44, has_body=True), 200)
        self.assertEqual(code_to_status(0x44, has_body=False), 204)


class BodyTests(SynchronousTestCase):
    """Bodies of answers."""

    def test_vector_of_the_msc(self) -> None:
        self.assertEqual(
            encode_response(MatrixResponse(400, ERROR), CBOR_1), (0x80, [(12, b"\x3c")], ERROR_CBOR)
        )

    def test_format(self) -> None:
        body = {"type": "x"}
        self.assertEqual(
            encode_response(MatrixResponse(200, body), CBOR)[1:], ([(12, b"\x3c")], b"\xa1\x64type\x61x")
        )
        self.assertEqual(
            encode_response(MatrixResponse(200, body), CBOR_1)[1:], ([(12, b"\x3c")], b"\xa1\x02\x61x")
        )
        self.assertEqual(
            encode_response(MatrixResponse(200, body), JSON)[1:], ([(12, b"\x32")], b'{"type":"x"}')
        )

    def test_no_status_with_a_body_comes_without(self) -> None:
        """Deployed clients crash on an empty 200 and on what is not CBOR."""
        for status in range(200, 600):
            code, pairs, payload = encode_response(MatrixResponse(status), CBOR)
            if status in (204, 205, 304):
                self.assertEqual((pairs, payload), ([], b""))
                continue
            self.assertEqual(pairs, [(12, b"\x3c")])
            body = cbor2.loads(payload)
            if code >> 5 == 2:
                self.assertEqual(body, {})
            else:
                self.assertEqual(set(body), {"errcode", "error"}, status)

    def test_bodiless_statuses_lose_theirs(self) -> None:
        for status in (204, 205, 304):
            self.assertEqual(encode_response(MatrixResponse(status, {"a": 1}), CBOR)[1:], ([], b""))

    def test_redirects_say_so(self) -> None:
        code, _, payload = encode_response(MatrixResponse(302), JSON)
        self.assertEqual(text(code), "5.02")
        self.assertEqual(json.loads(payload)["errcode"], "M_UNRECOGNIZED")
        self.assertIn("redirect", json.loads(payload)["error"])

    def test_body_of_a_failure_is_kept(self) -> None:
        """User-interactive authentication lives in the body of a 401."""
        body = {"flows": [{"stages": ["m.login.dummy"]}], "session": "s", "params": {}}
        for status in (301, 401, 403, 500):
            found = decode_response(*encode_response(MatrixResponse(status, body), CBOR_1))
            self.assertEqual(found.body, body)

    def test_values_that_are_no_maps(self) -> None:
        for body in ([{"type": "m.room.create"}], [], None, "x", 3, False):
            for reply in (CBOR, CBOR_1, JSON):
                found = decode_response(*encode_response(MatrixResponse(200, body), reply))
                self.assertTrue(same(found.body, body))

    def test_one_odd_event_does_not_stop_a_sync(self) -> None:
        body = {"events": ["\ud800", 2**70, float("nan"), 1.5]}
        found = decode_response(*encode_response(MatrixResponse(200, body), CBOR_1))
        self.assertEqual((found.status, found.body), (200, {"events": ["\ufffd", 2.0**70, None, 1.5]}))

    def test_deep_event(self) -> None:
        body: Any = 0
        for _ in range(900):
            body = [body]
        found = decode_response(*encode_response(MatrixResponse(200, {"content": body}), CBOR_1))
        self.assertEqual(found.body, {"content": body})

    def test_what_is_no_json_value(self) -> None:
        for body in (b"<html>", {"a": object()}, {("a",): 1}):
            for reply in (CBOR_1, JSON):
                found = decode_response(*encode_response(MatrixResponse(200, body), reply))
                self.assertEqual((found.status, found.body["errcode"]), (500, "M_UNKNOWN"))

    @PROPERTY
    @given(JSON_VALUES, st.sampled_from((CBOR, CBOR_1)))
    def test_round_trip(self, value: Any, reply: ReplyFormat) -> None:
        found = decode_response(*encode_response(MatrixResponse(200, value), reply))
        self.assertTrue(same(found.body, settled(value)))

    def test_repr_hides_the_body(self) -> None:
        self.assertNotIn("s3cret", repr(MatrixResponse(200, {"access_token": "s3cret"})))


class MaxAgeTests(SynchronousTestCase):
    """RFC 8516: how long to wait."""

    def max_age(self, status: int, body: Any, retry_after: float | None = None) -> int | None:
        pairs = dict(encode_response(MatrixResponse(status, body, retry_after), CBOR)[1])
        return int.from_bytes(pairs[14], "big") if 14 in pairs else None

    def test_from_retry_after(self) -> None:
        for seconds, wanted in (
            (0.0, 0),
            (0.001, 1),
            (1.0, 1),
            (1.5, 2),
            (300.0, 300),
            (1e12, 2**32 - 1),
            (-1.0, 0),
        ):
            self.assertEqual(self.max_age(429, {}, seconds), wanted)
            self.assertEqual(self.max_age(503, {}, seconds), wanted)

    def test_from_the_body(self) -> None:
        self.assertEqual(self.max_age(429, {"retry_after_ms": 1500}), 2)
        self.assertEqual(self.max_age(429, {"retry_after_ms": 1500}, 7.0), 7)
        odd: Any
        for odd in ("1500", None, True, [], float("inf"), float("nan")):
            self.assertIsNone(self.max_age(429, {"retry_after_ms": odd}))
        self.assertIsNone(self.max_age(429, ["retry_after_ms"]))
        self.assertIsNone(self.max_age(429, NO_BODY))

    def test_beyond_any_float(self) -> None:
        """An integer that no float can hold, and what is below zero, from either side."""
        for milliseconds, wanted in (
            (10**400, 2**32 - 1),
            (2**70, 2**32 - 1),
            (-(10**400), None),
            (-1, None),
        ):
            self.assertEqual(self.max_age(429, {"retry_after_ms": milliseconds}), wanted)
            answer = decode_response(0x9D, [(12, b"\x32")], b'{"retry_after_ms":%d}' % milliseconds)
            self.assertEqual(answer.retry_after, wanted)

    def test_only_where_it_says_something(self) -> None:
        for status in (200, 400, 404, 500):
            self.assertIsNone(self.max_age(status, {"retry_after_ms": 1500}, 2.0))

    def test_options_are_in_order(self) -> None:
        self.assertEqual(
            encode_response(MatrixResponse(429, {}, 2.0), CBOR),
            (0x9D, [(12, b"\x3c"), (14, b"\x02")], b"\xa0"),
        )

    def test_back(self) -> None:
        """Exactly, if the body says it; or else from Max-Age."""
        body = {"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 1234}
        found = decode_response(*encode_response(MatrixResponse(429, body), CBOR_1))
        self.assertEqual((found.status, found.retry_after, found.body), (429, 1.234, body))
        found = decode_response(*encode_response(MatrixResponse(503, {}, 3.5), CBOR_1))
        self.assertEqual((found.status, found.retry_after), (503, 4.0))
        self.assertIsNone(decode_response(*encode_response(MatrixResponse(429), CBOR)).retry_after)
        self.assertIsNone(decode_response(0x84, [(12, b"\x3c"), (14, b"\x05")], b"\xa0").retry_after)

    def test_a_max_age_that_is_none(self) -> None:
        """More than 4 bytes: RFC 7252 section 5.4.3."""
        longest = decode_response(0x9D, [(14, b"\xff" * 4)], b"")
        self.assertEqual(longest.retry_after, 2**32 - 1)
        for size in (5, 200):
            self.assertIsNone(decode_response(0x9D, [(14, b"\xff" * size)], b"").retry_after)


class ErrorTests(SynchronousTestCase):
    """Answers to requests that could not be mapped."""

    ERROR: Final = MappingError(0x8F, "M_NOT_JSON", "no")

    def test_default_format(self) -> None:
        code, pairs, payload = encode_error(self.ERROR)
        self.assertEqual((code, pairs), (0x8F, [(12, b"\x3c")]))
        self.assertEqual(cbor2.loads(payload), {"errcode": "M_NOT_JSON", "error": "no"})

    def test_format_of_the_error(self) -> None:
        error = MappingError(0x80, "M_UNKNOWN", "something", CBOR_1)
        self.assertEqual(encode_error(error), (0x80, [(12, b"\x3c")], ERROR_CBOR))
        self.assertEqual(
            encode_error(error, JSON)[1:], ([(12, b"\x32")], b'{"errcode":"M_UNKNOWN","error":"something"}')
        )

    def test_repr(self) -> None:
        self.assertEqual(repr(self.ERROR), "MappingError(code=4.15, errcode='M_NOT_JSON')")


class DecodeResponseTests(SynchronousTestCase):
    """What a client makes of answers that are not ours."""

    def content_format(self, value: int) -> list[tuple[int, bytes]]:
        return [(12, encode_uint(value))]

    def test_no_body(self) -> None:
        for code, status in ((0x45, 200), (0x44, 204), (0x43, 304), (0x84, 404)):
            found = decode_response(code, [], b"")
            self.assertEqual((found.status, found.body), (status, NO_BODY))

    def test_cbor_that_claims_to_be_json(self) -> None:
        """As the reference proxy sends it."""
        self.assertEqual(decode_response(0x45, self.content_format(50), b"\xa1\x02\x61x").body, {"type": "x"})
        self.assertEqual(decode_response(0x45, self.content_format(50), b'{"type":"x"}').body, {"type": "x"})

    def test_without_content_format(self) -> None:
        for payload in (b"\xa1\x02\x61x", b'{"type":"x"}'):
            for code in (0x45, 0x84):
                self.assertEqual(decode_response(code, [], payload).body, {"type": "x"})

    def test_diagnostic_payload(self) -> None:
        """RFC 7252 section 5.5.2: text for people, from the CoAP layer itself."""
        for payload, shown in ((b"Bad Option", "Bad Option"), (b"caf\xc3\xa9", "café"), (b"\xff", "\ufffd")):
            found = decode_response(0x82, [], payload)
            self.assertEqual((found.status, found.body), (400, {"errcode": "M_UNKNOWN", "error": shown}))

    def test_unreadable(self) -> None:
        for code, pairs, payload in (
            (0x45, self.content_format(60), b"\xa1"),
            (0x45, self.content_format(60), b"\x41\x00"),
            (0x45, self.content_format(0), b"hello"),
            (0x45, [], b"hello"),
            (0x45, self.content_format(50), b"{"),
            (0x84, self.content_format(60), b"{}"),
            (0x84, [], b"\xa1"),
            (0x5F, [], b""),
            (0x01, [], b""),
        ):
            error = self.assertRaises(MappingError, decode_response, code, pairs, payload)
            self.assertEqual((error.code, error.errcode), (0xA2, "M_UNKNOWN"))

    @PROPERTY
    @given(
        st.integers(0, 255),
        st.lists(st.tuples(st.sampled_from((12, 14, 4, 60)), st.binary(max_size=4)), max_size=3),
        st.binary(max_size=30),
    )
    def test_anything(self, code: int, pairs: list[tuple[int, bytes]], payload: bytes) -> None:
        try:
            found = decode_response(code, pairs, payload)
        except MappingError:
            return
        self.assertIn(found.status // 100, (2, 3, 4, 5))
