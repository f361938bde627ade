# SPDX-License-Identifier: AGPL-3.0-or-later
"""Starting and stopping: settings that Synapse refuses, certificates, IPv6, an orderly end."""

from __future__ import annotations

import shutil
import socket
import unittest
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.client.client import LowBandwidthClient
from synapse_lb.client.errors import CertificateError as UntrustedCertificate
from synapse_lb.testing.throwaway import HomeserverFailed, ThrowawayHomeserver, synapse_is_installed
from synapse_lb.txdtls.certificates import generate_self_signed, sha256_fingerprint
from synapse_lb.txdtls.context import ClientVerification
from tests.e2e.harness import CLIENT, SynapseTestCase, reactor


@unittest.skipUnless(synapse_is_installed(), "matrix-synapse is not installed")
class RefusedSettingsTests(SynchronousTestCase):
    """Each stops Synapse at its start, with an error that says what to mend and without a traceback."""

    def refused(self, folder: Path | None = None, **arguments: Any) -> str:
        homeserver = ThrowawayHomeserver(folder=folder, **arguments)
        self.addCleanup(homeserver.stop)
        failure = self.assertRaises(HomeserverFailed, homeserver.start)
        self.assertEqual(failure.exit_status, 1, failure)
        text = homeserver.output_text()
        self.assertNotIn("Traceback", text)
        return str(text)

    def test_an_unknown_key(self) -> None:
        text = self.refused(lowbandwidth_options={"colour": "green"})
        self.assertIn("colour", text)
        self.assertIn("listeners", text)

    def test_an_unknown_key_of_a_section(self) -> None:
        self.assertIn(
            "max_asociations", self.refused(lowbandwidth_options={"limits": {"max_asociations": 5}})
        )

    def test_an_unknown_key_of_the_module(self) -> None:
        self.assertIn("metric", self.refused(module_config={"metric": True}))

    def test_a_value_of_the_wrong_type(self) -> None:
        self.assertIn("mtu", self.refused(lowbandwidth_options={"mtu": "large"}))

    def test_no_port(self) -> None:
        self.assertIn("port", self.refused(lowbandwidth_options={"port": None}))

    def test_a_port_in_use(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
            text = self.refused(lowbandwidth_options={"port": port})
        self.assertIn(str(port), text)
        self.assertIn("in use", text)

    def test_a_key_that_cannot_be_read(self) -> None:
        folder = Path(self.mktemp()).resolve()
        folder.mkdir()
        certificate, _ = generate_self_signed(["localhost"])
        (folder / "other.crt").write_bytes(certificate)
        paths = {
            "tls_certificate_path": str(folder / "other.crt"),
            "tls_private_key_path": str(folder / "no-such.key"),
        }
        self.assertIn("no-such.key", self.refused(lowbandwidth_options=paths))

    def test_a_certificate_that_is_none(self) -> None:
        folder = Path(self.mktemp()).resolve()
        folder.mkdir()
        (folder / "bad.crt").write_text("no certificate\n")
        paths = {
            "tls_certificate_path": str(folder / "bad.crt"),
            "tls_private_key_path": str(folder / "bad.crt"),
        }
        self.assertIn("bad.crt", self.refused(lowbandwidth_options=paths))

    def test_a_key_that_does_not_match(self) -> None:
        folder = Path(self.mktemp()).resolve()
        folder.mkdir()
        certificate, _ = generate_self_signed(["localhost"])
        _, key = generate_self_signed(["localhost"])
        (folder / "one.crt").write_bytes(certificate)
        (folder / "other.key").write_bytes(key)
        paths = {
            "tls_certificate_path": str(folder / "one.crt"),
            "tls_private_key_path": str(folder / "other.key"),
        }
        text = self.refused(lowbandwidth_options=paths)
        self.assertIn("one.crt", text)
        self.assertIn("other.key", text)

    def test_an_address_that_is_none(self) -> None:
        self.assertIn("bind_addresses", self.refused(lowbandwidth_options={"bind_addresses": ["localhost"]}))


class OwnHomeserverTestCase(SynapseTestCase):
    """A test with a homeserver of its own."""

    def setUp(self) -> None:
        self.log_start = self.errors_before = 0

    def start(self, **arguments: Any) -> ThrowawayHomeserver:
        self.homeserver = ThrowawayHomeserver(**arguments)
        self.addCleanup(self.check_and_stop)
        self.homeserver.start()
        return self.homeserver

    def check_and_stop(self) -> None:
        try:
            self.assertEqual(self.homeserver.error_lines(self.allowed_errors), [])
        finally:
            self.homeserver.stop()

    def tearDown(self) -> None:
        """The log has been checked when the homeserver was stopped."""


class EndTests(OwnHomeserverTestCase):
    async def test_an_orderly_end_says_goodbye_and_leaves_a_clean_log(self) -> None:
        homeserver = self.start()
        peers = [await self.raw() for _ in range(5)]
        client = self.client()
        await self.ask(client, "GET", "/_matrix/client/versions")
        self.assertEqual(homeserver.halt(), 0)
        for peer in peers:
            await peer.until_lost()
            self.assertEqual(type(peer.lost).__name__, "PeerClosed")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", homeserver.ports.lowbandwidth))
        homeserver.start()
        await self.ask(self.client(), "GET", "/_matrix/client/versions")

    async def test_data_survive(self) -> None:
        homeserver = self.start()
        user = self.user()
        created = await self.ask(self.client(), "POST", f"{CLIENT}/createRoom", {}, token=user.token)
        homeserver.restart()
        joined = await self.ask(self.client(), "GET", f"{CLIENT}/joined_rooms", token=user.token)
        self.assertEqual(joined, {"joined_rooms": [created["room_id"]]})


class CertificateTests(OwnHomeserverTestCase):
    def pinned(self, fingerprint: str) -> LowBandwidthClient:
        return self.client(verification=ClientVerification.pinned(fingerprint))

    async def test_the_homeserver_own_certificate_is_the_default(self) -> None:
        homeserver = self.start()
        fingerprint = sha256_fingerprint(homeserver.certificate_path.read_bytes())
        await self.ask(self.pinned(fingerprint), "GET", "/_matrix/client/versions")

    async def test_a_new_certificate_is_taken_on_sighup(self) -> None:
        homeserver = self.start()
        old = sha256_fingerprint(homeserver.certificate_path.read_bytes())
        veteran = self.pinned(old)
        await self.ask(veteran, "GET", "/_matrix/client/versions")
        certificate, key = generate_self_signed(["localhost", "127.0.0.1"])
        (homeserver.folder / "localhost.key").write_bytes(key)
        homeserver.certificate_path.write_bytes(certificate)
        homeserver.sighup()
        new = sha256_fingerprint(certificate)
        await self.until(lambda: new in homeserver.log_text(), "the new fingerprint in the log")
        await self.ask(self.pinned(new), "GET", "/_matrix/client/versions")
        # Who was connected stays connected; who insists on the old certificate cannot connect any more.
        await self.ask(veteran, "GET", "/_matrix/client/versions")
        refused = self.pinned(old).request("GET", "/_matrix/client/versions")
        await self.assertFailure(refused, UntrustedCertificate)

    async def test_a_certificate_that_does_not_load_changes_nothing(self) -> None:
        folder = Path(self.mktemp()).resolve()
        folder.mkdir()
        certificate, key = generate_self_signed(["localhost", "127.0.0.1"])
        (folder / "own.crt").write_bytes(certificate)
        (folder / "own.key").write_bytes(key)
        paths = {
            "tls_certificate_path": str(folder / "own.crt"),
            "tls_private_key_path": str(folder / "own.key"),
        }
        homeserver = self.start(lowbandwidth_options=paths)
        other, _ = generate_self_signed(["localhost"])
        (folder / "own.crt").write_bytes(other)  # its key is not the one that is there
        self.allowed_errors = ("keeps its certificate",)
        homeserver.sighup()
        await self.until(lambda: "keeps its certificate" in homeserver.log_text(), "the complaint in the log")
        await self.ask(self.pinned(sha256_fingerprint(certificate)), "GET", "/_matrix/client/versions")

    async def test_without_any_certificate_one_is_made_and_its_fingerprint_logged(self) -> None:
        folder = Path(self.mktemp()).resolve()
        self.addCleanup(shutil.rmtree, folder, True)
        # Without a certificate there is no HTTPS listener either: Synapse's own is left out.
        homeserver = self.start(folder=folder, https=False)
        log = homeserver.log_text()
        certificates = list(folder.glob("*.crt"))
        self.assertEqual(len(certificates), 1, list(folder.iterdir()))
        fingerprint = sha256_fingerprint(certificates[0].read_bytes())
        self.assertIn(fingerprint, log)
        await self.ask(self.pinned(fingerprint), "GET", "/_matrix/client/versions")
        homeserver.restart()
        await self.ask(self.pinned(fingerprint), "GET", "/_matrix/client/versions")


class AddressTests(OwnHomeserverTestCase):
    async def test_ipv6(self) -> None:
        if not has_ipv6():
            raise unittest.SkipTest("this machine has no ::1")
        homeserver = self.start(address="::1")
        self.assertIn("[::1]", homeserver.coaps_url)
        user = self.user()
        body = await self.ask(self.client(), "GET", f"{CLIENT}/account/whoami", token=user.token)
        self.assertEqual(body["user_id"], user.user_id)
        await self.until(lambda: self.logged_requests("whoami"), "an access-log line")
        self.assertRegex(self.logged_requests("whoami")[0], r" - ::1 - ")

    async def test_ipv4_and_ipv6_on_one_port(self) -> None:
        if not has_ipv6():
            raise unittest.SkipTest("this machine has no ::1")
        homeserver = self.start(lowbandwidth_options={"bind_addresses": ["127.0.0.1", "::1"]})
        for host in ("127.0.0.1", "[::1]"):
            client = LowBandwidthClient(
                reactor,
                f"coaps://{host}:{homeserver.ports.lowbandwidth}",
                verification=ClientVerification.ca_file(str(homeserver.certificate_path)),
            )
            self.addCleanup(client.close)
            await self.ask(client, "GET", "/_matrix/client/versions")


def has_ipv6() -> bool:
    """Whether the loopback interface has IPv6."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
