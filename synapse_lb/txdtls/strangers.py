# SPDX-License-Identifier: AGPL-3.0-or-later
"""Who among the clients is unknown, and who goes when there are too many (no sockets, no clock).

A completed handshake shows where a client is, not who it is: anybody can make one. Until the port's owner says that
it knows the client (`DTLSServerPort.trust`), the association is a stranger's. Strangers are few, and have little time:

- `unauthenticated_timeout` after its handshake a stranger is closed;
- there are at most `max_unauthenticated` strangers, `max_associations_per_source` associations of one IPv4 address or
  IPv6 /64, and `max_associations` in total;
- no more than `handshakes_per_second` begin.

Where one of these is full, somebody has to go when one more handshake completes (`Strangers.loser`):

1. the oldest stranger that has been silent for `PATIENCE`: it had its chance;
2. else, the newest stranger of the source that has most of them, if these are a `CROWD`, and more than the newcomer's
   source has: nobody with a few addresses keeps others out by talking;
3. else, the known client that has been silent for longest, if that is at least `evictable_after`: it is most likely
   gone without a word;
4. else the newcomer. So a flood of newcomers takes nothing from known clients who talk now and then.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Final

from synapse_lb.txdtls.movement import Bucket, host_key

if TYPE_CHECKING:
    from synapse_lb.txdtls.options import ServerOptions
    from synapse_lb.txdtls.table import AssociationTable, Entry

PATIENCE: Final = 30.0
"""Seconds of silence that any stranger may take, for a request on a slow link to come."""

CROWD: Final = 8
"""Strangers of one IPv4 address or IPv6 /64 who make room for those of others."""

_LOOKED_AT: Final = 64
"""Strangers that are looked at for one that is silent: the oldest ones."""


class Strangers:
    """What a port knows of its established associations' standing. Bounded by their number.

    Args:
        options: The bounds.
        table: The associations.
    """

    def __init__(self, options: ServerOptions, table: AssociationTable) -> None:
        self._options = options
        self._table = table
        self._deadlines: OrderedDict[Entry, float] = OrderedDict()  # of strangers, the oldest first
        self._sources: dict[bytes, dict[Entry, None]] = {}
        self._source_of: dict[Entry, bytes] = {}
        self._begun: Bucket | None = None

    def __len__(self) -> int:
        return len(self._deadlines)

    def holds(self, entry: Entry) -> bool:
        """Whether it is a stranger."""
        return entry in self._deadlines

    def may_begin(self, now: float) -> bool:
        """Whether a handshake may begin now; if so, it counts."""
        if self._begun is None:
            self._begun = Bucket(self._options.handshakes_per_second, now)
        if self._begun.refill(now) < 1:
            return False
        self._begun.tokens -= 1
        return True

    def add(self, entry: Entry, now: float) -> None:
        """An association was established."""
        self._place(entry)
        self._deadlines[entry] = now + self._options.unauthenticated_timeout

    def trust(self, entry: Entry, now: float, *, known: bool) -> None:
        """It is known who that is; or not any more, and it has the time of a newcomer from now on. Idempotent."""
        if known:
            self._deadlines.pop(entry, None)
        elif entry not in self._deadlines:
            self._deadlines[entry] = now + self._options.unauthenticated_timeout

    def moved(self, entry: Entry) -> None:
        """It has another address."""
        self._leave(entry)
        self._place(entry)

    def remove(self, entry: Entry) -> None:
        """It has ended; no error if it is not there."""
        self._deadlines.pop(entry, None)
        self._leave(entry)

    @property
    def first_deadline(self) -> list[tuple[Entry, float]]:
        """The stranger whose time is over first, if there is any, and when."""
        return list(islice(self._deadlines.items(), 1))

    def loser(self, newcomer: Entry, now: float) -> Entry | None:
        """Who has to go after `newcomer` was added; None if there is room for all."""
        options = self._options
        of_source = self._sources[self._source_of[newcomer]]
        if len(of_source) > options.max_associations_per_source:
            strangers = [entry for entry in of_source if entry in self._deadlines]
            by_silence = sorted(of_source, key=lambda entry: entry.since)
            return self._choose(newcomer, strangers, by_silence, now, crowds=False)
        if self._table.established > options.max_associations:
            return self._choose(newcomer, self._deadlines, self._table.by_silence(), now)
        if len(self._deadlines) > options.max_unauthenticated:
            return self._choose(newcomer, self._deadlines, (), now)
        return None

    def _choose(
        self,
        newcomer: Entry,
        strangers: Iterable[Entry],
        by_silence: Iterable[Entry],
        now: float,
        *,
        crowds: bool = True,
    ) -> Entry:
        for entry in islice(strangers, _LOOKED_AT):
            if now - entry.since >= PATIENCE:
                return entry
        crowding = self._crowding(newcomer) if crowds else None
        if crowding is not None:
            return crowding
        longest = next(iter(by_silence), newcomer)
        return longest if now - longest.since >= self._options.evictable_after else newcomer

    def _crowding(self, newcomer: Entry) -> Entry | None:
        """The newest stranger of the source that has most of them, if it has many and the newcomer's has fewer."""
        sizes: dict[bytes, int] = {}
        newest: dict[bytes, Entry] = {}
        for entry in self._deadlines:
            source = self._source_of[entry]
            sizes[source] = sizes.get(source, 0) + 1
            newest[source] = entry
        crowded = max(sizes, key=sizes.__getitem__)
        if sizes[crowded] < CROWD or sizes[crowded] <= sizes[self._source_of[newcomer]]:
            return None
        return newest[crowded]

    def _place(self, entry: Entry) -> None:
        source = self._source_of[entry] = host_key(entry.address[0])
        self._sources.setdefault(source, {})[entry] = None

    def _leave(self, entry: Entry) -> None:
        source = self._source_of.pop(entry, None)
        if source is None:
            return
        del self._sources[source][entry]
        if not self._sources[source]:
            del self._sources[source]
