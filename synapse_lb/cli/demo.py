# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb demo`: a real, throw-away Synapse, two clients, and what their words weigh on the wire.

The conversation (`cli/conversation.py`) is held twice on the same server: by two users over Synapse's own TLS
listener, each on one keep-alive connection (`cli/https_meter.py`), and by two others over the low-bandwidth
listener with `LowBandwidthClient`, as any program would use it. Names, passwords and texts have the same lengths.
Both sides are shown as whole IP packets with all of their headers; closing is counted on neither.

Whatever happens, Synapse ends with the command (on Ctrl-C and SIGTERM too), unless `--keep` asks it to stay and
the demonstration succeeded; then it runs in the background, and the command says how to talk to it and how to stop it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs

from synapse_lb.cli.conversation import Answer, ConversationFailed, Names, Outcome, Step, converse
from synapse_lb.cli.demo_table import Painter, Row, total
from synapse_lb.cli.errors import EXIT_OK, CommandError
from synapse_lb.cli.https_meter import HttpsMeter, MeterError, Wire, wire_is_measurable
from synapse_lb.cli.interruptible import heed_sigterm, until_interrupted
from synapse_lb.cli.terminal import Terminal
from synapse_lb.testing.throwaway import HomeserverFailed, SynapseMissing, ThrowawayHomeserver

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from synapse_lb.cli.main import Subparsers
    from synapse_lb.client.client import LowBandwidthClient

T = TypeVar("T")

OVER_COAP: Final = Names("alice", "bob")
OVER_HTTPS: Final = Names("clara", "tom")
REQUEST_TIMEOUT: Final = 60.0
"""Seconds for one request."""

_DESCRIPTION = """\
Starts a real Synapse in a temporary folder with the low-bandwidth listener, lets two clients meet, talk and read
back over CoAP, CBOR and DTLS, and shows each request beside what it takes over HTTPS and JSON on the same server.
Needs Synapse itself: pip install 'synapse-lb[server]'.
"""
_EXPLANATION = """\
Bytes and packets are whole IP packets, both ways, headers and acknowledgements included.
CoAP: one DTLS association per user; its datagrams, with 28 bytes of IP and UDP header each.
HTTPS: one keep-alive HTTP/1.1 connection per user, segments as on an Ethernet, counted by the
kernel (TCP_INFO); JSON without spaces, no compression. Closing is counted on neither side."""
_UNMEASURED = "HTTPS is not shown: only Linux (4.19 or later) tells what a TCP connection sends and receives."


