# SPDX-License-Identifier: AGPL-3.0-or-later
"""`make_request`, which asks over CoAP what the function of that name in Synapse's own tests asks over HTTP.

A request goes the whole way: the client library words it, its endpoint sends the datagrams, the gateway's endpoint puts
them together, the mapping reads them, the dispatcher lets the site's resources serve it; and back. Only DTLS and the
network are left out.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

import attrs
from synapse.http.site import SynapseRequest
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.python.failure import Failure
from twisted.web.http import RESPONSES
from twisted.web.http_headers import Headers

from synapse_lb.client.client import LowBandwidthClient
from synapse_lb.client.errors import BadRequest
from synapse_lb.coap.events import CoapRequest
from synapse_lb.coap.numbers import OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.homeserver import answers
from synapse_lb.msc3079.mapping import MappingError, decode_response, encode_request
from synapse_lb.msc3079.messages import NO_BODY, MatrixResponse
from synapse_lb.msc3079.options import FORMAT_JSON
from synapse_lb.testing.synapse.asked import Asked, Header, Text, asked
from synapse_lb.testing.synapse.channel import FakeChannel
from synapse_lb.testing.synapse.errors import NotOverCoap, Reason
from synapse_lb.testing.synapse.http import request_over_http
from synapse_lb.testing.synapse.link import LinkedClient, LinkPort
from synapse_lb.testing.synapse.site import SiteDispatcher

_LINKS: Final = "_synapse_lb_links"
"""Attribute of a site: the links to it, which are gone when it is."""


@attrs.define
class Tally:
    """How requests went.

    Attributes:
        coap: How many went over CoAP.
        http: How many went over HTTP, by the reason.
        refused: How many could have no answer over CoAP, by the reason.
    """

    coap: int = 0
    http: Counter[Reason] = attrs.field(factory=Counter)
    refused: Counter[Reason] = attrs.field(factory=Counter)


class CoapHeaders(Headers):
    """The headers of an answer that CoAP carries; to ask for another one is a mistake of the test."""

    carried: Final = frozenset({b"content-type", b"retry-after"})

    def getRawHeaders(self, name: Any, default: Any = None) -> Any:
        """Return the values of a header.

        Raises:
            NotOverCoap: CoAP does not carry it.
        """
        key = (name if isinstance(name, bytes) else name.encode("ascii")).lower()
        if key not in self.carried:
            raise NotOverCoap(Reason.ANSWER, f"the header {key.decode('ascii')}")
        return super().getRawHeaders(name, default)


class _Link:
    """One site's gateway, and its clients by their addresses."""

    def __init__(self, reactor: Any, site: Any, options: dict[str, Any]) -> None:
        self.dispatcher: Final = SiteDispatcher(site)
        self._port = LinkPort(self.dispatcher, reactor, seed=1)
        self._reactor = reactor
        self._options = options
        self._clients: dict[str, LowBandwidthClient] = {}

    def client(self, ip: str) -> LowBandwidthClient:
        """The client at an address."""
        if ip not in self._clients:
            seed = len(self._clients) + 2
            self._clients[ip] = LinkedClient(self._reactor, self._port, ip, seed, **self._options)
        return self._clients[ip]


