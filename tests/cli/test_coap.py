# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb coap` in this process against a real server on loopback."""

from __future__ import annotations

import io
import json
import os
import re
import zlib
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import DatagramProtocol

from synapse_lb.cli.main import start
from synapse_lb.cli.terminal import Terminal
from synapse_lb.coap.events import CoapRequest, CoapResponse
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import Options
from synapse_lb.msc3079.cbor import decode, encode
from synapse_lb.msc3079.options import ACCESS_TOKEN, KEY_VERSION
from tests.client.harness import REACTOR, LoopbackTestCase, PlainServer, RecordingGateway, Server, until

CBOR = Options().with_uint(OptionNumber.CONTENT_FORMAT, 60)
DEFLATED = Options().with_uint(OptionNumber.CONTENT_FORMAT, 11060)
JSON = Options().with_uint(OptionNumber.CONTENT_FORMAT, 50)


class Screen(io.BytesIO):
    """Standard output that a person looks at."""

    def isatty(self) -> bool:
        return True


class CoapTestCase(LoopbackTestCase):
    """Runs the command; `self.terminal` is that of the last run."""

    def setUp(self) -> None:
        """Nothing has been run."""
        super().setUp()
        self.terminal = Terminal.in_memory()

    def run_coap(
        self, *argv: str, stdin: bytes = b"", screen: bool = False, environ: dict[str, str] | None = None
    ) -> Deferred[int]:
        """Start the command on the reactor of the tests."""
        self.terminal = Terminal.in_memory(stdin, environ, REACTOR)
        if screen:
            self.terminal.stdout = Screen()
        status = start(["coap", *argv], self.terminal)
        return succeed(status) if isinstance(status, int) else status

    async def get(self, server: Server, path: str, *argv: str, status: int = 0, **settings: Any) -> bytes:
        """Run the command against a server whose certificate it trusts; check the exit status, give the output."""
        url = f"coaps://{server.address}{path}"
        outcome = await self.run_coap("--cacert", self.certificate.path, *argv, url, **settings)
        self.assertEqual(outcome, status, self.terminal.errors())
        return self.terminal.output()

    def start_plain(self, *answers: CoapResponse) -> tuple[Server, PlainServer]:
        """Start a server that gives these answers in turn, the last of them for ever."""
        remaining = list(answers)

        def answer(_: CoapRequest) -> CoapResponse | None:
            return remaining.pop(0) if len(remaining) > 1 else next(iter(remaining), None)

        plain = PlainServer(answer)
        return self.start_server(plain), plain

    def last(self, server: Server) -> Message:
        """The last request that reached a server's gateway."""
        assert isinstance(server.handler, RecordingGateway)
        return server.handler.seen[-1]


