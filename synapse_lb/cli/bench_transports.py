# SPDX-License-Identifier: AGPL-3.0-or-later
"""The ways to fetch a /sync that `synapse-lb bench bulk` compares, each measured in the same manner.

One run: the link is made anew with its seed; a client connects; it fetches the sync; where so asked, it fetches the
same once more on the same connection. Times are from the call to the last byte: neither JSON nor CBOR is decoded.
What takes longer than one has patience for is given up, and the share of the body that was there is noted.
Bytes are IP packets as the link counted them, of the client's own flow, so that what is left of an earlier
connection (a FIN that was lost) counts nowhere.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import time
from typing import TYPE_CHECKING, Final, Literal

import attrs

from synapse_lb.cli.bench_results import Fetch, Run
from synapse_lb.cli.bench_world import COMPRESSING_PORT, PORTS, User, World
from synapse_lb.testing.simlink import LinkShape
from synapse_lb.testing.tunlink import Flow

if TYPE_CHECKING:
    from synapse_lb.client.client import LowBandwidthClient
    from synapse_lb.coap.events import CoapRequest

BROWSER_LIKE: Final = "curl/8.5.0"
BLOCK_SIZE: Final = 1024
"""Bytes of a block of the listener's default configuration."""


class FetchFailed(Exception):
    """The sync did not come, or was something else."""


@attrs.frozen(kw_only=True)
class Transport:
    """One way to fetch it.

    Attributes:
        name: for arguments and JSON.
        title: for tables.
        kind: over DTLS or over TLS.
        json: CoAP: the body is JSON in place of CBOR.
        q_block: CoAP: Q-Block2 in place of Block2.
        compressed: CoAP: the body is compressed CBOR. HTTPS: the listener compresses, and the client asks for it.
        congestion_control: HTTPS: of the server's TCP.
    """

    name: str
    title: str
    kind: Literal["coap", "https"]
    json: bool = False
    q_block: bool = False
    compressed: bool = False
    congestion_control: str = ""

    @property
    def is_steady(self) -> bool:
        """Whether each block waits for the one before: slow, and much the same each time."""
        return self.kind == "coap" and not self.q_block

    def with_congestion_control(self, name: str) -> Transport:
        """The same with this congestion control of TCP."""
        return attrs.evolve(
            self, name=f"{self.name}-{name}", title=f"{self.title}, {name}", congestion_control=name
        )


TRANSPORTS: Final[dict[str, Transport]] = {
    transport.name: transport
    for transport in (
        Transport(name="block2", title="Block2, CBOR", kind="coap"),
        Transport(name="block2-json", title="Block2, JSON", kind="coap", json=True),
        Transport(name="q-block2", title="Q-Block2, CBOR", kind="coap", q_block=True),
        Transport(name="q-block2-json", title="Q-Block2, JSON", kind="coap", json=True, q_block=True),
        Transport(
            name="q-block2-deflate",
            title="Q-Block2, CBOR deflate",
            kind="coap",
            q_block=True,
            compressed=True,
        ),
        Transport(name="https", title="HTTPS", kind="https"),
        Transport(name="https-gzip", title="HTTPS gzip", kind="https", compressed=True),
    )
}
"""All of them, in the order of the tables; HTTPS once for each congestion control."""

STANDARD: Final = "block2,q-block2,https"
"""What is measured if nothing else is asked for."""


def chosen_transports(names: list[str], congestion_controls: list[str]) -> list[Transport]:
    """Those of these names, in the order of the tables."""
    chosen: list[Transport] = []
    for name, transport in TRANSPORTS.items():
        if name in names:
            several = transport.kind == "https"
            chosen += (
                [transport.with_congestion_control(each) for each in congestion_controls]
                if several
                else [transport]
            )
    return chosen


@attrs.frozen
class Task:
    """What to fetch, and how patient to be.

    Attributes:
        reader: whose sync it is.
        target: path and query, percent-encoded.
        patience: seconds after which a fetch is given up.
        sizes: bytes of the body, in each form that `body_sizes` names.
    """

    reader: User
    target: str
    patience: float
    sizes: dict[str, int] = attrs.field(factory=dict)


@attrs.define
class _Meter:
    """Times the steps of one run and reads the link before and after each."""

    world: World
    protocol: str
    read: Flow = attrs.field(factory=Flow)
    began: float = 0.0

    def start(self) -> None:
        self.began = time.monotonic()

    def stop(self, share: float = 1.0) -> Fetch:
        """End of the step: what it took for this share of the body."""
        seconds = time.monotonic() - self.began
        now = self._own_flow()
        taken, self.read = now - self.read, now
        return Fetch(seconds, taken.packets, taken.bytes, taken.to_server_packets, share)

    def _own_flow(self) -> Flow:
        """The flow of the client: since the link was made anew there is one, but for the end of an earlier one."""
        flows = self.world.link.read().flows
        own = [flow for name, flow in flows.items() if name.startswith(self.protocol)]
        return max(own, key=lambda flow: flow.bytes, default=Flow())


