# SPDX-License-Identifier: AGPL-3.0-or-later
"""The order of notifications (RFC 7641 section 3.4) and the values of the Observe option."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.observe import DEREGISTER, REGISTER, following, is_newer, wanted
from synapse_lb.coap.options import Options, encode_uint

NUMBERS = st.integers(0, (1 << 24) - 1)
HALF = 1 << 23


class Order(SynchronousTestCase):
    """V1 and T1 of the last notification against V2 and T2 of the one that comes in."""

    def test_at_the_edges(self) -> None:
        for previous, number, newer in (
            (0, 0, False),
            (0, 1, True),
            (1, 0, False),
            (0, HALF - 1, True),
            (0, HALF, False),
            (0, HALF + 1, False),
            (HALF, 0, False),
            (HALF + 1, 0, True),
            ((1 << 24) - 1, 0, True),
            (0, (1 << 24) - 1, False),
        ):
            self.assertIs(is_newer(number, 10.0, previous, 10.0), newer, (previous, number))
            self.assertIs(is_newer(number, 138.0, previous, 10.0), newer, (previous, number))
            self.assertTrue(is_newer(number, 138.1, previous, 10.0))

    @given(NUMBERS, st.integers(1, HALF - 1))
    def test_whatever_follows_is_newer(self, number: int, steps: int) -> None:
        """Around the wrap and elsewhere; and never the other way round."""
        later = (number + steps) % (1 << 24)
        self.assertTrue(is_newer(later, 0.0, number, 0.0))
        self.assertFalse(is_newer(number, 0.0, later, 0.0))

    @given(NUMBERS)
    def test_following(self, number: int) -> None:
        after = following(number)
        self.assertTrue(0 <= after < 1 << 24)
        self.assertTrue(is_newer(after, 0.0, number, 0.0))


class Wanted(SynchronousTestCase):
    """What a request wants by its Observe option (section 2)."""

    def test_methods_and_values(self) -> None:
        for method in range(1, 32):
            for value, meaning in ((0, REGISTER), (1, DEREGISTER), (2, None), (0xFFFFFF, None)):
                options = Options.of((OptionNumber.OBSERVE, encode_uint(value)))
                expected = meaning if method in (Code.GET, Code.FETCH) else None
                self.assertEqual(wanted(method, options), expected, (method, value))
            self.assertIsNone(wanted(method, Options()))
