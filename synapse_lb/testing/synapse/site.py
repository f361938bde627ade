# SPDX-License-Identifier: AGPL-3.0-or-later
"""Any of Synapse's sites, served as the listener serves its own: answers are objects, and only what is its is there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Final
from weakref import WeakKeyDictionary

from synapse.api.constants import MAX_REQUEST_SIZE
from synapse.http.server import DirectServeJsonResource
from twisted.internet.defer import Deferred
from twisted.web.resource import IResource

from synapse_lb.homeserver import hooks
from synapse_lb.homeserver.dispatch import SynapseDispatcher
from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.server.dispatcher import Address
from synapse_lb.testing.synapse.link import SERVER

SERVED: Final = (b"/_matrix/client/", b"/.well-known/matrix/client")
"""The paths that the listener serves (`hooks.Homeserver.site`)."""

OUR_SERVER_NAME: Final = "test_server"
"""What log contexts and metrics of requests are labelled with, as in Synapse's own tests."""

_object_classes: WeakKeyDictionary[type, type] = WeakKeyDictionary()


def is_served(path: bytes) -> bool:
    """Whether the listener serves a path, which may have a query."""
    path = path.partition(b"?")[0]
    return path.startswith(SERVED[0]) or path == SERVED[1]


def answering_objects(resource: Any) -> Any:
    """A resource like this one, whose answers are objects when they go to CoAP.

    Whatever is registered with the one is there in the other too. A resource that is no JSON resource of Synapse's is
    returned as it is.
    """
    if not isinstance(resource, DirectServeJsonResource) or isinstance(resource, hooks.ObjectAnswers):
        return resource
    kind = type(resource)
    if kind not in _object_classes:
        _object_classes[kind] = type(kind.__name__, (hooks.ClientAnswers, kind), {})
    twin = copy.copy(resource)
    twin.__class__ = _object_classes[kind]
    return twin


Taker = Callable[[Any], None]
"""Is given a request that Synapse begins to serve."""


class SiteDispatcher(SynapseDispatcher):
    """Serves requests with the resources of a site.

    A request begins at once, as over HTTP in Synapse's own tests, so that the times which a servlet reads are the same.

    Args:
        site: a `SynapseSite`, or something like it.

    Attributes:
        expected: method and path of a request that is about to be dispatched, and who wants to be given it.
    """

    def __init__(self, site: Any) -> None:
        self.expected: tuple[str, bytes, Taker] | None = None
        self._taker: Taker | None = None
        homeserver: Any = _Served(self, site)  # It has what is asked of a `hooks.Homeserver`.
        super().__init__(homeserver, tag="test", port=SERVER.port, host=SERVER)

    def dispatch(self, request: MatrixRequest, client: Address) -> Deferred[MatrixResponse]:
        """Serve one request; see `Dispatcher.dispatch`."""
        if self.expected is not None and self.expected[:2] == (request.method, request.path):
            self._taker = self.expected[2]
            self.expected = None
        return super().dispatch(request, client)

    def begins_at_once(self) -> bool:
        """It always does."""
        return True

    def begins(self, request: hooks.LowBandwidthRequest) -> None:
        """Give a request to who wants it."""
        taker, self._taker = self._taker, None
        if taker is not None:
            taker(request)


class _Served:
    """What the dispatcher asks of the homeserver, for any site."""

    def __init__(self, dispatcher: SiteDispatcher, site: Any) -> None:
        self._dispatcher = dispatcher
        self._site = site

    def site(self, *, tag: str, port: int, logger_name: str) -> Any:
        """The site, with resources that answer with objects."""
        original, twin = self._site, copy.copy(self._site)

        def resource_for(request: Any) -> IResource:
            resource: IResource = answering_objects(original.getResourceFor(request))
            return resource

        twin.getResourceFor = resource_for
        return twin

    def request(self, channel: Any, site: Any) -> hooks.LowBandwidthRequest:
        """Build a request, as `hooks.Homeserver` does."""
        request = hooks.LowBandwidthRequest(
            channel, site, our_server_name=OUR_SERVER_NAME, max_request_body_size=MAX_REQUEST_SIZE
        )
        self._dispatcher.begins(request)
        return request
