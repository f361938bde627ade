# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb bench wire`: its table, its goals, its contents and its arguments; without Synapse."""

from __future__ import annotations

import base64
import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.cli import bench_wire
from synapse_lb.cli.https_meter import Wire
from synapse_lb.cli.main import start
from synapse_lb.cli.terminal import Terminal
from synapse_lb.cli.wire import coap, operations
from synapse_lb.cli.wire.goals import Verdict, verdicts
from synapse_lb.cli.wire.operations import CIPHERTEXT_LENGTH, OPERATIONS, Fabric, Sizes, UnexpectedAnswer
from synapse_lb.cli.wire.report import Column, Report
from synapse_lb.cli.wire.scene import certificate_of_length
from synapse_lb.client.counters import Traffic
from synapse_lb.client.persistence import Persistence
from synapse_lb.testing.throwaway import SynapseMissing, ThrowawayHomeserver


def traffic(packets: int, sent: int, received: int) -> Traffic:
    """So many datagrams each way, and so many IP bytes."""
    return Traffic(packets, packets, sent - packets * 28, received - packets * 28, sent, received)


def all_of(figure: Traffic) -> dict[str, Traffic]:
    """The same for each operation."""
    return {operation.key: figure for operation in OPERATIONS}


class ReportTests(SynchronousTestCase):
    """What is written."""

    def setUp(self) -> None:
        modes = all_of(traffic(1, 100, 200)) | {"sync_initial": traffic(150, 12_345, 734_567)}
        https = {"send": Wire(3, 1029)}
        columns = [Column("v1", "CoAP, version 1", modes), Column("https", "HTTPS, JSON", https)]
        self.report = Report("1.2.3", Sizes(rooms=7), columns, [Verdict("few bytes", 10, 11)])

    def test_table(self) -> None:
        lines = self.report.table().split("\n")
        rows = lines[3 : 3 + len(OPERATIONS)]
        self.assertEqual(len({len(line) for line in [*lines[:3], *rows]}), 1, "columns are aligned")
        self.assertEqual(rows[2].split()[-8:], ["2", "100", "+", "200", "=", "300", "3", "1,029"])
        self.assertTrue(rows[0].endswith("-        -"), rows[0])
        initial = next(row for row in rows if row.startswith("initial sync, 7 rooms x 20 messages"))
        self.assertIn("746,912", initial)
        self.assertEqual(lines[-2], "MISSED few bytes: 11 (at most 10)")

    def test_markdown(self) -> None:
        lines = self.report.markdown().splitlines()
        self.assertEqual(len(lines), 2 + len(OPERATIONS))
        self.assertEqual(lines[4], "| send a message, and its answer | 2 / 100 + 200 = 300 | 3 / 1,029 |")
        self.assertEqual({line.count("|") for line in lines}, {4})

    def test_json(self) -> None:
        value: dict[str, Any] = json.loads(json.dumps(self.report.as_json()))
        self.assertEqual([each["operation"] for each in value["operations"]], [op.key for op in OPERATIONS])
        send = value["operations"][2]
        self.assertEqual((send["v1"]["bytes"], send["v1"]["packets_sent"]), (300, 1))
        self.assertEqual(send["https"], {"packets": 3, "bytes": 1029})
        self.assertIsNone(value["operations"][0]["https"])
        self.assertEqual(value["goals"], [{"goal": "few bytes", "most": 10, "measured": 11}])


class GoalsTests(SynchronousTestCase):
    """Which goals a figure is held against."""

    def held(self, coap: dict[str, dict[str, Traffic]], **https: dict[str, Wire]) -> dict[str, Verdict]:
        return {verdict.goal: verdict for verdict in verdicts(coap, https)}

    def test_with_cookie(self) -> None:
        held = self.held({"v1": all_of(traffic(4, 700, 900))})
        self.assertTrue(held["v1: first connection, bytes"].holds)
        self.assertEqual(held["v1: first connection, packets"].most, 8)
        self.assertFalse(held["v1: resumed connection, packets"].holds)
        self.assertEqual(held["idle observer, bytes a minute"].measured, 1600 * 60 / Persistence().heartbeat)

    def test_without_cookie(self) -> None:
        """Fewer packets were sent, so fewer bytes may be."""
        held = self.held({"v1": all_of(traffic(3, 700, 900))})
        self.assertFalse(held["v1: first connection, bytes"].holds)
        self.assertEqual(held["v1: first connection, packets"].most, 6)

    def test_modes_that_were_not_measured(self) -> None:
        self.assertEqual(self.held({}), {})
        self.assertFalse(any(goal.startswith("x1") for goal in self.held({"v1": all_of(traffic(4, 1, 1))})))

    def test_shares(self) -> None:
        v1, x1 = all_of(traffic(1, 100, 100)), all_of(traffic(1, 60, 60))
        held = self.held({"v1": v1, "x1": x1}, gzip={"sync_initial": Wire(2, 100)})
        self.assertTrue(held["x1: encrypted event, sent: share of version 1"].holds)
        self.assertFalse(held["x1: initial sync, share of HTTPS with gzip"].holds)
        self.assertEqual(held["x1: initial sync, share of HTTPS with gzip"].measured, 1.2)
        self.assertEqual(held['x1: "Hello World", request'].measured, 60)
        self.assertEqual(held['x1: "Hello World", answer'].measured, 60)


