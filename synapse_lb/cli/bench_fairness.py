# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb bench fairness`: how long a quiet client waits beside one that floods, over CoAP and over HTTPS.

One real Synapse serves both. The quiet client is in this process, and asks who it is, again and again; the flood
(`bench_fairness_flood.py`) is in another one.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import attrs

from synapse_lb.cli.bench_fairness_flood import BEGUN, CHEAP, EXPENSIVE, RECKLESS, Orders
from synapse_lb.cli.bench_results import markdown
from synapse_lb.cli.bench_world import CLIENT_API
from synapse_lb.cli.errors import EXIT_OK, EXIT_USAGE, CommandError
from synapse_lb.cli.interruptible import heed_sigterm, until_interrupted
from synapse_lb.cli.terminal import Terminal
from synapse_lb.testing.throwaway import HomeserverFailed, SynapseMissing, ThrowawayHomeserver

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from synapse_lb.cli.main import Subparsers

    Ask = Callable[[float], Deferred[int]]

_ALONE: Final = ""
FLOODS: Final = f"{CHEAP},{EXPENSIVE},{RECKLESS}"
_MARGIN: Final = 30.0
_DESCRIPTION = """\
Measures the latency of a quiet client on a real, throw-away Synapse: alone, beside one client that floods with cheap
requests, beside one that floods with expensive ones (initial syncs), over CoAP, and over HTTPS with as many requests
under way. Over CoAP also beside one that sends as fast as it can and heeds no answer.
Needs Synapse: pip install 'synapse-lb[server]'.
"""
TITLES: Final = {
    _ALONE: "alone",
    CHEAP: "cheap requests",
    EXPENSIVE: "expensive requests",
    RECKLESS: "reckless",
}


@attrs.frozen
class Row:
    """What the quiet client met.

    Attributes:
        transport: `coap` or `https`.
        flood: the kind of flood beside it, or an empty string.
        latencies: seconds of each request.
        answers: that the flood got meanwhile, per second.
        failed: requests of the quiet client without an answer.
    """

    transport: str
    flood: str
    latencies: list[float]
    answers: float
    failed: int

    def percentile(self, share: float) -> float:
        """Seconds within which this share of the requests was answered; infinity if none was."""
        ordered = sorted(self.latencies)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.inf

    def as_json(self) -> dict[str, Any]:
        """As one JSON object, with milliseconds."""
        return {
            "transport": self.transport,
            "flood": self.flood or None,
            "requests": len(self.latencies),
            "failed": self.failed,
            "p50_ms": 1000 * self.percentile(0.5) if self.latencies else None,
            "p95_ms": 1000 * self.percentile(0.95) if self.latencies else None,
            "max_ms": 1000 * self.percentile(1.0) if self.latencies else None,
            "flood_answers_per_second": self.answers,
        }


