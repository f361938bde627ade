# SPDX-License-Identifier: AGPL-3.0-or-later
"""Bodies by Content-Format: CBOR (60), compressed CBOR (11060) and JSON (50), read and written.

RFC 7252 section 12.3 and its registry; MSC3079.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import attrs

from synapse_lb.msc3079 import cbor, codes
from synapse_lb.msc3079.compression import deflate, inflate, most_inflated
from synapse_lb.msc3079.errors import CborError, CompressionError, MappingError
from synapse_lb.msc3079.messages import ReplyFormat
from synapse_lb.msc3079.options import FORMAT_CBOR, FORMAT_CBOR_DEFLATE, FORMAT_JSON
from synapse_lb.msc3079.secrecy import holds_secret

NOT_JSON: Final = "M_NOT_JSON"
BAD_JSON: Final = "M_BAD_JSON"

DEFAULT_MAX_INFLATED: Final = 1 << 20
"""B: what a compressed body may become."""

_MIN_DEFLATED: Final = 48
"""B: no CBOR shorter than this has become shorter yet."""

_JSON_WHITESPACE: Final = b" \t\r\n"


@attrs.frozen
class Body:
    """A body that was read.

    Attributes:
        value: JSON value.
        content_format: What it was written in, 60, 11060 or 50.
        used_integer_keys: Whether its maps had integer keys (CBOR only).
    """

    value: Any = attrs.field(repr=False)
    content_format: int
    used_integer_keys: bool = False


def sniff(payload: bytes) -> int:
    """Guess the format of a body that has no Content-Format.

    The two cannot be confused: the bytes that open a JSON object or array are in CBOR the heads of
    strings with a 64-bit length.
    """
    return FORMAT_JSON if payload.lstrip(_JSON_WHITESPACE)[:1] in (b"{", b"[") else FORMAT_CBOR


def read_body(
    payload: bytes,
    content_format: int | None,
    max_depth: int,
    max_inflated: int = DEFAULT_MAX_INFLATED,
) -> Body:
    """Read a body that is not empty.

    Args:
        payload: The whole body.
        content_format: Its Content-Format, or None if there was none: then the bytes tell.
        max_depth: Nested arrays and maps that are allowed.
        max_inflated: Bytes that a compressed body may become.

    Raises:
        MappingError: 4.15 for another format, 4.00 with M_NOT_JSON for what cannot be parsed and with
            M_BAD_JSON for what stands for no JSON value, 4.13 with M_TOO_LARGE for what is compressed and too large.
    """
    if content_format is None:
        content_format = sniff(payload)
    if content_format == FORMAT_CBOR:
        return _read_cbor(payload, max_depth)
    if content_format == FORMAT_CBOR_DEFLATE:
        return attrs.evolve(
            _read_cbor(_inflate(payload, max_inflated), max_depth), content_format=FORMAT_CBOR_DEFLATE
        )
    if content_format == FORMAT_JSON:
        return Body(_read_json(payload, max_depth), FORMAT_JSON)
    raise MappingError(
        codes.UNSUPPORTED_CONTENT_FORMAT,
        NOT_JSON,
        f"Content-Format {content_format} is not supported; use 60 (CBOR), 11060 or 50 (JSON)",
    )


def _inflate(payload: bytes, limit: int) -> bytes:
    try:
        return inflate(payload, limit)
    except CompressionError as error:
        if error.too_large:
            raise MappingError(codes.REQUEST_ENTITY_TOO_LARGE, "M_TOO_LARGE", str(error)) from None
        raise MappingError(codes.BAD_REQUEST, NOT_JSON, str(error)) from None


def _read_cbor(payload: bytes, max_depth: int) -> Body:
    try:
        decoded = cbor.decode(payload, max_depth=max_depth)
    except CborError as error:
        errcode = BAD_JSON if error.well_formed else NOT_JSON
        raise MappingError(codes.BAD_REQUEST, errcode, str(error)) from None
    return Body(decoded.value, FORMAT_CBOR, decoded.used_integer_keys)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("The number is too large for a float")
    return value


def _read_json(payload: bytes, max_depth: int) -> Any:
    try:
        value = json.loads(payload.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        raise MappingError(codes.BAD_REQUEST, NOT_JSON, "Content not JSON") from None
    if payload.count(b"[") + payload.count(b"{") > max_depth and _is_deeper(value, max_depth):
        raise _too_deep()
    return value


def _too_deep() -> MappingError:
    return MappingError(codes.BAD_REQUEST, BAD_JSON, "JSON nested too deeply")


def _is_deeper(value: Any, max_depth: int) -> bool:
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(max_depth):
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, (dict, list))
        ]
    return bool(level)


def write_body(value: Any, reply: ReplyFormat) -> tuple[int, bytes]:
    """Write a JSON value as the requester wants it; what cannot be carried exactly is replaced.

    Returns:
        Its Content-Format and the bytes.

    Raises:
        CborError: the value is none of JSON's.
    """
    if reply.content_format != FORMAT_CBOR:
        return reply.content_format, write_json(value)
    payload = cbor.encode(value, reply.key_version, lossy=True)
    return compressed(value, payload) if reply.deflate else (FORMAT_CBOR, payload)


def compressed(value: Any, payload: bytes, *, request: bool = False) -> tuple[int, bytes]:
    """Compress a body where that saves bytes, and no secret is in it.

    Args:
        value: JSON value.
        payload: The same in CBOR.
        request: Whether it is a request's, which a server does not inflate without bounds (`most_inflated`).

    Returns:
        Its Content-Format, 11060 or else 60, and the bytes.
    """
    if len(payload) < _MIN_DEFLATED or holds_secret(value):
        return FORMAT_CBOR, payload
    shorter = deflate(payload)
    # The number of the format takes one byte more.
    if len(shorter) + 1 >= len(payload) or (
        request and len(payload) > most_inflated(len(shorter), len(payload))
    ):
        return FORMAT_CBOR, payload
    return FORMAT_CBOR_DEFLATE, shorter


def write_json(value: Any) -> bytes:
    """Write a JSON value as compact JSON text in UTF-8.

    Raises:
        CborError: the value is none of JSON's, or nested deeper than Python's encoder goes.
    """
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False, default=_plain_mapping).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise CborError(f"No JSON value: {type(error).__name__}") from None


def _plain_mapping(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(type(value).__name__)
