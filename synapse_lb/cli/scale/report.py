# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `bench scale` has measured, as tables and as JSON."""

from __future__ import annotations

import statistics
from typing import Any, Final

import attrs

from synapse_lb.cli.bench_results import markdown
from synapse_lb.cli.scale.bodies import Writing
from synapse_lb.cli.scale.crowds import Push, Stage
from synapse_lb.cli.scale.requests import Cost, Handshakes, Junk

HEARTBEAT: Final = 285.0
"""Seconds of silence after which the client library pings, where the network allows it."""


@attrs.define
class Results:
    """Everything; what was not measured is empty or None.

    Attributes:
        conditions: versions and such.
        idle_alone: share of a core that Synapse takes without clients.
        stages: crowds of clients.
        costs: requests.
        handshakes: the handshakes.
        junk: what belongs to nobody.
        writing: large bodies, each.
    """

    conditions: dict[str, Any]
    idle_alone: float | None = None
    stages: list[Stage] = attrs.field(factory=list)
    costs: list[Cost] = attrs.field(factory=list)
    handshakes: Handshakes | None = None
    junk: Junk | None = None
    writing: list[Writing] = attrs.field(factory=list)

    def as_json(self) -> dict[str, Any]:
        """As one JSON object; times in seconds, memory in bytes."""
        return {
            "bench": "scale",
            **attrs.asdict(self),
            "costs": [{**attrs.asdict(cost), "ratio": cost.ratio} for cost in self.costs],
            "writing": [{**attrs.asdict(body), "ratio": body.ratio} for body in self.writing],
        }

    def as_text(self) -> str:
        """As tables."""
        parts = []
        if self.stages:
            parts += [_crowds(self.stages, self.idle_alone or 0.0), _pushes(self.stages)]
        if self.costs:
            parts.append(_requests(self.costs))
        if self.handshakes is not None and self.junk is not None:
            parts.append(_arrivals(self.handshakes, self.junk))
        if self.writing:
            parts.append(_writing(self.writing))
        return "\n".join(parts)


def _crowds(stages: list[Stage], alone: float) -> str:
    rows = [
        [
            f"{stage.clients:,} {stage.kind}",
            f"{stage.memory / 1000:.1f}",
            f"{stage.idle:.2%}",
            "-" if stage.ping is None else f"{stage.ping * 1e6:.0f}",
            "-" if stage.ping is None else f"{stage.idle + stage.clients * stage.ping / HEARTBEAT:.2%}",
            f"{stage.arrival * 1000:.1f}",
        ]
        for stage in stages
    ]
    head = [
        "clients",
        "kB each",
        "idle, of a core",
        "ping, µs",
        f"with pings every {HEARTBEAT:.0f} s",
        "arrival, ms",
    ]
    title = f"Clients that wait (Synapse alone takes {alone:.2%} of a core)"
    return markdown(title, head, rows)


def _pushes(stages: list[Stage]) -> str:
    def middle(pushes: list[Push], name: str) -> float:
        return float(statistics.median(getattr(push, name) for push in pushes))

    rows = [
        [
            f"{stage.clients:,} {stage.kind}",
            f"{stage.pushes[0].observers:,}",
            f"{len(stage.pushes)}",
            f"{middle(stage.pushes, 'median'):.2f}",
            f"{middle(stage.pushes, 'seconds'):.2f}",
            f"{middle(stage.pushes, 'cpu'):.2f}",
            f"{middle(stage.pushes, 'cpu') / stage.pushes[0].observers * 1000:.2f}",
            f"{stage.lost}",
        ]
        for stage in stages
        if stage.pushes
    ]
    head = ["clients", "told", "messages", "half, s", "all, s", "CPU, s", "CPU each, ms", "lost datagrams"]
    return markdown("A message to a room (medians)", head, rows)


def _requests(costs: list[Cost]) -> str:
    rows = [
        [
            cost.name,
            f"{statistics.median(cost.coap) * 1e6:,.0f}",
            f"{statistics.median(cost.https) * 1e6:,.0f}",
            f"{cost.ratio:.2f}",
        ]
        for cost in costs
    ]
    return markdown(
        "Processor time of the server for a request (medians of blocks)",
        ["request", "CoAP, µs", "HTTPS, µs", "ratio"],
        rows,
    )


def _arrivals(handshakes: Handshakes, junk: Junk) -> str:
    rows = [
        [name, f"{seconds * 1e6:,.1f}", f"{1 / seconds:,.0f}" if seconds else "-"]
        for name, seconds in (
            ("handshake, full", handshakes.full),
            ("handshake, resumed", handshakes.resumed),
            ("datagram of garbage", junk.garbage),
            ("junk record", junk.records),
        )
    ]
    title = "What comes in at the port: processor time of the server, and how many of them fill a core"
    return markdown(title, ["", "µs", "per second"], rows)


def _writing(bodies: list[Writing]) -> str:
    rows = [
        [
            body.name,
            f"{body.json_bytes:,}",
            f"{body.json * 1000:.2f}",
            f"{body.cbor_bytes:,}",
            f"{body.cbor * 1000:.2f}",
            f"{body.ratio:.2f}",
        ]
        for body in bodies
    ]
    head = ["", "JSON, bytes", "ms", "CBOR, bytes", "ms", "ratio"]
    return markdown("To write the body of a large /sync, processor time (least of several)", head, rows)
