# SPDX-License-Identifier: AGPL-3.0-or-later
"""Processes that share a port, played by one: sockets with SO_REUSEPORT, and what they hand each other."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from synapse.module_api.errors import ConfigError
from twisted.internet.error import CannotListenError, InvalidAddressError, MessageLengthError
from twisted.internet.protocol import DatagramProtocol
from twisted.trial.unittest import TestCase

from synapse_lb.homeserver.handover import PER_SOURCE, Handover
from synapse_lb.homeserver.ports import listen_udp
from tests.client.harness import REACTOR, until


class Taker:
    """A DTLS port that takes everything."""

    def __init__(self) -> None:
        self.taken: list[tuple[bytes, tuple[str, int]]] = []

    def stray_received(self, datagram: bytes, addr: tuple[str, int]) -> None:
        self.taken.append((datagram, addr))


class HandoverTests(TestCase):
    """`Handover`."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slb-t-"))
        self.addCleanup(shutil.rmtree, self.folder, True)

    def process(self, name: str, port: str = "0.0.0.0-8448") -> tuple[Handover, Taker]:
        """One process."""
        taker = Taker()
        handover = Handover(REACTOR, self.folder / "h", port, name, taker)
        handover.start()
        self.addCleanup(handover.stop)
        return handover, taker

    async def test_the_others_get_it(self) -> None:
        (one, own), (_, second), (_, third) = (self.process(name) for name in ("one", "two", "three"))
        _, elsewhere = self.process("two", "0.0.0.0-8449")
        for host, port in (("192.0.2.7", 65535), ("2001:db8::7", 1)):
            one.hand_over(b"\x17 a record", (host, port))
        expected = [(b"\x17 a record", ("192.0.2.7", 65535)), (b"\x17 a record", ("2001:db8::7", 1))]
        await until(lambda: second.taken == expected and third.taken == expected)
        self.assertEqual((own.taken, elsewhere.taken), ([], []))
        self.assertEqual(one.counters.sent, 4)

    async def test_one_that_was_killed(self) -> None:
        one, _ = self.process("one")
        dead = self.folder / "h" / "0.0.0.0-8448-two.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as killed:
            killed.bind(str(dead))
        one.hand_over(b"x", ("192.0.2.7", 1))
        self.assertEqual(one.counters.sent, 0)
        self.assertTrue(dead.exists())
        _, taker = self.process("two")
        one.hand_over(b"y", ("192.0.2.7", 1))
        await until(lambda: taker.taken == [(b"y", ("192.0.2.7", 1))])

    def test_junk_is_bounded(self) -> None:
        one, _ = self.process("one")
        two, _ = self.process("two")
        two.stop()
        (self.folder / "h" / "0.0.0.0-8448-two.sock").touch()
        for _ in range(PER_SOURCE + 5000):
            one.hand_over(b"x", ("192.0.2.7", 1))
        self.assertGreater(one.counters.refused, 0)
        refused = one.counters.refused
        one.hand_over(b"x", ("192.0.2.8", 1))
        self.assertEqual(one.counters.refused, refused)

    async def test_nonsense(self) -> None:
        _, taker = self.process("one")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
            for nonsense in (b"", b"\x01", b"\x03\x00\x01abc", b"\xff\x00\x01abc"):
                stranger.sendto(nonsense, str(self.folder / "h" / "0.0.0.0-8448-one.sock"))
            stranger.sendto(b"\x01\x00\x02aX", str(self.folder / "h" / "0.0.0.0-8448-one.sock"))
        with self.assertLogs("synapse_lb.homeserver.handover", "WARNING") as logged:
            await until(lambda: taker.taken == [(b"X", ("a", 2))])
        self.assertEqual(len(logged.output), 4)

    def test_a_folder_that_cannot_be_used(self) -> None:
        (self.folder / "h").write_text("no folder")
        error = self.assertRaises(ConfigError, self.process, "one")
        self.assertIn("handover_path", error.msg)

    def test_nothing_stays(self) -> None:
        one, _ = self.process("one")
        one.stop()
        one.stop()
        self.assertEqual(os.listdir(self.folder / "h"), [])
        one.hand_over(b"x", ("192.0.2.7", 1))


class Receiver(DatagramProtocol):
    """Keeps what comes."""

    def __init__(self) -> None:
        self.received: list[bytes] = []

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.received.append(datagram)


class SharedPortTests(TestCase):
    """`listen_udp`."""

    def listen(self, port: int, *, reuse_port: bool, address: str = "127.0.0.1") -> tuple[int, Receiver]:
        """Open a port; returns its number."""
        receiver = Receiver()
        listening = listen_udp(REACTOR, port, receiver, address, reuse_port=reuse_port)
        self.addCleanup(listening.stopListening)
        return listening.getHost().port, receiver

    async def test_a_client_stays_with_one_of_two(self) -> None:
        port, first = self.listen(0, reuse_port=True)
        _, second = self.listen(port, reuse_port=True)
        clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(32)]
        for number, client in enumerate(clients):
            self.addCleanup(client.close)
            for _ in range(3):
                client.sendto(b"%d" % number, ("127.0.0.1", port))
        await until(lambda: len(first.received) + len(second.received) == 96)
        self.assertFalse(set(first.received) & set(second.received))
        self.assertTrue(first.received and second.received)

    async def test_sending(self) -> None:
        """To where something came from; Twisted's own errors where that cannot be."""
        for shared in (False, True):
            receiver = Receiver()
            listening = listen_udp(REACTOR, 0, receiver, "127.0.0.1", reuse_port=shared)
            self.assertEqual(listening.write(b"hello", ("127.0.0.1", listening.getHost().port)), 5)
            await until(partial(bool, receiver.received))
            self.assertEqual(receiver.received, [b"hello"])
            self.assertRaises(MessageLengthError, listening.write, bytes(70000), ("127.0.0.1", 9))
            self.assertRaises(InvalidAddressError, listening.write, b"hello", ("::1", 9))
            await listening.stopListening()

    def test_both_have_to_share(self) -> None:
        port, _ = self.listen(0, reuse_port=True)
        self.assertRaises(CannotListenError, self.listen, port, reuse_port=False)
        port, _ = self.listen(0, reuse_port=False)
        self.assertRaises(CannotListenError, self.listen, port, reuse_port=True)
