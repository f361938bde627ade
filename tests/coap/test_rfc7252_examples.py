# SPDX-License-Identifier: AGPL-3.0-or-later
"""The examples of RFC 7252 as lock-step tests: appendix A (figures 16 to 23), and figures 2 to 6.

A dashed line in the RFC's diagrams is an Empty message. Where a figure can be played with the endpoint at either
end, it is.
"""

from __future__ import annotations

from itertools import pairwise

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.events import (
    CoapRequest,
    CoapResponse,
    RequestFailed,
    RequestReceived,
    ResponseReceived,
    ResponseUndelivered,
)
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Tuning
from tests.coap.lockstep import Script

TEMPERATURE = Options.of((OptionNumber.URI_PATH, b"temperature"))
WARM = CoapResponse(Code.CONTENT, Options(), b"22.3 C")


def get(*, confirmable: bool = True) -> CoapRequest:
    return CoapRequest(Code.GET, TEMPERATURE, confirmable=confirmable)


class ServerExamples(SynchronousTestCase):
    """The endpoint is the server."""

    def setUp(self) -> None:
        self.script = Script(self)

    def tearDown(self) -> None:
        self.script.nothing_leaks()

    def _answer(self, response: CoapResponse = WARM) -> None:
        event = self.script.event(RequestReceived)
        self.assertEqual(event.request.options, TEMPERATURE)
        self.script.endpoint.respond(event.exchange, response, self.script.now)

    def test_figure_16_piggybacked_response(self) -> None:
        """
        Client  Server
           |      |
           +----->|     Header: GET (T=CON, Code=0.01, MID=0x7d34)
           | GET  |   Uri-Path: "temperature"
           |      |
           |<-----+     Header: 2.05 Content (T=ACK, Code=2.05, MID=0x7d34)
           | 2.05 |    Payload: "22.3 C"
        """
        self.script.peer_sends("CON [0x7d34] GET /temperature")
        self._answer()
        self.script.endpoint_sends('ACK [0x7d34] 2.05 "22.3 C"')

    def test_figure_16_is_these_bytes(self) -> None:
        """
         0                   1                   2                   3
         0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
        | 1 | 0 |   0   |     GET=1     |          MID=0x7d34           |
        |  11   |  11   |      "temperature" (11 B) ...

        | 1 | 2 |   0   |    2.05=69    |          MID=0x7d34           |
        |1 1 1 1 1 1 1 1|      "22.3 C" (6 B) ...
        """
        self.script.peer_sends_bytes(bytes.fromhex("40017d34bb") + b"temperature")
        self._answer()
        sent = self.script.endpoint.datagrams_to_send(self.script.now)
        self.assertEqual(sent, [("peer", bytes.fromhex("60457d34ff") + b"22.3 C")])

    def test_figure_17_piggybacked_response_with_a_token(self) -> None:
        """
        Client  Server
           |      |
           +----->|     Header: GET (T=CON, Code=0.01, MID=0x7d35)
           | GET  |      Token: 0x20
           |      |   Uri-Path: "temperature"
           |      |
           |<-----+     Header: 2.05 Content (T=ACK, Code=2.05, MID=0x7d35)
           | 2.05 |      Token: 0x20
           |      |    Payload: "22.3 C"
        """
        self.script.peer_sends("CON [0x7d35] GET Token=20 /temperature")
        self._answer()
        self.script.endpoint_sends('ACK [0x7d35] 2.05 Token=20 "22.3 C"')

    def test_figure_18_request_retransmitted(self) -> None:
        """
        Client  Server
           |      |
           +----X |     Header: GET (T=CON, Code=0.01, MID=0x7d36)
           | GET  |      Token: 0x31
           |      |   Uri-Path: "temperature"
        TIMEOUT   |
           |      |
           +----->|     Header: GET (T=CON, Code=0.01, MID=0x7d36)
           | GET  |      Token: 0x31
           |      |   Uri-Path: "temperature"
           |      |
           |<-----+     Header: 2.05 Content (T=ACK, Code=2.05, MID=0x7d36)
           | 2.05 |      Token: 0x31
           |      |    Payload: "22.3 C"
        """
        self.script.passes(2.5)
        self.script.peer_sends("CON [0x7d36] GET Token=31 /temperature")
        self._answer()
        self.script.endpoint_sends('ACK [0x7d36] 2.05 Token=31 "22.3 C"')

    def test_figure_19_response_retransmitted(self) -> None:
        """
        Client  Server
           |      |
           +----->|     Header: GET (T=CON, Code=0.01, MID=0x7d37)
           | GET  |      Token: 0x42
           |      |   Uri-Path: "temperature"
           |      |
           | X----+     Header: 2.05 Content (T=ACK, Code=2.05, MID=0x7d37)
           | 2.05 |      Token: 0x42
           |      |    Payload: "22.3 C"
        TIMEOUT   |
           |      |
           +----->|     Header: GET (T=CON, Code=0.01, MID=0x7d37)
           | GET  |      Token: 0x42
           |      |   Uri-Path: "temperature"
           |      |
           |<-----+     Header: 2.05 Content (T=ACK, Code=2.05, MID=0x7d37)
           | 2.05 |      Token: 0x42
           |      |    Payload: "22.3 C"
        """
        script = self.script
        script.peer_sends("CON [0x7d37] GET Token=42 /temperature")
        self._answer()
        script.lost('ACK [0x7d37] 2.05 Token=42 "22.3 C"')
        script.passes(2.5)
        script.peer_sends("CON [0x7d37] GET Token=42 /temperature")
        script.endpoint_sends('ACK [0x7d37] 2.05 Token=42 "22.3 C"')
        script.no_event()
        self.assertEqual(script.endpoint.counters.duplicates, 1)

    def test_figure_20_separate_response(self) -> None:
        """
        Client  Server
           |      |
           +----->|     Header: GET (T=CON, Code=0.01, MID=0x7d38)
           | GET  |      Token: 0x53
           |      |   Uri-Path: "temperature"
           |      |
           |<- - -+     Header: (T=ACK, Code=0.00, MID=0x7d38)
           |      |
           |<-----+     Header: 2.05 Content (T=CON, Code=2.05, MID=0xad7b)
           | 2.05 |      Token: 0x53
           |      |    Payload: "22.3 C"
           |      |
           +- - ->|     Header: (T=ACK, Code=0.00, MID=0xad7b)
        """
        script = self.script
        script.peer_sends("CON [0x7d38] GET Token=53 /temperature")
        script.passes(1.4)
        script.endpoint_is_quiet()
        script.passes(0.1)
        script.endpoint_sends("ACK [0x7d38]")
        script.passes(5)
        self._answer()
        script.endpoint_sends('CON [$m] 2.05 Token=53 "22.3 C"')
        script.peer_sends("ACK [$m]")
        self.assertEqual(script.endpoint.open_exchanges, 0)

    def test_figure_21_separate_response_unexpected(self) -> None:
        """
        Client  Server
           |      |
           +----->|     Header: GET (T=CON, Code=0.01, MID=0x7d39)
           | GET  |      Token: 0x64
           |      |   Uri-Path: "temperature"
         CRASH    |
           |      |
           |<- - -+     Header: (T=ACK, Code=0.00, MID=0x7d39)
           |      |
           |<-----+     Header: 2.05 Content (T=CON, Code=2.05, MID=0xad7c)
           | 2.05 |      Token: 0x64
           |      |    Payload: "22.3 C"
           |      |
           +- - ->|     Header: (T=RST, Code=0.00, MID=0xad7c)
        """
        script = self.script
        script.peer_sends("CON [0x7d39] GET Token=64 /temperature")
        script.passes(1.5)
        script.endpoint_sends("ACK [0x7d39]")
        self._answer()
        script.endpoint_sends('CON [$m] 2.05 Token=64 "22.3 C"')
        script.peer_sends("RST [$m]")
        script.event(ResponseUndelivered)
        self.assertEqual(script.endpoint.counters.resets_received, 1)

    def test_figure_22_non_confirmable(self) -> None:
        """
        Client  Server
           |      |
           +----->|     Header: GET (T=NON, Code=0.01, MID=0x7d40)
           | GET  |      Token: 0x75
           |      |   Uri-Path: "temperature"
           |      |
           |<-----+     Header: 2.05 Content (T=NON, Code=2.05, MID=0xad7d)
           | 2.05 |      Token: 0x75
           |      |    Payload: "22.3 C"
        """
        self.script.peer_sends("NON [0x7d40] GET Token=75 /temperature")
        self.script.passes(10)
        self._answer()
        self.script.endpoint_sends('NON [$m] 2.05 Token=75 "22.3 C"')

    def test_figure_23_non_confirmable_not_found(self) -> None:
        """As node C of the figure, over unicast: this endpoint has no multicast.

        Client  A    B    C
           |    |    |    |
           +-------------->|     Header: GET (T=NON, Code=0.01, MID=0x7d41)
           | GET           |      Token: 0x86
           |               |   Uri-Path: "temperature"
           |               |
           |<--------------+     Header: 4.04 Not Found (T=NON, Code=4.04, MID=0x952b)
           | 4.04          |      Token: 0x86
        """
        self.script.peer_sends("NON [0x7d41] GET Token=86 /temperature")
        self._answer(CoapResponse(Code.NOT_FOUND))
        self.script.endpoint_sends("NON [$m] 4.04 Token=86")

    def test_figure_4_not_found(self) -> None:
        """
        Client              Server
           |   CON [0xbc91]   |
           | GET /temperature |
           |   (Token 0x72)   |
           +----------------->|
           |                  |
           |   ACK [0xbc91]   |
           |  4.04 Not Found  |
           |   (Token 0x72)   |
           |   "Not found"    |
           |<-----------------+
        """
        self.script.peer_sends("CON [0xbc91] GET Token=72 /temperature")
        self._answer(CoapResponse(Code.NOT_FOUND, Options(), b"Not found"))
        self.script.endpoint_sends('ACK [0xbc91] 4.04 Token=72 "Not found"')


