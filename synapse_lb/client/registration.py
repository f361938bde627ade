# SPDX-License-Identifier: AGPL-3.0-or-later
"""One registration of an observation on one association, and what has come in for it (RFC 7641 section 3)."""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from synapse_lb.client.errors import BadRequest, BadResponse, ClientError, RequestFailed
from synapse_lb.client.sticky import Carried
from synapse_lb.client.subject import MISSING_TOKEN, decoded
from synapse_lb.coap.events import CoapRequest, CoapResponse
from synapse_lb.coap.numbers import Code

if TYPE_CHECKING:
    from synapse_lb.client.channel import Channel
    from synapse_lb.client.dialect import Dialect
    from synapse_lb.client.extension import X1Sender


class RegisterAgain(ClientError):
    """The server wants the registration in other words, which the next one will have."""


@attrs.frozen
class Incoming:
    """What a registration was answered with.

    Attributes:
        response: whole.
        last: whether it is a response without Observe, after which nothing comes.
        x1: what its association uses of it.
    """

    response: CoapResponse
    last: bool
    x1: X1Sender | None = None


class Registration(abc.ABC):
    """One registration: hands over one after another what comes in for it.

    Args:
        carried: the sticky options that its request carries.

    Attributes:
        open: whether something may still come.
    """

    def __init__(self, carried: Carried) -> None:
        self.carried = carried
        self.open = True
        self._arrived: deque[Incoming] = deque()
        self._error: ClientError | None = None
        self._waiter: Deferred[Incoming] | None = None

    def next(self) -> Deferred[Incoming]:
        """What has come in next; ask for one at a time. Cancelling the Deferred only ends the wait.

        Returns:
            A Deferred that fails with a `ClientError` when nothing will come any more.
        """
        waiter: Deferred[Incoming] = Deferred(self._stop_waiting)
        if self._arrived:
            waiter.callback(self._arrived.popleft())
        elif self._error is not None:
            waiter.errback(Failure(self._error))
        else:
            self._waiter = waiter
        return waiter

    @abc.abstractmethod
    def confirm(self) -> None:
        """Acknowledge the oldest notification, since it has been processed."""

    @abc.abstractmethod
    def deregister(self, request: CoapRequest) -> Deferred[None]:
        """End it with a request (RFC 7641 section 3.6).

        Args:
            request: with the value 1 of Observe.

        Returns:
            A Deferred that fires when the server has answered, whatever its answer. It fails with a `ClientError`.
        """

    @abc.abstractmethod
    def forget(self) -> None:
        """End it in silence: notifications that are not confirmed are rejected, and so is the next one."""

    def _deliver(self, incoming: Incoming) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is None:
            self._arrived.append(incoming)
        else:
            waiter.callback(incoming)

    def _fail(self, error: ClientError) -> None:
        self._error = error
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.errback(Failure(error))

    def _stop_waiting(self, waiter: Deferred[Incoming]) -> None:
        if self._waiter is waiter:
            self._waiter = None


class CoapRegistration(Registration):
    """A registration on an association: takes what comes from the channel.

    Args:
        channel: the association on which it is made.
        carried: the sticky options that its request carries.
        dialect: what is known of the server's.
        on_end: called once when nothing will come any more.
    """

    def __init__(
        self,
        channel: Channel,
        carried: Carried,
        dialect: Dialect,
        *,
        on_end: Callable[[], None],
    ) -> None:
        super().__init__(carried)
        self.channel = channel
        self.exchange: int | None = None
        self._dialect = dialect
        self._request: CoapRequest | None = None
        self._on_end = on_end

    # what the observation asks for

    def send(self, request: Callable[[], CoapRequest]) -> None:
        """Make the request and send it.

        Raises:
            BadRequest: it can never be sent.
            ClientError: it cannot be sent now.
        """
        try:
            self._request = request()
            self.exchange = self.channel.observe(self._request, self)
        except ClientError as error:
            self.channel.sticky.unsent(self.carried)
            self._finish()
            if isinstance(error, RequestFailed):
                # No wire form, or no room in a datagram: it will be the same next time.
                raise BadRequest(str(error)) from error
            raise

    def confirm(self) -> None:
        """Acknowledge the oldest notification, since it has been processed."""
        if self.exchange is not None and not self.channel.lost:
            self.channel.confirm(self.exchange)

    def deregister(self, request: CoapRequest) -> Deferred[None]:
        """End it with a request (RFC 7641 section 3.6).

        Args:
            request: with the value 1 of Observe.

        Returns:
            A Deferred that fires when the server has answered, whatever its answer. It fails with a `ClientError`.
        """
        assert self.exchange is not None
        return self.channel.deregister(self.exchange, request).addCallbacks(
            lambda _: self._leave(abandoned=False), self._not_deregistered
        )

    def forget(self) -> None:
        """End it in silence: notifications that are not confirmed are rejected, and so is the next one."""
        if self.open:
            assert self.exchange is not None
            self.channel.forget(self.exchange)
            self._leave(abandoned=True)

    # what the channel tells

    def notified(self, response: CoapResponse) -> None:
        """Take a whole notification."""
        self.channel.sticky.notified(self.carried)
        self._learn(response)
        self._deliver(Incoming(response, last=False, x1=self.channel.sticky.x1))

    def _learn(self, response: CoapResponse) -> None:
        self._dialect.learn(response)
        self.channel.sticky.x1.answered(self.carried.words, self.carried.definitions, response)

    def answered(self, response: CoapResponse) -> None:
        """Take a response without Observe, which is the last."""
        sticky, carried = self.channel.sticky, self.carried
        if sticky.x1.refused(carried.words, response):
            sticky.unsent(carried)
            self._finish()
            self._fail(RegisterAgain("the server does not have x1"))
            return
        if response.code == Code.BAD_OPTION and carried.key_version is not None:
            sticky.key_version_refused(carried)
            self._dialect.key_version = None
            self._finish()
            self._fail(RegisterAgain("the server does not know the key version"))
            return
        unauthorized = response.code == Code.UNAUTHORIZED
        sticky.answered(carried, unauthorized=unauthorized)
        self._learn(response)
        self._finish()
        if self._request is not None and self._dialect.refused(self._request, response):
            self._fail(RegisterAgain("the server does not compress"))
        elif unauthorized and carried.relies and _misses_token(response, sticky.x1):
            # The server has forgotten whose association it is; the next registration says it.
            self._fail(RegisterAgain("the server has forgotten the access token"))
        else:
            self._deliver(Incoming(response, last=True, x1=sticky.x1))

    def failed(self, error: ClientError) -> None:
        """Take the end of the exchange or of the association."""
        self._leave(abandoned=True)
        self._fail(error)

    def _not_deregistered(self, failure: Failure) -> Failure:
        self._leave(abandoned=True)
        return failure

    def _leave(self, *, abandoned: bool) -> None:
        if abandoned:
            self.channel.sticky.abandoned(self.carried)
        else:
            self.channel.sticky.answered(self.carried)
        self._finish()

    def _finish(self) -> None:
        if self.open:
            self.open = False
            self._on_end()


def _misses_token(response: CoapResponse, x1: X1Sender) -> bool:
    """Whether a 4.01 says that no access token is known, and not that the one that is known is refused."""
    try:
        body = decoded(response, x1).body
    except BadResponse:
        return True
    return isinstance(body, dict) and body.get("errcode") == MISSING_TOKEN
