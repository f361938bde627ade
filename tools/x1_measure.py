# SPDX-License-Identifier: AGPL-3.0-or-later
"""Measures x1's bodies against JSON, gzip and version 1, over bodies of a real Synapse.

    python -m tools.x1_measure corpus FILE...           each body of a corpus of `tools.x1_corpus` by itself, summed up
    python -m tools.x1_measure make FOLDER              the bodies that follow, from a throw-away Synapse
    python -m tools.x1_measure bodies FOLDER            a big sync, a push and more, one by one

Sizes are in bytes. `v1` is CBOR with version 1's keys, `11060` the same deflated, `x1` an x1 body, `x1, later` the same
once the aliases of an earlier one are known.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from synapse_lb.msc3079 import cbor
from synapse_lb.msc3079.x1 import AliasBook, BodyLimits, Side, decode_body, encode_body
from synapse_lb.testing.throwaway import ThrowawayHomeserver
from tools.x1_corpus import Person, Recorder, encrypted
from tools.x1_shapes import NAMES, olm_device, sentence

WIDE: Final = BodyLimits(max_size=1 << 24, max_expansion=1 << 26)

GZIP_LEVEL: Final = 6
"""What web servers use."""


def text(value: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def sizes(value: Any, book: AliasBook | None = None) -> dict[str, int]:
    """The size of one body in each form."""
    version_1 = cbor.encode(value, 1)
    encoded = encode_body(value, book)
    if book is not None:
        book.confirm(encoded.definitions)
    if decode_body(encode_body(value).data, None, WIDE) != value:
        raise AssertionError("x1 does not give back what it got")
    return {
        "JSON": len(text(value)),
        "gzip": len(gzip.compress(text(value), GZIP_LEVEL)),
        "v1": len(version_1),
        "11060": len(zlib.compress(version_1)),
        "x1": len(encoded.data),
    }


def corpus(files: Sequence[str]) -> None:
    """Print the sums over all bodies, of answers and of requests."""
    for which in ("request", "answer"):
        total: dict[str, int] = {}
        number = 0
        for file in files:
            for line in Path(file).read_text(encoding="utf-8").splitlines():
                body = json.loads(line)[which]
                if body is not None:
                    number += 1
                    for name, size in sizes(body).items():
                        total[name] = total.get(name, 0) + size
        print(f"{number} {which} bodies:", *(f"{name} {size}" for name, size in total.items()), sep="  ")


def best_of(action: Callable[[], object], rounds: int = 7) -> float:
    """The shortest time that it took."""
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        action()
        found.append(time.perf_counter() - began)
    return min(found)


def bodies(folder: Path) -> None:
    """Print the sizes of each body of a folder, twice with the same book, and what it costs."""
    for file in sorted(folder.glob("*.json")):
        value = json.loads(file.read_text(encoding="utf-8"))
        book = AliasBook(Side.SERVER)
        first = sizes(value, book)
        later = len(encode_body(value, book).data)
        print(
            f"{file.stem}:",
            *(f"{name} {size}" for name, size in first.items()),
            f"x1, later {later}",
            sep="  ",
        )
        print(costs(value))


def costs(value: Any) -> str:
    """What one body costs, as multiples of Python's JSON in C."""
    data = encode_body(value).data
    dumps, loads = best_of(lambda: text(value)), best_of(lambda: json.loads(text(value)))
    return (
        f"   of json.dumps: v1 {best_of(lambda: cbor.encode(value, 1)) / dumps:.1f},"
        f" x1 {best_of(lambda: encode_body(value)) / dumps:.1f},"
        f" x1 not deflated {best_of(lambda: encode_body(value, compress=False)) / dumps:.1f};"
        f" of json.loads: x1 {best_of(lambda: decode_body(data, None, WIDE)) / loads:.1f}"
    )


def make(folder: Path) -> None:
    """Write bodies of a throw-away Synapse."""
    folder.mkdir(exist_ok=True)

    def keep(name: str, value: Any) -> None:
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")

    with ThrowawayHomeserver(lowbandwidth=False, presence=False) as homeserver:
        recorder = Recorder(homeserver, 5)
        people = [Person(recorder, name) for name in NAMES[:2]]
        source = random.Random(9)
        rooms = []
        for number in range(50):
            body = {"preset": "public_chat", "name": f"Room {number}", "topic": sentence(source, 6)}
            room = str(people[0].ask("POST", "/createRoom", body)["room_id"])
            people[1].ask("POST", f"/join/{quote(room)}", {})
            for _ in range(20):
                words = sentence(source, source.randrange(3, 15))
                people[1].send(room, "m.room.message", {"msgtype": "m.text", "body": words})
            rooms.append(room)
        limit = quote(json.dumps({"room": {"timeline": {"limit": 20}}}))
        initial = people[0].ask("GET", f"/sync?filter={limit}")
        keep("initial_sync", initial)
        people[0].since = initial["next_batch"]
        people[1].send(rooms[0], "m.room.message", {"msgtype": "m.text", "body": "Hello World"})
        keep("push", people[0].sync())
        content = encrypted(recorder, people[1], recorder.base64(32), 300)
        keep("encrypted_content", content)
        keep("event_id", {"event_id": people[1].send(rooms[0], "m.room.encrypted", content)})
        keep("push_encrypted", people[0].sync())
        keep("sync_empty", people[0].sync())
        for room in rooms[:10]:
            for _ in range(5):
                people[1].send(room, "m.room.message", {"msgtype": "m.text", "body": sentence(source, 9)})
        keep("incremental_sync", people[0].sync())
        for number in range(20):
            device = f"DEVICE{number:04d}"
            body = {
                "type": "m.login.password",
                "user": "bob",
                "password": "the password of bob",
                "device_id": device,
            }
            token = recorder.ask("POST", "/_matrix/client/v3/login", body)["access_token"]
            keys = olm_device(recorder.random, people[1].user_id, device)
            recorder.ask(
                "POST", "/_matrix/client/v3/keys/upload", {"device_keys": keys["device_keys"]}, token
            )
        keep("keys_query", people[0].ask("POST", "/keys/query", {"device_keys": {people[1].user_id: []}}))
        keep("hello", {"msgtype": "m.text", "body": "Hello World"})


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments say; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="tools.x1_measure")
    parser.add_argument("what", choices=("corpus", "make", "bodies"))
    parser.add_argument("files", nargs="+", metavar="FILE")
    options = parser.parse_args(arguments)
    if options.what == "corpus":
        corpus(options.files)
    elif options.what == "make":
        make(Path(options.files[0]))
    else:
        bodies(Path(options.files[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
