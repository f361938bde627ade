# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb check`: whether a homeserver is to be reached over CoAP, and what to mend if it is not."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from synapse_lb.cli.coap import seconds
from synapse_lb.cli.errors import EXIT_FAILURE, EXIT_OK, EXIT_USAGE, CommandError
from synapse_lb.cli.terminal import Terminal

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from synapse_lb.cli.check_report import Report
    from synapse_lb.cli.main import Subparsers

_DESCRIPTION = """\
Looks from outside whether a homeserver is to be reached over CoAP, and says for each thing that
could be wrong whether it is, and what to do.
"""
_EPILOG = """\
exit status:
  0 it works (warnings may be there)   1 something does not work   2 wrong arguments

examples:
  synapse-lb check example.com                discovers the homeserver, as a client does
  synapse-lb check matrix.example.com:8008    this UDP port, without discovery
  synapse-lb check --json --token syt_... example.com | jq .verdict
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add `check` to the command."""
    parser = subparsers.add_parser(
        "check",
        help="check from outside whether a homeserver is to be reached over CoAP",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "server",
        metavar="SERVER",
        help="a server name, a user id or an https:// address; or host:port of its CoAP",
    )
    parser.add_argument("--token", metavar="TOKEN", help="access token: try OBSERVE too")
    parser.add_argument("--cacert", metavar="FILE", help="trust the certificates of this PEM file only")
    parser.add_argument(
        "--pin",
        metavar="SHA256",
        help="over DTLS, take the certificate with this SHA-256 fingerprint and no other",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=15.0,
        metavar="S",
        help="longest that each step may take (default: 15)",
    )
    parser.add_argument("--json", action="store_true", help="write one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, terminal: Terminal) -> Deferred[int]:
    """Check the server.

    Returns:
        A Deferred of the exit status. It fails with a `CommandError` for arguments that make no sense.
    """
    from twisted.internet.defer import Deferred

    return Deferred.fromCoroutine(_check(arguments, terminal))


async def _check(arguments: argparse.Namespace, terminal: Terminal) -> int:
    from synapse_lb.cli.check_steps import Checker
    from synapse_lb.client.errors import AuthoritiesError, BadUri
    from synapse_lb.txdtls.context import ClientVerification
    from synapse_lb.txdtls.errors import CertificateError

    if arguments.cacert and arguments.pin:
        raise CommandError("--cacert and --pin exclude each other", EXIT_USAGE)
    verification = ClientVerification.system()
    try:
        if arguments.cacert:
            verification = ClientVerification.ca_file(arguments.cacert)
        pinned = ClientVerification.pinned(arguments.pin) if arguments.pin else None
        checker = Checker(
            terminal.reactor,
            arguments.server,
            verification=verification,
            pinned=pinned,
            token=arguments.token,
            timeout=arguments.timeout,
        )
    except (CertificateError, AuthoritiesError, BadUri) as error:
        raise CommandError(str(error), EXIT_USAGE) from None
    report = await checker.run()
    terminal.write(_json(report) if arguments.json else report.text())
    return EXIT_FAILURE if report.failed else EXIT_OK


def _json(report: Report) -> str:
    return json.dumps(report.value(), ensure_ascii=False) + "\n"
