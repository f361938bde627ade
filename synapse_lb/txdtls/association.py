# SPDX-License-Identifier: AGPL-3.0-or-later
"""One DTLS association over memory BIOs: datagrams in, messages and datagrams out (RFC 6347).

Role-neutral and without sockets or timers of its own; `port.py` and `client.py` drive it, and the clock is an
argument. OpenSSL has a clock of its own for handshakes, which decides nothing here: see `flights`.

**Records that OpenSSL does not write.** A Finished that is sent again, and what a client sends before it has seen the
server's Finished (RFC 7918, "false start"), are protected here, under the keys that OpenSSL uses too. A record number
is a nonce, so none may be used twice: such a record gets the number after all that left so far, and what OpenSSL
writes afterwards under a number that was used so never leaves (`_collect`). Before OpenSSL writes what is to leave,
its numbers are used up with records that are thrown away (`_catch_up`).
"""

from __future__ import annotations

import attrs
from OpenSSL import SSL

from synapse_lb.txdtls import binding, records
from synapse_lb.txdtls.errors import (
    AssociationGone,
    DTLSError,
    HandshakeFailed,
    MessageTooLarge,
    PeerClosed,
    ProtocolFailure,
    describe_openssl_error,
)
from synapse_lb.txdtls.flights import (
    DEFAULT_TIMEOUT,
    MIN_TIMEOUT,
    Flights,
    RetransmissionTimer,
    server_timeout,
)
from synapse_lb.txdtls.recordkeys import RecordKeys

_READ_SIZE = 16384
_BIO_CHUNK = 65536
_CLOSE_NOTIFY = b"\x01\x00"
_SMALLEST_OVERHEAD = 16
"""Bytes that ChaCha20-Poly1305 adds to a fragment; GCM adds 24 (RFC 5288 section 3).

A shorter fragment cannot be authentic, and OpenSSL 3 ends an association over it instead of dropping it (RFC 6347
4.1.2.7), so that one forged datagram would be enough. It is not shown to OpenSSL. While the handshake runs, the
suite is not known, and whoever can forge has easier ways to disturb it.
"""


@attrs.define
class Progress:
    """What a step brought.

    Attributes:
        established: The handshake was completed by this step.
        early: From now on messages can be sent, though the server's Finished is still to come.
        messages: Application messages, in order.
        discarded: Records that brought nothing.
        lost: Why the association is over, if it is. Of a handshake it is a `HandshakeFailed`, of an established
            association an `AssociationLost`.
    """

    established: bool = False
    early: bool = False
    messages: list[bytes] = attrs.field(factory=list)
    discarded: int = 0
    lost: DTLSError | None = None


