# SPDX-License-Identifier: AGPL-3.0-or-later
"""Client role: requests and pings, and the responses to them (RFC 7252 section 5, RFC 7959).

Each message of a transfer has a token of its own, so that a late copy of a response never passes for another.
"""

from __future__ import annotations

from collections.abc import Collection

from attrs import evolve

from synapse_lb.coap.blockwise import upload_key
from synapse_lb.coap.bytetime import EMPTY
from synapse_lb.coap.core import Core
from synapse_lb.coap.deduplication import Seen, digest_of
from synapse_lb.coap.errors import (
    CoapError,
    MessageError,
    NotObserved,
    PeerGone,
    PingGaveWay,
    RemoteError,
    RequestReset,
    RequestTimedOut,
    TooManyExchanges,
    UnexpectedResponse,
    UnrecognizedOption,
)
from synapse_lb.coap.events import CoapRequest, CoapResponse, PongReceived, RequestFailed, ResponseReceived
from synapse_lb.coap.exchange import ClientExchange, State, Step
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type, code_to_text, is_request, is_success
from synapse_lb.coap.observations import Arrival, Observation, Observations
from synapse_lb.coap.observe import DEREGISTER, REGISTER, wanted
from synapse_lb.coap.options import encode_uint, strip_unrecognized_elective, unrecognized_critical
from synapse_lb.coap.peers import PeerState
from synapse_lb.coap.qblock import Q_BLOCK_OPTIONS
from synapse_lb.coap.qblock_client import QBlockClient
from synapse_lb.coap.reliability import OnOutcome, Outcome, ReliabilityLayer
from synapse_lb.coap.transfer import Transfer

_AROUND_BLOCK = 64
"""B of a message with a block, besides the block."""

