# SPDX-License-Identifier: AGPL-3.0-or-later
"""One DTLS association over memory BIOs: datagrams in, messages and datagrams out (RFC 6347).

Role-neutral and without sockets or timers of its own; `port.py` and `client.py` drive it. The clock is an
argument, with one exception that cannot be helped: OpenSSL decides by its own clock whether a flight is to be
retransmitted (1 s, doubling), so a simulated clock does not make it retransmit earlier.
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
from synapse_lb.txdtls.recordkeys import RecordKeys

_READ_SIZE = 16384
_BIO_CHUNK = 65536
_LARGEST_OVERHEAD = 24
"""Bytes that GCM adds to a fragment: nonce 8, tag 16 (RFC 5288 section 3); ChaCha20-Poly1305 adds 16.

A shorter fragment cannot be authentic, and OpenSSL 3 ends an association over it instead of dropping it (RFC 6347
4.1.2.7), so that one forged datagram would be enough. It is not shown to OpenSSL.
"""


@attrs.define
class Progress:
    """What a step brought.

    Attributes:
        established: The handshake was completed by this step.
        messages: Application messages, in order.
        discarded: Records that brought nothing.
        lost: Why the association is over, if it is. Of a handshake it is a `HandshakeFailed`, of an established
            association an `AssociationLost`.
    """

    established: bool = False
    messages: list[bytes] = attrs.field(factory=list)
    discarded: int = 0
    lost: DTLSError | None = None


class Association:
    """An OpenSSL connection over memory BIOs, with the rules for feeding and draining it.

    Args:
        connection: A connection in accept or connect state without a socket.
        mtu: Largest datagram to send, in bytes.
        received: message_seq of the ClientHello that a listener has taken already, -1 if there was none.
        shift: Added to the sequence numbers of unencrypted records, see `records.shift_unencrypted`.
        join_application: See `records.pack_records`.

    Attributes:
        established: Whether the handshake is complete.
        newest: The highest sequence number of the peer's application records that were authentic. Where it is
            not certain which of a datagram's records were, it stays at what is certain. -1 before the handshake
            is complete.
        resumed: Whether the handshake resumed a session.
        rtt: Round-trip time in seconds as the handshake showed it; None if every flight was repeated.
    """

    __slots__ = (
        "_connection",
        "_flight_sent_at",
        "_join_application",
        "_max_message_size",
        "_mtu",
        "_overhead",
        "_peer_message_sequence",
        "_record_keys",
        "_sent_message_sequence",
        "_shift",
        "established",
        "newest",
        "resumed",
        "rtt",
    )

    def __init__(
        self,
        connection: SSL.Connection,
        *,
        mtu: int,
        received: int = -1,
        shift: int = 0,
        join_application: bool = False,
    ) -> None:
        self._connection: SSL.Connection | None = connection
        self._mtu = mtu
        self._shift = shift
        self._overhead = _LARGEST_OVERHEAD
        self._join_application = join_application
        self._max_message_size = 0
        self._flight_sent_at: float | None = None
        self._peer_message_sequence = received
        self._sent_message_sequence = -1
        self._record_keys: RecordKeys | None = None
        self.established = False
        self.newest = -1
        self.resumed = False
        self.rtt: float | None = None

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
        """Bytes of the largest message that fits into one datagram; 0 before the handshake is complete."""
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
        if not self.established:
            self._measure(datagram, now)
        data = data[: datagram.size]
        short = 0
        if datagram.shortest_encrypted < self._overhead:
            data = records.without_short_records(data, self._overhead)
            summary = records.inspect(data)
            if summary is None:
                return Progress(discarded=datagram.records)
            short = datagram.records - summary.records
            datagram = summary
        self.connection.bio_write(data)
        progress = self._run(datagram)
        progress.discarded += short
        if progress.established:
            self.newest = len(
                progress.messages
            )  # at least: Finished has number 0, and one record each follows
        elif progress.messages and not progress.discarded:
            self.newest = max(self.newest, records.highest_sequence(data))
        return progress

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

    def handle_timeout(self) -> Progress:
        """Let OpenSSL retransmit if its own timer has expired."""
        binding.clear_errors()
        try:
            self.connection.DTLSv1_handle_timeout()
        except SSL.Error as error:
            return Progress(lost=self._failure(error))
        return Progress()

    def timeout(self) -> float | None:
        """Seconds until OpenSSL wants `handle_timeout`, or None when no flight is outstanding."""
        if self._connection is None or self.established:
            return None
        return self._connection.DTLSv1_get_timeout()

    def send(self, message: bytes) -> None:
        """Encrypt one message; `take_datagrams` gives the datagram.

        Raises:
            MessageTooLarge: It does not fit into one datagram.
            AssociationGone: The association is not established, or broke.
            ValueError: The message is empty.
        """
        if not message:
            raise ValueError("an empty message cannot be sent")
        if not self.established:
            raise AssociationGone("the handshake is not complete")
        if len(message) > self._max_message_size:
            raise MessageTooLarge(len(message), self._max_message_size)
        connection = self.connection
        binding.clear_errors()
        try:
            connection.send(message)
        except SSL.Error as error:
            raise AssociationGone(describe_openssl_error(error)[0]) from error

    def take_datagrams(self, now: float) -> list[bytes]:
        """Take what is to be sent, split into datagrams of at most the MTU."""
        blob = self._drain()
        if not blob:
            return []
        whole = [records.shift_unencrypted(record, self._shift) for record in records.split_records(blob)]
        if not self.established:
            self._note_flight(blob, now)
        return records.pack_records(whole, self._mtu, join_application=self._join_application)

    def notify_close(self) -> None:
        """Write a close_notify alert (RFC 5246 7.2.1) if the handshake is complete."""
        if self._connection is None or not self.established:
            return
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

    def _note_flight(self, blob: bytes, now: float) -> None:
        """Remember when a flight left for the first time; a repeated one is no sample (Karn's algorithm)."""
        summary = records.inspect(blob)
        sequence = -1 if summary is None else summary.message_sequence
        self._flight_sent_at = now if sequence > self._sent_message_sequence else None
        self._sent_message_sequence = max(self._sent_message_sequence, sequence)

    def _measure(self, datagram: records.Datagram, now: float) -> None:
        """Take the round-trip time from a flight that was sent once to the answer that brings news."""
        news = datagram.encrypted or datagram.message_sequence > self._peer_message_sequence
        self._peer_message_sequence = max(self._peer_message_sequence, datagram.message_sequence)
        if news and self._flight_sent_at is not None and self.rtt is None:
            self.rtt = max(0.0, now - self._flight_sent_at)
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
        connection.set_app_data(None)

    def _failure(self, error: SSL.Error) -> DTLSError:
        text, alert = describe_openssl_error(error)
        if self.established:
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
