# SPDX-License-Identifier: AGPL-3.0-or-later
"""The files of a throw-away homeserver: ``homeserver.yaml``, log configuration, signing key, certificate.

The configuration is written as JSON, which every YAML reader reads, so that no YAML library is needed.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
from pathlib import Path
from typing import Any

import attrs

from synapse_lb.txdtls.certificates import generate_self_signed

SERVER_NAME = "localhost"
CONFIG = "homeserver.yaml"
CERTIFICATE = "localhost.crt"
PRIVATE_KEY = "localhost.key"
SIGNING_KEY = "localhost.signing.key"
LOG_CONFIG = "log.yaml"
LOG = "homeserver.log"
OUTPUT = "output.txt"

_PLENTY = {"per_second": 100_000, "burst_count": 100_000}

NO_RATE_LIMITS: dict[str, Any] = {
    "rc_message": _PLENTY,
    "rc_registration": _PLENTY,
    "rc_registration_token_validity": _PLENTY,
    "rc_login": {"address": _PLENTY, "account": _PLENTY, "failed_attempts": _PLENTY},
    "rc_admin_redaction": _PLENTY,
    "rc_joins": {"local": _PLENTY, "remote": _PLENTY},
    "rc_joins_per_room": _PLENTY,
    "rc_3pid_validation": _PLENTY,
    "rc_invites": {"per_room": _PLENTY, "per_user": _PLENTY, "per_issuer": _PLENTY},
    "rc_third_party_invite": _PLENTY,
    "rc_room_creation": _PLENTY,
    "rc_reports": _PLENTY,
    "rc_presence": {"per_user": _PLENTY},
    "rc_user_directory": _PLENTY,
}
"""Limits that nobody reaches; older versions of Synapse ignore those that they do not know."""


@attrs.define
class Settings:
    """What a `ThrowawayHomeserver` was asked for; its arguments explain the fields."""

    lowbandwidth: bool
    lowbandwidth_options: dict[str, Any]
    module_config: dict[str, Any]
    rate_limits: bool
    presence: bool
    log_level: str
    address: str
    https: bool
    http_resources: list[str]
    extra_config: dict[str, Any]
    compress: bool = False
    certificate: tuple[bytes, bytes] | None = attrs.field(default=None, repr=False)


def write(folder: Path, settings: Settings, *, http: int, https: int, lowbandwidth: int) -> None:
    """Write all files into `folder`; keys and certificate only if they are not there yet."""
    _write_keys(folder, settings)
    (folder / LOG_CONFIG).write_text(json.dumps(log_config(folder / LOG, settings.log_level), indent=2))
    config = homeserver_config(folder, settings, http=http, https=https, lowbandwidth=lowbandwidth)
    (folder / CONFIG).write_text(json.dumps(config, indent=2))


def homeserver_config(
    folder: Path, settings: Settings, *, http: int, https: int, lowbandwidth: int
) -> dict[str, Any]:
    """The top level of ``homeserver.yaml``."""
    config: dict[str, Any] = {
        "server_name": SERVER_NAME,
        "public_baseurl": f"http://{settings.address}:{http}/",
        "pid_file": str(folder / "homeserver.pid"),
        "listeners": _listeners(settings, http, https, lowbandwidth),
        "database": {"name": "sqlite3", "args": {"database": str(folder / "homeserver.db")}},
        "log_config": str(folder / LOG_CONFIG),
        "media_store_path": str(folder / "media"),
        "signing_key_path": str(folder / SIGNING_KEY),
        "registration_shared_secret": secrets.token_hex(16),
        "macaroon_secret_key": secrets.token_hex(16),
        "form_secret": secrets.token_hex(16),
        "report_stats": False,
        "trusted_key_servers": [],
        "suppress_key_server_warning": True,
        "enable_registration": True,
        "enable_registration_without_verification": True,
        "presence": {"enabled": settings.presence},
        "bcrypt_rounds": 4,
        **({} if settings.rate_limits else NO_RATE_LIMITS),
    }
    if settings.https:
        config["tls_certificate_path"] = str(folder / CERTIFICATE)
        config["tls_private_key_path"] = str(folder / PRIVATE_KEY)
    if settings.lowbandwidth:
        config["modules"] = [{"module": "synapse_lb.LowBandwidthModule", "config": settings.module_config}]
    return {**config, **settings.extra_config}


def _listeners(settings: Settings, http: int, https: int, lowbandwidth: int) -> list[dict[str, Any]]:
    common = {"bind_addresses": [settings.address]}
    resources = {"resources": [{"names": settings.http_resources, "compress": settings.compress}]}
    listeners = [{"type": "http", "port": http, "tls": False, **common, **resources}]
    if settings.https:
        listeners.append({"type": "http", "port": https, "tls": True, **common, **resources})
    if settings.lowbandwidth:
        listener = {"type": "lowbandwidth", "port": lowbandwidth, **common, **settings.lowbandwidth_options}
        listeners.append({key: value for key, value in listener.items() if value is not None})
    return listeners


def log_config(path: Path, level: str) -> dict[str, Any]:
    """A configuration of Python's logging that writes to one file."""
    form = "%(asctime)s - %(name)s - %(lineno)d - %(levelname)s - %(request)s - %(message)s"
    return {
        "version": 1,
        "formatters": {"precise": {"format": form}},
        "handlers": {
            "file": {
                "class": "logging.FileHandler",
                "formatter": "precise",
                "filename": str(path),
                "encoding": "utf-8",
            }
        },
        "root": {"level": level, "handlers": ["file"]},
        "disable_existing_loggers": False,
    }


def _write_keys(folder: Path, settings: Settings) -> None:
    if settings.https and not (folder / CERTIFICATE).exists():
        names = list(dict.fromkeys(["localhost", "127.0.0.1", "::1", settings.address]))
        certificate, key = settings.certificate or generate_self_signed(names)
        (folder / CERTIFICATE).write_bytes(certificate)
        _write_secret(folder / PRIVATE_KEY, key)
    if not (folder / SIGNING_KEY).exists():
        write_signing_key(folder / SIGNING_KEY)


def write_signing_key(path: Path) -> None:
    """Write a new key as signedjson does: algorithm, version, unpadded base64 of the 32-byte seed."""
    seed = base64.b64encode(os.urandom(32)).decode("ascii").rstrip("=")
    _write_secret(path, f"ed25519 a_demo {seed}\n".encode("ascii"))


def _write_secret(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
