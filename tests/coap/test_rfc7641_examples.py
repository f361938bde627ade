# SPDX-License-Identifier: AGPL-3.0-or-later
"""The examples of RFC 7641 (figure 2 and appendix A) and of RFC 7959 section 3.4 as lock-step tests.

As a client the endpoint plays them as they are. As a server it always sends notifications in Confirmable messages of
their own, where the figures have piggybacked and Non-confirmable ones; numbers and message ids are its own too.
Ladders show one leg of the figures with a proxy.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.events import (
    CoapRequest,
    CoapResponse,
    NotificationDelivered,
    NotificationReceived,
    RequestReceived,
    ResponseReceived,
)
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits
from tests.coap.lockstep import Script, body

ETAG = bytes.fromhex("78797a7a79")
S128 = Limits(block_szx=3)


def observe(*more: tuple[int, bytes], path: bytes = b"temperature") -> CoapRequest:
    """A registration."""
    return CoapRequest(
        Code.GET, Options.of((OptionNumber.OBSERVE, b""), (OptionNumber.URI_PATH, path), *more)
    )


def state(text: str, code: int = Code.CONTENT, *, etag: bytes | None = None) -> CoapResponse:
    """A representation that is fresh for 15 seconds."""
    options = Options.of((OptionNumber.MAX_AGE, b"\x0f"))
    if etag is not None:
        options = options.with_option(OptionNumber.ETAG, etag)
    return CoapResponse(code, options, text.encode())


class _Examples(SynchronousTestCase):
    def setUp(self) -> None:
        self.script = Script(self)

    def tearDown(self) -> None:
        self.script.nothing_leaks()

    def registers(self, request: CoapRequest, replacing: int | None = None) -> int:
        """The client's application registers."""
        return self.script.endpoint.request("peer", request, self.script.now, replacing=replacing)

    def client_has(self, text: str, sequence: int, code: int = Code.CONTENT) -> NotificationReceived:
        """The client's application gets this notification."""
        event = self.script.event(NotificationReceived)
        self.assertEqual(
            (event.response.payload, event.sequence, event.response.code), (text.encode(), sequence, code)
        )
        return event

    def serves(self, line: str) -> int:
        """The server gets a registration by this line, which its application wants to answer."""
        self.script.peer_sends(line)
        event = self.script.event(RequestReceived)
        self.assertEqual(event.request.options.get_uint(OptionNumber.OBSERVE), 0)
        return event.exchange

    def notifies(self, exchange: int, response: CoapResponse) -> None:
        self.script.endpoint.notify(exchange, response, self.script.now)

    def is_forgotten(self, exchange: int) -> None:
        """The client is no longer interested (section 3.6)."""
        self.script.endpoint.cancel(exchange, self.script.now)


