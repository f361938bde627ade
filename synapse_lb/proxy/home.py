# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where the proxy's homeserver is: as it was told, or discovered (Matrix client-server API, "Server Discovery")."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed

from synapse_lb.client.discovery import Discovered, Discovery
from synapse_lb.client.errors import ClientError
from synapse_lb.proxy.answers import ProxyError
from synapse_lb.proxy.options import ProxyOptions


@attrs.frozen
class Place:
    """Where a homeserver is.

    Attributes:
        coaps: its `coaps://host:port`; None if it speaks no CoAP.
        https: base URL of its client-server API; None if that is not known.
    """

    coaps: str | None
    https: str | None


class Home:
    """Finds the homeserver; what was discovered is good for an hour, and longer if it cannot be asked again.

    Args:
        reactor: Twisted's reactor.
        options: the configuration.

    Raises:
        AuthoritiesError: the file of the authorities cannot be used.
    """

    def __init__(self, reactor: Any, options: ProxyOptions) -> None:
        self._server = options.discover
        self._discovery: Discovery | None = None
        self._known: Place | None = None
        if self._server is None:
            self._known = Place(options.coaps, options.https)
        else:
            self._discovery = Discovery(reactor, verification=options.https_verification)

    async def find(self) -> Place:
        """Where it is now.

        Raises:
            ProxyError: it cannot be discovered.
        """
        if self._discovery is None or self._server is None:
            assert self._known is not None
            return self._known
        try:
            self._known = _place(await self._discovery.look_up(self._server))
        except ClientError as error:
            if self._known is None:
                raise ProxyError(502, "M_UNKNOWN", f"Low-bandwidth proxy: {error}") from error
        return self._known

    def close(self) -> Deferred[None]:
        """Ask no more."""
        return succeed(None) if self._discovery is None else self._discovery.close()


def _place(found: Discovered) -> Place:
    if found.coap is None:
        return Place(None, found.base_url)
    host = f"[{found.coap.host}]" if ":" in found.coap.host else found.coap.host
    return Place(f"coaps://{host}:{found.coap.port}", found.base_url)
