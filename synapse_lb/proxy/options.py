# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a proxy is told: where the homeserver is, what it leaves out, and its bounds."""

from __future__ import annotations

from typing import Any

import attrs

from synapse_lb.txdtls.context import ClientVerification, VerificationMode


def _at_least(least: float) -> Any:
    def check(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
        if not least <= value < float("inf"):
            raise ValueError(f"{attribute.name} must be a number from {least:g}, not {value!r}")

    return check


@attrs.frozen(kw_only=True)
class ProxyOptions:
    """The configuration of a proxy.

    Attributes:
        coaps: the homeserver's `coaps://host:port` or `host:port`; None if it speaks no CoAP, or is not known to.
        https: base URL of the homeserver's client-server API over HTTPS; None if there is none.
        discover: `https://example.com` at which both are discovered, in their place; None discovers nothing.
        verification: how certificates are checked.
        lean: leave out typing, presence and receipts, in both directions.
        observe: answer `/sync` from observations (RFC 7641); False asks the homeserver each time.
        max_associations: DTLS associations, one for each access token; 64.
        idle_timeout: s without a request after which an association is closed; 300.
        linger: s that an observation goes on when no client asks for what it brings; 60.
        max_body: bytes in the body of a request; 100 MiB, of which what is over 1 MiB cannot go over CoAP.

    Raises:
        ValueError: a bound makes no sense.
    """

    coaps: str | None = None
    https: str | None = None
    discover: str | None = None
    verification: ClientVerification = attrs.field(factory=ClientVerification.system)
    lean: bool = False
    observe: bool = True
    max_associations: int = attrs.field(default=64, validator=_at_least(1))
    idle_timeout: float = attrs.field(default=300.0, validator=_at_least(1.0))
    linger: float = attrs.field(default=60.0, validator=_at_least(1.0))
    max_body: int = attrs.field(default=100 * 2**20, validator=_at_least(0))

    @property
    def https_verification(self) -> ClientVerification:
        """How certificates are checked over HTTPS; a fingerprint is that of CoAP's certificate."""
        pinned = self.verification.mode is VerificationMode.PINNED
        return ClientVerification.system() if pinned else self.verification
