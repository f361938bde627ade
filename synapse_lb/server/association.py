# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the gateway keeps of one association."""

from __future__ import annotations

from attrs import define, field
from twisted.internet.address import IPv4Address, IPv6Address

from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.msc3079.sticky import StickyState
from synapse_lb.server.dispatcher import Address


@define
class Association:
    """One client.

    Attributes:
        address: Where it is.
        sticky: What it has said for all of its requests.
        unproven: It has moved and has not yet answered at its new address.
        ping: The exchange of the ping that it has to answer.
        defining: Exchange of a notification or separate response on its way -> the aliases that it defines.
    """

    address: Address
    sticky: StickyState = field(factory=StickyState)
    unproven: bool = False
    ping: int | None = None
    defining: dict[int, tuple[int, ...]] = field(factory=dict)

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

    def note_token_ended(self, request: MatrixRequest, response: MatrixResponse) -> None:
        """Forget a sticky token that has ended, unless the client has given another one meanwhile."""
        if request.access_token is None or request.access_token != self.sticky.token:
            return
        logged_out = response.status == 200 and request.path.endswith((b"/logout", b"/logout/all"))
        unknown = (
            response.status == 401
            and isinstance(response.body, dict)
            and response.body.get("errcode") == "M_UNKNOWN_TOKEN"
        )
        if logged_out or unknown:
            self.sticky.forget_token()


def plain(address: Address) -> Address:
    """An IPv4 client of a dual-stack socket has its IPv4 address (RFC 4291 section 2.5.5.2)."""
    if isinstance(address, IPv6Address) and address.host.startswith("::ffff:") and "." in address.host:
        return IPv4Address(address.type, address.host.removeprefix("::ffff:"), address.port)
    return address
