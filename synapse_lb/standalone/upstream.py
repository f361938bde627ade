# SPDX-License-Identifier: AGPL-3.0-or-later
"""Serves the gateway's requests by asking a homeserver over HTTP (a ``Dispatcher`` of `synapse_lb.server`)."""

from __future__ import annotations

import json
from typing import Any, Final

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from synapse_lb.client import errors
from synapse_lb.client.https import HttpsLimits, HttpsResponse, HttpsTransport
from synapse_lb.msc3079.messages import NO_BODY, MatrixRequest, MatrixResponse
from synapse_lb.server.dispatcher import Address
from synapse_lb.standalone.rewriting import Advertisement, goes_over_coap
from synapse_lb.standalone.standing import WHOAMI, KnownTokens
from synapse_lb.txdtls.context import ClientVerification

BUSY_DELAY: Final = 5.0
"""s: after which a client may try again that came when too much was under way."""


@attrs.define
class UpstreamCounters:
    """What was asked of the homeserver.

    Attributes:
        requests: requests that were passed on.
        refused: requests at paths that are not for clients.
        busy: requests that were one too many.
        failures: requests that the homeserver did not answer.
        checks: access tokens that it was asked about.
    """

    requests: int = 0
    refused: int = 0
    busy: int = 0
    failures: int = 0
    checks: int = 0


class Upstream:
    """A homeserver behind HTTP.

    Args:
        reactor: Twisted's reactor.
        url: its base URL.
        advertisement: what clients are told; may be set later.
        forwarded_for: whether it is told the clients' addresses in X-Forwarded-For.
        max_requests: requests under way, over CoAP and TCP together; one more is answered with 503.
        verification: how its certificate is checked, if it has one.
        limits: bounds of HTTP.

    Attributes:
        counters: what was asked.
        advertisement: what clients are told.
        transport: makes the requests.
        tokens: access tokens that the homeserver has lately taken.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        url: str,
        *,
        advertisement: Advertisement,
        forwarded_for: bool = False,
        max_requests: int = 2000,
        verification: ClientVerification | None = None,
        limits: HttpsLimits | None = None,
    ) -> None:
        self.url: Final = url.rstrip("/")
        self.forwarded_for: Final = forwarded_for
        self.advertisement = advertisement
        self.counters = UpstreamCounters()
        self.transport = HttpsTransport(
            reactor, verification or ClientVerification.system(), limits or HttpsLimits(max_connections=64)
        )
        self.tokens = KnownTokens(reactor)
        self._max_requests = max_requests
        self._under_way = 0

    def dispatch(self, request: MatrixRequest, client: Address) -> Deferred[MatrixResponse]:
        """Serve one request; see ``Dispatcher``. Cancelling it closes the HTTP request."""
        path = request.path.decode("ascii")
        if not goes_over_coap(path):
            self.counters.refused += 1
            return succeed(
                matrix_error(404, "M_UNRECOGNIZED", "Only the client-server API is served over CoAP")
            )
        if not self.enter():
            return succeed(BUSY)
        asked = self._ask(request, path, client)
        asked.addCallbacks(lambda answer: self._changed(path, answer), self._failed)
        asked.addCallback(self._with_standing, request, client)
        asked.addBoth(self._finished)
        return asked

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

    def _ask(self, request: MatrixRequest, path: str, client: Address) -> Deferred[MatrixResponse]:
        headers = {"X-Forwarded-For": client.host, "X-Forwarded-Proto": "https"} if self.forwarded_for else {}
        target = path if not request.query else f"{path}?{request.query.decode('ascii')}"
        return self.transport.request(
            request.method, self.url, target, (), request.body, request.access_token, headers=headers
        )

    def _finished(self, result: Any) -> Any:
        self.leave()
        return result

    def _changed(self, path: str, answer: MatrixResponse) -> MatrixResponse:
        if answer.body is NO_BODY:
            return answer
        status, body = self.advertisement.applied(path, answer.status, answer.body)
        return attrs.evolve(answer, status=status, body=body)

    def _with_standing(
        self, answer: MatrixResponse, request: MatrixRequest, client: Address
    ) -> MatrixResponse | Deferred[MatrixResponse]:
        """Say with an answer whether it is known by a good access token who asked."""
        good, token = self.tokens.see(request, answer), request.access_token
        if good is not None or token is None:
            return attrs.evolve(answer, authenticated=bool(good))
        self.counters.checks += 1
        question = MatrixRequest("GET", WHOAMI, access_token=token)
        asked = self._ask(question, WHOAMI.decode("ascii"), client)
        asked.addErrback(self._failed)

        def found(said: MatrixResponse) -> MatrixResponse:
            return attrs.evolve(answer, authenticated=self.tokens.see(question, said) is True)

        return asked.addCallback(found)

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


def changed_answer(
    advertisement: Advertisement, path: str, response: HttpsResponse
) -> tuple[int, bytes] | None:
    """An answer over HTTP as clients get it.

    Returns:
        Status and body; None if nothing is to be changed.
    """
    try:
        body = json.loads(response.body) if response.body else None
    except (ValueError, RecursionError):
        body = None
    status, changed = advertisement.applied(path, response.status, body)
    if status == response.status and changed == body:
        return None
    return status, json.dumps(changed, separators=(",", ":")).encode()


def matrix_error(status: int, errcode: str, error: str) -> MatrixResponse:
    """A Matrix error."""
    return MatrixResponse(status, {"errcode": errcode, "error": error})


BUSY: Final = attrs.evolve(
    matrix_error(503, "M_LIMIT_EXCEEDED", "Too much is under way"), retry_after=BUSY_DELAY
)
"""What gets who is one too many."""
