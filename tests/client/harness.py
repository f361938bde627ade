# SPDX-License-Identifier: AGPL-3.0-or-later
"""A real DTLS server on loopback UDP for the tests of the client and of the commands."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import TestCase

from synapse_lb.client import ClientVerification, LowBandwidthClient
from synapse_lb.coap.endpoint import Endpoint
from synapse_lb.coap.events import CoapRequest, CoapResponse, Event, Peer, RequestReceived
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import is_request
from synapse_lb.coaps.driver import EndpointDriver
from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.server.dispatcher import Address
from synapse_lb.server.gateway import Gateway
from synapse_lb.txdtls.certificates import generate_self_signed, sha256_fingerprint
from synapse_lb.txdtls.context import make_server_context
from synapse_lb.txdtls.errors import AssociationLost
from synapse_lb.txdtls.port import DTLSServerPort

REACTOR: Final[Any] = reactor
NAMES: Final = ("localhost", "127.0.0.1", "::1")


class Certificate:
    """A self-signed certificate in files; they go when the object goes.

    Args:
        names: what it names.
    """

    def __init__(self, *names: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="synapse-lb-test-")
        certificate, key = generate_self_signed(names or NAMES)
        self.path = str(Path(self._folder.name, "server.crt"))
        self.key_path = str(Path(self._folder.name, "server.key"))
        self.fingerprint = sha256_fingerprint(certificate)
        Path(self.path).write_bytes(certificate)
        Path(self.key_path).write_bytes(key)

    def remove(self) -> None:
        """Remove the files."""
        self._folder.cleanup()


class Dispatcher:
    """Answers Matrix requests with a function and remembers them."""

    def __init__(self) -> None:
        self.requests: list[MatrixRequest] = []
        self.cancelled = 0
        self.waiting: list[Deferred[MatrixResponse]] = []
        self.answer: Callable[[MatrixRequest], MatrixResponse] = self.say_back

    def dispatch(self, request: MatrixRequest, client: Address) -> Deferred[MatrixResponse]:
        """Answer at once, but for paths with `/wait`: those are answered by the test."""
        self.requests.append(request)
        if b"/wait" in request.path:
            waiting: Deferred[MatrixResponse] = Deferred(self._cancel)
            self.waiting.append(waiting)
            return waiting
        return succeed(self.answer(request))

    def say_back(self, request: MatrixRequest) -> MatrixResponse:
        """Say back what was asked; without a token there is nothing at `/private`."""
        if request.path.endswith(b"/private") and request.access_token is None:
            return MatrixResponse(401, {"errcode": "M_MISSING_TOKEN", "error": "Missing access token"})
        if request.access_token == "ended":
            return MatrixResponse(401, {"errcode": "M_UNKNOWN_TOKEN", "error": "Unknown token"})
        if request.path.endswith(b"/missing"):
            return MatrixResponse(404, {"errcode": "M_NOT_FOUND", "error": "Not here"})
        if request.path.endswith(b"/big"):
            return MatrixResponse(200, {"body": "b" * 300_000})
        said = {
            "method": request.method,
            "path": request.path.decode(),
            "query": request.query.decode(),
            "token": request.access_token,
        }
        return MatrixResponse(
            200, said if not isinstance(request.body, dict) else said | {"json": request.body}
        )

    def _cancel(self, waiting: Deferred[MatrixResponse]) -> None:
        self.cancelled += 1
        self.waiting.remove(waiting)


class Handler(Protocol):
    """What a DTLS port needs, and what the harness needs besides."""

    def attach(self, port: DTLSServerPort) -> None:
        """The port is there."""

    def shutdown(self) -> None:
        """Let go of everything."""

    def association_established(self, association_id: int) -> None:
        """See `AssociationHandler`."""

    def message_received(self, association_id: int, data: bytes) -> None:
        """See `AssociationHandler`."""

    def association_moved(self, association_id: int) -> None:
        """See `AssociationHandler`."""

    def association_lost(self, association_id: int, reason: AssociationLost) -> None:
        """See `AssociationHandler`."""


class RecordingGateway(Gateway):
    """The server's gateway, remembering the CoAP requests as they came."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__(dispatcher, clock=REACTOR, random=random.Random(1))
        self.seen: list[Message] = []

    def message_received(self, association_id: int, data: bytes) -> None:
        """Remember it if it is a request."""
        message = Message.decode(data)
        if is_request(message.code):
            self.seen.append(message)
        super().message_received(association_id, data)