def add_parser(subparsers: Subparsers) -> None:
    """Add `demo` to the command."""
    parser = subparsers.add_parser(
        "demo",
        help="watch two clients talk over CoAP to a real, throw-away Synapse",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="leave Synapse running in the background at the end and print what to try next",
    )
    parser.add_argument("--json", action="store_true", help="write one JSON object instead of the table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, terminal: Terminal) -> Deferred[int]:
    """Hold the demonstration.

    Returns:
        A Deferred of the exit status; it fails with a `CommandError` for whatever goes wrong.

    Raises:
        CommandError: Synapse is missing or did not start, or the conversation over HTTPS failed.
    """
    heed_sigterm()
    demo = Demo(
        terminal=terminal,
        homeserver=ThrowawayHomeserver(outlive=arguments.keep),
        painter=Painter(terminal.stdout_is_screen() and "NO_COLOR" not in terminal.environ),
        as_json=arguments.json,
        keep=arguments.keep,
    )
    try:
        demo.prepare()
    except BaseException:
        demo.homeserver.stop()
        raise
    farewell = "synapse-lb demo: interrupted; Synapse has been stopped and removed"
    return until_interrupted(demo.finish(), terminal, farewell)


@attrs.define
class Demo:
    """One demonstration.

    Args:
        terminal: where to show it.
        homeserver: the Synapse to start; belongs to this object.
        painter: writes the lines.
        as_json: say nothing but one JSON object at the end.
        keep: leave the homeserver running if all goes well.
    """

    terminal: Terminal
    homeserver: ThrowawayHomeserver
    painter: Painter
    as_json: bool
    keep: bool
    rows: list[Row] = attrs.field(factory=list)
    https: list[Wire] = attrs.field(factory=list)
    https_handshakes: list[Wire] = attrs.field(factory=list)

    def prepare(self) -> None:
        """Start Synapse and hold the conversation over HTTPS; blocks.

        Raises:
            CommandError: one of the two failed.
        """
        self._say(f"Starting a throw-away Synapse {_synapse_version()} ... ")
        began = time.monotonic()
        try:
            self.homeserver.start()
        except SynapseMissing as error:
            self._say("\n")
            raise CommandError(
                "the demo needs a Synapse to talk to, and there is none in this Python environment: "
                "pip install 'synapse-lb[server]'"
            ) from error
        except HomeserverFailed as error:
            self._say("\n")
            raise CommandError(str(error)) from error
        self._say(f"ready after {time.monotonic() - began:.1f} s: {self.homeserver.coaps_url}\n")
        if wire_is_measurable():
            self._say(f"{OVER_HTTPS.first} and {OVER_HTTPS.second} talk over HTTPS, to compare with ... ")
            began = time.monotonic()
            self._guarded(self._talk_over_https)
            self._say(f"done after {time.monotonic() - began:.1f} s\n")

    async def finish(self) -> int:
        """Hold the conversation over CoAP, show it, and stop Synapse or leave it.

        Returns:
            The exit status.

        Raises:
            CommandError: the conversation failed.
        """
        kept = False
        try:
            outcome = await self._talk_over_coap()
            if self.keep:
                self.homeserver.release()
                kept = True
            self._show(outcome)
        finally:
            if not kept:
                self.homeserver.stop()
        return EXIT_OK

    # The two conversations

    def _talk_over_https(self) -> None:
        address, port = self.homeserver.settings.address, self.homeserver.ports.https
        certificate = self.homeserver.certificate_path
        with (
            HttpsMeter(address, port, certificate) as first,
            HttpsMeter(address, port, certificate) as second,
        ):
            meters = (first, second)
            steps = converse(OVER_HTTPS)
            step = next(steps)
            while True:
                measured = meters[step.speaker].request(step.method, step.target, step.body, step.token)
                self.https.append(measured.wire)
                try:
                    step = steps.send(_answer(step, measured.status, measured.body))
                except StopIteration:
                    break
            self.https_handshakes = [meter.handshake for meter in meters]

    async def _talk_over_coap(self) -> Outcome:
        from synapse_lb.client.client import LowBandwidthClient
        from synapse_lb.client.errors import ClientError
        from synapse_lb.txdtls.context import ClientVerification

        clients = [
            LowBandwidthClient(
                self.terminal.reactor,
                self.homeserver.coaps_url,
                verification=ClientVerification.ca_file(str(self.homeserver.certificate_path)),
            )
            for _ in range(2)
        ]
        self._say("\n" + self.painter.header())
        try:
            return await self._converse(clients)
        except (ClientError, ConversationFailed) as error:
            raise CommandError(self._with_log(error)) from error
        finally:
            for client in clients:
                await client.close()

    async def _converse(self, clients: list[LowBandwidthClient]) -> Outcome:
        from twisted.internet.task import deferLater

        from synapse_lb.msc3079.messages import NO_BODY

        connected: set[int] = set()
        steps = converse(OVER_COAP)
        step = next(steps)
        number = 0
        while True:
            client = clients[step.speaker]
            if step.speaker not in connected:
                connected.add(step.speaker)
                await self._connect(step.speaker, client)
            before = _wire(client)
            body = NO_BODY if step.body is None else step.body
            response = await client.request(
                step.method, step.path, step.query, body, step.token, timeout=REQUEST_TIMEOUT
            )
            # One turn of the reactor, so that an acknowledgement of the answer counts where it belongs.
            await deferLater(self.terminal.reactor, 0)
            https = self.https[number] if self.https else None
            self._add(step, response.status, _wire(client) - before, https)
            number += 1
            try:
                step = steps.send(_answer(step, response.status, response.body))
            except StopIteration as end:
                outcome: Outcome = end.value
                return outcome

    async def _connect(self, speaker: int, client: LowBandwidthClient) -> None:
        await client.connect()
        https = self.https_handshakes[speaker] if self.https_handshakes else None
        name = (OVER_COAP.first, OVER_COAP.second)[speaker]
        self._add_row(Row(name, "DTLS handshake (HTTPS: TCP and TLS)", "", None, _wire(client), https))

    # What is shown

    def _add(self, step: Step, status: int, coap: Wire, https: Wire | None) -> None:
        name = (OVER_COAP.first, OVER_COAP.second)[step.speaker]
        self._add_row(Row(name, f"{step.method} {step.title}", step.does, status, coap, https))

    def _add_row(self, row: Row) -> None:
        self.rows.append(row)
        self._say(self.painter.line(row))

    def _show(self, outcome: Outcome) -> None:
        if self.as_json:
            self.terminal.write(json.dumps(self._as_json(outcome), indent=2) + "\n")
            return
        self._say(self.painter.footer(self.rows) + "\n")
        for name, text in zip((OVER_COAP.first, OVER_COAP.second), outcome.heard, strict=True):
            self._say(f"{name} read: {text}\n")
        self._say("\n" + self.painter.note(_EXPLANATION if self.https else _UNMEASURED))
        if self.keep:
            self._say("\nSynapse stays, in the background. Try:\n")
            for purpose, command in self.commands(outcome):
                self._say(f"\n  # {purpose}\n  {command}\n")

    def _as_json(self, outcome: Outcome) -> dict[str, Any]:
        result: dict[str, Any] = {
            "synapse": _synapse_version(),
            "steps": [row.as_json() for row in self.rows],
            "total": total(self.rows).as_json(),
        }
        if self.keep:
            result["kept"] = {
                "folder": str(self.homeserver.folder),
                "coaps": self.homeserver.coaps_url,
                "https": self.homeserver.https_url,
                "http": self.homeserver.http_url,
                "certificate": str(self.homeserver.certificate_path),
                "pid": self.homeserver.released_pid,
                "room_id": outcome.room_id,
                "tokens": dict(zip(outcome.user_ids, outcome.tokens, strict=True)),
                "commands": [command for _, command in self.commands(outcome)],
            }
        return result

    def commands(self, outcome: Outcome) -> list[tuple[str, str]]:
        """What to try on a homeserver that was kept: purpose and shell command."""
        server = self.homeserver
        coap = f"synapse-lb coap --cacert {server.certificate_path} --json"
        alice, bob = outcome.tokens
        send = f"_matrix/client/v3/rooms/{outcome.room_id}/send/m.room.message"
        read = f"_matrix/client/v3/rooms/{outcome.room_id}/messages?dir=b&limit=3"
        body = '{"msgtype": "m.text", "body": "Hello again"}'
        return [
            ("what the server can do", f"{coap} {server.coaps_url}/_matrix/client/versions"),
            (
                "alice says something",
                f"{coap} --token {alice} -X PUT -d '{body}' '{server.coaps_url}/{send}/1'",
            ),
            ("bob reads it", f"{coap} --token {bob} '{server.coaps_url}/{read}'"),
            (
                "the same over HTTPS",
                f"curl --cacert {server.certificate_path} -H 'Authorization: Bearer {bob}' "
                f"'{server.https_url}/{read}'",
            ),
            ("its log", f"tail -f {server.folder}/homeserver.log"),
            ("stop it and remove everything", f"kill {server.released_pid}; rm -r {server.folder}"),
        ]

    def _say(self, text: str) -> None:
        if not self.as_json:
            self.terminal.write(text)

    def _guarded(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except (MeterError, ConversationFailed) as error:
            self._say("\n")
            raise CommandError(self._with_log(error)) from error

    def _with_log(self, error: Exception) -> str:
        return f"{error}\n--- Synapse's last lines ---\n{self.homeserver.log_tail()}"


def _answer(step: Step, status: int, body: Any) -> Answer:
    if status != 200:
        raise ConversationFailed(f"{step.method} {step.path} was answered with {status}: {body}")
    return Answer(status, body)


def _wire(client: LowBandwidthClient) -> Wire:
    traffic = client.counters
    return Wire(
        traffic.datagrams_sent + traffic.datagrams_received,
        traffic.ip_bytes_sent + traffic.ip_bytes_received,
    )


def _synapse_version() -> str:
    try:
        return metadata.version("matrix-synapse")
    except metadata.PackageNotFoundError:
        return "(not installed)"
