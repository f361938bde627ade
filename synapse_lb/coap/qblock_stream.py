# SPDX-License-Identifier: AGPL-3.0-or-later
"""Client role: what the two directions of Q-Block share (RFC 9177): the messages of one exchange that are under way.

Each message has a token of its own. The exchange keeps the token that it began with, and these besides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from attrs import define, field

from synapse_lb.coap.errors import CoapError
from synapse_lb.coap.events import CoapResponse
from synapse_lb.coap.message import Message

if TYPE_CHECKING:
    from synapse_lb.coap.exchange import ClientExchange
    from synapse_lb.coap.qblock_download import Download
    from synapse_lb.coap.qblock_upload import Upload
    from synapse_lb.coap.reliability import ReliabilityLayer, Transmission
    from synapse_lb.coap.transfer import Transfer

TOKENS_KEPT = 1024
"""Tokens of messages that were acknowledged which are kept, for the response may have any of them."""


@define(eq=False)
class Stream:
    """The blocks of one exchange that are under way.

    Attributes:
        download: The response body; None while the request body goes up.
        upload: The request body; None while the response body comes down.
        tokens: Of its messages, oldest first, besides that of the exchange.
        transmissions: Confirmable messages that are not acknowledged, by their token.
        heard_at: When something has arrived for it, in monotonic seconds.
    """

    download: Download | None = None
    upload: Upload | None = None
    tokens: dict[bytes, None] = field(factory=dict)
    transmissions: dict[bytes, Transmission] = field(factory=dict)
    heard_at: float = 0.0


class Host(Protocol):
    """What the blocks need of the client role."""

    def take(self, exchange: ClientExchange, message: Message, now: float) -> None:
        """Take a response."""
        ...

    def send_next(self, exchange: ClientExchange, transfer: Transfer, now: float) -> None:
        """Send what the transfer has ready."""
        ...

    def complete(self, exchange: ClientExchange, message: Message, body: bytes, now: float) -> None:
        """End an exchange with its response: the first message, and the whole body."""
        ...

    def deliver(self, exchange: ClientExchange, response: CoapResponse, now: float) -> None:
        """End an exchange with its response, which is whole."""
        ...

    def fail(self, exchange: ClientExchange, error: CoapError, now: float) -> None:
        """End an exchange without."""
        ...


def take_token(exchange: ClientExchange, stream: Stream, now: float, lifetime: float) -> bytes:
    """Return a token for one more message of an exchange."""
    state = exchange.peer
    token = state.take_token(now, lifetime)
    state.requesting[token] = exchange
    state.further_tokens += 1
    stream.tokens[token] = None
    return token


def release_token(exchange: ClientExchange, stream: Stream, token: bytes) -> None:
    """Give a token back."""
    if token in stream.tokens:
        del stream.tokens[token]
        del exchange.peer.requesting[token]
        exchange.peer.further_tokens -= 1


def close(exchange: ClientExchange, reliability: ReliabilityLayer, now: float) -> None:
    """End the stream of an exchange, if it has one: nothing of it is sent or matched any more."""
    stream = exchange.stream
    if stream is None:
        return
    exchange.stream = None
    for transmission in list(stream.transmissions.values()):
        reliability.stop(transmission, now)
    stream.transmissions.clear()
    for token in list(stream.tokens):
        release_token(exchange, stream, token)
