# SPDX-License-Identifier: AGPL-3.0-or-later
"""A client for MSC3079 servers: `LowBandwidthClient` and what it gives and raises."""

from __future__ import annotations

from synapse_lb.client.client import LowBandwidthClient
from synapse_lb.client.connector import AssociationInfo
from synapse_lb.client.counters import Traffic
from synapse_lb.client.discovery import Discovered, Discovery
from synapse_lb.client.errors import ClientError
from synapse_lb.client.https import HttpsLimits, HttpsResponse
from synapse_lb.client.observation import Change, Observation, State
from synapse_lb.client.persistence import Persistence
from synapse_lb.client.transport import Fallback, Transport, TransportChange
from synapse_lb.msc3079.messages import NO_BODY, MatrixResponse
from synapse_lb.txdtls.context import ClientVerification

__all__ = [
    "NO_BODY",
    "AssociationInfo",
    "Change",
    "ClientError",
    "ClientVerification",
    "Discovered",
    "Discovery",
    "Fallback",
    "HttpsLimits",
    "HttpsResponse",
    "LowBandwidthClient",
    "MatrixResponse",
    "Observation",
    "Persistence",
    "State",
    "Traffic",
    "Transport",
    "TransportChange",
]
