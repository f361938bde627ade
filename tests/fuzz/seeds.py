# SPDX-License-Identifier: AGPL-3.0-or-later
"""Writes the first inputs of each target into its corpus: real messages, and tapes that lead somewhere.

python -m tests.fuzz.seeds
"""

from __future__ import annotations

import json
from typing import Any

from synapse_lb.coap.block import Block
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import Options
from synapse_lb.msc3079 import cbor
from synapse_lb.msc3079.mapping import NO_BODY, encode_request, encode_x1_request
from synapse_lb.msc3079.x1 import AliasBook, Side
from tests.fuzz.tape import sized
from tests.fuzz.targets import CORPUS

EVENT = {
    "type": "m.room.message",
    "content": {"msgtype": "m.text", "body": "Hello World"},
    "room_id": "!room:example.com",
    "origin_server_ts": 1600000000000,
    "unsigned": {"age": -1, "ok": True, "none": None, "half": 0.5},
    "list": [[], {}, "ü"],
}


X1_PATHS = (
    "80",
    "8151000001" + b"!foo:localhost".hex() + "626d31",
    "84410058210200112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
    "8b4100f82e60",
    "c105",
    "81410048" + "0880d8c1a28c3407",
    "8018c745060489140118591975303" + "8a700",
)


def _x1_vectors() -> list[dict[str, str]]:
    """The vectors of x1's bodies."""
    path = CORPUS.parent.parent / "vectors" / "x1_bodies.json"
    vectors: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return vectors


def requests() -> list[bytes]:
    """Requests of MSC3079's conversation."""
    calls: tuple[tuple[str, str, Any], ...] = (
        ("GET", "/_matrix/client/versions", NO_BODY),
        ("POST", "/_matrix/client/r0/login", {"type": "m.login.password", "password": "x"}),
        ("PUT", "/_matrix/client/r0/rooms/!r:h/send/m.room.message/1", {"msgtype": "m.text", "body": "Hi"}),
        ("GET", "/_matrix/client/r0/sync?timeout=0&since=s1_2", NO_BODY),
        ("POST", "/_matrix/client/r0/keys/query", EVENT),
    )
    datagrams = []
    for index, (method, path, body) in enumerate(calls):
        code, options, payload = encode_request(
            method, path, body=body, token="secret", key_version=1, announce_key_version=1
        )
        message = Message(Type.CON, code, index + 1, bytes([index + 1]), Options(tuple(options)), payload)
        datagrams.append(message.encode())
    return datagrams


def _message(
    type_: Type, code: int, message_id: int, *pairs: tuple[int, bytes], payload: bytes = b""
) -> bytes:
    return Message(type_, code, message_id, b"\1", Options(tuple(pairs)), payload).encode()


def x1_requests() -> list[bytes]:
    """Of two users on one association, the second of whom guesses the first one's alias."""
    book = AliasBook(Side.CLIENT)
    datagrams = []
    for index, token in enumerate(("one", None, "two")):
        written = encode_x1_request(
            "PUT",
            "/_matrix/client/v3/rooms/!r:h/send/m.room.message/1?since=s1_2",
            None,
            EVENT,
            book,
            token=token,
            announce=index == 0,
        )
        book.confirm(written.definitions)
        message = Message(Type.CON, written.code, index, b"", Options.of(*written.options), written.payload)
        datagrams.append(message.encode())
    return datagrams


def _http(*parts: str) -> bytes:
    """A tape of texts."""
    return b"".join(sized(part.encode()) for part in parts)


def blocks() -> list[bytes]:
    """A body in blocks, an observation, and what Q-Block adds."""
    path = (int(OptionNumber.URI_PATH), b"a")
    first, second = Block(0, True, 0).encode(), Block(1, False, 0).encode()
    return [
        _message(Type.CON, Code.POST, 1, path, (OptionNumber.BLOCK1, first), payload=bytes(16)),
        _message(Type.CON, Code.POST, 2, path, (OptionNumber.BLOCK1, second), payload=bytes(4)),
        _message(Type.CON, Code.GET, 3, path, (OptionNumber.BLOCK2, second)),
        _message(Type.CON, Code.GET, 4, path, (OptionNumber.OBSERVE, b"")),
        _message(Type.CON, Code.GET, 5, path, (OptionNumber.OBSERVE, b"\1")),
        _message(Type.NON, Code.GET, 6, path, (OptionNumber.Q_BLOCK2, first)),
        _message(Type.NON, Code.POST, 7, path, (OptionNumber.Q_BLOCK1, first), payload=bytes(16)),
        _message(Type.CON, Code.CONTENT, 8, (OptionNumber.BLOCK2, first), payload=bytes(16)),
        _message(Type.CON, Code.CONTENT, 9, (OptionNumber.OBSERVE, b"\7"), payload=b"x"),
        bytes([0x60, 0, 0, 1]),
        bytes([0x70, 0, 0, 1]),
    ]