# CoAP over DTLS, on the reactor


async def measure_coap(
    reactor: object,
    world: World,
    transport: Transport,
    task: Task,
    shape: LinkShape,
    seed: int,
    *,
    twice: bool,
) -> Run:
    """Make one run over CoAP; the calling thread is in the client's namespace.

    Args:
        reactor: Twisted's reactor.
        world: link and homeserver.
        transport: which of the ways.
        task: what to fetch.
        shape: of the link, in each direction.
        seed: of its losses.
        twice: whether to fetch it once more on the same connection.
    """
    from synapse_lb.client.client import LowBandwidthClient
    from synapse_lb.client.errors import ClientError
    from synapse_lb.txdtls.context import ClientVerification

    world.link.shape(shape, seed=seed)
    client = LowBandwidthClient(
        reactor,
        world.coaps_url,
        verification=ClientVerification.ca_file(str(world.homeserver.certificate_path)),
        q_block=transport.q_block,
    )
    meter, run = _Meter(world, "udp"), Run(seed)
    request = _coap_request(transport, task)
    try:
        meter.start()
        await client.connect()
        connected = meter.stop()
        run = attrs.evolve(run, connect_seconds=connected.seconds, connect_bytes=connected.bytes)
        body = task.sizes["json" if transport.json else "deflate" if transport.compressed else "cbor"]
        run = attrs.evolve(run, first=(first := await _fetch_coap(client, request, meter, task, body)))
        if twice and first.complete:
            run = attrs.evolve(run, warm=await _fetch_coap(client, request, meter, task, body))
    except (ClientError, FetchFailed) as error:
        run = attrs.evolve(run, error=f"{type(error).__name__}: {error}")
    finally:
        await client.close()
    return attrs.evolve(run, latest=world.link.read().latest)


async def _fetch_coap(
    client: LowBandwidthClient, request: CoapRequest, meter: _Meter, task: Task, body: int
) -> Fetch:
    from synapse_lb.client.errors import RequestTimeout
    from synapse_lb.coap.numbers import Code, code_to_text

    before = client.endpoint_counters
    meter.start()
    try:
        response = await client.raw_request(request, timeout=task.patience)
    except RequestTimeout:
        counted = client.endpoint_counters - before
        arrived = (counted.blocks_received - counted.blocks_duplicate) * BLOCK_SIZE
        return meter.stop(min(0.999, arrived / body))
    fetch = meter.stop()
    if response.code != Code.CONTENT:
        raise FetchFailed(f"the server answers {code_to_text(response.code)}")
    return fetch


def _coap_request(transport: Transport, task: Task) -> CoapRequest:
    from synapse_lb.coap.events import CoapRequest
    from synapse_lb.coap.options import Options
    from synapse_lb.msc3079.client_mapping import encode_request
    from synapse_lb.msc3079.options import FORMAT_CBOR_DEFLATE, FORMAT_JSON

    accept = FORMAT_JSON if transport.json else FORMAT_CBOR_DEFLATE if transport.compressed else None
    code, options, payload = encode_request(
        "GET",
        task.target,
        token=task.reader.token,
        announce_key_version=None if transport.json else 1,
        accept=accept,
    )
    return CoapRequest(code, Options.of(*options), payload)


# HTTPS over TCP, in a thread of its own


