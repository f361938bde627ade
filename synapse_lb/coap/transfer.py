# SPDX-License-Identifier: AGPL-3.0-or-later
"""Client role: one request and its response, in as many messages as they take (RFC 7959).

It knows no peer and no message id: `next_message` says what to send, `feed` takes the response to it. First the
request body goes up (Block1), then the response body comes down (Block2):

    CLIENT                                                     SERVER
      |                                                              |
      | CON [MID=1234], POST, /soap, 1:0/1/128      ------>          |
      |                                                              |
      | <------   ACK [MID=1234], 2.31 Continue, 1:0/1/128           |
      |                                                              |
      | CON [MID=1235], POST, /soap, 1:1/1/128      ------>          |
      |                                                              |
      | <------   ACK [MID=1235], 2.31 Continue, 1:1/1/128           |
      |                                                              |
      | CON [MID=1236], POST, /soap, 1:2/0/128      ------>          |
      |                                                              |
      | <------   ACK [MID=1236], 2.04 Changed, 2:0/1/128, 1:2/0/128 |
      |                                                              |
      | CON [MID=1237], POST, /soap, 2:1/0/128      ------>          |
      |                                                              |
      | <------   ACK [MID=1237], 2.04 Changed, 2:1/1/128            |
      |                                                              |
      | CON [MID=1238], POST, /soap, 2:2/0/128      ------>          |
      |                                                              |
      | <------   ACK [MID=1238], 2.04 Changed, 2:2/0/128            |
                                                     (RFC 7959, figure 10)
"""

from __future__ import annotations

from typing import Final

from synapse_lb.coap.block import MAX_BLOCK_NUMBER, MAX_SZX, Block, largest_szx
from synapse_lb.coap.blockwise import (
    TRANSFER_OPTIONS,
    fitting_szx,
    is_another,
    read_block,
    room_for_payload,
)
from synapse_lb.coap.errors import (
    BlockwiseError,
    BodyTooLarge,
    MessageTooLarge,
    UnexpectedResponse,
)
from synapse_lb.coap.events import CoapRequest, CoapResponse
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, is_success
from synapse_lb.coap.options import Options

RESPONSE_OVERHEAD: Final = 64
"""B: what is allowed for header, token and options of a response when a block size is chosen for it."""

MAX_RESTARTS: Final = 2
"""How often a download is begun anew because the representation changes under it (RFC 7959 section 2.4)."""

_SAID_BY_ETAG: Final = (
    OptionNumber.ETAG,
    OptionNumber.OBSERVE,
    OptionNumber.URI_PATH,
    OptionNumber.URI_QUERY,
    OptionNumber.CONTENT_FORMAT,
    OptionNumber.ACCEPT,
    OptionNumber.REQUEST_TAG,
)
"""What a request for a further block need not repeat if it names the body by its ETag, and that."""

_SAFE_METHODS: Final = frozenset({Code.GET, Code.FETCH})
_MAX_SIZE1: Final = 0xFFFFFFFF


