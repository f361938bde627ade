# SPDX-License-Identifier: AGPL-3.0-or-later
"""Matrix requests that came over CoAP, asked of a homeserver over HTTP: bounded, counted, with Matrix errors for what
goes wrong on the way (Matrix client-server API, "API Standards").
"""

from __future__ import annotations

from typing import Any, Final

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from synapse_lb.client import errors
from synapse_lb.client.https import HttpsLimits, HttpsTransport
from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.server.dispatcher import Address
from synapse_lb.txdtls.context import ClientVerification

BUSY_DELAY: Final = 5.0
"""s: after which a client may try again that came when too much was under way."""

MAX_IDLE_CONNECTIONS: Final = 64
"""Connections to one process that are kept for further requests."""


@attrs.define
class UpstreamCounters:
    """What was asked of other processes.

    Attributes:
        requests: requests that were passed on.
        busy: requests that were one too many.
        failures: requests that were not answered.
    """

    requests: int = 0
    busy: int = 0
    failures: int = 0


class HttpUpstream:
    """Asks processes of a homeserver over HTTP.

    Args:
        reactor: Twisted's reactor.
        forwarded_for: whether they are told the clients' addresses in X-Forwarded-For.
        max_requests: requests under way; one more is answered with 503.
        timeout: seconds that an answer may take, beyond what a long poll asks for.
        verification: how their certificates are checked, where they have any.
        sockets: whether some of them are at Unix sockets (see `addresses`).

    Raises:
        AuthoritiesError: the file of the authorities cannot be used.

    Attributes:
        counters: what was asked.
        transport: makes the requests.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        forwarded_for: bool = False,
        max_requests: int = 2000,
        timeout: float = 120.0,
        verification: ClientVerification | None = None,
        sockets: bool = False,
    ) -> None:
        self.forwarded_for: Final = forwarded_for
        self.counters: UpstreamCounters = UpstreamCounters()
        self.transport = HttpsTransport(
            reactor,
            verification or ClientVerification.system(),
            HttpsLimits(timeout=timeout, max_connections=MAX_IDLE_CONNECTIONS),
            sockets=sockets,
        )
        self._max_requests = max_requests
        self._under_way = 0

    def ask(self, url: str, request: MatrixRequest, client: Address) -> Deferred[MatrixResponse]:
        """Ask one process.

        Args:
            url: its base URL, without a slash at its end.
            request: what is asked.
            client: the client's address.

        Returns:
            A Deferred of its answer, or of the Matrix error that stands for it. Cancelling it closes the HTTP
            request.
        """
        if not self.enter():
            return succeed(BUSY)
        path = request.path.decode("ascii")
        headers = {"X-Forwarded-For": client.host, "X-Forwarded-Proto": "https"} if self.forwarded_for else {}
        target = path if not request.query else f"{path}?{request.query.decode('ascii')}"
        asked = self.transport.request(
            request.method, url, target, (), request.body, request.access_token, headers=headers
        )
        asked.addBoth(self._finished)
        return asked.addErrback(self._failed)

    def enter(self) -> bool:
        """Begin a request, which ends with `leave`; False if there are too many."""
        if self._under_way >= self._max_requests:
            self.counters.busy += 1
            return False
        self.counters.requests += 1
        self._under_way += 1
        return True

    def leave(self) -> None:
        """End a request."""
        self._under_way -= 1

    def close(self) -> Deferred[None]:
        """Cancel what is under way. Idempotent.

        Returns:
            A Deferred that fires when all connections are closed.
        """
        return self.transport.close()

    def _finished(self, result: Any) -> Any:
        self.leave()
        return result

    def _failed(self, failure: Failure) -> MatrixResponse:
        """What the client gets if there is no answer; a cancelled request stays cancelled."""
        failure.trap(errors.ClientError)
        error = failure.value
        if isinstance(error, errors.BadRequest):
            return matrix_error(400, "M_BAD_JSON", "The request has no form in HTTP")
        if isinstance(error, errors.BadResponse):
            return matrix_error(
                501, "M_UNRECOGNIZED", "The answer is no JSON, which CoAP cannot carry; use HTTPS"
            )
        self.counters.failures += 1
        self._log.warn("The homeserver did not answer: {error}", error=error)
        if isinstance(error, errors.RequestTimeout | errors.ConnectTimeout):
            return matrix_error(504, "M_UNKNOWN", "The homeserver does not answer in time")
        return matrix_error(502, "M_UNKNOWN", "The homeserver cannot be reached")


def matrix_error(status: int, errcode: str, error: str) -> MatrixResponse:
    """A Matrix error."""
    return MatrixResponse(status, {"errcode": errcode, "error": error})


BUSY: Final = attrs.evolve(
    matrix_error(503, "M_LIMIT_EXCEEDED", "Too much is under way"), retry_after=BUSY_DELAY
)
"""What gets who is one too many."""
