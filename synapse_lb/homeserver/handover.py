# SPDX-License-Identifier: AGPL-3.0-or-later
"""Processes that share a UDP port hand each other what they do not know (docs/workers.md).

The kernel deals out the clients of a shared port by the addresses and ports of both ends. One whose address changes may
come to another process, and all may when a process comes or goes. So a record that fits no association here goes to the
others, each of which has a Unix datagram socket in a common folder. The one that knows the client, by its address or as
one that moved, takes it, and answers from the same port.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final, Protocol

from attrs import define
from synapse.module_api.errors import ConfigError
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol

from synapse_lb.homeserver.ports import MAX_DATAGRAM
from synapse_lb.txdtls.movement import Bucket, host_key
from synapse_lb.txdtls.table import Address

logger = logging.getLogger(__name__)

PER_SECOND: Final = 8192
PER_SOURCE: Final = 1024
"""Datagrams that are handed over per second, in total and of one host (IPv6: of one /64): junk costs no more."""

MAX_SOURCES: Final = 1024
"""Hosts of which it is remembered; the one that was heard of longest ago is forgotten first."""

LOOK_AGAIN: Final = 1.0
"""s: after which it is looked anew who else there is."""

_HEAD: Final = 3
_OURS: Final = 0o600


@define
class HandoverCounters:
    """What was handed over.

    Attributes:
        sent: Datagrams that were handed to others.
        received: Datagrams that others handed over.
        refused: Datagrams that were one too many.
    """

    sent: int = 0
    received: int = 0
    refused: int = 0


class Taker(Protocol):
    """A DTLS port, as far as it is needed here."""

    def stray_received(self, datagram: bytes, addr: Address) -> None:
        """A datagram came to another process."""


class Handover(DatagramProtocol):
    """The socket of one process for one shared port.

    Args:
        reactor: Twisted's reactor.
        folder: of the sockets; it is made if it is not there.
        port: what is shared: its name.
        own: name of this process.
        taker: gets what others hand over.

    Attributes:
        counters: what was handed over.
    """

    def __init__(self, reactor: Any, folder: Path, port: str, own: str, taker: Taker) -> None:
        self.counters: Final = HandoverCounters()
        self._reactor = reactor
        self._folder = folder
        self._port = port
        self._path = folder / f"{port}-{own}.sock"
        self._taker = taker
        self._listening: Any = None
        self._others: list[str] = []
        self._looked_at = float("-inf")
        self._total = Bucket(PER_SECOND, reactor.seconds())
        self._sources: OrderedDict[bytes, Bucket] = OrderedDict()

    def start(self) -> None:
        """Open the socket.

        Raises:
            ConfigError: it cannot be opened.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)  # Of a process that was killed.
            self._listening = self._reactor.listenUNIXDatagram(
                str(self._path), self, maxPacketSize=2 * MAX_DATAGRAM, mode=_OURS
            )
        except (OSError, CannotListenError) as error:
            raise ConfigError(
                f"cannot use the socket {self._path}: {error}; give a folder that Synapse may write to, "
                "with a short name, as handover_path",
                ("listeners",),
            ) from error

    def stop(self) -> None:
        """Close the socket. Idempotent."""
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.stopListening()
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    def hand_over(self, datagram: bytes, address: Address) -> None:
        """Give a datagram that nobody here knows to all others."""
        if self._listening is None:
            return
        now = self._reactor.seconds()
        others = self._everybody_else(now)
        if not others:
            return
        if not self._may(address[0], now):
            self.counters.refused += 1
            return
        host = address[0].encode("ascii", "replace")
        packet = bytes((len(host),)) + address[1].to_bytes(_HEAD - 1, "big") + host + datagram
        for other in others:
            # One that has just ended, or does not keep up: the client repeats what is lost.
            with contextlib.suppress(OSError):
                self._listening.write(packet, other)
                self.counters.sent += 1

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Another process does not know what to do with this."""
        length = datagram[0] + _HEAD if datagram else 0
        if length < _HEAD or len(datagram) <= length:
            logger.warning("What came to %s is no datagram of another process", self._path)
            return
        self.counters.received += 1
        host = datagram[_HEAD:length].decode("ascii", "replace")
        self._taker.stray_received(datagram[length:], (host, int.from_bytes(datagram[1:_HEAD], "big")))

    def _everybody_else(self, now: float) -> list[str]:
        if now - self._looked_at >= LOOK_AGAIN:
            self._looked_at = now
            found = self._folder.glob(f"{self._port}-*.sock")
            self._others = [os.fspath(path) for path in found if path != self._path]
        return self._others

    def _may(self, host: str, now: float) -> bool:
        key = host_key(host)
        source = self._sources.get(key)
        if source is None:
            source = self._sources[key] = Bucket(PER_SOURCE, now)
            if len(self._sources) > MAX_SOURCES:
                self._sources.popitem(last=False)
        self._sources.move_to_end(key)
        if source.refill(now) < 1 or self._total.refill(now) < 1:
            return False
        source.tokens -= 1
        self._total.tokens -= 1
        return True
