# SPDX-License-Identifier: AGPL-3.0-or-later
"""MSC3079, the low-bandwidth Client-Server API, as pure functions and tables.

Bodies (`cbor`), paths (`paths_v1`), options, codes and what is sticky: everything the MSC says, with no I/O,
no Twisted and no CoAP endpoint. Options travel as (number, value) pairs and codes as integers.
"""

from __future__ import annotations

from synapse_lb.msc3079.errors import CborError, MappingError, MscError, UnknownPathError
from synapse_lb.msc3079.mapping import (
    NO_BODY,
    CoapTriple,
    MappingLimits,
    MatrixRequest,
    MatrixResponse,
    NoBody,
    ReplyFormat,
    decode_request,
    decode_response,
    encode_error,
    encode_request,
    encode_response,
)
from synapse_lb.msc3079.options import ACCESS_TOKEN, KEY_VERSION
from synapse_lb.msc3079.sticky import StickyState

__all__ = [
    "ACCESS_TOKEN",
    "KEY_VERSION",
    "NO_BODY",
    "CborError",
    "CoapTriple",
    "MappingError",
    "MappingLimits",
    "MatrixRequest",
    "MatrixResponse",
    "MscError",
    "NoBody",
    "ReplyFormat",
    "StickyState",
    "UnknownPathError",
    "decode_request",
    "decode_response",
    "encode_error",
    "encode_request",
    "encode_response",
]
