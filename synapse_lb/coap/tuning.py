# SPDX-License-Identifier: AGPL-3.0-or-later
"""The constants of the endpoint: transmission parameters (RFC 7252 section 4.8) and the bounds of its tables.

Every one can be set, is checked when it is set, and has its unit, its origin and its default at its place.
What the RFC derives from others is derived here too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from attrs import Attribute, field, frozen

from synapse_lb.coap.block import MAX_BLOCK_NUMBER, MAX_SZX, block_size

_Validator = Callable[[Any, "Attribute[Any]", Any], None]


def _number(low: float, high: float = math.inf, *, above: bool = False) -> _Validator:
    """Demand a finite number from `low` (above it, if so said) to `high`."""

    def validate(_instance: Any, attribute: Attribute[Any], value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{attribute.name} must be a number, not {value!r}")
        if value < low or value > high or (above and value == low):
            bounds = f"{'more than' if above else 'at least'} {low}" + (
                "" if high == math.inf else f", at most {high}"
            )
            raise ValueError(f"{attribute.name} must be {bounds}, not {value!r}")

    return validate


def _integer(low: int, high: float = math.inf) -> _Validator:
    """Demand an integer from `low` to `high`."""
    in_range = _number(low, high)

    def validate(instance: Any, attribute: Attribute[Any], value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{attribute.name} must be an integer, not {value!r}")
        in_range(instance, attribute, value)

    return validate


def _boolean(_instance: Any, attribute: Attribute[Any], value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{attribute.name} must be true or false, not {value!r}")


@frozen(kw_only=True)
class Tuning:
    """How messages are sent and retransmitted. Durations are in seconds.

    Raises:
        ValueError: A value is out of its range; the text names it.
    """

    ack_timeout: float = field(default=2.0, validator=_number(0, above=True))
    """ACK_TIMEOUT, s: the wait before the first retransmission, until one was measured; 2 (RFC 7252 4.8)."""

    ack_random_factor: float = field(default=1.5, validator=_number(1))
    """ACK_RANDOM_FACTOR: the first wait is drawn from [timeout, timeout x this]; 1.5 (RFC 7252 4.8)."""

    max_retransmit: int = field(default=4, validator=_integer(0, 20))
    """MAX_RETRANSMIT: copies of a Confirmable message after the first; 4 (RFC 7252 4.8)."""

    nstart: int = field(default=4, validator=_integer(1, 1024))
    """NSTART: outstanding interactions with one peer. RFC 7252 4.7 gives 1 and lets it grow with congestion
    control, which adaptive retransmission is; 4."""

    max_latency: float = field(default=100.0, validator=_number(0, above=True))
    """MAX_LATENCY, s: the longest that a datagram is assumed to travel; 100 (RFC 7252 4.8.2)."""

    separate_after: float = field(default=1.5, validator=_number(0))
    """s: a request that is not answered by then gets an empty ACK, and its response separately (RFC 7252
    5.2.2). Less than a peer's ACK_TIMEOUT, or the peer retransmits; 1.5."""

    response_timeout: float = field(default=300.0, validator=_number(0, above=True))
    """s: a client waits for the response to an acknowledged request; longer than any long poll; 300."""

    notification_processing: float = field(default=120.0, validator=_number(0, above=True))
    """s: an observer may take so long to acknowledge a notification, and to ask for each of its blocks, from its
    last sign of life or from the first copy; it may acknowledge only what it has processed; 120. It is at least
    as long as the retransmissions take (RFC 7641 4.5)."""

    adaptive_rto: bool = field(default=True, validator=_boolean)
    """Whether the retransmission timeout follows the measured round-trip times; true (RFC 6298 2)."""

    min_rto: float = field(default=1.0, validator=_number(0, above=True))
    """s: the least adaptive timeout; 1 (RFC 6298 2.4)."""

    max_rto: float = field(default=60.0, validator=_number(0, above=True))
    """s: the greatest adaptive timeout; 60 (RFC 6298 2.5). A link on which round trips were measured that take longer
    gets up to twice as much."""

    q_block: bool = field(default=False, validator=_boolean)
    """Whether Q-Block1 and Q-Block2 are understood, in both roles; false (RFC 9177)."""

    max_payloads: int = field(default=10, validator=_integer(1, 1024))
    """MAX_PAYLOADS: blocks of a set, and the most that one request for blocks yields; 10 (RFC 9177 7.2)."""

    non_timeout: float = field(default=2.0, validator=_number(0, above=True))
    """NON_TIMEOUT, s: the least pause after a set that nobody acknowledged; 2 (RFC 9177 7.2)."""

    non_receive_timeout: float = field(default=4.0, validator=_number(0, above=True))
    """NON_RECEIVE_TIMEOUT, s: the wait before missing blocks are asked for, until a round trip was measured;
    at least one second more than NON_TIMEOUT; 4 (RFC 9177 7.2)."""

    non_max_retransmit: int = field(default=4, validator=_integer(0, 20))
    """NON_MAX_RETRANSMIT: how often missing blocks are asked for in vain; 4 (RFC 9177 7.2)."""

    probing_rate: float = field(default=1.0, validator=_number(0, above=True))
    """PROBING_RATE, B/s: the average rate towards a peer that does not answer; 1 (RFC 7252 4.8)."""

    def __attrs_post_init__(self) -> None:
        if self.max_rto < self.min_rto:
            raise ValueError(f"max_rto must be at least min_rto ({self.min_rto}), not {self.max_rto!r}")
        if self.non_receive_timeout < self.non_timeout + 1:
            raise ValueError(
                f"non_receive_timeout must be at least non_timeout + 1 ({self.non_timeout + 1}), "
                f"not {self.non_receive_timeout!r}"
            )

    @property
    def max_transmit_span(self) -> float:
        """MAX_TRANSMIT_SPAN, s: from the first transmission to the last; 45 by default (RFC 7252 4.8.2)."""
        return self.ack_timeout * ((1 << self.max_retransmit) - 1) * self.ack_random_factor

    @property
    def max_transmit_wait(self) -> float:
        """MAX_TRANSMIT_WAIT, s: from the first transmission to giving up; 93 by default (RFC 7252 4.8.2)."""
        return self.ack_timeout * ((2 << self.max_retransmit) - 1) * self.ack_random_factor

    @property
    def processing_delay(self) -> float:
        """PROCESSING_DELAY, s: until a node has acknowledged a message; ACK_TIMEOUT (RFC 7252 4.8.2)."""
        return self.ack_timeout

    @property
    def max_rtt(self) -> float:
        """MAX_RTT, s: 202 by default (RFC 7252 4.8.2)."""
        return 2 * self.max_latency + self.processing_delay

    @property
    def exchange_lifetime(self) -> float:
        """EXCHANGE_LIFETIME, s: how long the id of a Confirmable stays used; 247 by default (RFC 7252 4.8.2)."""
        return self.max_transmit_span + 2 * self.max_latency + self.processing_delay

    @property
    def non_lifetime(self) -> float:
        """NON_LIFETIME, s: the same of a Non-confirmable; 145 by default (RFC 7252 4.8.2)."""
        return self.max_transmit_span + self.max_latency

    @property
    def non_partial_timeout(self) -> float:
        """NON_PARTIAL_TIMEOUT, s: how long a body with gaps is kept; 247 by default (RFC 9177 7.2)."""
        span = self.non_timeout * ((1 << self.non_max_retransmit) - 1) * self.ack_random_factor
        return span + 2 * self.max_latency + self.non_timeout

    @property
    def non_probing_wait(self) -> float:
        """NON_PROBING_WAIT, s: the longest pause that PROBING_RATE makes between two bodies to a peer that does
        not answer; 247 by default (RFC 9177 7.2)."""
        return self.non_partial_timeout


