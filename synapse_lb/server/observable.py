# SPDX-License-Identifier: AGPL-3.0-or-later
"""What can be observed: ``/sync``, and sliding sync (MSC4186), which is a POST and is observed with FETCH.

Of a request for one of them, `Observable` makes the requests that compute what comes after it, and tells whether
what came of one is worth sending. Every other resource is served as if Observe were not there (RFC 7641
section 4.1).
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote, unquote_plus

from attrs import evolve, frozen

from synapse_lb.msc3079.messages import MatrixRequest
from synapse_lb.msc3079.server_mapping import SLIDING_SYNC_PATH

SYNC_PATHS: Final = frozenset(f"/_matrix/client/{version}/sync".encode() for version in ("r0", "v3"))
"""Paths of ``/sync``; path code 7 stands for the first."""

_SYNC_COUNTS: Final = frozenset(
    {
        "device_one_time_keys_count",
        "device_unused_fallback_key_types",
        "org.matrix.msc2732.device_unused_fallback_key_types",
    }
)
"""In every answer, and no news: they tell how things are."""

_BOOKKEEPING: Final = _SYNC_COUNTS | {"next_batch"}


@frozen
class Observable:
    """A request that can be observed, and where it has got to.

    Attributes:
        request: As it came; its query and, for sliding sync, the positions in its body are those to go on from.
        cursor: Name of the query parameter that says from where on: ``since``, or ``pos`` for sliding sync.
        position: Its value; None before the first result.
        result: Name of the field of a result that says where it ends.
        is_sliding: Whether it is sliding sync.
        is_first: Whether nothing was delivered yet.
    """

    request: MatrixRequest
    cursor: str
    position: str | None
    result: str
    is_sliding: bool
    is_first: bool = True

    @classmethod
    def of(cls, request: MatrixRequest) -> Observable | None:
        """Return what observes `request`, or None if it cannot be observed."""
        if request.method == "GET" and request.path in SYNC_PATHS:
            return cls(request, "since", _parameter(request.query, "since"), "next_batch", False)
        if request.method == "POST" and request.path == SLIDING_SYNC_PATH:
            return cls(request, "pos", _parameter(request.query, "pos"), "pos", True)
        return None

    @property
    def set_presence(self) -> str:
        """The presence that the client is to have as long as it observes; sliding sync has none."""
        if self.is_sliding:
            return "offline"
        return _parameter(self.request.query, "set_presence") or "online"

    def next_request(self) -> MatrixRequest:
        """Return the request that computes what comes after `position`.

        It never waits. The first is what the client asked for. The further ones are our doing, not the client's:
        they neither give it the full state once more nor show it active.
        """
        dropped = {"timeout", self.cursor}
        added = []
        if self.position is not None:
            added.append((self.cursor, self.position))
        if not self.is_first and not self.is_sliding:
            dropped |= {"full_state", "set_presence"}
            added.append(("set_presence", "offline"))
        kept = [part for part in self.request.query.split(b"&") if part and _name(part) not in dropped]
        kept += [f"{name}={quote(value, safe='')}".encode("ascii") for name, value in added]
        return evolve(self.request, query=b"&".join(kept), is_further=not self.is_first)

    def position_in(self, body: Any) -> str | None:
        """Return where a result ends; None if it is no result."""
        position = body.get(self.result) if isinstance(body, dict) else None
        if not isinstance(position, str) or not position:
            return None
        try:
            position.encode()
        except UnicodeEncodeError:  # JSON may have texts that are no Unicode
            return None
        return position

    def is_empty(self, body: dict[str, Any]) -> bool:
        """Whether a result holds nothing but where it ends and how things are.

        Matrix Client-Server API, ``/sync``; MSC4186 for sliding sync, where it is as Synapse itself decides when it
        holds a request: lists are in every answer and change with a room only.
        """
        if self.is_sliding:
            return not body.get("rooms") and _is_void(body.get("extensions") or {})
        return all(
            not any(value.values()) if name == "rooms" and isinstance(value, dict) else _is_void(value)
            for name, value in body.items()
            if name not in _BOOKKEEPING
        )

    def after(self, body: dict[str, Any]) -> Observable:
        """Return what goes on after a result, which was delivered or is empty."""
        request = self.request
        if self.is_sliding:
            request = evolve(request, body=_with_extensions_after(request.body, body.get("extensions")))
        return evolve(self, request=request, position=self.position_in(body), is_first=False)

    def nothing_new(self) -> dict[str, Any]:
        """Return a result that says that there is nothing after `position`."""
        return {} if self.position is None else {self.result: self.position}


def _with_extensions_after(body: Any, extensions: Any) -> Any:
    """Let the extensions that have a position of their own go on from where a result's end (``to_device``)."""
    wanted = body.get("extensions") if isinstance(body, dict) else None
    if not isinstance(wanted, dict) or not isinstance(extensions, dict):
        return body
    wanted = dict(wanted)
    for name, extension in extensions.items():
        position = extension.get("next_batch") if isinstance(extension, dict) else None
        if isinstance(position, str) and isinstance(wanted.get(name), dict):
            wanted[name] = {**wanted[name], "since": position}
    return {**body, "extensions": wanted}


def _is_void(value: Any) -> bool:
    """Whether there is nothing in a value but empty objects and lists, and bookkeeping."""
    if isinstance(value, dict):
        return all(_is_void(each) for name, each in value.items() if name not in _BOOKKEEPING)
    if isinstance(value, list | tuple):
        return all(_is_void(each) for each in value)
    return False


def _name(part: bytes) -> str:
    return unquote_plus(part.partition(b"=")[0].decode("ascii"))


def _parameter(query: bytes, name: str) -> str | None:
    """The first value of a query parameter, which is the one that Synapse reads; an empty one counts as none."""
    for part in query.split(b"&"):
        if _name(part) == name:
            return unquote_plus(part.partition(b"=")[2].decode("ascii")) or None
    return None
