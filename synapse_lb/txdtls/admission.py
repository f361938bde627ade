# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether a ClientHello may be answered with a handshake before its sender has shown where it is.

A cookie (RFC 6347 4.2.1) costs two datagrams, 200 bytes and a round trip. It keeps somebody who makes up source
addresses from two things: aiming the server's large answer at a victim, and filling the server's memory. Where
neither is to be feared, the cookie is left out (`Admission.allows`), as RFC 9000 section 8.1 does for QUIC:

- **No amplifier.** To an unproven address no more than three times the bytes go that came from it (`Path`), copies
  of the flight included. Counted is what the network carries, so the IP and UDP headers too. A resumption's answer is
  hardly longer than its hello. A full handshake's answer, with a self-signed certificate, is about six hellos long: a
  client that wants it at once makes its hello larger.
- **Bounded.** There are at most `max_unproven` such handshakes, at most `PER_SOURCE` for one IPv4 address or IPv6
  /64, and at most `unproven_per_second` attempts a second. Beyond, and when half of `max_half_open` is taken, every
  hello gets a cookie again, and nothing is kept for it. An unproven handshake is given up after
  `unproven_timeout`, is the first to go when there is no room for a proven one, and replaces nobody: at an address
  where there is an association or a handshake already, a cookie is wanted.

The address is proven when the handshake completes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from synapse_lb.txdtls import records
from synapse_lb.txdtls.association import Association
from synapse_lb.txdtls.movement import AMPLIFICATION, Bucket, headers, host_key

if TYPE_CHECKING:
    from OpenSSL import SSL

    from synapse_lb.txdtls.options import ServerOptions
    from synapse_lb.txdtls.records import ClientHello
    from synapse_lb.txdtls.table import Entry

PER_SOURCE: Final = 8
"""Unproven handshakes for one IPv4 address or IPv6 /64; behind a large NAT some clients get a cookie."""


class Admission:
    """What a port answers without a cookie.

    Args:
        options: The bounds.
    """

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._unproven: dict[Entry, bytes] = {}  # with their sources, in order of their begin
        self._sources: dict[bytes, int] = {}
        self._attempts: Bucket | None = None
        self._full_flight = 0

    def __len__(self) -> int:
        return len(self._unproven)

    @property
    def oldest(self) -> Entry | None:
        """The unproven handshake that began first."""
        return next(iter(self._unproven), None)

    def allows(self, hello: ClientHello, size: int, host: str, half_open: int, now: float) -> bool:
        """Whether to try: the size of the answer is then still to be looked at.

        Args:
            hello: Without a cookie.
            size: Bytes of its datagram.
            host: IP address that it came from.
            half_open: Handshakes that there are.
            now: Monotonic seconds.
        """
        options = self._options
        if options.cookie == "always" or hello.cookie or hello.message_sequence:
            return False
        if not hello.session_id and AMPLIFICATION * (size + headers(host)) < self._full_flight + headers(
            host
        ):
            return False
        if len(self._unproven) >= options.max_unproven or 2 * half_open >= options.max_half_open:
            return False
        if self._sources.get(host_key(host), 0) >= PER_SOURCE:
            return False
        if self._attempts is None:
            self._attempts = Bucket(options.unproven_per_second, now)
        if self._attempts.refill(now) < 1:
            return False
        self._attempts.tokens -= 1
        return True

    def attempt(
        self, connection: SSL.Connection, hello: ClientHello, size: int, host: str, now: float
    ) -> Association | None:
        """Begin a handshake, and look at the answer.

        Args:
            connection: For it.
            hello: The hello.
            size: Bytes of its datagram.
            host: IP address that it came from.
            now: Monotonic seconds.

        Returns:
            The association, or None if its answer may not go to an unproven address.
        """
        association = Association(
            connection, mtu=self._options.mtu, client=False, sequence=hello.record_sequence
        )
        summary = records.inspect(hello.record)
        assert summary is not None, "it was parsed"
        progress = association.receive(hello.record, summary, now)
        if progress.lost is None and self._fits(association.waiting, size, headers(host)):
            return association
        association.release()
        return None

    def _fits(self, answer: int, size: int, each: int) -> bool:
        datagrams = -(-answer // self._options.mtu)  # at least; `Path` counts them as they leave
        if answer + datagrams * each > AMPLIFICATION * (size + each):
            # what is no resumption is about as long each time: not worth a signature again
            self._full_flight = max(self._full_flight, answer - _SIGNATURE_VARIES)
            return False
        return answer > 0

    def forget_flight(self) -> None:
        """The certificate changes, and with it the length of a full flight."""
        self._full_flight = 0

    def add(self, entry: Entry) -> None:
        """An unproven handshake begins."""
        source = host_key(entry.address[0])
        self._unproven[entry] = source
        self._sources[source] = self._sources.get(source, 0) + 1

    def remove(self, entry: Entry) -> None:
        """It is proven, or over; no error if it is not there."""
        source = self._unproven.pop(entry, None)
        if source is None:
            return
        self._sources[source] -= 1
        if not self._sources[source]:
            del self._sources[source]

    def holds(self, entry: Entry) -> bool:
        """Whether a handshake is unproven."""
        return entry in self._unproven

    @property
    def first_deadline(self) -> list[tuple[Entry, float]]:
        """The unproven handshake that is given up first, if there is any, and when, in monotonic seconds."""
        oldest = self.oldest
        return [] if oldest is None else [(oldest, oldest.since + self._options.unproven_timeout)]


_SIGNATURE_VARIES: Final = 3
"""Bytes by which ECDSA signatures differ in length."""
