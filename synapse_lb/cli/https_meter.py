# SPDX-License-Identifier: AGPL-3.0-or-later
"""An HTTPS client that knows what each request took on the wire, asked of the kernel.

`HttpsMeter` keeps one HTTP/1.1 connection over TLS open, as a Matrix client does, and sends what curl would:
Host, User-Agent, Accept, and for bodies Content-Type and Content-Length; the answer is uncompressed JSON, as
Synapse's own sample configuration has it, unless the meter asks for gzip and the listener has `compress: true`.

How it is measured: Linux keeps, for each TCP socket, how many segments it sent and received and how many bytes
of payload they held (``getsockopt(TCP_INFO)``: ``tcpi_segs_out``, ``tcpi_segs_in``, ``tcpi_bytes_sent``,
``tcpi_bytes_received``). Every segment is one IP packet, for the connection's maximum segment size is set to that
of an Ethernet (1448 bytes of payload) although it runs over the loopback interface; the kernel counts what it
sends at once as the packets that it stands for. So

    IP bytes = payload + segments * (IP header + TCP header)

with 20 bytes for IPv4 (40 for IPv6) and 32 for TCP with the timestamps that Linux negotiates (20 without), and 8
bytes more for each SYN. Acknowledgements are segments and are counted; TLS records, their handshake and the
session tickets that follow it are payload. A request's share is read a moment after its answer, once a
delayed acknowledgement has left. Closing the connection is not counted, here nor for CoAP.

Checked against ``tcpdump`` on the loopback interface: packets and bytes are the same. Where there is no such
TCP_INFO (systems other than Linux, kernels before 4.19) `wire_is_measurable` says so.
"""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import ssl
import struct
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import attrs

MAXIMUM_SEGMENT: Final = 1460
"""Bytes: TCP payload and options on an Ethernet with an MTU of 1500 (RFC 9293 section 3.7.1), over IPv4."""

_SETTLE: Final = 0.06
"""Seconds: longer than Linux delays an acknowledgement (TCP_DELACK_MIN, 40 ms)."""

_TCP_INFO_LENGTH: Final = 208
"""Bytes of struct tcp_info (linux/tcp.h) up to and including tcpi_bytes_sent."""

_OPTION_TIMESTAMPS: Final = 1
"""TCPI_OPT_TIMESTAMPS in tcpi_options."""

_SYN_EXTRA: Final = 8
"""Bytes by which a SYN's options (MSS, SACK, timestamps, window scale: 20) exceed those of a segment (12)."""


class MeterError(Exception):
    """The HTTPS request failed, or the kernel does not tell what was asked."""


@attrs.frozen
class Wire:
    """What crossed the wire, both ways together.

    Attributes:
        packets: IP packets.
        bytes: bytes of IP packets, all headers included.
    """

    packets: int = 0
    bytes: int = 0

    def __add__(self, other: Wire) -> Wire:
        return Wire(self.packets + other.packets, self.bytes + other.bytes)

    def __sub__(self, earlier: Wire) -> Wire:
        return Wire(self.packets - earlier.packets, self.bytes - earlier.bytes)


@attrs.frozen
class Measured:
    """One request over HTTPS.

    Attributes:
        status: HTTP status.
        body: the decoded JSON body.
        wire: what it took.
    """

    status: int
    body: Any = attrs.field(repr=False)
    wire: Wire


def wire_is_measurable() -> bool:
    """Whether this system tells what a TCP connection has sent and received."""
    if not sys.platform.startswith("linux"):
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            read_wire(probe)
        except MeterError:
            return False
    return True


def read_wire(connection: socket.socket) -> Wire:
    """Everything that a TCP connection has sent and received so far.

    Raises:
        MeterError: the kernel does not say.
    """
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 512)
    except (OSError, AttributeError) as error:
        raise MeterError(f"this system has no TCP_INFO: {error}") from error
    if len(info) < _TCP_INFO_LENGTH:
        raise MeterError("this kernel's TCP_INFO lacks tcpi_bytes_sent (Linux 4.19 has it)")
    options = info[5]
    (received,) = struct.unpack_from("=Q", info, 128)
    segments_out, segments_in = struct.unpack_from("=II", info, 136)
    (sent,) = struct.unpack_from("=Q", info, 200)
    ip_header = 40 if connection.family == socket.AF_INET6 else 20
    tcp_header = 32 if options & _OPTION_TIMESTAMPS else 20
    packets = segments_in + segments_out
    return Wire(packets, sent + received + packets * (ip_header + tcp_header) + 2 * _SYN_EXTRA)


