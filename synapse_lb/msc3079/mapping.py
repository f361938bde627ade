# SPDX-License-Identifier: AGPL-3.0-or-later
"""Matrix over HTTP <-> MSC3079 over CoAP, in both directions.

Pure functions from whole CoAP messages (code, options, payload) to Matrix ones and back. The server uses
`decode_request`, `encode_response` and `encode_error`, the client `encode_request` and `decode_response`.
"""

from __future__ import annotations

from synapse_lb.msc3079.client_mapping import (
    X1Request,
    decode_response,
    encode_request,
    encode_x1_request,
)
from synapse_lb.msc3079.errors import MappingError
from synapse_lb.msc3079.messages import NO_BODY, MatrixRequest, MatrixResponse, NoBody, ReplyFormat
from synapse_lb.msc3079.server_mapping import (
    CoapTriple,
    MappingLimits,
    decode_request,
    encode_error,
    encode_response,
    note_token,
)

__all__ = [
    "NO_BODY",
    "CoapTriple",
    "MappingError",
    "MappingLimits",
    "MatrixRequest",
    "MatrixResponse",
    "NoBody",
    "ReplyFormat",
    "X1Request",
    "decode_request",
    "decode_response",
    "encode_error",
    "encode_request",
    "encode_response",
    "encode_x1_request",
    "note_token",
]
