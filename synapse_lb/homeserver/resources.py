# SPDX-License-Identifier: AGPL-3.0-or-later
"""What Synapse's own classes for requests and resources become here: answers are objects, and no HTTP is written.

`hooks` looks for the methods that are overridden, when it is imported.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from synapse.api.errors import UnrecognizedRequestError
from synapse.http.server import finish_request
from synapse.http.site import SynapseRequest, SynapseSite
from synapse.rest import ClientRestResource
from synapse.rest.client.sync import SyncRestServlet
from synapse.rest.well_known import ClientWellKnownResource
from twisted.python.failure import Failure
from twisted.web.server import Site

from synapse_lb.homeserver import answers
from synapse_lb.homeserver.further_syncs import FurtherSyncs
from synapse_lb.homeserver.plain_syncs import PlainSyncs

_CLIENT: Final = b"/_matrix/client/"

MAX_PLACES: Final = 256
"""Paths of which is remembered which servlet serves them."""

MAX_PLACE: Final = 128
"""Bytes of such a path at most."""


class LowBandwidthRequest(SynapseRequest):
    """A request that Synapse serves, whose answer is an object.

    Attributes:
        answer: The status and the response object, once a resource has answered with one.
        client_gone: Whether the client went away before the answer.
        is_further: Whether it is a further sync of an observation.
    """

    answer: tuple[int, Any] | None = None
    client_gone = False
    is_further = False
    _redacted: tuple[Any, str] = None, ""

    def get_redacted_uri(self) -> str:
        """Return the URI as logs may show it; it is asked for several times."""
        if self._redacted[0] is not self.uri:
            self._redacted = self.uri, super().get_redacted_uri()
        return self._redacted[1]

    def process(self) -> None:
        """Have the resource of its path serve it; the headers that Twisted sets before are left out."""
        channel: Any = self.channel
        self.site = channel.site
        self.prepath, self.postpath = [], [unquote_to_bytes(part) for part in self.path[1:].split(b"/")]
        try:
            self.render(self.site.getResourceFor(self))
        except BaseException:  # Twisted does the same: whatever it is, it is logged and answered with 500.
            failed: Any = self.processingFailed
            failed(Failure())

    def finish(self) -> None:
        """End it; in the next turn of the reactor if the channel asks for that."""
        channel: Any = self.channel
        if channel is not None and channel.put_off(self.finish):
            return
        if not self.client_gone:
            super().finish()

    def connectionLost(self, reason: Failure | Exception) -> None:
        """Remember that nobody waits for the answer any more, and let Synapse cancel what it can."""
        self.client_gone = True
        super().connectionLost(reason)


class ObjectAnswers:
    """Takes the answers of a Synapse resource as objects, before any JSON is written."""

    def _send_response(self, request: SynapseRequest, code: int, response_object: Any) -> None:
        request.setResponseCode(code)
        if isinstance(request, LowBandwidthRequest):
            if request.client_gone:
                return
            request.answer = (code, response_object)
            request.startedWriting = 1  # No headers are to be put together: nobody would read them.
        finish_request(request)

    def _send_error_response(self, f: Failure, request: SynapseRequest) -> None:
        hs = getattr(self, "hs", None)
        gone = isinstance(request, LowBandwidthRequest) and request.client_gone
        status, error = answers.of_failure(f, request, getattr(hs, "config", None), client_gone=gone)
        if not request.startedWriting:
            self._send_response(request, status, error)
        elif request.channel:
            # A servlet failed in the middle of writing by itself.
            request.channel.forceAbortClient()


class ClientAnswers(ObjectAnswers):
    """The same of the client-server API, whose media CoAP does not carry."""

    async def _async_render(self, request: SynapseRequest) -> tuple[int, Any]:
        if request.path is not None and answers.is_media(request.path):
            # Before the servlet fetches the file, perhaps from another server.
            request.request_metrics.name = "MediaOverCoap"
            return answers.NOT_CARRIED, answers.not_carried("media")
        resource: Any = super()
        answer: tuple[int, Any] = await resource._async_render(request)
        return answer


class RememberedServlets:
    """Remembers which servlets were found.

    Synapse looks for the servlet of a path in a list of some 200 patterns. Those that were found for paths without
    parameters, such as that of ``/sync``, are remembered; when there are `MAX_PLACES`, all are forgotten.
    """

    def __init__(self, *arguments: Any) -> None:
        self._places: dict[tuple[bytes, bytes], tuple[Any, str]] = {}
        super().__init__(*arguments)

    def _get_handler_for_request(self, request: Any) -> tuple[Any, str, dict[str, str]]:
        place = (request.method, request.path)
        known = self._places.get(place)
        if known is not None:
            return *known, {}
        resource: Any = super()
        callback, servlet, parameters = resource._get_handler_for_request(request)
        if not parameters and len(request.path) <= MAX_PLACE:
            if len(self._places) >= MAX_PLACES:
                self._places.clear()
            self._places[place] = callback, servlet
        return callback, servlet, parameters


class ClientResource(RememberedServlets, ClientAnswers, ClientRestResource):
    """Everything under ``/_matrix/client`` that this process serves.

    Attributes:
        further: Serves further syncs of observations; None if this process serves no ``/sync``.
        plain: Serves all others; likewise.
    """

    further: FurtherSyncs | None = None
    plain: PlainSyncs | None = None

    def sync_servlet(self) -> SyncRestServlet | None:
        """Synapse's servlet for ``/sync``; None if this process has none."""
        asked: Any = SimpleNamespace(method=b"GET", path=_CLIENT + b"v3/sync")
        try:
            callback, _, _ = super()._get_handler_for_request(asked)
        except UnrecognizedRequestError:
            return None
        servlet = getattr(callback, "__self__", None)
        return servlet if isinstance(servlet, SyncRestServlet) else None

    def _get_handler_for_request(self, request: Any) -> tuple[Any, str, dict[str, str]]:
        callback, servlet, parameters = super()._get_handler_for_request(request)
        if servlet == SyncRestServlet.__name__:
            syncs = self.further if request.is_further else self.plain
            callback = callback if syncs is None else syncs.on_GET
        return callback, servlet, parameters

    def serves(self, method: str, path: bytes) -> bool:
        """Whether there is a servlet for a request; workers have not all of them."""
        if answers.is_media(path):
            return True  # It is refused here.
        asked: Any = SimpleNamespace(method=method.encode("ascii"), path=path, is_further=False)
        try:
            self._get_handler_for_request(asked)
        except UnrecognizedRequestError:
            return False
        return True


class LowBandwidthSite(SynapseSite):
    """What Synapse has for each of its HTTP listeners.

    Attributes:
        client: Its resource for ``/_matrix/client``.
        largest_body: Bytes of the largest body of a request.
    """

    client: ClientResource
    largest_body: int

    def getResourceFor(self, request: Any) -> Any:
        """Return the resource of a request; there is none to be passed on to another server, as Synapse's own has."""
        if request.path.startswith(_CLIENT):
            request.site, request.sitepath = self, []
            return self.client
        return Site.getResourceFor(self, request)


class WellKnownClientResource(ObjectAnswers, ClientWellKnownResource):
    """``/.well-known/matrix/client``."""
