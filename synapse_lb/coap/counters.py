# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an endpoint has counted since it was made. Numbers only: no peer, no content."""

from __future__ import annotations

import operator

from attrs import astuple, define


@define
class Counters:
    """Totals over all peers; each only grows.

    Attributes:
        datagrams_received: Datagrams taken in, bad ones included.
        bytes_received: Their bytes.
        datagrams_sent: Datagrams handed out to be sent.
        bytes_sent: Their bytes.
        malformed: Datagrams that were no CoAP message (RFC 7252 section 3).
        unmatched: Acknowledgements, Resets and responses that belonged to nothing here.
        resets_sent: Resets sent (section 4.2).
        resets_received: Resets received that belonged to a message of ours.
        duplicates: Messages that had been received before (section 4.5).
        retransmissions: Confirmable messages sent again (section 4.2).
        timeouts: Confirmable messages given up after all retransmissions.
        requests_received: Whole requests handed to the application.
        requests_refused: Requests that the endpoint answered itself, with an error.
        requests_overload: Requests refused because the peer had too many open ones.
        requests_cancelled: Requests whose application was told that no answer is needed.
        responses_sent: Responses of the application that were sent.
        responses_suppressed: Responses not sent because of No-Response (RFC 7967).
        responses_undelivered: Responses rejected, or not acknowledged.
        responses_too_large: Responses replaced by 5.00, since they exceeded a limit.
        observations_refused: Registrations served as plain requests, since the peer had too many.
        notifications_sent: Notifications of the application that were sent (RFC 7641).
        notifications_delivered: Notifications acknowledged, and fetched if they took several blocks.
        notifications_failed: Notifications that were not; each has ended an observation.
        requests_sent: Requests begun in the client role; pings are not counted.
        requests_failed: Requests of the client role that failed.
        responses_received: Whole responses handed to the application.
        notifications_received: Whole notifications handed to the application.
        notifications_stale: Notifications dropped because a newer one was there (RFC 7641 section 3.4).
        notifications_refused: Notifications ignored because too many were not confirmed yet.
        blocks_received: Messages received with a block of a larger body (RFC 7959).
        blocks_sent: Messages sent with a block of a larger body.
        transfers_restarted: Downloads begun anew, since the representation had changed (section 2.4).
        dedup_evictions: Entries of the duplicate table dropped before their time.
        reassembly_evictions: Half-received request bodies dropped to make room.
        reassembly_expirations: Half-received request bodies dropped after their lifetime.
        snapshot_evictions: Response bodies dropped to make room.
        snapshot_expirations: Response bodies dropped after their lifetime, fully fetched ones included.
        blocks_duplicate: Blocks of a Q-Block transfer that were here already (RFC 9177).
        blocks_recovered: Blocks that were asked for, or sent, once more because they were missing.
        blocks_dropped: Q-Block2 blocks that were not sent, since too many waited to be.
        q_block_fallbacks: Requests that were made once more without Q-Block, since the peer refused it.
    """

    datagrams_received: int = 0
    bytes_received: int = 0
    datagrams_sent: int = 0
    bytes_sent: int = 0
    malformed: int = 0
    unmatched: int = 0
    resets_sent: int = 0
    resets_received: int = 0
    duplicates: int = 0
    retransmissions: int = 0
    timeouts: int = 0
    requests_received: int = 0
    requests_refused: int = 0
    requests_overload: int = 0
    requests_cancelled: int = 0
    responses_sent: int = 0
    responses_suppressed: int = 0
    responses_undelivered: int = 0
    responses_too_large: int = 0
    observations_refused: int = 0
    notifications_sent: int = 0
    notifications_delivered: int = 0
    notifications_failed: int = 0
    requests_sent: int = 0
    requests_failed: int = 0
    responses_received: int = 0
    notifications_received: int = 0
    notifications_stale: int = 0
    notifications_refused: int = 0
    blocks_received: int = 0
    blocks_sent: int = 0
    transfers_restarted: int = 0
    dedup_evictions: int = 0
    reassembly_evictions: int = 0
    reassembly_expirations: int = 0
    snapshot_evictions: int = 0
    snapshot_expirations: int = 0
    blocks_duplicate: int = 0
    blocks_recovered: int = 0
    blocks_dropped: int = 0
    q_block_fallbacks: int = 0

    def __add__(self, other: Counters) -> Counters:
        """What both have counted together."""
        return Counters(*map(operator.add, astuple(self), astuple(other)))

    def __sub__(self, earlier: Counters) -> Counters:
        """What was added since an earlier reading."""
        return Counters(*map(operator.sub, astuple(self), astuple(earlier)))
