# SPDX-License-Identifier: AGPL-3.0-or-later
"""CoAP URIs taken apart into a destination and options (RFC 7252 section 6.4)."""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import unquote_to_bytes

import attrs

from synapse_lb.client.errors import BadUri, UnsupportedScheme
from synapse_lb.coap.numbers import OptionNumber

DEFAULT_PORTS: Final = {"coap": 5683, "coaps": 5684}
"""RFC 7252 sections 6.1 and 6.2."""

MAX_OPTION_LENGTH: Final = 255
"""Bytes in one Uri-Host, Uri-Path or Uri-Query option (RFC 7252 section 5.10, table 4)."""

# RFC 3986 appendix B, with the scheme required.
_URI: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(#.*)?", re.DOTALL)
_AUTHORITY: Final = re.compile(r"(?:([^@]*)@)?(\[[^\]]*\]|[^:\[\]]*)(?::([0-9]*))?")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_BAD_CHARACTER: Final = re.compile(r"[\x00-\x20\x7f]")


@attrs.frozen
class CoapUri:
    """A CoAP URI, taken apart.

    Attributes:
        scheme: `coap` or `coaps`.
        host: where to connect: a name, or an IPv4 or IPv6 address without brackets.
        port: UDP port.
        uri_host: the value of the Uri-Host option; None when the host is an address, which a server takes
            from the datagram's destination (RFC 7252 section 5.10.1).
        path: values of the Uri-Path options.
        query: values of the Uri-Query options.
    """

    scheme: str
    host: str
    port: int
    uri_host: bytes | None = None
    path: tuple[bytes, ...] = ()
    query: tuple[bytes, ...] = ()

    @classmethod
    def parse(cls, uri: str) -> CoapUri:
        """Take a URI apart as RFC 7252 section 6.4 says.

        Args:
            uri: an absolute URI; characters outside ASCII are taken as UTF-8.

        Raises:
            UnsupportedScheme: the scheme is neither `coap` nor `coaps`.
            BadUri: it is not absolute, has a fragment or user information, a bad escape or port, or a part
                that no option can hold.
        """
        match = _URI.fullmatch(uri)
        if match is None or match[2] is None:
            raise BadUri(f"not an absolute URI such as coaps://host:port/path: {uri!r}")
        scheme = match[1].lower()
        if scheme not in DEFAULT_PORTS:
            raise UnsupportedScheme(f"scheme {scheme!r} is not a CoAP scheme")
        if match[5] is not None:
            raise BadUri("a CoAP URI has no fragment")
        if bad := _BAD_CHARACTER.search(uri):
            raise BadUri(f"character {bad[0]!r} must be percent-encoded")
        if bad := _BAD_ESCAPE.search(uri):
            raise BadUri(f"bad percent-encoding at {uri[bad.start() : bad.start() + 3]!r}")
        host, port, uri_host = _split_authority(match[2])
        segments = match[3].split("/")[1:] if match[3] not in ("", "/") else []
        query = match[4].split("&") if match[4] is not None else []
        return cls(
            scheme=scheme,
            host=host,
            port=DEFAULT_PORTS[scheme] if port is None else port,
            uri_host=uri_host,
            path=tuple(_decoded(segment, "path segment") for segment in segments),
            query=tuple(_decoded(argument, "query argument") for argument in query),
        )

    def options(self) -> tuple[tuple[int, bytes], ...]:
        """The options of a request for this URI, in number order.

        Uri-Port is never among them: the request goes to the port that the URI names (section 6.4, step 7).
        """
        host = [] if self.uri_host is None else [(int(OptionNumber.URI_HOST), self.uri_host)]
        return (
            *host,
            *((int(OptionNumber.URI_PATH), segment) for segment in self.path),
            *((int(OptionNumber.URI_QUERY), argument) for argument in self.query),
        )


def parse_server(address: str) -> CoapUri:
    """Read a server's address: `coaps://host:port` or `host:port`, without path or query.

    Raises:
        UnsupportedScheme: there is a scheme and it is not `coaps`.
        BadUri: it is not such an address.
    """
    uri = CoapUri.parse(address if "://" in address else f"coaps://{address}")
    if uri.scheme != "coaps":
        raise UnsupportedScheme("Matrix goes over DTLS: the scheme must be coaps")
    if uri.path or uri.query:
        raise BadUri("a server's address has neither path nor query")
    return uri


def _split_authority(authority: str) -> tuple[str, int | None, bytes | None]:
    """Return host, port and the Uri-Host value."""
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise BadUri(f"bad host or port: {authority!r}")
    if match[1] is not None:
        raise BadUri("a CoAP URI has no user information")
    port = int(match[3]) if match[3] else None
    if port is not None and not 0 < port < 65536:
        raise BadUri(f"bad port: {match[3]}")
    if match[2].startswith("["):
        return _ipv6(match[2][1:-1]), port, None
    if not match[2]:
        raise BadUri("the host is missing")
    value = _decoded(match[2].lower(), "host")
    host = _text(value)
    if _is_ipv4(host):
        return host, port, None
    return _ascii_host(host), port, value


def _ipv6(text: str) -> str:
    # RFC 6874: the zone's separator is itself percent-encoded in a URI.
    address = text.replace("%25", "%", 1)
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        raise BadUri(f"bad IPv6 address: {text!r}") from None
    return address


def _is_ipv4(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True


def _ascii_host(host: str) -> str:
    """The name to look up: internationalised names become their `xn--` form."""
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        raise BadUri(f"bad host name: {host!r}") from None


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise BadUri("the host is not UTF-8") from None


def _decoded(text: str, what: str) -> bytes:
    try:
        value = unquote_to_bytes(text)
    except UnicodeEncodeError:
        raise BadUri(f"{what} is not text") from None
    if len(value) > MAX_OPTION_LENGTH:
        raise BadUri(f"{what} is longer than {MAX_OPTION_LENGTH} bytes")
    return value
