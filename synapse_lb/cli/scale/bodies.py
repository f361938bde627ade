# SPDX-License-Identifier: AGPL-3.0-or-later
"""What it costs to write the bodies of large `/sync`s: CBOR with integer keys against Synapse's JSON."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from typing import Any, Final

import attrs

from synapse_lb.cli.scale.varied import varied_sync
from synapse_lb.msc3079 import cbor
from synapse_lb.msc3079.keys_v1 import KEY_VERSION_1

_JSON: Final = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
"""As Synapse has it."""

_ROUNDS: Final = 15
_ROOMS: Final = 50
_EVENTS: Final = 20
_BEGAN: Final = 1_700_000_000_000


@attrs.frozen
class Writing:
    """Seconds of processor time to write one body, the least of several.

    Attributes:
        name: what is in it.
        json_bytes: its bytes in JSON.
        cbor_bytes: its bytes in CBOR.
        json: to write it as JSON, as Synapse does.
        cbor: to write it as CBOR.
    """

    name: str
    json_bytes: int
    cbor_bytes: int
    json: float
    cbor: float

    @property
    def ratio(self) -> float:
        """CBOR's time against JSON's."""
        return self.cbor / self.json


def measure() -> list[Writing]:
    """Measure in this process: for each body, both in turns."""
    return [_measure(name, make(random.Random(3079))) for name, make in _BODIES.items()]


def _measure(name: str, body: dict[str, Any]) -> Writing:
    ways: dict[str, Callable[[], bytes]] = {
        "json": lambda: _JSON.encode(body).encode(),
        "cbor": lambda: cbor.encode(body, KEY_VERSION_1, lossy=True),
    }
    sizes = {way: len(write()) for way, write in ways.items()}
    least = dict.fromkeys(ways, float("inf"))
    for _ in range(_ROUNDS):
        for way, write in ways.items():
            began = time.process_time()
            write()
            least[way] = min(least[way], time.process_time() - began)
    return Writing(name, sizes["json"], sizes["cbor"], least["json"], least["cbor"])


def large_sync(pen: random.Random) -> dict[str, Any]:
    """What an initial sync of rooms with messages looks like."""
    return {
        "next_batch": "s1_2_3",
        "rooms": {"join": {f"!{pen.getrandbits(256):043x}"[:44]: _room(pen) for _ in range(_ROOMS)}},
    }


def _room(pen: random.Random) -> dict[str, Any]:
    events = [_event(pen, number) for number in range(_EVENTS)]
    return {
        "timeline": {"events": events, "limited": True, "prev_batch": "s1_2"},
        "state": {"events": []},
        "ephemeral": {"events": []},
        "account_data": {"events": []},
        "unread_notifications": {"highlight_count": 0, "notification_count": 1},
    }


def _event(pen: random.Random, number: int) -> dict[str, Any]:
    return {
        "type": "m.room.message",
        "sender": f"@user{pen.randrange(100)}:localhost",
        "content": {"msgtype": "m.text", "body": "hello, who is there? " * pen.randrange(1, 4)},
        "event_id": f"${pen.getrandbits(256):043x}"[:44],
        "origin_server_ts": _BEGAN + number,
        "unsigned": {"age": number},
    }


_BODIES: Final[dict[str, Callable[[random.Random], dict[str, Any]]]] = {
    "messages, 50 rooms": large_sync,
    "all that rooms have, 30 rooms": varied_sync,
}
