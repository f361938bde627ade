# SPDX-License-Identifier: AGPL-3.0-or-later
"""A DTLS port with its gateway, thousands of associations and a flood of junk, in one process and without a network.

`FloodRig` hands datagrams straight to `datagramReceived`, so what it measures is the cost of this package's code and
of OpenSSL, not of sockets. Time is virtual: the port's budgets see a flood of so many datagrams per second however
long it takes; what it takes is processor time. Genuine requests are made before the measurement begins.
"""

from __future__ import annotations

import gc
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from OpenSSL import SSL
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Type
from synapse_lb.coap.options import Options
from synapse_lb.msc3079.mapping import NO_BODY, encode_request
from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.server.dispatcher import Address as ClientAddress
from synapse_lb.server.gateway import Gateway
from synapse_lb.txdtls import binding, records
from synapse_lb.txdtls.association import Association
from synapse_lb.txdtls.certificates import generate_self_signed
from synapse_lb.txdtls.context import ClientVerification, make_client_context, make_server_context
from synapse_lb.txdtls.options import DEFAULT_MTU, ServerCounters, ServerOptions
from synapse_lb.txdtls.port import DTLSServerPort

Address = tuple[str, int]
Arrival = tuple[bytes, Address]

CLIENTS = 50
"""Associations that make genuine requests."""

JUNK_SIZE = 80
"""Bytes of a junk datagram: those of a small request."""

_PLENTY = 2**31
_TICK = 0.001  # seconds of virtual time at a time
_NEWEST = 8  # junk records have numbers from 1 to here, just above those of silent associations


@attrs.frozen
class Cost:
    """What a stream of datagrams took.

    Attributes:
        datagrams: How many there were.
        seconds: Processor time for all of them.
        trials: How many associations were tried.
        messages: How many messages were delivered.
        answers: Datagrams that the server sent.
    """

    datagrams: int
    seconds: float
    trials: int
    messages: int
    answers: int

    @property
    def microseconds(self) -> float:
        """Processor time for one datagram."""
        return self.seconds * 1e6 / self.datagrams


class _Mute:
    """A transport that only keeps what the server sends, while somebody wants to have it."""

    def __init__(self) -> None:
        self.sent: list[bytes] | None = None

    def write(self, packet: bytes, addr: Address | None = None) -> None:
        if self.sent is not None:
            self.sent.append(packet)


class _Versions:
    """A dispatcher that answers everything at once."""

    def dispatch(self, request: MatrixRequest, client: ClientAddress) -> Deferred[MatrixResponse]:
        return succeed(MatrixResponse(200, {"versions": ["v1.1", "v1.11"]}))


