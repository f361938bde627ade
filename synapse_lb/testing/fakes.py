# SPDX-License-Identifier: AGPL-3.0-or-later
"""A Matrix server that is none: `FakeDispatcher` answers what a test tells it to, and remembers what was asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import attrs
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, maybeDeferred

from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse

Handler = Callable[[MatrixRequest], "MatrixResponse | Deferred[MatrixResponse]"]


def not_found(request: MatrixRequest) -> MatrixResponse:
    """What Synapse answers to paths that it does not know."""
    return MatrixResponse(404, {"errcode": "M_UNRECOGNIZED", "error": "Unrecognized request"})


@attrs.define
class Call:
    """One request that reached a `FakeDispatcher`.

    Attributes:
        request: the request.
        client: where it came from.
        cancelled: the client went away before the answer.
    """

    request: MatrixRequest
    client: IPv4Address | IPv6Address
    cancelled: bool = False
    _answer: Deferred[MatrixResponse] | None = attrs.field(default=None, repr=False)

    def answer(self, status: int = 200, body: Any = None, retry_after: float | None = None) -> None:
        """Answer a request that was left waiting.

        Args:
            status: HTTP status.
            body: JSON value; None stands for an empty object.
            retry_after: seconds, for 429.

        Raises:
            RuntimeError: it does not wait (any longer).
        """
        waiting, self._answer = self._answer, None
        if waiting is None:
            raise RuntimeError("the request does not wait for an answer")
        waiting.callback(MatrixResponse(status, {} if body is None else body, retry_after))


class FakeDispatcher:
    """Implements `synapse_lb.server.dispatcher.Dispatcher` from a table of handlers.

        dispatcher = FakeDispatcher()
        dispatcher.on("GET", "/_matrix/client/versions", lambda request: MatrixResponse(200, {"versions": []}))
        dispatcher.hold("GET", "/_matrix/client/v3/sync")     # waits until the test says
        ...
        dispatcher.calls[-1].answer(200, {"next_batch": "s1"})

    Args:
        otherwise: answers what no handler is there for.

    Attributes:
        calls: every request, in the order in which they came.
    """

    def __init__(self, otherwise: Handler = not_found) -> None:
        self.calls: list[Call] = []
        self._otherwise = otherwise
        self._handlers: dict[tuple[str, bytes], Handler | None] = {}

    def on(self, method: str, path: str, handler: Handler) -> None:
        """Answer a method and (percent-encoded) path with what `handler` returns or the Deferred it returns."""
        self._handlers[method, path.encode("ascii")] = handler

    def hold(self, method: str, path: str) -> None:
        """Let a method and path wait until the test calls `Call.answer`."""
        self._handlers[method, path.encode("ascii")] = None

    def requests(self, method: str, path: str) -> list[MatrixRequest]:
        """The requests for a method and path."""
        wanted = path.encode("ascii")
        return [c.request for c in self.calls if (c.request.method, c.request.path) == (method, wanted)]

    def dispatch(self, request: MatrixRequest, client: IPv4Address | IPv6Address) -> Deferred[MatrixResponse]:
        """Serve one request; see the protocol."""
        call = Call(request, client)
        self.calls.append(call)
        handler = self._handlers.get((request.method, request.path), self._otherwise)
        if handler is not None:
            answer: Deferred[MatrixResponse] = maybeDeferred(cast(Callable[..., Any], handler), request)
            return answer

        def cancelled(_: Deferred[MatrixResponse]) -> None:
            call.cancelled = True
            call._answer = None

        call._answer = Deferred(cancelled)
        return call._answer