_BRIEFLY_ANSWERED = frozenset((Code.PUT, Code.DELETE))
"""What changes something under a name of the client's is answered with little more than that it is done."""


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
        self.observations = Observations(core, self._fetch, self._end, self.fail)

    # --- the application asks ---

    def request(
        self, state: PeerState, request: CoapRequest, now: float, replacing: int | None = None
    ) -> int:
        """Send a request, or queue it.

        Args:
            state: To whom.
            request: Whole.
            now: Monotonic seconds.
            replacing: A registration of ours that ends with it, and whose token it gets.

        Returns:
            The number of its exchange.

        Raises:
            MessageError: The code is no method.
            MessageTooLarge: It does not fit, not even block by block.
            OptionError: One of its options has no wire form.
            TooManyExchanges: Too many requests to the peer are open.
            NotObserved: `replacing` is no open registration with the peer.
        """
        if not is_request(request.code):
            raise MessageError(f"{code_to_text(request.code)} is no method")
        previous = None if replacing is None else self._registration(replacing)
        if replacing is not None and (previous is None or previous.peer is not state):
            raise NotObserved(replacing)
        if previous is None:
            self._admit(state)
        exchange = self._prepare(state, request, previous, now)
        if previous is not None:
            self._end(previous, now)
        self._begin(exchange, now)
        return exchange.id

    def _prepare(
        self, state: PeerState, request: CoapRequest, previous: ClientExchange | None, now: float
    ) -> ClientExchange:
        """Make an exchange of a request, which may go on with the token of a previous one."""
        limits = self._core.limits
        q_block = self._q_block.offers(state, request, now)
        key = upload_key(None, request.code, request.options.without(OptionNumber.REQUEST_TAG))
        rivals = [other for other in state.requesting.values() if other.key == key and other is not previous]
        taken = {rival.transfer.request_tag for rival in rivals if rival.transfer is not None}
        transfer = Transfer(
            request,
            block_szx=limits.block_szx,
            max_message_size=state.settings.max_message_size,
            max_response_body=limits.max_response_body,
            request_tag=state.take_request_tag(taken, uploads=bool(request.payload), now=now),
            q_block_tag=self._q_block.next_tag() if q_block and request.payload else None,
            q_block=q_block,
        )
        observe = wanted(request.code, request.options)
        exchange = ClientExchange(
            id=self._core.next_exchange(),
            peer=state,
            transfer=transfer,
            key=key,
            confirmable=request.confirmable,
            observation=Observation() if observe == REGISTER else None,
            deregisters=observe == DEREGISTER,
        )
        if previous is not None:
            exchange.own_token = previous.token
            if exchange.observation is not None and previous.observation is not None:
                exchange.observation.latest = previous.observation.latest
        return exchange

    def _begin(self, exchange: ClientExchange, now: float) -> None:
        assert exchange.transfer is not None  # only pings have none
        self._core.exchanges[exchange.id] = exchange
        self._counters.requests_sent += 1
        self.send_next(exchange, exchange.transfer, now)

    def _registration(self, exchange: int) -> ClientExchange | None:
        """Return an open exchange that is a registration of ours, or None."""
        found = self._core.exchanges.get(exchange)
        return found if isinstance(found, ClientExchange) and found.observation is not None else None

    def confirm(self, exchange: int) -> None:
        """Acknowledge the oldest notification of an observation that is not confirmed."""
        found = self._registration(exchange)
        if found is not None and found.observation is not None:
            self.observations.confirm(found, found.observation)

    def deregister(self, exchange: int, now: float) -> PeerState | None:
        """End an observation with a request of its own (RFC 7641 section 3.6), in the same exchange.

        Returns:
            The peer, or None if the exchange is no open registration.
        """
        found = self._registration(exchange)
        if found is None or found.transfer is None:
            return None
        request = found.transfer.request
        options = request.options.replacing(OptionNumber.OBSERVE, encode_uint(DEREGISTER))
        following = self._prepare(found.peer, evolve(request, options=options), found, now)
        following.id = found.id
        self._end(found, now)
        self._begin(following, now)
        return found.peer

    def ping(self, state: PeerState, now: float) -> int:
        """Send an Empty Confirmable (RFC 7252 section 4.3, "CoAP ping").

        Returns:
            The number of its exchange.

        Raises:
            TooManyExchanges: Too many requests to the peer are open, or NSTART of them not acknowledged: whether the
                peer is there will be seen from those.
        """
        self._admit(state)
        if not self._reliability.has_room(state):
            raise TooManyExchanges("as many messages are outstanding as may be")
        exchange = ClientExchange(id=self._core.next_exchange(), peer=state)
        self._core.exchanges[exchange.id] = exchange
        state.pings += 1
        message = Message(Type.CON, 0, state.take_message_id(now, self._core.tuning.exchange_lifetime))
        exchange.advance(Step.PING)
        exchange.transmission = self._reliability.send(
            state, message, self._on_pong(exchange), now, gives_way=True
        )
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
        self._end(found, now, reject=True)
        return found.peer

    def drop(self, state: PeerState, now: float) -> None:
        """Fail everything of a peer that has gone."""
        for exchange in list(self._core.exchanges.values()):
            if isinstance(exchange, ClientExchange) and exchange.peer is state and not exchange.ended:
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
        own, last = exchange.own_token, not transfer.answered_at_once
        exchange.token = (
            own
            if last and own is not None and own not in state.requesting
            else state.take_token(now, tuning.exchange_lifetime)
        )
        state.requesting[exchange.token] = exchange
        if exchange.confirmable:
            message_id = state.take_message_id(now, tuning.exchange_lifetime)
            message = Message(Type.CON, transfer.code, message_id, exchange.token, options, payload)
            exchange.advance(Step.SEND_CONFIRMABLE)
            # A peer like this endpoint holds its ACK back for so long, to send the response with it.
            allowance = 0.0 if transfer.answered_at_once else tuning.separate_after
            exchange.transmission = self._reliability.send(
                state,
                message,
                self._on_outcome(exchange),
                now,
                allowance=allowance,
                answer=self._expected(transfer, state),
            )
        else:
            message_id = state.take_message_id(now, tuning.non_lifetime)
            self._core.send(
                state.peer, Message(Type.NON, transfer.code, message_id, exchange.token, options, payload)
            )
            exchange.advance(Step.SEND_NON_CONFIRMABLE)
            self._await_response(exchange, now)

    def _expected(self, transfer: Transfer, state: PeerState) -> int:
        """Return the bytes of the message that will probably answer the next one of a transfer, or acknowledge it."""
        if transfer.answered_at_once or transfer.code in _BRIEFLY_ANSWERED:
            return EMPTY
        return min((16 << self._core.limits.block_szx) + _AROUND_BLOCK, state.settings.max_message_size)

    def _await_response(self, exchange: ClientExchange, now: float) -> None:
        if exchange.awaits_notification:
            return
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
            elif message.code != Code.EMPTY:
                self.take(exchange, message, now)
            elif exchange.state is not State.OBSERVING:
                exchange.advance(Step.ACKNOWLEDGED)
                self._await_response(exchange, now)

        return on_outcome

    def _on_pong(self, exchange: ClientExchange) -> OnOutcome:
        def on_outcome(outcome: Outcome, _message: Message | None, now: float) -> None:
            if outcome is Outcome.TIMED_OUT:
                self.fail(exchange, RequestTimedOut("no answer to the ping"), now)
                return
            if outcome is Outcome.GAVE_WAY:
                self.fail(exchange, PingGaveWay("another message asks the same"), now)
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
            if seen is not None and (seen.open or seen.reply is not None):
                self._counters.duplicates += 1
                state.dedup.repeated(seen, now)
                if seen.reply is not None:
                    self._core.send_datagram(state.peer, seen.reply)
                return
        exchange = state.requesting.get(message.token)
        # A notification that comes while the observation is being ended is not the answer to that.
        if exchange is None or (exchange.deregisters and OptionNumber.OBSERVE in message.options):
            self.reject(state.peer, message)
            return
        notifies, seen = _notifies(exchange, message), None
        # With the token of another, it may be a notification of that, and no sign that this request has come through.
        if not (notifies and exchange.own_token is not None):
            self._reliability.stop(exchange.transmission, now)
            exchange.transmission = None
        if message.type is Type.CON:
            if unrecognized_critical(message.options, self._understood) is not None:
                self._core.send_reset(state.peer, message.message_id)
            else:
                seen = state.dedup.add(message.message_id, digest, self._core.tuning.exchange_lifetime, now)
                if not notifies:
                    reply = self._core.send(state.peer, Message(Type.ACK, 0, message.message_id))
                    state.dedup.settle(seen, reply)
        self.take(exchange, message, now, seen)

    def reject(self, peer: object, message: Message) -> None:
        """Reject a response that belongs to nothing here (RFC 7252 section 4.2); a Non-confirmable one, and
        one in an ACK, in silence."""
        self._counters.unmatched += 1
        if message.type is Type.CON:
            self._core.send_reset(peer, message.message_id)

    def take(self, exchange: ClientExchange, message: Message, now: float, seen: Seen | None = None) -> None:
        """Take a response to the current message of an exchange, or to one of its blocks.

        Args:
            exchange: Whose token it has.
            message: The response.
            now: Monotonic seconds.
            seen: Its entry among the messages received, if it is Confirmable.
        """
        transfer = exchange.transfer
        assert transfer is not None  # only pings have none, and those are not found by a token
        restarts = transfer.restarts
        try:
            number = unrecognized_critical(message.options, self._understood)
            if number is not None:
                raise UnrecognizedOption(number)
            if exchange.observation is not None and _notifies(exchange, message):
                arrival = Arrival(_sane(message), seen)
                self.observations.receive(exchange, exchange.observation, arrival, now)
                return
            if transfer.q_block and self._q_block.take(exchange, transfer, _sane(message), now):
                return
            self._counters.blocks_received += OptionNumber.BLOCK2 in message.options
            response = transfer.feed(_sane(message))
        except RemoteError as error:
            self.fail(exchange, error, now)
            return
        self._counters.transfers_restarted += transfer.restarts - restarts
        if response is not None and exchange.fetches_for is not None:
            self._fetched(exchange, exchange.fetches_for, response, now)
            return
        if response is not None:
            self.deliver(exchange, response, now)
            return
        exchange.advance(Step.BLOCK_DONE)
        self._core.timers.cancel(exchange.timer)
        del exchange.peer.requesting[exchange.token]
        self.send_next(exchange, transfer, now)

    # --- the further blocks of a notification ---

    def _fetch(self, exchange: ClientExchange, first: Message, now: float) -> ClientExchange:
        """Begin to fetch the further blocks of a notification, with a token of their own."""
        assert exchange.transfer is not None  # only pings have none
        fetch = ClientExchange(
            id=self._core.next_exchange(),
            peer=exchange.peer,
            transfer=exchange.transfer.for_further_blocks(first),
            fetches_for=exchange,
        )
        self._core.exchanges[fetch.id] = fetch
        assert fetch.transfer is not None
        self.send_next(fetch, fetch.transfer, now)
        return fetch

    def _fetched(
        self, fetch: ClientExchange, registration: ClientExchange, response: CoapResponse, now: float
    ) -> None:
        if not is_success(response.code):
            self.fail(fetch, UnexpectedResponse(response.code, "no block, but one was asked for"), now)
            return
        self._end(fetch, now)
        if registration.observation is not None:
            self.observations.fetched(registration, registration.observation, response, now)

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
        self._end(exchange, now, reject=True)
        registration = exchange.fetches_for
        if registration is not None:
            if registration.observation is not None and not registration.ended:
                self.observations.not_fetched(registration, registration.observation, error, now)
            return
        if exchange.transfer is not None:
            self._counters.requests_failed += 1
        self._core.emit(RequestFailed(exchange.peer.peer, exchange.id, error))
        self._core.tend(exchange.peer, now)

    def _end(self, exchange: ClientExchange, now: float, *, reject: bool = False) -> None:
        """End an exchange; `reject` gives it up, also with a word on notifications that will not be confirmed."""
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
            state.rest_token(exchange.token, now, self._core.tuning.exchange_lifetime)
        if reject and exchange.transfer is not None and exchange.transfer.uploads_blocks:
            state.upload_given_up(now, self._core.tuning.exchange_lifetime)
        self._core.forget(exchange)
        if exchange.observation is not None:
            self.observations.close(exchange, exchange.observation, now, reject=reject)


def _notifies(exchange: ClientExchange, message: Message) -> bool:
    """Whether a response to the current message of an exchange is a notification (RFC 7641 section 3.2)."""
    return (
        exchange.observation is not None
        and exchange.transfer is not None
        and not exchange.transfer.answered_at_once
        and OptionNumber.OBSERVE in strip_unrecognized_elective(message.options)
        and is_success(message.code)
        and message.code != Code.CONTINUE
    )


def _sane(message: Message) -> Message:
    """Drop the elective options that must be ignored (RFC 7252 section 5.4.1)."""
    options = strip_unrecognized_elective(message.options)
    if options is message.options:
        return message
    return Message(message.type, message.code, message.message_id, message.token, options, message.payload)
