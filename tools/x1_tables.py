# SPDX-License-Identifier: AGPL-3.0-or-later
"""Counts the keys and values of a corpus, as a proposal for tables, and writes x1's tables as they are.

    python -m tools.x1_tables count FILE...    keys, then values, by what they would save, with their number
    python -m tools.x1_tables write            docs/x1_tables.tsv from the tables of the package

A FILE is what `tools.x1_corpus` writes. The tables of a released version never change; a new version would begin with
this count.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from synapse_lb.msc3079.x1 import keys, paths, templates, values

TABLES: Final = Path(__file__).resolve().parent.parent / "docs" / "x1_tables.tsv"

LEAST_BODIES: Final = 3
"""In how many bodies a key or value must be."""


def walk(value: Any) -> Iterator[tuple[str, bool]]:
    """Each text of a JSON value, and whether it is a key."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, True
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)
    elif isinstance(value, str):
        yield value, False


def count(files: Sequence[str]) -> tuple[Counter[str], Counter[str]]:
    """The bytes that a number of two bytes would save: of each key, of each value."""
    saved: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    bodies: Counter[tuple[str, bool]] = Counter()
    for file in files:
        with Path(file).open(encoding="utf-8") as lines:
            for line in lines:
                entry = json.loads(line)
                for body in (entry["request"], entry["answer"]):
                    texts = list(walk(body))
                    bodies.update(set(texts))
                    for text, is_key in texts:
                        saved[0 if is_key else 1][text] += len(text.encode()) - 1
    for which, is_key in ((0, True), (1, False)):
        for text in list(saved[which]):
            if bodies[text, is_key] < LEAST_BODIES or text[:1] in ("$", "!", "@"):
                del saved[which][text]
    return saved


def rows() -> Iterator[str]:
    """All tables, one row for each entry: table, number, text."""
    for number, key in sorted(keys.INTEGER_TO_KEY.items(), key=lambda row: (row[0] < 0, abs(row[0]))):
        yield f"key\t{number}\t{key}"
    for number, text in sorted(values.SIMPLE_TO_VALUE.items()):
        yield f"value\t{number}\t{text}"
    for tag, template in enumerate(templates.TEMPLATES):
        for key, default in template:
            text = "" if default is templates.NO_DEFAULT else json.dumps(default, separators=(",", ":"))
            yield f"template\t{tag}\t{key}\t{text}"
    for code, path in enumerate(paths.PATHS):
        yield f"path\t{code}\t{path}"


def text() -> str:
    """The contents of docs/x1_tables.tsv."""
    return "table\tnumber\ttext\tdefault\n" + "".join(f"{row}\n" for row in rows())


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments say; see the module's docstring."""
    if arguments[:1] == ["count"]:
        for name, table, saved in zip(
            ("key", "value"), (keys.KEY_TO_INTEGER, values.VALUE_TO_SIMPLE), count(arguments[1:]), strict=True
        ):
            for entry, size in saved.most_common():
                print(f"{name}\t{size}\t{table.get(entry, '-')}\t{entry}")
        return 0
    if list(arguments) == ["write"]:
        TABLES.write_text(text(), encoding="utf-8")
        return 0
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
