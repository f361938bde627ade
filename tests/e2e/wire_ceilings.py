# SPDX-License-Identifier: AGPL-3.0-or-later
"""What each operation of `synapse-lb bench wire` may take on the wire: the record that every change is held to.

A change that needs fewer bytes lowers its ceilings here, and the table in `docs/performance.md`. One that needs more
has to say why. Most lengths are exact. Those that vary, with the room that they are given:

* an ECDSA signature, in the first handshake, has 70 to 72 bytes; the longest of four handshakes is measured:
  `SIGNATURE`;
* a stream token (`since`, `next_batch`, `prev_batch`) is made of a dozen numbers; with which digits they are written
  depends on how often Synapse's own jobs have run: `TOKENS` for each message that has some;
* the age of an event, in milliseconds, is an integer of 1 to 5 bytes: two or three usually, more on a slow machine.
  `AGE` in a message with one event, `LARGE` in a sync with many;
* what is compressed has ids, keys and signatures in it, which are new in each run: `CHANCE`, and `LARGE` again;
* the server's Finished waits 0.1 s for the answer; a slower one comes in a datagram of its own: `SLOW`;
* OpenSSL 3 writes extensions into the hello of a resumption that OpenSSL 4 leaves out: `OPENSSL_3`. A compact hello
  is as long as ever;
* how often a client asks for the blocks of a body that comes by Q-Block depends on when they arrive.
"""

from __future__ import annotations

from typing import Final

import attrs
from OpenSSL import SSL

ROOMS: Final = 10
"""Rooms of the initial sync: with 50, filling them takes too long for a test."""

SIGNATURE: Final = 1
SLOW: Final = 28
OPENSSL_3: Final = 24 if SSL.OPENSSL_VERSION_NUMBER < 0x4000_0000 else 0
TOKENS: Final = 3
AGE: Final = 3
CHANCE: Final = 8
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
        "connect_first": Ceiling(5, 565, 888 + SIGNATURE + SLOW),
        "connect_resumed": Ceiling(4, 411 + OPENSSL_3, 314),
        "send": Ceiling(2, 155, 113),
        "send_brief": Ceiling(2, 155, 113),
        "send_encrypted": Ceiling(2, 669, 113),
        "receipt": Ceiling(2, 167, 66),
        "typing": Ceiling(2, 139, 66),
        "sync_empty": Ceiling(4, 179 + TOKENS, 244 + TOKENS),
        "push": Ceiling(2, 61, 488 + TOKENS + AGE),
        "push_encrypted": Ceiling(2, 61, 1002 + TOKENS + AGE),
        "keepalive": Ceiling(2, 61, 61),
        "sync_initial": Ceiling(85, 4000, round(55_525 * LARGE)),
        "sync_incremental": Ceiling(22, 1736 + 11 * TOKENS, round(11_632 * LARGE)),
        "keys_query": Ceiling(10, 338, 8686),
    },
    "deflate": {
        "connect_first": Ceiling(5, 565, 888 + SIGNATURE + SLOW),
        "connect_resumed": Ceiling(4, 411 + OPENSSL_3, 314),
        "send": Ceiling(2, 155, 113),
        "send_brief": Ceiling(2, 155, 113),
        "send_encrypted": Ceiling(2, 669, 113),
        "receipt": Ceiling(2, 167, 66),
        "typing": Ceiling(2, 139, 66),
        "sync_empty": Ceiling(4, 182 + TOKENS, 234 + TOKENS),
        "push": Ceiling(2, 61, 420 + CHANCE + AGE),
        "push_encrypted": Ceiling(2, 61, 842 + CHANCE + AGE),
        "keepalive": Ceiling(2, 61, 61),
        "sync_initial": Ceiling(29, 1120, round(21_560 * LARGE)),
        "sync_incremental": Ceiling(10, 803 + 5 * TOKENS, round(5_065 * LARGE)),
        "keys_query": Ceiling(6, 206, 3885 + 2 * CHANCE),
    },
    "x1": {
        "connect_first": Ceiling(5, 596, 872 + SIGNATURE + SLOW),
        "connect_resumed": Ceiling(4, 270, 187),
        "send": Ceiling(2, 71, 86),
        "send_brief": Ceiling(2, 74, 51),
        "send_encrypted": Ceiling(2, 369, 86),
        "receipt": Ceiling(2, 93, 53),
        "typing": Ceiling(2, 85, 53),
        "sync_empty": Ceiling(4, 128 + TOKENS, 114 + TOKENS),
        "push": Ceiling(2, 50, 137 + AGE),
        "push_encrypted": Ceiling(2, 50, 432 + AGE),
        "keepalive": Ceiling(2, 50, 50),
        "sync_initial": Ceiling(25, 620, round(15_880 * LARGE)),
        "sync_incremental": Ceiling(8, 288 + TOKENS, round(3_890 * LARGE)),
        "keys_query": Ceiling(5, 192, 3366 + 2 * CHANCE),
    },
}
"""By mode and operation."""
