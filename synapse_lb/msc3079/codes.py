# SPDX-License-Identifier: AGPL-3.0-or-later
"""HTTP methods and statuses against CoAP codes (RFC 7252 section 5.9 and 12.1, RFC 8075 section 7).

RFC 8075 maps CoAP answers to HTTP; here Synapse's HTTP answers become CoAP, and a client maps them
back. Codes are plain integers: class in the upper three bits, detail in the lower five.

Statuses without a CoAP code of their own share one, and the client gets the first named here:

* 200: 202, 203, 206 and every other 2xx but 201, 204 and 205.
* 204: 205.
* 502: every redirect and other 3xx but 304, which a CoAP client could not follow.
* 404: 410. 403: 451. 400: every other 4xx without a code of its own, 402 and 408 among them: CoAP
  has the numbers 4.02 and 4.08, but gives them to options and to block-wise transfers.
* 500: every other 5xx, and what is no final HTTP status at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

GET: Final = 0x01
POST: Final = 0x02
PUT: Final = 0x03
DELETE: Final = 0x04
FETCH: Final = 0x05
PATCH: Final = 0x06

CREATED: Final = 0x41
DELETED: Final = 0x42
VALID: Final = 0x43
CHANGED: Final = 0x44
CONTENT: Final = 0x45
BAD_REQUEST: Final = 0x80
UNAUTHORIZED: Final = 0x81
BAD_OPTION: Final = 0x82
FORBIDDEN: Final = 0x83
NOT_FOUND: Final = 0x84
METHOD_NOT_ALLOWED: Final = 0x85
NOT_ACCEPTABLE: Final = 0x86
REQUEST_ENTITY_INCOMPLETE: Final = 0x88
CONFLICT: Final = 0x89
PRECONDITION_FAILED: Final = 0x8C
REQUEST_ENTITY_TOO_LARGE: Final = 0x8D
UNSUPPORTED_CONTENT_FORMAT: Final = 0x8F
UNPROCESSABLE_ENTITY: Final = 0x96
TOO_MANY_REQUESTS: Final = 0x9D
INTERNAL_SERVER_ERROR: Final = 0xA0
NOT_IMPLEMENTED: Final = 0xA1
BAD_GATEWAY: Final = 0xA2
SERVICE_UNAVAILABLE: Final = 0xA3
GATEWAY_TIMEOUT: Final = 0xA4
PROXYING_NOT_SUPPORTED: Final = 0xA5

CODE_TO_METHOD: Final[Mapping[int, str]] = MappingProxyType(
    {GET: "GET", POST: "POST", PUT: "PUT", DELETE: "DELETE", PATCH: "PATCH"}
)
"""The methods that both sides have. iPATCH (RFC 8132) has no HTTP counterpart in Matrix; FETCH stands for one POST."""

METHOD_TO_CODE: Final[Mapping[str, int]] = MappingProxyType(
    {method: code for code, method in CODE_TO_METHOD.items()}
)

BODILESS_STATUSES: Final = frozenset({204, 205, 304})
"""Statuses whose answer never has a body (RFC 9110 sections 15.3.5, 15.3.6 and 15.4.5)."""

_STATUS_TO_CODE: Final[Mapping[int, int]] = MappingProxyType(
    {
        # 2.05 for every method, DELETE and PUT too: deployed clients know no other success.
        200: CONTENT,
        201: CREATED,
        204: CHANGED,
        205: CHANGED,
        304: VALID,
        400: BAD_REQUEST,
        401: UNAUTHORIZED,
        403: FORBIDDEN,
        404: NOT_FOUND,
        405: METHOD_NOT_ALLOWED,
        406: NOT_ACCEPTABLE,
        409: CONFLICT,  # RFC 8132 section 3.4
        410: NOT_FOUND,
        412: PRECONDITION_FAILED,
        413: REQUEST_ENTITY_TOO_LARGE,
        415: UNSUPPORTED_CONTENT_FORMAT,
        422: UNPROCESSABLE_ENTITY,  # RFC 8132 section 3.4
        429: TOO_MANY_REQUESTS,  # RFC 8516
        451: FORBIDDEN,
        500: INTERNAL_SERVER_ERROR,
        501: NOT_IMPLEMENTED,
        502: BAD_GATEWAY,
        503: SERVICE_UNAVAILABLE,
        504: GATEWAY_TIMEOUT,
    }
)

_CLASS_TO_CODE: Final[Mapping[int, int]] = MappingProxyType({2: CONTENT, 3: BAD_GATEWAY, 4: BAD_REQUEST})

_CODE_TO_STATUS: Final[Mapping[int, int]] = MappingProxyType(
    {
        CREATED: 201,
        DELETED: 200,
        VALID: 304,
        CHANGED: 204,
        CONTENT: 200,
        BAD_REQUEST: 400,
        UNAUTHORIZED: 401,
        BAD_OPTION: 400,
        FORBIDDEN: 403,
        NOT_FOUND: 404,
        METHOD_NOT_ALLOWED: 405,
        NOT_ACCEPTABLE: 406,
        REQUEST_ENTITY_INCOMPLETE: 400,
        CONFLICT: 409,
        PRECONDITION_FAILED: 412,
        REQUEST_ENTITY_TOO_LARGE: 413,
        UNSUPPORTED_CONTENT_FORMAT: 415,
        UNPROCESSABLE_ENTITY: 422,
        TOO_MANY_REQUESTS: 429,
        INTERNAL_SERVER_ERROR: 500,
        NOT_IMPLEMENTED: 501,
        BAD_GATEWAY: 502,
        SERVICE_UNAVAILABLE: 503,
        GATEWAY_TIMEOUT: 504,
        PROXYING_NOT_SUPPORTED: 502,
    }
)


def status_to_code(status: int) -> int:
    """The CoAP code for an HTTP status; the class decides where the table has none."""
    return _STATUS_TO_CODE.get(status, _CLASS_TO_CODE.get(status // 100, INTERNAL_SERVER_ERROR))


def code_to_status(code: int, *, has_body: bool) -> int | None:
    """The HTTP status for a CoAP code.

    Args:
        code: CoAP response code. An unknown one of class 4 or 5 stands for x.00, as RFC 7252 section
            5.9 has it.
        has_body: Whether a payload came with it: 2.04 is 200 with one and 204 without (RFC 8075, table 2).

    Returns:
        The status, or None for a code that is no final answer (a request, 2.31, an unknown 2.xx).
    """
    if code == CHANGED and has_body:
        return 200
    status = _CODE_TO_STATUS.get(code)
    if status is None and code >> 5 in (4, 5):
        return 100 * (code >> 5)
    return status
