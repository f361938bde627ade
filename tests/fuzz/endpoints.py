# SPDX-License-Identifier: AGPL-3.0-or-later
"""Fuzz targets of the whole CoAP endpoint: a server, a client, and two endpoints on a network that the tape rules."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from synapse_lb.coap.block import Block
from synapse_lb.coap.endpoint import Endpoint
from synapse_lb.coap.errors import CoapError, MessageFormatError
from synapse_lb.coap.events import (
    CoapRequest,
    CoapResponse,
    NotificationDelivered,
    NotificationFailed,
    NotificationReceived,
    PongReceived,
    RequestCancelled,
    RequestFailed,
    RequestReceived,
    ResponseReceived,
    ResponseUndelivered,
)
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits, Tuning
from tests.fuzz.tape import Tape

LIMITS: Final = Limits(  # more dedup entries than there can be open requests: those are never evicted
    block_szx=1,
    max_request_body=200,
    max_response_body=400,
    max_reassemblies_per_peer=2,
    max_reassembly_bytes_per_peer=250,
    max_reassembly_bytes_total=400,
    max_exchanges_per_peer=3,
    max_observations_per_peer=2,
    dedup_entries_per_peer=6,
    dedup_bytes_per_peer=400,
    max_snapshots_per_peer=2,
    snapshot_bytes_per_peer=500,
    snapshot_bytes_total=800,
)
STEPS: Final = 60
DRAINED_AFTER: Final = 3000
"""Timers after which an endpoint that is left alone must have come to rest."""

PEERS: Final = ("one", "two")
WAITS: Final = (0.0, 0.05, 0.5, 2.5, 20.0, 300.0)


class _Server:
    """An endpoint and an application that answers as the tape says."""

    def __init__(self, seed: int) -> None:
        self.endpoint = Endpoint(random=random.Random(seed), limits=LIMITS)
        self.waiting: list[int] = []
        self.observed: set[int] = set()
        self.in_flight: set[int] = set()
        self.over: set[int] = set()

    def take_events(self) -> None:
        while (event := self.endpoint.next_event()) is not None:
            exchange = event.exchange
            assert exchange not in self.over, f"{event} after the end"
            if isinstance(event, RequestReceived):
                assert len(event.request.payload) <= LIMITS.max_request_body
                self.waiting.append(exchange)
            elif isinstance(event, NotificationDelivered):
                assert exchange in self.in_flight
                self.in_flight.discard(exchange)
            else:
                assert isinstance(event, (RequestCancelled, ResponseUndelivered, NotificationFailed)), event
                self._end(exchange)

    def _end(self, exchange: int) -> None:
        self.over.add(exchange)
        self.in_flight.discard(exchange)
        self.observed.discard(exchange)
        if exchange in self.waiting:
            self.waiting.remove(exchange)

    def act(self, tape: Tape, now: float) -> None:
        """Answer, notify, acknowledge or leave one request."""
        open_now = [*self.waiting, *sorted(self.observed - self.in_flight)]
        if not open_now:
            return
        exchange = tape.pick(open_now)
        body = bytes(tape.byte() * 2)
        code = tape.pick((Code.CONTENT, Code.CHANGED, Code.NOT_FOUND, Code.CONTENT))
        what = tape.byte() % 4
        try:
            if what == 0:
                self.endpoint.acknowledge(exchange, now)
                return
            if what == 1:
                self.endpoint.notify(exchange, CoapResponse(Code.CONTENT, Options(), body), now)
                self.observed.add(exchange)
                self.in_flight.add(exchange)
                if exchange in self.waiting:
                    self.waiting.remove(exchange)
                return
            self.endpoint.respond(exchange, CoapResponse(code, Options(), body), now)
        except CoapError:
            return
        self.observed.discard(exchange)
        self.in_flight.discard(exchange)
        if exchange in self.waiting:
            self.waiting.remove(exchange)

    def check(self) -> None:
        """The bounds."""
        core, responder = self.endpoint._core, self.endpoint._responder
        assert responder.reassembly.total_bytes <= LIMITS.max_reassembly_bytes_total
        assert responder.snapshots.total_bytes <= LIMITS.snapshot_bytes_total
        for state in core.peers.values():
            assert len(state.dedup) <= LIMITS.dedup_entries_per_peer
            assert state.dedup.reply_bytes <= LIMITS.dedup_bytes_per_peer

    def finish(self, now: float) -> None:
        """The application answers what is open; then nothing may be left."""
        for exchange in [*self.waiting, *self.observed]:
            try:
                self.endpoint.respond(exchange, CoapResponse(Code.CHANGED), now)
            except CoapError:
                assert exchange in self.over
        come_to_rest(self.endpoint, now, self.take_events)


def come_to_rest(endpoint: Endpoint, now: float, take_events: Callable[[], None]) -> None:
    """Run all timers; in the end nothing is kept."""
    for _ in range(DRAINED_AFTER):
        take_events()
        for _, datagram in endpoint.datagrams_to_send(now):
            Message.decode(datagram)
        deadline = endpoint.next_timer()
        if deadline is None:
            break
        now = max(now, deadline)
        endpoint.handle_timer(now)
    assert endpoint.idle, "the endpoint keeps something"


def server(data: bytes) -> None:
    """Datagrams of two peers, time, and an application that does as it likes."""
    tape = Tape(data)
    host = _Server(1)
    now = 0.0
    for _ in range(STEPS):
        if tape.ended:
            break
        what = tape.byte() % 8
        if what < 5:
            host.endpoint.receive(tape.pick(PEERS), tape.take(tape.byte() % 80), now)
        elif what == 5:
            now += tape.pick(WAITS)
            host.endpoint.handle_timer(now)
        elif what == 6:
            host.act(tape, now)
        else:
            host.endpoint.drop_peer(tape.pick(PEERS), now)
        host.take_events()
        for _, datagram in host.endpoint.datagrams_to_send(now):
            Message.decode(datagram)
        host.check()
    host.finish(now)


class _Client:
    """An endpoint that asks, and what became of each request."""

    def __init__(self, seed: int) -> None:
        self.endpoint = Endpoint(
            random=random.Random(seed), limits=LIMITS, tuning=Tuning(response_timeout=100.0)
        )
        self.open: dict[int, bool] = {}
        self.unconfirmed: list[int] = []

    def take_events(self, now: float = 0.0) -> None:
        while (event := self.endpoint.next_event()) is not None:
            if isinstance(event, RequestReceived):  # the peer may ask as well
                self.endpoint.respond(event.exchange, CoapResponse(Code.NOT_FOUND), now)
                continue
            if isinstance(event, (RequestCancelled, ResponseUndelivered)):
                continue
            assert event.exchange in self.open, f"{event} after the end"
            if isinstance(event, NotificationReceived):
                assert self.open[event.exchange], "a notification of what is not observed"
                self.unconfirmed.append(event.exchange)
            else:
                assert isinstance(event, (ResponseReceived, RequestFailed, PongReceived)), event
                del self.open[event.exchange]

    def ask(self, tape: Tape, now: float) -> None:
        """A request, large or small, observing or not; or a ping."""
        flags = tape.byte()
        peer = tape.pick(PEERS)
        observe = flags & 1 == 1
        options = Options.of((OptionNumber.URI_PATH, b"a"))
        if observe:
            options = options.with_uint(OptionNumber.OBSERVE, 0)
        code = Code.GET if observe else tape.pick((Code.GET, Code.POST, Code.PUT, Code.FETCH))
        body = bytes(tape.byte()) if flags & 2 else b""
        try:
            if flags & 4:
                self.open[self.endpoint.ping(peer, now)] = False
                return
            if flags & 8:
                self.endpoint.set_peer(peer, q_block=bool(flags & 16), now=now)
            request = CoapRequest(code, options, body, confirmable=not flags & 32)
            self.open[self.endpoint.request(peer, request, now)] = observe
        except CoapError:
            return

    def act(self, tape: Tape, now: float) -> None:
        """Confirm, deregister or cancel."""
        if not self.open:
            return
        exchange = tape.pick(sorted(self.open))
        what = tape.byte() % 3
        if what == 0:
            self.endpoint.confirm(exchange, now)
        elif what == 1:
            self.endpoint.deregister(exchange, now)
        else:
            self.endpoint.cancel(exchange, now)
            del self.open[exchange]

    def finish(self, now: float) -> None:
        """What is observed is given up; everything else must end by itself."""
        for exchange, observed in list(self.open.items()):
            if observed:
                self.endpoint.cancel(exchange, now)
                del self.open[exchange]
        come_to_rest(self.endpoint, now, lambda: self.take_events(now))
        assert not self.open, "a request without an outcome"


def client(data: bytes) -> None:
    """Requests, and answers that were made up; most of them bear the token and id of something that was sent."""
    tape = Tape(data)
    asker = _Client(1)
    now = 0.0
    last: dict[str, Message] = {}
    for _ in range(STEPS):
        if tape.ended:
            break
        what = tape.byte() % 8
        if what < 2:
            asker.ask(tape, now)
        elif what < 6:
            peer = tape.pick(PEERS)
            asker.endpoint.receive(peer, _fitting(tape, last.get(peer)), now)
        elif what == 6:
            now += tape.pick(WAITS)
            asker.endpoint.handle_timer(now)
        else:
            asker.act(tape, now)
        asker.take_events(now)
        for name, datagram in asker.endpoint.datagrams_to_send(now):
            sent = Message.decode(datagram)
            if sent.code:
                last[str(name)] = sent
    asker.finish(now)


def _fitting(tape: Tape, request: Message | None) -> bytes:
    """A datagram of the tape's, made to look like an answer to `request`."""
    raw = tape.take(tape.byte() % 80)
    if request is None or len(raw) < 4 or raw[0] & 0x08:
        return raw
    header = bytes([0x40 | raw[0] & 0x30 | len(request.token), raw[1]])
    message_id = request.message_id if raw[0] & 0x04 else int.from_bytes(raw[2:4], "big")
    return header + message_id.to_bytes(2, "big") + request.token + raw[4:]


