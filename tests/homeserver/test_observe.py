# SPDX-License-Identifier: AGPL-3.0-or-later
"""A real Synapse whose /sync is observed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, ClassVar

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from synapse_lb.client import ClientVerification, LowBandwidthClient, Observation, State
from synapse_lb.client.errors import TokenRejected
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import Options, encode_uint
from synapse_lb.msc3079.mapping import decode_response, encode_request
from synapse_lb.testing.throwaway import ThrowawayHomeserver
from tests.e2e.harness import RawPeer
from tests.homeserver.test_synapse import V3, SynapseTestCase, until

REACTOR: Any = reactor
SLIDING = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
_numbers = itertools.count(1)


async def until_equal(read: Callable[[], Any], value: Any) -> None:
    """Wait until something is as it should be."""
    await until(lambda: read() == value)


class Person:
    """A user, who acts over HTTP."""

    def __init__(self, homeserver: ThrowawayHomeserver) -> None:
        self.homeserver = homeserver
        registered = homeserver.register(f"person{next(_numbers)}")
        self.id, self.token = str(registered["user_id"]), str(registered["access_token"])

    def http(self, method: str, path: str, body: Any = None) -> Any:
        """A request that must succeed."""
        status, answer = self.homeserver.request(method, path, body, self.token)
        assert status == 200, (method, path, status, answer)
        return answer

    def room(self) -> str:
        """A new room."""
        return str(self.http("POST", f"{V3}/createRoom", {"preset": "public_chat"})["room_id"])

    def join(self, room: str) -> None:
        """Join a room."""
        self.http("POST", f"{V3}/rooms/{room}/join", {})

    def say(self, room: str, text: str) -> None:
        """Send a message."""
        path = f"{V3}/rooms/{room}/send/m.room.message/{next(_numbers)}"
        self.http("PUT", path, {"msgtype": "m.text", "body": text})

    def set_data(self, value: int) -> None:
        """Change one's account data."""
        self.http("PUT", f"{V3}/user/{self.id}/account_data/org.example", {"value": value})

    def send_to_device(self, user: Person, key: str) -> None:
        """Send something to all devices of a user."""
        body = {"messages": {user.id: {"*": {"key": key}}}}
        self.http("PUT", f"{V3}/sendToDevice/org.example/{next(_numbers)}", body)

    def since(self) -> str:
        """The present end of one's streams."""
        return str(self.http("GET", f"{V3}/sync?set_presence=offline")["next_batch"])


class Bodies(list[Any]):
    """Takes what an observation gives.

    Attributes:
        hold: leaves everything unprocessed from now on.
    """

    hold = False

    def __init__(self) -> None:
        super().__init__()
        self._held: list[Deferred[None]] = []

    def __call__(self, body: Any) -> Deferred[None] | None:
        self.append(body)
        if not self.hold:
            return None
        self._held.append(Deferred())
        return self._held[-1]

    def release(self) -> None:
        """What is held counts as processed; an observation that ends waits for that."""
        while self._held:
            self._held.pop().callback(None)

    @property
    def messages(self) -> list[str]:
        """The texts of all messages."""
        rooms = [room for body in self for room in body.get("rooms", {}).get("join", {}).values()]
        events = [event for room in rooms for event in room.get("timeline", {}).get("events", [])]
        return [event["content"]["body"] for event in events if event["type"] == "m.room.message"]

    @property
    def keys(self) -> list[str]:
        """All to-device messages."""
        return [
            event["content"]["key"] for body in self for event in body.get("to_device", {}).get("events", [])
        ]

    @property
    def data(self) -> list[int]:
        """All values of account data."""
        events = [event for body in self for event in body.get("account_data", {}).get("events", [])]
        return [event["content"]["value"] for event in events if event["type"] == "org.example"]


