# SPDX-License-Identifier: AGPL-3.0-or-later
"""The counters of all rooms as Prometheus metrics ``synapse_lb_*``, beside Synapse's own.

Nothing is counted here: a scrape reads the counters that the DTLS ports, CoAP endpoints and gateways keep. What
a request took in Synapse is in Synapse's own request metrics. docs/monitoring.md says what they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import attrs
from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from synapse_lb import __version__
from synapse_lb.homeserver.handover import HandoverCounters
from synapse_lb.homeserver.listener import BoundPort, Listener
from synapse_lb.server.roster import STATES
from synapse_lb.server.sync_observer import ObserverCounters
from synapse_lb.upstream.http import UpstreamCounters

HANDSHAKE: Final = "handshake"
"""The state of an association whose handshake is under way."""


def _observed(port: BoundPort) -> ObserverCounters:
    observer = port.gateway.observer
    return ObserverCounters() if observer is None else observer.counters


def _waiting(port: BoundPort) -> int:
    observer = port.gateway.observer
    return 0 if observer is None else observer.waiting


def _passed_on(port: BoundPort) -> UpstreamCounters:
    return UpstreamCounters() if port.upstream is None else port.upstream.counters


def _handed_over(port: BoundPort) -> HandoverCounters:
    return HandoverCounters() if port.handover is None else port.handover.counters


def _saved(port: BoundPort) -> int:
    """What HTTP would have taken, less all UDP payload: DTLS, handshakes, repetitions and junk included."""
    counted = port.dtls.counters
    return port.gateway.counters.http_bytes - counted.bytes_received - counted.bytes_sent


_LABELS: Final = ("server_name", "listener", "address")

_GAUGES: Final[tuple[tuple[str, str, Callable[[BoundPort], float]], ...]] = (
    ("strangers", "Associations without a valid access token so far", lambda port: port.dtls.strangers),
    ("observations", "Observations of /sync", lambda port: port.gateway.observations),
    ("observations_waiting", "Observations that wait for their turn to sync", _waiting),
    ("requests_running", "Requests that are being served", lambda port: port.gateway.running),
    ("peers", "Clients of which CoAP keeps something", lambda port: len(port.gateway.endpoint.peers)),
    ("exchanges", "Requests that are open, both ways", lambda port: port.gateway.endpoint.open_exchanges),
    ("reassembly_bytes", "Request bodies half received", lambda port: port.gateway.endpoint.reassembly_bytes),
    ("snapshot_bytes", "Response bodies being fetched", lambda port: port.gateway.endpoint.snapshot_bytes),
    ("http_bytes_saved", "Bytes that HTTP would have taken beyond what UDP took", _saved),
    ("certificate_expiry_seconds", "When the certificate expires, since 1970", lambda port: port.expires),
)

_ROOMS: Final[tuple[tuple[str, str, Callable[[BoundPort], Any]], ...]] = (
    ("dtls", "DTLS", lambda port: port.dtls.counters),
    ("coap", "CoAP", lambda port: port.gateway.endpoint.counters),
    ("gateway", "Matrix over CoAP", lambda port: port.gateway.counters),
    ("observe", "OBSERVE on /sync", _observed),
    ("handover", "Handed over among processes", _handed_over),
    ("dispatch", "Passed on to other processes", _passed_on),
)

_DROPS: Final = (
    ("not_dtls", "dtls", "datagrams_malformed"),
    ("bad_hello", "dtls", "hellos_malformed"),
    ("late_hello", "dtls", "hellos_duplicate"),
    ("no_association", "dtls", "datagrams_unknown"),
    ("too_many_handshakes", "dtls", "handshakes_refused"),
    ("not_authentic", "dtls", "records_discarded"),
    ("flood", "dtls", "datagrams_overflowed"),
    ("network", "dtls", "send_errors"),
    ("not_coap", "coap", "malformed"),
    ("unmatched", "coap", "unmatched"),
    ("duplicate", "coap", "duplicates"),
    ("overload", "coap", "requests_overload"),
)
"""Reason, room and counter of what was dropped."""


class MetricsCollector(Collector):
    """Hands the counters of a homeserver's listeners to Prometheus.

    Args:
        server_name: the homeserver's name, a label.
        listeners: the listeners.
    """

    def __init__(self, server_name: str, listeners: Sequence[Listener]) -> None:
        self._server_name = server_name
        self._listeners = listeners

    def register(self) -> None:
        """Add the metrics to those that Synapse exports."""
        REGISTRY.register(self)

    def unregister(self) -> None:
        """Take them away again."""
        REGISTRY.unregister(self)

    def describe(self) -> list[Metric]:
        """Return nothing, so that several homeservers in one process may each have a collector."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read all counters."""
        ports = [
            ((self._server_name, listener.config.tag, port.address), port)
            for listener in self._listeners
            for port in listener.ports
        ]
        build = GaugeMetricFamily(
            "synapse_lb_build", "The version that runs", labels=("server_name", "version")
        )
        build.add_metric((self._server_name, __version__), 1)
        yield build
        for name, text, value in _GAUGES:
            gauge = GaugeMetricFamily(f"synapse_lb_{name}", text, labels=_LABELS)
            for labels, port in ports:
                gauge.add_metric(labels, value(port))
            yield gauge
        for room, title, counters in _ROOMS:
            yield from _counters(room, title, [(labels, counters(port)) for labels, port in ports])
        reads = [((self._server_name, listener.config.tag), listener.reads) for listener in self._listeners]
        yield from _counters("reads", "Read for observers", reads, _LABELS[:2])
        yield _by("associations", "DTLS associations", "state", GaugeMetricFamily, _states, ports)
        yield _by(
            "handshakes", "DTLS handshakes that ended", "outcome", CounterMetricFamily, _outcomes, ports
        )
        yield _by(
            "handshake_failures",
            "Fatal alerts in handshakes",
            "reason",
            CounterMetricFamily,
            _failures,
            ports,
        )
        yield _by("dropped", "What was not taken", "reason", CounterMetricFamily, _dropped, ports)


