# SPDX-License-Identifier: AGPL-3.0-or-later
"""A simulated link for whole IP packets: two network namespaces and a process that carries packets between them.

    server's namespace [tun0] <--> link process: queue, rate, loss, delay <--> [tun0] client's namespace

Whatever speaks IPv4 crosses it, UDP and TCP alike, with the kernel's own TCP at both ends, so that protocols can be
compared on the very same link. What a link does to a packet is `simlink.SimulatedLink`, one for each direction, seeded.
It needs root and Linux. Nothing of it stays when the process that made it has ended, however it ended.

    with TunLink() as link:
        link.shape(LinkShape(rate=1.25e6, delay=0.1, loss=0.01, queue=250_000), seed=1)
        with link.server.entered():
            ...                             # sockets made here listen on link.server.address
        with link.client.entered():
            ...                             # and those made here reach it over the link
        print(link.read().to_client.bytes)
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import attrs

from synapse_lb.testing.netns import LinkUnavailable, Namespace
from synapse_lb.testing.simlink import LinkShape

SERVER_ADDRESS: Final = "192.0.2.1"
CLIENT_ADDRESS: Final = "192.0.2.2"
"""Of TEST-NET-1 (RFC 5737), which nobody has."""

_ANSWER_TIMEOUT: Final = 10.0
"""Seconds in which the link process answers; it takes less than a millisecond."""


@attrs.frozen
class Direction:
    """What crossed the link in one direction since it was shaped, as IP packets with all of their headers.

    Attributes:
        packets: packets that were sent into it, those that were lost on it included.
        bytes: their bytes.
        lost: packets lost at random.
        overflowed: packets that found the queue full.
        delivered: packets that arrived.
        delivered_bytes: their bytes.
    """

    packets: int = 0
    bytes: int = 0
    lost: int = 0
    overflowed: int = 0
    delivered: int = 0
    delivered_bytes: int = 0


@attrs.frozen
class Flow:
    """What one conversation sent into the link.

    Attributes:
        to_client_packets: packets from the server.
        to_client_bytes: their bytes, as IP packets.
        to_server_packets: packets from the client.
        to_server_bytes: their bytes.
    """

    to_client_packets: int = 0
    to_client_bytes: int = 0
    to_server_packets: int = 0
    to_server_bytes: int = 0

    @property
    def packets(self) -> int:
        """Packets both ways."""
        return self.to_client_packets + self.to_server_packets

    @property
    def bytes(self) -> int:
        """Bytes both ways."""
        return self.to_client_bytes + self.to_server_bytes

    def __sub__(self, earlier: Flow) -> Flow:
        """What was added since an earlier reading."""
        pairs = zip(attrs.astuple(self), attrs.astuple(earlier), strict=True)
        return Flow(*(now - before for now, before in pairs))


@attrs.frozen
class Reading:
    """What the link has counted since it was shaped.

    Attributes:
        to_client: one direction.
        to_server: the other.
        flows: by protocol and port of the client, such as ``udp/40001``; what has no ports is ``other``.
        latest: seconds by which the most belated packet was delivered after its time.
        ignored: packets other than IPv4, which the link does not carry.
    """

    to_client: Direction
    to_server: Direction
    flows: dict[str, Flow]
    latest: float
    ignored: int

    @property
    def bytes(self) -> int:
        """Bytes both ways, of IP packets."""
        return self.to_client.bytes + self.to_server.bytes

    @property
    def packets(self) -> int:
        """IP packets both ways."""
        return self.to_client.packets + self.to_server.packets

    @property
    def arrived(self) -> bool:
        """Whether nothing is on its way: all have arrived, or never will."""
        ways = (self.to_client, self.to_server)
        return all(way.packets == way.delivered + way.lost + way.overflowed for way in ways)


class TunLink:
    """The link. Usable as a context manager; synchronous, needs no reactor.

    Attributes:
        server: the namespace at one end.
        client: the namespace at the other.

    Raises:
        LinkUnavailable: it cannot be made here; the text says why.
    """

    def __init__(self) -> None:
        self.server = Namespace(SERVER_ADDRESS, CLIENT_ADDRESS)
        try:
            self.client = Namespace(CLIENT_ADDRESS, SERVER_ADDRESS)
        except BaseException:
            self.server.close()
            raise
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._control.settimeout(_ANSWER_TIMEOUT)
        files = (self.server.tun, self.client.tun, theirs.fileno())
        self._process = subprocess.Popen(
            [sys.executable, "-m", "synapse_lb.testing.tunlink_process", *map(str, files)],
            stdin=subprocess.DEVNULL,
            pass_fds=files,
            env=_environment(),
            start_new_session=True,  # Ctrl-C ends what runs over the link first
        )
        theirs.close()
        self._answers = self._control.makefile("r", encoding="ascii")
        try:
            self.shape(LinkShape())
        except BaseException:
            self.close()
            raise

    def shape(self, to_client: LinkShape, to_server: LinkShape | None = None, *, seed: int = 0) -> None:
        """Make it another link: packets on their way are dropped, counters are zero again.

        Args:
            to_client: one direction.
            to_server: the other; None for the same.
            seed: of the losses.

        Raises:
            LinkUnavailable: the link process has gone.
        """
        shapes = [attrs.asdict(to_client), attrs.asdict(to_server or to_client)]
        self._ask({"shapes": shapes, "seed": seed})

    def read(self) -> Reading:
        """Return the counters.

        Raises:
            LinkUnavailable: the link process has gone.
        """
        answer = self._ask({})
        to_client, to_server = (Direction(**counts) for counts in answer["directions"])
        flows = {name: Flow(*counts) for name, counts in answer["flows"].items()}
        return Reading(to_client, to_server, flows, answer["latest"], answer["ignored"])

    def close(self) -> None:
        """Remove everything. Idempotent."""
        self._answers.close()
        self._control.close()  # at which the process ends by itself
        try:
            self._process.wait(_ANSWER_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.client.close()
        self.server.close()

    def __enter__(self) -> TunLink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            self._control.sendall(json.dumps(question).encode() + b"\n")
            line = self._answers.readline()
        except (OSError, ValueError) as error:
            raise LinkUnavailable(f"the link process does not answer: {error}") from error
        if not line:
            raise LinkUnavailable(f"the link process has ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _environment() -> dict[str, str]:
    """The environment of the process: this very package must be importable, installed or not."""
    root = str(Path(__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{inherited}" if inherited else root}
