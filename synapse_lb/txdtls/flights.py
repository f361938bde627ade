# SPDX-License-Identifier: AGPL-3.0-or-later
"""What one side sends in a handshake: flights, their numbers, when they are sent again (RFC 6347 4.2.4).

OpenSSL makes the messages. It would also repeat them, by its own clock, after 1 s: a link of 125 bytes a second needs
six for a server's certificate, so most of what it carried would be repetitions. So nothing that OpenSSL repeats ever
leaves (`Flights.take`); a flight is sent again from here (`Flights.again`), when `RetransmissionTimer` says so or the
other side shows that it is waiting. A repeated flight has record numbers of its own, or the other side would take it
for a replay.

    Client                                          Server
    ClientHello (timer)              ------>
                                     <------        ServerHello ... ServerHelloDone   (again when the hello is)
    ClientKeyExchange, CCS, Finished (timer) ------>
                                     <------        CCS, Finished   (again when the other one is)

    ClientHello (timer)              ------>
                                     <------        ServerHello, CCS, Finished (timer)
    CCS, Finished, and the request   ------>        both again with the request, until the server has said something
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

from synapse_lb.txdtls import records

DEFAULT_TIMEOUT: Final = 4.0
"""Seconds until a first flight is sent again if nothing is known of the link: between RFC 6347's 1 s and the 9 s of
RFC 7925 section 11. At 125 bytes a second a hello and its HelloVerifyRequest take 2.7 s, both flights of a resumption
3.2 s."""

SLOW_ANSWER: Final = 2.0
"""Seconds: an answer that comes later than this after the last copy of a flight has come over a slow link."""

MIN_TIMEOUT: Final = 1.0
"""Seconds, the least (RFC 6298 section 2.4)."""

MAX_TIMEOUT: Final = 60.0
"""Seconds, the most (RFC 6347 4.2.4.1)."""

SLOWEST: Final = 125.0
"""Bytes per second of the slowest link that a server waits for before it repeats a flight by itself."""

FINISHED_WAITS: Final = 0.1
"""Seconds that the server's Finished waits for the answer to a request that came with the client's, to share a
datagram with it."""

_CLIENTS_ANSWER: Final = 350
"""Bytes of a client's answer to a resumption, with a request, at IP level."""

_COPY_GAP: Final = 0.9
"""Seconds: copies of a hello that come closer together than this are copies of the network's."""


class RetransmissionTimer:
    """When a flight is to be sent again: RFC 6298, with exponential back-off (RFC 6347 4.2.4.1).

    Args:
        initial: Seconds before anything is known.

    Attributes:
        due: Monotonic seconds, or None if nothing is to be sent again.
    """

    __slots__ = ("_timeout", "due")

    def __init__(self, initial: float) -> None:
        self._timeout = _bounded(initial)
        self.due: float | None = None

    def measured(self, rtt: float) -> None:
        """A flight that was sent once was answered after so many seconds."""
        self._timeout = _bounded(3 * rtt)  # RFC 6298 2.2: SRTT + 4 RTTVAR = R + 4 R/2

    def start(self, now: float) -> None:
        """A flight leaves for the first time."""
        self.due = now + self._timeout

    def expired(self, now: float) -> bool:
        """Whether it is time; then the next one waits twice as long."""
        if self.due is None or now < self.due:
            return False
        self._timeout = _bounded(2 * self._timeout)
        self.due = now + self._timeout
        return True

    def stop(self) -> None:
        """Nothing is to be sent again."""
        self.due = None


def server_timeout(size: int) -> float:
    """Seconds after which a server repeats its flight of a resumption, which has so many bytes, by itself."""
    return MIN_TIMEOUT + (size + _CLIENTS_ANSWER) / SLOWEST


@attrs.define
class Flights:
    """The flights of one side of one handshake.

    Args:
        sequence: Number of the first unencrypted record.
        merge: Bytes up to which handshake messages share a record (RFC 6347 4.2.3); 0 keeps them apart.

    Attributes:
        ready: The end of the handshake was written: keys are there.
        sent_at: When the last flight left, in monotonic seconds.
        first_sent_at: When its first copy did.
    """

    _sequence: int
    _merge: int
    ready: bool = False
    sent_at: float = 0.0
    first_sent_at: float = 0.0
    _current: list[bytes] = attrs.field(factory=list)
    _last: tuple[int, int] = (-1, -1)
    _changed: bool = False
    _copies: int = 0

    def take(self, written: list[bytes], now: float) -> tuple[list[bytes], bool, bool]:
        """Take what OpenSSL wrote.

        Args:
            written: Whole records.
            now: Monotonic seconds.

        Returns:
            The records to send; whether there is a new flight among them; whether OpenSSL repeated something.
        """
        if len(written) == 1 and written[0][0] == records.APPLICATION_DATA:
            return written, False, False
        flight: list[bytes] = []
        others: list[bytes] = []
        repeated = False
        for record in written:
            if record[0] not in (records.HANDSHAKE, records.CHANGE_CIPHER_SPEC):
                others.append(record)
            elif self._is_new(record):
                flight.append(record)
            else:
                repeated = True
        if flight:
            self._current, self._copies = flight, 0
            self.sent_at = self.first_sent_at = now
        return self._numbered([*flight, *others]), bool(flight), repeated

    def answered_slowly(self, now: float) -> bool:
        """Whether an answer that comes now comes late, even if it is to the last copy of the last flight.

        Sooner, the copies before may have been lost, and the time since the first would tell nothing of the link.
        """
        return bool(self._current) and now - self.sent_at > SLOW_ANSWER

    def again(self, now: float, seal: Callable[[bytes], bytes]) -> list[bytes]:
        """The last flight once more, with new numbers.

        Args:
            now: Monotonic seconds.
            seal: Protects an encrypted record once more under a new number.
        """
        self.sent_at, self._copies = now, 0
        return self._numbered([record if _plain(record) else seal(record) for record in self._current])

    def wanted_again(self, now: float, *, proven: bool) -> bool:
        """Whether a copy of the client's hello asks for the flight again.

        A client that has had its cookie knows how long the link takes; so does one that repeats itself twice. A
        first copy alone may come from one that does not know how slow the link is.
        """
        gap = now - self.sent_at
        if gap < _COPY_GAP:
            return False
        self._copies += 1
        return proven or self._copies > 1 or gap >= MIN_TIMEOUT + self.size / SLOWEST

    @property
    def size(self) -> int:
        """Bytes of the last flight, about."""
        return sum(map(len, self._current))

    @property
    def ends_the_handshake(self) -> bool:
        """Whether the last flight has a Finished."""
        return any(not _plain(record) for record in self._current)

    def _is_new(self, record: bytes) -> bool:
        if record[0] == records.CHANGE_CIPHER_SPEC:
            new, self._changed = not self._changed, True
            return new
        if not _plain(record):  # Finished: without renegotiation there is one
            new, self.ready = not self.ready, True
            return new
        place = int.from_bytes(record[17:19], "big"), int.from_bytes(record[19:22], "big")
        if place <= self._last:
            return False
        self._last = place
        return True

    def _numbered(self, given: list[bytes]) -> list[bytes]:
        numbered = []
        for record in records.merge_handshakes(given, self._merge) if self._merge else given:
            if _plain(record):
                record = records.renumber(record, self._sequence)
                self._sequence += 1
            numbered.append(record)
        return numbered


def _plain(record: bytes) -> bool:
    return record[3:5] == b"\0\0"


def _bounded(timeout: float) -> float:
    return min(MAX_TIMEOUT, max(MIN_TIMEOUT, timeout))
