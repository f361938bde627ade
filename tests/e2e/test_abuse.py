# SPDX-License-Identifier: AGPL-3.0-or-later
"""What Synapse limits over HTTP it limits over CoAP: by the client's own address."""

from __future__ import annotations

from synapse_lb.client.client import LowBandwidthClient
from synapse_lb.txdtls.context import ClientVerification
from tests.e2e.harness import CLIENT, SynapseTestCase


class LoginFloodTests(SynapseTestCase):
    kind = "few-logins"

    async def log_in(self, client: LowBandwidthClient, name: str) -> int:
        """Try a wrong password: the status."""
        body = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": name},
            "password": "wrong",
        }
        return (await client.request("POST", f"{CLIENT}/login", json=body, timeout=30)).status

    async def test_it_hits_rc_login_of_its_own_address_and_nobody_else_s(self) -> None:
        relay, anyone = self.relay(interface="127.0.0.78"), ClientVerification.none()
        near, far = self.client(), self.client(relay.port, host="127.0.0.78", verification=anyone)
        statuses = [await self.log_in(near, f"nobody{number}") for number in range(8)]
        self.assertEqual(statuses, [403] * 3 + [429] * 5)
        self.assertEqual(await self.log_in(far, "nobody99"), 403)