class FloodRig:
    """A server with as many associations as one likes.

    Args:
        options: Of the port; all that bounds the number of associations is lifted.
        seed: Of all that is random.
    """

    def __init__(self, options: ServerOptions | None = None, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self._clock = Clock()
        self.options = attrs.evolve(
            options or ServerOptions(),
            max_associations=_PLENTY,
            max_unauthenticated=_PLENTY,
            handshakes_per_second=_PLENTY,
            unauthenticated_timeout=float("inf"),
        )
        self._gateway = Gateway(_Versions(), clock=self._clock, random=random.Random(seed))
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for name, content in zip(("crt", "key"), generate_self_signed(["localhost"]), strict=True):
                paths.append(str(Path(folder, name)))
                Path(paths[-1]).write_bytes(content)
            context = make_server_context(*paths)
        self._port = DTLSServerPort(
            context=context, handler=self._gateway, options=self.options, reactor=self._clock
        )
        self._gateway.attach(self._port)
        self._transport = _Mute()
        port: Any = self._port
        port.transport = self._transport
        self._context = make_client_context(ClientVerification.none())
        self._session: bytes | None = None
        self._clients: list[tuple[Association, Address]] = []
        self._message_id = 0

    @property
    def associations(self) -> int:
        """How many there are."""
        return self._port.associations

    @property
    def counters(self) -> ServerCounters:
        """The port's counters."""
        return self._port.counters

    def close(self) -> None:
        """End all associations."""
        self._port.shutdown()
        self._gateway.shutdown()

    # -- associations

    def grow(self, count: int, progress: Callable[[int], None] = lambda done: None) -> None:
        """Make handshakes until there are so many associations, each with a host of its own."""
        while self.associations < count:
            number = self.associations
            address = (f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 1024 + number % 60000)
            association = self._shake_hands(address)
            if len(self._clients) < CLIENTS:
                self._clients.append((association, address))
            else:
                association.release()
            progress(self.associations)

    def _shake_hands(self, address: Address) -> Association:
        connection = SSL.Connection(self._context.ssl_context, None)
        connection.set_connect_state()
        connection.set_ciphertext_mtu(DEFAULT_MTU)
        if self._session is not None:
            binding.import_session(connection, self._session)
        association = Association(connection, mtu=DEFAULT_MTU)
        association.start()
        inbox = self._transport.sent = []
        while outgoing := association.take_datagrams(self._clock.seconds()):
            for datagram in outgoing:
                self._port.datagramReceived(datagram, address)
            while inbox:
                summary = records.inspect(inbox[0])
                assert summary is not None
                association.receive(inbox.pop(0), summary, self._clock.seconds())
        self._transport.sent = None
        assert association.established
        self._session = self._session or binding.export_session(connection)
        return association

    # -- streams

    def garbage(self, count: int) -> list[Arrival]:
        """Random bytes from made-up addresses, that begin as no record and no compact datagram does."""
        return [(b"\x80" + self._random.randbytes(JUNK_SIZE - 1), self._somewhere()) for _ in range(count)]

    def junk_records(self, count: int) -> list[Arrival]:
        """Well-formed application records with random content, numbered as a client's that moved would be."""
        length = (JUNK_SIZE - records.HEADER_SIZE).to_bytes(2, "big")
        arrivals = []
        for _ in range(count):
            number = self._random.randint(1, _NEWEST).to_bytes(6, "big")
            header = bytes([records.APPLICATION_DATA]) + b"\xfe\xfd\0\1" + number + length
            content = self._random.randbytes(JUNK_SIZE - records.HEADER_SIZE)
            arrivals.append((header + content, self._somewhere()))
        return arrivals

    def requests(self, count: int) -> list[Arrival]:
        """Genuine requests of `CLIENTS` clients, from where they are."""
        arrivals = []
        for number in range(count):
            association, address = self._clients[number % len(self._clients)]
            code, options, payload = encode_request(
                "GET", "/_matrix/client/versions", None, NO_BODY, token=None
            )
            self._message_id += 1
            token = (self._message_id & 0xFFFF).to_bytes(2, "big")
            association.send(
                Message(
                    Type.CON, code, self._message_id & 0xFFFF, token, Options.of(*options), payload
                ).encode()
            )
            [datagram] = association.take_datagrams(0.0)
            arrivals.append((datagram, address))
        return arrivals

    def _somewhere(self) -> Address:
        """An address that no association has (RFC 2544's network for benchmarks)."""
        bits = self._random.getrandbits(17)
        return f"198.{18 + (bits >> 16)}.{bits >> 8 & 255}.{bits & 255}", self._random.randint(1024, 65535)

    # -- measurements

    def measure(self, arrivals: list[Arrival], rate: float) -> Cost:
        """Let datagrams arrive.

        Args:
            arrivals: The datagrams.
            rate: How many of them arrive in a second of virtual time.
        """
        counters = self.counters
        trials, messages, answers = counters.move_trials, counters.messages_received, counters.datagrams_sent
        receive, advance = self._port.datagramReceived, self._clock.advance
        at_a_time = max(1, int(rate * _TICK))
        gc.collect()
        began = time.process_time()
        for start in range(0, len(arrivals), at_a_time):
            for datagram, address in arrivals[start : start + at_a_time]:
                receive(datagram, address)
            advance(at_a_time / rate)
        seconds = time.process_time() - began
        return Cost(
            datagrams=len(arrivals),
            seconds=seconds,
            trials=counters.move_trials - trials,
            messages=counters.messages_received - messages,
            answers=counters.datagrams_sent - answers,
        )


def interleaved(few: list[Arrival], many: list[Arrival]) -> list[Arrival]:
    """Two streams in one, each evenly spread."""
    both = []
    taken = 0
    for number, arrival in enumerate(many):
        both.append(arrival)
        while taken < len(few) and taken * len(many) <= number * len(few):
            both.append(few[taken])
            taken += 1
    return both + few[taken:]
