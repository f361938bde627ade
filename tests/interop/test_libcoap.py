# SPDX-License-Identifier: AGPL-3.0-or-later
"""Clients that this project did not write: libcoap's `coap-client-openssl` and `coap-client-gnutls`, and `openssl`.

They come with Debian's packages libcoap3-bin and openssl. Each talks to a real Synapse; where one is not
installed, its tests are skipped and say so.
"""

from __future__ import annotations

import shutil
import subprocess
import unittest

from synapse_lb.testing.throwaway import synapse_is_installed
from tests.interop import cases


class OpensslBuildTests(cases.LibcoapTestCase):
    program = "coap-client-openssl"


class GnutlsBuildTests(cases.LibcoapTestCase):
    program = "coap-client-gnutls"


@unittest.skipUnless(synapse_is_installed(), "matrix-synapse is not installed")
@unittest.skipUnless(shutil.which("openssl"), "openssl is not installed")
class OpensslHandshakeTests(cases.InteropTestCase):
    """`openssl s_client -dtls1_2` completes a handshake."""

    def handshake(self, *options: str) -> str:
        finished = subprocess.run(
            [
                *("openssl", "s_client", "-dtls1_2", "-verify_return_error"),
                *("-connect", f"{self.homeserver.host}:{self.homeserver.ports.lowbandwidth}"),
                *("-CAfile", str(self.homeserver.certificate_path), "-verify_hostname", "localhost"),
                *options,
            ],
            input="",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual(finished.returncode, 0, finished.stdout + finished.stderr)
        self.assertIn("Verify return code: 0 (ok)", finished.stdout)
        return finished.stdout

    def test_a_handshake(self) -> None:
        text = self.handshake()
        self.assertIn("DTLSv1.2", text)
        self.assertRegex(text, r"Cipher is ECDHE-ECDSA-(CHACHA20-POLY1305|AES128-GCM-SHA256)")

    def test_what_deployed_clients_offer(self) -> None:
        """AES-128-GCM over P-256 and nothing else."""
        text = self.handshake("-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256", "-groups", "P-256")
        self.assertIn("Cipher is ECDHE-ECDSA-AES128-GCM-SHA256", text)
        self.assertRegex(text, r"Server Temp Key: ECDH, (prime256v1|P-256|secp256r1)")

    def test_old_versions_are_refused(self) -> None:
        finished = subprocess.run(
            [
                *("openssl", "s_client", "-dtls1", "-cipher", "ALL:@SECLEVEL=0"),
                *("-connect", f"{self.homeserver.host}:{self.homeserver.ports.lowbandwidth}"),
            ],
            input="",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertNotEqual(finished.returncode, 0)
        self.assertIn("Cipher is (NONE)", finished.stdout)
