# SPDX-License-Identifier: AGPL-3.0-or-later
"""A bounded store of bodies: request bodies half received, or response bodies being fetched.

Bounded in the number and the bytes per peer, in the bytes of all peers, and in time. Whatever was not touched for
the longest goes first: of the same peer when the peer is over its bounds; when all are, of any peer that is not known,
and only if there is none, of one that is (`PeerSettings.known`). So strangers take nothing from others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from typing import Generic, TypeVar

from attrs import define

from synapse_lb.coap.blockwise import BlockKey
from synapse_lb.coap.core import Core
from synapse_lb.coap.events import Peer
from synapse_lb.coap.peers import PeerState
from synapse_lb.coap.timers import Timer


@define(eq=False, kw_only=True)
class Body:
    """One entry; its makers add what they keep in it.

    Attributes:
        peer: Whose it is.
        key: Which of the peer's.
        size: Bytes that it is counted for.
        deadline: Monotonic seconds; then it goes.
        timer: Set for the deadline, or for one that it had before.
        further_timer: One of its makers; cancelled when it goes.
        pinned: Whether it stays beyond its deadline, and is evicted only when no other can be.
    """

    peer: PeerState
    key: BlockKey
    size: int = 0
    deadline: float = 0.0
    timer: Timer | None = None
    further_timer: Timer | None = None
    pinned: bool = False


B = TypeVar("B", bound=Body)


@define(frozen=True, kw_only=True)
class Bounds:
    """The bounds of a store.

    Attributes:
        count_per_peer: Entries.
        bytes_per_peer: Bytes.
        bytes_total: Bytes.
        lifetime: Seconds without a touch.
    """

    count_per_peer: int
    bytes_per_peer: int
    bytes_total: int
    lifetime: float


class BodyStore(Generic[B]):
    """Bodies by peer and key.

    Args:
        core: What the layers share.
        bounds: Its bounds.
        on_evicted: Called for each entry that makes room for another, with the time.
        on_expired: Called for each entry whose time is over.
    """

    def __init__(
        self,
        core: Core,
        bounds: Bounds,
        on_evicted: Callable[[B, float], None],
        on_expired: Callable[[], None],
    ) -> None:
        self._core = core
        self._bounds = bounds
        self._on_evicted = on_evicted
        self._on_expired = on_expired
        self._by_peer: dict[Peer, OrderedDict[BlockKey, B]] = {}
        self._all: OrderedDict[tuple[Peer, BlockKey], B] = OrderedDict()
        self._strangers: OrderedDict[tuple[Peer, BlockKey], B] = (
            OrderedDict()
        )  # of them, perhaps of others too
        self._bytes_by_peer: dict[Peer, int] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._all)

    @property
    def total_bytes(self) -> int:
        """Bytes of all entries."""
        return self._bytes

    def get(self, peer: PeerState, key: BlockKey) -> B | None:
        """Return an entry, or None."""
        return self._all.get((peer.peer, key))

    def of(self, peer: PeerState) -> Iterable[B]:
        """Return all entries of a peer."""
        return self._by_peer.get(peer.peer, {}).values()

    def add(self, body: B, now: float) -> None:
        """Add an entry in place of one with its key, and let others go if it needs their room.

        An entry that alone exceeds the bytes per peer must not be added.
        """
        previous = self.get(body.peer, body.key)
        if previous is not None:
            self.discard(previous)
        name = body.peer.peer
        self._by_peer.setdefault(name, OrderedDict())[body.key] = body
        self._all[name, body.key] = body
        if not body.peer.settings.known:
            self._strangers[name, body.key] = body
        body.peer.bodies += 1
        self._account(body, body.size)
        self.touch(body, now)
        self._make_room(body, now)

    def grow(self, body: B, by: int, now: float) -> None:
        """Count further bytes for an entry, and let others go if it needs their room."""
        body.size += by
        self._account(body, by)
        self._make_room(body, now)

    def touch(self, body: B, now: float, lifetime: float | None = None) -> None:
        """Give an entry new time, and make it the last to be evicted.

        Args:
            body: The entry.
            now: Monotonic seconds.
            lifetime: Seconds, if not those of the bounds; such an entry becomes the first to be evicted.
        """
        name = body.peer.peer
        last = lifetime is None
        self._all.move_to_end((name, body.key), last=last)
        self._by_peer[name].move_to_end(body.key, last=last)
        if (name, body.key) in self._strangers:
            self._strangers.move_to_end((name, body.key), last=last)
        body.deadline = now + (self._bounds.lifetime if lifetime is None else lifetime)
        if body.timer is None or body.timer.deadline > body.deadline:
            self._core.timers.cancel(body.timer)
            body.timer = self._core.timers.schedule(body.deadline, lambda now: self._due(body, now))

    def discard(self, body: B) -> None:
        """Take an entry out, if it is still in."""
        name = body.peer.peer
        if self._all.get((name, body.key)) is not body:
            return
        self._core.timers.cancel(body.timer)
        self._core.timers.cancel(body.further_timer)
        body.timer = None
        del self._all[name, body.key]
        self._strangers.pop((name, body.key), None)
        entries = self._by_peer[name]
        del entries[body.key]
        body.peer.bodies -= 1
        self._account(body, -body.size)
        if not entries:
            del self._by_peer[name]
            del self._bytes_by_peer[name]

    def discard_all(self, peer: PeerState) -> None:
        """Take all entries of a peer out."""
        for body in list(self._by_peer.get(peer.peer, {}).values()):
            self.discard(body)

    def _account(self, body: B, size: int) -> None:
        name = body.peer.peer
        self._bytes += size
        self._bytes_by_peer[name] = self._bytes_by_peer.get(name, 0) + size

    def _due(self, body: B, now: float) -> None:
        body.timer = None
        if body.pinned:
            body.deadline = max(body.deadline, now + self._bounds.lifetime)
        if body.deadline > now:
            body.timer = self._core.timers.schedule(body.deadline, lambda now: self._due(body, now))
            return
        self.discard(body)
        self._on_expired()
        self._core.tend(body.peer, now)

    def _make_room(self, kept: B, now: float) -> None:
        name = kept.peer.peer
        entries = self._by_peer[name]
        bounds = self._bounds
        while len(entries) > bounds.count_per_peer or self._bytes_by_peer[name] > bounds.bytes_per_peer:
            if not self._evict_first(entries.values(), kept, now):
                break
        while self._bytes > bounds.bytes_total:
            candidates = self._of_strangers(kept) or self._all.values()
            if not self._evict_first(candidates, kept, now):
                break

    def _of_strangers(self, kept: B) -> Collection[B]:
        """The entry of a stranger that goes next, if there is any but `kept`."""
        found: Collection[B] = ()
        known = []
        for place, body in self._strangers.items():
            if body.peer.settings.known:
                known.append(place)
            elif body is not kept and not body.pinned:
                found = (body,)
                break
        for place in known:  # they are looked at once
            del self._strangers[place]
        return found

    def _evict_first(self, candidates: Collection[B], kept: B, now: float) -> bool:
        """Let the first of the candidates go that is not `kept`; return whether there was one."""
        victim = next((body for body in candidates if body is not kept and not body.pinned), None)
        if victim is None:
            victim = next((body for body in candidates if body is not kept), None)
        if victim is None:
            return False
        self.discard(victim)
        self._on_evicted(victim, now)
        self._core.tend(victim.peer, now)
        return True
