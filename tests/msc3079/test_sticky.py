# SPDX-License-Identifier: AGPL-3.0-or-later
"""Options 256 and 257, and what an association remembers of them (MSC3079)."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.msc3079.mapping import MappingError, MappingLimits, ReplyFormat, note_token
from synapse_lb.msc3079.options import ACCESS_TOKEN, KEY_VERSION
from synapse_lb.msc3079.sticky import StickyState
from tests.msc3079.requests import FETCH, GET, PUT, refusal, request
from tests.msc3079.strategies import PROPERTY

INTEGER_KEYS = b"\xa1\x02\x61x"
TEXT_KEYS = b"\xa1\x64type\x61x"


def token(value: bytes) -> list[tuple[int, bytes]]:
    return [(ACCESS_TOKEN, value)]


def version(value: bytes) -> list[tuple[int, bytes]]:
    return [(KEY_VERSION, value)]


class TokenTests(SynchronousTestCase):
    """Option 256."""

    def test_none(self) -> None:
        self.assertIsNone(request().access_token)

    def test_with_and_without_bearer(self) -> None:
        for value in (b"syt_abc", b"Bearer syt_abc", b"bearer syt_abc"):
            self.assertEqual(request(more=token(value)).access_token, "syt_abc")

    def test_a_token_that_only_begins_like_the_scheme(self) -> None:
        for value in (b"Bearer", b"Bearer "):
            self.assertIsNone(request(more=token(value)).access_token)
        self.assertEqual(request(more=token(b"Bearerx")).access_token, "Bearerx")

    def test_sticks(self) -> None:
        sticky = StickyState()
        request(sticky=sticky, more=token(b"one"))
        self.assertEqual(request(sticky=sticky).access_token, "one")
        self.assertEqual(request(sticky=sticky, more=token(b"two")).access_token, "two")
        self.assertEqual(request(sticky=sticky).access_token, "two")
        self.assertIsNone(request().access_token)

    def test_a_query_with_a_token_is_not_given_the_sticky_one(self) -> None:
        """Synapse refuses a request that says in two ways whose it is; the sticky token is in force afterwards."""
        sticky = StickyState(token="one")
        for query in (["access_token=two"], ["limit=1", "access_token=two"]):
            asked = request(sticky=sticky, query=query)
            self.assertIsNone(asked.access_token)
            self.assertTrue(asked.query.endswith(b"access_token=two"))
        self.assertEqual(request(sticky=sticky, query=["my_access_token=two"]).access_token, "one")
        self.assertEqual(request(sticky=sticky).access_token, "one")

    def test_a_request_may_say_both_by_itself(self) -> None:
        """What the client itself mixes is the server's to refuse."""
        asked = request(query=["access_token=two"], more=token(b"one"))
        self.assertEqual(asked.access_token, "one")

    def test_an_empty_one_means_none_from_now_on(self) -> None:
        for value in (b"", b"Bearer "):
            sticky = StickyState(token="one")
            self.assertIsNone(request(sticky=sticky, more=token(value)).access_token)
            self.assertIsNone(request(sticky=sticky).access_token)

    def test_sticks_even_if_the_request_fails_otherwise(self) -> None:
        """The client has sent it and will not send it again."""
        for code, payload, path in ((FETCH, b"", ("7",)), (GET, b"", ("nowhere",)), (PUT, b"\xa1", ("7",))):
            sticky = StickyState()
            refusal(code, payload, sticky, path=path, more=token(b"one"))
            self.assertEqual(request(sticky=sticky).access_token, "one")

    def test_never_breaks_out_of_a_header_line(self) -> None:
        for value in (
            b"a\r\nX: y",
            b"a\nb",
            b"a b",
            b"a\tb",
            b"\x00",
            b"a\x7f",
            b"\xc3\xa9",
            b"a\n",
            b"Bearer  a",
            b" a",
        ):
            sticky = StickyState(token="one")
            error = refusal(sticky=sticky, more=token(value))
            self.assertEqual((error.code, error.errcode), (0x80, "M_INVALID_PARAM"), value)
            self.assertIsNone(sticky.token, "whoever wrote that is not the one before")

    @PROPERTY
    @given(st.binary(max_size=30))
    def test_any_value(self, value: bytes) -> None:
        sticky, noted = StickyState(token="old"), StickyState(token="old")
        with contextlib.suppress(MappingError):
            note_token(token(value), noted)
        try:
            found = request(sticky=sticky, more=token(value)).access_token
        except MappingError:
            found = None
        self.assertEqual((noted.token, sticky.token), (found, found))
        self.assertRegex(found or "x", r"\A[!-~]+\Z")

    def test_too_long(self) -> None:
        self.assertEqual(request(more=token(b"x" * 4096)).access_token, "x" * 4096)
        self.assertEqual(refusal(more=token(b"x" * 4097)).code, 0x80)

    def test_repeated(self) -> None:
        """RFC 7252 section 5.4.5: what may not repeat is taken once."""
        self.assertEqual(request(more=[*token(b"one"), *token(b"two")]).access_token, "one")

    def test_in_the_query(self) -> None:
        """Synapse takes it there, too; it does not stick."""
        sticky = StickyState()
        self.assertEqual(request(sticky=sticky, query=("access_token=one",)).query, b"access_token=one")
        self.assertIsNone(sticky.token)

    def test_forget(self) -> None:
        sticky = StickyState(token="one")
        sticky.forget_token()
        self.assertIsNone(request(sticky=sticky).access_token)

    def test_repr_hides_it(self) -> None:
        self.assertNotIn("s3cret", repr(StickyState(token="s3cret")))
        error = refusal(more=token(b"s3 cret"))
        self.assertNotIn("cret", repr(error) + str(error))