class ObserveTests(SynapseTestCase):
    """What an observer gets."""

    def setUp(self) -> None:
        super().setUp()
        self.alice, self.bob = Person(self.homeserver), Person(self.homeserver)
        self.errors = len(self.homeserver.error_lines())

    def tearDown(self) -> None:
        self.assertEqual(self.homeserver.error_lines()[self.errors :], [])

    def options(self) -> dict[str, Any]:
        return {"presence": False}

    async def observe(
        self,
        person: Person,
        since: str | None = None,
        client: LowBandwidthClient | None = None,
        **options: Any,
    ) -> tuple[Observation, Bodies]:
        """Observe, and wait until the server notifies."""
        bodies = Bodies()
        client = client or self.client()
        observation = client.observe_sync(since, bodies, token=person.token, **options)
        self.addCleanup(observation.stop)
        self.addCleanup(bodies.release)
        await until(lambda: bodies and observation.state is State.OBSERVING)
        return observation, bodies

    def syncs(self) -> int:
        """How many syncs have run."""
        return len(self.access_lines(f"{V3}/sync")) + len(self.access_lines("/_matrix/client/r0/sync"))

    async def test_a_message_is_pushed(self) -> None:
        room = self.bob.room()
        self.alice.join(room)
        _, bodies = await self.observe(self.alice)
        for number in range(3):
            self.bob.say(room, f"message {number}")
            await until_equal(lambda: len(bodies.messages), number + 1)
        self.assertEqual(bodies.messages, ["message 0", "message 1", "message 2"])
        self.assertEqual(len({body["next_batch"] for body in bodies}), len(bodies))

    async def test_a_room_that_is_joined_later(self) -> None:
        _, bodies = await self.observe(self.alice)
        room = self.bob.room()
        self.alice.join(room)
        self.bob.say(room, "welcome")
        await until(lambda: bodies.messages == ["welcome"])

    async def test_many_at_once(self) -> None:
        room = self.bob.room()
        self.alice.join(room)
        # A room of which more than this happens between two results has a gap, as with any sync.
        limit: Any = {"room": {"timeline": {"limit": 100}}}
        _, bodies = await self.observe(self.alice, self.alice.since(), filter=limit)
        before = self.syncs()
        for number in range(30):
            self.bob.say(room, f"{number} " + "x" * 3000)
        await until(lambda: len(bodies.messages) == 30)
        self.assertEqual([text.split()[0] for text in bodies.messages], [str(number) for number in range(30)])
        self.assertLessEqual(self.syncs() - before, 2 * 30 + 5)

    async def test_nothing_while_nothing_happens(self) -> None:
        client = self.client()
        _, bodies = await self.observe(self.alice, self.alice.since(), client)
        await deferLater(REACTOR, 0.5)
        syncs, received = self.syncs(), client.counters.datagrams_received
        # Others have their own affairs.
        self.bob.say(self.bob.room(), "to myself")
        await deferLater(REACTOR, 3)
        self.assertEqual((self.syncs(), len(bodies)), (syncs, 1))
        self.assertEqual(client.counters.datagrams_received, received)

    async def test_what_a_filter_hides_is_not_sent_and_hides_nothing(self) -> None:
        """Synapse keeps a result for two minutes, empty or not, and gives it again for the same `since`."""
        room = self.bob.room()
        self.alice.join(room)
        quiet: Any = {"room": {"rooms": []}}
        _, bodies = await self.observe(self.alice, self.alice.since(), filter=quiet)
        for number in range(3):
            before = self.syncs()
            self.bob.say(room, f"hidden {number}")
            await until_equal(self.syncs, before + 1)
        self.assertEqual(len(bodies), 1)
        for value in range(2):
            self.alice.set_data(value)
            await until_equal(lambda: bodies.data, list(range(value + 1)))
        self.assertEqual((bodies.messages, len(bodies)), ([], 3))

    async def test_a_to_device_message_that_was_not_processed_is_not_lost(self) -> None:
        client = self.client()
        _, bodies = await self.observe(self.alice, client=client)
        since = bodies[-1]["next_batch"]
        bodies.hold = True
        self.bob.send_to_device(self.alice, "one")
        await until(lambda: bodies.keys == ["one"])
        self.bob.send_to_device(self.alice, "two")
        await deferLater(REACTOR, 0.3)
        self.assertEqual(bodies.keys, ["one"])
        await client.close()  # It has crashed, and comes back with what it has processed.
        observation, again = await self.observe(self.alice, since)
        await until(lambda: again.keys == ["one", "two"])
        self.alice.set_data(1)
        await until(lambda: again.data)
        await observation.stop()
        # Now that it was processed, it is gone. (With a timeout, or Synapse would give what it has in its cache.)
        rest = self.alice.http("GET", f"{V3}/sync?since={since}&timeout=1")
        self.assertNotIn("to_device", rest)

    async def test_more_to_device_messages_than_synapse_gives_at_once(self) -> None:
        _, bodies = await self.observe(self.alice)
        bodies.hold = True
        self.bob.send_to_device(self.alice, "0")
        await until(lambda: bodies.keys)
        for number in range(1, 150):
            self.bob.send_to_device(self.alice, str(number))
        _, again = await self.observe(self.alice, bodies[0]["next_batch"])
        await until(lambda: len(again.keys) == 150)
        self.assertEqual(again.keys, [str(number) for number in range(150)])

    async def test_logging_out_ends_it_at_once(self) -> None:
        observation, _ = await self.observe(self.alice)
        self.alice.http("POST", f"{V3}/logout", {})
        await until(lambda: observation.state is State.ENDED)
        ended: list[TokenRejected] = []

        def keep(failure: Failure) -> None:
            assert isinstance(failure.value, TokenRejected)
            ended.append(failure.value)

        observation.done.addErrback(keep)
        assert ended[0].matrix is not None
        self.assertEqual(
            ended[0].matrix.body,
            {"errcode": "M_UNKNOWN_TOKEN", "error": "Unrecognised access token", "soft_logout": False},
        )

    async def test_deactivation_ends_it_at_once(self) -> None:
        observation, _ = await self.observe(self.alice)
        identifier = {"type": "m.id.user", "user": self.alice.id}
        auth = {"type": "m.login.password", "password": "correct horse battery", "identifier": identifier}
        self.alice.http("POST", f"{V3}/account/deactivate", {"auth": auth})
        await until(lambda: observation.state is State.ENDED)
        await self.assertFailure(observation.done, TokenRejected)

    async def test_two_devices_and_two_observations_of_one(self) -> None:
        client = self.client()
        observed = [await self.observe(self.alice, client=client) for _ in range(2)]
        observed.append(await self.observe(self.alice))
        self.alice.set_data(7)
        await until(lambda: [bodies.data for _, bodies in observed] == [[7]] * 3)

    async def test_deregistration(self) -> None:
        client = self.client()
        observation, bodies = await self.observe(self.alice, client=client)
        await observation.stop()
        syncs = self.syncs()
        self.alice.set_data(7)
        await deferLater(REACTOR, 0.5)
        self.assertEqual((self.syncs(), bodies.data), (syncs, []))

    async def test_full_state_comes_once(self) -> None:
        room = self.alice.room()
        _, bodies = await self.observe(self.alice, self.alice.since(), full_state=True)

        def state(body: Any) -> set[str]:
            """The types of the state in a body."""
            return {event["type"] for event in body["rooms"]["join"][room].get("state", {}).get("events", [])}

        self.assertIn("m.room.create", state(bodies[0]))
        self.alice.say(room, "hello")
        await until(lambda: bodies.messages == ["hello"])
        self.assertEqual(state(bodies[-1]), set())

    async def test_sliding_sync(self) -> None:
        room = self.bob.room()
        self.alice.join(room)
        wanted = {
            "lists": {"all": {"ranges": [[0, 9]], "required_state": [], "timeline_limit": 5}},
            "extensions": {
                "to_device": {"enabled": True},
                "account_data": {"enabled": True},
                "e2ee": {"enabled": True},
            },
        }
        bodies: list[Any] = []
        observation = self.client().observe(
            SLIDING, handler=bodies.append, json=wanted, token=self.alice.token
        )
        self.addCleanup(observation.stop)
        await until(lambda: bodies)
        self.assertIn(room, bodies[0]["rooms"])
        self.bob.say(room, "hello")
        await until(lambda: len(bodies) > 1)
        timeline = bodies[1]["rooms"][room]["timeline"]
        self.assertEqual([event["content"]["body"] for event in timeline], ["hello"])
        for key in ("one", "two"):
            self.bob.send_to_device(self.alice, key)
            await until_equal(lambda: _keys(bodies)[-1:], [key])
        await deferLater(REACTOR, 0.5)
        self.assertEqual(_keys(bodies), ["one", "two"])
        self.assertEqual(len({body["pos"] for body in bodies}), len(bodies))
        self.assertEqual(len(bodies), 4)


