# SPDX-License-Identifier: AGPL-3.0-or-later
"""Workers that go and come back, clients that move: nothing is lost, and what it costs in handshakes."""

from __future__ import annotations

import re
import signal
import urllib.request
from typing import Any
from urllib.parse import quote

from synapse_lb.client.client import LowBandwidthClient
from synapse_lb.testing.lossy import LossyRelay
from synapse_lb.testing.throwaway_workers import MAIN, METRICS_PORTS, SHARED_PORT, WORKERS
from tests.workers.harness import ENDURING, REACTOR, V3, Heard, User, WorkersCase, administrator, http, until


class Balancer(LossyRelay):
    """A UDP balancer keyed by the client's address: each client has a socket of its own towards one worker."""

    def __init__(self, ports: list[int]) -> None:
        super().__init__(REACTOR, server=("127.0.0.1", ports[0]))
        self._ports = ports

    def send_to(self, number: int) -> None:
        """From now on everything goes to this worker, from ports that it has not seen."""
        self._server = ("127.0.0.1", self._ports[number])
        self.forget_client_ports()


class ComingsAndGoingsCase(WorkersCase):
    """What the workers say of themselves."""

    def metric(self, worker: str, name: str, **labels: str) -> float:
        """A metric of a worker, in a scrape of the worker's own metrics listener."""
        url = f"http://127.0.0.1:{self.homeserver.port(METRICS_PORTS[worker])}/_synapse/metrics"
        with urllib.request.urlopen(url, timeout=60) as response:
            text = response.read().decode()
        found = [
            float(value)
            for given, value in re.findall(rf"^{name}{{(.*)}} (\S+)$", text, re.MULTILINE)
            if all(f'{label}="{wanted}"' in given for label, wanted in labels.items())
        ]
        self.assertEqual(len(found), 1, name)
        return found[0]

    def shared(self, name: str, **labels: str) -> dict[str, float]:
        """The metric of both workers, for the port that they share."""
        return {worker: self.metric(worker, name, listener="shared", **labels) for worker in WORKERS}

    def connected(self, user: User) -> set[str]:
        """The workers that have an association of a user's at the shared port, by their admin API."""
        path = f"/_synapse/admin/v1/lowbandwidth?user_id={quote(user.user_id)}"
        admin = administrator(self.homeserver)
        found = set()
        for worker in WORKERS:
            status, body = http(self.homeserver.http_url(worker), "GET", path, token=admin)
            self.assertEqual(
                (status, [each["listener"] for each in body["listeners"]]), (200, ["shared", "own"])
            )
            found |= {worker for each in body["associations"] if each["listener"] == "shared"}
        return found

    def relay(self, relay: LossyRelay) -> LossyRelay:
        """A relay that is stopped after the test."""
        relay.start()
        self.addCleanup(relay.stop)
        return relay

    def behind(self, relay: LossyRelay, **settings: Any) -> LowBandwidthClient:
        """A client that knows only the relay."""
        return self.client(url=f"coaps://127.0.0.1:{relay.port}", **settings)

    async def observer(self, client: LowBandwidthClient) -> tuple[Any, Any, str, Heard]:
        """Two users in a room of which the second one observes: both, the room, what was heard."""
        alice, bob = self.user(), self.user()
        room_id = await self.room_of(alice, bob)
        heard = Heard(room_id)
        observation = client.observe_sync(None, heard, token=bob.token)
        self.addCleanup(observation.stop)
        await until(lambda: observation.since)
        return alice, bob, room_id, heard


class SharedPortTests(ComingsAndGoingsCase):
    """Both workers at one port (SO_REUSEPORT)."""

    async def test_a_client_that_the_kernel_moves_keeps_its_association(self) -> None:
        relay = self.relay(LossyRelay(REACTOR, server=("127.0.0.1", self.homeserver.port(SHARED_PORT))))
        client = self.behind(relay)
        alice, bob, room_id, heard = await self.observer(client)
        sender = self.client("worker1")
        before = self.shared("synapse_lb_handshakes_total", outcome="full")
        texts: list[str] = []
        for number in range(40):
            relay.forget_client_ports()
            await self.ok(client, "GET", f"{V3}/account/whoami", token=bob.token)
            texts.append(f"text {number}")
            await self.say(sender, alice, room_id, texts[-1])
            await until(lambda: heard.texts == texts)
            if number > 3 and max(self.shared("synapse_lb_handover_received_total").values()):
                break
        self.assertGreater(max(self.shared("synapse_lb_handover_received_total").values()), 0)
        after = self.shared("synapse_lb_handshakes_total", outcome="full")
        self.assertEqual(before, after)

    async def test_a_worker_that_is_killed_and_comes_back(self) -> None:
        observers = []
        at: set[str] = set()
        while at != set(WORKERS):
            alice, bob, room_id, heard = await self.observer(self.client())
            observers.append((alice, room_id, heard))
            at |= self.connected(bob)
        sender = self.client("worker1")
        texts: list[str] = []

        async def say_and_hear(text: str) -> None:
            texts.append(text)
            for alice, room_id, _ in observers:
                await self.say(sender, alice, room_id, text)
            await until(lambda: all(heard.texts == texts for _, _, heard in observers))

        await say_and_hear("all is well")
        worker = self.homeserver.processes["worker2"]
        worker.kill()
        await say_and_hear("one is gone")
        worker.start()
        await say_and_hear("it is back")
        worker.halt()
        await say_and_hear("it is gone in order")


