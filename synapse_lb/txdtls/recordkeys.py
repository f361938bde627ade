# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether a record is of an association, found out without touching the association (RFC 5246 6.2.3.3, 6.3).

A datagram from an unknown address may be of a client that moved; which one is found by trying its first record
against likely associations. OpenSSL could be asked: it drops a record with a wrong MAC in silence. But it takes a
16 KiB buffer for each attempt and keeps it until the next good record, and an attempt that succeeds cannot be
undone. So the peer's key is derived here once more, and the record only checked: a wrong attempt leaves nothing
behind, because the connection takes no part in it. OpenSSL still decides on the record in the end.

The same keys protect the few records that OpenSSL cannot be brought to write: a Finished sent again, and what is sent
before the handshake is complete (see `association`).

    key_block = PRF(master_secret, "key expansion", server_random + client_random)
              = client_write_key | server_write_key | client_write_IV | server_write_IV      (AEAD: no MAC keys)
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from typing import Final

import attrs
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from OpenSSL import SSL

from synapse_lb.txdtls.records import HEADER_SIZE

_TAG_SIZE = 16
_NONCE_SIZE = 12
_VERSION = b"\xfe\xfd"


@attrs.frozen
class _Suite:
    """The record protection of a cipher suite.

    Attributes:
        aead: Makes the AEAD from its key.
        key_size: Bytes.
        digest: Hash of the PRF (RFC 5246 section 5).
        explicit: Bytes of the nonce that are sent in each record (RFC 5288 section 3: 8; RFC 7905 section 2: none).
    """

    aead: Callable[[bytes], AESGCM | ChaCha20Poly1305]
    key_size: int
    digest: str
    explicit: int

    @property
    def iv_size(self) -> int:
        """Bytes of the IV that both sides derive."""
        return _NONCE_SIZE - self.explicit


_SUITES: Final = {
    "CHACHA20-POLY1305": _Suite(ChaCha20Poly1305, 32, "sha256", 0),
    "AES128-GCM-SHA256": _Suite(AESGCM, 16, "sha256", 8),
    "AES256-GCM-SHA384": _Suite(AESGCM, 32, "sha384", 8),
}


@attrs.frozen
class RecordKeys:
    """The keys under which one side protects its records in one association."""

    _aead: AESGCM | ChaCha20Poly1305 = attrs.field(repr=False)
    _iv: bytes = attrs.field(repr=False)
    _explicit: int

    @classmethod
    def of_client(cls, connection: SSL.Connection) -> RecordKeys | None:
        """The keys under which the client protects its records; see `derive`."""
        return cls.derive(connection, client=True)

    @classmethod
    def derive(cls, connection: SSL.Connection, *, client: bool) -> RecordKeys | None:
        """Derive the keys of one direction.

        Args:
            connection: Has completed its handshake, full or resumed, in either role; or is so far that it has
                written its Finished.
            client: Whose records.

        Returns:
            The keys, or None for a cipher suite that is not known here.
        """
        name = connection.get_cipher_name() or ""
        suite = next((suite for ending, suite in _SUITES.items() if name.endswith(ending)), None)
        master = connection.master_key()
        randoms = (connection.server_random() or b"") + (connection.client_random() or b"")
        if suite is None or not master or not randoms:
            return None
        size = 2 * (suite.key_size + suite.iv_size)
        block = _expand(master, b"key expansion" + randoms, size, suite.digest)
        key_at = 0 if client else suite.key_size
        iv_at = 2 * suite.key_size + (0 if client else suite.iv_size)
        key = block[key_at : key_at + suite.key_size]
        return cls(suite.aead(key), block[iv_at : iv_at + suite.iv_size], suite.explicit)

    def open(self, record: bytes) -> bool:
        """Whether this is an authentic record, new or seen before.

        Args:
            record: One whole record of an epoch above 0.
        """
        return self.unseal(record) is not None

    def unseal(self, record: bytes) -> bytes | None:
        """The plaintext of a record of an epoch above 0, or None if it is not authentic."""
        sequence = record[3:11]  # epoch and sequence number: the AEAD's seq_num in DTLS (RFC 6347 4.1.2.1)
        start = HEADER_SIZE + self._explicit
        length = len(record) - start - _TAG_SIZE
        if length < 0:
            return None
        nonce = self._nonce(sequence, record[HEADER_SIZE:start])
        try:
            return self._aead.decrypt(
                nonce, record[start:], sequence + record[:3] + length.to_bytes(2, "big")
            )
        except InvalidTag:
            return None

    def seal(self, content_type: int, number: int, plaintext: bytes) -> bytes:
        """Protect a record of epoch 1.

        The caller sees to it that no two records of one number ever leave: the number is the nonce (RFC 7905), or
        is meant to be as good as one (RFC 5288 section 3: here the sent part of the nonce is random).

        Args:
            content_type: Of the record.
            number: Its sequence number.
            plaintext: What it says.
        """
        sequence = b"\0\1" + number.to_bytes(6, "big")
        start = bytes([content_type]) + _VERSION
        explicit = secrets.token_bytes(self._explicit)
        associated = sequence + start + len(plaintext).to_bytes(2, "big")
        sealed = explicit + self._aead.encrypt(self._nonce(sequence, explicit), plaintext, associated)
        return start + sequence + len(sealed).to_bytes(2, "big") + sealed

    def _nonce(self, sequence: bytes, explicit: bytes) -> bytes:
        if self._explicit:
            return self._iv + explicit
        counter = int.from_bytes(self._iv, "big") ^ int.from_bytes(sequence, "big")
        return counter.to_bytes(_NONCE_SIZE, "big")


def _expand(secret: bytes, seed: bytes, size: int, digest: str) -> bytes:
    """P_hash of RFC 5246 section 5."""
    chunks: list[bytes] = []
    chained = seed
    while sum(map(len, chunks)) < size:
        chained = hmac.digest(secret, chained, digest)
        chunks.append(hmac.digest(secret, chained + seed, digest))
    return b"".join(chunks)[:size]
