# SPDX-License-Identifier: AGPL-3.0-or-later
"""Client role: Q-Block (RFC 9177) for the peers that know it.

A request offers Q-Block2 by asking for the first block of the response only; the first block tells the size and how
far it is, and from then on the client asks for as many blocks as its window allows (`qblock_download`). A request
body that takes several blocks goes up by Q-Block1 (`qblock_upload`).

    Client      Server
      |          |
      +--------->| CON GET /path M:0x01 T:0xf0 QB2:0/0/1024
      |<---------+ ACK 2.05 M:0x01 T:0xf0 ET=21 QB2:0/1/1024
      +--------->| NON GET /path M:0x02 T:0xf1 QB2:1/1/1024
      |<---------+ NON 2.05 M:0x81 T:0xf1 ET=21 QB2:1/1/1024
      |<---------+ [[Payloads 3 - 9 not detailed]]
      |<---------+ NON 2.05 M:0x8a T:0xf1 ET=21 QB2:9/1/1024
      +--------->| NON GET /path M:0x03 T:0xf2 QB2:10/1/1024

A peer that refuses the option (4.02) gets the request once more without it; if that helps, it is not asked again.
"""

from __future__ import annotations

from synapse_lb.coap.block import Block
from synapse_lb.coap.blockwise import room_for_payload
from synapse_lb.coap.congestion import CongestionWindow
from synapse_lb.coap.core import Core
from synapse_lb.coap.errors import MessageTooLarge, RequestTimedOut
from synapse_lb.coap.events import CoapRequest, CoapResponse
from synapse_lb.coap.exchange import ClientExchange, State, Step
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.peers import PeerState
from synapse_lb.coap.qblock import name_blocks
from synapse_lb.coap.qblock_download import Download
from synapse_lb.coap.qblock_stream import Host, Stream, close, release_token, take_token
from synapse_lb.coap.qblock_upload import Uploader
from synapse_lb.coap.reliability import ReliabilityLayer
from synapse_lb.coap.transfer import Transfer

_LONGEST_FIRST_TIMEOUT = 10.0
"""s: the longest wait for the second block, when the first one took long, perhaps for the peer had to work."""

_OPTION_SIZE = 4
"""B: a further Q-Block2 option in a request, at most."""