class BalancerTests(ComingsAndGoingsCase):
    """A port for each worker, and a balancer before them."""

    async def test_a_client_that_comes_to_another_worker_misses_nothing(self) -> None:
        balancer = Balancer([self.homeserver.port(8451), self.homeserver.port(8452)])
        self.relay(balancer)
        client = self.behind(balancer)
        alice, _, room_id, heard = await self.observer(client)
        sender = self.client("worker1")
        texts = []
        for number in range(2):
            texts.append(f"before {number}")
            await self.say(sender, alice, room_id, texts[-1])
            balancer.send_to(1 - number % 2)
            texts.append(f"after {number}")
            await self.say(sender, alice, room_id, texts[-1])
            await until(lambda: heard.texts == texts)

    async def test_requests_of_a_client_that_comes_to_another_worker(self) -> None:
        """They are made again there, and are carried out once."""
        balancer = Balancer([self.homeserver.port(8451), self.homeserver.port(8452)])
        self.relay(balancer)
        client = self.behind(balancer, tuning=ENDURING)
        alice, bob = self.user(), self.user()
        room_id = await self.room_of(alice, bob)
        before = {worker: self.handshakes(worker) for worker in WORKERS}
        texts = ["here"]
        await self.say(client, alice, room_id, texts[0])
        balancer.send_to(1)
        texts.append("there")
        await self.say(client, alice, room_id, texts[1])
        body = await self.ok(client, "GET", f"{V3}/sync", token=alice.token)
        heard = Heard(room_id)
        heard(body)
        self.assertEqual(heard.texts, texts)
        self.assertEqual(
            {worker: self.handshakes(worker) - before[worker] for worker in WORKERS},
            {"worker1": 1, "worker2": 1},
        )

    def handshakes(self, worker: str) -> float:
        """How many a worker has completed, at the port of its own."""
        return sum(
            self.metric(worker, "synapse_lb_handshakes_total", listener="own", outcome=outcome)
            for outcome in ("full", "resumed")
        )


class OperatorTests(ComingsAndGoingsCase):
    """What an admin sees of a worker, and does with it."""

    async def test_the_admin_api_of_a_worker(self) -> None:
        """It tells of the worker's own listeners."""
        user = self.user()
        await self.ok(self.client("worker2"), "GET", f"{V3}/account/whoami", token=user.token)
        self.assertEqual(self.connected(user), set())
        await self.ok(self.client(), "GET", f"{V3}/account/whoami", token=user.token)
        self.assertEqual(len(self.connected(user)), 1)

    async def test_sighup(self) -> None:
        """Both listeners of the worker load the certificate again."""
        worker = self.homeserver.processes["worker1"]
        before = worker.log_text.count("has loaded its certificate")
        worker.signal(signal.SIGHUP)
        await until(lambda: worker.log_text.count("has loaded its certificate") == before + 2)

    async def test_clients_are_told_of_the_shared_port(self) -> None:
        """By the main process too, which has no such listener."""
        for process in (MAIN, *WORKERS):
            _, body = http(self.homeserver.http_url(process), "GET", "/_matrix/client/versions")
            told = body["org.matrix.msc3079.low_bandwidth"]
            self.assertEqual(told["dtls"], self.homeserver.port(SHARED_PORT))

    async def test_metrics_of_what_is_passed_on(self) -> None:
        before = self.metric("worker2", "synapse_lb_dispatch_requests_total", listener="own")
        client = self.client("worker2")
        token = self.user().token
        await self.ok(client, "GET", f"{V3}/thirdparty/protocols", token=token)
        await self.ok(client, "GET", f"{V3}/account/whoami", token=token)
        self.assertEqual(
            self.metric("worker2", "synapse_lb_dispatch_requests_total", listener="own"), before + 1
        )
