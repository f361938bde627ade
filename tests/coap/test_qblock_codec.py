# SPDX-License-Identifier: AGPL-3.0-or-later
"""Naming blocks (RFC 9177 section 4.4), the list of missing ones (section 5), and what is refused."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.block import Block
from synapse_lb.coap.errors import BlockOptionError, BlockwiseError, UnrecognizedOption
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.coap.qblock import (
    QBlocks,
    blocks_in,
    decode_missing,
    encode_missing,
    name_blocks,
    numbers_of,
)
from tests.coap.strategies import PROPERTY


def q2(*blocks: Block) -> Options:
    return Options(tuple((OptionNumber.Q_BLOCK2, block.encode()) for block in blocks))


class Reading(SynchronousTestCase):
    def test_none(self) -> None:
        self.assertIsNone(QBlocks.read(Options.of((OptionNumber.BLOCK2, b"\x06"))))

    def test_several(self) -> None:
        wanted = (Block(1, False, 6), Block(10, True, 6))
        self.assertEqual(QBlocks.read(q2(*wanted)), QBlocks(None, wanted))

    def test_with_block(self) -> None:
        """Section 4.1: 4.02."""
        for number in (OptionNumber.BLOCK1, OptionNumber.BLOCK2):
            options = q2(Block(0, True, 6)).with_option(number, b"\x06")
            error = self.assertRaises(UnrecognizedOption, QBlocks.read, options)
            self.assertEqual((error.number, error.wire_code), (number, Code.BAD_OPTION))

    def test_not_rising(self) -> None:
        """Section 4.4: 4.00."""
        for former, latter in (
            (Block(2, False, 6), Block(1, False, 6)),
            (Block(1, False, 6), Block(1, False, 6)),
            (Block(1, False, 6), Block(2, False, 5)),
        ):
            error = self.assertRaises(BlockwiseError, QBlocks.read, q2(former, latter))
            self.assertEqual(error.wire_code, Code.BAD_REQUEST)

    def test_reserved_size(self) -> None:
        for number in (OptionNumber.Q_BLOCK1, OptionNumber.Q_BLOCK2):
            self.assertRaises(BlockOptionError, QBlocks.read, Options.of((number, b"\x07")))

    def test_both_directions(self) -> None:
        upload = Options.of((OptionNumber.Q_BLOCK1, Block(3, True, 5).encode()))
        alone = QBlocks.read(upload)
        assert alone is not None
        self.assertEqual(alone.opening, Block(0, True, 5))
        both = QBlocks.read(upload.with_option(OptionNumber.Q_BLOCK2, Block(0, False, 6).encode()))
        assert both is not None
        self.assertEqual(both.opening, Block(0, False, 6))
        beyond = upload.with_option(OptionNumber.Q_BLOCK2, Block(1, False, 6).encode())
        self.assertEqual(self.assertRaises(BlockwiseError, QBlocks.read, beyond).wire_code, Code.BAD_REQUEST)


class Naming(SynchronousTestCase):
    def test_what_m_means(self) -> None:
        """Section 4.4: a single block, the rest of a set, a set."""
        for block, numbers in (
            (Block(3, False, 6), [3]),
            (Block(3, True, 6), [3, 4, 5, 6, 7, 8, 9]),
            (Block(10, True, 6), list(range(10, 20))),
            (Block(20, True, 6), [20, 21, 22]),
            (Block(23, True, 6), []),
            (Block(23, False, 6), []),
        ):
            self.assertEqual(numbers_of([block], 23, 10), numbers)

    def test_overlap(self) -> None:
        """Section 4.4: only one instance of a block, against amplification."""
        wanted = [Block(7, True, 6), Block(8, False, 6), Block(9, True, 6), Block(11, False, 6)]
        self.assertEqual(numbers_of(wanted, 100, 10), [7, 8, 9, 11])

    def test_no_more_than_a_set(self) -> None:
        """Whatever one request names, it yields MAX_PAYLOADS blocks."""
        wanted = [Block(number * 10 + 1, True, 6) for number in range(50)]
        self.assertEqual(numbers_of(wanted, 1000, 10), [*range(1, 10), 11])

    @PROPERTY
    @given(st.sets(st.integers(1, 60)), st.integers(1, 12), st.integers(0, 5))
    def test_there_and_back(self, chosen: set[int], max_payloads: int, tail: int) -> None:
        numbers = sorted(chosen)[:max_payloads]
        count = (max(numbers) if numbers else 0) + 1 + tail
        named = name_blocks(numbers, 6, count, max_payloads)
        self.assertEqual(numbers_of(named, count, max_payloads), numbers)
        self.assertLessEqual(len(named), len(numbers))

    def test_count(self) -> None:
        for size, count in ((0, 1), (1, 1), (1024, 1), (1025, 2), (10 * 1024, 10)):
            self.assertEqual(blocks_in(size, 6), count)


class Missing(SynchronousTestCase):
    def test_vectors(self) -> None:
        """RFC 8949 appendix A: the shortest forms, one behind the other."""
        numbers = [0, 1, 10, 23, 24, 25, 100, 1000, 1000000]
        encoded = bytes.fromhex("00 01 0a 17 1818 1819 1864 1903e8 1a000f4240")
        self.assertEqual(encode_missing(numbers, 100), encoded)
        self.assertEqual(decode_missing(encoded, 1000001), numbers)

    def test_room(self) -> None:
        """Section 5: what does not fit in one message is left out."""
        self.assertEqual(encode_missing([1, 24, 25], 4), b"\x01\x18\x18")
        self.assertEqual(encode_missing([1000], 2), b"")

    @PROPERTY
    @given(st.sets(st.integers(0, 0xFFFFF), min_size=1))
    def test_there_and_back(self, chosen: set[int]) -> None:
        numbers = sorted(chosen)
        self.assertEqual(decode_missing(encode_missing(numbers, 1 << 20), 1 << 20), numbers)

    @PROPERTY
    @given(st.binary(max_size=20), st.integers(1, 300))
    def test_anything(self, payload: bytes, count: int) -> None:
        """Whatever it is, it is a rising list in the body, or refused."""
        try:
            numbers = decode_missing(payload, count)
        except BlockwiseError:
            return
        self.assertEqual(numbers, sorted(set(numbers)))
        self.assertTrue(numbers[0] >= 0 and numbers[-1] < count)
