# SPDX-License-Identifier: AGPL-3.0-or-later
"""The path codes of MSC3079 (appendix B), version 1, and the lookup both ways.

`/9/{roomId}/{eventType}/{txnId}` stands for
`/_matrix/client/r0/rooms/{roomId}/send/{eventType}/{txnId}`: the first Uri-Path is the code, the
others are the parameters, left to right. Segments here are plain text, never percent-encoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from synapse_lb.msc3079.errors import UnknownPathError

CODE_TO_PATH: Final[Mapping[str, str]] = MappingProxyType(
    {
        "0": "/_matrix/client/versions",
        "1": "/_matrix/client/r0/login",
        "2": "/_matrix/client/r0/capabilities",
        "3": "/_matrix/client/r0/logout",
        "4": "/_matrix/client/r0/register",
        "5": "/_matrix/client/r0/user/{userId}/filter",
        "6": "/_matrix/client/r0/user/{userId}/filter/{filterId}",
        "7": "/_matrix/client/r0/sync",
        "8": "/_matrix/client/r0/rooms/{roomId}/state/{eventType}/{stateKey}",
        "9": "/_matrix/client/r0/rooms/{roomId}/send/{eventType}/{txnId}",
        "A": "/_matrix/client/r0/rooms/{roomId}/event/{eventId}",
        "B": "/_matrix/client/r0/rooms/{roomId}/state",
        "C": "/_matrix/client/r0/rooms/{roomId}/members",
        "D": "/_matrix/client/r0/rooms/{roomId}/joined_members",
        "E": "/_matrix/client/r0/rooms/{roomId}/messages",
        "F": "/_matrix/client/r0/rooms/{roomId}/redact/{eventId}/{txnId}",
        "G": "/_matrix/client/r0/createRoom",
        "H": "/_matrix/client/r0/directory/room/{roomAlias}",
        "I": "/_matrix/client/r0/joined_rooms",
        "J": "/_matrix/client/r0/rooms/{roomId}/invite",
        "K": "/_matrix/client/r0/rooms/{roomId}/join",
        "L": "/_matrix/client/r0/join/{roomIdOrAlias}",
        "M": "/_matrix/client/r0/rooms/{roomId}/leave",
        "N": "/_matrix/client/r0/rooms/{roomId}/forget",
        "O": "/_matrix/client/r0/rooms/{roomId}/kick",
        "P": "/_matrix/client/r0/rooms/{roomId}/ban",
        "Q": "/_matrix/client/r0/rooms/{roomId}/unban",
        "R": "/_matrix/client/r0/directory/list/room/{roomId}",
        "S": "/_matrix/client/r0/publicRooms",
        "T": "/_matrix/client/r0/user_directory/search",
        "U": "/_matrix/client/r0/profile/{userId}/displayname",
        "V": "/_matrix/client/r0/profile/{userId}/avatar_url",
        "W": "/_matrix/client/r0/profile/{userId}",
        "X": "/_matrix/client/r0/voip/turnServer",
        "Y": "/_matrix/client/r0/rooms/{roomId}/typing/{userId}",
        "Z": "/_matrix/client/r0/rooms/{roomId}/receipt/{receiptType}/{eventId}",
        "a": "/_matrix/client/r0/rooms/{roomId}/read_markers",
        "b": "/_matrix/client/r0/presence/{userId}/status",
        "c": "/_matrix/client/r0/sendToDevice/{eventType}/{txnId}",
        "d": "/_matrix/client/r0/devices",
        "e": "/_matrix/client/r0/devices/{deviceId}",
        "f": "/_matrix/client/r0/delete_devices",
        "g": "/_matrix/client/r0/keys/upload",
        "h": "/_matrix/client/r0/keys/query",
        "i": "/_matrix/client/r0/keys/claim",
        "j": "/_matrix/client/r0/keys/changes",
        "k": "/_matrix/client/r0/pushers",
        "l": "/_matrix/client/r0/pushers/set",
        "m": "/_matrix/client/r0/notifications",
        "n": "/_matrix/client/r0/pushrules/",
        "o": "/_matrix/client/r0/search",
        "p": "/_matrix/client/r0/user/{userId}/rooms/{roomId}/tags",
        "q": "/_matrix/client/r0/user/{userId}/rooms/{roomId}/tags/{tag}",
        "r": "/_matrix/client/r0/user/{userId}/account_data/{type}",
        "s": "/_matrix/client/r0/user/{userId}/rooms/{roomId}/account_data/{type}",
        "t": "/_matrix/client/r0/rooms/{roomId}/context/{eventId}",
        "u": "/_matrix/client/r0/rooms/{roomId}/report/{eventId}",
    }
)
"""Path code -> path template. A `{name}` segment is a parameter."""

_STATE_CODE: Final = "8"
_PUSH_RULES_CODE: Final = "n"

Template = tuple["str | None", ...]
"""The segments of a path template; None where a parameter stands."""


def _template(path: str) -> Template:
    return tuple(None if part.startswith("{") else part for part in path.split("/")[1:])


_TEMPLATES: Final[Mapping[str, Template]] = {code: _template(path) for code, path in CODE_TO_PATH.items()}


def _by_length() -> dict[int, list[tuple[str, Template]]]:
    found: dict[int, list[tuple[str, Template]]] = {}
    for code, template in _TEMPLATES.items():
        found.setdefault(len(template), []).append((code, template))
    return found


_BY_LENGTH: Final = _by_length()


def is_path_code(segments: Sequence[str]) -> bool:
    """Whether a path given as segments begins with a code of the table."""
    return bool(segments) and segments[0] in _TEMPLATES


def expand(segments: Sequence[str]) -> tuple[str, ...]:
    """Turn a path code and its parameters into the full path.

    Two codes take more than their parameters. `8` without its state key stands for
    `.../state/{eventType}`, the form that the Client-Server API has for an empty state key; with an
    empty one for `.../state/{eventType}/`. `n`, whose template ends in a slash, may be followed by
    further segments (`n/global/override`); `compress` never makes that form, because other servers
    drop what follows.

    Args:
        segments: The Uri-Path values of a request, in order.

    Returns:
        The segments of the full path; `segments` themselves if the first is no path code.

    Raises:
        UnknownPathError: the number of parameters is not that of the code (MSC3079, appendix B).
    """
    if not is_path_code(segments):
        return tuple(segments)
    code, parameters = segments[0], list(segments[1:])
    template = _TEMPLATES[code]
    if code == _PUSH_RULES_CODE and parameters:
        return (*(part or "" for part in template[:-1]), *parameters)
    if code == _STATE_CODE and len(parameters) == 2:
        template = template[:-1]
    wanted = template.count(None)
    if len(parameters) != wanted:
        raise UnknownPathError(f"Path code {code} takes {wanted} parameters, not {len(parameters)}")
    remaining = iter(parameters)
    return tuple(next(remaining) if part is None else part for part in template)


def compress(segments: Sequence[str]) -> tuple[str, ...]:
    """Turn a full path into a path code with its parameters, where the table has one.

    Args:
        segments: The segments of a full path, after the leading slash; a trailing slash is an empty
            last segment.

    Returns:
        The shorter form, or `segments` themselves if no code stands for them (`v3` paths, for one).
        `expand(compress(s)) == s` for every full path `s`.
    """
    for code, template in _BY_LENGTH.get(len(segments), ()):
        if all(part is None or part == segment for part, segment in zip(template, segments, strict=True)):
            return (
                code,
                *(segment for part, segment in zip(template, segments, strict=True) if part is None),
            )
    return tuple(segments)