class RequestTests(CoapTestCase):
    async def test_get(self) -> None:
        server = self.start_server()
        output = await self.get(server, "/_matrix/client/versions?a=b%26c&d")
        said = decode(output).value
        self.assertEqual(said["method"], "GET")
        self.assertEqual(said["path"], "/_matrix/client/versions")
        request = self.last(server)
        self.assertEqual(
            request.options.pairs,
            ((11, b"_matrix"), (11, b"client"), (11, b"versions"), (15, b"a=b&c"), (15, b"d")),
        )
        self.assertEqual((request.type, request.payload), (Type.CON, b""))

    async def test_body_makes_it_a_post(self) -> None:
        server = self.start_server()
        body = encode({"type": "x"}, 1)
        await self.get(server, "/_matrix/client/v3/a", "-d", "-", stdin=body)
        request = self.last(server)
        self.assertEqual((request.code, request.payload), (Code.POST, body))
        self.assertEqual(request.options.get_uint(OptionNumber.CONTENT_FORMAT), 60)

    async def test_body_of_json_text_is_said_to_be_json(self) -> None:
        server = self.start_server()
        await self.get(server, "/_matrix/client/v3/a", "-X", "put", "-d", ' {"type": "x"}')
        request = self.last(server)
        self.assertEqual((request.code, request.payload), (Code.PUT, b' {"type": "x"}'))
        self.assertEqual(request.options.get_uint(OptionNumber.CONTENT_FORMAT), 50)
        self.assertEqual(self.dispatcher.requests[0].body, {"type": "x"})

    async def test_body_from_a_file(self) -> None:
        server = self.start_server()
        path = Path(self.mktemp())
        path.write_bytes(encode({"body": "f" * 5000}))
        output = await self.get(server, "/_matrix/client/v3/a", "-d", f"@{path}", "-H", "Content-Format: 60")
        self.assertEqual(decode(output).value["json"], {"body": "f" * 5000})

    async def test_headers(self) -> None:
        server, plain = self.start_plain(CoapResponse(Code.CONTENT))
        await self.get(
            server,
            "/a?b",
            *("-H", "Accept: 60", "-H", "Accept: 50", "-H", "2048: 1", "-H", "2048: 2"),
            *("-H", "Uri-Query: c", "-H", "Authorization: Bearer syt_a", "-d", "x", "-H", "Content-Format:"),
        )
        self.assertEqual(
            plain.requests[0].options.pairs,
            (
                (11, b"a"),
                (15, b"b"),
                (15, b"c"),
                (17, b"\x32"),
                (256, b"syt_a"),
                (2048, b"\x01"),
                (2048, b"\x02"),
            ),
        )

    async def test_host_is_said_if_it_is_a_name(self) -> None:
        server = self.start_server()
        arguments = (
            "--cacert",
            self.certificate.path,
            f"coaps://LOCALHOST:{server.port}/_matrix/client/versions",
        )
        self.assertEqual(await self.run_coap(*arguments), 0)
        self.assertEqual(self.last(server).options.get(OptionNumber.URI_HOST), b"localhost")

    async def test_token_and_key_version(self) -> None:
        server = self.start_server()
        await self.get(server, "/_matrix/client/v3/a", "--token", "syt_a", "--key-version", "1")
        request = self.last(server)
        self.assertEqual(request.options.get(ACCESS_TOKEN), b"syt_a")
        self.assertEqual(request.options.get(KEY_VERSION), b"\x01")

    async def test_path_codes(self) -> None:
        server = self.start_server()
        output = await self.get(
            server, "/_matrix/client/r0/rooms/!a/send/m.x/1", "--path-codes", "-X", "PUT", "--json"
        )
        self.assertEqual(
            self.last(server).options.get_all(OptionNumber.URI_PATH), (b"9", b"!a", b"m.x", b"1")
        )
        self.assertIn("/send/m.x/1", json.loads(output)["path"])

    async def test_non_confirmable(self) -> None:
        server = self.start_server()
        await self.get(server, "/_matrix/client/versions", "--non")
        self.assertEqual(self.last(server).type, Type.NON)

    async def test_ipv6(self) -> None:
        server = self.start_server(interface="::1")
        self.assertIn(b"versions", await self.get(server, "/_matrix/client/versions"))


class JsonTests(CoapTestCase):
    async def test_both_ways(self) -> None:
        server = self.start_server()
        output = await self.get(
            server, "/_matrix/client/v3/a", "--json", "-d", '{"type": "x", "other": [1, null]}'
        )
        self.assertEqual(json.loads(output)["json"], {"type": "x", "other": [1, None]})
        self.assertTrue(output.endswith(b"}\n"))
        self.assertEqual(output.count(b"\n"), 1)
        request = self.last(server)
        self.assertEqual(request.payload, encode({"type": "x", "other": [1, None]}, 1))
        self.assertEqual(request.options.get_uint(OptionNumber.CONTENT_FORMAT), 60)
        self.assertNotIn(KEY_VERSION, request.options)

    async def test_indented_on_a_screen(self) -> None:
        output = await self.get(self.start_server(), "/_matrix/client/versions", "--json", screen=True)
        self.assertTrue(output.startswith(b'{\n  "'), output)

    async def test_bad_json_is_not_sent(self) -> None:
        server = self.start_server()
        await self.get(server, "/_matrix/client/v3/a", "--json", "-d", "{", status=1)
        self.assertIn("bad JSON", self.terminal.errors())
        self.assertEqual(server.dtls.counters.datagrams_received, 0)

    async def test_answer_that_is_json(self) -> None:
        server, _ = self.start_plain(CoapResponse(Code.CONTENT, JSON, b'{ "a" : 1 }'))
        self.assertEqual(await self.get(server, "/", "--json"), b'{"a":1}\n')

    async def test_answer_that_is_text(self) -> None:
        server, _ = self.start_plain(CoapResponse(Code.BAD_REQUEST, Options(), b"bad things"))
        self.assertEqual(await self.get(server, "/", "--json", status=22), b"bad things")

    async def test_answer_that_is_neither(self) -> None:
        for options, payload in ((CBOR, b"\xa1"), (JSON, b"{")):
            server, _ = self.start_plain(CoapResponse(Code.CONTENT, options, payload))
            self.assertEqual(await self.get(server, "/", "--json", status=56), b"")

    async def test_empty_answer(self) -> None:
        server, _ = self.start_plain(CoapResponse(Code.CHANGED))
        self.assertEqual(await self.get(server, "/", "--json"), b"")


