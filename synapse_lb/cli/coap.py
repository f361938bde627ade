# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb coap`: curl for CoAP over DTLS (RFC 7252), with Matrix's CBOR done for you on request."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Final

from synapse_lb.cli.errors import EXIT_USAGE, CommandError
from synapse_lb.cli.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from twisted.internet.defer import Deferred

    from synapse_lb.cli.main import Subparsers

_DESCRIPTION = """\
Sends one CoAP request over DTLS/UDP and writes the answer's body to standard output.
"""
_EPILOG = """\
exit status:
  0 the answer is 2.xx          22 the answer is 4.xx or 5.xx (its body is written all the same)
  1 scheme is not coaps, or the body cannot be turned   23 cannot write   26 cannot read
  2 wrong arguments   3 bad URL   6 host not found   7 no association   28 timeout   56 bad answer
  60 the certificate is not trusted   77 CA file cannot be used

SSLKEYLOGFILE names a file to which the keys of the association are appended, for Wireshark.

examples:
  synapse-lb coap --json coaps://localhost:8008/_matrix/client/versions
  synapse-lb coap --json -d '{"type": "m.login.password", "identifier": {"type": "m.id.user",
      "user": "alice"}, "password": "secret"}' coaps://localhost:8008/_matrix/client/v3/login
  synapse-lb coap --json --token syt_... -X PUT -d '{"msgtype": "m.text", "body": "hello"}' \\
      'coaps://localhost:8008/_matrix/client/v3/rooms/!room:localhost/send/m.room.message/1'
  synapse-lb jc '{"user_id": "@bob:localhost"}' | synapse-lb coap -d - -H 'Content-Format: 60' ...
  synapse-lb coap --observe --json --token syt_... coaps://localhost:8008/_matrix/client/v3/sync
  synapse-lb coap -v --pin 1F:2E:... -H '258: 26' coaps://[::1]:8008/7?timeout=0
"""
METHOD_WITH_DATA: Final = "POST"
"""As curl has it: a body without -X is a POST."""


def add_parser(subparsers: Subparsers) -> None:
    """Add `coap` to the command."""
    parser = subparsers.add_parser(
        "coap",
        help="send a CoAP request over DTLS, as curl does over HTTPS",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "url", metavar="URL", help="coaps://host[:port]/path?query; the port is 5684 if not given"
    )
    _add_request_arguments(parser.add_argument_group("request"))
    _add_output_arguments(parser.add_argument_group("output"))
    _add_association_arguments(parser.add_argument_group("association"))
    parser.set_defaults(run=run)


def _add_request_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "-X", "--request", metavar="METHOD", help="GET, POST, PUT, DELETE, FETCH, PATCH, IPATCH or 0.NN"
    )
    group.add_argument(
        "-d",
        "--data",
        "--data-binary",
        metavar="DATA",
        help="body: literal, @FILE, or - for standard input; exactly these bytes. Without -X it is a POST",
    )
    group.add_argument(
        "-H",
        "--header",
        metavar="'NAME: VALUE'",
        action="append",
        default=[],
        help="option, by its name or number; 'Authorization: Bearer TOKEN' is option 256. "
        "'NAME:' takes one away, 'NAME;' gives it an empty value",
    )
    group.add_argument("--token", metavar="TOKEN", help="access token (option 256)")
    group.add_argument(
        "--json",
        action="store_true",
        help="give the body and get the answer as JSON text; it is CBOR on the wire",
    )
    group.add_argument(
        "--deflate",
        action="store_true",
        help="ask for a compressed answer (Accept: 11060), and compress a CBOR body where that saves bytes and "
        "there is no secret in it",
    )
    group.add_argument(
        "--key-version",
        type=int,
        metavar="N",
        help="ask for integer keys in the answer (option 257; critical: other servers answer 4.02)",
    )
    group.add_argument(
        "--path-codes",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="send the MSC's short code in place of the path, where it has one (default: the path as it is)",
    )
    group.add_argument(
        "--q-block", action="store_true", help="let large bodies go and come many blocks at a time (RFC 9177)"
    )
    group.add_argument("--non", action="store_true", help="send it Non-confirmable")
    group.add_argument(
        "--observe",
        action="store_true",
        help="observe it: write each notification as it comes, until interrupted, and return by itself when the "
        "association is lost. A body makes it a FETCH",
    )
    group.add_argument(
        "--count", type=positive_integer, metavar="N", help="with --observe: end after N notifications"
    )


def _add_output_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-i", "--include", action="store_true", help="write code and options before the body")
    group.add_argument("-o", "--output", metavar="FILE", help="write the body to FILE; - is standard output")
    group.add_argument("-v", "--verbose", action="store_true", help="tell on standard error what happens")
    group.add_argument("-s", "--silent", action="store_true", help="no error messages")
    group.add_argument("-S", "--show-error", action="store_true", help="with -s: error messages all the same")


def _add_association_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-k", "--insecure", action="store_true", help="take any certificate")
    group.add_argument("--cacert", metavar="FILE", help="trust the certificates of this PEM file only")
    group.add_argument(
        "--pin",
        metavar="SHA256",
        help="take the certificate with this SHA-256 fingerprint (hexadecimal) and no other",
    )
    group.add_argument(
        "--connect-timeout", type=seconds, metavar="S", help="longest that the handshake may take"
    )
    group.add_argument("-m", "--max-time", type=seconds, metavar="S", help="longest that everything may take")


def seconds(text: str) -> float:
    """Read a duration in seconds.

    Raises:
        ArgumentTypeError: it is not a positive number.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def positive_integer(text: str) -> int:
    """Read a number from 1.

    Raises:
        ArgumentTypeError: it is none.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def run(arguments: argparse.Namespace, terminal: Terminal) -> Deferred[int]:
    """Send the request.

    Returns:
        A Deferred of the exit status. It fails with a `CommandError` for whatever prevents an answer.
    """
    from twisted.internet.defer import Deferred

    from synapse_lb.cli.coap_observe import observe
    from synapse_lb.cli.coap_transfer import transfer

    exclusive = [name for name in ("insecure", "cacert", "pin") if getattr(arguments, name)]
    if len(exclusive) > 1:
        raise CommandError(f"--{exclusive[0]} and --{exclusive[1]} exclude each other", EXIT_USAGE)
    if arguments.count is not None and not arguments.observe:
        raise CommandError("--count goes with --observe", EXIT_USAGE)
    work = observe if arguments.observe else transfer
    return Deferred.fromCoroutine(_quietly(work(arguments, terminal), arguments))


async def _quietly(work: Awaitable[int], arguments: argparse.Namespace) -> int:
    """Do the work; `-s` keeps errors to itself."""
    try:
        return await work
    except CommandError as error:
        if arguments.silent and not arguments.show_error:
            raise CommandError("", error.exit_status) from error
        raise
