# SPDX-License-Identifier: AGPL-3.0-or-later
"""Bad input over the real wire: each has its defined answer (or none), after which the server still answers.

The base class holds for every test that Synapse's log has no error and no traceback.
"""

from __future__ import annotations

import json
import os
import random
from typing import Any

from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import deferLater

from synapse_lb.coap.events import CoapRequest
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import Options, encode_uint
from tests.e2e.harness import CLIENT, RawPeer, SynapseTestCase, cbor_value, path_options, reactor

ACCESS_TOKEN = 256
VERSIONS = path_options("/_matrix/client/versions")
CBOR = encode_uint(60)


class Blaster(DatagramProtocol):
    """Sends datagrams and keeps what comes back."""

    transport: Any

    def __init__(self) -> None:
        self.received: list[bytes] = []

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.received.append(datagram)


def client_hello() -> bytes:
    """A DTLS record with a ClientHello that offers nothing but its header."""
    body = b"\xfe\xfd" + bytes(32) + b"\x00\x00" + b"\x00\x02\xc0\x2b" + b"\x01\x00"
    handshake = b"\x01" + len(body).to_bytes(3, "big") + b"\x00\x00" + bytes(3) + len(body).to_bytes(3, "big")
    content = handshake + body
    return b"\x16\xfe\xfd" + bytes(8) + len(content).to_bytes(2, "big") + content


class DatagramTests(SynapseTestCase):
    """Below DTLS: no answer, or no answer that is worth forging for."""

    async def blast(self, datagrams: list[bytes]) -> list[bytes]:
        blaster = Blaster()
        port = reactor.listenUDP(0, blaster, interface="127.0.0.1", maxPacketSize=65536)
        self.addCleanup(port.stopListening)
        target = ("127.0.0.1", self.homeserver.ports.lowbandwidth)
        for number, datagram in enumerate(datagrams):
            blaster.transport.write(datagram, target)
            if number % 20 == 0:
                await deferLater(reactor, 0)
        # A newcomer's handshake comes after all of these in the socket's queue.
        await self.assert_alive()
        return blaster.received

    async def test_garbage(self) -> None:
        source = random.Random(1)
        datagrams = [source.randbytes(source.choice([0, 1, 12, 13, 14, 100, 1400])) for _ in range(300)]
        self.assertEqual(await self.blast(datagrams), [])

    async def test_things_that_look_like_dtls(self) -> None:
        source = random.Random(2)
        datagrams = []
        for content_type in (20, 21, 22, 23, 24, 25, 255):
            for epoch in (0, 1, 65535):
                for length in (0, 1, 2, 50, 65535):
                    body = source.randbytes(min(length, 1300))
                    header = bytes([content_type]) + b"\xfe\xfd" + epoch.to_bytes(2, "big") + bytes(6)
                    datagrams.append(header + length.to_bytes(2, "big") + body)
        answers = await self.blast(datagrams)
        self.assertEqual(answers, [])

    async def test_coap_without_dtls(self) -> None:
        plain = Message(Type.CON, Code.GET, 1, b"\x01", VERSIONS).encode()
        self.assertEqual(await self.blast([plain] * 20), [])

    async def test_http_and_tls(self) -> None:
        tls = bytes.fromhex("16030100c8010000c40303") + bytes(197)
        http = b"GET /_matrix/client/versions HTTP/1.1\r\nHost: localhost\r\n\r\n"
        self.assertEqual(await self.blast([tls, http] * 10), [])

    async def test_damaged_client_hellos(self) -> None:
        source = random.Random(3)
        whole = client_hello()
        datagrams = []
        for _ in range(300):
            damaged = bytearray(whole)
            for _ in range(source.randint(1, 4)):
                damaged[source.randrange(len(damaged))] = source.randrange(256)
            datagrams.append(bytes(damaged[: source.randint(1, len(damaged))]))
        answers = await self.blast(datagrams)
        # At most a HelloVerifyRequest or an alert each: never more than came in.
        self.assertLessEqual(sum(map(len, answers)), sum(map(len, datagrams)))

    async def test_a_flood_of_client_hellos_from_forged_addresses_leaves_nothing(self) -> None:
        answers = await self.blast([client_hello()] * 500)
        # Each of them gets at most a cookie, which is smaller.
        self.assertTrue(all(len(answer) < len(client_hello()) for answer in answers), answers[:1])

    async def test_records_of_nobody(self) -> None:
        # Application data and alerts of an association that does not exist: no answer, as that would be an oracle.
        record = b"\x17\xfe\xfd\x00\x01" + bytes(6) + (40).to_bytes(2, "big") + os.urandom(40)
        alert = b"\x15\xfe\xfd\x00\x00" + bytes(6) + b"\x00\x02\x02\x28"
        self.assertEqual(await self.blast([record, alert] * 50), [])

    async def test_forged_records_on_the_address_of_an_association(self) -> None:
        # Whoever can write datagrams from a client's address can neither end nor disturb its association.
        relay = self.relay()
        peer = RawPeer()
        self.addCleanup(peer.close)
        await peer.open("127.0.0.1", relay.port)
        peer.request(Code.GET, VERSIONS)  # with its answer both sides know that the handshake is complete
        await peer.response()
        ((_, towards),) = relay._clients.items()
        target = ("127.0.0.1", self.homeserver.ports.lowbandwidth)
        for content_type in (20, 21, 22, 23):
            for epoch in (0, 1):
                header = (
                    bytes([content_type])
                    + b"\xfe\xfd"
                    + epoch.to_bytes(2, "big")
                    + b"\x00\x00\x00\x00\x00\x09"
                )
                towards.send(header + (2).to_bytes(2, "big") + b"\x02\x28", target)
                towards.send(header + (40).to_bytes(2, "big") + os.urandom(40), target)
        peer.request(Code.GET, VERSIONS)
        self.assertEqual((await peer.response()).code, Code.CONTENT)
        self.assertIsNone(peer.lost)


