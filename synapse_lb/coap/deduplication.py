# SPDX-License-Identifier: AGPL-3.0-or-later
"""Recognizing duplicates (RFC 7252 section 4.5): a message that was received before is answered as before.

A duplicate has the message id *and* the bytes of the first copy. The same id with other bytes is a new message
of a peer that counts badly or has been restarted.

An entry lives for EXCHANGE_LIFETIME after the last copy. The table of a peer is bounded in entries and in bytes of
kept replies. When it is full, the oldest entry goes whose repetition would do no harm (a block that is sent again
from a snapshot, an intermediate block that was taken already); only then the oldest of the others. The entry of a
request that is being worked on never goes: there are no more of them than open exchanges.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

from attrs import define

from synapse_lb.coap.counters import Counters
from synapse_lb.coap.tuning import Limits


def digest_of(datagram: bytes) -> bytes:
    """Return what stands for the bytes of a datagram."""
    return blake2b(datagram, digest_size=16).digest()


@define(eq=False)
class Seen:
    """One message that was received.

    Attributes:
        message_id: Its message id.
        digest: `digest_of` its bytes.
        expires: Monotonic seconds; from then on its message id may be used for something else.
        lifetime: Seconds; EXCHANGE_LIFETIME or NON_LIFETIME.
        reply: The datagram that answered it, or None if there was none yet.
        open: Whether the request is still being worked on.
        harmless: Whether answering it once more as if it were new would do no harm.
    """

    message_id: int
    digest: bytes
    expires: float
    lifetime: float
    reply: bytes | None = None
    open: bool = True
    harmless: bool = False


class DuplicateTable:
    """The messages of one peer that were received.

    Args:
        limits: Its bounds.
        counters: Where evictions are counted.
    """

    __slots__ = ("_bytes", "_counters", "_harmless", "_latest", "_limits", "_others", "_seen")

    def __init__(self, limits: Limits, counters: Counters) -> None:
        self._limits = limits
        self._counters = counters
        self._seen: dict[int, Seen] = {}
        self._others: OrderedDict[int, Seen] = OrderedDict()
        self._harmless: OrderedDict[int, Seen] = OrderedDict()
        self._bytes = 0
        self._latest = 0.0

    def __len__(self) -> int:
        return len(self._seen)

    @property
    def reply_bytes(self) -> int:
        """Bytes of all kept replies."""
        return self._bytes

    @property
    def latest_expiry(self) -> float:
        """When, in monotonic seconds, the table will be empty if nothing is added."""
        return self._latest

    def find(self, message_id: int, digest: bytes, now: float) -> Seen | None:
        """Return the first copy of a message, or None if this is the first."""
        seen = self._seen.get(message_id)
        if seen is None or seen.digest != digest or (seen.expires <= now and not seen.open):
            return None
        return seen

    def add(self, message_id: int, digest: bytes, lifetime: float, now: float) -> Seen:
        """Remember a message; it is open until `settle`.

        Args:
            message_id: Its message id.
            digest: `digest_of` its bytes.
            lifetime: Seconds for which to remember it.
            now: Monotonic seconds.
        """
        previous = self._seen.get(message_id)
        if previous is not None:
            self._remove(previous)
        self.sweep(now)
        seen = Seen(message_id, digest, now + lifetime, lifetime)
        self._seen[message_id] = self._others[message_id] = seen
        self._latest = max(self._latest, seen.expires)
        self._make_room()
        return seen

    def repeated(self, seen: Seen, now: float) -> None:
        """Note a further copy of a Confirmable message: its time begins anew.

        A sender with a long round trip spreads its copies over more than the MAX_TRANSMIT_SPAN on which
        EXCHANGE_LIFETIME is reckoned.
        """
        if self._seen.get(seen.message_id) is seen:
            seen.expires = now + seen.lifetime
            self._latest = max(self._latest, seen.expires)
            (self._harmless if seen.harmless else self._others).move_to_end(seen.message_id)

    def forget(self, seen: Seen) -> None:
        """Treat the next copy of a message as if it were the first."""
        if self._seen.get(seen.message_id) is seen:
            self._remove(seen)

    def acknowledged(self, seen: Seen, reply: bytes) -> None:
        """Keep what was sent so far in reply to a message that is still being worked on."""
        if self._seen.get(seen.message_id) is seen:
            self._set_reply(seen, reply)
            self._make_room()

    def settle(self, seen: Seen, reply: bytes | None, *, harmless: bool = False) -> None:
        """Keep the final reply to a message.

        Args:
            seen: The message.
            reply: The datagram, or None if none was sent; then one that was kept before stays.
            harmless: Whether answering it once more as if it were new would do no harm.
        """
        seen.open = False
        if self._seen.get(seen.message_id) is not seen:
            return
        if reply is not None:
            self._set_reply(seen, reply)
        if harmless:
            seen.harmless = True
            del self._others[seen.message_id]
            self._harmless[seen.message_id] = seen
        self._make_room()

    def sweep(self, now: float) -> None:
        """Forget the messages whose time is over; one that is being worked on gets more time."""
        for order in (self._harmless, self._others):
            while order:
                seen = next(iter(order.values()))
                if seen.expires > now:
                    break
                if seen.open:
                    seen.expires = now + seen.lifetime
                    self._latest = max(self._latest, seen.expires)
                    order.move_to_end(seen.message_id)
                else:
                    self._remove(seen)

    def _set_reply(self, seen: Seen, reply: bytes) -> None:
        self._bytes += len(reply) - len(seen.reply or b"")
        seen.reply = reply

    def _remove(self, seen: Seen) -> None:
        del self._seen[seen.message_id]
        del (self._harmless if seen.harmless else self._others)[seen.message_id]
        self._bytes -= len(seen.reply or b"")

    def _make_room(self) -> None:
        limits = self._limits
        while True:
            if len(self._seen) > limits.dedup_entries_per_peer:
                victim = self._oldest(with_reply=False)
            elif self._bytes > limits.dedup_bytes_per_peer:
                victim = self._oldest(with_reply=True)
            else:
                return
            if victim is None:
                return
            self._remove(victim)
            self._counters.dedup_evictions += 1

    def _oldest(self, *, with_reply: bool) -> Seen | None:
        """Return the entry to drop, or None if all of them are being worked on."""
        for order in (self._harmless, self._others):
            for seen in order.values():
                if not seen.open and (seen.reply is not None or not with_reply):
                    return seen
        return None
