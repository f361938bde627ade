# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether a record is of an association, found out without touching the association (RFC 5246 6.2.3.3, 6.3).

A datagram from an unknown address may be of a client that moved; which one is found by trying its first record
against likely associations. OpenSSL could be asked: it drops a record with a wrong MAC in silence. But it takes a
16 KiB buffer for each attempt and keeps it until the next good record, and an attempt that succeeds cannot be
undone. So the peer's key is derived here once more, and the record only checked: a wrong attempt leaves nothing
behind, because the connection takes no part in it. OpenSSL still decides on the record in the end.

    key_block = PRF(master_secret, "key expansion", server_random + client_random)
              = client_write_key | server_write_key | client_write_IV | server_write_IV      (AEAD: no MAC keys)
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Final

import attrs
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from OpenSSL import SSL

from synapse_lb.txdtls.records import HEADER_SIZE

_TAG_SIZE = 16
_NONCE_SIZE = 12


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
    """The keys under which a client protects its records in one association."""

    _aead: AESGCM | ChaCha20Poly1305 = attrs.field(repr=False)
    _iv: bytes = attrs.field(repr=False)
    _explicit: int

    @classmethod
    def of_client(cls, connection: SSL.Connection) -> RecordKeys | None:
        """Derive them.

        Args:
            connection: Has completed its handshake, full or resumed, in either role.

        Returns:
            The keys, or None for a cipher suite that is not known here.
        """
        name = connection.get_cipher_name() or ""
        suite = next((suite for ending, suite in _SUITES.items() if name.endswith(ending)), None)
        master, server, client = (
            connection.master_key(),
            connection.server_random(),
            connection.client_random(),
        )
        if suite is None or not master or not server or not client:
            return None
        size = 2 * (suite.key_size + suite.iv_size)
        block = _expand(master, b"key expansion" + server + client, size, suite.digest)
        iv_at = 2 * suite.key_size
        return cls(suite.aead(block[: suite.key_size]), block[iv_at : iv_at + suite.iv_size], suite.explicit)

    def open(self, record: bytes) -> bool:
        """Whether this is an authentic record of the client, new or seen before.

        Args:
            record: One whole record of an epoch above 0.
        """
        sequence = record[3:11]  # epoch and sequence number: the AEAD's seq_num in DTLS (RFC 6347 4.1.2.1)
        start = HEADER_SIZE + self._explicit
        length = len(record) - start - _TAG_SIZE
        if length < 0:
            return False
        if self._explicit:
            nonce = self._iv + record[HEADER_SIZE:start]
        else:
            counter = int.from_bytes(self._iv, "big") ^ int.from_bytes(sequence, "big")
            nonce = counter.to_bytes(_NONCE_SIZE, "big")
        try:
            self._aead.decrypt(nonce, record[start:], sequence + record[:3] + length.to_bytes(2, "big"))
        except InvalidTag:
            return False
        return True


def _expand(secret: bytes, seed: bytes, size: int, digest: str) -> bytes:
    """P_hash of RFC 5246 section 5."""
    chunks: list[bytes] = []
    chained = seed
    while sum(map(len, chunks)) < size:
        chained = hmac.digest(secret, chained, digest)
        chunks.append(hmac.digest(secret, chained + seed, digest))
    return b"".join(chunks)[:size]
