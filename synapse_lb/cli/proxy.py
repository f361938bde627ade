# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb proxy`: a homeserver on localhost for any Matrix client; what it is asked goes on over CoAP."""

from __future__ import annotations

import argparse
import ipaddress
import re
from typing import TYPE_CHECKING, Any, Final

from synapse_lb.cli.errors import EXIT_CERTIFICATE_FILE, EXIT_CONNECT, EXIT_OK, EXIT_USAGE, CommandError
from synapse_lb.cli.terminal import Terminal

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from synapse_lb.cli.main import Subparsers
    from synapse_lb.proxy.options import ProxyOptions
    from synapse_lb.proxy.proxy import Proxy

DEFAULT_LISTEN: Final = "127.0.0.1:8077"
_LISTEN: Final = re.compile(r"(?:(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+):)?([0-9]{1,5})")
_SCREEN_INTERVAL: Final = 1.0
"""s between two statistics on a screen, where each replaces the one before."""

_LOG_INTERVAL: Final = 60.0
"""s between two lines of statistics in a log."""

_DESCRIPTION = """\
Answers HTTP on this machine as a homeserver does, and asks the homeserver over CoAP.
Give a Matrix client the address that is printed as its homeserver.
"""
_EPILOG = """\
examples:
  synapse-lb proxy https://example.org
  synapse-lb proxy --lean @alice:example.org
  synapse-lb proxy --https https://matrix.example.org example.org:8448
  synapse-lb proxy --listen 9000 --cacert localhost.crt coaps://localhost:8448

The statistics are at http://ADDRESS/_lb/status too.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add `proxy` to the command."""
    parser = subparsers.add_parser(
        "proxy",
        help="be a homeserver on localhost for any Matrix client, and go on over CoAP",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "homeserver",
        metavar="HOMESERVER",
        help="https://example.com or a user id, and the rest is discovered; or coaps://host:port or host:port, of its "
        "CoAP",
    )
    parser.add_argument(
        "--https",
        metavar="URL",
        help="with an address of its CoAP: base URL of its client-server API over HTTPS, for media, single sign-on "
        "and what else CoAP cannot carry, and for times when UDP does not get through; without it these fail",
    )
    parser.add_argument(
        "--listen",
        metavar="[ADDRESS:]PORT",
        default=DEFAULT_LISTEN,
        help=f"where to listen for HTTP; 0 takes a free port (default: {DEFAULT_LISTEN})",
    )
    parser.add_argument(
        "--lean", action="store_true", help="leave out typing, presence and read receipts, in both directions"
    )
    parser.add_argument(
        "--observe",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="answer /sync from what the homeserver sends by itself (default), or ask it each time",
    )
    parser.add_argument("--quiet", action="store_true", help="no statistics on standard error")
    group = parser.add_argument_group("certificates")
    group.add_argument("-k", "--insecure", action="store_true", help="take any certificate")
    group.add_argument("--cacert", metavar="FILE", help="trust the certificates of this PEM file only")
    group.add_argument(
        "--pin",
        metavar="SHA256",
        help="take the certificate with this SHA-256 fingerprint for CoAP and no other",
    )
    parser.set_defaults(run=run)


def parse_listen(text: str) -> tuple[str, int]:
    """Read `--listen`: address and port.

    Raises:
        CommandError: it is none.
    """
    match = _LISTEN.fullmatch(text)
    if match is None or int(match[2]) > 65535:
        raise CommandError(f"--listen: {text!r} is no port and no address with a port", EXIT_USAGE)
    host = (match[1] or "127.0.0.1").strip("[]")
    if host == "localhost":
        host = "127.0.0.1"
    try:
        return str(ipaddress.ip_address(host)), int(match[2])
    except ValueError:
        raise CommandError(f"--listen: {host!r} is no IP address", EXIT_USAGE) from None


def run(arguments: argparse.Namespace, terminal: Terminal) -> Deferred[int]:
    """Serve until interrupted.

    Returns:
        A Deferred of the exit status. It fails with a `CommandError` if it cannot listen.
    """
    from twisted.internet.defer import Deferred

    return Deferred.fromCoroutine(_serve(arguments, terminal))


