# SPDX-License-Identifier: AGPL-3.0-or-later
"""The process behind `tunlink.TunLink`: carries packets between two TUN devices, late and with losses.

A process of its own, and with a real-time priority where it may have one, so that neither the client nor the server
that are measured make packets late; by how much the latest of them was late all the same is one of its counters.

    python -m synapse_lb.testing.tunlink_process SERVER_TUN CLIENT_TUN CONTROL

The arguments are file descriptors. On CONTROL each line is a JSON object and is answered with one: with ``shapes`` and
``seed`` it becomes another link, with nothing it tells its counters. The end of CONTROL is its own end.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import os
import select
import socket
import sys
import time
from typing import Any, Final

from synapse_lb.testing.simlink import LinkShape, SimulatedLink

_LARGEST: Final = 65536
_BURST: Final = 32
"""Packets that are read from one device before those that are due are delivered again."""

_MOST_FLOWS: Final = 4096
"""Conversations that are counted apart; those that come later count as ``other``."""

_PROTOCOLS: Final = {6: "tcp", 17: "udp"}
TO_CLIENT: Final = 0
TO_SERVER: Final = 1


class Carrier:
    """Takes packets in and lets them out in time; the devices are somebody else's.

    Args:
        shapes: of the two directions: to the client, to the server.
        seed: of the losses; the directions get different ones.
    """

    def __init__(self, shapes: list[LinkShape], seed: int) -> None:
        self._links = [SimulatedLink(shape, 2 * seed + way) for way, shape in enumerate(shapes)]
        self._bytes = [0, 0]
        self._delivered = [[0, 0], [0, 0]]
        self._on_their_way: list[tuple[float, int, int, bytes]] = []
        self._numbers = itertools.count()
        self._flows: dict[str, list[int]] = {}
        self._latest = 0.0
        self._ignored = 0

    def take(self, way: int, packet: bytes, now: float) -> None:
        """Take a packet in.

        Args:
            way: `TO_CLIENT` or `TO_SERVER`.
            packet: an IP packet; what is not IPv4 is ignored.
            now: seconds.
        """
        if len(packet) < 20 or packet[0] >> 4 != 4:
            self._ignored += 1
            return
        self._bytes[way] += len(packet)
        flow = self._flow(flow_name(packet, way))
        flow[2 * way] += 1
        flow[2 * way + 1] += len(packet)
        for arrival in self._links[way].send(len(packet), now):
            heapq.heappush(self._on_their_way, (arrival, next(self._numbers), way, packet))

    def next_arrival(self) -> float | None:
        """Return when the next packet arrives, in seconds."""
        return self._on_their_way[0][0] if self._on_their_way else None

    def due(self, now: float) -> tuple[int, bytes] | None:
        """Take the next packet that arrives by now out, with its way; None if there is none."""
        if not self._on_their_way or self._on_their_way[0][0] > now:
            return None
        arrival, _, way, packet = heapq.heappop(self._on_their_way)
        self._latest = max(self._latest, now - arrival)
        self._delivered[way][0] += 1
        self._delivered[way][1] += len(packet)
        return way, packet

    def counts(self) -> dict[str, Any]:
        """Return all counters, as `tunlink.Reading` has them."""
        return {
            "directions": [
                {
                    "packets": link.counters.sent,
                    "bytes": self._bytes[way],
                    "lost": link.counters.lost,
                    "overflowed": link.counters.overflowed,
                    "delivered": self._delivered[way][0],
                    "delivered_bytes": self._delivered[way][1],
                }
                for way, link in enumerate(self._links)
            ],
            "flows": self._flows,
            "latest": self._latest,
            "ignored": self._ignored,
        }

    def _flow(self, name: str) -> list[int]:
        flow = self._flows.get(name)
        if flow is None:
            if len(self._flows) >= _MOST_FLOWS:
                name = "other"
            flow = self._flows.setdefault(name, [0, 0, 0, 0])
        return flow


def flow_name(packet: bytes, way: int) -> str:
    """Name the conversation of an IPv4 packet: protocol and port of the client (RFC 791, 768, 9293)."""
    protocol = _PROTOCOLS.get(packet[9])
    offset = (packet[0] & 0x0F) * 4 + (2 if way == TO_CLIENT else 0)
    fragment = int.from_bytes(packet[6:8], "big") & 0x1FFF
    if protocol is None or fragment or len(packet) < offset + 2:
        return "other"
    return f"{protocol}/{int.from_bytes(packet[offset : offset + 2], 'big')}"


class LinkProcess:
    """The loop between two devices and the control socket.

    Args:
        devices: file descriptors of the server's and of the client's TUN device.
        control: where questions come from.
    """

    def __init__(self, devices: list[int], control: socket.socket) -> None:
        self._devices = devices
        self._control = control
        self._asked = b""
        self._carrier = Carrier([LinkShape(), LinkShape()], 0)

    def run(self) -> None:
        """Carry packets until the control socket ends."""
        # What comes from the server's device goes to the client, and the other way round.
        ways = {self._devices[0]: TO_CLIENT, self._devices[1]: TO_SERVER}
        readable: list[int] = [*self._devices, self._control.fileno()]
        while True:
            arrival = self._carrier.next_arrival()
            wait = None if arrival is None else max(0.0, arrival - time.monotonic())
            # select(2) takes microseconds; poll(2) would round to milliseconds.
            ready, _, _ = select.select(readable, [], [], wait)
            self._deliver()
            for file in ready:
                if file in ways:
                    self._read(file, ways[file])
                elif not self._answer():
                    return

    def _deliver(self) -> None:
        now = time.monotonic()
        while (due := self._carrier.due(now)) is not None:
            way, packet = due
            # A device that refuses it (the other end is being closed) is as good as a loss.
            with contextlib.suppress(OSError):
                os.write(self._devices[1 - way], packet)

    def _read(self, device: int, way: int) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(_BURST):
                self._carrier.take(way, os.read(device, _LARGEST), time.monotonic())

    def _answer(self) -> bool:
        """Answer what was asked; False at the end."""
        data = self._control.recv(65536)
        *lines, self._asked = (self._asked + data).split(b"\n")
        for line in lines:
            question = json.loads(line)
            if "shapes" in question:
                shapes = [LinkShape(**shape) for shape in question["shapes"]]
                self._carrier = Carrier(shapes, question["seed"])
            self._control.sendall(json.dumps(self._carrier.counts()).encode() + b"\n")
        return bool(data)


def _hurry() -> None:
    """Be scheduled before others, if this user may ask for it."""
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def main() -> None:
    """Run as the process that `TunLink` starts."""
    server, client, control = map(int, sys.argv[1:])
    for device in (server, client):
        os.set_blocking(device, False)
    _hurry()
    with socket.socket(fileno=control) as asked:
        LinkProcess([server, client], asked).run()


if __name__ == "__main__":
    main()
