# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb check` against a real Synapse, and against servers where something is wrong."""

from __future__ import annotations

import contextlib
import io
import json
import socket
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.cli.check_report import Report, Verdict
from synapse_lb.cli.main import start
from synapse_lb.cli.terminal import Terminal
from synapse_lb.testing.throwaway import ThrowawayHomeserver
from tests.e2e.harness import SynapseTestCase, reactor


async def check(*arguments: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Run the command: exit status, its JSON, and the verdicts by name."""
    terminal = Terminal.in_memory(reactor=reactor)
    status = start(["check", "--json", *arguments], terminal)
    status = status if isinstance(status, int) else await status
    value = json.loads(terminal.output() or b"{}")
    return status, value, {each["name"]: each["verdict"] for each in value.get("checks", ())}


class GoodServerTests(SynapseTestCase):
    """A homeserver where all is well."""

    def cacert(self) -> tuple[str, str]:
        """Trust its certificate."""
        return "--cacert", str(self.homeserver.certificate_path)

    async def test_everything(self) -> None:
        """From the name on, as a client does."""
        user = self.user()
        status, value, verdicts = await check(
            *self.cacert(), "--token", user.token, self.homeserver.https_url
        )
        wanted = [
            "discovery",
            "advertised",
            "udp",
            "rtt",
            "certificate",
            "trust",
            "versions",
            "mtu",
            "q-block",
            "x1",
            "observe",
            "resumption",
        ]
        self.assertEqual(verdicts, dict.fromkeys(wanted, "ok"), json.dumps(value, indent=1))
        self.assertEqual((status, value["verdict"]), (0, "ok"))
        self.assertNotIn(user.token, json.dumps(value))
        texts = {each["name"]: each["text"] for each in value["checks"]}
        self.assertIn("localhost", texts["certificate"])
        self.assertIn("days", texts["certificate"])

    async def test_a_port_without_discovery(self) -> None:
        """As text, for people."""
        terminal = Terminal.in_memory(reactor=reactor)
        where = f"127.0.0.1:{self.homeserver.ports.lowbandwidth}"
        status = start(["check", *self.cacert(), where], terminal)
        assert not isinstance(status, int)
        self.assertEqual(await status, 0)
        text = terminal.output().decode()
        self.assertIn("skipped  observe", text)
        self.assertTrue(text.endswith(f"Low-bandwidth Matrix at {where} works.\n"), text)
        self.assertNotIn("discovery", text)

    async def test_a_certificate_of_nobody(self) -> None:
        """The system's authorities do not know it; a wrong pin does not fit, the right one does."""
        where = f"127.0.0.1:{self.homeserver.ports.lowbandwidth}"
        user = self.user()
        status, value, verdicts = await check("--token", user.token, where)
        self.assertEqual((status, verdicts["trust"], verdicts["versions"]), (1, "failed", "ok"))
        # The token is for the right server only.
        self.assertEqual(verdicts["observe"], "skipped")
        coap = [line for line in self.logged().splitlines() if "synapse.access.coap" in line]
        self.assertGreater(len(coap), 2)
        self.assertEqual([line for line in coap if user.user_id in line], [])
        advice = next(each["advice"] for each in value["checks"] if each["name"] == "trust")
        self.assertIn("--pin", advice)
        text = next(each["text"] for each in value["checks"] if each["name"] == "certificate")
        pin = text.rpartition("SHA-256 ")[2]
        self.assertEqual((await check("--pin", pin, where))[0], 0)
        self.assertEqual((await check("--pin", "00" * 32, where))[2]["trust"], "failed")

    async def test_a_token_of_nobody(self) -> None:
        where = f"127.0.0.1:{self.homeserver.ports.lowbandwidth}"
        status, value, verdicts = await check(*self.cacert(), "--token", "syt_nobody", where)
        self.assertEqual((status, verdicts["observe"], verdicts["resumption"]), (1, "failed", "ok"))
        self.assertNotIn("syt_nobody", json.dumps(value))


class BadServerTests(SynapseTestCase):
    """What can be wrong."""

    async def test_nobody_answers(self) -> None:
        """A UDP port that drops everything."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            where = f"127.0.0.1:{silent.getsockname()[1]}"
            status, value, verdicts = await check("--timeout", "0.5", where)
        self.assertEqual((status, verdicts), (1, {"udp": "failed"}))
        self.assertIn("firewall", value["checks"][0]["advice"])

    async def test_no_https(self) -> None:
        status, value, verdicts = await check("--timeout", "5", "https://127.0.0.1:1")
        self.assertEqual((status, verdicts), (1, {"discovery": "failed"}))
        self.assertEqual(value["verdict"], "failed")

    async def test_switched_off(self) -> None:
        """What is off is said to be so, and is no failure; with advertise: false a client does not find it."""
        options = {"observe": False, "x1": False, "advertise": False, "tuning": {"q_block": False}}
        homeserver = ThrowawayHomeserver(lowbandwidth_options=options)
        self.addCleanup(homeserver.stop)
        homeserver.start()
        trust = "--cacert", str(homeserver.certificate_path)
        status, value, verdicts = await check(*trust, homeserver.https_url)
        self.assertEqual((status, verdicts), (1, {"discovery": "ok", "advertised": "failed"}), value)
        status, value, verdicts = await check(*trust, f"localhost:{homeserver.ports.lowbandwidth}")
        self.assertEqual(status, 0, value)
        self.assertEqual([verdicts[name] for name in ("observe", "x1", "q-block")], ["skipped"] * 3)

    async def test_arguments(self) -> None:
        for arguments in (("--cacert", "x", "--pin", "y", "a"), ("--pin", "zz", "a"), ("https://",)):
            status, value, _ = await check(*arguments)
            self.assertEqual((status, value), (2, {}), arguments)
        with contextlib.redirect_stderr(io.StringIO()), self.assertRaises(SystemExit) as caught:
            await check("--timeout", "never", "a")
        self.assertEqual(caught.exception.code, 2)


class ReportTests(SynchronousTestCase):
    """What is written."""

    def test_the_worst_counts(self) -> None:
        report = Report("example.com")
        for verdict, wanted in (
            (Verdict.SKIPPED, Verdict.OK),
            (Verdict.WARNING, Verdict.WARNING),
            (Verdict.FAILED, Verdict.FAILED),
            (Verdict.OK, Verdict.FAILED),
        ):
            report.add("x", verdict, "text")
            self.assertEqual(report.verdict, wanted)

    def test_nothing_of_the_server_drives_the_terminal(self) -> None:
        report = Report("a\x1b[2J")
        report.add("x", Verdict.FAILED, "a\x1b[31m\nb", "c\r")
        self.assertNotRegex(report.text().replace("\n", ""), r"[\x00-\x1f]")
        self.assertIn("failed   x            a?[31m?b\n", report.text())
