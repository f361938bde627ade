# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a request that Synapse served came to: a status and an object.

Errors become the same status, ``errcode`` and ``error`` as over HTTP. What CoAP cannot carry - a redirect, a web
page, media - becomes 501 with M_UNRECOGNIZED and a text that says so.
"""

from __future__ import annotations

import logging
import re
from typing import Any, Final

from synapse.module_api.errors import Codes, RedirectException, SynapseError
from twisted.internet.defer import CancelledError
from twisted.python.failure import Failure
from twisted.web.http import Request

logger = logging.getLogger(__name__)

NOT_CARRIED: Final = 501
"""Status of what cannot be carried over CoAP: redirects, web pages, media."""

STATUS_CANCELLED: Final = 499
"""Synapse's own status, in logs only, of a request that was cancelled because the client went away."""


_MEDIA: Final = re.compile(
    rb"/_matrix/client/[^/]+(?:/org\.matrix\.msc3916[^/]*)?/media/(?:download|thumbnail)/"
)

CANNOT_CARRY: Final = "which CoAP cannot carry"
"""What the texts of the errors below say."""


def is_media(path: bytes) -> bool:
    """Whether the answer at a path is a file."""
    return _MEDIA.match(path) is not None


def not_carried(what: str) -> dict[str, Any]:
    """Return the error object for an answer that CoAP cannot carry.

    Args:
        what: the answer, with its article.
    """
    return matrix_error(Codes.UNRECOGNIZED, f"The answer is {what}, {CANNOT_CARRY}; use HTTPS")


def instead_of(what: str, status: int) -> tuple[int, dict[str, Any]]:
    """Return the status and the error object that are given instead of an answer that CoAP cannot carry.

    Args:
        what: the answer, with its article.
        status: its status, which stays if it is that of an error.
    """
    if status < 400:
        return NOT_CARRIED, not_carried(what)
    return status, matrix_error(Codes.UNKNOWN, f"The error is told in {what}, {CANNOT_CARRY}")


def matrix_error(errcode: str, error: str) -> dict[str, Any]:
    """Return a Matrix error object."""
    return {"errcode": str(getattr(errcode, "value", errcode)), "error": error}


def of_failure(failure: Failure, request: Request, config: Any, *, client_gone: bool) -> tuple[int, Any]:
    """Return the status and the error object of what a servlet raised, and log it as Synapse does.

    Args:
        failure: what was raised.
        request: the request that failed; gets the error's headers.
        config: Synapse's configuration, which shapes some errors; None where it is not at hand.
        client_gone: whether the client went away before.
    """
    exception = failure.value
    if isinstance(exception, SynapseError):
        for header, value in (exception.headers or {}).items():
            request.responseHeaders.setRawHeaders(header, [value])
        context = f" ({exception.debug_context})" if exception.debug_context else ""
        logger.info("%s SynapseError: %s - %s%s", request, exception.code, exception.msg, context)
        return exception.code, exception.error_dict(config)
    if isinstance(exception, RedirectException):
        logger.info("%s redirect", request)
        return NOT_CARRIED, not_carried("a redirect")
    if isinstance(exception, CancelledError):
        if not client_gone:
            logger.error("Got cancellation before client disconnection: %r", request, exc_info=exception)
        return STATUS_CANCELLED, matrix_error(Codes.UNKNOWN, "Request cancelled")
    logger.error("Failed handle request: %r", request, exc_info=exception)
    return 500, matrix_error(Codes.UNKNOWN, "Internal server error")