class HttpsMeter:
    """One keep-alive HTTPS connection whose traffic is counted.

    Args:
        host: address or name of the server.
        port: TCP port.
        certificate: PEM file with the authority to trust.
        timeout: seconds for each request.
        compressed: ask for gzip.

    Attributes:
        handshake: what connecting took: TCP and TLS. Zero before `connect`.
    """

    def __init__(
        self, host: str, port: int, certificate: Path, timeout: float = 60.0, *, compressed: bool = False
    ) -> None:
        self._host = host
        self._port = port
        self._timeout = timeout
        self._compressed = compressed
        self._context = ssl.create_default_context(cafile=str(certificate))
        # The group that Twisted's TLS servers take: anything else first costs a HelloRetryRequest.
        self._context.set_ecdh_curve("prime256v1")
        self._socket: ssl.SSLSocket | None = None
        self._read = Wire()
        self.handshake = Wire()

    def connect(self, session: ssl.SSLSession | None = None) -> Wire:
        """Connect: three-way handshake, TLS handshake, session tickets.

        Args:
            session: the `session` of an earlier connection of this meter, to be resumed.

        Raises:
            MeterError: it failed.
        """
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        plain = socket.socket(family, socket.SOCK_STREAM)
        try:
            plain.settimeout(self._timeout)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, MAXIMUM_SEGMENT)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.connect((self._host, self._port))
            self._socket = self._context.wrap_socket(plain, server_hostname=self._host, session=session)
        except OSError as error:
            plain.close()
            raise MeterError(f"cannot connect to https://{self._host}:{self._port}: {error}") from error
        self._read = Wire()
        self.handshake = self._since_last()
        return self.handshake

    @property
    def session(self) -> ssl.SSLSession | None:
        """The TLS session, once something was read after the handshake."""
        return None if self._socket is None else self._socket.session

    @property
    def resumed(self) -> bool:
        """Whether the handshake resumed a session."""
        return self._socket is not None and bool(self._socket.session_reused)

    def request(self, method: str, path: str, body: Any = None, token: str | None = None) -> Measured:
        """Send one request and read its answer.

        Args:
            method: HTTP method.
            path: path and query, percent-encoded.
            body: JSON value; None for no body.
            token: access token.

        Raises:
            MeterError: no answer came, or it was no JSON.
        """
        if self._socket is None:
            self.connect()
        try:
            status, content = self._exchange(method, path, body, token)
            answer = json.loads(content) if content else None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise MeterError(f"{method} {path} over HTTPS: {error}") from error
        return Measured(status, answer, self._since_last())

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def __enter__(self) -> HttpsMeter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _exchange(self, method: str, path: str, body: Any, token: str | None) -> tuple[int, bytes]:
        assert self._socket is not None
        # Head and body in one write, as clients do that care for packets.
        self._socket.sendall(self._request_text(method, path, body, token))
        response = http.client.HTTPResponse(self._socket, method=method)
        try:
            response.begin()
            content = response.read()
            if response.getheader("Content-Encoding") == "gzip":
                content = gzip.decompress(content)
            return response.status, content
        finally:
            response.close()

    def _request_text(self, method: str, path: str, body: Any, token: str | None) -> bytes:
        content = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
        head = [f"{method} {path} HTTP/1.1", f"Host: {self._host}:{self._port}"]
        head += ["User-Agent: curl/8.5.0", "Accept: */*"]
        if self._compressed:
            head.append("Accept-Encoding: gzip")
        if token is not None:
            head.append(f"Authorization: Bearer {token}")
        if body is not None:
            head += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
        return "\r\n".join([*head, "", ""]).encode("ascii") + content

    def _since_last(self) -> Wire:
        assert self._socket is not None
        time.sleep(_SETTLE)
        now = read_wire(self._socket)
        taken, self._read = now - self._read, now
        return taken
