# SPDX-License-Identifier: AGPL-3.0-or-later
"""Settings and counters of the server port and of the client."""

from __future__ import annotations

from typing import Any

import attrs
from attrs import validators

from synapse_lb.txdtls.errors import DTLSError
from synapse_lb.txdtls.flights import DEFAULT_TIMEOUT

DEFAULT_MTU = 1200
"""Bytes of UDP payload that pass everywhere: IPv6 guarantees 1280 (RFC 8200 section 5), tunnels take some."""

_MAX_REASONS = 32
"""Alerts of TLS are about 30; the bound is for a peer that makes OpenSSL name others."""

_MTU = [validators.ge(256), validators.le(16384)]


def _positive(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not value > 0:
        raise ValueError(f"{attribute.name} must be greater than 0, not {value}")


@attrs.frozen(kw_only=True)
class ServerOptions:
    """Settings of a `DTLSServerPort`.

    Attributes:
        mtu: Largest datagram sent, bytes of UDP payload.
        handshake_timeout: Seconds that a handshake may take once the address is proven.
        idle_timeout: Seconds without an authentic record from the peer until its association is closed.
        max_associations: Established associations kept (65-80 KB each). Who goes when one more comes is in `strangers`.
        max_associations_per_source: The same for one IPv4 address or IPv6 /64; all clients behind a NAT share it.
        max_unauthenticated: Established associations whose owner does not know who they are.
        unauthenticated_timeout: Seconds that one of them has until it is closed. Somebody types a password meanwhile.
        evictable_after: Seconds of silence after which a known client makes room for another, where there is none.
        handshakes_per_second: Handshakes that begin; further ClientHellos get no answer, and are repeated.
        max_half_open: Unfinished handshakes kept; one more evicts the oldest.
        cookie: When a client has to show with a cookie where it is, before a handshake begins: "always", or "auto":
            unless the answer is short enough and the server has little to do (see `admission`).
        max_unproven: Handshakes at most that have begun without a cookie.
        unproven_per_second: Attempts to begin one, per second.
        unproven_timeout: Seconds that one may take.
        cookie_lifetime: Seconds until the cookie secret changes; a cookie is good for one to two of them.
        move_trials_per_datagram: Associations that a datagram from an unknown address is tried against, to find
            out whether their client has moved there (see `movement`); about 3 microseconds each, so that one
            datagram never takes as long as a handshake. 0 finds nobody: a client that moved has to make a new
            handshake.
        move_trials_per_source: Such trials per second for datagrams from one IPv4 address or IPv6 /64: four full
            datagrams, as many as a client that moved sends in its first seconds.
        move_trials_per_second: Such trials per second in total; the default takes little more than 1 % of a
            processor core. What comes in half a second is kept for associations of the datagram's own host.
        max_waiting_per_association: Datagrams of one association that wait for their turn (see `backlog`); further
            ones are dropped.
        max_waiting: The same for all together, but each association may have one.
    """

    mtu: int = attrs.field(default=DEFAULT_MTU, validator=_MTU)
    handshake_timeout: float = attrs.field(default=60.0, validator=_positive)
    idle_timeout: float = attrs.field(default=86400.0, validator=_positive)
    max_associations: int = attrs.field(default=5000, validator=_positive)
    max_associations_per_source: int = attrs.field(default=512, validator=_positive)
    max_unauthenticated: int = attrs.field(default=1000, validator=_positive)
    unauthenticated_timeout: float = attrs.field(default=300.0, validator=_positive)
    evictable_after: float = attrs.field(default=3600.0, validator=_positive)
    handshakes_per_second: int = attrs.field(default=200, validator=_positive)
    max_half_open: int = attrs.field(default=500, validator=_positive)
    cookie: str = attrs.field(default="auto", validator=validators.in_(("auto", "always")))
    max_unproven: int = attrs.field(default=64, validator=validators.ge(0))
    unproven_per_second: int = attrs.field(default=50, validator=_positive)
    unproven_timeout: float = attrs.field(default=30.0, validator=_positive)
    cookie_lifetime: float = attrs.field(default=300.0, validator=_positive)
    move_trials_per_datagram: int = attrs.field(default=64, validator=validators.ge(0))
    move_trials_per_source: int = attrs.field(default=256, validator=_positive)
    move_trials_per_second: int = attrs.field(default=4096, validator=_positive)
    max_waiting_per_association: int = attrs.field(default=256, validator=_positive)
    max_waiting: int = attrs.field(default=8192, validator=_positive)


@attrs.frozen(kw_only=True)
class ClientOptions:
    """Settings of a client association.

    Attributes:
        mtu: Largest datagram sent, bytes of UDP payload.
        handshake_timeout: Seconds until `connect` gives up, over all addresses of the host.
        retransmit_after: Seconds until a first hello is sent again: three times the round-trip time, if it is known
            from an earlier association. At least 1.
        hello_size: Bytes to which a hello that resumes nothing is padded, so that the server may answer it at once
            with its certificate (see `admission`); 0 does not pad. The default is enough for a self-signed P-256
            certificate of 430 bytes.
        false_start: Whether messages may leave with the client's Finished, before the server's has come (RFC 7918).
    """

    mtu: int = attrs.field(default=DEFAULT_MTU, validator=_MTU)
    handshake_timeout: float = attrs.field(default=60.0, validator=_positive)
    retransmit_after: float = attrs.field(default=DEFAULT_TIMEOUT, validator=_positive)
    hello_size: int = attrs.field(default=214, validator=[validators.ge(0), validators.le(1000)])
    false_start: bool = True


@attrs.define
class TrafficCounters:
    """Datagrams, bytes of UDP payload and messages both ways, and what was dropped on the way in.

    Attributes:
        datagrams_received: All datagrams that arrived.
        bytes_received: Their bytes.
        datagrams_sent: Datagrams handed to the network.
        bytes_sent: Their bytes.
        messages_received: Application messages handed to the handler.
        messages_sent: Application messages encrypted.
        datagrams_malformed: Dropped: no DTLS record at the start, or longer than any record.
        records_discarded: Records to an established association which brought nothing: replays, bad MACs,
            forged alerts, junk.
        send_errors: Datagrams that the network layer refused.
        handler_errors: Exceptions that a handler let out.
    """

    datagrams_received: int = 0
    bytes_received: int = 0
    datagrams_sent: int = 0
    bytes_sent: int = 0
    messages_received: int = 0
    messages_sent: int = 0
    datagrams_malformed: int = 0
    records_discarded: int = 0
    send_errors: int = 0
    handler_errors: int = 0


@attrs.define
class ServerCounters(TrafficCounters):
    """What a server port has seen.

    Attributes:
        hello_verify_requests: Cookies sent.
        hellos_malformed: ClientHellos dropped: fragmented, cut short, or refused by OpenSSL.
        hellos_duplicate: Late copies of the ClientHello of an established association.
        datagrams_unknown: Records from addresses without an association; never answered.
        handshakes_started: Handshakes that began, with a cookie or without.
        cookies_skipped: Of them, those that began without one.
        handshakes_completed: Of them, those that completed.
        handshakes_resumed: Of the completed ones, those that resumed a session.
        handshakes_failed: Ended by a fatal alert, sent or received.
        failures: Why, by the name of the alert that came (RFC 5246 section 7.2), or "refused" where this side
            sent it; 32 names at most, then "other".
        handshakes_timed_out: Not completed in time.
        handshakes_superseded: Given up because the same address started over.
        handshakes_evicted: Given up because there were too many.
        handshakes_refused: ClientHellos dropped because too many handshakes had just begun.
        associations_replaced: The peer came back from the same address with a new handshake.
        associations_closed_by_peer: close_notify received.
        associations_idle: Closed after the idle timeout.
        associations_evicted: Closed because there were too many, after long silence.
        associations_refused: Closed as soon as they were established, because there were too many.
        associations_unauthenticated: Closed because they did not show in time who they are.
        associations_failed: Ended by a fatal error.
        associations_moved: The peer came from another address.
        move_trials: Associations that datagrams from unknown addresses were tried against.
        moves_refused: Such datagrams that were tried against none, or not all likely ones, for want of budget.
        datagrams_held: Not sent at once, because the address is not proven yet (see `movement.Path`).
        datagrams_deferred: Not handled when they were read, because many of their association came at once.
        datagrams_overflowed: Dropped, because too many of their association waited.
    """

    hello_verify_requests: int = 0
    hellos_malformed: int = 0
    hellos_duplicate: int = 0
    datagrams_unknown: int = 0
    handshakes_started: int = 0
    cookies_skipped: int = 0
    handshakes_completed: int = 0
    handshakes_resumed: int = 0
    handshakes_failed: int = 0
    handshakes_timed_out: int = 0
    handshakes_superseded: int = 0
    handshakes_evicted: int = 0
    handshakes_refused: int = 0
    associations_replaced: int = 0
    associations_closed_by_peer: int = 0
    associations_idle: int = 0
    associations_evicted: int = 0
    associations_refused: int = 0
    associations_unauthenticated: int = 0
    associations_failed: int = 0
    associations_moved: int = 0
    move_trials: int = 0
    moves_refused: int = 0
    datagrams_held: int = 0
    datagrams_deferred: int = 0
    datagrams_overflowed: int = 0
    failures: dict[str, int] = attrs.field(factory=dict)

    def handshake_failed(self, error: DTLSError) -> None:
        """Count a handshake that ended by a fatal alert."""
        self.handshakes_failed += 1
        reason = getattr(error, "alert", None) or "refused"
        if reason not in self.failures and len(self.failures) >= _MAX_REASONS:
            reason = "other"
        self.failures[reason] = self.failures.get(reason, 0) + 1


@attrs.define
class ClientCounters(TrafficCounters):
    """What a client association has seen.

    Attributes:
        connections_refused: ICMP "port unreachable" reported by the socket.
    """

    connections_refused: int = 0