class DeflateTests(CoapTestCase):
    BODY = json.dumps({"filler": "x" * 200})

    async def test_both_ways(self) -> None:
        server = self.start_server()
        output = await self.get(server, "/_matrix/client/v3/a", "--deflate", "--json", "-d", self.BODY)
        self.assertEqual(json.loads(output)["json"], json.loads(self.BODY))
        request = self.last(server)
        self.assertEqual(zlib.decompress(request.payload), encode(json.loads(self.BODY), 1))
        formats = [
            request.options.get_uint(each) for each in (OptionNumber.CONTENT_FORMAT, OptionNumber.ACCEPT)
        ]
        self.assertEqual(formats, [11060, 11060])

    async def test_answer_as_it_came(self) -> None:
        body = encode({"filler": "x" * 200})
        server, _ = self.start_plain(CoapResponse(Code.CONTENT, DEFLATED, zlib.compress(body)))
        self.assertEqual(zlib.decompress(await self.get(server, "/x")), body)

    async def test_answer_that_is_not_compressed_at_all(self) -> None:
        server, _ = self.start_plain(CoapResponse(Code.CONTENT, DEFLATED, b"\xa0"))
        await self.get(server, "/x", "--json", status=56)

    async def test_not_a_secret_and_not_what_gets_larger(self) -> None:
        server = self.start_server()
        for path, body in (
            ("login", self.BODY),
            ("a", '{"type": "x"}'),
            ("a", f'{{"password": {self.BODY}}}'),
        ):
            await self.get(server, f"/_matrix/client/v3/{path}", "--deflate", "--json", "-d", body)
            self.assertEqual(self.last(server).options.get_uint(OptionNumber.CONTENT_FORMAT), 60)

    async def test_other_bodies_stay_as_they_are(self) -> None:
        server = self.start_server()
        await self.get(server, "/_matrix/client/v3/a", "--deflate", "-d", self.BODY)
        request = self.last(server)
        self.assertEqual(request.payload, self.BODY.encode())
        self.assertEqual(request.options.get_uint(OptionNumber.CONTENT_FORMAT), 50)

    async def test_media_type(self) -> None:
        server = self.start_server()
        await self.get(server, "/_matrix/client/v3/a", "-v", "-H", "Accept: application/cbor;deflate")
        self.assertEqual(self.last(server).options.get_uint(OptionNumber.ACCEPT), 11060)
        self.assertIn("> Accept: application/cbor;deflate", self.terminal.errors())


