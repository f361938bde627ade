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

from collections.abc import Iterator
from hashlib import blake2b

from attrs import define

from synapse_lb.coap.block import MAX_BLOCK_NUMBER, Block
from synapse_lb.coap.blockwise import BlockKey
from synapse_lb.coap.bodies import Body, BodyStore, Bounds
from synapse_lb.coap.core import Core
from synapse_lb.coap.errors import BlockwiseError
from synapse_lb.coap.numbers import Code
from synapse_lb.coap.options import Options
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
    """

    code: int
    options: Options
    payload: bytes
    max_szx: int
    pushed: bool = False
    stream: ConfirmableStream | None = None

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

    def add(self, snapshot: Snapshot, now: float) -> None:
        """Keep a body that `accepts` allows."""
        self._store.add(snapshot, now)

    def find(self, state: PeerState, key: BlockKey) -> Snapshot:
        """Return the body of which a further block is asked for.

        Raises:
            BlockwiseError: There is none (4.08).
        """
        snapshot = self._store.get(state, key)
        if snapshot is None:
            raise BlockwiseError("the body is not kept any more")
        return snapshot

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

    def discard(self, state: PeerState, key: BlockKey) -> None:
        """Forget a body, if it is there."""
        snapshot = self._store.get(state, key)
        if snapshot is not None:
            self._store.discard(snapshot)

    def discard_all(self, state: PeerState) -> None:
        """Forget all bodies of a peer."""
        self._store.discard_all(state)

    def _evicted(self) -> None:
        self._counters.snapshot_evictions += 1

    def _expired(self) -> None:
        self._counters.snapshot_expirations += 1
