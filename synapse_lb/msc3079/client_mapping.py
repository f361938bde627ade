# SPDX-License-Identifier: AGPL-3.0-or-later
"""The client's direction: a Matrix request -> CoAP request, CoAP response -> `MatrixResponse`.

MSC3079; RFC 7252 section 6.4 (from a URI to options); RFC 8075 section 7 (codes).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_to_bytes

import attrs

from synapse_lb.msc3079 import cbor, codes, paths_v1
from synapse_lb.msc3079.bodies import compressed, read_body, write_json
from synapse_lb.msc3079.errors import CborError, MappingError, UnknownPathError
from synapse_lb.msc3079.extension import X1, X1_BRIEF, X1_WRITTEN, read_x1_body, write_x1_body
from synapse_lb.msc3079.messages import NO_BODY, MatrixResponse, retry_after_of
from synapse_lb.msc3079.options import (
    ACCEPT,
    ACCESS_TOKEN,
    CBOR_FORMATS,
    CONTENT_FORMAT,
    FORMAT_CBOR,
    FORMAT_JSON,
    KEY_VERSION,
    MAX_AGE,
    MAX_UINT32,
    MAX_URI_OPTION,
    URI_PATH,
    URI_QUERY,
    OptionPairs,
    encode_uint,
    first_uint,
)
from synapse_lb.msc3079.secrecy import takes_or_gives_secrets
from synapse_lb.msc3079.x1 import X1_VERSION, AliasBook, compress_path, compress_query
from synapse_lb.msc3079.x1.tokens import pack_access_token

RESPONSE_MAX_DEPTH: Final = 1000
"""Nested arrays and maps that an answer may have: as much as Python's JSON, so that an event which
reached the server over HTTP can be read here too."""

RESPONSE_MAX_INFLATED: Final = 64 << 20
"""B: what a compressed answer may become."""

Query = Mapping[str, "str | Sequence[str]"] | Iterable["tuple[str, str]"]
"""Query parameters: a mapping, whose values may be lists for repeated names, or pairs. Not percent-encoded."""


def encode_request(
    method: str,
    path: str | bytes,
    query: Query | None = None,
    body: Any = NO_BODY,
    *,
    token: str | None = None,
    key_version: int | None = None,
    announce_key_version: int | None = None,
    offer_x1: bool = False,
    path_codes: bool = True,
    content_format: int = FORMAT_CBOR,
    accept: int | None = None,
) -> tuple[int, list[tuple[int, bytes]], bytes]:
    """Map a Matrix request to a whole CoAP request of MSC3079.

    Args:
        method: HTTP method.
        path: Percent-encoded path from its leading slash, as in a URL; may have a query after `?`, which
            comes before `query`. Dot segments cannot be carried.
        query: Further query parameters.
        body: JSON value, or `NO_BODY`.
        token: Access token for option 256; None leaves it out (the sticky one holds), "" ends its use.
        key_version: Integer keys of the body in CBOR; None for text keys.
        announce_key_version: Value of option 257; None leaves it out. The option is critical: only for
            peers that advertise MSC3079.
        offer_x1: Say that an answer in x1 is welcome, to a server that need not know what that is.
        path_codes: Use a path code where the table has one.
        content_format: 60 (CBOR), 11060 (compressed, where that saves bytes and there is no secret; else 60) or 50
            (JSON), of the body.
        accept: Format of the answer; None leaves it to the server, which answers as it was asked.

    Returns:
        Code, options in number order, payload.

    Raises:
        MappingError: 4.00 for what CoAP cannot carry.
    """
    code = codes.METHOD_TO_CODE.get(method.upper())
    if code is None:
        raise _unsendable(f"Method {method} has no CoAP code")
    raw_path, _, raw_query = _to_bytes(path).partition(b"?")
    segments = _read_path(raw_path)
    written = paths_v1.compress(segments) if path_codes else segments
    options = [(URI_PATH, _fit(segment.encode(), "path segment")) for segment in written]
    payload = b""
    if body is not NO_BODY:
        content_format, payload = _write_body(body, content_format, key_version, segments)
        options.append((CONTENT_FORMAT, encode_uint(content_format)))
    options += [(URI_QUERY, part) for part in _write_query(raw_query, query)]
    if accept is not None:
        options.append((ACCEPT, encode_uint(accept)))
    if token is not None:
        options.append((ACCESS_TOKEN, _write_token(token)))
    if announce_key_version is not None:
        options.append((KEY_VERSION, encode_uint(announce_key_version)))
    if offer_x1:
        options.append((X1, encode_uint(X1_VERSION)))
    return code, options, payload


@attrs.frozen
class X1Request:
    """A whole CoAP request of x1.

    Attributes:
        code: CoAP request code.
        options: In number order.
        payload: The whole body.
        definitions: Numbers of the aliases that it defines: they may stand alone once it was served.
    """

    code: int
    options: list[tuple[int, bytes]]
    payload: bytes = attrs.field(repr=False)
    definitions: tuple[int, ...] = ()


def encode_x1_request(
    method: str,
    path: str | bytes,
    query: Query | None,
    body: Any,
    book: AliasBook,
    *,
    token: str | None = None,
    announce: bool = False,
    brief: bool = False,
) -> X1Request:
    """Map a Matrix request to a whole CoAP request of x1 (docs/extensions.md).

    Args:
        method: As of `encode_request`.
        path: As of `encode_request`.
        query: As of `encode_request`.
        body: As of `encode_request`.
        book: The aliases of the association.
        token: As of `encode_request`.
        announce: Say that it is written so, since the server of this association may not know yet.
        brief: Ask for a success without its body.

    Raises:
        MappingError: 4.00 for what CoAP cannot carry.
    """
    code = codes.METHOD_TO_CODE.get(method.upper())
    if code is None:
        raise _unsendable(f"Method {method} has no CoAP code")
    raw_path, _, raw_query = _to_bytes(path).partition(b"?")
    segments = _expanded(_read_path(raw_path))
    payload = b""
    definitions: tuple[int, ...] = ()
    try:
        written = compress_path(segments, book)
        asked = compress_query(_write_query(raw_query, query), book)
        if body is not NO_BODY:
            encoded = write_x1_body(body, book, secret=takes_or_gives_secrets(segments), request=True)
            payload, definitions = encoded.data, encoded.definitions
    except CborError as error:
        raise _unsendable(str(error)) from None
    options = [(URI_PATH, _fit(value, "path segment")) for value in written.values]
    options += [(URI_QUERY, value) for value in asked.values]
    if token is not None:
        options.append((ACCESS_TOKEN, pack_access_token(token) or _write_token(token)))
    if announce:
        options.append((X1_WRITTEN, encode_uint(X1_VERSION)))
    if brief:
        options.append((X1_BRIEF, b""))
    return X1Request(code, options, payload, (*written.definitions, *asked.definitions, *definitions))


def _unsendable(message: str) -> MappingError:
    return MappingError(codes.BAD_REQUEST, "M_INVALID_PARAM", message)


def _to_bytes(path: str | bytes) -> bytes:
    try:
        return path.encode() if isinstance(path, str) else path
    except UnicodeEncodeError:
        raise _unsendable("A path with a lone surrogate is not Unicode") from None


def _read_path(raw: bytes) -> tuple[str, ...]:
    """The segments of a percent-encoded path."""
    if not raw.startswith(b"/"):
        raise _unsendable("A path begins with a slash")
    try:
        segments = tuple(unquote_to_bytes(part).decode() for part in raw[1:].split(b"/"))
    except UnicodeDecodeError:
        raise _unsendable("A path segment is not UTF-8") from None
    if "." in segments or ".." in segments:
        raise _unsendable("A path segment that is . or .. cannot be sent over CoAP")
    return segments


def _expanded(segments: tuple[str, ...]) -> tuple[str, ...]:
    """The whole path; as it is if the caller gave a path code that cannot be expanded."""
    try:
        return paths_v1.expand(segments)
    except UnknownPathError:
        return segments


def _write_query(raw: bytes, query: Query | None) -> list[bytes]:
    try:
        pairs = parse_qsl(raw.decode(), keep_blank_values=True, errors="strict")
        for name, value in _pairs(query):
            pairs.append((name, value))
        return [_fit(f"{name}={value}".encode(), f"query parameter {name}") for name, value in pairs]
    except UnicodeError:
        raise _unsendable("A query parameter is not Unicode text") from None


def _pairs(query: Query | None) -> Iterable[tuple[str, str]]:
    if query is None:
        return
    for name, value in query.items() if isinstance(query, Mapping) else query:
        if isinstance(value, str):
            yield name, value
        else:
            for each in value:
                yield name, each


def _fit(value: bytes, what: str) -> bytes:
    """RFC 7252 section 5.10, table 4: Uri-Path and Uri-Query hold 255 bytes at most."""
    if len(value) > MAX_URI_OPTION:
        raise _unsendable(f"A {what} of {len(value)} bytes cannot be sent over CoAP; {MAX_URI_OPTION} can")
    return value


def _write_token(token: str) -> bytes:
    if not token.isascii() or not token.isprintable() or " " in token:
        raise _unsendable("An access token is visible ASCII")
    return token.encode("ascii")


def _write_body(
    body: Any, content_format: int, key_version: int | None, segments: tuple[str, ...]
) -> tuple[int, bytes]:
    try:
        if content_format == FORMAT_JSON:
            return FORMAT_JSON, write_json(body)
        if content_format not in CBOR_FORMATS:
            raise _unsendable(f"Content-Format {content_format} is none of 60, 11060 (CBOR) and 50 (JSON)")
        payload = cbor.encode(body, key_version)
    except CborError as error:
        raise _unsendable(str(error)) from None
    if content_format == FORMAT_CBOR or takes_or_gives_secrets(_expanded(segments)):
        return FORMAT_CBOR, payload
    return compressed(body, payload, request=True)


def decode_response(
    code: int,
    options: OptionPairs,
    payload: bytes,
    *,
    max_inflated: int = RESPONSE_MAX_INFLATED,
    book: AliasBook | None = None,
) -> MatrixResponse:
    """Map a whole CoAP response to the Matrix answer that it carries.

    A failure without Content-Format is the CoAP layer's own, and its payload text for people (RFC 7252
    section 5.5.2): it becomes a Matrix error with M_UNKNOWN. CBOR that claims to be JSON, as the
    reference proxy sends it, is read as CBOR.

    Args:
        code: CoAP response code.
        options: All options as (number, value) pairs.
        payload: The whole body; empty for none.
        max_inflated: Bytes that a compressed body may become.
        book: The aliases of the association where a body without Content-Format is one of x1; else None.

    Raises:
        MappingError: 5.02 for an answer that cannot be read.
    """
    pairs = list(options)
    status = codes.code_to_status(code, has_body=bool(payload))
    if status is None:
        raise _unreadable(f"CoAP code {code >> 5}.{code & 31:02d} is no final answer")
    content_format = first_uint(pairs, CONTENT_FORMAT)
    body: Any = NO_BODY
    if content_format is None and payload and book is not None:
        body = _read_x1_body(payload, book, max_inflated)
    elif status not in codes.BODILESS_STATUSES and payload:
        body = _read_body(payload, content_format, max_inflated, is_error=status >= 400)
    return MatrixResponse(status, body, _retry_after(status, body, pairs))


def _unreadable(message: str) -> MappingError:
    return MappingError(codes.BAD_GATEWAY, "M_UNKNOWN", message)


def _read_body(payload: bytes, content_format: int | None, max_inflated: int, *, is_error: bool) -> Any:
    if content_format is None and is_error and not 0xA0 <= payload[0] <= 0xBF and payload[:1] != b"{":
        return {"errcode": "M_UNKNOWN", "error": payload.decode("utf-8", "replace")}
    if content_format == FORMAT_JSON and payload[0] >= 0x80:  # no JSON text begins so
        content_format = FORMAT_CBOR
    try:
        return read_body(payload, content_format, RESPONSE_MAX_DEPTH, max_inflated).value
    except MappingError as error:
        raise _unreadable(error.message) from None


def _read_x1_body(payload: bytes, book: AliasBook, max_inflated: int) -> Any:
    try:
        return read_x1_body(payload, book, RESPONSE_MAX_DEPTH, max_inflated)
    except MappingError as error:
        raise _unreadable(error.message) from None


def _retry_after(status: int, body: Any, pairs: list[tuple[int, bytes]]) -> float | None:
    """Seconds to wait: exactly from Matrix's retry_after_ms, or else from Max-Age."""
    if status not in (429, 503):
        return None
    seconds = retry_after_of(body)
    if seconds is not None:
        return seconds
    max_age = first_uint(pairs, MAX_AGE)
    # Longer than 4 bytes it is no Max-Age, and elective (RFC 7252 section 5.4.3).
    return None if max_age is None or max_age > MAX_UINT32 else float(max_age)
