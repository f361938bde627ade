# SPDX-License-Identifier: AGPL-3.0-or-later
"""Timers, retransmission timeouts (RFC 6298, RFC 7252 section 4.2), and the table of exchange states."""

from __future__ import annotations

import random
from functools import partial

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.core import Core
from synapse_lb.coap.events import CoapRequest, RequestFailed, ResponseReceived
from synapse_lb.coap.exchange import TRANSITIONS, ClientExchange, IllegalTransition, State, Step
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.coap.peers import PeerSettings, PeerState
from synapse_lb.coap.rto import RetransmissionTimeout
from synapse_lb.coap.timers import Timer, TimerHeap
from synapse_lb.coap.tuning import Limits, Tuning
from tests.coap.lockstep import Script

GET = CoapRequest(Code.GET, Options.of((OptionNumber.URI_PATH, b"a")))


class Timers(SynchronousTestCase):
    """The heap."""

    def setUp(self) -> None:
        self.heap = TimerHeap()
        self.fired: list[tuple[object, float]] = []

    def _note(self, name: object, now: float) -> None:
        self.fired.append((name, now))

    def _set(self, name: object, deadline: float) -> Timer:
        return self.heap.schedule(deadline, partial(self._note, name))

    def test_order(self) -> None:
        for name, deadline in (("c", 3.0), ("a", 1.0), ("b1", 2.0), ("b2", 2.0)):
            self._set(name, deadline)
        self.assertEqual(self.heap.next_deadline(), 1.0)
        self.heap.run_due(0.9)
        self.assertEqual(self.fired, [])
        self.heap.run_due(2.0)
        self.assertEqual(self.fired, [("a", 2.0), ("b1", 2.0), ("b2", 2.0)])
        self.assertEqual((self.heap.next_deadline(), len(self.heap)), (3.0, 1))

    def test_a_timer_that_cancels_another(self) -> None:
        self.heap.schedule(1.0, lambda now: self.heap.cancel(other))
        other = self._set("other", 1.0)
        self.heap.run_due(5.0)
        self.assertEqual(self.fired, [])
        self.assertIsNone(self.heap.next_deadline())
        self.heap.cancel(other)
        self.heap.cancel(None)
        self.assertEqual(len(self.heap), 0)

    def test_a_timer_that_sets_another_that_is_due(self) -> None:
        def again(now: float) -> None:
            self._set("second", now)

        self.heap.schedule(1.0, again)
        self.heap.run_due(1.0)
        self.assertEqual(self.fired, [("second", 1.0)])

    @given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=400))
    def test_fires_what_was_not_cancelled(self, plan: list[tuple[float, bool]]) -> None:
        self.setUp()
        timers = [self._set(deadline, deadline) for deadline, _ in plan]
        for timer, (_, cancelled) in zip(timers, plan, strict=True):
            if cancelled:
                self.heap.cancel(timer)
        self.assertEqual(len(self.heap), sum(not cancelled for _, cancelled in plan))
        self.heap.run_due(100)
        expected = sorted(deadline for deadline, cancelled in plan if not cancelled)
        self.assertEqual([name for name, _ in self.fired], expected)
        self.assertIsNone(self.heap.next_deadline())

    def test_cancelled_timers_do_not_pile_up(self) -> None:
        heap = TimerHeap()
        keep = heap.schedule(1e9, lambda now: None)
        for number in range(10_000):
            heap.cancel(heap.schedule(number, lambda now: None))
        self.assertLess(len(heap._heap), 200)
        self.assertTrue(keep.active)
        self.assertEqual(heap.next_deadline(), 1e9)


