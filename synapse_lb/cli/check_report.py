# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `synapse-lb check` has found, as text and as JSON."""

from __future__ import annotations

import enum
from typing import Any

import attrs


class Verdict(enum.Enum):
    """Of one check."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@attrs.frozen
class Finding:
    """What one check has found.

    Attributes:
        name: of the check.
        verdict: how it went.
        text: what was seen, in one line.
        advice: what to do, in one line; empty where nothing is to be done.
    """

    name: str
    verdict: Verdict
    text: str
    advice: str = ""


@attrs.define
class Report:
    """All findings.

    Attributes:
        server: what was asked for.
        findings: in the order of the checks.
    """

    server: str
    findings: list[Finding] = attrs.field(factory=list)

    def add(self, name: str, verdict: Verdict, text: str, advice: str = "") -> None:
        """Add a finding; what the server said in it is made fit for a terminal."""
        self.findings.append(Finding(name, verdict, _printable(text), _printable(advice)))

    @property
    def failed(self) -> bool:
        """Whether something does not work."""
        return any(each.verdict is Verdict.FAILED for each in self.findings)

    @property
    def verdict(self) -> Verdict:
        """The worst of all."""
        if self.failed:
            return Verdict.FAILED
        warned = any(each.verdict is Verdict.WARNING for each in self.findings)
        return Verdict.WARNING if warned else Verdict.OK

    def text(self) -> str:
        """One line for each finding, one below for its advice, and the verdict."""
        lines = []
        for each in self.findings:
            lines.append(f"{each.verdict.value:8} {each.name:12} {each.text}")
            if each.advice:
                lines.append(f"{'':21} -> {each.advice}")
        meaning = {
            Verdict.OK: "works",
            Verdict.WARNING: "works, with warnings",
            Verdict.FAILED: "does not work",
        }
        lines.append(f"Low-bandwidth Matrix at {_printable(self.server)} {meaning[self.verdict]}.")
        return "\n".join(lines) + "\n"

    def value(self) -> dict[str, Any]:
        """For JSON."""
        checks = [{**attrs.asdict(each), "verdict": each.verdict.value} for each in self.findings]
        return {"server": self.server, "verdict": self.verdict.value, "checks": checks}


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
