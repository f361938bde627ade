# SPDX-License-Identifier: AGPL-3.0-or-later
"""Runs one fuzz target under atheris, which is guided by the coverage of this package's code.

    python -m tests.fuzz.run TARGET [--seconds N] [--seed N] [--corpus FOLDER] [--artifacts FOLDER]

The committed corpus is read, never written. New inputs are kept in `--corpus`, if given. An input that breaks the
invariant is kept in `--artifacts`, and the exit status is not 0.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["synapse_lb", "tests.fuzz"]):
    from tests.fuzz.targets import CORPUS, TARGETS


def main() -> None:
    """Parse the arguments and fuzz; libFuzzer ends the process."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument(
        "--seed", type=int, default=0, help="of the random numbers (default: another one each time)"
    )
    parser.add_argument("--corpus", type=Path, help="where new inputs are kept (default: nowhere)")
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"))
    arguments = parser.parse_args()
    target = TARGETS[arguments.target]
    arguments.artifacts.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as scratch:
        kept = arguments.corpus or Path(scratch)
        kept.mkdir(parents=True, exist_ok=True)
        print(f"{arguments.target}: {target.invariant}", flush=True)
        options = [
            f"-max_total_time={arguments.seconds}",
            f"-seed={arguments.seed}",
            f"-max_len={target.max_length}",
            "-rss_limit_mb=2048",
            "-timeout=10",
            "-print_final_stats=1",
            f"-artifact_prefix={arguments.artifacts}/fuzz-{arguments.target}-",
        ]
        atheris.Setup([sys.argv[0], *options, str(kept), str(CORPUS / arguments.target)], target.run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
