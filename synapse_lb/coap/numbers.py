# SPDX-License-Identifier: AGPL-3.0-or-later
"""The numbers of CoAP: message types, codes and option numbers (RFC 7252 sections 3 and 12).

Codes travel through the package as plain `int`, since a peer may send any of the 256; `Code` names those that
are registered. The same holds for option numbers and `OptionNumber`.
"""

from __future__ import annotations

from enum import IntEnum


class Type(IntEnum):
    """Message types (RFC 7252 section 3)."""

    CON = 0
    """Confirmable: is retransmitted until it is acknowledged or rejected."""
    NON = 1
    """Non-confirmable."""
    ACK = 2
    """Acknowledgement, empty or with a piggybacked response."""
    RST = 3
    """Reset: the message could not be processed."""


class Code(IntEnum):
    """Registered codes, `class << 5 | detail` (RFC 7252 section 12.1; RFC 7959, 8132, 8516 and 8768)."""

    EMPTY = 0x00

    GET = 0x01
    POST = 0x02
    PUT = 0x03
    DELETE = 0x04
    FETCH = 0x05
    PATCH = 0x06
    IPATCH = 0x07

    CREATED = 0x41
    DELETED = 0x42
    VALID = 0x43
    CHANGED = 0x44
    CONTENT = 0x45
    CONTINUE = 0x5F

    BAD_REQUEST = 0x80
    UNAUTHORIZED = 0x81
    BAD_OPTION = 0x82
    FORBIDDEN = 0x83
    NOT_FOUND = 0x84
    METHOD_NOT_ALLOWED = 0x85
    NOT_ACCEPTABLE = 0x86
    REQUEST_ENTITY_INCOMPLETE = 0x88
    CONFLICT = 0x89
    PRECONDITION_FAILED = 0x8C
    REQUEST_ENTITY_TOO_LARGE = 0x8D
    UNSUPPORTED_CONTENT_FORMAT = 0x8F
    UNPROCESSABLE_ENTITY = 0x96
    TOO_MANY_REQUESTS = 0x9D

    INTERNAL_SERVER_ERROR = 0xA0
    NOT_IMPLEMENTED = 0xA1
    BAD_GATEWAY = 0xA2
    SERVICE_UNAVAILABLE = 0xA3
    GATEWAY_TIMEOUT = 0xA4
    PROXYING_NOT_SUPPORTED = 0xA5
    HOP_LIMIT_REACHED = 0xA8


class OptionNumber(IntEnum):
    """Registered option numbers that this package knows; their formats are in `options.REGISTRY`."""

    IF_MATCH = 1
    URI_HOST = 3
    ETAG = 4
    IF_NONE_MATCH = 5
    OBSERVE = 6
    URI_PORT = 7
    LOCATION_PATH = 8
    OSCORE = 9
    URI_PATH = 11
    CONTENT_FORMAT = 12
    MAX_AGE = 14
    URI_QUERY = 15
    ACCEPT = 17
    Q_BLOCK1 = 19
    LOCATION_QUERY = 20
    BLOCK2 = 23
    BLOCK1 = 27
    SIZE2 = 28
    Q_BLOCK2 = 31
    PROXY_URI = 35
    PROXY_SCHEME = 39
    SIZE1 = 60
    ECHO = 252
    NO_RESPONSE = 258
    REQUEST_TAG = 292


MAX_TOKEN_LENGTH = 8
"""Bytes (RFC 7252 section 3: lengths 9-15 are reserved)."""

MAX_OPTION_NUMBER = 0xFFFF
"""Option numbers are 16 bits wide (RFC 7252 section 12.2)."""

MAX_MESSAGE_ID = 0xFFFF
"""Message ids are 16 bits wide (RFC 7252 section 3)."""


def code_to_text(code: int) -> str:
    """Write a code as the RFCs do.

    Args:
        code: 0-255.

    Returns:
        `c.dd`, for example `"4.04"` (RFC 7252 section 3).
    """
    return f"{code >> 5}.{code & 0x1F:02}"


def is_request(code: int) -> bool:
    """Whether the code is a method, 0.01-0.31 (RFC 7252 section 12.1.1)."""
    return 0x01 <= code <= 0x1F


def is_response(code: int) -> bool:
    """Whether the code is a response code, 2.00-5.31 (RFC 7252 section 12.1.2)."""
    return 0x40 <= code <= 0xBF


def is_success(code: int) -> bool:
    """Whether the code is of class 2 (RFC 7252 section 5.9.1)."""
    return code >> 5 == 2


def suppresses(no_response: int, code: int) -> bool:
    """Whether the value of No-Response says that responses of this class are not wanted (RFC 7967 section 2.1)."""
    return bool(no_response >> ((code >> 5) - 1) & 1)