_Ports = Sequence[tuple[tuple[str, ...], BoundPort]]


def _counters(
    room: str, title: str, found: Sequence[tuple[tuple[str, ...], Any]], names: Sequence[str] = _LABELS
) -> Iterator[Metric]:
    if not found:
        return
    for field in attrs.fields(type(found[0][1])):
        if not isinstance(getattr(found[0][1], field.name), int):
            continue  # `ServerCounters.failures`, which has a metric of its own.
        metric = CounterMetricFamily(
            f"synapse_lb_{room}_{field.name}", f"{title}: {field.name.replace('_', ' ')}", labels=names
        )
        for labels, counters in found:
            metric.add_metric(labels, getattr(counters, field.name))
        yield metric


def _by(
    name: str,
    text: str,
    label: str,
    family: type[GaugeMetricFamily] | type[CounterMetricFamily],
    values: Callable[[BoundPort], Mapping[str, int]],
    ports: _Ports,
) -> Metric:
    """A metric with one more label."""
    metric = family(f"synapse_lb_{name}", text, labels=(*_LABELS, label))
    for labels, port in ports:
        for value, number in values(port).items():
            metric.add_metric((*labels, value), number)
    return metric


def _states(port: BoundPort) -> Mapping[str, int]:
    """The handshakes under way, and the associations by their state."""
    states = dict.fromkeys((HANDSHAKE, *STATES), 0)
    states[HANDSHAKE] = port.dtls.handshakes
    for each in port.gateway.present:
        states[each.state] += 1
    return states


def _outcomes(port: BoundPort) -> Mapping[str, int]:
    counted = port.dtls.counters
    return {
        "full": counted.handshakes_completed - counted.handshakes_resumed,
        "resumed": counted.handshakes_resumed,
        "failed": counted.handshakes_failed,
        "timed_out": counted.handshakes_timed_out,
        "superseded": counted.handshakes_superseded,
        "evicted": counted.handshakes_evicted,
    }


def _failures(port: BoundPort) -> Mapping[str, int]:
    return {"refused": 0, **port.dtls.counters.failures}


def _dropped(port: BoundPort) -> Mapping[str, int]:
    rooms = {"dtls": port.dtls.counters, "coap": port.gateway.endpoint.counters}
    return {reason: getattr(rooms[room], counter) for reason, room, counter in _DROPS}
