# SPDX-License-Identifier: AGPL-3.0-or-later
"""Client role: a request body of which many blocks are under way at once (Q-Block1, RFC 9177 section 4.3).

Confirmable blocks are acknowledged one by one, and a window (`congestion`) says how many may be under way; it takes
the place of NSTART. The first block goes alone: it shows whether the peer knows the option, and how far it is.

    Client      Server
      |          |
      +--------->| CON PUT /path M:0x01 T:0xf0 RT=10 QB1:0/1/1024
      |<---------+ ACK 0.00 M:0x01
      +--------->| CON PUT /path M:0x02 T:0xf1 RT=10 QB1:1/1/1024
      +--------->| CON PUT /path M:0x03 T:0xf2 RT=10 QB1:2/1/1024
      |<---------+ ACK 0.00 M:0x02
      +--------->| CON PUT /path M:0x04 T:0xf3 RT=10 QB1:3/0/1024
      |<---------+ ACK 0.00 M:0x03
      |<---------+ ACK 2.04 M:0x04
                                        (after RFC 9177, figure 17)

Non-confirmable blocks go out in sets. After each set there is a pause of NON_TIMEOUT_RANDOM, unless a 2.31 says that
it has arrived; a 4.08 names what has not (RFC 9177 section 7.2).
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from attrs import define

from synapse_lb.coap.block import Block
from synapse_lb.coap.congestion import CongestionWindow, Mark
from synapse_lb.coap.core import Core
from synapse_lb.coap.errors import BlockwiseError, RequestReset, RequestTimedOut
from synapse_lb.coap.exchange import ClientExchange, Step
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import Options
from synapse_lb.coap.qblock import MISSING_BLOCKS, blocks_in, decode_missing
from synapse_lb.coap.qblock_stream import TOKENS_KEPT, Host, Stream, release_token, take_token
from synapse_lb.coap.reliability import OnOutcome, Outcome, ReliabilityLayer
from synapse_lb.coap.transfer import Transfer


@define(eq=False)
class Upload:
    """One request body.

    Attributes:
        transfer: Of the exchange.
        count: Blocks of the body.
        waiting: Numbers of the blocks to be sent, in their order.
        acknowledged: Confirmable blocks that have arrived.
        heard: Whether the peer has said anything.
        window: How many Confirmable blocks may be under way; None until the first one was acknowledged.
    """

    transfer: Transfer
    count: int
    waiting: deque[int]
    acknowledged: int = 0
    heard: bool = False
    window: CongestionWindow | None = None

    def message(self, number: int) -> tuple[Options, bytes]:
        """Return options and payload of the message with a block."""
        szx = self.transfer.upload_szx
        start = number << (szx + 4)
        block = Block(number, number + 1 < self.count, szx)
        options = self.transfer.upload_options()
        payload = self.transfer.payload[start : start + (16 << szx)]
        return options.with_option(OptionNumber.Q_BLOCK1, block.encode()), payload


class Uploader:
    """Sends request bodies by Q-Block1.

    Args:
        core: What the layers share.
        reliability: Sends Confirmable messages.
        host: The client role.
    """

    def __init__(self, core: Core, reliability: ReliabilityLayer, host: Host) -> None:
        self._core = core
        self._counters = core.counters
        self._reliability = reliability
        self._host = host

    def begin(self, exchange: ClientExchange, transfer: Transfer, now: float) -> None:
        """Begin to send the request body of a transfer."""
        count = blocks_in(len(transfer.payload), transfer.upload_szx)
        upload = Upload(transfer, count, deque(range(count)))
        stream = exchange.stream = Stream(upload=upload, heard_at=now)
        exchange.advance(Step.STREAM)
        exchange.started = now
        # The token that stands for the exchange; no message has it.
        exchange.token = exchange.peer.take_token(now, self._core.tuning.exchange_lifetime)
        exchange.peer.requesting[exchange.token] = exchange
        if exchange.confirmable:
            self._send_confirmable(exchange, stream, upload, upload.waiting.popleft(), now)
        else:
            self._send_set(exchange, stream, upload, now)

    def take(
        self, exchange: ClientExchange, stream: Stream, upload: Upload, message: Message, now: float
    ) -> bool:
        """Take a response while the body goes up.

        Returns:
            Whether that was all; else it is the response to the whole request.
        """
        upload.heard = True
        stream.heard_at = now
        if message.code == Code.CONTINUE:
            self._set_arrived(exchange, stream, upload, message, now)
            return True
        if (
            message.code == Code.REQUEST_ENTITY_INCOMPLETE
            and message.options.get_uint(OptionNumber.CONTENT_FORMAT) == MISSING_BLOCKS
        ):
            self._resend(exchange, stream, upload, message, now)
            return True
        return False

    # --- Confirmable ---

    def _pump(self, exchange: ClientExchange, stream: Stream, upload: Upload, now: float) -> None:
        """Send what the window has room for; when nothing is left, wait for the response.

        What should have been acknowledged by now has been lost, and fills the way no more (as in RFC 6675). Where
        nothing arrives any more nothing new leaves either, for it takes an acknowledgement to come here.
        """
        window = upload.window
        if window is not None:
            timeout = window.timeout
            under_way = sum(now - each.last_sent < timeout for each in stream.transmissions.values())
            room = self._core.limits.q_block_window - len(stream.transmissions)
            for _ in range(min(window.window - under_way, room, len(upload.waiting))):
                self._send_confirmable(exchange, stream, upload, upload.waiting.popleft(), now)
        if not upload.waiting and not stream.transmissions:
            self._await_response(exchange, upload, now)

    def _send_confirmable(
        self, exchange: ClientExchange, stream: Stream, upload: Upload, number: int, now: float
    ) -> None:
        state, tuning = exchange.peer, self._core.tuning
        token = take_token(exchange, stream, now, self._core.tuning.exchange_lifetime)
        options, payload = upload.message(number)
        message_id = state.take_message_id(now, tuning.exchange_lifetime)
        message = Message(Type.CON, upload.transfer.code, message_id, token, options, payload)
        mark = Mark(now, 0) if upload.window is None else upload.window.mark(now)
        last = number == upload.count - 1
        self._counters.blocks_sent += 1
        stream.transmissions[token] = self._reliability.send(
            state,
            message,
            self._on_outcome(exchange, stream, upload, token, mark),
            now,
            allowance=tuning.separate_after if last else 0.0,
            windowed=True,
            timeout=upload.window.timeout if upload.window is not None and tuning.adaptive_rto else 0.0,
        )

    def _on_outcome(
        self, exchange: ClientExchange, stream: Stream, upload: Upload, token: bytes, mark: Mark
    ) -> OnOutcome:
        def on_outcome(outcome: Outcome, message: Message | None, now: float) -> None:
            transmission = stream.transmissions.pop(token)
            if outcome is Outcome.RESET:
                self._host.fail(exchange, RequestReset("the peer rejected a block of the request"), now)
                return
            if message is None:
                self._host.fail(exchange, RequestTimedOut("no acknowledgement of a block"), now)
                return
            upload.heard = True
            stream.heard_at = now
            self._acknowledged(exchange, upload, mark, transmission.retransmissions, now)
            if message.code != Code.EMPTY:
                self._host.take(exchange, message, now)
            if exchange.stream is stream:
                self._forget_tokens(exchange, stream)
                self._pump(exchange, stream, upload, now)

        return on_outcome

    def _acknowledged(
        self, exchange: ClientExchange, upload: Upload, mark: Mark, copies: int, now: float
    ) -> None:
        upload.acknowledged += 1
        if upload.window is None:
            tuning = self._core.tuning
            upload.window = CongestionWindow(
                first=now - mark.time,
                limit=self._core.limits.q_block_window,
                timeout=exchange.peer.settings.rto.timeout,
                max_timeout=tuning.max_rto,
            )
            return
        if copies:
            self._counters.blocks_recovered += 1
            upload.window.lost(mark, now)
        upload.window.arrived(mark, now, first=not copies)

    def _forget_tokens(self, exchange: ClientExchange, stream: Stream) -> None:
        """Give back the oldest tokens, if there are many."""
        surplus = len(stream.tokens) - TOKENS_KEPT - len(stream.transmissions)
        if surplus > 0:
            idle = (token for token in stream.tokens if token not in stream.transmissions)
            for token in list(islice(idle, surplus)):
                release_token(exchange, stream, token)

    # --- Non-confirmable ---

    def _send_set(self, exchange: ClientExchange, stream: Stream, upload: Upload, now: float) -> None:
        """Send the next set, and pause."""
        for _ in range(min(self._core.tuning.max_payloads, len(upload.waiting))):
            self._send_non_confirmable(exchange, stream, upload, upload.waiting.popleft(), now)
        self._forget_tokens(exchange, stream)
        self._pause(exchange, stream, upload, now)

    def _pause(self, exchange: ClientExchange, stream: Stream, upload: Upload, now: float) -> None:
        if not upload.waiting:
            self._await_response(exchange, upload, now)
            return
        tuning = self._core.tuning
        delay = tuning.non_timeout * self._core.random.uniform(1.0, tuning.ack_random_factor)
        self._core.later(exchange, delay, lambda now: self._send_set(exchange, stream, upload, now), now)

    def _send_non_confirmable(
        self, exchange: ClientExchange, stream: Stream, upload: Upload, number: int, now: float
    ) -> None:
        state = exchange.peer
        token = take_token(exchange, stream, now, self._core.tuning.exchange_lifetime)
        options, payload = upload.message(number)
        message_id = state.take_message_id(now, self._core.tuning.non_lifetime)
        self._counters.blocks_sent += 1
        message = Message(Type.NON, upload.transfer.code, message_id, token, options, payload)
        self._core.send(state.peer, message)

    def _set_arrived(
        self, exchange: ClientExchange, stream: Stream, upload: Upload, message: Message, now: float
    ) -> None:
        """Take a 2.31; the next set leaves at once, unless it has left already."""
        value = message.options.get(OptionNumber.Q_BLOCK1)
        number = -1 if value is None else Block.decode(value).number
        if not exchange.confirmable and upload.waiting and number + 1 >= upload.waiting[0]:
            self._send_set(exchange, stream, upload, now)

    def _resend(
        self, exchange: ClientExchange, stream: Stream, upload: Upload, message: Message, now: float
    ) -> None:
        """Send the blocks again that a 4.08 names, one set of them at most."""
        try:
            missing = decode_missing(message.payload, upload.count)
        except BlockwiseError:
            self._counters.unmatched += 1
            return
        missing = [number for number in missing if number not in upload.waiting]
        missing = missing[: self._core.tuning.max_payloads]
        self._counters.blocks_recovered += len(missing)
        if exchange.confirmable:
            upload.waiting.extendleft(reversed(missing))
            self._pump(exchange, stream, upload, now)
            return
        for number in missing:
            self._send_non_confirmable(exchange, stream, upload, number, now)
        self._forget_tokens(exchange, stream)
        self._pause(exchange, stream, upload, now)

    # --- both ---

    def _await_response(self, exchange: ClientExchange, upload: Upload, now: float) -> None:
        self._core.later(
            exchange,
            self._core.tuning.response_timeout,
            lambda now: self._no_response(exchange, upload, now),
            now,
        )

    def _no_response(self, exchange: ClientExchange, upload: Upload, now: float) -> None:
        if not upload.heard:
            tuning = self._core.tuning
            wait = min(len(upload.transfer.payload) / tuning.probing_rate, tuning.non_probing_wait)
            exchange.peer.settings.silent_until = now + wait
        self._host.fail(exchange, RequestTimedOut("no response in time"), now)
