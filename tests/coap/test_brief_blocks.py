# SPDX-License-Identifier: AGPL-3.0-or-later
"""Further blocks that are asked for by the body's ETag alone (docs/extensions.md, "x1: further blocks")."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Final

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.block import Block
from synapse_lb.coap.endpoint import Endpoint
from synapse_lb.coap.events import CoapRequest, CoapResponse, RequestReceived, ResponseReceived
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits, Tuning
from tests.coap.bulk import BulkSimulation, shape
from tests.coap.lockstep import Script, body

DOCUMENT: Final = Path(__file__).resolve().parents[2] / "docs" / "extensions.md"
WHOLE = body(2500)
ETAG, PATH, QUERY = OptionNumber.ETAG, OptionNumber.URI_PATH, OptionNumber.URI_QUERY
WHO, WHAT = 256, 65020
REQUEST = Options.of(
    (OptionNumber.URI_PATH, b"a"),
    (OptionNumber.CONTENT_FORMAT, b"\x3c"),
    (OptionNumber.URI_QUERY, b"x"),
    (OptionNumber.ACCEPT, b"\x3c"),
    (WHO, b"me"),
)


class ServerTests(SynchronousTestCase):
    """The endpoint has the body. The first letter of option 256 is in whose name a request is made."""

    def setUp(self) -> None:
        self.endpoint = Endpoint(
            random=random.Random(1),
            tuning=Tuning(q_block=True),
            scope=lambda peer, options: options.get(WHO),
            sticky=(WHO,),
        )
        self.message_id = 0

    def ask(
        self,
        *options: tuple[int, bytes],
        code: int = Code.GET,
        kind: Type = Type.CON,
        respond: bytes | None = None,
        peer: str = "peer",
    ) -> list[Message]:
        """Send a request, which the application answers if there is something to respond; what comes back."""
        self.message_id += 1
        request = Message(kind, code, self.message_id, b"t", Options.of(*options))
        self.endpoint.receive(peer, request.encode(), 0.0)
        event = self.endpoint.next_event()
        if respond is None:
            self.assertIsNone(event)
        else:
            assert isinstance(event, RequestReceived)
            self.endpoint.respond(event.exchange, CoapResponse(Code.CONTENT, payload=respond), 0.0)
        sent = []
        for now in range(30):
            self.endpoint.handle_timer(now / 1000)
            sent += [Message.decode(data) for _, data in self.endpoint.datagrams_to_send(now / 1000)]
        return sent

    def begin(self, who: bytes = b"me", whole: bytes = WHOLE, peer: str = "peer") -> bytes:
        """A first request and its answer: the ETag of the body."""
        [first] = self.ask((PATH, b"a"), (QUERY, b"x"), (WHO, who), respond=whole, peer=peer)
        etag = first.options.get(ETAG)
        assert etag is not None
        return etag

    def test_block2(self) -> None:
        etag = self.begin()
        for number, more in ((1, True), (2, False)):
            block = Block(number, more, 6).encode()
            wanted = Block(number, False, 6).encode()
            [answer] = self.ask((ETAG, etag), (WHO, b"me"), (OptionNumber.BLOCK2, wanted))
            self.assertEqual(answer.payload, WHOLE[1024 * number : 1024 * number + 1024])
            self.assertEqual(list(answer.options), [(OptionNumber.BLOCK2, block)])

    def test_q_block2(self) -> None:
        etag = self.begin()
        wanted = Block(1, True, 6).encode()
        answers = self.ask((ETAG, etag), (WHO, b"me"), (OptionNumber.Q_BLOCK2, wanted), kind=Type.NON)
        self.assertEqual([answer.payload for answer in answers], [WHOLE[1024:2048], WHOLE[2048:]])
        for number, answer in enumerate(answers, 1):
            block = Block(number, number < 2, 6).encode()
            self.assertEqual(list(answer.options), [(OptionNumber.Q_BLOCK2, block)])

    def test_only_in_the_same_name(self) -> None:
        """Neither another user of the association, nor another client, nor by another method."""
        etag = self.begin()
        for number, kind in ((OptionNumber.BLOCK2, Type.CON), (OptionNumber.Q_BLOCK2, Type.NON)):
            wanted = (number, Block(1, False, 6).encode())
            for refused in (
                self.ask((ETAG, etag), (WHO, b"you"), wanted, kind=kind),
                self.ask((ETAG, etag), wanted, kind=kind),
                self.ask((ETAG, etag), (WHO, b"me"), wanted, kind=kind, peer="other"),
                self.ask((ETAG, etag), (WHO, b"me"), wanted, kind=kind, code=Code.POST),
                self.ask((ETAG, etag[::-1]), (WHO, b"me"), wanted, kind=kind),
                self.ask((WHO, b"me"), wanted, kind=kind),
                self.ask((PATH, b"b"), (ETAG, etag), (WHO, b"me"), wanted, kind=kind),
                self.ask((QUERY, b"x"), (ETAG, etag), (WHO, b"me"), wanted, kind=kind),
            ):
                self.assertEqual(
                    [(answer.code, answer.payload) for answer in refused],
                    [(Code.REQUEST_ENTITY_INCOMPLETE, b"")],
                )

    def test_document(self) -> None:
        """The example of docs/extensions.md."""
        text = DOCUMENT.read_text(encoding="utf-8").split("## x1: further blocks", 1)[1]
        [block] = re.findall(r"^```\n(.*?)^```", text.split("\n## ", 1)[0], re.MULTILINE | re.DOTALL)
        asked, answered = (
            bytes.fromhex("".join(line.partition("   ")[0] for line in part.splitlines()))
            for part in block.split("\n\n")
        )
        endpoint = Endpoint(random=random.Random(1), limits=Limits(block_szx=0))
        first = Message(Type.CON, Code.GET, 1, b"t", Options.of((PATH, b"a")))
        endpoint.receive("peer", first.encode(), 0.0)
        event = endpoint.next_event()
        assert isinstance(event, RequestReceived)
        options = Options.of((ETAG, bytes.fromhex("0a1b2c3d")))
        whole = b"the first block_further 16 bytesrest"
        endpoint.respond(event.exchange, CoapResponse(Code.CONTENT, options, whole), 0.0)
        endpoint.datagrams_to_send(0.0)
        endpoint.receive("peer", asked, 0.0)
        [(_, sent)] = endpoint.datagrams_to_send(0.0)
        self.assertEqual(sent, answered)

    def test_each_has_its_own(self) -> None:
        """Two users of one association, whose bodies differ."""
        other = WHOLE[::-1]
        mine, yours = self.begin(b"me"), self.begin(b"you", other)
        wanted = (OptionNumber.BLOCK2, Block(1, False, 6).encode())
        for etag, who, whole in ((mine, b"me", WHOLE), (yours, b"you", other)):
            [answer] = self.ask((ETAG, etag), (WHO, who), wanted)
            self.assertEqual(answer.payload, whole[1024:2048])
        [refused] = self.ask((ETAG, mine), (WHO, b"you"), wanted)
        self.assertEqual(refused.code, Code.REQUEST_ENTITY_INCOMPLETE)

    def test_the_first_block_is_a_request_of_its_own(self) -> None:
        """The root, asked for with an ETag, is handed to the application."""
        etag = self.begin()
        wanted = (OptionNumber.BLOCK2, Block(0, False, 6).encode())
        [answer] = self.ask((ETAG, etag), (WHO, b"me"), wanted, respond=b"root")
        self.assertEqual(answer.payload, b"root")


class ClientTests(SynchronousTestCase):
    """The endpoint fetches the body."""

    def begin(self, *, q_block: bool, brief: bool = True, first: str = "ETag=0x15") -> None:
        self.script = Script(self, tuning=Tuning(q_block=q_block))
        self.script.endpoint.set_peer("peer", q_block=q_block, now=self.script.now)
        request = CoapRequest(Code.GET, REQUEST, brief_blocks=brief)
        self.script.endpoint.request("peer", request, self.script.now)
        name = "Q2" if q_block else "2"
        (sent,) = self.script.datagrams()
        self.assertIn(PATH, sent.options)
        self.script.bound.update({"$m": sent.message_id, "$t": sent.token})
        self.script.peer_sends(f"ACK [$m] 2.05 Token=$t {first} Size2=2500 {name}:0/1/1024", WHOLE[:1024])

    def next_request(self) -> Message:
        (sent,) = self.script.datagrams()
        self.script.bound.update({"$m": sent.message_id, "$t": sent.token})
        return sent

    def numbers(self, sent: Message) -> list[int]:
        return [number for number, _ in sent.options]

    def has_whole(self) -> None:
        self.assertEqual(self.script.event(ResponseReceived).response.payload, WHOLE)

    def test_block2(self) -> None:
        """What is not of the request's target stays."""
        self.begin(q_block=False)
        for number in (1, 2):
            sent = self.next_request()
            self.assertEqual(self.numbers(sent), [ETAG, OptionNumber.BLOCK2, WHO])
            self.assertEqual(sent.options.get(ETAG), b"\x15")
            end = 1024 * number + 1024
            self.script.peer_sends(
                f"ACK [$m] 2.05 Token=$t 2:{number}/{int(number < 2)}/1024", WHOLE[end - 1024 : end]
            )
        self.has_whole()

    def test_q_block2(self) -> None:
        self.begin(q_block=True)
        sent = self.next_request()
        self.assertEqual(set(self.numbers(sent)), {ETAG, OptionNumber.Q_BLOCK2, WHO})
        self.script.peer_sends("NON [7] 2.05 Token=$t Q2:1/1/1024", WHOLE[1024:2048])
        self.script.peer_sends("NON [8] 2.05 Token=$t Q2:2/0/1024", WHOLE[2048:])
        self.has_whole()

    def test_an_etag_that_is_there_is_compared(self) -> None:
        for q_block in (False, True):
            self.begin(q_block=q_block)
            self.next_request()
            name, kind = ("Q2", "NON [7]") if q_block else ("2", "ACK [$m]")
            self.script.peer_sends(f"{kind} 2.05 Token=$t ETag=0x16 {name}:1/1/1024", WHOLE[1024:2048])
            again = self.next_request()
            self.assertIn(PATH, again.options, "begun anew")

    def test_not_unless_it_is_agreed(self) -> None:
        """Then an ETag must be repeated, too."""
        for q_block in (False, True):
            self.begin(q_block=q_block, brief=False)
            sent = self.next_request()
            self.assertTrue({PATH, QUERY, WHO} <= set(self.numbers(sent)))
            self.assertNotIn(ETAG, sent.options)
            name, kind = ("Q2", "NON [7]") if q_block else ("2", "ACK [$m]")
            self.script.peer_sends(f"{kind} 2.05 Token=$t {name}:1/1/1024", WHOLE[1024:2048])
            self.assertIn(PATH, self.next_request().options, "begun anew")

    def test_not_without_an_etag(self) -> None:
        for q_block in (False, True):
            self.begin(q_block=q_block, first="")
            self.assertIn(PATH, self.next_request().options)


class LossyTests(SynchronousTestCase):
    """Both, over a link that loses and reorders."""

    def test_whole(self) -> None:
        whole = body(100_000)
        used = {}
        for brief in (False, True):
            simulation = BulkSimulation(shape(0.1, loss=0.1), response=whole)
            request = CoapRequest(Code.GET, Options.of((PATH, b"a" * 60)), brief_blocks=brief)
            simulation.client.request("server", request, simulation.now)
            simulation.run()
            [received] = [each for each in simulation.client_events if isinstance(each, ResponseReceived)]
            self.assertEqual(received.response.payload, whole)
            self.assertEqual(len(simulation.requests), 1)
            used[brief] = simulation.client.counters.bytes_sent
        self.assertLess(used[True], used[False] / 2)
