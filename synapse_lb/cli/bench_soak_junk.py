# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `synapse-lb bench soak` lets happen beside its clients: junk, hellos left half open, and vandals.

A vandal is a user with a valid access token who sends anything but what a client sends, and vanishes.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import DatagramProtocol

from synapse_lb.coap.block import Block
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import Options
from synapse_lb.msc3079.mapping import NO_BODY, encode_request
from synapse_lb.testing.plug import Plug
from synapse_lb.txdtls.client import ClientAssociation, connect
from synapse_lb.txdtls.context import ClientVerification, make_client_context
from synapse_lb.txdtls.errors import AssociationGone, AssociationLost, ConnectError
from synapse_lb.txdtls.options import ClientOptions

if TYPE_CHECKING:
    from synapse_lb.txdtls.context import ClientContext

_TICK: Final = 0.25
_HALF_OPEN: Final = 1.0
_VANDALS: Final = 4.0
"""Seconds from one to the next."""

_MISDEEDS: Final = 60
_GIVEN_UP: Final = 20.0
_RECORD: Final = b"\x17\xfe\xfd\0\1"
"""An application record of the first epoch (RFC 6347 section 4.1)."""


class Junk:
    """Sends it all.

    Args:
        reactor: Twisted's.
        server: address and port, without a relay.
        token: a valid access token.
        rate: datagrams of junk per second; the rest keeps its own pace. 0 sends nothing of all this.
        seed: of the junk.

    Attributes:
        done: how much of what.
    """

    def __init__(self, reactor: Any, server: tuple[str, int], token: str, rate: float, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self._reactor, self._server, self._token, self._rate = reactor, server, token, rate
        self._random = random.Random(seed)
        self._context: ClientContext = make_client_context(ClientVerification.none())
        self._socket = DatagramProtocol()
        self._working: set[Deferred[None]] = set()
        self._running = False

    def start(self) -> None:
        """Begin."""
        if self._rate <= 0:
            return
        self._running = True
        self._socket = DatagramProtocol()
        self._reactor.listenUDP(0, self._socket, interface=self._server[0])
        for work in (self._noise(), self._half_open(), self._vandalize()):
            self._spawn(work)

    async def stop(self) -> None:
        """End; what is half open stays so for the server."""
        if not self._running:
            return
        self._running = False
        for work in list(self._working):
            work.cancel()
        transport: Any = self._socket.transport
        await transport.stopListening()

    def _spawn(self, work: Any) -> None:
        working = Deferred.fromCoroutine(work)
        self._working.add(working)

        def ended(result: Any) -> None:
            self._working.discard(working)
            if hasattr(result, "trap"):
                result.trap(CancelledError)

        working.addBoth(ended)

    async def _sleep(self, seconds: float) -> None:
        from twisted.internet.task import deferLater

        await deferLater(self._reactor, seconds, lambda: None)

    async def _noise(self) -> None:
        transport: Any = self._socket.transport
        while self._running:
            for _ in range(round(self._rate * _TICK)):
                size = self._random.randint(1, 300)
                data = self._random.randbytes(size)
                if self._random.random() < 0.5:
                    number = self._random.randint(1, 64).to_bytes(6, "big")
                    data = _RECORD + number + size.to_bytes(2, "big") + data
                    self.done["forged records"] += 1
                else:
                    self.done["random datagrams"] += 1
                transport.write(data, self._server)
            await self._sleep(_TICK)

    async def _half_open(self) -> None:
        while self._running:
            # A hello; a hello with its cookie; the same and half of what follows; without padding always a cookie.
            plug = Plug(self._reactor, datagrams=self._random.randint(1, 3))
            options = ClientOptions(hello_size=self._random.choice((0, 214)), handshake_timeout=_GIVEN_UP)
            self.done["hellos left half open"] += 1
            self._spawn(self._never_end(plug, options))
            await self._sleep(_HALF_OPEN)

    async def _never_end(self, plug: Plug, options: ClientOptions) -> None:
        try:
            association = await connect(
                plug, *self._server, context=self._context, options=options, handler=_Deaf()
            )
        except ConnectError:
            return
        await association.abort()

    async def _vandalize(self) -> None:
        while self._running:
            try:
                association = await connect(
                    self._reactor,
                    *self._server,
                    context=self._context,
                    options=ClientOptions(handshake_timeout=_GIVEN_UP),
                    handler=_Deaf(),
                )
            except ConnectError:
                self.done["vandals turned away"] += 1
            else:
                self.done["vandals"] += 1
                self._spawn(Vandal(association, self._random, self._token, self.done).rage(self._sleep))
            await self._sleep(_VANDALS)


class Vandal:
    """One of them.

    Args:
        association: its own.
        random: decides what it does.
        token: its access token.
        done: where what it does is counted.
    """

    def __init__(
        self, association: ClientAssociation, random: random.Random, token: str, done: Counter[str]
    ) -> None:
        self._association, self._random, self._token, self._done = association, random, token, done
        self._message_id = random.getrandbits(16)

    async def rage(self, sleep: Any) -> None:
        """Do all of it, and vanish."""
        misdeeds = (
            self._garbage,
            self._cut,
            self._flipped,
            self._upload_begun,
            self._q_upload_begun,
            self._download_begun,
            self._observe_and_ignore,
            self._flood,
            self._dead_request,
        )
        try:
            self._request("GET", "/_matrix/client/v3/account/whoami", token=self._token)
            for _ in range(_MISDEEDS):
                self._random.choice(misdeeds)()
                self._done["misdeeds"] += 1
                await sleep(self._random.random() * 0.2)
        except AssociationGone:
            self._done["vandals thrown out"] += 1
        finally:
            if self._random.random() < 0.7:
                self._association.abort()
            else:
                self._association.close()

    def _next_id(self) -> int:
        self._message_id = (self._message_id + 1) & 0xFFFF
        return self._message_id

    def _message(
        self, method: str, path: str, body: Any = NO_BODY, token: str | None = None, **more: Any
    ) -> Message:
        code, options, payload = encode_request(method, path, more.get("query"), body, token=token)
        return Message(
            self._random.choice((Type.CON, Type.NON)),
            code,
            self._next_id(),
            self._random.randbytes(self._random.randint(0, 8)),
            Options.of(*options, *more.get("options", ())),
            payload,
        )

    def _request(self, method: str, path: str, **rest: Any) -> None:
        self._association.send(self._message(method, path, **rest).encode())

    def _garbage(self) -> None:
        self._association.send(self._random.randbytes(self._random.randint(1, 400)))

    def _valid(self) -> bytes:
        return self._message("GET", "/_matrix/client/v3/sync", query={"timeout": "30000"}).encode()

    def _cut(self) -> None:
        whole = self._valid()
        self._association.send(whole[: self._random.randint(1, len(whole))])

    def _flipped(self) -> None:
        changed = bytearray(self._valid())
        for _ in range(self._random.randint(1, 6)):
            changed[self._random.randrange(len(changed))] ^= 1 << self._random.randrange(8)
        self._association.send(bytes(changed))

    def _upload_begun(self) -> None:
        self._begin_upload(OptionNumber.BLOCK1)

    def _q_upload_begun(self) -> None:
        self._begin_upload(OptionNumber.Q_BLOCK1)

    def _begin_upload(self, option: OptionNumber) -> None:
        block = Block(self._random.choice((0, 0, 0, 1, 7)), True, 6)
        tag = (OptionNumber.REQUEST_TAG, self._random.randbytes(2))
        message = self._message(
            "PUT", "/_matrix/client/v3/user/x/account_data/y", {}, options=[(option, block.encode()), tag]
        )
        self._association.send(
            Message(
                message.type,
                message.code,
                message.message_id,
                message.token,
                message.options,
                self._random.randbytes(1024),
            ).encode()
        )

    def _download_begun(self) -> None:
        query = {"timeout": "0", "full_state": "true"}
        self._request("GET", "/_matrix/client/v3/sync", query=query)

    def _observe_and_ignore(self) -> None:
        options = [(OptionNumber.OBSERVE, b"")]
        self._request("GET", "/_matrix/client/v3/sync", query={"timeout": "0"}, options=options)

    def _flood(self) -> None:
        for _ in range(20):
            self._request("GET", "/_matrix/client/versions")

    def _dead_request(self) -> None:
        """An acknowledgement, a Reset or a response to nothing."""
        kind = self._random.choice((Type.ACK, Type.RST, Type.CON, Type.NON))
        code = Code.EMPTY if kind in (Type.ACK, Type.RST) else Code.CONTENT
        token = b"" if code == Code.EMPTY else self._random.randbytes(2)
        self._association.send(Message(kind, code, self._next_id(), token).encode())


class _Deaf:
    """A handler that hears nothing."""

    def association_established(self, association_id: int) -> None: ...

    def message_received(self, association_id: int, data: bytes) -> None: ...

    def association_moved(self, association_id: int) -> None: ...

    def association_lost(self, association_id: int, reason: AssociationLost) -> None: ...
