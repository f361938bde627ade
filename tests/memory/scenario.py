# SPDX-License-Identifier: AGPL-3.0-or-later
"""A run of the fault harness: two applications, one server, and what befalls them, all of it from a seed.

Both observe their `/sync` and send to the same rooms and to each other's devices, over a network that is bad in
changing ways. Meanwhile: blackouts, new addresses, `kill -9` and planned stops of the server and of the applications,
handlers that fail or take their time. When everything has been sent the weather clears, and both have to come to know
everything.

The invariant is looked at whenever an application has processed something: per room, the events on its disk are the
first ones of what the server has stored, in order, each once; so are its to-device messages. What the server has stored
is, per sender, what was sent, in order, each once; of to-device messages, which Synapse stores again when their
transaction comes again after a restart, at least once.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any, Final

import attrs
from twisted.internet.defer import Deferred

from synapse_lb.client import ClientVerification
from synapse_lb.testing.lossy import CLEAR, Weather
from synapse_lb.txdtls.context import ServerContext
from tests.memory.application import Application, Disk, Habits, Lane
from tests.memory.homeserver import CACHED, Homeserver, Store, Totals
from tests.memory.network import SERVER, BadNetwork, Machine

ALICE: Final = "@alice:localhost"
BOB: Final = "@bob:localhost"
HOSTS: Final = {ALICE: "198.51.100.1", BOB: "203.0.113.1"}
TOKENS: Final = {"syt_alice": ALICE, "syt_bob": BOB}
ROOMS: Final = ("!one:localhost", "!two:localhost", "!three:localhost")

BLACKOUT: Final = 5.0
"""s: a blackout lasts."""

AFTERWARDS: Final = 900.0
"""s: by when everything has to have been processed in clear weather. Far less than an hour, after which an observation
that hears nothing would be registered anew anyhow, and any longer than the longest wait before a further attempt."""


class Violation(AssertionError):
    """What must not happen."""


@attrs.frozen
class Scale:
    """How much there is of everything.

    Attributes:
        events: messages to rooms, from both.
        to_device: to-device messages, from both.
        between_faults: mean seconds between two faults; three times as long where there is much to carry.
        faults: how many there are at most. Where many bodies are large and the network is at its worst, hardly any
            transfer is over before the next fault.
        patience: virtual seconds within which everything has to be sent.
    """

    events: int = 240
    to_device: int = 60
    between_faults: float = 15.0
    faults: int = 40
    patience: float = 40_000.0


class Scenario:
    """One run.

    Args:
        seed: of everything.
        scale: how much.
        contexts: gives the DTLS settings of a server process.

    Attributes:
        totals: what was counted.
        story: what befell them.
    """

    def __init__(self, seed: int, scale: Scale, contexts: Callable[[], ServerContext]) -> None:
        self.seed: Final = seed
        self.scale: Final = scale
        self.network: Final = BadNetwork(seed)
        self.store: Final = Store()
        self.totals: Final = Totals()
        self.story: Final[list[str]] = []
        self.faults = 0
        self._contexts = contexts
        self._random: Final = random.Random(seed)
        self._worst_loss = self._random.choice((0.0, 0.1, 0.2, 0.3, 0.4))
        self._trouble = self._random.choice((0.0, 0.0, 0.05))
        self._large = self._random.choice((0.0, 0.02, 0.1))
        self._between_faults: Final = scale.between_faults * (3.0 if self._large else 1.0)
        self._habits = self._some_habits()
        self._violations: list[Exception] = []
        self._server: Homeserver | None = None
        self._applications: dict[str, Application] = {}
        self._disks: Final = self._make_disks()
        self._over = False

    # The run

    def run(self) -> None:
        """Run it.

        Raises:
            Violation: something happened that must not.
        """
        try:
            self._start_server()
            for user in HOSTS:
                self._start_application(user)
            self._change_weather()
            self._network_later(self._between_faults, self._fault)
            self._make_noise()
            self._reach(
                lambda: all(disk.all_sent for disk in self._disks.values()), self.scale.patience, "sent"
            )
            self._over = True
            self.network.set_weather(CLEAR)
            self._say("clear weather")
            # Whoever was just stopped or killed is to come back before all are asked to go.
            self._reach(
                lambda: len(self._applications) == len(HOSTS) and self._all_processed(),
                AFTERWARDS,
                "processed",
            )
            self._check_store()
            self._part()
        except Violation:
            raise
        except Exception as error:
            raise self._violation(error) from error
        finally:
            for application in self._applications.values():
                application.reactor.kill()
            if self._server is not None:
                self._server.kill()

    def _reach(self, condition: Callable[[], bool], limit: float, what: str) -> None:
        self.network.run_until(lambda: bool(self._violations) or condition(), limit)
        if self._violations:
            raise self._violation(self._violations[0]) from self._violations[0]
        if not condition():
            raise self._violation(AssertionError(f"not everything was {what} in {limit:g} s"))

    def _part(self) -> None:
        """End the applications as planned, after which nothing must be left at the server, and nothing wait."""
        for application in list(self._applications.values()):
            ended: list[object] = []
            Deferred.fromCoroutine(application.stop()).addBoth(ended.append)
            self._reach(functools.partial(bool, ended), 300.0, "stopped")
            if ended != [None] or application.reactor.waits_for:
                raise AssertionError(f"left behind: {ended} {application.reactor.waits_for}")
        server = self._server
        assert server is not None
        # Of a client that was killed the server knows nothing until there is something to tell it.
        self.store.add_event(ROOMS[0], ALICE, "epilogue", {"body": "0"})
        server.tell()
        self.network.run_until(lambda: False, 600.0)
        left = server.gateway.observations, server.gateway.running, server.subscriptions
        if left != (0, 0, 0):
            raise AssertionError(f"left at the server: observations, requests, subscriptions {left}")
        server.add_to(self.totals)

    def _violation(self, error: Exception) -> Violation:
        story = "\n".join(self.story[-40:])
        disks = "\n".join(
            f"{disk.user}: since {disk.since}, to_device {len(disk.to_device)}, "
            f"sent {[(lane.sent, lane.total) for lane in disk.lanes]}"
            for disk in self._disks.values()
        )
        return Violation(
            f"seed {self.seed}, at {self.network.seconds():.2f} s: {type(error).__name__}: {error}\n"
            f"{story}\nstored: {self.store.place}\n{disks}\n"
            f"run again: SYNAPSE_LB_SEED={self.seed} python -m twisted.trial tests.memory.test_faults"
        )

    def _say(self, text: str) -> None:
        self.story.append(f"{self.network.seconds():9.2f} {text}")

    # The invariant

    def _check(self, disk: Disk) -> None:
        for room, processed in disk.events.items():
            stored = [
                (each.sender, int(each.content["body"])) for each in self.store.events if each.room == room
            ]
            _compare(f"{disk.user} in {room}", processed, stored)
        _compare(f"{disk.user}'s to-device messages", disk.to_device, self._sent_to_device(disk.user))

    def _sent_to_device(self, user: str) -> list[Any]:
        return [int(each.content["body"]) for each in self.store.to_device if each.recipient == user]

    def _all_processed(self) -> bool:
        return all(
            disk.processed_count == len(self.store.events)
            and len(disk.to_device) == len(self._sent_to_device(disk.user))
            for disk in self._disks.values()
        )

    def _check_store(self) -> None:
        for disk in self._disks.values():
            for lane in disk.lanes:
                sent = list(range(lane.total))
                if lane.name is None:
                    arrived = self._sent_to_device(disk.peer)
                    again = [number for place, number in enumerate(arrived) if number in arrived[:place]]
                    arrived = sorted(set(arrived))
                    self._say(f"to-device messages of {disk.user} that were stored again: {again}")
                else:
                    here = [each for each in self.store.events if each.room == lane.name]
                    arrived = [int(each.content["body"]) for each in here if each.sender == disk.user]
                if arrived != sent:
                    raise AssertionError(f"{disk.user} in {lane.name}: sent {sent}, arrived {arrived}")
            self._check(disk)

    # What befalls them

    def _network_later(self, mean: float, call: Callable[[], None]) -> None:
        self.network.callLater(self._random.expovariate(1 / mean), call)

    def _change_weather(self) -> None:
        if self._over:
            return
        draw = self._random
        weather = Weather(
            loss=draw.uniform(self._worst_loss / 2, self._worst_loss),
            duplication=draw.choice((0.0, 0.1, 0.3)),
            reordering=draw.choice((0.0, 0.1, 0.3)),
            delay=draw.choice((0.01, 0.05, 0.3)),
            hold_back=draw.choice((0.1, 1.0)),
        )
        self.network.set_weather(weather)
        self._say(f"{weather}")
        self._network_later(60.0, self._change_weather)

    def _make_noise(self) -> None:
        """Something changes that has nothing for anybody."""
        if self._over:
            return
        self.store.noise += 1
        if self._server is not None:
            self._server.tell()
        self._network_later(10.0, self._make_noise)

    def _fault(self) -> None:
        if self._over or self.faults >= self.scale.faults:
            return
        self.faults += 1
        fault = self._random.choice(
            (
                self._blackout,
                self._blackout,
                self._move,
                self._move,
                self._kill_server,
                self._stop_server,
                self._kill_application,
                self._kill_at_work,
                self._stop_application,
            )
        )
        fault()
        self._network_later(self._between_faults, self._fault)

    def _blackout(self) -> None:
        dark = set(self._random.choice(((SERVER[0], *HOSTS.values()), (SERVER[0],), tuple(HOSTS.values()))))
        self._say(f"blackout of {sorted(dark)}")
        self.network.dark |= dark
        self.network.callLater(BLACKOUT, self.network.dark.difference_update, dark)

    def _move(self) -> None:
        user = self._random.choice(list(HOSTS))
        self._say(f"{user} has another address")
        self.network.rebind(HOSTS[user])

    def _start_server(self) -> None:
        self._say("the server starts")
        seeded = random.Random(self._random.getrandbits(64))
        self._server = Homeserver(self.network, self.store, seeded, self._contexts(), TOKENS, self._trouble)

    def _kill_server(self) -> None:
        self._end_server(Homeserver.kill, "killed")

    def _stop_server(self) -> None:
        self._end_server(Homeserver.stop, "stopped")

    def _end_server(self, end: Callable[[Homeserver], None], what: str) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        down = self._random.choice((0.0, 1.0, 20.0)) * self._random.random()
        self._say(f"the server is {what} for {down:.1f} s")
        end(server)
        server.add_to(self.totals)
        self.network.callLater(down, self._start_server)

    def _start_application(self, user: str) -> None:
        self._say(f"{user} starts from {self._disks[user].since}")
        disk = self._disks[user]
        if self._random.random() < 0.5:
            disk.session = None
        self._applications[user] = Application(
            disk,
            Machine(self.network, HOSTS[user]),
            f"coaps://{SERVER[0]}:{SERVER[1]}",
            verification=ClientVerification.none(),
            random=random.Random(self._random.getrandbits(64)),
            habits=self._habits,
            check=self._check,
            violated=self._violations.append,
        )

    def _kill_at_work(self) -> None:
        """Kill one that was given a body and has not processed it yet: it has to get it once more."""
        user = self._random.choice(list(HOSTS))
        application = self._applications.get(user)
        if application is not None:
            application.at_work = functools.partial(self._kill, user)

    def _kill_application(self) -> None:
        self._kill(self._random.choice(list(HOSTS)))

    def _kill(self, user: str) -> None:
        application = self._applications.pop(user, None)
        if application is None:
            return
        # Some come back when the results that were sent to them are in no cache of the server any more.
        down = self._random.choice((0.0, 5.0, 60.0, 3 * CACHED)) * self._random.random()
        self._say(f"{user} is killed for {down:.1f} s")
        application.running = False
        application.reactor.kill()
        self.network.callLater(down, self._start_application, user)

    def _stop_application(self) -> None:
        user = self._random.choice(list(HOSTS))
        application = self._applications.pop(user, None)
        if application is None:
            return
        self._say(f"{user} is stopped")

        def stopped(result: object) -> None:
            if result is not None:
                self._violations.append(AssertionError(f"{user} could not stop: {result}"))
            self._say(f"{user} has stopped")
            application.reactor.kill()
            self._start_application(user)

        Deferred.fromCoroutine(application.stop()).addBoth(stopped)

    # What there is

    def _some_habits(self) -> Habits:
        draw = self._random
        return Habits(
            pause=draw.choice((0.2, 1.0, 5.0)),
            work=draw.choice((0.01, 0.3, 3.0)),
            long_work=draw.choice((0.0, 0.02)),
            breaks=draw.choice((0.0, 0.02)),
        )

    def _make_disks(self) -> dict[str, Disk]:
        lanes: dict[str, list[Lane]] = {ALICE: [], BOB: []}
        # Two thirds are Alice's.
        for user, share in ((ALICE, 2), (BOB, 1)):
            for room in ROOMS:
                lanes[user].append(Lane(room, self._sizes(self.scale.events * share // 3 // len(ROOMS))))
            lanes[user].append(Lane(None, self._sizes(self.scale.to_device * share // 3)))
        return {
            ALICE: Disk(ALICE, BOB, "syt_alice", lanes[ALICE]),
            BOB: Disk(BOB, ALICE, "syt_bob", lanes[BOB]),
        }

    def _sizes(self, count: int) -> list[int]:
        draw = self._random
        return [draw.choice((2_000, 10_000)) if draw.random() < self._large else 0 for _ in range(count)]


def _compare(what: str, processed: list[Any], stored: list[Any]) -> None:
    if processed != stored[: len(processed)]:
        first = next(
            (place for place, pair in enumerate(zip(processed, stored, strict=False)) if pair[0] != pair[1]),
            len(stored),
        )
        raise Violation(
            f"{what}, from place {first} on: processed {processed[first : first + 5]}, "
            f"stored {stored[first : first + 5]}"
        )
