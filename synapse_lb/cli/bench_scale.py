# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb bench scale`: what many clients, and what each request, take of the server.

One real Synapse in a process of its own; its clients are in this one (`cli/scale`). Observers come in stages, and long
polls over HTTPS beside the last of them; then one client asks over CoAP and one over HTTPS, in turns.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from synapse_lb.cli.errors import EXIT_OK, EXIT_USAGE, CommandError
from synapse_lb.cli.interruptible import heed_sigterm, until_interrupted
from synapse_lb.cli.terminal import Terminal

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from synapse_lb.cli.main import Subparsers
    from synapse_lb.cli.scale.coap import CoapCrowd
    from synapse_lb.cli.scale.crowds import Watch
    from synapse_lb.cli.scale.place import Place, Room
    from synapse_lb.cli.scale.report import Results

PARTS: Final = ("crowd", "requests", "bodies")
CLIENTS: Final = "100,1000,10000"
_FILES: Final = 2000
"""Open files besides those of the clients."""

_DESCRIPTION = """\
Measures what clients of a real, throw-away Synapse take of its process: memory and processor time of observers of
/sync that wait, the time to push one message to a room of them, against long polls over HTTPS; processor time of
single requests over CoAP against HTTPS with keep-alive, of handshakes, of junk, of large bodies. Needs Linux (/proc),
for 10,000 observers 3 GB of memory, and Synapse: pip install 'synapse-lb[server]'.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add `scale` to `bench`."""
    parser = subparsers.add_parser(
        "scale",
        help="memory and processor time of the server: thousands of observers, single requests",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", default=",".join(PARTS), help=f"what is measured ({','.join(PARTS)})")
    parser.add_argument("--clients", default=CLIENTS, metavar="N,N,...", help=f"stages ({CLIENTS})")
    parser.add_argument(
        "--told",
        type=int,
        default=1000,
        metavar="N",
        help="observers and long polls in a room at most (1000)",
    )
    parser.add_argument("--span", type=float, default=60.0, metavar="S", help="of idleness (60)")
    parser.add_argument("--messages", type=int, default=5, metavar="N", help="that are pushed (5)")
    parser.add_argument("--requests", type=int, default=50, metavar="N", help="of a block (50)")
    parser.add_argument("--blocks", type=int, default=31, metavar="N", help="of each kind (31)")
    parser.add_argument(
        "--profile", metavar="FILE", help="write a profile of the server in the crowd's last push"
    )
    parser.add_argument("--json", action="store_true", help="write one JSON object instead of the tables")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, terminal: Terminal) -> Deferred[int]:
    """Measure.

    Returns:
        A Deferred of the exit status.

    Raises:
        CommandError: The arguments make no sense, or it cannot be measured here.
    """
    from synapse_lb.cli.scale.report import Results

    parts, stages = _checked(arguments)
    heed_sigterm()
    results = Results(_conditions())

    async def measured() -> int:
        if "crowd" in parts:
            await _crowd(terminal, arguments, stages, results)
        if "requests" in parts:
            await _requests(terminal, arguments, results)
        if "bodies" in parts:
            from synapse_lb.cli.scale import bodies

            results.writing = bodies.measure()
        text = json.dumps(results.as_json(), indent=1) + "\n" if arguments.json else results.as_text()
        terminal.write(text)
        return EXIT_OK

    return until_interrupted(measured(), terminal, "synapse-lb bench: interrupted; Synapse has been removed")


def _checked(arguments: argparse.Namespace) -> tuple[set[str], list[int]]:
    """Look at the arguments; returns the parts and the stages."""
    parts = set(arguments.parts.split(","))
    if not parts <= set(PARTS):
        raise CommandError(f"--parts: one or more of {','.join(PARTS)}", EXIT_USAGE)
    try:
        stages = sorted({int(part) for part in arguments.clients.split(",")})
    except ValueError:
        raise CommandError(f"--clients: {arguments.clients!r} is no list of numbers", EXIT_USAGE) from None
    if stages[0] < 1:
        raise CommandError("--clients must be more than 0", EXIT_USAGE)
    for name in ("told", "span", "messages", "requests", "blocks"):
        if not 0 < getattr(arguments, name) < float("inf"):
            raise CommandError(f"--{name} must be more than 0", EXIT_USAGE)
    if "crowd" in parts:
        _allow_files(stages[-1] + arguments.told + _FILES)
    return parts, stages


