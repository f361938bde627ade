# SPDX-License-Identifier: AGPL-3.0-or-later
"""Client role: requests and pings, and the responses to them (RFC 7252 section 5, RFC 7959).

Each message of a transfer has a token of its own, so that a late copy of a response never passes for another.
"""

from __future__ import annotations

from collections.abc import Collection

from synapse_lb.coap.blockwise import upload_key
from synapse_lb.coap.core import Core
from synapse_lb.coap.deduplication import digest_of
from synapse_lb.coap.errors import (
    CoapError,
    MessageError,
    PeerGone,
    RemoteError,
    RequestReset,
    RequestTimedOut,
    TooManyExchanges,
    UnrecognizedOption,
)
from synapse_lb.coap.events import CoapRequest, CoapResponse, PongReceived, RequestFailed, ResponseReceived
from synapse_lb.coap.exchange import ClientExchange, State, Step
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type, code_to_text, is_request
from synapse_lb.coap.options import strip_unrecognized_elective, unrecognized_critical
from synapse_lb.coap.peers import PeerState
from synapse_lb.coap.qblock import Q_BLOCK_OPTIONS
from synapse_lb.coap.qblock_client import QBlockClient
from synapse_lb.coap.reliability import OnOutcome, Outcome, ReliabilityLayer
from synapse_lb.coap.transfer import Transfer


