# SPDX-License-Identifier: AGPL-3.0-or-later
"""The server side: one UDP port, any number of DTLS associations (RFC 6347).

    Client                                              Server
    ClientHello             ------>                             no state, no OpenSSL object
                            <------      HelloVerifyRequest     (36 bytes: never an amplifier)
    ClientHello with cookie ------>                             address proven: handshake begins
                            <------             ServerHello...
    ...Finished             ------>
                            <------                Finished     established: id handed out
    records                 <----->                 records
                            <----->      alert close_notify

A record from an address without an association may be of a client that moved (see `movement`). Whatever fits no
association gets no answer at all: an answer would be an amplifier and a reset oracle.
"""

from __future__ import annotations

from collections.abc import Callable

from OpenSSL import SSL
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger

from synapse_lb.txdtls import forms, records
from synapse_lb.txdtls.admission import Admission
from synapse_lb.txdtls.association import Association, Progress
from synapse_lb.txdtls.backlog import Backlog
from synapse_lb.txdtls.context import ServerContext
from synapse_lb.txdtls.errors import (
    AssociationGone,
    AssociationLost,
    DTLSError,
    Evicted,
    IdleTimeout,
    LocallyClosed,
    PeerClosed,
    Replaced,
    ShutDown,
    Unauthenticated,
)
from synapse_lb.txdtls.interfaces import AssociationHandler, Clock
from synapse_lb.txdtls.listening import HelloListener
from synapse_lb.txdtls.movement import Movement, Path, sequence_to_try
from synapse_lb.txdtls.options import ServerCounters, ServerOptions
from synapse_lb.txdtls.outlet import Outlet
from synapse_lb.txdtls.sockets import enlarge_receive_buffer
from synapse_lb.txdtls.strangers import Strangers
from synapse_lb.txdtls.sweeper import Sweeper, deadlines
from synapse_lb.txdtls.table import Address, AssociationTable, Entry
from synapse_lb.txdtls.timers import FlightTimers
from synapse_lb.txdtls.turns import EndOfTurn

Arrival = tuple[bytes, records.Datagram, Address]  # a datagram, what it looks like, and where it came from


