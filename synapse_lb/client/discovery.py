# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where a homeserver is, and whether it speaks MSC3079: `/.well-known/matrix/client` and `/versions`.

See the Matrix client-server API, "Server Discovery", and MSC3079, "Versioning".
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from synapse_lb.client.errors import BadUri, ClientError, DiscoveryError
from synapse_lb.client.https import HttpsLimits, HttpsResponse, HttpsTransport
from synapse_lb.client.uri import CoapUri, parse_server
from synapse_lb.txdtls.context import ClientVerification

WELL_KNOWN: Final = "/.well-known/matrix/client"
VERSIONS: Final = "/_matrix/client/versions"
ADVERTISED: Final = ("m.low_bandwidth", "org.matrix.msc3079.low_bandwidth")
"""Where `/versions` tells of MSC3079: the stable name, and the unstable one."""

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_MAX_REDIRECTS: Final = 5
_LIMITS: Final = HttpsLimits(connect_timeout=10.0, timeout=30.0, max_body=256 * 1024, max_connections=1)


@attrs.frozen
class Discovered:
    """What is known of a homeserver.

    Attributes:
        base_url: of its client-server API over HTTPS, without a slash at the end.
        coap: where it speaks MSC3079; None if it says nothing of it.
        features: what it says of MSC3079 (`observe`, `q_block`, ...).
    """

    base_url: str
    coap: CoapUri | None
    features: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.define
class DiscoveryCounters:
    """What a `Discovery` has done.

    Attributes:
        asked: look-ups over the network.
        cached: look-ups that were answered from what is known.
        shared: look-ups that joined one which was under way.
        failed: look-ups over the network that failed; their outcome is not kept.
        evicted: servers forgotten because there were too many.
    """

    asked: int = 0
    cached: int = 0
    shared: int = 0
    failed: int = 0
    evicted: int = 0


@attrs.define
class _Asking:
    """A look-up under way."""

    waiters: list[Deferred[Discovered]] = attrs.field(factory=list)
    work: Deferred[None] | None = None


