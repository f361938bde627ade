# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which bodies are never compressed, because they may hold a secret (CRIME and BREACH; RFC 7457 section 2.6).

Encryption does not hide the length of a body. Where a secret and a text of somebody else's choice are compressed
together, the body is shorter when the text repeats a part of the secret. Whoever sees the lengths and can have the
same secret sent again and again, with ever other texts beside it, learns it byte by byte. So what is worth such
trouble is kept apart from compression, whatever stands beside it today:

* by where it is: the resources that take or give access tokens, passwords, and the like. The access token itself
  travels in option 256, which no content coding covers.
* by what it is called: any body with one of the names in `SECRET_KEYS` in its first two levels, wherever it goes.
  User-interactive authentication puts a password into requests of many kinds.

What is left are events, keys that are public, and keys that are encrypted. Of these, too, a length tells something;
but an event is delivered once and not again for each guess, and the same texts are compressed on their way over HTTPS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

SECRET_RESOURCES: Final[Mapping[str, str]] = {
    r"login(/.+)?": "password or login token up, access and refresh token down",
    r"register(/.+)?": "password up, access token down",
    r"refresh": "a refresh token up, the next ones down",
    r"logout(/all)?": "ends what a token gives; nothing in it is worth compressing",
    r"account/password(/.+)?": "the new password, the old one, client secrets",
    r"account/deactivate": "the password",
    r"account/3pid(/.+)?": "client secrets, tokens of identity servers",
    r"user/[^/]+/openid/request_token": "a token that proves to others who the user is",
    r"auth/.+": "the steps of user-interactive authentication",
    r"devices/[^/]+": "user-interactive authentication with a password",
    r"delete_devices": "user-interactive authentication with a password",
    r"keys/device_signing/upload": "user-interactive authentication with a password",
    r"pushers(/set)?": "push keys, with which anybody can push",
    r"voip/turnServer": "a password for the TURN server",
    r"(.+/)?rendezvous(/.+)?": "the messages of a login by QR code",
    r"(.+/)?dehydrated_device(/.+)?": "a device's private keys, even if they are encrypted",
}
"""What follows the version in the path of a resource that takes or gives a secret -> which one."""

SECRET_KEYS: Final = frozenset(
    {
        "access_token",
        "auth",
        "client_secret",
        "id_access_token",
        "login_token",
        "mac",
        "new_password",
        "passphrase",
        "password",
        "private_key",
        "pushkey",
        "recovery_key",
        "refresh_token",
        "secret",
        "session",
        "token",
    }
)
"""Names under which a body holds a secret."""

_HARMLESS: Final = ("/_matrix/client/versions", "/.well-known/matrix/client")
_PREFIX: Final = re.compile(r"/_matrix/client/(r0|v\d+|api/v1|unstable(/[^/]*\.[^/]+)?)/")
_RESOURCES: Final = re.compile("|".join(f"(?:{pattern})" for pattern in SECRET_RESOURCES))


def takes_or_gives_secrets(segments: Sequence[str]) -> bool:
    """Whether a resource is one of `SECRET_RESOURCES`.

    Args:
        segments: Of its path in full (no path code). What is no path of the Client-Server API counts as secret.
    """
    path = "".join("/" + segment.replace("/", "%2F") for segment in segments)
    if path in _HARMLESS:
        return False
    prefix = _PREFIX.match(path)
    return prefix is None or _RESOURCES.fullmatch(path.rstrip("/"), prefix.end()) is not None


def holds_secret(body: Any) -> bool:
    """Whether a body has one of `SECRET_KEYS`, as a name of its own or of one of the objects right within it."""
    if not isinstance(body, Mapping):
        return False
    if not SECRET_KEYS.isdisjoint(body):
        return True
    for each in body.values():  # a loop, not `any`: this is asked for each answer
        if type(each) is not str and isinstance(each, Mapping) and not SECRET_KEYS.isdisjoint(each):
            return True
    return False
