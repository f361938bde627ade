# SPDX-License-Identifier: AGPL-3.0-or-later
"""The Twisted protocol under a client association: a socket, one handshake, then messages (RFC 6347).

The association may change its socket, when the network has changed (`ClientProtocol.rebind`): it stays what it is,
and the server finds out from the next record that it has moved.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.error import CannotListenError, MessageLengthError
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from synapse_lb.txdtls import binding
from synapse_lb.txdtls.association import Association, Progress
from synapse_lb.txdtls.certificates import fingerprint_of
from synapse_lb.txdtls.context import ClientContext, verify_server
from synapse_lb.txdtls.errors import (
    AssociationGone,
    AssociationLost,
    DTLSError,
    HandshakeFailed,
    HandshakeTimeout,
    LocallyClosed,
    NetworkUnreachable,
    PeerClosed,
    ProtocolFailure,
    SocketLost,
)
from synapse_lb.txdtls.forms import ClientForm
from synapse_lb.txdtls.hellos import Hellos, KnownSession
from synapse_lb.txdtls.interfaces import AssociationHandler, ClientReactor, Timer
from synapse_lb.txdtls.options import ClientCounters, ClientOptions
from synapse_lb.txdtls.turns import EndOfTurn

_log = Logger()
_ids = itertools.count(1)
_PATIENCE = (
    3  # how often a hello that offers nothing but a resumption is due again, until a full one is tried
)
_MINIMUM_DELAY = 0.001  # seconds; keeps a clock that does not quite reach what is due from spinning


class ClientProtocol(DatagramProtocol):
    """The protocol under a `ClientAssociation`; made by `client.connect`.

    Args:
        reactor: For timers and sockets.
        peer: IP address and port of the server.
        context: Settings.
        server_name: What the certificate has to name, as of `ascii_host_name`.
        session: A session to resume.
        options: Limits and times.
        handler: Receives the events once the association is established.
        timeout: Seconds that the handshake may take.
        counters: Shared by the attempts of one `connect`.
    """

    noisy = False

    def __init__(
        self,
        *,
        reactor: ClientReactor,
        peer: tuple[str, int],
        context: ClientContext,
        server_name: str,
        session: bytes | None,
        options: ClientOptions,
        handler: AssociationHandler,
        timeout: float,
        counters: ClientCounters,
    ) -> None:
        self.association_id = next(_ids)
        self.counters = counters
        self.peer = peer
        self.certificate_sha256 = ""
        self.certificate: Any = None  # of cryptography
        self.cipher = ""
        self.over = False
        self.established: Deferred[ClientProtocol] = Deferred(self._cancelled)
        self._reactor = reactor
        self._verification = context.verification
        self._server_name = server_name
        self._handler = handler
        self._timeout = timeout
        self._false_start = options.false_start
        self._retransmit_after = options.retransmit_after
        self._reported = False
        self._secret: bytes | None = None
        self._turn = EndOfTurn(reactor, ClientProtocol._flush)
        self._busy = False
        self._timer: Timer | None = None
        self._deadline: Timer | None = None
        self._closing: list[Deferred[None]] = []
        self._socket: DatagramProtocol = self
        self._mtu = options.mtu
        self._hellos = Hellos(context, options, server_name, session)
        connection, self._resumption_only = self._hellos.first()
        self.form = ClientForm(self._resumption_only and self._hellos.server_reads_compact)
        self._due = 0
        self.association = Association(
            connection,
            mtu=options.mtu,
            timeout=options.retransmit_after,
            peer_packs=self._hellos.server_packs,
        )

    def begin(self) -> None:
        """Send the ClientHello; call it once the socket is open."""
        self._deadline = self._reactor.callLater(self._timeout, self._handshake_timed_out)
        try:
            _connect_socket(self, self.peer)
        except OSError as error:
            self._fail(NetworkUnreachable(f"{format_address(self.peer)}: {error.strerror or error}"))
            return
        self._apply(self.association.start())

    # -- what Twisted calls

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Feed one datagram; never raises on bad input."""
        self.counters.datagrams_received += 1
        self.counters.bytes_received += len(datagram)
        if self.over:
            return
        datagram, summary = self.form.read(datagram)
        if summary is None:
            self.counters.datagrams_malformed += 1
            return
        self._apply(self.association.receive(datagram, summary, self._reactor.seconds()))

    def connectionRefused(self) -> None:
        """ICMP said that nobody listens there.

        That ends a handshake, but not an established association: the server may be restarting, and anybody
        can forge ICMP.
        """
        self.counters.connections_refused += 1
        if not self.over and not self._reported:
            self._fail(NetworkUnreachable(f"nobody listens on {format_address(self.peer)}"))

    def stopProtocol(self) -> None:
        """The socket is closed.

        Twisted's epoll reactor closes a connected UDP socket on an ICMP error without calling
        `connectionRefused`. The server knows the association by our port, so it is over too.
        """
        if self._socket is self:
            self.socket_closed()

    def socket_closed(self) -> None:
        """The socket in use is closed."""
        if self.over:
            return
        self.counters.connections_refused += 1
        if self._reported:
            self.end(
                SocketLost(f"the network says that nobody listens on {format_address(self.peer)}"),
                notify=False,
            )
        else:
            self._fail(NetworkUnreachable(f"nobody listens on {format_address(self.peer)}"))

    # -- what ClientAssociation calls

    @property
    def session(self) -> bytes | None:
        """See `ClientAssociation.session`."""
        if self._secret is None:
            return None
        association = self.association
        return KnownSession(
            self._secret, association.cookie_wanted, association.peer_packs, self.form.compact
        ).serialise()

    def send(self, data: bytes) -> None:
        """See `ClientAssociation.send`."""
        if self.over:
            raise AssociationGone("the association is over")
        self.association.send(data)
        self.counters.messages_sent += 1
        if not self._busy:
            self._turn.flush(self, wait=self.association.peer_packs)

    def end(self, reason: AssociationLost, *, notify: bool) -> Deferred[None]:
        """Stop everything and tell the handler."""
        if not self.over:
            if notify:
                self.association.notify_close()
            if notify or isinstance(reason, LocallyClosed):
                self._flush()
            self._stop()
            self._call(self._handler.association_lost, self.association_id, reason)
        finished = []
        for closing in self._closing:
            one: Deferred[None] = Deferred()
            closing.addBoth(_pass_on, one)
            finished.append(one)
        return gatherResults(finished).addCallback(lambda _: None)

    def rebind(self) -> None:
        """See `ClientAssociation.rebind`."""
        if self.over:
            raise AssociationGone("the association is over")
        socket = _FurtherSocket(self)
        try:
            self._reactor.listenUDP(0, socket, interface="::" if ":" in self.peer[0] else "")
            _connect_socket(socket, self.peer)
        except (OSError, CannotListenError) as error:
            self._close_socket(socket)
            raise NetworkUnreachable(f"{format_address(self.peer)}: {error}") from error
        former, self._socket = self._socket, socket
        self._close_socket(former)

    def uses(self, socket: DatagramProtocol) -> bool:
        """Whether this is the socket in use."""
        return self._socket is socket

    def _close_socket(self, socket: DatagramProtocol) -> None:
        transport: Any = socket.transport
        if transport is not None:
            self._closing = [closing for closing in self._closing if not closing.called]
            self._closing.append(maybeDeferred(transport.stopListening))

    # -- steps

    def _apply(self, progress: Progress) -> None:
        """Report what a step brought, then send what is to be sent."""
        self.counters.records_discarded += progress.discarded
        self._busy = True
        if (progress.early and self._false_start) or (progress.established and not self._reported):
            self._on_usable()
        if progress.established and not self.over:
            self._on_complete()
        for message in progress.messages:
            if self.over:
                return
            self.counters.messages_received += 1
            self._call(self._handler.message_received, self.association_id, message)
        self._busy = False
        if self.over:
            return
        if self._resumption_only and (self.association.cookie_wanted or progress.lost is not None):
            self._begin_anew()
            return
        if progress.lost is not None:
            self._lost(progress.lost)
            return
        self._flush()
        if not self.over:
            self._arm()

    def _begin_anew(self) -> None:
        """The server does not take up the resumption: offer everything.

        It has forgotten the session, or it wants a cookie now. Whoever forges the one or the other delays the
        handshake, which he can do anyway. It goes on from another port, so that no late answer to the former hello
        is taken for one to this hello.
        """
        self._resumption_only, self.form = False, ClientForm()
        before = self.association
        if not before.cookie_wanted:
            self._flush()  # the alert that says so: the server need not wait any longer
        if self.over:
            return
        try:
            self.rebind()
        except NetworkUnreachable as error:
            self._fail(error)
            return
        timeout = self._retransmit_after if before.rtt is None else 3 * before.rtt
        before.release()
        self.association = Association(
            self._hellos.second(), mtu=self._mtu, timeout=timeout, peer_packs=self._hellos.server_packs
        )
        self._apply(self.association.start())

    def _on_usable(self) -> None:
        """Messages can be sent: verify the server before anybody does."""
        connection = self.association.connection
        try:
            verify_server(connection, self._verification, self._server_name)
        except HandshakeFailed as error:
            self.association.notify_close()
            self._flush()
            self._fail(error)
            return
        certificate = connection.get_peer_certificate()
        if certificate is not None:
            self.certificate_sha256 = fingerprint_of(certificate.to_cryptography())
            self.certificate = certificate.to_cryptography()
        self.cipher = connection.get_cipher_name() or ""
        if self.association.established:
            self._secret = binding.export_session(connection)
        if self.association.resumed and self._hellos.server_reads_compact:
            self.form.use_compact()
        self._reported = True
        self._call(self._handler.association_established, self.association_id)
        if not self.over:
            self.established.callback(self)

    def _on_complete(self) -> None:
        """The server has proven that it saw the same handshake."""
        self._secret = self._secret or binding.export_session(self.association.connection)
        self._resumption_only = False
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._deadline = None

    def _lost(self, reason: DTLSError) -> None:
        if isinstance(reason, AssociationLost):
            self.end(reason, notify=isinstance(reason, PeerClosed))
            return
        self._flush()  # the alert that says why
        self._fail(reason)

    def _fail(self, error: DTLSError) -> None:
        """End an attempt that did not get as far as an association."""
        if self.over:
            return
        self._stop()
        if not self.established.called:
            self.established.errback(error)

    def _stop(self) -> None:
        self.over = True
        for timer in (self._timer, self._deadline):
            if timer is not None and timer.active():
                timer.cancel()
        self._timer = self._deadline = None
        self._turn.cancel()
        self.association.release()
        self._close_socket(self._socket)

    def _cancelled(self, _: Deferred[ClientProtocol]) -> None:
        if self._reported:
            self.end(LocallyClosed("cancelled by this side"), notify=True)
        elif not self.over:
            self._stop()

    def _handshake_timed_out(self) -> None:
        self._deadline = None
        text = f"no handshake with {format_address(self.peer)} in {self._timeout:g} s"
        if self._reported:
            self.end(ProtocolFailure(text), notify=False)
        else:
            self._fail(HandshakeTimeout(text))

    def _retransmit(self) -> None:
        self._timer = None
        self._due += 1
        if self._resumption_only and self._due >= _PATIENCE:
            self._begin_anew()
        elif not self.over:
            self.association.handle_timeout(self._reactor.seconds())
            self._flush()
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self.over:
            return
        due = self.association.due
        self._timer = None
        if due is not None:
            delay = max(_MINIMUM_DELAY, due - self._reactor.seconds())
            self._timer = self._reactor.callLater(delay, self._retransmit)

    def _flush(self) -> None:
        transport: Any = self._socket.transport
        now = self._reactor.seconds()
        for plain in self.association.take_datagrams(now):
            datagram = self.form.outgoing(plain, now)
            try:
                transport.write(datagram)
            except (OSError, MessageLengthError) as error:
                self.counters.send_errors += 1
                if not self._reported and isinstance(error, OSError):
                    self._fail(NetworkUnreachable(f"{format_address(self.peer)}: {error.strerror or error}"))
                    return
                continue
            self.counters.datagrams_sent += 1
            self.counters.bytes_sent += len(datagram)

    def _call(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            callback(*arguments)
        except Exception:
            self.counters.handler_errors += 1
            _log.failure("A handler of DTLS association events failed")


class _FurtherSocket(DatagramProtocol):
    """A socket that took the place of an association's earlier one."""

    noisy = False

    def __init__(self, owner: ClientProtocol) -> None:
        self._owner = owner

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        if self._owner.uses(self):
            self._owner.datagramReceived(datagram, addr)

    def connectionRefused(self) -> None:
        if self._owner.uses(self):
            self._owner.connectionRefused()

    def stopProtocol(self) -> None:
        if self._owner.uses(self):
            self._owner.socket_closed()


def _connect_socket(socket: DatagramProtocol, peer: tuple[str, int]) -> None:
    transport: Any = socket.transport
    transport.connect(*peer)


def _pass_on(result: object, finished: Deferred[None]) -> object:
    finished.callback(None)
    return None if isinstance(result, Failure) else result


def format_address(peer: tuple[str, int]) -> str:
    """An address as it stands in a URI."""
    host, port = peer
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
