# SPDX-License-Identifier: AGPL-3.0-or-later
"""What each operation of `synapse-lb bench wire` may take on the wire: the record that every change is held to.

A change that needs fewer bytes lowers its ceilings here, and the table in `docs/performance.md`. One that needs more
has to say why. Most lengths are exact. Those that vary, with the room that they are given:

* an ECDSA signature, in the first handshake, has 70 to 72 bytes; the longest of five handshakes is measured:
  `SIGNATURE`;
* a stream token (`since`, `next_batch`, `prev_batch`) is made of a dozen numbers; with which digits they are written
  depends on how often Synapse's own jobs have run: `TOKENS` for each message that has some;
* the age of an event, in milliseconds, is an integer of 1 to 5 bytes: two or three usually, more on a slow machine.
  `AGE` in a message with one event, `LARGE` in a sync with many;
* the server's Finished waits 0.1 s for the answer; a slower one comes in a datagram of its own: `SLOW`;
* how often a client asks for the blocks of a body that comes by Q-Block depends on when they arrive.
"""

from __future__ import annotations

from typing import Final

import attrs

ROOMS: Final = 10
"""Rooms of the initial sync: with 50, filling them takes too long for a test."""

SIGNATURE: Final = 1
SLOW: Final = 28
TOKENS: Final = 3
AGE: Final = 3
LARGE: Final = 1.01


@attrs.frozen
class Ceiling:
    """The most that an operation may take.

    Attributes:
        packets: both ways together.
        sent: IP bytes that the client sends.
        received: IP bytes that it receives.
    """

    packets: int
    sent: int
    received: int


CEILINGS: Final[dict[str, dict[str, Ceiling]]] = {
    "v1": {
        "connect_first": Ceiling(5, 610, 888 + SIGNATURE + SLOW),
        "connect_resumed": Ceiling(4, 470, 314),
        "send": Ceiling(2, 182, 113),
        "send_encrypted": Ceiling(2, 696, 113),
        "receipt": Ceiling(2, 197, 66),
        "typing": Ceiling(2, 168, 66),
        "sync_empty": Ceiling(4, 200 + TOKENS, 244 + TOKENS),
        "push": Ceiling(2, 61, 488 + TOKENS + AGE),
        "push_encrypted": Ceiling(2, 61, 1002 + TOKENS + AGE),
        "keepalive": Ceiling(2, 61, 61),
        "sync_initial": Ceiling(80, 4100, round(55_525 * LARGE)),
        "sync_incremental": Ceiling(22, 1967 + 11 * TOKENS, round(11_632 * LARGE)),
        "keys_query": Ceiling(10, 392, 8686),
    },
}
"""By mode and operation."""
