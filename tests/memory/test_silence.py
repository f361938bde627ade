# SPDX-License-Identifier: AGPL-3.0-or-later
"""A server that knows nothing of the association any more, and is silent: how long that costs, in virtual time, with
the times that clients have in the field."""

from __future__ import annotations

import random
from typing import Any
from unittest import mock

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.client import ClientVerification, LowBandwidthClient, doubt
from synapse_lb.client.errors import ClientClosed, ConnectionLost, RequestTimeout
from synapse_lb.testing.lossy import Weather
from synapse_lb.txdtls.context import make_server_context
from synapse_lb.txdtls.options import ServerOptions
from tests.client.harness import Certificate
from tests.memory.homeserver import Homeserver, Store
from tests.memory.network import SERVER, BadNetwork, Machine

V3 = "/_matrix/client/v3"
HOST = "198.51.100.1"
SEND = f"{V3}/rooms/room/send/m.room.message"

PATIENCE = 93.0
"""s: MAX_TRANSMIT_WAIT, after which CoAP gives a request up."""

NOTICED = 23.5
"""s: of messages that are repeated after at most 3 s, and after twice as long each time, the third copy has left, and
was not answered for two seconds."""


class SilenceTestCase(SynchronousTestCase):
    """A client on a network, and a server that may lose its memory."""

    def setUp(self) -> None:
        self.certificate = Certificate()
        self.addCleanup(self.certificate.remove)
        self.network = BadNetwork(seed=1)
        self.store = Store()
        self.server = self.begin()
        machine = Machine(self.network, HOST)
        self.addCleanup(machine.kill)
        self.client = LowBandwidthClient(
            machine,
            f"{SERVER[0]}:{SERVER[1]}",
            verification=ClientVerification.none(),
            random=random.Random(3),
        )
        self.assertEqual(self.wait(self.client.request("GET", f"{V3}/sync", token="syt_alice")).status, 200)

    def begin(self) -> Homeserver:
        """Start a server, with what is on the disk."""
        server = Homeserver(
            self.network,
            self.store,
            random.Random(2),
            make_server_context(self.certificate.path, self.certificate.key_path),
            {"syt_alice": "@alice:localhost"},
            0.0,
            options=ServerOptions(handshake_timeout=10.0),
        )
        self.addCleanup(server.kill)
        return server

    def forget(self) -> None:
        """Another server takes the place of this one, without a word: what a moved client sees of another worker."""
        self.server.kill()
        self.server = self.begin()

    def ask(self, method: str, path: str, **arguments: Any) -> Deferred[Any]:
        """Make a request."""
        return self.client.request(method, path, token="syt_alice", **arguments)

    def wait(self, answer: Deferred[Any], seconds: float = 200.0) -> Any:
        """Let time pass until there is an answer."""
        self.assertTrue(self.network.run_until(lambda: bool(answer.called), seconds))
        return self.successResultOf(answer)

    def time_of(self, answer: Deferred[Any]) -> float:
        """Seconds until something comes of a request."""
        began = self.network.seconds()
        self.assertTrue(self.network.run_until(lambda: bool(answer.called), 200.0))
        return self.network.seconds() - began

    @property
    def handshakes(self) -> int:
        """Those that this server has completed."""
        return self.server.dtls.counters.handshakes_completed


