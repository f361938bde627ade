# SPDX-License-Identifier: AGPL-3.0-or-later
"""The CoAP endpoint: RFC 7252, RFC 7641 and RFC 7959 for many peers, in both roles, without any I/O.

Datagrams and the time go in, datagrams and events come out:

    receive --> Message.decode --> ACK, RST --> reliability ---> requester --> next_event
                    |               request --> deduplication -> responder --> next_event
                    |               response ------------------> requester --> next_event
    datagrams_to_send <-- reliability <-- responder (respond, notify), requester (request, confirm)
    next_timer, handle_timer: one heap for all of it

What is kept of a peer is made when it is needed and goes when nothing is pending; only `set_peer` leaves
something behind, until `drop_peer`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Hashable

from synapse_lb.coap.core import Core
from synapse_lb.coap.counters import Counters
from synapse_lb.coap.errors import MessageFormatError
from synapse_lb.coap.events import CoapRequest, CoapResponse, Event, Peer
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, Type, is_request, is_response
from synapse_lb.coap.options import Options
from synapse_lb.coap.reliability import ReliabilityLayer
from synapse_lb.coap.requester import Requester
from synapse_lb.coap.responder import Responder
from synapse_lb.coap.tuning import Limits, Tuning

__all__ = ["STICKY_OPTIONS", "Endpoint", "Peer"]

STICKY_OPTIONS = frozenset({256, 257})
"""Options of the experimental range that a peer may leave out once it has sent them (MSC3079)."""

MIN_MESSAGE_SIZE = 64
"""B: the least `max_message_size` of a peer: a header, a token, a few options and a block of 16 bytes."""


class Endpoint:
    """A CoAP endpoint, client and server alike.

    All times are monotonic seconds of one clock; they must not run backwards.

    Args:
        random: Source of first message ids and of the spread of retransmissions.
        tuning: Transmission parameters.
        limits: Bounds of what is kept and accepted.
        understood: Critical options that the application knows, besides those of RFC 7252 and RFC 7959.
        scope: Says in whose name a request is made; block-wise state of different names is never mixed. It is
            called once for each new message with a request, in their order, also for those that the application
            does not get to see, and must not raise.
        sticky: Options that a peer may leave out once it has sent them, also in further blocks of a body; what they
            mean must be in `scope`. Without a `scope` there are none.
    """

    def __init__(
        self,
        *,
        random: random.Random,
        tuning: Tuning | None = None,
        limits: Limits | None = None,
        understood: Collection[int] = (),
        scope: Callable[[Peer, Options], Hashable] | None = None,
        sticky: Collection[int] = STICKY_OPTIONS,
    ) -> None:
        self._core = core = Core(random, tuning or Tuning(), limits or Limits())
        self._reliability = ReliabilityLayer(core)
        self._requester = Requester(core, self._reliability, understood)
        self._responder = Responder(
            core, self._reliability, understood, () if scope is None else sticky, scope
        )

    # --- datagrams, timers, events ---

    def receive(self, peer: Peer, data: bytes, now: float) -> None:
        """Take in one datagram. Whatever it holds, nothing is raised.

        Args:
            peer: From whom.
            data: Its bytes.
            now: Monotonic seconds.
        """
        core = self._core
        core.counters.datagrams_received += 1
        core.counters.bytes_received += len(data)
        try:
            message = Message.decode(data)
        except MessageFormatError as error:
            core.counters.malformed += 1
            if error.type is Type.CON and error.message_id is not None:
                core.send_reset(peer, error.message_id)
            return
        if is_request(message.code):
            state = core.peer_state(peer)
            self._responder.receive(state, message, data, now)
            core.tend(state, now)
        elif message.type is Type.CON and message.code == Code.EMPTY:
            core.send_reset(peer, message.message_id)
        else:
            self._receive_answer(peer, message, data, now)

    def _receive_answer(self, peer: Peer, message: Message, data: bytes, now: float) -> None:
        """Take in what only means something together with a message of ours."""
        core = self._core
        state = core.peers.get(peer)
        if state is None:
            self._requester.reject(peer, message)
            return
        if message.type is Type.ACK:
            core.counters.unmatched += not self._reliability.receive_acknowledgement(state, message, now)
        elif message.type is Type.RST:
            core.counters.unmatched += not self._reliability.receive_reset(state, message, now)
        elif is_response(message.code):
            self._requester.receive(state, message, data, now)
        core.tend(state, now)

    def datagrams_to_send(self, now: float) -> list[tuple[Peer, bytes]]:
        """Return the datagrams that are to be sent at once, in their order, and forget them."""
        outbox = self._core.outbox
        if not outbox:
            return []
        self._core.outbox = []
        return outbox

    def next_timer(self) -> float | None:
        """Return when `handle_timer` is to be called, in monotonic seconds; None if there is no need."""
        return self._core.timers.next_deadline()

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        self._core.timers.run_due(now)

    def next_event(self) -> Event | None:
        """Return the next event for the application, or None."""
        return self._core.events.popleft() if self._core.events else None

    # --- server role ---

    def respond(self, exchange: int, response: CoapResponse, now: float) -> None:
        """Answer a request, with a body of any size.

        A body over `Limits.snapshot_bytes_per_peer`, or with options that leave no room in a datagram, is
        replaced by 5.00.

        Args:
            exchange: From `RequestReceived`.
            response: Whole.
            now: Monotonic seconds.

        Raises:
            ExchangeUnknown: The exchange has ended, or was answered already.
            MessageError: The code is no response code.
            OptionError: An option of the response has no wire form.
        """
        self._core.tend(self._responder.respond(exchange, response, now), now)

    def is_delivering(self, exchange: int) -> bool:
        """Whether a response is on its way whose outcome will be told: `ResponseUndelivered`, or, if it asked for
        that, `ResponseDelivered`."""
        return self._responder.is_delivering(exchange)

    def notify(self, exchange: int, response: CoapResponse, now: float) -> None:
        """Send a notification, with a body of any size; the outcome is `NotificationDelivered` or
        `NotificationFailed` (RFC 7641 section 4).

        The first one makes the registration an observation, which ends when a notification fails, when the peer
        ends it (`RequestCancelled`), or with `respond`: its response tells the peer that there will be no more, and
        is Confirmable. A notification that is still on its way is dropped by it. The Observe option is added here.

        Args:
            exchange: From a `RequestReceived` whose options have Observe with the value 0.
            response: Whole, with a code of success.
            now: Monotonic seconds.

        Raises:
            ExchangeUnknown: The exchange has ended.
            NotObserved: Its request is no registration.
            NotificationInFlight: The outcome of the last one is still to come.
            MessageError: The code is none of success.
            MessageTooLarge: The body is over `Limits.snapshot_bytes_per_peer`, or the options leave no room for it.
            OptionError: An option of the response has no wire form.
        """
        self._core.tend(self._responder.notify(exchange, response, now), now)

    def acknowledge(self, exchange: int, now: float) -> None:
        """Send the empty ACK at once, since the response will take long (RFC 7252 section 5.2.2).

        Nothing happens if that was done, or makes no sense, or the exchange has ended.
        """
        self._responder.acknowledge(exchange, now)

    # --- client role ---

    def request(self, peer: Peer, request: CoapRequest, now: float, *, replacing: int | None = None) -> int:
        """Send a request, with a body of any size; its outcome is `ResponseReceived` or `RequestFailed`.

        A GET or FETCH with Observe 0 registers for notifications (RFC 7641): before its outcome there is a
        `NotificationReceived` for each of them, if the peer has any. The first may take as long as it likes,
        unless the request is Non-confirmable: whether the peer is there is the application's concern.

        Block1, Block2, Size1, Size2 and Request-Tag among its options are left out: they are chosen here.

        Args:
            peer: To whom.
            request: Whole.
            now: Monotonic seconds.
            replacing: The exchange of a registration that ends in silence, and whose token this request gets, so
                that it takes its place with the peer too (RFC 7641 section 3.3.1). A notification of it that is
                still on its way is taken for one of the new registration.

        Returns:
            The number of the exchange.

        Raises:
            MessageError: The code is no method.
            MessageTooLarge: It does not fit in the datagrams that the peer can be sent, not even in blocks.
            OptionError: One of its options has no wire form.
            TooManyExchanges: `Limits.max_exchanges_per_peer` requests to the peer are open.
            NotObserved: `replacing` is no open registration with the peer.
        """
        state = self._core.peer_state(peer)
        try:
            return self._requester.request(state, request, now, replacing)
        finally:
            self._core.tend(state, now)

    def ping(self, peer: Peer, now: float) -> int:
        """Ask whether a peer is there; the outcome is `PongReceived` or `RequestFailed`.

        A ping is an outstanding interaction like any other (RFC 7252 section 4.7), but never waits, and keeps nothing
        waiting: a message for which there is no room otherwise takes its place (`PingGaveWay`).

        Returns:
            The number of the exchange.

        Raises:
            TooManyExchanges: `Limits.max_exchanges_per_peer` requests to the peer are open, or NSTART of them are not
                acknowledged, and will tell as much.
        """
        state = self._core.peer_state(peer)
        try:
            return self._requester.ping(state, now)
        finally:
            self._core.tend(state, now)

    def confirm(self, exchange: int, now: float) -> None:
        """Say that a notification has been processed; if it came in a Confirmable message, its ACK leaves now.

        Call it once for each `NotificationReceived`, in their order: it means the oldest that is not confirmed.
        Nothing happens if there is none, or the observation has ended.

        Args:
            exchange: Of the registration.
            now: Monotonic seconds.
        """
        self._requester.confirm(exchange)

    def deregister(self, exchange: int, now: float) -> None:
        """End an observation of ours with a request (RFC 7641 section 3.6); the outcome is the response to that,
        `ResponseReceived` or `RequestFailed`.

        Notifications that are not confirmed never will be. Nothing happens if there is no such observation.
        """
        state = self._requester.deregister(exchange, now)
        if state is not None:
            self._core.tend(state, now)

    def cancel(self, exchange: int, now: float) -> None:
        """Forget a request of ours; no event of it will come. Nothing happens if it has ended.

        An observation ends with a Reset: for the notifications that are not confirmed at once, else for the next
        one (RFC 7641 section 3.6).
        """
        state = self._requester.cancel(exchange, now)
        if state is not None:
            self._core.tend(state, now)

    # --- peers ---

    def set_peer(
        self,
        peer: Peer,
        *,
        max_message_size: int | None = None,
        rtt: float | None = None,
        longest_rtt: float | None = None,
        q_block: bool | None = None,
        known: bool | None = None,
        now: float,
    ) -> None:
        """Say what is known of a peer and the way to it. It is kept until `drop_peer`.

        Args:
            peer: Who.
            max_message_size: Bytes of the largest CoAP message that reaches it.
            rtt: Seconds of a round trip that was measured already, for example by a handshake.
            longest_rtt: Seconds that no round trip exceeds, where none could be measured.
            q_block: Whether requests to it offer Q-Block (RFC 9177), if `Tuning.q_block` is set. A peer that
                refuses that gets them once more without, and no such offer from then on.
            known: Whether the application knows who it is: where there is no room for the bodies of all peers, those
                of others go first. None is known at first.
            now: Monotonic seconds.

        Raises:
            ValueError: `max_message_size` is less than 64, or one of the times is negative.
        """
        if max_message_size is not None and max_message_size < MIN_MESSAGE_SIZE:
            raise ValueError(f"max_message_size must be at least {MIN_MESSAGE_SIZE}, not {max_message_size}")
        for name, time in (("rtt", rtt), ("longest_rtt", longest_rtt)):
            if time is not None and not time >= 0:
                raise ValueError(f"{name} must not be negative, but is {time}")
        settings = self._core.settings_of(peer)
        if max_message_size is not None:
            settings.max_message_size = max_message_size
        if rtt is not None:
            settings.rto.seed(rtt)
        if longest_rtt is not None:
            settings.rto.at_most(longest_rtt)
        if q_block is not None:
            settings.q_block = q_block
        if known is not None:
            settings.known = known

    def refuses_q_block(self, peer: Peer) -> bool:
        """Whether a peer has shown that it does not know Q-Block (RFC 9177): it answered 4.02 to a request that
        offered it, and otherwise to the same request without."""
        settings = self._core.settings.get(peer)
        return settings is not None and settings.refuses_q_block

    def drop_peer(self, peer: Peer, now: float) -> None:
        """End everything with a peer whose association has ended, and forget it.

        Its open requests are cancelled (`RequestCancelled`, `ResponseUndelivered`), requests to it fail
        (`RequestFailed` with `PeerGone`), and datagrams to it that wait to be sent are dropped.
        """
        core = self._core
        core.settings.pop(peer, None)
        state = core.peers.get(peer)
        if state is not None:
            self._reliability.stop_all(state)
            self._responder.drop(state, now)
            self._requester.drop(state, now)
            core.timers.cancel(state.sweep)
            core.peers.pop(peer, None)
        core.outbox = [(name, datagram) for name, datagram in core.outbox if name != peer]

    @property
    def peers(self) -> Collection[Peer]:
        """The peers of which something is kept, besides what `set_peer` said."""
        return self._core.peers.keys()

    @property
    def idle(self) -> bool:
        """Whether nothing is kept, nothing waits to be sent or fetched, and no timer is set."""
        core = self._core
        return not (core.peers or core.exchanges or core.outbox or core.events or len(core.timers))

    @property
    def open_exchanges(self) -> int:
        """How many requests are open, in both roles."""
        return len(self._core.exchanges)

    @property
    def reassembly_bytes(self) -> int:
        """Bytes of request bodies that have come in part."""
        return self._responder.reassembly.total_bytes

    @property
    def snapshot_bytes(self) -> int:
        """Bytes of response bodies that are kept because they are being fetched."""
        return self._responder.snapshots.total_bytes

    @property
    def counters(self) -> Counters:
        """What has been counted; it goes on being counted."""
        return self._core.counters
