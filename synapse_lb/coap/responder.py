# SPDX-License-Identifier: AGPL-3.0-or-later
"""Server role: from the message of a request to the application and back (RFC 7252 section 5, RFC 7959).

A request that is answered soon gets its response piggybacked on the ACK; else an empty ACK goes out and the
response follows in a message of its own:

    Client              Server
       |                  |
       |   CON [0x7a10]   |
       | GET /temperature |
       |   (Token 0x73)   |
       +----------------->|
       |                  |
       |   ACK [0x7a10]   |
       |<-----------------+
       |                  |
       ... Time Passes  ...
       |                  |
       |   CON [0x23bb]   |
       |   2.05 Content   |
       |   (Token 0x73)   |
       |     "22.5 C"     |
       |<-----------------+
       |                  |
       |   ACK [0x23bb]   |
       +----------------->|
       |                  |
        (RFC 7252, figure 5)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable

from attrs import evolve

from synapse_lb.coap.asked import (
    PLAINLY,
    Asked,
    is_ordinary,
    options_of_refusal,
    recognized,
    refuse_unserved,
)
from synapse_lb.coap.block import Block
from synapse_lb.coap.blockwise import (
    TRANSFER_OPTIONS,
    BlockKey,
    asks_for_further_block,
    download_key,
    named_body,
    read_block,
    upload_key,
)
from synapse_lb.coap.core import Core
from synapse_lb.coap.deduplication import Seen, digest_of
from synapse_lb.coap.errors import (
    BlockwiseError,
    ExchangeUnknown,
    MessageError,
    RemoteError,
    TooManyExchanges,
    UnrecognizedOption,
)
from synapse_lb.coap.events import (
    CancelReason,
    CoapRequest,
    CoapResponse,
    Peer,
    RequestCancelled,
    RequestReceived,
    ResponseDelivered,
    ResponseUndelivered,
)
from synapse_lb.coap.exchange import ServerExchange, State, Step
from synapse_lb.coap.message import Message
from synapse_lb.coap.notifications import Notifications
from synapse_lb.coap.numbers import Code, OptionNumber, Type, code_to_text, is_response, suppresses
from synapse_lb.coap.observe import DEREGISTER, REGISTER, wanted
from synapse_lb.coap.options import Options
from synapse_lb.coap.peers import PeerState
from synapse_lb.coap.qblock import Q_BLOCK_OPTIONS, QBlocks
from synapse_lb.coap.qblock_server import QBlockServer
from synapse_lb.coap.reassembly import Reassembly
from synapse_lb.coap.reliability import OnOutcome, Outcome, ReliabilityLayer
from synapse_lb.coap.snapshots import FirstMessage, Snapshots

Scope = Callable[[Peer, Options], Hashable]


class Responder:
    """The server role of an endpoint.

    Args:
        core: What the layers share.
        reliability: Sends Confirmable messages.
        understood: Critical options that the application knows.
        sticky: Options that a peer may leave out once it has sent them.
        scope: In whose name a request is made.
    """

    def __init__(
        self,
        core: Core,
        reliability: ReliabilityLayer,
        understood: Collection[int],
        sticky: Collection[int],
        scope: Scope | None,
    ) -> None:
        self._core = core
        self._counters = core.counters
        self._reliability = reliability
        self._understood = frozenset(understood)
        self._sticky = frozenset(sticky)
        self._scope = scope
        self.reassembly = Reassembly(core)
        self.snapshots = Snapshots(core)
        self._q_block: QBlockServer | None = None
        if core.tuning.q_block:
            self._understood |= Q_BLOCK_OPTIONS
            self._q_block = QBlockServer(
                core, reliability, self.snapshots, self.reassembly, self._sticky, self._reply
            )
        self.notifications = Notifications(core, reliability, self.snapshots, self._end)

    # --- a request comes in ---

    def receive(self, state: PeerState, message: Message, datagram: bytes, now: float) -> None:
        """Take in the message of a request, or a copy of it (RFC 7252 section 4.5)."""
        digest = digest_of(datagram)
        seen = state.dedup.find(message.message_id, digest, now)
        if seen is not None:
            self._counters.duplicates += 1
            if message.type is Type.CON:
                state.dedup.repeated(seen, now)
                if seen.reply is not None:
                    self._core.send_datagram(state.peer, seen.reply)
            return
        tuning = self._core.tuning
        lifetime = tuning.exchange_lifetime if message.type is Type.CON else tuning.non_lifetime
        seen = state.dedup.add(message.message_id, digest, lifetime, now)
        self._supersede(state, message, now)
        try:
            self._process(state, message, seen, now)
        except (RemoteError, TooManyExchanges) as error:
            self._refuse(state, message, seen, error, now)

    def _process(self, state: PeerState, message: Message, seen: Seen, now: float) -> None:
        options = recognized(message.options, self._understood)
        refuse_unserved(message.code, options)
        scope = None if self._scope is None else self._scope(state.peer, options)
        key = download_key(scope, message.code, options, self._sticky)
        if is_ordinary(options):
            request = CoapRequest(message.code, options, message.payload, message.type is Type.CON)
            self._begin(state, message, seen, key, request, PLAINLY, now)
            return
        block1 = read_block(options, OptionNumber.BLOCK1)
        block2 = read_block(options, OptionNumber.BLOCK2)
        q_blocks = QBlocks.read(options)
        if q_blocks is not None and self._q_block is not None:
            body = self._q_block.take(state, message, seen, q_blocks, scope, options, now)
            if body is not None:
                request = CoapRequest(message.code, *body)
                self._open(state, message, seen, key, options, None, request, now)
            return
        if block1 is None and block2 is not None and block2.number > 0:
            self._counters.blocks_received += 1
            self._serve_block(state, message, seen, key, block2, now)
            return
        payload = message.payload
        first = options
        if block1 is not None:
            self._counters.blocks_received += 1
            if block2 is not None and block2.number > 0:
                raise BlockwiseError("a Block2 beyond the first with a Block1", Code.BAD_REQUEST)
            upload = upload_key(scope, message.code, options, self._sticky)
            whole = self.reassembly.take(state, upload, block1, options, payload, now)
            block1 = Block(block1.number, block1.more, min(block1.szx, self._core.limits.block_szx))
            if whole is None:
                self._continue(state, message, seen, block1, now)
                return
            first, payload = whole
        self._open(state, message, seen, key, options, block1, CoapRequest(message.code, first, payload), now)

    def _open(
        self,
        state: PeerState,
        message: Message,
        seen: Seen,
        key: BlockKey,
        options: Options,
        block1: Block | None,
        request: CoapRequest,
        now: float,
    ) -> None:
        """Look at the options of a whole request, and hand it to the application."""
        request, registers = self._admit(state, request)
        asked = Asked.by(options, block1, registers=registers)
        whole = CoapRequest(
            request.code,
            request.options.without(*TRANSFER_OPTIONS),
            request.payload,
            message.type is Type.CON,
        )
        self._begin(state, message, seen, key, whole, asked, now)

    def _begin(
        self,
        state: PeerState,
        message: Message,
        seen: Seen,
        key: BlockKey,
        request: CoapRequest,
        asked: Asked,
        now: float,
    ) -> None:
        """Make an exchange of a request and hand it to the application.

        Raises:
            TooManyExchanges: There is no room for it.
        """
        if not asked.registers and state.open_requests >= self._core.limits.max_exchanges_per_peer:
            raise TooManyExchanges("the peer has too many open requests")
        exchange = ServerExchange(
            id=self._core.next_exchange(),
            peer=state,
            token=message.token,
            message_id=message.message_id,
            confirmable=request.confirmable,
            seen=seen,
            key=key,
            asked=asked,
        )
        state.observations += asked.registers
        self._core.exchanges[exchange.id] = state.serving[message.token] = exchange
        if exchange.confirmable:
            self._core.later(
                exchange, self._core.tuning.separate_after, lambda now: self._accept(exchange, now), now
            )
        self._counters.requests_received += 1
        self._core.emit(RequestReceived(state.peer, exchange.id, request))

    def _admit(self, state: PeerState, request: CoapRequest) -> tuple[CoapRequest, bool]:
        """Return a request as the application gets it, and whether it registers."""
        limits = self._core.limits
        observe = wanted(request.code, request.options)
        if observe == REGISTER:
            if state.observations < limits.max_observations_per_peer:
                return request, True
            # A server that cannot have one more observer serves a plain request (RFC 7641 section 4.1).
            self._counters.observations_refused += 1
        if observe != DEREGISTER:
            options = request.options.without(OptionNumber.OBSERVE)
            if options is not request.options:
                request = evolve(request, options=options)
        return request, False

    def _supersede(self, state: PeerState, message: Message, now: float) -> None:
        """End the exchange whose token is used for something new (RFC 7252 section 5.3.1).

        A response that was sent and not acknowledged has evidently come through. A peer that asks for a further
        block with the token of its observation should not (RFC 7959 section 3.4), but means no harm.
        """
        exchange = state.serving.get(message.token)
        if exchange is None or (exchange.observed and asks_for_further_block(message.options)):
            return
        if exchange.state is State.DELIVERING:
            self._end(exchange, now)
        elif exchange.asked.registers and wanted(message.code, message.options) == DEREGISTER:
            self._cancel(exchange, CancelReason.DEREGISTERED, now)
        else:
            self._cancel(exchange, CancelReason.SUPERSEDED, now)

    def _continue(self, state: PeerState, message: Message, seen: Seen, block1: Block, now: float) -> None:
        options = Options().with_option(OptionNumber.BLOCK1, block1.encode())
        # To take the first block once more would begin the upload anew.
        harmless = block1.number > 0
        self._reply(state, message, seen, Code.CONTINUE, options, b"", now, harmless=harmless)

    def _serve_block(
        self, state: PeerState, message: Message, seen: Seen, key: BlockKey, wanted: Block, now: float
    ) -> None:
        """Answer with a further block of a body that is kept."""
        snapshot = self.snapshots.find(state, key, message.options)
        block, payload = snapshot.cut(wanted.offset, min(wanted.szx, self._core.limits.block_szx))
        options = Options() if named_body(message.options) is not None else snapshot.options
        options = options.with_option(OptionNumber.BLOCK2, block.encode())
        self._counters.blocks_sent += 1
        # Once the last block is sent, the body goes soon.
        self._reply(state, message, seen, snapshot.code, options, payload, now, harmless=block.more)
        self.snapshots.served(snapshot, block, now)

    def _refuse(
        self,
        state: PeerState,
        message: Message,
        seen: Seen,
        error: RemoteError | TooManyExchanges,
        now: float,
    ) -> None:
        """Answer a request that the application does not get to see."""
        self._counters.requests_refused += 1
        self._counters.requests_overload += isinstance(error, TooManyExchanges)
        if message.type is Type.NON and isinstance(error, (UnrecognizedOption, TooManyExchanges)):
            if isinstance(error, UnrecognizedOption):
                self._core.send_reset(state.peer, message.message_id)
            state.dedup.settle(seen, None)
            return
        code = Code.BAD_REQUEST if error.wire_code is None else error.wire_code
        self._reply(state, message, seen, code, options_of_refusal(error), b"", now)

    def _reply(
        self,
        state: PeerState,
        request: Message,
        seen: Seen,
        code: int,
        options: Options,
        payload: bytes,
        now: float,
        *,
        harmless: bool = False,
    ) -> None:
        """Answer a message at once, without an exchange."""
        suppressed = request.options.get_uint(OptionNumber.NO_RESPONSE) or 0
        if code != Code.CONTINUE and suppresses(suppressed, code):
            self._counters.responses_suppressed += 1
            if request.type is Type.CON:
                datagram = self._core.send(state.peer, Message(Type.ACK, 0, request.message_id))
                state.dedup.settle(seen, datagram, harmless=harmless)
            else:
                state.dedup.settle(seen, None, harmless=harmless)
            return
        if request.type is Type.CON:
            type_, message_id = Type.ACK, request.message_id
        else:
            type_, message_id = Type.NON, state.take_message_id(now, self._core.tuning.non_lifetime)
        message = Message(type_, code, message_id, request.token, options, payload)
        datagram = self._core.send(state.peer, message)
        state.dedup.settle(seen, datagram if type_ is Type.ACK else None, harmless=harmless)

    # --- the application answers ---

    def acknowledge(self, exchange: int, now: float) -> None:
        """Send the empty ACK now, if it is still to be sent (RFC 7252 section 5.2.2)."""
        found = self._core.exchanges.get(exchange)
        if isinstance(found, ServerExchange) and found.confirmable and found.state is State.PROCESSING:
            self._accept(found, now)

    def _accept(self, exchange: ServerExchange, now: float) -> None:
        exchange.advance(Step.ACKNOWLEDGE)
        self._core.timers.cancel(exchange.timer)
        state = exchange.peer
        datagram = self._core.send(state.peer, Message(Type.ACK, 0, exchange.message_id))
        state.dedup.acknowledged(exchange.seen, datagram)

    def respond(self, exchange: int, response: CoapResponse, now: float) -> PeerState:
        """Send the response of the application.

        Returns:
            The peer.

        Raises:
            ExchangeUnknown: The exchange is not open, or has its response already.
            MessageError: The code is no response code. The exchange stays open.
            OptionError: An option of the response has no wire form. The exchange stays open.
        """
        found = self._core.exchanges.get(exchange)
        if not isinstance(found, ServerExchange) or found.state is State.DELIVERING:
            raise ExchangeUnknown(exchange)
        if not is_response(response.code):
            raise MessageError(f"{code_to_text(response.code)} is no response code")
        if not found.observed and suppresses(found.asked.no_response, response.code):
            self._counters.responses_suppressed += 1
            if found.confirmable and found.state is State.PROCESSING:
                self._accept(found, now)
            self._end(found, now)
            return found.peer
        if OptionNumber.OBSERVE in response.options:
            response = evolve(response, options=response.options.without(OptionNumber.OBSERVE))
        found.reports = response.report
        first = self._first_message(found, response, now)
        self.notifications.abandon(found, now)
        if first.snapshot is not None:
            self.snapshots.add(first.snapshot, now)
            self._counters.blocks_sent += 1
        self._counters.responses_sent += 1
        self._send_response(found, first, now)
        if self._q_block is not None:
            self._q_block.follow(found, now)
        return found.peer

    def is_delivering(self, exchange: int) -> bool:
        """Whether a whole response waits for its acknowledgement."""
        found = self._core.exchanges.get(exchange)
        return (
            isinstance(found, ServerExchange) and found.state is State.DELIVERING and found.snapshot is None
        )

    def notify(self, exchange: int, response: CoapResponse, now: float) -> PeerState:
        """Send a notification of the application.

        Returns:
            The peer.

        Raises:
            ExchangeUnknown: The exchange is not open, or has its last response already.
            LocalError: Those of `Notifications.prepare`. The exchange stays open.
        """
        found = self._core.exchanges.get(exchange)
        if not isinstance(found, ServerExchange) or found.state is State.DELIVERING:
            raise ExchangeUnknown(exchange)
        notification = self.notifications.prepare(found, response)
        if not found.observed:
            if found.confirmable and found.state is State.PROCESSING:
                self._accept(found, now)
            # A copy of the registration that comes much later is a new one.
            found.peer.dedup.settle(found.seen, None)
        self.notifications.start(found, notification, now)
        return found.peer

    def _first_message(self, exchange: ServerExchange, response: CoapResponse, now: float) -> FirstMessage:
        first = self.snapshots.begin(exchange, response)
        if exchange.peer.bodies:
            self.snapshots.discard_key(exchange.peer, exchange.key)
        if first is None:
            self._counters.responses_too_large += 1
            return FirstMessage(Code.INTERNAL_SERVER_ERROR, Options(), b"")
        return first

    def _send_response(self, exchange: ServerExchange, first: FirstMessage, now: float) -> None:
        state, token, tuning = exchange.peer, exchange.token, self._core.tuning
        code, options, payload = first.code, first.options, first.payload
        if not exchange.confirmable and not exchange.observed:
            message_id = state.take_message_id(now, tuning.non_lifetime)
            self._core.send(state.peer, Message(Type.NON, code, message_id, token, options, payload))
            self._end(exchange, now)
        elif exchange.state is State.PROCESSING:
            message = Message(Type.ACK, code, exchange.message_id, token, options, payload)
            self._end(exchange, now, self._core.send(state.peer, message))
        else:
            message_id = state.take_message_id(now, tuning.exchange_lifetime)
            message = Message(Type.CON, code, message_id, token, options, payload)
            exchange.advance(Step.DELIVER)
            exchange.snapshot = first.snapshot
            exchange.transmission = self._reliability.send(state, message, self._delivery(exchange), now)

    def _delivery(self, exchange: ServerExchange) -> OnOutcome:
        def on_outcome(outcome: Outcome, _message: Message | None, now: float) -> None:
            self._end(exchange, now)
            if outcome is not Outcome.ACKNOWLEDGED:
                self.snapshots.discard(exchange.snapshot)
                self._undelivered(exchange)
            elif exchange.reports and exchange.snapshot is None:
                self._core.emit(ResponseDelivered(exchange.peer.peer, exchange.id))

        return on_outcome

    # --- the end ---

    def drop(self, state: PeerState, now: float) -> None:
        """End everything of a peer that has gone; its application is told."""
        for exchange in list(state.serving.values()):
            if exchange.state is State.DELIVERING:
                self._end(exchange, now)
                self._undelivered(exchange)
            else:
                self._cancel(exchange, CancelReason.PEER_GONE, now)
        self.reassembly.discard_all(state)
        self.snapshots.discard_all(state)
        if self._q_block is not None:
            self._q_block.drop(state)

    def _cancel(self, exchange: ServerExchange, reason: CancelReason, now: float) -> None:
        self._end(exchange, now)
        self._counters.requests_cancelled += 1
        self._core.emit(RequestCancelled(exchange.peer.peer, exchange.id, reason))

    def _undelivered(self, exchange: ServerExchange) -> None:
        self._counters.responses_undelivered += 1
        self._core.emit(ResponseUndelivered(exchange.peer.peer, exchange.id))

    def _end(self, exchange: ServerExchange, now: float, reply: bytes | None = None) -> None:
        """End an exchange; `reply` is what its request's copies will be answered with."""
        exchange.advance(Step.END)
        self._reliability.stop(exchange.transmission, now)
        exchange.transmission = None
        state = exchange.peer
        state.observations -= exchange.asked.registers
        state.dedup.settle(exchange.seen, reply)
        if state.serving.get(exchange.token) is exchange:
            del state.serving[exchange.token]
        self.notifications.abandon(exchange, now)
        self._core.forget(exchange)
