# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb bench observe`: what it takes to be told of news, while there are none and when there are.

Readers wait for news of the same real Synapse at the same time, each in its own way: OBSERVE, long polling over CoAP,
and long polling over HTTPS. Each is another user with a name of the same length in the same room. The simulated link
(`testing/tunlink.py`) carries and counts whole IP packets, by conversation.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any, Final

import attrs

from synapse_lb.cli.bench_readers import CoapReader, HttpsReader, Reader
from synapse_lb.cli.bench_results import markdown
from synapse_lb.cli.bench_world import CLIENT_API, User, World, run_in_world
from synapse_lb.cli.errors import EXIT_USAGE, CommandError
from synapse_lb.cli.terminal import Terminal
from synapse_lb.testing.simlink import LinkShape
from synapse_lb.testing.tunlink import Flow

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from synapse_lb.cli.main import Subparsers

HOUR: Final = 3600.0
TEXT: Final = "Hello World"
_NEWS_TIMEOUT: Final = 30.0
_TICK: Final = 0.05

_DESCRIPTION = """\
Counts the IP packets that five clients of a real, throw-away Synapse send and get while nothing happens, and for each
message that is pushed: OBSERVE, the same in x1, long polling over CoAP, over HTTPS, and over HTTPS with gzip. Needs
root on Linux (network namespaces, TUN devices), and Synapse: pip install 'synapse-lb[server]'.
"""


@attrs.frozen
class Row:
    """What one way to wait for news has taken.

    Attributes:
        name: of the way.
        idle: packets and bytes, both ways, of the span in which nothing happened.
        rounds: how often the client has asked in it: polls, or pings.
        pushed: the same for all messages together.
        hourly: what comes on top once an hour.
    """

    name: str
    idle: Flow
    rounds: int
    pushed: Flow
    hourly: Flow = attrs.field(factory=Flow)


@attrs.define
class Results:
    """All rows, and what they were measured with.

    Attributes:
        conditions: versions and such.
        span: seconds of idleness.
        messages: how many were pushed.
        rows: the figures.
    """

    conditions: dict[str, Any]
    span: float
    messages: int
    rows: list[Row] = attrs.field(factory=list)

    def idle_hour(self, row: Row) -> float:
        """Bytes of an idle hour: those of the span, multiplied, and what comes once an hour."""
        return row.idle.bytes * HOUR / self.span + row.hourly.bytes

    def idle_packets(self, row: Row) -> float:
        """Packets of an idle hour, likewise."""
        return row.idle.packets * HOUR / self.span + row.hourly.packets

    def as_json(self) -> dict[str, Any]:
        """As one JSON object."""
        return {
            "bench": "observe",
            "conditions": self.conditions,
            "span_seconds": self.span,
            "messages": self.messages,
            "rows": [
                {
                    **attrs.asdict(row),
                    "idle_hour_bytes": self.idle_hour(row),
                    "idle_hour_packets": self.idle_packets(row),
                    "pushed_message_bytes": row.pushed.bytes / self.messages,
                    "pushed_message_packets": row.pushed.packets / self.messages,
                }
                for row in self.rows
            ],
        }


