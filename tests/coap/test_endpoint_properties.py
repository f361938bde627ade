# SPDX-License-Identifier: AGPL-3.0-or-later
"""Properties of the endpoint that hold whatever a peer sends.

The invariant of `receive`, in one sentence: it raises nothing, what it sends can be decoded, and once the application
has answered and time has passed nothing is left.
"""

from __future__ import annotations

import random

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.block import Block
from synapse_lb.coap.endpoint import Endpoint
from synapse_lb.coap.events import (
    CoapRequest,
    CoapResponse,
    Event,
    RequestCancelled,
    RequestFailed,
    RequestReceived,
    ResponseReceived,
    ResponseUndelivered,
)
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits, Tuning

LIMITS = Limits(
    block_szx=1,
    max_request_body=100,
    max_response_body=100,
    max_reassemblies_per_peer=2,
    max_reassembly_bytes_per_peer=120,
    max_reassembly_bytes_total=200,
    max_exchanges_per_peer=3,
    dedup_entries_per_peer=4,
    dedup_bytes_per_peer=200,
    max_snapshots_per_peer=2,
    snapshot_bytes_per_peer=150,
    snapshot_bytes_total=250,
)

blocks = st.builds(
    lambda number, more, szx: Block(number, more, szx).encode(),
    st.integers(0, 4),
    st.booleans(),
    st.integers(0, 2),
)
option_pairs = st.one_of(
    st.tuples(st.sampled_from([OptionNumber.BLOCK1, OptionNumber.BLOCK2]), blocks),
    st.tuples(st.just(int(OptionNumber.URI_PATH)), st.sampled_from([b"a", b"b"])),
    st.tuples(st.sampled_from([OptionNumber.NO_RESPONSE, OptionNumber.SIZE1]), st.binary(max_size=2)),
    st.tuples(st.integers(0, 300), st.binary(max_size=3)),
)


def _encoded(parts: tuple[Type, int, int, bytes, list[tuple[int, bytes]], bytes]) -> bytes:
    """Encode a message; what the encoder refuses is sent as junk."""
    type_, code, message_id, token, pairs, payload = parts
    try:
        return Message(type_, code, message_id, token, Options(tuple(pairs)), payload).encode()
    except Exception:
        return bytes([type_ << 4 | 0x40, code, 0, message_id]) + token + payload


messages = st.tuples(
    st.sampled_from(list(Type)),
    st.one_of(
        st.sampled_from([0, 1, 2, 3, Code.CONTENT, Code.CONTINUE, Code.REQUEST_ENTITY_TOO_LARGE]),
        st.integers(0, 255),
    ),
    st.integers(0, 5),
    st.sampled_from([b"", b"\x01", b"\x02", b"\x03", bytes(8)]),
    st.lists(option_pairs, max_size=4),
    st.one_of(st.binary(max_size=3), st.sampled_from([bytes(16), bytes(32), bytes(64)])),
).map(_encoded)


def drained(endpoint: Endpoint) -> list[Event]:
    """Take all events."""
    events = []
    while (event := endpoint.next_event()) is not None:
        events.append(event)
    return events


