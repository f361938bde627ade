# SPDX-License-Identifier: AGPL-3.0-or-later
"""Server role: request bodies in sets of blocks (Q-Block1, RFC 9177 section 4.3).

Blocks arrive in any order. Confirmable ones are acknowledged one by one. Of Non-confirmable ones a whole set is
acknowledged with 2.31, and gaps are named in a 4.08: when a block of a later set shows them, or when nothing has
arrived for a while.

    Client      Server
      |          |
      +--------->| NON PUT /path M:0x11 T:0xe1 RT=11 QB1:0/1/1024
      +--->X     | NON PUT /path M:0x12 T:0xe2 RT=11 QB1:1/1/1024
      +--------->| [[Payloads 3 - 8 not detailed]]
      +--------->| NON PUT /path M:0x19 T:0xe9 RT=11 QB1:8/1/1024
      +--->X     | NON PUT /path M:0x1a T:0xea RT=11 QB1:9/1/1024
      |   ...    |
      +--->X     | NON PUT /path M:0x1b T:0xeb RT=11 QB1:10/1/1024
      +--------->| NON PUT /path M:0x1c T:0xec RT=11 QB1:11/1/1024
      |<---------+ NON 4.08 M:0x91 T:0xec [Missing 1,9]
                                        (RFC 9177, figures 5 and 6)

The bodies are in the store of those that come with Block1, and under its bounds. One that is whole leaves an empty
entry behind for NON_LIFETIME, so that blocks which come late or twice do not begin it anew.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from typing import TYPE_CHECKING

from attrs import define, evolve, field

from synapse_lb.coap.block import Block
from synapse_lb.coap.blockwise import upload_key
from synapse_lb.coap.core import Core
from synapse_lb.coap.deduplication import Seen
from synapse_lb.coap.errors import BlockwiseError, BodyTooLarge
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import Options
from synapse_lb.coap.peers import PeerState
from synapse_lb.coap.qblock import MISSING_BLOCKS, blocks_in, encode_missing
from synapse_lb.coap.reassembly import Reassembly, Upload

if TYPE_CHECKING:
    from synapse_lb.coap.qblock_server import Reply

_LEAST_WAIT = 0.2
"""s: added to what the round trip lets expect, for blocks that overtake one another."""

_RESPONSE_OVERHEAD = 32
"""B: what is allowed for header, token and options of a 4.08."""


@define(eq=False, kw_only=True)
class QUpload(Upload):
    """A request body that comes in sets.

    Attributes:
        total: Its bytes, as announced (Size1).
        szx: Size exponent of its blocks.
        blocks: Those that are here, by number.
        whole: Whether all were here; then they have gone to the application.
        reached: The first number that is missing.
        highest: The greatest number that is here.
        confirmed: Sets that were acknowledged with 2.31.
        token: Of the latest message.
        heard_at: When that came, in monotonic seconds.
        gap: Seconds between messages of a set, at most of late.
        reports: How often gaps were named since a block arrived.
        asked_at: When the client was last told something that it answers at once, if it has not yet; or None.
        turn: Seconds that it takes to answer, as measured of late; None if that is not known.
    """

    total: int
    szx: int
    blocks: dict[int, bytes] = field(factory=dict)
    whole: bool = False
    reached: int = 0
    highest: int = -1
    confirmed: int = 0
    token: bytes = b""
    heard_at: float = 0.0
    gap: float = 0.0
    reports: int = 0
    asked_at: float | None = None
    turn: float | None = None

    @property
    def count(self) -> int:
        """How many blocks it has."""
        return blocks_in(self.total, self.szx)

    def missing(self, stop: int, limit: int) -> list[int]:
        """Return the numbers below `stop` that are missing, `limit` of them at most."""
        numbers: list[int] = []
        for number in range(self.reached, min(stop, self.count)):
            if number not in self.blocks:
                numbers.append(number)
                if len(numbers) == limit:
                    break
        return numbers


class QBlockUploads:
    """The request bodies that come in sets.

    Args:
        core: What the layers share.
        reassembly: Where they are kept.
        sticky: Options that a peer may leave out once it has sent them.
        reply: Answers a message at once.
    """

    def __init__(self, core: Core, reassembly: Reassembly, sticky: Collection[int], reply: Reply) -> None:
        self._core = core
        self._counters = core.counters
        self._store = reassembly.store
        self._sticky = sticky
        self._reply = reply

    def take(
        self,
        state: PeerState,
        message: Message,
        seen: Seen,
        block: Block,
        scope: Hashable,
        options: Options,
        now: float,
    ) -> tuple[Options, bytes] | None:
        """Take in one block, and answer it unless it makes the body whole.

        Returns:
            The options of the first block that came, and the whole body; or None if there is more to come.

        Raises:
            BlockwiseError: The block is not what it says (4.00).
            BodyTooLarge: The body is over its limit (4.13).
        """
        self._counters.blocks_received += 1
        upload = self._find(state, message, block, scope, options, now)
        if block.number in upload.blocks or upload.whole:
            self._counters.blocks_duplicate += 1
            if not upload.whole:
                self._heard(upload, message, now, same_set=True)
            self._answer(upload, message, seen, block, now, again=True)
            return None
        _check_payload(upload, block, message.payload)
        former_set = upload.highest // self._core.tuning.max_payloads
        upload.blocks[block.number] = message.payload
        upload.highest = max(upload.highest, block.number)
        upload.reports = 0
        while upload.reached in upload.blocks:
            upload.reached += 1
        if upload.reached == upload.count:
            return self._whole(upload, now)
        self._store.grow(upload, len(message.payload), now)
        self._store.touch(upload, now)
        new_set = upload.highest // self._core.tuning.max_payloads > former_set >= 0
        self._heard(upload, message, now, same_set=not new_set)
        self._answer(upload, message, seen, block, now, new_set=new_set)
        return None

    def _find(
        self,
        state: PeerState,
        message: Message,
        block: Block,
        scope: Hashable,
        options: Options,
        now: float,
    ) -> QUpload:
        """Return the body to which a block belongs, begun now if it is the first."""
        total = options.get_uint(OptionNumber.SIZE1)
        if total is None or OptionNumber.REQUEST_TAG not in options:
            raise BlockwiseError("a Q-Block1 without Request-Tag or Size1", Code.BAD_REQUEST)
        key = upload_key(scope, message.code, options, self._sticky)
        # A body that comes by Block1 under the same tag is another one.
        key = evolve(key, scope=(key.scope, OptionNumber.Q_BLOCK1))
        upload = self._store.get(state, key)
        limit = self._core.limits.max_request_body
        if total > limit:
            if upload is not None:
                self._store.discard(upload)
            raise BodyTooLarge(limit)
        if isinstance(upload, QUpload) and upload.total == total and upload.szx == block.szx:
            return upload
        upload = QUpload(peer=state, key=key, options=options, total=total, szx=block.szx, heard_at=now)
        if block.number < upload.count:
            _check_payload(upload, block, message.payload)
        self._store.add(upload, now)
        return upload

    def _whole(self, upload: QUpload, now: float) -> tuple[Options, bytes]:
        """Take the body out, and leave its name behind."""
        body = b"".join(upload.blocks[number] for number in range(upload.count))
        self._core.timers.cancel(upload.further_timer)
        self._store.grow(upload, -upload.size, now)
        upload.blocks.clear()
        upload.whole = True
        self._store.touch(upload, now, self._core.tuning.non_lifetime)
        return upload.options, body

    def _heard(self, upload: QUpload, message: Message, now: float, *, same_set: bool) -> None:
        """Note the token of the latest message, and wait for the next one."""
        upload.token = message.token
        if upload.asked_at is not None:
            turn = now - upload.asked_at
            upload.turn = turn if upload.turn is None else max(turn, (upload.turn + turn) / 2)
        elif same_set:
            # Between two sets the client pauses, which tells nothing of the way.
            upload.gap = max(now - upload.heard_at, upload.gap / 2)
        upload.asked_at = None
        upload.heard_at = now
        self._core.timers.cancel(upload.further_timer)
        upload.further_timer = None
        if message.type is Type.NON:
            self._wait(upload, now)

    def _wait(self, upload: QUpload, now: float) -> None:
        upload.further_timer = self._core.timers.schedule(
            now + self._time_to_wait(upload), lambda now: self._overdue(upload, now)
        )

    def _time_to_wait(self, upload: QUpload) -> float:
        """Return the seconds without a block after which gaps are named (RFC 9177 section 7.2).

        NON_RECEIVE_TIMEOUT is the *maximum* of the first wait. Where the round trip is known, and a block of the set
        is missing, two of that are enough: the blocks of a set leave together, or at once when they are asked for.
        The waits then grow faster, so that the last one is as long as if the first had been NON_RECEIVE_TIMEOUT.
        """
        tuning = self._core.tuning
        # On a slow way the next block takes long, and is not missing.
        usual = max(tuning.non_receive_timeout, 3 * upload.gap)
        known = [rtt for rtt in (upload.peer.settings.rto.smoothed_rtt, upload.turn) if rtt is not None]
        # If nothing is missing the client pauses, or has not got the 2.31.
        told = known and tuning.adaptive_rto and upload.missing(self._end_of_set(upload), 1)
        if not told or not tuning.non_max_retransmit:
            return usual * float(1 << upload.reports)
        first = min(usual, max(2 * max(known) + _LEAST_WAIT, 3 * upload.gap))
        growth: float = 2 * (usual / first) ** (1 / tuning.non_max_retransmit)
        return first * growth**upload.reports

    def _end_of_set(self, upload: QUpload) -> int:
        """Return the number after the set of the greatest number that is here."""
        max_payloads = self._core.tuning.max_payloads
        return (upload.highest // max_payloads + 1) * max_payloads

    def _overdue(self, upload: QUpload, now: float) -> None:
        """Nothing has arrived: name the gaps, or give up (RFC 9177 section 7.2)."""
        upload.further_timer = None
        tuning = self._core.tuning
        if upload.reports == tuning.non_max_retransmit:
            self._store.discard(upload)
            self._counters.reassembly_expirations += 1
            self._core.tend(upload.peer, now)
            return
        upload.reports += 1
        missing = upload.missing(self._end_of_set(upload), tuning.max_payloads)
        self._report(upload, missing or upload.missing(upload.count, tuning.max_payloads), now)
        self._wait(upload, now)

    def _answer(
        self,
        upload: QUpload,
        message: Message,
        seen: Seen,
        block: Block,
        now: float,
        *,
        new_set: bool = False,
        again: bool = False,
    ) -> None:
        """Acknowledge a block, or its set, or name the gaps before it."""
        state = upload.peer
        if message.type is Type.CON:
            datagram = self._core.send(state.peer, Message(Type.ACK, 0, message.message_id))
            state.dedup.settle(seen, datagram, harmless=True)
            return
        max_payloads = self._core.tuning.max_payloads
        whole_sets = upload.reached // max_payloads
        repeats = again and block.number < whole_sets * max_payloads
        if not upload.whole and (whole_sets > upload.confirmed or repeats):
            upload.confirmed = whole_sets
            upload.asked_at = now
            option = Block(whole_sets * max_payloads - 1, True, upload.szx).encode()
            options = Options().with_option(OptionNumber.Q_BLOCK1, option)
            self._reply(state, message, seen, Code.CONTINUE, options, b"", now, harmless=True)
            return
        state.dedup.settle(seen, None, harmless=True)
        if new_set:
            former = upload.highest // max_payloads * max_payloads
            self._report(upload, upload.missing(former, max_payloads), now)

    def _report(self, upload: QUpload, missing: list[int], now: float) -> None:
        """Name missing blocks in a 4.08 (RFC 9177 section 5)."""
        if not missing:
            return
        state = upload.peer
        payload = encode_missing(missing, state.settings.max_message_size - _RESPONSE_OVERHEAD)
        options = Options().with_uint(OptionNumber.CONTENT_FORMAT, MISSING_BLOCKS)
        message_id = state.take_message_id(now, self._core.tuning.non_lifetime)
        code = Code.REQUEST_ENTITY_INCOMPLETE
        self._counters.blocks_recovered += len(missing)
        upload.asked_at = now
        self._core.send(state.peer, Message(Type.NON, code, message_id, upload.token, options, payload))


def _check_payload(upload: QUpload, block: Block, payload: bytes) -> None:
    """Check that a block is what it says.

    Raises:
        BlockwiseError: It is not (4.00).
    """
    expected = min(block.size, upload.total - block.offset)
    if expected < 0 or len(payload) != expected or block.more != (block.number + 1 < upload.count):
        raise BlockwiseError(
            f"block {block.number} of {len(payload)} bytes in a body of {upload.total}", Code.BAD_REQUEST
        )
