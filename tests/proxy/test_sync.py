# SPDX-License-Identifier: AGPL-3.0-or-later
"""`/sync` through the proxy: answered from an observation, and yet as over HTTP."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.proxy import sync as sync_module
from synapse_lb.server import sync_observer
from synapse_lb.testing.lossy import CLEAR, LossyRelay, Weather
from tests.client.harness import REACTOR, Server, until
from tests.proxy.harness import Fetched, Http, SyncTestCase, letters, timeline
from tests.server.observing import UNKNOWN_TOKEN

SYNC = "/_matrix/client/v3/sync"


class Poller:
    """A client that asks again and again, each time with the `next_batch` of the answer before.

    Args:
        http: whom it asks.
        token: its access token.
        more: further parameters.
    """

    def __init__(self, http: Http, token: str = "alice-1", more: str = "") -> None:
        self.http = http
        self.token = token
        self.more = more
        self.since: str | None = None
        self.timeline: list[str] = []
        self.letters: list[str] = []

    def ask(self, timeout: int = 30000, since: str | None = None) -> Deferred[Fetched]:
        """One request."""
        since = since or self.since
        place = f"&since={since}" if since else ""
        return self.http.fetch("GET", f"{SYNC}?timeout={timeout}{place}{self.more}", None, self.token)

    def take(self, got: Fetched) -> Any:
        """Process an answer."""
        assert got.status == 200, (got.status, got.content)
        self.timeline += timeline(got.json)
        self.letters += letters(got.json)
        self.since = got.json["next_batch"]
        return got.json

    async def poll(self, timeout: int = 30000) -> Any:
        """Ask, and process the answer."""
        return self.take(await self.ask(timeout))


class SyncTests(SyncTestCase):
    def start(self, **options: Any) -> tuple[Any, Poller]:
        """Start everything; Alice has not asked yet."""
        proxy, http = self.start_proxy(self.start_gateway(), **options)
        return proxy, Poller(http)

    def is_waiting(self, registrations: int = 1) -> Deferred[None]:
        """A Deferred that fires when the homeserver has nothing more to send to its observers."""
        return until(
            lambda: (
                self.gateway.observations == registrations
                and len([each for each in self.homeserver.subscriptions if each.waiting]) == registrations
            )
        )

    async def test_one_observation_for_all_polls(self) -> None:
        proxy, alice = self.start()
        await alice.poll(0)
        for text in "abc":
            asking = alice.ask()
            await self.is_waiting()
            self.homeserver.say(text)
            alice.take(await asking)
        self.assertEqual(alice.timeline, ["a", "b", "c"])
        assert self.gateway.observer is not None
        self.assertEqual(self.gateway.observer.counters.registrations, 1)
        self.assertEqual(proxy.status()["syncs"], {"observed": 3, "quiet": 0, "polled": 1})

    async def test_what_happens_between_polls(self) -> None:
        _, alice = self.start()
        await alice.poll(0)
        self.homeserver.say("before the observation")
        await alice.poll()
        for text in ("a", "b"):
            self.homeserver.say(text)
            self.homeserver.say(text * 2)
            while alice.timeline[-1] != text * 2:
                await alice.poll()
        self.assertEqual(alice.timeline, ["before the observation", "a", "aa", "b", "bb"])

    async def test_timeout(self) -> None:
        """Nothing happens: the client hears so in time, and how many keys there are."""
        proxy, alice = self.start()
        await alice.poll(0)
        since = alice.since
        body = await alice.poll(100)
        self.assertEqual(body["next_batch"], since)
        self.assertEqual(body["device_one_time_keys_count"], {"signed_curve25519": 0})
        self.assertEqual(body["device_unused_fallback_key_types"], [])
        syncs = len(self.homeserver.syncs)
        for _ in range(3):
            await alice.poll(50)
        self.assertEqual(len(self.homeserver.syncs), syncs, "the homeserver was asked")
        self.assertEqual(proxy.status()["syncs"]["quiet"], 4)

    async def test_no_timeout(self) -> None:
        """Who does not wait is told how things are at this moment, whatever the observation knows."""
        proxy, alice = self.start()
        await alice.poll(0)
        await alice.poll(50)
        self.homeserver.latency = 0.05
        self.homeserver.say("now")
        await alice.poll(0)
        self.assertEqual((alice.timeline, proxy.status()["syncs"]["polled"]), (["now"], 2))

    async def test_place_after_nothing(self) -> None:
        """A client that has heard of nothing goes on from where that ends, or from where it was."""
        _, alice = self.start()
        await alice.poll(0)
        before = alice.since
        self.homeserver.change_something_hidden()
        body = await alice.poll(100)
        self.assertEqual((before, body["next_batch"]), ("s0", "s1"))
        for since in (before, "s1"):
            got = await alice.ask(50, since)
            self.assertEqual(got.json["next_batch"], "s1")
        assert self.gateway.observer is not None
        self.assertEqual(self.gateway.observer.counters.registrations, 1)

    async def test_acknowledged_by_the_next_since_only(self) -> None:
        """Synapse has a to-device message until the client has said that it has processed it."""
        _, alice = self.start()
        await alice.poll(0)
        asking = alice.ask()
        await self.is_waiting()
        self.homeserver.send_to_device("key")
        first = await asking
        self.assertEqual(letters(first.json), ["key"])
        self.homeserver.change_something_hidden()
        await deferLater(REACTOR, 0.05)
        self.assertEqual(len(self.homeserver.to_device), 1)
        self.assertEqual(letters((await alice.ask()).json), ["key"], "the answer was lost on its way")
        self.assertEqual(len(self.homeserver.to_device), 1)
        alice.take(first)
        asking = alice.ask()
        await until(lambda: not self.homeserver.to_device)
        self.homeserver.say("later")
        alice.take(await asking)
        self.assertEqual((alice.letters, alice.timeline), (["key"], ["later"]))

    async def test_old_since(self) -> None:
        """It gets what has happened since, from any place."""
        _, alice = self.start()
        await alice.poll(0)
        start = alice.since
        for text in "abc":
            asking = alice.ask()
            await self.is_waiting()
            self.homeserver.say(text)
            alice.take(await asking)
        for _ in range(3):
            got = await alice.ask(since=start)
            self.assertEqual(timeline(got.json), ["a", "b", "c"])
        middle = await alice.ask(since="s2")
        self.assertEqual(timeline(middle.json), ["c"])
        asking = alice.ask()
        await deferLater(REACTOR, 0.02)
        self.homeserver.say("d")
        self.assertEqual(timeline((await asking).json), ["d"])

    async def test_repeated_since_sees_what_is_new(self) -> None:
        """Somebody who never goes on is told of everything each time."""
        _, alice = self.start()
        await alice.poll(0)
        start = alice.since
        for number, text in enumerate("abc", 1):
            self.homeserver.say(text)
            got = await alice.ask(since=start)
            self.assertEqual(timeline(got.json), list("abc")[:number])

    async def test_several_clients_devices_and_filters(self) -> None:
        proxy, http = self.start_proxy(self.start_gateway())
        pollers = [
            Poller(http, "alice-1"),
            Poller(http, "alice-1", "&filter=7"),
            Poller(http, "alice-2"),
            Poller(http, "bob-1", f"&filter={quote(json.dumps({'room': {}}))}"),
        ]
        await gatherResults([Deferred.fromCoroutine(each.poll(0)) for each in pollers])
        for round_ in range(3):
            asking = [each.ask() for each in pollers]
            await self.is_waiting(4)
            self.homeserver.say(f"{round_}")
            for poller, got in zip(pollers, await gatherResults(asking), strict=True):
                poller.take(got)
        self.assertEqual([each.timeline for each in pollers], [["0", "1", "2"]] * 4)
        self.assertEqual(proxy.status()["associations"], 3)
        filters = {query.get("filter") for query in self.homeserver.syncs}
        self.assertEqual(filters, {None, "7", '{"room": {}}'})

    async def test_two_clients_with_one_token(self) -> None:
        """They wait at the same place, and both hear; then one is ahead of the other."""
        _, one = self.start()
        two = Poller(one.http)
        await one.poll(0)
        await two.poll(0)
        for text in "abc":
            asking = [one.ask(), two.ask()]
            await until(lambda: self.gateway.observations)
            await deferLater(REACTOR, 0.02)
            self.homeserver.say(text)
            one.take(await asking[0])
            if text != "b":
                two.take(await asking[1])
            else:
                asking[1].addErrback(lambda _: None)
                await asking[1]
        self.assertEqual(one.timeline, ["a", "b", "c"])
        while two.timeline[-1] != "c":
            await two.poll()
        self.assertEqual(two.timeline, ["a", "b", "c"])

    async def test_more_clients_than_observations(self) -> None:
        self.patch(sync_module, "MOST", 2)
        _, first = self.start()
        pollers = [first, *(Poller(first.http, more=f"&filter={number}") for number in range(3))]
        self.homeserver.say("before")
        for poller in pollers:
            await poller.poll(0)
        asking = [poller.ask(5000) for poller in pollers[:2]]
        await self.is_waiting(2)
        # Those that come too late ask the homeserver themselves; this one never waits.
        for poller in pollers[2:]:
            await poller.poll(5000)
        self.homeserver.say("news")
        for poller, answer in zip(pollers[:2], await gatherResults(asking), strict=True):
            poller.take(answer)
        for poller in pollers[2:]:
            await poller.poll(5000)
        self.assertEqual([each.timeline for each in pollers], [["before", "news"]] * 4)

    async def test_client_that_does_not_come_back(self) -> None:
        """Its observation ends, and what it has not processed is there when it comes."""
        proxy, alice = self.start(linger=1.0)
        await alice.poll(0)
        asking = alice.ask()
        await self.is_waiting()
        self.homeserver.send_to_device("key")
        await asking
        assert self.gateway.observer is not None
        counters = self.gateway.observer.counters
        self.assertEqual(counters.delivered, 1)
        await until(lambda: not proxy.status()["observations"])
        await until(lambda: not self.gateway.observations)
        self.assertEqual(counters.delivered, 1, "it was acknowledged")
        self.assertEqual(letters(await alice.poll()), ["key"])
        asking = alice.ask()
        await self.is_waiting()
        self.homeserver.say("later")
        alice.take(await asking)
        self.assertEqual((alice.letters, alice.timeline), (["key"], ["later"]))

    async def test_client_that_goes_away_while_it_waits(self) -> None:
        proxy, alice = self.start(linger=1.0)
        await alice.poll(0)
        asking = alice.ask()
        await self.is_waiting()
        asking.addErrback(lambda _: None)
        asking.cancel()
        await until(lambda: not proxy.status()["observations"])
        await until(lambda: not self.gateway.observations)

    async def test_full_state_and_no_token(self) -> None:
        proxy, alice = self.start()
        await alice.poll(0)
        alice.more = "&full_state=true"
        await alice.poll(1000)
        self.assertEqual(self.homeserver.syncs[-1]["full_state"], "true")
        got = await alice.http.get(f"{SYNC}?since=s0&timeout=1000")
        self.assertEqual(got.status, 401)
        self.assertEqual(proxy.status()["observations"], 0)

    async def test_token_ends(self) -> None:
        proxy, alice = self.start()
        await alice.poll(0)
        asking = alice.ask()
        await self.is_waiting()
        self.homeserver.revoke("alice-1")
        for got in (await asking, await alice.ask()):
            self.assertEqual((got.status, got.json), (401, UNKNOWN_TOKEN))
        self.assertEqual(proxy.status()["observations"], 0)

    async def test_homeserver_refuses(self) -> None:
        _, alice = self.start()
        alice.since = "s0"
        self.homeserver.answer = lambda _: MatrixResponse(400, {"errcode": "M_UNKNOWN", "error": "no"})
        got = await alice.ask()
        self.assertEqual((got.status, got.json["errcode"]), (400, "M_UNKNOWN"))

    async def test_server_restarts(self) -> None:
        self.patch(sync_observer, "RESTART_DELAY", 0.0)
        server = self.start_gateway()
        _, http = self.start_proxy(server)
        alice = Poller(http)
        await alice.poll(0)
        for text in "ab":
            asking = alice.ask()
            await self.is_waiting()
            server = await self.restart(server)
            self.homeserver.say(text)
            alice.take(await asking)
        self.assertEqual(alice.timeline, ["a", "b"])

    async def restart(self, server: Server) -> Server:
        """Crash, and come back."""
        port = server.port
        await server.stop(silently=True)
        self.homeserver.subscriptions.clear()
        return self.start_gateway(port)

    async def test_server_that_is_gone(self) -> None:
        """A client is not told that nothing has happened when nobody knows."""
        self.patch(sync_module, "PATIENCE", 0.5)
        server = self.start_gateway()
        _, http = self.start_proxy(server)
        alice = Poller(http)
        await alice.poll(0)
        asking = alice.ask(4000)
        await self.is_waiting()
        await server.stop(silently=True)
        got = await asking
        self.assertEqual((got.status, got.json["errcode"]), (504, "M_UNKNOWN"))

    async def test_bad_network(self) -> None:
        """A quarter is lost, and much comes twice or late; the client gets everything once, in its order."""
        server = self.start_gateway()
        relay = LossyRelay(REACTOR, server=("127.0.0.1", server.port), seed=4)
        relay.start()
        self.addCleanup(relay.stop)
        _, http = self.start_proxy(server, coaps=f"127.0.0.1:{relay.port}")
        alice = Poller(http)
        await alice.poll(0)
        relay.set_weather(Weather(loss=0.25, duplication=0.2, reordering=0.2))
        said = [f"{number}" for number in range(20)]
        for delay, text in enumerate(said):
            REACTOR.callLater(0.03 * delay, self.homeserver.say, text)
            REACTOR.callLater(0.03 * delay, self.homeserver.send_to_device, text)
        while alice.timeline[-1:] != said[-1:] or alice.letters[-1:] != said[-1:]:
            got = await alice.ask(5000)
            if got.status == 200:
                alice.take(got)
            else:
                self.assertIn(got.status, (502, 504))
        self.assertEqual((alice.timeline, alice.letters), (said, said))
        relay.set_weather(CLEAR)

    async def test_server_that_does_not_notify(self) -> None:
        proxy, http = self.start_proxy(self.start_gateway(observed=False))
        alice = Poller(http)
        await alice.poll(0)
        self.homeserver.say("a")
        await alice.poll(5000)
        self.homeserver.say("b")
        await alice.poll(5000)
        self.assertEqual(alice.timeline, ["a", "b"])
        self.assertEqual(proxy.status()["syncs"]["observed"], 2)

    async def test_without_observe(self) -> None:
        proxy, alice = self.start(observe=False)
        await alice.poll(0)
        self.homeserver.say("a")
        await alice.poll()
        self.assertEqual((alice.timeline, proxy.status()["observations"]), (["a"], 0))
        self.assertEqual(self.homeserver.syncs[-1]["timeout"], "30000")


class KeyCountTests(SyncTestCase):
    async def test_uploaded_keys_are_counted(self) -> None:
        """A client that is told an old count would upload keys again and again."""
        counts = {"signed_curve25519": 50}

        def serve(request: MatrixRequest) -> MatrixResponse | None:
            if request.path.endswith(b"/keys/upload"):
                return MatrixResponse(200, {"one_time_key_counts": counts})
            return None

        self.homeserver.answer = serve
        _, http = self.start_proxy(self.start_gateway())
        alice = Poller(http)
        await alice.poll(0)
        body = await alice.poll(50)
        self.assertEqual(body["device_one_time_keys_count"], {"signed_curve25519": 0})
        keys = {"one_time_keys": {}, "fallback_keys": {"signed_curve25519:AAAA": {"key": "k"}}}
        await http.post("/_matrix/client/v3/keys/upload", keys, "alice-1")
        body = await alice.poll(50)
        self.assertEqual(body["device_one_time_keys_count"], counts)
        self.assertEqual(body["device_unused_fallback_key_types"], ["signed_curve25519"])
