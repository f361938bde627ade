# SPDX-License-Identifier: AGPL-3.0-or-later
"""A Matrix request and its answer, free of CoAP and of HTTP's wire form.

Their `repr` shows neither tokens nor bodies nor the query (which may hold `access_token=`), so that they
may be logged.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping
from typing import Any, Final

import attrs

from synapse_lb.msc3079.options import FORMAT_CBOR, MAX_UINT32
from synapse_lb.msc3079.x1.aliases import AliasBook


class NoBody(enum.Enum):
    """The type of `NO_BODY`. An enum, so that type checkers can tell it from a JSON value."""

    NO_BODY = "no body"

    def __repr__(self) -> str:
        return "NO_BODY"


NO_BODY: Final = NoBody.NO_BODY
"""Stands where a body could: there is none. JSON's `null` is a body, and is None."""


@attrs.frozen
class ReplyFormat:
    """How an answer is to be written.

    Attributes:
        content_format: 60 (CBOR) or 50 (JSON).
        key_version: Version of the integer keys in CBOR; None for text keys, always None with JSON.
        deflate: Whether CBOR may become 11060, compressed, where that is shorter; always False with JSON, and where
            there may be a secret.
        x1: The aliases of the association if the answer is to be written in x1, without a Content-Format; else None.
        secret: Whether the resource takes or gives secrets, so that its answer is not compressed in x1 either.
        brief: Whether a success is answered without its body.
    """

    content_format: int = FORMAT_CBOR
    key_version: int | None = None
    deflate: bool = False
    x1: AliasBook | None = attrs.field(default=None, repr=False)
    secret: bool = False
    brief: bool = False


_TIMEOUT: Final = re.compile(rb"(?:^|&)timeout=([^&]*)")


@attrs.frozen
class MatrixRequest:
    """A request as a Matrix server understands it.

    Attributes:
        method: HTTP method, upper case.
        path: Full path, percent-encoded, from its leading slash; ASCII.
        query: Query string, percent-encoded, without the question mark; may be empty.
        body: JSON value, or `NO_BODY`.
        access_token: The token in force for this request, without `Bearer `; visible ASCII only.
        reply: How the answer is to be written.
        is_further: Whether it is the server's own doing: the sync that goes on from an observation's last result.
    """

    method: str
    path: bytes
    query: bytes = attrs.field(default=b"", repr=False)
    body: Any = attrs.field(default=NO_BODY, repr=False)
    access_token: str | None = attrs.field(default=None, repr=False)
    reply: ReplyFormat = ReplyFormat()
    is_further: bool = False

    @property
    def is_long_poll(self) -> bool:
        """Whether the answer may wait on purpose: a sync with a timeout."""
        if b"timeout" not in self.query or not self.path.endswith((b"/sync", b"/events")):
            return False
        return any(value.strip(b"0") for value in _TIMEOUT.findall(self.query))


@attrs.frozen
class MatrixResponse:
    """An answer as a Matrix server gives it.

    Attributes:
        status: HTTP status.
        body: JSON value, or `NO_BODY`.
        retry_after: Seconds until the client may try again (429 and 503), or None.
        authenticated: Whether the server knows by a valid access token who asked; None if it does not say.
    """

    status: int
    body: Any = attrs.field(default=NO_BODY, repr=False)
    retry_after: float | None = None
    authenticated: bool | None = attrs.field(default=None, eq=False, repr=False)


def retry_after_of(body: Any) -> float | None:
    """Seconds until the client may try again, as a Matrix error tells it by `retry_after_ms`.

    Args:
        body: Whatever stands in an answer; of a peer's, any JSON value.

    Returns:
        At most what Max-Age can say (RFC 7252 section 5.10.5: 32 bits), so that it is safe to calculate with. None
        where the body does not tell it: no object, no such key, or no finite number of at least 0.
    """
    milliseconds = body.get("retry_after_ms") if isinstance(body, Mapping) else None
    if not isinstance(milliseconds, int | float) or isinstance(milliseconds, bool):
        return None
    if not 0 <= milliseconds < math.inf:
        return None
    return min(milliseconds, MAX_UINT32 * 1000) / 1000
