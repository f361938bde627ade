# SPDX-License-Identifier: AGPL-3.0-or-later
"""Low-bandwidth Matrix (MSC3079): CoAP + CBOR over DTLS/UDP for the Synapse homeserver."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

__all__ = ["LowBandwidthModule", "__version__"]


def __getattr__(name: str) -> Any:
    """Load `LowBandwidthModule` on first use, so that the client tools import without Synapse."""
    if name == "LowBandwidthModule":
        from synapse_lb.homeserver.module import LowBandwidthModule

        return LowBandwidthModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
