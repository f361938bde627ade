# SPDX-License-Identifier: AGPL-3.0-or-later
"""What several observers want to know of the database is asked once.

A message in a room wakes all its observers, and the sync of each asks what came in the room between the position where
it was and that where all of them are now. That is past, and the answer is the same for each. So those questions of a
sync which name positions of streams and no user are answered for all who ask within `KEPT_FOR`, and positions between
which nothing came in the room are taken for one (`room_positions`).

There is no private name of Synapse here: `hooks` puts this in the place of Synapse's store, for these syncs only, and
looks whether the methods are there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Hashable
from types import MethodType
from typing import Any, Final

from attrs import define
from synapse.api.constants import Direction
from synapse.logging.context import make_deferred_yieldable
from synapse.types import RoomStreamToken
from synapse.util.async_helpers import ObservableDeferred
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from synapse_lb.coaps.clock import Clock
from synapse_lb.homeserver.room_positions import RoomPositions

KEPT_FOR: Final = 10.0
"""s: for which an answer is good. It is as old as that for those who ask last: a room whose history was purged
meanwhile, say, is as it was then."""

MAX_KEPT: Final = 256
"""Answers that are kept: the events of one room at most, as many as a filter lets into one sync, or less."""

MAX_ROOMS: Final = 8
"""Rooms of one sync with something new that are asked for one by one."""

SHARED: Final = (
    "get_timeline_gaps",
    "get_room_events_stream_for_rooms",
    "get_last_event_id_in_room_before_stream_ordering",
    "get_device_list_changes_in_rooms",
)
"""Methods of Synapse's store that are used here."""

_Events = tuple[list[Any], Any, bool]
"""Events of a room, the last one first; the position before them; whether there are more."""

Background = Callable[[Callable[[], Awaitable[Any]]], "Deferred[Any]"]
"""Starts some of Synapse's work that belongs to no request."""


@define
class ReadCounters:
    """What was done since the listener started."""

    asked: int = 0
    """Questions that the database was asked."""
    shared: int = 0
    """Questions that it was not asked, since another had asked the same."""
    evicted: int = 0
    """Answers that made room for newer ones before they were old."""


