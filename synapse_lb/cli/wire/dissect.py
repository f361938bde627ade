# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the bytes of a datagram are for: IP and UDP, DTLS, CoAP's header, token and options, and the payload.

`Dissector` reads datagrams as they cross the wire (RFC 6347, RFC 5246, RFC 7252). Given the keys that the client
logs, it reads what is encrypted too, with the one cipher suite that client and server of this package agree on.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from typing import Final

import attrs
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from synapse_lb.client.counters import IPV4_UDP_HEADERS
from synapse_lb.coap.errors import MessageFormatError
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import OptionNumber
from synapse_lb.msc3079.options import ACCESS_TOKEN, KEY_VERSION
from synapse_lb.txdtls import compact
from synapse_lb.txdtls.records import APPLICATION_DATA, HANDSHAKE, HEADER_SIZE, split_records

_TAG: Final = 16
_KEY: Final = 32
_IV: Final = 12
_CHACHA20_POLY1305: Final = frozenset({b"\xcc\xa8", b"\xcc\xa9", b"\xcc\xaa"})
"""Cipher suites (RFC 7905 section 2)."""

_HANDSHAKE_HEADER: Final = 12
_RANDOM: Final = slice(14, 46)
"""Where a hello has it, from the beginning of the handshake message."""

_CLIENT_HELLO: Final = 1
_SERVER_HELLO: Final = 2
_HANDSHAKES: Final = {
    0: "HelloRequest",
    1: "ClientHello",
    2: "ServerHello",
    3: "HelloVerifyRequest",
    4: "NewSessionTicket",
    11: "Certificate",
    12: "ServerKeyExchange",
    13: "CertificateRequest",
    14: "ServerHelloDone",
    16: "ClientKeyExchange",
    20: "Finished",
}
_CONTENT_TYPES: Final = {20: "ChangeCipherSpec", 21: "Alert", 22: "Handshake", 23: "application data"}
_SPELT: Final = {"ETAG": "ETag", "Q_BLOCK1": "Q-Block1", "Q_BLOCK2": "Q-Block2"}
_OPTIONS: Final = {ACCESS_TOKEN: "access token", KEY_VERSION: "key version"}


@attrs.frozen
class Part:
    """Some bytes of a datagram.

    Attributes:
        name: what they are for.
        size: how many they are; of `compact`, how many of the others are not sent, as a negative number.
    """

    name: str
    size: int


@attrs.frozen
class Datagram:
    """One datagram that crossed the wire.

    Attributes:
        out: whether the client sent it.
        parts: what it is made of, IP and UDP first; together all of its bytes.
    """

    out: bool
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """IP bytes."""
        return sum(part.size for part in self.parts)


@attrs.frozen
class _Keys:
    """The two directions of an association (RFC 5246 section 6.3)."""

    out: tuple[ChaCha20Poly1305, bytes]
    back: tuple[ChaCha20Poly1305, bytes]

    @classmethod
    def derive(cls, master: bytes, client_random: bytes, server_random: bytes) -> _Keys:
        seed = b"key expansion" + server_random + client_random
        block, chained = b"", seed
        while len(block) < 2 * (_KEY + _IV):
            chained = hmac.digest(master, chained, "sha256")
            block += hmac.digest(master, chained + seed, "sha256")
        ivs = block[2 * _KEY :]
        return cls(
            (ChaCha20Poly1305(block[:_KEY]), ivs[:_IV]),
            (ChaCha20Poly1305(block[_KEY : 2 * _KEY]), ivs[_IV : 2 * _IV]),
        )


