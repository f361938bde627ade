# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which datagrams of an association are compact (`compact`), on either side.

A client makes its datagrams compact once it knows that this server reads them: its owner says so, or the session that
it resumes is of such a server. A server answers in the form of the client's last authentic datagram. So what a client
of another make sends and gets is DTLS; and a client whose compact datagrams do not get through - there are networks
that let pass only what they know - goes back to DTLS, and takes the server with it.
"""

from __future__ import annotations

from typing import Final

import attrs

from synapse_lb.txdtls import compact, records
from synapse_lb.txdtls.compact import Offer

PATIENCE: Final = 3.0
"""Seconds for which a client's compact datagrams may stay without an answer, if there are more than `FEW`."""

FEW: Final = 3


@attrs.define
class ServerForm:
    """The form of what a server sends to one client.

    Attributes:
        compact: Whether the client's last authentic datagram was.
        offer: Of its hello, if that was.
    """

    compact: bool = False
    offer: Offer | None = None

    @classmethod
    def of(cls, hello: bytes, summary: records.Datagram) -> ServerForm:
        """The form for the handshake that a hello begins.

        Args:
            hello: The datagram, made DTLS again.
            summary: Of it.
        """
        return cls(summary.compact, Offer.of(hello) if summary.compact else None)

    def outgoing(self, datagram: bytes) -> bytes:
        """What leaves in place of a datagram of DTLS."""
        if not self.compact:
            return datagram
        if datagram[0] == records.HANDSHAKE and self.offer is not None:
            return compact.shrink_answer(datagram, self.offer)
        return compact.shrink(datagram)


@attrs.define
class ClientForm:
    """The form of what a client sends to its server.

    Attributes:
        compact: Whether the server is taken to read compact datagrams.
    """

    compact: bool = False
    _offer: Offer | None = None
    _given_up: bool = False
    _unanswered: int = 0
    _since: float = 0.0

    def use_compact(self) -> None:
        """The server reads compact datagrams; nothing happens if they have been found not to get there."""
        self.compact = not self._given_up

    def outgoing(self, datagram: bytes, now: float) -> bytes:
        """What leaves in place of a datagram of DTLS.

        Args:
            datagram: It.
            now: Monotonic seconds.
        """
        if not self.compact:
            return datagram
        hello = compact.shrink_hello(datagram)
        if hello is not None:
            self._offer = Offer.of(datagram)
        shorter = compact.shrink(datagram) if hello is None else hello
        if not compact.is_compact(shorter):
            return datagram
        if not self._unanswered:
            self._since = now
        self._unanswered += 1
        if self._unanswered > FEW and now - self._since >= PATIENCE:
            self.compact, self._given_up = False, True
            return datagram
        return shorter

    def read(self, datagram: bytes) -> tuple[bytes, records.Datagram | None]:
        """Look at a datagram of the server; see `read`."""
        self._unanswered = 0
        return read(datagram, self._offer)


def read(datagram: bytes, offer: Offer | None = None) -> tuple[bytes, records.Datagram | None]:
    """Make a received datagram DTLS again, if it is compact, and look at it.

    Args:
        datagram: What arrived.
        offer: That of a client's hello, if this may be the answer to it.

    Returns:
        The datagram of DTLS, and what `records.inspect` says of it: None if it is none, or longer than any.
    """
    if len(datagram) > records.MAX_DATAGRAM:
        return datagram, None
    if not compact.is_compact(datagram):
        return datagram, records.inspect(datagram)
    if offer is not None and datagram[0] == compact.ANSWER:
        plain = compact.expand_answer(datagram, offer)
    else:
        plain = compact.expand(datagram)
    summary = None if plain is None else records.inspect(plain, len(datagram))
    if plain is None or summary is None:
        return datagram, None
    return plain, summary
