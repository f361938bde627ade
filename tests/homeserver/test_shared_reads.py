# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is asked once for all who want to know, with a store of a few lines, in virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from synapse.logging.context import make_deferred_yieldable
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.homeserver import hooks
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

    def get_rooms_that_changed(self, room_ids: set[str], from_key: int) -> set[str]:
        return {room_id for room_id in room_ids if room_id in self.changed}

    async def get_room_events_stream_for_rooms(
        self, *, room_ids: Any, to_key: Any = None, limit: int = 0
    ) -> Any:
        return await self._answer((sorted(room_ids), to_key, limit))


class SharedReadsTestCase(SynchronousTestCase):
    """Asks a store together."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.reads = SharedReads(self.clock, lambda work: hooks.in_background("reads", "x", work))
        self.original = Store()
        self.store: Any = SharingStore(self.original, self.reads)
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


class SharingStoreTests(SharedReadsTestCase):
    """`SharingStore`."""

    def events(self, *rooms: str, **further: Any) -> Deferred[Any]:
        """Ask for what is new in rooms."""
        return self.start(
            lambda: self.store.get_room_events_stream_for_rooms(room_ids={*rooms}, to_key=1, **further)
        )

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
        self.original.answer({"!a": ([2, 1], "start", False)})
        self.successResultOf(first)["!a"][0].reverse()
        self.assertEqual(self.successResultOf(second), {"!a": ([2, 1], "start", False)})
        self.assertEqual(self.original.asked, [(["!a"], 1, 0)])
        self.assertEqual(self.successResultOf(self.events("!x")), {})

    def test_several_rooms(self) -> None:
        asking = self.events("!a", "!b", limit=5)
        for _ in range(2):
            room = self.original.asked[-1][0][0]
            self.original.answer({room: ([1], "start", True)})
        self.assertEqual(self.successResultOf(asking), {room: ([1], "start", True) for room in ("!a", "!b")})
        self.assertEqual(sorted(self.original.asked), [(["!a"], 1, 5), (["!b"], 1, 5)])
        self.events("!a", "!b", limit=6)
        self.assertEqual(self.original.asked[-1][2], 6)

    def test_many_rooms_are_asked_for_at_once(self) -> None:
        rooms = {f"!{number}" for number in range(MAX_ROOMS + 1)}
        self.original.changed = rooms
        asking = self.events(*rooms, "!x")
        self.assertEqual(self.original.asked, [(sorted(rooms), 1, 0)])
        self.original.answer({})
        self.assertEqual(self.successResultOf(asking), {})
        self.assertEqual(len(self.reads), 0)

    def test_without_a_bound(self) -> None:
        self.start(lambda: self.store.get_room_events_stream_for_rooms(room_ids=["!x"], limit=1))
        self.assertEqual(self.original.asked, [(["!x"], None, 1)])


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
