# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an admin may set: the listener ``- type: lowbandwidth`` and the module's own ``config``.

Everything is checked while Synapse reads its configuration; only what needs the running homeserver (certificate
files, the port itself, listeners that collide) is checked when it starts.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs
from synapse.module_api.errors import ConfigError

from synapse_lb.coap.tuning import Limits, Tuning
from synapse_lb.homeserver import hooks, values
from synapse_lb.homeserver.routing_config import DispatchConfig, parse_dispatch
from synapse_lb.homeserver.values import Section
from synapse_lb.server.sync_observer import ObserveOptions
from synapse_lb.txdtls.options import ServerOptions

LISTENER_TYPE: Final = "lowbandwidth"

_BLOCK_SIZES: Final = (16, 32, 64, 128, 256, 512, 1024)

_any_integer: Final = values.integer(0, 2**31 - 1)

_DTLS_FIELDS: Final[dict[str, Callable[[Any], Any]]] = {
    "max_associations": _any_integer,
    "max_associations_per_source": _any_integer,
    "max_unauthenticated": _any_integer,
    "unauthenticated_timeout": values.seconds,
    "evictable_after": values.seconds,
    "handshakes_per_second": _any_integer,
    "max_half_open": _any_integer,
    "handshake_timeout": values.seconds,
    "max_unproven": _any_integer,
    "unproven_per_second": _any_integer,
    "unproven_timeout": values.seconds,
    "move_trials_per_datagram": _any_integer,
    "move_trials_per_source": _any_integer,
    "move_trials_per_second": _any_integer,
    "max_waiting_per_association": _any_integer,
    "max_waiting": _any_integer,
}
_DTLS_LISTENER_FIELDS: Final[dict[str, Callable[[Any], Any]]] = {
    "mtu": _any_integer,
    "idle_timeout": values.seconds,
    "cookie": values.text,
}
_COAP_FIELDS: Final[dict[str, Callable[[Any], Any]]] = {
    "max_request_body": values.size,
    "max_reassemblies_per_peer": _any_integer,
    "max_reassembly_bytes_per_peer": values.size,
    "max_reassembly_bytes_total": values.size,
    "reassembly_lifetime": values.seconds,
    "max_exchanges_per_peer": _any_integer,
    "max_observations_per_peer": _any_integer,
    "dedup_entries_per_peer": _any_integer,
    "dedup_bytes_per_peer": values.size,
    "max_snapshots_per_peer": _any_integer,
    "snapshot_bytes_per_peer": values.size,
    "snapshot_bytes_total": values.size,
    "snapshot_lifetime": values.seconds,
}
_OBSERVE_FIELDS: Final[dict[str, Callable[[Any], Any]]] = {
    "max_observations_per_user": _any_integer,
    "max_syncs_at_once": _any_integer,
}
_TUNING_FIELDS: Final[dict[str, Callable[[Any], Any]]] = {
    "ack_timeout": values.seconds,
    "ack_random_factor": values.number,
    "max_retransmit": _any_integer,
    "nstart": _any_integer,
    "separate_after": values.seconds,
    "notification_processing": values.seconds,
    "adaptive_rto": values.boolean,
    "min_rto": values.seconds,
    "max_rto": values.seconds,
    "q_block": values.boolean,
}
_LISTENER_KEYS: Final = (
    "type",
    "port",
    "bind_addresses",
    "bind_address",
    "reuse_port",
    "handover_path",
    "tls_certificate_path",
    "tls_private_key_path",
    "tag",
    "mtu",
    "idle_timeout",
    "cookie",
    "advertise",
    "advertised_port",
    "observe",
    "x1",
    "dispatch",
    "limits",
    "tuning",
)


@attrs.frozen(kw_only=True)
class LowBandwidthListenerConfig:
    """One entry ``- type: lowbandwidth`` of ``listeners`` or ``worker_listeners``.

    Attributes:
        port: UDP port.
        bind_addresses: IP addresses to listen on.
        reuse_port: Whether other processes may listen on the same port.
        handover_path: Folder of the sockets through which they hand each other clients; None for no such thing.
        certificate_path: PEM certificate chain; None for the homeserver's own, or a generated one.
        key_path: Its PEM private key.
        tag: Its name in the access log.
        advertise: Whether ``/versions`` names it.
        advertised_port: The port that ``/versions`` names.
        observe: Whether ``/sync`` can be observed.
        x1: Whether clients may choose x1.
        dispatch: What other processes serve.
        observe_options: Bounds of what is observed.
        dtls: Settings of the DTLS port.
        limits: Bounds of the CoAP endpoint.
        tuning: Transmission parameters of the CoAP endpoint.
        type: ``lowbandwidth``, for Synapse.
        http_options: None, for Synapse: it is no HTTP listener.
    """

    port: int
    bind_addresses: tuple[str, ...]
    reuse_port: bool = False
    handover_path: str | None = None
    certificate_path: str | None = None
    key_path: str | None = None
    tag: str
    advertise: bool = True
    advertised_port: int
    observe: bool = True
    x1: bool = True
    dispatch: DispatchConfig = attrs.field(factory=DispatchConfig)
    observe_options: ObserveOptions
    dtls: ServerOptions
    limits: Limits
    tuning: Tuning
    type: str = LISTENER_TYPE
    http_options: None = None

    def get_site_tag(self) -> str:
        """Return its name in the logs."""
        return self.tag

    def is_tls(self) -> bool:
        """Return False: Synapse needs no certificate of its own for it."""
        return False