def _allow_files(wanted: int) -> None:
    """Let this process and those it starts open so many files."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise CommandError(f"{wanted} files have to be open at a time, {hard} may be (ulimit -n)", EXIT_USAGE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _crowd(
    terminal: Terminal, arguments: argparse.Namespace, stages: list[int], results: Results
) -> None:
    from twisted.internet.threads import deferToThreadPool

    from synapse_lb.cli.scale.coap import CoapCrowd
    from synapse_lb.cli.scale.crowds import Watch
    from synapse_lb.cli.scale.place import place

    def prepare(where: Place) -> tuple[Room, Room, list[str]]:
        terminal.error("making users and rooms")
        told = min(arguments.told, stages[-1])
        rooms = where.make_room(told), where.make_room(told)
        others = where.make_users(stages[-1] - told)
        for room in rooms:  # what Synapse keeps of a room is there before memory is measured
            where.say(room, "The first message")
        return *rooms, [member.token for member in (*rooms[0].members, *others)]

    with place(terminal) as where:
        reactor = terminal.reactor
        prepared = deferToThreadPool(reactor, reactor.getThreadPool(), prepare, where)
        room, polled, tokens = await prepared
        watch = Watch(terminal, where, arguments.span)
        await watch.begin()
        results.idle_alone = watch.idle_alone
        ports, certificate = where.homeserver.ports, str(where.homeserver.certificate_path)
        crowd = CoapCrowd(reactor, where.host, ports.lowbandwidth, certificate)
        try:
            for count in stages:
                new = tokens[len(crowd.clients) : count]
                stage = await watch.grow(crowd, "OBSERVE", new, where.now(room.owner))
                stage.ping = await watch.ping(crowd)
                if count != stages[-1]:
                    stage.pushes = [await watch.push(crowd, room) for _ in range(arguments.messages)]
                stage.lost = watch.lost()
                results.stages.append(stage)
            await _against_polls(terminal, arguments, results, where, watch, crowd, (room, polled))
        finally:
            await crowd.close()


async def _against_polls(
    terminal: Terminal,
    arguments: argparse.Namespace,
    results: Results,
    where: Place,
    watch: Watch,
    crowd: CoapCrowd,
    rooms: tuple[Room, Room],
) -> None:
    """Push to the last stage's observers and to as many long polls, in turns."""
    from synapse_lb.cli.scale.https import HttpsCrowd

    observed, polled = rooms
    observers = results.stages[-1]
    polls = HttpsCrowd(terminal.reactor, where.host, where.homeserver.ports.https)
    try:
        watch.leave_out()
        tokens = [member.token for member in polled.members]
        stage = await watch.grow(polls, "HTTPS", tokens, where.now(polled.owner))
        for number in range(arguments.messages):
            terminal.error(f"message {number + 1} of {arguments.messages}")
            stage.pushes.append(await watch.push(polls, polled))
            profiled = arguments.profile is not None and number + 1 == arguments.messages
            if profiled:
                where.profile(None)
            observers.pushes.append(await watch.push(crowd, observed))
            if profiled:
                where.profile(arguments.profile)
        observers.lost = watch.lost()
        results.stages.append(stage)
    finally:
        await polls.close()


async def _requests(terminal: Terminal, arguments: argparse.Namespace, results: Results) -> None:
    from synapse_lb.cli.scale.place import place
    from synapse_lb.cli.scale.requests import RequestBench

    # Each sync is computed, and none is taken from the cache.
    with place(terminal, caches={"sync_response_cache_duration": 0}) as where:
        bench = RequestBench(terminal, where, where.make_room(1), arguments.requests, arguments.blocks)
        try:
            results.costs = await bench.measure()
            results.handshakes = await bench.handshakes()
            results.junk = await bench.junk()
        finally:
            await bench.close()


def _conditions() -> dict[str, Any]:
    """What the figures were measured with."""
    import os
    from importlib import metadata

    from OpenSSL import SSL

    versions: dict[str, Callable[[], str]] = {
        "synapse": lambda: metadata.version("matrix-synapse"),
        "python": platform.python_version,
        "openssl": lambda: SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode(),
        "kernel": platform.release,
    }
    return {"cores": os.cpu_count(), **{name: value() for name, value in versions.items()}}
