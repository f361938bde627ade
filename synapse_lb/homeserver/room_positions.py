# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where in the stream the last events of rooms are, so that many positions between two of them are one.

Observers of a room are seldom told of it from the same position on: what came in their other rooms has moved them. But
from each position between two events of the room, the same events follow. A stretch of the stream of which it is
known where the room's events are says which positions are the same for it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

from attrs import define
from synapse.types import RoomStreamToken

MAX_ROOMS: Final = 1024
"""Rooms that are kept; the one that was asked for longest ago goes first."""

MAX_POSITIONS: Final = 32
"""Positions of events that are kept of a room, the last ones."""


@define
class _Stretch:
    """All events of a room after `low` and not after `high` are at `positions`, which rise."""

    low: int
    high: int
    positions: list[int]


class RoomPositions:
    """What is known of rooms.

    Positions that say something of each of several writers are left as they are.
    """

    def __init__(self) -> None:
        self._rooms: OrderedDict[str, _Stretch] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rooms)

    def note(self, room_id: str, low: Any, high: Any, positions: Sequence[int]) -> None:
        """Remember the events between two positions.

        Args:
            room_id: the room.
            low: a ``RoomStreamToken``: they are after it.
            high: a ``RoomStreamToken``: and not after this.
            positions: all of them, in any order.
        """
        if not _is_plain(low):
            return
        known = self._rooms.get(room_id)
        first, last = low.stream, high.stream
        kept = sorted(each for each in positions if each <= last)
        if known is not None and known.low <= first <= known.high:
            if known.high >= last:
                return
            kept = [each for each in known.positions if each <= first] + kept
            first = known.low
        if len(kept) > MAX_POSITIONS:
            first, kept = kept[-MAX_POSITIONS - 1], kept[-MAX_POSITIONS:]
        self._rooms[room_id] = _Stretch(first, last, kept)
        self._rooms.move_to_end(room_id)
        if len(self._rooms) > MAX_ROOMS:
            self._rooms.popitem(last=False)

    def same(self, room_id: str, token: Any) -> Any:
        """Return the position that stands for all those with the same events before them; `token` if none is known."""
        known = self._rooms.get(room_id)
        return token if known is None or token.stream > known.high else _at(known, token)

    def before(self, room_id: str, token: Any) -> Any:
        """Return a position that is no later than `token`, with few events of the room between, if any.

        It is the same for all that are later than the last event that is known.
        """
        known = self._rooms.get(room_id)
        return token if known is None else _at(known, token)


def _is_plain(token: Any) -> bool:
    """Whether a position is a number, and nothing else."""
    return token.topological is None and not token.instance_map


def _at(known: _Stretch, token: Any) -> Any:
    if not _is_plain(token) or token.stream < known.low:
        return token
    index = bisect_right(known.positions, token.stream)
    stream = known.positions[index - 1] if index else known.low
    return token if stream == token.stream else RoomStreamToken(stream=stream)