class PlainServer:
    """A CoAP server that knows nothing of MSC3079 and refuses option 257, as it must.

    Args:
        answer: gives the response, or None for no answer at all.
    """

    def __init__(self, answer: Callable[[CoapRequest], CoapResponse | None]) -> None:
        self._answer = answer
        self._port: DTLSServerPort | None = None
        self.requests: list[CoapRequest] = []
        self.endpoint = Endpoint(random=random.Random(1))
        self._driver = EndpointDriver(self.endpoint, REACTOR, self._send, self._on_event)

    def attach(self, port: DTLSServerPort) -> None:
        """The port is there."""
        self._port = port

    def shutdown(self) -> None:
        """Stop the timer."""
        self._driver.stop()

    def association_established(self, association_id: int) -> None:
        """Nothing to do."""

    def message_received(self, association_id: int, data: bytes) -> None:
        """Take a message."""
        self._driver.receive(association_id, data)

    def association_moved(self, association_id: int) -> None:
        """Nothing to do."""

    def association_lost(self, association_id: int, reason: AssociationLost) -> None:
        """Forget the client."""
        self.endpoint.drop_peer(association_id, self._driver.now())

    def _send(self, peer: Peer, data: bytes) -> None:
        assert self._port is not None and isinstance(peer, int)
        self._port.send(peer, data)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self.requests.append(event.request)
            response = self._answer(event.request)
            if response is not None:
                self.endpoint.respond(event.exchange, response, self._driver.now())


class Mute:
    """The transport of a server without a network."""

    def write(self, *_: object) -> None:
        """Lose a datagram."""


class Server:
    """A DTLS port on loopback.

    Args:
        handler: what answers.
        certificate: whose it is.
        interface: `127.0.0.1` or `::1`.
        port: UDP port; 0 chooses one.
    """

    def __init__(
        self, handler: Handler, certificate: Certificate, interface: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.handler = handler
        context = make_server_context(certificate.path, certificate.key_path)
        self.dtls = DTLSServerPort(context=context, handler=handler, reactor=REACTOR)
        handler.attach(self.dtls)
        self._listening = REACTOR.listenUDP(port, self.dtls, interface=interface)
        self.port: int = self._listening.getHost().port
        self.address = f"[{interface}]:{self.port}" if ":" in interface else f"{interface}:{self.port}"

    def stop(self, *, silently: bool = False) -> Deferred[None]:
        """Stop; silently is without a close_notify, as when a machine loses its power."""
        if silently:
            muted: Any = self.dtls
            muted.transport = Mute()
        self.handler.shutdown()
        self.dtls.shutdown()
        stopping: Deferred[None] | None = self._listening.stopListening()
        return succeed(None) if stopping is None else stopping


class LoopbackTestCase(TestCase):
    """Starts servers and clients, and stops them when the test has ended."""

    timeout = 60

    def setUp(self) -> None:
        """Make the certificate and the gateway's dispatcher."""
        self.certificate = Certificate()
        self.addCleanup(self.certificate.remove)
        self.dispatcher = Dispatcher()

    def start_server(
        self,
        handler: Handler | None = None,
        *,
        certificate: Certificate | None = None,
        interface: str = "127.0.0.1",
        port: int = 0,
    ) -> Server:
        """Start a server; without a handler it is the MSC3079 gateway before `self.dispatcher`."""
        handler = handler or RecordingGateway(self.dispatcher)
        server = Server(handler, certificate or self.certificate, interface, port)
        self.addCleanup(server.stop)
        return server

    def make_client(self, server: Server, **settings: Any) -> LowBandwidthClient:
        """Make a client that trusts the server's certificate, unless `settings` say otherwise."""
        settings.setdefault("verification", ClientVerification.ca_file(self.certificate.path))
        client = LowBandwidthClient(REACTOR, server.address, **settings)
        self.addCleanup(client.close)
        return client


def until(condition: Callable[[], object]) -> Deferred[None]:
    """A Deferred that fires when a condition has come true; the test's own time limit bounds it."""
    done: Deferred[None] = Deferred()

    def look() -> None:
        if condition():
            done.callback(None)
        else:
            REACTOR.callLater(0.005, look)

    look()
    return done
