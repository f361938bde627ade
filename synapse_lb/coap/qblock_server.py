# SPDX-License-Identifier: AGPL-3.0-or-later
"""Server role: response bodies in sets of blocks (Q-Block2, RFC 9177 section 4.4), from the snapshots of Block2.

    Client      Server
      |          |
      +--------->| NON GET /path M:0x01 T:0xf0 QB2:0/1/1024
      |<---------+ NON 2.05 M:0x81 T:0xf0 ET=21 QB2:0/1/1024
      |<---------+ NON 2.05 M:0x82 T:0xf0 ET=21 QB2:1/1/1024
      |<---------+ [[Payloads 3 - 9 not detailed]]
      |<---------+ NON 2.05 M:0x8a T:0xf0 ET=21 QB2:9/1/1024
   [[MAX_PAYLOADS has been reached]]
      +--------->| NON GET /path M:0x02 T:0xf1 QB2:10/1/1024
      |<---------+ NON 2.05 M:0x8b T:0xf1 ET=21 QB2:10/0/1024
                                       (RFC 9177, figure 9)

A Non-confirmable request yields one set at most; the next one leaves when it is asked for. (RFC 9177 section 7.2
recommends to send it unasked after NON_TIMEOUT; on a slow way that would be before the first has arrived.) A
Confirmable request yields the rest of the body in Confirmable messages, each sent when one of those before it has
been acknowledged.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Protocol

from synapse_lb.coap.block import Block
from synapse_lb.coap.blockwise import download_key, named_body
from synapse_lb.coap.core import Core
from synapse_lb.coap.deduplication import Seen
from synapse_lb.coap.errors import BlockwiseError
from synapse_lb.coap.exchange import ServerExchange
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import Options
from synapse_lb.coap.pacing import Pacer, Queued
from synapse_lb.coap.peers import PeerState
from synapse_lb.coap.qblock import QBlocks, blocks_in, numbers_of
from synapse_lb.coap.qblock_uploads import QBlockUploads
from synapse_lb.coap.reassembly import Reassembly
from synapse_lb.coap.reliability import OnOutcome, Outcome, ReliabilityLayer
from synapse_lb.coap.snapshots import ConfirmableStream, Snapshot, Snapshots


class Reply(Protocol):
    """Answers a message at once, without an exchange."""

    def __call__(
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
    ) -> None: ...


class QBlockServer:
    """The server role of RFC 9177.

    Args:
        core: What the layers share.
        reliability: Sends Confirmable messages.
        snapshots: The response bodies.
        reassembly: The request bodies.
        sticky: Options that a peer may leave out once it has sent them.
        reply: Answers a message at once.
    """

    def __init__(
        self,
        core: Core,
        reliability: ReliabilityLayer,
        snapshots: Snapshots,
        reassembly: Reassembly,
        sticky: frozenset[int],
        reply: Reply,
    ) -> None:
        self._core = core
        self._counters = core.counters
        self._reliability = reliability
        self._snapshots = snapshots
        self._sticky = sticky
        self._reply = reply
        self._uploads = QBlockUploads(core, reassembly, sticky, reply)
        self._queued = 0

    def take(
        self,
        state: PeerState,
        message: Message,
        seen: Seen,
        blocks: QBlocks,
        scope: Hashable,
        options: Options,
        now: float,
    ) -> tuple[Options, bytes] | None:
        """Take in a request with Q-Block options.

        Args:
            state: Whose.
            message: It.
            seen: Its entry in the table of duplicates.
            blocks: Its Q-Block options.
            scope: In whose name it is made.
            options: Of the message, without those to be ignored.
            now: Monotonic seconds.

        Returns:
            The options and the body of a whole request, for the application; or None: it was answered here, or
            there is more to come.

        Raises:
            BlockwiseError: The body that a block is asked of is not kept (4.08), or what is asked for makes no
                sense (4.00).
            BodyTooLarge: The request body is over its limit (4.13).
        """
        if blocks.upload is not None:
            return self._uploads.take(state, message, seen, blocks.upload, scope, options, now)
        key = download_key(scope, message.code, options, self._sticky)
        first = blocks.wanted[0]
        if first.number == 0 and len(blocks.wanted) == 1:
            kept = self._snapshots.get(state, key)
            if first.more or message.type is Type.CON or kept is None or not kept.pushed:
                return options, message.payload
        self._serve(state, message, seen, self._snapshots.find(state, key, options), blocks.wanted, now)
        return None

    def follow(self, exchange: ServerExchange, now: float) -> None:
        """Send the blocks after the first, if the response to a request has any and they were asked for."""
        opening = exchange.asked.q_block
        if opening is None or not opening.more:
            return
        snapshot = self._snapshots.get(exchange.peer, exchange.key)
        if snapshot is None:
            return
        snapshot.pushed = not exchange.confirmable
        szx = min(opening.szx, snapshot.max_szx, self._core.limits.block_szx)
        count = blocks_in(len(snapshot.payload), szx)
        if exchange.confirmable:
            self._stream(exchange.peer, snapshot, exchange.token, szx, range(1, count), now)
        else:
            numbers = range(1, min(self._core.tuning.max_payloads, count))
            self._enqueue(exchange.peer, snapshot, exchange.token, szx, numbers, now)

    def drop(self, state: PeerState) -> None:
        """Forget what waits to be sent to a peer that has gone."""
        pacer = state.pacer
        if pacer is not None:
            self._core.timers.cancel(pacer.timer)
            self._queued -= len(pacer.queue)
            state.pacer = None

    def _serve(
        self,
        state: PeerState,
        message: Message,
        seen: Seen,
        snapshot: Snapshot,
        wanted: tuple[Block, ...],
        now: float,
    ) -> None:
        """Answer with blocks of a body that is kept."""
        szx = min(wanted[0].szx, snapshot.max_szx, self._core.limits.block_szx)
        if szx < wanted[0].szx:
            wanted = tuple(block.with_szx(szx) for block in wanted)
        numbers = numbers_of(wanted, blocks_in(len(snapshot.payload), szx), self._core.tuning.max_payloads)
        if not numbers:
            raise BlockwiseError("the blocks that are asked for are not in the body", Code.BAD_REQUEST)
        brief = named_body(message.options) is not None
        if message.type is not Type.CON:
            state.dedup.settle(seen, None, harmless=True)
            self._enqueue(state, snapshot, message.token, szx, numbers, now, brief=brief)
            return
        block, options, payload = self._cut(snapshot, numbers[0], szx, now, brief=brief)
        self._reply(state, message, seen, snapshot.code, options, payload, now, harmless=block.more)
        self._stream(state, snapshot, message.token, szx, numbers[1:], now)

    def _cut(
        self, snapshot: Snapshot, number: int, szx: int, now: float, *, brief: bool = False
    ) -> tuple[Block, Options, bytes]:
        """Return what goes into the message of one block, which is about to be sent."""
        block, payload = snapshot.cut(number << (szx + 4), szx)
        options = Options() if brief else snapshot.options
        if OptionNumber.SIZE2 not in options and not brief:
            options = options.with_uint(OptionNumber.SIZE2, len(snapshot.payload))
        self._counters.blocks_sent += 1
        # Unlike with Block2, the last block may arrive before others, which will be asked for again.
        self._snapshots.served(snapshot, block, now, self._core.tuning.non_partial_timeout)
        return block, options.with_option(OptionNumber.Q_BLOCK2, block.encode()), payload

    # --- Non-confirmable ---

    def _enqueue(
        self,
        state: PeerState,
        snapshot: Snapshot,
        token: bytes,
        szx: int,
        numbers: Iterable[int],
        now: float,
        *,
        brief: bool = False,
    ) -> None:
        """Put blocks behind those that wait to be sent to the peer."""
        limits = self._core.limits
        pacer = state.pacer
        if pacer is None:
            pacer = state.pacer = Pacer()
        asked = 0
        for number in numbers:
            asked += 1
            if (
                len(pacer.queue) >= limits.q_blocks_queued_per_peer
                or self._queued >= limits.q_blocks_queued_total
            ):
                self._counters.blocks_dropped += 1
                continue
            pacer.queue.append(Queued(snapshot, number, szx, token, brief))
            self._queued += 1
        pacer.asked(asked << (szx + 4), state.settings.rto.smoothed_rtt or 0.0, now)
        if pacer.timer is None:
            self._send_due(state, pacer, now)

    def _send_due(self, state: PeerState, pacer: Pacer, now: float) -> None:
        """Send the blocks whose time has come, and see to it that the others follow."""
        tuning = self._core.tuning
        while pacer.queue and pacer.due(now):
            queued = pacer.queue.popleft()
            self._queued -= 1
            if not self._snapshots.holds(queued.snapshot):
                continue
            _, options, payload = self._cut(
                queued.snapshot, queued.number, queued.szx, now, brief=queued.brief
            )
            message_id = state.take_message_id(now, tuning.non_lifetime)
            message = Message(Type.NON, queued.snapshot.code, message_id, queued.token, options, payload)
            self._core.send(state.peer, message)
            rtt = state.settings.rto.smoothed_rtt
            pacer.sent(pacer.interval(16 << queued.szx, tuning.max_payloads, rtt), now)
        pacer.timer = None
        if pacer.queue:
            pacer.timer = self._core.timers.schedule(
                pacer.next_at, lambda now: self._send_due(state, pacer, now)
            )

    # --- Confirmable ---

    def _stream(
        self,
        state: PeerState,
        snapshot: Snapshot,
        token: bytes,
        szx: int,
        numbers: Iterable[int],
        now: float,
    ) -> None:
        """Send blocks in Confirmable messages, as many at a time as NSTART allows.

        They take the place of those of the same body that are still to be sent: its client knows what it misses.
        """
        stream = snapshot.stream
        if stream is None:
            stream = snapshot.stream = ConfirmableStream(token, szx, iter(()))
        stream.token, stream.szx, stream.numbers = token, szx, iter(numbers)
        self._stream_more(state, snapshot, stream, now)

    def _stream_more(
        self, state: PeerState, snapshot: Snapshot, stream: ConfirmableStream, now: float
    ) -> None:
        nstart = self._core.tuning.nstart
        most = nstart * self._core.limits.max_snapshots_per_peer
        while stream.under_way < nstart and state.streaming < most and self._snapshots.holds(snapshot):
            number = next(stream.numbers, None)
            if number is None:
                return
            _, options, payload = self._cut(snapshot, number, stream.szx, now)
            message_id = state.take_message_id(now, self._core.tuning.exchange_lifetime)
            message = Message(Type.CON, snapshot.code, message_id, stream.token, options, payload)
            stream.under_way += 1
            state.streaming += 1
            self._reliability.send(state, message, self._delivery(state, snapshot, stream), now)

    def _delivery(self, state: PeerState, snapshot: Snapshot, stream: ConfirmableStream) -> OnOutcome:
        def on_outcome(outcome: Outcome, _message: Message | None, now: float) -> None:
            stream.under_way -= 1
            state.streaming -= 1
            if outcome is Outcome.ACKNOWLEDGED:
                self._stream_more(state, snapshot, stream, now)
            else:
                stream.numbers = iter(())

        return on_outcome