def _server_tape(datagrams: list[bytes]) -> bytes:
    tape = b""
    for datagram in datagrams:
        if len(datagram) < 80:
            tape += bytes([0, 0, len(datagram)]) + datagram + bytes([6, 0, 30, 0, 2])
    return tape


def _client_tape(datagrams: list[bytes]) -> bytes:
    return b"".join(
        bytes([0, index, 0, 0, 40, 2, 0, len(datagram)]) + datagram
        for index, datagram in enumerate(datagrams)
    )


def seeds() -> dict[str, list[bytes]]:
    """The inputs by target."""
    hello = bytes.fromhex("16fefd0000000000000000002f" + "010000230000000000000023" + "fefd") + bytes(32)
    hello = hello[:-1] + b"\0"
    alert = bytes.fromhex("15fefd00010000000000050019") + bytes(25)
    texts = [json.dumps(EVENT), "[]", '{"": ""}', "[[[[1.5]]]]"]
    return {
        "coap_message": [*requests(), *blocks()],
        "coap_options": [bytes(range(40)), b"\0\x17\1\x08\0\x1b\3\xff\xff\xff\0\x06\0"],
        "cbor_body": [cbor.encode(json.loads(text), version) for text in texts for version in (None, 1)],
        "x1_body": [
            bytes.fromhex(one[form]) for one in _x1_vectors() for form in ("hex", "deflated") if form in one
        ],
        "x1_path": [bytes.fromhex(path) for path in X1_PATHS],
        "matrix_request": [b"".join(map(sized, requests())), *map(sized, requests())],
        "x1_request": [b"".join(map(sized, x1_requests())), *map(sized, x1_requests())],
        "discovery": [
            _http("\0", '{"m.homeserver": {"base_url": "https://h:1"}}', "\0", f'{{"versions": [], {said}}}')
            for said in (
                '"org.matrix.msc3079.low_bandwidth": {"dtls": 8008}',
                '"m.low_bandwidth": {"dtls": 70000}',
                '"a": [1.5, null]',
            )
        ]
        + [_http("\2//[", ""), _http("\1https://a.b/c", "", "\3", "")],
        "proxy_call": [
            _http("GET", "/_matrix/client/v3/sync?timeout=30000&filter={}&access_token=a", "Bearer x", ""),
            _http(
                "PUT", "/_matrix/client/v3/rooms/!r%3Ah/send/m.room.message/1", "Bearer x", json.dumps(EVENT)
            ),
            _http("POST", "/_matrix/client/v3/login", "", '{"a": 1e400, "b": "\\ud800", "c": [[[]]]}'),
        ],
        "matrix_response": [
            *blocks(),
            _message(Type.ACK, Code.CONTENT, 1, (12, b"\x3c"), payload=cbor.encode({"event_id": "$x"}, 1)),
            _message(
                Type.ACK, Code.TOO_MANY_REQUESTS, 1, (14, b"\5"), (12, b"2"), payload=b'{"errcode":"M"}'
            ),
        ],
        "dtls_records": [
            hello + b"\0" * 6,
            alert,
            hello + alert,
            b"\xf0\0" + bytes(64) + b"ab.c",
            b"\xf1" + bytes(72),
            b"\xf2\x28" + bytes(40) + b"\xf4\1" + bytes(20),
            b"\xf5\1\0" + bytes(20),
        ],
        "dtls_port": [
            bytes(range(120)),
            bytes([1, 0, 0, 5, 1, 2, 0, 1] * 20),
            bytes([5, 0, 3, 2, 4, 1] * 20),
            bytes([5, 0, 1, 1, 3, 0, 2, 4, 0, 1] * 20),
        ],
        "endpoint_server": [_server_tape(blocks()), _server_tape([*reversed(blocks())])],
        "endpoint_client": [_client_tape(blocks()), _client_tape([*reversed(blocks())])],
        "endpoint_pair": [
            bytes([0, 1, 0, 4, 0, 1, 0, 40, 0, 1, 4, 0, 2, 0, 0, 4, 0] * 8),
            bytes([0, 24, 0, 1, 4, 0, 1, 0, 99, 0, 2, 4, 0, 3, 3, 6, 0, 7, 0] * 8),
            bytes([0, 26, 0, 2, 90, 4, 0, 5, 0, 1, 0, 60, 0, 2, 4, 0, 4, 0, 3, 2] * 6),
        ],
    }


def main() -> None:
    """Write them."""
    for name, inputs in seeds().items():
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for index, data in enumerate(inputs):
            (folder / f"seed-{index:02}").write_bytes(data)


if __name__ == "__main__":
    main()
