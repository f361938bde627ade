# SPDX-License-Identifier: AGPL-3.0-or-later
"""Serves the gateway's requests by asking a homeserver over HTTP (a ``Dispatcher`` of `synapse_lb.server`)."""

from __future__ import annotations

import json
from typing import Any, Final

import attrs
from twisted.internet.defer import Deferred, succeed

from synapse_lb.client.https import HttpsResponse
from synapse_lb.msc3079.messages import NO_BODY, MatrixRequest, MatrixResponse
from synapse_lb.server.dispatcher import Address
from synapse_lb.standalone.rewriting import Advertisement, goes_over_coap
from synapse_lb.standalone.standing import WHOAMI, KnownTokens
from synapse_lb.txdtls.context import ClientVerification
from synapse_lb.upstream.http import HttpUpstream, UpstreamCounters, matrix_error


@attrs.define
class GatewayUpstreamCounters(UpstreamCounters):
    """What was asked of the homeserver.

    Attributes:
        refused: requests at paths that are not for clients.
        checks: access tokens that it was asked about.
    """

    refused: int = 0
    checks: int = 0


class Upstream(HttpUpstream):
    """A homeserver behind HTTP.

    Args:
        reactor: Twisted's reactor.
        url: its base URL.
        advertisement: what clients are told; may be set later.
        forwarded_for: whether it is told the clients' addresses in X-Forwarded-For.
        max_requests: requests under way, over CoAP and TCP together; one more is answered with 503.
        timeout: seconds that an answer may take, beyond what a long poll asks for.
        verification: how its certificate is checked, if it has one.

    Attributes:
        advertisement: what clients are told.
        tokens: access tokens that the homeserver has lately taken.
    """

    def __init__(
        self,
        reactor: Any,
        url: str,
        *,
        advertisement: Advertisement,
        forwarded_for: bool = False,
        max_requests: int = 2000,
        timeout: float = 120.0,
        verification: ClientVerification | None = None,
    ) -> None:
        super().__init__(
            reactor,
            forwarded_for=forwarded_for,
            max_requests=max_requests,
            timeout=timeout,
            verification=verification,
        )
        self.url: Final = url.rstrip("/")
        self.tokens = KnownTokens(reactor)
        self.advertisement = advertisement
        self.counters: GatewayUpstreamCounters = GatewayUpstreamCounters()

    def dispatch(self, request: MatrixRequest, client: Address) -> Deferred[MatrixResponse]:
        """Serve one request; see ``Dispatcher``. Cancelling it closes the HTTP request."""
        path = request.path.decode("ascii")
        if not goes_over_coap(path):
            self.counters.refused += 1
            return succeed(
                matrix_error(404, "M_UNRECOGNIZED", "Only the client-server API is served over CoAP")
            )
        asked = self.ask(self.url, request, client)
        asked.addCallback(lambda answer: self._changed(path, answer))
        return asked.addCallback(self._with_standing, request, client)

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

        def found(said: MatrixResponse) -> MatrixResponse:
            return attrs.evolve(answer, authenticated=self.tokens.see(question, said) is True)

        return self.ask(self.url, question, client).addCallback(found)


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
