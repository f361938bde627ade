# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which certificate a listener uses, and what is said when it cannot."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, cast

from synapse.module_api.errors import ConfigError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.homeserver.certificates import DAY, CertificateSource, ExpiryWatch
from synapse_lb.homeserver.config import parse_listener
from synapse_lb.homeserver.hooks import Homeserver
from synapse_lb.txdtls.certificates import generate_self_signed, sha256_fingerprint


class FakeHomeserver:
    """Has a name, a folder and, if so said, a certificate of its own."""

    def __init__(self, folder: str | None, certificate: str | None = None, key: str | None = None) -> None:
        self.server_name = "example.org:8448"
        self.signing_key_folder = folder
        self.certificate_files = (certificate, key)


class CertificateTests(SynchronousTestCase):
    """`CertificateSource`."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()

    def pair(self, name: str) -> tuple[str, str, str]:
        """Write a certificate and its key; returns the paths and the fingerprint."""
        certificate, key = generate_self_signed([name])
        paths = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        paths[0].write_bytes(certificate)
        paths[1].write_bytes(key)
        return str(paths[0]), str(paths[1]), sha256_fingerprint(certificate)

    def source(self, homeserver: FakeHomeserver, **options: Any) -> CertificateSource:
        """The source for a listener with these options."""
        return CertificateSource(cast(Homeserver, homeserver), parse_listener(0, {"port": 1, **options}))

    def refused(self, homeserver: FakeHomeserver, *texts: str, **options: Any) -> None:
        """Loading must fail with a text that has all of these in it."""
        with self.assertRaises(ConfigError) as caught:
            self.source(homeserver, **options).load()
        for text in texts:
            self.assertIn(text, caught.exception.msg)

    def test_the_listeners_own_comes_first(self) -> None:
        certificate, key, fingerprint = self.pair("listener")
        homeserver = FakeHomeserver(str(self.folder), *self.pair("homeserver")[:2])
        source = self.source(homeserver, tls_certificate_path=certificate, tls_private_key_path=key)
        self.assertEqual(source.load().fingerprint, fingerprint)

    def test_then_the_homeservers(self) -> None:
        certificate, key, fingerprint = self.pair("homeserver")
        homeserver = FakeHomeserver(str(self.folder), certificate, key)
        self.assertEqual(self.source(homeserver).load().fingerprint, fingerprint)

    def test_then_one_that_is_made_once(self) -> None:
        homeserver = FakeHomeserver(str(self.folder))
        first = self.source(homeserver)
        fingerprint = first.load().fingerprint
        self.assertEqual(first.certificate_path, str(self.folder / "example.org_8448.lowbandwidth.crt"))
        self.assertEqual(stat.S_IMODE(os.stat(first.key_path).st_mode), 0o600)
        self.assertEqual(self.source(homeserver).load().fingerprint, fingerprint)
        self.assertEqual(len(list(self.folder.iterdir())), 2)

    def test_half_of_it_is_no_reason_to_make_another(self) -> None:
        homeserver = FakeHomeserver(str(self.folder))
        os.unlink(self.source(homeserver).key_path)
        self.refused(homeserver, "lowbandwidth.key", "is not: put it back, or remove the other")

    def test_no_folder(self) -> None:
        self.refused(
            FakeHomeserver(None), "set tls_certificate_path and tls_private_key_path of the listener"
        )
        missing = str(self.folder / "missing")
        self.refused(
            FakeHomeserver(missing), "cannot make a certificate in", missing, "set tls_certificate_path"
        )

    def test_unreadable(self) -> None:
        certificate, _, _ = self.pair("listener")
        missing = str(self.folder / "missing.key")
        self.refused(
            FakeHomeserver(None),
            f"cannot read the private key {missing}: No such file or directory",
            "the listener's tls_certificate_path",
            tls_certificate_path=certificate,
            tls_private_key_path=missing,
        )

    def test_no_certificate_at_all(self) -> None:
        _, key, _ = self.pair("listener")
        self.refused(
            FakeHomeserver(None),
            "holds no PEM certificate",
            tls_certificate_path=key,
            tls_private_key_path=key,
        )

    def test_key_of_another(self) -> None:
        certificate, _, _ = self.pair("homeserver")
        _, key, _ = self.pair("other")
        self.refused(
            FakeHomeserver(None, certificate, key),
            "does not belong to the first certificate",
            "the homeserver's tls_certificate_path",
        )


class ExpiryWatchTests(SynchronousTestCase):
    """The daily look at a certificate."""

    def test_it_warns_daily_from_two_weeks_before_the_end(self) -> None:
        clock = Clock()
        expires = [20.5 * DAY]
        watch = ExpiryWatch(clock, lambda: expires[0], "The certificate x.crt", clock.seconds)
        watch.start()
        with self.assertLogs("synapse_lb.homeserver.certificates", "WARNING") as logged:
            for _ in range(22):
                clock.advance(DAY)
            expires[0] = 100 * DAY  # It was replaced.
            clock.advance(DAY)
        self.assertEqual(len(logged.output), 16)
        self.assertIn("The certificate x.crt expires in 14 days: replace it", logged.output[0])
        self.assertIn("has expired", logged.output[-1])
        watch.stop()
        watch.stop()
        self.assertEqual(clock.getDelayedCalls(), [])
