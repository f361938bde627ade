# SPDX-License-Identifier: AGPL-3.0-or-later
"""The fuzz targets on their corpora, on changed copies of them, and for some seconds under atheris."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.fuzz.seeds import seeds
from tests.fuzz.targets import CORPUS, TARGETS, corpus

SECONDS: Final = int(os.environ.get("SYNAPSE_LB_FUZZ_SECONDS", "3"))
"""How long atheris has for each target."""

SEED: Final = int(os.environ.get("SYNAPSE_LB_FUZZ_SEED", "1"))
"""What atheris draws from: the same in each run, so that a change is judged by what it changed. 0 draws anew."""

CHANGED: Final = 150
"""Changed copies that are tried of the inputs of a target, without atheris."""

MAX_CORPUS: Final = 120_000
"""Bytes of all corpora together: they are there to begin with, not to be a result."""


def changed(inputs: list[bytes], random: random.Random) -> bytes:
    """Two inputs spliced together, with some bytes changed."""
    first, second = random.choice(inputs), random.choice(inputs)
    data = bytearray(first[: random.randint(0, len(first))] + second[random.randint(0, len(second)) :])
    for _ in range(random.randint(0, 4)):
        if data:
            data[random.randrange(len(data))] = random.choice((0, 1, 0x7F, 0xFF, random.randrange(256)))
    return bytes(data)


class Corpora(SynchronousTestCase):
    """Without atheris, the same on each machine."""

    def test_each_target_has_its_corpus(self) -> None:
        self.assertEqual({path.name for path in CORPUS.iterdir()}, set(TARGETS))
        self.assertEqual(set(seeds()), set(TARGETS))
        self.assertLess(sum(len(data) for name in TARGETS for data in corpus(name)), MAX_CORPUS)

    def test_the_seeds_are_what_the_script_writes(self) -> None:
        for name, inputs in seeds().items():
            written = [path.read_bytes() for path in sorted((CORPUS / name).glob("seed-*"))]
            self.assertEqual(written, inputs, name)


def _replay(name: str) -> Callable[[Corpora], None]:
    def test(self: Corpora) -> None:
        inputs, target, choice = corpus(name), TARGETS[name], random.Random(name)
        for data in [*inputs, b"", *(changed(inputs, choice) for _ in range(CHANGED))]:
            try:
                target.run(data)
            except Exception as error:
                raise AssertionError(f"{name} does not hold for {data.hex()}") from error

    return test


class Guided(SynchronousTestCase):
    """Under atheris, for a short time."""

    def setUp(self) -> None:
        try:
            import atheris  # noqa: F401  only to see that it is there
        except ImportError as error:
            raise SkipTest(f"atheris is not installed: {error}") from None


def _fuzz(name: str) -> Callable[[Guided], None]:
    def test(self: Guided) -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "-m",
                "tests.fuzz.run",
                name,
                "--seconds",
                str(SECONDS),
                "--seed",
                str(SEED),
            ]
            done = subprocess.run(
                [*command, "--artifacts", folder],
                capture_output=True,
                text=True,
                timeout=SECONDS + 120,
                cwd=Path(__file__).parent.parent.parent,
            )
            found = {path.name: path.read_bytes().hex() for path in Path(folder).iterdir()}
        self.assertEqual(done.returncode, 0, f"{found}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        runs = re.search(r"Done (\d+) runs", done.stderr + done.stdout)
        assert runs is not None, done.stderr
        self.assertGreater(int(runs[1]), len(corpus(name)))

    return test


for _name in TARGETS:
    setattr(Corpora, f"test_{_name}", _replay(_name))
    setattr(Guided, f"test_{_name}", _fuzz(_name))