async def _serve(arguments: argparse.Namespace, terminal: Terminal) -> int:
    from twisted.internet.defer import Deferred
    from twisted.internet.error import CannotListenError

    from synapse_lb.client.errors import AuthoritiesError
    from synapse_lb.proxy.proxy import Proxy
    from synapse_lb.proxy.web import make_site

    host, port = parse_listen(arguments.listen)
    options = configuration(arguments)
    try:
        proxy = Proxy(terminal.reactor, options)
    except AuthoritiesError as error:
        raise CommandError(str(error), EXIT_CERTIFICATE_FILE) from None
    try:
        site = make_site(proxy, max_body=options.max_body)
        listening = terminal.reactor.listenTCP(port, site, interface=host)
    except CannotListenError as error:
        await proxy.close()
        raise CommandError(
            f"cannot listen on {host} port {port}: {error.socketError}", EXIT_CONNECT
        ) from None
    terminal.write(f"{_url(host, listening.getHost().port)}\n")
    if not ipaddress.ip_address(host).is_loopback:
        terminal.error(
            "warning: anybody who reaches this address can use the proxy, and reads what is said with it: "
            "HTTP is not encrypted. Put a reverse proxy with TLS before it."
        )
    line = None if arguments.quiet else StatisticsLine(terminal, proxy)
    finished: Deferred[None] = Deferred()
    try:
        await _until_stopped(terminal, finished)
    finally:
        await listening.stopListening()
        await proxy.close()
        if line is not None:
            line.end()
        finished.callback(None)
    return EXIT_OK


async def _until_stopped(terminal: Terminal, finished: Deferred[None]) -> None:
    """Wait for an interrupt, or for a signal that stops the reactor, which then waits until all is finished."""
    from twisted.internet.defer import Deferred

    stopped: Deferred[bool] = Deferred()

    def shut_down() -> Deferred[None]:
        stopped.callback(True)
        return finished

    take_back = terminal.on_interrupt(lambda: stopped.callback(False))
    trigger = terminal.reactor.addSystemEventTrigger("before", "shutdown", shut_down)
    try:
        by_reactor = await stopped
    finally:
        take_back()
    if not by_reactor:
        terminal.reactor.removeSystemEventTrigger(trigger)


class StatisticsLine:
    """One line on standard error that is always up to date; in a log, one a minute if anything has happened.

    Args:
        terminal: where it is written.
        proxy: whose statistics.
    """

    def __init__(self, terminal: Terminal, proxy: Proxy) -> None:
        self._terminal = terminal
        self._proxy = proxy
        self._is_screen = terminal.stderr.isatty()
        self._interval = _SCREEN_INTERVAL if self._is_screen else _LOG_INTERVAL
        self._last = ""
        self._timer: Any = terminal.reactor.callLater(self._interval, self._tick)

    def end(self) -> None:
        """Write the last one."""
        if self._timer.active():
            self._timer.cancel()
        self._show()
        if self._is_screen and self._last:
            self._terminal.error("")

    def _tick(self) -> None:
        self._show()
        self._timer = self._terminal.reactor.callLater(self._interval, self._tick)

    def _show(self) -> None:
        from synapse_lb.proxy.statistics import line

        numbers = self._proxy.numbers()
        text = line(numbers)
        if text == self._last or not numbers["requests"]:
            return
        if self._is_screen:
            width = max(self._terminal.columns - 1, 20)
            self._terminal.stderr.write("\r" + text[:width].ljust(min(len(self._last), width)))
            self._terminal.stderr.flush()
        else:
            self._terminal.error(text)
        self._last = text


def configuration(arguments: argparse.Namespace) -> ProxyOptions:
    """The proxy's configuration.

    Raises:
        CommandError: an argument makes no sense.
    """
    from synapse_lb.cli.coap_transfer import verification
    from synapse_lb.proxy.options import ProxyOptions

    exclusive = [name for name in ("insecure", "cacert", "pin") if getattr(arguments, name)]
    if len(exclusive) > 1:
        raise CommandError(f"--{exclusive[0]} and --{exclusive[1]} exclude each other", EXIT_USAGE)
    discover = _addresses(arguments)
    return ProxyOptions(
        coaps=arguments.homeserver if discover is None else None,
        https=arguments.https,
        discover=discover,
        verification=verification(arguments),
        lean=arguments.lean,
        observe=arguments.observe,
    )


def _addresses(arguments: argparse.Namespace) -> str | None:
    """Check the homeserver's addresses.

    Returns:
        That at which discovery begins, or None if they are given.

    Raises:
        CommandError: one makes no sense.
    """
    from synapse_lb.client.discovery import home_of
    from synapse_lb.client.errors import BadUri
    from synapse_lb.client.uri import parse_server

    try:
        discover = home_of(arguments.homeserver)
        if discover is None:
            parse_server(arguments.homeserver)
        https = None if arguments.https is None else home_of(arguments.https)
    except BadUri as error:
        raise CommandError(str(error), EXIT_USAGE) from None
    if arguments.https is not None and (https is None or arguments.https.startswith("@")):
        raise CommandError(f"--https: {arguments.https!r} is no base URL", EXIT_USAGE)
    if arguments.https is not None and discover is not None:
        raise CommandError("--https goes with an address of CoAP; here it is discovered", EXIT_USAGE)
    return discover


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
