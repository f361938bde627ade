# SPDX-License-Identifier: AGPL-3.0-or-later
"""Certificates: every mistake of an admin has its own message; self-signed ones; fingerprints."""

from __future__ import annotations

import datetime
import ipaddress
import os
import stat

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.txdtls.certificates import (
    PrivateKey,
    generate_self_signed,
    load_certified_key,
    normalise_fingerprint,
    sha256_fingerprint,
    write_private_file,
)
from synapse_lb.txdtls.context import ClientVerification, make_client_context, make_server_context
from synapse_lb.txdtls.errors import CertificateError
from tests.txdtls.support import write_certificate, write_pair

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.timezone.utc)


def pem_of(key: PrivateKey | ed25519.Ed25519PrivateKey, password: bytes | None = None) -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


class LoadTests(SynchronousTestCase):
    """`load_certified_key` says what to mend."""

    def setUp(self) -> None:
        self.certificate, self.key = generate_self_signed(["localhost"], now=NOW)

    def problem(self, certificate: bytes, key: bytes) -> str:
        paths = write_pair(self.mktemp(), certificate, key)
        return str(self.assertRaises(CertificateError, load_certified_key, *paths, now=NOW))

    def test_a_good_pair(self) -> None:
        loaded = load_certified_key(*write_pair(self.mktemp(), self.certificate, self.key), now=NOW)
        self.assertEqual((len(loaded.chain), loaded.warnings), (1, ()))
        self.assertNotIn("PrivateKey", repr(loaded))

    def test_a_chain_keeps_its_order(self) -> None:
        other, _ = generate_self_signed(["issuer"], now=NOW)
        paths = write_pair(self.mktemp(), self.certificate + other, self.key)
        loaded = load_certified_key(*paths, now=NOW)
        self.assertEqual([c.subject.rfc4514_string() for c in loaded.chain], ["CN=localhost", "CN=issuer"])
        self.assertEqual(len(make_server_context(*paths).fingerprint), 95)

    def test_a_chain_in_the_wrong_order_does_not_match_its_key(self) -> None:
        other, _ = generate_self_signed(["issuer"], now=NOW)
        self.assertIn("own certificate first", self.problem(other + self.certificate, self.key))

    def test_missing_files(self) -> None:
        good, key = write_pair(self.mktemp(), self.certificate, self.key)
        for paths in ((good + ".no", key), (good, key + ".no")):
            error = str(self.assertRaises(CertificateError, load_certified_key, *paths))
            self.assertIn("No such file", error)
            self.assertIn(".no", error)
        self.assertIn("cannot read", str(self.assertRaises(CertificateError, load_certified_key, "/", key)))

    def test_what_is_no_pem(self) -> None:
        self.assertIn("holds no PEM certificate", self.problem(b"\x30\x82junk", self.key))
        self.assertIn("holds no PEM certificate", self.problem(self.key, self.key))
        self.assertIn("holds no PEM certificate", self.problem(b"", self.key))
        self.assertIn("holds no PEM private key", self.problem(self.certificate, b"junk"))
        self.assertIn("holds no PEM private key", self.problem(self.certificate, self.certificate))

    def test_a_key_of_another_certificate(self) -> None:
        _, other = generate_self_signed(["localhost"], now=NOW)
        self.assertIn("does not belong", self.problem(self.certificate, other))

    def test_an_encrypted_key(self) -> None:
        encrypted = pem_of(ec.generate_private_key(ec.SECP256R1()), b"secret")
        self.assertIn("encrypted", self.problem(self.certificate, encrypted))

    def test_keys_that_no_client_could_use(self) -> None:
        self.assertIn("neither", self.problem(self.certificate, pem_of(ed25519.Ed25519PrivateKey.generate())))
        short = rsa.generate_private_key(65537, 1024)
        self.assertIn("1024 bits", self.problem(self.certificate, pem_of(short)))
        curve = pem_of(ec.generate_private_key(ec.SECP521R1()))
        self.assertIn("secp521r1", self.problem(self.certificate, curve))

    def test_an_expired_one_is_only_a_warning(self) -> None:
        paths = write_pair(self.mktemp(), self.certificate, self.key)
        later = load_certified_key(*paths, now=NOW + datetime.timedelta(days=5000))
        self.assertIn("expired on 2039-12-31", later.warnings[0])
        earlier = load_certified_key(*paths, now=NOW - datetime.timedelta(days=2))
        self.assertIn("not valid before", earlier.warnings[0])
        end = datetime.datetime(2039, 12, 31, tzinfo=datetime.timezone.utc)
        soon = load_certified_key(*paths, now=end - datetime.timedelta(days=12))
        self.assertIn("expires on 2039-12-31", soon.warnings[0])
        self.assertEqual(load_certified_key(*paths, now=end - datetime.timedelta(days=16)).warnings, ())

    def test_the_context_carries_warnings_and_fingerprint(self) -> None:
        context = make_server_context(*write_pair(self.mktemp(), self.certificate, self.key))
        self.assertEqual(context.fingerprint, sha256_fingerprint(self.certificate))
        self.assertEqual(len(context.warnings), 1)  # not valid before 2030

    def test_rsa_and_p384_are_taken(self) -> None:
        for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
            self.assertEqual(make_server_context(*write_certificate(self.mktemp(), key)).warnings, ())


