# SPDX-License-Identifier: AGPL-3.0-or-later
"""Keeps a client's association: makes it when it is needed, shares it, and makes it anew when it has ended.

When nothing is heard on it any more (`doubt`) another one is made beside it. If that comes to be before the first one
is heard again, it takes its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.logger import Logger
from twisted.python.failure import Failure

from synapse_lb.client.channel import Channel
from synapse_lb.client.connector import traffic_of
from synapse_lb.client.counters import Traffic
from synapse_lb.client.errors import ClientClosed
from synapse_lb.coap.counters import Counters

if TYPE_CHECKING:
    from synapse_lb.client.connector import Connector


class Keeper:
    """One association at a time, shared by all requests.

    Args:
        connector: makes associations.
        make_channel: makes the channel of a new association; is given this, which has to be told of it.
        session: the DTLS session to resume first, or None.
    """

    _log = Logger()

    def __init__(
        self,
        connector: Connector,
        make_channel: Callable[[Keeper], Channel],
        session: bytes | None,
    ) -> None:
        self._connector = connector
        self._make_channel = make_channel
        self._current: Channel | None = None
        self._retired: set[Channel] = set()
        self._connecting: Deferred[None] | None = None
        self._waiting: list[Deferred[Channel]] = []
        self._ended = Traffic()
        self._ended_endpoints = Counters()
        self._closed = False
        self._session = session

    def ready(self) -> Deferred[Channel]:
        """The current association's channel, after a handshake if need be.

        While it is in doubt, what comes of that is waited for. Many may wait for one handshake; it is given up when
        the last of them is cancelled, unless it is beside an association in doubt.

        Returns:
            A Deferred that fails with a `ConnectError` or `ClientClosed`.
        """
        waiter: Deferred[Channel] = Deferred(self._stop_waiting)
        if self._closed:
            waiter.errback(Failure(ClientClosed("the client is closed")))
        elif self._current is not None and self._connecting is None:
            waiter.callback(self._current)
        else:
            self._waiting.append(waiter)
            if self._connecting is None:
                self._connect()
        return waiter

    @property
    def current(self) -> Channel | None:
        """The channel of the association in use, or None."""
        return self._current

    def retire(self, channel: Channel) -> None:
        """Send nothing more on an association; it is closed when its last request has ended."""
        if channel is self._current:
            self._current = None
            self._retired.add(channel)
        self.close_if_idle(channel)

    def close_if_idle(self, channel: Channel) -> None:
        """Close a retired association on which nothing is under way any more."""
        if channel in self._retired and not channel.requests_under_way:
            channel.close()

    def rebind(self) -> None:
        """Have the associations use new local sockets.

        Raises:
            ConnectionLost: one of them cannot.
        """
        for channel in self._channels():
            channel.rebind()

    def doubted(self, channel: Channel) -> None:
        """Messages were repeated in vain on an association: make another one beside it."""
        if channel is self._current and self._connecting is None and not self._closed:
            self._connect()

    def relieved(self, channel: Channel) -> None:
        """Something is heard on it after all: no other one is needed."""
        if channel is self._current and self._connecting is not None:
            self._connecting.cancel()

    @property
    def session(self) -> bytes | None:
        """The DTLS session of the last association that had one."""
        if self._current is not None:
            self._note_session(self._current)
        return self._session

    def _note_session(self, channel: Channel) -> None:
        # It is there when the handshake is complete; the first requests leave before that.
        self._session = channel.association.session or self._session

    @property
    def traffic(self) -> Traffic:
        """What all associations have moved so far."""
        total = self._ended
        for channel in self._channels():
            total += traffic_of(channel.association)
        return total

    @property
    def endpoint_counters(self) -> Counters:
        """What the endpoints of all associations have counted so far."""
        total = self._ended_endpoints
        for channel in self._channels():
            total += channel.endpoint_counters
        return total

    def close(self) -> Deferred[None]:
        """Say close_notify, and take no more requests; idempotent.

        Returns:
            A Deferred that fires when the sockets are closed.
        """
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        closing = [channel.close() for channel in self._channels()]
        return DeferredList(closing, consumeErrors=True).addCallback(lambda _: None)

    def _channels(self) -> list[Channel]:
        return [*self._retired] if self._current is None else [self._current, *self._retired]

    def _connect(self) -> None:
        channel = self._make_channel(self)
        opening = self._connector.connect(channel, self.session)
        connecting = self._connecting = opening.addCallback(channel.attach)
        # It may have failed by now, and then `_connecting` is None again after the next line.
        connecting.addCallbacks(self._connected, self._not_connected, callbackArgs=(channel,))
        connecting.addErrback(lambda failure: self._log.failure("A waiting request failed", failure=failure))

    def _connected(self, _: None, channel: Channel) -> None:
        self._connecting = None
        doubted = self._current
        self._note_session(channel)
        self._connector.learn(channel.association)
        if not channel.lost:
            self._current = channel
        for waiter in self._take_waiting():
            # Of a channel that came and went at once each request hears when it tries to use it.
            waiter.callback(channel)
        if doubted is not None and not channel.lost:
            self._retired.add(doubted)
            doubted.supersede()
            self.close_if_idle(doubted)

    def _not_connected(self, failure: Failure) -> None:
        self._connecting = None
        if failure.check(CancelledError) and self._closed:
            failure = Failure(ClientClosed("the client was closed"))
        for waiter in self._take_waiting():
            if self._current is not None and not self._closed:
                waiter.callback(self._current)  # it is in doubt, and there is nothing better
            else:
                waiter.errback(failure)

    def _take_waiting(self) -> list[Deferred[Channel]]:
        waiting, self._waiting = self._waiting, []
        return waiting

    def _stop_waiting(self, waiter: Deferred[Channel]) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        if not self._waiting and self._connecting is not None and self._current is None:
            self._connecting.cancel()

    def lost(self, channel: Channel, reason: Exception) -> None:
        """An association has ended."""
        self._ended += traffic_of(channel.association)
        self._note_session(channel)
        self._ended_endpoints += channel.endpoint_counters
        self._retired.discard(channel)
        if channel is self._current:
            self._current = None
