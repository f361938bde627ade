# SPDX-License-Identifier: AGPL-3.0-or-later
"""A relay between a client and a server that counts what crosses the wire.

It sees each datagram, so that what is counted is what crossed the wire, whatever the client believes: handshakes,
cookies, acknowledgements, and repetitions if there are any. The two counts are compared after each operation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from synapse_lb.cli.wire.dissect import Datagram, Dissector
from synapse_lb.client.client import LowBandwidthClient
from synapse_lb.client.counters import IPV4_UDP_HEADERS, Traffic
from synapse_lb.testing.lossy import CLEAR, LossyLink, LossyRelay

_PAUSE: Final = 0.02
_QUIET: Final = 3
"""Pauses without any datagram after which an operation is over."""


@attrs.frozen
class Counted:
    """What an operation took.

    Attributes:
        traffic: datagrams and bytes.
        datagrams: what they were made of, in their order.
    """

    traffic: Traffic
    datagrams: tuple[Datagram, ...] = attrs.field(repr=False)


class CountsDiffer(Exception):
    """The relay has seen something else than the client has sent and received."""


class CountingRelay:
    """Stands between one client at a time and the server, over IPv4.

    Args:
        reactor: Twisted's reactor.
        server: address and port of the server.
    """

    def __init__(self, reactor: Any, server: tuple[str, int]) -> None:
        self._reactor = reactor
        self._relay = LossyRelay(reactor, server=server)
        self._relay.to_server = _Tap(partial(self._take, out=True))
        self._relay.to_client = _Tap(partial(self._take, out=False))
        self._dissector = Dissector()
        self._unread: list[tuple[bytes, bool]] = []

    @property
    def port(self) -> int:
        """The port that the client is to send to."""
        return self._relay.port

    def start(self) -> None:
        """Open its socket."""
        self._relay.start()

    def stop(self) -> Deferred[None]:
        """Close all sockets; fires when they are closed."""
        return self._relay.stop()

    def keylog(self, line: bytes) -> None:
        """Take a line of the client's key log, so that what is encrypted can be explained."""
        self._dissector.keylog(line)

    async def counted(self, client: LowBandwidthClient, work: Callable[[], Awaitable[object]]) -> Counted:
        """Do something and count what crosses the wire meanwhile, and until it is quiet again.

        Args:
            client: the only one that is at work.
            work: what is to be done.

        Raises:
            CountsDiffer: the client has counted something else.
        """
        await self._until_quiet()
        self._read()
        before, believed = self._seen(), client.counters
        await work()
        await self._until_quiet()
        used = self._seen() - before
        if used != client.counters - believed:
            raise CountsDiffer(f"the relay saw {used}, the client {client.counters - believed}")
        return Counted(used, self._read())

    def _read(self) -> tuple[Datagram, ...]:
        """Say what was made of what, since the last time. Not before, for keys are logged after their first use."""
        unread, self._unread = self._unread, []
        return tuple(self._dissector.read(data, out=out) for data, out in unread)

    def _take(self, data: bytes, out: bool) -> None:
        self._unread.append((data, out))

    def _seen(self) -> Traffic:
        out, back = self._relay.to_server.counters, self._relay.to_client.counters
        return Traffic.of(
            datagrams_sent=out.delivered,
            datagrams_received=back.delivered,
            bytes_sent=out.delivered_bytes,
            bytes_received=back.delivered_bytes,
            headers=IPV4_UDP_HEADERS,
        )

    async def _until_quiet(self) -> None:
        quiet, last = 0, self._seen()
        while quiet < _QUIET:
            await deferLater(self._reactor, _PAUSE)
            quiet = quiet + 1 if self._seen() == last else 0
            last = self._seen()


class _Tap(LossyLink):
    """One direction of the relay: nothing is lost, and each datagram is shown to somebody."""

    def __init__(self, show: Callable[[bytes], None]) -> None:
        super().__init__(CLEAR)
        self._show = show

    def delivered(self, data: bytes) -> None:
        super().delivered(data)
        self._show(data)
