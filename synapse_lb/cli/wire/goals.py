# SPDX-License-Identifier: AGPL-3.0-or-later
"""The goals that the figures are held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import attrs

from synapse_lb.cli.https_meter import Wire
from synapse_lb.client.counters import Traffic
from synapse_lb.client.persistence import Persistence

Coap = Mapping[str, Mapping[str, Traffic]]
"""Of each mode, what each operation took."""

PACKETS_WITH_COOKIE: Final = 8


@attrs.frozen
class Verdict:
    """One goal, held against what was measured.

    Attributes:
        goal: what it asks for.
        most: the most that it allows.
        measured: what it is.
    """

    goal: str
    most: float
    measured: float

    @property
    def holds(self) -> bool:
        """Whether it is reached."""
        return self.measured <= self.most

    def line(self) -> str:
        """One line for a screen."""
        mark = "holds " if self.holds else "MISSED"
        return f"{mark} {self.goal}: {_number(self.measured)} (at most {_number(self.most)})"


@attrs.frozen
class Goal:
    """What one operation of one mode should take.

    Attributes:
        mode: name of the mode.
        operation: key of the operation.
        text: what it is about.
        most: the most that is allowed.
        measure: what of the figure is meant.
    """

    mode: str
    operation: str
    text: str
    most: float
    measure: Callable[[Traffic], float]

    def verdict(self, coap: Coap) -> Verdict | None:
        """Hold it against the figures; None if this mode was not measured."""
        if self.mode not in coap:
            return None
        return Verdict(f"{self.mode}: {self.text}", self.most, self.measure(coap[self.mode][self.operation]))


def packets(figure: Traffic) -> int:
    """Both ways together."""
    return figure.datagrams_sent + figure.datagrams_received


def total(figure: Traffic) -> int:
    """IP bytes both ways together."""
    return figure.ip_bytes_sent + figure.ip_bytes_received


def sent(figure: Traffic) -> int:
    """IP bytes of the client."""
    return figure.ip_bytes_sent


def received(figure: Traffic) -> int:
    """IP bytes of the server."""
    return figure.ip_bytes_received


def goals(cookie: bool) -> tuple[Goal, ...]:
    """The goals for single figures.

    Args:
        cookie: whether the first handshake had a round trip for its cookie.
    """
    first = (PACKETS_WITH_COOKIE, 1600) if cookie else (6, 1420)
    return (
        Goal("v1", "connect_first", "first connection, packets", first[0], packets),
        Goal("v1", "connect_first", "first connection, bytes", first[1], total),
        Goal("v1", "connect_resumed", "resumed connection, packets", 4, packets),
        Goal("v1", "connect_resumed", "resumed connection, bytes", 730, total),
        Goal("x1", "connect_first", "first connection, bytes", 1480, total),
        Goal("x1", "connect_resumed", "resumed connection, bytes", 610, total),
        Goal("x1", "send", '"Hello World", request', 95, sent),
        Goal("x1", "send", '"Hello World", answer', 105, received),
        Goal("x1", "send_brief", "answer without its body", 66, received),
        Goal("x1", "push", "a message arrives, its datagram", 160, received),
    )


def verdicts(coap: Coap, https: Mapping[str, Mapping[str, Wire]]) -> list[Verdict]:
    """Hold the figures against the goals that they are about."""
    cookie = any(packets(figures["connect_first"]) >= PACKETS_WITH_COOKIE for figures in coap.values())
    found = [goal.verdict(coap) for goal in goals(cookie) if goal.operation in coap.get(goal.mode, ())]
    if "x1" in coap and "v1" in coap:
        for key, title, share in (
            ("send_encrypted", "encrypted event, sent: share of version 1", 0.6),
            ("push_encrypted", "encrypted event, arriving: share of version 1", 0.6),
        ):
            found.append(Verdict(f"x1: {title}", share, _share(coap["x1"][key], total(coap["v1"][key]))))
    if "x1" in coap and "gzip" in https:
        gzip = https["gzip"]["sync_initial"].bytes
        found.append(
            Verdict(
                "x1: initial sync, share of HTTPS with gzip", 0.8, _share(coap["x1"]["sync_initial"], gzip)
            )
        )
    if "v1" in coap:
        # Two packets break a silence of so long, where the network allows it.
        idle = total(coap["v1"]["keepalive"]) * 60 / Persistence().heartbeat
        found.append(Verdict("idle observer, bytes a minute", 40, idle))
    return [verdict for verdict in found if verdict is not None]


def _share(figure: Traffic, of: int) -> float:
    return total(figure) / of


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
