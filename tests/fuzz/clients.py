# SPDX-License-Identifier: AGPL-3.0-or-later
"""Fuzz targets of the HTTP sides of client and proxy: what servers say of themselves, and what applications ask."""

from __future__ import annotations

import functools
from typing import Any, Final
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from synapse_lb.client import ClientVerification
from synapse_lb.client.dialect import Dialect
from synapse_lb.client.discovery import Discovered, Discovery
from synapse_lb.client.errors import BadRequest, DiscoveryError
from synapse_lb.client.https import HttpsResponse, HttpsTransport
from synapse_lb.client.sticky import Carried
from synapse_lb.msc3079.messages import NO_BODY, MatrixResponse
from synapse_lb.proxy.answers import ProxyError, matrix_answer
from synapse_lb.proxy.call import Call
from synapse_lb.proxy.filters import lean_query, lean_sliding_sync
from tests.fuzz.tape import Tape

SERVER: Final = "https://example.com"
STATUSES: Final = (200, 302, 301, 404, 500)


class _Https:
    """Answers from the tape."""

    def __init__(self) -> None:
        self.tape = Tape(b"")
        self.asked = 0

    def fetch(self, method: str, url: str, **_: Any) -> Deferred[HttpsResponse]:
        assert url.isascii()
        assert urlsplit(url).scheme in ("https", "http")
        self.asked += 1
        location = self.tape.sized()
        status = STATUSES[location[0] % len(STATUSES)] if location else 200
        headers = {"location": [location[1:].decode("utf-8", "replace")]}
        return succeed(HttpsResponse(status, headers, self.tape.sized()))


@functools.cache
def _discovery() -> tuple[Discovery, _Https]:
    """One for all executions: it asks each time."""
    clock: Any = Clock()
    discovery = Discovery(clock, verification=ClientVerification.none(), lifetime=0.0)
    https: Any = _Https()
    discovery._https = https
    return discovery, https


def discovery(data: bytes) -> None:
    """Look a server up."""
    finder, https = _discovery()
    https.tape, https.asked = Tape(data), 0
    outcome: list[Discovered | Failure] = []
    finder.look_up(SERVER).addBoth(outcome.append)
    [found] = outcome
    assert https.asked <= 8, "it is led around"
    if isinstance(found, Failure):
        assert found.check(DiscoveryError), found.getTraceback()
        return
    assert urlsplit(found.base_url).scheme == "https"
    assert found.coap is None or (found.coap.port is not None and 0 < found.coap.port < 65536)


@functools.cache
def _transport() -> HttpsTransport:
    """Words requests, and sends none."""
    transport = HttpsTransport(Clock(), ClientVerification.none())

    def sent(*arguments: Any, **more: Any) -> Any:
        return succeed(HttpsResponse(200, {}, b"{}"))

    transport.fetch = sent  # type: ignore[method-assign]  # nothing is sent
    return transport


def proxy_call(data: bytes) -> None:
    """Word a request of an application for both ways, and its body as an answer."""
    tape = Tape(data)
    method, target, authorization, body = (tape.sized() for _ in range(4))
    headers = ((b"authorization", authorization),) if authorization else ()
    try:
        call = Call.of(method, b"/" + target.lstrip(b"/"), headers, body)
        assert call.way is not None or not call.path.startswith("/_matrix/")
        assert 0 <= call.wait < 1e7
        query, value = lean_query(call.query), call.json()
        call.http_size()
        lean_sliding_sync(value)
        call.with_query(query)
    except ProxyError as error:
        assert 400 <= error.answer().status < 600
        return
    if value is not NO_BODY:
        answer = matrix_answer(MatrixResponse(200, value))
        assert answer.body.decode("utf-8")
    outcome: list[Any] = []
    _transport().request(call.method, SERVER, call.path, query, value, call.token).addBoth(outcome.append)
    [done] = outcome
    assert isinstance(done, MatrixResponse) or done.check(BadRequest), done
    for version in (None, 1):
        dialect = Dialect.chosen(version, version is not None, True, False)
        try:
            dialect.request(call.method, call.path, query, value, Carried(token=call.token))
        except BadRequest:
            continue