class OutputTests(CoapTestCase):
    async def test_include(self) -> None:
        options = CBOR.with_uint(OptionNumber.MAX_AGE, 7)
        server, _ = self.start_plain(CoapResponse(Code.TOO_MANY_REQUESTS, options, b"\xa0"))
        output = await self.get(server, "/", "-i", "--json", status=22)
        self.assertEqual(
            output, b"4.29 Too Many Requests\nContent-Format: application/cbor\nMax-Age: 7\n\n{}\n"
        )

    async def test_errors_show_their_body(self) -> None:
        output = await self.get(self.start_server(), "/_matrix/client/v3/missing", "--json", status=22)
        self.assertEqual(json.loads(output), {"errcode": "M_NOT_FOUND", "error": "Not here"})
        self.assertEqual(self.terminal.errors(), "synapse-lb coap: the server answered 4.04 Not Found\n")

    async def test_silent(self) -> None:
        server = self.start_server()
        await self.get(server, "/_matrix/client/v3/missing", "-s", status=22)
        self.assertEqual(self.terminal.errors(), "")
        await self.get(server, "/_matrix/client/v3/missing", "-sS", status=22)
        self.assertIn("4.04", self.terminal.errors())

    async def test_file(self) -> None:
        path = self.mktemp()
        self.assertEqual(await self.get(self.start_server(), "/_matrix/client/v3/big", "-o", path), b"")
        self.assertEqual(decode(Path(path).read_bytes()).value, {"body": "b" * 300_000})

    async def test_file_that_cannot_be_written(self) -> None:
        path = os.path.join(self.mktemp(), "file")
        await self.get(self.start_server(), "/_matrix/client/versions", "-o", path, status=23)
        self.assertIn(path, self.terminal.errors())

    async def test_no_binary_on_a_screen(self) -> None:
        server, _ = self.start_plain(CoapResponse(Code.CONTENT, CBOR, b"\xa1\x61a\x01"))
        self.assertEqual(await self.get(server, "/", screen=True, status=23), b"")
        self.assertIn("--json", self.terminal.errors())
        self.assertEqual(await self.get(server, "/", "-o", "-", screen=True), b"\xa1\x61a\x01")

    async def test_text_on_a_screen(self) -> None:
        server, _ = self.start_plain(CoapResponse(Code.CONTENT, Options(), "Grüße\n".encode()))
        self.assertEqual(await self.get(server, "/", screen=True), "Grüße\n".encode())

    async def test_verbose(self) -> None:
        server = self.start_server()
        await self.get(server, "/_matrix/client/v3/a", "-v", "--token", "syt_secret", "--json", "-d", "{}")
        lines = self.terminal.errors().splitlines()
        for expected in (
            f"* Connected to 127.0.0.1 port {server.port} (UDP)",
            "* DTLS 1.2, ECDHE-ECDSA-CHACHA20-POLY1305",
            f"* Server certificate SHA-256: {self.certificate.fingerprint}",
            "> CON POST",
            "> Uri-Path: _matrix",
            "> Content-Format: application/cbor",
            "> Access-Token: <10 bytes>",
            "> [1 bytes of body]",
            "< 2.05 Content",
            "< Content-Format: application/cbor",
        ):
            self.assertIn(expected, lines)
        self.assertNotIn("syt_secret", self.terminal.errors())

    async def test_verbose_counts_datagrams(self) -> None:
        server = self.start_server()
        await self.get(server, "/_matrix/client/versions", "-v")
        counted = re.search(
            r"\* Request and answer: sent 1 datagram, (\d+) B \((\d+) B with IP and UDP headers\), "
            r"received 1 datagram, (\d+) B \((\d+) B",
            self.terminal.errors(),
        )
        assert counted is not None
        sent, ip_sent, received, ip_received = map(int, counted.groups())
        self.assertEqual((ip_sent, ip_received), (sent + 28, received + 28))
        # The close_notify is part of the whole.
        total = re.search(r"\* In all: sent (\d+) datagrams, (\d+) B", self.terminal.errors())
        assert total is not None
        sent_in_all = int(total[1])
        await until(lambda: server.dtls.counters.datagrams_received == sent_in_all)


