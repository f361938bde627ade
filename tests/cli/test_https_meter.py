# SPDX-License-Identifier: AGPL-3.0-or-later
"""The HTTPS meter: what one end counts is what the other end counts, and what was sent."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import threading
import unittest
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.cli.https_meter import HttpsMeter, MeterError, Wire, read_wire, wire_is_measurable
from synapse_lb.txdtls.certificates import generate_self_signed


class Server:
    """An HTTPS server for one connection after another, which measures its own end of the last."""

    def __init__(self, folder: Path, answers: list[bytes], connections: int = 1) -> None:
        certificate, key = generate_self_signed(["localhost", "127.0.0.1"])
        self.certificate = folder / "server.pem"
        self.certificate.write_bytes(certificate + key)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(self.certificate)
        self._answers = answers
        self._connections = connections
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.requests: list[bytes] = []
        self.wire: Wire | None = None
        self._measure = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def measured(self) -> Wire:
        """What the server's end has counted."""
        self._measure.set()
        self._thread.join(10)
        assert self.wire is not None
        return self.wire

    def close(self) -> None:
        self._measure.set()
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        for number in range(self._connections):
            self._serve_one(last=number == self._connections - 1)

    def _serve_one(self, *, last: bool) -> None:
        plain, _ = self._listener.accept()
        with self._context.wrap_socket(plain, server_side=True) as connection:
            for answer in self._answers:
                request = b""
                while b"\r\n\r\n" not in request:
                    request += connection.recv(65536)
                self.requests.append(request)
                connection.sendall(answer)
            if last:
                self._measure.wait(10)
                self.wire = read_wire(connection)


def answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@unittest.skipUnless(wire_is_measurable(), "this system does not tell what a TCP connection has sent")
class MeterTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    def server(self, answers: list[bytes], connections: int = 1) -> Server:
        server = Server(self.folder, answers, connections)
        self.addCleanup(server.close)
        return server

    def test_both_ends_count_the_same(self) -> None:
        bodies = [json.dumps({"x": "y" * size}).encode() for size in (1, 1000, 100_000)]
        server = self.server([answer(body) for body in bodies])
        with HttpsMeter("127.0.0.1", server.port, server.certificate) as meter:
            total = meter.connect()
            for body in bodies:
                measured = meter.request("GET", "/x", token="secret")
                self.assertEqual((measured.status, measured.body), (200, json.loads(body)))
                total += measured.wire
            # Linux sends the SYN-ACK before the server's socket exists, which therefore does not count it.
            syn_ack = Wire(1, 52)
            self.assertEqual(server.measured() + syn_ack, total)
        self.assertGreater(total.packets, 100_000 // 1460)

    def test_bytes_and_packets_of_an_answer_of_known_size(self) -> None:
        server = self.server([answer(b"{}"), answer(b'"%s"' % (b"x" * 50_000))])
        with HttpsMeter("127.0.0.1", server.port, server.certificate) as meter:
            handshake = meter.connect()
            self.assertGreaterEqual(handshake.packets, 6)
            small = meter.request("GET", "/").wire
            large = meter.request("GET", "/").wire
        grown = large - small
        # 50,000 bytes more of body, in segments of at most 1448 bytes with headers of 52 each; TLS records of at
        # most 16 KiB with 22 bytes each; the acknowledgements of the other side.
        self.assertGreaterEqual(grown.packets, 50_000 // 1448)
        self.assertGreaterEqual(grown.bytes, 50_000 + 52 * (50_000 // 1448))
        self.assertLessEqual(grown.bytes, 50_000 + 5 * 22 + 40 + 52 * (grown.packets + 1))

    def test_a_request_is_what_curl_would_send(self) -> None:
        server = self.server([answer(b"{}")])
        with HttpsMeter("127.0.0.1", server.port, server.certificate) as meter:
            meter.request("PUT", "/path?a=b", {"k": "v", "n": 1}, "token")
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        self.assertEqual(lines[0], "PUT /path?a=b HTTP/1.1")
        self.assertIn("Authorization: Bearer token", lines)
        self.assertIn("Content-Length: 15", lines)
        self.assertEqual(body, b'{"k":"v","n":1}')

    def test_compressed(self) -> None:
        """gzip is asked for only by a meter that wants it; what comes back is decompressed."""
        body = gzip.compress(b'{"x": 1}')
        head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
        server = self.server([head + body])
        with HttpsMeter("127.0.0.1", server.port, server.certificate, compressed=True) as meter:
            self.assertEqual(meter.request("GET", "/").body, {"x": 1})
        self.assertIn(b"\r\nAccept-Encoding: gzip\r\n", server.requests[0])

    def test_not_compressed(self) -> None:
        """By default nothing is said of compression."""
        server = self.server([answer(b"{}")])
        with HttpsMeter("127.0.0.1", server.port, server.certificate) as meter:
            meter.request("GET", "/")
        self.assertNotIn(b"Accept-Encoding", server.requests[0])

    def test_resumption(self) -> None:
        """A session is resumed by a further connection, whose handshake takes less, and is counted by itself."""
        server = self.server([answer(b"{}")], connections=2)
        with HttpsMeter("127.0.0.1", server.port, server.certificate) as meter:
            first = meter.connect()
            meter.request("GET", "/")
            session = meter.session
            self.assertFalse(meter.resumed)
            meter.close()
            second = meter.connect(session)
            self.assertTrue(meter.resumed)
            self.assertEqual(meter.request("GET", "/").body, {})
        self.assertLess(second.bytes, first.bytes)

    def test_nobody_there(self) -> None:
        server = self.server([])
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
        with HttpsMeter("127.0.0.1", port, server.certificate) as meter:
            self.assertRaises(MeterError, meter.request, "GET", "/")
        # Let the server's thread end.
        with HttpsMeter("127.0.0.1", server.port, server.certificate) as meter:
            meter.connect()

    def test_no_json(self) -> None:
        server = self.server([answer(b"<html>")])
        with HttpsMeter("127.0.0.1", server.port, server.certificate) as meter:
            self.assertRaises(MeterError, meter.request, "GET", "/")


class WireTests(SynchronousTestCase):
    def test_arithmetic(self) -> None:
        self.assertEqual(Wire(3, 300) + Wire(1, 50), Wire(4, 350))
        self.assertEqual(Wire(3, 300) - Wire(1, 50), Wire(2, 250))

    def test_a_socket_that_is_no_tcp_connection(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            self.assertRaises(MeterError, read_wire, udp)
