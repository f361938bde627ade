# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb jc`: JSON to CBOR and back, with the integer keys of MSC3079 (appendix A)."""

from __future__ import annotations

import argparse
import binascii
from typing import TYPE_CHECKING, Final

from synapse_lb.cli.errors import EXIT_OK, CommandError
from synapse_lb.cli.inputs import STANDARD_INPUT, read_argument
from synapse_lb.cli.json_text import JsonTextError, format_json, parse_json
from synapse_lb.cli.terminal import Terminal
from synapse_lb.msc3079.cbor import decode, encode
from synapse_lb.msc3079.client_mapping import RESPONSE_MAX_INFLATED
from synapse_lb.msc3079.compression import deflate, inflate
from synapse_lb.msc3079.errors import CborError, CompressionError

if TYPE_CHECKING:
    from synapse_lb.cli.main import Subparsers

KEY_VERSION: Final = 1
"""The version of the key table: the only one there is."""

_DESCRIPTION = """\
Turns JSON into canonical CBOR with the integer keys of MSC3079 version 1, or, with -c2j, CBOR into JSON.
"""
_EPILOG = """\
INPUT is literal text, @FILE, or - for standard input (also when it is left out). With -c2j, literal text
is hexadecimal. On a screen CBOR is always shown in hexadecimal and JSON is indented.

examples:
  synapse-lb jc '{"msgtype": "m.text", "body": "hello"}' > body.cbor
  synapse-lb jc -x '{"errcode": "M_UNKNOWN", "error": "something"}'
  synapse-lb jc -c2j @body.cbor
  synapse-lb jc -c2j a21866694d5f554e4b4e4f574e186769736f6d657468696e67
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add `jc` to the command."""
    parser = subparsers.add_parser(
        "jc",
        help="turn JSON into CBOR with the MSC's keys, and back",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", metavar="INPUT", nargs="?", default=STANDARD_INPUT, help="what to turn")
    parser.add_argument("-c2j", "--cbor-to-json", action="store_true", help="CBOR to JSON")
    parser.add_argument(
        "-x", "--hex", action="store_true", help="CBOR is hexadecimal text, both going in and coming out"
    )
    parser.add_argument(
        "--no-keys", action="store_true", help="write text keys only (with -c2j: refuse integer keys)"
    )
    parser.add_argument(
        "--deflate",
        action="store_true",
        help="write compressed CBOR, which is Content-Format 11060 (with -c2j: take it)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Turn the input.

    Raises:
        CommandError: the input cannot be read, or is not what it should be.
    """
    data = read_argument(arguments.input, terminal)
    if arguments.cbor_to_json:
        literal = arguments.input != STANDARD_INPUT and not arguments.input.startswith("@")
        cbor = _from_hex(data) if arguments.hex or literal else data
        cbor = _inflated(cbor) if arguments.deflate else cbor
        text = to_json(cbor, keys=not arguments.no_keys, pretty=terminal.stdout_is_screen())
        terminal.write(text + "\n")
        return EXIT_OK
    cbor = to_cbor(data, keys=not arguments.no_keys)
    cbor = deflate(cbor) if arguments.deflate else cbor
    if arguments.hex or terminal.stdout_is_screen():
        terminal.write(cbor.hex() + "\n")
    else:
        terminal.stdout.write(cbor)
        terminal.stdout.flush()
    return EXIT_OK


def to_cbor(text: bytes, *, keys: bool = True) -> bytes:
    """Turn JSON text into canonical CBOR.

    Args:
        text: JSON, UTF-8.
        keys: use the integer keys.

    Raises:
        CommandError: it is not JSON, or CBOR as Matrix uses it cannot carry it.
    """
    try:
        return encode(parse_json(text), KEY_VERSION if keys else None)
    except JsonTextError as error:
        raise CommandError(f"bad JSON: {error}") from None
    except CborError as error:
        raise CommandError(f"cannot be CBOR: {error}") from None


def to_json(data: bytes, *, keys: bool = True, pretty: bool = False) -> str:
    """Turn CBOR into JSON text, with every key spelt out.

    Args:
        data: one CBOR item.
        keys: take integer keys; otherwise they are an error.
        pretty: indent.

    Raises:
        CommandError: it is not CBOR as Matrix uses it.
    """
    try:
        decoded = decode(data)
        if decoded.used_integer_keys and not keys:
            raise CommandError("bad CBOR: it has integer keys")
        return format_json(decoded.value, pretty=pretty)
    except (CborError, JsonTextError) as error:
        raise CommandError(f"bad CBOR: {error}") from None


def _inflated(data: bytes) -> bytes:
    try:
        return inflate(data, RESPONSE_MAX_INFLATED)
    except CompressionError as error:
        raise CommandError(f"bad CBOR: {error}") from None


def _from_hex(text: bytes) -> bytes:
    try:
        return binascii.unhexlify(b"".join(text.split()))
    except binascii.Error as error:
        raise CommandError(f"bad hexadecimal: {error}") from None
