# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `synapse-lb coap` writes: the body, `-i`, and `-v` with curl's `*`, `>` and `<`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from synapse_lb.cli.coap_options import code_line, method_name, option_line
from synapse_lb.cli.errors import EXIT_BAD_RESPONSE, EXIT_WRITE, CommandError
from synapse_lb.cli.json_text import JsonTextError, format_json, parse_json
from synapse_lb.cli.terminal import Terminal
from synapse_lb.coap.numbers import OptionNumber
from synapse_lb.msc3079.cbor import decode
from synapse_lb.msc3079.client_mapping import RESPONSE_MAX_DEPTH, RESPONSE_MAX_INFLATED
from synapse_lb.msc3079.compression import inflate
from synapse_lb.msc3079.errors import CborError, CompressionError
from synapse_lb.msc3079.options import FORMAT_CBOR_DEFLATE

if TYPE_CHECKING:
    from synapse_lb.client.connector import AssociationInfo
    from synapse_lb.client.counters import Traffic
    from synapse_lb.coap.events import CoapRequest, CoapResponse

CBOR: Final = 60
"""Content-Format of application/cbor (RFC 8949 section 9.4)."""

JSON: Final = 50
"""Content-Format of application/json (RFC 7252 section 12.3)."""

STANDARD_OUTPUT: Final = "-"


@attrs.frozen
class Output:
    """Where and how the answer is written.

    Args:
        terminal: standard output and error.
        file: path for the body; `-` is standard output, even if binary; None is standard output.
        include: write code and options before the body.
        json: write a CBOR body as JSON text.
        many: there may be several answers: each JSON text is one line, and a file is appended to.
    """

    terminal: Terminal
    file: str | None = None
    include: bool = False
    json: bool = False
    many: bool = False

    def write_response(self, response: CoapResponse) -> None:
        """Write the answer.

        Raises:
            CommandError: the body is binary and would go to the screen, is not the CBOR that it should be,
                or cannot be written.
        """
        head = _head(response) if self.include else b""
        if self.file not in (None, STANDARD_OUTPUT):
            self._write_file(head + self._body(response, pretty=False))
            return
        screen = self.terminal.stdout_is_screen()
        body = self._body(response, pretty=screen and not self.many)
        if screen and self.file is None and _is_binary(body):
            self._write(head)
            raise CommandError(
                "the body is binary and would spoil the screen: use --json, or -o FILE ('-o -' insists)",
                EXIT_WRITE,
            )
        self._write(head + body)

    def _body(self, response: CoapResponse, *, pretty: bool) -> bytes:
        if not self.json or not response.payload:
            return response.payload
        content_format = response.options.get_uint(OptionNumber.CONTENT_FORMAT)
        try:
            if content_format == CBOR:
                value = decode(response.payload, max_depth=RESPONSE_MAX_DEPTH).value
            elif content_format == FORMAT_CBOR_DEFLATE:
                inflated = inflate(response.payload, RESPONSE_MAX_INFLATED)
                value = decode(inflated, max_depth=RESPONSE_MAX_DEPTH).value
            elif content_format == JSON:
                value = parse_json(response.payload)
            else:
                # A diagnostic text (RFC 7252 section 5.5.2), or something that is no Matrix answer.
                return response.payload
            return (format_json(value, pretty=pretty) + "\n").encode("utf-8", "replace")
        except (CborError, CompressionError, JsonTextError) as error:
            raise CommandError(f"the answer's body cannot be read: {error}", EXIT_BAD_RESPONSE) from None

    def _write(self, data: bytes) -> None:
        self.terminal.stdout.write(data)
        self.terminal.stdout.flush()

    def _write_file(self, data: bytes) -> None:
        assert self.file is not None
        try:
            with open(self.file, "ab" if self.many else "wb") as file:
                file.write(data)
        except OSError as error:
            raise CommandError(f"cannot write {self.file}: {error.strerror}", EXIT_WRITE) from None


@attrs.frozen
class Narration:
    """What `-v` tells on standard error; silent unless asked for."""

    terminal: Terminal
    wanted: bool

    def note(self, text: str) -> None:
        """Tell something about the transport."""
        self._line("*", text)

    def connected(self, info: AssociationInfo) -> None:
        """Tell what the handshake has made."""
        self.note(f"Connected to {info.address} port {info.port} (UDP)")
        self.note(f"DTLS 1.2, {info.cipher}")
        self.note(f"Server certificate SHA-256: {info.certificate_sha256}")
        rtt = "unknown" if info.rtt is None else f"{info.rtt * 1000:.1f} ms"
        self.note(f"Round trip {rtt}, messages up to {info.max_message_size} bytes")

    def request(self, request: CoapRequest) -> None:
        """Tell what is sent."""
        kind = "CON" if request.confirmable else "NON"
        self._line(">", f"{kind} {method_name(request.code)}")
        for pair in request.options:
            self._line(">", option_line(pair))
        self._line(">", f"[{len(request.payload)} bytes of body]" if request.payload else "")

    def response(self, response: CoapResponse) -> None:
        """Tell what came back."""
        self._line("<", code_line(response.code))
        for pair in response.options:
            self._line("<", option_line(pair))
        self._line("<", f"[{len(response.payload)} bytes of body]" if response.payload else "")

    def traffic(self, name: str, traffic: Traffic) -> None:
        """Tell what crossed the wire."""
        self.note(
            f"{name}: sent {_amount(traffic.datagrams_sent, traffic.bytes_sent, traffic.ip_bytes_sent)}, received "
            f"{_amount(traffic.datagrams_received, traffic.bytes_received, traffic.ip_bytes_received)}"
        )

    def _line(self, mark: str, text: str) -> None:
        if self.wanted:
            self.terminal.error(f"{mark} {text}".rstrip())


def _amount(datagrams: int, size: int, ip_size: int) -> str:
    return (
        f"{datagrams} datagram{'' if datagrams == 1 else 's'}, {size} B ({ip_size} B with IP and UDP headers)"
    )


def _head(response: CoapResponse) -> bytes:
    lines = [code_line(response.code), *(option_line(pair) for pair in response.options)]
    return ("\n".join(lines) + "\n\n").encode("utf-8", "replace")


def _is_binary(body: bytes) -> bool:
    """Whether the bytes are no text that a screen can show."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return any(not character.isprintable() and character not in "\t\n\r" for character in text)