class Fuzz(SynchronousTestCase):
    """Datagrams out of nowhere."""

    @settings(max_examples=300)
    @given(st.lists(st.one_of(messages, st.binary(max_size=40)), max_size=40))
    def test_nothing_raises_and_nothing_stays(self, datagrams: list[bytes]) -> None:
        endpoint = Endpoint(random=random.Random(1), limits=LIMITS)
        now = 0.0
        for datagram in datagrams:
            endpoint.receive("peer", datagram, now)
            for event in drained(endpoint):
                assert isinstance(event, (RequestReceived, RequestCancelled))
                if isinstance(event, RequestReceived):
                    endpoint.respond(event.exchange, CoapResponse(Code.CONTENT, Options(), bytes(70)), now)
            for _, sent in endpoint.datagrams_to_send(now):
                Message.decode(sent)
            now += 0.1
        while (deadline := endpoint.next_timer()) is not None:
            endpoint.handle_timer(deadline)
            endpoint.datagrams_to_send(deadline)
        self.assertTrue(endpoint.idle)

    @settings(max_examples=300)
    @given(st.lists(messages, max_size=30), st.integers(0, 3), st.binary(max_size=100))
    def test_answers_out_of_nowhere(self, datagrams: list[bytes], requests: int, payload: bytes) -> None:
        """Each request has exactly one outcome, whatever the server says."""
        endpoint = Endpoint(random=random.Random(1), limits=LIMITS)
        now = 0.0
        exchanges = [
            endpoint.request("peer", CoapRequest(Code.POST, Options(), payload), now) for _ in range(requests)
        ]
        outcomes: list[int] = []
        for index, datagram in enumerate(datagrams):
            sent = [Message.decode(data) for _, data in endpoint.datagrams_to_send(now)]
            if sent and index % 2 and len(datagram) >= 4:  # let it fit what was sent
                last = sent[-1]
                token_length = len(last.token)
                header = bytes([datagram[0] & 0xF0 | token_length, datagram[1]])
                datagram = (
                    header
                    + last.message_id.to_bytes(2, "big")
                    + last.token
                    + datagram[4 + (datagram[0] & 15) :]
                )
            endpoint.receive("peer", datagram, now)
            for event in drained(endpoint):
                if isinstance(event, (ResponseReceived, RequestFailed)):
                    outcomes.append(event.exchange)
            now += 0.1
        while (deadline := endpoint.next_timer()) is not None:
            endpoint.handle_timer(deadline)
            endpoint.datagrams_to_send(deadline)
            for event in drained(endpoint):
                if isinstance(event, (ResponseReceived, RequestFailed)):
                    outcomes.append(event.exchange)
        for event in drained(endpoint):
            if isinstance(event, (ResponseReceived, RequestFailed)):
                outcomes.append(event.exchange)
        open_by_the_fuzz = endpoint.open_exchanges
        endpoint.drop_peer("peer", 1e6)
        self.assertEqual(sorted(outcomes), exchanges)
        self.assertGreaterEqual(open_by_the_fuzz, 0)


