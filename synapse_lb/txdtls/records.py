# SPDX-License-Identifier: AGPL-3.0-or-later
"""DTLS records without keys: split, pack, renumber, inspect, and read a ClientHello (RFC 6347 4.1, 4.2).

    struct {                          |  struct {
      ContentType type;        1 byte |    HandshakeType msg_type;      1 byte
      ProtocolVersion version; 2      |    uint24 length;               3
      uint16 epoch;            2      |    uint16 message_seq;          2
      uint48 sequence_number;  6      |    uint24 fragment_offset;      3
      uint16 length;           2      |    uint24 fragment_length;      3
      opaque fragment[length];        |    body
    } DTLSPlaintext;                  |  } Handshake;

Everything here is pure, and nothing raises on bad input from the network.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

HEADER_SIZE = 13
"""Bytes of a record header (RFC 6347 4.1)."""

MAX_DATAGRAM = HEADER_SIZE + 16384 + 256
"""Largest datagram looked at: one record of 2^14 bytes with its cipher expansion."""

CHANGE_CIPHER_SPEC = 20
ALERT = 21
HANDSHAKE = 22
APPLICATION_DATA = 23

_CLIENT_HELLO = 1
_HELLO_VERIFY_REQUEST = 3
_HANDSHAKE_HEADER_SIZE = 12
_RANDOM_SIZE = 32
_NO_FRAGMENT = 1 << 16
_SEQUENCE_MASK = (1 << 48) - 1


def split_records(blob: bytes) -> list[bytes]:
    """Split what OpenSSL wrote into whole records; a rest which is no whole record is left out."""
    records = []
    start = 0
    while start + HEADER_SIZE <= len(blob):
        end = start + HEADER_SIZE + int.from_bytes(blob[start + 11 : start + 13], "big")
        if end > len(blob):
            break
        records.append(blob[start:end])
        start = end
    return records


def first_record(data: bytes) -> bytes:
    """The record that a datagram begins with; it must be whole."""
    return data[: HEADER_SIZE + int.from_bytes(data[11:13], "big")]


def highest_sequence(data: bytes) -> int:
    """The highest sequence number of a datagram's records of epochs above 0; -1 if there are none.

    Args:
        data: Whole records only.
    """
    highest = -1
    start = 0
    while start < len(data):
        if data[start + 3 : start + 5] != b"\0\0":
            highest = max(highest, int.from_bytes(data[start + 5 : start + 11], "big"))
        start += HEADER_SIZE + int.from_bytes(data[start + 11 : start + 13], "big")
    return highest


def pack_records(
    records: Sequence[bytes], mtu: int, *, join_application: bool, several: bool = False
) -> list[bytes]:
    """Put whole records into as few datagrams as the MTU allows (RFC 6347 4.1.1).

    Args:
        records: Whole records in order.
        mtu: Largest datagram in bytes.
        join_application: Whether an application record may follow other records in one datagram.
        several: Whether anything may follow an application record there. Deployed clients read one message of a
            datagram, and the next one only when something else arrives.

    Returns:
        Datagrams, none longer than `mtu` unless a single record is.
    """
    if len(records) == 1:
        return [records[0]]
    datagrams: list[bytes] = []
    current: list[bytes] = []
    size = 0
    for record in records:
        application = record[0] == APPLICATION_DATA
        if current and (size + len(record) > mtu or (application and not join_application)):
            datagrams.append(b"".join(current))
            current, size = [], 0
        current.append(record)
        size += len(record)
        if application and not several:
            datagrams.append(b"".join(current))
            current, size = [], 0
    if current:
        datagrams.append(b"".join(current))
    return datagrams


def merge_handshakes(records: Sequence[bytes], limit: int) -> list[bytes]:
    """Put unencrypted handshake messages that follow each other into one record (RFC 6347 4.2.3).

    Each record that is saved saves 13 bytes.

    Args:
        records: Whole records in order.
        limit: Largest record in bytes.

    Returns:
        The records; one with several messages has the header of the first.
    """
    merged: list[bytes] = []
    for record in records:
        before = merged[-1] if merged else b""
        joined = len(before) + len(record) - HEADER_SIZE
        if _plain_handshake(before) and _plain_handshake(record) and joined <= limit:
            length = (joined - HEADER_SIZE).to_bytes(2, "big")
            merged[-1] = before[:11] + length + before[HEADER_SIZE:] + record[HEADER_SIZE:]
        else:
            merged.append(record)
    return merged


def _plain_handshake(record: bytes) -> bool:
    return len(record) > HEADER_SIZE and record[0] == HANDSHAKE and record[3:5] == b"\0\0"


def renumber(record: bytes, sequence: int) -> bytes:
    """Give a record of epoch 0 another sequence number.

    After `DTLSv1_listen` OpenSSL numbers its ServerHello from 1, whatever number the ClientHello had. RFC 6347
    4.2.1 wants the ClientHello's, and a client that has seen a higher one (it retransmitted its hello and got
    several HelloVerifyRequests) takes number 1 for a replay. Epoch-0 headers are neither encrypted nor part of
    the transcript, so they can be renumbered.
    """
    return record[:5] + (sequence & _SEQUENCE_MASK).to_bytes(6, "big") + record[11:]


@attrs.frozen
class Datagram:
    """What can be read off a received datagram without keys.

    Attributes:
        records: Number of whole records.
        application: How many of them are encrypted application data.
        ends_with_application: Whether the last one is.
        encrypted: Whether any record is of an epoch above 0.
        shortest_encrypted: Bytes of the shortest fragment among those, 65536 if there is none.
        message_sequence: Highest message_seq of an unencrypted handshake message, or -1.
        client_hello: Whether the first record starts a ClientHello (whole or a fragment).
        hello_verify_request: Whether it is a HelloVerifyRequest.
        size: Bytes of the whole records; what follows is no record.
        wire: Bytes of the datagram as it crossed the network.
        compact: Whether it did so in its compact form (see `compact`).
    """

    records: int
    application: int
    ends_with_application: bool
    encrypted: bool
    shortest_encrypted: int
    message_sequence: int
    client_hello: bool
    hello_verify_request: bool
    size: int
    wire: int
    compact: bool = False


def inspect(data: bytes, wire: int | None = None) -> Datagram | None:
    """Look at the record headers of a received datagram.

    Args:
        data: It, in DTLS's own form.
        wire: Bytes of its compact form, if it came in that.

    Returns:
        The summary, or None if the datagram does not begin with a whole record of a known type and version.
    """
    count = application = start = 0
    last = -1
    message_sequence = -1
    shortest = _NO_FRAGMENT
    while start + HEADER_SIZE <= len(data):
        end = start + HEADER_SIZE + int.from_bytes(data[start + 11 : start + 13], "big")
        content_type = data[start]
        if end > len(data) or not 20 <= content_type <= 23 or data[start + 1] != 0xFE:
            break
        if data[start + 3 : start + 5] != b"\0\0":
            shortest = min(shortest, end - start - HEADER_SIZE)
            application += content_type == APPLICATION_DATA
        elif content_type == HANDSHAKE and end - start >= HEADER_SIZE + _HANDSHAKE_HEADER_SIZE:
            message_sequence = max(message_sequence, _last_message(data, start + HEADER_SIZE, end))
        last = content_type
        count += 1
        start = end
    if not count:
        return None
    return Datagram(
        records=count,
        application=application,
        ends_with_application=last == APPLICATION_DATA,
        encrypted=shortest < _NO_FRAGMENT,
        shortest_encrypted=shortest,
        message_sequence=message_sequence,
        client_hello=_starts_with(data, _CLIENT_HELLO),
        hello_verify_request=_starts_with(data, _HELLO_VERIFY_REQUEST),
        size=start,
        wire=len(data) if wire is None else wire,
        compact=wire is not None,
    )


def _last_message(data: bytes, start: int, end: int) -> int:
    """The highest message_seq of the handshake messages in one record."""
    highest = -1
    while start + _HANDSHAKE_HEADER_SIZE <= end:
        highest = max(highest, int.from_bytes(data[start + 4 : start + 6], "big"))
        start += _HANDSHAKE_HEADER_SIZE + int.from_bytes(data[start + 9 : start + 12], "big")
    return highest


def without_short_records(data: bytes, minimum: int) -> bytes:
    """Leave out the encrypted records whose fragment is shorter than `minimum` bytes."""
    return b"".join(
        record
        for record in split_records(data)
        if record[3:5] == b"\0\0" or len(record) - HEADER_SIZE >= minimum
    )


def _starts_with(data: bytes, message: int) -> bool:
    return (
        len(data) > HEADER_SIZE
        and data[0] == HANDSHAKE
        and data[3:5] == b"\0\0"
        and data[HEADER_SIZE] == message
    )


@attrs.frozen
class ClientHello:
    """A ClientHello that came whole in one record (RFC 6347 4.2.1).

    Attributes:
        record: The record it came in, without anything that followed in the datagram.
        record_sequence: Sequence number of that record.
        message_sequence: Its message_seq.
        random: The client's random, which names this handshake.
        parameters: Version, random, session id, cipher suites and compression methods: what has to be the same
            in the ClientHello with the cookie.
        cookie: The cookie; empty in a first ClientHello.
        session_id: The session to resume; empty if there is none.
    """

    record: bytes = attrs.field(repr=False)
    record_sequence: int
    message_sequence: int
    random: bytes = attrs.field(repr=False)
    parameters: bytes = attrs.field(repr=False)
    cookie: bytes = attrs.field(repr=False)
    session_id: bytes = attrs.field(repr=False)


def parse_client_hello(data: bytes) -> ClientHello | None:
    """Read the ClientHello at the start of a datagram.

    Returns:
        The hello, or None if it is fragmented (a fragment cannot be checked without keeping state), cut short
        or otherwise not well formed.
    """
    if not _starts_with(data, _CLIENT_HELLO) or len(data) < HEADER_SIZE + _HANDSHAKE_HEADER_SIZE:
        return None
    record = data[: HEADER_SIZE + int.from_bytes(data[11:13], "big")]
    body = record[HEADER_SIZE + _HANDSHAKE_HEADER_SIZE :]
    length = int.from_bytes(data[14:17], "big")
    fragment_offset = int.from_bytes(data[19:22], "big")
    fragment_length = int.from_bytes(data[22:25], "big")
    if fragment_offset or fragment_length != length or len(body) != length:
        return None
    position = 2 + _RANDOM_SIZE
    fields: list[bytes] = []
    for width in (1, 1, 2, 1):  # session id, cookie, cipher suites, compression methods
        field = _vector(body, position, width)
        if field is None:
            return None
        fields.append(field)
        position += len(field)
    session_id, cookie, suites, compression = fields
    return ClientHello(
        record=record,
        record_sequence=int.from_bytes(data[5:11], "big"),
        message_sequence=int.from_bytes(data[17:19], "big"),
        random=body[2 : 2 + _RANDOM_SIZE],
        parameters=body[: 2 + _RANDOM_SIZE] + session_id + suites + compression,
        cookie=cookie[1:],
        session_id=session_id[1:],
    )


def _vector(body: bytes, position: int, width: int) -> bytes | None:
    """A variable-length vector with its length prefix of `width` bytes, or None if it is cut short."""
    end = position + width + int.from_bytes(body[position : position + width], "big")
    if position + width > len(body) or end > len(body):
        return None
    return body[position:end]
