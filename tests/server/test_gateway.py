# SPDX-License-Identifier: AGPL-3.0-or-later
"""The gateway between a DTLS port and a dispatcher, with a real CoAP endpoint as its client."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.endpoint import Endpoint
from synapse_lb.coap.events import CoapRequest, CoapResponse, Event, Peer, RequestFailed, ResponseReceived
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, Type
from synapse_lb.coap.options import Options
from synapse_lb.coaps.driver import EndpointDriver
from synapse_lb.msc3079.mapping import decode_response, encode_request
from synapse_lb.msc3079.messages import NO_BODY, MatrixRequest, MatrixResponse
from synapse_lb.server.dispatcher import Address
from synapse_lb.server.gateway import Gateway
from synapse_lb.txdtls.errors import AssociationGone, PeerClosed

VERSIONS = "/_matrix/client/versions"
SYNC = "/_matrix/client/v3/sync"


class Dispatcher:
    """Writes down what it is asked, and answers with a function of the test."""

    def __init__(self) -> None:
        self.asked: list[tuple[MatrixRequest, Address]] = []
        self.cancelled: list[MatrixRequest] = []
        self.sizes: list[object] = []
        self.answer: Callable[[MatrixRequest], MatrixResponse | Deferred[MatrixResponse]] = lambda request: (
            MatrixResponse(200, {"path": request.path.decode()})
        )

    def dispatch(self, request: MatrixRequest, client: Address) -> Deferred[MatrixResponse]:
        self.asked.append((request, client))
        answer = self.answer(request)
        return answer if isinstance(answer, Deferred) else succeed(answer)

    def later(self, request: MatrixRequest) -> Deferred[MatrixResponse]:
        """An answer that never comes by itself."""
        return Deferred(lambda _: self.cancelled.append(request))


class FakePort:
    """A DTLS port whose associations are the clients of a test."""

    def __init__(self) -> None:
        self.clients: dict[int, Client] = {}
        self.confirmed: list[int] = []
        self.address: IPv4Address | IPv6Address = IPv4Address("UDP", "192.0.2.7", 50000)
        self.closed: list[int] = []
        self.trusted: list[tuple[int, bool]] = []

    def close(self, association_id: int) -> None:
        self.closed.append(association_id)

    def send(self, association_id: int, data: bytes) -> None:
        if association_id not in self.clients:
            raise AssociationGone("gone")
        self.clients[association_id].take(data)

    def peer_address(self, association_id: int) -> Address:
        return self.address

    def confirm_address(self, association_id: int) -> None:
        self.confirmed.append(association_id)

    def trust(self, association_id: int, *, known: bool = True) -> None:
        self.trusted.append((association_id, known))

    def max_message_size(self, association_id: int) -> int:
        return 1152

    def rtt(self, association_id: int) -> float | None:
        return 0.05

    def longest_rtt(self, association_id: int) -> float | None:
        return None


class Client:
    """One association: a CoAP endpoint at its other end."""

    def __init__(self, gateway: Gateway, port: FakePort, clock: Clock, association_id: int) -> None:
        self.gateway, self.port, self.clock, self.id = gateway, port, clock, association_id
        self.received: list[bytes] = []
        self.deaf = False
        self.results: dict[int, Any] = {}
        self.endpoint = Endpoint(random=random.Random(association_id), understood=(257,))
        self.driver = EndpointDriver(self.endpoint, clock, self._send, self._on_event)
        port.clients[association_id] = self
        gateway.association_established(association_id)

    def request(self, method: str, path: str, body: Any = NO_BODY, **options: Any) -> Callable[[], Any]:
        """Send a Matrix request; the returned function gives the response, or None as long as there is none."""
        code, pairs, payload = encode_request(method, path, None, body, **options)
        return self.raw(CoapRequest(code, Options.of(*pairs), payload))

    def raw(self, request: CoapRequest) -> Callable[[], Any]:
        """Send a CoAP request."""
        exchange = self.endpoint.request("server", request, self.driver.now())
        self.driver.flush()
        return lambda: self.results.get(exchange)

    def lose(self) -> None:
        """The association ends."""
        self.port.clients.pop(self.id, None)
        self.gateway.association_lost(self.id, PeerClosed("close_notify"))

    def take(self, data: bytes) -> None:
        self.received.append(data)
        if not self.deaf:
            # As over a network: never inside the sender's call.
            self.clock.callLater(0, self.driver.receive, "server", data)

    def _send(self, peer: Peer, data: bytes) -> None:
        self.clock.callLater(0, self.gateway.message_received, self.id, data)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, ResponseReceived):
            response: CoapResponse = event.response
            self.results[event.exchange] = decode_response(response.code, response.options, response.payload)
        elif isinstance(event, RequestFailed):
            self.results[event.exchange] = event.error


class GatewayTestCase(SynchronousTestCase):
    """A gateway with its clients on a clock of the test's own."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.dispatcher = Dispatcher()
        self.gateway = Gateway(self.dispatcher, clock=self.clock, random=random.Random(1))
        self.port = FakePort()
        self.gateway.attach(self.port)
        self.alice = Client(self.gateway, self.port, self.clock, 1)

    def settle(self) -> None:
        """Deliver everything that is on its way."""
        for _ in range(1000):
            self.clock.advance(0)
            if not any(call.getTime() <= self.clock.seconds() for call in self.clock.calls):
                return
        self.fail("it never ends")

    def ask(
        self, client: Client, method: str, path: str, body: Any = NO_BODY, **options: Any
    ) -> MatrixResponse:
        """Send a request and return its response."""
        result = client.request(method, path, body, **options)
        self.settle()
        response = result()
        assert isinstance(response, MatrixResponse), response
        return response


