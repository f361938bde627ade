# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the proxy answers over HTTP: a homeserver's JSON and headers, and its own errors as Matrix errors."""

from __future__ import annotations

import json
import math
from typing import Any, Final

import attrs

from synapse_lb.client import errors
from synapse_lb.msc3079.mapping import NO_BODY, MatrixResponse

CORS_HEADERS: Final = (
    (b"Access-Control-Allow-Origin", b"*"),
    (b"Access-Control-Allow-Methods", b"GET, HEAD, POST, PUT, DELETE, OPTIONS"),
    (b"Access-Control-Allow-Headers", b"X-Requested-With, Content-Type, Authorization, Date"),
)
"""Matrix client-server API, "Web Browser Clients"."""

JSON_TYPE: Final = b"application/json"
_NEVER_STORE: Final = (b"Cache-Control", b"no-cache, no-store, must-revalidate")
_BODILESS: Final = frozenset({204, 205, 304})


@attrs.frozen
class Answer:
    """A whole answer.

    Attributes:
        status: HTTP status.
        body: its bytes.
        headers: names and values, Content-Length left out.
    """

    status: int
    body: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()


class ProxyError(Exception):
    """The proxy has no answer of the homeserver's for a request.

    Args:
        status: HTTP status.
        errcode: Matrix's.
        message: for people.
        retry_after: s until the client may try again, or None.
    """

    def __init__(self, status: int, errcode: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.errcode = errcode
        self.retry_after = retry_after

    def answer(self) -> Answer:
        """The answer that says so."""
        body: dict[str, Any] = {"errcode": self.errcode, "error": str(self)}
        if self.retry_after is not None:
            body["retry_after_ms"] = math.ceil(self.retry_after * 1000)
        return matrix_answer(MatrixResponse(self.status, body, self.retry_after))


def matrix_answer(response: MatrixResponse) -> Answer:
    """What a homeserver would send over HTTP."""
    headers: list[tuple[bytes, bytes]] = [(b"Content-Type", JSON_TYPE), _NEVER_STORE, *CORS_HEADERS]
    if response.retry_after is not None:
        headers.append((b"Retry-After", b"%d" % math.ceil(response.retry_after)))
    if response.status in _BODILESS:
        return Answer(response.status, b"", tuple(headers[1:]))
    # A homeserver always sends JSON; nothing at all becomes the empty object.
    body = {} if response.body is NO_BODY else response.body
    return Answer(response.status, json_text(body).encode("utf-8"), tuple(headers))


def json_text(value: Any) -> str:
    """A JSON value as compact text that has a form in UTF-8, also where one of its texts has none (lone surrogates)."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"))
    return text


def preflight() -> Answer:
    """The answer to OPTIONS."""
    return Answer(204, b"", CORS_HEADERS)


def client_error(error: errors.ClientError) -> ProxyError:
    """What an HTTP client is told of a failure of CoAP's."""
    text = f"Low-bandwidth proxy: {error}"
    if isinstance(error, errors.BadRequest):
        return ProxyError(400, "M_INVALID_PARAM", text)
    if isinstance(error, errors.RequestTimeout | errors.ConnectTimeout):
        return ProxyError(504, "M_UNKNOWN", text)
    if isinstance(error, errors.TooManyRequests):
        return ProxyError(429, "M_LIMIT_EXCEEDED", text, 1.0)
    if isinstance(error, errors.ClientClosed):
        return ProxyError(503, "M_UNKNOWN", text, 1.0)
    return ProxyError(502, "M_UNKNOWN", text)