class Client(_Examples):
    """The endpoint is the client."""

    def test_figure_2_observing_a_resource(self) -> None:
        """
        Client              Server
           |  GET /temperature |   Token: 0x4a, Observe: 0
           +------------------>|
           |  2.05 Content     |   Token: 0x4a, Observe: 12, "22.9 Cel"
           |<------------------+
           |  2.05 Content     |   Token: 0x4a, Observe: 44, "22.8 Cel"
           |<------------------+
           |  2.05 Content     |   Token: 0x4a, Observe: 60, "23.1 Cel"
           |<------------------+
        """
        script = self.script
        exchange = self.registers(observe())
        script.endpoint_sends("CON [$m] GET /temperature Observe=0 Token=$t")
        script.peer_sends('ACK [$m] 2.05 Token=$t Observe=12 "22.9 Cel"')
        self.client_has("22.9 Cel", 12)
        script.peer_sends('CON [1] 2.05 Token=$t Observe=44 "22.8 Cel"')
        script.peer_sends('CON [2] 2.05 Token=$t Observe=60 "23.1 Cel"')
        self.client_has("22.8 Cel", 44)
        self.client_has("23.1 Cel", 60)
        script.endpoint_is_quiet()
        for _ in range(3):
            script.endpoint.confirm(exchange, script.now)
        script.endpoint_sends("ACK [1]")
        script.endpoint_sends("ACK [2]")
        self.is_forgotten(exchange)

    def test_figure_3_registers_and_receives_two_notifications(self) -> None:
        """
        CLIENT  SERVER
          +----->|    Header: GET 0x41011633, Token: 0x4a, Uri-Path: temperature, Observe: 0 (register)
          |<-----+    Header: 2.05 0x61451633, Token: 0x4a, Observe: 9, Max-Age: 15, "18.5 Cel"
          |<-----+    Header: 2.05 0x51457b50, Token: 0x4a, Observe: 16, Max-Age: 15, "19.2 Cel"
        """
        script = self.script
        exchange = self._figure_3()
        script.endpoint.confirm(exchange, script.now)
        script.endpoint.confirm(exchange, script.now)
        script.endpoint_is_quiet()
        self.is_forgotten(exchange)

    def _figure_3(self) -> int:
        script = self.script
        exchange = self.registers(observe())
        script.endpoint_sends("CON [$m] GET /temperature Observe=0 Token=$t")
        script.peer_sends('ACK [$m] 2.05 Token=$t Observe=9 Max-Age=15 "18.5 Cel"')
        event = self.client_has("18.5 Cel", 9)
        self.assertEqual(event.response.options, Options.of((OptionNumber.MAX_AGE, b"\x0f")))
        script.passes(7)
        script.peer_sends('NON [0x7b50] 2.05 Token=$t Observe=16 Max-Age=15 "19.2 Cel"')
        self.client_has("19.2 Cel", 16)
        return exchange

    def test_figure_4_registers_again_after_max_age(self) -> None:
        """
        CLIENT  SERVER
          |  X----+    Header: 2.05 0x51457b51, Token: 0x4a, Observe: 25, Max-Age: 15, "19.7 Cel"
          ...          (the client's representation goes stale)
          +----->|    Header: GET 0x41011634, Token: 0xb2, Uri-Path: temperature, Observe: 0 (register)
          |<-----+    Header: 2.05 0x61451634, Token: 0xb2, Observe: 44, Max-Age: 15,
                                               ETag: 0x78797a7a79, "19.7 Cel"
        """
        script = self.script
        self.is_forgotten(self._figure_3())
        script.passes(22)
        exchange = self.registers(observe())
        script.endpoint_sends("CON [$m2] GET /temperature Observe=0 Token=$t2")
        self.assertNotEqual(script.bound["$t"], script.bound["$t2"])
        script.peer_sends('ACK [$m2] 2.05 Token=$t2 Observe=44 Max-Age=15 ETag=0x78797a7a79 "19.7 Cel"')
        event = self.client_has("19.7 Cel", 44)
        self.assertEqual(event.response.options.get(OptionNumber.ETAG), ETAG)
        self.is_forgotten(exchange)

    def test_figure_4_with_the_same_token(self) -> None:
        """Section 3.3.1: a client may register again with the token it has."""
        script = self.script
        first = self._figure_3()
        script.passes(22)
        exchange = self.registers(observe(), replacing=first)
        script.endpoint_sends("CON [$m2] GET /temperature Observe=0 Token=$t")
        script.peer_sends('ACK [$m2] 2.05 Token=$t Observe=44 Max-Age=15 "19.7 Cel"')
        self.assertEqual(self.client_has("19.7 Cel", 44).exchange, exchange)
        self.is_forgotten(first)
        script.endpoint_is_quiet()
        self.is_forgotten(exchange)

    def test_figure_5_lets_the_server_select_a_stored_response(self) -> None:
        """
        CLIENT  SERVER
          +----->|    Header: GET 0x41011635, Token: 0xf9, Uri-Path: temperature, Observe: 0 (register),
                                               ETag: 0x78797a7a79
          |<-----+    2.05, Token: 0xf9, Max-Age: 15, "20.0 Cel"
          |<-----+    2.03, Token: 0xf9, Max-Age: 15, ETag: 0x78797a7a79
        """
        script = self.script
        exchange = self.registers(observe((OptionNumber.ETAG, ETAG)))
        script.endpoint_sends("CON [$m] GET /temperature Observe=0 Token=$t ETag=0x78797a7a79")
        script.peer_sends('ACK [$m] 2.05 Token=$t Observe=74 Max-Age=15 "20.0 Cel"')
        self.client_has("20.0 Cel", 74)
        script.peer_sends("NON [0x7b52] 2.03 Token=$t Observe=123 Max-Age=15 ETag=0x78797a7a79")
        event = self.client_has("", 123, Code.VALID)
        self.assertEqual(event.response.options.get(OptionNumber.ETAG), ETAG)
        self.is_forgotten(exchange)

    def test_figures_6_and_7_a_proxy_observes(self) -> None:
        """
        PROXY   SERVER
          +----->|    GET, Uri-Path: status, Observe: 0 (register)
          |<-----+    2.05, Observe, Max-Age: 120, "ready"
          |<-----+    2.05, Observe, Max-Age: 120, "busy"
        """
        script = self.script
        exchange = self.registers(observe(path=b"status"))
        script.endpoint_sends("CON [$m] GET /status Observe=0 Token=$t")
        script.peer_sends('ACK [$m] 2.05 Token=$t Observe=20 Max-Age=120 "ready"')
        self.client_has("ready", 20)
        script.peer_sends('NON [1] 2.05 Token=$t Observe=30 Max-Age=120 "busy"')
        self.client_has("busy", 30)
        self.is_forgotten(exchange)

    def test_figure_7_a_client_observes_through_a_proxy(self) -> None:
        """
        CLIENT  PROXY
          +----->|    GET, Proxy-Uri: coap://sensor.example/status, Observe: 0 (register)
          |<- - -+    (empty ACK)
          |<-----+    CON, 2.05, Observe: 42, Max-Age: 120, "ready"
          +- - ->|    (empty ACK)
          |<-----+    CON, 2.05, Observe: 43, Max-Age: 120, "busy"
          +- - ->|    (empty ACK)
        """
        script = self.script
        uri = "coap://sensor.example/status"
        options = Options.of((OptionNumber.OBSERVE, b""), (OptionNumber.PROXY_URI, uri.encode()))
        exchange = self.registers(CoapRequest(Code.GET, options))
        script.endpoint_sends(f"CON [$m] GET Observe=0 Token=$t Proxy-Uri=0x{uri.encode().hex()}")
        script.peer_sends("ACK [$m]")
        script.passes(3600)
        for message_id, sequence, text in ((1, 42, "ready"), (2, 43, "busy")):
            script.peer_sends(f'CON [{message_id}] 2.05 Token=$t Observe={sequence} Max-Age=120 "{text}"')
            self.client_has(text, sequence)
            script.endpoint_is_quiet()
            script.endpoint.confirm(exchange, script.now)
            script.endpoint_sends(f"ACK [{message_id}]")
        self.is_forgotten(exchange)


