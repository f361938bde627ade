# SPDX-License-Identifier: AGPL-3.0-or-later
"""The course of `synapse-lb bench soak`: everybody comes, works, sees the last word, and goes."""

from __future__ import annotations

import math
import random
import resource
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from twisted.internet.defer import Deferred, DeferredList

from synapse_lb.cli.bench_soak_junk import Junk
from synapse_lb.cli.bench_soak_people import Crowd, Person
from synapse_lb.cli.bench_soak_server import Member, SoakServer, all_gone
from synapse_lb.cli.bench_soak_verdict import Inside, Sample, Stop, Story, more_than
from synapse_lb.cli.errors import CommandError
from synapse_lb.cli.terminal import Terminal
from synapse_lb.testing.lossy import CLEAR, LossyRelay, Weather

if TYPE_CHECKING:
    from synapse_lb.cli.bench_soak import Plan

T = TypeVar("T")

ABRUPT: Final = 0.2
"""Share of the clients that go in the end without a word."""

_COME: Final = 0.15
"""Share of the duration in which the clients come."""

_NAT: Final = 0.65
"""When all clients get other addresses at once, as share of the duration."""

_PATIENCE: Final = 240.0
"""Seconds that observers have to see the last word."""

_SETTLE: Final = 120.0
"""Seconds that what is left in the process has to go."""

_LOOK: Final = 1.0
_LAST_WORD: Final = "the last word"
_DARK: Final = Weather(loss=1.0)


