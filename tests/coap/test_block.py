# SPDX-License-Identifier: AGPL-3.0-or-later
"""Block option values (RFC 7959 section 2.2, and those of the examples of section 3)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.block import MAX_BLOCK_NUMBER, Block, block_size, largest_szx
from synapse_lb.coap.errors import BlockOptionError, OptionError
from synapse_lb.coap.numbers import Code
from tests.coap.strategies import PROPERTY

BLOCKS = st.builds(Block, st.integers(0, MAX_BLOCK_NUMBER), st.booleans(), st.integers(0, 6))


class BlockValueTests(SynchronousTestCase):
    def test_values(self) -> None:
        """NUM/M/SZX as RFC 7959 section 3 writes it (`num/more/size`), against the bytes of section 2.2."""
        for block, size, offset, encoded in (
            (Block(0, False, 0), 16, 0, ""),
            (Block(0, True, 0), 16, 0, "08"),
            (Block(0, False, 6), 1024, 0, "06"),
            (Block(0, True, 3), 128, 0, "0b"),
            (Block(1, True, 3), 128, 128, "1b"),
            (Block(2, False, 3), 128, 256, "23"),
            (Block(0, False, 2), 64, 0, "02"),
            (Block(5, False, 2), 64, 320, "52"),
            (Block(15, True, 6), 1024, 15360, "fe"),
            (Block(16, False, 6), 1024, 16384, "0106"),
            (Block(4095, True, 6), 1024, 4193280, "fffe"),
            (Block(4096, False, 0), 16, 65536, "010000"),
            (Block(MAX_BLOCK_NUMBER, True, 6), 1024, 1073740800, "fffffe"),
        ):
            self.assertEqual(block.encode().hex(), encoded)
            self.assertEqual(Block.decode(bytes.fromhex(encoded)), block)
            self.assertEqual((block.size, block.offset), (size, offset))

    def test_leading_zero_bytes_are_read(self) -> None:
        self.assertEqual(Block.decode(b"\x00\x00\x0e"), Block(0, True, 6))

    def test_reserved_szx(self) -> None:
        """RFC 7959 section 2.2: must lead to a 4.00 on reception, and must not be sent."""
        for value in (b"\x07", b"\x0f", b"\xff\xff\xff"):
            error = self.assertRaises(BlockOptionError, Block.decode, value)
            self.assertEqual(error.wire_code, Code.BAD_REQUEST)
        self.assertRaises(OptionError, Block(0, False, 7).encode)

    def test_too_long(self) -> None:
        self.assertRaises(BlockOptionError, Block.decode, b"\x00\x00\x00\x06")

    def test_number_out_of_range(self) -> None:
        self.assertRaises(OptionError, Block(MAX_BLOCK_NUMBER + 1, False, 6).encode)
        self.assertRaises(OptionError, Block(-1, False, 6).encode)

    @PROPERTY
    @given(BLOCKS)
    def test_round_trip(self, block: Block) -> None:
        self.assertEqual(Block.decode(block.encode()), block)

    @PROPERTY
    @given(st.binary(max_size=5))
    def test_any_value_is_a_block_or_an_error(self, value: bytes) -> None:
        try:
            block = Block.decode(value)
        except BlockOptionError:
            self.assertTrue(len(value) > 3 or value[-1] & 0x07 == 7)
        else:
            self.assertEqual(block.encode(), value.lstrip(b"\x00"))


class SizeTests(SynchronousTestCase):
    def test_sizes(self) -> None:
        self.assertEqual([block_size(szx) for szx in range(7)], [16, 32, 64, 128, 256, 512, 1024])

    def test_largest(self) -> None:
        for size, szx in ((0, None), (15, None), (16, 0), (31, 0), (32, 1), (1023, 5), (1024, 6), (65535, 6)):
            self.assertEqual(largest_szx(size), szx)

    def test_late_negotiation_keeps_the_offset(self) -> None:
        """RFC 7959 section 3.1 figure 4: after block 0 of 128 bytes the client goes on with 2/0/64."""
        self.assertEqual(Block(1, False, 3).with_szx(2), Block(2, False, 2))
        self.assertEqual(Block(2, True, 2).with_szx(3), Block(1, True, 3))

    def test_an_offset_that_the_size_does_not_divide(self) -> None:
        self.assertRaises(OptionError, Block(1, False, 2).with_szx, 3)
        self.assertRaises(OptionError, Block(0, False, 2).with_szx, 7)

    @PROPERTY
    @given(BLOCKS, st.integers(0, 6))
    def test_with_szx_keeps_offset_and_more(self, block: Block, szx: int) -> None:
        if block.offset % block_size(szx):
            self.assertRaises(OptionError, block.with_szx, szx)
        else:
            other = block.with_szx(szx)
            self.assertEqual((other.offset, other.more, other.szx), (block.offset, block.more, szx))