class Server(_Examples):
    """The endpoint is the server."""

    def delivered(self, exchange: int) -> None:
        self.assertEqual(self.script.event(NotificationDelivered).exchange, exchange)

    def first(self, exchange: int, line: str, response: CoapResponse) -> None:
        """The first notification goes out as this line, and is acknowledged."""
        script = self.script
        self.notifies(exchange, response)
        script.endpoint_sends(line)
        script.peer_sends("ACK [$a]")
        self.delivered(exchange)

    def is_rejected(self, exchange: int, response: CoapResponse) -> None:
        """The client is no longer interested, and rejects the next notification."""
        script = self.script
        self.notifies(exchange, response)
        (message,) = script.datagrams()
        script.peer_sends(f"RST [{message.message_id}]")
        self.assertEqual(len(script.events()), 1)

    def test_figure_2_observing_a_resource(self) -> None:
        """The three notifications of figure 2, in rising order and from the same token."""
        script = self.script
        exchange = self.serves("CON [1] GET /temperature Token=4a Observe=0")
        self.notifies(exchange, CoapResponse(Code.CONTENT, Options(), b"22.9 Cel"))
        script.endpoint_sends("ACK [1]")
        numbers: list[int | None] = []
        for text in ("22.9 Cel", "22.8 Cel", "23.1 Cel"):
            if numbers:
                self.notifies(exchange, CoapResponse(Code.CONTENT, Options(), text.encode()))
            (message,) = script.datagrams()
            self.assertEqual((message.token, message.payload), (b"\x4a", text.encode()))
            numbers.append(message.options.get_uint(OptionNumber.OBSERVE))
            script.peer_sends(f"ACK [{message.message_id}]")
            self.delivered(exchange)
        self.assertEqual(numbers, [2, 3, 4])
        self.is_rejected(exchange, state("23.2 Cel"))

    def test_figures_3_and_4(self) -> None:
        """A notification is lost and, other than in figure 4, repeated: the server's are Confirmable."""
        script = self.script
        exchange = self.serves("CON [0x1633] GET /temperature Token=4a Observe=0")
        self.notifies(exchange, state("18.5 Cel"))
        script.endpoint_sends("ACK [0x1633]")
        script.endpoint_sends('CON [$a] 2.05 Token=4a Observe=$1 Max-Age=15 "18.5 Cel"')
        script.peer_sends("ACK [$a]")
        self.delivered(exchange)
        script.passes(7)
        self.notifies(exchange, state("19.2 Cel"))
        script.endpoint_sends('CON [$b] 2.05 Token=4a Observe=$2 Max-Age=15 "19.2 Cel"')
        script.peer_sends("ACK [$b]")
        self.delivered(exchange)
        script.passes(9)
        self.notifies(exchange, state("19.7 Cel"))
        script.lost('CON [$c] 2.05 Token=4a Observe=$3 Max-Age=15 "19.7 Cel"')
        script.until_timer()
        script.endpoint_sends('CON [$c] 2.05 Token=4a Observe=$3 Max-Age=15 "19.7 Cel"')
        script.peer_sends("ACK [$c]")
        self.delivered(exchange)
        # Still, the client registers again, with a new token.
        again = self.serves("CON [0x1634] GET /temperature Token=b2 Observe=0")
        self.notifies(again, state("19.7 Cel", etag=ETAG))
        script.endpoint_sends("ACK [0x1634]")
        script.endpoint_sends('CON [$d] 2.05 Token=b2 Observe=$4 Max-Age=15 ETag=0x78797a7a79 "19.7 Cel"')
        script.peer_sends("ACK [$d]")
        self.delivered(again)
        for number in (exchange, again):
            self.is_rejected(number, state("19.8 Cel"))

    def test_figure_5_selects_a_stored_response(self) -> None:
        """The ETags of the registration are the application's; so is the 2.03."""
        script = self.script
        script.peer_sends("CON [0x1635] GET /temperature Token=f9 Observe=0 ETag=0x78797a7a79")
        event = script.event(RequestReceived)
        self.assertEqual(event.request.options.get_all(OptionNumber.ETAG), (ETAG,))
        self.notifies(event.exchange, state("20.0 Cel"))
        script.endpoint_sends("ACK [0x1635]")
        script.endpoint_sends('CON [$a] 2.05 Token=f9 Observe=$1 Max-Age=15 "20.0 Cel"')
        script.peer_sends("ACK [$a]")
        self.delivered(event.exchange)
        self.notifies(event.exchange, state("", Code.VALID, etag=ETAG))
        script.endpoint_sends("CON [$b] 2.03 Token=f9 Observe=$2 Max-Age=15 ETag=0x78797a7a79")
        script.peer_sends("ACK [$b]")
        self.delivered(event.exchange)
        self.is_rejected(event.exchange, state("20.1 Cel"))

    def test_figures_6_and_7_it_is_no_proxy(self) -> None:
        script = self.script
        uri = b"coap://sensor.example/status".hex()
        script.peer_sends(f"CON [1] GET Token=4a Observe=0 Proxy-Uri=0x{uri}")
        script.endpoint_sends("ACK [1] 5.05 Token=4a")


