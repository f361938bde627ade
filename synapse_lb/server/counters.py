# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a gateway counts."""

from __future__ import annotations

from attrs import define


@define
class GatewayCounters:
    """What a gateway has done since it was made."""

    requests: int = 0
    """Requests that were dispatched."""
    refused: int = 0
    """Requests that could not be understood as Matrix requests."""
    responses: int = 0
    """Responses that were handed to the endpoint."""
    cancelled: int = 0
    """Requests whose client went away before the response."""
    undelivered: int = 0
    """Responses that the client rejected or never acknowledged."""
    failures: int = 0
    """Requests that ended in an error of this program."""
    moved: int = 0
    """Changes of an association's address."""
    response_bytes: int = 0
    """Bytes of all response bodies."""
    http_bytes: int = 0
    """Bytes that the same requests and responses would have taken over HTTP (an estimate, see `http_size`)."""
