# SPDX-License-Identifier: AGPL-3.0-or-later
"""Certificates and keys: load and check them, make self-signed ones, fingerprints (RFC 5280, RFC 7468).

Every `CertificateError` says which file is meant and what to do about it.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import tempfile
from collections.abc import Sequence

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from synapse_lb.txdtls.errors import CertificateError

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_MINIMUM_RSA_BITS = 2048
_VALID_DAYS = 3652
EXPIRES_SOON = datetime.timedelta(days=14)
"""Before its end a certificate is complained about; what renews certificates does so at 30 days."""


@attrs.frozen
class CertifiedKey:
    """A private key with its certificate chain, checked to belong together.

    Attributes:
        chain: The leaf first, then the intermediates as the file had them.
        key: The private key of the leaf.
        warnings: What an admin should know although it can be used (expired, soon to expire, not yet valid).
    """

    chain: tuple[x509.Certificate, ...]
    key: PrivateKey = attrs.field(repr=False)
    warnings: tuple[str, ...] = ()


def load_certified_key(
    certificate_path: str, key_path: str, *, now: datetime.datetime | None = None
) -> CertifiedKey:
    """Read a PEM certificate chain and its PEM private key.

    Args:
        certificate_path: File with the leaf certificate first, then its intermediates.
        key_path: File with the unencrypted private key (EC or RSA of at least 2048 bits).
        now: Time against which validity is checked; the present by default.

    Raises:
        CertificateError: A file cannot be read, is no PEM, holds something else, or the two do not match.
    """
    chain = _load_chain(certificate_path)
    key = _load_key(key_path)
    if _public_bytes(chain[0].public_key()) != _public_bytes(key.public_key()):
        raise CertificateError(
            f"the private key in {key_path} does not belong to the first certificate in {certificate_path}: "
            "give the key it was issued for, and put the server's own certificate first in the file"
        )
    moment = now or datetime.datetime.now(datetime.timezone.utc)
    return CertifiedKey(tuple(chain), key, tuple(_validity_warnings(chain[0], certificate_path, moment)))


def _read(path: str, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise CertificateError(
            f"cannot read the {what} {path}: {error.strerror or error}; check the path and its permissions"
        ) from error


def _load_chain(path: str) -> list[x509.Certificate]:
    pem = _read(path, "certificate")
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise CertificateError(
            f"{path} holds no PEM certificate: it should contain -----BEGIN CERTIFICATE----- blocks, "
            f"the server's own first ({error})"
        ) from error


def _load_key(path: str) -> PrivateKey:
    pem = _read(path, "private key")
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise CertificateError(
            f"the private key {path} is encrypted: store it without a passphrase (openssl pkey -in {path})"
        ) from error
    except Exception as error:  # UnsupportedAlgorithm and ValueError have no common base
        raise CertificateError(
            f"{path} holds no PEM private key: it should contain one -----BEGIN PRIVATE KEY----- block ({error})"
        ) from error
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < _MINIMUM_RSA_BITS:
            raise CertificateError(
                f"the RSA key in {path} has {key.key_size} bits: at least {_MINIMUM_RSA_BITS} are needed"
            )
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey):
        if not isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1)):
            raise CertificateError(f"the key in {path} is on the curve {key.curve.name}: use P-256 or P-384")
        return key
    raise CertificateError(
        f"the private key {path} is neither an EC nor an RSA key: DTLS 1.2 clients need one of these "
        "(EC P-256 is the smallest on the wire)"
    )


def _public_bytes(key: object) -> bytes:
    if not isinstance(key, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey)):
        return b""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _validity_warnings(certificate: x509.Certificate, path: str, moment: datetime.datetime) -> list[str]:
    expires, begins = certificate.not_valid_after_utc, certificate.not_valid_before_utc
    if moment > expires:
        return [
            f"the certificate {path} expired on {expires:%Y-%m-%d}: clients that verify it will refuse it"
        ]
    if moment < begins:
        return [f"the certificate {path} is not valid before {begins:%Y-%m-%d}: check it and the clock"]
    if expires - moment < EXPIRES_SOON:
        return [
            f"the certificate {path} expires on {expires:%Y-%m-%d}: replace it, and send SIGHUP to Synapse"
        ]
    return []


def generate_self_signed(
    names: Sequence[str], *, valid_days: int = _VALID_DAYS, now: datetime.datetime | None = None
) -> tuple[bytes, bytes]:
    """Make a self-signed certificate: EC P-256, ECDSA with SHA-256.

    Args:
        names: DNS names and IP addresses it is for; the first is its common name.
        valid_days: Days it is valid.
        now: Time an hour before which it becomes valid; the present by default.

    Returns:
        Certificate and private key (PKCS #8, unencrypted), both PEM.

    Raises:
        CertificateError: No name was given, or one is neither a DNS name nor an IP address.
    """
    if not names:
        raise CertificateError("a certificate needs at least one name")
    general_names = [_general_name(name) for name in names]
    key = ec.generate_private_key(ec.SECP256R1())
    begins = (now or datetime.datetime.now(datetime.timezone.utc)) - datetime.timedelta(hours=1)
    # RFC 5280 limits a common name to 64 characters; names are matched in the SAN anyway.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + datetime.timedelta(days=valid_days))
        .add_extension(x509.SubjectAlternativeName(general_names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), key_pem


def _general_name(name: str) -> x509.GeneralName:
    if not name:
        raise CertificateError("a certificate cannot be made for an empty name")
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name.strip("[]")))
    try:
        return x509.DNSName(name.encode("idna").decode("ascii"))
    except ValueError as error:  # UnicodeError is one
        raise CertificateError(f"{name!r} is neither a DNS name nor an IP address") from error


def write_private_file(path: str, content: bytes) -> None:
    """Write a file that only its owner can read (mode 0600), whole or not at all.

    Raises:
        CertificateError: It cannot be written.
    """
    directory = os.path.dirname(os.path.abspath(path))
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", dir=directory)
        try:
            with os.fdopen(descriptor, "wb") as file:  # mkstemp makes it with mode 0600
                file.write(content)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise CertificateError(
            f"cannot write {path}: {error.strerror or error}; check that the folder exists and is writable"
        ) from error


def sha256_fingerprint(pem: bytes) -> str:
    """SHA-256 fingerprint of the first certificate in a PEM text, as `openssl x509 -fingerprint` prints it.

    Raises:
        CertificateError: There is no certificate in it.
    """
    try:
        certificate = x509.load_pem_x509_certificates(pem)[0]
    except ValueError as error:
        raise CertificateError(f"no PEM certificate: {error}") from error
    return fingerprint_of(certificate)


def fingerprint_of(certificate: x509.Certificate) -> str:
    """SHA-256 fingerprint of a certificate: upper-case hexadecimal bytes, separated by colons."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def normalise_fingerprint(text: str) -> str:
    """Bring a SHA-256 fingerprint into the form of `fingerprint_of`; colons, spaces and case do not matter.

    Raises:
        CertificateError: It is not 32 bytes in hexadecimal.
    """
    digits = text.replace(":", "").replace(" ", "").lower()
    try:
        digest = bytes.fromhex(digits)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise CertificateError(
            f"{text!r} is no SHA-256 fingerprint: 64 hexadecimal digits are expected "
            "(openssl x509 -noout -fingerprint -sha256 -in certificate.pem)"
        )
    return digest.hex(":").upper()