class SilenceTests(SilenceTestCase):
    """What becomes of requests."""

    def test_what_may_be_repeated_is_asked_again_on_another_association(self) -> None:
        for method, path, body in (("GET", f"{V3}/sync", {}), ("PUT", f"{SEND}/1", {"json": {"body": "1"}})):
            self.forget()
            answer = self.ask(method, path, **body)
            self.assertLess(self.time_of(answer), NOTICED)
            self.assertEqual(self.successResultOf(answer).status, 200)
            self.assertEqual((self.handshakes, self.server.dtls.associations), (1, 1))
        self.assertEqual(len(self.store.events), 1)

    def test_without_doubts_it_takes_as_long_as_coap_does(self) -> None:
        """What the other tests compare with."""
        with mock.patch.object(doubt, "COPIES", 1000):
            self.forget()
            answer = self.ask("GET", f"{V3}/sync")
            self.assertGreater(self.time_of(answer), 60.0)
            self.failureResultOf(answer, RequestTimeout)

    def test_what_was_run_and_not_answered_is_run_once(self) -> None:
        self.network.dark.add(HOST)
        answer = self.ask("PUT", f"{SEND}/2", json={"body": "2"})
        self.assertTrue(self.network.run_until(lambda: bool(self.store.events), 5.0))
        self.forget()
        self.network.dark.clear()
        self.assertEqual(self.wait(answer).status, 200)
        self.assertEqual(len(self.store.events), 1)

    def test_what_may_not_be_repeated_waits_on(self) -> None:
        """It may have been run. What is asked while there is doubt waits for the association that will answer."""
        self.forget()
        lost = self.ask("POST", f"{V3}/createRoom", json={})
        self.assertTrue(self.network.run_until(lambda: self.handshakes == 1, NOTICED))
        further = self.ask("POST", f"{V3}/createRoom", json={})
        self.assertLess(self.time_of(further), 1.0)
        self.assertEqual(self.successResultOf(further).status, 404)
        self.assertNoResult(lost)
        self.assertGreater(self.time_of(lost), 40.0)
        self.failureResultOf(lost, RequestTimeout)
        self.assertEqual(self.wait(self.ask("GET", f"{V3}/sync")).status, 200)
        self.assertEqual(self.handshakes, 1)

    def test_an_observation_goes_on(self) -> None:
        bodies: list[Any] = []
        self.client.observe_sync(None, bodies.append, token="syt_alice")
        self.assertTrue(self.network.run_until(lambda: bool(bodies), 60.0))
        self.forget()
        self.store.add_event("room", "@bob:localhost", "x", {"body": "news"})
        began = self.network.seconds()
        self.assertTrue(self.network.run_until(lambda: "news" in str(bodies), 200.0))
        # The first ping comes after 25 s.
        self.assertLess(self.network.seconds() - began, 25.0 + NOTICED + 1.0)
        self.assertEqual(str(bodies).count("news"), 1)
        self.assertEqual(self.handshakes, 1)


class ReliefTests(SilenceTestCase):
    """Doubts that were wrong, or in vain."""

    def doubted(self) -> Deferred[Any]:
        """A request that is under way when the association is doubted, since the network is dark."""
        self.network.dark |= {HOST, SERVER[0]}
        answer = self.ask("GET", f"{V3}/sync")
        connecting = self.client._keeper
        self.assertTrue(self.network.run_until(lambda: connecting._connecting is not None, NOTICED))
        return answer

    def test_the_doubted_one_is_heard_first(self) -> None:
        """That ends the handshake beside it, and what waited for that goes on."""
        answer = self.doubted()
        waiting = self.ask("POST", f"{V3}/createRoom", json={})
        for link in self.network._handshakes:
            link.weather = Weather(loss=1.0)
        self.network.dark.clear()
        self.network.run_until(lambda: False, 1.0)
        self.assertNoResult(waiting)
        self.assertEqual(self.wait(answer).status, 200)
        self.assertEqual(self.wait(waiting, 1.0).status, 404)
        self.assertEqual((self.handshakes, self.server.dtls.associations), (1, 1))

    def test_a_network_that_is_back(self) -> None:
        """A hello may come through before the next copy of the request: then it was one resumption."""
        answer = self.doubted()
        self.network.dark.clear()
        self.assertEqual(self.wait(answer).status, 200)
        counters = self.server.dtls.counters
        self.assertEqual((counters.handshakes_completed, counters.handshakes_resumed), (2, 1))
        self.network.run_until(lambda: False, 1.0)
        self.assertEqual(self.server.dtls.associations, 1)

    def test_nothing_works(self) -> None:
        """Everything ends as it does without doubts; the next request finds its way."""
        self.network.dark |= {HOST, SERVER[0]}
        answers = [self.ask("GET", f"{V3}/sync"), self.ask("POST", f"{V3}/createRoom", json={})]
        self.network.run_until(lambda: False, PATIENCE + 1.0)
        for answer in answers:
            self.failureResultOf(answer, RequestTimeout, ConnectionLost)
        self.network.dark.clear()
        self.assertEqual(self.wait(self.ask("GET", f"{V3}/sync")).status, 200)

    def test_a_server_that_shakes_hands_and_says_nothing(self) -> None:
        """It is not asked for one association after another."""
        self.forget()
        self.patch(self.server.gateway, "message_received", lambda *_: None)
        answer = self.ask("GET", f"{V3}/sync")
        self.network.run_until(lambda: False, 2 * PATIENCE)
        self.failureResultOf(answer, RequestTimeout)
        self.assertEqual(self.handshakes, 1)

    def test_closing_in_doubt(self) -> None:
        answers = [self.doubted(), self.ask("GET", f"{V3}/sync")]
        closed = self.client.close()
        self.network.run_until(lambda: bool(closed.called), 5.0)
        self.successResultOf(closed)
        for answer in answers:
            self.failureResultOf(answer, ClientClosed, ConnectionLost)

    def test_a_new_socket_in_doubt(self) -> None:
        """It may have been the way: the doubted association gets another chance at once."""
        answer = self.doubted()
        self.network.dark.clear()
        self.client.rebind()
        self.assertEqual(self.wait(answer).status, 200)
        self.assertEqual((self.handshakes, self.server.dtls.associations), (1, 1))

    def test_giving_up_what_waits_in_doubt(self) -> None:
        """The handshake is for the association, not for who waits."""
        answer = self.doubted()
        waiting = self.ask("POST", f"{V3}/createRoom", json={})
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.forget()
        self.network.dark.clear()
        self.assertEqual(self.wait(answer, 20.0).status, 200)
        self.assertEqual(self.handshakes, 1)


