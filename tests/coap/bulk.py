# SPDX-License-Identifier: AGPL-3.0-or-later
"""Large bodies between two endpoints over a link with a rate, a queue and losses, in simulated time."""

from __future__ import annotations

import random

from synapse_lb.coap.endpoint import Endpoint
from synapse_lb.coap.events import CoapRequest, CoapResponse, RequestReceived
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits, Tuning
from synapse_lb.testing.simlink import LinkShape, SimulatedLink
from tests.coap.lockstep import body
from tests.coap.simulation import Link, Simulation

MEGABYTE = 1_000_000
OVERHEAD = 57
"""B that IPv4, UDP and DTLS add to a datagram."""

BULK = Options.of((OptionNumber.URI_PATH, b"bulk"))


def shape(
    rtt: float = 0.2, loss: float = 0.0, rate: float = 1_250_000, queue: int | None = 250_000, **more: float
) -> LinkShape:
    """Return one direction of a way."""
    return LinkShape(rate=rate, delay=rtt / 2, loss=loss, queue=queue, overhead=OVERHEAD, **more)


class BulkSimulation(Simulation):
    """A client that downloads and uploads; the server answers each request with `response`.

    Args:
        down: The way from the server to the client, and back if `up` is not given.
        up: The way from the client to the server.
        seed: Of the ways.
        q_block: Whether the client offers Q-Block.
        tuning: Of both endpoints.
        server_tuning: Of the server, if it has another.
        limits: Of both endpoints.
        handshake: Whether both know the round trip already.
    """

    def __init__(
        self,
        down: LinkShape,
        up: LinkShape | None = None,
        *,
        seed: int = 1,
        q_block: bool = True,
        tuning: Tuning | None = None,
        server_tuning: Tuning | None = None,
        limits: Limits | None = None,
        handshake: bool = True,
        response: bytes = b"",
    ) -> None:
        tuning = tuning or Tuning(q_block=True)
        client = Endpoint(random=random.Random(seed), tuning=tuning, limits=limits)
        server = Endpoint(random=random.Random(seed + 1), tuning=server_tuning or tuning, limits=limits)
        super().__init__(client, server, Link(), seed, self._answer)
        self.down = SimulatedLink(down, seed)
        self.up = SimulatedLink(up or down, seed + 1)
        self.response = response
        self.requests: list[RequestReceived] = []
        rtt = self.down.shape.delay + self.up.shape.delay if handshake else None
        client.set_peer("server", rtt=rtt, q_block=q_block, now=0.0)
        server.set_peer("client", rtt=rtt, now=0.0)
        self.finished = 0.0

    def get(self, *, confirmable: bool = True, options: Options = BULK) -> int:
        """Send a GET."""
        return self.client.request(
            "server", CoapRequest(Code.GET, options, confirmable=confirmable), self.now
        )

    def put(self, payload: bytes, *, confirmable: bool = True, options: Options = BULK) -> int:
        """Send a PUT."""
        request = CoapRequest(Code.PUT, options, payload, confirmable=confirmable)
        return self.client.request("server", request, self.now)

    def run_until_answered(self) -> float:
        """Run until the client has an event more; return the time, or fail."""
        before = len(self.client_events)
        while len(self.client_events) == before:
            if self.now > 1e6 or not self.step():
                raise AssertionError("no answer")
        return self.now

    def step(self) -> bool:
        """Run up to and including the next thing that happens."""
        self._drain()
        due = [self._pending[0][0]] if self._pending else []
        timers = (self.client.next_timer(), self.server.next_timer())
        due += [timer for timer in timers if timer is not None]
        if due:
            self.run(until=min(due))
        return bool(due)

    def _answer(self, _simulation: Simulation, event: RequestReceived) -> None:
        self.requests.append(event)
        code = Code.CONTENT if event.request.code == Code.GET else Code.CHANGED
        self.server.respond(event.exchange, CoapResponse(code, payload=self.response), self.now)

    def _transmit(self, receiver: Endpoint, sender: str, datagram: bytes) -> None:
        self.datagrams += 1
        link = self.down if sender == "server" else self.up
        for arrival in link.send(len(datagram), self.now):
            self.later(arrival - self.now, lambda: receiver.receive(sender, datagram, self.now))


def download(
    way: LinkShape, *, size: int = MEGABYTE, q_block: bool = True, seed: int = 1, up: LinkShape | None = None
) -> tuple[BulkSimulation, float]:
    """Download a body; return the simulation and the seconds it took."""
    simulation = BulkSimulation(way, up, q_block=q_block, seed=seed, response=body(size))
    simulation.get()
    return simulation, simulation.run_until_answered()
