# SPDX-License-Identifier: AGPL-3.0-or-later
"""Clients whose address changed: finding their association, and what may be sent to an address not yet proven.

A NAT forgets a mapping, a phone changes from Wi-Fi to mobile data: the client's next record comes from an address
that belongs to nobody. DTLS 1.2 has connection IDs for that (RFC 9146), OpenSSL has not. So the record is tried
against likely associations (`Movement.find`):

1. those of the same host (IPv6: of the same /64), because most changes are those of a NAT's port;
2. the others whose newest record has a number just below this one's: a client that was silent while it moved
   comes back with the next number, one that was talking with a number higher by what got lost.

In both the closest number comes first, and whoever was tried in vain goes behind its equals. A number that is not
above an association's newest one never finds it, so that an old record, replayed or late, moves nobody.

Junk must stay cheap. A trial costs about 3 microseconds (`synapse-lb bench junk` measures it), and three bounds
hold their number: per datagram, per second and source (IPv6: /64), and per second in total. Of the total, what
comes in half a second is always kept for trials within the same host, where an attacker who makes up source
addresses has nothing to try. A client that is not found for want of trials is not lost: it repeats its message,
with a new record, and in the end makes a new handshake.

**Whoever can copy a client's record and be faster than the original** moves the association to an address of his
choice: the record is authentic, and the newest. RFC 9146 section 6 says so of connection IDs too. What comes of it
here:

- The original comes second and is dropped as a replay. The client's next record is newer, comes from where the
  client is and moves the association back. To keep it away, every single record has to be overtaken.
- Nobody reads anything; messages to the wrong address are lost, as on a bad network, and repeated.
- The wrong address is no target worth the trouble: until it is proven, no more than three times the bytes of
  authentic datagrams that came from there are sent to it (the rule of RFC 9000 section 8.1, see `AMPLIFICATION`).
  Some of the rest is kept for later (`Path`).

An address is proven when its handshake's cookie came back, or when the owner calls `confirm_address`, because the
peer answered something that was sent there and nowhere else: the gateway sends a CoAP ping after each move. The
last proven address stays proven, so that moving back to it needs no second proof (RFC 9000 section 9.3.2).
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

import attrs

from synapse_lb.txdtls import records

if TYPE_CHECKING:
    from synapse_lb.txdtls.options import ServerCounters, ServerOptions
    from synapse_lb.txdtls.table import Address, Entry

REACH: Final = 128
"""How far below a record's number the newest number of an association may lie."""

FEW: Final = 128
"""Where no more than so many different numbers are in question, `WIDE_REACH` holds in place of `REACH`."""

WIDE_REACH: Final = 4096
"""See `FEW`. A bound still: most junk has numbers that no client comes near."""

MAX_SOURCES: Final = 1024
"""Sources whose budget is remembered; the one that was heard of longest ago is forgotten first."""

AMPLIFICATION: Final = 3
"""Bytes that may be sent to an unproven address for each authentic byte that came from there (RFC 9000 8.1).

Counted are the bytes that the network carries, so those of the IP and UDP headers are among them (`headers`)."""

MAX_HELD: Final = 16
"""Datagrams that are kept for an unproven address."""

_EPOCH: Final = b"\0\1"  # without renegotiation there is no other
_HALF_AN_ADDRESS: Final = 8
_MAPPED: Final = bytes(10) + b"\xff\xff"


def host_key(host: str) -> bytes:
    """What counts as one host: an IPv4 address, or an IPv6 /64, in which a host chooses its addresses freely."""
    try:
        if ":" not in host:
            return socket.inet_pton(socket.AF_INET, host)
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except OSError:
        return host.encode()  # no IP address: a network in memory may have other names
    return packed[12:] if packed.startswith(_MAPPED) else packed[:8]


def headers(host: str) -> int:
    """Bytes of the IP and UDP headers of a datagram from or to an address."""
    return 48 if ":" in host and len(host_key(host)) == _HALF_AN_ADDRESS else 28