class NoteTokenTests(SynchronousTestCase):
    """The token in force from one message on."""

    def test_rows(self) -> None:
        rows: tuple[tuple[list[tuple[int, bytes]], str | None, str | None], ...] = (
            ([], None, None),
            ([], "old", "old"),
            (token(b"new"), "old", "new"),
            (token(b"Bearer new"), None, "new"),
            (token(b""), "old", None),
        )
        for pairs, before, wanted in rows:
            sticky = StickyState(token=before)
            note_token(pairs, sticky)
            self.assertEqual(sticky.token, wanted)

    def test_refused(self) -> None:
        for value in (b"a b", b"x" * 9):
            sticky = StickyState(token="old")
            self.assertRaises(
                MappingError, note_token, token(value), sticky, MappingLimits(max_token_length=8)
            )
            self.assertIsNone(sticky.token)


class KeyVersionTests(SynchronousTestCase):
    """Option 257, and what a client's own bodies say."""

    def test_text_keys_at_first(self) -> None:
        """A first GET has no body: its answer has text keys."""
        self.assertIsNone(request().reply.key_version)
        self.assertIsNone(request(PUT, TEXT_KEYS, content_format=60).reply.key_version)

    def test_from_the_first_integer_key_on(self) -> None:
        sticky = StickyState()
        request(sticky=sticky)
        self.assertEqual(request(PUT, INTEGER_KEYS, sticky, content_format=60).reply.key_version, 1)
        self.assertEqual(request(sticky=sticky).reply.key_version, 1)
        self.assertEqual(request(PUT, TEXT_KEYS, sticky, content_format=60).reply.key_version, 1)
        self.assertIsNone(request().reply.key_version)

    def test_announced(self) -> None:
        sticky = StickyState()
        self.assertEqual(request(sticky=sticky, more=version(b"\x01")).reply.key_version, 1)
        self.assertEqual(request(sticky=sticky).reply.key_version, 1)

    def test_zero_is_text_keys_whatever_is_sent(self) -> None:
        sticky = StickyState()
        request(PUT, INTEGER_KEYS, sticky, content_format=60)
        for value in (b"", b"\x00"):
            self.assertIsNone(request(sticky=sticky, more=version(value)).reply.key_version)
            self.assertIsNone(request(PUT, INTEGER_KEYS, sticky, content_format=60).reply.key_version)
        self.assertEqual(request(sticky=sticky, more=version(b"\x01")).reply.key_version, 1)

    def test_unknown_versions(self) -> None:
        """The option is critical, so a version that is not here is refused, not ignored."""
        for value in (b"\x02", b"\xff", b"\x01\x00", b"\xff" * 8):
            sticky = StickyState(announced_key_version=1)
            error = refusal(sticky=sticky, more=version(value))
            self.assertEqual((error.code, error.errcode), (0x82, "M_INVALID_PARAM"))
            self.assertEqual(request(sticky=sticky).reply.key_version, 1)

    def test_json_has_no_key_version(self) -> None:
        sticky = StickyState(announced_key_version=1)
        self.assertIsNone(request(sticky=sticky, accept=50).reply.key_version)
        self.assertEqual(refusal(FETCH, b"{}", sticky, content_format=50).reply, ReplyFormat(50, None))
        self.assertEqual(request(sticky=sticky).reply.key_version, 1)

    def test_errors_use_the_keys_too(self) -> None:
        error = refusal(FETCH, sticky=StickyState(used_integer_keys=True))
        self.assertEqual(error.reply, ReplyFormat(60, 1))

    def test_a_body_that_is_refused_says_nothing(self) -> None:
        sticky = StickyState()
        refusal(PUT, INTEGER_KEYS + b"\x00", sticky, content_format=60)
        self.assertIsNone(request(sticky=sticky).reply.key_version)
