# SPDX-License-Identifier: AGPL-3.0-or-later
"""Fuzz target of the DTLS port: strangers forge, copy and change datagrams beside a client that wants an answer."""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final

from synapse_lb.testing.memory import MemoryUDP
from synapse_lb.txdtls.certificates import generate_self_signed
from synapse_lb.txdtls.client import ClientAssociation, connect
from synapse_lb.txdtls.context import (
    ClientContext,
    ClientVerification,
    ServerContext,
    make_client_context,
    make_server_context,
)
from synapse_lb.txdtls.errors import AssociationLost
from synapse_lb.txdtls.options import ClientOptions, ServerOptions
from synapse_lb.txdtls.port import DTLSServerPort
from tests.fuzz.tape import Tape

SERVER: Final = ("127.0.0.1", 5684)
STRANGERS: Final = (("127.0.0.2", 1000), ("127.0.0.2", 1001), ("127.0.0.3", 1000))
STEPS: Final = 40
AMPLIFICATION: Final = 3
"""Bytes to an address that has proven nothing, for each byte from there (RFC 9000 section 8.1), headers included."""
BELOW: Final = 28
"""Bytes of the IPv4 and UDP headers."""


@functools.cache
def contexts() -> tuple[ServerContext, ClientContext]:
    """One certificate for all executions."""
    certificate, key = generate_self_signed(("localhost", "127.0.0.1"))
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder, "crt"), Path(folder, "key")
        for path, pem in zip(paths, (certificate, key), strict=True):
            path.write_bytes(pem)
        return (
            make_server_context(str(paths[0]), str(paths[1])),
            make_client_context(ClientVerification.ca_file(str(paths[0]))),
        )


class _Echo:
    """Both handlers: the server's answers what it gets, the client's counts it."""

    def __init__(self) -> None:
        self.port: DTLSServerPort | None = None
        self.texts: list[bytes] = []

    def association_established(self, association_id: int) -> None:
        pass

    def message_received(self, association_id: int, data: bytes) -> None:
        self.texts.append(data)
        if self.port is not None:
            self.port.send(association_id, data)

    def association_moved(self, association_id: int) -> None:
        pass

    def association_lost(self, association_id: int, reason: AssociationLost) -> None:
        pass


def port(data: bytes) -> None:
    """A server, a client that is connected, one that is about to be, and what strangers send meanwhile.

    If the first byte is odd, what both send is compact.
    """
    server_context, client_context = contexts()
    network = MemoryUDP()
    handler, heard = _Echo(), _Echo()
    server = DTLSServerPort(
        context=server_context, handler=handler, options=ServerOptions(max_half_open=4), reactor=network
    )
    handler.port = server
    network.listenUDP(SERVER[1], server, interface=SERVER[0])

    def connected(patience: float, session: bytes | None = None) -> list[ClientAssociation]:
        made: list[ClientAssociation] = []
        connect(
            network,
            *SERVER,
            context=client_context,
            server_name=None,
            session=session,
            options=ClientOptions(),
            handler=heard,
        ).addCallbacks(made.append, lambda failure: None)
        network.advance(patience)
        return made

    quiet = connected(0.1)
    assert quiet, "no association on an empty network"
    if data[:1] and data[0] % 2:
        quiet[0].use_compact()
    busy = connected(0.0, quiet[0].session)
    _strangers(Tape(data), network, quiet[0])
    _check_amplification(network)
    heard.texts.clear()
    quiet[0].send(b"still there?")
    network.advance(0.1)
    # Not necessarily the last: what waited for its turn may be answered after it.
    assert heard.texts.count(b"still there?") == 1, "strangers ended an association"
    for association in (*quiet, *busy):
        association.abort()
    server.shutdown()
    network.advance(120.0)
    assert not network.getDelayedCalls(), "a timer stays"


def _strangers(tape: Tape, network: MemoryUDP, quiet: ClientAssociation) -> None:
    """What the tape says: junk, copies and changed copies of datagrams, from anywhere; time passes."""
    for _ in range(STEPS):
        if tape.ended:
            return
        what = tape.byte() % 6
        recorded = [datagram for _, to, datagram in network.sent if to == SERVER and datagram]
        datagram = bytearray(recorded[tape.byte() % len(recorded)])
        if what == 0:
            datagram = bytearray(tape.take(tape.byte()))
        elif what == 1:
            for _ in range(1 + tape.byte() % 3):
                datagram[tape.number(2) % len(datagram)] ^= 1 + tape.byte() % 255
        elif what == 2:
            del datagram[tape.number(2) % len(datagram) :]
        elif what == 3:
            datagram += tape.take(tape.byte() % 64)
        elif what == 4:
            network.advance(tape.pick((0.01, 0.3, 2.0)))
            continue
        elif tape.byte() % 2:
            quiet.send(b"by the way")
            continue
        network.carry(tape.pick(STRANGERS), SERVER, bytes(datagram))
        if tape.byte() % 2:
            network.advance(0.01)


def _check_amplification(network: MemoryUDP) -> None:
    received: Counter[tuple[str, int]] = Counter()
    sent: Counter[tuple[str, int]] = Counter()
    for sender, to, datagram in network.sent:
        if to == SERVER:
            received[sender] += len(datagram) + BELOW
        elif sender == SERVER and to in STRANGERS:
            sent[to] += len(datagram) + BELOW
    for stranger in STRANGERS:
        assert sent[stranger] <= AMPLIFICATION * received[stranger], (
            f"{sent[stranger]} bytes for {received[stranger]}"
        )
