# SPDX-License-Identifier: AGPL-3.0-or-later
"""An observation outlives its associations: restarts, crashes, silence, other addresses, bad networks, its client."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from synapse_lb.client import ClientVerification, LowBandwidthClient, Observation, Persistence, State
from synapse_lb.client.errors import CertificateError
from synapse_lb.coap.events import CoapResponse
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Tuning
from synapse_lb.testing.lossy import CLEAR, LossyRelay, Weather
from tests.client.harness import REACTOR, Certificate, Server, until
from tests.client.journal import JournalServer
from tests.client.observing import QUICK, ObserveTestCase, error_response


class EnduranceTestCase(ObserveTestCase):
    """Has a relay between client and server, which may change the client's address and lose datagrams."""

    def start_relay(self, server: Server, weather: Weather = CLEAR, seed: int = 1) -> LossyRelay:
        """Start a relay; a client of it is made with `client_through`."""
        relay = LossyRelay(REACTOR, server=("127.0.0.1", server.port), weather=weather, seed=seed)
        relay.start()
        self.addCleanup(relay.stop)
        return relay

    def client_through(self, relay: LossyRelay, **settings: Any) -> LowBandwidthClient:
        """Make a client whose server is behind the relay."""
        server: Any = type("Behind", (), {"address": f"127.0.0.1:{relay.port}"})
        return self.client_of(server, **settings)

    async def crash(self, server: Server) -> None:
        """End a server without a word, and let a new one take its place that knows nothing of it."""
        await server.stop(silently=True)


