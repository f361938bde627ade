# SPDX-License-Identifier: AGPL-3.0-or-later
"""Real UDP on loopback, and losses in real time, because OpenSSL's timers run by the real clock."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import reactor as the_reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.udp import Port
from twisted.trial.unittest import SkipTest, TestCase

from synapse_lb.testing.memory import MemoryUDP
from synapse_lb.txdtls import errors
from synapse_lb.txdtls.certificates import generate_self_signed
from synapse_lb.txdtls.client import ClientAssociation, connect
from synapse_lb.txdtls.context import ClientVerification, make_client_context, make_server_context
from synapse_lb.txdtls.options import ClientOptions, ServerOptions
from synapse_lb.txdtls.port import DTLSServerPort
from tests.txdtls.support import NAMES, SERVER, Recorder, write_pair

reactor: Any = the_reactor


class DropOne:
    """A link that loses the datagram of one number, delivers some twice, or lets some overtake."""

    def __init__(self, *, drop: int = -1, duplicate: int = -1, delay: int = -1) -> None:
        self.count = 0
        self.lost, self._duplicate, self._delay = drop, duplicate, delay

    def fate(self, data: bytes) -> list[float]:
        number, self.count = self.count, self.count + 1
        if number == self.lost:
            return []
        if number == self._duplicate:
            return [0.0, 0.05]
        return [0.1] if number == self._delay else [0.0]

    def delivered(self, data: bytes) -> None:
        """Nothing to learn from it."""


class RealTimeTestCase(TestCase):
    """Contexts for servers and clients."""

    timeout = 60

    def setUp(self) -> None:
        paths = write_pair(self.mktemp(), *generate_self_signed(NAMES))
        self.server_context = make_server_context(*paths)
        self.client_context = make_client_context(ClientVerification.ca_file(paths[0]))


class LossTests(RealTimeTestCase):
    """Whatever single datagram of a handshake is lost, doubled or late, it completes."""

    def setUp(self) -> None:
        super().setUp()
        self.rtts: dict[DropOne, tuple[float | None, float | None]] = {}

    async def one(self, link: DropOne, session: bytes | None, cookie: str) -> ClientAssociation:
        """A handshake over such a link, a request and its answer; everything is cleaned up after."""
        network: Any = MemoryUDP(clock=reactor)
        handler, client_handler = Recorder(), Recorder()
        options = ServerOptions(cookie=cookie)
        server = DTLSServerPort(
            context=self.server_context, handler=handler, options=options, reactor=network
        )
        handler.reaction = lambda one, data: server.send(one, b"re " + data)
        network.listenUDP(SERVER[1], server)
        network.link = link
        association = await connect(
            network,
            *SERVER,
            context=self.client_context,
            session=session,
            options=ClientOptions(retransmit_after=1.0),
            handler=client_handler,
        )
        # A server whose last flight is lost sends it again when the client asks; a request that overtakes the
        # client's own last flight is lost. So ask again until there is an answer, as CoAP does.
        for attempt in range(20):
            association.send(b"%d" % attempt)
            await deferLater(reactor, 0.2)
            if client_handler.texts:
                break
        self.assertTrue(client_handler.texts)
        self.assertEqual(len(handler.up), 1)
        self.rtts[link] = server.rtt(handler.up[0]), association.rtt
        await association.close()
        await deferLater(reactor, 0.2)  # what was delayed arrives
        self.assertEqual((server.associations, server.handshakes), (0, 0))
        server.shutdown()
        return association

    async def every(self, session: bytes | None, count: int, cookie: str) -> list[ClientAssociation]:
        links = [DropOne(drop=n) for n in range(count)]
        links += [DropOne(duplicate=n) for n in range(count)] + [DropOne(delay=n) for n in range(count)]
        results = await gatherResults(
            [Deferred.fromCoroutine(self.one(link, session, cookie)) for link in links]
        )
        for link in links:
            self.assertGreater(link.count, count)
        return list(results)

    async def test_full_handshake(self) -> None:
        await self.every(None, 6, "always")
        for link, (server_rtt, client_rtt) in self.rtts.items():
            if link.lost == 3:  # the server's flight: an answer could be to either copy (Karn's algorithm)
                self.assertIsNone(server_rtt)
            elif link.lost == 0:  # the first hello; a later flight gives the sample
                self.assertLess(client_rtt or 9.0, 0.9)
            elif link.lost == -1:
                self.assertIsNotNone(server_rtt)
                self.assertIsNotNone(client_rtt)

    async def test_resumed_handshake(self) -> None:
        first = await self.one(DropOne(), None, "always")
        results = await self.every(first.session, 6, "always")
        self.assertEqual([association.resumed for association in results], [True] * 18)

    async def test_without_a_cookie(self) -> None:
        first, *_ = await self.every(None, 4, "auto")
        results = await self.every(first.session, 4, "auto")
        self.assertEqual([association.resumed for association in results], [True] * 12)


class LoopbackTests(RealTimeTestCase):
    """The same over sockets."""

    def serve(self, interface: str) -> tuple[DTLSServerPort, Recorder, Port]:
        handler = Recorder()
        server = DTLSServerPort(context=self.server_context, handler=handler, reactor=reactor)
        handler.reaction = lambda one, data: server.send(one, b"re " + data)
        port = reactor.listenUDP(0, server, interface=interface)

        def clean() -> Any:
            server.shutdown()
            return port.stopListening()

        self.addCleanup(clean)
        return server, handler, port

    async def converse(self, host: str, interface: str) -> None:
        server, handler, port = self.serve(interface)
        client_handler = Recorder()
        answered: Deferred[None] = Deferred()
        client_handler.reaction = lambda one, data: answered.callback(None)
        association = await connect(
            reactor, host, port.getHost().port, context=self.client_context, handler=client_handler
        )
        association.send(b"hello")
        await answered
        self.assertEqual(client_handler.texts, [b"re hello"])
        counters = association.counters
        self.assertEqual(counters.bytes_sent, server.counters.bytes_received)
        self.assertEqual(counters.bytes_received, server.counters.bytes_sent)
        self.assertEqual(counters.datagrams_sent, server.counters.datagrams_received)
        self.assertEqual(server.peer_address(1).host, association.peer_address.host)
        await association.close()
        for _ in range(100):
            if handler.lost:
                break
            await deferLater(reactor, 0.01)
        self.assertIsInstance(handler.lost[0][1], errors.PeerClosed)

    async def test_ipv4(self) -> None:
        await self.converse("127.0.0.1", "127.0.0.1")

    async def test_by_name(self) -> None:
        await self.converse("localhost", "127.0.0.1")

    async def test_ipv6(self) -> None:
        try:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
                probe.bind(("::1", 0))
        except OSError as error:
            raise SkipTest(f"there is no IPv6 loopback here: {error}") from error
        await self.converse("::1", "::1")

    async def test_a_port_where_nobody_listens(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
            unused.bind(("127.0.0.1", 0))
            number = unused.getsockname()[1]
        with self.assertRaises(errors.NetworkUnreachable):
            await connect(reactor, "127.0.0.1", number, context=self.client_context, handler=Recorder())

    async def test_a_name_that_does_not_exist(self) -> None:
        with self.assertRaises(errors.NameNotResolved):
            await connect(
                reactor, "no-such-host.invalid", 5684, context=self.client_context, handler=Recorder()
            )

    async def test_a_silent_port(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            silent.settimeout(10)
            options = ClientOptions(handshake_timeout=1.5, retransmit_after=1.0, hello_size=0)
            with self.assertRaises(errors.HandshakeTimeout):
                await connect(
                    reactor,
                    *silent.getsockname(),
                    context=self.client_context,
                    options=options,
                    handler=Recorder(),
                )
            first, second = silent.recv(2000), silent.recv(2000)
        self.assertEqual(first[13:], second[13:], "the same hello again")
        self.assertEqual((first[10], second[10]), (0, 1))

    async def test_shutdown_leaves_no_timer(self) -> None:
        server, _, port = self.serve("127.0.0.1")
        await deferLater(reactor, 0)  # trial sets its own timeout meanwhile
        before = len(reactor.getDelayedCalls())
        associations = [
            await connect(
                reactor, "127.0.0.1", port.getHost().port, context=self.client_context, handler=Recorder()
            )
            for _ in range(5)
        ]
        await deferLater(reactor, 0.1)  # the server's Finished comes after the client may send
        self.assertEqual(len(reactor.getDelayedCalls()), before + 1, "one timer for all of them")
        server.shutdown()
        self.assertEqual(len(reactor.getDelayedCalls()), before)
        for association in associations:
            await association.close()