class HttpsFetcher:
    """One keep-alive connection, made with the standard library; blocks, and is for one thread.

    Args:
        world: link and homeserver.
        compressed: whether to talk to the listener that compresses.
        patience: seconds for each step.
    """

    def __init__(self, world: World, *, compressed: bool, patience: float) -> None:
        self._world = world
        self._compressed = compressed
        self._patience = patience
        self._context = ssl.create_default_context(cafile=str(world.homeserver.certificate_path))
        # The group that Twisted's TLS servers take: anything else first costs one more round trip.
        self._context.set_ecdh_curve("prime256v1")
        self._plain: socket.socket | None = None
        self._socket: ssl.SSLSocket | None = None
        self._given_up = False

    def connect(self) -> None:
        """Connect: TCP and TLS.

        Raises:
            OSError: it failed.
        """
        address = self._world.link.server.address
        with self._world.link.client.entered():
            self._plain = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if self._given_up:
            raise FetchFailed("given up")
        self._plain.settimeout(self._patience)
        self._plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._plain.connect((address, COMPRESSING_PORT if self._compressed else PORTS.https))
        self._socket = self._context.wrap_socket(self._plain, server_hostname=address)

    def get(self, target: str, token: str, expected: int = 0) -> tuple[int, float]:
        """Fetch.

        Args:
            target: path and query.
            token: access token.
            expected: bytes of the body, if they are known.

        Returns:
            Bytes of the body that came, compressed or not, and which share of it they are.

        Raises:
            OSError: the connection failed.
            http.client.HTTPException: the answer is not HTTP.
            FetchFailed: as `open`.
        """
        deadline = time.monotonic() + self._patience
        with contextlib.closing(self.open(target, token)) as response:
            return self._read(response, deadline, expected)

    def open(self, target: str, token: str) -> http.client.HTTPResponse:
        """Send a request and return its answer, whose body is still to be read, and which is to be closed.

        Raises:
            OSError: the connection failed.
            http.client.HTTPException: the answer is not HTTP.
            FetchFailed: the status is not 200, or it is not compressed as it should be.
        """
        assert self._socket is not None
        lines = [
            f"GET {target} HTTP/1.1",
            f"Host: {self._world.link.server.address}",
            f"User-Agent: {BROWSER_LIKE}",
            "Accept: */*",
            f"Authorization: Bearer {token}",
            *(["Accept-Encoding: gzip"] if self._compressed else []),
        ]
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
        response = http.client.HTTPResponse(self._socket, method="GET")
        response.begin()
        if response.status != 200:
            raise FetchFailed(f"the server answers {response.status}")
        if (response.getheader("Content-Encoding") == "gzip") != self._compressed:
            raise FetchFailed("the server compresses when it should not, or the other way round")
        return response

    def _read(self, response: http.client.HTTPResponse, deadline: float, expected: int) -> tuple[int, float]:
        """Read the body until it ends, or until the deadline."""
        assert self._socket is not None
        received = 0
        while True:
            left = deadline - time.monotonic()
            self._socket.settimeout(max(left, 0.001))
            try:
                part = response.read1(65536)
            except TimeoutError:
                part = None
            if part is None or left <= 0:
                return received, min(0.999, received / expected) if expected else 0.0
            if not part:
                return received, 1.0
            received += len(part)

    def give_up(self) -> None:
        """Have what blocks fail; from any thread."""
        self._given_up = True
        if self._plain is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._socket or self._plain, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        for each in (self._socket, self._plain):
            if each is not None:
                each.close()


def measure_https(
    world: World,
    transport: Transport,
    task: Task,
    shape: LinkShape,
    seed: int,
    *,
    twice: bool,
    fetcher: HttpsFetcher,
) -> Run:
    """Make one run over HTTPS; blocks. Arguments as of `measure_coap`; `fetcher` is closed at the end."""
    meter, run = _Meter(world, "tcp"), Run(seed)
    try:
        world.link.server.use_congestion_control(transport.congestion_control)
        world.link.shape(shape, seed=seed)
        meter.start()
        fetcher.connect()
        connected = meter.stop()
        run = attrs.evolve(run, connect_seconds=connected.seconds, connect_bytes=connected.bytes)
        body = task.sizes["gzip" if transport.compressed else "json"]
        run = attrs.evolve(run, first=(first := _fetch_https(fetcher, task, meter, body)))
        if twice and first.complete:
            run = attrs.evolve(run, warm=_fetch_https(fetcher, task, meter, body))
    except (OSError, http.client.HTTPException, FetchFailed) as error:
        run = attrs.evolve(run, error=f"{type(error).__name__}: {error}")
    finally:
        fetcher.close()
    return attrs.evolve(run, latest=world.link.read().latest)


def _fetch_https(fetcher: HttpsFetcher, task: Task, meter: _Meter, body: int) -> Fetch:
    meter.start()
    _, share = fetcher.get(task.target, task.reader.token, body)
    return meter.stop(share)


def body_sizes(world: World, task: Task) -> dict[str, int]:
    """Weigh the sync in each form.

    Returns:
        Bytes of the bodies as they are sent: ``json``, ``cbor``, ``deflate`` (CBOR), ``gzip`` (over HTTP).
    """
    from synapse_lb.msc3079 import cbor, compression

    answer = world.request("GET", task.target, token=task.reader.token)
    encoded = cbor.encode(answer, 1)
    return {
        "json": _get_unhindered(world, task, compressed=False),
        "cbor": len(encoded),
        "deflate": len(compression.deflate(encoded)),
        "gzip": _get_unhindered(world, task, compressed=True),
    }


def _get_unhindered(world: World, task: Task, *, compressed: bool) -> int:
    fetcher = HttpsFetcher(world, compressed=compressed, patience=task.patience)
    with contextlib.closing(fetcher):
        world.link.shape(LinkShape())
        fetcher.connect()
        return fetcher.get(task.target, task.reader.token)[0]
