# SPDX-License-Identifier: AGPL-3.0-or-later
"""The gateway at work: its UDP port, its TCP port, its certificate."""

from __future__ import annotations

import random
from typing import Any, Final

import attrs
from OpenSSL import SSL
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from synapse_lb.coap.tuning import Limits, Tuning
from synapse_lb.server.gateway import Gateway
from synapse_lb.server.sync_observer import ObserveOptions
from synapse_lb.standalone.news import PollingNews
from synapse_lb.standalone.reverse import site
from synapse_lb.standalone.rewriting import Advertisement
from synapse_lb.standalone.upstream import Upstream
from synapse_lb.txdtls.context import ClientVerification, make_server_context
from synapse_lb.txdtls.errors import DTLSError
from synapse_lb.txdtls.options import ServerOptions
from synapse_lb.txdtls.port import DTLSServerPort

MAX_DATAGRAM: Final = 65535
_TLS_1_2: Final = 0x0303


class ServiceError(Exception):
    """The gateway cannot start; the text says what to mend."""


@attrs.frozen(kw_only=True)
class ServiceOptions:
    """What a gateway is to do.

    Attributes:
        local: base URL of the homeserver.
        certificate_path: PEM certificate chain of the gateway.
        key_path: its PEM private key.
        address: IP address to listen on.
        port: UDP port, and TCP port if there is one; 0 chooses one.
        advertise: HTTPS base URL that clients are told in place of the homeserver's own; None tells none, and opens
            no TCP port.
        advertise_port: UDP port that `/versions` names; None for the port itself.
        tcp: whether there is a TCP port if `advertise` is given.
        forwarded_for: whether the homeserver is told the clients' addresses.
        observe: whether `/sync` can be observed.
        x1: whether clients may choose x1.
        poll_timeout: seconds that the homeserver holds long polls back that stand behind observations.
        timeout: seconds that the homeserver may take for an answer.
        max_requests: requests under way at the homeserver.
        max_associations: clients.
        idle_timeout: seconds of silence until a client is forgotten.
        verification: how the homeserver's certificate is checked.
    """

    local: str
    certificate_path: str
    key_path: str
    address: str = "0.0.0.0"
    port: int = 8448
    advertise: str | None = None
    advertise_port: int | None = None
    tcp: bool = True
    forwarded_for: bool = False
    observe: bool = True
    x1: bool = True
    poll_timeout: float = 30.0
    timeout: float = 120.0
    max_requests: int = 2000
    max_associations: int = 5000
    idle_timeout: float = 86400.0
    verification: ClientVerification = attrs.field(factory=ClientVerification.system)


class GatewayService:
    """A gateway between clients that speak CoAP and a homeserver that does not.

    Args:
        reactor: Twisted's reactor.
        options: what it is to do.

    Attributes:
        gateway: serves the associations.
        upstream: asks the homeserver.
        fingerprint: of the certificate.

    Raises:
        ServiceError: the certificate cannot be used.
    """

    _log = Logger()

    def __init__(self, reactor: Any, options: ServiceOptions) -> None:
        self._reactor = reactor
        self._options = options
        self._udp: Any = None
        self._tcp: Any = None
        context = self._load()
        self.fingerprint: str = context.fingerprint
        self._tls = _TlsContext(options)
        self.upstream = Upstream(
            reactor,
            options.local,
            advertisement=Advertisement(options.port),
            forwarded_for=options.forwarded_for,
            max_requests=options.max_requests,
            verification=options.verification,
            timeout=options.timeout,
        )
        news = PollingNews(self.upstream, reactor, poll_timeout=options.poll_timeout)
        self.gateway = Gateway(
            self.upstream,
            clock=reactor,
            random=random.SystemRandom(),
            tuning=Tuning(q_block=True),
            limits=Limits(),
            news=news if options.observe else None,
            # Sliding sync keeps its place in the homeserver, where polls would move it on.
            observe=ObserveOptions(sliding_sync=False),
            x1=options.x1,
        )
        dtls = ServerOptions(max_associations=options.max_associations, idle_timeout=options.idle_timeout)
        self._dtls = DTLSServerPort(context=context, handler=self.gateway, options=dtls, reactor=reactor)
        self.gateway.attach(self._dtls)

    def start(self) -> None:
        """Open the ports.

        Raises:
            ServiceError: one cannot be opened; none is left open.
        """
        options = self._options
        try:
            self._udp = self._reactor.listenUDP(
                options.port, self._dtls, interface=options.address, maxPacketSize=MAX_DATAGRAM
            )
            if options.advertise is not None and options.tcp:
                self._tcp = self._reactor.listenSSL(
                    self.port, site(self.upstream), self._tls, interface=options.address
                )
        except CannotListenError as error:
            self.stop()
            raise ServiceError(
                f"cannot listen on port {options.port} of {options.address}: {error}"
            ) from error
        self.upstream.advertisement = Advertisement(
            options.advertise_port or self.port, options.advertise, options.observe, options.x1
        )

    @property
    def port(self) -> int:
        """The UDP port, and the TCP port."""
        number: int = self._udp.getHost().port
        return number

    def reload(self) -> None:
        """Load the certificate again; if it cannot be used, say so and keep the one in use."""
        try:
            context = self._load()
            self._tls.load()
        except ServiceError as error:
            self._log.error("The certificate stays as it is: {error}", error=error)
            return
        self._dtls.replace_context(context)
        self.fingerprint = context.fingerprint
        self._log.info("The certificate was loaded again: {fingerprint}", fingerprint=context.fingerprint)

    def stop(self) -> Deferred[None]:
        """Tell observers, say close_notify to all clients, cancel all requests and close the ports. Idempotent.

        Returns:
            A Deferred that fires when all is closed.
        """
        udp, self._udp = self._udp, None
        tcp, self._tcp = self._tcp, None
        self.gateway.end_observations()
        self._dtls.shutdown()
        self.gateway.shutdown()
        closing: list[Deferred[Any]] = [self.upstream.close()]
        closing += [maybeDeferred(port.stopListening) for port in (udp, tcp) if port is not None]
        return gatherResults(closing).addCallback(lambda _: None)

    def _load(self) -> Any:
        try:
            return make_server_context(self._options.certificate_path, self._options.key_path)
        except DTLSError as error:
            raise ServiceError(str(error)) from error


class _TlsContext:
    """The certificate on the TCP port (a context factory of Twisted's)."""

    def __init__(self, options: ServiceOptions) -> None:
        self._options = options
        self._context: SSL.Context | None = None
        self.load()

    def load(self) -> None:
        """Load the certificate, for connections from now on.

        Raises:
            ServiceError: it cannot be used.
        """
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(_TLS_1_2)
        try:
            context.use_certificate_chain_file(self._options.certificate_path)
            context.use_privatekey_file(self._options.key_path)
            context.check_privatekey()
        except SSL.Error as error:
            raise ServiceError(f"the certificate cannot be used over TLS: {error}") from error
        self._context = context

    def getContext(self) -> SSL.Context | None:
        """See Twisted's `ContextFactory`."""
        return self._context
