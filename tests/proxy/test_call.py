# SPDX-License-Identifier: AGPL-3.0-or-later
"""How requests are read, and which way they go."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.msc3079.mapping import NO_BODY
from synapse_lb.proxy.answers import ProxyError
from synapse_lb.proxy.call import Call, Way


def call(method: str, target: str, body: bytes = b"", /, **headers: str) -> Call:
    """Read a request."""
    fields = tuple((name.encode(), value.encode("latin-1")) for name, value in headers.items())
    return Call.of(method.encode(), target.encode(), fields, body)


class WayTests(SynchronousTestCase):
    def test_ways(self) -> None:
        for way, method, path in (
            (Way.SYNC, "GET", "/_matrix/client/v3/sync?since=1"),
            (Way.SYNC, "GET", "/_matrix/client/r0/sync"),
            (Way.COAP, "POST", "/_matrix/client/v3/sync"),
            (Way.COAP, "GET", "/_matrix/client/versions"),
            (Way.COAP, "GET", "/_matrix/client/v3/login"),
            (Way.COAP, "POST", "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"),
            (Way.COAP, "GET", "/_matrix/client/v1/rooms/x/hierarchy"),
            (Way.COAP, "GET", "/_matrix/client/v3/auth_metadata"),
            (Way.HTTPS, "TRACE", "/_matrix/client/versions"),
            (Way.HTTPS, "GET", "/_matrix/client/v1/media/download/x/y"),
            (Way.HTTPS, "GET", "/_matrix/client/unstable/org.matrix.msc3916/media/config"),
            (Way.HTTPS, "POST", "/_matrix/media/v3/upload"),
            (Way.HTTPS, "GET", "/_matrix/client/v3/login/sso/redirect/oidc"),
            (Way.HTTPS, "GET", "/_matrix/client/v3/login/cas/ticket"),
            (Way.HTTPS, "GET", "/_matrix/client/v3/auth/m.login.recaptcha/fallback/web"),
            (Way.HTTPS, "GET", "/_matrix/static/client/login/"),
            (Way.HTTPS, "GET", "/_synapse/client/pick_idp"),
            (None, "GET", "/"),
            (None, "GET", "/_synapse/admin/v1/users"),
            (None, "GET", "/_matrixx/client/versions"),
        ):
            self.assertIs(call(method, path).way, way, path)

    def test_what_lean_leaves_out(self) -> None:
        room = "/_matrix/client/v3/rooms/!r%3Ax"
        for expected, method, path in (
            (True, "PUT", f"{room}/typing/%40a%3Ax"),
            (True, "POST", f"{room}/receipt/m.read/%24e"),
            (True, "POST", f"{room}/receipt/m.read.private/%24e"),
            (True, "POST", f"{room}/read_markers"),
            (True, "PUT", "/_matrix/client/v3/presence/%40a%3Ax/status"),
            (False, "GET", "/_matrix/client/v3/presence/%40a%3Ax/status"),
            (False, "PUT", f"{room}/send/m.room.message/1"),
            (False, "PUT", f"{room}/state/typing/x"),
            (False, "PUT", "/_matrix/client/v3/user/%40a/rooms/!r/account_data/m.fully_read"),
        ):
            self.assertIs(call(method, path).is_dispensable, expected, path)


class ReadingTests(SynchronousTestCase):
    def test_token(self) -> None:
        for expected, target, headers in (
            (None, "/x", {}),
            ("h", "/x?access_token=q", {"authorization": "Bearer h"}),
            ("h", "/x", {"authorization": "bearer  h "}),
            ("q", "/x?a=b&access_token=q", {}),
            ("q", "/x?access_token=q", {"authorization": "Basic eDp5"}),
            (None, "/x?access_token=", {}),
        ):
            self.assertEqual(call("GET", target, **headers).token, expected, target)

    def test_token_that_is_none(self) -> None:
        for bad in ("a b", "\xe4", "a\tb"):
            error = self.assertRaises(ProxyError, call, "GET", "/x", authorization=f"Bearer {bad}")
            self.assertEqual((error.status, error.errcode), (401, "M_UNKNOWN_TOKEN"))

    def test_token_is_not_shown(self) -> None:
        """Whatever prints a call prints no secret."""
        shown = repr(
            call("GET", "/x?access_token=secret1&q=secret2", b"secret3", authorization="Bearer secret4")
        )
        self.assertNotIn("secret", shown)

    def test_query(self) -> None:
        read = call("GET", "/x?a=%C3%A9&a=+&b&access_token=t&c=%26")
        self.assertEqual(read.query, (("a", "é"), ("a", " "), ("b", ""), ("c", "&")))
        self.assertEqual(read.parameter("a"), "é")
        self.assertIsNone(read.parameter("access_token"))

    def test_query_that_is_no_text(self) -> None:
        for target in (b"/x?a=%ff", b"/x?\xff", b"/\xff"):
            error = self.assertRaises(ProxyError, Call.of, b"GET", target, (), b"")
            self.assertEqual((error.status, error.errcode), (400, "M_INVALID_PARAM"))

    def test_changed_query(self) -> None:
        changed = call("GET", "/x?a=b&access_token=t").with_query((("a", "ä&"), ("c", "")))
        self.assertEqual(changed.target, b"/x?a=%C3%A4%26&c=")

    def test_body(self) -> None:
        self.assertIs(call("POST", "/x").json(), NO_BODY)
        self.assertEqual(call("POST", "/x", b'{"a": [1, "\xc3\xa4"]}').json(), {"a": [1, "ä"]})
        self.assertIsNone(call("POST", "/x", b"null").json())

    def test_size(self) -> None:
        raw = b"POST /x?y HTTP/1.1\r\nhost: h\r\ncontent-type: t\r\n\r\n{}"
        read = Call.of(b"POST", b"/x?y", ((b"host", b"h"), (b"content-type", b"t")), b"{}")
        self.assertEqual(read.http_size(), len(raw))