def _keys(bodies: list[Any]) -> list[str]:
    """The to-device messages of results of sliding sync."""
    events = [event for body in bodies for event in body["extensions"].get("to_device", {}).get("events", [])]
    return [event["content"]["key"] for event in events]


class PresenceTests(SynapseTestCase):
    """Whoever observes is there."""

    async def test_presence_while_observing(self) -> None:
        alice, bob = Person(self.homeserver), Person(self.homeserver)
        room = bob.room()
        alice.join(room)

        def seen(person: Person) -> Any:
            return bob.http("GET", f"{V3}/presence/{person.id}/status")["presence"]

        self.assertEqual(seen(alice), "offline")
        bodies = Bodies()
        client = self.client()
        observation = client.observe_sync(None, bodies, token=alice.token, set_presence="unavailable")
        await until(lambda: seen(alice) == "unavailable")
        bob.say(room, "a push is no sign of life")
        await until(lambda: bodies.messages)
        self.assertEqual(seen(alice), "unavailable")
        await observation.stop()
        observation = client.observe_sync(None, bodies, token=alice.token)
        await until(lambda: seen(alice) == "online")
        await observation.stop()


class ShutdownTests(SynapseTestCase):
    """Stopping and switching off."""

    running: ClassVar[dict[type, ThrowawayHomeserver]] = {}

    async def test_a_stop_is_told(self) -> None:
        homeserver = ThrowawayHomeserver(presence=False)
        self.addCleanup(homeserver.stop)
        homeserver.start()
        alice = Person(homeserver)
        peer = RawPeer()
        self.addCleanup(peer.close)
        await peer.open("127.0.0.1", homeserver.ports.lowbandwidth)
        code, pairs, _ = encode_request("GET", f"{V3}/sync", token=alice.token)
        peer.request(code, Options.of(*pairs, (OptionNumber.OBSERVE, encode_uint(0))))
        first = await peer.response()
        self.assertEqual(first.code, Code.CONTENT)
        self.assertEqual(first.options.get_uint(OptionNumber.MAX_AGE), 65535)
        self.assertIn(OptionNumber.ETAG, first.options)  # It has further blocks.
        self.assertEqual(homeserver.halt(), 0)
        last = await peer.find(lambda message: message.code == Code.SERVICE_UNAVAILABLE, "5.03")
        self.assertEqual(last.type, Type.CON)
        self.assertNotIn(OptionNumber.OBSERVE, last.options)
        answer = decode_response(last.code, last.options, last.payload)
        self.assertEqual((answer.status, answer.retry_after), (503, 5.0))
        await peer.until(lambda: peer.lost is not None, "close_notify")
        self.assertEqual(homeserver.error_lines(), [])

    async def test_switched_off(self) -> None:
        homeserver = ThrowawayHomeserver(presence=False, lowbandwidth_options={"observe": False})
        self.addCleanup(homeserver.stop)
        homeserver.start()
        alice = Person(homeserver)
        _, versions = homeserver.request("GET", "/_matrix/client/versions")
        self.assertNotIn("observe", versions["org.matrix.msc3079.low_bandwidth"])
        client = LowBandwidthClient(REACTOR, homeserver.coaps_url, verification=ClientVerification.none())
        self.addCleanup(client.close)
        bodies = Bodies()
        observation = client.observe_sync(None, bodies, token=alice.token)
        self.addCleanup(observation.stop)
        await until(lambda: bodies)
        alice.set_data(3)
        await until(lambda: bodies.data == [3])
        self.assertIn(
            " 200 ", "".join(line for line in homeserver.log_text().splitlines() if "timeout=" in line)
        )
