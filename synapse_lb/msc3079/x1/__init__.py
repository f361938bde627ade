# SPDX-License-Identifier: AGPL-3.0-or-later
"""x1, the project's own format of bodies and paths, where both ends have said so (docs/extensions.md).

Pure, as all of `msc3079`: no I/O, no clock. What is kept between messages is in the `AliasBook` of an association.
"""

from __future__ import annotations

from synapse_lb.msc3079.x1.aliases import AliasBook, Side
from synapse_lb.msc3079.x1.body import BodyLimits, Encoded, decode_body, encode_body
from synapse_lb.msc3079.x1.dictionary import DIGEST
from synapse_lb.msc3079.x1.errors import AliasError, TooLargeError, UnknownAliasError, X1Error
from synapse_lb.msc3079.x1.pathcodec import (
    EncodedPath,
    compress_path,
    compress_query,
    expand_path,
    expand_query,
    is_x1_path,
)

X1_VERSION = 1
"""The version of all tables of x1, and of its dictionary: what `/versions` says and the client's option chooses."""

__all__ = [
    "DIGEST",
    "X1_VERSION",
    "AliasBook",
    "AliasError",
    "BodyLimits",
    "Encoded",
    "EncodedPath",
    "Side",
    "TooLargeError",
    "UnknownAliasError",
    "X1Error",
    "compress_path",
    "compress_query",
    "decode_body",
    "encode_body",
    "expand_path",
    "expand_query",
    "is_x1_path",
]