class CoapTests(SynapseTestCase):
    """Inside DTLS: malformed and unreasonable CoAP."""

    async def still_answers(self, peer: RawPeer) -> None:
        """The same association goes on."""
        peer.request(Code.GET, VERSIONS, token=b"\xee")
        self.assertEqual((await peer.response(b"\xee")).code, Code.CONTENT)

    async def test_malformed_confirmables_are_reset_and_others_ignored(self) -> None:
        peer = await self.raw()
        for data in (
            b"\x49\x01\x12\x34" + bytes(9),  # a token of 9 bytes
            b"\x40\x01\x12\x35\xff",  # a payload marker without payload
            b"\x40\x01\x12\x36\xf0",  # the reserved option delta
            b"\x40\x01\x12\x37\x0f",  # the reserved option length
            b"\x40\x01\x12\x38\xb5abc",  # an option that is cut off
            b"\x41\x00\x12\x39\x01",  # an Empty message with a token
            b"\x40\xe1\x12\x3a",  # a reserved class
        ):
            peer.send_bytes(data)
            reset = await peer.find(lambda m: m.type is Type.RST, f"Reset to {data.hex()}")
            self.assertEqual(reset.message_id, int.from_bytes(data[2:4], "big"))
        for data in (b"\x59\x01\x12\x34" + bytes(9), b"\x40", b"\x80\x01\x12\x34", b"\x60\xff\x00\x00\x00"):
            peer.send_bytes(data)
        await self.still_answers(peer)
        self.assertEqual(peer.received, [])

    async def test_random_coap(self) -> None:
        source = random.Random(4)
        peer = await self.raw()
        whole = Message(Type.CON, Code.GET, 0x4242, b"\x01", VERSIONS, b"").encode()
        for number in range(400):
            damaged = bytearray(whole)
            for _ in range(source.randint(1, 4)):
                damaged[source.randrange(len(damaged))] = source.randrange(256)
            peer.send_bytes(bytes(damaged[: source.randint(1, len(damaged))]) + source.randbytes(number % 7))
            if number % 20 == 0:
                await deferLater(reactor, 0)
        # What of it was a request may have opened the tables; a newcomer is not touched by that.
        await self.assert_alive()
        self.assertIsNone(peer.lost)

    async def test_unknown_critical_options_are_4_02(self) -> None:
        peer = await self.raw()
        for option in (9, 35001, 65001):  # OSCORE, and two of nobody
            options = VERSIONS.with_option(option, b"\x01")
            peer.request(Code.GET, options)
            self.assertEqual((await peer.response()).code, Code.BAD_OPTION, option)
        await self.still_answers(peer)

    async def test_unknown_elective_options_are_ignored(self) -> None:
        peer = await self.raw()
        peer.request(Code.GET, VERSIONS.with_option(65000, b"anything").with_option(258, b""))
        self.assertEqual((await peer.response()).code, Code.CONTENT)

    async def test_proxying_is_5_05(self) -> None:
        peer = await self.raw()
        options = Options().with_option(OptionNumber.PROXY_URI, b"http://localhost/_matrix/client/versions")
        peer.request(Code.GET, options)
        self.assertEqual((await peer.response()).code, Code.PROXYING_NOT_SUPPORTED)

    async def test_wrong_methods_and_unknown_paths(self) -> None:
        peer = await self.raw()
        for code, options, expected in (
            (Code.FETCH, VERSIONS, Code.METHOD_NOT_ALLOWED),
            (Code.IPATCH, VERSIONS, Code.METHOD_NOT_ALLOWED),
            (Code.DELETE, path_options(f"{CLIENT}/login"), Code.METHOD_NOT_ALLOWED),
            (Code.GET, path_options("/"), Code.NOT_FOUND),
            (Code.GET, Options(), Code.NOT_FOUND),
            (Code.GET, path_options("/.well-known/core"), Code.NOT_FOUND),
            (Code.GET, path_options("/_matrix/federation/v1/version"), Code.NOT_FOUND),
            (Code.GET, path_options("/_synapse/admin/v1/server_version"), Code.NOT_FOUND),
            (Code.GET, path_options("/_matrix/client/../federation/v1/version"), Code.NOT_FOUND),
            (Code.GET, path_options("/v/x/y"), Code.NOT_FOUND),
            (Code.GET, path_options("/8"), Code.NOT_FOUND),
            (Code.GET, Options().with_option(OptionNumber.URI_PATH, b"\xff\xfe"), Code.NOT_FOUND),
        ):
            peer.request(code, options)
            response = await peer.response()
            self.assertEqual(response.code, expected, options)
            self.assertEqual(cbor_value(response)["errcode"], "M_UNRECOGNIZED", options)
        # A method that CoAP does not have is CoAP's own error (RFC 7252 section 5.8).
        peer.request(0x1F, VERSIONS)
        self.assertEqual((await peer.response()).code, Code.METHOD_NOT_ALLOWED)
        await self.still_answers(peer)

    async def test_a_non_confirmable_request(self) -> None:
        peer = await self.raw()
        peer.request(Code.GET, VERSIONS, con=False)
        response = await peer.response()
        self.assertEqual((response.type, response.code), (Type.NON, Code.CONTENT))

    async def test_responses_and_acknowledgements_that_nobody_waits_for(self) -> None:
        peer = await self.raw()
        for kind in Type:
            for code in (Code.EMPTY, Code.CONTENT, Code.NOT_FOUND):
                # By hand, because RFC 7252 section 4 does not allow all of these: 0x40 is version 1.
                first = 0x40 | kind << 4 | (1 if code else 0)
                message_id = peer.next_message_id().to_bytes(2, "big")
                peer.send_bytes(bytes([first, code]) + message_id + (b"\x01" if code else b""))
        await self.still_answers(peer)

    async def test_many_requests_at_once_are_bounded(self) -> None:
        user = self.user()
        since = user.http("GET", f"{CLIENT}/sync?timeout=0")["next_batch"]
        peer = await self.raw()
        options = path_options(f"{CLIENT}/sync", f"since={since}&timeout=5000")
        options = options.with_option(ACCESS_TOKEN, user.token.encode())
        for number in range(100):
            peer.request(Code.GET, options, token=number.to_bytes(2, "big"))
        refused = await peer.find(lambda m: m.code == Code.SERVICE_UNAVAILABLE, "5.03")
        self.assertGreaterEqual(int.from_bytes(refused.token, "big"), 60)
        await self.assert_alive()


