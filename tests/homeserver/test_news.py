# SPDX-License-Identifier: AGPL-3.0-or-later
"""When observers are told that there may be news, with a Synapse of a few lines, in virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

from synapse.api.errors import InvalidClientTokenError
from synapse.logging.context import make_deferred_yieldable
from synapse.module_api.errors import ConfigError
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.homeserver import further_syncs, hooks
from synapse_lb.homeserver.further_syncs import Batches
from synapse_lb.homeserver.news import TEND_AT_ONCE, TEND_INTERVAL, TEND_PAUSE, Subscription, SynapseNews
from synapse_lb.homeserver.streams import Streams
from synapse_lb.msc3079.messages import MatrixResponse


class UserStream:
    """As Synapse's: a position, and who waits for another."""

    def __init__(self, position: int) -> None:
        self.current_token = position
        self.listeners: set[Deferred[int]] = set()

    def new_listener(self, position: int) -> Deferred[int]:
        if position != self.current_token:
            return succeed(self.current_token)
        listener: Deferred[int] = Deferred(self.listeners.discard)
        self.listeners.add(listener)
        return listener


class Synapse:
    """What `Streams` asks of a homeserver."""

    def __init__(self) -> None:
        self.user_to_user_stream: dict[str, UserStream] = {}
        self.position = 5
        self.made = 0
        self.making: Deferred[None] = succeed(None)
        self.owner: Deferred[None] = succeed(None)
        self.owners = {"token": ("@alice:x", "DEV")}
        self.present: list[tuple[str, str | None, str]] = []
        self.appeared = 0
        self.tracks_presence = True
        self.appearing: Deferred[None] = succeed(None)

    def homeserver(self) -> hooks.Homeserver:
        hs = SimpleNamespace(
            config=SimpleNamespace(server=SimpleNamespace(track_presence=self.tracks_presence)),
            get_auth=lambda: self,
            get_datastores=lambda: SimpleNamespace(main=self),
            get_notifier=lambda: self,
            get_presence_handler=lambda: self,
        )
        return cast(hooks.Homeserver, SimpleNamespace(hs=hs, server_name="x", batches=Batches(self)))

    def process_replication_rows(self, stream_name: str, instance_name: str, token: int, rows: Any) -> None:
        """What other processes have written."""

    def told_of(self, cache: str, *keys: str) -> None:
        """Another process tells what to forget."""
        rows = [SimpleNamespace(cache_func=cache, keys=[key]) for key in keys]
        self.process_replication_rows("caches", "main", 7, rows)

    def something_happens(self, user_id: str = "@alice:x") -> None:
        """The notifier is told of something for a user."""
        self.position += 1
        stream = self.user_to_user_stream[user_id]
        stream.current_token = self.position
        listeners, stream.listeners = stream.listeners, set()
        for listener in listeners:
            listener.callback(self.position)

    async def get_user_by_access_token(self, token: str) -> Any:
        await make_deferred_yieldable(self.owner)
        if token not in self.owners:
            raise InvalidClientTokenError()
        user_id, device_id = self.owners[token]
        return SimpleNamespace(user=SimpleNamespace(to_string=lambda: user_id), device_id=device_id)

    async def wait_for_events(
        self, user_id: str, timeout: int, callback: Callable[[Any, Any], Awaitable[Any]]
    ) -> Any:
        assert timeout == 0
        if user_id not in self.user_to_user_stream:
            self.made += 1
            await make_deferred_yieldable(self.making)
            self.user_to_user_stream[user_id] = UserStream(self.position)
        return await callback(0, self.user_to_user_stream[user_id].current_token)

    async def user_syncing(
        self, user_id: str, device_id: str | None, affect_presence: bool, presence_state: str
    ) -> Any:
        assert affect_presence
        await make_deferred_yieldable(self.appearing)
        self.appeared += 1
        return Syncing(self.present, (user_id, device_id, presence_state))


class Syncing:
    """Present as long as it is entered."""

    def __init__(self, present: list[Any], what: Any) -> None:
        self.present, self.what = present, what

    def __enter__(self) -> None:
        self.present.append(self.what)

    def __exit__(self, *_: object) -> None:
        self.present.remove(self.what)