class GatewayTests(GatewayTestCase):
    """Requests, answers, and what a client leaves behind."""

    def test_there_and_back(self) -> None:
        response = self.ask(self.alice, "GET", VERSIONS)
        self.assertEqual((response.status, response.body), (200, {"path": VERSIONS}))
        request, address = self.dispatcher.asked[0]
        self.assertEqual((request.method, request.path, request.body), ("GET", VERSIONS.encode(), NO_BODY))
        self.assertEqual(address, IPv4Address("UDP", "192.0.2.7", 50000))
        self.assertEqual(self.gateway.counters.requests, 1)
        self.assertEqual(self.gateway.counters.responses, 1)
        self.assertEqual(self.gateway.running, 0)

    def test_an_ipv4_client_of_a_dual_stack_socket_has_its_ipv4_address(self) -> None:
        self.port.address = IPv6Address("UDP", "::ffff:192.0.2.8", 1)
        bob = Client(self.gateway, self.port, self.clock, 2)
        self.ask(bob, "GET", VERSIONS)
        self.assertEqual(self.dispatcher.asked[0][1], IPv4Address("UDP", "192.0.2.8", 1))

    def test_a_client_that_moves_has_its_new_address(self) -> None:
        self.port.address = IPv6Address("UDP", "2001:db8::1", 7)
        self.gateway.association_moved(1)
        self.ask(self.alice, "GET", VERSIONS)
        self.assertEqual(self.dispatcher.asked[0][1], self.port.address)

    def test_a_client_that_moves_has_to_answer_a_ping(self) -> None:
        self.gateway.association_moved(1)
        self.assertEqual(self.port.confirmed, [])
        [ping] = [Message.decode(data) for data in self.alice.received]
        self.assertEqual((ping.type, ping.code), (Type.CON, Code.EMPTY))
        self.settle()
        self.assertEqual(self.port.confirmed, [1])
        self.assertEqual(self.gateway.counters.moved, 1)
        self.ask(self.alice, "GET", VERSIONS)
        self.assertEqual(self.port.confirmed, [1])

    def test_the_answer_to_a_ping_tells_nothing_of_the_address_after(self) -> None:
        self.alice.deaf = True
        self.gateway.association_moved(1)
        self.gateway.association_moved(1)
        first, second = (Message.decode(data) for data in self.alice.received)
        for ping, confirmed in ((first, []), (second, [1]), (second, [1])):
            self.gateway.message_received(1, Message(Type.RST, 0, ping.message_id).encode())
            self.assertEqual(self.port.confirmed, confirmed)
        self.clock.advance(300)  # message ids are kept for EXCHANGE_LIFETIME
        self.assertTrue(self.gateway.endpoint.idle)

    def test_a_ping_to_an_address_that_was_left_is_not_repeated(self) -> None:
        self.alice.deaf = True
        self.gateway.association_moved(1)
        self.gateway.association_moved(1)
        first, second = self.alice.received
        for _ in range(300):
            self.clock.advance(1)
        self.assertEqual(self.alice.received.count(first), 1)
        self.assertGreater(self.alice.received.count(second), 3)

    def test_a_ping_that_was_lost_for_good_is_sent_again_when_the_client_speaks(self) -> None:
        self.alice.deaf = True
        self.gateway.association_moved(1)
        for _ in range(300):
            self.clock.advance(1)
        pings = len(self.alice.received)
        self.assertGreater(pings, 4)
        self.alice.deaf = False
        self.clock.advance(1000)
        self.settle()
        self.assertEqual((len(self.alice.received), self.port.confirmed), (pings, []))
        self.ask(self.alice, "GET", VERSIONS)
        self.assertEqual(self.port.confirmed, [1])

    def test_a_client_that_moves_and_goes_leaves_nothing(self) -> None:
        self.alice.deaf = True
        self.gateway.association_moved(1)
        self.alice.lose()
        self.gateway.association_moved(1)
        self.settle()
        self.assertTrue(self.gateway.endpoint.idle)
        self.assertEqual(self.port.confirmed, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_token_is_sticky_per_association(self) -> None:
        bob = Client(self.gateway, self.port, self.clock, 2)
        self.ask(self.alice, "GET", SYNC, token="secret-a")
        self.ask(bob, "GET", SYNC)
        self.ask(self.alice, "GET", SYNC)
        tokens = [request.access_token for request, _ in self.dispatcher.asked]
        self.assertEqual(tokens, ["secret-a", None, "secret-a"])

    def test_a_token_that_synapse_does_not_know_is_forgotten(self) -> None:
        self.dispatcher.answer = lambda _: MatrixResponse(401, {"errcode": "M_UNKNOWN_TOKEN", "error": "no"})
        self.assertEqual(self.ask(self.alice, "GET", SYNC, token="old").status, 401)
        self.ask(self.alice, "GET", SYNC)
        self.assertEqual([request.access_token for request, _ in self.dispatcher.asked], ["old", None])

    def test_another_401_keeps_the_token(self) -> None:
        self.dispatcher.answer = lambda _: MatrixResponse(401, {"flows": [], "session": "s"})
        response = self.ask(
            self.alice, "POST", "/_matrix/client/v3/keys/device_signing/upload", {}, token="good"
        )
        self.assertEqual((response.status, response.body), (401, {"flows": [], "session": "s"}))
        self.ask(self.alice, "GET", SYNC)
        self.assertEqual([request.access_token for request, _ in self.dispatcher.asked], ["good", "good"])

    def test_logging_out_forgets_the_token(self) -> None:
        for path in ("/_matrix/client/v3/logout", "/_matrix/client/r0/logout/all"):
            self.ask(self.alice, "POST", path, {}, token="mine")
            self.ask(self.alice, "GET", SYNC)
            self.assertEqual([each.access_token for each, _ in self.dispatcher.asked[-2:]], ["mine", None])

    def test_a_newer_token_outlives_the_end_of_the_older(self) -> None:
        waiting: Deferred[MatrixResponse] = Deferred()
        self.dispatcher.answer = lambda _: waiting
        self.alice.request("GET", SYNC, token="older")
        self.settle()
        self.dispatcher.answer = lambda _: MatrixResponse(200, {})
        self.ask(self.alice, "GET", SYNC, token="newer")
        waiting.callback(MatrixResponse(401, {"errcode": "M_UNKNOWN_TOKEN", "error": "no"}))
        self.settle()
        self.ask(self.alice, "GET", SYNC)
        self.assertEqual(self.dispatcher.asked[-1][0].access_token, "newer")

    def test_the_size_of_the_answer_is_the_result_of_the_deferred(self) -> None:
        waiting: Deferred[MatrixResponse] = Deferred()
        self.dispatcher.answer = lambda _: waiting
        self.alice.request("GET", VERSIONS)
        self.settle()
        waiting.callback(MatrixResponse(200, {"a": 1}))
        self.assertEqual(waiting.result, len(b"\xa1\x61a\x01"))

    def test_a_large_answer_is_one_request_to_the_dispatcher(self) -> None:
        body = {"chunk": ["x" * 1000 for _ in range(40)]}
        self.dispatcher.answer = lambda _: MatrixResponse(200, body)
        self.assertEqual(self.ask(self.alice, "GET", SYNC, token="t").body, body)
        self.assertEqual(len(self.dispatcher.asked), 1)

    def test_a_large_request_arrives_whole(self) -> None:
        body = {"keys": ["y" * 1000 for _ in range(60)]}
        self.ask(self.alice, "POST", "/_matrix/client/v3/keys/upload", body, token="t")
        self.assertEqual([request.body for request, _ in self.dispatcher.asked], [body])

    def test_another_user_does_not_see_the_blocks_of_the_first(self) -> None:
        """A second user on one association asks for a later block of what the first one is fetching."""
        self.dispatcher.answer = lambda _: MatrixResponse(200, {"secret": "s" * 3000})
        code, pairs, _ = encode_request("GET", SYNC, token="first")
        first = Message(Type.CON, code, 1, b"\x01", Options.of(*pairs))
        self.gateway.message_received(1, first.encode())
        answer = Message.decode(self.alice.received[-1])
        self.assertEqual(answer.code, Code.CONTENT)
        code, pairs, _ = encode_request("GET", SYNC, token="second")
        second_block = (23, bytes([0x10 | 6]))
        later = Message(Type.CON, code, 2, b"\x02", Options.of(*pairs, second_block))
        self.gateway.message_received(1, later.encode())
        refused = Message.decode(self.alice.received[-1])
        self.assertEqual(refused.message_id, 2)
        self.assertEqual(refused.code >> 5, 4)
        self.assertNotIn(b"sss", refused.payload)
        mine = Message(Type.CON, first.code, 3, b"\x03", Options.of(*first.options, second_block))
        self.gateway.message_received(1, mine.encode())
        self.assertIn(b"sss", Message.decode(self.alice.received[-1]).payload)
        self.assertEqual(len(self.dispatcher.asked), 1)

    def test_a_long_poll_is_acknowledged_at_once(self) -> None:
        self.dispatcher.answer = self.dispatcher.later
        self.alice.request("GET", SYNC + "?timeout=30000", token="t")
        self.settle()
        self.assertEqual(self.clock.seconds(), 0)
        acknowledgement = Message.decode(self.alice.received[-1])
        self.assertEqual((acknowledgement.type, acknowledgement.code), (Type.ACK, Code.EMPTY))

    def test_others_are_given_a_moment(self) -> None:
        self.dispatcher.answer = self.dispatcher.later
        self.alice.request("GET", SYNC, token="t")
        self.settle()
        self.assertEqual(self.alice.received, [])
        self.clock.advance(1.6)
        self.assertEqual(Message.decode(self.alice.received[-1]).type, Type.ACK)

    def test_a_client_that_goes_cancels_its_requests(self) -> None:
        self.dispatcher.answer = self.dispatcher.later
        self.alice.request("GET", SYNC + "?timeout=30000", token="t")
        self.settle()
        self.assertEqual(self.gateway.running, 1)
        self.alice.lose()
        self.assertEqual([request.path for request in self.dispatcher.cancelled], [SYNC.encode()])
        self.assertEqual((self.gateway.running, self.gateway.associations), (0, 0))
        self.assertEqual(self.gateway.counters.cancelled, 1)
        self.assertTrue(self.gateway.endpoint.idle)

    def test_a_new_request_with_the_token_of_the_last_cancels_that(self) -> None:
        self.dispatcher.answer = self.dispatcher.later
        self.alice.deaf = True
        code, pairs, _ = encode_request("GET", SYNC + "?timeout=30000", token="t")
        self.gateway.message_received(1, Message(Type.CON, code, 7, b"\x01", Options.of(*pairs)).encode())
        self.gateway.message_received(1, Message(Type.CON, code, 8, b"\x01", Options.of(*pairs)).encode())
        # RFC 7252 section 5.3.1: the first one is over.
        self.assertEqual((len(self.dispatcher.asked), len(self.dispatcher.cancelled)), (2, 1))

    def test_a_response_that_is_rejected_is_counted(self) -> None:
        waiting: Deferred[MatrixResponse] = Deferred()
        self.dispatcher.answer = lambda _: waiting
        self.alice.deaf = True
        code, pairs, _ = encode_request("GET", SYNC + "?timeout=30000", token="t")
        self.gateway.message_received(1, Message(Type.CON, code, 7, b"\x01", Options.of(*pairs)).encode())
        waiting.callback(MatrixResponse(200, {}))
        separate = Message.decode(self.alice.received[-1])
        self.assertEqual(separate.type, Type.CON)
        self.gateway.message_received(1, Message(Type.RST, Code.EMPTY, separate.message_id).encode())
        self.assertEqual(self.gateway.counters.undelivered, 1)

    def test_an_answer_after_the_client_has_gone_hurts_nobody(self) -> None:
        waiting: Deferred[MatrixResponse] = Deferred(lambda _: None)
        self.dispatcher.answer = lambda _: waiting
        self.alice.request("GET", VERSIONS)
        self.settle()
        self.alice.lose()
        self.assertEqual(waiting.called, True)
        self.assertEqual(self.gateway.counters.responses, 0)

    def test_what_is_no_matrix_request_is_answered_with_an_error(self) -> None:
        for request, status, errcode in (
            (
                CoapRequest(
                    Code.POST,
                    Options.of((11, b"_matrix"), (11, b"client"), (11, b"v3"), (11, b"login"), (12, b"\x3c")),
                    b"\xa1",
                ),
                400,
                "M_NOT_JSON",
            ),
            (CoapRequest(Code.GET, Options.of((11, b"nothing"))), 404, "M_UNRECOGNIZED"),
            (CoapRequest(Code.GET, Options.of((11, b"0"), (17, b"\x28"))), 406, "M_INVALID_PARAM"),
        ):
            result = self.alice.raw(request)
            self.settle()
            self.assertEqual((result().status, result().body["errcode"]), (status, errcode))
        self.assertEqual(self.gateway.counters.refused, 3)
        self.assertEqual(self.dispatcher.asked, [])

    def test_a_dispatcher_that_fails(self) -> None:
        def fail(_: MatrixRequest) -> MatrixResponse:
            raise RuntimeError("of the dispatcher")

        self.dispatcher.answer = fail
        response = self.ask(self.alice, "GET", VERSIONS)
        self.assertEqual(response.status, 500)
        self.assertEqual(response.body, {"errcode": "M_UNKNOWN", "error": "Internal server error"})
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(self.gateway.counters.failures, 1)

    def test_an_answer_that_cannot_be_encoded(self) -> None:
        self.dispatcher.answer = lambda _: MatrixResponse(200, {"x": object()})
        self.assertEqual(self.ask(self.alice, "GET", VERSIONS).status, 500)
        self.assertEqual(self.gateway.counters.failures, 1)

    def test_too_many_requests(self) -> None:
        body = {"errcode": "M_LIMIT_EXCEEDED", "error": "slow down"}
        self.dispatcher.answer = lambda _: MatrixResponse(429, body, retry_after=2.5)
        response = self.ask(self.alice, "GET", VERSIONS)
        self.assertEqual((response.status, response.retry_after, response.body), (429, 3.0, body))

    def test_datagrams_to_one_that_has_gone_do_not_hurt_others(self) -> None:
        self.dispatcher.answer = self.dispatcher.later
        self.alice.request("GET", SYNC + "?timeout=1", token="t")
        del self.port.clients[1]
        self.settle()
        self.assertEqual(self.gateway.send_failures, 1)

    def test_garbage(self) -> None:
        for data in (b"", b"\x00", b"\xff" * 50, bytes(range(256))):
            self.gateway.message_received(1, data)
        self.assertEqual(self.dispatcher.asked, [])
        self.assertEqual(self.ask(self.alice, "GET", VERSIONS).status, 200)

    def test_messages_of_an_association_that_is_not_there(self) -> None:
        code, pairs, _ = encode_request("GET", VERSIONS)
        self.gateway.message_received(99, Message(Type.CON, code, 7, b"\x01", Options.of(*pairs)).encode())
        self.assertEqual(self.dispatcher.asked, [])

    def test_shutdown_leaves_nothing(self) -> None:
        self.dispatcher.answer = self.dispatcher.later
        self.alice.request("GET", SYNC + "?timeout=30000", token="t")
        self.settle()
        self.alice.driver.stop()
        self.gateway.shutdown()
        self.gateway.shutdown()
        self.assertEqual(len(self.dispatcher.cancelled), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.gateway.message_received(1, b"\x40\x01\x00\x01")
        self.assertEqual(self.clock.getDelayedCalls(), [])
