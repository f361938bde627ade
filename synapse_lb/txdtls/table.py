# SPDX-License-Identifier: AGPL-3.0-or-later
"""Who is connected: associations by id, and by address, in order of activity (no sockets, no clock).

An id is never used twice. Addresses are looked up separately, so that an association can change its address.
At an address at most one established association and one unfinished handshake are looked up; the handshake takes
the association's place when it completes (RFC 6347 4.2.8). An association whose address another one has moved to
(a NAT gave the port to somebody else) is found by its id only, until it moves itself.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator

import attrs
from twisted.internet.address import IPv4Address, IPv6Address

from synapse_lb.txdtls.association import Association
from synapse_lb.txdtls.forms import ServerForm
from synapse_lb.txdtls.interfaces import Timer
from synapse_lb.txdtls.movement import Path

Address = tuple[str, int]


@attrs.define(eq=False)
class Entry:
    """A server's association with one client.

    Attributes:
        id: Never reused.
        association: The connection.
        address: Host and port of the client.
        client_random: Random of its ClientHello; a copy of that hello starts no second handshake.
        since: Monotonic seconds: begin of the handshake, then time of the last authentic record.
        timer: When the flight is sent again while the handshake runs, or leaves at the latest.
        sent_messages: Whether it was given a message to send.
        busy: Its events are being delivered; what it sends leaves afterwards.
        path: What may be sent to that address.
        form: In which form it is sent.
    """

    id: int
    association: Association
    address: Address
    client_random: bytes = attrs.field(repr=False)
    since: float
    timer: Timer | None = None
    sent_messages: bool = False
    busy: bool = False
    path: Path = attrs.field(default=attrs.Factory(lambda entry: Path(entry.address), takes_self=True))
    form: ServerForm = attrs.field(factory=ServerForm)

    @property
    def peer(self) -> IPv4Address | IPv6Address:
        """The address as Twisted has it."""
        host, port = self.address
        return IPv6Address("UDP", host, port) if ":" in host else IPv4Address("UDP", host, port)


class AssociationTable:
    """The maps of a server port. Bounds are its owner's: see `oldest_handshake` and `by_silence`."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._handshakes: dict[Address, Entry] = {}  # in order of their begin
        self._established: OrderedDict[int, Entry] = OrderedDict()  # in order of activity
        self._by_address: dict[Address, Entry] = {}

    @property
    def handshakes(self) -> int:
        """Number of unfinished handshakes."""
        return len(self._handshakes)

    @property
    def established(self) -> int:
        """Number of established associations."""
        return len(self._established)

    def __iter__(self) -> Iterator[Entry]:
        return iter([*self._handshakes.values(), *self._established.values()])

    def next_id(self) -> int:
        """A new association id."""
        return next(self._ids)

    def handshake_at(self, address: Address) -> Entry | None:
        """The unfinished handshake of an address."""
        return self._handshakes.get(address)

    def established_at(self, address: Address) -> Entry | None:
        """The established association of an address."""
        return self._by_address.get(address)

    def get(self, association_id: int) -> Entry | None:
        """The established association of an id."""
        return self._established.get(association_id)

    def add_handshake(self, entry: Entry) -> None:
        """Add an unfinished handshake; its address must have none."""
        self._handshakes[entry.address] = entry

    def promote(self, entry: Entry, now: float) -> Entry | None:
        """Make an unfinished handshake an established association.

        Returns:
            The association of that address which it replaces, already removed.
        """
        del self._handshakes[entry.address]
        replaced = self._by_address.get(entry.address)
        if replaced is not None:
            del self._established[replaced.id]
        self._by_address[entry.address] = entry
        self._established[entry.id] = entry
        entry.since = now
        return replaced

    def move(self, entry: Entry, address: Address) -> None:
        """Give an established association another address; one that is there already loses it."""
        if self._by_address.get(entry.address) is entry:
            del self._by_address[entry.address]
        entry.address = address
        self._by_address[address] = entry

    def touch(self, entry: Entry, now: float) -> None:
        """An authentic record came: make it the most recently active."""
        if entry.id in self._established:
            entry.since = now
            self._established.move_to_end(entry.id)

    def remove(self, entry: Entry) -> None:
        """Forget an entry, whatever its state; no error if it is not there."""
        if self._handshakes.get(entry.address) is entry:
            del self._handshakes[entry.address]
        if self._by_address.get(entry.address) is entry:
            del self._by_address[entry.address]
        if self._established.get(entry.id) is entry:
            del self._established[entry.id]

    def oldest_handshake(self) -> Entry | None:
        """The unfinished handshake that began first."""
        return next(iter(self._handshakes.values()), None)

    def by_silence(self) -> Iterator[Entry]:
        """The established associations, the one that has been silent for longest first."""
        return iter(self._established.values())

    def longest_silent(self) -> Entry | None:
        """The established association that has been silent for longest."""
        return next(iter(self._established.values()), None)
