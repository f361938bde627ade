# SPDX-License-Identifier: AGPL-3.0-or-later
"""The result of a request, of the kind that Synapse's own tests have: `FakeChannel`."""

from __future__ import annotations

import json
import time
from collections.abc import MutableMapping
from typing import Any, Final, cast

from twisted.web.http_headers import Headers

from synapse_lb.testing.synapse.errors import TimedOutException

STEP: Final = 0.1
"""Seconds of virtual time at a step of `FakeChannel.await_result`."""

FIRST_STEP: Final = 0.001
"""Seconds of virtual time that each request takes at least: two requests have different timestamps."""

MIN_STEPS: Final = 1000
"""Steps that are made at least before the wait is given up, each a millisecond after the other: what other threads do
takes real time, and more of it on a busy machine."""

QUICK_STEPS: Final = 10
"""Of these, the first ones, which follow each other at once."""


class FakeChannel:
    """What came of a request.

    Args:
        site: the site that was asked.
        reactor: the virtual time.
        ip: the client's address.

    Attributes:
        result: ``version``, ``code``, ``reason``, ``headers`` and ``body``, and ``done`` once it is complete.
        request: what Synapse served, once it has begun.
        resource_usage: what serving it took (Synapse's ``ContextResourceUsage``), once it is complete.
        failure: why there is no answer.
    """

    def __init__(self, site: Any, reactor: Any, ip: str = "127.0.0.1") -> None:
        self.site: Final = site
        self.result: dict[str, Any] = {}
        self.request: Any = None
        self.resource_usage: Any = None
        self.failure: BaseException | None = None
        self.ip: Final = ip
        self._reactor = reactor

    @property
    def code(self) -> int:
        """The HTTP status.

        Raises:
            AssertionError: there is no answer yet.
        """
        return int(self._have("code"))

    @property
    def headers(self) -> Headers:
        """The headers of the answer. Of a request over CoAP those that CoAP carries; others raise `NotOverCoap`."""
        return cast(Headers, self._have("headers"))

    @property
    def json_body(self) -> dict[str, Any]:
        """The body, which is an object."""
        body = json.loads(self.text_body)
        assert isinstance(body, dict), body
        return body

    @property
    def json_list(self) -> list[Any]:
        """The body, which is an array."""
        body = json.loads(self.text_body)
        assert isinstance(body, list), body
        return body

    @property
    def text_body(self) -> str:
        """The body as JSON text.

        Raises:
            AssertionError: the answer is not complete.
        """
        assert self.is_finished(), "the request is not completed yet"
        return str(self.result["body"].decode("utf-8"))

    def is_finished(self) -> bool:
        """Whether the answer is complete.

        Raises:
            NotOverCoap: it has no form in CoAP.
            ClientError: CoAP came to no answer.
        """
        if self.failure is not None:
            raise self.failure
        return bool(self.result.get("done", False))

    def await_result(self, timeout_ms: int = 1000) -> None:
        """Let virtual time pass until the answer is complete.

        Args:
            timeout_ms: milliseconds of virtual time.

        Raises:
            TimedOutException: there is no answer after that time.
            NotOverCoap: it has no form in CoAP.
            ClientError: CoAP came to no answer.
        """
        self._reactor.run()
        self._reactor.advance(FIRST_STEP)
        end = self._reactor.seconds() + timeout_ms / 1000
        steps = 0
        while not self.is_finished():
            if self._reactor.seconds() >= end and steps > MIN_STEPS:
                raise TimedOutException(f"no answer within {timeout_ms} ms")
            time.sleep(0 if steps < QUICK_STEPS else 0.001)  # Lets other threads run.
            self._reactor.advance(STEP if self._reactor.seconds() < end else 0)
            steps += 1

    def extract_cookies(self, cookies: MutableMapping[str, str]) -> None:
        """Add the cookies that the answer sets.

        Raises:
            NotOverCoap: it came over CoAP, which has none.
        """
        for header in self.headers.getRawHeaders("Set-Cookie") or ():
            name, _, value = header.split(";")[0].partition("=")
            cookies[name] = value

    def _have(self, name: str) -> Any:
        if self.failure is not None:
            raise self.failure
        assert name in self.result, "there is no answer yet"
        return self.result[name]
