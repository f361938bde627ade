# SPDX-License-Identifier: AGPL-3.0-or-later
"""Server role: response bodies that are fetched block by block (Block2, RFC 7959 sections 2.2 to 2.4).

The body is what the request produced once; no block but the first ever runs a request, since requests such as a
Matrix /sync are not idempotent. Blocks may be asked for in any order and in any size.

    CLIENT                                                     SERVER
      |                                                            |
      | CON [MID=1234], GET, /status                       ------> |
      |                                                            |
      | <------   ACK [MID=1234], 2.05 Content, 2:0/1/128          |
      |                                                            |
      | CON [MID=1235], GET, /status, 2:1/0/128            ------> |
      |                                                            |
      | <------   ACK [MID=1235], 2.05 Content, 2:1/1/128          |
      |                                                            |
      | CON [MID=1236], GET, /status, 2:2/0/128            ------> |
      |                                                            |
      | <------   ACK [MID=1236], 2.05 Content, 2:2/0/128          |
                                                     (RFC 7959, figure 2)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b

from attrs import define, frozen

from synapse_lb.coap.block import MAX_BLOCK_NUMBER, Block
from synapse_lb.coap.blockwise import BlockKey, fits, fitting_szx, named_body
from synapse_lb.coap.bodies import Body, BodyStore, Bounds
from synapse_lb.coap.core import Core
from synapse_lb.coap.errors import BlockwiseError
from synapse_lb.coap.events import CoapResponse
from synapse_lb.coap.exchange import ServerExchange
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import NO_OPTIONS, Options, encode_uint
from synapse_lb.coap.peers import PeerState

ETAG_LENGTH = 4
"""Bytes of the ETag that is made where the application gives none: enough to tell two representations that one
client may mix up apart."""


def etag_of(payload: bytes) -> bytes:
    """Return an ETag for a body (RFC 7252 section 5.10.6)."""
    return blake2b(payload, digest_size=ETAG_LENGTH).digest()


@define(eq=False)
class ConfirmableStream:
    """Blocks that leave in Confirmable messages, each when one before it was acknowledged (RFC 9177).

    Attributes:
        token: Of the request for them.
        szx: Size exponent of the blocks.
        numbers: Those to come.
        under_way: Messages that are not acknowledged.
    """

    token: bytes
    szx: int
    numbers: Iterator[int]
    under_way: int = 0


@define(eq=False, kw_only=True)
class Snapshot(Body):
    """A response body that its client is fetching.

    Attributes:
        code: Of the response.
        options: Of the response, with an ETag; repeated with each block.
        payload: The whole body.
        max_szx: Size exponent of the largest block that fits in a message beside the options.
        pushed: Whether its first set left without being asked for block by block (RFC 9177).
        stream: Its blocks that leave in Confirmable messages, one after the other (RFC 9177).
        on_served: Called with each further block that is sent, and the time, by whom it is pinned.
        on_lost: Called with the time if it has to go though it is pinned.
    """

    code: int
    options: Options
    payload: bytes
    max_szx: int
    pushed: bool = False
    stream: ConfirmableStream | None = None
    on_served: Callable[[Block, float], None] | None = None
    on_lost: Callable[[float], None] | None = None

    def cut(self, offset: int, szx: int) -> tuple[Block, bytes]:
        """Cut one block out.

        Args:
            offset: Bytes before it.
            szx: Size exponent that is wanted; the block is smaller if that does not fit.

        Returns:
            Its Block2 option and its payload.

        Raises:
            BlockwiseError: The offset is behind the end.
        """
        szx = min(szx, self.max_szx)
        number = offset >> (szx + 4)
        start = number << (szx + 4)
        stop = start + (16 << szx)
        if start >= len(self.payload) or number > MAX_BLOCK_NUMBER:
            raise BlockwiseError(f"a block at {start} of {len(self.payload)} bytes", Code.BAD_REQUEST)
        return Block(number, stop < len(self.payload), szx), self.payload[start:stop]


@frozen
class FirstMessage:
    """What goes into the first message of a response.

    Attributes:
        code: Of the response.
        options: Of the message.
        payload: Of the message: the whole body, or its first block.
        snapshot: Of the whole body if there are further blocks; it is not kept yet.
    """

    code: int
    options: Options
    payload: bytes
    snapshot: Snapshot | None = None


def _first_options(exchange: ServerExchange, options: Options, length: int) -> Options:
    """Add what only the first message of a response tells of the transfer."""
    asked = exchange.asked
    if asked.block1 is not None and not exchange.observed:
        options = options.with_option(OptionNumber.BLOCK1, asked.block1.encode())
    if asked.wants_size:
        options = options.with_uint(OptionNumber.SIZE2, length)
    return options


class Snapshots:
    """The response bodies that are being fetched.

    Args:
        core: What the layers share.
    """

    def __init__(self, core: Core) -> None:
        self._limits = limits = core.limits
        self._counters = core.counters
        # The last block has been fetched. Its copies are served from the table of duplicates; this is for a
        # client that asks again with a new message id, as one that sends Non-confirmable requests must.
        self._grace = min(
            limits.snapshot_lifetime, 2 * core.tuning.ack_timeout * core.tuning.ack_random_factor
        )
        bounds = Bounds(
            count_per_peer=limits.max_snapshots_per_peer,
            bytes_per_peer=limits.snapshot_bytes_per_peer,
            bytes_total=limits.snapshot_bytes_total,
            lifetime=limits.snapshot_lifetime,
        )
        self._store: BodyStore[Snapshot] = BodyStore(core, bounds, self._evicted, self._expired)

    def __len__(self) -> int:
        return len(self._store)

    @property
    def total_bytes(self) -> int:
        """Bytes of all bodies."""
        return self._store.total_bytes

    def accepts(self, size: int, szx: int) -> bool:
        """Whether a body of `size` bytes may be kept, and has block numbers in blocks of this size."""
        return size <= self._limits.snapshot_bytes_per_peer and size <= (MAX_BLOCK_NUMBER + 1) << (szx + 4)

    def begin(
        self, exchange: ServerExchange, response: CoapResponse, further: Options = NO_OPTIONS
    ) -> FirstMessage | None:
        """Make the first message of a response, and cut its body if it does not fit there.

        Args:
            exchange: Whose response.
            response: Whole.
            further: Options for the first message only, besides those of the transfer.

        Returns:
            The message, or None if the body is over a limit, or the options leave no room.

        Raises:
            OptionError: An option has no wire form.
        """
        size = exchange.peer.settings.max_message_size
        options = response.options.without(OptionNumber.BLOCK1, OptionNumber.BLOCK2, OptionNumber.SIZE2)
        length = len(response.payload)
        first = _first_options(exchange, Options((*options, *further)), length)
        wanted = exchange.asked.szx
        szx = self._limits.block_szx if wanted is None else min(self._limits.block_szx, wanted)
        if length <= 16 << szx and fits(response.code, first, length, size, exchange.token):
            return FirstMessage(response.code, first, response.payload)
        if OptionNumber.ETAG not in options:
            etag = etag_of(response.payload)
            options = options.with_option(OptionNumber.ETAG, etag)
            first = first.with_option(OptionNumber.ETAG, etag)
        number = OptionNumber.BLOCK2
        if exchange.asked.q_block is not None:
            number = OptionNumber.Q_BLOCK2
            first = first.replacing(OptionNumber.SIZE2, encode_uint(length))
        fitting = fitting_szx(response.code, first, number, size)
        if fitting is None or not self.accepts(length, min(szx, fitting)):
            return None
        snapshot = self._make(exchange, CoapResponse(response.code, options, response.payload), fitting)
        block, payload = snapshot.cut(0, szx)
        first = first.with_option(number, block.encode())
        return FirstMessage(response.code, first, payload, snapshot)

    @staticmethod
    def _make(exchange: ServerExchange, response: CoapResponse, max_szx: int) -> Snapshot:
        return Snapshot(
            peer=exchange.peer,
            key=exchange.key,
            size=len(response.payload),
            code=response.code,
            options=response.options,
            payload=response.payload,
            max_szx=max_szx,
        )

    def add(self, snapshot: Snapshot, now: float) -> None:
        """Keep a body that `accepts` allows, in place of one with its key."""
        previous = self._store.get(snapshot.peer, snapshot.key)
        if previous is not None:
            self._lost(previous, now)
        self._store.add(snapshot, now)

    def is_held(self, snapshot: Snapshot) -> bool:
        """Whether a body is kept under the same key that must not be replaced."""
        previous = self._store.get(snapshot.peer, snapshot.key)
        return previous is not None and previous.pinned

    def find(self, state: PeerState, key: BlockKey, options: Options) -> Snapshot:
        """Return the body of which a further block is asked for.

        Args:
            state: By whom.
            key: Of the request for it.
            options: Of that request, which may name the body by its ETag alone.

        Raises:
            BlockwiseError: There is none (4.08).
        """
        etag = named_body(options)
        snapshot = self._store.get(state, key) if etag is None else self._named(state, key, etag)
        if snapshot is None:
            raise BlockwiseError("the body is not kept any more")
        return snapshot

    def _named(self, state: PeerState, key: BlockKey, etag: bytes) -> Snapshot | None:
        """The body with this ETag that was asked for in the same name, by the same method."""
        for snapshot in self._store.of(state):
            its = snapshot.key
            if (its.scope, its.code) == (key.scope, key.code) and snapshot.options.get(
                OptionNumber.ETAG
            ) == etag:
                return snapshot
        return None

    def get(self, state: PeerState, key: BlockKey) -> Snapshot | None:
        """Return a body, or None."""
        return self._store.get(state, key)

    def holds(self, snapshot: Snapshot) -> bool:
        """Whether a body is still kept."""
        return self._store.get(snapshot.peer, snapshot.key) is snapshot

    def served(self, snapshot: Snapshot, block: Block, now: float, grace: float | None = None) -> None:
        """Note that a block was sent; after the last one the body is kept for a short while only.

        Args:
            snapshot: The body.
            block: Of it.
            now: Monotonic seconds.
            grace: Seconds for which it is kept after the last block, if not those of Block2.
        """
        grace = self._grace if grace is None else min(grace, self._limits.snapshot_lifetime)
        self._store.touch(snapshot, now, None if block.more else grace)
        if snapshot.on_served is not None:
            snapshot.on_served(block, now)

    def release(self, snapshot: Snapshot, now: float) -> None:
        """Pin a body no longer, since its last block was fetched."""
        snapshot.pinned = False
        snapshot.on_served = snapshot.on_lost = None
        if self._store.get(snapshot.peer, snapshot.key) is snapshot:
            self._store.touch(snapshot, now, self._grace)

    def discard(self, snapshot: Snapshot | None) -> None:
        """Forget a body, if it is there."""
        if snapshot is not None:
            self._store.discard(snapshot)

    def discard_key(self, state: PeerState, key: BlockKey) -> None:
        """Forget a body that is there for a client that asks anew, unless it is pinned."""
        snapshot = self._store.get(state, key)
        if snapshot is not None and not snapshot.pinned:
            self._store.discard(snapshot)

    def discard_all(self, state: PeerState) -> None:
        """Forget all bodies of a peer."""
        self._store.discard_all(state)

    def _evicted(self, snapshot: Snapshot, now: float) -> None:
        self._counters.snapshot_evictions += 1
        self._lost(snapshot, now)

    @staticmethod
    def _lost(snapshot: Snapshot, now: float) -> None:
        if snapshot.on_lost is not None:
            snapshot.on_lost(now)

    def _expired(self) -> None:
        self._counters.snapshot_expirations += 1
