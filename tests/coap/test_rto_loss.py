# SPDX-License-Identifier: AGPL-3.0-or-later
"""The retransmission timeout tells loss from delay: a lossy link does not ratchet it up, a slow one does."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.rto import RetransmissionTimeout
from synapse_lb.coap.tuning import Tuning

TUNING = Tuning(min_rto=0.1, ack_timeout=2.0)


def deliver(rto: RetransmissionTimeout, source: random.Random, rtt: float, loss: float) -> tuple[float, int]:
    """Deliver one message, as the reliability layer does.

    Returns:
        Seconds that it took, and the copies after the first transmission.
    """
    timeout = rto.draw(source)
    now, last, copies = 0.0, 0.0, 0
    arrivals = [] if source.random() < loss else [rtt]
    while not arrivals or min(arrivals) > last + timeout:
        now = last = last + timeout
        timeout = rto.doubled(timeout)
        rto.backed_off(timeout / TUNING.ack_random_factor)
        copies += 1
        if source.random() >= loss:
            arrivals.append(now + rtt)
    now = min(arrivals)
    if copies:
        rto.repeated(now, now - last, copies)
    else:
        rto.sample(now)
    return now, copies


class LossAndDelayTests(SynchronousTestCase):
    def test_a_fifth_lost_each_way_does_not_ratchet_the_timeout(self) -> None:
        """0.36 of the exchanges fail: with rule 5.7 of RFC 6298 alone, 10,000 of them take hours."""
        source = random.Random(1)
        rto = RetransmissionTimeout(TUNING)
        rto.seed(0.02)
        taken = sum(deliver(rto, source, 0.02, 0.36)[0] for _ in range(10_000))
        self.assertLess(taken, 10_000 * 0.5)

    def test_a_link_that_has_become_slow_is_learned(self) -> None:
        """From every factor above the timeout: soon no copy is needed any more."""
        for factor in (1.1, 1.5, 1.9, 2.5, 4, 10, 64, 500):
            source = random.Random(2)
            rto = RetransmissionTimeout(TUNING)
            for _ in range(50):
                rto.sample(0.02)
            rtt = 0.1 * factor
            copies = [deliver(rto, source, rtt, 0.0)[1] for _ in range(40)]
            self.assertLessEqual(sum(copies), 16, (factor, copies))
            self.assertEqual(copies[20:], [0] * 20, (factor, copies))

    def test_without_a_measurement_the_doubled_timeout_stays(self) -> None:
        rto = RetransmissionTimeout(TUNING)
        rto.backed_off(4.0)
        rto.repeated(2.1, 0.1, 1)
        self.assertEqual(rto.timeout, 4.0)

    def test_an_early_answer_to_the_last_copy_is_a_sign_of_loss(self) -> None:
        rto = RetransmissionTimeout(TUNING)
        for _ in range(50):
            rto.sample(0.02)
        rto.backed_off(0.8)
        rto.repeated(0.72, 0.02, 3)
        self.assertEqual(rto.timeout, 0.1)
        rto.backed_off(0.2)
        rto.repeated(0.12, 0.02, 1)
        self.assertAlmostEqual(rto.timeout, 0.75 * 0.1 + 0.25 * 1.5 * 0.12)

    def test_a_late_one_is_a_sign_of_delay(self) -> None:
        rto = RetransmissionTimeout(TUNING)
        for _ in range(50):
            rto.sample(0.02)
        rto.backed_off(0.8)
        rto.repeated(1.0, 0.3, 3)
        self.assertEqual(rto.timeout, 0.8)

    def test_a_fixed_timeout_stays_fixed(self) -> None:
        rto = RetransmissionTimeout(Tuning(adaptive_rto=False))
        rto.repeated(5.0, 0.1, 1)
        self.assertEqual(rto.timeout, 2.0)

    def test_bounded_whatever_was_measured(self) -> None:
        source = random.Random(1)
        rto = RetransmissionTimeout(TUNING)
        rto.sample(300.0)
        self.assertTrue(all(rto.draw(source) == 120.0 for _ in range(100)))
        self.assertLessEqual(rto.draw(source, allowance=20.0), 140.0)

    def test_what_no_round_trip_exceeds(self) -> None:
        """A bound is the timeout until something was measured, if it is longer than the default."""
        rto = RetransmissionTimeout(TUNING)
        rto.at_most(0.5)
        self.assertEqual(rto.timeout, 2.0)
        rto.at_most(30.0)
        self.assertEqual((rto.timeout, rto.smoothed_rtt), (30.0, None))
        rto.sample(0.2)
        self.assertAlmostEqual(rto.timeout, 0.6)
        rto.at_most(30.0)
        self.assertAlmostEqual(rto.timeout, 0.6)

    def test_a_first_message_that_was_repeated(self) -> None:
        """Nothing else is known: the next one is waited for longer than the acknowledgement of this one took."""
        rto = RetransmissionTimeout(TUNING)
        rto.backed_off(4.0)
        rto.repeated(9.0, 0.5, 2)
        self.assertEqual(rto.timeout, 4.0)  # two losses on a fast link, perhaps
        rto.repeated(9.0, 3.0, 2)
        self.assertEqual(rto.timeout, 13.5)
        rto = RetransmissionTimeout(Tuning(adaptive_rto=False))
        rto.repeated(9.0, 2.0, 2)
        rto.at_most(9.0)
        self.assertEqual(rto.timeout, 2.0)
