# SPDX-License-Identifier: AGPL-3.0-or-later
"""The simulated link for IP packets: what it does to them, and once the real thing."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.testing import netns, tunlink
from synapse_lb.testing.netns import LinkUnavailable, Namespace, why_unavailable
from synapse_lb.testing.simlink import LinkShape
from synapse_lb.testing.tunlink import Flow, TunLink
from synapse_lb.testing.tunlink_process import TO_CLIENT, TO_SERVER, Carrier, LinkProcess, flow_name


def packet(
    size: int = 100, *, protocol: int = 17, ports: tuple[int, int] = (8448, 40001), fragment: int = 0
) -> bytes:
    """An IPv4 packet (RFC 791) whose payload begins with these ports."""
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, size, 1, fragment, 64, protocol, 0, bytes(4), bytes(4))
    return (head + struct.pack(">HH", *ports)).ljust(size, b"\0")


class CarrierTests(SynchronousTestCase):
    def test_in_time_and_in_order(self) -> None:
        """Packets arrive when the link says so, in both directions, each with its own shape."""
        carrier = Carrier([LinkShape(rate=1000, delay=0.5), LinkShape(delay=0.1)], 1)
        down, up = packet(), packet(60)
        carrier.take(TO_CLIENT, down, 10.0)
        carrier.take(TO_SERVER, up, 10.2)
        arrival = carrier.next_arrival()
        assert arrival is not None
        self.assertAlmostEqual(arrival, 10.3)
        self.assertIsNone(carrier.due(10.29))
        self.assertEqual(carrier.due(10.31), (TO_SERVER, up))
        self.assertIsNone(carrier.due(10.59))
        self.assertEqual(carrier.due(10.65), (TO_CLIENT, down))
        self.assertIsNone(carrier.next_arrival())
        self.assertAlmostEqual(carrier.counts()["latest"], 0.05)

    def test_counts(self) -> None:
        """Packets, bytes, losses and overflows by direction; packets and bytes by conversation."""
        carrier = Carrier([LinkShape(rate=1000, queue=250), LinkShape(loss=1.0)], 1)
        for _ in range(3):
            carrier.take(TO_CLIENT, packet(), 0.0)
        carrier.take(TO_SERVER, packet(60, protocol=6, ports=(40002, 8448)), 0.0)
        while carrier.due(9.0):
            pass
        counts = carrier.counts()
        down, up = counts["directions"]
        self.assertEqual(
            (down["packets"], down["bytes"], down["overflowed"], down["delivered"], down["delivered_bytes"]),
            (3, 300, 1, 2, 200),
        )
        self.assertEqual((up["packets"], up["bytes"], up["lost"], up["delivered"]), (1, 60, 1, 0))
        self.assertEqual(counts["flows"], {"udp/40001": [3, 300, 0, 0], "tcp/40002": [0, 0, 1, 60]})

    def test_what_is_not_ipv4_is_ignored(self) -> None:
        carrier = Carrier([LinkShape(), LinkShape()], 1)
        for junk in (b"", b"\x45" * 19, b"\x60" + bytes(60)):
            carrier.take(TO_CLIENT, junk, 0.0)
        self.assertEqual(carrier.counts()["ignored"], 3)
        self.assertIsNone(carrier.next_arrival())

    def test_seed(self) -> None:
        """The same seed loses the same packets; the two directions lose others."""

        def arrivals(seed: int, way: int) -> list[int]:
            carrier = Carrier([LinkShape(loss=0.5), LinkShape(loss=0.5)], seed)
            for number in range(100):
                carrier.take(way, packet(100 + number), 0.0)
            return [len(due[1]) for due in iter(lambda: carrier.due(1.0), None)]

        self.assertEqual(arrivals(1, TO_CLIENT), arrivals(1, TO_CLIENT))
        self.assertNotEqual(arrivals(1, TO_CLIENT), arrivals(2, TO_CLIENT))
        self.assertNotEqual(arrivals(1, TO_CLIENT), arrivals(1, TO_SERVER))


class FlowNameTests(SynchronousTestCase):
    def test_port_of_the_client(self) -> None:
        self.assertEqual(flow_name(packet(), TO_CLIENT), "udp/40001")
        self.assertEqual(flow_name(packet(ports=(40001, 8448)), TO_SERVER), "udp/40001")
        self.assertEqual(flow_name(packet(protocol=6), TO_CLIENT), "tcp/40001")

    def test_without_ports(self) -> None:
        """ICMP, later fragments, and packets that end before their ports."""
        self.assertEqual(flow_name(packet(protocol=1), TO_CLIENT), "other")
        self.assertEqual(flow_name(packet(fragment=5), TO_CLIENT), "other")
        self.assertEqual(flow_name(packet(fragment=0x2000), TO_CLIENT), "udp/40001")  # the first fragment
        self.assertEqual(flow_name(packet(60)[:22], TO_CLIENT), "other")

    def test_difference(self) -> None:
        flow = Flow(5, 500, 3, 90) - Flow(1, 100, 1, 30)
        self.assertEqual((flow, flow.packets, flow.bytes), (Flow(4, 400, 2, 60), 6, 460))


class LinkProcessTests(SynchronousTestCase):
    """The loop, with datagram sockets in place of the devices."""

    def test_carries_and_answers(self) -> None:
        near = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ends = [end for pair in near for end in pair] + [control, theirs]
        for end in ends:
            self.addCleanup(end.close)
        devices = [pair[1].fileno() for pair in near]
        for device in devices:
            os.set_blocking(device, False)
        process = LinkProcess(devices, theirs)
        thread = threading.Thread(target=process.run)
        thread.start()
        answers = control.makefile("r")

        def ask(question: dict[str, Any]) -> dict[str, Any]:
            control.sendall(json.dumps(question).encode() + b"\n")
            answer: dict[str, Any] = json.loads(answers.readline())
            return answer

        try:
            server, client = near[0][0], near[1][0]
            server.send(packet(80))
            self.assertEqual(client.recv(2000), packet(80))
            client.send(packet(50, ports=(40001, 8448)))
            self.assertEqual(len(server.recv(2000)), 50)
            self.assertEqual(ask({})["flows"], {"udp/40001": [1, 80, 1, 50]})
            lossy = {"loss": 1.0}
            self.assertEqual(ask({"shapes": [lossy, lossy], "seed": 3})["flows"], {})
            server.send(packet())
            while not (down := ask({})["directions"][0])["packets"]:
                pass
            self.assertEqual((down["lost"], down["delivered"]), (1, 0))
        finally:
            answers.close()
            control.close()
            thread.join(10)
        self.assertFalse(thread.is_alive())


class RealTests(SynchronousTestCase):
    """With root and /dev/net/tun the real thing; without, it says what is missing."""

    def test_link(self) -> None:
        """UDP and TCP cross it and are counted to the byte; nothing of it stays."""
        reason = why_unavailable()
        if reason is not None:
            self.assertIn(str(self.assertRaises(LinkUnavailable, TunLink)), reason)
            return
        own, files = os.stat("/proc/self/ns/net").st_ino, len(os.listdir("/proc/self/fd"))
        with TunLink() as link:
            self._udp(link)
            self._tcp(link)
            self.assertRaises(LinkUnavailable, link.server.use_congestion_control, "no such thing")
            pid = link._process.pid
        self.assertFalse(Path(f"/proc/{pid}").exists())
        self.assertEqual(os.stat("/proc/self/ns/net").st_ino, own)
        self.assertEqual(len(os.listdir("/proc/self/fd")), files)

    def _udp(self, link: TunLink) -> None:
        link.shape(LinkShape(delay=0.01), seed=1)
        with link.server.entered():
            server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with link.client.entered():
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with server, client:
            server.bind((link.server.address, 5684))
            for end in (server, client):
                end.settimeout(10)
            client.sendto(bytes(100), (link.server.address, 5684))
            data, peer = server.recvfrom(2000)
            self.assertEqual((len(data), peer[0]), (100, link.client.address))
            server.sendto(bytes(300), peer)
            self.assertEqual(len(client.recv(2000)), 300)
        reading = link.read()
        self.assertEqual(reading.flows[f"udp/{peer[1]}"], Flow(1, 328, 1, 128))
        self.assertEqual((reading.bytes, reading.packets), (456, 2))

    def _tcp(self, link: TunLink) -> None:
        names = link.server.congestion_controls()
        link.server.use_congestion_control(names[-1])
        link.shape(LinkShape(rate=1e6, delay=0.005, loss=0.02, queue=50_000), seed=1)
        with link.server.entered():
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        with listener:
            listener.bind((link.server.address, 443))
            listener.listen()
            with link.client.entered():
                client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            with client:
                client.settimeout(30)
                client.connect((link.server.address, 443))
                server, _ = listener.accept()
                used = server.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).strip(b"\0")
                self.assertEqual(used.decode(), names[-1])
                self._receive(server, client)
        reading = link.read()
        self.assertGreater(reading.to_client.bytes, 200_000 + 200_000 // 1448 * 40)
        self.assertGreater(reading.to_client.lost, 0)

    def _receive(self, server: socket.socket, client: socket.socket) -> None:
        sender = threading.Thread(target=server.sendall, args=(bytes(200_000),))
        sender.start()
        with contextlib.closing(server):
            left = 200_000
            while left:
                left -= len(client.recv(65536))
            sender.join()

    def test_without_the_right(self) -> None:
        """What is missing is said, and nothing stays open."""
        files = len(os.listdir("/proc/self/fd"))

        def refuse(name: str, *arguments: int) -> None:
            raise PermissionError(1, "Operation not permitted")

        self.patch(netns, "_call", refuse)
        error = self.assertRaises(LinkUnavailable, Namespace, "192.0.2.1", "192.0.2.2")
        self.assertEqual(str(error), "no network namespace (Operation not permitted): this needs root")
        self.assertEqual(why_unavailable(), str(error))
        self.assertEqual(len(os.listdir("/proc/self/fd")), files)

    def test_environment(self) -> None:
        """The link process finds this package."""
        root = tunlink._environment()["PYTHONPATH"].split(os.pathsep)[0]
        self.assertTrue((Path(root) / "synapse_lb" / "testing").is_dir())