class RestartTests(EnduranceTestCase):
    async def test_planned_restart(self) -> None:
        """5.03 and close_notify: the client returns by itself, with what it has processed."""
        server, journal = self.start_journal()
        observation = self.observe(self.client_of(server))
        self.journal.add("a")
        await self.caught_up()
        journal.say_last(error_response(Code.SERVICE_UNAVAILABLE, "M_UNKNOWN"))
        await server.stop()
        self.journal.add("b")
        await until(lambda: observation.state is State.WAITING)
        _, journal = self.start_journal(port=server.port)
        await self.caught_up()
        self.journal.add("c")
        await self.caught_up()
        self.assertEqual(journal.queries(), [["since=s1"]])
        self.assertEqual(journal.token(0), b"syt_a")

    async def test_close_notify_alone(self) -> None:
        """The server still knows the session."""
        server, journal = self.start_journal()
        self.observe(self.client_of(server))
        self.journal.add("a")
        await self.caught_up()
        journal.close_associations()
        self.journal.add("b")
        await self.caught_up()
        self.assertEqual(server.dtls.counters.handshakes_resumed, 1)
        self.assertEqual(journal.token(1), b"syt_a")
        waits = [change.delay for change in self.changes if change.state is State.WAITING]
        self.assertEqual(len(waits), 1)
        assert waits[0] is not None
        self.assertLessEqual(waits[0], QUICK.spread)

    async def test_crash(self) -> None:
        """Nobody listens on the port for a while, which the network says."""
        server, _ = self.start_journal()
        observation = self.observe(self.client_of(server))
        for name in "abc":
            self.journal.add(name)
            await self.caught_up()
            await self.crash(server)
            await until(lambda: observation.state is State.WAITING)
            await deferLater(REACTOR, 0.1)
            self.journal.add(f"{name}2")
            server, _ = self.start_journal(port=server.port)
            await self.caught_up()
        self.assertIn("registering", self.states())
        # However often it failed before: once it has been there, the first attempt is soon.
        for before, after in pairwise(self.changes):
            if before.state is State.OBSERVING:
                assert after.delay is not None
                self.assertLessEqual(after.delay, QUICK.retry_initial)

    async def test_crash_unnoticed(self) -> None:
        """The server is back before anybody noticed, and knows nothing of the association: no ping is answered."""
        server, _ = self.start_journal()
        self.observe(self.client_of(server))
        self.journal.add("a")
        await self.caught_up()
        await self.crash(server)
        self.journal.add("b")
        server, journal = self.start_journal(port=server.port)
        await self.caught_up()
        # The pings that nobody answered.
        self.assertGreater(server.dtls.counters.datagrams_unknown, 1)
        self.assertEqual(journal.queries(), [["since=s1"]])

    async def test_crash_while_a_notification_is_processed(self) -> None:
        """It is asked for what comes after it, and only when it has been processed."""
        server, _ = self.start_journal()
        work: Deferred[None] = Deferred()

        def handler(body: dict[str, Any]) -> Deferred[None] | None:
            self.handler(body)
            return work if "a" in body["events"] else None

        observation = self.observe(self.client_of(server), handler=handler)
        await until(lambda: self.bodies)
        self.journal.add("a")
        await self.caught_up()
        await self.crash(server)
        server, journal = self.start_journal(port=server.port)
        self.journal.add("b")
        await deferLater(REACTOR, 0.8)
        self.assertEqual((journal.requests, observation.since), ([], "s0"))
        work.callback(None)
        await self.caught_up()
        self.assertEqual(journal.queries(), [["since=s1"]])

    async def test_crash_before_the_acknowledgement(self) -> None:
        """What was processed and could not be acknowledged does not come again."""
        server, journal = self.start_journal()

        def handler(body: dict[str, Any]) -> None:
            self.handler(body)
            if "a" in body["events"]:
                deaf: Any = server.dtls
                deaf.datagramReceived = lambda *_: None

        self.observe(self.client_of(server), handler=handler)
        await until(lambda: self.bodies)
        self.journal.add("a")
        await self.caught_up()
        self.assertEqual([each.since for each in journal.registered.values()], ["s0"])
        await self.crash(server)
        self.journal.add("b")
        _, journal = self.start_journal(port=server.port)
        await self.caught_up()
        self.assertEqual(journal.queries(), [["since=s1"]])

    async def test_acknowledgement_lost(self) -> None:
        """The server repeats what was processed; the copies are acknowledged and not handed over."""
        server, journal = self.start_journal()
        relay = self.start_relay(server)
        self.observe(self.client_through(relay))
        await self.acknowledged(journal)
        relay.to_server.weather = Weather(loss=1.0)
        self.journal.add("a")
        await self.caught_up()
        await until(lambda: journal.endpoint.counters.retransmissions)
        relay.to_server.weather = CLEAR
        self.journal.add("b")
        await self.caught_up()
        self.assertEqual([body["events"] for body in self.bodies], [[], ["a"], ["b"]])

    async def test_server_gives_up_though_the_client_has_processed(self) -> None:
        """All acknowledgements of a notification are lost: the server has no registration any more."""
        server, journal = self.start_journal(
            tuning=Tuning(ack_timeout=0.02, min_rto=0.02, max_rto=0.02, notification_processing=0.1)
        )
        relay = self.start_relay(server)
        self.observe(self.client_through(relay))
        await self.acknowledged(journal)
        relay.to_server.weather = Weather(loss=1.0)
        self.journal.add("a")
        await self.caught_up()
        await until(lambda: journal.failures)
        relay.to_server.weather = CLEAR
        self.journal.add("b")
        await self.caught_up()
        self.assertEqual([body["events"] for body in self.bodies], [[], ["a"], ["b"]])

    async def test_registration_forgotten_without_a_word(self) -> None:
        """Pings are answered, but nothing comes any more: it is registered anew after a while."""
        server, journal = self.start_journal()
        times = Persistence(heartbeat=0.1, refresh=0.3)
        self.observe(self.client_of(server, persistence=times))
        await self.acknowledged(journal)
        journal.registered.clear()
        self.journal.add("a")
        await self.caught_up()
        self.assertEqual(server.dtls.counters.handshakes_completed, 1)

    async def test_patience(self) -> None:
        """How long nothing may come until it is registered anew (RFC 7641 section 3.3.1)."""
        server, _ = self.start_journal()
        observation = self.observe(self.client_of(server, persistence=Persistence(refresh=1000.0)))
        plain = CoapResponse(Code.CONTENT)
        self.assertEqual(observation._patience(plain), 1000.0)
        for max_age, low, high in (
            (0, 65, 75),
            (60, 65, 75),
            (300, 305, 315),
            (990, 995, 1000),
            (9999, 1000, 1000),
        ):
            options = Options().with_uint(OptionNumber.MAX_AGE, max_age)
            for _ in range(20):
                patience = observation._patience(CoapResponse(Code.CONTENT, options))
                self.assertTrue(low <= patience <= high, (max_age, patience))

    async def test_registration_that_nobody_answers(self) -> None:
        server, journal = self.start_journal()
        journal.silent = True
        self.observe(self.client_of(server, persistence=Persistence(answer_timeout=0.1, retry_initial=0.01)))
        await until(lambda: len(journal.requests) >= 2)
        journal.silent = False
        self.journal.add("a")
        await self.caught_up()

    async def test_nobody_there_at_first(self) -> None:
        """There need not be a server, or a network, when it begins."""
        server, _ = self.start_journal()
        await server.stop()
        observation = self.observe(self.client_of(server))
        await until(lambda: sum(change.state is State.WAITING for change in self.changes) > 3)
        self.journal.add("a")
        self.start_journal(port=server.port)
        await self.caught_up()
        self.assertIs(observation.state, State.OBSERVING)

    async def test_wrong_certificate_at_first(self) -> None:
        server, _ = self.start_journal()
        client = self.client_of(server, verification=ClientVerification.pinned("00" * 32))
        await self.error_of(self.observe(client), CertificateError)

    async def test_wrong_certificate_later(self) -> None:
        """Somebody is in the way; when he has gone all is well again."""
        server, _ = self.start_journal()
        self.observe(self.client_of(server))
        await until(lambda: self.bodies)
        await server.stop()
        other = Certificate()
        self.addCleanup(other.remove)
        wrong = self.start_server(JournalServer(self.journal), certificate=other, port=server.port)
        await until(lambda: any(isinstance(change.error, CertificateError) for change in self.changes))
        await wrong.stop()
        self.journal.add("a")
        self.start_journal(port=server.port)
        await self.caught_up()


