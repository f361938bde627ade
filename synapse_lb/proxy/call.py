# SPDX-License-Identifier: AGPL-3.0-or-later
"""An HTTP request as the proxy handles it, and the way that it has to go."""

from __future__ import annotations

import enum
import json
import re
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

import attrs

from synapse_lb.msc3079.mapping import NO_BODY
from synapse_lb.proxy.answers import ProxyError

COAP_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"})

_CLIENT_API: Final = "/_matrix/client/"
_NOT_JSON: Final = re.compile(
    r"/_matrix/client/(v1|unstable/org\.matrix\.msc3916)/media/"  # authenticated media
    r"|/_matrix/client/[^/]+/login/(sso|cas)/"  # redirects to a web page
    r"|/_matrix/client/[^/]+/auth/[^/]+/fallback/"  # web pages
    r"|/_matrix/client/unstable/org\.matrix\.msc4108/rendezvous"  # plain text, ETags
)
"""What MSC3079 leaves out of the client-server API: answers that are no JSON."""

_SYNC: Final = re.compile(r"/_matrix/client/(r0|v3)/sync/?")
SLIDING_SYNC_PATH: Final = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
_HAS_WELL_KNOWN: Final = re.compile(r"/_matrix/client/[^/]+/(login|register)/?")

_DROPPED: Final = re.compile(
    r"/_matrix/client/(r0|v3)/(rooms/[^/]+/(typing/[^/]+|receipt/[^/]+/[^/]+|read_markers)|presence/[^/]+/status)/?"
)


class Way(enum.Enum):
    """Where a request is answered."""

    COAP = "coap"
    SYNC = "sync"
    HTTPS = "https"


@attrs.frozen
class Call:
    """A request.

    Attributes:
        method: upper case.
        path: percent-encoded.
        query: parameters, decoded, without `access_token`.
        target: path and query as they came.
        headers: names (lower case) and values.
        body: its bytes.
        token: the access token, or None.
        host: what the client calls this proxy: the Host header.
    """

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = attrs.field(repr=False)
    target: bytes = attrs.field(repr=False)
    headers: tuple[tuple[bytes, bytes], ...] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)
    token: str | None = attrs.field(repr=False)
    host: str

    @classmethod
    def of(cls, method: bytes, target: bytes, headers: tuple[tuple[bytes, bytes], ...], body: bytes) -> Call:
        """Read a request.

        Raises:
            ProxyError: it is none that a homeserver could understand.
        """
        path, _, raw_query = target.partition(b"?")
        try:
            query = parse_qsl(raw_query.decode("ascii"), keep_blank_values=True, errors="strict")
            text = path.decode("ascii")
        except (UnicodeError, ValueError):
            raise ProxyError(400, "M_INVALID_PARAM", "The path or the query is not UTF-8") from None
        fields = dict(headers)
        return cls(
            method.decode("latin-1").upper(),
            text,
            tuple((name, value) for name, value in query if name != "access_token"),
            target,
            headers,
            body,
            _token(fields.get(b"authorization"), query),
            fields.get(b"host", b"").decode("latin-1"),
        )

    @property
    def way(self) -> Way | None:
        """Where it is answered; None for what no homeserver's client-server API has."""
        if self.path.startswith(_CLIENT_API) and not _NOT_JSON.match(self.path):
            if self.method not in COAP_METHODS:
                return Way.HTTPS
            return Way.SYNC if self.method == "GET" and _SYNC.fullmatch(self.path) else Way.COAP
        return Way.HTTPS if self.path.startswith(("/_matrix/", "/_synapse/client/")) else None

    @property
    def is_sliding_sync(self) -> bool:
        """Whether it is simplified sliding sync (MSC4186)."""
        return self.method == "POST" and self.path == SLIDING_SYNC_PATH

    @property
    def answer_has_well_known(self) -> bool:
        """Whether the answer may tell the client to go elsewhere (`well_known`)."""
        return self.method == "POST" and _HAS_WELL_KNOWN.fullmatch(self.path) is not None

    @property
    def is_dispensable(self) -> bool:
        """Whether `--lean` leaves it out: typing, read receipts and presence of the user's own."""
        return self.method in ("PUT", "POST") and _DROPPED.fullmatch(self.path) is not None

    @property
    def may_be_repeated(self) -> bool:
        """Whether it does no harm if it was run already: PUT has transaction ids, or sets something."""
        return self.method in ("GET", "HEAD", "PUT", "DELETE")

    def json(self) -> Any:
        """The body as a JSON value; `NO_BODY` if there is none.

        Raises:
            ProxyError: it is not JSON.
        """
        if not self.body:
            return NO_BODY
        try:
            return json.loads(self.body.decode("utf-8"), parse_constant=_refuse)
        except (ValueError, RecursionError):
            raise ProxyError(400, "M_NOT_JSON", "Content not JSON.") from None

    def parameter(self, name: str) -> str | None:
        """The first value of a query parameter, or None."""
        return next((value for key, value in self.query if key == name), None)

    @property
    def wait(self) -> float:
        """Seconds that the homeserver is asked to hold the answer back: the `timeout` of a long poll."""
        return milliseconds(self.parameter("timeout")) / 1000

    def http_size(self) -> int:
        """Bytes of the request in HTTP/1.1."""
        line = len(self.method) + len(self.target) + len("  HTTP/1.1\r\n")
        return line + sum(len(name) + len(value) + 4 for name, value in self.headers) + 2 + len(self.body)

    def with_query(self, query: tuple[tuple[str, str], ...]) -> Call:
        """The same with another query."""
        return attrs.evolve(self, query=query, target=f"{self.path}?{urlencode(query)}".encode("ascii"))


def milliseconds(text: str | None) -> int:
    """A `timeout` in a query; 0 for what is none, which is for the homeserver to refuse."""
    return int(text) if text and len(text) < 10 and text.isascii() and text.isdigit() else 0


def _token(authorization: bytes | None, query: list[tuple[str, str]]) -> str | None:
    """The access token: from the header, or from the query as old clients have it.

    Raises:
        ProxyError: it is none.
    """
    token = next((value for name, value in query if name == "access_token"), None)
    if authorization is not None:
        scheme, _, value = authorization.decode("latin-1").partition(" ")
        token = value.strip() if scheme.lower() == "bearer" else token
    if not token:
        return None
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ProxyError(401, "M_UNKNOWN_TOKEN", "Invalid access token passed.")
    return token


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
