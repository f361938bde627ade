# SPDX-License-Identifier: AGPL-3.0-or-later
"""An observation's registration where there is only HTTPS: one poll, whose answer is its last."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.python.failure import Failure

from synapse_lb.client.errors import BadResponse, ClientError, RequestFailed
from synapse_lb.client.registration import Incoming, RegisterAgain, Registration
from synapse_lb.client.sticky import Carried
from synapse_lb.coap.events import CoapRequest, CoapResponse
from synapse_lb.coap.options import Options
from synapse_lb.msc3079.mapping import MatrixResponse, ReplyFormat, encode_response
from synapse_lb.msc3079.options import FORMAT_JSON


class HttpsRegistration(Registration):
    """One request over HTTPS, seen as a registration that is answered without Observe.

    Args:
        answer: of the request, which is under way.
        is_long: whether the server may hold the answer back.
    """

    def __init__(self, answer: Deferred[MatrixResponse], *, is_long: bool) -> None:
        super().__init__(Carried())
        self._answer = answer
        self._is_long = is_long
        answer.addCallbacks(self._answered, self._failed)

    def confirm(self) -> None:
        """Nothing to do: the next poll's `since` is the acknowledgement."""

    def deregister(self, request: CoapRequest) -> Deferred[None]:
        """End it; the server need not be told."""
        self.forget()
        return succeed(None)

    def forget(self) -> None:
        """Cancel the request if it is under way."""
        if self.open:
            self.open = False
            self._answer.cancel()

    def give_way(self) -> None:
        """End a long poll, because there is something better; it has been acknowledged no further for it."""
        if self.open and self._is_long:
            self.forget()
            self._fail(RegisterAgain("CoAP works again"))

    def _answered(self, answer: MatrixResponse) -> None:
        if self.open:
            self.open = False
            code, options, payload = encode_response(answer, ReplyFormat(FORMAT_JSON))
            self._deliver(Incoming(CoapResponse(code, Options.of(*options), payload), last=True))

    def _failed(self, failure: Failure) -> None:
        if not self.open or failure.check(CancelledError):
            return
        self.open = False
        error = failure.value
        if not isinstance(error, ClientError):
            error = RequestFailed(f"the poll over HTTPS failed: {failure.getErrorMessage()}")
        elif isinstance(error, BadResponse):
            # A reverse proxy's page, most likely: it passes, and no observation need end of it.
            error = RequestFailed(str(error))
        self._fail(error)
