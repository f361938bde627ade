# SPDX-License-Identifier: AGPL-3.0-or-later
"""The Observe option and the order of notifications (RFC 7641 sections 2, 3.4 and 4.4); of no role.

    Client              Server
      |                  |
      |  GET /temperature |
      |    Token: 0x4a   |   Registration
      |   Observe: 0     |
      +----------------->|
      |                  |
      |   2.05 Content   |
      |    Token: 0x4a   |   Notification of
      |   Observe: 12    |   the current state
      |<-----------------+
      |                  |
      |   2.05 Content   |
      |    Token: 0x4a   |   Notification upon
      |   Observe: 44    |   a state change
      |<-----------------+
      |                  |
         (RFC 7641, figure 2)

The server role is in `notifications`, the client role in `observations`.
"""

from __future__ import annotations

from typing import Final

from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options

REGISTER: Final = 0
"""Value of Observe in a request that registers (RFC 7641 section 2)."""

DEREGISTER: Final = 1
"""Value of Observe in a request that ends a registration (RFC 7641 section 2)."""

FIRST_NUMBER: Final = 2
"""Of the first notification: one byte on the wire, and neither of the two values that a request may have."""

NUMBER_MODULUS: Final = 1 << 24
"""Numbers of notifications have 24 bits (RFC 7641 section 3.4)."""

LONGEST_NUMBER: Final = b"\xff\xff\xff"
"""An Observe value that takes as much room as any."""

FRESHNESS_SPAN: Final = 128.0
"""s: after so long a notification is newer whatever its number says (RFC 7641 section 3.4)."""

OBSERVABLE_METHODS: Final = frozenset({Code.GET, Code.FETCH})
"""Methods for which Observe has a meaning (RFC 7641 section 2, RFC 8132 section 2.4)."""


def wanted(code: int, options: Options) -> int | None:
    """Return what a request wants: `REGISTER`, `DEREGISTER`, or None for neither.

    Args:
        code: The method.
        options: Of the request.
    """
    if code not in OBSERVABLE_METHODS:
        return None
    value = options.get_uint(OptionNumber.OBSERVE)
    return value if value in (REGISTER, DEREGISTER) else None


def following(number: int) -> int:
    """Return the number after this one (RFC 7641 section 4.4)."""
    return (number + 1) % NUMBER_MODULUS


def is_newer(number: int, now: float, previous: int, previous_at: float) -> bool:
    """Whether a notification is newer than another (RFC 7641 section 3.4, V2 and T2 against V1 and T1).

    Args:
        number: Of the one that came in now.
        now: Monotonic seconds.
        previous: Number of the other.
        previous_at: Monotonic seconds when that came in.
    """
    half = NUMBER_MODULUS >> 1
    return (
        (previous < number and number - previous < half)
        or (previous > number and previous - number > half)
        or now > previous_at + FRESHNESS_SPAN
    )