class Estimation(SynchronousTestCase):
    """RFC 6298 section 2."""

    def test_first_sample(self) -> None:
        rto = RetransmissionTimeout(Tuning(min_rto=0.1))
        self.assertEqual(rto.timeout, 2.0)
        self.assertIsNone(rto.smoothed_rtt)
        rto.sample(0.4)
        self.assertEqual(rto.smoothed_rtt, 0.4)
        self.assertAlmostEqual(rto.timeout, 0.4 + 4 * 0.2)

    def test_further_samples(self) -> None:
        rto = RetransmissionTimeout(Tuning(min_rto=0.1))
        rto.sample(0.4)
        rto.sample(0.8)
        rttvar = 0.75 * 0.2 + 0.25 * 0.4
        self.assertAlmostEqual(rto.timeout, (0.875 * 0.4 + 0.125 * 0.8) + 4 * rttvar)

    def test_bounds(self) -> None:
        rto = RetransmissionTimeout(Tuning(min_rto=1.0, max_rto=60.0))
        rto.sample(0.001)
        self.assertEqual(rto.timeout, 1.0)
        rto = RetransmissionTimeout(Tuning(min_rto=1.0, max_rto=60.0))
        rto.sample(30)
        self.assertEqual(rto.timeout, 60.0)
        self.assertEqual(rto.doubled(60.0), 60.0)
        self.assertEqual(rto.doubled(80.0), 80.0)

    def test_seed_gives_way_to_measurements(self) -> None:
        rto = RetransmissionTimeout(Tuning())
        rto.seed(3.0)
        self.assertEqual(rto.smoothed_rtt, 3.0)
        rto.seed(30.0)
        self.assertEqual(rto.smoothed_rtt, 3.0)

    def test_backed_off_until_a_strong_sample(self) -> None:
        rto = RetransmissionTimeout(Tuning())
        rto.backed_off(8.0)
        self.assertEqual(rto.timeout, 8.0)
        rto.backed_off(4.0)
        self.assertEqual(rto.timeout, 8.0)
        rto.sample(0.5)
        self.assertEqual(rto.timeout, 1.5)

    def test_fixed(self) -> None:
        rto = RetransmissionTimeout(Tuning(adaptive_rto=False))
        rto.sample(10)
        rto.seed(10)
        rto.backed_off(10)
        self.assertEqual(rto.timeout, 2.0)
        self.assertEqual(rto.doubled(48.0), 96.0)

    @given(st.lists(st.floats(0, 1000), max_size=30), st.integers())
    def test_drawn_within_the_factor(self, samples: list[float], seed: int) -> None:
        tuning = Tuning()
        rto = RetransmissionTimeout(tuning)
        for sample in samples:
            rto.sample(sample)
        if samples:
            self.assertTrue(tuning.min_rto <= rto.timeout <= tuning.max_rto)
        drawn = rto.draw(random.Random(seed))
        self.assertGreaterEqual(drawn, rto.timeout)
        measured = 0.0 if rto.smoothed_rtt is None else rto.smoothed_rtt + 4 * rto._rttvar
        self.assertLessEqual(drawn, max(rto.timeout * tuning.ack_random_factor, measured))


class Measurement(SynchronousTestCase):
    """Which round trips are measured, and what becomes of a message."""

    def _exchange(self, script: Script, rtt: float, *, line: str = "ACK [$m] 2.05 Token=$t") -> None:
        script.bound.clear()
        script.endpoint.request("peer", GET, script.now)
        script.endpoint_sends("CON [$m] GET /a Token=$t")
        script.passes(rtt)
        script.peer_sends(line)

    def _first_wait(self, script: Script) -> float:
        """How long the endpoint waits before it sends a new message again."""
        script.bound.clear()
        exchange = script.endpoint.request("peer", CoapRequest(Code.DELETE), script.now)
        script.datagrams()
        start = script.now
        while not script.datagrams():
            script.until_timer()
        script.endpoint.cancel(exchange, script.now)
        return script.now - start

    def test_a_piggybacked_response_is_a_sample(self) -> None:
        script = Script(self, tuning=Tuning(separate_after=0, ack_random_factor=1.0))
        for _ in range(40):
            self._exchange(script, 1.0)
            script.event(ResponseReceived)
        self.assertAlmostEqual(self._first_wait(script), 1.0, places=2)

    def test_an_empty_ack_of_a_request_is_none(self) -> None:
        """The peer may have held it back."""
        script = Script(self, tuning=Tuning(ack_random_factor=1.0))
        self._exchange(script, 1.5, line="ACK [$m]")
        self.assertEqual(self._first_wait(script), 2.0)

    def test_a_retransmitted_message_is_none(self) -> None:
        """Karn's algorithm; but the doubled timeout stays for the next message."""
        script = Script(self, tuning=Tuning(ack_random_factor=1.0))
        script.endpoint.request("peer", GET, script.now)
        script.endpoint_sends("CON [$m] GET /a Token=$t")
        script.passes(2.1)
        script.endpoint_sends("CON [$m] GET /a Token=$t")
        script.peer_sends("ACK [$m] 2.05 Token=$t")
        script.event(ResponseReceived)
        self.assertEqual(self._first_wait(script), 4.0)

    def test_a_request_allows_for_an_ack_that_is_held_back(self) -> None:
        """An endpoint like this sends its empty ACK after `separate_after`: no copy before that."""
        script = Script(self, tuning=Tuning(ack_random_factor=1.0, min_rto=0.1))
        for _ in range(40):
            self._exchange(script, 0.1)
            script.event(ResponseReceived)
        self.assertAlmostEqual(self._first_wait(script), 1.6, places=2)

    def test_a_further_block_does_not(self) -> None:
        script = Script(self, tuning=Tuning(ack_random_factor=1.0, min_rto=0.1))
        for _ in range(40):
            self._exchange(script, 0.1)
            script.event(ResponseReceived)
        script.bound.clear()
        script.endpoint.request("peer", GET, script.now)
        script.endpoint_sends("CON [$m] GET /a Token=$t")
        script.passes(0.1)
        script.peer_sends("ACK [$m] 2.05 Token=$t 2:0/1/16", bytes(16))
        script.endpoint_sends("CON [$n] GET /a Token=$u 2:1/0/16")
        start = script.now
        script.until_timer()
        self.assertAlmostEqual(script.now - start, 0.1, places=1)
        script.endpoint_sends("CON [$n] GET /a Token=$u 2:1/0/16")

    def test_a_small_timeout_does_not_give_up_early(self) -> None:
        """Besides MAX_RETRANSMIT copies, MAX_TRANSMIT_SPAN (45 s) is used up."""
        script = Script(self, tuning=Tuning(ack_random_factor=1.0, min_rto=0.1, separate_after=0))
        script.endpoint.set_peer("peer", rtt=0.05, now=script.now)
        start = script.now
        script.endpoint.request("peer", GET, start)
        while (event := script.endpoint.next_event()) is None:
            script.until_timer()
        self.assertIsInstance(event, RequestFailed)
        self.assertGreaterEqual(script.now - start, Tuning(ack_random_factor=1.0).max_transmit_span)
        self.assertEqual(len(script.datagrams()), 8)

    def test_the_measurement_outlives_a_quiet_time_if_the_peer_was_set(self) -> None:
        script = Script(self, tuning=Tuning(ack_random_factor=1.0))
        script.endpoint.set_peer("peer", rtt=8.0, now=script.now)
        script.passes(1000)
        self.assertEqual(list(script.endpoint.peers), [])
        self.assertEqual(self._first_wait(script), 24.0 + 1.5)

    def test_dropping_the_peer_forgets_the_measurement(self) -> None:
        script = Script(self, tuning=Tuning(ack_random_factor=1.0))
        script.endpoint.set_peer("peer", rtt=8.0, now=script.now)
        script.endpoint.drop_peer("peer", script.now)
        self.assertEqual(self._first_wait(script), 2.0)

    def test_set_peer_is_checked(self) -> None:
        endpoint = Script(self).endpoint
        self.assertRaises(ValueError, endpoint.set_peer, "peer", max_message_size=63, now=0.0)
        self.assertRaises(ValueError, endpoint.set_peer, "peer", rtt=-1.0, now=0.0)
        self.assertRaises(ValueError, endpoint.set_peer, "peer", rtt=float("nan"), now=0.0)