class ClientExamples(SynchronousTestCase):
    """The endpoint is the client."""

    def setUp(self) -> None:
        self.script = Script(self)

    def tearDown(self) -> None:
        self.script.nothing_leaks()

    def _request(self, *, confirmable: bool = True) -> int:
        return self.script.endpoint.request("peer", get(confirmable=confirmable), self.script.now)

    def _is_answered(self, exchange: int) -> None:
        event = self.script.event(ResponseReceived)
        self.assertEqual((event.exchange, event.response), (exchange, WARM))

    def test_figure_17_piggybacked_response(self) -> None:
        """See `ServerExamples.test_figure_17_piggybacked_response_with_a_token`."""
        exchange = self._request()
        self.script.endpoint_sends("CON [$m] GET Token=$t /temperature")
        self.script.peer_sends('ACK [$m] 2.05 Token=$t "22.3 C"')
        self._is_answered(exchange)

    def test_figures_18_and_19_retransmission(self) -> None:
        """See `ServerExamples.test_figure_19_response_retransmitted`: to the client both are the same."""
        script = self.script
        exchange = self._request()
        script.lost("CON [$m] GET Token=$t /temperature")
        script.passes(1.9)
        script.endpoint_is_quiet()
        script.passes(1.2)
        script.endpoint_sends("CON [$m] GET Token=$t /temperature")
        script.peer_sends('ACK [$m] 2.05 Token=$t "22.3 C"')
        self._is_answered(exchange)
        script.peer_sends('ACK [$m] 2.05 Token=$t "22.3 C"')
        script.no_event()

    def test_figure_2_all_retransmissions_fail(self) -> None:
        """RFC 7252 section 4.2: the timeout doubles MAX_RETRANSMIT times, then the request fails."""
        script = self.script = Script(self, tuning=Tuning(adaptive_rto=False))
        exchange = self._request()
        sent_at = []
        failed: RequestFailed | None = None
        while failed is None:
            sent_at += [script.now for _ in script.datagrams()]
            script.until_timer()
            event = script.endpoint.next_event()
            if event is not None:
                assert isinstance(event, RequestFailed)
                failed = event
        self.assertEqual(failed.exchange, exchange)
        self.assertEqual(len(sent_at), 5)
        waits = [later - earlier for earlier, later in pairwise(sent_at)]
        self.assertTrue(2.0 <= waits[0] <= 3.0, waits)
        for shorter, longer in pairwise(waits):
            self.assertAlmostEqual(longer, 2 * shorter)
        self.assertAlmostEqual(script.now - sent_at[-1], 2 * waits[-1])

    def test_figure_20_separate_response(self) -> None:
        """See `ServerExamples.test_figure_20_separate_response`."""
        script = self.script
        exchange = self._request()
        script.endpoint_sends("CON [$m] GET Token=$t /temperature")
        script.peer_sends("ACK [$m]")
        script.passes(60)
        script.endpoint_is_quiet()
        script.peer_sends('CON [0xad7b] 2.05 Token=$t "22.3 C"')
        script.endpoint_sends("ACK [0xad7b]")
        self._is_answered(exchange)

    def test_figure_20_with_a_lost_acknowledgement(self) -> None:
        """The client's ACK is lost, so the server sends its response again: acknowledged again, heard once."""
        script = self.script
        exchange = self._request()
        script.endpoint_sends("CON [$m] GET Token=$t /temperature")
        script.peer_sends("ACK [$m]")
        script.peer_sends('CON [0xad7b] 2.05 Token=$t "22.3 C"')
        script.lost("ACK [0xad7b]")
        self._is_answered(exchange)
        script.passes(3)
        script.peer_sends('CON [0xad7b] 2.05 Token=$t "22.3 C"')
        script.endpoint_sends("ACK [0xad7b]")

    def test_figure_21_separate_response_unexpected(self) -> None:
        """See `ServerExamples.test_figure_21_separate_response_unexpected`; the unexpected ACK is ignored."""
        script = self.script
        script.peer_sends("ACK [0x7d39]")
        script.endpoint_is_quiet()
        script.peer_sends('CON [0xad7c] 2.05 Token=64 "22.3 C"')
        script.endpoint_sends("RST [0xad7c]")

    def test_figure_22_non_confirmable(self) -> None:
        """See `ServerExamples.test_figure_22_non_confirmable`."""
        exchange = self._request(confirmable=False)
        self.script.endpoint_sends("NON [$m] GET Token=$t /temperature")
        self.script.peer_sends('NON [0xad7d] 2.05 Token=$t "22.3 C"')
        self._is_answered(exchange)