def add_parser(subparsers: Subparsers) -> None:
    """Add `observe` to `bench`."""
    parser = subparsers.add_parser(
        "observe",
        help="bytes per idle hour and per pushed message: OBSERVE against long polling",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--span", type=float, default=240.0, metavar="S", help="of idleness; an hour is so many of it (240)"
    )
    parser.add_argument("--messages", type=int, default=10, metavar="N", help="that are pushed (10)")
    parser.add_argument(
        "--heartbeat", type=float, default=60.0, metavar="S", help="silence after which OBSERVE pings (60)"
    )
    parser.add_argument(
        "--poll", type=float, default=30.0, metavar="S", help="time limit of the long polls (30)"
    )
    parser.add_argument("--rtt", type=float, default=100.0, metavar="MS", help="round trip of the link (100)")
    parser.add_argument(
        "--settle", type=float, default=3.0, metavar="S", help="until what was begun has come to rest (3)"
    )
    parser.add_argument("--json", action="store_true", help="write one JSON object instead of the table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, terminal: Terminal) -> Deferred[int]:
    """Measure.

    Returns:
        A Deferred of the exit status.

    Raises:
        CommandError: The arguments make no sense, or it cannot be measured here.
    """
    for name in ("span", "messages", "heartbeat", "poll", "settle"):
        if not 0 < getattr(arguments, name) < float("inf"):
            raise CommandError(f"--{name} must be more than 0", EXIT_USAGE)
    if not 0 <= arguments.rtt < float("inf"):
        raise CommandError("--rtt must not be negative", EXIT_USAGE)

    def prepare(world: World) -> Bench:
        return Bench(terminal, world, arguments)

    def show(bench: Bench) -> None:
        results = bench.results
        terminal.write(json.dumps(results.as_json(), indent=1) + "\n" if arguments.json else table(results))

    return run_in_world(terminal, prepare, Bench.measure, show)


@attrs.define
class Bench:
    """One measurement.

    Args:
        terminal: where progress is told.
        world: link and homeserver.
        arguments: of the command.
    """

    terminal: Terminal
    world: World
    arguments: argparse.Namespace
    readers: list[Reader] = attrs.field(init=False, factory=list)
    results: Results = attrs.field(init=False)
    _flows: list[str] = attrs.field(init=False, factory=list)
    _registrations: list[Flow] = attrs.field(init=False, factory=list)
    _writer: User = attrs.field(init=False)
    _room_id: str = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        arguments, world = self.arguments, self.world
        conditions = {
            **world.conditions(),
            **{name: getattr(arguments, name) for name in ("rtt", "heartbeat", "poll")},
        }
        self.results = Results(conditions, arguments.span, arguments.messages)
        users = [world.register(f"reader{number}") for number in range(5)]
        self._writer = world.register("writer")
        self._room_id = world.make_room("Low bandwidth", self._writer, users)
        reactor = self.terminal.reactor
        for number, user in enumerate(users):
            since = str(world.request("GET", f"{CLIENT_API}/sync", token=user.token)["next_batch"])
            self.readers.append(
                CoapReader(
                    world,
                    reactor,
                    user,
                    since,
                    observe=number < 2,
                    x1=number == 1,
                    poll=arguments.poll,
                    heartbeat=arguments.heartbeat,
                )
                if number < 3
                else HttpsReader(world, reactor, user, since, compressed=number > 3, poll=arguments.poll)
            )

    async def measure(self) -> None:
        """Start all readers, let nothing happen, and then messages."""
        self.world.link.shape(LinkShape(delay=self.arguments.rtt / 2000))
        try:
            for reader in self.readers:
                await self._start(reader)
            await self._sleep(self.arguments.settle)
            before, asked = self._read(), [reader.rounds for reader in self.readers]
            await self._idle()
            between = self._read()
            rounds = [reader.rounds - then for reader, then in zip(self.readers, asked, strict=True)]
            await self._push()
            after = self._read()
        finally:
            for reader in self.readers:
                await reader.stop()
        for number, reader in enumerate(self.readers):
            idle = between[number] - before[number]
            hourly = self._registrations[number] if reader.renewed_hourly else Flow()
            pings = idle.to_server_packets if reader.renewed_hourly else rounds[number]
            row = Row(reader.title, idle, pings, after[number] - between[number], hourly)
            self.results.rows.append(row)

    async def _start(self, reader: Reader) -> None:
        """Start a reader; the conversation that appears is its own."""
        known = set(self.world.link.read().flows)
        self.terminal.error(f"starting: {reader.title}")
        await reader.connect()
        await self._sleep(self.arguments.rtt / 1000 + 0.2)
        (name,) = set(self.world.link.read().flows) - known - {"other"}
        self._flows.append(name)
        before = self._read()[-1]
        reader.start()
        await self._sleep(self.arguments.settle)
        self._registrations.append(self._read()[-1] - before)

    async def _idle(self) -> None:
        left = self.arguments.span
        while left > 0:
            self.terminal.error(f"nothing happens: {left:.0f} s more")
            step = min(30.0, left)
            await self._sleep(step)
            left -= step
            self._check()

    async def _push(self) -> None:
        from twisted.internet.threads import deferToThreadPool

        reactor, count = self.terminal.reactor, self.arguments.messages
        for number in range(1, count + 1):
            self.terminal.error(f"message {number} of {count}")
            content = {"msgtype": "m.text", "body": TEXT}
            await deferToThreadPool(
                reactor,
                reactor.getThreadPool(),
                self.world.say,
                self._room_id,
                self._writer,
                content,
                f"t{number:03}",
            )
            waited = 0.0
            while any(reader.news < number for reader in self.readers):
                await self._sleep(_TICK)
                waited += _TICK
                self._check()
                if waited > _NEWS_TIMEOUT:
                    missing = [reader.title for reader in self.readers if reader.news < number]
                    raise CommandError(f"message {number} did not come: {', '.join(missing)}")
            await self._sleep(self.arguments.settle / 3)
        await self._sleep(self.arguments.settle)

    def _check(self) -> None:
        for reader in self.readers:
            if reader.error is not None:
                raise CommandError(f"{reader.title}: {type(reader.error).__name__}: {reader.error}")

    def _read(self) -> list[Flow]:
        flows = self.world.link.read().flows
        return [flows[name] for name in self._flows]

    async def _sleep(self, seconds: float) -> None:
        from twisted.internet.task import deferLater

        await deferLater(self.terminal.reactor, seconds, lambda: None)


def table(results: Results) -> str:
    """The figures, and what they are."""
    count = results.messages
    rows = [
        [
            row.name,
            f"{results.idle_hour(row):,.0f}",
            f"{results.idle_packets(row):,.0f}",
            f"{row.pushed.bytes / count:,.0f}",
            f"{row.pushed.packets / count:.1f}",
        ]
        for row in results.rows
    ]
    head = ["", "idle hour, bytes", "packets", "pushed message, bytes", "packets"]
    asked = ", ".join(f"{row.name}: {row.rounds}" for row in results.rows)
    renewed = " and ".join(f"{row.hourly.bytes:,}" for row in results.rows if row.hourly.bytes)
    return (
        f"{markdown('What news take, as IP packets with all headers, both ways', head, rows)}\n"
        f"The idle hour was measured over {results.span:g} s and multiplied by {HOUR / results.span:g}. In it the\n"
        f"clients asked or pinged so often: {asked}.\n"
        f"OBSERVE's has the bytes of one registration besides ({renewed}), which is renewed after an hour of\n"
        f"silence. A pushed message ({TEXT!r}) was sent by another user; with a poll comes the next one.\n"
        "Presence is off. No packet was lost.\n"
    )
