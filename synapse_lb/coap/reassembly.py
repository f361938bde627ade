# SPDX-License-Identifier: AGPL-3.0-or-later
"""Server role: putting the blocks of a request body together (Block1, RFC 7959 sections 2.3, 2.5 and 2.9).

A body is delivered when it is whole (the atomic processing of RFC 7959 section 3.2), and bounded *while* it
grows.

    CLIENT                                                     SERVER
      |                                                            |
      | CON [MID=1234], PUT, /options, 1:0/1/128    ------>        |
      |                                                            |
      | <------   ACK [MID=1234], 2.31 Continue, 1:0/1/128         |
      |                                                            |
      | CON [MID=1235], PUT, /options, 1:1/1/128    ------>        |
      |                                                            |
      | <------   ACK [MID=1235], 2.31 Continue, 1:1/1/128         |
      |                                                            |
      | CON [MID=1236], PUT, /options, 1:2/0/128    ------>        |
      |                                                            |
      | <------   ACK [MID=1236], 2.04 Changed, 1:2/0/128          |
                                                     (RFC 7959, figure 7)
"""

from __future__ import annotations

from attrs import define, field

from synapse_lb.coap.block import Block
from synapse_lb.coap.blockwise import BlockKey
from synapse_lb.coap.bodies import Body, BodyStore, Bounds
from synapse_lb.coap.core import Core
from synapse_lb.coap.errors import BlockwiseError, BodyTooLarge
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.coap.peers import PeerState


@define(eq=False, kw_only=True)
class Upload(Body):
    """A request body that is not whole yet, with the options of its first block."""

    options: Options
    data: bytearray = field(factory=bytearray)


class Reassembly:
    """The request bodies that are being put together.

    Args:
        core: What the layers share.
    """

    def __init__(self, core: Core) -> None:
        self._limits = limits = core.limits
        self._counters = core.counters
        bounds = Bounds(
            count_per_peer=limits.max_reassemblies_per_peer,
            bytes_per_peer=limits.max_reassembly_bytes_per_peer,
            bytes_total=limits.max_reassembly_bytes_total,
            lifetime=limits.reassembly_lifetime,
        )
        self.store: BodyStore[Upload] = BodyStore(core, bounds, self._evicted, self._expired)

    def __len__(self) -> int:
        return len(self.store)

    @property
    def total_bytes(self) -> int:
        """Bytes of all bodies."""
        return self.store.total_bytes

    def take(
        self, state: PeerState, key: BlockKey, block: Block, options: Options, payload: bytes, now: float
    ) -> tuple[Options, bytes] | None:
        """Take in one block.

        Args:
            state: Whose.
            key: `upload_key` of its message.
            block: Its Block1 option.
            options: Of its message.
            payload: Of its message.
            now: Monotonic seconds.

        Returns:
            The options of the first block and the whole body, or None if there is more to come.

        Raises:
            BlockwiseError: A block is missing before it (4.08), or its size is not what it says (4.00).
            BodyTooLarge: The body is over its limit (4.13).
        """
        if len(payload) > block.size or (block.more and len(payload) != block.size):
            raise BlockwiseError(
                f"a block of {len(payload)} bytes in a size of {block.size}", Code.BAD_REQUEST
            )
        upload = self.store.get(state, key)
        self._check_size(upload, block, options, payload)
        if block.number == 0:
            if not block.more:
                self._drop(upload)
                return options, payload
            upload = Upload(peer=state, key=key, options=options)
            self.store.add(upload, now)
        if upload is None or block.offset > len(upload.data):
            raise BlockwiseError(f"blocks are missing before number {block.number}")
        if block.offset < len(upload.data):
            self._check_repeated(upload, block, payload)
            return None
        upload.data += payload
        self.store.grow(upload, len(payload), now)
        if block.more:
            self.store.touch(upload, now)
            return None
        self.store.discard(upload)
        return upload.options, bytes(upload.data)

    def discard_all(self, state: PeerState) -> None:
        """Forget all bodies of a peer."""
        self.store.discard_all(state)

    def _check_size(self, upload: Upload | None, block: Block, options: Options, payload: bytes) -> None:
        limit = self._limits.max_request_body
        announced = options.get_uint(OptionNumber.SIZE1) or 0
        if block.offset + len(payload) > limit or announced > limit:
            self._drop(upload)
            raise BodyTooLarge(limit)

    def _check_repeated(self, upload: Upload, block: Block, payload: bytes) -> None:
        """Allow a block that was taken before, if nothing has changed and it is not the last one."""
        if not block.more or upload.data[block.offset : block.offset + len(payload)] != payload:
            self._drop(upload)
            raise BlockwiseError(f"block {block.number} was received before, with other content")

    def _drop(self, upload: Upload | None) -> None:
        if upload is not None:
            self.store.discard(upload)

    def _evicted(self, _upload: Upload, _now: float) -> None:
        self._counters.reassembly_evictions += 1

    def _expired(self) -> None:
        self._counters.reassembly_expirations += 1