class DTLSServerPort(DatagramProtocol):
    """A Twisted protocol for `reactor.listenUDP` that serves DTLS 1.2.

    What asks for something of an association raises `AssociationGone` if there is no such established one.

    Args:
        context: Certificate and settings.
        handler: Receives the events.
        options: Limits and times.
        reactor: For timers.

    Attributes:
        on_stray: Is given each record that could be of a client, but of none here, with its address; or None.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        context: ServerContext,
        handler: AssociationHandler,
        options: ServerOptions | None = None,
        reactor: Clock,
    ) -> None:
        self.counters = ServerCounters()
        self.on_stray: Callable[[bytes, Address], None] | None = None
        self._handler = handler
        self._options = options or ServerOptions()
        self._reactor = reactor
        self._table = AssociationTable()
        self._movement = Movement(self._options, self.counters)
        self._admission = Admission(self._options)
        self._strangers = Strangers(self._options, self._table)
        self._listener = HelloListener(context, self._options)
        self._outlet = Outlet(lambda: self.transport, self.counters)
        self._sweeper = Sweeper(reactor, self._deadlines, self._overdue)
        self._timers = FlightTimers(reactor, self._flush)
        self._turn = EndOfTurn(reactor, self._flush)
        self._backlog: Backlog[Arrival] = Backlog(
            reactor, self._options, self.counters, lambda arrival: self._records_received(*arrival)
        )
        self._stopped = False

    # -- what the owner calls

    @property
    def strangers(self) -> int:
        """Number of established associations whose client is not known (see `trust`)."""
        return len(self._strangers)

    @property
    def associations(self) -> int:
        """Number of established associations."""
        return self._table.established

    @property
    def handshakes(self) -> int:
        """Number of unfinished handshakes."""
        return self._table.handshakes

    def send(self, association_id: int, data: bytes) -> None:
        """Send one message, at the end of the turn if it may share a datagram with others.

        Raises:
            MessageTooLarge: It does not fit into one datagram.
            AssociationGone: There is no such established association.
            ValueError: The message is empty.
        """
        entry = self._entry(association_id)
        entry.association.send(data)
        self.counters.messages_sent += 1
        entry.sent_messages = True
        if not entry.busy:
            self._turn.flush(entry, wait=entry.association.peer_packs)

    def close(self, association_id: int) -> None:
        """Close with close_notify; nothing happens if there is no such association."""
        entry = self._table.get(association_id)
        if entry is not None:
            self._end(entry, LocallyClosed("closed by this side"), notify=True)

    def shutdown(self) -> None:
        """Close every association with close_notify and cancel all timers; afterwards input is ignored."""
        if self._stopped:
            return
        self._stopped = True
        for entry in self._table:
            self._end(entry, ShutDown("the port was shut down"), notify=True)
        self._listener.close()
        self._sweeper.arm()
        self._turn.cancel()
        self._backlog.cancel()

    def peer_address(self, association_id: int) -> IPv4Address | IPv6Address:
        """The client's address."""
        return self._entry(association_id).peer

    def confirm_address(self, association_id: int) -> None:
        """The client has answered what was sent to its present address: it may get whatever there is.

        To be called by the owner after `association_moved`; until then at most three times the bytes that come
        from the new address are sent there. Nothing happens if there is no such association, or nothing to prove.
        """
        entry = self._table.get(association_id)
        if entry is not None:
            self._outlet.write_all(entry, entry.path.prove(entry.address))

    def trust(self, association_id: int, *, known: bool = True) -> None:
        """The owner knows who that is, or does not know it any more (see `strangers`). Idempotent."""
        entry = self._table.get(association_id)
        if entry is not None and self._strangers.holds(entry) is known:
            self._strangers.trust(entry, self._reactor.seconds(), known=known)
            self._sweeper.arm()

    def max_message_size(self, association_id: int) -> int:
        """Bytes of the largest message that fits into one datagram."""
        return self._entry(association_id).association.max_message_size

    def rtt(self, association_id: int) -> float | None:
        """Round-trip time in seconds as the handshake showed it; None if every flight was repeated."""
        return self._entry(association_id).association.rtt

    def longest_rtt(self, association_id: int) -> float | None:
        """Seconds that no round trip exceeds, if a flight was repeated: a bound where `rtt` is None."""
        return self._entry(association_id).association.longest_rtt

    def replace_context(self, context: ServerContext) -> None:
        """Use another certificate for handshakes that begin from now on; associations stay.

        Sessions of the old context cannot be resumed: their clients fall back to a full handshake.
        """
        self._listener.replace_context(context)
        self._admission.forget_flight()

    # -- what Twisted calls

    def datagramReceived(self, datagram: bytes, addr: Address) -> None:
        """Sort one datagram to where it belongs; never raises on bad input."""
        self.counters.datagrams_received += 1
        self.counters.bytes_received += len(datagram)
        if self._stopped:
            return
        datagram, summary = forms.read(datagram)
        if summary is None:
            self.counters.datagrams_malformed += 1
        elif summary.client_hello:
            self._hello_received(datagram, summary, addr)
        elif self._table.established_at(addr) is None:
            self._records_received(datagram, summary, addr)
        else:
            self._backlog.take(addr, (datagram, summary, addr))

    def startProtocol(self) -> None:
        """The socket is open: let the kernel keep what comes while this process does something else."""
        enlarge_receive_buffer(self.transport)

    def stray_received(self, datagram: bytes, addr: Address) -> None:
        """A datagram that was a stray at another socket of the port (see `on_stray`) may be of a client here."""
        on_stray, self.on_stray = self.on_stray, None
        self.datagramReceived(datagram, addr)
        self.on_stray = on_stray

    def stopProtocol(self) -> None:
        """The socket is closed: let go of everything."""
        self.shutdown()

    # -- handshakes

    def _hello_received(self, data: bytes, summary: records.Datagram, address: Address) -> None:
        hello = records.parse_client_hello(data)
        if hello is None:
            self.counters.hellos_malformed += 1
            return
        handshake = self._table.handshake_at(address)
        if handshake is not None and handshake.client_random == hello.random:
            self._hello_repeated(handshake, summary.wire)
            return
        established = self._table.established_at(address)
        if established is not None and established.client_random == hello.random:
            self.counters.hellos_duplicate += 1
            return
        nobody = handshake is None and established is None
        form = forms.ServerForm.of(data, summary)
        if not nobody or not self._begin_unproven(hello, summary.wire, address, form):
            self._listen(hello, address)

    def _hello_repeated(self, handshake: Entry, size: int) -> None:
        unproven = self._admission.holds(handshake)
        if unproven:
            handshake.path.received(size)
        handshake.association.hello_repeated(self._reactor.seconds(), proven=not unproven)
        self._flush(handshake)
        self._timers.arm(handshake)

    def _begin_unproven(
        self, hello: records.ClientHello, size: int, address: Address, form: forms.ServerForm
    ) -> bool:
        """Begin a handshake without a cookie; returns False if a cookie is wanted."""
        now = self._reactor.seconds()
        if not self._admission.allows(hello, size, address[0], self._table.handshakes, now):
            return False
        association = self._admission.attempt(self._listener.new_connection(), hello, size, address[0], now)
        if association is None:
            return False
        if not self._strangers.may_begin(now):
            association.release()
            return False
        entry = Entry(self._table.next_id(), association, address, hello.random, now)
        entry.path, entry.form = Path.unproven(address, size), form
        self._table.add_handshake(entry)
        self._admission.add(entry)
        self.counters.handshakes_started += 1
        self.counters.cookies_skipped += 1
        self._flush(entry)
        self._timers.arm(entry)
        self._sweeper.arm()
        return True

    def _listen(self, hello: records.ClientHello, address: Address) -> None:
        """Answer with a cookie, or begin the handshake if the hello brings a good one."""
        now = self._reactor.seconds()
        outcome = self._listener.listen(hello, address, now)
        if outcome is None:
            self.counters.hellos_malformed += 1
        elif isinstance(outcome, bytes):
            self.counters.hello_verify_requests += 1
            self._outlet.write(outcome, address)
        elif not self._strangers.may_begin(now):
            self.counters.handshakes_refused += 1
        else:
            self._begin(outcome, hello, address, now)

    def _begin(
        self, connection: SSL.Connection, hello: records.ClientHello, address: Address, now: float
    ) -> None:
        superseded = self._table.handshake_at(address)
        if superseded is not None:
            self.counters.handshakes_superseded += 1
            self._drop(superseded)
        while self._table.handshakes >= self._options.max_half_open:
            oldest = self._admission.oldest or self._table.oldest_handshake()
            if oldest is None:
                break
            self.counters.handshakes_evicted += 1
            self._drop(oldest)
        association = Association(
            connection,
            mtu=self._options.mtu,
            client=False,
            received=hello.message_sequence,
            sequence=max(1, hello.record_sequence),  # the HelloVerifyRequest had 0; see `records.renumber`
        )
        entry = Entry(self._table.next_id(), association, address, hello.random, now)
        self._table.add_handshake(entry)
        self.counters.handshakes_started += 1
        self._apply(entry, association.start())
        self._sweeper.arm()

    # -- records

    def _records_received(self, data: bytes, summary: records.Datagram, address: Address) -> None:
        handshake = self._table.handshake_at(address)
        established = self._table.established_at(address)
        # While a client that came back shakes hands anew, records of either keys may arrive: the wrong
        # association drops them silently.
        taken = handshake is not None and self._feed(handshake, data, summary)
        if established is not None and (summary.encrypted or handshake is None):
            taken = self._feed(established, data, summary) or taken
        if taken or self._find(data, summary, address, established) or handshake or established:
            return
        self.counters.datagrams_unknown += 1
        if self.on_stray is not None and sequence_to_try(data) is not None:
            self.on_stray(data, address)

    def _feed(self, entry: Entry, data: bytes, summary: records.Datagram) -> bool:
        """Feed a datagram to an association of its address; returns whether it brought anything."""
        if entry.association.gone:
            return False
        if self._admission.holds(entry):
            entry.path.received(summary.wire)
        progress = entry.association.receive(data, summary, self._reactor.seconds())
        self._movement.note(entry)
        taken = bool(progress.messages) or progress.established or progress.lost is not None
        if taken:
            self._outlet.write_all(entry, entry.path.received(summary.wire))
        if progress.messages:
            entry.form.compact = summary.compact
        self._apply(entry, progress)
        return taken

    def _find(self, data: bytes, summary: records.Datagram, address: Address, there: Entry | None) -> bool:
        """Move the association here whose client sent this, not the one `there`; returns whether there is one."""
        if sequence_to_try(data) is None:
            return False
        if there is not None and there.association.opens(records.first_record(data)):
            return True  # its own, for a second time
        entry = self._movement.find(data, address[0], self._reactor.seconds(), but=there)
        if entry is None:
            return False
        progress = entry.association.receive(data, summary, self._reactor.seconds())
        if not progress.messages and progress.lost is None:
            return False  # OpenSSL has the last word
        self.counters.associations_moved += 1
        self._table.move(entry, address)
        self._strangers.moved(entry)
        self._movement.add(entry)
        entry.form.compact = summary.compact
        self._outlet.write_all(entry, entry.path.moved(address) + entry.path.received(summary.wire))
        self._apply(entry, progress, moved=bool(progress.messages))
        return True

    def _apply(self, entry: Entry, progress: Progress, *, moved: bool = False) -> None:
        """Deliver what a step brought, then send what is to be sent."""
        self.counters.records_discarded += progress.discarded
        entry.busy = True
        if moved:
            self._call(self._handler.association_moved, entry.id)
        if progress.established:
            self._promote(entry)
        if progress.messages:
            self._table.touch(entry, self._reactor.seconds())
        for message in progress.messages:
            if entry.association.gone:
                return
            self.counters.messages_received += 1
            self._call(self._handler.message_received, entry.id, message)
        entry.busy = False
        if entry.association.gone:
            return
        if progress.lost is not None:
            self._failed(entry, progress.lost)
            return
        if progress.established and entry.association.may_wait and not entry.sent_messages:
            self._timers.hold_back(entry)
            return
        self._flush(entry)
        self._timers.arm(entry)

    def _promote(self, entry: Entry) -> None:
        replaced = self._table.promote(entry, self._reactor.seconds())
        self.counters.handshakes_completed += 1
        self.counters.handshakes_resumed += entry.association.resumed
        self._movement.add(entry)
        if self._admission.holds(entry):
            self._admission.remove(entry)
            entry.path.prove(entry.address)
        if replaced is not None:
            self._movement.remove(replaced)
            self._strangers.remove(replaced)
            self.counters.associations_replaced += 1
            reason = Replaced("the peer made a new handshake from the same address")
            replaced.association.release()
            self._call(self._handler.association_lost, replaced.id, reason)
        self._make_room(entry)
        self._sweeper.arm()
        if not entry.association.gone:
            self._call(self._handler.association_established, entry.id)

    def _make_room(self, newcomer: Entry) -> None:
        self._strangers.add(newcomer, newcomer.since)
        while (loser := self._strangers.loser(newcomer, newcomer.since)) is not None:
            refused = loser is newcomer
            self.counters.associations_refused += refused
            self.counters.associations_evicted += not refused
            self._end(loser, Evicted("there were too many associations"), notify=True, known=not refused)
            if refused:
                return

    def _failed(self, entry: Entry, reason: DTLSError) -> None:
        """An association ended by itself: answer with the alert that OpenSSL wrote, or with close_notify."""
        if not isinstance(reason, AssociationLost):
            self.counters.handshake_failed(reason)
            self._flush(entry)
            self._drop(entry)
            return
        if isinstance(reason, PeerClosed):
            self.counters.associations_closed_by_peer += 1
        else:
            self.counters.associations_failed += 1
        self._end(entry, reason, notify=isinstance(reason, PeerClosed))

    # -- ends

    def _end(self, entry: Entry, reason: AssociationLost, *, notify: bool, known: bool = True) -> None:
        """End an entry and tell the handler if it ever heard of it."""
        if entry.association.gone:
            return
        established = entry.association.established and known
        if notify:
            entry.association.notify_close()
        self._flush(entry)
        self._drop(entry)
        if established:
            self._call(self._handler.association_lost, entry.id, reason)

    def _drop(self, entry: Entry) -> None:
        self._table.remove(entry)
        self._strangers.remove(entry)
        self._movement.remove(entry)
        self._admission.remove(entry)
        self._timers.cancel(entry)
        entry.association.release()
        if not self._table.handshakes and not self._table.established:
            self._sweeper.arm()

    # -- timers

    def _deadlines(self) -> list[tuple[Entry, float]]:
        guarded = self._admission, self._strangers
        return [] if self._stopped else deadlines(self._table, self._options, *guarded)

    def _overdue(self, entry: Entry) -> None:
        if entry.association.gone:
            return
        if not entry.association.established:
            self.counters.handshakes_timed_out += 1
            self._drop(entry)
        elif self._reactor.seconds() < entry.since + self._options.idle_timeout:
            self.counters.associations_unauthenticated += 1
            self._end(entry, Unauthenticated("the peer did not show in time who it is"), notify=True)
        else:
            self.counters.associations_idle += 1
            self._end(entry, IdleTimeout("nothing came from the peer for too long"), notify=True)

    # -- below and above

    def _entry(self, association_id: int) -> Entry:
        entry = self._table.get(association_id)
        if entry is None:
            raise AssociationGone(f"there is no association {association_id}")
        return entry

    def _flush(self, entry: Entry) -> None:
        self._outlet.flush(entry, self._reactor.seconds())

    def _call(self, callback: Callable[..., None], *arguments: object) -> None:
        try:
            callback(*arguments)
        except Exception:
            self.counters.handler_errors += 1
            self._log.failure("A handler of DTLS association events failed")
