# SPDX-License-Identifier: AGPL-3.0-or-later
"""What both directions and both roles of block-wise transfer share (RFC 7959): keys, sizes, option reading."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import lru_cache
from typing import Final

from attrs import frozen

from synapse_lb.coap.block import MAX_BLOCK_NUMBER, Block, largest_szx
from synapse_lb.coap.message import HEADER_LENGTH, Message
from synapse_lb.coap.numbers import MAX_OPTION_NUMBER, OptionNumber, Type
from synapse_lb.coap.options import OptionPair, Options, decode_uint

TRANSFER_OPTIONS: Final = (
    OptionNumber.BLOCK1,
    OptionNumber.BLOCK2,
    OptionNumber.Q_BLOCK1,
    OptionNumber.Q_BLOCK2,
    OptionNumber.SIZE1,
    OptionNumber.SIZE2,
    OptionNumber.REQUEST_TAG,
)
"""Options that belong to the transfer, not to the request or the response that is transferred."""

_UNKEYED_UPLOAD: Final[frozenset[int]] = frozenset(
    {
        OptionNumber.BLOCK1,
        OptionNumber.BLOCK2,
        OptionNumber.Q_BLOCK1,
        OptionNumber.Q_BLOCK2,
        OptionNumber.OBSERVE,
        OptionNumber.NO_RESPONSE,
    }
)
_LONGEST_TOKEN: Final = bytes(8)
_LONGEST_BLOCK: Final = Block(MAX_BLOCK_NUMBER, True, 0).encode()
_PAYLOAD_MARKER_SIZE: Final = 1


@frozen
class BlockKey:
    """What tells the blocks of one body from those of another of the same peer.

    Attributes:
        scope: In whose name the request is made, as the application says.
        code: The method.
        options: Those that are part of the key (RFC 7959 section 2.4, RFC 7252 section 5.6). Request-Tag is
            among them (RFC 9175 section 3.3).
    """

    scope: Hashable
    code: int
    options: tuple[OptionPair, ...]


def upload_key(scope: Hashable, code: int, options: Options, sticky: Iterable[int] = ()) -> BlockKey:
    """Return the key of a request body (Block1).

    Args:
        scope: In whose name the request is made.
        code: The method.
        options: Of any of its blocks.
        sticky: Options that a peer may leave out once it has sent them; `scope` covers what they mean.
    """
    return BlockKey(scope, code, options.cache_key(_UNKEYED_UPLOAD.union(sticky)))


def download_key(
    scope: Hashable, code: int, options: Options, sticky: frozenset[int] = frozenset()
) -> BlockKey:
    """Return the key of a response body (Block2).

    Unlike in `upload_key`, Content-Format is left out, since a client may drop it with the payload when it asks
    for further blocks, and ETag, since a client may name the representation that it wants to go on with.

    Args:
        scope: In whose name the request is made.
        code: The method.
        options: Of the request for any of its blocks.
        sticky: As in `upload_key`.
    """
    return BlockKey(scope, code, options.cache_key(_unkeyed_download(sticky)))


@lru_cache(maxsize=8)
def _unkeyed_download(sticky: frozenset[int]) -> frozenset[int]:
    return _UNKEYED_UPLOAD | sticky | {OptionNumber.ETAG, OptionNumber.CONTENT_FORMAT}


def named_body(options: Options) -> bytes | None:
    """Return the ETag by which a request names the body that it wants further blocks of, if it says nothing else.

    A request for a further block repeats what the first one said (RFC 7959 section 2.4), though the body's ETag says
    it all. Where both ends have agreed so, it says that alone (docs/extensions.md, "x1: further blocks"). No path
    and no query would ask for the root, of which there are no blocks.
    """
    if OptionNumber.URI_PATH in options or OptionNumber.URI_QUERY in options:
        return None
    return options.get(OptionNumber.ETAG)


def is_another(message: Message, first: Message, *, brief: bool) -> bool:
    """Whether a block is of another representation than the first one (RFC 7959 section 2.4).

    Args:
        message: With the block.
        first: With the first block.
        brief: Whether the block was asked for by the ETag, which its message need not repeat then.
    """
    etags = message.options.get_all(OptionNumber.ETAG)
    if message.code != first.code:
        return True
    return etags != first.options.get_all(OptionNumber.ETAG) and not (brief and not etags)


def asks_for_further_block(options: Options) -> bool:
    """Whether a request is for a block after the first (RFC 7959 section 2.4)."""
    value = options.get(OptionNumber.BLOCK2)
    return value is not None and decode_uint(value) >> 4 > 0


def read_block(options: Options, number: int) -> Block | None:
    """Return the Block1 or Block2 option, or None if there is none.

    Raises:
        BlockOptionError: It has the reserved SZX 7.
    """
    value = options.get(number)
    return None if value is None else Block.decode(value)


def room_for_payload(
    code: int,
    options: Options,
    block_option: int | None,
    max_message_size: int,
    token: bytes = _LONGEST_TOKEN,
) -> int:
    """Return how many bytes of payload fit beside the options in one message; negative if none do.

    Args:
        code: Of the message.
        options: Of the message, without the block option.
        block_option: Block1 or Block2, to be added to them; None for no such option.
        max_message_size: Bytes.
        token: Of the message, or one as long.

    Raises:
        OptionError: An option has no wire form.
    """
    if block_option is not None:
        options = options.with_option(block_option, _LONGEST_BLOCK)
    bare = len(Message(Type.CON, code, 0, token, options).encode())
    return max_message_size - bare - _PAYLOAD_MARKER_SIZE


def fits(code: int, options: Options, length: int, max_message_size: int, token: bytes) -> bool:
    """Whether a payload of `length` bytes fits beside the options in one message.

    Raises:
        OptionError: An option has no wire form.
    """
    # An option has at most five bytes besides its value. That is enough to know of most messages, which are small.
    most = HEADER_LENGTH + len(token) + _PAYLOAD_MARKER_SIZE + length
    for number, value in options.pairs:
        most += 5 + len(value) if 0 <= number <= MAX_OPTION_NUMBER else max_message_size
    return most <= max_message_size or length <= room_for_payload(
        code, options, None, max_message_size, token
    )


def fitting_szx(code: int, options: Options, block_option: int, max_message_size: int) -> int | None:
    """Return the size exponent of the largest block that fits in a message beside its options, or None if
    none does."""
    room = room_for_payload(code, options, block_option, max_message_size)
    return None if room < 0 else largest_szx(room)
