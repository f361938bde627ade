# SPDX-License-Identifier: AGPL-3.0-or-later
"""The options by which a client chooses x1, the project's own format (docs/extensions.md, "x1").

Numbers of the range for experiments (RFC 7252 section 12.2), all NoCacheKey: what they say is no part of what a
request asks for, so that they may be on one message of a transfer and not on the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import attrs

from synapse_lb.msc3079 import codes
from synapse_lb.msc3079.bodies import BAD_JSON, NOT_JSON
from synapse_lb.msc3079.errors import CborError, MappingError
from synapse_lb.msc3079.options import first, first_uint
from synapse_lb.msc3079.secrecy import holds_secret
from synapse_lb.msc3079.sticky import StickyState
from synapse_lb.msc3079.x1 import (
    X1_VERSION,
    AliasBook,
    BodyLimits,
    Encoded,
    Side,
    TooLargeError,
    UnknownAliasError,
    decode_body,
    encode_body,
)

X1: Final = 65020
"""Elective: the version of x1 in which answers are welcome, a uint. Sticky. Empty: this one request is not of x1."""

X1_WRITTEN: Final = 65021
"""Critical: the same, of a request that is itself written so. Sticky."""

X1_BRIEF: Final = 65052
"""Elective, empty: a success is to be answered without its body. For one request."""


UNKNOWN_ALIAS: Final = "SYNAPSE_LB_UNKNOWN_ALIAS"
"""Matrix error code: the request was not run, and may be repeated with its aliases defined anew."""


@attrs.frozen
class Extension:
    """What of x1 is in force for one request.

    Attributes:
        book: The aliases of the association, as its user may see them; None where x1 is not in force.
        brief: Whether a success is answered without its body.
    """

    book: AliasBook | None = None
    brief: bool = False


_NONE: Final = Extension()


def read_extension(pairs: Sequence[tuple[int, bytes]], sticky: StickyState) -> Extension:
    """What of x1 is in force for a request, which it may bring into force for the later ones.

    Args:
        pairs: The options of the request.
        sticky: The state of its association, with the token of this request; changed in place.

    Raises:
        MappingError: 4.02, the request is written in a version that there is not.
    """
    if not sticky.allows_x1:
        return _NONE
    offered, written = first_uint(pairs, X1), first_uint(pairs, X1_WRITTEN)
    if written not in (None, X1_VERSION):
        raise MappingError(codes.BAD_OPTION, "M_INVALID_PARAM", "The only version of x1 here is 1")
    if X1_VERSION in (offered, written):
        if sticky.aliases is None:
            sticky.aliases = AliasBook(Side.SERVER)
        # A client that says it once more may have met a reference that it does not know.
        sticky.aliases.forget_known()
    if sticky.aliases is None or (offered == 0 and written is None):
        return _NONE
    return Extension(sticky.aliases.for_user(sticky.token), first(pairs, X1_BRIEF) is not None)


def read_x1_body(
    payload: bytes, book: AliasBook, max_depth: int, max_size: int, max_expansion: int | None = None
) -> Any:
    """Read a body of x1 that is not empty.

    Args:
        payload: The whole body.
        book: The aliases of the association.
        max_depth: Nested arrays and maps that are allowed.
        max_size: Bytes that a compressed body may become.
        max_expansion: Characters that references may stand for; by default as many as `BodyLimits` has.

    Raises:
        MappingError: 4.13 for what becomes too large, 4.00 for what cannot be read.
    """
    limits = BodyLimits(max_depth=max_depth, max_size=max(1, max_size))
    if max_expansion is not None:
        limits = attrs.evolve(limits, max_expansion=max_expansion)
    try:
        return decode_body(payload, book, limits)
    except TooLargeError as error:
        raise MappingError(codes.REQUEST_ENTITY_TOO_LARGE, "M_TOO_LARGE", str(error)) from None
    except CborError as error:
        raise x1_refusal(error, BAD_JSON if error.well_formed else NOT_JSON) from None


def x1_refusal(error: CborError, errcode: str) -> MappingError:
    """The answer to something of x1 that cannot be read.

    Args:
        error: What is wrong.
        errcode: Matrix's name for it, unless an alias is unknown.
    """
    if isinstance(error, UnknownAliasError):
        errcode = UNKNOWN_ALIAS
    return MappingError(codes.BAD_REQUEST, errcode, str(error))


def write_x1_body(value: Any, book: AliasBook, *, secret: bool, request: bool = False) -> Encoded:
    """Write a body of x1; it is not compressed where there may be a secret in it.

    Args:
        value: JSON value.
        book: The aliases of the association.
        secret: Whether the resource takes or gives secrets.
        request: Whether it is a request's. In an answer, what cannot be carried exactly is replaced.

    Raises:
        CborError: the value is none of JSON's.
    """
    compress = not (secret or holds_secret(value))
    return encode_body(value, book, compress=compress, lossy=not request, request=request)
