# SPDX-License-Identifier: AGPL-3.0-or-later
"""One CoAP message, which is one datagram: its wire form, both ways (RFC 7252 sections 3 and 4.3)."""

from __future__ import annotations

from attrs import field, frozen

from synapse_lb.coap.errors import MessageError, MessageFormatError, OptionError
from synapse_lb.coap.numbers import (
    MAX_MESSAGE_ID,
    MAX_OPTION_NUMBER,
    MAX_TOKEN_LENGTH,
    Type,
    code_to_text,
    is_request,
    is_response,
)
from synapse_lb.coap.options import NO_OPTIONS, OptionPair, Options

HEADER_LENGTH = 4
"""Bytes (RFC 7252 section 3, figure 7)."""

_VERSION = 1
_PAYLOAD_MARKER = 0xFF
_ONE_BYTE_BASE = 13
_TWO_BYTE_BASE = 269
_MAX_EXTENDED = _TWO_BYTE_BASE + 0xFFFF
_TYPES = tuple(Type)


#     0                   1                   2                   3
#     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
#    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#    |Ver| T |  TKL  |      Code     |          Message ID           |
#    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#    |   Token (if any, TKL bytes) ...
#    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#    |   Options (if any) ...
#    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#    |1 1 1 1 1 1 1 1|    Payload (if any) ...
#    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
#
#                     (RFC 7252 section 3, figure 7)
#
#                   +----------+-----+-----+-----+-----+
#                   |          | CON | NON | ACK | RST |
#                   +----------+-----+-----+-----+-----+
#                   | Request  | X   | X   | -   | -   |
#                   | Response | X   | X   | X   | -   |
#                   | Empty    | *   | -   | X   | X   |
#                   +----------+-----+-----+-----+-----+
#
#                    (RFC 7252 section 4.3, table 1)
@frozen
class Message:
    """One message.

    Attributes:
        type: Confirmable, Non-confirmable, Acknowledgement or Reset.
        code: 0-255; see `numbers.Code`.
        message_id: 0-65535.
        token: 0-8 bytes.
        options: In number order.
        payload: At most what fits in a datagram; empty for none (an empty one has no wire form of its own).
    """

    type: Type
    code: int = field(repr=code_to_text)
    message_id: int
    token: bytes = field(default=b"", repr=bytes.hex)
    options: Options = NO_OPTIONS
    payload: bytes = field(default=b"", repr=lambda payload: f"<{len(payload)} bytes>")

    def encode(self) -> bytes:
        """Return the datagram.

        Raises:
            MessageError: The token is too long, the message id or the code is out of range, the type may not
                carry the code, or an Empty message carries something.
            OptionError: An option number is over 65535, or a value too long for the option format.
        """
        token = self.token
        code = self.code
        if len(token) > MAX_TOKEN_LENGTH:
            raise MessageError(f"a token of {len(token)} bytes")
        if not 0 <= self.message_id <= MAX_MESSAGE_ID:
            raise MessageError(f"message id {self.message_id} is out of range")
        if code == 0 and (token or self.options.pairs or self.payload):
            raise MessageError("an Empty message carries a token, options or a payload")
        fault = _fault_of_code(self.type, code)
        if fault is not None:
            raise MessageError(fault)
        out = bytearray(
            (
                _VERSION << 6 | self.type << 4 | len(token),
                code,
                self.message_id >> 8,
                self.message_id & 0xFF,
            )
        )
        out += token
        if self.options.pairs:
            _encode_options(self.options.pairs, out)
        if self.payload:
            out.append(_PAYLOAD_MARKER)
            out += self.payload
        return bytes(out)

    @classmethod
    def decode(cls, data: bytes) -> Message:
        """Read a datagram.

        Raises:
            MessageFormatError: It is not a CoAP message. The error carries the type and the message id where
                there was a header of version 1 to read them from.
        """
        if len(data) < HEADER_LENGTH:
            raise MessageFormatError(f"a datagram of {len(data)} bytes")
        first = data[0]
        if first >> 6 != _VERSION:
            raise MessageFormatError(f"version {first >> 6}")
        type_ = _TYPES[first >> 4 & 0x03]
        message_id = data[2] << 8 | data[3]
        try:
            return _decode_body(cls, data, type_, message_id)
        except MessageFormatError as error:
            error.type = type_
            error.message_id = message_id
            raise


