# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the probe sees of a process, and the plug that can be pulled; the module itself is used in tests/e2e."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.tuning import Tuning
from synapse_lb.testing.memory import MemoryUDP
from synapse_lb.testing.plug import Plug
from synapse_lb.testing.probe import Reading, name_of, own_objects, read, told_at_exit


class ProbeTests(SynchronousTestCase):
    def method(self) -> None:
        """Something to be called later."""

    def test_names(self) -> None:
        here = f"{__name__}.ProbeTests"
        self.assertEqual(name_of(self.method), f"{here}.method")
        self.assertEqual(name_of(functools.partial(functools.partial(self.method))), f"{here}.method")
        self.assertEqual(name_of(lambda: None), f"{here}.test_names.<locals>.<lambda>")
        self.assertEqual(name_of(json.dumps), "json.dumps")
        self.assertEqual(name_of(Tuning), "synapse_lb.coap.tuning.Tuning")

    def test_own_objects(self) -> None:
        found = own_objects([Tuning(), Tuning(), "text", Clock(), self])
        self.assertEqual(found, {"synapse_lb.coap.tuning.Tuning": 2})

    def test_reading(self) -> None:
        clock = Clock()
        clock.callLater(1, self.method)
        clock.callLater(2, Plug(clock).pull)
        kept = Tuning()
        reading = read(clock, objects=True)
        self.assertEqual(sum(reading.delayed_calls.values()), 2)
        self.assertEqual(reading.own_delayed_calls, {"synapse_lb.testing.plug.Plug.pull": 1})
        self.assertGreater(reading.objects["synapse_lb.coap.tuning.Tuning"], 0, kept)
        self.assertGreater(reading.blocks, 1000)
        self.assertEqual(read(clock).objects, {})

    def test_told_at_exit(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        self.assertIsNone(told_at_exit(folder))
        reading = Reading({"a.b": 1}, blocks=1, processor=0.5, threads=2)
        (folder / "probe_at_exit.json").write_text(json.dumps(attrs.asdict(reading)))
        self.assertEqual(told_at_exit(folder), reading)
        self.assertIsNone(told_at_exit(folder))


class Listener(DatagramProtocol):
    transport: Any

    def __init__(self) -> None:
        self.got: list[bytes] = []

    def datagramReceived(self, datagram: bytes, addr: object) -> None:
        self.got.append(datagram)


class PlugTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.network = MemoryUDP()
        self.far = Listener()
        self.network.listenUDP(1000, self.far, interface="192.0.2.1")

    def send(self, plug: Plug, count: int) -> Listener:
        near = Listener()
        plug.listenUDP(0, near)
        for number in range(count):
            near.transport.write(b"%d" % number, ("192.0.2.1", 1000))
        self.network.advance(0.1)
        return near

    def test_pulled(self) -> None:
        plug = Plug(self.network)
        near = self.send(plug, 3)
        self.assertFalse(plug.pulled)
        plug.pull()
        self.assertTrue(plug.pulled)
        near.transport.write(b"lost", ("192.0.2.1", 1000))
        self.send(plug, 1)  # a further socket has no plug of its own
        self.assertEqual(self.far.got, [b"0", b"1", b"2"])

    def test_so_many_datagrams(self) -> None:
        plug = Plug(self.network, datagrams=2)
        self.send(plug, 5)
        self.assertEqual(self.far.got, [b"0", b"1"])
        self.assertTrue(plug.pulled)

    def test_everything_else_is_the_reactors(self) -> None:
        plug = Plug(self.network)
        self.network.advance(3)
        self.assertEqual(plug.seconds(), self.network.seconds())