class Dissector:
    """Reads the datagrams of one association after another."""

    def __init__(self) -> None:
        self._masters: dict[bytes, bytes] = {}
        self._client_random = b""
        self._server_random = b""
        self._readable = False
        self._keys: _Keys | None = None
        self._offer: compact.Offer | None = None

    def keylog(self, line: bytes) -> None:
        """Take a line of the client's key log."""
        label, random, secret = line.split()
        if label == b"CLIENT_RANDOM":
            self._masters = {bytes.fromhex(random.decode()): bytes.fromhex(secret.decode())}

    def read(self, data: bytes, *, out: bool) -> Datagram:
        """Say what the bytes of a datagram are for.

        Args:
            data: its UDP payload.
            out: whether the client sent it.
        """
        plain = self._expanded(data, out)
        parts = [Part("IPv4, UDP", IPV4_UDP_HEADERS)]
        records = split_records(plain)
        for record in records:
            parts += self._record(record, out)
        rest = len(plain) - sum(map(len, records))
        if rest:
            parts.append(Part("no record", rest))
        if len(plain) != len(data):
            parts.append(Part("compact", len(data) - len(plain)))
        return Datagram(out, tuple(parts))

    def _expanded(self, data: bytes, out: bool) -> bytes:
        """A compact datagram as DTLS has it; any other as it is."""
        if not compact.is_compact(data):
            return data
        if not out and data[0] == compact.ANSWER and self._offer is not None:
            return compact.expand_answer(data, self._offer) or data
        plain = compact.expand(data) or data
        if data[0] == compact.HELLO:
            self._offer = compact.Offer.of(plain)
        return plain

    def _record(self, record: bytes, out: bool) -> Iterator[Part]:
        kind, epoch = record[0], record[3:5]
        if epoch == b"\0\0":
            yield Part("DTLS", HEADER_SIZE)
            body = record[HEADER_SIZE:]
            yield from self._handshake(body) if kind == HANDSHAKE else (_named(kind, len(body)),)
            return
        content = self._decrypted(record, out)
        if content is None:
            yield Part(f"encrypted {_CONTENT_TYPES.get(kind, kind)}", len(record))
            return
        yield Part("DTLS", len(record) - len(content))
        if kind == APPLICATION_DATA:
            yield from coap_parts(content)
        else:
            yield from self._handshake(content) if kind == HANDSHAKE else (_named(kind, len(content)),)

    def _handshake(self, body: bytes) -> Iterator[Part]:
        """The messages of a handshake record; each is whole, or a fragment with its own header."""
        while len(body) >= _HANDSHAKE_HEADER:
            kind = body[0]
            end = _HANDSHAKE_HEADER + int.from_bytes(body[9:12], "big")
            if kind == _CLIENT_HELLO:
                self._client_random = body[_RANDOM]
                self._keys = None
            elif kind == _SERVER_HELLO:
                self._server_random = body[_RANDOM]
                session = body[_RANDOM.stop]
                suite = body[_RANDOM.stop + 1 + session :][:2]
                self._readable = suite in _CHACHA20_POLY1305
                self._keys = None
            yield Part(_HANDSHAKES.get(kind, f"handshake {kind}"), min(end, len(body)))
            body = body[end:]
        if body:
            yield Part("handshake", len(body))

    def _decrypted(self, record: bytes, out: bool) -> bytes | None:
        master = self._masters.get(self._client_random)
        if master is None or not self._readable:
            return None
        if self._keys is None:
            self._keys = _Keys.derive(master, self._client_random, self._server_random)
        aead, iv = self._keys.out if out else self._keys.back
        sequence = record[3:11]
        nonce = int.from_bytes(iv, "big") ^ int.from_bytes(sequence, "big")
        length = len(record) - HEADER_SIZE - _TAG
        if length < 0:
            return None
        additional = sequence + record[:3] + length.to_bytes(2, "big")
        try:
            return aead.decrypt(nonce.to_bytes(_IV, "big"), record[HEADER_SIZE:], additional)
        except InvalidTag:
            return None


def coap_parts(data: bytes) -> Iterator[Part]:
    """What the bytes of a CoAP message are for."""
    try:
        message = Message.decode(data)
    except MessageFormatError:
        yield Part("no CoAP", len(data))
        return
    yield Part("CoAP", 4)
    if message.token:
        yield Part("token", len(message.token))
    before = 0
    for number, value in message.options:
        yield Part(option_name(number), _option_size(number - before, len(value)))
        before = number
    if message.payload:
        yield Part("payload marker", 1)
        yield Part("payload", len(message.payload))


def option_name(number: int) -> str:
    """The name of an option, as the RFCs have it."""
    if number in _OPTIONS:
        return _OPTIONS[number]
    try:
        name = OptionNumber(number).name
    except ValueError:
        return f"option {number}"
    return _SPELT.get(name) or "-".join(word.capitalize() for word in name.split("_"))


def _option_size(delta: int, length: int) -> int:
    """RFC 7252 section 3.1: a byte, the value, and up to two bytes more for a large delta or length."""
    return 1 + _extended(delta) + _extended(length) + length


def _extended(value: int) -> int:
    return 0 if value < 13 else 1 if value < 269 else 2


def _named(kind: int, size: int) -> Part:
    return Part(_CONTENT_TYPES.get(kind, f"content type {kind}"), size)