class BlockWise(_Examples):
    """RFC 7959 section 3.4."""

    def setUp(self) -> None:
        self.script = Script(self, limits=S128)
        self.icon, self.next_icon = body(300, 1), body(300, 2)

    def test_figure_12_as_the_client(self) -> None:
        """
        CLIENT  SERVER
          +----->|    GET 0x41011636, Token: 0xfb, Uri-Path: status-icon, Observe: 0
          |<-----+    2.05 0x61451636, Token: 0xfb, Block2: 0/1/128, Observe: 62350, ETag: 6f00f38e
          ...         (the rest as usual)
          |<-----+    2.05 0x4145af9c, Token: 0xfb, Block2: 0/1/128, Observe: 62354, ETag: 6f00f392
          +- - ->|    0x6000af9c
          +----->|    GET 0x41011637, Token: 0xfc, Uri-Path: status-icon, Block2: 1/0/128
          |<-----+    2.05 0x61451637, Token: 0xfc, Block2: 1/1/128, ETag: 6f00f392
          +----->|    GET 0x41011638, Token: 0xfc, Uri-Path: status-icon, Block2: 2/0/128
          |<-----+    2.05 0x61451638, Token: 0xfc, Block2: 2/0/128, ETag: 6f00f392

        The ACK 0x6000af9c comes last: this client sends it when the notification has been processed.
        """
        script = self.script
        exchange = self.registers(observe(path=b"status-icon"))
        script.endpoint_sends("CON [$m] GET /status-icon Observe=0 2:0/0/128 Token=$t")
        script.peer_sends("ACK [$m] 2.05 Token=$t 2:0/1/128 Observe=62350 ETag=0x6f00f38e", self.icon[:128])
        self._fetches_the_rest(self.icon, "0x6f00f38e", "a")
        self.client_gets(self.icon, 62350)
        script.endpoint.confirm(exchange, script.now)
        script.endpoint_is_quiet()
        line = "CON [0xaf9c] 2.05 Token=$t 2:0/1/128 Observe=62354 ETag=0x6f00f392"
        script.peer_sends(line, self.next_icon[:128])
        self._fetches_the_rest(self.next_icon, "0x6f00f392", "b")
        self.client_gets(self.next_icon, 62354)
        script.endpoint_is_quiet()
        script.endpoint.confirm(exchange, script.now)
        script.endpoint_sends("ACK [0xaf9c]")
        self.is_forgotten(exchange)

    def client_gets(self, payload: bytes, sequence: int) -> None:
        event = self.script.event(NotificationReceived)
        self.assertEqual((event.response.payload, event.sequence), (payload, sequence))

    def _fetches_the_rest(self, payload: bytes, etag: str, name: str) -> None:
        script = self.script
        script.endpoint_sends(f"CON [${name}1] GET /status-icon 2:1/0/128 Token=${name}t1")
        script.peer_sends(f"ACK [${name}1] 2.05 Token=${name}t1 2:1/1/128 ETag={etag}", payload[128:256])
        script.endpoint_sends(f"CON [${name}2] GET /status-icon 2:2/0/128 Token=${name}t2")
        script.peer_sends(f"ACK [${name}2] 2.05 Token=${name}t2 2:2/0/128 ETag={etag}", payload[256:])
        self.assertNotEqual(script.bound["$t"], script.bound[f"${name}t1"])

    def test_figure_12_as_the_server(self) -> None:
        """The client acknowledges at once, as in the figure, and then fetches the rest."""
        script = self.script
        exchange = self.serves("CON [0x1636] GET /status-icon Token=fb Observe=0 2:0/0/128")
        self.notifies(exchange, CoapResponse(Code.CONTENT, Options(), self.icon))
        script.endpoint_sends("ACK [0x1636]")
        script.endpoint_sends("CON [$a] 2.05 Token=fb 2:0/1/128 Observe=2 ETag=$e", self.icon[:128])
        script.peer_sends("ACK [$a]")
        self._serves_the_rest(self.icon, "$e", 0x1637)
        self.assertEqual(script.event(NotificationDelivered).exchange, exchange)
        self.notifies(exchange, CoapResponse(Code.CONTENT, Options(), self.next_icon))
        script.endpoint_sends("CON [$b] 2.05 Token=fb 2:0/1/128 Observe=3 ETag=$f", self.next_icon[:128])
        self.assertNotEqual(script.bound["$e"], script.bound["$f"])
        script.peer_sends("ACK [$b]")
        self._serves_the_rest(self.next_icon, "$f", 0x1639)
        self.assertEqual(script.event(NotificationDelivered).exchange, exchange)
        self._deregisters()

    def _serves_the_rest(self, payload: bytes, etag: str, message_id: int) -> None:
        script = self.script
        script.peer_sends(f"CON [{message_id}] GET /status-icon Token=fc 2:1/0/128")
        script.endpoint_sends(f"ACK [{message_id}] 2.05 Token=fc 2:1/1/128 ETag={etag}", payload[128:256])
        script.no_event()
        script.peer_sends(f"CON [{message_id + 1}] GET /status-icon Token=fc 2:2/0/128")
        script.endpoint_sends(f"ACK [{message_id + 1}] 2.05 Token=fc 2:2/0/128 ETag={etag}", payload[256:])

    def _deregisters(self) -> None:
        script = self.script
        script.peer_sends("CON [0x1700] GET /status-icon Token=fb Observe=1")
        script.events()
        script.endpoint.respond(self._last(), CoapResponse(Code.CONTENT), script.now)
        script.endpoint_sends("ACK [0x1700] 2.05 Token=fb")

    def _last(self) -> int:
        return max(self.script.endpoint._core.exchanges)

    def test_figure_13_early_negotiation(self) -> None:
        """
        CLIENT  SERVER
          +----->|    GET 0x41011636, Token: 0xfb, Uri-Path: status-icon, Observe: 0, Block2: 0/0/64
          |<-----+    2.05 0x61451636, Token: 0xfb, Block2: 0/1/64, Observe: 62350, ETag: 6f00f38e
          ...
          |<-----+    2.05 0x4145af9c, Token: 0xfb, Block2: 0/1/64, Observe: 62354, ETag: 6f00f392
          +- - ->|    0x6000af9c
          +----->|    GET 0x41011637, Token: 0xfc, Uri-Path: status-icon, Block2: 1/0/64
          |<-----+    2.05 0x61451637, Token: 0xfc, Block2: 1/1/64, ETag: 6f00f392
          ...
          +----->|    GET 0x41011638, Token: 0xfc, Uri-Path: status-icon, Block2: 4/0/64
          |<-----+    2.05 0x61451638, Token: 0xfc, Block2: 4/0/64, ETag: 6f00f392

        The size that the registration asked for holds for all its notifications.
        """
        script = self.script
        exchange = self.serves("CON [0x1636] GET /status-icon Token=fb Observe=0 2:0/0/64")
        self.notifies(exchange, CoapResponse(Code.CONTENT, Options(), self.icon))
        script.endpoint_sends("ACK [0x1636]")
        for round_, icon in enumerate((self.icon, self.next_icon)):
            if round_:
                self.notifies(exchange, CoapResponse(Code.CONTENT, Options(), icon))
            line = f"CON [$m{round_}] 2.05 Token=fb 2:0/1/64 Observe={2 + round_} ETag=$e{round_}"
            script.endpoint_sends(line, icon[:64])
            script.peer_sends(f"ACK [$m{round_}]")
            for number in range(1, 5):
                script.no_event()
                message_id = 0x1637 + 10 * round_ + number
                script.peer_sends(f"CON [{message_id}] GET /status-icon Token=fc 2:{number}/0/64")
                more = int(number < 4)
                line = f"ACK [{message_id}] 2.05 Token=fc 2:{number}/{more}/64 ETag=$e{round_}"
                script.endpoint_sends(line, icon[64 * number : 64 * number + 64])
            self.assertEqual(script.event(NotificationDelivered).exchange, exchange)
        self._deregisters()


class PlainResponse(_Examples):
    """Section 3.2: a response without Observe is a plain one."""

    def test_no_registration(self) -> None:
        script = self.script
        self.registers(observe())
        script.endpoint_sends("CON [$m] GET /temperature Observe=0 Token=$t")
        script.peer_sends('ACK [$m] 2.05 Token=$t "18.5 Cel"')
        self.assertEqual(script.event(ResponseReceived).response.payload, b"18.5 Cel")