class Transitions(SynchronousTestCase):
    """The table of exchange states."""

    def _exchange(self, state: State) -> ClientExchange:
        core = Core(random.Random(1), Tuning(), Limits())
        return ClientExchange(id=1, peer=core.peer_state("peer"), state=state)

    def test_absent_is_illegal(self) -> None:
        for state in State:
            for step in Step:
                exchange = self._exchange(state)
                if (state, step) in TRANSITIONS:
                    exchange.advance(step)
                    self.assertIs(exchange.state, TRANSITIONS[state, step])
                else:
                    self.assertRaises(IllegalTransition, exchange.advance, step)
                    self.assertIs(exchange.state, state)

    def test_everything_ends_and_nothing_leaves_the_end(self) -> None:
        for state in State:
            self.assertEqual((state, Step.END) in TRANSITIONS, state is not State.ENDED)
        self.assertNotIn(State.ENDED, {state for state, _ in TRANSITIONS})

    def test_roles_do_not_mix(self) -> None:
        client = {
            State.READY,
            State.REQUESTING,
            State.STREAMING,
            State.AWAITING,
            State.PINGING,
            State.OBSERVING,
            State.ENDED,
        }
        server = {
            State.PROCESSING,
            State.ACCEPTED,
            State.DELIVERING,
            State.NOTIFYING,
            State.OBSERVED,
            State.ENDED,
        }
        for (before, _), after in TRANSITIONS.items():
            self.assertTrue({before, after} <= client or {before, after} <= server, (before, after))


class MessageIds(SynchronousTestCase):
    """RFC 7252 section 4.4."""

    def test_wrap_and_skip_what_is_outstanding(self) -> None:
        script = Script(self)
        core = Core(random.Random(1), Tuning(), Limits())
        state = core.peer_state("peer")
        state.next_message_id = 0xFFFE
        self.assertEqual([state.take_message_id(0.0, 1.0) for _ in range(3)], [0xFFFE, 0xFFFF, 0])
        self.assertIsInstance(state, PeerState)
        self.assertIsInstance(state.settings, PeerSettings)
        script.endpoint.request("peer", GET, script.now)
        (sent,) = script.datagrams()
        inner = script.endpoint._core.peers["peer"]
        inner.next_message_id = sent.message_id
        self.assertEqual(inner.take_message_id(0.0, 1.0), (sent.message_id + 1) & 0xFFFF)

    def test_kept_for_exchange_lifetime(self) -> None:
        """As long as ids must not be used again, the peer's counter is kept; then it costs nothing."""
        script = Script(self)
        script.endpoint.request("peer", GET, script.now)
        script.endpoint_sends("CON [$m] GET /a Token=$t")
        script.peer_sends("ACK [$m] 2.05 Token=$t")
        script.event(ResponseReceived)
        script.passes(246.9)
        self.assertEqual(list(script.endpoint.peers), ["peer"])
        script.passes(0.1)
        self.assertEqual(list(script.endpoint.peers), [])
        self.assertTrue(script.endpoint.idle)