def sequence_to_try(data: bytes) -> int | None:
    """The number of a datagram's first record, if that record could be of a client that moved.

    Returns:
        The number, or None unless it is an encrypted application record or alert.
    """
    if data[0] in (records.APPLICATION_DATA, records.ALERT) and data[3:5] == _EPOCH:
        return int.from_bytes(data[5:11], "big")
    return None


class _Ladder:
    """Associations by the number of their newest record."""

    __slots__ = ("_rungs",)

    def __init__(self) -> None:
        self._rungs: dict[int, dict[Entry, None]] = {}

    def __bool__(self) -> bool:
        return bool(self._rungs)

    def add(self, entry: Entry, number: int) -> None:
        self._rungs.setdefault(number, {})[entry] = None

    def remove(self, entry: Entry, number: int) -> None:
        rung = self._rungs[number]
        del rung[entry]
        if not rung:
            del self._rungs[number]

    def put_last(self, entry: Entry, number: int) -> None:
        rung = self._rungs[number]
        del rung[entry]
        rung[entry] = None

    def below(self, number: int) -> Iterator[Entry]:
        """Those whose newest number is lower, the closest first."""
        rungs = self._rungs
        if len(rungs) <= FEW:
            near = [each for each in rungs if number - WIDE_REACH <= each < number]
            near.sort(reverse=True)
        else:
            near = [each for each in range(number - 1, number - 1 - REACH, -1) if each in rungs]
        for each in near:
            yield from rungs[each]


@attrs.define
class _Place:
    """Where an association stands in the index."""

    number: int
    host: bytes


class Bucket:
    """A token bucket that holds what comes in one second, and is full at first."""

    __slots__ = ("_at", "rate", "tokens")

    def __init__(self, rate: int, now: float) -> None:
        self.rate = rate
        self.tokens = float(rate)
        self._at = now

    def refill(self, now: float) -> float:
        """The tokens that there are now."""
        self.tokens = min(float(self.rate), self.tokens + (now - self._at) * self.rate)
        self._at = now
        return self.tokens


