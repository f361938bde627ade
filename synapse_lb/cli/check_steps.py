# SPDX-License-Identifier: AGPL-3.0-or-later
"""The steps of `synapse-lb check`: what a client goes through, one thing at a time.

    discovery, advertised -> udp, rtt -> certificate, trust -> versions -> mtu, q-block, x1, observe -> resumption

What needs a step that has failed is skipped.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

from cryptography import x509
from twisted.internet.defer import Deferred

from synapse_lb.cli.check_report import Report, Verdict
from synapse_lb.client.client import LowBandwidthClient
from synapse_lb.client.connector import AssociationInfo
from synapse_lb.client.discovery import ADVERTISED, VERSIONS, Discovered, Discovery, home_of
from synapse_lb.client.errors import CertificateError, ClientError, ConnectError, ConnectTimeout, ResolveError
from synapse_lb.client.observation import Change, State
from synapse_lb.client.uri import CoapUri, parse_server
from synapse_lb.coap.events import CoapRequest
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.txdtls.context import ClientVerification

T = TypeVar("T")

EXPIRES_SOON: Final = 14
"""days."""
_SLOW: Final = 0.6
"""s of a round trip, beyond which it is worth a word."""
_HOST_AND_PORT: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^:/@\[\]]+):[0-9]+")
_PADDING: Final = 220
"""Bytes of each option with which a request is made as large as a datagram."""
_NO_SYNC: Final = '{"room":{"rooms":[]},"presence":{"types":[]},"account_data":{"types":[]}}'

OK, WARNING, FAILED, SKIPPED = Verdict.OK, Verdict.WARNING, Verdict.FAILED, Verdict.SKIPPED


class Checker:
    """Checks one server.

    Args:
        reactor: Twisted's reactor.
        server: a server name, a user id, an https address; or host:port or a coaps address.
        verification: how certificates are checked.
        pinned: how that of DTLS is checked instead, or None.
        token: access token, or None.
        timeout: seconds for each step.

    Raises:
        BadUri: the server makes no sense.
        AuthoritiesError: the file of the authorities cannot be used.
    """

    def __init__(
        self,
        reactor: Any,
        server: str,
        *,
        verification: ClientVerification,
        pinned: ClientVerification | None,
        token: str | None,
        timeout: float,
    ) -> None:
        self.report = Report(server)
        self._reactor = reactor
        self._verification = verification
        self._for_dtls = pinned or verification
        self._token = token
        self._timeout = timeout
        self._uri: CoapUri | None = None
        self._home: str | None = None
        self._trusted = False
        self._advertised: Mapping[str, Any] = {}
        if server.lower().startswith("coaps:") or _HOST_AND_PORT.fullmatch(server):
            self._uri = parse_server(server)
        else:
            self._home = home_of(server if "://" in server or server.startswith("@") else f"https://{server}")
        self._discovery = Discovery(reactor, verification=verification)

    async def run(self) -> Report:
        """Make all checks; nothing that the server does makes it fail."""
        try:
            if self._uri is None:
                await self._discover()
            if self._uri is None:
                return self.report
            client = self._client(ClientVerification.none())
            try:
                info = await self._connect(client)
                if info is not None:
                    self._judge_certificate(info)
                    self._trusted = await self._trust()
                    if await self._versions(client):
                        await self._features(client, info)
                        await self._resume(client)
            finally:
                await client.close()
            return self.report
        finally:
            await self._discovery.close()

    def _client(self, verification: ClientVerification, **options: Any) -> LowBandwidthClient:
        assert self._uri is not None
        host = f"[{self._uri.host}]" if ":" in self._uri.host else self._uri.host
        options.setdefault("extensions", False)
        return LowBandwidthClient(
            self._reactor,
            f"coaps://{host}:{self._uri.port}",
            verification=verification,
            connect_timeout=self._timeout,
            **options,
        )

    async def _within(self, work: Awaitable[T]) -> T:
        """Wait for something, but not for longer than a step may take."""

        async def wait() -> T:
            return await work

        deferred = Deferred.fromCoroutine(wait())
        deferred.addTimeout(self._timeout, self._reactor, _too_late)
        return await deferred

    async def _discover(self) -> None:
        assert self._home is not None
        try:
            found = await self._within(self._discovery.look_up(self._home))
        except ClientError as error:
            self.report.add(
                "discovery",
                FAILED,
                str(error),
                "serve /.well-known/matrix/client and /_matrix/client/versions over HTTPS, with a certificate that "
                "clients accept; or give host:port of the UDP port to leave this out",
            )
            return
        where = "its own address" if found.base_url == self._home else "as /.well-known says"
        self.report.add("discovery", OK, f"the homeserver is {found.base_url} ({where})")
        self._note_advertised(found)

    def _note_advertised(self, found: Discovered) -> None:
        if found.coap is None:
            self.report.add(
                "advertised",
                FAILED,
                f"{VERSIONS} does not name {ADVERTISED[-1]}: low bandwidth is off, or not advertised",
                "add the module and a listener of type lowbandwidth to Synapse's configuration, with advertise: true; "
                "with workers, the module belongs to all processes (docs/install.md)",
            )
            return
        self._uri, self._advertised = found.coap, found.features
        self.report.add("advertised", OK, f"CoAP at UDP port {found.coap.port} of {found.coap.host}")

    async def _connect(self, client: LowBandwidthClient) -> AssociationInfo | None:
        assert self._uri is not None
        place = f"UDP port {self._uri.port} of {self._uri.host}"
        try:
            info = await self._within(client.connect())
        except ResolveError as error:
            self.report.add("udp", FAILED, str(error), "give the host an address record in the DNS")
        except (ConnectTimeout, TimeoutError):
            self.report.add(
                "udp",
                FAILED,
                f"no answer from {place} within {self._timeout:g} s",
                "let UDP through the firewall, the NAT and the container to that port; a reverse proxy for HTTP does "
                "not carry it (docs/firewall.md)",
            )
        except ClientError as error:
            self.report.add(
                "udp",
                FAILED,
                f"{place}: {error}",
                "look whether Synapse listens there (docs/troubleshooting.md)",
            )
        else:
            self.report.add("udp", OK, f"{place} ({info.address}) answers; DTLS 1.2, {info.cipher}")
            self._judge_rtt(info.rtt)
            return info
        return None

    def _judge_rtt(self, rtt: float | None) -> None:
        if rtt is None:
            self.report.add(
                "rtt",
                WARNING,
                "datagrams were lost in the handshake",
                "check again; if it stays so, the way is lossy",
            )
        elif rtt > _SLOW:
            self.report.add("rtt", WARNING, f"{1000 * rtt:.0f} ms", "it works, as slowly as the way is")
        else:
            self.report.add("rtt", OK, f"{1000 * rtt:.1f} ms")

    def _judge_certificate(self, info: AssociationInfo) -> None:
        certificate = x509.load_pem_x509_certificate(info.certificate_pem)
        names = ", ".join(_names(certificate)) or "none"
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        now = datetime.datetime.now(datetime.timezone.utc)
        days = (ends - now).days
        text = f"names: {names}; valid until {ends:%Y-%m-%d} ({days} days); SHA-256 {info.certificate_sha256}"
        renew = "renew it, and send SIGHUP to Synapse (docs/certificates.md)"
        if now > ends:
            self.report.add("certificate", FAILED, f"expired on {ends:%Y-%m-%d}; {text}", renew)
        elif now < begins:
            self.report.add(
                "certificate", FAILED, f"not valid before {begins:%Y-%m-%d}; {text}", "check the clocks"
            )
        elif days < EXPIRES_SOON:
            self.report.add("certificate", WARNING, text, renew)
        else:
            self.report.add("certificate", OK, text)

    async def _trust(self) -> bool:
        """Connect once more, now with the checks that a client makes."""
        client = self._client(self._for_dtls)
        try:
            await self._within(client.connect())
        except CertificateError as error:
            self.report.add(
                "trust",
                FAILED,
                str(error),
                "use a certificate that names the host and whose authority clients know, with its intermediates in the "
                "file; or have clients pin the fingerprint (--pin)",
            )
        except (ConnectError, TimeoutError) as error:
            self.report.add("trust", WARNING, f"a second handshake failed: {error}", "check again")
        else:
            self.report.add("trust", OK, f"accepted ({self._for_dtls.mode.value})")
            return True
        finally:
            await client.close()
        return False

    async def _versions(self, client: LowBandwidthClient) -> bool:
        try:
            answer = await self._within(client.request("GET", VERSIONS))
        except (ClientError, TimeoutError) as error:
            self.report.add(
                "versions",
                FAILED,
                f"no answer to {VERSIONS}: {error or 'timeout'}",
                "perhaps small datagrams pass and larger ones do not: lower the listener's mtu; look at Synapse's log",
            )
            return False
        body = answer.body if isinstance(answer.body, dict) else {}
        versions = body.get("versions")
        if answer.status != 200 or not isinstance(versions, list) or not versions:
            self.report.add(
                "versions", FAILED, f"{VERSIONS} answers {answer.status}", "is it a Matrix homeserver?"
            )
            return False
        said: Mapping[str, Any] = next(
            (body[name] for name in ADVERTISED if isinstance(body.get(name), dict)), {}
        )
        if self._advertised and said != self._advertised:
            self.report.add(
                "versions",
                WARNING,
                "/versions says other things over CoAP than over HTTPS",
                "load the module in all processes of the homeserver, with the same listeners; is a cache before it?",
            )
        else:
            tables = f"keys {said.get('cbor_enum_version')}, paths {said.get('coap_enum_version')}"
            self.report.add("versions", OK, f"Matrix up to {versions[-1]}; tables: {tables}")
        self._advertised = said
        return True

    async def _features(self, client: LowBandwidthClient, info: AssociationInfo) -> None:
        await self._attempt("mtu", lambda: self._mtu(client, info), "lower the listener's mtu")
        if self._has("q_block"):
            await self._attempt("q-block", self._q_block, "set q_block: false in the listener's tuning")
        if self._has("x1"):
            await self._attempt("x1", self._x1, "set x1: false in the listener")
        if not self._has("observe"):
            return
        if self._token is None:
            self.report.add("observe", SKIPPED, "the server has it; give --token to try it")
        elif not self._trusted:
            self.report.add("observe", SKIPPED, "the token is not shown to a server that is not trusted")
        else:
            await self._attempt("observe", self._observe, "look at Synapse's log")

    def _has(self, feature: str) -> bool:
        if self._advertised.get(feature):
            return True
        name = feature.replace("_", "-")
        self.report.add(name, SKIPPED, "the server does not have it, or it is switched off")
        return False

    async def _attempt(self, name: str, step: Callable[[], Awaitable[str]], advice: str) -> None:
        """Report what a step says; `_Broken`, an error or a timeout fail it."""
        try:
            self.report.add(name, OK, await self._within(step()))
        except (ClientError, TimeoutError, _Broken) as error:
            self.report.add(name, FAILED, str(error) or "no answer in time", advice)

    async def _mtu(self, client: LowBandwidthClient, info: AssociationInfo) -> str:
        """A request that fills a datagram, and an answer that is several blocks."""
        options = Options()
        for segment in VERSIONS.strip("/").split("/"):
            options = options.with_option(OptionNumber.URI_PATH, segment.encode())
        room = info.max_message_size - 80
        while room > 10:
            size = min(_PADDING, room)
            options = options.with_option(OptionNumber.URI_QUERY, b"padding=" + b"x" * max(0, size - 11))
            room -= size
        before = client.counters
        answer = await client.raw_request(CoapRequest(Code.GET, options))
        if answer.code != Code.CONTENT:
            raise _Broken(
                f"a request of a full datagram is answered with {answer.code >> 5}.{answer.code & 31:02}"
            )
        spent = client.counters - before
        return (
            f"messages of {info.max_message_size} bytes fit into a datagram; a full one passes up, and "
            f"{spent.bytes_received} bytes in {spent.datagrams_received} datagrams came down"
        )

    async def _q_block(self) -> str:
        client = self._client(ClientVerification.none(), q_block=True)
        try:
            await client.request("GET", VERSIONS)
            if client.endpoint_counters.q_block_fallbacks:
                raise _Broken("it is advertised, but the server refuses it")
        finally:
            await client.close()
        return "large bodies come many blocks at a time"

    async def _x1(self) -> str:
        client = self._client(ClientVerification.none(), extensions=True)
        try:
            await client.request("GET", VERSIONS)
            if not client.speaks_x1:
                raise _Broken("it is advertised, but the server does not answer in it")
        finally:
            await client.close()
        return "version 1 is spoken"

    async def _observe(self) -> str:
        """Observe /sync until the server has notified once; what comes is not looked at.

        The one step that shows the token: on an association of its own, whose certificate is verified.
        """
        assert self._token is not None
        client = self._client(self._for_dtls)
        told: Deferred[str] = Deferred()

        def changed(change: Change) -> None:
            if told.called:
                return
            if change.state is State.OBSERVING:
                told.callback("a registration was accepted and the first result pushed")
            elif change.state is State.POLLING:
                told.errback(_Broken("the server answers, but does not notify"))
            elif change.state is State.ENDED:
                told.errback(_Broken(f"refused: {change.error}"))

        observation = client.observe_sync(
            None,
            lambda _: None,
            token=self._token,
            filter=_NO_SYNC,
            set_presence="offline",
            on_change=changed,
        )
        observation.done.addErrback(lambda _: None)  # `changed` has told of it.
        try:
            return await told
        finally:
            await observation.stop()
            await client.close()

    async def _resume(self, client: LowBandwidthClient) -> None:
        session = client.session
        again = self._client(ClientVerification.none(), session=session)
        try:
            await client.close()
            info = await self._within(again.connect())
        except (ClientError, TimeoutError) as error:
            self.report.add("resumption", FAILED, f"a later handshake failed: {error}", "check again")
        else:
            if info.resumed:
                self.report.add("resumption", OK, "a session is resumed: later handshakes are short")
            else:
                self.report.add(
                    "resumption",
                    WARNING,
                    "a session is not resumed: each handshake is a full one",
                    "behind a balancer, send a client always to the same process; a new certificate ends sessions",
                )
        finally:
            await again.close()


class _Broken(Exception):
    """A step has shown that something does not work."""


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [str(each.value) for each in found]


def _too_late(_: object, limit: float) -> Any:
    raise TimeoutError(f"no answer within {limit:g} s")
