# SPDX-License-Identifier: AGPL-3.0-or-later
"""What it costs to connect, to send "Hello World" and to get the answer, with version 1 of MSC3079 alone.

Packets and bytes at IP level (28 of IPv4 and UDP for each datagram), client and gateway on a network in memory: a
room id of 44 characters, a token of 38, a self-signed P-256 certificate of 414 bytes. ECDSA signatures differ by
some bytes, so each ceiling is that much above what is usual.
"""

from __future__ import annotations

import random
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from synapse_lb.client import ClientVerification, LowBandwidthClient
from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.server.dispatcher import Address
from synapse_lb.server.gateway import Gateway
from synapse_lb.testing.memory import MemoryUDP
from synapse_lb.txdtls.certificates import generate_self_signed
from synapse_lb.txdtls.context import make_server_context
from synapse_lb.txdtls.options import ServerOptions
from synapse_lb.txdtls.port import DTLSServerPort
from tests.txdtls.support import SERVER, write_pair

UDP = 28

OLDER = SSL.OPENSSL_VERSION_NUMBER < 0x4000_0000
HELLO = 6 if OLDER else 0
"""Bytes that OpenSSL 3 takes more than OpenSSL 4 for a hello that is not padded: more point formats."""
RESUMING = 24 if OLDER else 0
"""The same for one that offers nothing but a session: groups and point formats, where OpenSSL 4 has neither."""

PATH = "/_matrix/client/r0/rooms/%21" + "r" * 43 + "/send/m.room.message/1"
X1_PATH = "/_matrix/client/v3/rooms/!OGEhHVWSdvArJzumhmQxWyZb0Pq-Kd_7fT3uLsVnEjA/send/m.room.message/1"
"""As long; x1 has nothing for a room id that no server would make."""


class Synapse:
    """Answers after the 12 ms that Synapse takes."""

    def __init__(self, network: MemoryUDP) -> None:
        self._network = network

    def dispatch(self, request: MatrixRequest, client: Address) -> Deferred[MatrixResponse]:
        """An event id of 44 characters."""
        answer: Deferred[MatrixResponse] = Deferred()
        response = MatrixResponse(200, {"event_id": "$eCY91UGSF5P-CCGLehGGjflBO80LIlXc7AQQs-5kfGE"})
        self._network.callLater(0.012, answer.callback, response)
        return answer


def certificate_of(size: int) -> tuple[bytes, bytes]:
    """A self-signed P-256 certificate of so many bytes (a name makes up for what is missing)."""
    length = 20
    while True:
        name = "a" * (length // 2) + "." + "b" * (length - length // 2)
        pem, key = generate_self_signed(["127.0.0.1", name])
        missing = size - len(x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER))
        if not missing:
            return pem, key
        if abs(missing) > 3:  # the signature's length varies
            length += (missing + (1 if missing > 0 else -1)) // 2


class FirstBytesTests(TestCase):
    """Each figure at or under its ceiling."""

    def setUp(self) -> None:
        self.network = MemoryUDP(latency=0.05)
        self.paths = write_pair(self.mktemp(), *certificate_of(414))

    def serve(self, cookie: str) -> None:
        gateway = Gateway(Synapse(self.network), clock=self.network, random=random.Random(1))
        port = DTLSServerPort(
            context=make_server_context(*self.paths),
            handler=gateway,
            options=ServerOptions(cookie=cookie),
            reactor=self.network,
        )
        gateway.attach(port)
        self.network.listenUDP(SERVER[1], port, interface=SERVER[0])
        self.addCleanup(gateway.shutdown)
        self.addCleanup(port.shutdown)

    def send(
        self,
        what: str,
        session: bytes | None = None,
        *,
        again: bool = False,
        path: str = PATH,
        brief: bool = False,
        **settings: Any,
    ) -> tuple[int, int, bytes | None]:
        """Connect, send and get the answer: packets, bytes, and the session.

        Args:
            what: for the report.
            session: to be resumed.
            again: by a client that has been connected before, and knows that the server wants a cookie.
            path: of the request.
            brief: without the answer's body.
            settings: of the client.
        """
        client = LowBandwidthClient(
            self.network,
            f"{SERVER[0]}:{SERVER[1]}",
            verification=ClientVerification.ca_file(self.paths[0]),
            session=session,
            random=random.Random(2),
            **settings,
        )
        if again:
            client.connect()
            self.network.advance(1.0)
            self.successResultOf(client._keeper.ready()).close()
            client._keeper._session = None
            self.network.advance(1.0)
        self.network.sent.clear()
        body = {"msgtype": "m.text", "body": "Hello World"}
        answer = client.request("PUT", path, json=body, token="syt_" + "t" * 34, brief=brief)
        self.network.advance(1.0)
        self.assertEqual(self.successResultOf(answer).status, 200)
        sizes = [len(data) + UDP for _, _, data in self.network.sent]
        print(f"\n{what}: {len(sizes)} packets, {sum(sizes)} bytes {sizes}")
        known = client.session
        client.close()
        self.network.advance(0.2)
        return len(sizes), sum(sizes), known

    def assert_at_most(self, seen: tuple[int, int, bytes | None], packets: int, size: int) -> None:
        self.assertLessEqual(seen[0], packets)
        self.assertLessEqual(seen[1], size)

    def test_without_a_cookie(self) -> None:
        self.serve("auto")
        first = self.send("first, no cookie")
        self.assert_at_most(first, 4, 1456)
        self.assert_at_most(self.send("resumed, no cookie", first[2]), 4, 725 + RESUMING)

    def test_with_x1(self) -> None:
        """The request and its answer in x1, of which the client knows that the server has it."""
        self.serve("auto")
        x1: dict[str, Any] = {"extensions": "known", "path": X1_PATH}
        first = self.send("first, x1", **x1)
        self.assert_at_most(first, 4, 1423)
        self.assert_at_most(self.send("resumed, x1", first[2], **x1), 4, 475)
        self.assert_at_most(self.send("resumed, x1, brief", first[2], brief=True, **x1), 4, 442)

    def test_with_a_cookie(self) -> None:
        self.serve("always")
        first = self.send("first, cookie")
        self.assert_at_most(first, 6, 1674 + HELLO)
        self.assert_at_most(self.send("first, cookie, which is expected", again=True), 6, 1578 + 2 * HELLO)
        self.assert_at_most(self.send("resumed, cookie", first[2]), 6, 1007 + 2 * HELLO)
