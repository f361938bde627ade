# SPDX-License-Identifier: AGPL-3.0-or-later
"""The operations over HTTPS and JSON: one keep-alive HTTP/1.1 connection, as a Matrix client has it. Blocking."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Final

from synapse_lb.cli.conversation import CLIENT
from synapse_lb.cli.https_meter import HttpsMeter, Measured, Wire
from synapse_lb.cli.wire import operations
from synapse_lb.cli.wire.operations import POLL_TIMEOUT, Call
from synapse_lb.cli.wire.scene import Scene, SceneFailed, User

_SPEAK_AFTER: Final = 0.3
"""Seconds: the long poll is under way by then, and its TCP acknowledgement has been sent."""


class HttpsSide:
    """Measures over HTTPS.

    Args:
        scene: the homeserver, with users and rooms.
        compressed: ask for gzip.
        progress: told of each step.

    Attributes:
        resumes: whether the server resumed the TLS session.
    """

    def __init__(self, scene: Scene, compressed: bool, progress: Callable[[str], None]) -> None:
        self._scene = scene
        self._compressed = compressed
        self._progress = progress
        self._transactions = map(operations.transaction, itertools.count())
        self._session = scene.fabric.megolm_session(scene.alix.device_id)
        self._room = ""
        self.resumes = False

    def measure(self) -> dict[str, Wire]:
        """Everything but the keep-alive, of which HTTPS has none: key of the operation and what it took.

        Raises:
            MeterError: a request failed.
            SceneFailed: an answer was not as expected.
        """
        self._progress("measuring HTTPS" + (" with gzip" if self._compressed else ""))
        self._room = self._scene.new_room()
        figures = self._connecting()
        with self._meter() as meter:
            self._run(meter, self._scene.alix, self._send())
            figures |= self._talking(meter)
            figures |= self._arriving(meter)
        with self._meter() as meter:
            figures |= self._fetching(meter)
        return figures

    def _connecting(self) -> dict[str, Wire]:
        figures = {}
        with self._meter() as meter:
            answer = self._run(meter, self._scene.alix, self._send())
            figures["connect_first"] = meter.handshake + answer.wire
            session = meter.session
            meter.close()
            meter.connect(session)
            self.resumes = meter.resumed
            answer = self._run(meter, self._scene.alix, self._send())
            figures["connect_resumed"] = meter.handshake + answer.wire
        return figures

    def _talking(self, meter: HttpsMeter) -> dict[str, Wire]:
        scene, room = self._scene, self._room
        alix = scene.alix
        figures = {}
        sent = self._run(meter, alix, self._send())
        figures["send"] = sent.wire
        figures["send_encrypted"] = self._run(meter, alix, self._send_encrypted()).wire
        figures["receipt"] = self._run(meter, alix, operations.receipt(room, sent.body["event_id"])).wire
        figures["typing"] = self._run(meter, alix, operations.typing(room, alix.user_id, types=True)).wire
        self._run(meter, alix, operations.typing(room, alix.user_id, types=False))
        since = self._run(meter, alix, self._scene.now()).body["next_batch"]
        empty = self._run(meter, alix, operations.sync(since, timeout=POLL_TIMEOUT))
        operations.expect_empty(empty.body)
        figures["sync_empty"] = empty.wire
        return figures

    def _arriving(self, meter: HttpsMeter) -> dict[str, Wire]:
        scene, room = self._scene, self._room
        figures = {}
        for key, speak in (("push", scene.say), ("push_encrypted", scene.say_encrypted)):
            since = self._run(meter, scene.alix, self._scene.now()).body["next_batch"]
            speaker = threading.Timer(_SPEAK_AFTER, speak, (room, next(self._transactions)))
            speaker.start()
            try:
                arrived = self._run(meter, scene.alix, operations.sync(since, timeout="30000"))
            finally:
                speaker.join()
            operations.expect_events(arrived.body, rooms=1, events=1)
            figures[key] = arrived.wire
        return figures

    def _fetching(self, meter: HttpsMeter) -> dict[str, Wire]:
        scene, sizes = self._scene, self._scene.sizes
        figures = {}
        self._run(meter, scene.carl, Call("GET", f"{CLIENT}/account/whoami"))
        initial = self._run(meter, scene.carl, operations.sync(None, limited=True))
        operations.expect_events(initial.body, rooms=sizes.rooms, events=operations.TIMELINE_LIMIT)
        figures["sync_initial"] = initial.wire
        further = self._run(meter, scene.carl, operations.sync(scene.since, limited=True))
        operations.expect_events(further.body, rooms=sizes.active_rooms, events=sizes.new_messages)
        figures["sync_incremental"] = further.wire
        keys = self._run(meter, scene.carl, operations.keys_query(scene.device_owners))
        operations.expect_devices(keys.body, sizes.devices)
        figures["keys_query"] = keys.wire
        return figures

    def _send(self) -> Call:
        return operations.send(self._room, next(self._transactions))

    def _send_encrypted(self) -> Call:
        return operations.send_encrypted(self._room, next(self._transactions), self._session.event())

    def _meter(self) -> HttpsMeter:
        homeserver = self._scene.homeserver
        return HttpsMeter(
            homeserver.settings.address,
            homeserver.ports.https,
            homeserver.certificate_path,
            compressed=self._compressed,
        )

    def _run(self, meter: HttpsMeter, user: User, call: Call) -> Measured:
        measured = meter.request(call.method, call.target, call.body, user.token)
        if measured.status != 200:
            raise SceneFailed(f"{call.method} {call.path} over HTTPS: {measured.status} {measured.body}")
        return measured
