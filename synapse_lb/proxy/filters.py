# SPDX-License-Identifier: AGPL-3.0-or-later
"""Filters of `/sync`: those of `--lean` merged into the client's own, and those that are too long for a query.

Matrix client-server API, "Filtering"; RFC 7252 section 5.10, table 4: 255 bytes in a Uri-Query option.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any, Final
from urllib.parse import quote

from synapse_lb.client.client import LowBandwidthClient
from synapse_lb.client.uri import MAX_OPTION_LENGTH
from synapse_lb.msc3079.mapping import MatrixResponse
from synapse_lb.proxy.answers import ProxyError, json_text

Pairs = tuple[tuple[str, str], ...]

KEPT: Final = 256
"""Filters, and users, that are remembered; the one that was not used for longest is forgotten first."""

_EVERY_TYPE: Final = "*"


class Refused(Exception):
    """The homeserver's answer in place of a filter."""

    def __init__(self, response: MatrixResponse) -> None:
        super().__init__(response.status)
        self.response = response


class Filters:
    """Turns the `filter` of a request into the one that is sent.

    Args:
        lean: leave out typing, receipts and presence.
    """

    def __init__(self, *, lean: bool) -> None:
        self._lean = lean
        self._sent: OrderedDict[tuple[str | None, str], str] = OrderedDict()
        self._users: OrderedDict[str | None, str] = OrderedDict()

    async def apply(self, client: LowBandwidthClient, token: str | None, query: Pairs) -> Pairs:
        """The query that is sent in place of a client's.

        Args:
            client: the token's, for filters that the homeserver keeps.
            token: the access token.
            query: of a `/sync`.

        Raises:
            Refused: the homeserver does not give or take a filter.
            ProxyError: the client's filter is no JSON.
            ClientError: CoAP has failed.
        """
        given = next((value for name, value in query if name == "filter"), "")
        kept = tuple(pair for pair in query if pair[0] != "filter")
        if self._lean:
            kept = (*(pair for pair in kept if pair[0] != "set_presence"), ("set_presence", "offline"))
        key = (token, given)
        if key not in self._sent:
            _remember(self._sent, key, await self._resolve(client, token, given))
        self._sent.move_to_end(key)
        sent = self._sent[key]
        return (*kept, ("filter", sent)) if sent else kept

    async def _resolve(self, client: LowBandwidthClient, token: str | None, given: str) -> str:
        """The filter to send for one that was given: its id, or its JSON text."""
        text = given
        if self._lean:
            own = await self._read(client, token, given) if given else {}
            text = _written(lean_filter(own))
        if len(f"filter={text}".encode("utf-8", "replace")) <= MAX_OPTION_LENGTH:
            return text
        path = f"/_matrix/client/v3/user/{await self._user(client, token)}/filter"
        answer = await client.request("POST", path, json=_parsed(text), token=token)
        return str(_field(answer, "filter_id"))

    async def _read(self, client: LowBandwidthClient, token: str | None, given: str) -> Any:
        if given.startswith("{"):
            return _parsed(given)
        path = f"/_matrix/client/v3/user/{await self._user(client, token)}/filter/{quote(given, safe='')}"
        answer = await client.request("GET", path, token=token)
        if answer.status != 200:
            raise Refused(answer)
        return answer.body

    async def _user(self, client: LowBandwidthClient, token: str | None) -> str:
        """The token's user, percent-encoded."""
        if token not in self._users:
            answer = await client.request("GET", "/_matrix/client/v3/account/whoami", token=token)
            _remember(self._users, token, quote(str(_field(answer, "user_id")), safe="", errors="replace"))
        return self._users[token]


def lean_filter(own: Any) -> dict[str, Any]:
    """A filter that leaves out typing, receipts and presence, and what another one leaves out.

    Typing and receipts are all that a room's `ephemeral` has.
    """
    merged = dict(own) if isinstance(own, dict) else {}
    merged["presence"] = _without_all(merged.get("presence"))
    room = merged.get("room")
    room = dict(room) if isinstance(room, dict) else {}
    room["ephemeral"] = _without_all(room.get("ephemeral"))
    merged["room"] = room
    return merged


def lean_query(query: Pairs) -> Pairs:
    """The query of a `/sync` with a lean filter in it; one that the homeserver keeps stays as it is.

    Raises:
        ProxyError: the client's filter is no JSON.
    """
    given = next((value for name, value in query if name == "filter"), "{}")
    sent = _written(lean_filter(_parsed(given))) if given.startswith("{") else given
    kept = (pair for pair in query if pair[0] not in ("filter", "set_presence"))
    return (*kept, ("set_presence", "offline"), ("filter", sent))


def lean_sliding_sync(body: Any) -> Any:
    """The body of a sliding sync (MSC4186) without its extensions for typing and receipts."""
    extensions = body.get("extensions") if isinstance(body, dict) else None
    if not isinstance(extensions, dict):
        return body
    left = {name: value for name, value in extensions.items() if name not in ("typing", "receipts")}
    return {**body, "extensions": left}


def _without_all(section: Any) -> dict[str, Any]:
    return {**(section if isinstance(section, dict) else {}), "not_types": [_EVERY_TYPE]}


def _written(value: Any) -> str:
    return json_text(value)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ProxyError(400, "M_INVALID_PARAM", "The filter is not JSON") from None


def _field(answer: MatrixResponse, name: str) -> Any:
    if answer.status != 200 or not isinstance(answer.body, dict) or name not in answer.body:
        raise Refused(answer)
    return answer.body[name]


def _remember(book: OrderedDict[Any, str], key: Any, value: str) -> None:
    book[key] = value
    while len(book) > KEPT:
        book.popitem(last=False)