class GenerateTests(SynchronousTestCase):
    """Self-signed certificates."""

    def test_names_key_and_validity(self) -> None:
        pem, _ = generate_self_signed(
            ["lb.example.org", "192.0.2.1", "[2001:db8::1]", "bücher.example"], now=NOW
        )
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual(names.get_values_for_type(x509.DNSName), ["lb.example.org", "xn--bcher-kva.example"])
        self.assertEqual(
            names.get_values_for_type(x509.IPAddress),
            [ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("2001:db8::1")],
        )
        public = certificate.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        self.assertEqual(public.curve.name, "secp256r1")
        assert certificate.signature_hash_algorithm is not None
        self.assertEqual(certificate.signature_hash_algorithm.name, "sha256")
        self.assertEqual(certificate.not_valid_after_utc.year, 2039)
        self.assertLess(certificate.not_valid_before_utc, NOW)

    def test_a_long_name_is_no_common_name_but_still_a_name(self) -> None:
        name = ".".join(["label"] * 30)
        certificate = x509.load_pem_x509_certificate(generate_self_signed([name])[0])
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual(names.get_values_for_type(x509.DNSName), [name])

    def test_names_that_are_none(self) -> None:
        for names in ([], [""], ["a" * 64 + ".example"], ["spaces are.no..name"]):
            self.assertRaises(CertificateError, generate_self_signed, names)


class FileTests(SynchronousTestCase):
    """`write_private_file`."""

    def test_only_the_owner_can_read_it(self) -> None:
        folder = self.mktemp()
        os.makedirs(folder)
        path = os.path.join(folder, "server.key")
        with open(path, "wb") as file:
            file.write(b"old")
        os.chmod(path, 0o644)
        write_private_file(path, b"new")
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        with open(path, "rb") as file:
            self.assertEqual(file.read(), b"new")
        self.assertEqual(os.listdir(folder), ["server.key"])

    def test_a_missing_folder(self) -> None:
        error = self.assertRaises(CertificateError, write_private_file, self.mktemp() + "/no/file", b"")
        self.assertIn("cannot write", str(error))


class FingerprintTests(SynchronousTestCase):
    """Fingerprints as `openssl x509 -fingerprint -sha256` prints them."""

    def test_any_way_of_writing_it(self) -> None:
        shown = sha256_fingerprint(generate_self_signed(["localhost"])[0])
        self.assertEqual(len(shown), 95)
        for text in (shown, shown.lower(), shown.replace(":", ""), shown.replace(":", " ")):
            self.assertEqual(normalise_fingerprint(text), shown)

    def test_what_is_none(self) -> None:
        for text in ("", "AB:CD", "x" * 64, "00" * 33):
            self.assertRaises(CertificateError, ClientVerification.pinned, text)
        self.assertRaises(CertificateError, sha256_fingerprint, b"junk")

    def test_authorities_that_cannot_be_loaded(self) -> None:
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(b"junk")
        for bad in (path, path + ".no"):
            error = self.assertRaises(CertificateError, make_client_context, ClientVerification.ca_file(bad))
            self.assertIn(bad, str(error))