class Association:
    """An OpenSSL connection over memory BIOs, with the rules for feeding and draining it.

    Args:
        connection: A connection in accept or connect state without a socket.
        mtu: Largest datagram to send, in bytes.
        client: The role.
        received: message_seq of the ClientHello that a listener has taken already, -1 if there was none.
        sequence: Number of the first unencrypted record, see `records.renumber`.
        timeout: Seconds until a first flight is sent again.
        peer_packs: What is known of the peer before it has said anything.

    Attributes:
        client: The role.
        cookie_wanted: Whether the server has sent a HelloVerifyRequest.
        established: Whether the handshake is complete.
        newest: The highest sequence number of the peer's application records that were authentic. Where it is
            not certain which of a datagram's records were, it stays at what is certain. -1 before the handshake
            is complete.
        peer_packs: Whether the peer has put several records with messages, or one behind its Finished, into one
            datagram: so it reads all of a datagram, and the same can be done for it.
        resumed: Whether the handshake resumed a session.
        rtt: Round-trip time in seconds as the handshake showed it; None if every flight was repeated.
        longest_rtt: Seconds from the first copy of a repeated flight to its answer: no round trip takes longer. None if
            there is no such flight, or its answer came soon after the last copy.
    """

    __slots__ = (
        "_connection",
        "_early",
        "_flight_sent_at",
        "_flights",
        "_heard",
        "_keys",
        "_max_message_size",
        "_mtu",
        "_now",
        "_outgoing",
        "_overhead",
        "_peer_message_sequence",
        "_record_keys",
        "_sealed",
        "_timer",
        "_unread",
        "_written",
        "client",
        "cookie_wanted",
        "established",
        "longest_rtt",
        "newest",
        "peer_packs",
        "resumed",
        "rtt",
    )

    def __init__(
        self,
        connection: SSL.Connection,
        *,
        mtu: int,
        client: bool = True,
        received: int = -1,
        sequence: int = 0,
        timeout: float = DEFAULT_TIMEOUT,
        peer_packs: bool = False,
    ) -> None:
        self._connection: SSL.Connection | None = connection
        self._mtu = mtu
        self._overhead = _SMALLEST_OVERHEAD
        self._max_message_size = 0
        self._flights = Flights(sequence, 0 if client else mtu)
        self._timer = RetransmissionTimer(timeout)
        self._outgoing: list[bytes] = []
        self._flight_sent_at: float | None = None
        self._peer_message_sequence = received
        self._keys: RecordKeys | None = None
        self._record_keys: RecordKeys | None = None
        self._written = self._sealed = -1
        self._early = self._heard = False
        self._unread = True
        self._now = 0.0
        self.client = client
        self.cookie_wanted = False
        self.established = False
        self.newest = -1
        self.peer_packs = peer_packs
        self.resumed = False
        self.rtt: float | None = None
        self.longest_rtt: float | None = None

    @property
    def gone(self) -> bool:
        """Whether it was released."""
        return self._connection is None

    @property
    def connection(self) -> SSL.Connection:
        """The connection.

        Raises:
            AssociationGone: It was released.
        """
        if self._connection is None:
            raise AssociationGone("the association is over")
        return self._connection

    @property
    def max_message_size(self) -> int:
        """Bytes of the largest message that fits into one datagram; 0 before one can be sent."""
        return self._max_message_size

    def start(self) -> Progress:
        """Begin the handshake (client), or go on after `DTLSv1_listen` (server)."""
        return self._run(None)

    def receive(self, data: bytes, datagram: records.Datagram, now: float) -> Progress:
        """Feed one datagram.

        Args:
            data: What arrived.
            datagram: What `records.inspect` said about it.
            now: Monotonic seconds.
        """
        self._now = now
        if not self.established:
            self._measure(datagram, now)
            if self.client and datagram.hello_verify_request:
                self.cookie_wanted = True
                binding.forget_alpn(self.connection)
        data = data[: datagram.size]
        short = 0
        if datagram.shortest_encrypted < self._overhead:
            data = records.without_short_records(data, self._overhead)
            summary = records.inspect(data)
            if summary is None:
                return Progress(discarded=datagram.records)
            short = datagram.records - summary.records
            datagram = summary
        messages_only = self.established and datagram.application == datagram.records
        self.connection.bio_write(data)
        progress = self._run(datagram)
        progress.discarded += short
        self._note_messages(progress, data, datagram)
        if not messages_only or progress.lost is not None:  # to mere messages OpenSSL says nothing
            self._collect()
            progress.early = self._may_start_early()
        return progress

    def _note_messages(self, progress: Progress, data: bytes, datagram: records.Datagram) -> None:
        if progress.established:
            # at least: Finished has number 0, and one record each follows
            self.newest = len(progress.messages)
        elif progress.messages and not progress.discarded:
            self.newest = max(self.newest, records.highest_sequence(data))
        if progress.messages:
            self._heard = True
            packed = progress.established and datagram.records > datagram.application > 0
            self.peer_packs = self.peer_packs or packed or len(progress.messages) > 1

    def opens(self, record: bytes) -> bool:
        """Whether a record is an authentic one of the client, new or not; the association does not notice.

        Args:
            record: One whole record of an epoch above 0.
        """
        if self._record_keys is None:
            if self._connection is None or not self.established:
                return False
            self._record_keys = RecordKeys.of_client(self._connection)
        return self._record_keys is not None and self._record_keys.open(record)

    @property
    def due(self) -> float | None:
        """When `handle_timeout` is wanted, in monotonic seconds; None when no flight is outstanding."""
        return None if self._connection is None or self.established else self._timer.due

    def handle_timeout(self, now: float) -> None:
        """Send the last flight again if it is time."""
        self._now = now
        if not self.established and self._timer.expired(now):
            self._repeat()

    def hello_repeated(self, now: float, *, proven: bool) -> None:
        """The client's hello came once more: perhaps the answer was lost.

        Args:
            now: Monotonic seconds.
            proven: Whether the client has shown that it is where it says.
        """
        self._now = now
        if not self.established and self._flights.wanted_again(now, proven=proven):
            self._repeat()

    def send(self, message: bytes) -> None:
        """Encrypt one message; `take_datagrams` gives the datagram.

        Raises:
            MessageTooLarge: It does not fit into one datagram.
            AssociationGone: The association is not established, or broke.
            ValueError: The message is empty.
        """
        if not message:
            raise ValueError("an empty message cannot be sent")
        if not self.established and not self._early:
            raise AssociationGone("the handshake is not complete")
        if len(message) > self._max_message_size:
            raise MessageTooLarge(len(message), self._max_message_size)
        connection = self.connection
        if not self.established:
            self._outgoing.append(self._seal(records.APPLICATION_DATA, message))
            return
        self._catch_up()
        self._unread = True
        binding.clear_errors()
        try:
            connection.send(message)
        except SSL.Error as error:
            raise AssociationGone(describe_openssl_error(error)[0]) from error

    @property
    def may_wait(self) -> bool:
        """Whether nobody misses a server's Finished for a while: its client sends messages without it."""
        return not self.client and not self.resumed and self.peer_packs

    @property
    def waiting(self) -> int:
        """Bytes that `take_datagrams` will give."""
        return sum(map(len, self._outgoing))

    def take_datagrams(self, now: float) -> list[bytes]:
        """Take what is to be sent, split into datagrams of at most the MTU."""
        self._now = now
        if self._unread:
            self._collect()
        outgoing, self._outgoing = self._outgoing, []
        if self._end_may_be_lost(outgoing):
            outgoing = [*self._flights.again(now, self._seal_again), *outgoing]
        return records.pack_records(
            outgoing, self._mtu, join_application=self.client or self.peer_packs, several=self.peer_packs
        )

    def notify_close(self) -> None:
        """Write a close_notify alert (RFC 5246 7.2.1) if messages can be sent."""
        if self._connection is None:
            return
        if self._early and not self.established:
            self._outgoing.append(self._seal(records.ALERT, _CLOSE_NOTIFY))
        if not self.established:
            return
        self._catch_up()
        self._unread = True
        binding.clear_errors()
        try:
            self._connection.shutdown()
        except SSL.Error:
            # A connection that already failed has nothing to say any more.
            binding.clear_errors()

    def release(self) -> None:
        """Let go of the connection; a session of a completed handshake stays resumable."""
        connection, self._connection = self._connection, None
        self._record_keys = None
        if connection is not None and self.established:
            binding.keep_session(connection)

    # -- what leaves

    def _collect(self) -> None:
        """Take what OpenSSL wrote, but for what it repeats and for numbers that are used."""
        kept = []
        self._unread = False
        for record in records.split_records(self._drain()):
            if record[3:5] != b"\0\0":
                number = int.from_bytes(record[5:11], "big")
                self._written = max(self._written, number)
                if number <= self._sealed and record[0] != records.HANDSHAKE:
                    continue
            kept.append(record)
        if not kept:
            return
        sending, new, repeated = self._flights.take(kept, self._now)
        self._outgoing += sending
        if new and not self.established:
            self._flight_sent_at = self._now
            if self.client:
                self._timer.start(self._now)
            elif self._flights.ends_the_handshake:
                self._timer = RetransmissionTimer(server_timeout(self._flights.size))
                self._timer.start(self._now)
        if repeated and self.established and self.client == self.resumed:
            self._repeat()  # who speaks last hears by the other's repetition that it was not heard

    def _repeat(self) -> None:
        self._flight_sent_at = None  # a repeated flight is no sample (Karn's algorithm)
        self._outgoing += self._flights.again(self._now, self._seal_again)

    def _end_may_be_lost(self, outgoing: list[bytes]) -> bool:
        """Whether a message leaves that the server could not read if it had not got the end of a resumption."""
        return (
            self.client
            and self.resumed
            and not self._heard
            and any(record[0] == records.APPLICATION_DATA for record in outgoing)
            and self._now - self._flights.sent_at >= MIN_TIMEOUT
        )

    def _may_start_early(self) -> bool:
        """Whether this step made messages possible ahead of the server's Finished (RFC 7918 section 4).

        The server's key exchange is signed with the key of its certificate, which the caller verifies; all suites
        that are offered have forward secrecy and an AEAD cipher.
        """
        if not self.client or self.established or self._early or not self._flights.ready:
            return False
        connection = self.connection
        if not (connection.get_cipher_name() or "").startswith("ECDHE-") or self._own_keys() is None:
            return False
        self._early = True
        self._max_message_size = connection.get_cleartext_mtu()
        return True

    def _own_keys(self) -> RecordKeys | None:
        if self._keys is None:
            self._keys = RecordKeys.derive(self.connection, client=self.client)
        return self._keys

    def _seal(self, content_type: int, plaintext: bytes) -> bytes:
        keys = self._own_keys()
        if keys is None:
            raise AssociationGone("the cipher suite is not known")
        self._sealed = max(self._sealed, self._written) + 1
        return keys.seal(content_type, self._sealed, plaintext)

    def _seal_again(self, record: bytes) -> bytes:
        keys = self._own_keys()
        plaintext = None if keys is None else keys.unseal(record)
        return record if plaintext is None else self._seal(record[0], plaintext)

    def _catch_up(self) -> None:
        """Have OpenSSL use up the numbers that were used here."""
        if self._written >= self._sealed:
            return
        self._collect()
        while self._written < self._sealed:
            self.connection.send(b"\0")
            for record in records.split_records(self._drain()):
                self._written = max(self._written, int.from_bytes(record[5:11], "big"))

    # -- what arrives

    def _measure(self, datagram: records.Datagram, now: float) -> None:
        """Take the round-trip time from a flight that was sent once to the answer that brings news."""
        news = datagram.encrypted or datagram.message_sequence > self._peer_message_sequence
        self._peer_message_sequence = max(self._peer_message_sequence, datagram.message_sequence)
        if news and self.rtt is None:
            if self._flight_sent_at is not None:
                self.rtt = max(0.0, now - self._flight_sent_at)
                self._timer.measured(self.rtt)
            elif self.longest_rtt is None and self._flights.answered_slowly(now):
                self.longest_rtt = now - self._flights.first_sent_at
        self._flight_sent_at = None

    def _run(self, datagram: records.Datagram | None) -> Progress:
        progress = Progress()
        connection = self.connection
        binding.clear_errors()
        try:
            if not self.established:
                connection.do_handshake()
                self._complete(connection)
                progress.established = True
                while True:  # records that came ahead of the last flight are waiting
                    progress.messages.append(connection.recv(_READ_SIZE))
            self._read(connection, datagram, progress)
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            progress.lost = PeerClosed("the peer closed the association")
        except SSL.Error as error:
            progress.lost = self._failure(error)
        if datagram is not None and not progress.established and self.established and not progress.lost:
            progress.discarded = max(0, datagram.records - len(progress.messages))
        return progress

    def _read(
        self, connection: SSL.Connection, datagram: records.Datagram | None, progress: Progress
    ) -> None:
        """Read what one datagram brought.

        Exactly one read for each application record: a read that finds nothing would take back the 16 KiB
        buffer that `SSL_MODE_RELEASE_BUFFERS` has just given up.
        """
        if datagram is None:
            return
        for _ in range(datagram.application):
            progress.messages.append(connection.recv(_READ_SIZE))
        if not datagram.ends_with_application:
            progress.messages.append(connection.recv(_READ_SIZE))

    def _complete(self, connection: SSL.Connection) -> None:
        self.established = True
        self.resumed = binding.was_resumed(connection)
        self._max_message_size = connection.get_cleartext_mtu()
        self._overhead = self._mtu - records.HEADER_SIZE - self._max_message_size
        self._flight_sent_at = None
        self._timer.stop()
        connection.set_app_data(None)

    def _failure(self, error: SSL.Error) -> DTLSError:
        text, alert = describe_openssl_error(error)
        if self.established or self._early:
            return ProtocolFailure(text, alert=alert)
        verification = None
        if "certificate verify failed" in text:
            verification = binding.verification_error(self.connection)
            text = f"the server's certificate is not accepted: {verification}"
        return HandshakeFailed(text, alert=alert, verification=verification)

    def _drain(self) -> bytes:
        if self._connection is None:
            return b""
        chunks = []
        try:
            while True:
                chunks.append(self._connection.bio_read(_BIO_CHUNK))
                if len(chunks[-1]) < _BIO_CHUNK:
                    break
        except SSL.WantReadError:
            pass
        return b"".join(chunks)