class DoubtsTests(SynchronousTestCase):
    """`Doubts` alone."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.told: list[str] = []
        self.doubts = doubt.Doubts(
            self.clock, lambda: self.told.append("doubt"), lambda: self.told.append("relief")
        )

    def send(self, number: int, copies: int, *, kind: int = 0x40) -> None:
        """Send a message and copies of it."""
        for _ in range(1 + copies):
            self.doubts.sent(bytes((kind, 1)) + number.to_bytes(2, "big"))
        self.clock.advance(1.0)

    def test_copies_of_one_message(self) -> None:
        self.doubts.heard()
        for number in range(10):
            self.send(number, 2)
        self.assertEqual(self.told, [])
        self.send(3, 0)
        self.assertEqual(self.told, [])
        self.send(4, 3)
        self.assertEqual(self.told, ["doubt"])
        self.send(4, 3)
        self.doubts.heard()
        self.assertEqual(self.told, ["doubt", "relief"])
        self.send(3, 2)
        self.clock.advance(5.0)
        self.assertEqual(self.told, ["doubt", "relief"])

    def test_an_answer_to_the_last_copy(self) -> None:
        self.doubts.heard()
        self.send(3, 3)
        self.doubts.heard()
        self.clock.advance(5.0)
        self.assertEqual((self.told, self.clock.calls), ([], []))

    def test_stopped(self) -> None:
        self.doubts.heard()
        self.send(3, 3)
        self.doubts.stop()
        self.send(4, 3)
        self.clock.advance(5.0)
        self.assertEqual((self.told, self.clock.calls), ([], []))

    def test_what_does_not_count(self) -> None:
        """Before anything was heard; what is not Confirmable; what is no message."""
        self.send(1, 10)
        self.doubts.heard()
        for kind in (0x50, 0x60, 0x70):
            self.send(1, 10, kind=kind)
        for _ in range(10):
            self.doubts.sent(b"\x40")
        self.clock.advance(5.0)
        self.assertEqual(self.told, [])

    def test_bounded(self) -> None:
        self.doubts.heard()
        for number in range(1000):
            self.send(number, 1)
        self.assertLessEqual(len(self.doubts._copies), 64)
        self.send(999, 1)
        self.clock.advance(5.0)
        self.assertEqual(self.told, ["doubt"])