class Requester:
    """Makes requests, and counts them.

    Args:
        over_http: for which reasons a request goes over HTTP where it cannot go over CoAP; otherwise such a request
            raises `NotOverCoap`.
        channel: makes the results, given a site, a reactor and ``ip``.
        http: makes a request over HTTP, with the parameters of `make_request`; None does so with the site's resources.
        client: parameters of `LowBandwidthClient`: ``key_version``, ``path_codes``, ``deflate``, ``extensions``,
            ``q_block``.

    Attributes:
        tally: how requests went.
    """

    def __init__(
        self,
        *,
        over_http: Collection[Reason] = (),
        channel: Callable[..., Any] = FakeChannel,
        http: Callable[..., Any] | None = None,
        **client: Any,
    ) -> None:
        self.tally = Tally()
        self._over_http = frozenset(over_http)
        self._channel = channel
        self._http = http
        self._options = client

    def make_request(
        self,
        reactor: Any,
        site: Any,
        method: Text,
        path: Text,
        content: Text | dict[str, Any] = b"",
        access_token: str | None = None,
        request: type[Any] = SynapseRequest,
        shorthand: bool = True,
        federation_auth_origin: bytes | None = None,
        content_type: bytes | None = None,
        content_is_form: bool = False,
        await_result: bool = True,
        custom_headers: Iterable[Header] | None = None,
        client_ip: str = "127.0.0.1",
    ) -> Any:
        """Make a request, with the parameters of ``tests.server.make_request`` of Synapse's source tree.

        Args:
            reactor: the virtual time, which the homeserver has too.
            site: the site (``SynapseSite``) whose resources serve it.
            method: HTTP method.
            path: percent-encoded path and query.
            content: the body: a JSON object, or JSON text.
            access_token: of the user.
            request: `SynapseRequest`.
            shorthand: put the client API's path before a path without it.
            federation_auth_origin: cannot be sent over CoAP.
            content_type: of the body; JSON if None.
            content_is_form: whether the body is a form, which cannot be sent over CoAP.
            await_result: let virtual time pass until there is an answer.
            custom_headers: further headers; CoAP has words for ``Authorization: Bearer`` alone.
            client_ip: the client's address. Clients of different addresses have associations of their own.

        Returns:
            A `FakeChannel`.

        Raises:
            NotOverCoap: the request or its answer has no form in CoAP.
            TimedOutException: there was no answer in a second of virtual time.
        """
        headers = None if custom_headers is None else list(custom_headers)
        wanted = asked(
            method,
            path,
            content,
            shorthand=shorthand,
            content_type=content_type,
            content_is_form=content_is_form,
            custom_headers=headers,
            access_token=access_token,
            federation_origin=federation_auth_origin,
            request_class=request,
        )
        channel = self._channel(site, reactor, ip=client_ip)
        try:
            self._over_coap(wanted, channel, reactor, client_ip)
        except NotOverCoap as error:
            if error.reason not in self._over_http:
                self.tally.refused[error.reason] += 1
                raise
            self.tally.http[error.reason] += 1
            if self._http is not None:
                return self._http(
                    reactor,
                    site,
                    method,
                    path,
                    content,
                    access_token,
                    request,
                    shorthand,
                    federation_auth_origin,
                    content_type,
                    content_is_form,
                    await_result,
                    headers,
                    client_ip,
                )
            request_over_http(wanted, channel, reactor)
        if await_result:
            channel.await_result()
        return channel

    def client(self, reactor: Any, site: Any, client_ip: str = "127.0.0.1") -> LowBandwidthClient:
        """The client at an address: to observe a sync, or to see what crossed the link (``counters``).

        Args:
            reactor: the virtual time.
            site: the site.
            client_ip: the client's address.
        """
        return self._link(reactor, site).client(client_ip)

    def _over_coap(self, wanted: Asked, channel: FakeChannel, reactor: Any, ip: str) -> None:
        wanted.check()
        token = wanted.token() or ""  # None would mean the token that was said last.
        link = self._link(reactor, channel.site)

        begun: list[Any] = []

        def begins(request: Any) -> None:
            channel.request = request
            begun.append(request)

        failures: list[Failure] = []

        def failed(failure: Failure) -> None:
            failures.append(failure)
            self._failed(failure, channel)

        path = wanted.target.partition(b"?")[0]
        link.dispatcher.expected = (wanted.method, path, begins)
        _send(wanted, token, link.client(ip)).addCallback(self._answered, channel, begun).addErrback(failed)
        if failures and failures[0].check(BadRequest):
            channel.failure = None
            raise NotOverCoap(Reason.OPTION, failures[0].getErrorMessage())
        self.tally.coap += 1

    def _link(self, reactor: Any, site: Any) -> _Link:
        links: dict[Requester, _Link] = vars(site).setdefault(_LINKS, {})
        if self not in links:
            links[self] = _Link(reactor, site, self._options)
        return links[self]

    def _answered(self, response: MatrixResponse, channel: FakeChannel, begun: list[Any]) -> None:
        what = _left_behind(response.body)
        if what is not None:
            self.tally.refused[Reason.ANSWER] += 1
            channel.failure = NotOverCoap(Reason.ANSWER, what)
            return
        headers = CoapHeaders()
        body = b""
        if response.body is not NO_BODY:
            headers.addRawHeader("Content-Type", "application/json")
            body = json.dumps(response.body, ensure_ascii=False, separators=(",", ":")).encode(
                "utf-8", "surrogatepass"
            )
        if response.retry_after is not None:
            headers.addRawHeader("Retry-After", str(math.ceil(response.retry_after)))
        channel.result.update(
            version=b"CoAP/1",
            code=b"%d" % response.status,
            reason=RESPONSES.get(response.status, b"Unknown Status"),
            headers=headers,
            body=body,
            done=True,
        )
        if begun and begun[0].logcontext is not None:
            channel.resource_usage = begun[0].logcontext.get_resource_usage()

    def _failed(self, failure: Failure, channel: FakeChannel) -> None:
        if not failure.check(CancelledError):
            channel.failure = failure.value


def _send(wanted: Asked, token: str, client: LowBandwidthClient) -> Deferred[MatrixResponse]:
    """Send a request: as a client does, or, if its body only claims to be JSON, as it is."""
    target = wanted.target.decode("ascii")
    try:
        return client.request(wanted.method, target, json=wanted.json(), token=token)
    except (ValueError, RecursionError):
        pass
    try:
        code, pairs, _ = encode_request(wanted.method, target, token=token)
    except MappingError as error:
        return fail(BadRequest(error.message))
    options = Options.of(*pairs).with_uint(OptionNumber.CONTENT_FORMAT, FORMAT_JSON)
    answer = client.raw_request(CoapRequest(code, options, wanted.body))
    return answer.addCallback(lambda got: decode_response(got.code, got.options, got.payload))


def _left_behind(body: Any) -> str | None:
    """What the listener said that CoAP cannot carry, if it did."""
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, str) and answers.CANNOT_CARRY in error else None


make_request: Final = Requester().make_request
"""As `Requester.make_request`; nothing goes over HTTP."""