class BodyTests(SynapseTestCase):
    """Bodies, which CBOR's decoder or Synapse refuses."""

    LOGIN = path_options(f"{CLIENT}/login").with_option(OptionNumber.CONTENT_FORMAT, CBOR)

    async def refused(self, body: bytes, options: Options | None = None) -> tuple[int, Any]:
        peer = await self.raw()
        peer.request(Code.POST, options if options is not None else self.LOGIN, body)
        response = await peer.response()
        return response.code, cbor_value(response)

    async def test_bad_cbor_is_4_00_with_an_errcode(self) -> None:
        for name, body in {
            "truncated": b"\xa1\x61a",
            "a length beyond the end": b"\xa1\x61a\x5b\xff\xff\xff\xff\xff\xff\xff\xff",
            "a huge map": b"\xbb\x7f\xff\xff\xff\xff\xff\xff\xff",
            "a huge array": b"\x9b\x00\x00\x00\xff\xff\xff\xff\xff",
            "a byte string": b"\x41\x00",
            "a tag": b"\xa1\x61a\xc0\x60",
            "not UTF-8": b"\xa1\x61a\x61\xff",
            "an unknown integer key": b"\xa1\x19\x03\xe7\x01",
            "a negative key": b"\xa1\x20\x01",
            "a map as key": b"\xa1\xa0\x01",
            "the same key twice": b"\xa2\x61a\x01\x61a\x02",
            "undefined": b"\xa1\x61a\xf7",
            "not a number": b"\xa1\x61a\xf9\x7e\x00",
            "infinity": b"\xa1\x61a\xf9\x7c\x00",
            "a reserved head": b"\x1c",
            "a lonely break": b"\xff",
            "more after the end": b"\xa0\xa0",
        }.items():
            code, answer = await self.refused(body)
            self.assertEqual(code, Code.BAD_REQUEST, name)
            self.assertIn(answer["errcode"], ("M_NOT_JSON", "M_BAD_JSON"), name)
            self.assertTrue(answer["error"], name)

    async def test_ten_thousand_levels(self) -> None:
        for body in (b"\x81" * 10_000 + b"\x00", b"\xa1\x61a" * 10_000 + b"\x00", b"\x9f" * 10_000):
            response = await self.client().raw_request(CoapRequest(Code.POST, self.LOGIN, body), timeout=30)
            self.assertEqual(response.code, Code.BAD_REQUEST)
            self.assertIn(cbor_value(response)["errcode"], ("M_NOT_JSON", "M_BAD_JSON"))

    async def test_values_that_are_no_object(self) -> None:
        for body in (b"\x00", b"\xf6", b"\x80", b"\x60"):
            code, answer = await self.refused(body)
            self.assertEqual((code, answer["errcode"]), (Code.BAD_REQUEST, "M_BAD_JSON"), body)

    async def test_bad_json(self) -> None:
        options = path_options(f"{CLIENT}/login").with_option(OptionNumber.CONTENT_FORMAT, encode_uint(50))
        options = options.with_option(OptionNumber.ACCEPT, CBOR)
        for body in (b"{", b"\xff\xfe", b'{"a": NaN}', b"[" * 1000):
            code, answer = await self.refused(body, options)
            self.assertEqual(code, Code.BAD_REQUEST, body[:20])
            self.assertIn(answer["errcode"], ("M_NOT_JSON", "M_BAD_JSON"))

    async def test_an_unknown_content_format_is_4_15(self) -> None:
        options = path_options(f"{CLIENT}/login").with_option(OptionNumber.CONTENT_FORMAT, encode_uint(41))
        code, answer = await self.refused(b"<xml/>", options)
        self.assertEqual(code, Code.UNSUPPORTED_CONTENT_FORMAT)
        self.assertIn("errcode", answer)

    async def test_an_unknown_accept_is_4_06(self) -> None:
        code, answer = await self.refused(
            b"\xa0", self.LOGIN.with_option(OptionNumber.ACCEPT, encode_uint(41))
        )
        self.assertEqual(code, Code.NOT_ACCEPTABLE)
        self.assertIn("errcode", answer)

    async def test_tokens_that_are_unknown_expired_or_nonsense(self) -> None:
        user = self.user()
        client = self.client()
        await self.ask(client, "GET", f"{CLIENT}/account/whoami", token=user.token)
        await self.ask(client, "POST", f"{CLIENT}/logout", {}, token=user.token)
        response = await client.request("GET", f"{CLIENT}/account/whoami", token=user.token)
        self.assertEqual((response.status, response.body["errcode"]), (401, "M_UNKNOWN_TOKEN"))
        peer = await self.raw()
        whoami = path_options(f"{CLIENT}/account/whoami")
        for token, expected in (
            (b"syt_nobody", Code.UNAUTHORIZED),
            (b"x" * 900, Code.UNAUTHORIZED),
            (b"a b\r\nX: y", Code.BAD_REQUEST),
            (b"\xff\xfe", Code.BAD_REQUEST),
        ):
            peer.request(Code.GET, whoami.with_option(ACCESS_TOKEN, token))
            response_ = await peer.response()
            self.assertEqual(response_.code, expected, token)

    async def test_an_oversized_body_is_4_13_while_it_comes(self) -> None:
        user = self.user()
        client = self.client()
        body = {"one_time_keys": {f"k:{number}": "x" * 1000 for number in range(1100)}}
        self.assertGreater(len(json.dumps(body)), 1024 * 1024)
        response = await client.request(
            "POST", f"{CLIENT}/keys/upload", json=body, token=user.token, timeout=60
        )
        self.assertEqual(response.status, 413)
        self.assertEqual(self.logged_requests("keys/upload"), [], "Synapse never saw it")
        self.assertLess(client.counters.bytes_sent, 100_000, "it was refused at its first block")
