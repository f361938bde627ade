# SPDX-License-Identifier: AGPL-3.0-or-later
"""A homeserver of a few lines that behaves as Synapse does where observers depend on it, and observing clients."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.events import (
    CoapRequest,
    CoapResponse,
    Event,
    NotificationReceived,
    Peer,
    RequestFailed,
    ResponseReceived,
)
from synapse_lb.coap.numbers import OptionNumber
from synapse_lb.coap.observe import DEREGISTER, REGISTER
from synapse_lb.coap.options import Options, encode_uint
from synapse_lb.coap.tuning import Limits, Tuning
from synapse_lb.msc3079.mapping import decode_response, encode_request
from synapse_lb.msc3079.messages import NO_BODY, MatrixRequest, MatrixResponse
from synapse_lb.server.dispatcher import Address
from synapse_lb.server.gateway import Gateway
from synapse_lb.server.news import NewsSubscription
from synapse_lb.server.sync_observer import ObserveOptions
from synapse_lb.testing.lossy import LossyLink
from tests.server.test_gateway import Client, FakePort

SYNC = "/_matrix/client/v3/sync"
SLIDING = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
UNKNOWN_TOKEN = {"errcode": "M_UNKNOWN_TOKEN", "error": "Unrecognised access token", "soft_logout": False}


@attrs.define(eq=False)
class FakeSubscription:
    """A `NewsSubscription` of a `FakeHomeserver`."""

    homeserver: FakeHomeserver
    user_id: str
    token: str
    presence: str
    on_revoked: Callable[[MatrixResponse], None]
    waiting: Deferred[None] | None = None
    closed: int = 0

    def position(self) -> Deferred[int]:
        return succeed(self.homeserver.position)

    def covers(self, position: int, batch: str) -> Deferred[bool]:
        return succeed(int(batch.rpartition("s")[2]) >= position)

    def news(self, position: int) -> Deferred[None]:
        waiting: Deferred[None] = Deferred(lambda _: setattr(self, "waiting", None))
        if position != self.homeserver.position:
            self.homeserver.wakes += 1
            waiting.callback(None)
        else:
            self.waiting = waiting
        return waiting

    def close(self) -> None:
        self.closed += 1


class FakeHomeserver:
    """One stream for everybody: messages, to-device messages, and changes that a filter hides.

    Attributes:
        latency: seconds that a sync takes; None leaves it until `release`.
        answer: replaces what the next syncs say.
        cached: results by `since` that are given instead of new ones, as Synapse's response cache does.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.position = 0
        self.messages: list[tuple[int, str]] = []
        self.to_device: list[tuple[int, str]] = []
        self.users = {"alice-1": "@alice:x", "alice-2": "@alice:x", "bob-1": "@bob:x"}
        self.syncs: list[dict[str, str]] = []
        self.requests: list[tuple[MatrixRequest, Address]] = []
        self.sizes: list[object] = []
        self.running = self.most_running = self.cancelled = self.wakes = 0
        self.latency: float | None = 0.0
        self.answer: Callable[[MatrixRequest], MatrixResponse | None] = lambda _: None
        self.cached: dict[str | None, dict[str, Any]] = {}
        self.subscriptions: list[FakeSubscription] = []
        self._held: list[Callable[[], None]] = []
        self.subscribing: Callable[[FakeSubscription], Deferred[NewsSubscription | None]] = succeed

    # What happens

    def _moved(self) -> int:
        self.position += 1
        return self.position

    def say(self, text: str) -> None:
        """A message in a room of everybody's."""
        self.messages.append((self._moved(), text))
        self.wake()

    def send_to_device(self, text: str) -> None:
        """A to-device message to everybody's device."""
        self.to_device.append((self._moved(), text))
        self.wake()

    def change_something_hidden(self) -> None:
        """Something that wakes everybody and that nobody's filter lets through."""
        self._moved()
        self.wake()

    def wake(self) -> None:
        """As Synapse's notifier."""
        for subscription in self.subscriptions:
            waiting, subscription.waiting = subscription.waiting, None
            if waiting is not None:
                self.wakes += 1
                waiting.callback(None)

    def revoke(self, token: str) -> None:
        """A logout."""
        self.users.pop(token)
        for subscription in [each for each in self.subscriptions if each.token == token]:
            if not subscription.closed:
                subscription.on_revoked(MatrixResponse(401, UNKNOWN_TOKEN))

    # NewsWaiter

    def subscribe(
        self, access_token: str, presence: str, on_revoked: Callable[[MatrixResponse], None]
    ) -> Deferred[NewsSubscription | None]:
        user = self.users.get(access_token)
        if user is None:
            return succeed(None)
        subscription = FakeSubscription(self, user, access_token, presence, on_revoked)
        self.subscriptions.append(subscription)
        return self.subscribing(subscription)

    @property
    def open(self) -> int:
        """How many subscriptions are not closed."""
        return len([each for each in self.subscriptions if not each.closed])

    # Dispatcher

    def dispatch(self, request: MatrixRequest, client: Address) -> Deferred[MatrixResponse]:
        self.requests.append((request, client))
        query = {name: values[0] for name, values in parse_qs(request.query.decode()).items()}
        self.syncs.append(query)
        self.running += 1
        self.most_running = max(self.most_running, self.running)

        def cancelled(_: object) -> None:
            self.running -= 1
            self.cancelled += 1

        done: Deferred[MatrixResponse] = Deferred(cancelled)

        def serve() -> None:
            if done.called:
                return
            self.running -= 1
            try:
                done.callback(self._serve(request, query))
            except Exception:
                done.errback(Failure())
            self.sizes.append(done.result)

        if self.latency is None:
            self._held.append(serve)
        else:
            self.clock.callLater(self.latency, serve)
        return done

    def release(self) -> None:
        """Let the syncs that are held be answered."""
        held, self._held = self._held, []
        for serve in held:
            serve()

    def _serve(self, request: MatrixRequest, query: dict[str, str]) -> MatrixResponse:
        if request.access_token not in self.users:
            return MatrixResponse(401, UNKNOWN_TOKEN)
        given = self.answer(request)
        if given is not None:
            return given
        since = query.get("since")
        number = int(since[1:]) if since else 0
        self.to_device = [each for each in self.to_device if each[0] > number]
        if since in self.cached:
            return MatrixResponse(200, self.cached[since])
        body: dict[str, Any] = {
            "next_batch": f"s{self.position}",
            "device_one_time_keys_count": {"signed_curve25519": 0},
            "device_unused_fallback_key_types": [],
        }
        if timeline := [text for position, text in self.messages if position > number]:
            body["rooms"] = {
                "join": {"!r:x": {"timeline": {"events": [{"body": text} for text in timeline]}}}
            }
        if letters := [text for position, text in self.to_device if position > number]:
            body["to_device"] = {"events": [{"body": text} for text in letters]}
        return MatrixResponse(200, body)


