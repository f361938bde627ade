# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an endpoint keeps of each peer, made when it is needed and freed when nothing is pending."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from attrs import define, field

from synapse_lb.coap.deduplication import DuplicateTable
from synapse_lb.coap.events import Peer
from synapse_lb.coap.observe import FIRST_NUMBER, following
from synapse_lb.coap.options import encode_uint
from synapse_lb.coap.rto import RetransmissionTimeout
from synapse_lb.coap.timers import Timer

if TYPE_CHECKING:
    from synapse_lb.coap.exchange import ClientExchange, ServerExchange
    from synapse_lb.coap.pacing import Pacer
    from synapse_lb.coap.reliability import Transmission

MAX_SHORT_TOKEN = 0xFF
MAX_TOKEN = 0xFFFF
"""Tokens that we choose are numbers of one byte or two; peers are associations, so nobody else can answer
(RFC 7252 section 5.3.1)."""


@define(eq=False)
class PeerSettings:
    """What is known of the way to a peer.

    Attributes:
        max_message_size: Bytes of the largest message that it can be sent.
        rto: Its retransmission timeout.
        q_block: Whether it is asked for Q-Block.
        refuses_q_block: Whether it was, and does not know it.
        silent_until: Monotonic seconds; until then it gets no further body in Non-confirmable sets, since it did
            not answer one (PROBING_RATE, RFC 9177 section 7.2).
        known: Whether the application knows who it is; what is kept for others makes room first.
    """

    max_message_size: int
    rto: RetransmissionTimeout
    q_block: bool = False
    refuses_q_block: bool = False
    silent_until: float = 0.0
    known: bool = False


