# SPDX-License-Identifier: AGPL-3.0-or-later
"""Host names to IP addresses through the reactor, IPv4 and IPv6."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred

from synapse_lb.txdtls.context import is_ip_address
from synapse_lb.txdtls.errors import NameNotResolved


class _Receiver:
    """Collects the addresses of one name (the shape of `IResolutionReceiver`)."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.done: Deferred[list[str]] = Deferred(self._cancel)
        self._resolution: Any = None
        self._cancelled = False

    def resolutionBegan(self, resolutionInProgress: Any) -> None:
        self._resolution = resolutionInProgress

    def addressResolved(self, address: object) -> None:
        if isinstance(address, (IPv4Address, IPv6Address)) and address.host not in self.addresses:
            self.addresses.append(address.host)

    def resolutionComplete(self) -> None:
        if not self._cancelled:
            self.done.callback(self.addresses)

    def _cancel(self, _: Deferred[list[str]]) -> None:
        self._cancelled = True
        if self._resolution is not None:
            self._resolution.cancel()


async def resolve(reactor: Any, host: str) -> list[str]:
    """Resolve a host.

    Args:
        reactor: Offers `nameResolver`; not needed for IP addresses.
        host: DNS name or IP address.

    Returns:
        At least one IP address, in the order in which to try them.

    Raises:
        NameNotResolved: The name has no address.
    """
    if is_ip_address(host):
        return [host]
    receiver = _Receiver()
    reactor.nameResolver.resolveHostName(
        receiver, host, addressTypes=[IPv4Address, IPv6Address], transportSemantics="UDP"
    )
    addresses = await receiver.done
    if not addresses:
        raise NameNotResolved(f"the host name {host} has no address")
    return addresses