class QBlockClient:
    """The client role of RFC 9177.

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
        self._uploader = Uploader(core, reliability, host)
        self._tag = core.random.randrange(1 << 24)

    def next_tag(self) -> bytes:
        """Return a Request-Tag for a body (RFC 9177 section 4.3); of a length that no other kind of tag has."""
        self._tag = (self._tag + 1) % (1 << 24)
        return self._tag.to_bytes(3, "big")

    def offers(self, state: PeerState, request: CoapRequest, now: float) -> bool:
        """Whether the peer is offered Q-Block for a request.

        Not for a registration (RFC 7641): its notifications come in Confirmable messages, and Block2.
        """
        settings = state.settings
        if not (self._core.tuning.q_block and settings.q_block):
            return False
        if request.options.get_uint(OptionNumber.OBSERVE) == 0:
            return False
        if not request.q_block and len(request.payload) <= 16 << self._core.limits.block_szx:
            return False
        return request.confirmable or now >= settings.silent_until

    def upload(self, exchange: ClientExchange, transfer: Transfer, now: float) -> None:
        """Send the request body of a transfer, which takes several blocks."""
        self._uploader.begin(exchange, transfer, now)

    def close(self, exchange: ClientExchange, now: float) -> None:
        """End what is under way for an exchange."""
        close(exchange, self._reliability, now)

    def take(self, exchange: ClientExchange, transfer: Transfer, message: Message, now: float) -> bool:
        """Take a response to a request that offered Q-Block.

        Returns:
            Whether that was all; else it is a response as any other, to be fed to the transfer.

        Raises:
            RemoteError: It makes no sense, or exceeds a limit.
        """
        stream = exchange.stream
        if message.code == Code.BAD_OPTION and (stream is None or stream.upload is not None):
            self._fall_back(exchange, transfer, now)
            return True
        if stream is not None and stream.download is not None:
            self._take_block(exchange, transfer, stream, stream.download, message, now)
            return True
        if stream is not None and stream.upload is not None:
            if self._uploader.take(exchange, stream, stream.upload, message, now):
                return True
            transfer.uploaded()
            close(exchange, self._reliability, now)
        value = message.options.get(OptionNumber.Q_BLOCK2)
        if value is None:
            return False
        self._begin_download(exchange, transfer, message, Block.decode(value), now)
        return True

    def settled(self, exchange: ClientExchange, response: CoapResponse) -> None:
        """Note the outcome of a request that was made once more without Q-Block."""
        if not exchange.fell_back:
            return
        if response.code == Code.BAD_OPTION:
            # It was not Q-Block that the peer refused.
            exchange.peer.settings.q_block = True
        else:
            exchange.peer.settings.refuses_q_block = True

    def _fall_back(self, exchange: ClientExchange, transfer: Transfer, now: float) -> None:
        """Make a request once more without Q-Block, which the peer does not know."""
        self._counters.q_block_fallbacks += 1
        exchange.fell_back = True
        exchange.peer.settings.q_block = False
        try:
            transfer.fall_back()
        except MessageTooLarge as error:
            self._host.fail(exchange, error, now)
            return
        self._again(exchange, transfer, now)

    def _again(self, exchange: ClientExchange, transfer: Transfer, now: float) -> None:
        """Send what the transfer has ready in place of what is under way."""
        close(exchange, self._reliability, now)
        exchange.advance(Step.BLOCK_DONE)
        self._core.timers.cancel(exchange.timer)
        del exchange.peer.requesting[exchange.token]
        self._host.send_next(exchange, transfer, now)

    # --- Q-Block2 ---

    def _begin_download(
        self, exchange: ClientExchange, transfer: Transfer, message: Message, block: Block, now: float
    ) -> None:
        """Take the first block, and ask for the others."""
        self._counters.blocks_received += 1
        tuning = self._core.tuning
        timeout, first = tuning.non_receive_timeout, now - exchange.started
        if tuning.adaptive_rto:
            timeout = max(exchange.peer.settings.rto.timeout, min(1.5 * first, _LONGEST_FIRST_TIMEOUT))
        window = CongestionWindow(
            first=first,
            limit=self._core.limits.q_block_window,
            timeout=timeout,
            max_timeout=tuning.max_rto,
            adaptive=tuning.adaptive_rto,
        )
        download = Download(message, block, window, tuning.max_payloads, brief=transfer.brief)
        transfer.fits(download.size)
        if download.whole:
            self._host.complete(exchange, message, download.body, now)
            return
        if exchange.state is not State.STREAMING:
            exchange.advance(Step.BLOCK_DONE)
            exchange.advance(Step.STREAM)
        exchange.stream = Stream(download=download, heard_at=now)
        self._ask(exchange, transfer, exchange.stream, download, now)

    def _take_block(
        self,
        exchange: ClientExchange,
        transfer: Transfer,
        stream: Stream,
        download: Download,
        message: Message,
        now: float,
    ) -> None:
        """Take a further block, or what came in its place."""
        value = message.options.get(OptionNumber.Q_BLOCK2)
        if value is None:
            self._host.deliver(exchange, transfer.instead_of_block(message), now)
            return
        if download.changed(message):
            self._counters.transfers_restarted += 1
            transfer.restart()
            self._again(exchange, transfer, now)
            return
        self._counters.blocks_received += 1
        if not download.take(message, Block.decode(value), now):
            self._counters.blocks_duplicate += 1
            return
        stream.heard_at = now
        if download.whole:
            self._host.complete(exchange, download.first, download.body, now)
            return
        for token in [token for token in stream.tokens if token not in download.asks]:
            release_token(exchange, stream, token)
        self._ask(exchange, transfer, stream, download, now)

    def _ask(
        self,
        exchange: ClientExchange,
        transfer: Transfer,
        stream: Stream,
        download: Download,
        now: float,
    ) -> None:
        """Ask for as many blocks as the window allows, and wait for them."""
        while numbers := download.wanted():
            self._send_request(exchange, transfer, stream, download, numbers, now)
        self._core.later(
            exchange,
            download.window.timeout,
            lambda now: self._overdue(exchange, transfer, stream, download, now),
            now,
        )

    def _send_request(
        self,
        exchange: ClientExchange,
        transfer: Transfer,
        stream: Stream,
        download: Download,
        numbers: list[int],
        now: float,
    ) -> None:
        """Ask for these blocks, or for as many of them as have room in one message."""
        state, tuning = exchange.peer, self._core.tuning
        token = take_token(exchange, stream, now, tuning.exchange_lifetime)
        options = transfer.further_options(download.first, q_block=True)
        room = room_for_payload(transfer.code, options, None, state.settings.max_message_size, token)
        numbers = numbers[: max(1, room // _OPTION_SIZE)]
        for block in name_blocks(numbers, download.szx, download.count, tuning.max_payloads):
            options = options.with_option(OptionNumber.Q_BLOCK2, block.encode())
        message_id = state.take_message_id(now, tuning.non_lifetime)
        self._core.send(state.peer, Message(Type.NON, transfer.code, message_id, token, options))
        self._counters.blocks_recovered += download.asked(token, numbers, now)

    def _overdue(
        self,
        exchange: ClientExchange,
        transfer: Transfer,
        stream: Stream,
        download: Download,
        now: float,
    ) -> None:
        """Nothing has arrived in time: ask for one block, or give up (RFC 9177 section 7.2)."""
        tuning = self._core.tuning
        silent = now - stream.heard_at
        if download.window.expiries >= tuning.non_max_retransmit and (
            not tuning.adaptive_rto or silent >= tuning.max_transmit_span
        ):
            self._host.fail(exchange, RequestTimedOut("the blocks of the response do not arrive"), now)
            return
        self._send_request(exchange, transfer, stream, download, download.overdue(now), now)
        self._core.later(
            exchange,
            download.window.timeout,
            lambda now: self._overdue(exchange, transfer, stream, download, now),
            now,
        )
