# SPDX-License-Identifier: AGPL-3.0-or-later
"""Who is connected to a gateway now, for metrics and for admins: no message, and no token in any `repr`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from attrs import define, field, frozen

from synapse_lb.coaps.clock import Clock
from synapse_lb.msc3079.sticky import StickyState
from synapse_lb.server.dispatcher import Address

MOVED: Final = "moved"
AUTHENTICATED: Final = "authenticated"
ANONYMOUS: Final = "anonymous"
STATES: Final = (AUTHENTICATED, ANONYMOUS, MOVED)
"""Of an association: it has said an access token; it has not; it has not yet answered at its new address."""


class Client(Protocol):
    """What a gateway keeps of an association, as far as it is shown."""

    @property
    def address(self) -> Address:
        """Where it is."""

    @property
    def sticky(self) -> StickyState:
        """What it has said for all of its requests."""

    @property
    def unproven(self) -> bool:
        """Whether it has moved and has not yet answered at its new address."""


@define
class _Seen:
    since: float
    heard_at: float
    messages: int = 0


@frozen
class Present:
    """One association.

    Attributes:
        id: its number at its port, never used twice.
        address: where it is.
        state: one of `STATES`.
        access_token: the one that it has said; nothing says that it is still good.
        age: s since its handshake was completed.
        silence: s since its last message.
        messages: messages that it has sent.
    """

    id: int
    address: Address
    state: str
    access_token: str | None = field(repr=False)
    age: float
    silence: float
    messages: int


class Roster:
    """Notes when the associations of a gateway came and when they were last heard.

    Bounded by the number of associations, of which each is forgotten when it ends.

    Args:
        clock: the reactor.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[int, _Seen] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def came(self, association_id: int) -> None:
        """An association was established."""
        now = self._clock.seconds()
        self._seen[association_id] = _Seen(now, now)

    def heard(self, association_id: int) -> None:
        """It has sent a message."""
        seen = self._seen.get(association_id)
        if seen is not None:
            seen.heard_at = self._clock.seconds()
            seen.messages += 1

    def went(self, association_id: int) -> None:
        """It has ended."""
        self._seen.pop(association_id, None)

    def list(self, clients: Mapping[int, Client]) -> list[Present]:
        """Tell who is there, in the order in which they came.

        Args:
            clients: what the gateway keeps of them.
        """
        now = self._clock.seconds()
        return [
            Present(
                association_id,
                client.address,
                state_of(client),
                client.sticky.token,
                now - seen.since,
                now - seen.heard_at,
                seen.messages,
            )
            for association_id, client in clients.items()
            if (seen := self._seen.get(association_id)) is not None
        ]


def state_of(client: Client) -> str:
    """Return in which of `STATES` an association is."""
    if client.unproven:
        return MOVED
    return ANONYMOUS if client.sticky.token is None else AUTHENTICATED
