# SPDX-License-Identifier: AGPL-3.0-or-later
"""The state of one request and its response, and which changes of it are legal.

An exchange is a whole request: the blocks of a body are no exchanges of their own. It holds state only; what is
done with it is in `requester` and `responder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from attrs import define

from synapse_lb.coap.asked import Asked
from synapse_lb.coap.blockwise import BlockKey
from synapse_lb.coap.deduplication import Seen
from synapse_lb.coap.timers import Timer

if TYPE_CHECKING:
    from synapse_lb.coap.notifications import Notification
    from synapse_lb.coap.observations import Observation
    from synapse_lb.coap.peers import PeerState
    from synapse_lb.coap.qblock_stream import Stream
    from synapse_lb.coap.reliability import Transmission
    from synapse_lb.coap.snapshots import Snapshot
    from synapse_lb.coap.transfer import Transfer


class State(Enum):
    """Where an exchange is."""

    READY = "ready"
    """Client: a message of the request is about to be sent."""
    REQUESTING = "requesting"
    """Client: a Confirmable request is sent, or queued, and not acknowledged."""
    STREAMING = "streaming"
    """Client: several blocks of a body are under way at once (RFC 9177)."""
    AWAITING = "awaiting"
    """Client: the request is acknowledged, or Non-confirmable, and its response is to come."""
    PINGING = "pinging"
    """Client: an Empty Confirmable is sent."""
    PROCESSING = "processing"
    """Server: the application has the request; the peer has no sign of it yet."""
    ACCEPTED = "accepted"
    """Server: the application has the request, the peer an empty ACK."""
    DELIVERING = "delivering"
    """Server: the response is sent in a Confirmable message of its own."""
    NOTIFYING = "notifying"
    """Server: a notification is on its way, or waits to be."""
    OBSERVED = "observed"
    """Server: the last notification was delivered."""
    OBSERVING = "observing"
    """Client: there was a notification, and there may be more."""
    ENDED = "ended"
    """Nothing will be sent or reported any more."""


class Step(Enum):
    """What happens to an exchange."""

    SEND_CONFIRMABLE = "send confirmable"
    SEND_NON_CONFIRMABLE = "send non-confirmable"
    PING = "ping"
    STREAM = "stream"
    """We send, or ask for, several blocks at once (RFC 9177)."""
    ACKNOWLEDGED = "acknowledged"
    """The peer sent an empty ACK for our request."""
    BLOCK_DONE = "block done"
    """The peer answered with one block, or took one, and there are more."""
    ACKNOWLEDGE = "acknowledge"
    """We send an empty ACK for the peer's request."""
    DELIVER = "deliver"
    """We send the response separately and want it acknowledged."""
    NOTIFY = "notify"
    """We send a notification."""
    NOTIFIED = "notified"
    """The peer has the notification."""
    OBSERVE = "observe"
    """The peer sent a notification."""
    END = "end"


#    our request                                        the peer's request
#
#      READY ---------------.                             PROCESSING -------------.
#       |  ^    \            \                             |       \  piggybacked  \
#  CON  |  |     \ NON        PINGING                  ACK |        \ or NON        \
#       v  |      v            |                           v         v               |
#   REQUESTING -> AWAITING     |                         ACCEPTED -> ENDED           |
#       |     ACK  |           |                           |   NON    ^              |
#       '------> ENDED <-------'                       CON '-> DELIVERING <----------'
#
#                                          (RFC 7252 sections 4.2, 4.3, 5.2.1 to 5.2.3)
#
#   READY <-> STREAMING -> ENDED             (RFC 9177)
#
#    our registration                                   the peer's registration
#
#   REQUESTING, AWAITING                              PROCESSING (NON), ACCEPTED
#       |  notification                                     |  notification
#       v                                                   v     delivered
#   OBSERVING --> READY (a last response, in blocks)    NOTIFYING ----------> OBSERVED
#       |                                                 |  | ^ notification   | |
#       v                                     last response  | '----------------' | last response
#     ENDED                                DELIVERING <---'  '---> ENDED <--------'--> DELIVERING
#
#                                                         (RFC 7641 sections 3.2, 3.6, 4.2 and 4.5)
TRANSITIONS: Final[Mapping[tuple[State, Step], State]] = MappingProxyType(
    {
        (State.READY, Step.SEND_CONFIRMABLE): State.REQUESTING,
        (State.READY, Step.SEND_NON_CONFIRMABLE): State.AWAITING,
        (State.READY, Step.PING): State.PINGING,
        (State.READY, Step.STREAM): State.STREAMING,
        (State.READY, Step.END): State.ENDED,
        (State.STREAMING, Step.BLOCK_DONE): State.READY,
        (State.STREAMING, Step.END): State.ENDED,
        (State.REQUESTING, Step.ACKNOWLEDGED): State.AWAITING,
        (State.REQUESTING, Step.BLOCK_DONE): State.READY,
        (State.REQUESTING, Step.END): State.ENDED,
        (State.AWAITING, Step.BLOCK_DONE): State.READY,
        (State.AWAITING, Step.END): State.ENDED,
        (State.PINGING, Step.END): State.ENDED,
        (State.REQUESTING, Step.OBSERVE): State.OBSERVING,
        (State.AWAITING, Step.OBSERVE): State.OBSERVING,
        (State.OBSERVING, Step.OBSERVE): State.OBSERVING,
        (State.OBSERVING, Step.BLOCK_DONE): State.READY,
        (State.OBSERVING, Step.END): State.ENDED,
        (State.PROCESSING, Step.ACKNOWLEDGE): State.ACCEPTED,
        (State.PROCESSING, Step.END): State.ENDED,
        (State.ACCEPTED, Step.DELIVER): State.DELIVERING,
        (State.ACCEPTED, Step.END): State.ENDED,
        (State.DELIVERING, Step.END): State.ENDED,
        (State.PROCESSING, Step.NOTIFY): State.NOTIFYING,
        (State.ACCEPTED, Step.NOTIFY): State.NOTIFYING,
        (State.OBSERVED, Step.NOTIFY): State.NOTIFYING,
        (State.NOTIFYING, Step.NOTIFIED): State.OBSERVED,
        (State.NOTIFYING, Step.DELIVER): State.DELIVERING,
        (State.OBSERVED, Step.DELIVER): State.DELIVERING,
        (State.NOTIFYING, Step.END): State.ENDED,
        (State.OBSERVED, Step.END): State.ENDED,
    }
)
"""What may happen, and where it leads. What is absent must not happen."""


