# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which certificate a listener uses: its own, the homeserver's, or a self-signed one made for it once."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Final

from synapse.module_api.errors import ConfigError

from synapse_lb.coaps.clock import Clock, Timer
from synapse_lb.homeserver import hooks
from synapse_lb.homeserver.config import LowBandwidthListenerConfig
from synapse_lb.txdtls.certificates import EXPIRES_SOON, generate_self_signed, write_private_file
from synapse_lb.txdtls.context import ServerContext, make_server_context
from synapse_lb.txdtls.errors import DTLSError

logger = logging.getLogger(__name__)

DAY: Final = 86400.0
"""s between two looks at a certificate."""

_ADVICE: Final = "set tls_certificate_path and tls_private_key_path of the listener"


class CertificateSource:
    """The certificate of one listener, which can be loaded again (SIGHUP).

    Args:
        homeserver: the homeserver.
        listener: the listener.

    Raises:
        ConfigError: there is no certificate and none can be made.
    """

    def __init__(self, homeserver: hooks.Homeserver, listener: LowBandwidthListenerConfig) -> None:
        self._option = "the listener's tls_certificate_path and tls_private_key_path"
        certificate, key = listener.certificate_path, listener.key_path
        if certificate is None or key is None:
            self._option = "the homeserver's tls_certificate_path and tls_private_key_path"
            certificate, key = homeserver.certificate_files
        if certificate is None or key is None:
            self._option = "the generated certificate"
            certificate, key = _generated(homeserver)
        self.certificate_path: Final[str] = certificate
        self.key_path: Final[str] = key

    def load(self) -> ServerContext:
        """Read certificate and key.

        Raises:
            ConfigError: they cannot be read, or do not fit; the text says what to mend.
        """
        try:
            context = make_server_context(self.certificate_path, self.key_path)
        except DTLSError as error:
            raise ConfigError(f"{error} (from {self._option})", ("listeners",)) from None
        for warning in context.warnings:
            logger.warning("Low-bandwidth listener: %s", warning)
        return context


class ExpiryWatch:
    """Warns once a day of a certificate that expires soon, or has expired.

    Args:
        clock: the reactor.
        expires: tells when it expires, in seconds since 1970.
        name: what to call it in the log.
        now: seconds since 1970.
    """

    def __init__(
        self, clock: Clock, expires: Callable[[], float], name: str, now: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._expires = expires
        self._name = name
        self._now = now
        self._timer: Timer | None = None

    def start(self) -> None:
        """Look in a day: what is wrong today was said when it was loaded."""
        self._timer = self._clock.callLater(DAY, self._look)

    def stop(self) -> None:
        """Look no more. Idempotent."""
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _look(self) -> None:
        left = self._expires() - self._now()
        if left < EXPIRES_SOON.total_seconds():
            when = "has expired" if left < 0 else f"expires in {left / DAY:.0f} days"
            logger.warning("%s %s: replace it, and send SIGHUP to Synapse", self._name, when)
        self.start()


def _generated(homeserver: hooks.Homeserver) -> tuple[str, str]:
    """Return the paths of the certificate that is made once and used from then on."""
    folder = homeserver.signing_key_folder
    if folder is None:
        raise ConfigError(f"there is no folder for a generated certificate: {_ADVICE}", ("listeners",))
    # A server name may hold a port and an IPv6 address.
    name = homeserver.server_name.replace(":", "_").replace("/", "_")
    certificate = os.path.join(folder, f"{name}.lowbandwidth.crt")
    key = os.path.join(folder, f"{name}.lowbandwidth.key")
    try:
        with _locked(folder):
            if _need(certificate, key):
                _generate(homeserver.server_name, certificate, key)
    except (OSError, DTLSError) as error:
        raise ConfigError(
            f"cannot make a certificate in {folder}: {error}; {_ADVICE}", ("listeners",)
        ) from None
    return certificate, key


def _need(certificate: str, key: str) -> bool:
    there = [path for path in (certificate, key) if os.path.exists(path)]
    if len(there) == 1:
        missing = key if there == [certificate] else certificate
        raise ConfigError(
            f"{there[0]} is there, but {missing}, which belongs to it, is not: "
            "put it back, or remove the other for both to be made anew",
            ("listeners",),
        )
    return not there


def _generate(server_name: str, certificate: str, key: str) -> None:
    host = (
        server_name[: server_name.index("]") + 1]
        if server_name.startswith("[")
        else server_name.split(":")[0]
    )
    certificate_pem, key_pem = generate_self_signed([host])
    write_private_file(key, key_pem)
    write_private_file(certificate, certificate_pem)
    os.chmod(certificate, 0o644)
    logger.info("Made a self-signed certificate for the low-bandwidth listener: %s", certificate)


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Keep other processes of this homeserver from making it at the same time."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