def _decode_body(cls: type[Message], data: bytes, type_: Type, message_id: int) -> Message:
    code = data[1]
    if code == 0 and len(data) != HEADER_LENGTH:
        raise MessageFormatError("an Empty message with bytes behind its header")
    fault = _fault_of_code(type_, code)
    if fault is not None:
        raise MessageFormatError(fault)
    token_length = data[0] & 0x0F
    if token_length > MAX_TOKEN_LENGTH:
        raise MessageFormatError(f"reserved token length {token_length}")
    start = HEADER_LENGTH + token_length
    if start > len(data):
        raise MessageFormatError("the datagram ends inside the token")
    if start == len(data):
        return cls(type_, code, message_id, data[HEADER_LENGTH:start])
    pairs, payload = _decode_options(data, start)
    return cls(type_, code, message_id, data[HEADER_LENGTH:start], Options(pairs), payload)


def _fault_of_code(type_: Type, code: int) -> str | None:
    """Say why the type may not carry the code, or None if it may (RFC 7252 section 4.3, table 1)."""
    if is_request(code):
        allowed = type_ <= Type.NON
    elif is_response(code):
        allowed = type_ != Type.RST
    elif code == 0:
        allowed = type_ != Type.NON
    else:
        return f"code {code} is of no class of RFC 7252"
    return None if allowed else f"{type_.name} with code {code_to_text(code)}"


#      0   1   2   3   4   5   6   7
#    +---------------+---------------+
#    |  Option Delta | Option Length |   1 byte
#    +---------------+---------------+
#    \         Option Delta          \   0-2 bytes
#    /          (extended)           /
#    +-------------------------------+
#    \         Option Length         \   0-2 bytes
#    /          (extended)           /
#    +-------------------------------+
#    \         Option Value          \   0 or more bytes
#    +-------------------------------+
#
#    Delta and length: 0-12 as is, 13: one byte (value - 13), 14: two bytes (value - 269), 15: reserved.
#
#                 (RFC 7252 section 3.1, figure 8)
def _encode_options(pairs: tuple[OptionPair, ...], out: bytearray) -> None:
    if pairs[0][0] < 0 or pairs[-1][0] > MAX_OPTION_NUMBER:
        raise OptionError(
            f"option numbers {pairs[0][0]} to {pairs[-1][0]} are not within 0 to {MAX_OPTION_NUMBER}"
        )
    previous = 0
    for number, value in pairs:
        delta = number - previous
        length = len(value)
        previous = number
        if delta < _ONE_BYTE_BASE and length < _ONE_BYTE_BASE:
            out.append(delta << 4 | length)
        elif length > _MAX_EXTENDED:
            raise OptionError(f"option {number} of {length} bytes")
        else:
            delta_nibble, delta_extension = _split(delta)
            length_nibble, length_extension = _split(length)
            out.append(delta_nibble << 4 | length_nibble)
            out += delta_extension
            out += length_extension
        out += value


def _split(value: int) -> tuple[int, bytes]:
    """Return the nibble and the extension bytes of an option delta or length."""
    if value < _ONE_BYTE_BASE:
        return value, b""
    if value < _TWO_BYTE_BASE:
        return 13, bytes((value - _ONE_BYTE_BASE,))
    return 14, (value - _TWO_BYTE_BASE).to_bytes(2, "big")


def _decode_options(data: bytes, position: int) -> tuple[tuple[OptionPair, ...], bytes]:
    """Read the options from `position` on, and what is behind them.

    Returns:
        The options, in number order by construction, and the payload.

    Raises:
        MessageFormatError: A reserved nibble, an option that is cut off, a number over 65535, or a payload
            marker with no payload behind it.
    """
    pairs: list[OptionPair] = []
    number = 0
    end = len(data)
    while position < end:
        byte = data[position]
        position += 1
        if byte == _PAYLOAD_MARKER:
            if position == end:
                raise MessageFormatError("a payload marker with no payload behind it")
            return tuple(pairs), data[position:]
        delta = byte >> 4
        length = byte & 0x0F
        if delta >= _ONE_BYTE_BASE:
            delta, position = _join(delta, data, position)
        if length >= _ONE_BYTE_BASE:
            length, position = _join(length, data, position)
        number += delta
        if number > MAX_OPTION_NUMBER:
            raise MessageFormatError(f"option number {number}")
        stop = position + length
        if stop > end:
            raise MessageFormatError(f"the datagram ends inside option {number}")
        pairs.append((number, data[position:stop]))
        position = stop
    return tuple(pairs), b""


def _join(nibble: int, data: bytes, position: int) -> tuple[int, int]:
    """Return the delta or length of an extended nibble, and the position behind its extension bytes."""
    if nibble == 15:
        raise MessageFormatError("reserved option delta or length 15")
    stop = position + nibble - 12
    if stop > len(data):
        raise MessageFormatError("the datagram ends inside an option's header")
    base = _ONE_BYTE_BASE if nibble == 13 else _TWO_BYTE_BASE
    return base + int.from_bytes(data[position:stop], "big"), stop
