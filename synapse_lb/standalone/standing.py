# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which access tokens the homeserver is known to take.

A success alone does not tell: `/versions`, login and public rooms are answered to anybody, whatever token comes with
the request. So a token that is new is asked about once (`GET /account/whoami`, which needs one), and is known for a
while.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import sha256
from typing import Final

from synapse_lb.coaps.clock import Clock
from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse

WHOAMI: Final = b"/_matrix/client/v3/account/whoami"

KNOWN_FOR: Final = 300.0
"""s: after which a token is asked about again."""

MAX_KNOWN: Final = 10_000
"""Tokens that are remembered; the one that was learned longest ago is forgotten first, and asked about again."""

_WHOAMI_ENDS: Final = b"/account/whoami"
_LOGOUT_ENDS: Final = (b"/logout", b"/logout/all")


class KnownTokens:
    """The tokens that the homeserver has lately taken; of each no more than a digest is kept.

    Args:
        clock: the reactor.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock: Final = clock
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def __contains__(self, token: str) -> bool:
        return self._until.get(_digest(token), -1.0) > self._clock.seconds()

    def see(self, request: MatrixRequest, answer: MatrixResponse) -> bool | None:
        """What an answer of the homeserver tells of the request's token.

        Returns:
            Whether it is good; None if the homeserver has to be asked.
        """
        token = request.access_token
        if token is None:
            return False
        if answer.status == 401 or (answer.status == 200 and request.path.endswith(_LOGOUT_ENDS)):
            self._until.pop(_digest(token), None)
            return False
        if answer.status >= 300:
            return False
        if request.path.endswith(_WHOAMI_ENDS):
            self.add(token)
        return True if token in self else None

    def add(self, token: str) -> None:
        """The homeserver has taken a token."""
        digest = _digest(token)
        self._until[digest] = self._clock.seconds() + KNOWN_FOR
        self._until.move_to_end(digest)
        if len(self._until) > MAX_KNOWN:
            self._until.popitem(last=False)


def _digest(token: str) -> bytes:
    return sha256(token.encode("ascii", "replace")).digest()
