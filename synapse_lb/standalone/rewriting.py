# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the gateway lets through to the homeserver, and what it changes in the answers. Pure.

A client has to learn that there is a gateway: `/versions` says so (MSC3079, "Versioning"), and wherever the homeserver
names its own address (Client-Server API, "Server Discovery"), the gateway's stands instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import attrs

from synapse_lb.msc3079.keys_v1 import KEY_VERSION_1
from synapse_lb.msc3079.x1 import X1_VERSION

VERSIONS: Final = "/_matrix/client/versions"
WELL_KNOWN: Final = "/.well-known/matrix/client"
VERSIONS_KEY: Final = "org.matrix.msc3079.low_bandwidth"
_PATH_CODES_VERSION: Final = 1

_OVER_COAP: Final = re.compile(r"/_matrix/client/")
_OVER_TCP: Final = re.compile(
    r"/_matrix/(client|media|static)/|/_synapse/client/|/\.well-known/matrix/(client|support)$"
)
_DOTS: Final = re.compile(r"/(\.|%2e){1,2}(/|$)", re.IGNORECASE)
_WITH_WELL_KNOWN: Final = re.compile(r"/_matrix/client/[^/]+/(login|register)/?")


@attrs.frozen
class Advertisement:
    """What clients are told.

    Attributes:
        dtls_port: UDP port of the gateway.
        base_url: address over HTTPS that stands in place of the homeserver's own; None leaves that.
        observe: whether `/sync` can be observed.
        x1: whether clients may choose x1.
    """

    dtls_port: int
    base_url: str | None = None
    observe: bool = True
    x1: bool = True

    @property
    def low_bandwidth(self) -> dict[str, int]:
        """What `/versions` says."""
        content = {
            "dtls": self.dtls_port,
            "cbor_enum_version": KEY_VERSION_1,
            "coap_enum_version": _PATH_CODES_VERSION,
            "q_block": 1,
        }
        if self.observe:
            content["observe"] = 1
        if self.x1:
            content["x1"] = X1_VERSION
        return content

    def concerns(self, path: str) -> bool:
        """Whether answers at a path may have to be changed."""
        return path in (VERSIONS, WELL_KNOWN) or _WITH_WELL_KNOWN.fullmatch(path) is not None

    def applied(self, path: str, status: int, body: Any) -> tuple[int, Any]:
        """Change an answer.

        Args:
            path: what was asked for, without a query.
            status: HTTP status.
            body: JSON value.

        Returns:
            The status and the body that the client gets.
        """
        if path == WELL_KNOWN and self.base_url is not None and status in (200, 404):
            return 200, self._with_base_url(body if status == 200 and isinstance(body, Mapping) else {})
        if status != 200 or not isinstance(body, Mapping):
            return status, body
        if path == VERSIONS:
            return status, {**body, VERSIONS_KEY: self.low_bandwidth}
        well_known = body.get("well_known")
        if self.base_url is not None and isinstance(well_known, Mapping) and _WITH_WELL_KNOWN.fullmatch(path):
            return status, {**body, "well_known": self._with_base_url(well_known)}
        return status, body

    def _with_base_url(self, well_known: Mapping[str, Any]) -> dict[str, Any]:
        homeserver = well_known.get("m.homeserver")
        others = homeserver if isinstance(homeserver, Mapping) else {}
        return {**well_known, "m.homeserver": {**others, "base_url": self.base_url}}


def goes_over_coap(path: str) -> bool:
    """Whether a path is one of the client-server API, which CoAP is for."""
    return _OVER_COAP.match(path) is not None and not _DOTS.search(path)


def goes_over_tcp(path: str) -> bool:
    """Whether a path is one that clients need; administrators, other servers and monitors do not come this way."""
    return _OVER_TCP.match(path) is not None and not _DOTS.search(path)
