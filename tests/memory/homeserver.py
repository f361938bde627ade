# SPDX-License-Identifier: AGPL-3.0-or-later
"""A small homeserver that treats its data as Synapse does, behind the real gateway and the real DTLS port.

`Store` is the database: it survives. `Homeserver` is a process in front of it, with everything that such a process has
in its memory: the cache of sync results, the transaction ids of to-device messages, requests on their way, who waits
for news. What matters of Synapse:

- A to-device message is deleted when a sync shows a `since` after it, and at most so many are in one result.
- An event is stored once for each transaction id. A to-device message is stored again when its transaction id comes
  again after a restart.
- A result that brings something is kept for two minutes, and is the answer to further syncs with the same `since`.
- A request whose client has gone is carried out all the same.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qs, unquote

import attrs
from twisted.internet.defer import Deferred

from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.server.dispatcher import Address
from synapse_lb.server.gateway import Gateway
from synapse_lb.server.news import NewsSubscription
from synapse_lb.txdtls.context import ServerContext
from synapse_lb.txdtls.options import ServerOptions
from synapse_lb.txdtls.port import DTLSServerPort
from tests.memory.network import SERVER, BadNetwork, Machine

MAX_TO_DEVICE: Final = 20
"""To-device messages in one result (100 in Synapse)."""

CACHED: Final = 120.0
"""s: a result is kept (Synapse's `sync_response_cache_duration`)."""

Place = tuple[int, int, int]
"""Events, to-device messages and other things that a sync has seen."""


@attrs.frozen
class Message:
    """An event of a room, or a to-device message.

    Attributes:
        number: its place in its stream.
        room: which room; None for a to-device message.
        recipient: whose inbox it is put into; None for an event.
        sender: who sent it.
        content: what.
    """

    number: int
    room: str | None
    recipient: str | None
    sender: str
    content: dict[str, Any]


class Store:
    """What is on the disk.

    Attributes:
        events: all of them.
        to_device: all that were ever put into an inbox.
        inboxes: those that have not been deleted, by user.
        noise: changes that wake syncs up and bring nothing.
    """

    def __init__(self) -> None:
        self.events: list[Message] = []
        self.to_device: list[Message] = []
        self.inboxes: defaultdict[str, list[Message]] = defaultdict(list)
        self.noise = 0
        self._transactions: dict[tuple[str, str], int] = {}

    @property
    def place(self) -> Place:
        """The end of the streams."""
        return len(self.events), len(self.to_device), self.noise

    def add_event(self, room: str, sender: str, transaction: str, content: dict[str, Any]) -> int:
        """Store an event, unless it has been; its number."""
        known = self._transactions.get((sender, transaction))
        if known is not None:
            return known
        message = Message(len(self.events) + 1, room, None, sender, content)
        self.events.append(message)
        self._transactions[sender, transaction] = message.number
        return message.number

    def add_to_device(self, recipient: str, sender: str, content: dict[str, Any]) -> None:
        """Put a to-device message into an inbox."""
        message = Message(len(self.to_device) + 1, None, recipient, sender, content)
        self.to_device.append(message)
        self.inboxes[recipient].append(message)

    def sync(self, user: str, since: Place) -> dict[str, Any]:
        """The result of a sync, which deletes the to-device messages up to `since`."""
        events, to_device, noise = self.place
        inbox = [each for each in self.inboxes[user] if each.number > since[1]]
        self.inboxes[user] = inbox
        shown = inbox[:MAX_TO_DEVICE]
        if len(shown) < len(inbox):
            to_device = shown[-1].number
        rooms: dict[str, Any] = {}
        for event in self.events[since[0] : events]:
            assert event.room is not None
            joined = rooms.setdefault(event.room, {"timeline": {"events": [], "limited": False}})
            joined["timeline"]["events"].append(_client_event(event))
        body: dict[str, Any] = {
            "next_batch": format_place((events, to_device, noise)),
            "device_one_time_keys_count": {"signed_curve25519": 50},
        }
        if rooms:
            body["rooms"] = {"join": rooms}
        if shown:
            body["to_device"] = {
                "events": [
                    {"type": "m.test", "sender": each.sender, "content": each.content} for each in shown
                ]
            }
        return body


def _client_event(event: Message) -> dict[str, Any]:
    return {
        "type": "m.room.message",
        "event_id": f"${event.number}",
        "sender": event.sender,
        "content": event.content,
    }


def format_place(place: Place) -> str:
    """A `next_batch`."""
    return "s" + "_".join(str(each) for each in place)


def parse_place(text: str | None) -> Place:
    """The place that a `since` names; without one the beginning."""
    if not text:
        return 0, 0, 0
    events, to_device, noise = text.removeprefix("s").split("_")
    return int(events), int(to_device), int(noise)


@attrs.define
class Totals:
    """What all processes of a run have counted."""

    starts: int = 0
    handshakes: int = 0
    registrations: int = 0
    notifications: int = 0
    delivered: int = 0
    failed: int = 0
    empty: int = 0
    retransmissions: int = 0
    duplicates: int = 0


class Homeserver:
    """One process, from its start to its end.

    Args:
        network: where it listens.
        store: its database.
        random: how long things take, what fails, and the gateway's own.
        context: the DTLS settings.
        users: access tokens and whose they are.
        trouble: how often a request fails with 429 or 502.
        options: of DTLS.
    """

    def __init__(
        self,
        network: BadNetwork,
        store: Store,
        random: random.Random,
        context: ServerContext,
        users: dict[str, str],
        trouble: float,
        *,
        options: ServerOptions | None = None,
    ) -> None:
        self.store: Final = store
        self.machine: Final = Machine(network, SERVER[0])
        self.random: Final = random
        self._users = users
        self._trouble = trouble
        self._transactions: set[tuple[str, str]] = set()
        self._cache: dict[tuple[str, str], tuple[float, dict[str, Any]]] = {}
        self._subscriptions: set[Subscription] = set()
        self.gateway: Final = Gateway(self, clock=self.machine, random=random, news=self)
        options = options or ServerOptions(handshake_timeout=10.0)
        self.dtls: Final = DTLSServerPort(
            context=context, handler=self.gateway, options=options, reactor=self.machine
        )
        self.gateway.attach(self.dtls)
        self._listening = self.machine.listenUDP(SERVER[1], self.dtls)

    def stop(self) -> None:
        """End it as planned: everybody is told, once."""
        self.gateway.shutdown()
        self.dtls.shutdown()
        self.machine.kill()

    def kill(self) -> None:
        """End it."""
        self.machine.kill()

    def add_to(self, totals: Totals) -> None:
        """Add what it has counted."""
        observer, endpoint = self.gateway.observer, self.gateway.endpoint.counters
        assert observer is not None
        totals.starts += 1
        totals.handshakes += self.dtls.counters.handshakes_completed
        totals.registrations += observer.counters.registrations
        totals.notifications += observer.counters.notifications
        totals.delivered += observer.counters.delivered
        totals.failed += observer.counters.failed
        totals.empty += observer.counters.empty
        totals.retransmissions += endpoint.retransmissions
        totals.duplicates += endpoint.duplicates

    # A Dispatcher

    def dispatch(self, request: MatrixRequest, client: Address) -> Deferred[MatrixResponse]:
        """Serve a request: it takes a while until it is carried out, and a while until that is said."""
        answer: Deferred[MatrixResponse] = Deferred()
        self._later(self._carry_out, request, answer)
        return answer

    def _carry_out(self, request: MatrixRequest, answer: Deferred[MatrixResponse]) -> None:
        response = self._outcome(request)

        def say() -> None:
            if not answer.called:
                answer.callback(response)

        self._later(say)

    def _later(self, call: Callable[..., None], *arguments: object) -> None:
        self.machine.callLater(self.random.expovariate(20.0), call, *arguments)

    def _outcome(self, request: MatrixRequest) -> MatrixResponse:
        user = self._users.get(request.access_token or "")
        if user is None:
            return MatrixResponse(401, {"errcode": "M_UNKNOWN_TOKEN", "error": "Unknown token"})
        if self.random.random() < self._trouble:
            status = self.random.choice((429, 502, 503))
            return MatrixResponse(status, {"errcode": "M_UNKNOWN", "error": "Trouble"}, 1.0)
        parts = [unquote(part) for part in request.path.decode().split("/")[4:]]
        if parts == ["sync"]:
            since = parse_qs(request.query.decode()).get("since", [""])[0]
            return MatrixResponse(200, self._sync(user, since))
        if parts[0] == "rooms" and parts[2] == "send":
            number = self.store.add_event(parts[1], user, parts[4], request.body)
            body = {"event_id": f"${number}"}
        elif parts[0] == "sendToDevice":
            self._send_to_device(user, parts[2], request.body)
            body = {}
        else:
            return MatrixResponse(404, {"errcode": "M_UNRECOGNIZED", "error": "No such thing"})
        self.tell()
        return MatrixResponse(200, body)

    def _sync(self, user: str, since: str) -> dict[str, Any]:
        now = self.machine.seconds()
        kept_at, body = self._cache.get((user, since), (float("-inf"), {}))
        if now - kept_at > CACHED:
            body = self.store.sync(user, parse_place(since))
            if body["next_batch"] != since:
                self._cache[user, since] = now, body
        return dict(json.loads(json.dumps(body)))

    def _send_to_device(self, sender: str, transaction: str, body: Any) -> None:
        if (sender, transaction) in self._transactions:
            return
        self._transactions.add((sender, transaction))
        for recipient, devices in body["messages"].items():
            for content in devices.values():
                self.store.add_to_device(recipient, sender, content)

    # A NewsWaiter

    def subscribe(
        self, access_token: str, presence: str, on_revoked: Callable[[MatrixResponse], None]
    ) -> Deferred[NewsSubscription | None]:
        """Subscribe."""
        user = self._users.get(access_token)

        def subscribed() -> NewsSubscription | None:
            if user is None:
                return None
            subscription = Subscription(self, user)
            self._subscriptions.add(subscription)
            return subscription

        return self.after_a_while(subscribed)

    def after_a_while(self, result: Callable[[], Any]) -> Deferred[Any]:
        """A result that needs the database, at times."""
        waiting: Deferred[Any] = Deferred()

        def done() -> None:
            if not waiting.called:
                waiting.callback(result())

        if self.random.random() < 0.5:
            done()
        else:
            self._later(done)
        return waiting

    def tell(self) -> None:
        """Something is new."""
        for subscription in list(self._subscriptions):
            subscription.wake()

    def closed(self, subscription: Subscription) -> None:
        """A subscription has ended."""
        self._subscriptions.discard(subscription)

    @property
    def subscriptions(self) -> int:
        """How many there are."""
        return len(self._subscriptions)


class Subscription:
    """A `NewsSubscription`."""

    def __init__(self, homeserver: Homeserver, user: str) -> None:
        self.user_id: Final = user
        self._homeserver = homeserver
        self._waiting: tuple[Place, Deferred[None]] | None = None

    def position(self) -> Deferred[Place]:
        """Where the streams are."""
        return self._homeserver.after_a_while(lambda: self._homeserver.store.place)

    def covers(self, position: Place, batch: str) -> Deferred[bool]:
        """Whether a result goes so far."""
        ends = parse_place(batch)
        return self._homeserver.after_a_while(lambda: all(map(int.__ge__, ends, position)))

    def news(self, position: Place) -> Deferred[None]:
        """Wait until the streams are elsewhere."""
        waiting: Deferred[None] = Deferred(self._cancel)
        self._waiting = position, waiting
        self.wake()
        return waiting

    def wake(self) -> None:
        """Look again."""
        if self._waiting is not None and self._waiting[0] != self._homeserver.store.place:
            waiting, self._waiting = self._waiting[1], None
            waiting.callback(None)

    def close(self) -> None:
        """End it."""
        self._waiting = None
        self._homeserver.closed(self)

    def _cancel(self, _: object) -> None:
        self._waiting = None
