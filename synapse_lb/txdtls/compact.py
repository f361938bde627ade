# SPDX-License-Identifier: AGPL-3.0-or-later
"""Compact datagrams: DTLS 1.2 records without the bytes that both ends know (docs/extensions.md, "Compact datagrams").

A record's header has 13 bytes, of which one or two say something, as DTLS 1.3 found (RFC 9147 section 4); and most of
a resumption's hellos is the same in all of them. A compact datagram stands for exactly one datagram of DTLS, which is
made again of it before anybody looks at it. So nothing is protected less: what is not what the sender's OpenSSL wrote
is not what the receiver's reads.

    F0 shape, random, session id, name        ClientHello of a resumption
    F1 random, Finished                       ServerHello, ChangeCipherSpec, Finished: the answer
    F2 length, Finished, datagram             ChangeCipherSpec, Finished, and what follows
    F4 number, fragment                       an application record, its number in one byte
    F5 number, fragment                       in two
    F6 number, fragment                       in three

Everything here is pure, and nothing raises on bad input from the network. What cannot be said so goes as it is.
"""

from __future__ import annotations

from typing import Final

import attrs

from synapse_lb.txdtls.records import (
    APPLICATION_DATA,
    CHANGE_CIPHER_SPEC,
    HANDSHAKE,
    HEADER_SIZE,
    first_record,
    parse_client_hello,
    split_records,
)

HELLO: Final = 0xF0
ANSWER: Final = 0xF1
END: Final = 0xF2
RECORD: Final = 0xF4
_LONGEST_NUMBER: Final = 3

_VERSION: Final = b"\xfe\xfd"
_HELLO_VERSION: Final = b"\xfe\xff"
_RANDOM: Final = 32
_SESSION_ID: Final = 32
_EPOCH_1: Final = b"\0\1"

_SUITES: Final = (b"\xcc\xa9", b"\xc0\x2b", b"\xcc\xa8", b"\xc0\x2f")
"""Suites of ECDSA (those with an even index) and RSA: see `_signatures`."""

_FINISHED: Final = {b"\xcc\xa9": 40, b"\xcc\xa8": 40, b"\xc0\x2b": 48, b"\xc0\x2f": 48}
"""Bytes of a protected Finished: 24, and what the suite adds."""

_GROUPS: Final = 4
"""In a shape: with point formats and groups, as OpenSSL 3 writes them."""

_RENEGOTIATION: Final = bytes.fromhex("ff01000100")
_MASTER_SECRET: Final = bytes.fromhex("00170000")
_POINTS_AND_GROUPS: Final = bytes.fromhex("000b000403000102000a000c000a001d0017001e00190018")
_CHANGED: Final = b"\x14" + _VERSION + bytes(7) + b"\x01\0\x01\x01"
"""A ChangeCipherSpec with number 1, the second record of its sender."""


@attrs.frozen
class Offer:
    """The resumption that a client has offered: what its answer need not say again.

    Attributes:
        session_id: Of the session.
        suite: Its cipher suite.
    """

    session_id: bytes = attrs.field(repr=False)
    suite: bytes

    @classmethod
    def of(cls, datagram: bytes) -> Offer | None:
        """The offer of a hello that has a compact form; None of anything else."""
        return None if shrink_hello(datagram) is None else _offer(datagram)


def is_compact(datagram: bytes) -> bool:
    """Whether a datagram is of this form; no content type of DTLS is that large."""
    return bool(datagram) and datagram[0] >= HELLO


