# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the proxy has done: requests, bytes on the wire, and bytes that HTTP with JSON would have taken."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import attrs

from synapse_lb.client.counters import Traffic

TLS_RECORD: Final = 22
"""Bytes around the content of a TLS 1.3 record: header 5, content type 1, tag 16 (RFC 8446 section 5.2)."""

TLS_RECORD_CONTENT: Final = 16384
"""Bytes of content in a record at most (RFC 8446 section 5.1)."""

TCP_IP_HEADERS: Final = 52
"""Bytes of IPv4 (20) and TCP (20), with TCP's timestamps (12; RFC 7323) as every system sends them."""

TCP_SEGMENT: Final = 1448
"""Bytes of content in a segment at an MTU of 1500."""

SAMPLES: Final = 720
"""Points of the plot that are kept; the oldest goes first."""


def https_bytes(request: int, answer: int) -> int:
    """Bytes of IP packets that a request and its answer take over HTTP/1.1 and TLS 1.3 on a connection that is open.

    Handshakes, pings and lost packets are left out, so that HTTPS takes more as a rule. Bodies are not
    compressed, as Synapse sends them.

    Args:
        request: bytes of the HTTP request, with its headers.
        answer: bytes of the HTTP answer, with its headers.

    Returns:
        Both, in TLS records and TCP segments, with one acknowledgement for two segments of the answer; those of the
        request ride on the answer.
    """
    packets = 0
    total = 0
    for size in (request, answer):
        content = size + TLS_RECORD * max(1, -(-size // TLS_RECORD_CONTENT))
        packets = -(-content // TCP_SEGMENT)
        total += content + packets * TCP_IP_HEADERS
    return total + -(-packets // 2) * TCP_IP_HEADERS


@attrs.frozen
class Sample:
    """One point of the plot.

    Attributes:
        time: s since the proxy was started.
        requests: so far.
        wire: bytes so far.
        http: bytes so far.
    """

    time: float
    requests: int
    wire: int
    http: int


@attrs.define
class Statistics:
    """Counters; every number is since the start.

    Attributes:
        coap: requests that were answered over CoAP, `/sync` included.
        dropped: requests that `--lean` has answered and not sent.
        https: requests that went over HTTPS.
        failed: requests to which the homeserver's answer did not come.
        http: bytes that the requests of `coap` and `dropped` would have taken, by `https_bytes`.
        https_wire: bytes of the requests of `https`, by the same reckoning; part of neither side.
    """

    coap: int = 0
    dropped: int = 0
    https: int = 0
    failed: int = 0
    http: int = 0
    https_wire: int = 0
    samples: deque[Sample] = attrs.field(factory=lambda: deque(maxlen=SAMPLES))

    @property
    def requests(self) -> int:
        """All that were answered."""
        return self.coap + self.dropped + self.https + self.failed

    def sample(self, time: float, traffic: Traffic) -> None:
        """Keep a point of the plot."""
        self.samples.append(Sample(round(time, 1), self.requests, wire_bytes(traffic), self.http))


def wire_bytes(traffic: Traffic) -> int:
    """Bytes of IP packets both ways: UDP, DTLS and its handshakes, acknowledgements, repetitions, pings."""
    return traffic.ip_bytes_sent + traffic.ip_bytes_received


def saving(wire: int, http: int) -> float | None:
    """Percent of the bytes of HTTP that were not needed; None before there is anything to compare."""
    return None if not http else round(100 * (1 - wire / http), 1)


def summary(statistics: Statistics, traffic: Traffic) -> dict[str, Any]:
    """The numbers that people look at first."""
    wire = wire_bytes(traffic)
    return {
        "requests": statistics.requests,
        "requests_coap": statistics.coap,
        "requests_dropped": statistics.dropped,
        "requests_https": statistics.https,
        "requests_failed": statistics.failed,
        "wire_bytes": wire,
        "http_bytes": statistics.http,
        "saving_percent": saving(wire, statistics.http),
        "https_bytes": statistics.https_wire,
    }


def line(numbers: dict[str, Any]) -> str:
    """One line of statistics, from a `summary`."""
    text = (
        f"{numbers['requests']} requests, {_bytes(numbers['wire_bytes'])} on the wire, "
        f"{_bytes(numbers['http_bytes'])} as HTTP and JSON"
    )
    percent = numbers["saving_percent"]
    if percent is not None:
        text += f", {percent:.1f} % saved" if percent >= 0 else f", {-percent:.1f} % more"
    if numbers["requests_https"]:
        text += f"; {numbers['requests_https']} over HTTPS"
    return text


def _bytes(number: int) -> str:
    if number < 10_000:
        return f"{number:,} B"
    return f"{number / 1000:,.1f} kB" if number < 10_000_000 else f"{number / 1_000_000:,.1f} MB"