@attrs.frozen(kw_only=True)
class ModuleConfig:
    """The module's ``config``.

    Attributes:
        metrics: Whether to add this module's metrics to those of Synapse.
        advertised_port: What ``/versions`` names in processes of which none of the listeners is known there; None for
            nothing.
    """

    metrics: bool = True
    advertised_port: int | None = None


def parse_module(content: Any) -> ModuleConfig:
    """Read the module's ``config``.

    Raises:
        ConfigError: what is wrong and where.
    """
    section = Section(content if content is not None else {}, ())
    config = ModuleConfig(
        metrics=section.take("metrics", values.boolean, True),
        advertised_port=section.take("advertised_port", values.integer(1, 65535), None),
    )
    section.end(("metrics", "advertised_port"))
    return config


def parse_listener(num: int, content: dict[str, Any]) -> LowBandwidthListenerConfig:
    """Read an entry ``- type: lowbandwidth``.

    Args:
        num: its index among the listeners.
        content: the entry.

    Raises:
        ConfigError: what is wrong and where.
    """
    section = Section(content, ("listeners", str(num)))
    section.take("type", values.text, LISTENER_TYPE)
    port = section.take("port", values.integer(1, 65535), None)
    if port is None:
        raise section.error(
            "port", "is missing: give the UDP port to listen on; that of the HTTP listener will do"
        )
    certificate, key = _paths(section)
    reuse_port = section.take("reuse_port", values.boolean, False)
    dtls = values.fill(section, ServerOptions(), _DTLS_LISTENER_FIELDS)
    dtls, limits, observe_options = _limits(section, dtls)
    config = LowBandwidthListenerConfig(
        port=port,
        bind_addresses=_addresses(section),
        reuse_port=reuse_port,
        handover_path=_handover_path(section, reuse_port),
        certificate_path=certificate,
        key_path=key,
        tag=section.take("tag", values.text, str(port)),
        advertise=section.take("advertise", values.boolean, True),
        advertised_port=section.take("advertised_port", values.integer(1, 65535), port),
        observe=section.take("observe", values.boolean, True),
        x1=section.take("x1", values.boolean, True),
        dispatch=parse_dispatch(section),
        observe_options=observe_options,
        dtls=dtls,
        limits=limits,
        tuning=_tuning(section),
    )
    section.end(_LISTENER_KEYS)
    return config


def check_listeners(listeners: Sequence[LowBandwidthListenerConfig]) -> None:
    """Refuse listeners of which two would use the same socket.

    Raises:
        ConfigError: which ones.
    """
    seen: set[tuple[str, int]] = set()
    for listener in listeners:
        for address in listener.bind_addresses:
            if (address, listener.port) in seen:
                raise ConfigError(
                    f"two listeners of type {LISTENER_TYPE} use port {listener.port} on {address}; "
                    "remove one, or give it another port or other bind_addresses",
                    ("listeners",),
                )
            seen.add((address, listener.port))


def _paths(section: Section) -> tuple[str | None, str | None]:
    paths = []
    for name in ("tls_certificate_path", "tls_private_key_path"):
        path = section.take(name, values.text, None)
        paths.append(os.path.abspath(path) if path is not None else None)
    certificate, key = paths
    if (certificate is None) != (key is None):
        missing = "tls_certificate_path" if certificate is None else "tls_private_key_path"
        raise section.error(missing, "is missing: give both a certificate and its key, or neither")
    return certificate, key


def _handover_path(section: Section, reuse_port: bool) -> str | None:
    path = section.take("handover_path", values.text, None)
    if path is not None and not reuse_port:
        raise section.error("handover_path", "is for processes that share a port: set reuse_port to true")
    return os.path.abspath(path) if path is not None else None


def _addresses(section: Section) -> tuple[str, ...]:
    given = list(section.take("bind_addresses", values.texts, ()))
    single = section.take("bind_address", values.text, None)
    if single is not None:
        given.append(single)
    for address in given:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise section.error("bind_addresses", f"{address!r} is no IP address") from None
        if given.count(address) > 1:
            raise section.error("bind_addresses", f"{address!r} is there twice")
    return tuple(given) or tuple(hooks.DEFAULT_BIND_ADDRESSES)


def _limits(section: Section, dtls: ServerOptions) -> tuple[ServerOptions, Limits, ObserveOptions]:
    inner = Section(section.take("limits", _as_it_is, {}), (*section.path, "limits"))
    dtls = values.fill(inner, dtls, _DTLS_FIELDS)
    block_size = inner.take("block_size", _block_size, None)
    limits = values.fill(inner, Limits(), _COAP_FIELDS)
    observe = values.fill(inner, ObserveOptions(), _OBSERVE_FIELDS)
    if block_size is not None:
        limits = attrs.evolve(limits, block_szx=_BLOCK_SIZES.index(block_size))
    inner.end((*_DTLS_FIELDS, *_COAP_FIELDS, *_OBSERVE_FIELDS, "block_size"))
    return dtls, limits, observe


def _tuning(section: Section) -> Tuning:
    inner = Section(section.take("tuning", _as_it_is, {}), (*section.path, "tuning"))
    tuning = values.fill(inner, Tuning(q_block=True), _TUNING_FIELDS)
    inner.end(_TUNING_FIELDS)
    return tuning


def _as_it_is(value: Any) -> Any:
    return value


def _block_size(value: Any) -> int:
    if isinstance(value, bool) or value not in _BLOCK_SIZES:
        raise ValueError(f"must be one of {', '.join(map(str, _BLOCK_SIZES))}, not {value!r}")
    return int(value)