class FailureTests(CoapTestCase):
    async def test_wrong_certificate(self) -> None:
        server = self.start_server()
        url = f"coaps://{server.address}/"
        for argv in ([url], ["--pin", "00" * 32, url]):
            self.assertEqual(await self.run_coap(*argv), 60)
            self.assertIn("certificate", self.terminal.errors())

    async def test_ways_to_trust(self) -> None:
        server = self.start_server()
        url = f"coaps://{server.address}/_matrix/client/versions"
        for argv in (["-k"], ["--pin", self.certificate.fingerprint], ["--cacert", self.certificate.path]):
            self.assertEqual(await self.run_coap(*argv, url), 0, self.terminal.errors())

    async def test_ways_to_trust_exclude_each_other(self) -> None:
        self.assertEqual(await self.run_coap("-k", "--pin", "00" * 32, "coaps://h/"), 2)

    async def test_ca_file_that_is_none(self) -> None:
        self.assertEqual(await self.run_coap("--cacert", self.mktemp(), "coaps://127.0.0.1:1/"), 77)

    async def test_bad_pin(self) -> None:
        self.assertEqual(await self.run_coap("--pin", "12:34", "coaps://127.0.0.1:1/"), 2)

    async def test_bad_urls(self) -> None:
        for url, status in (
            ("coaps://h:x/", 3),
            ("h/path", 3),
            ("coaps://h/%zz", 3),
            ("https://h/", 1),
            ("coap://h/", 1),
        ):
            self.assertEqual(await self.run_coap(url), status, url)

    async def test_bad_arguments(self) -> None:
        for argv in (("-X", "HEAD"), ("-H", "Block1: 0"), ("-H", "x"), ("--key-version", "-1")):
            self.assertEqual(await self.run_coap(*argv, "coaps://127.0.0.1:1/"), 2, argv)

    async def test_unknown_host(self) -> None:
        self.assertEqual(await self.run_coap("coaps://does-not-exist.invalid/"), 6)

    async def test_nobody_listens(self) -> None:
        server = self.start_server()
        await server.stop()
        self.assertEqual(await self.run_coap("-k", f"coaps://{server.address}/"), 7)

    async def test_nobody_answers(self) -> None:
        deaf = REACTOR.listenUDP(0, DatagramProtocol(), interface="127.0.0.1")
        self.addCleanup(deaf.stopListening)
        url = f"coaps://127.0.0.1:{deaf.getHost().port}/"
        self.assertEqual(await self.run_coap("-k", "--connect-timeout", "0.1", url), 28)
        self.assertEqual(await self.run_coap("-k", "--max-time", "0.1", url), 28)

    async def test_no_answer(self) -> None:
        server, _ = self.start_plain()
        await self.get(server, "/", "-m", "0.2", status=28)
        self.assertIn("0.2 seconds", self.terminal.errors())

    async def test_critical_option_that_the_server_does_not_know(self) -> None:
        server, _ = self.start_plain(CoapResponse(Code.CONTENT))
        await self.get(server, "/", "--key-version", "1", status=22)
        self.assertIn("4.02 Bad Option", self.terminal.errors())

    async def test_missing_body_file(self) -> None:
        server = self.start_server()
        await self.get(server, "/", "-d", f"@{self.mktemp()}", status=26)


class KeylogTests(CoapTestCase):
    async def test_lines_are_appended(self) -> None:
        """One line for each association, as Wireshark reads it (NSS key log format)."""
        server = self.start_server()
        path = Path(self.mktemp())
        path.write_text("# of another program\n")
        for _ in range(2):
            await self.get(server, "/_matrix/client/versions", environ={"SSLKEYLOGFILE": str(path)})
        first, *lines = path.read_text().splitlines()
        self.assertEqual(first, "# of another program")
        self.assertEqual(len(lines), 2)
        for line in lines:
            self.assertRegex(line, r"\ACLIENT_RANDOM [0-9a-fA-F]{64} [0-9a-fA-F]{96}\Z")

    async def test_none_without_the_variable(self) -> None:
        await self.get(self.start_server(), "/_matrix/client/versions", environ={"SSLKEYLOGFILE": ""})

    async def test_file_that_cannot_be_written(self) -> None:
        server = self.start_server()
        path = os.path.join(self.mktemp(), "keys")
        await self.get(server, "/", environ={"SSLKEYLOGFILE": path}, status=23)
        self.assertEqual(server.dtls.counters.datagrams_received, 0)
