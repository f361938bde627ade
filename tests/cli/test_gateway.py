# SPDX-License-Identifier: AGPL-3.0-or-later
"""The arguments of `synapse-lb gateway`; what it does is in `tests/standalone` and `tests/e2e`."""

from __future__ import annotations

import argparse
import re
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.cli.errors import EXIT_CERTIFICATE_FILE, EXIT_USAGE, CommandError
from synapse_lb.cli.gateway import read_options, run
from synapse_lb.cli.main import build_parser
from synapse_lb.cli.terminal import Terminal
from synapse_lb.standalone.service import ServiceOptions
from synapse_lb.txdtls.context import ClientVerification
from tests.project.sources import ROOT

NEEDED = ("--local", "http://localhost:8008", "--tls-cert", "c.pem", "--tls-key", "k.pem")


def parsed(*arguments: str) -> argparse.Namespace:
    """The arguments, with those that are needed."""
    return build_parser(["gateway"]).parse_args(["gateway", *NEEDED, *arguments])


class DocumentTests(SynchronousTestCase):
    def test_options(self) -> None:
        """`docs/gateway.md` names every option, and none that there is not; its defaults are the command's."""
        text = (ROOT / "docs" / "gateway.md").read_text().partition("## Options")[2].partition("\n## ")[0]
        named = set(re.findall(r"^\| `.*?(--[a-z-]+)", text, re.MULTILINE))
        with redirect_stdout(StringIO()) as printed:
            self.assertRaises(SystemExit, parsed, "--help")
        self.assertEqual(named, set(re.findall(r"(--[a-z-]+)", printed.getvalue())) - {"--help"})
        for name in ("timeout", "poll_timeout", "idle_timeout", "max_requests", "max_associations"):
            default = getattr(parsed(), name)
            row = next(
                line for line in text.splitlines() if line.startswith(f"| `--{name.replace('_', '-')} ")
            )
            self.assertTrue(row.endswith(f"; {default:g} |"), row)


class OptionsTests(SynchronousTestCase):
    def test_defaults(self) -> None:
        """The command's defaults are the service's own."""
        expected = ServiceOptions(local="http://localhost:8008", certificate_path="c.pem", key_path="k.pem")
        self.assertEqual(read_options(parsed()), expected)

    def test_all(self) -> None:
        options = read_options(
            parsed(
                *(
                    "--bind",
                    "[::1]:1234",
                    "--advertise",
                    "https://lb.example.com:8448/",
                    "--advertise-port",
                    "443",
                ),
                *(
                    "--no-tcp",
                    "--no-observe",
                    "--no-x1",
                    "--x-forwarded-for",
                    "--local-ca",
                    "ca.pem",
                    "--timeout",
                    "5",
                ),
                *(
                    "--poll-timeout",
                    "6.5",
                    "--idle-timeout",
                    "7",
                    "--max-requests",
                    "8",
                    "--max-associations",
                    "9",
                ),
            )
        )
        self.assertEqual(
            options,
            ServiceOptions(
                local="http://localhost:8008",
                certificate_path="c.pem",
                key_path="k.pem",
                address="::1",
                port=1234,
                advertise="https://lb.example.com:8448",
                advertise_port=443,
                tcp=False,
                forwarded_for=True,
                observe=False,
                x1=False,
                poll_timeout=6.5,
                timeout=5.0,
                max_requests=8,
                max_associations=9,
                idle_timeout=7.0,
                verification=ClientVerification.ca_file("ca.pem"),
            ),
        )

    def test_no_sense(self) -> None:
        for arguments in (
            ("--bind", "localhost:1"),
            ("--bind", "127.0.0.1"),
            ("--bind", "127.0.0.1:65536"),
            ("--bind", "127.0.0.1:x"),
            ("--advertise", "http://lb.example.com"),
            ("--advertise", "lb.example.com"),
            ("--advertise", "https://a?b"),
            ("--advertise", "https://a@b"),
            ("--advertise", "https://a:b"),
            ("--local", "ftp://a"),
            ("--no-tcp",),
        ):
            with self.subTest(arguments=arguments):
                error = self.assertRaises(CommandError, read_options, parsed(*arguments))
                self.assertEqual(error.exit_status, EXIT_USAGE)

    def test_numbers(self) -> None:
        for arguments in (
            ("--advertise-port", "0"),
            ("--advertise-port", "65536"),
            ("--timeout", "0"),
            ("--poll-timeout", "inf"),
            ("--idle-timeout", "nan"),
            ("--max-requests", "0"),
            ("--max-associations", "-1"),
        ):
            with self.subTest(arguments=arguments), redirect_stderr(StringIO()):
                error = self.assertRaises(SystemExit, parsed, *arguments)
                self.assertEqual(error.code, EXIT_USAGE)

    def test_no_certificate(self) -> None:
        error = self.assertRaises(CommandError, run, parsed(), Terminal.in_memory())
        self.assertEqual(error.exit_status, EXIT_CERTIFICATE_FILE)
        self.assertIn("c.pem", error.message)