class OperationsTests(SynchronousTestCase):
    """The contents."""

    def test_transaction_ids(self) -> None:
        ids = [operations.transaction(number) for number in range(200)]
        self.assertEqual(len(set(ids)), 200)
        self.assertEqual({len(each) for each in ids[:62]}, {1})

    def test_megolm(self) -> None:
        """As Megolm has it: unpadded base64 of whole octets, keys of 32; one session has many events."""
        session = Fabric(1).megolm_session("ABCDEFGHIJ")
        first, second = session.event(), session.event()
        self.assertEqual(len(first["ciphertext"]), CIPHERTEXT_LENGTH)
        self.assertEqual(len(base64.b64decode(first["ciphertext"] + "==")), 300)
        self.assertEqual((len(first["sender_key"]), len(first["session_id"])), (43, 43))
        different = {key for key in first if first[key] != second[key]}
        self.assertEqual(different, {"ciphertext"})
        self.assertEqual(Fabric(1).megolm_session("ABCDEFGHIJ").event(), first)

    def test_paths(self) -> None:
        call = operations.receipt("!a:b", "$c/d")
        self.assertEqual(call.path, "/_matrix/client/v3/rooms/%21a%3Ab/receipt/m.read/%24c%2Fd")
        self.assertEqual(
            operations.sync("s1", timeout="5").target, "/_matrix/client/v3/sync?timeout=5&since=s1"
        )

    def test_expectations(self) -> None:
        """A measurement of something else than is meant is an error."""
        body = {"rooms": {"join": {"!a": {"timeline": {"events": [1, 2]}}}}}
        operations.expect_events(body, rooms=1, events=2)
        operations.expect_empty({"next_batch": "s1", "rooms": {}})
        operations.expect_devices({"device_keys": {"@a:b": {"X": {}, "Y": {}}}}, 2)
        for wrong in (
            lambda: operations.expect_events(body, rooms=2, events=2),
            lambda: operations.expect_events(body, rooms=1, events=1),
            lambda: operations.expect_events({}, rooms=1, events=1),
            lambda: operations.expect_empty(body),
            lambda: operations.expect_devices({"device_keys": {}}, 1),
        ):
            self.assertRaises(UnexpectedAnswer, wrong)

    def test_certificate(self) -> None:
        pem, key = certificate_of_length(414)
        lines = pem.decode().strip().splitlines()
        self.assertEqual(len(base64.b64decode("".join(lines[1:-1]))), 414)
        self.assertIn(b"PRIVATE KEY", key)

    def test_inbox(self) -> None:
        """Bodies come in order, whether somebody waits for them or not."""
        inbox = coap.Inbox()
        inbox.take(1)
        inbox.take(2)
        self.assertEqual([self.successResultOf(inbox.next()) for _ in range(2)], [1, 2])
        waiting = inbox.next()
        self.assertNoResult(waiting)
        inbox.take(3)
        self.assertEqual(self.successResultOf(waiting), 3)


class CommandTests(SynchronousTestCase):
    """Its arguments."""

    def test_modes(self) -> None:
        self.assertEqual([mode.name for mode in coap.MODES], list(bench_wire.MODES))

    def test_too_few_rooms(self) -> None:
        terminal = Terminal.in_memory()
        self.assertEqual(start(["bench", "wire", "--rooms", "9"], terminal), 1)
        self.assertIn("--rooms: at least 10", terminal.errors())

    def test_without_synapse(self) -> None:
        """It says how to install it."""

        def missing(_: ThrowawayHomeserver) -> None:
            raise SynapseMissing("no Synapse")

        self.patch(ThrowawayHomeserver, "start", missing)
        terminal = Terminal.in_memory()
        self.assertEqual(start(["bench", "wire"], terminal), 1)
        self.assertIn("pip install 'synapse-lb[server]'", terminal.errors())
        self.assertEqual(terminal.output(), b"")