class Transfer:
    """One request on its way up, and its response on its way down.

    Args:
        request: The whole request.
        block_szx: Size exponent of the largest block that is wanted.
        max_message_size: Bytes of the largest message.
        max_response_body: Bytes of the largest response body that is accepted.
        request_tag: Keeps its blocks apart from those of a like request that is under way (RFC 9175 section
            3.3); None if there is none.
        q_block_tag: The same for Q-Block1, which always has one.
        q_block: Whether the peer is offered Q-Block; the blocks themselves are in `qblock_client` then.
        max_restarts: How often the download may begin anew.

    Raises:
        MessageTooLarge: Not even the smallest block fits beside the options, or the body has too many blocks.
        OptionError: An option of the request has no wire form.
        MessageError: The request's code is no method.
    """

    def __init__(
        self,
        request: CoapRequest,
        *,
        block_szx: int,
        max_message_size: int,
        max_response_body: int,
        request_tag: bytes | None = None,
        q_block_tag: bytes | None = None,
        q_block: bool = False,
        max_restarts: int = MAX_RESTARTS,
    ) -> None:
        self.request = request
        self.code = request.code
        self._max_restarts = max_restarts
        self.request_tag = request_tag
        self.q_block = q_block
        self._options = request.options.without(*TRANSFER_OPTIONS)
        self._payload = request.payload
        self._max_message_size = max_message_size
        self._max_body = max_response_body
        self._down_limit = min(block_szx, largest_szx(max_message_size - RESPONSE_OVERHEAD) or 0)
        self._restarts = 0
        self._block_szx = block_szx
        self._up_szx = self._choose_upload_size(block_szx, q_block_tag)
        self._begin()
        if self.q_block and self.uploads_blocks:
            self.request_tag = q_block_tag

    def _begin(self) -> None:
        self._sent = 0
        self._sending = 0
        self._uploaded = False
        self._downloading = False
        self._down_szx = self._down_limit
        self._body = bytearray()
        self._first: Message | None = None

    def _choose_upload_size(self, block_szx: int, q_block_tag: bytes | None = None) -> int:
        """Return the size exponent for Block1 or Q-Block1 (whether or not it will be used)."""
        options = self._options.with_uint(OptionNumber.SIZE1, _MAX_SIZE1)
        tag = self.request_tag if q_block_tag is None else q_block_tag
        if tag is not None:
            options = options.with_option(OptionNumber.REQUEST_TAG, tag)
        down, up = OptionNumber.BLOCK2, OptionNumber.BLOCK1
        if self.q_block:
            down, up = OptionNumber.Q_BLOCK2, OptionNumber.Q_BLOCK1
        options = options.with_option(down, Block(0, True, 0).encode())
        room = room_for_payload(self.code, options, up, self._max_message_size)
        szx = fitting_szx(self.code, options, up, self._max_message_size)
        if szx is None:
            if self._payload or room < 0:
                raise MessageTooLarge(self._max_message_size - room + 16, self._max_message_size)
            return 0
        szx = min(szx, block_szx)
        if len(self._payload) > (MAX_BLOCK_NUMBER + 1) << (szx + 4):
            raise MessageTooLarge(len(self._payload), (MAX_BLOCK_NUMBER + 1) << (szx + 4))
        return szx

    @property
    def uploads_blocks(self) -> bool:
        """Whether the request body takes several messages and is not up yet."""
        return not (self._downloading or self._uploaded) and len(self._payload) > 16 << self._up_szx

    @property
    def answered_at_once(self) -> bool:
        """Whether the peer has nothing to work on to answer the message that `next_message` returned: it asks
        for a further block, or carries a block before the last."""
        return self._downloading or (self.uploads_blocks and self._current_block().more)

    def next_message(self) -> tuple[Options, bytes]:
        """Return the options and the payload of the message to be sent now."""
        if self._downloading:
            return self._next_download()
        options = self._options
        if self.request_tag is not None:
            options = options.with_option(OptionNumber.REQUEST_TAG, self.request_tag)
        last = not self.uploads_blocks or not self._current_block().more
        if last:
            options = self._with_offer(options)
        if not self.uploads_blocks:
            self._sending = len(self._payload)
            return options, self._payload
        chunk = self._payload[self._sent : self._sent + (16 << self._up_szx)]
        self._sending = len(chunk)
        if self._sent == 0:
            options = options.with_uint(OptionNumber.SIZE1, len(self._payload))
        return options.with_option(OptionNumber.BLOCK1, self._current_block().encode()), chunk

    def _with_offer(self, options: Options) -> Options:
        """Add what is wanted of the response: its first block, and of which size."""
        if self.q_block:
            return options.with_option(OptionNumber.Q_BLOCK2, Block(0, False, self._down_limit).encode())
        if self._down_limit < MAX_SZX:
            return options.with_option(OptionNumber.BLOCK2, Block(0, False, self._down_limit).encode())
        return options

    # --- for Q-Block ---

    @property
    def upload_szx(self) -> int:
        """Size exponent of the blocks of the request body."""
        return self._up_szx

    @property
    def payload(self) -> bytes:
        """The whole request body."""
        return self._payload

    def upload_options(self) -> Options:
        """Return the options that the messages with Q-Block1 blocks have in common."""
        options = self._options
        if self.request_tag is not None:
            options = options.with_option(OptionNumber.REQUEST_TAG, self.request_tag)
        return self._with_offer(options.with_uint(OptionNumber.SIZE1, len(self._payload)))

    @property
    def brief(self) -> bool:
        """Whether further blocks are asked for by the ETag alone, if there is one."""
        return self.request.brief_blocks

    def further_options(self, first: Message, *, q_block: bool = False) -> Options:
        """Return what a request for a further block says besides which block.

        Args:
            first: The message with the first block.
            q_block: Whether by Q-Block2.
        """
        etag = first.options.get(OptionNumber.ETAG) if self.brief else None
        if etag is not None:
            return self._options.without(*_SAID_BY_ETAG).with_option(OptionNumber.ETAG, etag)
        options = self._options
        if self.request_tag is not None:
            options = options.with_option(OptionNumber.REQUEST_TAG, self.request_tag)
        if q_block:
            # Blocks are asked for as they are: no 2.03 in their place (RFC 9177 section 4.4).
            options = options.without(OptionNumber.ETAG)
        return options.without(OptionNumber.OBSERVE)  # RFC 7959 section 2.6, RFC 9177 section 4.5

    def uploaded(self) -> None:
        """Note that the request body has come through by Q-Block1, or that the peer does not want it."""
        self._uploaded = True

    def fall_back(self) -> None:
        """Do without Q-Block, from the beginning.

        Raises:
            MessageTooLarge: It does not fit any more.
        """
        self.q_block = False
        self._up_szx = self._choose_upload_size(self._block_szx)
        self._begin()

    def fits(self, size: int) -> None:
        """Check a size of a response body that the peer has announced.

        Raises:
            BodyTooLarge: It is over its limit.
        """
        if size > self._max_body:
            raise BodyTooLarge(self._max_body)

    def instead_of_block(self, message: Message) -> CoapResponse:
        """Return the response that came where a further block was asked for.

        Raises:
            BlockwiseError: The peer does not keep the body any more.
            BodyTooLarge: The response body is over its limit.
            UnexpectedResponse: The response makes no sense here.
        """
        self._downloading = True
        return self._without_blocks(message)

    def restart(self) -> None:
        """Begin anew, since the representation has changed (RFC 7959 section 2.4).

        Raises:
            BlockwiseError: It must not be requested once more, or that did not help.
        """
        self._restart()

    # --- Block1 and Block2 ---

    def _next_download(self) -> tuple[Options, bytes]:
        number = len(self._body) >> (self._down_szx + 4)
        assert self._first is not None
        options = self.further_options(self._first)
        return options.with_option(OptionNumber.BLOCK2, Block(number, False, self._down_szx).encode()), b""

    def _current_block(self) -> Block:
        more = self._sent + (16 << self._up_szx) < len(self._payload)
        return Block(self._sent >> (self._up_szx + 4), more, self._up_szx)

    def feed(self, message: Message) -> CoapResponse | None:
        """Take the response to what `next_message` returned last.

        Returns:
            The whole response, or None: then `next_message` has more to send.

        Raises:
            BlockwiseError: The transfer cannot go on.
            BlockOptionError: A block option has the reserved SZX 7.
            BodyTooLarge: The response body is over its limit.
            UnexpectedResponse: The response makes no sense here.
        """
        if not (self._downloading or self._uploaded) and self._goes_on_uploading(message):
            return None
        return self._download(message)

    def for_further_blocks(self, first: Message) -> Transfer:
        """Return a transfer that fetches the further blocks of a notification (RFC 7959 section 2.6).

        They are asked for in the words of this request, but without Observe. If they turn out to be those of
        another representation, the transfer fails: to begin anew would be to make a request of another kind.

        Args:
            first: With the first block.

        Raises:
            RemoteError: It is no first block that there are further ones to.
        """
        options = self._options.without(OptionNumber.OBSERVE)
        transfer = Transfer(
            CoapRequest(self.code, options, brief_blocks=self.brief),
            block_szx=self._block_szx,
            max_message_size=self._max_message_size,
            max_response_body=self._max_body,
            request_tag=self.request_tag,
            max_restarts=0,
        )
        transfer.feed(first)
        return transfer

    # --- Block1 ---

    def _goes_on_uploading(self, message: Message) -> bool:
        """Take a response while the request body goes up; return whether more of it is to be sent."""
        block1 = read_block(message.options, OptionNumber.BLOCK1)
        if message.code == Code.REQUEST_ENTITY_TOO_LARGE:
            return self._shrink(block1, message.options.get_uint(OptionNumber.SIZE1))
        if not self.uploads_blocks:
            if message.code == Code.CONTINUE:
                raise UnexpectedResponse(message.code, "the whole request was sent already")
            return False
        if message.code == Code.REQUEST_ENTITY_INCOMPLETE:
            raise BlockwiseError("the peer lost blocks of the request body")
        if not is_success(message.code):
            return False
        sent = self._current_block()
        if block1 is not None and block1.number != sent.number:
            raise BlockwiseError(f"block {sent.number} was sent, block {block1.number} is acknowledged")
        if not sent.more:
            if message.code == Code.CONTINUE:
                raise UnexpectedResponse(message.code, "the last block was sent already")
            return False
        if block1 is None and message.code != Code.CONTINUE:
            raise UnexpectedResponse(message.code, "the peer answers before it has the whole request")
        self._sent += self._sending
        if block1 is not None and block1.szx < self._up_szx:
            # The block that was sent counts in its own size (RFC 7959 section 2.3, figure 9).
            self._up_szx = block1.szx
        return True

    def _shrink(self, block1: Block | None, size1: int | None) -> bool:
        """Begin the upload anew with smaller blocks, if a 4.13 asks for them (RFC 7959 sections 2.3, 2.9.3).

        Returns:
            Whether it did. If not, the peer means the body, not the block.
        """
        szx = self._up_szx
        if block1 is not None and block1.szx < szx:
            szx = block1.szx
        elif size1 is not None and min(len(self._payload), 16 << szx) > size1 >= 16:
            szx = largest_szx(size1) or 0
        else:
            return False
        if len(self._payload) > (MAX_BLOCK_NUMBER + 1) << (szx + 4):
            return False
        self._up_szx = szx
        self._sent = 0
        return True

    # --- Block2 ---

    def _download(self, message: Message) -> CoapResponse | None:
        block2 = read_block(message.options, OptionNumber.BLOCK2)
        if block2 is None:
            return self._without_blocks(message)
        if self._first is not None and message.code != self._first.code and not is_success(message.code):
            return self._without_blocks(message)
        if self._first is not None and is_another(message, self._first, brief=self.brief):
            self._restart()
            return None
        if block2.offset != len(self._body):
            raise BlockwiseError(f"{len(self._body)} bytes are here, the block begins at {block2.offset}")
        if len(message.payload) > block2.size or (block2.more and len(message.payload) != block2.size):
            raise BlockwiseError(f"a block of {len(message.payload)} bytes in a size of {block2.size}")
        if self._first is None:
            self._first = message
            if (message.options.get_uint(OptionNumber.SIZE2) or 0) > self._max_body:
                raise BodyTooLarge(self._max_body)
        self._body += message.payload
        if len(self._body) > self._max_body:
            raise BodyTooLarge(self._max_body)
        if not block2.more:
            return self.response_of(self._first, bytes(self._body))
        self._downloading = True
        self._down_szx = min(self._down_szx, block2.szx)
        if len(self._body) >> (self._down_szx + 4) > MAX_BLOCK_NUMBER:
            raise BlockwiseError("the body has more blocks than have numbers")
        return None

    def _without_blocks(self, message: Message) -> CoapResponse:
        if self._downloading:
            if message.code == Code.REQUEST_ENTITY_INCOMPLETE:
                raise BlockwiseError("the peer does not keep the response body any more")
            if is_success(message.code):
                raise UnexpectedResponse(message.code, "no block, but one was asked for")
        if len(message.payload) > self._max_body:
            raise BodyTooLarge(self._max_body)
        return self.response_of(message, message.payload)

    def _restart(self) -> None:
        if self.code not in _SAFE_METHODS or self._restarts >= self._max_restarts:
            raise BlockwiseError("the representation has changed during the transfer", None)
        self._restarts += 1
        self._options = self._options.without(OptionNumber.OBSERVE)
        self._begin()

    @property
    def restarts(self) -> int:
        """How often the download was begun anew."""
        return self._restarts

    @staticmethod
    def response_of(message: Message, payload: bytes) -> CoapResponse:
        """Return a response without the options of the transfer."""
        options = message.options.without(
            OptionNumber.BLOCK1,
            OptionNumber.BLOCK2,
            OptionNumber.Q_BLOCK1,
            OptionNumber.Q_BLOCK2,
            OptionNumber.SIZE2,
        )
        return CoapResponse(message.code, options, payload)
