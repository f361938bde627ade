# SPDX-License-Identifier: AGPL-3.0-or-later
"""Synapse in the process of the test, asked over CoAP: no socket, no file, no real time (docs/testing-with-coap.md).

    from synapse_lb.testing.synapse import HomeserverTestCase

    class MyModuleTests(HomeserverTestCase):
        def test_it(self) -> None:
            token = self.register_and_login("alice")
            channel = self.make_request("GET", "/_matrix/client/v3/account/whoami", access_token=token)
            self.assertEqual(channel.code, 200, channel.result)

`make_request` has the parameters of the function of that name in Synapse's own tests, and the same kind of result.
"""

from __future__ import annotations

from synapse_lb.testing.synapse.case import HomeserverTestCase, override_config
from synapse_lb.testing.synapse.channel import FakeChannel
from synapse_lb.testing.synapse.errors import NotOverCoap, Reason, TimedOutException
from synapse_lb.testing.synapse.homeserver import (
    ThreadlessReactor,
    default_config,
    make_homeserver,
    make_site,
)
from synapse_lb.testing.synapse.requests import Requester, Tally, make_request

__all__ = [
    "FakeChannel",
    "HomeserverTestCase",
    "NotOverCoap",
    "Reason",
    "Requester",
    "Tally",
    "ThreadlessReactor",
    "TimedOutException",
    "default_config",
    "make_homeserver",
    "make_request",
    "make_site",
    "override_config",
]
