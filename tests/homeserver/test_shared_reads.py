# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is asked once for all who want to know, with a store of a few lines, in virtual time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any

from immutabledict import immutabledict
from synapse.api.constants import Direction
from synapse.logging.context import make_deferred_yieldable
from synapse.types import RoomStreamToken
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.homeserver import hooks, room_positions
from synapse_lb.homeserver.room_positions import MAX_POSITIONS, RoomPositions
from synapse_lb.homeserver.shared_reads import (
    KEPT_FOR,
    MAX_KEPT,
    MAX_ROOMS,
    Overlay,
    ReadCounters,
    SharedReads,
    SharingStore,
)


class Store:
    """As much of Synapse's store as is shared; it answers when it is told to.

    Attributes:
        asked: what it was asked, in that order.
    """

    other = "another"

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.waiting: list[Deferred[Any]] = []
        self.changed = {"!a", "!b"}

    async def _answer(self, question: Any) -> Any:
        self.asked.append(question)
        done: Deferred[Any] = Deferred()
        self.waiting.append(done)
        return await make_deferred_yieldable(done)

    def answer(self, value: Any) -> None:
        """Answer what was asked first."""
        self.waiting.pop(0).callback(value)

    async def get_timeline_gaps(self, room_id: str, from_token: int, to_token: int) -> Any:
        return await self._answer((room_id, from_token, to_token))

    async def get_last_event_id_in_room_before_stream_ordering(self, room_id: str, end_token: int) -> Any:
        return await self._answer((room_id, end_token))

    async def get_device_list_changes_in_rooms(
        self, room_ids: set[str], from_token: int, to_token: int
    ) -> Any:
        return await self._answer((sorted(room_ids), from_token, to_token))

    def changed_rooms(self, room_ids: Collection[str], stream: int) -> set[str]:
        """In which of these rooms something has come."""
        return {room_id for room_id in room_ids if room_id in self.changed}

    async def get_room_events_stream_for_rooms(
        self, *, room_ids: Any, from_key: Any, to_key: Any, direction: Any, limit: int
    ) -> Any:
        return await self._answer((sorted(room_ids), from_key, to_key, limit))


