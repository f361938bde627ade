# SPDX-License-Identifier: AGPL-3.0-or-later
"""The relay that counts, and what it says of each byte: with the real client, a real gateway and real datagrams."""

from __future__ import annotations

import random

from twisted.internet.defer import Deferred

from synapse_lb.cli.wire.dissect import Datagram, Dissector, Part, coap_parts, option_name
from synapse_lb.cli.wire.explain import explained, summed
from synapse_lb.cli.wire.operations import Sizes
from synapse_lb.cli.wire.relay import Counted, CountingRelay, CountsDiffer
from synapse_lb.client.client import LowBandwidthClient
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, Type
from synapse_lb.coap.options import Options
from synapse_lb.txdtls.context import ClientVerification
from tests.client.harness import REACTOR, Dispatcher, LoopbackTestCase, RecordingGateway

TYPING = "/_matrix/client/r0/rooms/!r:x/typing/@a:x"
TOKEN = "syt_" + "t" * 34


class RelayTests(LoopbackTestCase):
    """Real handshakes and requests."""

    def setUp(self) -> None:
        super().setUp()
        server = self.start_server(RecordingGateway(Dispatcher()))
        self.relay = CountingRelay(REACTOR, ("127.0.0.1", server.port))
        self.relay.start()
        self.addCleanup(self.relay.stop)
        self.client = self.through_relay()

    def through_relay(self, session: bytes | None = None) -> LowBandwidthClient:
        client = LowBandwidthClient(
            REACTOR,
            f"coaps://127.0.0.1:{self.relay.port}",
            verification=ClientVerification.ca_file(self.certificate.path),
            keylog=self.relay.keylog,
            session=session,
        )
        self.addCleanup(client.close)
        return client

    async def typing(self, client: LowBandwidthClient) -> Counted:
        async def work() -> None:
            await client.request("PUT", TYPING, json={"typing": True}, token=TOKEN)

        return await self.relay.counted(client, work)

    async def test_every_byte_has_a_name(self) -> None:
        """The parts of all datagrams are the bytes that were counted, and nothing stays encrypted."""
        counted = await self.typing(self.client)
        for out, size in (
            (True, counted.traffic.ip_bytes_sent),
            (False, counted.traffic.ip_bytes_received),
        ):
            chosen = [each for each in counted.datagrams if each.out is out]
            self.assertEqual(sum(each.size for each in chosen), size)
        names = [part.name for part in summed(counted.datagrams)]
        for name in ("ClientHello", "ServerHello", "Certificate", "Finished", "Uri-Path", "access token"):
            self.assertIn(name, names)
        self.assertEqual([name for name in names if "encrypted" in name], [])

    async def test_a_request_byte_by_byte(self) -> None:
        """Of one on an open association, and its answer."""
        await self.typing(self.client)
        counted = await self.typing(self.client)
        request, answer = counted.datagrams
        self.assertTrue(request.out)
        self.assertEqual(
            request.parts,
            (
                Part("IPv4, UDP", 28),
                Part("DTLS", 29),
                Part("CoAP", 4),
                Part("token", 1),
                Part("Uri-Path", 2),  # Y
                Part("Uri-Path", 5),
                Part("Uri-Path", 5),
                Part("Content-Format", 2),
                Part("payload marker", 1),
                Part("payload", 4),
            ),
        )
        self.assertFalse(answer.out)
        self.assertEqual(answer.parts[:2], request.parts[:2])

    async def test_resumed(self) -> None:
        """Keys of a resumed session are found too."""
        await self.typing(self.client)
        session = self.client.session
        assert session is not None
        await self.client.close()
        counted = await self.typing(self.through_relay(session))
        names = [part.name for part in summed(counted.datagrams)]
        self.assertNotIn("Certificate", names)
        self.assertEqual([name for name in names if "encrypted" in name], [])
        self.assertIn("payload", names)

    async def test_a_client_that_counts_wrongly(self) -> None:
        """The two counts must be the same."""
        other = LowBandwidthClient(REACTOR, "coaps://127.0.0.1:1")
        self.addCleanup(other.close)

        async def work() -> None:
            await self.client.request("GET", "/_matrix/client/r0/sync")

        counting = Deferred.fromCoroutine(self.relay.counted(other, work))
        await self.assertFailure(counting, CountsDiffer)

    async def test_explained(self) -> None:
        """As `--explain` shows it."""
        await self.typing(self.client)
        counted = await self.typing(self.client)
        text = explained("A mode", {"typing": counted.datagrams}, Sizes())
        self.assertIn("  → 81: IPv4, UDP 28; DTLS 29; CoAP 4; token 1; Uri-Path 2 + 5 + 5; ", text)
        many = explained("A mode", {"typing": counted.datagrams * 5}, Sizes())
        self.assertIn("  → 5 packets, 405: IPv4, UDP 140; DTLS 145;", many)
        self.assertEqual((counted.traffic.datagrams_sent, counted.traffic.bytes_sent), (1, 53))


class DissectTests(LoopbackTestCase):
    """Without a network."""

    def test_options(self) -> None:
        """Their sizes add up to those of the message, whatever their numbers and lengths."""
        generator = random.Random(1)
        for _ in range(200):
            options = Options()
            for _ in range(generator.randrange(5)):
                number = generator.choice((1, 6, 11, 12, 13, 15, 258, 300, 65_000))
                options = options.with_option(
                    number, bytes(generator.choice((0, 1, 12, 13, 200, 268, 269, 300)))
                )
            token = bytes(generator.randrange(9))
            message = Message(Type.CON, Code.GET, 1, token, options, bytes(generator.randrange(3)))
            data = message.encode()
            self.assertEqual(sum(part.size for part in coap_parts(data)), len(data), message)

    def test_names(self) -> None:
        names = [option_name(number) for number in (4, 11, 12, 31, 256, 257, 65_000)]
        expected = [
            "ETag",
            "Uri-Path",
            "Content-Format",
            "Q-Block2",
            "access token",
            "key version",
            "option 65000",
        ]
        self.assertEqual(names, expected)

    def test_without_keys(self) -> None:
        """What cannot be read is said to be encrypted; what is no record is said to be none."""
        record = bytes((23, 0xFE, 0xFD, 0, 1, 0, 0, 0, 0, 0, 1, 0, 20)) + bytes(20)
        parts = Dissector().read(record + b"xy", out=True).parts
        self.assertEqual(
            parts, (Part("IPv4, UDP", 28), Part("encrypted application data", 33), Part("no record", 2))
        )
        self.assertEqual(Datagram(True, parts).size, 28 + len(record) + 2)

    def test_no_coap(self) -> None:
        self.assertEqual(list(coap_parts(b"x")), [Part("no CoAP", 1)])
