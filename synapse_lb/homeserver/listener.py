# SPDX-License-Identifier: AGPL-3.0-or-later
"""One ``- type: lowbandwidth`` listener at work: its UDP ports, their gateways, its certificate."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from attrs import frozen
from synapse.module_api.errors import ConfigError
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import CannotListenError

from synapse_lb.homeserver import hooks, routing
from synapse_lb.homeserver.certificates import CertificateSource, ExpiryWatch
from synapse_lb.homeserver.config import LowBandwidthListenerConfig
from synapse_lb.homeserver.dispatch import SynapseDispatcher
from synapse_lb.homeserver.handover import Handover
from synapse_lb.homeserver.ports import listen_udp
from synapse_lb.homeserver.shared_reads import ReadCounters
from synapse_lb.server.dispatcher import Dispatcher
from synapse_lb.server.gateway import Gateway
from synapse_lb.server.news import NewsWaiter
from synapse_lb.txdtls.context import ServerContext
from synapse_lb.txdtls.port import DTLSServerPort
from synapse_lb.upstream.http import HttpUpstream

logger = logging.getLogger(__name__)


@frozen
class BoundPort:
    """One UDP socket with what serves it."""

    address: str
    transport: Any
    dtls: DTLSServerPort
    gateway: Gateway
    handover: Handover | None
    """Hands over what other processes know, where the port is shared."""
    upstream: HttpUpstream | None
    """Asks other processes, where there are any."""
    certificate: Callable[[], ServerContext]
    """The certificate that new handshakes use."""

    @property
    def expires(self) -> float:
        """When the certificate expires, in seconds since 1970."""
        return self.certificate().expires


class Listener:
    """Opens, reloads and closes what a listener's configuration asks for.

    Args:
        homeserver: the homeserver that serves the requests.
        config: the listener.
        news: makes the source of news for observers, which all listeners share.

    Attributes:
        reads: what the syncs of observers have read together.

    Raises:
        ConfigError: the certificate cannot be used.
    """

    def __init__(
        self,
        homeserver: hooks.Homeserver,
        config: LowBandwidthListenerConfig,
        news: Callable[[], NewsWaiter],
    ) -> None:
        self.config: Final = config
        self.ports: list[BoundPort] = []
        self.reads = ReadCounters()
        self._homeserver = homeserver
        self._news = news
        routing.check(homeserver, config.dispatch, ("listeners", config.tag, "dispatch"))
        self._certificate = CertificateSource(homeserver, config)
        self._context = self._certificate.load()
        self._watch = ExpiryWatch(
            homeserver.reactor,
            lambda: self._context.expires,
            f"The certificate {self._certificate.certificate_path}",
        )

    def start(self) -> None:
        """Open the ports.

        Raises:
            ConfigError: one cannot be opened; none is left open.
        """
        local = SynapseDispatcher(
            self._homeserver, tag=self.config.tag, port=self.config.port, host=self._own_address()
        )
        self.reads = local.reads
        try:
            for address in self.config.bind_addresses:
                self._bind(address, local)
        except ConfigError:
            self.stop()
            raise
        self._watch.start()
        logger.info(
            "Synapse now listening on UDP port %d (low bandwidth: CoAP over DTLS) on %s; "
            "certificate %s, SHA-256 fingerprint %s",
            self.config.port,
            ", ".join(port.address for port in self.ports),
            self._certificate.certificate_path,
            self._context.fingerprint,
        )

    def reload(self) -> None:
        """Load the certificate again; if it cannot be used, say so and keep the one in use."""
        try:
            context = self._certificate.load()
        except ConfigError as error:
            logger.error(
                "Low-bandwidth listener on port %d keeps its certificate: %s", self.config.port, error.msg
            )
            return
        self._context = context
        for port in self.ports:
            port.dtls.replace_context(context)
        logger.info(
            "Low-bandwidth listener on port %d has loaded its certificate; SHA-256 fingerprint %s",
            self.config.port,
            context.fingerprint,
        )

    def stop(self) -> None:
        """Tell observers, send close_notify to all clients and close the ports. Idempotent."""
        self._watch.stop()
        ports, self.ports = self.ports, []
        for port in ports:
            port.gateway.end_observations()
            port.dtls.shutdown()
            port.gateway.shutdown()
            port.transport.stopListening()
            if port.handover is not None:
                port.handover.stop()
            if port.upstream is not None:
                port.upstream.close()

    def _bind(self, address: str, local: SynapseDispatcher) -> None:
        reactor = self._homeserver.reactor
        dispatcher: Dispatcher = local
        upstream = None
        if self.config.dispatch:
            dispatcher = router = routing.build(self._homeserver, self.config.dispatch, local)
            upstream = router.upstream
        gateway = Gateway(
            dispatcher,
            clock=reactor,
            random=random.SystemRandom(),
            tuning=self.config.tuning,
            limits=self.config.limits,
            news=self._news() if self.config.observe else None,
            observe=self.config.observe_options,
            x1=self.config.x1,
        )
        dtls = DTLSServerPort(
            context=self._context, handler=gateway, options=self.config.dtls, reactor=reactor
        )
        gateway.attach(dtls)
        try:
            transport = listen_udp(
                reactor, self.config.port, dtls, address, reuse_port=self.config.reuse_port
            )
        except CannotListenError as error:
            try:
                hooks.check_bind_error(error, address, self.config.bind_addresses)
            except CannotListenError:
                raise _cannot_listen(address, self.config.port, error) from None
            return
        handover = self._handover(address, dtls)
        self.ports.append(
            BoundPort(address, transport, dtls, gateway, handover, upstream, lambda: self._context)
        )
        if handover is not None:
            handover.start()
            dtls.on_stray = handover.hand_over

    def _handover(self, address: str, dtls: DTLSServerPort) -> Handover | None:
        if self.config.handover_path is None:
            return None
        homeserver, name = self._homeserver, f"{address.replace(':', '_')}-{self.config.port}"
        folder = Path(self.config.handover_path)
        return Handover(homeserver.reactor, folder, name, homeserver.instance_name, dtls)

    def _own_address(self) -> IPv4Address | IPv6Address:
        address = self.config.bind_addresses[0]
        kind = IPv6Address if ":" in address else IPv4Address
        return kind("UDP", address, self.config.port)


def _cannot_listen(address: str, port: int, error: CannotListenError) -> ConfigError:
    reason = getattr(error.socketError, "strerror", None) or str(error.socketError)
    return ConfigError(
        f"cannot listen on UDP port {port} of {address}: {reason}; stop what uses it, "
        "or change port or bind_addresses of the listener",
        ("listeners",),
    )