class Movement:
    """The index of a port's established associations for `find`, and the budget of trials.

    Args:
        options: The bounds.
        counters: Where trials and refusals are counted.
    """

    def __init__(self, options: ServerOptions, counters: ServerCounters) -> None:
        self._enabled = options.move_trials_per_datagram > 0
        self._options = options
        self._counters = counters
        self._places: dict[Entry, _Place] = {}
        self._all = _Ladder()
        self._hosts: dict[bytes, _Ladder] = {}
        self._total: Bucket | None = None
        self._sources: OrderedDict[bytes, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    # -- the index

    def add(self, entry: Entry) -> None:
        """An association was established, or has a new address."""
        if not self._enabled:
            return
        self.remove(entry)
        place = _Place(entry.association.newest, host_key(entry.address[0]))
        self._places[entry] = place
        self._all.add(entry, place.number)
        self._hosts.setdefault(place.host, _Ladder()).add(entry, place.number)

    def note(self, entry: Entry) -> None:
        """A datagram was fed to an association: the number of its newest record may have risen."""
        place = self._places.get(entry)
        if place is not None and place.number != entry.association.newest:
            for ladder in (self._all, self._hosts[place.host]):
                ladder.remove(entry, place.number)
                ladder.add(entry, entry.association.newest)
            place.number = entry.association.newest

    def remove(self, entry: Entry) -> None:
        """An association is over; no error if it is not there."""
        place = self._places.pop(entry, None)
        if place is None:
            return
        self._all.remove(entry, place.number)
        ladder = self._hosts[place.host]
        ladder.remove(entry, place.number)
        if not ladder:
            del self._hosts[place.host]

    # -- the search

    def find(self, data: bytes, host: str, now: float, *, but: Entry | None = None) -> Entry | None:
        """Find the association that a datagram from an address without one is of.

        Args:
            data: A datagram that begins with a whole record.
            host: IP address that it came from.
            now: Monotonic seconds.
            but: An association that is out of the question.

        Returns:
            The association whose client made the first record, which is newer than all that came of it so far;
            None if it was not found.
        """
        number = sequence_to_try(data)
        if number is None or not self._places:
            return None
        key = host_key(host)
        source, total = self._source(key, now), self._whole(now)
        most = int(min(self._options.move_trials_per_datagram, source.refill(now), total.refill(now)))
        far = int(min(most, total.tokens - total.rate / 2))
        if most < 1 or (far < 1 and key not in self._hosts):
            self._counters.moves_refused += 1
            return None
        candidates = self._candidates(key, number, most, far, but)
        found, trials = self._try(records.first_record(data), candidates)
        cost = max(1, trials)  # to look is not free either
        source.tokens -= cost
        total.tokens -= cost
        self._counters.move_trials += trials
        return found

    def _candidates(self, key: bytes, number: int, most: int, far: int, but: Entry | None) -> list[Entry]:
        own = self._hosts.get(key)
        chosen = [] if own is None else list(islice((e for e in own.below(number) if e is not but), most))
        wanted = most - len(chosen)
        if wanted > 0:
            others = (entry for entry in self._all.below(number) if self._places[entry].host != key)
            chosen += islice(others, max(0, min(wanted, far)))
            if far < wanted and next(others, None) is not None:
                self._counters.moves_refused += 1
        return chosen

    def _try(self, record: bytes, candidates: list[Entry]) -> tuple[Entry | None, int]:
        for trials, entry in enumerate(candidates, 1):
            if entry.association.opens(record):
                return entry, trials
            place = self._places[entry]
            self._all.put_last(entry, place.number)
            self._hosts[place.host].put_last(entry, place.number)
        return None, len(candidates)

    # -- the budget

    def _whole(self, now: float) -> Bucket:
        if self._total is None:
            self._total = Bucket(self._options.move_trials_per_second, now)
        return self._total

    def _source(self, key: bytes, now: float) -> Bucket:
        bucket = self._sources.get(key)
        if bucket is None:
            bucket = self._sources[key] = Bucket(self._options.move_trials_per_source, now)
            if len(self._sources) > MAX_SOURCES:
                self._sources.popitem(last=False)
        else:
            self._sources.move_to_end(key)
        return bucket


@attrs.define
class Path:
    """What may be sent to the address where a client is, which may not have shown that it receives anything.

    Attributes:
        proven: The last address that has shown it.
        credit: Bytes that may still be sent to the present address, headers included; None if it is proven.
        keeps: Datagrams that are held at most; further ones are lost.
        headers: Bytes of the headers of each datagram.
        held: Datagrams that wait for more credit, or for the proof.
    """

    proven: Address
    credit: int | None = None
    keeps: int = MAX_HELD
    headers: int = 28
    held: list[bytes] = attrs.field(factory=list, repr=False)

    def admit(self, datagram: bytes) -> bool:
        """Whether a datagram may leave now; if not, it is held or lost."""
        if self.credit is None:
            return True
        size = len(datagram) + self.headers
        if size <= self.credit:
            self.credit -= size
            return True
        if len(self.held) < self.keeps:
            self.held.append(datagram)
        return False

    @classmethod
    def unproven(cls, address: Address, size: int) -> Path:
        """The path to an address that has sent one datagram of so many bytes, and has shown nothing yet.

        What may not leave during a handshake is lost: the flight is sent again when the client asks for it.
        """
        path = cls(address, credit=0, keeps=0, headers=headers(address[0]))
        path.received(size)
        return path

    def received(self, size: int) -> list[bytes]:
        """A datagram of so many bytes came from the present address; returns what of the held ones may leave now."""
        if self.credit is None:
            return []
        self.credit += AMPLIFICATION * (size + self.headers)
        held, self.held = self.held, []
        return [datagram for datagram in held if self.admit(datagram)]

    def moved(self, address: Address) -> list[bytes]:
        """The client is at another address now; returns what may leave now."""
        if address == self.proven:
            return self.prove(address)
        self.credit, self.headers = 0, headers(address[0])
        return []

    def prove(self, address: Address) -> list[bytes]:
        """The present address has shown that it receives what is sent there; returns what was held."""
        self.proven, self.credit, self.keeps = address, None, MAX_HELD
        held, self.held = self.held, []
        return held
