# SPDX-License-Identifier: AGPL-3.0-or-later
"""CoAP options, methods and codes as people write and read them (RFC 7252 sections 5.10 and 12)."""

from __future__ import annotations

import re
from typing import Final

from synapse_lb.cli.errors import EXIT_USAGE, CommandError
from synapse_lb.coap.numbers import MAX_OPTION_NUMBER, Code, OptionNumber, code_to_text, is_request
from synapse_lb.coap.options import REGISTRY, OptionFormat, OptionPair, decode_uint, encode_uint
from synapse_lb.msc3079.options import ACCESS_TOKEN, FORMAT_CBOR_DEFLATE, KEY_VERSION

MEDIA_TYPES: Final = {
    "text/plain": 0,
    "application/link-format": 40,
    "application/xml": 41,
    "application/octet-stream": 42,
    "application/json": 50,
    "application/cbor": 60,
    "application/cbor;deflate": FORMAT_CBOR_DEFLATE,
}
"""Content-Formats by their media type (RFC 7252 section 12.3, RFC 8949 section 9.4); the content coding follows it."""

_MSC_NAMES: Final = {ACCESS_TOKEN: "Access-Token", KEY_VERSION: "CBOR-Key-Version"}
_AUTHORIZATION: Final = "authorization"
_NAMES: Final = {number: row.name for number, row in REGISTRY.items()} | _MSC_NAMES
_NUMBERS: Final = {name.lower(): number for number, name in _NAMES.items()}
_FORMAT_OPTIONS: Final = (OptionNumber.CONTENT_FORMAT, OptionNumber.ACCEPT)
_HEX: Final = re.compile(r"0[xX]((?:[0-9A-Fa-f]{2})*)")
_CODE: Final = re.compile(r"([0-7])\.([0-3][0-9])")


def option_name(number: int) -> str:
    """The option's name, or its number where it has none."""
    return _NAMES.get(number, str(number))


def parse_header(text: str) -> tuple[int, bytes | None]:
    """Read a `-H` argument.

    Args:
        text: `Name: value`; `Name:` takes the option away; `Name;` gives it an empty value. The name is that
            of an option, or its number. `Authorization: Bearer TOKEN` is option 256. The value is a number, a
            media type, hexadecimal after `0x`, or text, as the option's format has it; the options that
            nobody knows take a number where the text is one.

    Returns:
        Number and value; a value of None takes the option away.

    Raises:
        CommandError: no such option, or no such value for it.
    """
    name, colon, value = text.partition(":")
    value = value.strip()
    if not colon:
        if not text.rstrip().endswith(";"):
            raise CommandError(f"bad header {text!r}: write 'Name: value'", EXIT_USAGE)
        return _number(text.rstrip()[:-1]), b""
    number = _number(name)
    if not value:
        return number, None
    if name.strip().lower() == _AUTHORIZATION:
        scheme, _, token = value.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise CommandError("Authorization takes 'Bearer TOKEN'", EXIT_USAGE)
        value = token.strip()
    return number, _value(number, value)


def _number(name: str) -> int:
    name = name.strip().lower()
    if name == _AUTHORIZATION:
        return ACCESS_TOKEN
    if name in _NUMBERS:
        return _NUMBERS[name]
    if name.isascii() and name.isdigit() and len(name) <= 5 and int(name) <= MAX_OPTION_NUMBER:
        return int(name)
    raise CommandError(f"no option is called {name!r}", EXIT_USAGE)


def _value(number: int, text: str) -> bytes:
    hexadecimal = _HEX.fullmatch(text)
    if hexadecimal is not None:
        return bytes.fromhex(hexadecimal[1])
    if number in _FORMAT_OPTIONS and text.lower() in MEDIA_TYPES:
        return encode_uint(MEDIA_TYPES[text.lower()])
    row = REGISTRY.get(number)
    is_uint = row is not None and row.format is OptionFormat.UINT
    if text.isascii() and text.isdigit() and len(text) <= 20 and (row is None or is_uint):
        return _checked(number, encode_uint(int(text)) if number != ACCESS_TOKEN else text.encode())
    if is_uint:
        raise CommandError(f"{option_name(number)} takes a number, not {text!r}", EXIT_USAGE)
    return _checked(number, text.encode("utf-8", "surrogateescape"))


def _checked(number: int, value: bytes) -> bytes:
    row = REGISTRY.get(number)
    if row is not None and not row.min_length <= len(value) <= row.max_length:
        raise CommandError(
            f"{row.name} takes {row.min_length} to {row.max_length} bytes, not {len(value)}", EXIT_USAGE
        )
    return value


def parse_method(text: str) -> int:
    """Read a method: `GET`, `ipatch`, or any code of class 0 written as `0.05`.

    Raises:
        CommandError: there is no such method.
    """
    code = _CODE.fullmatch(text)
    number = int(code[1]) << 5 | int(code[2]) if code else 0
    if code is None:
        number = int(Code.__members__.get(text.upper(), Code.EMPTY))
    if not is_request(number):
        raise CommandError(f"no method is called {text!r}", EXIT_USAGE)
    return number


def method_name(code: int) -> str:
    """The method's name, or its code where it has none."""
    return Code(code).name if code in Code.__members__.values() else code_to_text(code)


def code_line(code: int) -> str:
    """A response code with its name, as `4.04 Not Found`."""
    text = code_to_text(code)
    if code not in Code.__members__.values():
        return text
    return f"{text} {Code(code).name.replace('_', ' ').title()}"


def option_line(pair: OptionPair) -> str:
    """An option as `Name: value`; an access token is not shown."""
    number, value = pair
    name = option_name(number)
    if number == ACCESS_TOKEN:
        return f"{name}: <{len(value)} bytes>"
    row = REGISTRY.get(number)
    if number == KEY_VERSION or (row is not None and row.format is OptionFormat.UINT):
        known = {code: media for media, code in MEDIA_TYPES.items()} if number in _FORMAT_OPTIONS else {}
        amount = decode_uint(value)
        return f"{name}: {known.get(amount, amount)}"
    if row is not None and row.format is OptionFormat.STRING:
        return f"{name}: {_printable(value)}"
    return f"{name}: 0x{value.hex()}" if value else f"{name};"


def _printable(value: bytes) -> str:
    """Text of the peer, without what could drive the terminal."""
    text = value.decode("utf-8", "backslashreplace")
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