@define(eq=False)
class PeerState:
    """Everything that is under way with one peer.

    Attributes:
        peer: Who it is.
        settings: What is known of the way to it.
        next_message_id: For the next message of ours.
        message_ids_until: Monotonic seconds; until then the message ids that were used must not be used again
            (EXCHANGE_LIFETIME, RFC 7252 section 4.4).
        short_tokens: When each token of one byte was used last, in monotonic seconds; the longest ago comes first.
        tokens_until: Monotonic seconds; until then one of them has to rest.
        long_token: The value of the token of two bytes that was used last.
        outstanding: Confirmable messages that are not acknowledged, by message id.
        queue: Confirmable messages that wait for NSTART to let them go.
        dedup: The messages that were received.
        serving: Requests of the peer that are open, by token.
        observations: How many of those are registrations or observations.
        observe_number: For the next notification to it. It is one for all its observations, and so goes on rising
            when a registration replaces another (RFC 7641 section 4.4).
        requesting: Requests of ours that are open, by the token of the current message.
        uploads_tagged_until: Monotonic seconds; until then blocks of an upload of ours that was given up may be on
            their way, and each upload gets a Request-Tag that none had (RFC 9175 section 3.3).
        upload_number: The value of the last such tag.
        further_tokens: How many tokens in `requesting` are not the only one of their request (RFC 9177).
        pings: Pings that are not answered.
        bodies: How many bodies are kept for it, half received or being fetched.
        streaming: Confirmable messages with Q-Block2 blocks that are not acknowledged.
        pacer: Its Q-Block2 blocks that wait to be sent, if there ever were any.
        sweep: The timer that looks whether this can be freed.
    """

    peer: Peer
    settings: PeerSettings
    next_message_id: int
    dedup: DuplicateTable
    message_ids_until: float = 0.0
    short_tokens: dict[bytes, float] = field(factory=dict)
    tokens_until: float = 0.0
    long_token: int = MAX_SHORT_TOKEN
    outstanding: dict[int, Transmission] = field(factory=dict)
    queue: deque[Transmission] = field(factory=deque)
    serving: dict[bytes, ServerExchange] = field(factory=dict)
    observations: int = 0
    observe_number: int = FIRST_NUMBER
    requesting: dict[bytes, ClientExchange] = field(factory=dict)
    uploads_tagged_until: float = 0.0
    upload_number: int = 0
    further_tokens: int = 0
    pings: int = 0
    bodies: int = 0
    streaming: int = 0
    pacer: Pacer | None = None
    sweep: Timer | None = None

    def take_message_id(self, now: float, lifetime: float) -> int:
        """Return the id for a new message (RFC 7252 section 4.4).

        Args:
            now: Monotonic seconds.
            lifetime: Seconds for which it stays used.
        """
        message_id = self.next_message_id
        while message_id in self.outstanding:
            message_id = (message_id + 1) & 0xFFFF
        self.next_message_id = (message_id + 1) & 0xFFFF
        self.keep_message_ids(now, lifetime)
        return message_id

    def keep_message_ids(self, now: float, lifetime: float) -> None:
        """Keep the counter of message ids for so many seconds from now."""
        self.message_ids_until = max(self.message_ids_until, now + lifetime)

    def take_observe_number(self) -> int:
        """Return the number for a new notification."""
        number = self.observe_number
        self.observe_number = following(number)
        return number

    def take_token(self, now: float, lifetime: float) -> bytes:
        """Return a token that none of our open requests to the peer has (RFC 7252 section 5.3.1).

        It has one byte as long as there is one that was not used for `lifetime`, so that no late copy of a response
        passes for that to another request; then two.

        Args:
            now: Monotonic seconds.
            lifetime: Seconds for which messages may be on their way (EXCHANGE_LIFETIME, section 4.8.2).
        """
        token = self._rested_token(now - lifetime)
        if token is not None:
            self.rest_token(token, now, lifetime)
            return token
        while True:
            self.long_token = max(self.long_token % MAX_TOKEN, MAX_SHORT_TOKEN) + 1
            token = self.long_token.to_bytes(2, "big")
            if token not in self.requesting:
                return token

    def _rested_token(self, since: float) -> bytes | None:
        """Return a token of one byte that was not used since then, or None."""
        if len(self.short_tokens) < MAX_SHORT_TOKEN:
            return (len(self.short_tokens) + 1).to_bytes(1, "big")
        for token, used in self.short_tokens.items():
            if used > since:
                break
            if token not in self.requesting:
                return token
        return None

    def rest_token(self, token: bytes, now: float, lifetime: float) -> None:
        """Note that a token is in use until now, and let it rest for so many seconds."""
        if len(token) == 1:
            self.short_tokens.pop(token, None)
            self.short_tokens[token] = now
            self.tokens_until = now + lifetime

    def upload_given_up(self, now: float, lifetime: float) -> None:
        """Note that blocks of an upload of ours may arrive for so many seconds, though nobody waits for it."""
        self.uploads_tagged_until = now + lifetime
        self.keep_message_ids(now, lifetime)

    def take_request_tag(self, taken: set[bytes | None], *, uploads: bool, now: float) -> bytes | None:
        """Return the Request-Tag of a new request, None for none (RFC 9175 section 3.3).

        Args:
            taken: Those of like requests that are under way.
            uploads: Whether the request has a body.
            now: Monotonic seconds.
        """
        given_up = now < self.uploads_tagged_until
        if None not in taken and not (uploads and given_up):
            return None
        while True:
            self.upload_number = self.upload_number % MAX_TOKEN + 1
            tag = encode_uint(self.upload_number)
            if tag not in taken:
                return tag

    @property
    def open_requests(self) -> int:
        """How many of its requests are open, but for registrations and observations."""
        return len(self.serving) - self.observations

    @property
    def active(self) -> bool:
        """Whether something is under way that does not end by the mere passing of time."""
        return bool(
            self.serving or self.requesting or self.outstanding or self.queue or self.pings or self.bodies
        )

    def quiet_at(self) -> float:
        """Return when, in monotonic seconds, nothing need be remembered any more if nothing happens."""
        expiry = self.dedup.latest_expiry if len(self.dedup) else 0.0
        return max(self.message_ids_until, self.tokens_until, expiry)
