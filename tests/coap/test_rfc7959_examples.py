# SPDX-License-Identifier: AGPL-3.0-or-later
"""The examples of RFC 7959 section 3 as lock-step tests, with the endpoint at either end.

Figures 12 and 13 are of Observe: see test_rfc7641_examples. The tokens, which the figures leave out, are those of
clients that use one token for a whole transfer; other tests use one for each block.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.events import CoapRequest, CoapResponse, RequestReceived, ResponseReceived
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits
from tests.coap.lockstep import Script, body

S128 = Limits(block_szx=3)
S64 = Limits(block_szx=2)
S32 = Limits(block_szx=1)


def path(segment: bytes) -> Options:
    return Options.of((OptionNumber.URI_PATH, segment))


class _Examples(SynchronousTestCase):
    script: Script

    def tearDown(self) -> None:
        self.script.nothing_leaks()

    def serve(self, expected: CoapRequest, code: int, payload: bytes = b"") -> None:
        """The application of the server gets this whole request, once, and answers it."""
        event = self.script.event(RequestReceived)
        self.assertEqual(event.request, expected)
        self.script.no_event()
        self.script.endpoint.respond(event.exchange, CoapResponse(code, Options(), payload), self.script.now)

    def client_has(self, code: int, payload: bytes) -> None:
        """The application of the client gets this whole response."""
        event = self.script.event(ResponseReceived)
        self.assertEqual((event.response.code, event.response.payload), (code, payload))


class Block2Server(_Examples):
    """Section 3.1: the endpoint is the server."""

    def setUp(self) -> None:
        self.status = body(300)
        self.request = CoapRequest(Code.GET, path(b"status"))

    def test_figure_2_simple_get(self) -> None:
        """
        CLIENT                                                     SERVER
          | CON [MID=1234], GET, /status                       ------> |
          | <------   ACK [MID=1234], 2.05 Content, 2:0/1/128          |
          | CON [MID=1235], GET, /status, 2:1/0/128            ------> |
          | <------   ACK [MID=1235], 2.05 Content, 2:1/1/128          |
          | CON [MID=1236], GET, /status, 2:2/0/128            ------> |
          | <------   ACK [MID=1236], 2.05 Content, 2:2/0/128          |
        """
        script = self.script = Script(self, limits=S128)
        script.peer_sends("CON [1234] GET /status")
        self.serve(self.request, Code.CONTENT, self.status)
        script.endpoint_sends("ACK [1234] 2.05 2:0/1/128 ETag=$e", self.status[:128])
        script.peer_sends("CON [1235] GET /status 2:1/0/128")
        script.endpoint_sends("ACK [1235] 2.05 2:1/1/128 ETag=$e", self.status[128:256])
        script.peer_sends("CON [1236] GET /status 2:2/0/128")
        script.endpoint_sends("ACK [1236] 2.05 2:2/0/128 ETag=$e", self.status[256:])

    def test_figure_3_early_negotiation(self) -> None:
        """
        CLIENT                                                     SERVER
          | CON [MID=1234], GET, /status, 2:0/0/64             ------> |
          | <------   ACK [MID=1234], 2.05 Content, 2:0/1/64           |
          | CON [MID=1235], GET, /status, 2:1/0/64             ------> |
          | <------   ACK [MID=1235], 2.05 Content, 2:1/1/64           |
          :                          ...                               :
          | CON [MID=1238], GET, /status, 2:4/0/64             ------> |
          | <------   ACK [MID=1238], 2.05 Content, 2:4/0/64           |
        """
        script = self.script = Script(self)
        script.peer_sends("CON [1234] GET /status 2:0/0/64")
        self.serve(self.request, Code.CONTENT, self.status)
        script.endpoint_sends("ACK [1234] 2.05 2:0/1/64", self.status[:64])
        for number in range(1, 5):
            script.peer_sends(f"CON [{1234 + number}] GET /status 2:{number}/0/64")
            script.endpoint_sends(
                f"ACK [{1234 + number}] 2.05 2:{number}/{int(number < 4)}/64",
                self.status[64 * number : 64 * number + 64],
            )

    def _late(self, *, lost_ack: bool) -> None:
        script = self.script = Script(self, limits=S128)
        script.peer_sends("CON [1234] GET /status")
        self.serve(self.request, Code.CONTENT, self.status)
        script.endpoint_sends("ACK [1234] 2.05 2:0/1/128", self.status[:128])
        script.peer_sends("CON [1235] GET /status 2:2/0/64")
        if lost_ack:
            script.lost("ACK [1235] 2.05 2:2/1/64", self.status[128:192])
            script.passes(2.5)
            script.peer_sends("CON [1235] GET /status 2:2/0/64")
        script.endpoint_sends("ACK [1235] 2.05 2:2/1/64", self.status[128:192])
        script.peer_sends("CON [1236] GET /status 2:3/0/64")
        script.endpoint_sends("ACK [1236] 2.05 2:3/1/64", self.status[192:256])
        script.peer_sends("CON [1237] GET /status 2:4/0/64")
        script.endpoint_sends("ACK [1237] 2.05 2:4/0/64", self.status[256:])

    def test_figures_4_and_5_late_negotiation(self) -> None:
        """Figure 5, with a lost CON, is the same to the server.

        CLIENT                                                     SERVER
          | CON [MID=1234], GET, /status                     ------>   |
          | <------   ACK [MID=1234], 2.05 Content, 2:0/1/128          |
          | CON [MID=1235], GET, /status, 2:2/0/64           ------>   |
          | <------   ACK [MID=1235], 2.05 Content, 2:2/1/64           |
          | CON [MID=1236], GET, /status, 2:3/0/64           ------>   |
          | <------   ACK [MID=1236], 2.05 Content, 2:3/1/64           |
          | CON [MID=1237], GET, /status, 2:4/0/64           ------>   |
          | <------   ACK [MID=1237], 2.05 Content, 2:4/0/64           |
        """
        self._late(lost_ack=False)

    def test_figure_6_late_negotiation_and_lost_ack(self) -> None:
        """
        CLIENT                                                     SERVER
          | CON [MID=1234], GET, /status                     ------>   |
          | <------   ACK [MID=1234], 2.05 Content, 2:0/1/128          |
          | CON [MID=1235], GET, /status, 2:2/0/64           ------>   |
          | //////////////////////////////////tent, 2:2/1/64           |
          | (timeout)                                                  |
          | CON [MID=1235], GET, /status, 2:2/0/64           ------>   |
          | <------   ACK [MID=1235], 2.05 Content, 2:2/1/64           |
          :                          ...                               :
        """
        self._late(lost_ack=True)


class Block2Client(_Examples):
    """Section 3.1: the endpoint is the client."""

    def setUp(self) -> None:
        self.status = body(300)
        self.request = CoapRequest(Code.GET, path(b"status"))

    def test_figure_2_simple_get(self) -> None:
        """See `Block2Server.test_figure_2_simple_get`."""
        script = self.script = Script(self)
        script.endpoint.request("peer", self.request, script.now)
        script.endpoint_sends("CON [$a] GET /status Token=$1")
        script.peer_sends("ACK [$a] 2.05 2:0/1/128 Token=$1", self.status[:128])
        script.endpoint_sends("CON [$b] GET /status 2:1/0/128 Token=$2")
        script.peer_sends("ACK [$b] 2.05 2:1/1/128 Token=$2", self.status[128:256])
        script.endpoint_sends("CON [$c] GET /status 2:2/0/128 Token=$3")
        script.peer_sends("ACK [$c] 2.05 2:2/0/128 Token=$3", self.status[256:])
        self.client_has(Code.CONTENT, self.status)

    def test_figure_3_early_negotiation(self) -> None:
        """See `Block2Server.test_figure_3_early_negotiation`."""
        script = self.script = Script(self, limits=S64)
        script.endpoint.request("peer", self.request, script.now)
        for number in range(5):
            script.endpoint_sends(f"CON [$m{number}] GET /status 2:{number}/0/64 Token=$t{number}")
            script.peer_sends(
                f"ACK [$m{number}] 2.05 2:{number}/{int(number < 4)}/64 Token=$t{number}",
                self.status[64 * number : 64 * number + 64],
            )
        self.client_has(Code.CONTENT, self.status)

    def _late(self, *, lost_con: bool) -> None:
        # The server does not heed the size that this client asks for at first.
        script = self.script = Script(self, limits=S64)
        script.endpoint.request("peer", self.request, script.now)
        script.endpoint_sends("CON [$a] GET /status 2:0/0/64 Token=$1")
        script.peer_sends("ACK [$a] 2.05 2:0/1/128 Token=$1", self.status[:128])
        if lost_con:
            script.lost("CON [$b] GET /status 2:2/0/64 Token=$2")
            script.until_timer()
        script.endpoint_sends("CON [$b] GET /status 2:2/0/64 Token=$2")
        script.peer_sends("ACK [$b] 2.05 2:2/1/64 Token=$2", self.status[128:192])
        script.endpoint_sends("CON [$c] GET /status 2:3/0/64 Token=$3")
        script.peer_sends("ACK [$c] 2.05 2:3/1/64 Token=$3", self.status[192:256])
        script.endpoint_sends("CON [$d] GET /status 2:4/0/64 Token=$4")
        script.peer_sends("ACK [$d] 2.05 2:4/0/64 Token=$4", self.status[256:])
        self.client_has(Code.CONTENT, self.status)

    def test_figure_4_late_negotiation(self) -> None:
        """See `Block2Server.test_figures_4_and_5_late_negotiation`."""
        self._late(lost_con=False)

    def test_figures_5_and_6_late_negotiation_and_a_loss(self) -> None:
        """
        CLIENT                                                     SERVER
          | CON [MID=1234], GET, /status                     ------>   |
          | <------   ACK [MID=1234], 2.05 Content, 2:0/1/128          |
          | CON [MID=1235], GET, /status, 2:2/0/64           /////     |
          | (timeout)                                                  |
          | CON [MID=1235], GET, /status, 2:2/0/64           ------>   |
          | <------   ACK [MID=1235], 2.05 Content, 2:2/1/64           |
          :                          ...                               :
        """
        self._late(lost_con=True)


class Block1Server(_Examples):
    """Section 3.2: the endpoint is the server."""

    def test_figure_7_simple_atomic_put(self) -> None:
        """
        CLIENT                                                     SERVER
          | CON [MID=1234], PUT, /options, 1:0/1/128    ------>        |
          | <------   ACK [MID=1234], 2.31 Continue, 1:0/1/128         |
          | CON [MID=1235], PUT, /options, 1:1/1/128    ------>        |
          | <------   ACK [MID=1235], 2.31 Continue, 1:1/1/128         |
          | CON [MID=1236], PUT, /options, 1:2/0/128    ------>        |
          | <------   ACK [MID=1236], 2.04 Changed, 1:2/0/128          |
        """
        script = self.script = Script(self)
        options = body(300)
        script.peer_sends("CON [1234] PUT /options 1:0/1/128", options[:128])
        script.endpoint_sends("ACK [1234] 2.31 1:0/1/128")
        script.peer_sends("CON [1235] PUT /options 1:1/1/128", options[128:256])
        script.endpoint_sends("ACK [1235] 2.31 1:1/1/128")
        script.no_event()
        script.peer_sends("CON [1236] PUT /options 1:2/0/128", options[256:])
        self.serve(CoapRequest(Code.PUT, path(b"options"), options), Code.CHANGED)
        script.endpoint_sends("ACK [1236] 2.04 1:2/0/128")

    def test_figure_9_negotiation(self) -> None:
        """
        CLIENT                                                     SERVER
          | CON [MID=1234], PUT, /options, 1:0/1/128    ------>        |
          | <------   ACK [MID=1234], 2.31 Continue, 1:0/1/32          |
          | CON [MID=1235], PUT, /options, 1:4/1/32     ------>        |
          | <------   ACK [MID=1235], 2.31 Continue, 1:4/1/32          |
          | CON [MID=1236], PUT, /options, 1:5/1/32     ------>        |
          | <------   ACK [MID=1236], 2.31 Continue, 1:5/1/32          |
          | CON [MID=1237], PUT, /options, 1:6/0/32     ------>        |
          | <------   ACK [MID=1237], 2.04 Changed, 1:6/0/32           |
        """
        script = self.script = Script(self, limits=S32)
        options = body(200)
        script.peer_sends("CON [1234] PUT /options 1:0/1/128", options[:128])
        script.endpoint_sends("ACK [1234] 2.31 1:0/1/32")
        script.peer_sends("CON [1235] PUT /options 1:4/1/32", options[128:160])
        script.endpoint_sends("ACK [1235] 2.31 1:4/1/32")
        script.peer_sends("CON [1236] PUT /options 1:5/1/32", options[160:192])
        script.endpoint_sends("ACK [1236] 2.31 1:5/1/32")
        script.peer_sends("CON [1237] PUT /options 1:6/0/32", options[192:])
        self.serve(CoapRequest(Code.PUT, path(b"options"), options), Code.CHANGED)
        script.endpoint_sends("ACK [1237] 2.04 1:6/0/32")


class Block1Client(_Examples):
    """Section 3.2: the endpoint is the client."""

    def test_figure_7_simple_atomic_put(self) -> None:
        """See `Block1Server.test_figure_7_simple_atomic_put`; the first block says how large the body is."""
        script = self.script = Script(self, limits=S128)
        options = body(300)
        script.endpoint.request("peer", CoapRequest(Code.PUT, path(b"options"), options), script.now)
        script.endpoint_sends("CON [$a] PUT /options 1:0/1/128 Size1=300 Token=$1", options[:128])
        script.peer_sends("ACK [$a] 2.31 1:0/1/128 Token=$1")
        script.endpoint_sends("CON [$b] PUT /options 1:1/1/128 Token=$2", options[128:256])
        script.peer_sends("ACK [$b] 2.31 1:1/1/128 Token=$2")
        script.endpoint_sends("CON [$c] PUT /options 1:2/0/128 2:0/0/128 Token=$3", options[256:])
        script.peer_sends("ACK [$c] 2.04 1:2/0/128 Token=$3")
        self.client_has(Code.CHANGED, b"")

    def test_figure_8_simple_stateless_put(self) -> None:
        """
        CLIENT                                                     SERVER
          | CON [MID=1234], PUT, /options, 1:0/1/128    ------>        |
          | <------   ACK [MID=1234], 2.04 Changed, 1:0/0/128          |
          | CON [MID=1235], PUT, /options, 1:1/1/128    ------>        |
          | <------   ACK [MID=1235], 2.04 Changed, 1:1/0/128          |
          | CON [MID=1236], PUT, /options, 1:2/0/128    ------>        |
          | <------   ACK [MID=1236], 2.04 Changed, 1:2/0/128          |
        """
        script = self.script = Script(self, limits=S128)
        options = body(300)
        script.endpoint.request("peer", CoapRequest(Code.PUT, path(b"options"), options), script.now)
        for number in range(3):
            script.endpoint_sends(
                f"CON [$m{number}] PUT /options 1:{number}/{int(number < 2)}/128 Token=$t{number}"
                + " 2:0/0/128" * (number == 2),
                options[128 * number : 128 * number + 128],
            )
            script.peer_sends(f"ACK [$m{number}] 2.04 1:{number}/0/128 Token=$t{number}")
        self.client_has(Code.CHANGED, b"")

    def test_figure_9_negotiation(self) -> None:
        """See `Block1Server.test_figure_9_negotiation`."""
        script = self.script = Script(self, limits=S128)
        options = body(200)
        script.endpoint.request("peer", CoapRequest(Code.PUT, path(b"options"), options), script.now)
        script.endpoint_sends("CON [$a] PUT /options 1:0/1/128 Token=$1", options[:128])
        script.peer_sends("ACK [$a] 2.31 1:0/1/32 Token=$1")
        script.endpoint_sends("CON [$b] PUT /options 1:4/1/32 Token=$2", options[128:160])
        script.peer_sends("ACK [$b] 2.31 1:4/1/32 Token=$2")
        script.endpoint_sends("CON [$c] PUT /options 1:5/1/32 Token=$3", options[160:192])
        script.peer_sends("ACK [$c] 2.31 1:5/1/32 Token=$3")
        script.endpoint_sends("CON [$d] PUT /options 1:6/0/32 2:0/0/128 Token=$4", options[192:])
        script.peer_sends("ACK [$d] 2.04 1:6/0/32 Token=$4")
        self.client_has(Code.CHANGED, b"")


class CombinedServer(_Examples):
    """Section 3.3: the endpoint is the server."""

    def setUp(self) -> None:
        self.question = body(300, seed=1)
        self.answer = body(400, seed=2)

    def test_figure_10_post_with_blockwise_response(self) -> None:
        """
        CLIENT                                                     SERVER
          | CON [MID=1234], POST, /soap, 1:0/1/128      ------>          |
          | <------   ACK [MID=1234], 2.31 Continue, 1:0/1/128           |
          | CON [MID=1235], POST, /soap, 1:1/1/128      ------>          |
          | <------   ACK [MID=1235], 2.31 Continue, 1:1/1/128           |
          | CON [MID=1236], POST, /soap, 1:2/0/128      ------>          |
          | <------   ACK [MID=1236], 2.04 Changed, 2:0/1/128, 1:2/0/128 |
          | CON [MID=1237], POST, /soap, 2:1/0/128      ------>          |
          | <------   ACK [MID=1237], 2.04 Changed, 2:1/1/128            |
          | CON [MID=1238], POST, /soap, 2:2/0/128      ------>          |
          | <------   ACK [MID=1238], 2.04 Changed, 2:2/1/128            |
          | CON [MID=1239], POST, /soap, 2:3/0/128      ------>          |
          | <------   ACK [MID=1239], 2.04 Changed, 2:3/0/128            |
        """
        script = self.script = Script(self, limits=S128)
        script.peer_sends("CON [1234] POST /soap 1:0/1/128", self.question[:128])
        script.endpoint_sends("ACK [1234] 2.31 1:0/1/128")
        script.peer_sends("CON [1235] POST /soap 1:1/1/128", self.question[128:256])
        script.endpoint_sends("ACK [1235] 2.31 1:1/1/128")
        script.peer_sends("CON [1236] POST /soap 1:2/0/128", self.question[256:])
        self.serve(CoapRequest(Code.POST, path(b"soap"), self.question), Code.CHANGED, self.answer)
        script.endpoint_sends("ACK [1236] 2.04 2:0/1/128 1:2/0/128", self.answer[:128])
        for number in (1, 2, 3):
            script.peer_sends(f"CON [{1236 + number}] POST /soap 2:{number}/0/128")
            script.endpoint_sends(
                f"ACK [{1236 + number}] 2.04 2:{number}/{int(number < 3)}/128",
                self.answer[128 * number : 128 * number + 128],
            )

    def test_figure_11_early_negotiation(self) -> None:
        """
        CLIENT                                                     SERVER
          | CON [MID=1234], POST, /soap, 1:0/1/128      ------>          |
          | <------   ACK [MID=1234], 2.31 Continue, 1:0/1/128           |
          | CON [MID=1235], POST, /soap, 1:1/1/128      ------>          |
          | <------   ACK [MID=1235], 2.31 Continue, 1:1/1/128           |
          | CON [MID=1236], POST, /soap, 1:2/0/128, 2:0/0/64    ------>  |
          | <------   ACK [MID=1236], 2.04 Changed, 1:2/0/128, 2:0/1/64  |
          | CON [MID=1237], POST, /soap, 2:1/0/64       ------>          |
          | <------   ACK [MID=1237], 2.04 Changed, 2:1/1/64             |
          :                          ...                                 :
        """
        script = self.script = Script(self, limits=S128)
        script.peer_sends("CON [1234] POST /soap 1:0/1/128", self.question[:128])
        script.endpoint_sends("ACK [1234] 2.31 1:0/1/128")
        script.peer_sends("CON [1235] POST /soap 1:1/1/128", self.question[128:256])
        script.endpoint_sends("ACK [1235] 2.31 1:1/1/128")
        script.peer_sends("CON [1236] POST /soap 1:2/0/128 2:0/0/64", self.question[256:])
        self.serve(CoapRequest(Code.POST, path(b"soap"), self.question), Code.CHANGED, self.answer)
        script.endpoint_sends("ACK [1236] 2.04 1:2/0/128 2:0/1/64", self.answer[:64])
        for number in range(1, 7):
            script.peer_sends(f"CON [{1236 + number}] POST /soap 2:{number}/0/64")
            script.endpoint_sends(
                f"ACK [{1236 + number}] 2.04 2:{number}/{int(number < 6)}/64",
                self.answer[64 * number : 64 * number + 64],
            )


class CombinedClient(_Examples):
    """Section 3.3: the endpoint is the client."""

    def test_figure_10_post_with_blockwise_response(self) -> None:
        """See `CombinedServer.test_figure_10_post_with_blockwise_response`; here the server chooses the sizes."""
        question, answer = body(1500, seed=1), body(400, seed=2)
        script = self.script = Script(self)
        script.endpoint.request("peer", CoapRequest(Code.POST, path(b"soap"), question), script.now)
        script.endpoint_sends("CON [$a] POST /soap 1:0/1/1024 Size1=1500 Token=$1", question[:1024])
        script.peer_sends("ACK [$a] 2.31 1:0/1/1024 Token=$1")
        script.endpoint_sends("CON [$b] POST /soap 1:1/0/1024 Token=$2", question[1024:])
        script.peer_sends("ACK [$b] 2.04 2:0/1/128 1:1/0/1024 Token=$2", answer[:128])
        for number in (1, 2, 3):
            script.endpoint_sends(f"CON [$m{number}] POST /soap 2:{number}/0/128 Token=$t{number}")
            script.peer_sends(
                f"ACK [$m{number}] 2.04 2:{number}/{int(number < 3)}/128 Token=$t{number}",
                answer[128 * number : 128 * number + 128],
            )
        self.client_has(Code.CHANGED, answer)

    def test_figure_11_early_negotiation(self) -> None:
        """See `CombinedServer.test_figure_11_early_negotiation`; the client is the endpoint."""
        question, answer = body(100, seed=1), body(130, seed=2)
        script = self.script = Script(self, limits=S64)
        script.endpoint.request("peer", CoapRequest(Code.POST, path(b"soap"), question), script.now)
        script.endpoint_sends("CON [$a] POST /soap 1:0/1/64 Token=$1", question[:64])
        script.peer_sends("ACK [$a] 2.31 1:0/1/64 Token=$1")
        script.endpoint_sends("CON [$b] POST /soap 1:1/0/64 2:0/0/64 Token=$2", question[64:])
        script.peer_sends("ACK [$b] 2.04 1:1/0/64 2:0/1/64 Token=$2", answer[:64])
        script.endpoint_sends("CON [$c] POST /soap 2:1/0/64 Token=$3")
        script.peer_sends("ACK [$c] 2.04 2:1/1/64 Token=$3", answer[64:128])
        script.endpoint_sends("CON [$d] POST /soap 2:2/0/64 Token=$4")
        script.peer_sends("ACK [$d] 2.04 2:2/0/64 Token=$4", answer[128:])
        self.client_has(Code.CHANGED, answer)
