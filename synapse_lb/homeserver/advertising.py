# SPDX-License-Identifier: AGPL-3.0-or-later
"""What ``/_matrix/client/versions`` says of the listeners (MSC3079, "Versioning"), over HTTP and CoAP alike.

For `hooks`, which looks whether the names of Synapse are there that this file uses.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakKeyDictionary

from synapse.config.homeserver import HomeServerConfig
from synapse.http.site import SynapseRequest
from synapse.rest.client.versions import VersionsRestServlet

__all__ = ["VersionsRestServlet", "advertise", "stop_advertising"]

_advertised: WeakKeyDictionary[HomeServerConfig, dict[str, Any]] = WeakKeyDictionary()
"""By homeserver (one process may run several): what its /versions says besides."""

_original: list[Callable[[VersionsRestServlet, SynapseRequest], Awaitable[tuple[int, Any]]]] = []


def advertise(config: HomeServerConfig, content: dict[str, Any]) -> None:
    """Add `content` to the answers of this homeserver's ``/_matrix/client/versions``."""
    if not _original:
        original = VersionsRestServlet.on_GET

        @functools.wraps(original)
        async def on_GET(self: VersionsRestServlet, request: SynapseRequest) -> tuple[int, Any]:
            status, body = await original(self, request)
            return status, {**body, **_advertised.get(self.config, {})}

        _original.append(original)
        _set(on_GET)
    _advertised[config] = content


def stop_advertising(config: HomeServerConfig) -> None:
    """Undo `advertise`; the last one out restores Synapse's own method. Idempotent."""
    _advertised.pop(config, None)
    if not _advertised and _original:
        _set(_original.pop())


def _set(method: object) -> None:
    servlet: Any = VersionsRestServlet
    servlet.on_GET = method
