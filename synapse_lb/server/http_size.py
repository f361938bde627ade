# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an exchange would have taken over HTTP/1.1: an estimate for the metrics (docs/monitoring.md).

Counted are the heads (RFC 9112 section 2) that no client and no homeserver leave out, and the bodies as compact JSON
without compression. TLS, TCP and what a reverse proxy or a browser adds are not.

To write each answer as JSON only to see its length would cost as much as the answer. So the first answers are, and then
one of `ONE_OF`; what their JSON takes compared to what was sent is taken for what it is with the others.
"""

from __future__ import annotations

import json
from typing import Any, Final

from synapse_lb.msc3079.messages import NO_BODY, MatrixRequest, MatrixResponse

LARGE: Final = 32 * 1024
"""Bytes of an answer as it was sent, above which it is never written as JSON."""

FIRST: Final = 64
"""Answers that are all written as JSON."""

ONE_OF: Final = 17
"""Of so many of those that follow, one is: no number that clients do anything by."""

_ENOUGH: Final = 1 << 20  # bytes of JSON from which on older answers count less and less

_REQUEST_HEAD: Final = len(" HTTP/1.1\r\nHost: matrix.example.com\r\nAccept: */*\r\n\r\n") + 1
_AUTHORIZATION: Final = len("Authorization: Bearer \r\n")
_REQUEST_BODY: Final = len("Content-Type: application/json\r\nContent-Length: 100\r\n")
_RESPONSE_HEAD: Final = len(
    "HTTP/1.1 200 OK\r\n"
    "Server: Synapse/1.150.0\r\n"
    "Date: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
    "Content-Type: application/json\r\n"
    "Cache-Control: no-cache, no-store, must-revalidate\r\n"
    "Content-Length: 100\r\n"
    "Access-Control-Allow-Origin: *\r\n"
    "Access-Control-Allow-Methods: GET, HEAD, POST, PUT, DELETE, OPTIONS\r\n"
    "Access-Control-Allow-Headers: X-Requested-With, Content-Type, Authorization, Date\r\n"
    "Access-Control-Expose-Headers: Synapse-Trace-Id, Server\r\n"
    "\r\n"
)
"""As Synapse writes it."""


class HttpEstimate:
    """Estimates what exchanges take over HTTP; one for each gateway."""

    def __init__(self) -> None:
        self._answers = 0
        self._json = 0
        self._sent = 0

    def of(self, request: MatrixRequest, response: MatrixResponse, sent: int) -> int:
        """Estimate the bytes of an exchange over HTTP/1.1, both ways.

        Args:
            request: what was asked.
            response: what was answered.
            sent: bytes of the answer's body as it was sent.
        """
        if response.body is NO_BODY:
            return _around_answer(request)
        self._answers += 1
        if sent > LARGE or (self._answers > FIRST and self._answers % ONE_OF):
            return _around_answer(request) + (sent * self._json // self._sent if self._sent else sent)
        size = _json_size(response.body, sent)
        if self._json > _ENOUGH:
            self._json //= 2
            self._sent //= 2
        self._json += size
        self._sent += sent
        return _around_answer(request) + size


def _around_answer(request: MatrixRequest) -> int:
    """Bytes of all but the answer's body."""
    query = len(request.query) + 1 if request.query else 0
    size = _REQUEST_HEAD + len(request.method) + len(request.path) + query + _RESPONSE_HEAD
    if request.access_token is not None:
        size += _AUTHORIZATION + len(request.access_token)
    if request.body is not NO_BODY:
        size += _REQUEST_BODY + _json_size(request.body, 0)
    return size


def _json_size(body: Any, otherwise: int) -> int:
    """Bytes of JSON, or another number for what cannot be written: an estimate is no reason to fail."""
    try:
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        return otherwise
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