class IllegalTransition(RuntimeError):
    """A fault of this package: something was done to an exchange that its state does not allow."""


@define(eq=False, kw_only=True)
class Exchange:
    """What both roles keep of a request.

    Attributes:
        id: Its number, never given out again.
        peer: Whom it is with.
        token: Of its current message, as the client chose it.
        state: Where it is; changed by `advance` only.
        timer: What it waits for, besides a retransmission.
        transmission: Its Confirmable message that is not acknowledged yet.
    """

    id: int
    peer: PeerState
    token: bytes = b""
    state: State
    timer: Timer | None = None
    transmission: Transmission | None = None

    def advance(self, step: Step) -> None:
        """Make a step.

        Raises:
            IllegalTransition: `TRANSITIONS` does not have it.
        """
        following = TRANSITIONS.get((self.state, step))
        if following is None:
            raise IllegalTransition(f"exchange {self.id}: {step.name} in state {self.state.name}")
        self.state = following

    @property
    def ended(self) -> bool:
        """Whether nothing will be sent or reported any more."""
        return self.state is State.ENDED


@define(eq=False, kw_only=True)
class ClientExchange(Exchange):
    """A request of ours, or a ping.

    Attributes:
        transfer: The request and what has come of its response; None for a ping.
        key: What its blocks would be known by to the peer, but for a Request-Tag; None for a ping.
        confirmable: Whether its messages are Confirmable.
        stream: Its blocks that are under way, several at once (RFC 9177); None if it has none.
        started: When its current message was sent, in monotonic seconds.
        fell_back: Whether it was made once more without Q-Block.
        own_token: The token for the message that ends the request, if it is to be that of another exchange.
        observation: What is observed with it; None if it is no registration.
        deregisters: Whether it ends an observation.
        fetches_for: The registration for which it fetches the further blocks of a notification.
    """

    state: State = State.READY
    transfer: Transfer | None = None
    key: BlockKey | None = None
    confirmable: bool = True
    stream: Stream | None = None
    started: float = 0.0
    fell_back: bool = False
    own_token: bytes | None = None
    observation: Observation | None = None
    deregisters: bool = False
    fetches_for: ClientExchange | None = None

    @property
    def awaits_notification(self) -> bool:
        """Whether it has been sent and may be answered whenever there is something to notify of."""
        registers = self.observation is not None and self.confirmable
        return registers and self.transfer is not None and not self.transfer.answered_at_once


@define(eq=False, kw_only=True)
class ServerExchange(Exchange):
    """A request of the peer.

    Attributes:
        message_id: Of the message that carried the request, or its last block.
        confirmable: Whether that message was Confirmable.
        seen: Its entry in the table of duplicates.
        key: Under which the response is kept if it takes several blocks.
        asked: How the response is to come.
        snapshot: Of a response in several blocks that is being delivered.
        notification: The one that is on its way.
        reports: Whether the application wants to know that its response was acknowledged.
    """

    state: State = State.PROCESSING
    message_id: int
    confirmable: bool
    seen: Seen
    key: BlockKey
    asked: Asked
    reports: bool = False
    snapshot: Snapshot | None = None
    notification: Notification | None = None

    @property
    def observed(self) -> bool:
        """Whether there was a notification."""
        return self.state in (State.NOTIFYING, State.OBSERVED)
