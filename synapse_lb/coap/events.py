# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an endpoint tells its application: whole requests and responses, and the ends of exchanges.

`CoapRequest` and `CoapResponse` carry whole bodies; `message.Message` is one datagram. An exchange is named
by an integer that the endpoint gives out and never gives out again.
"""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum

from attrs import field, frozen

from synapse_lb.coap.errors import CoapError
from synapse_lb.coap.numbers import code_to_text
from synapse_lb.coap.options import NO_OPTIONS, Options

Peer = Hashable
"""Whoever is at the other end; opaque to the endpoint."""


def _length(payload: bytes) -> str:
    """Show no bodies in logs: they may hold credentials."""
    return f"<{len(payload)} bytes>"


@frozen
class CoapRequest:
    """A request with its whole body (RFC 7252 section 5.1).

    Attributes:
        code: The method, 0.01-0.31.
        options: As received or to be sent; without those of the block-wise transfer.
        payload: The whole body.
        confirmable: Whether it travels in Confirmable messages.
        q_block: Whether its response may be large enough for an offer of Q-Block, which takes three bytes, to a
            peer that `Endpoint.set_peer` names for it. A body of several blocks makes the offer in any case.
        brief_blocks: Whether the peer is known to send further blocks to who names the body by its ETag alone.
    """

    code: int = field(repr=code_to_text)
    options: Options = NO_OPTIONS
    payload: bytes = field(default=b"", repr=_length)
    confirmable: bool = True
    q_block: bool = field(default=True, repr=False, eq=False)
    brief_blocks: bool = field(default=False, repr=False, eq=False)


@frozen
class CoapResponse:
    """A response with its whole body (RFC 7252 section 5.2).

    Attributes:
        code: 2.00-5.31.
        options: As received or to be sent; without those of the block-wise transfer.
        payload: The whole body.
        report: Whether `ResponseDelivered` is wanted, if it can be told.
    """

    code: int = field(repr=code_to_text)
    options: Options = NO_OPTIONS
    payload: bytes = field(default=b"", repr=_length)
    report: bool = field(default=False, repr=False, eq=False)


class CancelReason(Enum):
    """Why a request that was handed to the application needs no answer any more."""

    RESET = "reset"
    """The peer rejected a message of the exchange with a Reset."""
    SUPERSEDED = "superseded"
    """The peer used the token for a new request (RFC 7252 section 5.3.1)."""
    PEER_GONE = "peer gone"
    """The security association has ended."""
    EXPIRED = "expired"
    """The exchange outlived its time, or made room for newer ones."""
    DEREGISTERED = "deregistered"
    """The peer has ended its observation with a request of its own, which follows (RFC 7641 section 3.6)."""


class NotificationFailure(Enum):
    """Why a notification did not reach its observer, and the observation has ended."""

    TIMED_OUT = "timed out"
    """It was not acknowledged, after all retransmissions and in the time for processing it."""
    RESET = "reset"
    """The observer rejected it, because it has lost interest (RFC 7641 section 3.6)."""
    STALLED = "stalled"
    """The observer stopped asking for its blocks, or has all of them and does not acknowledge."""
    DISPLACED = "displaced"
    """Its body had to make room for others before it was fetched."""


@frozen
class RequestReceived:
    """Server role: a whole request has come in; answer it with `Endpoint.respond`.

    It may be answered with `Endpoint.notify` if, and only if, its options have Observe with the value 0
    (RFC 7641 section 4.1). Observe with the value 1 ends an observation; the request is answered like any other.
    """

    peer: Peer
    exchange: int
    request: CoapRequest


@frozen
class RequestCancelled:
    """Server role: the request needs no answer any more; its exchange is closed."""

    peer: Peer
    exchange: int
    reason: CancelReason


@frozen
class ResponseDelivered:
    """Server role: a response that asked for it, whole and in a Confirmable message of its own, was acknowledged.

    Of one in an ACK nothing is heard, and of one in blocks it is not known whether the last was fetched.
    """

    peer: Peer
    exchange: int


@frozen
class ResponseUndelivered:
    """Server role: the response was rejected, or not acknowledged after all retransmissions."""

    peer: Peer
    exchange: int


@frozen
class NotificationDelivered:
    """Server role: the notification was acknowledged, and fetched to its last block; the next may follow."""

    peer: Peer
    exchange: int


@frozen
class NotificationFailed:
    """Server role: the notification was not delivered; the observation has ended with it."""

    peer: Peer
    exchange: int
    reason: NotificationFailure


@frozen
class ResponseReceived:
    """Client role: the whole response to a request."""

    peer: Peer
    exchange: int
    response: CoapResponse


@frozen
class RequestFailed:
    """Client role: the request, or the ping, has no response."""

    peer: Peer
    exchange: int
    error: CoapError


@frozen
class NotificationReceived:
    """Client role: a whole notification, newer than those before (RFC 7641 section 3).

    To each of them belongs one call of `Endpoint.confirm`, in their order, when it has been processed.

    Attributes:
        peer: From whom.
        exchange: Of the registration.
        response: Whole, without the Observe option.
        sequence: The value of that.
    """

    peer: Peer
    exchange: int
    response: CoapResponse
    sequence: int


@frozen
class PongReceived:
    """Client role: the peer has answered a ping (RFC 7252 section 4.3)."""

    peer: Peer
    exchange: int


Event = (
    RequestReceived
    | RequestCancelled
    | ResponseDelivered
    | ResponseUndelivered
    | NotificationDelivered
    | NotificationFailed
    | ResponseReceived
    | RequestFailed
    | NotificationReceived
    | PongReceived
)
"""Everything that `Endpoint.next_event` returns."""
