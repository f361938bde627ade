# SPDX-License-Identifier: AGPL-3.0-or-later
"""One request of `synapse-lb coap`, from the handshake to the exit status."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Final

from twisted.internet.defer import Deferred

from synapse_lb.cli.coap_options import code_line
from synapse_lb.cli.coap_output import Narration, Output
from synapse_lb.cli.coap_request import build_request, parse_url
from synapse_lb.cli.errors import (
    EXIT_BAD_RESPONSE,
    EXIT_CERTIFICATE,
    EXIT_CERTIFICATE_FILE,
    EXIT_CONNECT,
    EXIT_FAILURE,
    EXIT_OK,
    EXIT_RESOLVE,
    EXIT_STATUS_CODE,
    EXIT_TIMEOUT,
    EXIT_USAGE,
    EXIT_WRITE,
    CommandError,
)
from synapse_lb.cli.terminal import Terminal
from synapse_lb.client import errors
from synapse_lb.client.client import LowBandwidthClient
from synapse_lb.client.uri import CoapUri
from synapse_lb.coap.events import CoapRequest, CoapResponse
from synapse_lb.coap.numbers import is_success
from synapse_lb.txdtls.context import ClientVerification
from synapse_lb.txdtls.errors import CertificateError

KEYLOG_VARIABLE: Final = "SSLKEYLOGFILE"

_EXIT_STATUS: Final[tuple[tuple[type[errors.ClientError], int], ...]] = (
    (errors.ResolveError, EXIT_RESOLVE),
    (errors.ConnectTimeout, EXIT_TIMEOUT),
    (errors.RequestTimeout, EXIT_TIMEOUT),
    (errors.CertificateError, EXIT_CERTIFICATE),
    (errors.ConnectError, EXIT_CONNECT),
    (errors.ConnectionLost, EXIT_BAD_RESPONSE),
    (errors.RequestRejected, EXIT_BAD_RESPONSE),
    (errors.BadResponse, EXIT_BAD_RESPONSE),
)
"""The first class that fits counts; any other error is `EXIT_FAILURE`."""


async def transfer(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Send the request that the arguments ask for and write the answer.

    Returns:
        The exit status: 0, or 22 for an answer of 4.xx or 5.xx.

    Raises:
        CommandError: there is no answer, or it cannot be written.
    """
    uri = parse_url(arguments.url)
    request = build_request(arguments, uri, terminal)
    client = make_client(arguments, uri, terminal)
    narration = Narration(terminal, arguments.verbose)
    try:
        exchange = Deferred.fromCoroutine(_exchange(client, request, narration))
        if arguments.max_time is not None:
            exchange.addTimeout(arguments.max_time, terminal.reactor, out_of_time)
        response = await exchange
    except errors.ClientError as error:
        raise CommandError(str(error), exit_status(error)) from error
    finally:
        await client.close()
        if client.counters.datagrams_sent:
            narration.traffic("In all", client.counters)
    Output(terminal, arguments.output, arguments.include, arguments.json).write_response(response)
    if is_success(response.code):
        return EXIT_OK
    raise CommandError(f"the server answered {code_line(response.code)}", EXIT_STATUS_CODE)


async def _exchange(client: LowBandwidthClient, request: CoapRequest, narration: Narration) -> CoapResponse:
    narration.connected(await client.connect())
    handshake = client.counters
    narration.traffic("Handshake", handshake)
    narration.request(request)
    response = await client.raw_request(request)
    narration.response(response)
    narration.traffic("Request and answer", client.counters - handshake)
    return response


def make_client(arguments: argparse.Namespace, uri: CoapUri, terminal: Terminal) -> LowBandwidthClient:
    """The client that the arguments ask for.

    Raises:
        CommandError: an argument makes no sense, or names a file that cannot be used.
    """
    try:
        return LowBandwidthClient(
            terminal.reactor,
            f"coaps://[{uri.host}]:{uri.port}" if ":" in uri.host else f"coaps://{uri.host}:{uri.port}",
            verification=verification(arguments),
            keylog=_keylog(terminal),
            connect_timeout=arguments.connect_timeout,
            q_block=bool(arguments.q_block),
        )
    except errors.AuthoritiesError as error:
        raise CommandError(str(error), EXIT_CERTIFICATE_FILE) from None


def out_of_time(_: object, limit: float) -> None:
    """Fail what `--max-time` has ended."""
    raise errors.RequestTimeout(f"no answer within {limit:g} seconds")


def exit_status(error: errors.ClientError) -> int:
    """The exit status for an error of the client."""
    return next((status for kind, status in _EXIT_STATUS if isinstance(error, kind)), EXIT_FAILURE)


def verification(arguments: argparse.Namespace) -> ClientVerification:
    """How certificates are checked: `--insecure`, `--cacert` or `--pin`.

    Raises:
        CommandError: the fingerprint is none.
    """
    if arguments.insecure:
        return ClientVerification.none()
    if arguments.cacert is not None:
        return ClientVerification.ca_file(arguments.cacert)
    if arguments.pin is None:
        return ClientVerification.system()
    try:
        return ClientVerification.pinned(arguments.pin)
    except CertificateError as error:
        raise CommandError(f"--pin: {error}", EXIT_USAGE) from None


def _keylog(terminal: Terminal) -> Callable[[bytes], None] | None:
    """What appends to the file that SSLKEYLOGFILE names, in the NSS key log format."""
    path = terminal.environ.get(KEYLOG_VARIABLE)
    if not path:
        return None
    try:
        with open(path, "ab"):
            pass
    except OSError as error:
        raise CommandError(f"cannot write {path} ({KEYLOG_VARIABLE}): {error.strerror}", EXIT_WRITE) from None

    def append(line: bytes) -> None:
        with open(path, "ab") as file:
            file.write(line + b"\n")

    return append