class SharedReads:
    """Answers that are good for everybody who asks soon enough.

    The oldest is forgotten first. An error is told to all who wait for it, and not kept.

    Args:
        clock: the reactor.
        in_background: starts what is asked.
    """

    def __init__(self, clock: Clock, in_background: Background) -> None:
        self.counters: Final = ReadCounters()
        self._clock: Final = clock
        self._in_background: Final = in_background
        self._answers: OrderedDict[Hashable, tuple[float, ObservableDeferred[Any]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    async def ask(self, key: Hashable, read: Callable[[], Awaitable[Any]]) -> Any:
        """Return the answer to a question.

        Args:
            key: the question.
            read: asks it.

        Returns:
            The answer, which others get too: it is not to be changed.
        """
        now = self._clock.seconds()
        self._forget(now)
        known = self._answers.get(key)
        if known is None:
            self.counters.asked += 1
            answer = self._begin(key, read, now)
        else:
            self.counters.shared += 1
            answer = known[1]
        return await make_deferred_yieldable(answer.observe())

    def _begin(
        self, key: Hashable, read: Callable[[], Awaitable[Any]], now: float
    ) -> ObservableDeferred[Any]:
        def failed(failure: Failure) -> Failure:
            self._answers.pop(key, None)
            return failure

        answer = ObservableDeferred(self._in_background(read).addErrback(failed), consumeErrors=True)
        if not answer.has_called() or answer.has_succeeded():
            self._answers[key] = now, answer
            if len(self._answers) > MAX_KEPT:
                self.counters.evicted += 1
                self._answers.popitem(last=False)
        return answer

    def _forget(self, now: float) -> None:
        while self._answers and next(iter(self._answers.values()))[0] < now - KEPT_FOR:
            self._answers.popitem(last=False)


class Overlay:
    """Stands for an object, some of whose attributes are others.

    Args:
        original: the object.
        methods: those of its methods that are to see the others too.
        attributes: the others.
    """

    def __init__(self, original: Any, *methods: str, **attributes: Any) -> None:
        vars(self).update(attributes, _original=original)
        vars(self).update({name: MethodType(getattr(type(original), name), self) for name in methods})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


class SharingStore(Overlay):
    """Synapse's store for the syncs of observers.

    Args:
        store: Synapse's.
        reads: what is shared.
        positions: of events in rooms.
        changed: tells in which of some rooms something may have come after a position of the stream.
    """

    def __init__(
        self,
        store: Any,
        reads: SharedReads,
        positions: RoomPositions,
        changed: Callable[[Collection[str], int], Collection[str]],
    ) -> None:
        super().__init__(store, _reads=reads, _positions=positions, _changed=changed)

    async def get_timeline_gaps(self, room_id: str, from_token: Any, to_token: Any) -> Any:
        """Return where there is a gap in a room's timeline."""
        read = self._original.get_timeline_gaps

        async def ask(since: Any) -> Any:
            key = "gaps", room_id, since, to_token
            return await self._reads.ask(key, lambda: read(room_id, since, to_token))

        since = None if from_token is None else self._positions.same(room_id, from_token)
        gap = await ask(since)
        # A gap before `from_token` would be none of this sync's.
        return gap if gap is None or since is from_token else await ask(from_token)

    async def get_last_event_id_in_room_before_stream_ordering(self, room_id: str, end_token: Any) -> Any:
        """Return which event was the last in a room."""
        read = self._original.get_last_event_id_in_room_before_stream_ordering
        end = self._positions.same(room_id, end_token)
        return await self._reads.ask(("last", room_id, end), lambda: read(room_id, end))

    async def get_device_list_changes_in_rooms(
        self, room_ids: Collection[str], from_token: Any, to_token: Any
    ) -> Any:
        """Return whose devices have changed in these rooms; None if that is too long ago."""
        key = "devices", frozenset(room_ids), from_token, to_token
        read = self._original.get_device_list_changes_in_rooms
        changed = await self._reads.ask(key, lambda: read(room_ids, from_token, to_token))
        return None if changed is None else set(changed)

    async def get_room_events_stream_for_rooms(
        self, *, room_ids: Collection[str], from_key: Any, to_key: Any = None, **further: Any
    ) -> dict[str, _Events]:
        """Return what is new in these rooms."""
        read = self._original.get_room_events_stream_for_rooms
        if to_key is None or further.get("direction") is not Direction.BACKWARDS:
            return dict(await read(room_ids=room_ids, from_key=from_key, to_key=to_key, **further))
        changed = self._changed(room_ids, to_key.stream)
        if len(changed) > MAX_ROOMS:
            return dict(await read(room_ids=changed, from_key=from_key, to_key=to_key, **further))
        found: dict[str, _Events] = {}
        for room_id in changed:
            found |= await self._events_in(room_id, from_key, to_key, further)
        return found

    async def _events_in(
        self, room_id: str, from_key: Any, to_key: Any, further: dict[str, Any]
    ) -> dict[str, _Events]:
        """What is new in one room, from the last on (`from_key`) back to `to_key`."""
        read = self._original.get_room_events_stream_for_rooms

        async def ask(since: Any) -> Any:
            key = "events", room_id, from_key, since, tuple(further.items())
            return await self._reads.ask(
                key, lambda: read(room_ids=[room_id], from_key=from_key, to_key=since, **further)
            )

        since = self._positions.before(room_id, to_key)
        found = await ask(since)
        if since is not to_key and any(limited for _, _, limited in found.values()):
            since = to_key
            found = await ask(since)
        for events, _, limited in found.values():
            if not limited:
                self._positions.note(room_id, since, from_key, [_place(event) for event in events])
        return {room: _after(to_key, answer, asked=since) for room, answer in found.items()}


def _place(event: Any) -> int:
    return int(event.internal_metadata.stream_ordering)


def _after(position: Any, answer: _Events, *, asked: Any) -> _Events:
    """What is after a position of an answer to a question from an earlier one on, as Synapse would have answered it."""
    events, start, limited = answer
    if asked is position:
        return list(events), start, limited
    new = [event for event in events if _place(event) > position.stream]
    if not new:
        return new, position, limited
    return new, start if len(new) == len(events) else RoomStreamToken(stream=_place(new[-1]) - 1), limited
