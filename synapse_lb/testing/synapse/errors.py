# SPDX-License-Identifier: AGPL-3.0-or-later
"""What goes wrong in a test through CoAP that would not go wrong over HTTP, and why."""

from __future__ import annotations

from enum import Enum


class Reason(Enum):
    """Why something cannot travel over CoAP; the value says it in words."""

    API = "the listener serves /_matrix/client and /.well-known/matrix/client alone"
    METHOD = "the method has no CoAP code"
    BODY = "the body is no JSON value"
    HEADER = "MSC3079 has no option for the request header"
    LOGIN = "the user is named by something else than an access token"
    REQUEST_CLASS = "the request is of a class of its own"
    OPTION = "no CoAP option can hold it"
    ANSWER = "the answer is no JSON value"


class NotOverCoap(Exception):
    """A request, or its answer, has no form in CoAP (MSC3079): test it over HTTP.

    Args:
        reason: the class of things that it belongs to.
        what: what it is in this case.
    """

    def __init__(self, reason: Reason, what: str) -> None:
        super().__init__(f"{what}: {reason.value}")
        self.reason = reason
        self.what = what


class TimedOutException(Exception):
    """No answer within the (virtual) time."""
