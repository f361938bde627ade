# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where processes of a homeserver are, as an admin writes it, and how they are known to be the right ones."""

from __future__ import annotations

import re
from typing import Final

from synapse_lb.client import sockets
from synapse_lb.client.tls import HttpsPolicy
from synapse_lb.txdtls.context import ClientVerification

_UNIX: Final = "unix:"
_URL: Final = re.compile(r"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?/?")


def base_url(text: str) -> str:
    """The base URL, without a slash at its end, of what an admin calls `http://host:port`, `https://host:port` or
    `unix:/path`.

    Raises:
        ValueError: it is none of these; the text goes after a name.
    """
    if text.startswith(_UNIX):
        return sockets.url_of(text.removeprefix(_UNIX))
    if not _URL.fullmatch(text):
        raise ValueError(f"{text!r} is neither http://host:port, https://host:port nor unix:/path")
    return text.rstrip("/")


def verification_of(ca_path: str | None) -> ClientVerification:
    """How certificates are checked.

    Args:
        ca_path: PEM file of the authorities; None for those that the system trusts.

    Raises:
        AuthoritiesError: the file cannot be used; a `ValueError`.
    """
    if ca_path is None:
        return ClientVerification.system()
    verification = ClientVerification.ca_file(ca_path)
    HttpsPolicy(verification)
    return verification
