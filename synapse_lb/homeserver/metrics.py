# SPDX-License-Identifier: AGPL-3.0-or-later
"""The counters of all rooms as Prometheus metrics ``synapse_lb_*``, beside Synapse's own.

Nothing is counted here: a scrape reads the counters that the DTLS ports, CoAP endpoints and gateways keep. What
a request took in Synapse is in Synapse's own request metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import attrs
from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from synapse_lb.homeserver.listener import BoundPort, Listener
from synapse_lb.server.sync_observer import ObserverCounters


def _observed(port: BoundPort) -> ObserverCounters:
    observer = port.gateway.observer
    return ObserverCounters() if observer is None else observer.counters


_LABELS: Final = ("server_name", "listener", "address")

_GAUGES: Final[tuple[tuple[str, str, Callable[[BoundPort], int]], ...]] = (
    ("synapse_lb_associations", "DTLS associations", lambda port: port.dtls.associations),
    ("synapse_lb_handshakes", "DTLS handshakes that are not finished", lambda port: port.dtls.handshakes),
    ("synapse_lb_observations", "Observations of /sync", lambda port: port.gateway.observations),
    ("synapse_lb_requests_running", "Requests that are being served", lambda port: port.gateway.running),
)

_ROOMS: Final[tuple[tuple[str, str, Callable[[BoundPort], Any]], ...]] = (
    ("dtls", "DTLS", lambda port: port.dtls.counters),
    ("coap", "CoAP", lambda port: port.gateway.endpoint.counters),
    ("gateway", "Matrix over CoAP", lambda port: port.gateway.counters),
    ("observe", "OBSERVE on /sync", _observed),
)


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
        for name, text, value in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=_LABELS)
            for labels, port in ports:
                gauge.add_metric(labels, value(port))
            yield gauge
        for room, title, counters in _ROOMS:
            yield from _counters(room, title, [(labels, counters(port)) for labels, port in ports])


def _counters(room: str, title: str, found: list[tuple[tuple[str, ...], Any]]) -> Iterator[Metric]:
    if not found:
        return
    for field in attrs.fields(type(found[0][1])):
        metric = CounterMetricFamily(
            f"synapse_lb_{room}_{field.name}", f"{title}: {field.name.replace('_', ' ')}", labels=_LABELS
        )
        for labels, counters in found:
            metric.add_metric(labels, getattr(counters, field.name))
        yield metric