_KIB = 1024
_MIB = 1024 * 1024
_MAX_BODY = (MAX_BLOCK_NUMBER + 1) * block_size(MAX_SZX)


@frozen(kw_only=True)
class Limits:
    """How much an endpoint keeps and accepts. Sizes are in bytes, durations in seconds.

    Raises:
        ValueError: A value is out of its range, or at odds with another; the text names it.
    """

    max_message_size: int = field(default=1152, validator=_integer(64, 65535))
    """B: the largest message that is sent to a peer of which nothing else is known; 1152 (RFC 7252 4.6)."""

    block_szx: int = field(default=6, validator=_integer(0, MAX_SZX))
    """Size exponent of the blocks that are offered: 16 << szx bytes; 6, which is 1024 (RFC 7959 2.2)."""

    max_request_body: int = field(default=_MIB, validator=_integer(0, _MAX_BODY))
    """B: the largest request body accepted, else 4.13; 1 MiB (RFC 7959 2.9.3)."""

    max_response_body: int = field(default=64 * _MIB, validator=_integer(0, _MAX_BODY))
    """B: the largest response body that a client accepts; 64 MiB."""

    max_reassemblies_per_peer: int = field(default=8, validator=_integer(1))
    """Request bodies of one peer that are being put together; a further one evicts the oldest; 8."""

    max_reassembly_bytes_per_peer: int = field(default=2 * _MIB, validator=_integer(0))
    """B: all request bodies of one peer that are being put together; 2 MiB."""

    max_reassembly_bytes_total: int = field(default=64 * _MIB, validator=_integer(0))
    """B: all request bodies of all peers that are being put together; 64 MiB."""

    reassembly_lifetime: float = field(default=247.0, validator=_number(0, above=True))
    """s: a request body to which no block is added is given up; EXCHANGE_LIFETIME's 247 (RFC 7252 4.8.2)."""

    max_exchanges_per_peer: int = field(default=64, validator=_integer(1))
    """Open requests of one peer, and open requests to it; over it 5.03, or `TooManyExchanges`; 64."""

    max_observations_per_peer: int = field(default=8, validator=_integer(1))
    """Observations of one peer, besides its open requests; over it registrations are served as plain requests; 8
    (RFC 7641 4.1, 7)."""

    max_unconfirmed_notifications: int = field(default=16, validator=_integer(1))
    """Notifications of one observation of ours that wait to be confirmed; over it further ones are ignored; 16."""

    dedup_entries_per_peer: int = field(default=256, validator=_integer(1, 65536))
    """Messages of one peer that are remembered to find duplicates; the oldest go first; 256 (RFC 7252 4.5)."""

    dedup_bytes_per_peer: int = field(default=64 * _KIB, validator=_integer(0))
    """B: the replies that are kept with them, to be sent again; the oldest go; 64 KiB (RFC 7252 4.5)."""

    max_snapshots_per_peer: int = field(default=16, validator=_integer(1))
    """Response bodies that one peer is fetching block by block; the oldest go first; 16."""

    snapshot_bytes_per_peer: int = field(default=32 * _MIB, validator=_integer(0))
    """B: all response bodies that one peer is fetching block by block; the oldest go first; 32 MiB."""

    snapshot_bytes_total: int = field(default=256 * _MIB, validator=_integer(0))
    """B: all response bodies that all peers are fetching block by block; the oldest go first; 256 MiB."""

    snapshot_lifetime: float = field(default=247.0, validator=_number(0, above=True))
    """s: a response body of which no block is asked for is let go; EXCHANGE_LIFETIME's 247 (RFC 7252 4.8.2)."""

    q_block_window: int = field(default=256, validator=_integer(1, 65536))
    """Blocks of one Q-Block transfer that a client has under way at most; 256 (RFC 9177 7)."""

    q_blocks_queued_per_peer: int = field(default=64, validator=_integer(1))
    """Q-Block2 blocks of one peer that wait to be sent; further ones are dropped and asked for again; 64."""

    q_blocks_queued_total: int = field(default=65536, validator=_integer(1))
    """Q-Block2 blocks of all peers that wait to be sent; 65536."""

    def __attrs_post_init__(self) -> None:
        for lesser, greater in (
            ("max_request_body", "max_reassembly_bytes_per_peer"),
            ("max_reassembly_bytes_per_peer", "max_reassembly_bytes_total"),
            ("snapshot_bytes_per_peer", "snapshot_bytes_total"),
        ):
            if getattr(self, greater) < getattr(self, lesser):
                raise ValueError(f"{greater} must be at least {lesser} ({getattr(self, lesser)})")
