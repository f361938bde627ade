# SPDX-License-Identifier: AGPL-3.0-or-later
"""A lock-step language for tests of the endpoint: the ladder diagrams of the RFCs, line by line.

The endpoint under test is one end of the ladder, the script is the other. Each line is one message:

    CON [0x7d34] GET /temperature ?unit=c Token=20 2:0/0/64
    ACK [$a] 2.05 Token=$t 2:0/1/64 ETag=$e Content-Format=0 "22.3 C"
    ACK [$a]

- `[id]`: the message id, decimal or hexadecimal.
- `/path` and `?query` are Uri-Path and Uri-Query options, one for each segment or argument.
- `1:num/more/size` and `2:num/more/size` are Block1 and Block2, as RFC 7959 section 3 writes them; with `Q` in
  front they are Q-Block1 and Q-Block2.
- `Name=value` is a token or an option: digits for a uint, `0x` for opaque bytes.
- `"text"` is the payload; a payload with blanks or bytes is given as an argument instead.
- `$name` is a value that the endpoint chooses: bound where it is first seen, compared from then on.
"""

from __future__ import annotations

import random
import re
from typing import TypeVar

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.block import Block
from synapse_lb.coap.endpoint import Endpoint
from synapse_lb.coap.events import Event
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import REGISTRY, OptionFormat, Options, encode_uint
from synapse_lb.coap.tuning import Limits, Tuning

E = TypeVar("E")

_NUMBERS = {definition.name: number for number, definition in REGISTRY.items()}
_BLOCK = re.compile(r"(Q?[12]):(\d+)/([01])/(\d+)")
_BLOCK_OPTIONS = {
    "1": OptionNumber.BLOCK1,
    "2": OptionNumber.BLOCK2,
    "Q1": OptionNumber.Q_BLOCK1,
    "Q2": OptionNumber.Q_BLOCK2,
}
_CODE = re.compile(r"([0-7])\.(\d\d)")
# The endpoint chooses these; a script that does not name them does not care.
_FREE = (OptionNumber.ETAG, OptionNumber.SIZE1)


