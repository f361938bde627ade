# SPDX-License-Identifier: AGPL-3.0-or-later
"""A dispatcher that serves here what this process serves, and asks others over HTTP for the rest (docs/workers.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import attrs
from synapse.module_api.errors import ConfigError
from twisted.internet.defer import Deferred

from synapse_lb.homeserver import hooks, routes
from synapse_lb.homeserver.routes import STREAM_ENDPOINTS, Router
from synapse_lb.homeserver.routing_config import DispatchConfig
from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.server.dispatcher import Address, Dispatcher
from synapse_lb.upstream import addresses
from synapse_lb.upstream.http import HttpUpstream


class LocalDispatcher(Dispatcher, Protocol):
    """A dispatcher that knows what it serves."""

    def serves(self, method: str, path: bytes) -> bool:
        """Whether this process has a servlet for a method and a path."""


class RoutingDispatcher:
    """Sends each request to the process that serves it (a ``Dispatcher`` of `synapse_lb.server`).

    Args:
        local: serves what is served here.
        router: tells where requests go.
        upstream: asks the other processes.
    """

    def __init__(self, local: Dispatcher, router: Router, upstream: HttpUpstream) -> None:
        self.upstream: Final = upstream
        self._local = local
        self._router = router

    def dispatch(self, request: MatrixRequest, client: Address) -> Deferred[MatrixResponse]:
        """Serve one request; see ``Dispatcher``. Cancelling it closes the HTTP request, if there is one."""
        url = self._router.url_for(request)
        if url is None:
            return self._local.dispatch(request, client)
        return self.upstream.ask(url, request, client).addCallback(_without_standing)


def _without_standing(response: MatrixResponse) -> MatrixResponse:
    """An answer over HTTP does not say whether the token was looked at: it makes no stranger a known client."""
    return attrs.evolve(response, authenticated=False)


def check(homeserver: hooks.Homeserver, config: DispatchConfig, path: Sequence[str]) -> None:
    """Look whether every process is there that requests may have to go to.

    Args:
        homeserver: the running homeserver.
        config: the section ``dispatch``.
        path: where that stands, for errors.

    Raises:
        ConfigError: one is missing, or the file of the authorities cannot be used.
    """
    if not config:
        return
    try:
        addresses.verification_of(config.tls_ca_path)
    except ValueError as error:
        raise ConfigError(str(error), (*path, "tls_ca_path")) from None
    own = homeserver.instance_name
    for number, route in enumerate(config.routes):
        if route.instance != own and route.instance not in config.instances:
            raise ConfigError(
                f"there is no {route.instance!r} among the instances, and this process is {own!r}",
                (*path, "routes", str(number), "instance"),
            )
    for stream, writer in routes.missing(own, config.instances, _writers(homeserver)).items():
        raise ConfigError(
            f"is missing {writer!r}, which alone writes the stream {stream!r}: give the URL of its HTTP listener",
            (*path, "instances"),
        )


def build(homeserver: hooks.Homeserver, config: DispatchConfig, local: LocalDispatcher) -> RoutingDispatcher:
    """Make the dispatcher that a configuration asks for, in a process that `check` has found nothing against."""
    own = homeserver.instance_name
    router = Router(
        own=own,
        urls={name: url for name, url in config.instances.items() if name != own},
        writers=_writers(homeserver),
        routes=config.routes,
        serves=local.serves,
    )
    upstream = HttpUpstream(
        homeserver.reactor,
        forwarded_for=True,
        max_requests=config.max_requests,
        timeout=config.timeout,
        verification=addresses.verification_of(config.tls_ca_path),
        sockets=True,
    )
    return RoutingDispatcher(local, router, upstream)


def _writers(homeserver: hooks.Homeserver) -> Mapping[str, Sequence[str]]:
    return {stream: homeserver.writers(stream) for stream in STREAM_ENDPOINTS}
