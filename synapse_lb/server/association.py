# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the gateway keeps of one association."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from twisted.internet.address import IPv4Address, IPv6Address

from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.msc3079.sticky import StickyState
from synapse_lb.server.dispatcher import Address
from synapse_lb.server.turnstile import Turnstile


@define
class Association:
    """One client.

    Attributes:
        address: Where it is.
        sticky: What it has said for all of its requests.
        unproven: It has moved and has not yet answered at its new address.
        ping: The exchange of the ping that it has to answer.
        defining: Exchange of a notification or separate response on its way -> the aliases that it defines.
        turnstile: Its requests pass here.
        trust: Is told whether it is known whose it is.
    """

    address: Address
    turnstile: Turnstile
    sticky: StickyState = field(factory=StickyState)
    unproven: bool = False
    ping: int | None = None
    defining: dict[int, tuple[int, ...]] = field(factory=dict)
    trust: Callable[[bool], None] = field(default=lambda known: None, kw_only=True)
    _known: bool = False

    def on_its_way(self, exchange: int, definitions: tuple[int, ...]) -> None:
        """Something was sent of which it will be known whether it has arrived."""
        if definitions:
            self.defining[exchange] = definitions

    def settle(self, exchange: int, *, delivered: bool) -> None:
        """What was on its way for an exchange was acknowledged, or never will be.

        In the first case the aliases that it defines may stand alone from now on.
        """
        definitions = self.defining.pop(exchange, ())
        if delivered and self.sticky.aliases is not None:
            self.sticky.aliases.confirm(definitions)

    def note_standing(self, request: MatrixRequest, response: MatrixResponse) -> None:
        """See from an answer whether it is known whose association this is, and tell the port.

        A sticky token that has ended is forgotten, unless the client has given another one meanwhile. A dispatcher
        that does not say whether the token was good is taken to have looked at it when it served the request.
        """
        if _token_ended(request, response):
            if request.access_token == self.sticky.token:
                self.sticky.forget_token()
                self._known = False
                self.trust(False)
            return
        authenticated = response.authenticated
        if authenticated is None:
            authenticated = request.access_token is not None and response.status < 300
        if authenticated and not self._known:
            self._known = True
            self.trust(True)


def _token_ended(request: MatrixRequest, response: MatrixResponse) -> bool:
    """Whether the request's access token is not good any more."""
    if request.access_token is None:
        return False
    if response.status == 200:
        return request.path.endswith((b"/logout", b"/logout/all"))
    body = response.body
    return response.status == 401 and isinstance(body, dict) and body.get("errcode") == "M_UNKNOWN_TOKEN"


def plain(address: Address) -> Address:
    """An IPv4 client of a dual-stack socket has its IPv4 address (RFC 4291 section 2.5.5.2)."""
    if isinstance(address, IPv6Address) and address.host.startswith("::ffff:") and "." in address.host:
        return IPv4Address(address.type, address.host.removeprefix("::ffff:"), address.port)
    return address