def add_parser(subparsers: Subparsers) -> None:
    """Add `fairness` to `bench`."""
    parser = subparsers.add_parser(
        "fairness",
        help="the latency of a quiet client beside a flooding one",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--seconds", type=float, default=20.0, metavar="S", help="length of each measurement (20)")
    add(
        "--pause", type=float, default=100.0, metavar="MS", help="between two requests of the quiet one (100)"
    )
    add("--in-flight", type=int, default=32, metavar="N", help="requests of the flood under way (32)")
    add("--rooms", type=int, default=30, metavar="N", help="in an initial sync of the flooding one (30)")
    add("--floods", default=FLOODS, metavar="KIND,...", help=f"beside which it is measured ({FLOODS})")
    add("--repeat", type=int, default=1, metavar="N", help="rounds, whose requests are counted together (1)")
    add("--json", action="store_true", help="write one JSON object instead of the table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, terminal: Terminal) -> Deferred[int]:
    """Measure.

    Returns:
        A Deferred of the exit status.

    Raises:
        CommandError: The arguments make no sense, or it cannot be measured here.
    """
    for name, least in (("seconds", 0), ("pause", 0)):
        if not least < getattr(arguments, name) < math.inf:
            raise CommandError(f"--{name} must be more than 0", EXIT_USAGE)
    for name, most in (("in_flight", 64), ("rooms", 10_000), ("repeat", 1000)):
        if not 1 <= getattr(arguments, name) <= most:
            raise CommandError(f"--{name.replace('_', '-')} must be from 1 to {most}", EXIT_USAGE)
    floods = arguments.floods.split(",")
    if not set(floods) <= set(FLOODS.split(",")):
        raise CommandError(f"--floods: {arguments.floods!r} names others than {FLOODS}", EXIT_USAGE)
    heed_sigterm()
    bench = Bench(arguments, terminal)
    try:
        bench.prepare()
    except BaseException:
        bench.close()
        raise

    async def measured() -> int:
        try:
            rows = await bench.measure()
        finally:
            bench.close()
        value = {
            "bench": "fairness",
            "in_flight": arguments.in_flight,
            "rows": [row.as_json() for row in rows],
        }
        terminal.write(json.dumps(value, indent=1) + "\n" if arguments.json else table(rows))
        return EXIT_OK

    return until_interrupted(measured(), terminal, "synapse-lb bench: interrupted; Synapse has been removed")


class Bench:
    """One measurement.

    Args:
        arguments: of the command.
        terminal: where progress is told.
    """

    def __init__(self, arguments: argparse.Namespace, terminal: Terminal) -> None:
        self._arguments, self._terminal = arguments, terminal
        self._homeserver = ThrowawayHomeserver(presence=False, log_level="WARNING")
        self._quiet = self._flooder = ""
        self._flood: subprocess.Popen[str] | None = None

    def prepare(self) -> None:
        """Start Synapse, and give the flooding one something to sync; blocks.

        Raises:
            CommandError: it did not start.
        """
        self._terminal.error("starting Synapse")
        try:
            self._homeserver.start()
        except (SynapseMissing, HomeserverFailed) as error:
            raise CommandError(str(error)) from error
        self._quiet = str(self._homeserver.register("quiet")["access_token"])
        self._flooder = str(self._homeserver.register("flooder")["access_token"])
        for number in range(self._arguments.rooms):
            body = {"name": f"Room {number}"}
            self._homeserver.request("POST", f"{CLIENT_API}/createRoom", body, self._flooder)

    def close(self) -> None:
        """End everything. Idempotent."""
        flood, self._flood = self._flood, None
        if flood is not None:
            flood.kill()
            flood.communicate()
        self._homeserver.stop()

    async def measure(self) -> list[Row]:
        """Measure everything; both transports of one kind of flood follow each other."""
        cases = [
            (transport, flood)
            for flood in (_ALONE, *self._arguments.floods.split(","))
            for transport in ("coap", "https")
            if (transport, flood) != ("https", RECKLESS)
        ]
        found: dict[tuple[str, str], Row] = {}
        for number in range(self._arguments.repeat):
            for transport, flood in cases:
                row = await self._one(transport, flood)
                self._terminal.error(
                    f"[{number + 1}/{self._arguments.repeat}] {transport}, {TITLES[flood]}: "
                    f"p50 {1000 * row.percentile(0.5):.1f} ms, max {1000 * row.percentile(1):.1f} ms"
                )
                found[transport, flood] = joined(found.get((transport, flood)), row)
        return list(found.values())

    async def _one(self, transport: str, flood: str) -> Row:
        from twisted.internet.threads import deferToThreadPool

        reactor = self._terminal.reactor
        pool = reactor.getThreadPool()
        began = reactor.seconds()
        if flood:
            await deferToThreadPool(reactor, pool, self._begin_flood, transport, flood)
        latencies, failed = await self._ask(transport)
        seconds = reactor.seconds() - began
        answers = await deferToThreadPool(reactor, pool, self._end_flood) if flood else 0
        return Row(transport, flood, latencies, answers / seconds, failed)

    async def _ask(self, transport: str) -> tuple[list[float], int]:
        """Be the quiet client; returns seconds of its requests, and how many failed."""
        from twisted.internet.task import deferLater

        from synapse_lb.client.errors import ClientError

        reactor, latencies, failed = self._terminal.reactor, list[float](), 0
        ask, close = self._connection(transport)
        try:
            # The handshake, and what is sent once for each connection, are not in it.
            await ask(10 * _MARGIN)
            end = reactor.seconds() + self._arguments.seconds
            while reactor.seconds() < end:
                began = reactor.seconds()
                try:
                    status = await ask(_MARGIN)
                    latencies.append(reactor.seconds() - began)
                except ClientError:
                    failed += 1
                else:
                    if status != 200:
                        raise CommandError(f"the quiet client is answered {status}")
                await deferLater(reactor, self._arguments.pause / 1000, lambda: None)
        finally:
            await close()
        return latencies, failed

    def _connection(self, transport: str) -> tuple[Ask, Callable[[], Deferred[None]]]:
        """How the quiet client asks, given the seconds that it waits at most, for a status; and how it goes."""
        from synapse_lb.client.client import LowBandwidthClient
        from synapse_lb.client.https import HttpsTransport
        from synapse_lb.txdtls.context import ClientVerification

        verification = ClientVerification.ca_file(str(self._homeserver.certificate_path))
        reactor, path, token = self._terminal.reactor, f"{CLIENT_API}/account/whoami", self._quiet
        if transport == "coap":
            client = LowBandwidthClient(reactor, self._homeserver.coaps_url, verification=verification)
            return (
                lambda patience: client.request("GET", path, token=token, timeout=patience).addCallback(
                    lambda answer: answer.status
                ),
                client.close,
            )
        https, url = HttpsTransport(reactor, verification), self._homeserver.https_url + path
        headers = {"Authorization": f"Bearer {token}"}
        return (
            lambda patience: https.fetch("GET", url, headers=headers, timeout=patience).addCallback(
                lambda answer: answer.status
            ),
            https.close,
        )

    def _begin_flood(self, transport: str, kind: str) -> None:
        homeserver = self._homeserver
        https = homeserver.https_url.removeprefix("https://")
        orders = Orders(
            transport=transport,
            kind=kind,
            server=homeserver.coaps_url if transport == "coap" else https,
            certificate=str(homeserver.certificate_path),
            token=self._flooder,
            in_flight=self._arguments.in_flight,
        )
        self._flood = flood = subprocess.Popen(
            [sys.executable, "-m", "synapse_lb.cli.bench_fairness_flood"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert flood.stdin is not None and flood.stdout is not None
        flood.stdin.write(json.dumps(attrs.asdict(orders)) + "\n")
        flood.stdin.flush()
        said = flood.stdout.readline().strip()
        if said != BEGUN:
            raise CommandError(f"the flood did not begin: {said or 'it has ended'}")

    def _end_flood(self) -> int:
        flood, self._flood = self._flood, None
        assert flood is not None
        said, _ = flood.communicate()
        return int(said.strip() or 0)


def joined(before: Row | None, row: Row) -> Row:
    """Two rounds of the same in one."""
    if before is None:
        return row
    return attrs.evolve(
        row,
        latencies=before.latencies + row.latencies,
        failed=before.failed + row.failed,
        answers=(before.answers + row.answers) / 2,
    )


def table(rows: list[Row]) -> str:
    """The figures as Markdown: milliseconds, and how many times those of the same transport alone."""
    alone = {row.transport: row for row in rows if not row.flood}
    lines = []
    for row in rows:
        base = alone.get(row.transport)
        cells = []
        for share in (0.5, 0.95, 1.0):
            text = f"{1000 * row.percentile(share):,.1f}" if row.latencies else "-"
            if base is not None and row.flood and row.latencies and base.latencies:
                text += f" ({row.percentile(share) / base.percentile(share):,.1f} x)"
            cells.append(text)
        name = "CoAP" if row.transport == "coap" else "HTTPS"
        flood = f"{row.answers:,.0f}" if row.flood else "-"
        lines.append([f"{name}, {TITLES[row.flood]}", *cells, str(row.failed), flood])
    return markdown(
        "A quiet client", ["", "p50, ms", "p95, ms", "max, ms", "no answer", "flood, answers/s"], lines
    )