class HeartbeatTests(EnduranceTestCase):
    async def test_pings_while_nothing_happens(self) -> None:
        server, _ = self.start_journal()
        pings: list[Message] = []
        self.watch(server, pings)
        client = self.client_of(server)
        self.observe(client)
        await until(lambda: len(pings) >= 3)
        self.assertEqual({(ping.type, ping.code) for ping in pings}, {(Type.CON, Code.EMPTY)})
        self.assertEqual(server.dtls.counters.handshakes_completed, 1)
        self.journal.add("a")
        await self.caught_up()

    async def test_none_without_an_observation(self) -> None:
        server, _ = self.start_journal()
        pings: list[Message] = []
        self.watch(server, pings)
        client = self.client_of(server)
        observation = self.observe(client)
        await until(lambda: pings)
        await observation.stop()
        pings.clear()
        await deferLater(REACTOR, 0.3)
        self.assertEqual(pings, [])

    async def test_while_polling(self) -> None:
        """A poll that the server has lost is noticed long before it would have been answered."""
        server, _ = self.start_journal(observes=False)
        self.observe(self.client_of(server))
        self.journal.add("a")
        await self.caught_up()
        await self.crash(server)
        self.journal.add("b")
        self.start_journal(port=server.port, observes=False)
        await self.caught_up()

    def watch(self, server: Server, pings: list[Message]) -> None:
        """Note the empty messages that reach a server, but for ACKs."""
        handler: Any = server.handler
        receive = handler.message_received

        def message_received(association_id: int, data: bytes) -> None:
            message = Message.decode(data)
            if message.code == Code.EMPTY and message.type is not Type.ACK:
                pings.append(message)
            receive(association_id, data)

        handler.message_received = message_received


class NetworkTests(EnduranceTestCase):
    async def test_other_address(self) -> None:
        """The server does not follow: the client notices by its ping."""
        server, _ = self.start_journal()
        relay = self.start_relay(server)
        self.observe(self.client_through(relay))
        for name in "abc":
            self.journal.add(name)
            await self.caught_up()
            relay.forget_client_ports()
            self.journal.add(f"{name}2")
            await self.caught_up()

    async def test_blackout(self) -> None:
        server, _ = self.start_journal()
        relay = self.start_relay(server)
        self.observe(self.client_through(relay))
        await until(lambda: self.bodies)
        for name in "abc":
            relay.set_weather(Weather(loss=1.0))
            self.journal.add(name)
            await deferLater(REACTOR, 1.0)
            relay.set_weather(CLEAR)
            self.journal.add(f"{name}2")
            await self.caught_up()

    async def test_bad_network(self) -> None:
        """A third is lost, a fifth comes twice, a fifth late; each event is processed once, and in its order."""
        stubborn = Tuning(
            ack_timeout=0.05,
            min_rto=0.02,
            max_rto=0.05,
            separate_after=0.02,
            max_retransmit=10,
            notification_processing=5.0,
        )
        for seed in range(4):
            self.journal.events.clear()
            self.taken.clear()
            self.journal.deleted = 0
            server, journal = self.start_journal(tuning=stubborn)
            journal.padding = 2500 if seed % 2 else 0
            relay = self.start_relay(server, seed=seed)
            observation = self.observe(self.client_through(relay, tuning=stubborn))
            # Its handshake has timers of whole seconds.
            await self.until_observing(observation)
            relay.set_weather(Weather(loss=0.33, duplication=0.2, reordering=0.2))
            for number in range(30):
                self.journal.add(f"{seed}.{number}")
                await deferLater(REACTOR, 0.01 * (number % 5))
            await self.caught_up()
            relay.set_weather(CLEAR)
            await observation.stop()
            await server.stop()


class ClientRestartTests(EnduranceTestCase):
    async def test_goes_on_from_what_it_has_kept(self) -> None:
        """A client that was killed knows its last `since`, which was kept after each body, and nothing else."""
        server, _ = self.start_journal()
        kept: str | None = None
        for number in range(5):
            client = self.client_of(server)
            observation = self.observe(client, since=kept)
            self.journal.add(f"{number}.a")
            await self.caught_up()
            self.journal.add(f"{number}.b")
            await self.caught_up()
            await until(self._processed(observation))
            kept = observation.since
            mute: Any = client._keeper.current
            mute.association.close = mute.association.abort
            await client.close()
            self.journal.add(f"{number}.c")
        self.observe(self.client_of(server), since=kept)
        await self.caught_up()

    def _processed(self, observation: Observation) -> Callable[[], bool]:
        return lambda: observation.since == f"s{len(self.journal.events)}"