class Discovery:
    """Finds homeservers, and remembers them for a while; may be shared by any number of clients.

    Args:
        reactor: Twisted's reactor.
        verification: how the servers' certificates are checked over HTTPS; None trusts the system's authorities.
        lifetime: seconds that an outcome is good for.
        max_servers: outcomes kept; beyond that the one that was used least recently goes.

    Attributes:
        counters: what it has done.

    Raises:
        AuthoritiesError: the file of the authorities cannot be used.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        verification: ClientVerification | None = None,
        lifetime: float = 3600.0,
        max_servers: int = 256,
    ) -> None:
        self.counters = DiscoveryCounters()
        self._reactor = reactor
        self._https = HttpsTransport(reactor, verification or ClientVerification.system(), _LIMITS)
        self._lifetime = lifetime
        self._max_servers = max_servers
        self._known: OrderedDict[str, tuple[Discovered, float]] = OrderedDict()
        self._asking: dict[str, _Asking] = {}

    def look_up(self, server: str) -> Deferred[Discovered]:
        """Find a homeserver.

        Args:
            server: as `home_of` gives it.

        Returns:
            A Deferred that fails with a `DiscoveryError`; cancelling it ends the look-up if nobody else waits.
        """
        waiter: Deferred[Discovered] = Deferred(lambda deferred: self._leave(server, deferred))
        known = self._known.get(server)
        if known is not None and self._reactor.seconds() < known[1]:
            self._known.move_to_end(server)
            self.counters.cached += 1
            waiter.callback(known[0])
        elif server in self._asking:
            self.counters.shared += 1
            self._asking[server].waiters.append(waiter)
        else:
            self.counters.asked += 1
            asking = self._asking[server] = _Asking([waiter])
            asking.work = Deferred.fromCoroutine(self._look_up(server)).addBoth(self._found, server)
        return waiter

    def forget(self, server: str) -> None:
        """Ask anew the next time."""
        self._known.pop(server, None)

    def close(self) -> Deferred[None]:
        """End what is under way and close the connections. Idempotent.

        Returns:
            A Deferred that fires when they are closed.
        """
        return self._https.close()

    async def _look_up(self, server: str) -> Discovered:
        try:
            base_url = await self._base_url(server)
            response = await self._https.fetch("GET", base_url + VERSIONS, headers=_ACCEPT)
        except DiscoveryError:
            raise
        except ClientError as error:
            raise DiscoveryError(f"{server} cannot be asked: {error}") from error
        versions = _object(response)
        if response.status != 200 or not isinstance(versions.get("versions"), list):
            raise DiscoveryError(f"{base_url} is no homeserver: its {VERSIONS} has no versions")
        return _discovered(base_url, versions)

    async def _base_url(self, server: str) -> str:
        """What `/.well-known` says, or the server itself if it has none."""
        url = server + WELL_KNOWN
        for _ in range(_MAX_REDIRECTS + 1):
            response = await self._https.fetch("GET", url, headers=_ACCEPT)
            if response.status not in _REDIRECTS:
                break
            try:
                url = urljoin(url, response.header("location") or "")
            except ValueError as error:
                raise DiscoveryError(f"{url} leads nowhere: {error}") from error
            _check_url(url, server)
        if response.status == 404:
            return server
        if response.status != 200:
            raise DiscoveryError(f"{url} answers with HTTP status {response.status}")
        homeserver = _object(response).get("m.homeserver")
        base_url = homeserver.get("base_url") if isinstance(homeserver, dict) else None
        if not isinstance(base_url, str):
            raise DiscoveryError(f"{url} names no homeserver")
        _check_url(base_url, server)
        return base_url.rstrip("/")

    def _found(self, result: Discovered | Failure, server: str) -> None:
        asking = self._asking.pop(server)
        if isinstance(result, Failure):
            self.counters.failed += 1
            if result.check(CancelledError) and not asking.waiters:
                return
        else:
            self._known[server] = result, self._reactor.seconds() + self._lifetime
            self._known.move_to_end(server)
            while len(self._known) > self._max_servers:
                self._known.popitem(last=False)
                self.counters.evicted += 1
        for waiter in asking.waiters:
            waiter.callback(result) if not isinstance(result, Failure) else waiter.errback(result)

    def _leave(self, server: str, waiter: Deferred[Discovered]) -> None:
        asking = self._asking.get(server)
        if asking is None or waiter not in asking.waiters:
            return
        asking.waiters.remove(waiter)
        if not asking.waiters and asking.work is not None:
            asking.work.cancel()


_ACCEPT: Final = {"Accept": "application/json"}


def home_of(server: str) -> str | None:
    """The HTTPS address at which discovery begins.

    Args:
        server: `https://example.com`, or a user id `@alice:example.com`. `http://` is for the own machine only.

    Returns:
        It, without a slash at the end; None if it is none of these, but perhaps a `coaps` address.

    Raises:
        BadUri: it cannot be used.
    """
    if server.startswith("@"):
        name = server.partition(":")[2]
        if not name:
            raise BadUri(f"a user id without a server name: {server!r}")
        server = f"https://{name}"
    elif server.partition("://")[0].lower() not in ("https", "http"):
        return None
    try:
        _check_url(server, server)
    except DiscoveryError as error:
        raise BadUri(str(error)) from error
    return server.rstrip("/")


def _check_url(url: str, server: str) -> None:
    """A URL must be HTTPS, or on the machine that the server is on too.

    Raises:
        DiscoveryError: it is neither.
    """
    try:
        parts, base = urlsplit(url), urlsplit(server)
        usable = url.isascii() and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or parts.username is not None or " " in url:
        raise DiscoveryError(f"not a usable URL: {url!r}")
    if parts.scheme == "https":
        return
    if parts.scheme != "http" or not {parts.hostname, base.hostname} <= _LOOPBACK:
        raise DiscoveryError(f"not HTTPS: {url!r}")


def _object(response: HttpsResponse) -> dict[str, Any]:
    try:
        value = json.loads(response.body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _discovered(base_url: str, versions: Mapping[str, Any]) -> Discovered:
    """What `/versions` says; an advertisement that makes no sense is none."""
    advertised = next((versions[name] for name in ADVERTISED if isinstance(versions.get(name), dict)), None)
    if advertised is None:
        return Discovered(base_url, None)
    port = advertised.get("dtls")
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
        return Discovered(base_url, None)
    host = urlsplit(base_url).hostname or ""
    address = f"[{host}]" if ":" in host else host
    try:
        found = parse_server(f"coaps://{address}:{port}")
    except BadUri as error:
        raise DiscoveryError(f"{base_url} is no address for CoAP: {error}") from error
    return Discovered(base_url, found, dict(advertised))
