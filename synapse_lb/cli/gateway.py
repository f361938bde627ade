# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb gateway`: CoAP in, HTTP out, in front of a homeserver that has no low-bandwidth listener of its own."""

from __future__ import annotations

import argparse
import math
import signal
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from synapse_lb.cli.errors import EXIT_CERTIFICATE_FILE, EXIT_CONNECT, EXIT_USAGE, CommandError
from synapse_lb.cli.terminal import Terminal

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from synapse_lb.cli.main import Subparsers
    from synapse_lb.standalone.service import GatewayService, ServiceOptions

DEFAULT_PORT: Final = 8448

_DESCRIPTION = """\
Serves MSC3079 (CoAP and CBOR over DTLS/UDP) in front of any homeserver, which it asks over HTTP. Inside Synapse the
module's own listener does more with less: docs/gateway.md compares them. Ends with SIGTERM; SIGHUP loads the
certificate again.
"""
_EPILOG = """\
examples:
  synapse-lb gateway --local http://localhost:8008 --tls-cert fullchain.pem --tls-key privkey.pem \\
      --bind 0.0.0.0:8448 --advertise https://lb.example.com:8448
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add `gateway` to the command."""
    parser = subparsers.add_parser(
        "gateway",
        help="serve CoAP in front of a homeserver that speaks only HTTP",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_places(parser.add_argument_group("where it stands"))
    _add_advertisement(parser.add_argument_group("what clients are told"))
    _add_bounds(parser.add_argument_group("bounds"))
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="tell on standard error what happens, too"
    )
    parser.set_defaults(run=run)


def _add_places(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--local", metavar="URL", required=True, help="the homeserver's base URL")
    group.add_argument("--local-ca", metavar="FILE", help="authorities to trust for --local, in PEM")
    group.add_argument("--tls-cert", metavar="FILE", required=True, help="certificate chain, in PEM")
    group.add_argument("--tls-key", metavar="FILE", required=True, help="its private key, in PEM")
    group.add_argument(
        "--bind", metavar="ADDRESS:PORT", default=f"0.0.0.0:{DEFAULT_PORT}", help="default: %(default)s"
    )


def _add_advertisement(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--advertise",
        metavar="URL",
        help="HTTPS address of the gateway: it takes the place of the homeserver's in answers, and a reverse proxy "
        "listens on the TCP port of the same number",
    )
    group.add_argument(
        "--advertise-port",
        type=_port,
        metavar="PORT",
        help="UDP port that /versions names (default: that of --bind)",
    )
    group.add_argument(
        "--no-tcp", action="store_true", help="no reverse proxy: --advertise names one of your own"
    )
    group.add_argument("--no-observe", action="store_true", help="/sync cannot be observed")
    group.add_argument("--no-x1", action="store_true", help="clients may not choose x1")
    group.add_argument(
        "--x-forwarded-for",
        action="store_true",
        help="tell the homeserver the clients' addresses in X-Forwarded-For",
    )


def _add_bounds(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--timeout",
        type=_seconds,
        default=120.0,
        metavar="S",
        help="for an answer of the homeserver (%(default)g)",
    )
    group.add_argument(
        "--poll-timeout",
        type=_seconds,
        default=30.0,
        metavar="S",
        help="of long polls for observers (%(default)g)",
    )
    group.add_argument(
        "--idle-timeout",
        type=_seconds,
        default=86400.0,
        metavar="S",
        help="until a silent client goes (%(default)g)",
    )
    group.add_argument(
        "--max-requests",
        type=_positive,
        default=2000,
        metavar="N",
        help="at once, at the homeserver (%(default)d)",
    )
    group.add_argument(
        "--max-associations", type=_positive, default=5000, metavar="N", help="clients (%(default)d)"
    )


def run(arguments: argparse.Namespace, terminal: Terminal) -> Deferred[int]:
    """Serve until the process is told to end.

    Raises:
        CommandError: it cannot start.
    """
    from twisted.internet.defer import Deferred

    from synapse_lb.client.errors import AuthoritiesError
    from synapse_lb.standalone.service import GatewayService, ServiceError

    reactor = terminal.reactor
    options = read_options(arguments)
    try:
        service = GatewayService(reactor, options)
    except (ServiceError, AuthoritiesError) as error:
        raise CommandError(str(error), EXIT_CERTIFICATE_FILE) from error
    try:
        service.start()
    except ServiceError as error:
        raise CommandError(str(error), EXIT_CONNECT) from error
    _log_to(terminal, verbose=arguments.verbose)
    terminal.error(_greeting(service, options))
    signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(service.reload))
    reactor.addSystemEventTrigger("before", "shutdown", service.stop)
    forever: Deferred[int] = Deferred()
    reactor.addSystemEventTrigger("after", "shutdown", forever.callback, 0)
    return forever