@attrs.define(eq=False)
class Seen:
    """What came of one registration."""

    exchange: int
    notifications: list[MatrixResponse] = attrs.field(factory=list)
    sequences: list[int] = attrs.field(factory=list)
    max_ages: list[int | None] = attrs.field(factory=list)
    last: CoapResponse | None = None
    error: Exception | None = None

    @property
    def final(self) -> MatrixResponse:
        """The response that ended it."""
        assert self.last is not None, self.notifications
        return decode_response(self.last.code, self.last.options, self.last.payload)

    @property
    def bodies(self) -> list[Any]:
        """The bodies of the notifications."""
        return [each.body for each in self.notifications]

    @property
    def timeline(self) -> list[str]:
        """The messages, in the order in which they came."""
        return [
            event["body"]
            for body in self.bodies
            for event in body.get("rooms", {})
            .get("join", {})
            .get("!r:x", {})
            .get("timeline", {})
            .get("events", [])
        ]

    @property
    def letters(self) -> list[str]:
        """The to-device messages."""
        return [
            event["body"] for body in self.bodies for event in body.get("to_device", {}).get("events", [])
        ]


class Observer(Client):
    """A client that observes.

    Attributes:
        processing: confirms what it is given at once; False leaves it to `confirm`.
        links: the way there and the way back; None loses nothing.
    """

    def __init__(self, gateway: Gateway, port: FakePort, clock: Clock, association_id: int) -> None:
        self.processing = True
        self.links: tuple[LossyLink, LossyLink] | None = None
        self.seen: dict[int, Seen] = {}
        super().__init__(gateway, port, clock, association_id)

    def observe(
        self,
        path: str = SYNC,
        *,
        token: str = "alice-1",
        body: Any = NO_BODY,
        value: int = REGISTER,
        code: int | None = None,
    ) -> Seen:
        """Register."""
        method = "GET" if body is NO_BODY else "POST"
        given, pairs, payload = encode_request(method, path, None, body, token=token)
        options = Options.of(*pairs).with_option(OptionNumber.OBSERVE, encode_uint(value))
        request = CoapRequest(given if code is None else code, options, payload)
        exchange = self.endpoint.request("server", request, self.driver.now())
        seen = self.seen[exchange] = Seen(exchange)
        self.driver.flush()
        return seen

    def ask_to_stop(self, path: str = SYNC, *, token: str = "alice-1") -> Seen:
        """Send Observe 1 with a token that has no observation."""
        return self.observe(path, token=token, value=DEREGISTER)

    def deregister(self, seen: Seen) -> None:
        """Send Observe 1 with the token of an observation."""
        self.endpoint.deregister(seen.exchange, self.driver.now())
        self.driver.flush()

    def forget(self, seen: Seen) -> None:
        """Answer the next notification with a Reset."""
        self.endpoint.cancel(seen.exchange, self.driver.now())
        self.driver.flush()

    def confirm(self, seen: Seen) -> None:
        """Say that the oldest notification was processed."""
        self.endpoint.confirm(seen.exchange, self.driver.now())
        self.driver.flush()

    def take(self, data: bytes) -> None:
        if self.links is None:
            super().take(data)
            return
        for delay in self.links[1].fate(data):
            self.clock.callLater(0.02 + delay, self.driver.receive, "server", data)

    def _send(self, peer: Peer, data: bytes) -> None:
        if self.links is None:
            super()._send(peer, data)
            return
        for delay in self.links[0].fate(data):
            self.clock.callLater(0.02 + delay, self.gateway.message_received, self.id, data)

    def _on_event(self, event: Event) -> None:
        seen = self.seen.get(getattr(event, "exchange", -1))
        if seen is None:
            super()._on_event(event)
        elif isinstance(event, NotificationReceived):
            response = event.response
            seen.notifications.append(decode_response(response.code, response.options, response.payload))
            seen.sequences.append(event.sequence)
            seen.max_ages.append(response.options.get_uint(OptionNumber.MAX_AGE))
            if self.processing:
                self.endpoint.confirm(event.exchange, self.driver.now())
        elif isinstance(event, ResponseReceived):
            seen.last = event.response
        elif isinstance(event, RequestFailed):
            seen.error = event.error


