# SPDX-License-Identifier: AGPL-3.0-or-later
"""The way out of a server port: what associations have to send, within what their addresses may get."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from twisted.internet.error import MessageLengthError

if TYPE_CHECKING:
    from synapse_lb.txdtls.interfaces import DatagramTransport
    from synapse_lb.txdtls.options import ServerCounters
    from synapse_lb.txdtls.table import Address, Entry


class Outlet:
    """Writes datagrams to a socket, and counts them.

    Args:
        transport: The socket; None once it is closed.
        counters: Where they are counted.
    """

    def __init__(self, transport: Callable[[], DatagramTransport | None], counters: ServerCounters) -> None:
        self._transport = transport
        self._counters = counters

    def flush(self, entry: Entry, now: float) -> None:
        """Send what an association has to send."""
        for plain in entry.association.take_datagrams(now):
            datagram = entry.form.outgoing(plain)
            if entry.path.admit(datagram):
                self.write(datagram, entry.address)
            else:
                self._counters.datagrams_held += 1

    def write_all(self, entry: Entry, datagrams: Iterable[bytes]) -> None:
        """Send datagrams to an association's address."""
        for datagram in datagrams:
            self.write(datagram, entry.address)

    def write(self, datagram: bytes, address: Address) -> None:
        """Send one datagram."""
        transport = self._transport()
        if transport is None:
            return
        try:
            transport.write(datagram, address)
        except (OSError, MessageLengthError):
            # UDP may lose anything: a full buffer or a missing route is a loss like any other.
            self._counters.send_errors += 1
            return
        self._counters.datagrams_sent += 1
        self._counters.bytes_sent += len(datagram)
