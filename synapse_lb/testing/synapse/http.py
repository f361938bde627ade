# SPDX-License-Identifier: AGPL-3.0-or-later
"""The same request over HTTP, for what has no form in CoAP: only where a test asks for it."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

from synapse.api.constants import MAX_REQUEST_SIZE
from twisted.internet.address import IPv4Address, IPv6Address

from synapse_lb.testing.synapse.asked import Asked
from synapse_lb.testing.synapse.channel import FakeChannel
from synapse_lb.testing.synapse.site import OUR_SERVER_NAME


class HttpChannel:
    """Stands where Twisted's HTTP channel would; what is written becomes the result of a `FakeChannel`."""

    def __init__(self, result: FakeChannel, reactor: Any) -> None:
        self.site = self.factory = result.site
        self.transport = self
        self._result = result
        self._reactor = reactor
        self._producer: Any = None

    def getPeer(self) -> IPv4Address | IPv6Address:
        """The client's address."""
        kind = IPv6Address if ":" in self._result.ip else IPv4Address
        return kind("TCP", self._result.ip, 3423)

    def getHost(self) -> IPv4Address:
        """Our address."""
        return IPv4Address("TCP", "127.0.0.1", 8888)

    def isSecure(self) -> bool:
        """A reverse proxy does that."""
        return False

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Any) -> None:
        """The beginning of the answer."""
        self._result.result.update(version=version, code=code, reason=reason, headers=headers, body=b"")

    def write(self, data: bytes) -> None:
        """A part of the body."""
        self._result.result["body"] += data

    def writeSequence(self, parts: Iterable[bytes]) -> None:
        """Several parts of the body."""
        for part in parts:
            self.write(part)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Let a producer write; one that waits to be asked is asked in each turn."""
        self._producer = producer
        if not streaming:
            self._reactor.callLater(0, self._produce)

    def unregisterProducer(self) -> None:
        """The producer is done."""
        self._producer = None

    def requestDone(self, request: Any) -> None:
        """The answer is complete."""
        self._result.result["done"] = True
        self._result.resource_usage = request.logcontext.get_resource_usage()

    def loseConnection(self) -> None:
        """Synapse ends what it refused."""
        self.unregisterProducer()

    abortConnection = forceAbortClient = loseConnection

    def _produce(self) -> None:
        if self._producer is not None:
            self._producer.resumeProducing()
            self._reactor.callLater(0, self._produce)


def request_over_http(asked: Asked, result: FakeChannel, reactor: Any) -> None:
    """Let the site serve a request, as it would be read from a TCP connection.

    Args:
        asked: the request.
        result: gets the answer.
        reactor: the virtual time.
    """
    request: Any = asked.request_class(
        HttpChannel(result, reactor),
        result.site,
        our_server_name=OUR_SERVER_NAME,
        max_request_body_size=MAX_REQUEST_SIZE,
    )
    result.request = request
    request.content = io.BytesIO(asked.body)
    request.content.seek(0, io.SEEK_END)  # As Twisted's channel leaves it.
    for name, value in asked.http_headers():
        request.requestHeaders.addRawHeader(name, value)
    request.parseCookies()
    request.requestReceived(asked.method.encode("ascii"), asked.target, b"1.1")
