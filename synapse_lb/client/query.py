# SPDX-License-Identifier: AGPL-3.0-or-later
"""Paths and query parameters as callers give them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from synapse_lb.msc3079.paths_v1 import expand, is_path_code

Query = Mapping[str, "str | Sequence[str]"] | Sequence[tuple[str, str]]
"""Names and values, not percent-encoded; a mapping's values may be lists, for names that are repeated."""


def pairs_of(query: Query | None) -> list[tuple[str, str]]:
    """Query parameters as pairs."""
    pairs = query.items() if isinstance(query, Mapping) else query or ()
    return [(name, each) for name, value in pairs for each in ([value] if isinstance(value, str) else value)]


def full_path(path: str) -> str:
    """A path as HTTP needs it: path codes are expanded.

    Args:
        path: percent-encoded, from its leading slash.
    """
    segments = path[1:].split("/")
    return "/" + "/".join(expand(segments)) if is_path_code(segments) else path


def sync_query(
    filter: str | Mapping[str, Any] | None, set_presence: str | None, full_state: bool
) -> list[tuple[str, str]]:
    """The parameters of a `/sync` that do not change from one to the next, but for `full_state`."""
    query: list[tuple[str, str]] = []
    if filter is not None:
        text = filter if isinstance(filter, str) else json.dumps(filter, separators=(",", ":"))
        query.append(("filter", text))
    if set_presence is not None:
        query.append(("set_presence", set_presence))
    if full_state:
        query.append(("full_state", "true"))
    return query
