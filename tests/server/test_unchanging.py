# SPDX-License-Identifier: AGPL-3.0-or-later
"""Answers that are written once."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.msc3079 import server_mapping
from synapse_lb.msc3079.messages import NO_BODY, MatrixRequest, MatrixResponse, ReplyFormat
from synapse_lb.msc3079.options import FORMAT_CBOR, FORMAT_JSON
from synapse_lb.msc3079.server_mapping import Answer, encode_answer
from synapse_lb.msc3079.x1.aliases import AliasBook, Side
from synapse_lb.server import unchanging
from synapse_lb.server.unchanging import MAX_SIZE, MAX_WRITTEN, UnchangingAnswers

VERSIONS = b"/_matrix/client/versions"
BODY = {"versions": ["v1.1", "v1.12"], "unstable_features": {f"org.example.{n}": True for n in range(20)}}


class UnchangingAnswersTests(SynchronousTestCase):
    """`UnchangingAnswers`."""

    def setUp(self) -> None:
        self.answers = UnchangingAnswers()
        self.written = 0

        def counted(response: MatrixResponse, reply: ReplyFormat) -> Answer:
            self.written += 1
            return encode_answer(response, reply)

        self.patch(unchanging, "encode_answer", counted)

    def encode(
        self, body: Any, reply: ReplyFormat | None = None, *, path: bytes = VERSIONS, status: int = 200
    ) -> Answer:
        """Write an answer, which is what it is without this."""
        reply = reply if reply is not None else ReplyFormat(key_version=1, deflate=True)
        response = MatrixResponse(status, body)
        answer = self.answers.encode(response, MatrixRequest("GET", path, reply=reply))
        self.assertEqual(answer, server_mapping.encode_answer(response, reply))
        return answer

    def test_written_once(self) -> None:
        first = self.encode(BODY)
        self.assertEqual(self.encode({**BODY, "versions": ["v1.1", "v1.12"]}), first)
        self.assertEqual(self.written, 1)

    def test_another_answer(self) -> None:
        """Also one that Python takes for the same, and one whose keys come in another order."""
        for body in (BODY, {**BODY, "x": 1}, {**BODY, "x": True}, {**BODY, "x": 1.0}, {"x": 1, **BODY}):
            self.encode(body)
        self.assertEqual(self.written, 5)

    def test_each_form(self) -> None:
        forms = (
            ReplyFormat(FORMAT_CBOR),
            ReplyFormat(FORMAT_JSON),
            ReplyFormat(FORMAT_CBOR, key_version=1),
            ReplyFormat(FORMAT_CBOR, key_version=1, deflate=True),
            ReplyFormat(FORMAT_CBOR, brief=True),
        )
        for _ in range(2):
            for form in forms:
                self.encode(BODY, form)
        self.assertEqual((self.written, len(self.answers)), (5, 5))

    def test_what_is_not_kept(self) -> None:
        """What may be a user's, errors, x1, what is no JSON value, and what is large."""
        large = {"x": "y" * MAX_SIZE}
        for _ in range(2):
            self.encode({"user_id": "@alice:x"}, path=b"/_matrix/client/v3/account/whoami")
            self.encode({"errcode": "M_UNKNOWN"}, status=500)
            self.encode({"x": object()})
            self.encode(large)
            self.encode(NO_BODY, status=204)
            reply = ReplyFormat(x1=AliasBook(Side.SERVER))
            request = MatrixRequest("GET", VERSIONS, reply=reply)
            self.answers.encode(MatrixResponse(200, BODY), request)
        self.assertEqual((self.written, len(self.answers)), (12, 0))

    def test_bounded(self) -> None:
        self.encode({"x": -1})
        for number in range(MAX_WRITTEN):
            self.encode({"x": number})
            self.encode({"x": MAX_WRITTEN})
        self.assertEqual(len(self.answers), MAX_WRITTEN)
        before = self.written
        self.encode({"x": MAX_WRITTEN})
        self.assertEqual(self.written, before)
        self.encode({"x": -1})
        self.assertEqual(self.written, before + 1)