class Conversation(RuleBasedStateMachine):
    """Two endpoints; datagrams are delivered, lost, doubled and delayed as the machine likes.

    Invariants: a request runs at most once, with its whole body; it has at most one outcome, and no event comes after
    it; a response is the whole response to its own request; the tables stay within their bounds; every Confirmable
    message that arrives is acknowledged or reset, at once or in the end; at the end nothing is left.
    """

    def __init__(self) -> None:
        super().__init__()
        limits = evolve(LIMITS, dedup_entries_per_peer=256, dedup_bytes_per_peer=65536)
        tuning = Tuning(nstart=2, response_timeout=50.0)
        self.now = 0.0
        self.client = Endpoint(random=random.Random(1), tuning=tuning, limits=limits)
        self.server = Endpoint(random=random.Random(2), tuning=tuning, limits=limits)
        self.limits = limits
        self.wire: list[tuple[float, str, bytes]] = []
        self.bodies: dict[int, bytes] = {}
        self.open_requests: dict[int, int] = {}
        self.executed: list[bytes] = []
        self.to_answer: dict[int, bytes] = {}
        self.answered: set[int] = set()
        self.over: set[int] = set()
        self.unanswered: dict[str, set[int]] = {"client": set(), "server": set()}
        self.serial = 0

    def _sent(self) -> None:
        for endpoint, sender, receiver in (
            (self.client, "client", "server"),
            (self.server, "server", "client"),
        ):
            for _, datagram in endpoint.datagrams_to_send(self.now):
                self.wire.append((self.now, receiver, datagram))
                message = Message.decode(datagram)
                if message.type in (Type.ACK, Type.RST):
                    self.unanswered[sender].discard(message.message_id)

    def _pump(self) -> None:
        self._sent()
        for event in drained(self.client):
            assert isinstance(event, (ResponseReceived, RequestFailed))
            assert event.exchange in self.open_requests, f"{event} after the end"
            number = self.open_requests.pop(event.exchange)
            if isinstance(event, ResponseReceived) and event.response.code == Code.CONTENT:
                assert event.response.payload == self.bodies[number] * 2
        for event in drained(self.server):
            assert event.exchange not in self.over, f"{event} after the end"
            if isinstance(event, RequestReceived):
                assert event.request.payload in self.bodies.values()
                assert event.request.payload not in self.executed, "executed twice"
                self.executed.append(event.request.payload)
                self.to_answer[event.exchange] = event.request.payload
            else:
                assert isinstance(event, (RequestCancelled, ResponseUndelivered))
                assert isinstance(event, ResponseUndelivered) == (event.exchange in self.answered)
                self.over.add(event.exchange)
                self.to_answer.pop(event.exchange, None)

    def _arrives(self, target: str, datagram: bytes) -> None:
        message = Message.decode(datagram)
        if message.type is Type.CON:
            self.unanswered[target].add(message.message_id)
        if target == "server":
            self.server.receive("client", datagram, self.now)
        else:
            self.client.receive("server", datagram, self.now)
        self._pump()

    @precondition(lambda self: len(self.open_requests) < 3)
    @rule(size=st.integers(1, 24), confirmable=st.booleans())
    def ask(self, size: int, confirmable: bool) -> None:
        self.serial += 1
        payload = self.serial.to_bytes(2, "big") * size
        self.bodies[self.serial] = payload
        request = CoapRequest(Code.POST, Options.of((OptionNumber.URI_PATH, b"a")), payload, confirmable)
        self.open_requests[self.client.request("server", request, self.now)] = self.serial
        self._pump()

    @precondition(lambda self: self.wire)
    @rule(data=st.data(), again=st.booleans())
    def deliver(self, data: st.DataObject, again: bool) -> None:
        index = data.draw(st.integers(0, len(self.wire) - 1))
        _, target, datagram = self.wire[index] if again else self.wire.pop(index)
        self._arrives(target, datagram)

    @precondition(lambda self: self.wire)
    @rule()
    def deliver_all(self) -> None:
        for _ in range(len(self.wire)):
            _, target, datagram = self.wire.pop(0)
            self._arrives(target, datagram)

    @precondition(lambda self: self.wire)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.wire.pop(data.draw(st.integers(0, len(self.wire) - 1)))

    @precondition(lambda self: self.to_answer)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        exchange = data.draw(st.sampled_from(sorted(self.to_answer)))
        payload = self.to_answer.pop(exchange) * 2
        self.answered.add(exchange)
        self.server.respond(exchange, CoapResponse(Code.CONTENT, Options(), payload), self.now)
        self._pump()

    @precondition(lambda self: self.to_answer)
    @rule()
    def acknowledge(self) -> None:
        self.server.acknowledge(next(iter(self.to_answer)), self.now)
        self._pump()

    @precondition(lambda self: self.open_requests)
    @rule()
    def cancel(self) -> None:
        exchange = next(iter(self.open_requests))
        del self.open_requests[exchange]
        self.client.cancel(exchange, self.now)
        self._pump()

    @rule(seconds=st.sampled_from([0.1, 1.0, 2.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        # MAX_LATENCY (RFC 7252 section 4.8.2): no datagram travels for longer.
        self.wire = [entry for entry in self.wire if self.now - entry[0] < 100]
        self.client.handle_timer(self.now)
        self.server.handle_timer(self.now)
        self._pump()

    @rule()
    def drop(self) -> None:
        """The association ends, and its datagrams with it."""
        self.wire.clear()
        for unanswered in self.unanswered.values():
            unanswered.clear()
        self.server.drop_peer("client", self.now)
        self.client.drop_peer("server", self.now)
        self._pump()
        assert not self.to_answer
        assert not self.open_requests
        assert self.server.idle
        assert self.client.idle

    @invariant()
    def within_bounds(self) -> None:
        responder, limits = self.server._responder, self.limits
        assert responder.reassembly.total_bytes <= limits.max_reassembly_bytes_total
        assert responder.snapshots.total_bytes <= limits.snapshot_bytes_total
        for state in self.server._core.peers.values():
            assert len(state.serving) <= limits.max_exchanges_per_peer
            assert len(state.dedup) <= limits.dedup_entries_per_peer
            assert state.dedup.reply_bytes <= limits.dedup_bytes_per_peer
            assert len(state.outstanding) <= 2
            assert state.bodies == len(responder.reassembly) + len(responder.snapshots)

    def teardown(self) -> None:
        for exchange in list(self.to_answer):
            self.server.respond(exchange, CoapResponse(Code.CHANGED), self.now)
        for _ in range(10_000):
            self._sent()
            for endpoint in (self.client, self.server):
                drained(endpoint)
            timers = [timer for e in (self.client, self.server) if (timer := e.next_timer()) is not None]
            if not timers:
                break
            self.now = max(self.now, min(timers))
            self.client.handle_timer(self.now)
            self.server.handle_timer(self.now)
        assert self.client.idle, "the client keeps something"
        assert self.server.idle, "the server keeps something"
        assert not any(self.unanswered.values()), f"neither acknowledged nor reset: {self.unanswered}"


class Stateful(SynchronousTestCase):
    """The machine as a test."""

    def test_conversation(self) -> None:
        run_state_machine_as_test(
            Conversation, settings=settings(max_examples=200, stateful_step_count=60, deadline=None)
        )