class Requester:
    """The client role of an endpoint.

    Args:
        core: What the layers share.
        reliability: Sends Confirmable messages.
        understood: Critical options that the application knows.
    """

    def __init__(self, core: Core, reliability: ReliabilityLayer, understood: Collection[int]) -> None:
        self._core = core
        self._counters = core.counters
        self._reliability = reliability
        self._understood = frozenset(understood)
        if core.tuning.q_block:
            self._understood |= Q_BLOCK_OPTIONS
        self._q_block = QBlockClient(core, reliability, self)

    # --- the application asks ---

    def request(self, state: PeerState, request: CoapRequest, now: float) -> int:
        """Send a request, or queue it.

        Returns:
            The number of its exchange.

        Raises:
            MessageError: The code is no method.
            MessageTooLarge: It does not fit, not even block by block.
            OptionError: One of its options has no wire form.
            TooManyExchanges: Too many requests to the peer are open.
        """
        if not is_request(request.code):
            raise MessageError(f"{code_to_text(request.code)} is no method")
        self._admit(state)
        limits = self._core.limits
        q_block = self._q_block.offers(state, request, now)
        key = upload_key(None, request.code, request.options.without(OptionNumber.REQUEST_TAG))
        transfer = Transfer(
            request,
            block_szx=limits.block_szx,
            max_message_size=state.settings.max_message_size,
            max_response_body=limits.max_response_body,
            request_tag=_free_tag([other for other in state.requesting.values() if other.key == key]),
            q_block_tag=self._q_block.next_tag() if q_block and request.payload else None,
            q_block=q_block,
        )
        exchange = ClientExchange(
            id=self._core.next_exchange(),
            peer=state,
            transfer=transfer,
            key=key,
            confirmable=request.confirmable,
        )
        self._core.exchanges[exchange.id] = exchange
        self._counters.requests_sent += 1
        self.send_next(exchange, transfer, now)
        return exchange.id

    def ping(self, state: PeerState, now: float) -> int:
        """Send an Empty Confirmable (RFC 7252 section 4.3, "CoAP ping").

        Returns:
            The number of its exchange.

        Raises:
            TooManyExchanges: Too many requests to the peer are open.
        """
        self._admit(state)
        exchange = ClientExchange(id=self._core.next_exchange(), peer=state)
        self._core.exchanges[exchange.id] = exchange
        state.pings += 1
        message = Message(Type.CON, 0, state.take_message_id(now, self._core.tuning.exchange_lifetime))
        exchange.advance(Step.PING)
        exchange.transmission = self._reliability.send(state, message, self._on_pong(exchange), now)
        return exchange.id

    def cancel(self, exchange: int, now: float) -> PeerState | None:
        """End a request or a ping in silence; its events that wait to be fetched are taken back.

        Returns:
            The peer, or None if the exchange is not open (any more).
        """
        self._core.drop_events(exchange)
        found = self._core.exchanges.get(exchange)
        if not isinstance(found, ClientExchange):
            return None
        self._end(found, now)
        return found.peer

    def drop(self, state: PeerState, now: float) -> None:
        """Fail everything of a peer that has gone."""
        for exchange in list(self._core.exchanges.values()):
            if isinstance(exchange, ClientExchange) and exchange.peer is state:
                self.fail(exchange, PeerGone("the association has ended"), now)

    def _admit(self, state: PeerState) -> None:
        if (
            len(state.requesting) - state.further_tokens + state.pings
            >= self._core.limits.max_exchanges_per_peer
        ):
            raise TooManyExchanges("too many requests to the peer are open")

    def send_next(self, exchange: ClientExchange, transfer: Transfer, now: float) -> None:
        """Send the message that the transfer has ready, under a new token."""
        state, tuning = exchange.peer, self._core.tuning
        exchange.started = now
        if transfer.q_block and transfer.uploads_blocks:
            self._q_block.upload(exchange, transfer, now)
            return
        options, payload = transfer.next_message()
        self._counters.blocks_sent += transfer.uploads_blocks
        exchange.token = state.take_token()
        state.requesting[exchange.token] = exchange
        if exchange.confirmable:
            message_id = state.take_message_id(now, tuning.exchange_lifetime)
            message = Message(Type.CON, transfer.code, message_id, exchange.token, options, payload)
            exchange.advance(Step.SEND_CONFIRMABLE)
            # A peer like this endpoint holds its ACK back for so long, to send the response with it.
            allowance = 0.0 if transfer.answered_at_once else tuning.separate_after
            exchange.transmission = self._reliability.send(
                state, message, self._on_outcome(exchange), now, allowance=allowance
            )
        else:
            message_id = state.take_message_id(now, tuning.non_lifetime)
            self._core.send(
                state.peer, Message(Type.NON, transfer.code, message_id, exchange.token, options, payload)
            )
            exchange.advance(Step.SEND_NON_CONFIRMABLE)
            self._await_response(exchange, now)

    def _await_response(self, exchange: ClientExchange, now: float) -> None:
        self._core.later(
            exchange,
            self._core.tuning.response_timeout,
            lambda now: self.fail(exchange, RequestTimedOut("no response in time"), now),
            now,
        )

    # --- the peer answers ---

    def _on_outcome(self, exchange: ClientExchange) -> OnOutcome:
        def on_outcome(outcome: Outcome, message: Message | None, now: float) -> None:
            exchange.transmission = None
            if outcome is Outcome.RESET:
                self.fail(exchange, RequestReset("the peer rejected the request"), now)
            elif message is None:
                self.fail(exchange, RequestTimedOut("no acknowledgement"), now)
            elif message.code == Code.EMPTY:
                exchange.advance(Step.ACKNOWLEDGED)
                self._await_response(exchange, now)
            else:
                self.take(exchange, message, now)

        return on_outcome

    def _on_pong(self, exchange: ClientExchange) -> OnOutcome:
        def on_outcome(outcome: Outcome, _message: Message | None, now: float) -> None:
            if outcome is Outcome.TIMED_OUT:
                self.fail(exchange, RequestTimedOut("no answer to the ping"), now)
                return
            # A Reset is the answer; an ACK, which some peers send, shows that it is there as well.
            self._end(exchange, now)
            self._core.emit(PongReceived(exchange.peer.peer, exchange.id))

        return on_outcome

    def receive(self, state: PeerState, message: Message, datagram: bytes, now: float) -> None:
        """Take in a response in a message of its own (RFC 7252 sections 5.2.2 and 5.2.3), or a copy of it."""
        if message.type is Type.CON:
            digest = digest_of(datagram)
            seen = state.dedup.find(message.message_id, digest, now)
            if seen is not None and seen.reply is not None:
                self._counters.duplicates += 1
                state.dedup.repeated(seen, now)
                self._core.send_datagram(state.peer, seen.reply)
                return
        exchange = state.requesting.get(message.token)
        if exchange is None:
            self.reject(state.peer, message)
            return
        self._reliability.stop(exchange.transmission, now)
        exchange.transmission = None
        if message.type is Type.CON:
            if unrecognized_critical(message.options, self._understood) is not None:
                self._core.send_reset(state.peer, message.message_id)
            else:
                seen = state.dedup.add(message.message_id, digest, self._core.tuning.exchange_lifetime, now)
                reply = self._core.send(state.peer, Message(Type.ACK, 0, message.message_id))
                state.dedup.settle(seen, reply)
        self.take(exchange, message, now)

    def reject(self, peer: object, message: Message) -> None:
        """Reject a response that belongs to nothing here (RFC 7252 section 4.2); a Non-confirmable one, and
        one in an ACK, in silence."""
        self._counters.unmatched += 1
        if message.type is Type.CON:
            self._core.send_reset(peer, message.message_id)

    def take(self, exchange: ClientExchange, message: Message, now: float) -> None:
        """Take a response to the current message of an exchange, or to one of its blocks."""
        transfer = exchange.transfer
        assert transfer is not None  # only pings have none, and those are not found by a token
        restarts = transfer.restarts
        try:
            number = unrecognized_critical(message.options, self._understood)
            if number is not None:
                raise UnrecognizedOption(number)
            if transfer.q_block and self._q_block.take(exchange, transfer, _sane(message), now):
                return
            self._counters.blocks_received += OptionNumber.BLOCK2 in message.options
            response = transfer.feed(_sane(message))
        except RemoteError as error:
            self.fail(exchange, error, now)
            return
        self._counters.transfers_restarted += transfer.restarts - restarts
        if response is not None:
            self.deliver(exchange, response, now)
            return
        exchange.advance(Step.BLOCK_DONE)
        self._core.timers.cancel(exchange.timer)
        del exchange.peer.requesting[exchange.token]
        self.send_next(exchange, transfer, now)

    # --- the end ---

    def complete(self, exchange: ClientExchange, message: Message, body: bytes, now: float) -> None:
        """End an exchange with its response: its first message, and the whole body."""
        self.deliver(exchange, Transfer.response_of(message, body), now)

    def deliver(self, exchange: ClientExchange, response: CoapResponse, now: float) -> None:
        """End an exchange with its response."""
        self._q_block.settled(exchange, response)
        self._end(exchange, now)
        self._counters.responses_received += 1
        self._core.emit(ResponseReceived(exchange.peer.peer, exchange.id, response))

    def fail(self, exchange: ClientExchange, error: CoapError, now: float) -> None:
        """End an exchange without a response."""
        self._end(exchange, now)
        if exchange.transfer is not None:
            self._counters.requests_failed += 1
        self._core.emit(RequestFailed(exchange.peer.peer, exchange.id, error))
        self._core.tend(exchange.peer, now)

    def _end(self, exchange: ClientExchange, now: float) -> None:
        was_ping = exchange.state is State.PINGING
        exchange.advance(Step.END)
        self._reliability.stop(exchange.transmission, now)
        exchange.transmission = None
        self._q_block.close(exchange, now)
        state = exchange.peer
        if was_ping:
            state.pings -= 1
        elif state.requesting.get(exchange.token) is exchange:
            del state.requesting[exchange.token]
        self._core.forget(exchange)


def _sane(message: Message) -> Message:
    """Drop the elective options that must be ignored (RFC 7252 section 5.4.1)."""
    options = strip_unrecognized_elective(message.options)
    if options is message.options:
        return message
    return Message(message.type, message.code, message.message_id, message.token, options, message.payload)


def _free_tag(rivals: list[ClientExchange]) -> bytes | None:
    """Return a Request-Tag that tells a request from like ones that are under way; None if there are none."""
    if not rivals:
        return None
    taken = {rival.transfer.request_tag for rival in rivals if rival.transfer is not None}
    if None not in taken:
        return None
    value = 1
    while value.to_bytes(1 if value < 256 else 2, "big") in taken:
        value += 1
    return value.to_bytes(1 if value < 256 else 2, "big")