def shrink(datagram: bytes) -> bytes:
    """The compact form of a datagram with an application record, or with the end of a client's handshake.

    Returns:
        It, or the datagram as it is.
    """
    if datagram.startswith(_CHANGED):
        finished = first_record(datagram[len(_CHANGED) :])
        rest = datagram[len(_CHANGED) + len(finished) :]
        fragment = finished[HEADER_SIZE:]
        if finished == _finished(fragment) and rest:
            return bytes((END, len(fragment))) + fragment + shrink(rest)
        return datagram
    number = int.from_bytes(datagram[5:11], "big")
    width = max(1, (number.bit_length() + 7) // 8)
    if width > _LONGEST_NUMBER or datagram != _application(number, datagram[HEADER_SIZE:]):
        return datagram
    return bytes((RECORD + width - 1,)) + number.to_bytes(width, "big") + datagram[HEADER_SIZE:]


def expand(datagram: bytes) -> bytes | None:
    """The datagram that a compact one stands for; None if it stands for none, or is the answer to a hello."""
    kind = datagram[0]
    if kind == HELLO:
        return _expand_hello(datagram)
    if kind == END and len(datagram) > 1:
        end = 2 + datagram[1]
        rest: bytes | None = datagram[end:]
        if rest and rest[0] >= RECORD:
            rest = expand(rest)
        elif rest and is_compact(rest):
            return None
        return _CHANGED + _finished(datagram[2:end]) + rest if rest else None
    width = kind - RECORD + 1
    if not 1 <= width <= _LONGEST_NUMBER or len(datagram) <= width:
        return None
    return _application(int.from_bytes(datagram[1 : 1 + width], "big"), datagram[1 + width :])


def shrink_hello(datagram: bytes) -> bytes | None:
    """The compact form of a first hello that offers nothing but a resumption; None if it has none."""
    hello = parse_client_hello(datagram)
    if hello is None or len(hello.session_id) != _SESSION_ID:
        return None
    offer = _offer(datagram)
    for shape, suite in enumerate(_SUITES):
        if offer is None or offer.suite != suite:
            continue
        for groups in (0, _GROUPS):
            head = bytes((HELLO, shape | groups)) + hello.random + hello.session_id
            name = _name_in(datagram)
            if _expand_hello(head + name) == datagram:
                return head + name
    return None


def shrink_answer(datagram: bytes, offer: Offer) -> bytes:
    """The compact form of the server's flight that takes up a resumption; any other datagram as it is."""
    records = split_records(datagram)
    if len(records) != 3:
        return datagram
    compact = bytes((ANSWER,)) + records[0][27 : 27 + _RANDOM] + records[2][HEADER_SIZE:]
    return compact if expand_answer(compact, offer) == datagram else datagram


def expand_answer(datagram: bytes, offer: Offer) -> bytes | None:
    """The server's flight that a compact one stands for; None if it stands for none."""
    random, finished = datagram[1 : 1 + _RANDOM], datagram[1 + _RANDOM :]
    if datagram[0] != ANSWER or len(finished) != _FINISHED[offer.suite]:
        return None
    body = _VERSION + random + _vector(offer.session_id, 1) + offer.suite + b"\0"
    body += _vector(_RENEGOTIATION + _MASTER_SECRET, 2)
    return _handshake(2, body, _VERSION) + _CHANGED + _finished(finished)


def _expand_hello(datagram: bytes) -> bytes | None:
    start = 2 + _RANDOM + _SESSION_ID
    if len(datagram) < start or datagram[1] >= _GROUPS + len(_SUITES):
        return None
    shape, name = datagram[1], datagram[start:]
    extensions = _RENEGOTIATION
    if name:
        # RFC 6066 section 3: a list of one name of type 0
        extensions += b"\0\0" + _vector(_vector(b"\0" + _vector(name, 2), 2), 2)
    if shape & _GROUPS:
        extensions += _POINTS_AND_GROUPS
    signatures = _signatures(shape)
    extensions += _MASTER_SECRET + b"\0\x0d" + _vector(_vector(signatures, 2), 2)
    body = _VERSION + datagram[2 : 2 + _RANDOM] + _vector(datagram[2 + _RANDOM : start], 1)
    body += b"\0" + _vector(_SUITES[shape % _GROUPS], 2) + b"\1\0" + _vector(extensions, 2)
    return _handshake(1, body, _HELLO_VERSION)


def _signatures(shape: int) -> bytes:
    """SHA-256 with the kind of key that the suite has (RFC 5246 section 7.4.1.4.1)."""
    return b"\4\3" if shape % _GROUPS < 2 else b"\4\1"


def _offer(datagram: bytes) -> Offer | None:
    """The session of a well-formed hello, and its suite if it names but one."""
    hello = parse_client_hello(datagram)
    if hello is None:
        return None
    suites = hello.parameters[2 + _RANDOM + 1 + len(hello.session_id) :]
    return Offer(hello.session_id, suites[2:4]) if suites[:2] == b"\0\2" else None


def _name_in(datagram: bytes) -> bytes:
    """The server's name in a hello that says it, where OpenSSL puts it; else nothing."""
    at = datagram.find(_RENEGOTIATION + b"\0\0")
    if at < 0:
        return b""
    start = at + len(_RENEGOTIATION) + 9
    return datagram[start : start + int.from_bytes(datagram[start - 2 : start], "big")]


def _vector(content: bytes, width: int) -> bytes:
    return len(content).to_bytes(width, "big") + content


def _handshake(kind: int, body: bytes, version: bytes) -> bytes:
    """The first message of its sender, whole, in a record with number 0."""
    length = len(body).to_bytes(3, "big")
    message = bytes((kind,)) + length + bytes(5) + length + body
    return bytes((HANDSHAKE,)) + version + bytes(8) + _vector(message, 2)


def _finished(fragment: bytes) -> bytes:
    return bytes((HANDSHAKE,)) + _VERSION + _EPOCH_1 + bytes(6) + _vector(fragment, 2)


def _application(number: int, fragment: bytes) -> bytes:
    number_and_length = number.to_bytes(6, "big") + len(fragment).to_bytes(3, "big")[-2:]
    return bytes((APPLICATION_DATA,)) + _VERSION + _EPOCH_1 + number_and_length + fragment


assert _CHANGED[0] == CHANGE_CIPHER_SPEC