class ObserverTestCase(SynchronousTestCase):
    """A gateway with observers, in virtual time."""

    tuning = Tuning()
    limits = Limits()
    options = ObserveOptions()

    def setUp(self) -> None:
        self.clock = Clock()
        self.homeserver = FakeHomeserver(self.clock)
        self.port = FakePort()
        self.gateway = Gateway(
            self.homeserver,
            clock=self.clock,
            random=random.Random(1),
            tuning=self.tuning,
            limits=self.limits,
            news=self.homeserver,
            observe=self.options,
        )
        self.gateway.attach(self.port)
        self.alice = Observer(self.gateway, self.port, self.clock, 1)
        assert self.gateway.observer is not None
        self.counters = self.gateway.observer.counters

    def settle(self) -> None:
        """Let everything happen that takes no time."""
        for _ in range(1000):
            self.clock.advance(0)
            if not any(call.getTime() <= self.clock.seconds() for call in self.clock.calls):
                return
        self.fail("it never ends")

    def pass_time(self, seconds: float, step: float = 0.05) -> None:
        """Let time pass."""
        for _ in range(int(seconds / step)):
            self.clock.advance(step)

    def registered(self, path: str = SYNC, **options: Any) -> Seen:
        """Register, and get the first answer."""
        seen = self.alice.observe(path, **options)
        self.settle()
        self.assertEqual(len(seen.notifications), 1)
        return seen
