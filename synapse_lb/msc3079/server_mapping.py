# SPDX-License-Identifier: AGPL-3.0-or-later
"""The server's direction: CoAP request -> `MatrixRequest`, `MatrixResponse` -> CoAP response.

MSC3079; RFC 7252 sections 5.10 (options) and 6.4/6.5 (URIs); RFC 8075 section 7 (codes).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote, quote_from_bytes

import attrs

from synapse_lb.msc3079 import codes, paths_v1
from synapse_lb.msc3079.bodies import DEFAULT_MAX_INFLATED, read_body, sniff, write_body
from synapse_lb.msc3079.cbor import DEFAULT_MAX_DEPTH
from synapse_lb.msc3079.compression import most_expanded, most_inflated
from synapse_lb.msc3079.errors import CborError, MappingError, UnknownPathError
from synapse_lb.msc3079.extension import X1_WRITTEN, read_extension, read_x1_body, write_x1_body, x1_refusal
from synapse_lb.msc3079.keys_v1 import KEY_VERSION_1
from synapse_lb.msc3079.messages import NO_BODY, MatrixRequest, MatrixResponse, ReplyFormat, retry_after_of
from synapse_lb.msc3079.options import (
    ACCEPT,
    ACCESS_TOKEN,
    CONTENT_FORMAT,
    FORMAT_CBOR,
    FORMAT_CBOR_DEFLATE,
    FORMAT_JSON,
    FORMATS,
    HANDLED_CRITICAL,
    KEY_VERSION,
    MAX_AGE,
    MAX_UINT32,
    URI_PATH,
    URI_QUERY,
    OptionPairs,
    decode_uint,
    encode_uint,
    first,
    first_uint,
)
from synapse_lb.msc3079.secrecy import takes_or_gives_secrets
from synapse_lb.msc3079.sticky import StickyState
from synapse_lb.msc3079.x1 import AliasBook, expand_path, expand_query
from synapse_lb.msc3079.x1.tokens import is_packed, unpack_access_token

CoapTriple = tuple[int, list[tuple[int, bytes]], bytes]
"""A whole CoAP message: code, options in number order, payload."""


@attrs.frozen
class Answer:
    """A whole CoAP response.

    Attributes:
        code: Of the response.
        options: In number order.
        payload: The whole body.
        definitions: Numbers of the aliases that it defines (x1): they may stand alone once it has been read.
    """

    code: int
    options: list[tuple[int, bytes]] = attrs.field(factory=list)
    payload: bytes = attrs.field(default=b"", repr=False)
    definitions: tuple[int, ...] = ()

    @property
    def triple(self) -> CoapTriple:
        """Code, options, payload."""
        return self.code, self.options, self.payload


_UNRECOGNIZED: Final = "M_UNRECOGNIZED"
_INVALID_PARAM: Final = "M_INVALID_PARAM"

_SEGMENT_SAFE: Final = "!$&'()*+,;=:@"
"""What RFC 3986 section 3.3 lets stand in a path segment beside the unreserved characters."""

_PATH_SAFE: Final = "/" + _SEGMENT_SAFE

_QUERY_SAFE: Final = "!$'()*,;:@/?"
"""What may stand in a name or value of a form-encoded query: no `&`, `=`, `+`, which have a meaning there."""

_PLAIN_QUERY: Final = re.compile(rb"[-\w.~!$'()*,;:@/?]*(=[-\w.~!$'()*,;:@/?]*)?", re.ASCII)
"""A name, or a name and a value, in which nothing is to be encoded, as in most."""

_SHORT_PATH: Final = 48
"""Bytes of Uri-Path up to which a path is kept with what it stands for: it has no id of anybody in it, mostly."""

_TOKEN: Final = re.compile(rb"[\x21-\x7e]*\Z")
_NAMES_USER: Final = b"&access_token="
"""A query with this says by itself whose request it is; with the sticky token it would say so twice."""

_BEARER: Final = b"bearer "

SLIDING_SYNC_PATH: Final = b"/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
"""Simplified sliding sync (MSC4186): a POST that changes nothing, so that FETCH (RFC 8132) stands for it too."""

_SLIDING_SYNC: Final = tuple(SLIDING_SYNC_PATH.decode().split("/")[1:])


@attrs.frozen
class MappingLimits:
    """Limits on what a request may hold.

    Attributes:
        max_depth: Nested arrays and maps in a body.
        max_inflated: Bytes that a compressed body may become; see `most_inflated` too.
        max_token_length: Bytes of an access token.
    """

    max_depth: int = attrs.field(default=DEFAULT_MAX_DEPTH, validator=attrs.validators.ge(1))
    max_inflated: int = attrs.field(default=DEFAULT_MAX_INFLATED, validator=attrs.validators.ge(0))
    max_token_length: int = attrs.field(default=4096, validator=attrs.validators.ge(1))


DEFAULT_LIMITS: Final = MappingLimits()


def decode_request(
    code: int,
    options: OptionPairs,
    payload: bytes,
    sticky: StickyState,
    limits: MappingLimits = DEFAULT_LIMITS,
) -> MatrixRequest:
    """Map a whole CoAP request, and remember in `sticky` what it says for later ones.

    What is sticky holds from this request on, even if the request itself is then refused for another
    reason: the client has sent it, and will not send it again.

    Args:
        code: CoAP request code.
        options: All options as (number, value) pairs.
        payload: The whole body; empty for none.
        sticky: The state of this association; changed in place.
        limits: What a body may hold.

    Raises:
        MappingError: the request cannot be served; its `reply` says how to write the answer.
    """
    pairs = list(options)
    try:
        return _decode_request(code, pairs, payload, sticky, limits)
    except MappingError as error:
        error.reply = _error_reply(pairs, payload, sticky)
        raise


def _decode_request(
    code: int, pairs: list[tuple[int, bytes]], payload: bytes, sticky: StickyState, limits: MappingLimits
) -> MatrixRequest:
    note_token(pairs, sticky, limits)
    extension = read_extension(pairs, sticky)
    firsts = dict(reversed(pairs))
    if KEY_VERSION in firsts:
        sticky.announced_key_version = _check_key_version(decode_uint(firsts[KEY_VERSION]))
    _check_critical(pairs, sticky)
    query_values = _query_values(pairs, extension.book)
    method, target = _read_target(
        code, [value for number, value in pairs if number == URI_PATH], extension.book
    )
    query = _read_query(query_values)
    accept = _read_accept(firsts)
    body: Any = NO_BODY
    body_format = FORMAT_CBOR
    content_format = decode_uint(firsts[CONTENT_FORMAT]) if CONTENT_FORMAT in firsts else None
    inflated = most_inflated(len(payload), limits.max_inflated)
    if payload and content_format is None and extension.book is not None:
        expanded = most_expanded(len(payload))
        body = read_x1_body(payload, extension.book, limits.max_depth, inflated, expanded)
    elif payload:
        content = read_body(payload, content_format, limits.max_depth, inflated)
        body, body_format = content.value, content.content_format
        sticky.used_integer_keys = sticky.used_integer_keys or content.used_integer_keys
    if extension.book is None or accept is not None:
        reply = _reply_format(accept or body_format, sticky, secret=target.secret)
    else:
        reply = ReplyFormat(x1=extension.book, secret=target.secret, brief=extension.brief)
    names_its_user = ACCESS_TOKEN not in firsts and _NAMES_USER in b"&" + query
    return MatrixRequest(method, target.path, query, body, None if names_its_user else sticky.token, reply)


@attrs.frozen
class _Target:
    """A path.

    Attributes:
        segments: Of the whole path.
        path: It, percent-encoded.
        secret: Whether its resource takes or gives secrets.
    """

    segments: tuple[str, ...]
    path: bytes
    secret: bool

    @classmethod
    def of(cls, segments: tuple[str, ...]) -> _Target:
        return cls(segments, _path(segments), takes_or_gives_secrets(segments))


def _read_target(code: int, values: list[bytes], book: AliasBook | None) -> tuple[str, _Target]:
    """The HTTP method, and the path.

    FETCH stands for POST where that can be observed (docs/extensions.md), else for nothing.
    """
    method = codes.CODE_TO_METHOD.get(code)
    if method is not None:
        return method, _target(values, book)
    if code == codes.FETCH:
        with suppress(MappingError):
            target = _target(values, book)
            if target.segments == _SLIDING_SYNC:
                return "POST", target
    raise MappingError(codes.METHOD_NOT_ALLOWED, _UNRECOGNIZED, "Unrecognized request method")


def note_token(options: OptionPairs, sticky: StickyState, limits: MappingLimits = DEFAULT_LIMITS) -> None:
    """Remember the access token that a message carries, if any: it is in force from this message on.

    Args:
        options: All options as (number, value) pairs.
        sticky: The state of this association; changed in place.
        limits: How long a token may be.

    Raises:
        MappingError: the option holds no access token. None is in force then.
    """
    token = first(options, ACCESS_TOKEN)
    if token is not None:
        sticky.forget_token()
        sticky.token = _read_token(token, limits.max_token_length)


def _read_token(value: bytes, max_length: int) -> str | None:
    """The token of option 256. An empty one means none: deployed clients log out that way.

    Anything but visible ASCII is refused, so that a token can never break out of a header line; and so is what x1 packs
    if it stands for no token.
    """
    if is_packed(value):
        value = (unpack_access_token(value) or "\0").encode("ascii")
    if value[: len(_BEARER)].lower() == _BEARER:
        value = value[len(_BEARER) :]
    elif value.lower() == _BEARER.strip():
        value = b""
    if len(value) > max_length or not _TOKEN.match(value):
        raise MappingError(codes.BAD_REQUEST, _INVALID_PARAM, "The access token option holds no access token")
    return value.decode("ascii") or None


def _check_key_version(version: int) -> int:
    """Option 257: 1 for the released table, 0 for text keys whatever the client sends itself."""
    if version not in (0, KEY_VERSION_1):
        raise MappingError(codes.BAD_OPTION, _INVALID_PARAM, "The only version of the CBOR keys here is 1")
    return version


def _check_critical(pairs: list[tuple[int, bytes]], sticky: StickyState) -> None:
    """RFC 7252 section 5.4.1: a critical option that nobody serves is an error, never ignored."""
    for number, _ in pairs:
        if number == X1_WRITTEN and sticky.allows_x1:
            continue
        if number & 1 and number not in HANDLED_CRITICAL:
            raise MappingError(codes.BAD_OPTION, _UNRECOGNIZED, f"CoAP option {number} is not supported")


def _target(values: list[bytes], book: AliasBook | None) -> _Target:
    if book is None and sum(map(len, values)) <= _SHORT_PATH:
        return _short_target(tuple(values))
    return _Target.of(_read_segments(values, book))


@lru_cache(maxsize=256)
def _short_target(values: tuple[bytes, ...]) -> _Target:
    """The target of a path that may well be that of many requests, such as that of `/sync`."""
    return _Target.of(_read_segments(list(values), None))


def _read_segments(values: list[bytes], book: AliasBook | None) -> tuple[str, ...]:
    """Uri-Path values -> segments of the whole path. Uri-Path is not percent-encoded on the wire (5.10.1)."""
    try:
        if book is None:
            segments = paths_v1.expand([value.decode("utf-8") for value in values])
        else:
            segments = expand_path(values, book)
    except UnicodeDecodeError:
        raise _no_such_path("Uri-Path is not UTF-8") from None
    except UnknownPathError as error:
        raise _no_such_path(str(error)) from None
    except CborError as error:
        raise x1_refusal(error, _INVALID_PARAM) from None
    if "." in segments or ".." in segments:
        raise _no_such_path("Uri-Path may be neither . nor ..")
    is_client_api = len(segments) > 2 and segments[:2] == ("_matrix", "client")
    if not is_client_api and segments != (".well-known", "matrix", "client"):
        raise _no_such_path("Only the Client-Server API is served over CoAP")
    return segments


def _path(segments: tuple[str, ...]) -> bytes:
    """The percent-encoded path."""
    path = "/" + "/".join(segments)
    if path.count("/") == len(segments):  # none has one in it
        return quote(path, safe=_PATH_SAFE).encode("ascii")
    return "".join("/" + quote(segment, safe=_SEGMENT_SAFE) for segment in segments).encode("ascii")


def _no_such_path(message: str) -> MappingError:
    return MappingError(codes.NOT_FOUND, _UNRECOGNIZED, message)


def _query_values(pairs: list[tuple[int, bytes]], book: AliasBook | None) -> Sequence[bytes]:
    values = [value for number, value in pairs if number == URI_QUERY]
    if book is None:
        return values
    try:
        expanded = expand_query(values, book)
    except CborError as error:
        raise x1_refusal(error, _INVALID_PARAM) from None
    if any(value.partition(b"=")[0] == b"access_token" for value in expanded):
        # What it defines would be nobody's in particular, and so everybody's.
        raise MappingError(codes.BAD_REQUEST, _INVALID_PARAM, "In x1 the access token is in option 256")
    return expanded


def _read_query(values: Sequence[bytes]) -> bytes:
    """Uri-Query values, each `name=value` or `name`, -> query string.

    Literal as RFC 7252 section 6.4 has it, in which percent-encoding is undone before an option is
    written: `%`, `&` and `+` on the wire mean themselves.
    """
    parts = []
    for value in values:
        if _PLAIN_QUERY.fullmatch(value):
            parts.append(value.decode("ascii"))
            continue
        try:
            value.decode("utf-8")
        except UnicodeDecodeError:
            raise MappingError(codes.BAD_REQUEST, _INVALID_PARAM, "Uri-Query is not UTF-8") from None
        parts.append("=".join(quote_from_bytes(part, safe=_QUERY_SAFE) for part in value.split(b"=", 1)))
    return "&".join(parts).encode("ascii")


def _read_accept(firsts: dict[int, bytes]) -> int | None:
    if ACCEPT not in firsts:
        return None
    accept = decode_uint(firsts[ACCEPT])
    if accept not in FORMATS:
        raise MappingError(
            codes.NOT_ACCEPTABLE,
            _INVALID_PARAM,
            "Answers come as 60 (CBOR), 11060 (CBOR, deflate) or 50 (JSON)",
        )
    return accept


def _reply_format(content_format: int, sticky: StickyState, *, secret: bool = True) -> ReplyFormat:
    """How to write an answer; it is not compressed if it may be secret."""
    if content_format == FORMAT_JSON:
        return ReplyFormat(FORMAT_JSON)
    deflate = content_format == FORMAT_CBOR_DEFLATE and not secret
    return ReplyFormat(FORMAT_CBOR, sticky.key_version, deflate)


def _error_reply(pairs: list[tuple[int, bytes]], payload: bytes, sticky: StickyState) -> ReplyFormat:
    """How to answer a request that could not be read: as it asks, or in its own format, or else in CBOR."""
    if first_uint(pairs, ACCEPT) not in FORMATS:
        with suppress(MappingError):
            extension = read_extension(pairs, sticky)
            if extension.book is not None:
                return ReplyFormat(x1=extension.book)
    body_format = first_uint(pairs, CONTENT_FORMAT)
    if payload and body_format is None:
        body_format = sniff(payload)
    wanted = first_uint(pairs, ACCEPT)
    if wanted not in FORMATS:
        wanted = body_format if payload else FORMAT_CBOR
    return _reply_format(FORMAT_JSON if wanted == FORMAT_JSON else FORMAT_CBOR, sticky)


def encode_response(response: MatrixResponse, reply: ReplyFormat) -> CoapTriple:
    """Write an answer; see `encode_answer`."""
    return encode_answer(response, reply).triple


def encode_answer(response: MatrixResponse, reply: ReplyFormat) -> Answer:
    """Write an answer.

    A status that can have a body always gets one: `{}` for an empty success, a Matrix error for an
    empty failure. Max-Age is set only where it says something, from `retry_after`: an answer travels inside
    one DTLS association, where nothing caches it.

    Args:
        response: The answer. Any status from 100 to 599 and beyond is mapped (see `codes`).
        reply: From the request.

    Returns:
        5.00 with M_UNKNOWN if the body is no JSON value.
    """
    code = codes.status_to_code(response.status)
    if response.status in codes.BODILESS_STATUSES or (reply.brief and code >> 5 == 2):
        return Answer(code)
    body = response.body
    if body is NO_BODY:
        body = _default_body(response.status, code)
    try:
        answer = _write(code, body, reply)
    except CborError:
        answer = _write(
            codes.INTERNAL_SERVER_ERROR, _error_body("M_UNKNOWN", "The answer cannot be written"), reply
        )
    if answer.code in (codes.TOO_MANY_REQUESTS, codes.SERVICE_UNAVAILABLE):
        answer.options.extend(_max_age(response))
    return answer


def _write(code: int, body: Any, reply: ReplyFormat) -> Answer:
    if reply.x1 is not None:
        encoded = write_x1_body(body, reply.x1, secret=reply.secret)
        return Answer(code, [], encoded.data, encoded.definitions)
    content_format, payload = write_body(body, reply)
    return Answer(code, [(CONTENT_FORMAT, encode_uint(content_format))], payload)


def encode_error(error: MappingError, reply: ReplyFormat | None = None) -> CoapTriple:
    """Write the answer to a request that could not be mapped.

    Args:
        error: From `decode_request`, or made by the caller.
        reply: How to write it; by default as the error itself says, or else in CBOR with text keys.
    """
    reply = reply or error.reply or ReplyFormat()
    return _write(error.code, _error_body(error.errcode, error.message), reply).triple


def _error_body(errcode: str, message: str) -> dict[str, str]:
    return {"errcode": errcode, "error": message}


def _default_body(status: int, code: int) -> dict[str, str]:
    if code >> 5 == 2:
        return {}
    if 300 <= status < 400:
        return _error_body(
            _UNRECOGNIZED, "The server answers with a redirect, which CoAP cannot carry; use HTTPS"
        )
    return _error_body("M_UNKNOWN", f"The server answers with HTTP status {status} and no body")


def _max_age(response: MatrixResponse) -> list[tuple[int, bytes]]:
    """Max-Age in whole seconds, rounded up (RFC 8516 section 3; RFC 7252 section 5.9.3.4)."""
    retry_after = response.retry_after
    if retry_after is None:
        retry_after = retry_after_of(response.body)
    if retry_after is None or not math.isfinite(retry_after):
        return []
    return [(MAX_AGE, encode_uint(min(max(math.ceil(retry_after), 0), MAX_UINT32)))]
