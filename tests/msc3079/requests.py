# SPDX-License-Identifier: AGPL-3.0-or-later
"""Short ways to write the CoAP messages of the mapping's tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from synapse_lb.msc3079.mapping import MappingError, MatrixRequest, decode_request
from synapse_lb.msc3079.options import ACCEPT, CONTENT_FORMAT, URI_PATH, URI_QUERY, encode_uint
from synapse_lb.msc3079.sticky import StickyState

GET, POST, PUT, DELETE, FETCH, PATCH, IPATCH = range(1, 8)

VERSIONS = ("_matrix", "client", "versions")


def options(
    path: Sequence[str | bytes] = VERSIONS,
    query: Sequence[str | bytes] = (),
    content_format: int | None = None,
    accept: int | None = None,
    more: Sequence[tuple[int, bytes]] = (),
) -> list[tuple[int, bytes]]:
    """The options of a request."""
    pairs = [(URI_PATH, part.encode() if isinstance(part, str) else part) for part in path]
    pairs += [(URI_QUERY, part.encode() if isinstance(part, str) else part) for part in query]
    if content_format is not None:
        pairs.append((CONTENT_FORMAT, encode_uint(content_format)))
    if accept is not None:
        pairs.append((ACCEPT, encode_uint(accept)))
    return sorted([*pairs, *more], key=lambda pair: pair[0])


def request(
    code: int = GET, payload: bytes = b"", sticky: StickyState | None = None, **kwargs: Any
) -> MatrixRequest:
    """A request, mapped; on a new association by default."""
    return decode_request(code, options(**kwargs), payload, StickyState() if sticky is None else sticky)


def refusal(
    code: int = GET, payload: bytes = b"", sticky: StickyState | None = None, **kwargs: Any
) -> MappingError:
    """The error with which a request is refused."""
    try:
        found = request(code, payload, sticky, **kwargs)
    except MappingError as error:
        return error
    raise AssertionError(f"{found} was accepted")