class Script:
    """One endpoint under test and the script that is its peer.

    Args:
        test: Whose assertions are used.
        tuning: For the endpoint.
        limits: For the endpoint.
        peer: What the endpoint calls the script.
        seed: Of the endpoint's random source.
        endpoint: One to use instead of a new one, with its clock.
    """

    def __init__(
        self,
        test: SynchronousTestCase,
        *,
        tuning: Tuning | None = None,
        limits: Limits | None = None,
        peer: str = "peer",
        seed: int = 1,
        endpoint: Endpoint | None = None,
        now: float = 1000.0,
    ) -> None:
        self.test = test
        self.peer = peer
        self.now = now
        self.endpoint = endpoint or Endpoint(random=random.Random(seed), tuning=tuning, limits=limits)
        self.bound: dict[str, bytes | int] = {}
        self.received: list[bytes] = []

    # --- the peer's lines ---

    def peer_sends(self, line: str, payload: bytes = b"") -> bytes:
        """The peer sends the message of this line; return the datagram."""
        datagram = self.build(line, payload).encode()
        self.endpoint.receive(self.peer, datagram, self.now)
        return datagram

    def peer_sends_bytes(self, datagram: bytes) -> None:
        """The peer sends these bytes."""
        self.endpoint.receive(self.peer, datagram, self.now)

    def endpoint_sends(self, line: str, payload: bytes = b"") -> Message:
        """The next datagram of the endpoint is the message of this line; return it."""
        self._collect()
        self.test.assertTrue(self.received, f"nothing was sent, but expected: {line}")
        actual = Message.decode(self.received.pop(0))
        self._bind(line, actual)
        expected = self.build(line, payload)
        free = [number for number in _FREE if number not in expected.options]
        shown = Message(
            actual.type,
            actual.code,
            actual.message_id,
            actual.token,
            actual.options.without(*free),
            actual.payload,
        )
        self.test.assertEqual(shown, expected, line)
        return actual

    def endpoint_is_quiet(self) -> None:
        """The endpoint has sent nothing more."""
        self._collect()
        self.test.assertEqual([Message.decode(datagram) for datagram in self.received], [])

    def datagrams(self) -> list[Message]:
        """Return, and skip, whatever the endpoint has sent."""
        self._collect()
        taken, self.received = self.received, []
        return [Message.decode(datagram) for datagram in taken]

    def lost(self, line: str, payload: bytes = b"") -> None:
        """The endpoint sends the message of this line, but it gets lost."""
        self.endpoint_sends(line, payload)

    def _collect(self) -> None:
        for peer, datagram in self.endpoint.datagrams_to_send(self.now):
            self.test.assertEqual(peer, self.peer)
            self.received.append(datagram)

    # --- time and events ---

    def passes(self, seconds: float) -> None:
        """Time passes; the endpoint's timers fire, each at its time."""
        end = self.now + seconds
        while (deadline := self.endpoint.next_timer()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.endpoint.handle_timer(self.now)
        self.now = end

    def until_timer(self) -> None:
        """Time passes up to the endpoint's next timer, which fires."""
        deadline = self.endpoint.next_timer()
        assert deadline is not None
        self.passes(deadline - self.now)

    def event(self, kind: type[E]) -> E:
        """The next event of the endpoint is of this kind; return it."""
        event = self.endpoint.next_event()
        self.test.assertIsInstance(event, kind)
        assert isinstance(event, kind)
        return event

    def no_event(self) -> None:
        """The endpoint has no event."""
        self.test.assertIsNone(self.endpoint.next_event())

    def events(self) -> list[Event]:
        """Return, and skip, all events."""
        taken = []
        while (event := self.endpoint.next_event()) is not None:
            taken.append(event)
        return taken

    def nothing_leaks(self) -> None:
        """Everything is sent and reported; once all timers have fired the endpoint holds no memory."""
        self.endpoint_is_quiet()
        self.no_event()
        for _ in range(100_000):
            if self.endpoint.next_timer() is None:
                break
            self.until_timer()
        self.endpoint_is_quiet()
        self.no_event()
        self.test.assertEqual(list(self.endpoint.peers), [])
        self.test.assertTrue(self.endpoint.idle)

    # --- the language ---

    def build(self, line: str, payload: bytes = b"") -> Message:
        """Return the message of a line."""
        head, quote, text = line.partition('"')
        if quote:
            payload = text.rstrip()[:-1].encode()
        words = head.split()
        type_, code, message_id, token = Type[words[0]], 0, self._integer(words[1].strip("[]")), b""
        pairs: list[tuple[int, bytes]] = []
        for word in words[2:]:
            if word in Code.__members__:
                code = Code[word]
            elif match := _CODE.fullmatch(word):
                code = int(match[1]) << 5 | int(match[2])
            elif match := _BLOCK.fullmatch(word):
                number = _BLOCK_OPTIONS[match[1]]
                szx = int(match[4]).bit_length() - 5
                pairs.append((number, Block(int(match[2]), match[3] == "1", szx).encode()))
            elif word[0] in "/?":
                number = OptionNumber.URI_PATH if word[0] == "/" else OptionNumber.URI_QUERY
                pairs += [(number, part.encode()) for part in re.split("[/&]", word[1:])]
            elif word.startswith("Token="):
                token = self._bytes(word[len("Token=") :])
            else:
                pairs.append(self._option(word))
        return Message(type_, code, message_id, token, Options(tuple(pairs)), payload)

    def _option(self, word: str) -> tuple[int, bytes]:
        name, _, value = word.partition("=")
        number = _NUMBERS[name] if name in _NUMBERS else int(name)
        if value.isdigit() and (number not in REGISTRY or REGISTRY[number].format is OptionFormat.UINT):
            return number, encode_uint(int(value))
        return number, self._bytes(value)

    def _integer(self, word: str) -> int:
        if word.startswith("$"):
            value = self.bound[word]
            assert isinstance(value, int)
            return value
        return int(word, 0)

    def _bytes(self, word: str) -> bytes:
        if word.startswith("$"):
            value = self.bound[word]
            assert isinstance(value, bytes)
            return value
        return bytes.fromhex(word.removeprefix("0x"))

    def _bind(self, line: str, actual: Message) -> None:
        """Give values to the names that are seen for the first time."""
        for word in line.partition('"')[0].split():
            name, _, value = word.partition("=")
            if word.startswith("[$"):
                self.bound.setdefault(word.strip("[]"), actual.message_id)
            elif value.startswith("$") and name == "Token":
                self.bound.setdefault(value, actual.token)
            elif value.startswith("$"):
                found = actual.options.get(_NUMBERS[name])
                self.test.assertIsNotNone(found, f"{name} in {actual}")
                assert found is not None
                self.bound.setdefault(value, found)


def body(size: int, seed: int = 0) -> bytes:
    """Return a body in which no two blocks are alike."""
    return random.Random(seed).randbytes(size)
