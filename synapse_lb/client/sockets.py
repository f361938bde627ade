# SPDX-License-Identifier: AGPL-3.0-or-later
"""HTTP over Unix sockets (unix(7)), for servers on the same machine.

The socket's name stands in a URL's host, in hexadecimal: ``http+unix://2f72756e2f782e736f636b/path`` is ``/path`` at
``/run/x.sock``. Nobody but this package makes such URLs: `url_of` does, of what an admin has written.
"""

from __future__ import annotations

import os
import re
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.web.client import URI, Agent
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory
from zope.interface import implementer

SCHEME: Final = "http+unix"
LONGEST_PATH: Final = 107
"""Bytes of a socket's name (unix(7): `sun_path` has 108, of which one is its end)."""

_HOST: Final = b"localhost"
"""Who is meant, for there is no other name of the server."""
_LABEL: Final = 62
"""Characters between two dots: no more than a name of DNS has, so that no URL library minds."""
_NO_PATH: Final = re.compile(r"[\x00-\x1f\x7f]")


def url_of(path: str) -> str:
    """The base URL of a server at a Unix socket.

    Args:
        path: absolute name of the socket.

    Raises:
        ValueError: no socket can have that name.
    """
    name = os.fsencode(path)
    if not path.startswith("/") or _NO_PATH.search(path) or path.endswith("/"):
        raise ValueError(f"{path!r} is no absolute path of a socket")
    if len(name) > LONGEST_PATH:
        raise ValueError(f"{path!r} has more than {LONGEST_PATH} bytes, which no socket's name may have")
    digits = name.hex()
    return f"{SCHEME}://" + ".".join(digits[at : at + _LABEL] for at in range(0, len(digits), _LABEL))


def path_of(host: bytes) -> str:
    """The name of the socket that stands in a URL's host."""
    return os.fsdecode(bytes.fromhex(host.replace(b".", b"").decode("ascii")))


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Connects to Unix sockets.

    Args:
        reactor: Twisted's reactor.
        timeout: seconds that it may take.
    """

    def __init__(self, reactor: Any, timeout: float) -> None:
        self._reactor = reactor
        self._timeout = timeout

    def endpointForURI(self, uri: URI) -> UNIXClientEndpoint:
        """See `IAgentEndpointFactory`."""
        return UNIXClientEndpoint(self._reactor, path_of(uri.host), timeout=self._timeout)


@implementer(IAgent)
class SocketAgent:
    """Makes requests at Unix sockets, and those with other URLs as another agent does.

    Args:
        reactor: Twisted's reactor.
        others: the other agent.
        timeout: seconds that connecting may take.
        pool: keeps connections.
    """

    def __init__(self, reactor: Any, others: Any, *, timeout: float, pool: Any) -> None:
        self._others = others
        self._sockets: Any = Agent.usingEndpointFactory(reactor, _Endpoints(reactor, timeout), pool)

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: Any = None
    ) -> Deferred[Any]:
        """See `IAgent`."""
        if not uri.startswith(f"{SCHEME}://".encode()):
            deferred: Deferred[Any] = self._others.request(method, uri, headers, bodyProducer)
            return deferred
        headers = Headers() if headers is None else headers.copy()
        headers.setRawHeaders(b"Host", [_HOST])
        local: Deferred[Any] = self._sockets.request(method, uri, headers, bodyProducer)
        return local
