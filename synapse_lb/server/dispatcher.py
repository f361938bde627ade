# SPDX-License-Identifier: AGPL-3.0-or-later
"""The one thing that the gateway asks of whoever serves its requests."""

from __future__ import annotations

from typing import Protocol

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred

from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse

Address = IPv4Address | IPv6Address
"""Where a client is."""


class Dispatcher(Protocol):
    """Serves Matrix requests, wherever they come from."""

    def dispatch(self, request: MatrixRequest, client: Address) -> Deferred[MatrixResponse]:
        """Serve one request.

        Args:
            request: the request; its path is whole and percent-encoded.
            client: the client's address, for rate limits and logs.

        Returns:
            The response. The caller cancels the Deferred when the client has gone away, and is then owed no
            response. A caller that encodes the response in a callback may make the number of bytes the result
            of that callback: a dispatcher that fires the Deferred finds it in ``result`` for its logs.
        """