def pair(data: bytes) -> None:
    """A client and a server; the tape rules time, the network and both applications."""
    tape = Tape(data)
    asker, host = _Client(1), _Server(2)
    now = 0.0
    wire: list[tuple[bool, bytes]] = []
    for _ in range(STEPS):
        if tape.ended:
            break
        what = tape.byte() % 8
        if what == 0:
            asker.ask(tape, now)
        elif what == 1:
            host.act(tape, now)
        elif what == 2:
            asker.act(tape, now)
        elif what == 3:
            now += tape.pick(WAITS)
            asker.endpoint.handle_timer(now)
            host.endpoint.handle_timer(now)
        else:
            _carry(tape, wire, what, asker, host, now)
        asker.take_events(now)
        host.take_events()
        wire += [(True, datagram) for _, datagram in asker.endpoint.datagrams_to_send(now)]
        wire += [(False, datagram) for _, datagram in host.endpoint.datagrams_to_send(now)]
        host.check()
    asker.finish(now)
    host.finish(now)


def _carry(
    tape: Tape, wire: list[tuple[bool, bytes]], what: int, asker: _Client, host: _Server, now: float
) -> None:
    """Deliver all, deliver one, deliver one and keep a copy, or lose one."""
    if not wire:
        return
    index = tape.byte() % len(wire)
    if what == 4:
        parts, wire[:] = list(wire), []
    elif what == 5:
        parts = [wire.pop(index)]
    elif what == 6:
        parts = [wire[index]]
    else:
        del wire[index]
        return
    for to_server, datagram in parts:
        try:
            Message.decode(datagram)
        except MessageFormatError:
            raise AssertionError("an endpoint sent what is no message") from None
        if to_server:
            host.endpoint.receive("one", datagram, now)
        else:
            asker.endpoint.receive("one", datagram, now)


def block_option(number: int, more: bool, szx: int) -> bytes:
    """The value of a block option, for seeds."""
    return Block(number, more, szx).encode()
