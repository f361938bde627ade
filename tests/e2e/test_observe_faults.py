# SPDX-License-Identifier: AGPL-3.0-or-later
"""The fault harness once more, with nothing imagined: real Synapse, real UDP, real time.

Two applications (`tests.memory.application`) observe and send through a relay that loses, doubles and holds back
datagrams. Meanwhile: blackouts, new addresses, `kill -9` of Synapse and of an application, a planned restart of
Synapse. What has to be is read from Synapse's database afterwards.

    $ SYNAPSE_LB_EVENTS=2000 SYNAPSE_LB_TO_DEVICE=500 python -m twisted.trial tests.e2e.test_observe_faults
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
import unittest
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from twisted.internet import reactor as _reactor
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from synapse_lb.client import ClientVerification, Persistence
from synapse_lb.coap.tuning import Tuning
from synapse_lb.testing.lossy import CLEAR, LossyRelay, Weather
from synapse_lb.testing.throwaway import ThrowawayHomeserver, synapse_is_installed
from tests.memory.application import Application, Disk, Habits, Lane
from tests.memory.process import Process

reactor: Any = _reactor

EVENTS = int(os.environ.get("SYNAPSE_LB_EVENTS", "200"))
TO_DEVICE = int(os.environ.get("SYNAPSE_LB_TO_DEVICE", "50"))
SEED = int(os.environ.get("SYNAPSE_LB_SEED", "1"))

WEATHER = Weather(loss=0.2, duplication=0.1, reordering=0.2, delay=0.01, hold_back=0.05)
HABITS = Habits(pause=0.4, work=0.05, long_work=0.0, breaks=0.01, patience=20.0, connect_timeout=5.0)
# Tests need not wait for timeouts that are made for the whole world.
BRISK: dict[str, Any] = {"ack_timeout": 0.3, "min_rto": 0.05, "max_rto": 2.0, "separate_after": 0.2}
TIMES = Persistence(first_heartbeat=1.0, heartbeat=4.0, retry_max=2.0, spread=2.0)
AFTERWARDS = 120.0
"""s: by when all has been processed in clear weather."""

DATABASE = "homeserver.db"


class Mute:
    """What the transport of a dead process is replaced by."""

    def write(self, *_: object) -> None:
        """Nothing leaves any more."""


class RealProcess(Process):
    """The reactor of one application; a dead one is silent."""

    def __init__(self) -> None:
        super().__init__(reactor)
        self._ports: list[tuple[Any, Any]] = []

    def listenUDP(self, port: int, protocol: Any, interface: str = "", maxPacketSize: int = 8192) -> Any:
        """Open a socket."""
        listening = reactor.listenUDP(port, protocol, interface=interface, maxPacketSize=maxPacketSize)
        self._ports.append((listening, protocol))
        return listening

    def kill(self) -> None:
        """End it: its sockets are closed without a word."""
        super().kill()
        for listening, protocol in self._ports:
            protocol.transport = Mute()
            listening.stopListening()


@unittest.skipUnless(synapse_is_installed(), "matrix-synapse is not installed")
class ObserveFaultsTests(TestCase):
    """Each event exactly once and in order, no to-device message lost."""

    timeout = 3600

    def setUp(self) -> None:
        self.random = random.Random(SEED)
        self.restarts = 0
        self.befallen: Counter[str] = Counter()
        self.violations: list[Exception] = []
        self.applications: dict[str, Application] = {}
        self.homeserver = ThrowawayHomeserver(
            extra_config={"filter_timeline_limit": 100_000}, lowbandwidth_options={"tuning": BRISK}
        )
        self.addCleanup(self.homeserver.stop)
        self.homeserver.start()
        self.relay = self.start_relay()
        self.disks = self.make_disks()

    def start_relay(self) -> LossyRelay:
        """The bad network."""
        server = ("127.0.0.1", self.homeserver.ports.lowbandwidth)
        relay = LossyRelay(reactor, server=server, weather=WEATHER, seed=SEED)
        relay.start()
        self.addCleanup(relay.stop)
        return relay

    def make_disks(self) -> dict[str, Disk]:
        """Two users in two rooms, and what they are to send."""
        tokens = {}
        for name in ("alice", "bob"):
            registered = self.homeserver.register(name)
            tokens[str(registered["user_id"])] = str(registered["access_token"])
        alice, bob = tokens
        rooms = []
        for _ in range(2):
            room = str(self.http("POST", "createRoom", {"preset": "public_chat"}, tokens[alice])["room_id"])
            self.http("POST", f"rooms/{quote(room)}/join", {}, tokens[bob])
            rooms.append(room)
        disks = {}
        for user, peer in ((alice, bob), (bob, alice)):
            lanes = [Lane(room, self.sizes(EVENTS // 4)) for room in rooms]
            disks[user] = Disk(user, peer, tokens[user], [*lanes, Lane(None, self.sizes(TO_DEVICE // 2))])
        return disks

    def sizes(self, count: int) -> list[int]:
        """Few of them are large."""
        return [3000 if self.random.random() < 0.05 else 0 for _ in range(count)]

    def http(self, method: str, path: str, body: Any, token: str) -> Any:
        """A request that must succeed."""
        status, answer = self.homeserver.request(method, f"/_matrix/client/v3/{path}", body, token)
        self.assertEqual(status, 200, answer)
        return answer

    # The run

    async def test_two_applications(self) -> None:
        for user in self.disks:
            self.start(user)
        self.addCleanup(lambda: [each.reactor.kill() for each in self.applications.values()])
        began = reactor.seconds()
        await self.befall()
        await self.reach(lambda: all(disk.all_sent for disk in self.disks.values()), 600.0)
        self.relay.set_weather(CLEAR)
        await self.reach(self.all_processed, AFTERWARDS)
        self.check()
        for application in self.applications.values():
            await application.stop()
        self.assertEqual([each.reactor.waits_for for each in self.applications.values()], [[], []])
        self.assertEqual(self.violations, [])
        self.assertEqual(self.homeserver.error_lines(), [])
        self.say_what_there_was(reactor.seconds() - began)

    def say_what_there_was(self, seconds: float) -> None:
        """Print the figures of the run."""
        faults = ", ".join(f"{name} {number}" for name, number in sorted(self.befallen.items()))
        ways = [self.relay.to_server.counters, self.relay.to_client.counters]
        carried, lost, twice = (
            sum(getattr(way, what) for way in ways) for what in ("sent", "lost", "duplicated")
        )
        to_device = sum(len(disk.to_device) for disk in self.disks.values())
        events = sum(disk.processed_count for disk in self.disks.values())
        print(
            f"seed {SEED}: {seconds:.0f} s; {faults}; {carried} datagrams, {lost} lost, {twice} doubled; "
            f"{events} events processed by two observers, {to_device} to-device messages"
        )

    async def reach(self, condition: Callable[[], bool], limit: float) -> None:
        """Wait until something has come true; the limit is there to end a run that hangs."""
        end = reactor.seconds() + limit
        while not condition():
            if self.violations or reactor.seconds() > end:
                self.fail(f"{self.violations or 'stuck'}: {self.state()}\n{self.homeserver.log_tail(15)}")
            await deferLater(reactor, 0.05)

    def state(self) -> list[Any]:
        """How far they have got."""
        return [
            (disk.user, disk.since, [(lane.sent, lane.total) for lane in disk.lanes], disk.processed_count)
            for disk in self.disks.values()
        ]

    def start(self, user: str) -> None:
        """Start the application of a user."""
        certificate = str(self.homeserver.certificate_path)
        self.applications[user] = Application(
            self.disks[user],
            RealProcess(),
            f"127.0.0.1:{self.relay.port}",
            verification=ClientVerification.ca_file(certificate),
            random=random.Random(self.random.getrandbits(64)),
            habits=HABITS,
            check=lambda _: None,
            violated=self.violations.append,
            tuning=Tuning(**BRISK),
            persistence=TIMES,
        )

    # What befalls them

    async def befall(self) -> None:
        """One thing after another, and again if much is to be sent."""
        faults = [self.kill_server, self.blackout, self.move, self.kill_application]
        faults += [self.restart_server, self.move, self.blackout, self.kill_application]
        for fault in faults * max(1, EVENTS // 200):
            await deferLater(reactor, self.random.uniform(2.0, 6.0))
            self.befallen[fault.__name__] += 1
            await fault()

    async def kill_server(self) -> None:
        """`kill -9`; it comes back from what is on the disk."""
        self.restarts += 1
        self.homeserver.kill()
        await deferToThread(self.homeserver.start)

    async def restart_server(self) -> None:
        """As planned."""
        self.restarts += 1
        await deferToThread(self.homeserver.restart)

    async def blackout(self) -> None:
        """Nothing arrives for five seconds."""
        self.relay.set_weather(Weather(loss=1.0))
        await deferLater(reactor, 5.0)
        self.relay.set_weather(WEATHER)

    async def move(self) -> None:
        """Both have other addresses."""
        self.relay.forget_client_ports()

    async def kill_application(self) -> None:
        """`kill -9`; it comes back with what is on its disk."""
        user = self.random.choice(list(self.disks))
        application = self.applications[user]
        application.running = False
        application.reactor.kill()
        await deferLater(reactor, self.random.uniform(0.0, 2.0))
        self.start(user)

    # The invariant

    def stored(self) -> dict[str, list[tuple[str, int]]]:
        """Senders and numbers of the messages of each room, in the order in which Synapse has stored them."""
        rooms: dict[str, list[tuple[str, int]]] = {}
        with contextlib.closing(sqlite3.connect(self.homeserver.folder / DATABASE)) as database:
            rows = database.execute(
                "SELECT e.room_id, e.sender, j.json FROM events e JOIN event_json j USING (event_id)"
                " WHERE e.type = 'm.room.message' ORDER BY e.stream_ordering"
            )
            for room, sender, text in rows:
                rooms.setdefault(room, []).append((sender, int(json.loads(text)["content"]["body"])))
        return rooms

    def all_processed(self) -> bool:
        """Whether both have come to know as much as was sent; whether it is that, `check` says."""
        return all(
            disk.processed_count >= len(self.disks) * 2 * (EVENTS // 4)
            and set(disk.to_device) >= set(range(TO_DEVICE // 2))
            for disk in self.disks.values()
        )

    def check(self) -> None:
        """What was sent is in the database, and what is in the database was processed."""
        stored = self.stored()
        for disk in self.disks.values():
            self.assertEqual({room: events for room, events in disk.events.items() if events}, stored)
            for lane in disk.lanes:
                if lane.name is not None:
                    arrived = [number for sender, number in stored[lane.name] if sender == disk.user]
                    self.assertEqual(arrived, list(range(lane.total)))
            # Synapse stores a to-device message again whose transaction comes again after a restart.
            self.assertEqual(sorted(set(disk.to_device)), list(range(TO_DEVICE // 2)))
            self.assertEqual(disk.to_device, sorted(disk.to_device))
            self.assertLessEqual(len(disk.to_device), TO_DEVICE // 2 + self.restarts)
