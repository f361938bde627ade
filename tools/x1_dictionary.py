# SPDX-License-Identifier: AGPL-3.0-or-later
"""Trains x1's preset dictionary on generated Matrix traffic, and writes it as a module of the package.

    python -m tools.x1_dictionary gather FILE...    keeps these corpora of `tools.x1_corpus` as what is learned from
    python -m tools.x1_dictionary write             synapse_lb/msc3079/x1/dictionary.py, from what was kept
    python -m tools.x1_dictionary digest            what `write` would write: bytes and SHA-256

What was kept lies beside this file, so that the same dictionary comes out on every machine. The corpora must come from
different seeds: only what at least two of them have in common is learned, so no text or id of one of them is.
A dictionary that is in use never changes: another one would be another version of x1.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import json
import lzma
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from synapse_lb.msc3079.x1.aliases import AliasBook, Side
from synapse_lb.msc3079.x1.encoder import X1Encoder

TRAFFIC: Final = Path(__file__).resolve().parent / "x1_traffic.jsonl.xz"
MODULE: Final = Path(__file__).resolve().parent.parent / "synapse_lb" / "msc3079" / "x1" / "dictionary.py"

SIZE: Final = 8192
"""Bytes of the dictionary: each body's compression has to read it."""

GRAM: Final = 6
"""Length of the pieces that are counted."""

LEAST_BODIES: Final = 3
MOST_COUNTED: Final = 24
"""In how many bodies a piece must be to be learned, and beyond how many it is worth no more."""

LONGEST: Final = 512
"""Bytes of a run that are taken at a time."""


def gather(files: Sequence[str]) -> None:
    """Keep corpora: the number of its corpus and a body on each line, each body once."""
    lines: dict[str, None] = {}
    for number, file in enumerate(files):
        for line in Path(file).read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            for body in (entry["request"], entry["answer"]):
                if body:
                    lines[json.dumps([number, body], ensure_ascii=False, separators=(",", ":"))] = None
    TRAFFIC.write_bytes(lzma.compress("\n".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME))


def samples() -> Iterator[tuple[int, bytes]]:
    """The number of the corpus and the CBOR of each body, as it is late in an association."""
    books: dict[int, AliasBook] = {}
    for line in lzma.decompress(TRAFFIC.read_bytes()).decode().splitlines():
        corpus, body = json.loads(line)
        book = books.setdefault(corpus, AliasBook(Side.SERVER))
        encoder = X1Encoder(book, lossy=False)
        encoder.encode(body)
        book.confirm(encoder.definitions)
        yield corpus, X1Encoder(book, lossy=False).encode(body)


def grams(data: bytes) -> Iterator[bytes]:
    """Each piece of `GRAM` bytes."""
    return (data[at : at + GRAM] for at in range(len(data) - GRAM + 1))


def worth(bodies: Sequence[tuple[int, bytes]]) -> dict[bytes, int]:
    """What each piece is worth that more than one corpus has: in how many bodies it is."""
    counts: Counter[bytes] = Counter()
    seen: dict[bytes, int] = {}
    for corpus, data in bodies:
        pieces = set(grams(data))
        counts.update(pieces)
        for piece in pieces:
            seen[piece] = seen.get(piece, 0) | 1 << corpus
    return {
        piece: min(count, MOST_COUNTED)
        for piece, count in counts.items()
        if count >= LEAST_BODIES and seen[piece] & seen[piece] - 1
    }


def runs(data: bytes, values: dict[bytes, int]) -> Iterator[bytes]:
    """The parts of a body that consist of pieces with a worth."""
    start = None
    for at in range(len(data) - GRAM + 2):
        good = at <= len(data) - GRAM and data[at : at + GRAM] in values
        if good and start is None:
            start = at
        if start is not None and (not good or at - start >= LONGEST):
            yield data[start : at + GRAM - 1]
            start = at if good else None


def train(bodies: Sequence[tuple[int, bytes]], size: int = SIZE) -> bytes:
    """A dictionary: the runs that are worth most for their length, the best at the end, where it is nearest."""
    values = worth(bodies)
    candidates = dict.fromkeys(run for _, data in bodies for run in runs(data, values))
    heap = [(-score(run, values), order, run) for order, run in enumerate(candidates)]
    heapq.heapify(heap)
    taken: list[bytes] = []
    total = 0
    while heap and total < size:
        _, order, run = heapq.heappop(heap)
        rest = list(runs(run, values))
        if rest != [run]:  # a part of it has been taken meanwhile
            for part in rest:
                heapq.heappush(heap, (-score(part, values), order, part))
            continue
        now = score(run, values)
        if heap and now < -heap[0][0]:
            heapq.heappush(heap, (-now, order, run))
            continue
        taken.append(run)
        total += len(run)
        for piece in grams(run):
            values.pop(piece, None)
    return b"".join(reversed(taken))[-size:]


def score(run: bytes, values: dict[bytes, int]) -> float:
    """What a run is worth, for each of its bytes."""
    return sum(values.get(piece, 0) for piece in set(grams(run))) / (len(run) + GRAM)


def module(dictionary: bytes) -> str:
    """The source of the module that holds a dictionary."""
    encoded = base64.b85encode(dictionary).decode("ascii")
    lines = "\n".join(f'    b"{encoded[at : at + 100]}"' for at in range(0, len(encoded), 100))
    return f'''# SPDX-License-Identifier: AGPL-3.0-or-later
"""The preset dictionary of x1's compression (RFC 1951; zlib's `zdict`), in base 85 (RFC 1924's alphabet).

Written by `tools.x1_dictionary`. A dictionary that is in use never changes.
"""

from __future__ import annotations

from base64 import b85decode
from typing import Final

DIGEST: Final = "{hashlib.sha256(dictionary).hexdigest()}"
"""SHA-256 of the dictionary."""

DICTIONARY: Final = b85decode(
{lines}
)
"""What has been sent, as it were, before each compressed body."""
'''


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments say; see the module's docstring."""
    if arguments[:1] == ["gather"] and len(arguments) > 2:
        gather(arguments[1:])
        return 0
    if list(arguments) in (["write"], ["digest"]):
        dictionary = train(list(samples()))
        print(f"{len(dictionary)} bytes, SHA-256 {hashlib.sha256(dictionary).hexdigest()}")
        if arguments[0] == "write":
            MODULE.write_text(module(dictionary), encoding="utf-8")
        return 0
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
