# SPDX-License-Identifier: AGPL-3.0-or-later
"""The request that the arguments of `synapse-lb coap` ask for."""

from __future__ import annotations

import argparse
from typing import Final

from synapse_lb.cli.coap_options import option_name, parse_header, parse_method
from synapse_lb.cli.errors import EXIT_BAD_URL, EXIT_FAILURE, EXIT_USAGE, CommandError
from synapse_lb.cli.inputs import read_argument
from synapse_lb.cli.jc import to_cbor
from synapse_lb.cli.terminal import Terminal
from synapse_lb.client.errors import BadUri, UnsupportedScheme
from synapse_lb.client.uri import CoapUri
from synapse_lb.coap.events import CoapRequest
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.observe import OBSERVABLE_METHODS
from synapse_lb.coap.options import REGISTRY, Options, encode_uint
from synapse_lb.msc3079.bodies import compressed
from synapse_lb.msc3079.cbor import decode
from synapse_lb.msc3079.errors import MscError
from synapse_lb.msc3079.options import ACCESS_TOKEN, FORMAT_CBOR_DEFLATE, KEY_VERSION
from synapse_lb.msc3079.paths_v1 import compress, expand
from synapse_lb.msc3079.secrecy import takes_or_gives_secrets

CBOR: Final = 60
JSON: Final = 50
_JSON_STARTS: Final = (b"{", b"[")
_ADDED_BY_ENDPOINT: Final = frozenset(
    {OptionNumber.BLOCK1, OptionNumber.BLOCK2, OptionNumber.SIZE1, OptionNumber.REQUEST_TAG}
)


def parse_url(url: str) -> CoapUri:
    """Take the URL apart.

    Raises:
        CommandError: it is no coaps URL.
    """
    try:
        uri = CoapUri.parse(url)
    except UnsupportedScheme as error:
        raise CommandError(str(error)) from None
    except BadUri as error:
        raise CommandError(f"bad URL: {error}", EXIT_BAD_URL) from None
    if uri.scheme != "coaps":
        raise CommandError("Matrix goes over DTLS: the scheme must be coaps", EXIT_FAILURE)
    return uri


def build_request(arguments: argparse.Namespace, uri: CoapUri, terminal: Terminal) -> CoapRequest:
    """Put the request together.

    Args:
        arguments: of the command.
        uri: from `parse_url`.
        terminal: where a body of `-` is read from.

    Raises:
        CommandError: an argument makes no sense, or the body cannot be read or turned into CBOR.
    """
    body = None if arguments.data is None else read_argument(arguments.data, terminal)
    if body is not None and arguments.json:
        body = to_cbor(body)
    if arguments.request is not None:
        method = parse_method(arguments.request)
    else:
        with_body = Code.FETCH if arguments.observe else Code.POST
        method = int(Code.GET if body is None else with_body)
    if arguments.observe and method not in OBSERVABLE_METHODS:
        raise CommandError("--observe goes with GET and FETCH", EXIT_USAGE)
    options = Options(uri.options())
    written_as, body = _compressed(body, options) if arguments.deflate and body else (None, body)
    if arguments.path_codes:
        options = _with_path_code(options)
    if body:
        options = options.with_uint(OptionNumber.CONTENT_FORMAT, written_as or content_format(body))
    if arguments.deflate:
        options = options.with_uint(OptionNumber.ACCEPT, FORMAT_CBOR_DEFLATE)
    if arguments.token is not None:
        options = options.with_option(ACCESS_TOKEN, arguments.token.encode("utf-8", "surrogateescape"))
    if arguments.key_version is not None:
        if arguments.key_version < 0:
            raise CommandError("--key-version takes a number from 0", EXIT_USAGE)
        options = options.with_option(KEY_VERSION, encode_uint(arguments.key_version))
    return CoapRequest(method, _with_headers(options, arguments.header), body or b"", not arguments.non)


def content_format(body: bytes) -> int:
    """The Content-Format of a body of which nothing else is said.

    No CBOR that Matrix has begins like JSON: these bytes would begin strings of a length of 64 bits.
    """
    return JSON if body.lstrip(b" \t\r\n")[:1] in _JSON_STARTS else CBOR


def _compressed(body: bytes, options: Options) -> tuple[int | None, bytes]:
    """Compress a body of CBOR, unless there may be a secret in it; return its Content-Format if that is known."""
    path = [segment.decode("utf-8", "replace") for segment in options.get_all(OptionNumber.URI_PATH)]
    try:
        value = decode(body).value
        secret = takes_or_gives_secrets(expand(path))
    except MscError:
        return None, body
    return (None, body) if secret else compressed(value, body, request=True)


def _with_path_code(options: Options) -> Options:
    """Put the MSC's code in place of the path, where it has one."""
    try:
        path = [segment.decode("utf-8") for segment in options.get_all(OptionNumber.URI_PATH)]
    except UnicodeDecodeError:
        # No path of the table; whether the server has it is for the server to say.
        return options
    options = options.without(OptionNumber.URI_PATH)
    for segment in compress(path):
        options = options.with_option(OptionNumber.URI_PATH, segment.encode("utf-8"))
    return options


def _with_headers(options: Options, headers: list[str]) -> Options:
    """Apply the `-H` arguments in their order."""
    given: set[int] = set()
    for header in headers:
        number, value = parse_header(header)
        if number in _ADDED_BY_ENDPOINT:
            raise CommandError(f"{option_name(number)} is set by the transfer itself", EXIT_USAGE)
        row = REGISTRY.get(number)
        repeatable = row is None or row.repeatable
        if value is None:
            options = options.without(number)
        elif repeatable and (number in given or number in (OptionNumber.URI_PATH, OptionNumber.URI_QUERY)):
            options = options.with_option(number, value)
        else:
            options = options.replacing(number, value)
        given.add(number)
    return options