def _log_to(terminal: Terminal, *, verbose: bool) -> None:
    """Have warnings and errors on standard error, where systemd's journal takes them."""
    from twisted.logger import (
        FilteringLogObserver,
        LogLevel,
        LogLevelFilterPredicate,
        globalLogBeginner,
        textFileLogObserver,
    )

    # Any, because Twisted declares zope interfaces there.
    chosen: Any = LogLevelFilterPredicate(LogLevel.info if verbose else LogLevel.warn)
    everything: Any = textFileLogObserver(terminal.stderr)
    observer: Any = FilteringLogObserver(everything, [chosen])
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)


def read_options(arguments: argparse.Namespace) -> ServiceOptions:
    """Check the arguments.

    Raises:
        CommandError: one makes no sense.
    """
    from synapse_lb.standalone.service import ServiceOptions
    from synapse_lb.txdtls.context import ClientVerification

    address, port = _endpoint(arguments.bind)
    advertise = arguments.advertise
    if advertise is not None:
        advertise = _base_url(advertise, "--advertise", ("https",))
    elif arguments.no_tcp:
        raise CommandError("--no-tcp belongs to --advertise", EXIT_USAGE)
    local_ca = arguments.local_ca
    return ServiceOptions(
        local=_base_url(arguments.local, "--local", ("http", "https")),
        certificate_path=arguments.tls_cert,
        key_path=arguments.tls_key,
        address=address,
        port=port,
        advertise=advertise,
        advertise_port=arguments.advertise_port,
        tcp=not arguments.no_tcp,
        forwarded_for=arguments.x_forwarded_for,
        observe=not arguments.no_observe,
        x1=not arguments.no_x1,
        poll_timeout=arguments.poll_timeout,
        timeout=arguments.timeout,
        max_requests=arguments.max_requests,
        max_associations=arguments.max_associations,
        idle_timeout=arguments.idle_timeout,
        verification=ClientVerification.ca_file(local_ca) if local_ca else ClientVerification.system(),
    )


def _greeting(service: GatewayService, options: ServiceOptions) -> str:
    tcp = f", HTTPS at {options.advertise}" if options.advertise and options.tcp else ""
    return (
        f"CoAP over DTLS on UDP port {service.port} of {options.address}{tcp}, in front of {options.local}; "
        f"certificate's SHA-256 fingerprint {service.fingerprint}"
    )


def _base_url(url: str, option: str, schemes: tuple[str, ...]) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0 and url.isascii()
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or parts.username is not None:
        raise CommandError(f"{option} must be a URL such as {schemes[-1]}://example.com: {url!r}", EXIT_USAGE)
    return url.rstrip("/")


def _endpoint(text: str) -> tuple[str, int]:
    import ipaddress

    host, _, port = text.rpartition(":")
    try:
        address = str(ipaddress.ip_address(host.removeprefix("[").removesuffix("]")))
        number = int(port)
    except ValueError:
        number = -1
    if not 0 <= number < 65536:
        raise CommandError(f"--bind must be an IP address and a port: {text!r}", EXIT_USAGE)
    return address, number


def _port(text: str) -> int:
    number = int(text)
    if not 0 < number < 65536:
        raise ValueError
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise ValueError
    return seconds
