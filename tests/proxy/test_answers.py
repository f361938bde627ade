# SPDX-License-Identifier: AGPL-3.0-or-later
"""Answers as a homeserver writes them, and what becomes of CoAP's failures; where the homeserver is."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.client import errors
from synapse_lb.client.discovery import Discovered, Discovery
from synapse_lb.client.uri import parse_server
from synapse_lb.msc3079.mapping import MatrixResponse
from synapse_lb.proxy.answers import Answer, ProxyError, client_error, matrix_answer
from synapse_lb.proxy.call import Call
from synapse_lb.proxy.filters import lean_query
from synapse_lb.proxy.home import Home, Place
from synapse_lb.proxy.options import ProxyOptions
from synapse_lb.proxy.proxy import _with_own_url_in_text


class AnswersTests(SynchronousTestCase):
    def test_bodies(self) -> None:
        """Every answer that may have a body is JSON."""
        for response, body in (
            (MatrixResponse(200), b"{}"),
            (MatrixResponse(200, None), b"null"),
            (MatrixResponse(404, {"a": ["ä", 1]}), '{"a":["ä",1]}'.encode()),
            (MatrixResponse(204), b""),
        ):
            answer = matrix_answer(response)
            self.assertEqual((answer.status, answer.body), (response.status, body))
            self.assertEqual(dict(answer.headers).get(b"Content-Type"), b"application/json" if body else None)

    def test_a_text_that_is_no_unicode(self) -> None:
        """JSON can name lone surrogates, and so can the answer."""
        answer = matrix_answer(MatrixResponse(200, {"a": "\ud800", "b": "\u00e4"}))
        self.assertEqual(json.loads(answer.body), {"a": "\ud800", "b": "\u00e4"})

    def test_retry_after(self) -> None:
        answer = ProxyError(429, "M_LIMIT_EXCEEDED", "no", 1.2).answer()
        self.assertEqual(dict(answer.headers)[b"Retry-After"], b"2")
        self.assertEqual(json.loads(answer.body)["retry_after_ms"], 1200)

    def test_failures_of_coap(self) -> None:
        for error, status, errcode in (
            (errors.BadRequest("x"), 400, "M_INVALID_PARAM"),
            (errors.RequestTimeout("x"), 504, "M_UNKNOWN"),
            (errors.ConnectTimeout("x"), 504, "M_UNKNOWN"),
            (errors.TooManyRequests("x"), 429, "M_LIMIT_EXCEEDED"),
            (errors.ClientClosed("x"), 503, "M_UNKNOWN"),
            (errors.ConnectionLost("x"), 502, "M_UNKNOWN"),
            (errors.HandshakeError("x"), 502, "M_UNKNOWN"),
            (errors.BadResponse("x"), 502, "M_UNKNOWN"),
        ):
            answer = client_error(error)
            self.assertEqual((answer.status, answer.errcode), (status, errcode), error)


class HomeTests(SynchronousTestCase):
    def find(self, home: Home) -> Any:
        """Where it is."""
        return self.successResultOf(Deferred.fromCoroutine(home.find()))

    def test_as_told(self) -> None:
        home = Home(Clock(), ProxyOptions(coaps="h:1", https="https://h"))
        self.assertEqual(self.find(home), Place("h:1", "https://h"))

    def test_discovered(self) -> None:
        """What was known before is used on when it cannot be asked again."""
        for coap, expected in (("coaps://h:1", "coaps://h:1"), ("coaps://[::1]:2", "coaps://[::1]:2")):
            found = Discovered("https://base", parse_server(coap))
            home = Home(Clock(), ProxyOptions(discover="https://h"))
            self.patch(Discovery, "look_up", lambda _, server, found=found: succeed(found))
            self.assertEqual(self.find(home), Place(expected, "https://base"))
            self.patch(Discovery, "look_up", lambda *_: fail(Failure(errors.DiscoveryError("gone"))))
            self.assertEqual(self.find(home), Place(expected, "https://base"))

    def test_no_coap(self) -> None:
        home = Home(Clock(), ProxyOptions(discover="https://h"))
        self.patch(Discovery, "look_up", lambda *_: succeed(Discovered("https://base", None)))
        self.assertEqual(self.find(home), Place(None, "https://base"))


class ServersTextTests(SynchronousTestCase):
    """What comes over HTTPS, and from clients, and may be anything that JSON can name."""

    def test_an_answer_that_is_nested_too_deeply(self) -> None:
        """It goes on as it is."""
        call = Call.of(b"POST", b"/_matrix/client/v3/login", (), b"{}")
        answer = Answer(200, b"[" * 100_000 + b"]" * 100_000)
        self.assertIs(_with_own_url_in_text(answer, call), answer)

    def test_a_filter_with_a_text_that_is_no_unicode(self) -> None:
        query = lean_query((("filter", '{"x":"\\ud800"}'),))
        self.assertIn("%5Cud800", urlencode(query))