class Soak:
    """One run.

    Args:
        plan: what is to be done.
        terminal: where progress is told.
    """

    def __init__(self, plan: Plan, terminal: Terminal) -> None:
        self._plan, self._terminal = plan, terminal
        self._server = SoakServer(plan.clients, plan.idle_timeout, plan.tracemalloc)
        self._random = random.Random(plan.seed)
        self._weather = Weather(
            loss=plan.loss, duplication=plan.loss, reordering=2 * plan.loss, delay=0.02, hold_back=0.1
        )
        self._members: list[Member] = []
        self._people: list[Person] = []
        self._samples: list[Sample] = []
        self._stops: list[Stop] = []
        self._before = Inside({}, {}, {})
        self._began = 0.0
        self._crowd: Crowd | None = None
        self._relay: LossyRelay | None = None
        self._junk: Junk | None = None
        self._server_counts: dict[str, int] = {}

    # Before and after; all of this blocks

    def prepare(self) -> None:
        """Start the server and fill it.

        Raises:
            CommandError: it is not possible here.
        """
        _raise_descriptors(4 * self._plan.clients + 500)
        self._tell("starting Synapse")
        self._server.start()
        self._tell(f"making users and rooms for {self._plan.clients:,} clients")
        self._members = self._server.populate(self._plan.clients)
        self._server.exercise()

    def close(self) -> None:
        """Stop the server and remove everything. Idempotent."""
        if self._crowd is not None:
            self._crowd.over = True
        self._server.close()

    def tallies(self) -> dict[str, Any]:
        """What was done by whom."""
        assert self._crowd is not None and self._relay is not None and self._junk is not None
        tally, relay = self._crowd.tally, self._relay
        both = (relay.to_server.counters, relay.to_client.counters)
        return {
            "deeds": {**dict(tally.done.most_common()), "bodies pushed": tally.pushed},
            "statuses": dict(tally.statuses),
            "client_errors": dict(tally.errors),
            "junk": dict(self._junk.done),
            "relay": {
                name: sum(getattr(counters, name) for counters in both)
                for name in ("sent", "sent_bytes", "lost", "duplicated", "held_back", "delivered")
            },
            "server": self._server_counts,
        }

    # The course

    async def measure(self) -> Story:
        """Let it all happen."""
        reactor, server = self._terminal.reactor, self._server
        self._before = await self._settled()
        address = ("127.0.0.1", server.homeserver.ports.lowbandwidth)
        relay = self._relay = LossyRelay(
            reactor,
            server=address,
            weather=self._weather,
            seed=self._plan.seed,
            max_clients=3 * self._plan.clients + 100,
        )
        relay.start()
        self._junk = Junk(reactor, address, server.vandal, self._plan.junk, self._plan.seed)
        crowd = self._crowd = Crowd(
            reactor,
            f"coaps://127.0.0.1:{relay.port}",
            str(server.homeserver.certificate_path),
            think=self._plan.clients / self._plan.rate,
            heartbeat=min(60.0, self._plan.idle_timeout / 3),
        )
        self._began = reactor.seconds()
        living = self._send_in(crowd)
        try:
            self._junk.start()
            await self._while_they_live()
            crowd.over = True
            await DeferredList(living, fireOnOneErrback=True, consumeErrors=True)
            behind = await self._last_word(relay)
            await self._everybody_leaves()
        finally:
            crowd.over = True
            await self._junk.stop()
            await relay.stop()
        return await self._aftermath(behind)

    def _send_in(self, crowd: Crowd) -> list[Deferred[None]]:
        self._people = [
            Person(crowd, each.name, each.device, each.room, self._random.getrandbits(32))
            for each in self._members
        ]
        time = _COME * self._plan.duration
        return [
            Deferred.fromCoroutine(person.live(time * number / len(self._people)))
            for number, person in enumerate(self._people)
        ]

    async def _while_they_live(self) -> None:
        plan, reactor = self._plan, self._terminal.reactor
        events: list[tuple[float, Callable[[], Any]]] = [(_NAT * plan.duration, self._nat_restarts)]
        if plan.restart:
            events.insert(0, (0.5 * plan.duration, self._restart))
        assert self._crowd is not None
        while (at := reactor.seconds() - self._began) < plan.duration:
            if events and at >= events[0][0]:
                await events.pop(0)[1]()
            await self._sample()
            late = (reactor.seconds() - self._began) % plan.interval
            await self._crowd.sleep(plan.interval - late)

    async def _nat_restarts(self) -> None:
        assert self._relay is not None
        self._tell("all clients get other addresses")
        self._relay.forget_client_ports()

    async def _restart(self) -> None:
        """Stop the server while everybody is at work; nobody reaches the next one before it was looked at."""
        assert self._relay is not None and self._junk is not None
        self._tell("Synapse is stopped and started")
        began = self._terminal.reactor.seconds()
        self._stops.append(await self._in_thread(lambda: self._server.stop(under_load=True)))
        self._relay.set_weather(_DARK)
        await self._junk.stop()
        await self._in_thread(self._server.start_again)
        await self._in_thread(self._server.exercise)
        self._before = await self._settled()
        self._relay.set_weather(self._weather)
        self._junk.start()
        self._began += self._terminal.reactor.seconds() - began  # that time does not count

    async def _sample(self) -> Sample:
        at = self._terminal.reactor.seconds() - self._began
        sample = await self._in_thread(lambda: self._server.sample(at))
        self._samples.append(sample)
        earlier = self._samples[-2] if len(self._samples) > 1 else sample
        span = max(sample.at - earlier.at, 1e-3)
        busy = 0.0 if sample.process != earlier.process else (sample.processor - earlier.processor) / span
        asked = 0.0 if sample.process != earlier.process else (sample.requests - earlier.requests) / span
        self._tell(
            f"[{at / 60:5.1f} min] {sample.associations:,} associations, {sample.observations:,} observations, "
            f"{sample.exchanges - sample.observations:,} other exchanges, {sample.rss / 2**20:,.1f} MiB, "
            f"{sample.blocks:,} blocks, {sample.descriptors} files, {sample.delayed_calls} delayed calls, "
            f"{busy:.0%} of a core, {asked:.1f} requests/s"
        )
        return sample

    async def _last_word(self, relay: LossyRelay) -> int:
        """Say something in each room; returns how many observers never saw it."""
        assert self._crowd is not None
        self._tell("the last word")
        relay.set_weather(CLEAR)
        await DeferredList(
            [Deferred.fromCoroutine(person.be_there()) for person in self._people], consumeErrors=True
        )
        await self._in_thread(lambda: self._server.say_everywhere(_LAST_WORD))
        end = self._terminal.reactor.seconds() + _PATIENCE
        while True:
            behind = [each for each in self._people if each.observes and each.last_seen != _LAST_WORD]
            if not behind or self._terminal.reactor.seconds() > end:
                return len(behind)
            # Whose token had ended without their knowledge have noticed by now, and begin anew.
            await DeferredList([Deferred.fromCoroutine(each.be_there()) for each in behind])
            await self._crowd.sleep(_LOOK)

    async def _everybody_leaves(self) -> None:
        self._tell("everybody leaves")
        leaving = [
            Deferred.fromCoroutine(person.leave(abruptly=self._random.random() < ABRUPT))
            for person in self._people
        ]
        await DeferredList(leaving, fireOnOneErrback=True, consumeErrors=True)

    async def _aftermath(self, behind: int) -> Story:
        """Wait until nothing is left, or for as long as it may take, and look."""
        server = self._server
        last = await self._gone()
        after = await self._settled(self._before)
        self._server_counts = await self._in_thread(server.counts)
        self._stops.append(await self._in_thread(lambda: server.stop(under_load=False)))
        assert self._crowd is not None
        return Story(
            samples=self._samples,
            warm_up=self._plan.warm_up,
            before=self._before,
            after=after,
            last=last,
            log_errors=server.homeserver.error_lines(),
            answers_5xx=dict(self._crowd.tally.failures),
            behind=behind,
            stops=self._stops,
        )

    async def _gone(self) -> Sample:
        reactor = self._terminal.reactor
        self._tell("waiting until all associations have ended")
        end = reactor.seconds() + 1.5 * self._plan.idle_timeout + _SETTLE
        while True:
            sample = await self._in_thread(lambda: self._server.sample(reactor.seconds() - self._began))
            if all_gone(sample) or reactor.seconds() > end:
                return sample
            await self._rest(_LOOK)

    async def _settled(self, before: Inside | None = None) -> Inside:
        """Look at the process; wait until there is nothing that was not there before, or two looks are the same."""
        reactor = self._terminal.reactor
        end, previous = reactor.seconds() + _SETTLE, None
        while True:
            inside, reading = await self._in_thread(self._server.inside)
            more = inside == previous if before is None else not _left(before, inside)
            if more or reactor.seconds() > end:
                for line in reading.allocated:
                    self._tell(line)
                return inside
            previous = inside
            await self._rest(_LOOK)

    async def _rest(self, seconds: float) -> None:
        from twisted.internet.task import deferLater

        await deferLater(self._terminal.reactor, seconds, lambda: None)

    def _in_thread(self, work: Callable[[], T]) -> Deferred[T]:
        from twisted.internet.threads import deferToThreadPool

        reactor = self._terminal.reactor
        return deferToThreadPool(reactor, reactor.getThreadPool(), work)

    def _tell(self, text: str) -> None:
        self._terminal.error(text)


def _left(before: Inside, after: Inside) -> bool:
    return any(
        more_than(getattr(before, name), getattr(after, name))
        for name in ("descriptors", "own_calls", "objects")
    )


def _raise_descriptors(wanted: int) -> None:
    """Let this process have so many sockets.

    Raises:
        CommandError: the system does not allow it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = math.inf if hard == resource.RLIM_INFINITY else hard
    if wanted > most:
        raise CommandError(f"{wanted:,} file descriptors are needed, and {hard:,} allowed (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