class NewsTests(SynchronousTestCase):
    """`SynapseNews` and its subscriptions."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.synapse = Synapse()
        self.news = SynapseNews(Streams(self.synapse.homeserver()), self.clock)
        self.revoked: list[MatrixResponse] = []

    def subscribe(self, token: str = "token", presence: str = "offline") -> Subscription:
        """A subscription."""
        subscription = self.successResultOf(self.news.subscribe(token, presence, self.revoked.append))
        assert isinstance(subscription, Subscription)
        return subscription

    def test_a_token_of_nobodys(self) -> None:
        self.assertIsNone(self.successResultOf(self.news.subscribe("other", "online", self.revoked.append)))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_an_error_that_is_none_of_the_tokens(self) -> None:
        self.synapse.owner = Deferred()
        asked = self.news.subscribe("token", "online", self.revoked.append)
        self.synapse.owner.errback(RuntimeError("of the database"))
        self.failureResultOf(asked, RuntimeError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_waiting(self) -> None:
        subscription = self.subscribe()
        self.assertEqual(subscription.user_id, "@alice:x")
        position = self.successResultOf(subscription.position())
        waiting = subscription.news(position)
        self.assertNoResult(waiting)
        self.synapse.something_happens()
        self.successResultOf(waiting)
        # It has happened already: there is no need to wait from there.
        self.successResultOf(subscription.news(position))
        subscription.close()
        subscription.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_where_many_results_end_is_read_once(self) -> None:
        read: list[str] = []

        async def from_string(store: object, text: str) -> Any:
            read.append(text)
            return int(text[1:])

        class Position(int):
            def is_before_or_eq(self, end: int) -> bool:
                return self <= end

        self.patch(further_syncs, "StreamToken", SimpleNamespace(from_string=from_string))
        subscriptions = [self.subscribe() for _ in range(3)]
        for batch, covered in (("s5", [5]), ("0/s6", [5, 6]), ("s6", [5, 6]), ("s5", [5])):
            found = [
                position
                for each, position in zip(subscriptions, (5, 6, 7), strict=True)
                if self.successResultOf(each.covers(Position(position), batch))
            ]
            self.assertEqual(found, covered)
        self.assertEqual(read, ["s5", "s6"])

    def test_a_wait_that_is_cancelled_leaves_nothing(self) -> None:
        subscription = self.subscribe()
        waiting = subscription.news(self.successResultOf(subscription.position()))
        waiting.addErrback(lambda _: None)
        self.assertEqual(len(self.synapse.user_to_user_stream["@alice:x"].listeners), 1)
        waiting.cancel()
        self.assertEqual(len(self.synapse.user_to_user_stream["@alice:x"].listeners), 0)

    def test_closing_ends_a_wait_without_a_word(self) -> None:
        subscription = self.subscribe()
        waiting = subscription.news(self.successResultOf(subscription.position()))
        subscription.close()
        self.assertEqual(len(self.synapse.user_to_user_stream["@alice:x"].listeners), 0)
        self.assertNoResult(waiting)

    def test_streams_are_made_once_for_all_who_ask_at_the_same_time(self) -> None:
        self.synapse.making = Deferred()
        one, two = self.subscribe(), self.subscribe()
        asked = [one.position(), two.position(), one.position()]
        asked[0].addErrback(lambda _: None)
        asked[0].cancel()
        self.synapse.making.callback(None)
        self.assertEqual([self.successResultOf(each) for each in asked[1:]], [5, 5])
        self.assertEqual(self.synapse.made, 1)

    def test_streams_that_cannot_be_made(self) -> None:
        self.synapse.making = Deferred()
        subscription = self.subscribe()
        asked = [subscription.position(), subscription.position()]
        self.synapse.making.errback(RuntimeError("of the database"))
        for each in asked:
            self.failureResultOf(each, RuntimeError)
        self.synapse.making = succeed(None)
        self.assertEqual(self.successResultOf(subscription.position()), 5)

    def test_streams_that_were_given_up_are_news(self) -> None:
        subscription = self.subscribe()
        position = self.successResultOf(subscription.position())
        self.synapse.user_to_user_stream.clear()
        self.successResultOf(subscription.news(position))

    def test_streams_that_were_made_twice(self) -> None:
        """Synapse itself makes them anew if two of its requests find none at the same time: ours is not heard."""
        subscription = self.subscribe()
        waiting = subscription.news(self.successResultOf(subscription.position()))
        self.synapse.user_to_user_stream["@alice:x"] = UserStream(5)
        self.synapse.something_happens()
        self.assertNoResult(waiting)
        self.clock.advance(TEND_INTERVAL)
        self.successResultOf(waiting)

    def test_revoking(self) -> None:
        one, two = self.subscribe(), self.subscribe()
        self.news.token_ended("another")
        self.assertEqual(self.revoked, [])
        self.news.token_ended("token")
        self.assertEqual(
            [(each.status, each.body["errcode"]) for each in self.revoked], [(401, "M_UNKNOWN_TOKEN")] * 2
        )
        self.assertTrue(one.closed and two.closed)
        self.news.token_ended("token")
        self.assertEqual(len(self.revoked), 2)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_token_that_another_process_ends(self) -> None:
        """As in a Synapse with workers: a logout is not told to the modules of the others."""
        self.subscribe()
        self.synapse.told_of("get_user_by_access_token", "another", "token")
        self.assertEqual(self.revoked, [])  # It was changed, and is good.
        del self.synapse.owners["token"]
        self.synapse.told_of("get_user_by_id", "token")
        self.assertEqual(self.revoked, [])
        self.synapse.told_of("get_user_by_access_token", "token")
        self.assertEqual([each.body["errcode"] for each in self.revoked], ["M_UNKNOWN_TOKEN"])
        self.news.close()
        self.assertNotIn("process_replication_rows", vars(self.synapse))

    def test_a_token_that_ends_while_its_owner_is_looked_for(self) -> None:
        self.synapse.owner = Deferred()
        asked = self.news.subscribe("token", "online", self.revoked.append)
        self.news.token_ended("token")
        self.assertEqual(len(self.revoked), 1)
        self.synapse.owner.callback(None)
        self.assertIsNone(self.successResultOf(asked))
        self.assertEqual(self.synapse.present, [])

    def test_one_that_is_not_wanted_any_more(self) -> None:
        self.synapse.owner = Deferred()
        asked = self.news.subscribe("token", "online", self.revoked.append)
        asked.addErrback(lambda _: None)
        asked.cancel()
        self.synapse.owner.callback(None)
        self.assertEqual((self.synapse.present, self.synapse.appeared), ([], 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_presence(self) -> None:
        subscription = self.subscribe(presence="unavailable")
        expected = [("@alice:x", "DEV", "unavailable")]
        self.assertEqual(self.synapse.present, expected)
        for renewals in range(2, 6):
            self.clock.advance(TEND_INTERVAL)
            self.assertEqual((self.synapse.present, self.synapse.appeared), (expected, renewals))
        subscription.close()
        self.assertEqual(self.synapse.present, [])

    def test_presence_is_renewed_once_for_a_device(self) -> None:
        subscriptions = [self.subscribe(presence="online") for _ in range(3)]
        self.assertEqual(self.synapse.appeared, 3)
        self.clock.advance(TEND_INTERVAL)
        self.assertEqual((self.synapse.appeared, len(self.synapse.present)), (4, 3))
        for subscription in subscriptions:
            subscription.close()
        self.assertEqual(self.synapse.present, [])

    def test_no_presence(self) -> None:
        for presence in ("offline", "nonsense"):
            self.subscribe(presence=presence)
        self.clock.advance(TEND_INTERVAL)
        self.assertEqual(self.synapse.appeared, 0)

    def test_a_homeserver_that_does_not_track_presence(self) -> None:
        """Nothing is done for it then, neither at first nor now and then."""
        self.synapse.tracks_presence = False
        self.news = SynapseNews(Streams(self.synapse.homeserver()), self.clock)
        self.subscribe(presence="online")
        self.clock.advance(TEND_INTERVAL)
        self.assertEqual(self.synapse.appeared, 0)

    def test_many_are_tended_by_and_by(self) -> None:
        """So many in a turn, each once, and those that have ended meanwhile never."""
        count = 2 * TEND_AT_ONCE + 10
        self.synapse.owners = {f"t{number}": (f"@u{number}:x", "DEV") for number in range(count)}
        subscriptions = [self.subscribe(token, presence="online") for token in self.synapse.owners]
        self.clock.advance(TEND_INTERVAL)
        self.assertEqual(self.synapse.appeared, count + TEND_AT_ONCE)
        subscriptions[-1].close()
        self.clock.advance(TEND_PAUSE)
        self.assertEqual(self.synapse.appeared, count + 2 * TEND_AT_ONCE)
        self.clock.advance(TEND_PAUSE)
        self.assertEqual(self.synapse.appeared, count + count - 1)
        self.clock.advance(TEND_PAUSE)
        self.assertEqual(self.synapse.appeared, count + count - 1)
        self.clock.advance(TEND_INTERVAL)
        self.assertEqual(self.synapse.appeared, count + count - 1 + TEND_AT_ONCE)
        for subscription in subscriptions:
            subscription.close()
        self.assertEqual((self.synapse.present, self.clock.getDelayedCalls()), ([], []))

    def test_presence_that_comes_too_late(self) -> None:
        self.synapse.appearing = Deferred()
        self.subscribe(presence="online").close()
        self.synapse.appearing.callback(None)
        self.assertEqual((self.synapse.appeared, self.synapse.present), (1, []))

    def test_presence_that_cannot_be_set(self) -> None:
        self.synapse.appearing = Deferred()
        subscription = self.subscribe(presence="online")
        with self.assertLogs("synapse_lb.homeserver.news", "ERROR") as logged:
            self.synapse.appearing.errback(RuntimeError("of presence"))
        self.assertIn("@alice:x cannot be set: of presence", logged.output[0])
        self.assertFalse(subscription.closed)

    def test_a_synapse_without_what_is_needed(self) -> None:
        del self.synapse.user_to_user_stream
        with self.assertRaises(ConfigError):
            Streams(self.synapse.homeserver())