class SharedReadsTestCase(SynchronousTestCase):
    """Asks a store together."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.reads = SharedReads(self.clock, lambda work: hooks.in_background("reads", "x", work))
        self.original = Store()
        self.store: Any = SharingStore(
            self.original, self.reads, RoomPositions(), self.original.changed_rooms
        )
        self.addCleanup(self._answer_the_rest)

    def start(self, work: Callable[[], Awaitable[Any]]) -> Deferred[Any]:
        """Ask something."""
        return hooks.in_background("asker", "x", work)

    def _answer_the_rest(self) -> None:
        """Nothing is left in a log context."""
        while self.original.waiting:
            self.original.answer({})

    def gaps(self, room: str = "!a", to: int = 2) -> Deferred[Any]:
        """Ask for gaps."""
        return self.start(lambda: self.store.get_timeline_gaps(room, 1, to))


class SharedReadsTests(SharedReadsTestCase):
    """`SharedReads`."""

    def test_under_way_and_for_a_while(self) -> None:
        first, second = self.gaps(), self.gaps()
        self.assertEqual(self.original.asked, [("!a", 1, 2)])
        self.assertNoResult(first)
        self.original.answer("gap")
        self.assertEqual([self.successResultOf(each) for each in (first, second)], ["gap", "gap"])
        self.clock.advance(KEPT_FOR)
        self.assertEqual(self.successResultOf(self.gaps()), "gap")
        self.clock.advance(0.1)
        self.assertNoResult(self.gaps())
        self.assertEqual(self.original.asked, [("!a", 1, 2)] * 2)
        self.assertEqual(self.reads.counters, ReadCounters(asked=2, shared=2, evicted=0))

    def test_other_questions(self) -> None:
        for room, to in (("!a", 2), ("!b", 2), ("!a", 3)):
            self.gaps(room, to)
        self.start(lambda: self.store.get_last_event_id_in_room_before_stream_ordering("!a", 2))
        self.assertEqual(self.original.asked, [("!a", 1, 2), ("!b", 1, 2), ("!a", 1, 3), ("!a", 2)])

    def test_an_error_is_told_and_not_kept(self) -> None:
        asking = [self.gaps(), self.gaps()]
        self.original.waiting.pop().errback(ValueError("no database"))
        for each in asking:
            self.failureResultOf(each, ValueError)
        self.assertEqual(len(self.reads), 0)
        again = self.gaps()
        self.original.answer(None)
        self.assertIsNone(self.successResultOf(again))

    def test_one_that_goes_away_takes_nothing_from_the_others(self) -> None:
        first, second = self.gaps(), self.gaps()
        first.addErrback(lambda _: None)
        first.cancel()
        self.original.answer("gap")
        self.assertEqual(self.successResultOf(second), "gap")

    def test_bounded(self) -> None:
        for number in range(MAX_KEPT + 5):
            self.gaps(f"!{number}")
        self.assertEqual(len(self.reads), MAX_KEPT)
        self.assertEqual(self.reads.counters.evicted, 5)
        self.gaps("!5")
        self.assertEqual(len(self.original.asked), MAX_KEPT + 5)
        self.gaps("!4")
        self.assertEqual(len(self.original.asked), MAX_KEPT + 6)
        self.clock.advance(KEPT_FOR + 1)
        self.gaps("!new")
        self.assertEqual(len(self.reads), 1)


def at(stream: int, **writers: int) -> RoomStreamToken:
    """A position."""
    return RoomStreamToken(stream=stream, instance_map=immutabledict(writers))


def events(*places: int) -> list[Any]:
    """Events at these places."""
    return [SimpleNamespace(internal_metadata=SimpleNamespace(stream_ordering=place)) for place in places]


class SharingStoreTests(SharedReadsTestCase):
    """`SharingStore`."""

    def events(
        self,
        *rooms: str,
        since: RoomStreamToken | None = None,
        now: RoomStreamToken | None = None,
        limit: int = 10,
    ) -> Deferred[Any]:
        """Ask for what is new in rooms."""
        since, now = since or at(1), now or at(9)
        return self.start(
            lambda: self.store.get_room_events_stream_for_rooms(
                room_ids={*rooms}, from_key=now, to_key=since, direction=Direction.BACKWARDS, limit=limit
            )
        )

    def answer(self, done: Deferred[Any]) -> tuple[list[int], Any, bool]:
        """Where the events of an answer are, and what stands beside them."""
        found, start, limited = self.successResultOf(done)["!a"]
        return [event.internal_metadata.stream_ordering for event in found], start, limited

    def places(self, done: Deferred[Any]) -> list[int]:
        """Where the events of an answer are."""
        return self.answer(done)[0]

    def test_everything_else_is_the_original(self) -> None:
        self.assertEqual(self.store.other, "another")
        with self.assertRaises(AttributeError):
            _ = self.store.nothing

    def test_devices(self) -> None:
        """Each has a set of his own: Synapse adds to it."""
        asking = [
            self.start(lambda: self.store.get_device_list_changes_in_rooms(["!b", "!a"], 1, 2)),
            self.start(lambda: self.store.get_device_list_changes_in_rooms(frozenset({"!a", "!b"}), 1, 2)),
        ]
        self.original.answer({"@alice:x"})
        self.successResultOf(asking[0]).add("@bob:x")
        self.assertEqual(self.successResultOf(asking[1]), {"@alice:x"})
        self.assertEqual(self.original.asked, [(["!a", "!b"], 1, 2)])
        too_old = self.start(lambda: self.store.get_device_list_changes_in_rooms(["!a"], 0, 2))
        self.original.answer(None)
        self.assertIsNone(self.successResultOf(too_old))

    def test_events_of_rooms_that_have_any(self) -> None:
        """Who is in other rooms besides shares what comes in the one; each has lists of his own."""
        first, second = self.events("!a", "!x"), self.events("!a", "!y")
        self.original.answer({"!a": (events(4, 3), "start", False)})
        self.successResultOf(first)["!a"][0].reverse()
        self.assertEqual(self.answer(second), ([4, 3], "start", False))
        self.assertEqual(self.original.asked, [(["!a"], at(9), at(1), 10)])
        self.assertEqual(self.successResultOf(self.events("!x")), {})

    def test_positions_between_the_same_events(self) -> None:
        """Others were told of other rooms meanwhile: they are where nothing came in this one."""
        first = self.events("!a", since=at(1), now=at(9))
        self.original.answer({"!a": (events(4), "start", False)})
        self.assertEqual(self.places(first), [4])
        asking = [self.events("!a", since=at(since), now=at(20)) for since in (4, 9, 12, 7)]
        self.assertEqual(self.original.asked[1:], [(["!a"], at(20), at(4), 10)])
        self.original.answer({"!a": (events(15), "start", False)})
        self.assertEqual([self.places(each) for each in asking], [[15]] * 4)
        # What else is asked of the room between.
        gaps = [
            self.start(partial(self.store.get_timeline_gaps, "!a", at(since), at(20)))
            for since in (4, 9, 12, 7)
        ]
        self.assertEqual(self.original.asked[2:], [("!a", at(4), at(20))])
        self.original.answer(None)
        self.assertEqual([self.successResultOf(each) for each in gaps], [None] * 4)
        ends = [
            self.start(partial(self.store.get_last_event_id_in_room_before_stream_ordering, "!a", at(end)))
            for end in (5, 14, 15, 19)
        ]
        self.assertEqual(self.original.asked[3:], [("!a", at(4)), ("!a", at(15))])
        self.original.answer("$four")
        self.original.answer("$fifteen")
        self.assertEqual([self.successResultOf(each) for each in ends], ["$four"] * 2 + ["$fifteen"] * 2)

    def test_only_what_is_new_for_who_asks(self) -> None:
        """Asked from further back than that."""
        first = self.events("!a", since=at(1), now=at(9))
        self.original.answer({"!a": (events(4), "start", False)})
        self.successResultOf(first)
        asking = [self.events("!a", since=at(since), now=at(20)) for since in (5, 12, 15)]
        self.original.answer({"!a": (events(15, 11), "start", False)})
        self.assertEqual(
            [self.answer(each) for each in asking],
            [([15, 11], "start", False), ([15], at(14), False), ([], at(15), False)],
        )
        self.assertEqual(len(self.original.asked), 2)

    def test_a_gap_and_too_many_events_are_asked_for_from_where_one_is(self) -> None:
        first = self.events("!a", since=at(1), now=at(9))
        self.original.answer({"!a": (events(4), "start", False)})
        self.successResultOf(first)
        asking = self.events("!a", since=at(6), now=at(20), limit=1)
        self.original.answer({"!a": (events(15), "start", True)})
        self.assertEqual(self.original.asked[2:], [(["!a"], at(20), at(6), 1)])
        self.original.answer({"!a": (events(15), "other", False)})
        self.assertEqual(self.successResultOf(asking)["!a"][1:], ("other", False))
        gap = self.start(lambda: self.store.get_timeline_gaps("!a", at(7), at(20)))
        self.assertEqual(self.original.asked[3:], [("!a", at(4), at(20))])
        self.original.answer(at(6))
        self.assertEqual(self.original.asked[4:], [("!a", at(7), at(20))])
        self.original.answer(None)
        self.assertIsNone(self.successResultOf(gap))

    def test_several_rooms(self) -> None:
        asking = self.events("!a", "!b", limit=5)
        for _ in range(2):
            room = self.original.asked[-1][0][0]
            self.original.answer({room: (events(2), "start", True)})
        self.assertEqual(sorted(self.successResultOf(asking)), ["!a", "!b"])
        self.assertEqual(sorted(each[0] for each in self.original.asked), [["!a"], ["!b"]])
        self.events("!a", "!b", limit=6)
        self.assertEqual(self.original.asked[-1][3], 6)

    def test_many_rooms_are_asked_for_at_once(self) -> None:
        rooms = {f"!{number}" for number in range(MAX_ROOMS + 1)}
        self.original.changed = rooms
        asking = self.events(*rooms, "!x")
        self.assertEqual(self.original.asked, [(sorted(rooms), at(9), at(1), 10)])
        self.original.answer({})
        self.assertEqual(self.successResultOf(asking), {})
        self.assertEqual(len(self.reads), 0)

    def test_other_ways_to_ask(self) -> None:
        """Without a bound, and forwards."""
        for to_key, direction in ((None, Direction.BACKWARDS), (at(5), Direction.FORWARDS)):
            ask = partial(
                self.store.get_room_events_stream_for_rooms,
                room_ids=["!x"],
                from_key=at(1),
                to_key=to_key,
                direction=direction,
                limit=1,
            )
            for _ in range(2):
                self.start(ask)
            self.assertEqual(self.original.asked[-2:], [(["!x"], at(1), to_key, 1)] * 2)


class RoomPositionsTests(SynchronousTestCase):
    """`RoomPositions`."""

    def test_against_a_whole_stream(self) -> None:
        """Whatever is noted in whichever order, it never takes positions for the same that are not."""
        random = Random(1)
        simplified = 0
        for _ in range(300):
            places = sorted(random.sample(range(2, 120), random.randrange(40)))
            positions = RoomPositions()
            for _ in range(random.randrange(1, 8)):
                low, high = sorted(random.sample(range(121), 2))
                inside = [place for place in places if low < place <= high]
                random.shuffle(inside)
                positions.note("!a", at(low), at(high), inside)
                for stream in range(121):
                    same, before = (
                        positions.same("!a", at(stream)).stream,
                        positions.before("!a", at(stream)).stream,
                    )
                    self.assertEqual(bisect_right(places, same), bisect_right(places, stream))
                    self.assertLessEqual(same, stream)
                    self.assertLessEqual(before, same)
                    simplified += same != stream
        self.assertGreater(simplified, 10000)

    def test_later_positions_are_asked_for_from_the_last_event_on(self) -> None:
        positions = RoomPositions()
        positions.note("!a", at(1), at(9), [4, 6])
        self.assertEqual(positions.before("!a", at(50)), at(6))
        self.assertEqual(positions.same("!a", at(50)), at(50))
        self.assertEqual(positions.before("!b", at(50)), at(50))

    def test_several_writers(self) -> None:
        """What their positions mean besides is not gone into."""
        positions = RoomPositions()
        positions.note("!a", at(1, b=3), at(9), [4])
        self.assertEqual(len(positions), 0)
        positions.note("!a", at(1), at(9, b=12), [4, 11])
        self.assertEqual(positions.same("!a", at(8)), at(4))
        self.assertEqual(positions.before("!a", at(20)), at(4))
        token = at(8, b=12)
        self.assertIs(positions.same("!a", token), token)
        self.assertIs(positions.before("!a", token), token)

    def test_bounded(self) -> None:
        positions = RoomPositions()
        positions.note("!a", at(0), at(1000), range(1, 1000))
        last = 1000 - MAX_POSITIONS
        self.assertEqual(positions.same("!a", at(last - 2)), at(last - 2))
        self.assertEqual(positions.same("!a", at(1000)), at(999))
        for number in range(room_positions.MAX_ROOMS):
            positions.note(f"!{number}", at(0), at(5), [])
        self.assertEqual(len(positions), room_positions.MAX_ROOMS)
        self.assertEqual(positions.same("!a", at(1000)), at(1000))


class OverlayTests(SynchronousTestCase):
    """`Overlay`."""

    def test_methods_see_what_is_laid_over(self) -> None:
        class Handler:
            store = "original"

            def shared(self) -> str:
                return self.store

            def not_shared(self) -> str:
                return self.store

        overlay: Any = Overlay(Handler(), "shared", store="other")
        self.assertEqual(
            (overlay.shared(), overlay.not_shared(), overlay.store), ("other", "original", "other")
        )
